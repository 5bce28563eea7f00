"""Everything compiled, one folder per concern; importing this loads the kernels. Imports between folders go one way::

    base <- memory <- observe <- ingress <- timers <- calls <- promises <- turn <- channels <- methods <- state <- build

To read a turn from start to end, begin with `turn.phases.phases`.
"""

from .build import object_cache
from .channels import channel_methods, permits
from .methods import asyncio_methods, group, javascript, lifetime, scheduling, signal_handler, timer_methods
from .observe import allocations, event_ring, frames, meter
from .promises import reactions, settling
from .state import traverse
from .turn import datagram, fd_watches, stream, turn

object_cache.load()

__all__ = [
    "allocations",
    "asyncio_methods",
    "channel_methods",
    "datagram",
    "event_ring",
    "fd_watches",
    "frames",
    "group",
    "javascript",
    "lifetime",
    "meter",
    "object_cache",
    "permits",
    "reactions",
    "scheduling",
    "settling",
    "signal_handler",
    "stream",
    "timer_methods",
    "traverse",
    "turn",
]
