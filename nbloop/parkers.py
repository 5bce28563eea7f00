"""How a loop sleeps when the kernels do not do it themselves.

On Linux the fast path needs nothing from here: the kernels call futex. Elsewhere a `LockParker` stands in (a lock is
what every platform's CPython can wait on with a timeout), and in poll mode the platform's poller, whose descriptor
the wake call writes to.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Protocol

from .kernels import layout
from .kernels.capi import SYS_FUTEX


class Parker(Protocol):
    """What a loop needs to sleep outside the kernels."""

    def wait(self, timeout_ns: int) -> None:
        """Sleep until a wake call arrives, for at most that long (-1: no limit). The loop's thread."""

    def wake(self) -> None:
        """Make the `wait` in progress, or the next one, return. Any thread, once per announced sleep."""

    def close(self, claimed: int) -> None:
        """Release what it holds, after as many wake calls have arrived as were `claimed`. The owner of the loop."""


class LockParker:
    """A lock used as a one-slot semaphore: `wait` takes it, `wake` gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout_ns: int) -> None:
        self._lock.acquire(timeout=-1 if timeout_ns < 0 else min(timeout_ns / 1e9, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        self._lock.release()

    def close(self, claimed: int) -> None:
        """Nothing to release: a late `wake` finds a lock that nobody waits for."""


def futex_available() -> bool:
    """Do the kernels sleep by themselves here? ``NBLOOP_PARK=lock`` says no, to test what other platforms do."""
    return SYS_FUTEX != 0 and os.environ.get("NBLOOP_PARK") != "lock"


def make_parker(poll: bool) -> tuple[Parker | None, int, int]:
    """The parker for the fast path, or for poll mode; with it the kernels' word for it, and the wake descriptor or
    -1.
    """
    if poll and sys.platform == "linux":
        from .pollers.epoll import EpollPoller

        poller = EpollPoller()
        return poller, layout.PARK_POLL, poller.wake_fd
    if not poll and futex_available():
        return None, layout.PARK_FUTEX, -1
    return LockParker(), layout.PARK_PYTHON, -1
