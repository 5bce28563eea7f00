"""Everything compiled: atomics, C-API, memory layout, queues, timers, parking, the turn. Importing this loads the
kernels."""

from . import js, methods, pack, signals, traverse, turn

pack.load()

__all__ = ["js", "methods", "pack", "signals", "traverse", "turn"]
