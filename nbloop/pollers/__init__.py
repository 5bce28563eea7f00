"""The platforms' pollers, through ctypes: one file per family of system calls."""
