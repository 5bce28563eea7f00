"""For tests of programs that use timers: a clock that stands still until it is moved, so that nothing has to sleep.

Idea (trio's MockClock): the loop compares its deadlines with a word instead of the system's clock. `advance` moves the
word and wakes the loop; with `autojump`, a loop that has been idle for that long moves it itself.
"""

from __future__ import annotations

import contextlib
import math

from .errors import LoopTerminatedError
from .kernels.methods import lifetime
from .lifecycle import LoopState
from .loop import Loop
from .unique import Unique

MOST = 4e9  # seconds; the limit of timer delays, too


class VirtualClock(Unique):
    """A loop's clock, starting at 0: `loop.now()`, timers, intervals, and everything built on them follow it.

    O(1). The loop must not have run or have a timer yet, else ValueError. After `autojump` seconds of real time without
    anything to do, the clock jumps to the loop's next deadline: 0 means at once, None never.
    Long callbacks and worker threads (`promisify`) take no virtual time: if other threads submit, make `autojump`
    longer than they need.

    >>> loop = Loop(auto_exit=True)
    >>> clock = VirtualClock(loop, autojump=0)
    >>> _ = loop.schedule_timer(3600, lambda: print("an hour later:", loop.now()))
    >>> loop.run()
    an hour later: 3600.0
    """

    def __init__(self, loop: Loop, *, autojump: float | None = None) -> None:
        if not isinstance(loop, Loop):
            raise TypeError(f"loop must be an nbloop.Loop, not {loop!r}")
        jump = -1 if autojump is None else _nanoseconds("autojump", autojump)
        record = loop._record
        scheduled = loop.alive() or record["timers"]["live_here"] or record["timers"]["live_elsewhere"]
        if record["virtual"] or loop.state is not LoopState.AWAKE or record["turns"] or scheduled:
            raise ValueError(f"{loop.name} must be new: not run yet, nothing scheduled, no virtual clock")
        self.loop = loop
        record["autojump"] = jump
        record["virtual"] = 1
        self._advance = lifetime.clock_advance.bind(loop._state)

    def now(self) -> float:
        """Virtual seconds since the clock was made, like `loop.now()`. Any thread."""
        return self.loop.now()

    def advance(self, seconds: float) -> None:
        """Move the clock forward and wake the loop: what is due then runs, earliest deadline first. Any thread, also in
        a callback; does not wait for what runs. ValueError if `seconds` is negative or not finite, or would move the
        clock beyond 2**63 ns (292 years), where its time ends; the clock then stays where it was.
        """
        if not self._advance(_nanoseconds("seconds", seconds)):
            raise ValueError(f"seconds must not move the clock, now {self.now():g}, beyond 9.2e9 seconds: {seconds!r}")
        with contextlib.suppress(LoopTerminatedError):
            self.loop.submit_internal(_look)  # a loop that is about to sleep sees this, and then the clock


def _look() -> None:
    """Makes the loop read its clock again."""


def _nanoseconds(name: str, seconds: object) -> int:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r}")
    if not 0 <= seconds <= MOST:
        raise ValueError(f"{name} must be from 0 to {MOST:g} seconds, not {seconds!r}")
    return math.ceil(seconds * 1e9)
