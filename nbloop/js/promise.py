"""Promises/A+ with ECMAScript's counting of jobs, settled from any thread.

Source: ECMAScript 2025, 27.2 (its abstract operations are cited where they are implemented) and Promises/A+ 1.1.

Problem: interleavings of promise chains are observable, so each step must take the *number* of microtasks that the
standard prescribes; and on free-threaded Python different threads may call `resolve` and `then` at once. Idea: the work
of every promise, settling once and queueing reactions in order, is compiled and uses the instance's own slots
(kernels/promises/settling.py explains the protocol). This file holds the promise itself, and what reports unhandled
rejections. policy.py holds what the kernels leave to Python.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, cast, overload

from .. import hooks
from ..errors import LoopTerminatedError
from ..kernels.base import layout
from ..kernels.base.kernel import method
from ..kernels.promises import reactions
from ..kernels.promises.classes import Eventual, View
from ..lifecycle import Lifecycle
from ..options import check_timeout
from ..waiting import LoopFuture, late, refuse_own_thread, settle, terminated, wait
from .tasks import wait_in_task


class Owner(Protocol):
    """A `JS`, as the promises and coroutines that it makes see it."""

    debug: bool
    rejections: Rejections
    _view: View

    @property
    def loop(self) -> Lifecycle: ...
    @property
    def clear_timeout(self) -> Callable[[int], bool]: ...
    @property
    def clear_interval(self) -> Callable[[int], bool]: ...
    def set_timeout(self, callback: Callable[..., object], ms: float = 0, /, *args: object) -> int: ...
    def set_interval(self, callback: Callable[..., object], ms: float = 0, /, *args: object) -> int: ...
    def queue_microtask(self, callback: Callable[..., object], /, *args: object) -> None: ...
    def with_resolvers(self) -> tuple[Promise[Any], Callable[..., None], Callable[..., None]]: ...
    def resolve(self, value: Any = None) -> Promise[Any]: ...
    def spawn[T](self, coroutine: Coroutine[Any, Any, T], /) -> Promise[T]: ...


class Signal(Protocol):
    """An `AbortSignal`, as what it aborts sees it."""

    _traceback: TracebackType | None

    @property
    def aborted(self) -> bool: ...
    @property
    def reason(self) -> Any: ...
    def on_abort(self, callback: Callable[[Any], object]) -> Callable[[], None]: ...


class RejectedError(Exception):
    """Raised by ``await promise`` for a reason that is not an exception; its only argument is the reason.

    >>> import nbloop
    >>> from nbloop.js import JS
    >>> async def main(js):
    ...     try:
    ...         await js.reject("no reason that could be raised")
    ...     except RejectedError as error:
    ...         return error.reason
    >>> with nbloop.Loop() as loop:
    ...     JS(loop).spawn(main(JS(loop))).result()
    'no reason that could be raised'
    """

    @property
    def reason(self) -> object:
        """What the promise was rejected with."""
        return self.args[0]


class CancelledError(BaseException):
    """Raised where a coroutine waits, to end it: by a group that has failed, by a time-out, or because its loop ends.

    It is not an `Exception`, so that an ``except Exception`` cannot keep the coroutine from its end. A promise that is
    rejected with it is not reported as an unhandled rejection.

    >>> issubclass(CancelledError, Exception)
    False
    """


def abandoned(loop: Lifecycle, why: str) -> LoopTerminatedError | CancelledError:
    """The reason of a promise that nothing will settle: `CancelledError`, or `LoopTerminatedError` if its loop ends."""
    return terminated(loop) if loop._lifecycle() >= layout.TERMINATING else CancelledError(why)


class Promise[T](Eventual):
    """A value that will be available later, or the reason why it will not. Made by `JS.promise`, `JS.with_resolvers`
    and other methods of `JS`.

    Handlers run as microtasks of the loop, in the order in which they were added, each at most once, never inside
    `then`. Any thread may call any method. A pending promise that nothing refers to any more is collected, with its
    handlers.
    """

    __slots__ = ("__weakref__", "_site", "_traceback", "_waited")
    _site: str
    _traceback: TracebackType | None
    _waited: dict[bool, LoopFuture]  # for which `result` waits, in a worker of the loop and elsewhere

    def __init__(self, js: Owner) -> None:
        self._view = js._view  # the only word that is always set: writing a slot costs 25 ns
        if js.debug:
            made(self, 3)  # leave out this frame and the view's, too

    @property
    def state(self) -> Literal["pending", "fulfilled", "rejected"]:
        """The state. ``pending`` may already be outdated; the others are final."""
        if not hasattr(self, "_outcome"):
            return "pending"
        return "fulfilled" if self._outcome else "rejected"

    @property
    def value(self) -> T | None:
        """The value it was fulfilled with; None before that, or if it is rejected (see `state`). Any thread. O(1)."""
        return self._value if getattr(self, "_outcome", None) is True else None

    @property
    def reason(self) -> Any:
        """The reason it was rejected with; None before that, or if it is fulfilled. Reading it does not handle the
        rejection. Any thread. O(1).
        """
        return self._value if getattr(self, "_outcome", None) is False else None

    @property
    def created_at(self) -> str | None:
        """The stack of the call that made it, as text, innermost frame last; None without ``debug=True``."""
        return getattr(self, "_site", None)

    def result(self, timeout: float | None = None) -> T:
        """Wait, on a thread other than the loop's, until it settles; return its value or raise its reason, as `await`
        does (a reason that is not an exception as `RejectedError`). Returns at once if it has settled, even after the
        loop's end.

        Waiting handles the rejection. Raises TimeoutError after `timeout` seconds; `ReentrantWaitError` on the loop's
        own thread; `LoopTerminatedError` if the loop ends first, if an exception leaves `run()`, and, in a function
        that `promisify` runs, when the end begins. While no thread runs the loop, the wait goes on. Not from a signal
        handler. O(1).

        >>> import nbloop
        >>> from nbloop.js import JS
        >>> with nbloop.Loop() as loop:
        ...     JS(loop).sleep(1).then(lambda _: "done").result()
        'done'
        """
        if timeout is not None:
            check_timeout(timeout)
        loop = self._view.owner.loop
        refuse_own_thread(loop, "Promise.result()")
        if not hasattr(self, "_outcome"):
            waited = self._wait_once(loop)
            if not wait(loop, waited, timeout, lambda: hasattr(self, "_outcome")):
                raise late(f"the outcome of {self!r}", timeout)
            if not hasattr(self, "_outcome"):
                waited.result()
        self._handled = True
        if self._outcome:
            return cast("T", self._value)
        raise reason_as_exception(self, self._value)

    def _wait_once(self, loop: Lifecycle) -> LoopFuture:
        """One future for all calls of `result`, so that calls that time out do not accumulate reactions; and another
        for calls of the loop's workers, which the beginning of the end rejects.
        """
        if not hasattr(self, "_waited"):
            self._waited = {}
        at_work = loop._waiters.at_work()
        waited = self._waited.get(at_work)
        if waited is None or waited.done():
            waited = loop._waiters.future(loop)
            self._react(partial(_wake, waited), partial(_wake, waited))
            self._waited[at_work] = waited
        return waited

    def future(self) -> concurrent.futures.Future[T]:
        """A new `concurrent.futures.Future` of its outcome, for any thread, and for `asyncio.wrap_future`.

        If the promise has settled, the future is done at once, otherwise a microtask of the loop completes it. It fails
        with what `result` raises. Cancelling it does nothing to the promise. It keeps neither the loop nor the promise
        alive: if the promise is collected before it settles, the future stays pending until the loop ends. O(1).

        >>> import nbloop
        >>> from nbloop.js import JS
        >>> with nbloop.Loop() as loop:
        ...     JS(loop).resolve(7).future().result()
        7
        """
        loop = self._view.owner.loop
        if not hasattr(self, "_outcome"):
            future: concurrent.futures.Future[T] = loop._waiters.future(loop)
            self._react(partial(settle, future.set_result), partial(_fail, future))
            return future
        future = LoopFuture(loop)
        self._handled = True
        if self._outcome:
            future.set_result(self._value)
        else:
            _fail(future, self._value)
        return future

    # First handlers that return promises or awaitables, then plain values: mypy could not separate a union of both.
    @overload
    def then(self, on_fulfilled: None = None, on_rejected: None = None) -> Promise[T]: ...
    @overload
    def then[U](self, on_fulfilled: Callable[[T], Awaitable[U]], on_rejected: None = None) -> Promise[U]: ...
    @overload
    def then[U](self, on_fulfilled: Callable[[T], U], on_rejected: None = None) -> Promise[U]: ...
    @overload
    def then[V](self, on_fulfilled: None, on_rejected: Callable[[Any], Awaitable[V]]) -> Promise[T | V]: ...
    @overload
    def then[V](self, on_fulfilled: None, on_rejected: Callable[[Any], V]) -> Promise[T | V]: ...
    @overload
    def then[U, V](
        self, on_fulfilled: Callable[[T], Awaitable[U]], on_rejected: Callable[[Any], Awaitable[V]]
    ) -> Promise[U | V]: ...
    @overload
    def then[U, V](
        self, on_fulfilled: Callable[[T], Awaitable[U]], on_rejected: Callable[[Any], V]
    ) -> Promise[U | V]: ...
    @overload
    def then[U, V](
        self, on_fulfilled: Callable[[T], U], on_rejected: Callable[[Any], Awaitable[V]]
    ) -> Promise[U | V]: ...
    @overload
    def then[U, V](self, on_fulfilled: Callable[[T], U], on_rejected: Callable[[Any], V]) -> Promise[U | V]: ...
    @method(reactions.then)
    def then(self, on_fulfilled: Any = None, on_rejected: Any = None) -> Promise[Any]:
        """A promise for what `on_fulfilled` returns for the value, or `on_rejected` for the reason. If there is no
        handler for the outcome, it follows this promise's own outcome. Handlers that are not callable are ignored.

        ECMAScript 27.2.5.4, Promises/A+ 2.2. A handler that raises rejects the new promise; if it returns a promise, a
        thenable, a `concurrent.futures.Future` or an awaitable, the new promise follows that. O(1).
        """
        raise NotImplementedError  # pragma: no cover

    @overload
    def catch(self, on_rejected: None = None) -> Promise[T]: ...
    @overload
    def catch[V](self, on_rejected: Callable[[Any], Awaitable[V]]) -> Promise[T | V]: ...
    @overload
    def catch[V](self, on_rejected: Callable[[Any], V]) -> Promise[T | V]: ...
    def catch(self, on_rejected: Callable[[Any], Any] | None = None) -> Promise[Any]:
        """``then(None, on_rejected)`` (ECMAScript 27.2.5.1)."""
        return self.then(None, on_rejected)

    def finally_(self, on_finally: Callable[[], object] | None = None) -> Promise[T]:
        """A promise of the same outcome, after ``on_finally()`` has run and its result has settled (ECMAScript
        27.2.5.3).

        If it raises, or its result is rejected, that becomes the outcome instead.
        """
        if not callable(on_finally):
            return self.then()
        js: Owner = self._view.owner

        def then_finally(value: T) -> Promise[T]:
            return js.resolve(on_finally()).then(lambda _ignored: value)

        def catch_finally(reason: Any) -> Promise[T]:
            again: Promise[T] = Promise(js)  # not `then` with a handler that raises: not every reason can be raised
            js.resolve(on_finally())._react(lambda _ignored: again._reject(reason), again._reject)
            return again

        return self.then(then_finally, catch_finally)

    def __await__(self) -> Generator[Any, Any, T]:
        """``await promise`` in a coroutine that `JS.spawn` runs or in an asyncio task: its value, or its reason raised.

        In a task it works like ``await asyncio.wrap_future(promise.future())``, whichever thread runs the promise's
        loop, and raises the same. Cancelling the task does nothing to the promise.
        """
        waiting = wait_in_task(self)
        try:
            return cast("T", (yield self) if waiting is None else (yield from waiting))
        except BaseException:
            if not hasattr(self, "_outcome"):  # so that is not its reason: the awaiter was interrupted
                self._left()
            raise
        finally:  # the reason's traceback keeps this frame, which would keep the promise, which keeps the reason
            del self

    def _left(self) -> None:
        """An awaiter was interrupted. Any thread."""

    def __repr__(self) -> str:
        outcome = f" {self._value!r}" if hasattr(self, "_outcome") else ""
        return f"<Promise {self.state}{outcome}>"


class Revocable[T](Promise[T]):
    """A promise for something that serves only those who wait for it, such as a timer. When the last awaiter has been
    interrupted, the promise is revoked, and rejected with `CancelledError`.
    """

    __slots__ = ("_leavers", "_revoke")
    _leavers: int  # how many of its reactions belong to awaiters that were interrupted
    _revoke: Callable[[BaseException], object]

    def _left(self) -> None:
        loop = self._view.owner.loop
        if loop.is_loop_thread():
            self._leave()
        else:
            with contextlib.suppress(LoopTerminatedError):
                loop.schedule_microtask(self._leave)

    def _leave(self) -> None:
        """Count an interrupted awaiter. On the loop's thread, where no other thread removes reactions."""
        self._leavers = getattr(self, "_leavers", 0) + 1
        reactions, one = 0, getattr(self, "_reactions", None)
        while isinstance(one, Eventual):
            reactions, one = reactions + 1, getattr(one, "_link", None)
        if reactions == self._leavers and hasattr(self, "_revoke"):
            self._revoke(abandoned(self._view.owner.loop, "all who awaited it were interrupted"))


def _wake(waited: concurrent.futures.Future[None], _outcome: Any) -> None:
    settle(waited.set_result, None)


def _fail(future: concurrent.futures.Future[Any], reason: Any) -> None:
    settle(future.set_exception, reason if isinstance(reason, BaseException) else RejectedError(reason))


def made(promise: Promise[Any], frames: int = 1) -> None:
    """In debug mode, remember the call stack without its innermost `frames` frames, which include this one."""
    promise._site = "".join(traceback.format_stack()[:-frames])


def rejected(js: Owner, reason: Any) -> Promise[Any]:
    """A new promise, rejected."""
    promise: Promise[Any] = Promise(js)
    promise._reject(reason)
    return promise


@overload
def resolved[T](js: Owner, value: Promise[T]) -> Promise[T]: ...
@overload
def resolved[T](js: Owner, value: Awaitable[T]) -> Promise[T]: ...
@overload
def resolved[T](js: Owner, value: T) -> Promise[T]: ...
def resolved(js: Owner, value: Any) -> Promise[Any]:
    """PromiseResolve (27.2.4.7.1): the value itself if it is a promise of this view, else a new promise resolved with
    the value.
    """
    if isinstance(value, Promise) and value._view is js._view:
        return value
    promise: Promise[Any] = Promise(js)
    try:
        promise._resolve(value)
        return promise
    finally:  # as in policy.py, `settle_by`
        del promise


def reason_as_exception(holder: Promise[Any] | Signal, reason: Any) -> BaseException:
    """The exception to raise for `holder`'s reason. It gets the traceback that it had the first time, because each
    raise adds to the traceback and keeps the added frames alive.
    """
    if not isinstance(reason, BaseException):
        return RejectedError(reason)
    if not hasattr(holder, "_traceback"):
        holder._traceback = reason.__traceback__
    return reason.with_traceback(holder._traceback)


class Owed:
    """A callback that does something else if it never runs to its end: if the loop refuses it, drops it at its end, or
    an exception leaves it.
    """

    __slots__ = ("_dropped", "_run")

    _dropped: Callable[[], object] | None

    def __init__(self, run: Callable[[], object], dropped: Callable[[], object]) -> None:
        self._run = run
        self._dropped = dropped

    def __call__(self) -> None:
        self._run()
        self._dropped = None  # if an exception of a signal handler leaves `_run`, it may not have begun

    def drop(self) -> None:
        """Note that it will not run any more. After a whole call, or an earlier `drop`, this does nothing."""
        dropped, self._dropped = self._dropped, None
        if dropped is not None:
            dropped()

    def __del__(self) -> None:
        if hasattr(self, "_dropped"):  # it is missing if a signal handler raised in `__init__`
            self.drop()


class Rejections:
    """HostPromiseRejectionTracker (27.2.1.9): reports, once, each rejection that has no handler by the end of its
    checkpoint.

    Each noted promise has a notice of its own. A notice that runs tells all promises that are noted by then, its own
    first. One that the loop refuses or drops tells only its own, because the others may still be handled in time. Both
    may happen at once, on two threads: the thread that removes a promise from `_noted` reports it.
    """

    def __init__(self, js: Owner, report: Callable[[Any, Promise[Any]], object] | None) -> None:
        self._js = js
        self._report = report
        self._context = copy_context()  # the context in which `report` was set
        self._noted: dict[Promise[Any], Literal[True]] = {}  # in the order in which they were rejected

    def note(self, promise: Promise[Any]) -> None:
        """Note that a promise was rejected before it had a handler. Any thread."""
        self._noted[promise] = True
        notice = Owed(partial(self._notify, promise), partial(self._tell, promise, None))
        try:
            self._js.loop.schedule_checkpoint_end(notice)
        except LoopTerminatedError:
            notice.drop()  # no checkpoint comes any more in which something could handle it

    def _notify(self, own: Promise[Any]) -> None:
        """At the end of a checkpoint (HTML, 'notify about rejected promises'), report the promises noted by then,
        unless an earlier notice has. A promise that is rejected meanwhile gets its own checkpoint, whose microtasks may
        handle it.
        """
        if own in self._noted:
            for promise in [own, *self._noted]:
                self._tell(promise, self._report)

    def _tell(self, promise: Promise[Any], report: Callable[[Any, Promise[Any]], object] | None) -> None:
        """Report a rejection, to the logger if `report` is None, unless it has been told or is handled, or only says
        that something was cancelled or that this loop ends. Any thread.
        """
        if not self._noted.pop(promise, False) or hasattr(promise, "_handled"):
            return
        promise._handled = True  # reported: a handler added later changes nothing
        reason = promise._value
        loop = self._js.loop
        ending = isinstance(reason, LoopTerminatedError) and loop._lifecycle() >= layout.TERMINATING
        if ending or isinstance(reason, CancelledError):
            return
        if report is not None:
            self._context.copy().run(report, reason, promise)
            return
        error = reason if isinstance(reason, BaseException) else None
        made = f"\nmade at:\n{promise._site}" if hasattr(promise, "_site") else ""
        hooks.log(error, "unhandled rejection in %s: %r%s", loop.name, reason, made, loop=loop.name)
