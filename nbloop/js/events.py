"""`EventTarget`, `Event`, `CustomEvent` (DOM, sections 2.2 to 2.9), without a tree: an event has one target and does
not bubble further.

Dispatch is synchronous, on the dispatching thread, over the listeners present when it began. A listener that is removed
meanwhile is not called; one with `once` is removed before it is called. Listener lists are replaced, never changed in
place, so any thread may add, remove and dispatch at any time. An event can be in only one dispatch at a time: a second
one, on any thread, raises `InvalidStateError`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from types import CoroutineType
from typing import Any

from .. import hooks
from ..lifecycle import running_here
from ..lock import CountingLock
from ..unique import Unique
from .coroutines import run_here


class InvalidStateError(RuntimeError):
    """The event is being dispatched (DOM's ``InvalidStateError``).

    >>> target = EventTarget()
    >>> def again(event):
    ...     try:
    ...         target.dispatch_event(event)
    ...     except InvalidStateError as error:
    ...         print(error)
    >>> target.add_event_listener("tick", again)
    >>> target.dispatch_event(Event("tick"))
    the event 'tick' is being dispatched
    True
    """


def check_name(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a str, not {value!r}")


class Event:
    """Something of a certain `type` that has happened.

    `cancelable` allows `prevent_default`; `bubbles` is kept and has no effect, because there is no tree. TypeError if
    `type` is not a str. Any thread may read it, and the listeners of one dispatch change it one after the other. O(1).

    >>> target = EventTarget()
    >>> target.add_event_listener("leave", Event.prevent_default)
    >>> target.dispatch_event(Event("leave", cancelable=True))
    False
    """

    def __init__(self, type: str, *, cancelable: bool = False, bubbles: bool = False) -> None:
        check_name("type", type)
        self.type = type
        self.cancelable = cancelable
        self.bubbles = bubbles
        self.target: EventTarget | None = None
        self._prevented = False
        self._stopped = False  # before or in a dispatch: DOM's stop propagation flag
        self._stopped_at_once = False  # DOM's stop immediate propagation flag

    @property
    def default_prevented(self) -> bool:
        """Whether a listener called `prevent_default` on a cancelable event."""
        return self._prevented

    def prevent_default(self) -> None:
        """Ask the dispatcher to skip its default action, if the event is cancelable."""
        if self.cancelable:
            self._prevented = True

    def stop_propagation(self) -> None:
        """Before a dispatch: no listener is called. During one there is nothing to stop, since there is no tree."""
        self._stopped = True

    def stop_immediate_propagation(self) -> None:
        """Call no further listener."""
        self._stopped = self._stopped_at_once = True


class CustomEvent(Event):
    """An event with a `detail` of the user's choice; `type`, `cancelable`, `bubbles`, threads and errors are those of
    `Event`. O(1).

    >>> target = EventTarget()
    >>> target.add_event_listener("price", lambda event: print(event.detail))
    >>> target.dispatch_event(CustomEvent("price", detail=101.5))
    101.5
    True
    """

    def __init__(self, type: str, *, detail: Any = None, cancelable: bool = False, bubbles: bool = False) -> None:
        super().__init__(type, cancelable=cancelable, bubbles=bubbles)
        self.detail = detail


type Listener = Callable[[Event], object]


class _Entry:
    __slots__ = ("callback", "context", "once", "removed", "type")

    def __init__(self, type: str, callback: Listener, once: bool) -> None:
        self.type = type
        self.callback = callback
        self.context = copy_context()
        self.once = once
        self.removed = False


def check_target(value: object) -> None:
    if not isinstance(value, EventTarget):
        raise TypeError(f"target must be an EventTarget, not {value!r}")


def _call_here(callback: Listener, event: Event) -> None:
    result = callback(event)
    if isinstance(result, CoroutineType):
        run_here(result, "event listener", (callback, event))


class EventTarget(Unique):
    """Something that events are dispatched to. Any thread may call any method.

    >>> target = EventTarget()
    >>> target.add_event_listener("tick", lambda event: print(event.type), once=True)
    >>> target.dispatch_event(Event("tick")), target.dispatch_event(Event("tick"))
    tick
    (True, True)
    """

    def __init__(self) -> None:
        self._listeners: tuple[_Entry, ...] = ()
        # Re-entrant: a comparison of callbacks is the program's code, and a finaliser may run anywhere. Both may call
        # these methods.
        self._listeners_lock = CountingLock()

    def add_event_listener(self, type: str, callback: Listener, *, once: bool = False) -> None:
        """Call ``callback(event)`` for events of a type, in order of addition; the same callback is added once (DOM
        2.7, 'add an event listener').

        If the callback is a coroutine function, its coroutine is spawned on the loop that runs on the dispatching
        thread. There has to be one. An exception of the coroutine is reported like one of any listener.
        """
        check_name("type", type)
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        with self._listeners_lock:
            if not any(entry.type == type and entry.callback == callback for entry in self._listeners):
                entry = _Entry(type, callback, once)
                self._listeners += (entry,)

    def remove_event_listener(self, type: str, callback: Listener) -> None:
        """Undo `add_event_listener` of this `type` and `callback`. Even a dispatch in progress no longer calls it. An
        unknown listener is ignored.
        """
        with self._listeners_lock:
            for entry in self._listeners:
                if entry.type == type and entry.callback == callback:
                    self._remove(entry)
                    return

    def _remove(self, entry: _Entry) -> None:
        entry.removed = True
        while True:
            before = self._listeners
            after = tuple(other for other in before if not other.removed)
            if self._listeners is before:  # and a finaliser has not changed them meanwhile
                self._listeners = after
                return

    def dispatch_event(self, event: Event) -> bool:
        """Call the listeners for the event's type; False if it is cancelable and one prevented the default (DOM 2.9).

        An exception of a listener is reported to the `on_error` of the loop that runs on this thread, or to the logger
        if there is none; then the next listener is called. KeyboardInterrupt and SystemExit leave the call.
        O(listeners). Raises TypeError, and `InvalidStateError` for an event that is already being dispatched.
        """
        if not isinstance(event, Event):
            raise TypeError(f"event must be an Event, not {event!r}")
        dispatch, flags = object(), event.__dict__
        try:
            if flags.setdefault("_dispatch", dispatch) is not dispatch:  # DOM's dispatch flag: atomic, as a key is
                raise InvalidStateError(f"the event {event.type!r} is being dispatched")
            event.target = self
            if not event._stopped:
                self._call_listeners(event)
        finally:  # without a call, between which and the next step a signal handler could raise
            try:
                mine = flags["_dispatch"] is dispatch
            except KeyError:  # another thread's dispatch has just ended
                mine = False
            if mine:
                event._stopped = event._stopped_at_once = False
                del flags["_dispatch"]
        return not event._prevented

    def _call_listeners(self, event: Event) -> None:
        for entry in self._listeners:
            if entry.type != event.type:
                continue
            with self._listeners_lock:
                if entry.removed:
                    continue
                if entry.once:
                    self._remove(entry)
            try:
                entry.context.copy().run(_call_here, entry.callback, event)  # a copy: it may dispatch to itself
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                hooks.tell(running_here(), error, "event listener", (entry.callback, event))
            if event._stopped_at_once:
                break
