"""`all`, `race`, `all_settled`, `any`: one promise for many (ECMAScript 27.2.4.1-3 and .5).

Each takes any iterable of promises, thenables, futures, awaitables and plain values, exhausts it at once, and treats
each item, before it takes the next, as ``resolve(item).then(...)``, which is what makes the number of jobs the
standard's; the promises that those `then` would make are seen by nobody, so they are not made. Items may settle on
any threads: what is left is counted by popping from a list, which is atomic; two threads may both find it empty, and
the result's resolving functions let the first decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from .promise import Promise, RejectedError, react, resolved, resolving_functions

if TYPE_CHECKING:
    from .view import JS

type Settler = Callable[[Any], None]


class AggregateError(ExceptionGroup[Exception]):
    """All promises given to `any` were rejected; `reasons` has why, in the order in which they were given.

    An `ExceptionGroup`, so ``except*`` works: a reason that is no `Exception` appears among `exceptions` as a
    `RejectedError`. A group can not be empty: of `any` of nothing the only exception is a `NoPromisesError`, and
    `reasons` is empty.
    """

    reasons: list[Any]

    def derive(self, exceptions: Any, /) -> AggregateError:  # type: ignore[override]
        """A group of some of its exceptions, as ``except*`` makes them."""
        group = AggregateError(self.message, exceptions)
        group.reasons = list(exceptions)
        return group


class NoPromisesError(Exception):
    """`any` was given nothing that could be fulfilled."""


def _aggregate(reasons: list[Any]) -> AggregateError:
    exceptions = [r if isinstance(r, Exception) else RejectedError(r) for r in reasons]
    group = AggregateError("all promises were rejected", exceptions or [NoPromisesError("no promises were given")])
    group.reasons = reasons
    return group


def _combine(
    js: JS, items: Iterable[Any], subscribe: Callable[[Iterable[Promise[Any]], Settler, Settler], None]
) -> Promise[Any]:
    """A promise, settled by what `subscribe` does with the items as promises of this view, each made as it is asked
    for.
    """
    promise: Promise[Any] = Promise(js)
    resolve_it, reject_it = resolving_functions(promise)
    try:
        subscribe((resolved(js, item) for item in items), resolve_it, reject_it)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the iterable's own, or of a `then` that was overridden: IfAbruptRejectPromise
        reject_it(error)
    return promise


class _Places:
    """Values that arrive in any order, from any thread, and a function to call with all of them."""

    def __init__(self, done: Settler) -> None:
        self._values: list[Any] = []
        self._left = [None]  # one more: nothing is complete before everything is subscribed
        self._done = done

    def new(self) -> int:
        """One more place. Only by who subscribes, and before `subscribed`."""
        self._values.append(None)
        self._left.append(None)
        return len(self._values) - 1

    def put(self, index: int, value: Any) -> None:
        """The value for that place. Called once for each: a promise of ours settles once, and all items are such."""
        self._values[index] = value
        self._left.pop()
        if not self._left:
            self._done(self._values)

    def subscribed(self) -> None:
        """All items have been subscribed to."""
        self._left.pop()
        if not self._left:
            self._done(self._values)


def all_(js: JS, items: Iterable[Any]) -> Promise[list[Any]]:
    """Fulfilled with all values in order, or rejected with the first reason (27.2.4.1). Empty: fulfilled with []."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        places = _Places(resolve_it)
        for promise in promises:
            react(promise, partial(places.put, places.new()), reject_it, None)
        places.subscribed()

    return _combine(js, items, subscribe)


def all_settled(js: JS, items: Iterable[Any]) -> Promise[list[dict[str, Any]]]:
    """Fulfilled with ``{"status": "fulfilled", "value": v}`` or ``{"status": "rejected", "reason": r}`` for each
    (27.2.4.2).
    """

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, _reject_it: Settler) -> None:
        places = _Places(resolve_it)

        def put(index: int, status: str, name: str) -> Settler:
            return lambda outcome: places.put(index, {"status": status, name: outcome})

        for promise in promises:
            index = places.new()
            react(promise, put(index, "fulfilled", "value"), put(index, "rejected", "reason"), None)
        places.subscribed()

    return _combine(js, items, subscribe)


def any_(js: JS, items: Iterable[Any]) -> Promise[Any]:
    """Fulfilled with the first value, or rejected with an `AggregateError` of all reasons in order (27.2.4.3)."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        places = _Places(lambda reasons: reject_it(_aggregate(reasons)))
        for promise in promises:
            react(promise, resolve_it, partial(places.put, places.new()), None)
        places.subscribed()

    return _combine(js, items, subscribe)


def race(js: JS, items: Iterable[Any]) -> Promise[Any]:
    """Settled as the first that settles (27.2.4.5). Empty: pending for ever."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        for promise in promises:
            react(promise, resolve_it, reject_it, None)

    return _combine(js, items, subscribe)
