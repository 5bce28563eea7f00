"""The Python classes of settling.py and reactions.py: `Eventual`, `Resolver`, `ResultSlots`, and their `View`.

This file is to promises what `state.py` is to a loop. Kernels must be loaded before it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np

from ...unique import Unique
from ..base.kernel import method
from . import reactions, settling
from .settling import PLAIN_TYPES, VIEW, EventualWords, ResolverWords, ResultSlotsWords


class View(Unique, np.ndarray):
    """The words of a view, kept alive by everything made for it. `owner` is for the use of the Python hooks."""

    owner: Any
    keep: tuple[object, ...]

    def __array_finalize__(self, source: object) -> None:
        if isinstance(source, View):  # a copy would not keep alive the objects whose addresses it contains
            raise TypeError("a view has no views or copies of its own type")


class Eventual(EventualWords):
    """A value that settles once. A bare instance is a hidden reaction. Any thread may call any method."""

    __slots__ = ()

    @method(reactions.subscribe)
    def _react(self, on_fulfilled: Any, on_rejected: Any, /) -> None:
        """PerformPromiseThen (ECMAScript 27.2.5.4.1) without a result: run a handler when it settles, or as a microtask
        if it has. A handler is a callable of one argument, a `ResultSlots`, or None; its result is dropped. O(1).
        """

    @method(settling.fulfill)
    def _fulfill(self, value: Any, /) -> None:
        """FulfillPromise (27.2.1.4). The caller must have the sole right to settle it. O(reactions)."""

    @method(settling.resolve)
    def _resolve(self, value: Any, /) -> None:
        """The body of a promise resolve function (27.2.1.3.2). The caller must have the sole right to settle it."""

    @method(settling.reject)
    def _reject(self, reason: Any, /) -> None:
        """RejectPromise (27.2.1.7). The caller must have the sole right to settle it."""


class Resolver(ResolverWords):
    """CreateResolvingFunctions (27.2.1.3): the first call of either method, from any thread, decides."""

    __slots__ = ()

    def __init__(self, eventual: Eventual) -> None:
        self._eventual = eventual
        self._view = eventual._view

    @method(settling.decide_resolve)
    def resolve(self, value: Any = None, /) -> None:
        """Resolve with `value`, unless already resolved."""

    @method(settling.decide_reject)
    def reject(self, reason: Any = None, /) -> None:
        """Reject with `reason`, unless already resolved."""


class ResultSlots(ResultSlotsWords):
    """Collects values that arrive in any order, from any thread, and calls a function with the list of all of them.

    As a handler of `Eventual._react` it stores the handler's argument in a slot of its own.
    """

    __slots__ = ()

    def __init__(self, view: View, done: Callable[[list[Any]], object]) -> None:
        self._counts = np.array([1, 0], np.int64)  # one extra: the list is not complete before `subscribed`
        self._done = done
        self._values: list[Any] = []
        self._view = view

    @method(reactions.result_slots_new)
    def new(self) -> int:
        """Add a slot that no reaction makes. Only the subscribing thread, before `subscribed`."""
        raise NotImplementedError  # pragma: no cover

    @method(reactions.result_slots_subscribed)
    def subscribed(self) -> None:
        """Declare that everything has been subscribed. Once."""

    @method(reactions.result_slots_put)
    def put(self, index: int, value: Any, /) -> None:
        """Store the value for a slot that no reaction fills."""


def make_view(
    state: Any, owner: Any, seen: type[Eventual], hooks: Mapping[str, Callable[..., Any] | None], names: tuple[str, str]
) -> View:
    """A view of the loop whose state is `state`. `seen` is the type that `then` creates; `names` are the names of
    `then`'s arguments.

    The hooks: ``follow(eventual, value)`` resolves with a value that is not plain; ``unhandled(eventual)``: it was
    rejected and has no reaction; ``raised(eventual, error)``: its handler raised (a hidden one passes the handler in
    its place); ``lost(eventual, error)``: it cannot be queued; ``made(eventual)``: `then` created it (or None);
    ``misused(instance)`` raises for wrong arguments; ``spawning(callback)`` returns what to call instead of a callback
    that may be a coroutine function.
    """
    view = np.zeros(VIEW.dtype.itemsize // 8, np.int64).view(View)
    view.owner = owner
    view.keep = (state, seen, dict(hooks), names)
    record: Any = view.view(np.ndarray).view(VIEW.dtype)[0]
    record["loop"] = state.ctypes.data
    record["busy"] = record["fulfilled"] = id(True)  # immortal, all three
    record["drained"], record["rejected"] = id(None), id(False)
    record["seen"], record["hidden"], record["result_slots"] = id(seen), id(Eventual), id(ResultSlots)
    record["on_fulfilled"], record["on_rejected"] = (id(name) for name in names)
    for name, hook in hooks.items():
        record[name] = 0 if hook is None else id(hook)
    record["function_type"], record["method_type"] = id(FunctionType), id(MethodType)
    record["builtin_type"] = id(BuiltinFunctionType)
    record["plain"] = [id(kind) for kind in PLAIN_TYPES]
    return view
