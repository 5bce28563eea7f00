"""A loop as a `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, cast

from .lock import CountingLock
from .loop import Loop
from .unique import Unique
from .waiting import Future, LoopFuture, refuse_own_thread, send, wait


def _wait_for_all(loop: Loop, futures: list[LoopFuture]) -> None:
    """`concurrent.futures.wait` has locks that an exception of a signal handler can leave taken."""
    for future in futures:
        wait(loop, future, None)


class LoopExecutor(Unique, concurrent.futures.Executor):
    """A loop as a `concurrent.futures.Executor`: submitted functions run on the loop's thread, one after the other, in
    the order of the calls.

    A future that is pending when the loop ends, or when an exception leaves `run()`, is rejected with
    `LoopTerminatedError`, and its function is not called. KeyboardInterrupt and SystemExit in a function reject its
    future and leave `run()`.

    Methods may be called from any thread, not from signal handlers. Raises TypeError if `loop` is not a `nbloop.Loop`.

    >>> import nbloop
    >>> with nbloop.Loop() as loop, nbloop.LoopExecutor(loop) as executor:
    ...     print(executor.submit(pow, 2, 8).result(), list(executor.map(abs, [-1, -2])))
    256 [1, 2]
    """

    def __init__(self, loop: Loop) -> None:
        if not isinstance(loop, Loop):
            raise TypeError(f"loop must be a nbloop.Loop, not {loop!r}")
        self.loop = loop
        self._lock = CountingLock()
        self._pending: dict[LoopFuture, None] = {}
        self._shut = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Call ``fn(*args, **kwargs)`` on the loop's thread; returns a future of its outcome. O(1).

        Raises RuntimeError after `shutdown`, TypeError if `fn` is not callable, otherwise as `Loop.submit`.
        """
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future = send(self.loop, fn, args, kwargs)
            self._pending[future] = None
        future.add_done_callback(lambda done: self._pending.pop(cast("LoopFuture", done), None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse more calls, and wait for the accepted ones. The loop goes on. O(pending).

        With `cancel_futures`, calls that have not begun never will. Raises `ReentrantWaitError` if it would have to
        wait on the loop's own thread.
        """
        with self._lock:
            self._shut = True
        pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        pending = [future for future in pending if not future.done()]
        if wait and pending:
            refuse_own_thread(self.loop, "LoopExecutor.shutdown()")
            _wait_for_all(self.loop, pending)
