"""``performance``: a monotonic clock in ms, marks and measures (High Resolution Time, User Timing Level 3)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..lock import CountingLock
from ..options import check_milliseconds
from ..unique import Unique
from .events import check_name


@dataclass(frozen=True)
class PerformanceEntry:
    """A mark (duration 0) or a measure; times in ms since the time origin.

    >>> PerformanceEntry("begin", "mark", 1.5, 0.0).start_time
    1.5
    """

    name: str
    entry_type: Literal["mark", "measure"]
    start_time: float
    duration: float
    detail: Any = None


class Performance(Unique):
    """Marks and measures since its creation. Any thread may call any method.

    `clock` returns seconds; a `JS` passes the loop's. Marking takes O(1), a measure from a named mark and the other
    methods O(entries): only `clear_marks` and `clear_measures` forget entries.

    >>> times = iter([10.0, 10.5, 12.0])
    >>> performance = Performance(clock=lambda: next(times))
    >>> performance.mark("begin").start_time, performance.measure("work", "begin").duration
    (500.0, 1500.0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # in seconds
        self._origin = clock()
        self.time_origin = time.time_ns() / 1e6
        self._entries: list[PerformanceEntry] = []
        self._lock = CountingLock()  # a finaliser may run while it is held, and make a mark

    def now(self) -> float:
        """Milliseconds since the time origin; never goes backwards."""
        return (self._clock() - self._origin) * 1e3

    def mark(self, name: str, *, detail: Any = None, start_time: float | None = None) -> PerformanceEntry:
        """Record a moment under a `name`, with any `detail`: now, or `start_time` in ms since the time origin.
        ValueError if that is negative (User Timing: a TypeError).
        """
        check_name("name", name)
        start = self.now() if start_time is None else check_milliseconds("start_time", start_time)
        entry = PerformanceEntry(name, "mark", start, 0.0, detail)
        with self._lock:
            self._entries.append(entry)
        return entry

    def measure(
        self, name: str, start: str | float | None = None, end: str | float | None = None, *, detail: Any = None
    ) -> PerformanceEntry:
        """Record the span from `start` to `end` under a `name`, with any `detail`. Each is the name of a mark (its last
        one), ms, or None for the origin and now.

        LookupError for a name that was never marked (User Timing: a SyntaxError).
        """
        check_name("name", name)
        until = self.now() if end is None else self._moment("end", end)
        begin = 0.0 if start is None else self._moment("start", start)
        entry = PerformanceEntry(name, "measure", begin, until - begin, detail)
        with self._lock:
            self._entries.append(entry)
        return entry

    def _moment(self, name: str, moment: str | float) -> float:
        if not isinstance(moment, str):
            return check_milliseconds(name, moment)
        with self._lock:
            for entry in reversed(self._entries):
                if entry.entry_type == "mark" and entry.name == moment:
                    return entry.start_time
        raise LookupError(f"no mark is named {moment!r}")

    def get_entries(
        self, *, name: str | None = None, entry_type: Literal["mark", "measure"] | None = None
    ) -> list[PerformanceEntry]:
        """The entries, of the given `name` and `entry_type` if any, in order of start time."""
        with self._lock:
            entries = list(self._entries)
        return sorted(
            (
                e
                for e in entries
                if (name is None or e.name == name) and (entry_type is None or e.entry_type == entry_type)
            ),
            key=lambda entry: entry.start_time,
        )

    def clear_marks(self, name: str | None = None) -> None:
        """Forget all marks, or those of one name."""
        self._clear("mark", name)

    def clear_measures(self, name: str | None = None) -> None:
        """Forget all measures, or those of one name."""
        self._clear("measure", name)

    def _clear(self, kind: str, name: str | None) -> None:
        with self._lock:
            found = [e for e in self._entries if e.entry_type == kind]  # no other code runs: names are compared below
            gone = {id(e) for e in found if name is None or e.name == name}
            self._entries = [e for e in self._entries if id(e) not in gone]
