"""Safepoints: where a kernel that may not run Python lets other threads stop the world or take the GIL.

A kernel whose work grows with the user's input calls `safepoint` every `EVERY` steps or so: 40 ns per 10 to 100 µs of
work. Meanwhile the collector may run, and other threads may call any method, so everything they can see must be
consistent. To the collector, a reference that only the kernel's variables hold looks like one held from outside, which
is safe. No signal handler runs, and no exception can occur. Where both are allowed, kernels call check_interrupts
instead (invoke.py).
"""

from __future__ import annotations

from .capi import PyEval_RestoreThread, PyEval_SaveThread
from .kernel import apart

EVERY = 1024  # steps between two safepoints; a power of two


@apart
def safepoint() -> None:
    """Detach the thread state and attach it again."""
    thread = PyEval_SaveThread()
    PyEval_RestoreThread(thread)
