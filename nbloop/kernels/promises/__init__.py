"""Promises without their policy: what settles once, what reacts to it, and the classes whose slots are the words."""
