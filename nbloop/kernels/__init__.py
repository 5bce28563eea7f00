"""Everything compiled, one folder a concern; importing this loads the kernels. Imports between folders point one way::

    base <- memory <- observe <- ingress <- timers <- calls <- promises <- turn <- methods <- state <- build

`turn.phases.phases` is the page on which a turn is read.
"""

from .build import object_cache
from .methods import asyncio_methods, js_timers, lifetime, scheduling, signal_handler, timer_methods
from .observe import event_ring, frames, meter
from .promises import reactions, settling
from .state import traverse
from .turn import fd_watches, stream, turn

object_cache.load()

__all__ = [
    "asyncio_methods",
    "event_ring",
    "fd_watches",
    "frames",
    "js_timers",
    "lifetime",
    "meter",
    "object_cache",
    "reactions",
    "scheduling",
    "settling",
    "signal_handler",
    "stream",
    "timer_methods",
    "traverse",
    "turn",
]
