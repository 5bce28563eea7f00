"""What a flight recorder records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a recorder.

    >>> import nbloop
    >>> loop = nbloop.Loop(recorder=1024, auto_exit=True)
    >>> loop.submit(len, "four")
    >>> loop.run()
    >>> [event.name for event in loop.recorder.events() if event.kind == "task"]
    ['len']
    """

    number: int
    """The number of events recorded before it; -1 for the callback in progress."""
    time: float
    """When it happened or began: seconds on the clock of `time.monotonic`."""
    duration: float
    """Seconds that a callback, ``sleep`` or ``collection`` took (for the callback in progress: until now); else 0."""
    thread: int
    """`threading.get_ident` of the thread that did it."""
    kind: str
    """The kind of callback, or one of ``submit move arm cancel sleep wake overload turn checkpoint stall collection
    batch``.
    """
    subject: int
    """The id of a timer (``timer arm cancel``) or immediate (``cancel``), a watch's token (``readiness callback``), the
    number of waiting tasks (``turn``, ``stall``) or of waiting microtasks and next-ticks (``checkpoint``), the
    generation (``collection``), the number of a channel's ring (``batch``). For any other callback its place,
    ``position << 16 | queue``: that of its ``submit``, or the one to which a ``move`` took it from there.
    """
    name: str | None
    """For a callback: the qualified name of its code or its type. For a ``batch`` that of the channel."""
    value: int
    """The number of tasks submitted, from `subject` on (``submit``); the new place (``move``); the deadline in ns
    (``arm``); the descriptor (``readiness callback``); the number of waiting internal tasks (``turn``, ``stall``); the
    number of objects that were collected (``collection``); of records (``batch``); else 0.
    """
    failed: bool = False
    """Whether the callback raised."""
    immediates: int = 0
    """The number of waiting immediates (``turn``)."""
