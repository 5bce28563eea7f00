"""nbloop: a lock-free event loop for free-threaded Python, compiled by Numba.

Importing this never turns the GIL on, and imports numba only if the kernels have to be compiled (once per machine).
"""

from .errors import (
    FastPathIncompatibleError,
    ForkedLoopError,
    LoopAlreadyRunningError,
    LoopOverloadedError,
    LoopTerminatedError,
    NbloopError,
    ReentrantCloseError,
    ReentrantRunError,
)
from .loop import Loop, LoopState, Producer
from .options import FastPathMode

__version__ = "0.1.0"

__all__ = [
    "FastPathIncompatibleError",
    "FastPathMode",
    "ForkedLoopError",
    "Loop",
    "LoopAlreadyRunningError",
    "LoopOverloadedError",
    "LoopState",
    "LoopTerminatedError",
    "NbloopError",
    "Producer",
    "ReentrantCloseError",
    "ReentrantRunError",
]
