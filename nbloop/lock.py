"""The lock for cold paths: a re-entrant lock that counts how often, and for how long, threads had to wait for it.

Nothing on a callback's path takes a lock; registering descriptors, making producer handles and ending a loop do. The
lock itself measures contention: it first tries without waiting, and reads the clock only if that fails.

Only ``__enter__`` of the interpreter's lock is replaced by Python code. With a Python ``__exit__``, a signal handler
could raise before the release and leave the lock taken for ever. With the built-in ``__enter__`` CPython 3.14 lets one
raise between the lock and the block; so each lock that a ``with`` of nbloop enters is one of these.

A signal handler that forks while another thread holds a lock leaves it taken in the child, where that thread does not
exist. So in a child a thread that has waited `LOOK` seconds checks that the holder exists. It would be simpler if each
lock noted its process, but then the making of a lock would take 555 ns instead of 75.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import ForkedLoopError

LOOK = 0.5  # seconds between two checks of what another thread is to do
HAND_OVER = 0.01  # seconds; a thread that has got a lock says so within microseconds

_process = os.getpid()  # no lock is older


def check_finalizing(is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
    """Before a wait for another thread: raise PythonFinalizationError if the interpreter is ending.

    By then all other threads stand still for ever, so a finaliser that waited would keep the process for ever. Python
    3.14 does the same for `threading.Thread.join`.
    """
    if is_finalizing():
        raise PythonFinalizationError("cannot wait for another thread while the interpreter is ending")


class CountingLock(_thread.RLock):  # type: ignore[misc]  # typeshed calls it final, CPython does not
    """A re-entrant lock for ``with``. Its holder writes `waits` and `waited_ns`; any thread may read them."""

    waits = 0
    waited_ns = 0

    if TYPE_CHECKING:
        # CPython's own tests and modules use these.
        def _recursion_count(self) -> int: ...  # how often the calling thread holds it
        def _at_fork_reinit(self) -> None: ...

    def __enter__(self) -> bool:  # type: ignore[override]
        depth = self._recursion_count()
        try:
            if not self.acquire(False):
                begun = time.monotonic_ns()
                while not self.acquire(timeout=LOOK):
                    if self._orphaned():
                        raise ForkedLoopError("the thread that holds this lock stayed in the parent of this process")
                self.waits += 1
                self.waited_ns += time.monotonic_ns() - begun
        except BaseException:  # a signal handler raised, before or after we got the lock
            if self._recursion_count() > depth:
                self.release()
            raise
        return True

    def _orphaned(self) -> bool:
        """Whether it is held by a thread that stayed in the process that called os.fork()."""
        holder = self._holder()
        if os.getpid() == _process or holder in sys._current_frames():
            return False
        time.sleep(HAND_OVER)
        if self._holder() != holder:
            return False
        if self.acquire(False):  # it has just been released, as a free one has no holder, either
            self.release()
            return False
        return self._holder() == holder

    def _holder(self) -> int:
        """The thread that holds it, or 0: also while one that has got it has not said so. At a fork that may be one
        that stays in the parent. CPython has this only in the lock's ``repr``.
        """
        found = re.search(r"owner=(\d+)", _thread.RLock.__repr__(self))
        return int(found[1]) if found else 0


class ModuleLock(CountingLock):  # type: ignore[misc]
    """For what a module keeps as long as the process lasts. It is free in a forked child, unless the thread that forked
    holds it.
    """

    def __init__(self) -> None:
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._free)

    def _free(self) -> None:
        if not self._recursion_count():
            self._at_fork_reinit()


class Latch:
    """An event that happens once. Any thread may wait for it, even in a signal handler that interrupts one of these
    calls.

    `threading.Event` has an internal lock, which a handler cannot take while the interrupted call holds it; and an
    exception between its steps can leave that lock taken, or cause a RuntimeError.
    """

    def __init__(self) -> None:
        self._happened = False
        self._process = os.getpid()  # in which it can happen
        self._waiting: list[_thread.LockType] = []

    def is_set(self) -> bool:
        """Whether it has happened. Any thread."""
        return self._happened

    def set(self) -> None:
        """Make it happen. Once. If a signal handler raises in here, a waiter may have to wait for its timeout."""
        self._happened = True
        for gate in list(self._waiting):
            with contextlib.suppress(RuntimeError):  # released before, by a call that was interrupted
                gate.release()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; return whether it has happened. Any thread. If it has not and never will:
        PythonFinalizationError, because the interpreter is ending; ForkedLoopError after the time, because a signal
        handler has forked meanwhile, and this is the child.
        """
        if not self._happened:
            check_finalizing()
        gate = _thread.allocate_lock()
        gate.acquire()
        self._waiting.append(gate)
        try:
            if self._happened or gate.acquire(timeout=timeout) or self._happened:
                return True
        finally:
            self._waiting.remove(gate)
        if os.getpid() != self._process:
            raise ForkedLoopError("the thread that this waits for stayed in the process that called os.fork()")
        return False
