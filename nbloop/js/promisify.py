"""`Loop.promisify`: a blocking function on a worker thread, a promise for its outcome.

The worker only leaves its outcome in a queue and asks the loop to look; the promise is settled on the loop's thread.
So when the loop ends gracefully, and takes no more work from other threads, it can wait for the workers still running
and settle their promises itself, with their handlers run as microtasks of the end. When it is closed, promises that
are still pending are rejected at once, and nobody waits for what runs inside user code.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..errors import LoopTerminatedError
from ..kernels import life
from ..lifecycle import LoopState
from .promise import Promise
from .view import JS

if TYPE_CHECKING:
    from ..loop import Loop


def _reject_all(promises: list[Promise[Any]]) -> None:
    for promise in promises:
        promise._reject(LoopTerminatedError("the loop was closed"))


class Workers:
    """The worker threads of one loop, made with its first `promisify`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = weakref.ref(loop)
        self._js = JS(loop)
        self._pool = ThreadPoolExecutor(thread_name_prefix=f"{loop.name}-worker")
        self._outcomes: queue.SimpleQueue[tuple[Promise[Any], bool, Any] | None] = queue.SimpleQueue()
        self._pending: dict[int, Promise[Any]] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._working = threading.local()
        self._hold = life.hold.bind(loop._state)  # a worker at work keeps an auto-exit loop alive

    def run(self, function: Callable[..., Any], args: tuple[object, ...]) -> Promise[Any]:
        """Start one. Any thread."""
        promise: Promise[Any] = Promise(self._js)
        refusal: Exception = LoopTerminatedError("the loop has terminated or is about to")
        with self._lock:
            loop = self._loop()
            ending = loop is None or loop.state in (LoopState.TERMINATING, LoopState.TERMINATED)
            if not self._ended and not ending:
                self._pending[id(promise)] = promise
                self._hold(1)
                try:
                    self._pool.submit(self._work, promise, function, args)
                    return promise
                except RuntimeError as error:  # no thread to be had, or the interpreter ends
                    del self._pending[id(promise)]  # should a worker take it all the same, its outcome is dropped
                    self._hold(-1)
                    refusal = error
        promise._reject(refusal)
        return promise

    def at_work(self) -> bool:
        """Is the calling thread one of these, with a function that has not returned?"""
        return getattr(self._working, "now", False)

    def _work(self, promise: Promise[Any], function: Callable[..., Any], args: tuple[object, ...]) -> None:
        self._working.now = True
        try:
            outcome, failed = function(*args), False
        except BaseException as error:
            outcome, failed = error, True
        self._outcomes.put((promise, failed, outcome))
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(LoopTerminatedError):  # then `finish` takes it
                loop.submit_internal(self._settle_one)

    def _settle_one(self) -> None:
        with contextlib.suppress(queue.Empty):
            outcome = self._outcomes.get_nowait()
            if outcome is not None:
                self._settle(*outcome)

    def hurry(self) -> None:
        """The loop is being closed: an end that waits for a worker waits no longer. Any thread."""
        self._outcomes.put(None)

    def _settle(self, promise: Promise[Any], failed: bool, outcome: Any) -> None:
        with self._lock:
            if self._pending.pop(id(promise), None) is None:  # the loop was closed, and has rejected it
                return
        self._hold(-1)
        if failed:
            promise._reject(outcome)
        else:
            promise._resolve(outcome)

    def finish(self, closing: bool) -> bool:
        """At the loop's end, on its thread: settle one more; False when none is left. Waits for a worker, unless
        closing.
        """
        with self._lock:
            self._ended = self._ended or closing or not self._pending
            pending = list(self._pending.values())
            if closing:
                self._pending.clear()
                self._hold(-len(pending))
        if closing and pending:
            # On the loop's own thread microtasks are still taken, and then dropped: elsewhere what follows is
            # rejected too.
            thread = threading.Thread(target=_reject_all, args=(pending,))
            thread.start()
            thread.join()
        elif pending:
            outcome = self._outcomes.get()
            if outcome is not None:  # else `close` has come, and the caller looks at that
                self._settle(*outcome)
            return True
        self._pool.shutdown(wait=False, cancel_futures=True)
        return False
