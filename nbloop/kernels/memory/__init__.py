"""Memory: chunks of cells and their slabs, numbered slots with generations, growable rings, and the lock-free stack
that holds free numbers.
"""
