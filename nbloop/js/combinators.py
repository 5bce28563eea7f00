"""`all`, `race`, `all_settled`, `any`: one promise for many (ECMAScript 27.2.4.1-3 and .5).

Each takes any iterable of promises, thenables, futures, awaitables and plain values, exhausts it immediately, and
treats each item, before it takes the next, like ``resolve(item).then(...)``, so that the number of jobs is that of the
standard. The promises that those `then` would return are never visible, so they are not made. Items may settle on any
threads: a kernel moves a value straight from its promise to its slot in a list (`ResultSlots`), and the thread that
fills the last slot settles the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..kernels.promises.classes import Resolver, ResultSlots
from .promise import Owner, Promise, RejectedError, resolved

type Settler = Callable[[Any], None]


class AggregateError(ExceptionGroup[Exception]):
    """All promises given to `any` were rejected; `reasons` holds their reasons, in the order of the promises.

    An `ExceptionGroup`, so ``except*`` works: a reason that is not an `Exception` appears among `exceptions` as a
    `RejectedError`. A group cannot be empty: for `any` of nothing the only exception is a `NoPromisesError`, and
    `reasons` is empty.

    >>> import nbloop
    >>> from nbloop.js import JS
    >>> with nbloop.Loop() as loop:
    ...     js = JS(loop)
    ...     try:
    ...         js.any([js.reject(1), js.reject(2)]).result()
    ...     except AggregateError as error:
    ...         error.reasons
    [1, 2]
    """

    reasons: list[Any]

    def derive(self, exceptions: Any, /) -> AggregateError:  # type: ignore[override]
        """A group of some of the exceptions, as ``except*`` makes it."""
        group = AggregateError(self.message, exceptions)
        group.reasons = list(exceptions)
        return group


class NoPromisesError(Exception):
    """`any` was given nothing that could be fulfilled.

    >>> import nbloop
    >>> from nbloop.js import JS
    >>> with nbloop.Loop() as loop:
    ...     try:
    ...         JS(loop).any([]).result()
    ...     except AggregateError as error:
    ...         error.exceptions
    (NoPromisesError('no promises were given'),)
    """


def _aggregate(reasons: list[Any]) -> AggregateError:
    exceptions = [r if isinstance(r, Exception) else RejectedError(r) for r in reasons]
    group = AggregateError("all promises were rejected", exceptions or [NoPromisesError("no promises were given")])
    group.reasons = reasons
    return group


def _combine(
    js: Owner, items: Iterable[Any], subscribe: Callable[[Iterable[Promise[Any]], Settler, Settler], None]
) -> Promise[Any]:
    """A promise that `subscribe` settles; it gets the items as promises of this view, each made on request."""
    promise: Promise[Any] = Promise(js)
    resolver = Resolver(promise)
    try:
        subscribe((resolved(js, item) for item in items), resolver.resolve, resolver.reject)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # from the iterable, or from an overridden `then`: IfAbruptRejectPromise
        resolver.reject(error)
    try:
        return promise
    finally:  # as in `settle_by`
        del promise


def all_(js: Owner, items: Iterable[Any]) -> Promise[list[Any]]:
    """Fulfilled with all values in order, or rejected with the first reason (27.2.4.1). Empty: fulfilled with []."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        results = ResultSlots(js._view, resolve_it)
        for promise in promises:
            promise._react(results, reject_it)
        results.subscribed()

    return _combine(js, items, subscribe)


def all_settled(js: Owner, items: Iterable[Any]) -> Promise[list[dict[str, Any]]]:
    """Fulfilled with ``{"status": "fulfilled", "value": v}`` or ``{"status": "rejected", "reason": r}`` for each
    (27.2.4.2).
    """

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, _reject_it: Settler) -> None:
        results = ResultSlots(js._view, resolve_it)

        def put(index: int, status: str, name: str) -> Settler:
            return lambda outcome: results.put(index, {"status": status, name: outcome})

        for promise in promises:
            index = results.new()
            promise._react(put(index, "fulfilled", "value"), put(index, "rejected", "reason"))
        results.subscribed()

    return _combine(js, items, subscribe)


def any_(js: Owner, items: Iterable[Any]) -> Promise[Any]:
    """Fulfilled with the first value, or rejected with an `AggregateError` of all reasons in order (27.2.4.3)."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        results = ResultSlots(js._view, lambda reasons: reject_it(_aggregate(reasons)))
        for promise in promises:
            promise._react(resolve_it, results)
        results.subscribed()

    return _combine(js, items, subscribe)


def race(js: Owner, items: Iterable[Any]) -> Promise[Any]:
    """Settled like the first that settles (27.2.4.5). Empty: pending for ever."""

    def subscribe(promises: Iterable[Promise[Any]], resolve_it: Settler, reject_it: Settler) -> None:
        for promise in promises:
            promise._react(resolve_it, reject_it)

    return _combine(js, items, subscribe)
