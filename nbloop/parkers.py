"""How a loop without descriptors sleeps where the kernels cannot do it themselves.

On Linux and Windows the kernels call the system's futex, and nothing here is needed. Elsewhere they use a `LockParker`:
on every platform CPython can wait for a lock with a timeout.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Protocol

from .kernels.base.capi import SYS_FUTEX, WINDOWS


class Parker(Protocol):
    """What a loop needs to sleep outside the kernels; every `Poller` is a `Parker`."""

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        """Sleep until a wake call arrives, for at most `timeout_ns` (-1: no limit). The loop's thread."""

    def wake(self) -> None:
        """Make the current `wait`, or the next one, return. Any thread, once per announced sleep."""


class LockParker:
    """A lock used as a binary semaphore: `wait` takes it, `wake` releases it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        self._lock.acquire(timeout=-1 if timeout_ns < 0 else min(timeout_ns / 1e9, threading.TIMEOUT_MAX))
        return ()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # already free: this wake is for an earlier sleep that timed out
            self._lock.release()


def futex_available() -> bool:
    """Whether the kernels sleep by themselves here. ``NBLOOP_PARK=lock`` turns that off, to test other platforms."""
    return (SYS_FUTEX != 0 or WINDOWS) and os.environ.get("NBLOOP_PARK") != "lock"
