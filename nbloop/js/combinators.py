"""`all`, `race`, `all_settled`, `any`: one promise for many (ECMAScript 27.2.4.1-3 and .5).

Each takes any iterable of promises, thenables, futures, awaitables and plain values, exhausts it at once, and treats
each item, before it takes the next, as ``resolve(item).then(...)``, which is what makes the number of jobs the
standard's; the promises that those `then` would make are seen by nobody, so they are not made. Items may settle on
any threads: a value goes straight from the promise to its place in a list, by a kernel (`Places`), and who fills the
last place settles the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..kernels.promises.classes import Places, Resolver
from .promise import Promise, RejectedError, resolved

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
    resolver = Resolver(promise)
    try:
        subscribe((resolved(js, item) for item in items), resolver.resolve, resolver.reject)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the iterable's own, or of a `then` that was overridden: IfAbruptRejectPromise
        resolver.reject(error)
    try:
        return promise
    finally:  # as in `settle_by`
        del promise


def all_(js: JS, items: Iterable[Any]) -> Promise[list[Any]]:
    """Fulfilled with all values in order, or rejected with the first reason (27.2.4.1). Empty: fulfilled with []."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        places = Places(js._view, resolve_it)
        for promise in promises:
            promise._react(places, reject_it)
        places.subscribed()

    return _combine(js, items, subscribe)


def all_settled(js: JS, items: Iterable[Any]) -> Promise[list[dict[str, Any]]]:
    """Fulfilled with ``{"status": "fulfilled", "value": v}`` or ``{"status": "rejected", "reason": r}`` for each
    (27.2.4.2).
    """

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, _reject_it: Settler) -> None:
        places = Places(js._view, resolve_it)

        def put(index: int, status: str, name: str) -> Settler:
            return lambda outcome: places.put(index, {"status": status, name: outcome})

        for promise in promises:
            index = places.new()
            promise._react(put(index, "fulfilled", "value"), put(index, "rejected", "reason"))
        places.subscribed()

    return _combine(js, items, subscribe)


def any_(js: JS, items: Iterable[Any]) -> Promise[Any]:
    """Fulfilled with the first value, or rejected with an `AggregateError` of all reasons in order (27.2.4.3)."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        places = Places(js._view, lambda reasons: reject_it(_aggregate(reasons)))
        for promise in promises:
            promise._react(resolve_it, places)
        places.subscribed()

    return _combine(js, items, subscribe)


def race(js: JS, items: Iterable[Any]) -> Promise[Any]:
    """Settled as the first that settles (27.2.4.5). Empty: pending for ever."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        for promise in promises:
            promise._react(resolve_it, reject_it)

    return _combine(js, items, subscribe)
