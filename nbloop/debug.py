"""Debug mode: remember where a callback was scheduled, and tell `on_error`.

The stack is taken in the scheduling call, which costs some 5 µs and makes the call a Python function, so it is a mode
and not the default.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

_SCHEDULING = {
    "submit": 0,
    "submit_internal": 0,
    "schedule_microtask": 0,
    "schedule_next_tick": 0,
    "schedule_checkpoint_end": 0,
    "schedule_immediate": 0,
    "schedule_close": 0,
    "schedule_timer": 1,
    "schedule_interval": 1,
}


class Sited:
    """A callback that knows where it was scheduled."""

    __slots__ = ("callback", "site")

    def __init__(self, callback: Callable[..., object], site: traceback.StackSummary) -> None:
        self.callback = callback
        self.site = site

    def __call__(self, *args: object) -> object:
        return self.callback(*args)

    def __repr__(self) -> str:
        return repr(self.callback)


def remember_sites(loop: Any) -> None:
    """Put a remembering function in front of each of the loop's scheduling methods."""
    for name, position in _SCHEDULING.items():
        loop.__dict__[name] = _remembering(getattr(loop, name), position)


def _remembering(method: Callable[..., Any], position: int) -> Callable[..., Any]:
    def schedule(*args: Any) -> Any:
        if len(args) > position and callable(args[position]):
            site = traceback.extract_stack()[:-1]
            args = (
                *args[:position],
                Sited(args[position], traceback.StackSummary.from_list(site)),
                *args[position + 1 :],
            )
        return method(*args)

    schedule.__name__ = method.__name__
    schedule.__doc__ = method.__doc__
    return schedule


def site_of(callback: object) -> dict[str, Any]:
    """What `on_error`'s context says of a remembered callback: the callback itself, and the stack under
    ``scheduled_at``.
    """
    if isinstance(callback, Sited):
        return {"callback": callback.callback, "scheduled_at": callback.site}
    return {}
