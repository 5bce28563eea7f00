"""nbloop: a lock-free event loop for free-threaded Python, compiled by Numba.

Importing this never turns the GIL on, and imports numba only if the kernels have to be compiled (once per machine).
"""

from typing import TYPE_CHECKING, Any

from .channel import Channel, ChannelProducer
from .errors import (
    FastPathIncompatibleError,
    FDAlreadyRegisteredError,
    FDNotRegisteredError,
    FDOutOfRangeError,
    ForkedLoopError,
    LoopAlreadyRunningError,
    LoopOverloadedError,
    LoopTerminatedError,
    NbloopError,
    PollerFailedError,
    ReentrantCloseError,
    ReentrantRunError,
    ReentrantWaitError,
)
from .lifecycle import LoopState
from .loop import Loop
from .options import FastPathMode
from .readiness import IOEvents
from .scheduling import Producer
from .waiting import LoopExecutor

if TYPE_CHECKING:
    from .aio import EventLoop, EventLoopPolicy, new_event_loop, run

__version__ = "0.1.0"

__all__ = [
    "Channel",
    "ChannelProducer",
    "EventLoop",
    "EventLoopPolicy",
    "FDAlreadyRegisteredError",
    "FDNotRegisteredError",
    "FDOutOfRangeError",
    "FastPathIncompatibleError",
    "FastPathMode",
    "ForkedLoopError",
    "IOEvents",
    "Loop",
    "LoopAlreadyRunningError",
    "LoopExecutor",
    "LoopOverloadedError",
    "LoopState",
    "LoopTerminatedError",
    "NbloopError",
    "PollerFailedError",
    "Producer",
    "ReentrantCloseError",
    "ReentrantRunError",
    "ReentrantWaitError",
    "new_event_loop",
    "run",
]


def __getattr__(name: str) -> Any:
    """asyncio's view of the loop, imported when it is asked for: who does without need not wait for asyncio."""
    if name in ("EventLoop", "EventLoopPolicy", "new_event_loop", "run"):
        from . import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
