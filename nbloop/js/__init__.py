"""The JavaScript view of a loop: timers, immediates, promises, abort signals, events, performance. In milliseconds."""

from .abort import AbortController, AbortError, AbortSignal
from .combinators import AggregateError, NoPromisesError
from .events import CustomEvent, Event, EventTarget, InvalidStateError
from .performance import Performance, PerformanceEntry
from .promise import CancelledError, Promise, RejectedError
from .scopes import Group, Timeout
from .view import JS
from .waits import Events, Queue

__all__ = [
    "JS",
    "AbortController",
    "AbortError",
    "AbortSignal",
    "AggregateError",
    "CancelledError",
    "CustomEvent",
    "Event",
    "EventTarget",
    "Events",
    "Group",
    "InvalidStateError",
    "NoPromisesError",
    "Performance",
    "PerformanceEntry",
    "Promise",
    "Queue",
    "RejectedError",
    "Timeout",
]
