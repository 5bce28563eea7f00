"""nbloop: a lock-free event loop for free-threaded Python, compiled by Numba.

Importing this never turns the GIL on, and imports numba only if the kernels have to be compiled (once per machine).
"""

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
)
from .lifecycle import LoopState
from .loop import Loop
from .options import FastPathMode
from .readiness import IOEvents
from .scheduling import Producer

__version__ = "0.1.0"

__all__ = [
    "FDAlreadyRegisteredError",
    "FDNotRegisteredError",
    "FDOutOfRangeError",
    "FastPathIncompatibleError",
    "FastPathMode",
    "ForkedLoopError",
    "IOEvents",
    "Loop",
    "LoopAlreadyRunningError",
    "LoopOverloadedError",
    "LoopState",
    "LoopTerminatedError",
    "NbloopError",
    "PollerFailedError",
    "Producer",
    "ReentrantCloseError",
    "ReentrantRunError",
]
