"""Calling a callback: what its word means, what follows it, and the commands that other threads left behind."""
