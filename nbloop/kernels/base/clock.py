"""A loop's time: the system's monotonic clock, or, in tests, a virtual clock that stands still until it is moved.

Everything that compares with a deadline uses `loop_ns`, so timers, intervals, and what is built on them follow one
clock. How long a sleep may last in real time is a separate question (`sleep_ns`): with a virtual clock it does not
depend on the deadline. Without one, the feature costs one load from a line that every method has already read.
"""

from __future__ import annotations

from .atomics import compare_and_swap, get, load, monotonic_ns
from .kernel import helper
from .layout import STATE

FOREVER = (1 << 63) - 1
LAST = FOREVER - 1  # the end of time, 292 years: no finite deadline is later, and no virtual clock goes beyond


@helper
def loop_ns(base: int) -> int:
    """The current time in ns on the loop's clock. Any thread."""
    if get(base + STATE.VIRTUAL) == 0:
        return monotonic_ns()
    return load(base + STATE.VIRTUAL_NOW)


@helper
def sleep_ns(base: int, deadline: int) -> int:
    """How many ns of real time a sleep until `deadline` may last, at least 0; FOREVER for no limit. Loop thread."""
    if deadline == FOREVER:
        return FOREVER
    if get(base + STATE.VIRTUAL) == 0:
        return max(0, deadline - monotonic_ns())
    if deadline <= load(base + STATE.VIRTUAL_NOW):
        return 0
    jump = get(base + STATE.AUTOJUMP)
    return jump if jump >= 0 else FOREVER


@helper
def clock_jump(base: int, deadline: int, idle: int) -> None:
    """After `idle` ns of real time without arrivals, move a virtual clock that jumps to `deadline`. Loop thread."""
    if (
        get(base + STATE.VIRTUAL) == 0
        or get(base + STATE.AUTOJUMP) < 0
        or deadline == FOREVER
        or idle < get(base + STATE.AUTOJUMP)
    ):
        return
    now = load(base + STATE.VIRTUAL_NOW)
    if now < deadline:
        # If the swap fails, another thread has just moved the clock, and the loop checks again.
        compare_and_swap(base + STATE.VIRTUAL_NOW, now, deadline)
