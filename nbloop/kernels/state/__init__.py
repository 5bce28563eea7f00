"""The memory of a loop or a producer handle, as a numpy array: how it is created, what the collector sees of it, and
how it ends.
"""
