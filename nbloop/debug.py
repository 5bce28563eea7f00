"""Debug mode: remember where each callback was scheduled, and pass this to `on_error`.

The scheduling call captures the stack, which costs some 5 µs and makes the call a Python function; so this is a mode,
not the default.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable
from typing import Any

_SCHEDULING = {  # methods of a loop, a producer handle or the JavaScript view: the callback's position
    "submit": 0,
    "submit_internal": 0,
    "schedule_microtask": 0,
    "schedule_next_tick": 0,
    "schedule_checkpoint_end": 0,
    "schedule_immediate": 0,
    "schedule_close": 0,
    "schedule_timer": 1,
    "schedule_timer_at": 1,
    "schedule_interval": 1,
    "set_timeout": 0,
    "set_interval": 0,
    "set_immediate": 0,
    "queue_microtask": 0,
    "next_tick": 0,
}
_MANY = "submit_many"  # its argument is an iterable of callbacks


class StandIn:
    """What is scheduled in the place of a callback."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[..., object]) -> None:
        self.callback = callback

    def __repr__(self) -> str:
        return repr(self.callback)


class Sited(StandIn):
    """A callback that knows where it was scheduled."""

    __slots__ = ("site",)

    def __init__(self, callback: Callable[..., object], site: traceback.StackSummary) -> None:
        super().__init__(callback)
        self.site = site

    def __call__(self, *args: object) -> object:
        return self.callback(*args)


def remember_sites(target: Any) -> None:
    """Wrap each scheduling method of `target` in a function that remembers the call site."""
    for name, position in _SCHEDULING.items():
        if hasattr(type(target), name):
            target.__dict__[name] = _remembering(getattr(target, name), position)
    if hasattr(type(target), _MANY):
        target.__dict__[_MANY] = _remembering_many(getattr(target, _MANY))


def _remembering(method: Callable[..., Any], position: int) -> Callable[..., Any]:
    @functools.wraps(method)
    def schedule(*args: Any, **named: Any) -> Any:
        return method(*args[:position], *sited(args[position : position + 1]), *args[position + 1 :], **named)

    return schedule


def _remembering_many(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def schedule(*args: Any) -> Any:
        return method(*(sited(callbacks) for callbacks in args))

    return schedule


def sited(callbacks: Iterable[Any]) -> list[Any]:
    """The callbacks, wrapped to remember the scheduling call in progress; what is not callable stays as it is."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    site = traceback.StackSummary.from_list(frames)
    return [Sited(callback, site) if callable(callback) else callback for callback in callbacks]


def described(callback: object) -> dict[str, Any]:
    """What `on_error`'s context says about a callback: the callback itself, even if an object stands in for it, and, if
    its call site was remembered, the stack under ``scheduled_at``.
    """
    found: dict[str, Any] = {}
    while isinstance(callback, StandIn):
        if isinstance(callback, Sited):
            found["scheduled_at"] = callback.site
        callback = callback.callback
    return {"callback": callback} | found
