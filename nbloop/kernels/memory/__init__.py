"""Where words live: chunks of cells and the slabs they lie in, numbered slots with generations, growable rings, and the
lock-free stack in which free numbers wait.
"""
