"""Everything compiled: atomics, C-API, memory layout, queues, timers, parking, the turn. Importing this loads the
kernels."""

from . import (
    frames,
    js,
    life,
    methods,
    metrics,
    pack,
    reactions,
    recorder,
    settling,
    signals,
    timer_methods,
    traverse,
    turn,
)

pack.load()

__all__ = [
    "frames",
    "js",
    "life",
    "methods",
    "metrics",
    "pack",
    "reactions",
    "recorder",
    "settling",
    "signals",
    "timer_methods",
    "traverse",
    "turn",
]
