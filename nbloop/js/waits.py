"""What a coroutine waits for: a time, an event, or what other threads put into a queue."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from operator import call
from typing import TYPE_CHECKING, Any, Self, cast

from ..errors import LoopTerminatedError
from ..kernels.base import layout
from ..kernels.promises.classes import Resolver
from ..lock import CountingLock
from ..unique import Unique
from ..waiting import terminated
from .coroutines import coroutines_of
from .promise import Owner, Promise, Revocable

if TYPE_CHECKING:
    from .abort import AbortSignal
    from .events import Event, EventTarget


def unlinked() -> None:
    """Undo nothing: an operation that follows no signal has nothing to undo."""


class Sleep:
    """What settles a promise of `JS.sleep`: its timer, an abort, or the loop's end."""

    __slots__ = ("_js", "_resolver", "_sleeping", "_timer", "_unlink")

    def __init__(self, js: Owner, promise: Revocable[None]) -> None:
        self._js = js
        self._resolver = Resolver(promise)
        promise._revoke = self._abort
        self._sleeping = coroutines_of(js.loop).sleeping
        self._timer = 0
        self._unlink: Callable[[], None] = unlinked

    def begin(self, ms: float, signal: AbortSignal | None) -> None:
        """Any thread. Raises as `JS.set_timeout`."""
        self._sleeping[self] = None
        # One call of C, in which no signal is checked before the promise is resolved.
        todo: tuple[Callable[[], object], ...] = self._resolver.resolve, self._woken
        steps: Iterator[object] = map(call, todo)
        try:
            self._timer = self._js.set_timeout(deque, ms, steps, 0)
        except BaseException:
            self._sleeping.pop(self, None)
            raise
        if signal is not None:
            self._unlink = signal.on_abort(self._abort)
            if self not in self._sleeping:  # it has ended meanwhile, before it had this to undo
                self._unlink()

    def _woken(self) -> None:
        self._sleeping.pop(self, None)
        self._unlink()

    def _abort(self, reason: Any) -> None:
        """Any thread."""
        self._js.clear_timeout(self._timer)
        self._sleeping.pop(self, None)
        self._unlink()
        self._resolver.reject(reason)

    def end(self) -> None:
        """The loop's end has come first."""
        self._sleeping.pop(self, None)
        self._unlink()
        self._resolver.reject(terminated(self._js.loop))


class Queue[T](Unique):
    """A queue from any thread into a coroutine: made by `JS.queue`, without a limit, and with an end.

    Items come out in the order in which they were put, each once: of several coroutines that wait, the first to wait
    gets the first item. ``async for item in queue`` goes on until `shutdown` has been called and all items have been
    taken. When the loop ends, the items that are left are dropped.

    >>> import nbloop
    >>> from nbloop.js import JS
    >>> async def add_up(numbers):
    ...     return sum([number async for number in numbers])
    >>> with nbloop.Loop() as loop:
    ...     js = JS(loop)
    ...     numbers = js.queue()
    ...     total = js.spawn(add_up(numbers))
    ...     for number in range(5):
    ...         numbers.put(number)
    ...     numbers.shutdown()
    ...     total.result()
    10
    """

    def __init__(self, js: Owner) -> None:
        self._js = js
        self._lock = CountingLock()
        self._items: deque[T] = deque()
        self._returned: list[tuple[int, T]] = []  # a heap: handed to takers that were interrupted, by when that was
        self._handed = itertools.count()
        # Each promise is fulfilled with an item and its number, or with nothing after the end. The first one of a plain
        # dict would be O(n) away, behind the places of those that have left.
        self._waiting: OrderedDict[Promise[Any], Callable[[tuple[Any, ...]], None]] = OrderedDict()
        self._shut = False

    def __len__(self) -> int:
        """How many items wait to be taken. Any thread; a moment old. O(1)."""
        return len(self._items) + len(self._returned)

    def put(self, item: T) -> None:
        """Add an item. Any thread, signal handlers included. O(1).

        Raises `queue.ShutDown` after `shutdown`, and `LoopTerminatedError` after the loop's end has begun; nothing was
        stored then.
        """
        with self._lock:
            if self._shut:
                raise queue.ShutDown("the queue has been shut down")
            if self._js.loop._lifecycle() >= layout.TERMINATING:
                raise self._js.loop._terminated("has terminated or is about to")
            try:
                self._items.append(item)
                if self._waiting:
                    self._serve()
            except BaseException:
                self._serve_soon()
                raise

    def shutdown(self) -> None:
        """Take no more items: when the waiting items have been taken, iteration ends, and `get` raises
        `queue.ShutDown`. A second call changes nothing. Any thread, signal handlers included. O(coroutines that wait).
        """
        with self._lock:
            try:
                self._shut = True
                self._serve()
            except BaseException:
                self._serve_soon()
                raise

    async def get(self) -> T:
        """Wait for the next item, in a coroutine of `JS.spawn`. A coroutine that is cancelled meanwhile takes none.

        Raises `queue.ShutDown` when there is none and none will come. O(1).
        """
        promise: Promise[Any] | None = None
        try:
            with self._lock:
                if not self._waiting and self._alone():  # nobody came earlier
                    if self._items or self._returned:
                        return self._next()
                    if self._shut:
                        raise queue.ShutDown("the queue has been shut down")
                promise, wake, _reject = self._js.with_resolvers()
                self._waiting[promise] = wake
                if self._items or self._returned or self._shut:  # a signal handler has put, or raised in `_serve`
                    self._serve()
            handed = await promise
        except BaseException:
            if promise is not None:
                self._left(promise)
            raise
        if not handed:
            raise queue.ShutDown("the queue has been shut down")
        return cast("T", handed[1])

    def _left(self, promise: Promise[Any]) -> None:
        """A taker was interrupted. An item that it was handed goes to the next."""
        with self._lock:
            try:
                if not self._alone():  # the other call may be about to hand it an item
                    self._soon(partial(self._left, promise))
                    return
                self._waiting.pop(promise, None)
                if hasattr(promise, "_outcome") and promise._value:
                    heapq.heappush(self._returned, promise._value)
                self._serve()
            except BaseException:
                self._serve_soon()
                raise

    # --- under the lock. A call may come in the middle of another one of the same thread: that of a signal handler, or
    # --- of a finaliser which closes a taker. Such a call adds to the deque or to the line, and leaves the rest, which
    # --- the other one may be in the middle of, to a microtask.

    def _alone(self) -> bool:
        return self._lock._recursion_count() == 1

    def _serve(self) -> None:
        """Hand the items to those who wait, in order; after `shutdown` tell the others that none will come. Afterwards
        nobody waits beside an item.

        If a signal handler raises here, at most one item is lost, and the caller has the rest served. Not here: CPython
        3.13 looks for signals at the end of the loop's body, where a `try` around the loop does not hold.
        """
        if not self._alone():
            self._serve_soon()
            return
        while self._items or self._returned or self._shut:
            for promise, wake in self._waiting.items():  # the first
                # Settled: a signal handler raised before the `pop` below, and it must not get another item.
                if not hasattr(promise, "_outcome"):
                    wake((next(self._handed), self._next()) if self._items or self._returned else ())
                self._waiting.pop(promise, None)
                break
            else:
                return

    def _next(self) -> T:
        return heapq.heappop(self._returned)[1] if self._returned else self._items.popleft()

    def _serve_soon(self) -> None:
        self._soon(self._serve_now)

    def _soon(self, what: Callable[[], None]) -> None:
        with contextlib.suppress(LoopTerminatedError):  # then the items are dropped
            self._js.loop.schedule_microtask(what)

    def _serve_now(self) -> None:
        with self._lock:
            try:
                self._serve()
            except BaseException:
                self._serve_soon()
                raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.get()
        except queue.ShutDown:
            raise StopAsyncIteration from None


async def interval(js: Owner, ms: float) -> AsyncGenerator[None]:
    """Of `JS.interval`."""
    due = False
    wake: Callable[..., None] | None = None

    def tick() -> None:
        nonlocal due
        due = True
        if wake is not None:
            wake()

    timer = js.set_interval(tick, ms)
    try:
        while True:
            if not due:
                promise, wake, _reject = js.with_resolvers()
                await promise
            due = False
            yield
    finally:
        js.clear_interval(timer)


class Once:
    """What settles a promise of `JS.once`: an event, or an abort."""

    __slots__ = ("_over", "_resolver", "_target", "_type", "_unlink")

    def __init__(self, promise: Revocable[Event], target: EventTarget, type: str) -> None:
        self._resolver = Resolver(promise)
        promise._revoke = self._abort
        self._target = target
        self._type = type
        self._over = False
        self._unlink: Callable[[], None] = unlinked

    def begin(self, signal: AbortSignal | None) -> None:
        """Any thread."""
        self._target.add_event_listener(self._type, self._heard, once=True)
        if signal is not None:
            self._unlink = signal.on_abort(self._abort)
            if self._over:  # as in `Sleep.begin`
                self._unlink()

    def _heard(self, event: Event) -> None:
        self._over = True
        self._unlink()
        self._resolver.resolve(event)

    def _abort(self, reason: Any) -> None:
        self._over = True
        self._target.remove_event_listener(self._type, self._heard)
        self._unlink()
        self._resolver.reject(reason)


def _unfollow(signal: weakref.ref[AbortSignal], key: int) -> None:
    """Remove a callback of `AbortSignal._follow`. The reference is weak for the same reason as in `_unlisten`."""
    of = signal()
    if of is not None:
        of._forget(key)


def _unlisten(target: weakref.ref[EventTarget], type: str, heard: weakref.ref[Callable[[Event], None]]) -> None:
    """Remove a listener. Both references are weak: `weakref.finalize` keeps its arguments until the `Events` are
    collected, and either may refer to them.
    """
    of, listener = target(), heard()
    if of is not None and listener is not None:
        of.remove_event_listener(type, listener)


class Events(Unique):
    """The events of a type, made by `JS.on`: an asynchronous iterator that listens from its making to its end, and
    keeps the events that have not been taken yet.

    Events may be dispatched on any thread; iteration and `aclose` belong to the loop's. Each event takes O(1).
    Iteration raises only the reason of the signal.

    >>> import nbloop
    >>> from nbloop.js import JS, Event, EventTarget
    >>> async def hear(js, target):
    ...     events = js.on(target, "tick")
    ...     target.dispatch_event(Event("tick"))
    ...     async for event in events:
    ...         await events.aclose()
    ...         return event.type
    >>> loop = nbloop.Loop(auto_exit=True)
    >>> promise = JS(loop).spawn(hear(JS(loop), EventTarget()))
    >>> loop.run()
    >>> promise.result()
    'tick'
    """

    def __init__(self, js: Owner, target: EventTarget, type: str, signal: AbortSignal | None) -> None:
        self._queue: Queue[Event] = Queue(js)
        self._kept: list[Queue[Event]] = []
        self._signal = signal
        put = self._queue.put

        def heard(event: Event) -> None:
            with contextlib.suppress(LoopTerminatedError, queue.ShutDown):
                put(event)

        target.add_event_listener(type, heard)
        cleanup: Any = weakref.finalize(self, _unlisten, weakref.ref(target), type, weakref.ref(heard))
        cleanup.atexit = False
        self._unlisten: Callable[[], object] = cleanup
        self._unlink: Callable[[], object] = unlinked
        if signal is not None:
            # The signal does not keep the queue until it is aborted, but for as long as a coroutine waits there.
            held, kept = weakref.ref(self._queue), self._kept

            def end(_reason: object) -> None:
                queue = kept[0] if kept else held()
                if queue is not None:
                    queue.shutdown()

            key = signal._follow(end)
            cleanup = weakref.finalize(self, _unfollow, weakref.ref(signal), key)
            cleanup.atexit = False
            self._unlink = cleanup

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. When the signal is aborted its reason is raised, after the events that came before."""
        self._kept.append(self._queue)
        try:
            return await anext(self._queue)
        except StopAsyncIteration:
            self._unlisten()
            self._unlink()
            if self._signal is not None:
                self._signal.throw_if_aborted()
            raise
        finally:
            self._kept.pop()

    async def aclose(self) -> None:
        """Stop listening: iteration ends when the earlier events have been taken. A second call does nothing."""
        self._unlisten()
        self._unlink()
        self._queue.shutdown()
