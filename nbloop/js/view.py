"""`JS`: a loop as JavaScript sees it. Times are milliseconds here.

Everything is a thin face over the loop: timers and immediates are built-in methods made by the kernels (HTML's nested
clamping included), promises schedule microtasks. A view has no state but who is told of unhandled rejections, so a
loop may have several.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, overload

from .. import debug
from ..kernels.base.kernel import bound
from ..kernels.methods import javascript as kernels
from ..kernels.promises.classes import Resolver
from ..loop import Loop
from ..unique import Unique
from . import combinators
from .abort import AbortSignal
from .coroutines import spawn, spawning
from .performance import Performance
from .promise import Promise, Rejections, rejected, resolved, settle_by, view_of
from .waits import Sleep

type Callback = Callable[..., object]


class JS(Unique):
    """The JavaScript view of `loop`. Every method from any thread, and errors as the loop's own scheduling calls.

    A coroutine function given as a callback (also a method, `functools.partial` or callable object of one) is spawned
    by each call; what it raises is an unhandled rejection.

    `on_unhandled_rejection(reason, promise)` is called once for each rejection that nobody handled by the end of its
    checkpoint; without it the logger ``nbloop`` is told.
    """

    def __init__(
        self, loop: Loop, *, on_unhandled_rejection: Callable[[Any, Promise[Any]], object] | None = None
    ) -> None:
        if not isinstance(loop, Loop):
            raise TypeError(f"loop must be a nbloop.Loop, not {loop!r}")
        if on_unhandled_rejection is not None and not callable(on_unhandled_rejection):
            raise TypeError(f"on_unhandled_rejection must be callable or None, not {on_unhandled_rejection!r}")
        self.loop = loop
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
        """`Loop.schedule_immediate`, for coroutine functions too."""
        return 0  # pragma: no cover

    @bound(kernels.queue_microtask)
    def queue_microtask(self, callback: Callback, /, *args: object) -> None:
        """`Loop.schedule_microtask`, for coroutine functions too."""

    @bound(kernels.next_tick)
    def next_tick(self, callback: Callback, /, *args: object) -> None:
        """`Loop.schedule_next_tick`, for coroutine functions too."""

    def sleep(self, ms: float) -> Promise[None]:
        """A promise, fulfilled with None after `ms` milliseconds, or rejected with `LoopTerminatedError` when the loop
        ends first.
        """
        promise: Promise[None] = Promise(self)
        Sleep(self, promise).begin(ms)
        return promise

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

    def try_(self, callback: Callback, /, *args: object) -> Promise[Any]:
        """``callback(*args)`` now; a promise resolved with what it returns, or rejected with what it raises
        (``Promise.try``).
        """
        return self.promise(lambda resolve, _reject: resolve(callback(*args)))

    def all(self, items: Iterable[Any]) -> Promise[list[Any]]:
        """See `combinators.all_`."""
        return combinators.all_(self, items)

    def race(self, items: Iterable[Any]) -> Promise[Any]:
        """See `combinators.race`."""
        return combinators.race(self, items)

    def all_settled(self, items: Iterable[Any]) -> Promise[list[dict[str, Any]]]:
        """See `combinators.all_settled`."""
        return combinators.all_settled(self, items)

    def any(self, items: Iterable[Any]) -> Promise[Any]:
        """See `combinators.any_`."""
        return combinators.any_(self, items)

    def spawn[T](self, coroutine: Coroutine[Any, Any, T], *, signal: AbortSignal | None = None) -> Promise[T]:
        """Run a coroutine as an async function (27.7.5); a promise for what it returns. An aborted `signal` raises
        its reason where it waits.
        """
        if not isinstance(coroutine, Coroutine):
            raise TypeError(f"spawn takes a coroutine, not {coroutine!r}")
        if signal is not None and not isinstance(signal, AbortSignal):
            raise TypeError(f"signal must be an AbortSignal or None, not {signal!r}")
        return spawn(self, coroutine, signal)
