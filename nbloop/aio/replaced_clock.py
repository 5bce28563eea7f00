"""Timers of a loop whose `time` has been replaced, as tests of libraries do to move the clock.

The core's timers wait on the system's clock, so a jump of another clock does not move them. asyncio compares its timers
with `loop.time` in each turn. So a timer that is armed while `time` is another function waits twice: in the core, for
the difference between that clock's time and `when`, and here, on that clock. While there are such timers, the loop asks
the clock after each callback that it runs. A program with the loop's own clock never comes here.

Any thread may arm timers. The heap belongs to the loop's thread. It keeps no handle alive: a handle that has fired in
the core, or was cancelled and forgotten, leaves a dead reference. That goes when it is first, or when the heap has
doubled.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from operator import itemgetter
from typing import Any

SOME = 64  # up to this many entries, a search for dead ones is not worth it

type _Entry = tuple[float, int, weakref.ref[Any]]  # numbered, because references cannot be compared

_numbers = count()
_reference = itemgetter(2)


class ReplacedClock:
    """The timers of one loop that were armed while it had another clock; true while there are any."""

    def __init__(self) -> None:
        self.watched = False  # whether the loop asks the clock, or will do so before it sleeps
        self._armed: deque[_Entry] = deque()
        self._heap: list[_Entry] = []
        self._most = SOME

    def __bool__(self) -> bool:
        return bool(self._armed or self._heap)

    def arm(self, when: float, timer: Any) -> None:
        """Note a timer. Any thread; O(1)."""
        self._armed.append((when, next(_numbers), weakref.ref(timer)))

    def due(self, now: float) -> Iterator[Any]:
        """The timers whose time has come, in order. Loop thread; O(log n) a timer. After an exception of a signal's
        handler a timer may come twice.
        """
        while self._armed:
            heappush(self._heap, self._armed[0])  # before it is taken, or another thread would see none
            self._armed.popleft()
        if len(self._heap) > self._most:
            kept = [entry for entry in self._heap if _reference(entry)() is not None]
            heapify(kept)
            self._heap = kept
            self._most = max(SOME, 2 * len(kept))
        heap = self._heap
        while heap:
            timer = _reference(heap[0])()
            if timer is not None and heap[0][0] > now:
                break
            heappop(heap)
            if timer is not None:
                yield timer

    def forget(self) -> None:
        """Forget all timers: they wait in the core. Loop thread."""
        self._armed.clear()
        self._heap = []
