"""How a loop without descriptors sleeps when the kernels do not do it themselves.

On Linux nothing is needed from here: the kernels call futex. Elsewhere a `LockParker` stands in: a lock is what every
platform's CPython can wait on with a timeout.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Protocol

from .kernels.base.capi import SYS_FUTEX, WINDOWS


class Parker(Protocol):
    """What a loop needs to sleep outside the kernels; every `Poller` is one."""

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        """Sleep until a wake call arrives, for at most that long (-1: no limit). The loop's thread."""

    def wake(self) -> None:
        """Make the `wait` in progress, or the next one, return. Any thread, once per announced sleep."""


class LockParker:
    """A lock used as a one-slot semaphore: `wait` takes it, `wake` gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        self._lock.acquire(timeout=-1 if timeout_ns < 0 else min(timeout_ns / 1e9, threading.TIMEOUT_MAX))
        return ()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # free already: a wake of an earlier sleep, which ended by itself
            self._lock.release()


def futex_available() -> bool:
    """Do the kernels sleep by themselves here? ``NBLOOP_PARK=lock`` says no, to test what other platforms do."""
    return (SYS_FUTEX != 0 or WINDOWS) and os.environ.get("NBLOOP_PARK") != "lock"
