"""`EventTarget`, `Event`, `CustomEvent` (DOM, sections 2.2 to 2.8), without a tree: an event has one target and does
not bubble further.

Dispatch is synchronous, on the dispatching thread, over the listeners that were there when it began; one that is
removed meanwhile is not called, one with `once` is removed before it is called. Listener lists are replaced, never
changed in place, so any thread may add, remove and dispatch at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ..unique import Unique

logger = logging.getLogger("nbloop")


def check_name(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a str, not {value!r}")


class Event:
    """Something that has happened, of a `type`."""

    def __init__(self, type: str, *, cancelable: bool = False, bubbles: bool = False) -> None:
        check_name("type", type)
        self.type = type
        self.cancelable = cancelable
        self.bubbles = bubbles
        self.target: EventTarget | None = None
        self._prevented = False
        self._stopped = False

    @property
    def default_prevented(self) -> bool:
        """Has a listener called `prevent_default` on a cancelable event?"""
        return self._prevented

    def prevent_default(self) -> None:
        """Ask whoever dispatched it not to do what it would; only if it is cancelable."""
        if self.cancelable:
            self._prevented = True

    def stop_propagation(self) -> None:
        """Without a tree there is nowhere to propagate to."""

    def stop_immediate_propagation(self) -> None:
        """No further listener is called."""
        self._stopped = True


class CustomEvent(Event):
    """An event with a `detail` of the user's own."""

    def __init__(self, type: str, *, detail: Any = None, cancelable: bool = False, bubbles: bool = False) -> None:
        super().__init__(type, cancelable=cancelable, bubbles=bubbles)
        self.detail = detail


type Listener = Callable[[Event], object]


class _Entry:
    __slots__ = ("callback", "once", "removed", "type")

    def __init__(self, type: str, callback: Listener, once: bool) -> None:
        self.type = type
        self.callback = callback
        self.once = once
        self.removed = False


class EventTarget(Unique):
    """Something that events are dispatched to. Every method from any thread."""

    def __init__(self) -> None:
        self._listeners: tuple[_Entry, ...] = ()
        self._listeners_lock = threading.Lock()

    def add_event_listener(self, type: str, callback: Listener, *, once: bool = False) -> None:
        """Call ``callback(event)`` for events of a type, in order of addition; the same callback is added once (DOM
        2.7, 'add an event listener').
        """
        check_name("type", type)
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        with self._listeners_lock:
            if not any(entry.type == type and entry.callback == callback for entry in self._listeners):
                self._listeners = (*self._listeners, _Entry(type, callback, once))

    def remove_event_listener(self, type: str, callback: Listener) -> None:
        """Undo `add_event_listener`; not called any more even by a dispatch in progress. Unknown: nothing happens."""
        with self._listeners_lock:
            for entry in self._listeners:
                if entry.type == type and entry.callback == callback:
                    self._remove(entry)
                    return

    def _remove(self, entry: _Entry) -> None:
        entry.removed = True
        self._listeners = tuple(other for other in self._listeners if other is not entry)

    def dispatch_event(self, event: Event) -> bool:
        """Call the listeners for the event's type; False if it is cancelable and one prevented the default (DOM 2.9).

        A listener that raises is reported to the logger, and the next is called.
        """
        if not isinstance(event, Event):
            raise TypeError(f"event must be an Event, not {event!r}")
        event.target = self
        event._stopped = False
        for entry in self._listeners:
            if entry.type != event.type:
                continue
            with self._listeners_lock:
                if entry.removed:
                    continue
                if entry.once:
                    self._remove(entry)
            try:
                entry.callback(event)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                logger.exception("listener %r for %r raised", entry.callback, event.type)
            if event._stopped:
                break
        return not event._prevented
