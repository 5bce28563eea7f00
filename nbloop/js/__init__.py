"""The JavaScript view of a loop: timers, immediates, promises, abort signals, events, performance. In milliseconds."""

from .abort import AbortController, AbortError, AbortSignal
from .combinators import AggregateError, NoPromisesError
from .events import CustomEvent, Event, EventTarget, InvalidStateError
from .performance import Performance, PerformanceEntry
from .promise import CancelledError, Promise, RejectedError
from .view import JS

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
    "InvalidStateError",
    "NoPromisesError",
    "Performance",
    "PerformanceEntry",
    "Promise",
    "RejectedError",
]
