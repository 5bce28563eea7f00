"""nbloop: a lock-free event loop for free-threaded Python, compiled by Numba.

Importing this never turns the GIL on, and imports numba only if the kernels have to be compiled (once per machine).
"""

import sys
from typing import TYPE_CHECKING, Any

from . import subinterpreters as _subinterpreters  # noqa: F401 - the check comes before all other imports

# isort: split
from .channel import Channel, ChannelFigures, ChannelProducer
from .compiled import NativeHandler, NativeRing, native
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
from .executor import LoopExecutor
from .group import LoopGroup
from .lifecycle import LoopState
from .loop import Loop
from .options import FastPathMode
from .producer import Producer
from .readiness import IOEvents

if TYPE_CHECKING:
    from .aio import EventLoop, EventLoopPolicy, Worker, new_event_loop, run, serve

__version__ = "0.1.0"

__all__ = [
    "Channel",
    "ChannelFigures",
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
    "LoopGroup",
    "LoopOverloadedError",
    "LoopState",
    "LoopTerminatedError",
    "NativeHandler",
    "NativeRing",
    "NbloopError",
    "PollerFailedError",
    "Producer",
    "ReentrantCloseError",
    "ReentrantRunError",
    "ReentrantWaitError",
    "Worker",
    "native",
    "new_event_loop",
    "run",
    "serve",
]
if sys.version_info >= (3, 16):
    __all__.remove("EventLoopPolicy")


def __getattr__(name: str) -> Any:
    """Import asyncio's view of the loop on first use: programs that do not use it need not wait for asyncio."""
    if name in ("EventLoop", "EventLoopPolicy", "Worker", "new_event_loop", "run", "serve"):
        from . import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
