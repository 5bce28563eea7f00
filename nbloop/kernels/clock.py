"""What time it is for a loop: the system's monotonic clock, or, in tests, one that stands until it is moved.

Everything that compares with a deadline asks `loop_ns`, so that timers, intervals, and what is built on them follow
one clock. How long a sleep may last in real time is a second question (`sleep_ns`): with a virtual clock it has
nothing to do with the deadline. Off costs one load of a word on a line that every method has read already.
"""

from __future__ import annotations

from .atomics import compare_and_swap, get, load, monotonic_ns
from .kernel import helper
from .layout import AUTOJUMP, VIRTUAL, VIRTUAL_NOW

FOREVER = (1 << 63) - 1
LAST = FOREVER - 1  # the end of time, 292 years: no deadline is later, and no virtual clock goes beyond


@helper
def loop_ns(base: int) -> int:
    """Now, in ns of the loop's clock. Any thread."""
    if get(base + VIRTUAL) == 0:
        return monotonic_ns()
    return load(base + VIRTUAL_NOW)


@helper
def sleep_ns(base: int, deadline: int) -> int:
    """For how many ns of real time a sleep until `deadline` may last, at least 0; FOREVER for no limit. Loop thread."""
    if deadline == FOREVER:
        return FOREVER
    if get(base + VIRTUAL) == 0:
        return max(0, deadline - monotonic_ns())
    if deadline <= load(base + VIRTUAL_NOW):
        return 0
    jump = get(base + AUTOJUMP)
    return jump if jump >= 0 else FOREVER


@helper
def clock_jump(base: int, deadline: int, idle: int) -> None:
    """Nothing has come for `idle` ns of real time: a virtual clock that jumps goes to `deadline`. Loop thread."""
    if get(base + VIRTUAL) == 0 or get(base + AUTOJUMP) < 0 or deadline == FOREVER or idle < get(base + AUTOJUMP):
        return
    now = load(base + VIRTUAL_NOW)
    if now < deadline:
        compare_and_swap(base + VIRTUAL_NOW, now, deadline)  # or somebody has just moved it, and the loop looks again
