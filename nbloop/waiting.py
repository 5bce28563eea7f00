"""Threads that wait for a loop: for a promise, for a call, for its end.

Problem: what a thread waits for may never happen, because the loop has ended or an exception has left `run()`. Idea: a
thread waits for a `concurrent.futures.Future`, and the loop keeps each such future until it is done, so that it can
reject those still pending when it ends. It keeps strong references, because the collector, when it destroys a loop, may
clear weak references before it calls the loop's finaliser.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

from . import hooks
from .errors import LoopTerminatedError, ReentrantWaitError
from .kernels.base import layout
from .lock import LOOK, CountingLock, Latch
from .options import check_timeout
from .unique import Unique

type Future = concurrent.futures.Future[Any]

worker = threading.local()  # `of`: the `Waiters` of the loop for which this thread is running a function of `promisify`


class Awaited(Protocol):
    """A loop, as threads that wait for it see it."""

    name: str
    _waiters: Waiters

    def _check_fork(self) -> None: ...
    def _lifecycle(self) -> int: ...
    def is_loop_thread(self) -> bool: ...
    def submit(self, callback: Callable[..., object], /, *args: object) -> None: ...


def terminated(loop: Awaited) -> LoopTerminatedError:
    """The error that waiters of a loop get because it ends."""
    return LoopTerminatedError(f"{loop.name} has terminated or is about to")


def settle(set_outcome: Callable[[Any], object], outcome: Any) -> None:
    """Give a future its outcome, unless it has one or was cancelled. Any thread."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        set_outcome(outcome)


class _Condition(threading.Condition):
    """A condition whose ``with`` uses the lock's own methods, so that a signal handler's exception cannot leave the
    lock taken. The ``with`` of `threading.Condition` is Python code: such an exception, after the lock was taken and
    before the block has begun, leaves the lock taken, and the thread that settles the future hangs.
    """

    def __init__(self) -> None:
        super().__init__(CountingLock())

    # Both are read before the lock is taken.
    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class LoopFuture(Unique, concurrent.futures.Future[Any]):
    """A `concurrent.futures.Future` that an exception of a signal handler does not leave locked, and for which its
    loop's thread does not wait.
    """

    def __init__(self, loop: Awaited) -> None:
        super().__init__()
        self._condition = _Condition()
        self._loop = weakref.ref(loop)

    def result(self, timeout: float | None = None) -> Any:
        """As `concurrent.futures.Future.result`. `ReentrantWaitError` on the loop's own thread, if it is pending."""
        self._refuse_own_thread("result")
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `concurrent.futures.Future.exception`. `ReentrantWaitError` as for `result`."""
        self._refuse_own_thread("exception")
        return super().exception(timeout)

    def _refuse_own_thread(self, call: str) -> None:
        loop = None if self.done() else self._loop()
        if loop is not None:
            refuse_own_thread(loop, f"the {call}() of a future")

    def wake_when_done(self, latch: Latch) -> None:
        """`add_done_callback` would log what a signal handler raises meanwhile, and go on."""
        with self._condition:
            if not self.done():
                self._done_callbacks.append(lambda _future: latch.set())  # type: ignore[attr-defined]
                return
        latch.set()


class Waiters:
    """The futures of one loop that may still be pending. Every method from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name  # the loop's
        self._held: dict[Future, bool] = {}  # whether a worker waits for it

    def future(self, loop: Awaited) -> LoopFuture:
        """A pending future, which is rejected if the loop ends first."""
        loop._check_fork()
        future = LoopFuture(loop)
        at_work = self.at_work()
        self._held[future] = at_work
        future.add_done_callback(partial(_forget, self._held))
        # The end first moves the lifecycle, then reads the futures: one of the two sees the other.
        if loop._lifecycle() >= (layout.TERMINATING if at_work else layout.TERMINATED):
            loop._check_fork()
            settle(future.set_exception, terminated(loop))
        return future

    def at_work(self) -> bool:
        """Whether the calling thread is a worker of the loop, inside a function: a graceful end waits for it."""
        return getattr(worker, "of", None) is self

    def abandon(self, message: str, cause: BaseException | None = None, *, workers: bool = False) -> None:
        """Reject all pending futures, or only those for which workers wait."""
        for future, at_work in list(self._held.items()):
            if workers and not at_work:
                continue
            error = LoopTerminatedError(message)
            error.__cause__ = cause
            try:
                settle(future.set_exception, error)
            except BaseException as raised:  # from a callback of the future: the others must still be rejected
                hooks.log(raised, "a callback of a future raised: %s", message, loop=self._name)


def _forget(held: dict[Future, Any], future: Future) -> None:
    held.pop(future, None)


def refuse_own_thread(loop: Awaited, call: str) -> None:
    """Raise if the caller is the loop's own thread: a loop cannot wait for itself."""
    if loop.is_loop_thread():
        raise ReentrantWaitError(f"{call} would wait for {loop.name} on its own thread, for ever")


def wait(loop: Awaited, future: LoopFuture, timeout: float | None, settled: Callable[[], bool] = lambda: False) -> bool:
    """Block until the future is done or `settled()` is true; False if the time has come first. Raises ForkedLoopError
    in a child that a signal handler has forked meanwhile.

    `settled` covers what may happen while no thread runs the loop; the waiting thread checks it now and then. It checks
    the future too: an exception of a signal handler can come between its outcome and its callbacks.
    """
    if timeout is not None:
        check_timeout(timeout)
    done = Latch()
    future.wake_when_done(done)
    until = None if timeout is None else time.monotonic() + timeout
    while not future.done() and not settled():
        loop._check_fork()
        left = LOOK if until is None else min(LOOK, until - time.monotonic())
        if done.wait(max(0.0, left)):
            break
        if left < LOOK and not settled():
            return False
    return True


def late(what: str, timeout: float | None) -> TimeoutError:
    """The error of a wait that `wait` gave up."""
    return TimeoutError(f"{what} has not come within {timeout} s")


class _Call:
    """A function for the loop to call, and the future of its outcome."""

    __slots__ = ("args", "function", "future", "kwargs")

    def __init__(self, future: Future, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.future = future
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __call__(self) -> None:
        """Called on the loop's thread. A call that was cancelled, or rejected because no thread ran the loop, is
        skipped.
        """
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        try:
            outcome = self.function(*self.args, **self.kwargs)
        except BaseException as error:
            settle(self.future.set_exception, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise  # they leave run(), as from any callback
        else:
            settle(self.future.set_result, outcome)
        finally:
            del self.function, self.args, self.kwargs


def send(loop: Awaited, function: Callable[..., Any], args: Any, kwargs: Any) -> LoopFuture:
    """Submit a call; returns the future of its outcome. Raises as `Loop.submit`."""
    if not callable(function):
        raise TypeError(f"fn must be callable, not {function!r}")
    future = loop._waiters.future(loop)
    loop.submit(_Call(future, function, args, kwargs))
    return future
