"""Promises/A+ with ECMAScript's counting of jobs, settled from any thread.

Source: ECMAScript 2025, 27.2 (names of its abstract operations are cited where they are implemented) and Promises/A+
1.1.

Problem: interleavings of promise chains are observable, so each step must take the *number* of microtasks that the
standard says; and on free-threaded Python `resolve` and `then` may be called by different threads at once. Idea: a
promise is three slots and a list of reactions. Whoever settles writes the value, then the state, and then queues
reactions; whoever adds one appends it, and then looks at the state. List operations are atomic and are full barriers,
so one of them sees the other (the loop's own sleep protocol has the same shape). So that handlers run in the order in
which they were added, one thread at a time queues a promise's reactions: it claims that in a dict of the view, and
takes each reaction off the list after it is queued. No lock, no flag per promise; only the pair of resolving
functions that a user gets shares one token, which the first call takes.

It loses against a future with one callback: a promise that nobody chains still costs the list.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from ..errors import LoopTerminatedError

if TYPE_CHECKING:
    from .view import JS

logger = logging.getLogger("nbloop")

PENDING, FULFILLED, REJECTED = 0, 1, 2
_NAMES: tuple[Literal["pending"], Literal["fulfilled"], Literal["rejected"]] = ("pending", "fulfilled", "rejected")

type Handler = Callable[[Any], Any]
type Reaction = tuple[Handler | None, Handler | None, Promise[Any] | None]

# Types whose instances are never thenables: the common results need no look-up of `then`.
_PLAIN = frozenset({int, str, float, bool, bytes, type(None), tuple, list, dict, set, frozenset, complex, bytearray})


class RejectedError(Exception):
    """Raised by ``await promise`` for a reason that is no exception: the reason is its only argument, `reason`."""

    @property
    def reason(self) -> object:
        """What the promise was rejected with."""
        return self.args[0]


class Promise[T]:
    """A value that will be there, or a reason why not. Made by `JS.promise`, `JS.with_resolvers` and the other
    methods of `JS`.

    Handlers run as microtasks of the loop, in the order in which they were added, each at most once, never inside
    `then`. Every method may be called from any thread. A pending promise that nobody refers to any more is collected,
    with its handlers.
    """

    __slots__ = ("__weakref__", "_handled", "_js", "_reactions", "_site", "_state", "_value")
    _handled: bool
    _value: Any

    def __init__(self, js: JS) -> None:
        # Each slot written costs 25 ns of the 300: `_value` has no meaning yet, and `_handled` is its own absence.
        self._js = js
        self._state = PENDING
        self._reactions: list[Reaction] = []
        if js.debug:
            self._site = "".join(traceback.format_stack()[:-2])

    @property
    def state(self) -> Literal["pending", "fulfilled", "rejected"]:
        """Where it stands. ``pending`` may be a moment old; the others are final."""
        return _NAMES[self._state]

    def then[U](
        self,
        on_fulfilled: Callable[[T], Promise[U] | Awaitable[U] | U] | None = None,
        on_rejected: Callable[[Any], Promise[U] | Awaitable[U] | U] | None = None,
    ) -> Promise[U]:
        """A promise for what the handler returns; without one for an outcome, for that outcome itself. What is not
        callable is ignored.

        ECMAScript 27.2.5.4, Promises/A+ 2.2. A handler that raises rejects the new promise; one that returns a
        promise, a thenable, a `concurrent.futures.Future` or an awaitable makes it follow that. O(1).
        """
        child: Promise[U] = Promise(self._js)
        if on_fulfilled is not None and not callable(on_fulfilled):  # given anything, as the standard has it
            on_fulfilled = None
        if on_rejected is not None and not callable(on_rejected):
            on_rejected = None
        react(self, on_fulfilled, on_rejected, child)
        return child

    def catch[U](self, on_rejected: Callable[[Any], Promise[U] | Awaitable[U] | U] | None = None) -> Promise[T | U]:
        """``then(None, on_rejected)`` (ECMAScript 27.2.5.1)."""
        return cast("Promise[T | U]", self.then(None, on_rejected))

    def finally_(self, on_finally: Callable[[], object] | None = None) -> Promise[T]:
        """A promise for the same outcome, once ``on_finally()`` has run and what it returned has settled (ECMAScript
        27.2.5.3).

        An exception in it, or a rejection of what it returned, becomes the outcome instead.
        """
        if not callable(on_finally):
            return cast("Promise[T]", self.then(on_finally, on_finally))
        js = self._js

        def then_finally(value: T) -> Promise[T]:
            return js.resolve(on_finally()).then(lambda _ignored: value)

        def catch_finally(reason: Any) -> Promise[T]:
            again: Promise[T] = Promise(js)  # as of `then` with a handler that throws, which not every reason can be
            react(js.resolve(on_finally()), lambda _ignored: reject(again, reason), _refuse(again), None)
            return again

        return cast("Promise[T]", self.then(then_finally, catch_finally))

    def __await__(self) -> Generator[Any, Any, T]:
        """``await promise`` in a coroutine that `JS.spawn` runs: its value, or its reason raised."""
        return cast("T", (yield self))

    def __repr__(self) -> str:
        outcome = "" if self._state == PENDING else f" {self._value!r}"
        return f"<Promise {self.state}{outcome}>"


def react(
    promise: Promise[Any], on_fulfilled: Handler | None, on_rejected: Handler | None, child: Promise[Any] | None
) -> None:
    """PerformPromiseThen (27.2.5.4.1): run a handler when the promise is settled, soon if it is, and let `child`
    follow the outcome.
    """
    promise._handled = True
    if promise._state and not promise._reactions:
        _queue(promise, on_fulfilled, on_rejected, child)
        return
    promise._reactions.append((on_fulfilled, on_rejected, child))
    if promise._state:  # looked at *after* the append: see the essay above
        _schedule(promise)


def _schedule(promise: Promise[Any], lost: list[Any] | None = None) -> None:
    """Queue a job for each reaction of a settled promise, or add it to `lost`: each once, in order. Any thread.

    One thread at a time: others leave theirs to it, and it looks again when it has let go.
    """
    reactions = promise._reactions
    claims = promise._js.claims
    key = id(promise)
    while reactions:
        claim: list[None] = []
        if claims.setdefault(key, claim) is not claim:
            return
        try:
            while reactions:
                on_fulfilled, on_rejected, child = reactions[0]
                if lost is None:
                    _queue(promise, on_fulfilled, on_rejected, child)
                else:
                    lost.append((on_rejected, child))
                del reactions[0]  # only now: who finds the list empty may queue at once, and comes after all others
        finally:
            del claims[key]


def _queue(
    promise: Promise[Any], on_fulfilled: Handler | None, on_rejected: Handler | None, child: Promise[Any] | None
) -> None:
    try:
        promise._js.queue_microtask(_job, promise, on_fulfilled if promise._state == FULFILLED else on_rejected, child)
    except LoopTerminatedError:  # settled all the same, but there is no loop left to run handlers
        _lost(on_rejected, child)


def _lost(on_rejected: Handler | None, child: Promise[Any] | None) -> None:
    """A reaction will never run: what waits for it is rejected, to the end of the chain, which may be too long for
    recursion.
    """
    error = LoopTerminatedError("the loop has terminated")
    waiting: list[Any] = [(on_rejected, child)]
    while waiting:
        on_rejected, child = waiting.pop()
        if child is None:  # the view's own, of a combinator, an adoption or a coroutine
            if on_rejected is not None:
                on_rejected(error)
        elif child._state == PENDING:
            child._value = error
            child._state = REJECTED
            _schedule(child, waiting)


def _job(promise: Promise[Any], handler: Callable[[Any], Any] | None, child: Promise[Any] | None) -> None:
    """NewPromiseReactionJob (27.2.2.1)."""
    if handler is None:
        if child is not None:
            if promise._state == FULFILLED:
                resolve(child, promise._value)
            else:
                reject(child, promise._value)
        return
    try:
        result = handler(promise._value)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if child is not None:
            reject(child, error)
        return
    if child is not None:
        if type(result) in _PLAIN:  # as in `resolve`, without the call: most handlers return such
            _settle(child, FULFILLED, result)
        else:
            resolve(child, result)


def _settle(promise: Promise[Any], state: int, value: Any) -> None:
    promise._value = value
    promise._state = state
    if promise._reactions:
        _schedule(promise)


def fulfill(promise: Promise[Any], value: Any) -> None:
    """FulfillPromise (27.2.1.4). The caller alone may settle this promise."""
    _settle(promise, FULFILLED, value)


def reject(promise: Promise[Any], reason: Any) -> None:
    """RejectPromise (27.2.1.7). The caller alone may settle this promise."""
    _settle(promise, REJECTED, reason)
    if not hasattr(promise, "_handled"):
        promise._js.rejections.note(promise)


def resolve(promise: Promise[Any], resolution: Any) -> None:
    """The body of a promise resolve function (27.2.1.3.2). The caller alone may settle this promise."""
    if type(resolution) in _PLAIN:
        _settle(promise, FULFILLED, resolution)
        return
    if resolution is promise:
        reject(promise, TypeError("a promise can not be resolved with itself"))
        return
    if isinstance(resolution, Promise):
        # Its `then` is ours: the job does what calling it with two resolving functions would, without making them.
        promise._js.queue_microtask(react, resolution, _follow(promise), _refuse(promise), None)
        return
    if isinstance(resolution, concurrent.futures.Future):
        resolution.add_done_callback(lambda future: _adopt_future(promise, future))
        return
    if isinstance(resolution, Awaitable):
        promise._js.queue_microtask(_follow_awaitable, promise, resolution)
        return
    try:
        then = getattr(resolution, "then", None)  # once
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reject(promise, error)
        return
    if callable(then):
        promise._js.queue_microtask(_thenable_job, promise, then)
    else:
        fulfill(promise, resolution)


def _follow(promise: Promise[Any]) -> Callable[[Any], None]:
    return lambda value: resolve(promise, value)


def _refuse(promise: Promise[Any]) -> Callable[[Any], None]:
    return lambda reason: reject(promise, reason)


def _thenable_job(promise: Promise[Any], then: Callable[..., Any]) -> None:
    """NewPromiseResolveThenableJob (27.2.2.2)."""
    resolve_it, reject_it = resolving_functions(promise)
    try:
        then(resolve_it, reject_it)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reject_it(error)


def _follow_awaitable(promise: Promise[Any], awaitable: Awaitable[Any]) -> None:
    async def wait() -> Any:
        return await awaitable

    react(promise._js.spawn(wait()), _follow(promise), _refuse(promise), None)


def _adopt_future(promise: Promise[Any], future: concurrent.futures.Future[Any]) -> None:
    """In whichever thread completes the future."""
    if future.cancelled():
        reject(promise, concurrent.futures.CancelledError())
        return
    error = future.exception()
    if error is not None:
        reject(promise, error)
    else:
        resolve(promise, future.result())


def resolving_functions(promise: Promise[Any]) -> tuple[Callable[..., None], Callable[..., None]]:
    """CreateResolvingFunctions (27.2.1.3): of all calls of the two, from any threads, the first decides."""
    token = [True]  # [[AlreadyResolved]]: taken by whoever pops it

    def resolve_it(value: Any = None, /) -> None:
        try:
            token.pop()
        except IndexError:
            return
        resolve(promise, value)

    def reject_it(reason: Any = None, /) -> None:
        try:
            token.pop()
        except IndexError:
            return
        reject(promise, reason)

    return resolve_it, reject_it


def rejected(js: JS, reason: Any) -> Promise[Any]:
    """A new promise, rejected."""
    promise: Promise[Any] = Promise(js)
    reject(promise, reason)
    return promise


@overload
def resolved[T](js: JS, value: Promise[T]) -> Promise[T]: ...
@overload
def resolved[T](js: JS, value: Awaitable[T]) -> Promise[T]: ...
@overload
def resolved[T](js: JS, value: T) -> Promise[T]: ...
def resolved(js: JS, value: Any) -> Promise[Any]:
    """PromiseResolve (27.2.4.7.1): the value itself if it is a promise of this view, else a new promise resolved with
    it.
    """
    if isinstance(value, Promise) and value._js is js:
        return value
    promise: Promise[Any] = Promise(js)
    resolve(promise, value)
    return promise


def reason_as_exception(reason: Any) -> BaseException:
    """What `await` raises for a reason."""
    return reason if isinstance(reason, BaseException) else RejectedError(reason)


class Rejections:
    """HostPromiseRejectionTracker (27.2.1.9): tells of each rejection that nobody handled by the end of its
    checkpoint, once.
    """

    def __init__(self, js: JS, report: Callable[[Any, Promise[Any]], object] | None) -> None:
        self._js = js
        self._report = report
        self._noted: list[Promise[Any]] = []

    def note(self, promise: Promise[Any]) -> None:
        """A promise was rejected that has no handler yet. Any thread."""
        self._noted.append(promise)
        with contextlib.suppress(LoopTerminatedError):
            self._js.loop.schedule_checkpoint_end(self._notify)

    def _notify(self) -> None:
        """At the end of a checkpoint (HTML, 'notify about rejected promises')."""
        while self._noted:
            promise = self._noted.pop(0)
            if hasattr(promise, "_handled"):
                continue
            promise._handled = True  # reported: a handler added later changes nothing
            if self._report is not None:
                self._report(promise._value, promise)
                continue
            reason = promise._value
            error = reason if isinstance(reason, BaseException) else None
            made = f"\nmade at:\n{promise._site}" if hasattr(promise, "_site") else ""
            logger.error("unhandled rejection in %s: %r%s", self._js.loop.name, reason, made, exc_info=error)
