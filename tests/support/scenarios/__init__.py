"""Public calls, each with what is around it and what is true after it was interrupted: `SCENARIOS`.

`loop` has the core's calls, idle, run by this thread, and run by another; `channels`, `signals`, `promises`,
`asyncio_view`, `queues`, `serving` and `observers` have what lies over it.
"""

from __future__ import annotations

from . import asyncio_view, channels, loop, observers, promises, queues, serving, signals
from .scenario import ONLY_CTRL_C, SCENARIOS, Steps

__all__ = [
    "ONLY_CTRL_C",
    "SCENARIOS",
    "Steps",
    "asyncio_view",
    "channels",
    "loop",
    "observers",
    "promises",
    "queues",
    "serving",
    "signals",
]
