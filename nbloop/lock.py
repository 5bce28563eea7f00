"""The lock of what is rare: a re-entrant one that counts how often, and for how long, somebody had to wait for it.

Nothing that a callback goes through takes a lock; registering descriptors, making producer handles and ending a loop
do. Whether they get in each other's way is asked of the lock itself: one try that does not wait, and only who fails
looks at the clock.

Of the interpreter's own lock only ``__enter__`` is Python: a signal handler that raises between the release and the
return of a Python ``__exit__`` would be one that raises before the release, and leave the lock taken for ever.
"""

from __future__ import annotations

import _thread
import time
from typing import TYPE_CHECKING


class CountingLock(_thread.RLock):  # type: ignore[misc]  # typeshed calls it final, CPython does not
    """A re-entrant lock for ``with``; `waits` and `waited_ns` are written by who holds it, and read by anybody."""

    waits = 0
    waited_ns = 0

    if TYPE_CHECKING:

        def _recursion_count(self) -> int: ...  # how often the calling thread holds it; CPython's own tests use it

    def __enter__(self) -> bool:  # type: ignore[override]
        depth = self._recursion_count()
        try:
            if not self.acquire(blocking=False):
                begun = time.monotonic_ns()
                self.acquire()
                self.waits += 1
                self.waited_ns += time.monotonic_ns() - begun
        except BaseException:  # a signal handler has raised: before the lock was ours, or after
            if self._recursion_count() > depth:
                self.release()
            raise
        return True


class Latch:
    """Something that happens once, for which any thread, and a signal handler that interrupts any of these calls, may
    wait.

    `threading.Event` has a lock of its own, which a handler's call cannot take while the call that it interrupts holds
    it, and an exception between its steps can leave that lock taken or make it RuntimeError.
    """

    def __init__(self) -> None:
        self._happened = False
        self._waiting: list[_thread.LockType] = []

    def is_set(self) -> bool:
        """Has it happened? Any thread."""
        return self._happened

    def set(self) -> None:
        """It has. Once. An exception of a signal handler in here can leave a waiter to its timeout."""
        self._happened = True
        for gate in list(self._waiting):
            gate.release()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds: has it happened? Any thread."""
        gate = _thread.allocate_lock()
        gate.acquire()
        self._waiting.append(gate)
        try:
            return self._happened or gate.acquire(timeout=timeout) or self._happened
        finally:
            self._waiting.remove(gate)
