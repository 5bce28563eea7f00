"""Promises without their policy: settling once, reacting to it, and the classes whose slots are the words."""
