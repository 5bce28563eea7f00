"""A stop of the world is let through, and another thread to the GIL, where no Python may run.

A kernel whose work grows with what the user gave it comes here every `EVERY` steps or so: 40 ns for 10 to 100 µs of
work. The collector may run meanwhile, and other threads call any method; so what they can see must be consistent, and a
reference that only the kernel's own variables hold looks to the collector as if it were held from outside, which is
safe. No signal's handler runs, and no exception can come. Where both may, kernels check_interrupts instead (invoke.py).
"""

from __future__ import annotations

from .capi import PyEval_RestoreThread, PyEval_SaveThread
from .kernel import apart

EVERY = 1024  # steps between two; a power of two


@apart
def safepoint() -> None:
    """Detached for a moment."""
    thread = PyEval_SaveThread()
    PyEval_RestoreThread(thread)
