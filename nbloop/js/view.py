"""`JS`: a loop as JavaScript sees it. Times are milliseconds here.

Everything is a thin face over the loop: timers and immediates are built-in methods made by the kernels (HTML's nested
clamping included), promises schedule microtasks. Its only state is the handler of unhandled rejections and its
`performance`, so a loop may have several views.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, overload

from .. import debug
from ..kernels.base.kernel import bound
from ..kernels.methods import javascript as kernels
from ..kernels.promises.classes import Resolver
from ..lifecycle import Lifecycle
from ..unique import Unique
from . import combinators
from .abort import AbortSignal, check_delay, check_limit, limited
from .coroutines import Coroutines, spawn, spawning
from .events import Event, EventTarget, check_name, check_target
from .performance import Performance
from .policy import AnyFuture, adopt_future, settle_by, view_of
from .promise import Promise, Rejections, Revocable, rejected, resolved
from .scopes import Group, Timeout
from .tasks import is_future
from .waits import Events, Once, Queue, Sleep, interval

type Callback = Callable[..., object]


class JS[L: Lifecycle = Any](Unique):
    """The JavaScript view of `loop`. Any thread may call any method; errors are those of the loop's own scheduling
    calls.

    Each call of a coroutine function given as a callback (also a method, `functools.partial` or callable object of one)
    spawns its coroutine; an exception of the coroutine is an unhandled rejection.

    `on_unhandled_rejection(reason, promise)` is called once for each rejection that has no handler at the end of its
    checkpoint; without it they go to the logger ``nbloop``.
    """

    def __init__(self, loop: L, *, on_unhandled_rejection: Callable[[Any, Promise[Any]], object] | None = None) -> None:
        if not isinstance(loop, Lifecycle):
            raise TypeError(f"loop must be a nbloop.Loop, not {loop!r}")
        if on_unhandled_rejection is not None and not callable(on_unhandled_rejection):
            raise TypeError(f"on_unhandled_rejection must be callable or None, not {on_unhandled_rejection!r}")
        self.loop: L = loop
        self.debug = loop.debug
        self.performance = Performance(loop.now)
        self.rejections = Rejections(self, on_unhandled_rejection)
        self._state = self._view = view_of(self, partial(spawning, self))  # what the kernels below work on
        self.clear_timeout = self.clear_interval = loop.cancel_timer
        self.clear_immediate = loop.cancel_immediate
        if loop.debug:
            debug.remember_sites(self)

    @bound(kernels.set_timeout)
    def set_timeout(self, callback: Callback, ms: float = 0, /, *args: object) -> int:
        """Run ``callback(*args)`` once after `ms` milliseconds; an id for either clear function (HTML, ``setTimeout``).

        Negative is 0. From the sixth nested level on, delays under 4 ms become 4 ms (HTML, 'timer initialisation
        steps'). Fractions count.
        """
        return 0  # pragma: no cover

    @bound(kernels.set_interval)
    def set_interval(self, callback: Callback, ms: float = 0, /, *args: object) -> int:
        """Run ``callback(*args)`` every `ms` milliseconds, counted from each start; survives exceptions (HTML,
        ``setInterval``).
        """
        return 0  # pragma: no cover

    @bound(kernels.set_immediate)
    def set_immediate(self, callback: Callback, /, *args: object) -> int:
        """`Loop.schedule_immediate` of ``callback(*args)``, for coroutine functions too."""
        return 0  # pragma: no cover

    @bound(kernels.queue_microtask)
    def queue_microtask(self, callback: Callback, /, *args: object) -> None:
        """`Loop.schedule_microtask` of ``callback(*args)``, for coroutine functions too."""

    @bound(kernels.next_tick)
    def next_tick(self, callback: Callback, /, *args: object) -> None:
        """`Loop.schedule_next_tick` of ``callback(*args)``, for coroutine functions too."""

    def sleep(self, ms: float, *, signal: AbortSignal | None = None, timeout: float | None = None) -> Promise[None]:
        """A promise, fulfilled with None after `ms` milliseconds.

        If `signal` is aborted first, it is rejected with the signal's reason; after `timeout` milliseconds, with a
        TimeoutError; both cancel its timer. So does the interruption of the last coroutine or task that awaits it, if
        it has no other handler; it is rejected with `CancelledError` then. If the loop ends first, it is rejected with
        `LoopTerminatedError`. O(1), apart from the timer. Raises TypeError, ValueError.
        """
        ms = check_delay("ms", ms)
        limit = signal if signal is None and timeout is None else limited(self, signal, timeout)
        promise: Revocable[None] = Revocable(self)
        if limit is not None and limit.aborted:
            promise._reject(limit.reason)
        else:
            Sleep(self, promise).begin(ms, limit)
        return promise

    def timeout(self, ms: float) -> Timeout:
        """``async with js.timeout(ms):`` limits the time of its block to `ms` milliseconds, as `asyncio.timeout` does:
        what the block awaits then is interrupted, and TimeoutError leaves the block (`Timeout`).

        Use `AbortSignal.timeout` to limit a single operation that takes a signal, or to share a limit. Raises
        TypeError, ValueError; RuntimeError on entry outside of coroutines of `spawn`.
        """
        return Timeout(self, ms)

    def group(self) -> Group:
        """``async with js.group() as g:`` waits for all coroutines that ``g.spawn`` starts; the first that fails
        cancels the others, and an `ExceptionGroup` leaves the block, as of `asyncio.TaskGroup` (`Group`). Raises
        RuntimeError on entry outside of coroutines of `spawn`.
        """
        return Group(self)

    def queue(self) -> Queue[Any]:
        """A queue from any thread into coroutines of this loop, with an end (`Queue`)."""
        return Queue(self)

    def interval(self, ms: float) -> AsyncGenerator[None]:
        """``async for _ in js.interval(ms):`` runs its block every `ms` milliseconds, counted as by `set_interval` from
        when the iteration begins, until it is left. A block that takes longer runs again at once, and the times that it
        missed meanwhile count as one. Raises TypeError, ValueError.
        """
        return interval(self, check_limit("ms", ms))

    def once(self, target: EventTarget, type: str, *, signal: AbortSignal | None = None) -> Promise[Event]:
        """A promise for the next event of a `type` that `target` gets. An aborted `signal` rejects it with its reason,
        and removes the listener. The interruption of its last awaiter also removes the listener, as for `sleep`. The
        event may be dispatched on any thread. Raises TypeError.
        """
        check_target(target)
        check_name("type", type)
        limit = limited(self, signal, None)
        promise: Revocable[Event] = Revocable(self)
        if limit is not None and limit.aborted:
            promise._reject(limit.reason)
        else:
            Once(promise, target, type).begin(limit)
        return promise

    def on(self, target: EventTarget, type: str, *, signal: AbortSignal | None = None) -> Events:
        """``async for event in js.on(target, type):`` runs its block for each event of a type that is dispatched from
        now on, on any thread. Events that come meanwhile wait; none is lost. An aborted `signal` ends it with its
        reason. It listens until `Events.aclose`, or until nothing refers to it any more. Raises TypeError.
        """
        check_target(target)
        return Events(self, target, type, limited(self, signal, None))

    def promise(self, executor: Callable[[Callable[..., None], Callable[..., None]], object]) -> Promise[Any]:
        """``executor(resolve, reject)`` runs now; an exception in it rejects (ECMAScript 27.2.3.1)."""
        if not callable(executor):
            raise TypeError(f"executor must be callable, not {executor!r}")
        promise: Promise[Any] = Promise(self)
        try:
            settle_by(Resolver(promise), executor)
            return promise
        finally:  # as in `settle_by`: its frame keeps its caller's
            del promise

    def with_resolvers(self) -> tuple[Promise[Any], Callable[..., None], Callable[..., None]]:
        """A promise with its two resolving functions, for any threads; the first call decides (27.2.4.8)."""
        promise: Promise[Any] = Promise(self)
        resolver = Resolver(promise)
        return promise, resolver.resolve, resolver.reject

    @overload
    def resolve(self, value: None = None) -> Promise[None]: ...
    @overload
    def resolve[T](self, value: Promise[T] | Awaitable[T]) -> Promise[T]: ...
    @overload
    def resolve[T](self, value: T) -> Promise[T]: ...
    def resolve(self, value: Any = None) -> Promise[Any]:
        """The value itself if it is a promise of this view, else a promise resolved with it (27.2.4.7)."""
        return resolved(self, value)

    def reject(self, reason: Any = None) -> Promise[Any]:
        """A promise rejected with `reason`, which may be any object (27.2.4.6)."""
        return rejected(self, reason)

    def from_future(self, future: AnyFuture) -> Promise[Any]:
        """A promise for the outcome of a `concurrent.futures.Future` or an asyncio future (a task, too): its result,
        its exception, or `concurrent.futures.CancelledError` if it is cancelled.

        The promise settles on the thread that completes the future, for asyncio on that of its loop. It neither cancels
        the future nor keeps this loop alive. Raises TypeError if `future` is not one, RuntimeError if it is
        pending and its asyncio loop is closed. The way back is `asyncio.wrap_future(promise.future())`.

        >>> import concurrent.futures, nbloop
        >>> from nbloop.js import JS
        >>> with nbloop.Loop() as loop, concurrent.futures.ThreadPoolExecutor() as pool:
        ...     JS(loop).from_future(pool.submit(pow, 2, 8)).result()
        256
        """
        if not isinstance(future, concurrent.futures.Future) and not is_future(future):
            raise TypeError(f"future must be a concurrent.futures.Future or an asyncio future, not {future!r}")
        promise: Promise[Any] = Promise(self)
        adopt_future(promise, future)
        return promise

    def try_(self, callback: Callback, /, *args: object) -> Promise[Any]:
        """``callback(*args)`` now; a promise resolved with what it returns, or rejected with what it raises
        (``Promise.try``).
        """
        return self.promise(lambda resolve, _reject: resolve(callback(*args)))

    def all(self, items: Iterable[Any]) -> Promise[list[Any]]:
        """Fulfilled with the values of all `items` in their order, or rejected with the first reason (27.2.4.1).
        O(items).
        """
        return combinators.all_(self, items)

    def race(self, items: Iterable[Any]) -> Promise[Any]:
        """Settled like the first of `items` that settles (27.2.4.5); for none, pending for ever. O(items)."""
        return combinators.race(self, items)

    def all_settled(self, items: Iterable[Any]) -> Promise[list[dict[str, Any]]]:
        """Fulfilled with ``{"status": "fulfilled", "value": v}`` or ``{"status": "rejected", "reason": r}`` for each of
        `items` (27.2.4.2). O(items).
        """
        return combinators.all_settled(self, items)

    def any(self, items: Iterable[Any]) -> Promise[Any]:
        """Fulfilled with the first value of `items`, or rejected with an `AggregateError` of all reasons (27.2.4.3).
        O(items).
        """
        return combinators.any_(self, items)

    def spawn[T](self, coroutine: Coroutine[Any, Any, T], *, signal: AbortSignal | None = None) -> Promise[T]:
        """Run a coroutine as an async function (27.7.5); a promise for what it returns. An aborted `signal` raises
        its reason where it waits.
        """
        if not isinstance(coroutine, Coroutine):
            raise TypeError(f"spawn takes a coroutine, not {coroutine!r}")
        return spawn(self, coroutine, limited(self, signal, None))


Coroutines.make_view = JS
