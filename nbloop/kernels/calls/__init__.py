"""Calling a callback: what its word means and what follows the call; and the commands that other threads left."""
