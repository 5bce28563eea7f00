"""The built-in method of a group of loops: a task for the less busy of two of them.

Problem: finding the least busy of N loops means reading N lines that other cores write, for each task; taking loops in
turn needs a shared counter, and gives work to a loop that hangs. Idea: the power of two choices (Mitzenmacher, 2001).
Pick two loops at random and take the one where less waits: the longest queue is then of the order of ``log log N``
instead of ``log N / log log N``, and a stuck loop gets nothing once more waits there than elsewhere.

The processor's cycle counter serves as the random source, so a choice writes no word at all, and two submitting threads
share only a word of the loop that both choose: its tail.
"""

from __future__ import annotations

from ..base.atomics import get, load, ticks
from ..base.kernel import MANY, data, inlined, kernel
from ..base.layout import GROUP, STATE
from ..ingress.parking import IS_AWAKE
from ..ingress.ticket_queue import queue_length
from .scheduling import submit_one

LOW_31 = (1 << 31) - 1
# Odd, and of at most 31 bits, so that a product keeps within 62. Counters of neighbouring calls differ in their low
# bits only.
SPREAD, SPREAD_OTHER = 0x5851F42D, 0x2545F491


@inlined
def busyness(base: int) -> int:
    """Twice the length of the submit queue, plus one if the loop is awake: if both queues are empty, a sleeping loop is
    surely idle. Any thread; possibly outdated.
    """
    return (queue_length(base + STATE.EXTERNAL) << 1) + (load(base + STATE.SLEEP) == IS_AWAKE)


@inlined
def less_busy(group: int, chance: int) -> int:
    """The state of the less busy of two loops of a group, picked by `chance`."""
    count = get(group + GROUP.COUNT)
    first = group + GROUP.LOOPS
    if count == 1:
        return get(first)
    low = chance & LOW_31
    one = ((low * SPREAD & LOW_31) * count) >> 31  # scaled, not divided: the highest bits are the best mixed
    other = one + 1 + (((low * SPREAD_OTHER & LOW_31) * (count - 1)) >> 31)
    if other >= count:
        other -= count
    a, b = get(first + (one << 3)), get(first + (other << 3))
    return b if busyness(b) < busyness(a) else a


@kernel(MANY)
def group_submit(self: int, arguments: int, count: int) -> int:
    """Any thread: choose a loop, then as `submit`."""
    return submit_one(less_busy(data(self), ticks()), arguments, count, False)


@kernel(MANY)
def group_submit_captured(self: int, arguments: int, count: int) -> int:
    """`group_submit`, captured (captured.py)."""
    return submit_one(less_busy(data(self), ticks()), arguments, count, True)
