"""The Python faces of what settling.py and reactions.py work on: `Eventual`, `Resolver`, `Places`, and their `View`.

As `state.py` is for a loop's words: made here, worked on by kernels, which must have been loaded by now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np

from ...unique import Unique
from ..base.kernel import method
from . import reactions, settling
from .settling import PLAIN_TYPES, VIEW, EventualWords, PlacesWords, ResolverWords


class View(Unique, np.ndarray):
    """The words of a view, kept alive by everything that was made for it. `owner` is for the Python functions."""

    owner: Any
    keep: tuple[object, ...]

    def __array_finalize__(self, source: object) -> None:
        if isinstance(source, View):  # which would not keep what its words are the addresses of
            raise TypeError("a view has no views or copies of its own type")


class Eventual(EventualWords):
    """Settles once. Bare, it is a reaction that nobody sees. Every method from any thread."""

    __slots__ = ()

    @method(reactions.subscribe)
    def _react(self, on_fulfilled: Any, on_rejected: Any, /) -> None:
        """PerformPromiseThen (ECMAScript 27.2.5.4.1) for nobody to see: run a handler when it is settled, soon if it
        is. A handler is a callable of one argument, `Places`, or None; what it returns or raises is dropped. O(1).
        """

    @method(settling.fulfill)
    def _fulfill(self, value: Any, /) -> None:
        """FulfillPromise (27.2.1.4). The caller alone may settle it. O(reactions)."""

    @method(settling.resolve)
    def _resolve(self, value: Any, /) -> None:
        """The body of a promise resolve function (27.2.1.3.2). The caller alone may settle it."""

    @method(settling.reject)
    def _reject(self, reason: Any, /) -> None:
        """RejectPromise (27.2.1.7). The caller alone may settle it."""


class Resolver(ResolverWords):
    """CreateResolvingFunctions (27.2.1.3): of all calls of its two methods, from any threads, the first decides."""

    __slots__ = ()

    def __init__(self, eventual: Eventual) -> None:
        self._eventual = eventual
        self._view = eventual._view

    @method(settling.decide_resolve)
    def resolve(self, value: Any = None, /) -> None:
        """Resolve with `value`, unless it is resolved already."""

    @method(settling.decide_reject)
    def reject(self, reason: Any = None, /) -> None:
        """Reject with `reason`, unless it is resolved already."""


class Places(PlacesWords):
    """Values that arrive in any order, from any thread, and a function to call with the list of all of them.

    As a handler of `Eventual._react` it takes what the handler would be given, at a place of its own.
    """

    __slots__ = ()

    def __init__(self, view: View, done: Callable[[list[Any]], object]) -> None:
        self._counts = np.array([1, 0], np.int64)  # one more: nothing is complete before everything is subscribed
        self._done = done
        self._values: list[Any] = []
        self._view = view

    @method(reactions.places_new)
    def new(self) -> int:
        """One more place, if no reaction makes it. Only by who subscribes, and before `subscribed`."""
        raise NotImplementedError  # pragma: no cover

    @method(reactions.places_subscribed)
    def subscribed(self) -> None:
        """All that can come has been subscribed to. Once."""

    @method(reactions.places_put)
    def put(self, index: int, value: Any, /) -> None:
        """The value for a place, if no reaction brings it."""


def make_view(
    state: Any, owner: Any, seen: type[Eventual], hooks: Mapping[str, Callable[..., Any] | None], names: tuple[str, str]
) -> View:
    """A view of the loop with that `state`. `seen` is the type that `then` makes; `names` are its arguments'.

    The hooks: ``follow(eventual, value)`` resolves with what is not plain, ``unhandled(eventual)`` was rejected and
    has no reaction, ``raised(eventual, error)`` is the end of a handler, ``lost(eventual, error)`` can not be queued,
    ``made(eventual)`` by `then` (or None), ``misused(instance)`` raises for wrong arguments, ``spawning(callback)`` is
    what to call in the place of a callback that may be a coroutine function.
    """
    view = np.zeros(VIEW.dtype.itemsize // 8, np.int64).view(View)
    view.owner = owner
    view.keep = (state, seen, dict(hooks), names)
    record: Any = view.view(np.ndarray).view(VIEW.dtype)[0]
    record["loop"] = state.ctypes.data
    record["busy"] = record["fulfilled"] = id(True)  # immortal, all three
    record["drained"], record["rejected"] = id(None), id(False)
    record["seen"], record["hidden"], record["places"] = id(seen), id(Eventual), id(Places)
    record["on_fulfilled"], record["on_rejected"] = (id(name) for name in names)
    for name, hook in hooks.items():
        record[name] = 0 if hook is None else id(hook)
    record["function_type"], record["method_type"] = id(FunctionType), id(MethodType)
    record["builtin_type"] = id(BuiltinFunctionType)
    record["plain"] = [id(kind) for kind in PLAIN_TYPES]
    return view
