"""A 4-ary heap of (deadline, order): the timers that are due soon.

Why four children: they are one 64-byte line (entry 1 is line-aligned), so a level costs one miss, and there are half as
many levels as in a binary heap. It is small, because timers that are not due soon wait in buckets (buckets.py), so it
lies in the first-level cache. Belongs to the loop thread alone: plain loads and stores.

``order`` is ``number << SLOT_BITS | slot``: equal deadlines fire in scheduling order, and the entry names its slot.
The number is odd, so it is never 0, and begins anew after 2**41 armings: `before` compares two as one compares times on
a clock face, right for two that fewer than 2**40 armings lie between.
An entry does not know where it is: a cancelled timer's stays, recognised by its sequence number when it comes up or
when `timer_queue.py` sweeps. Keeping positions cost a store a level in each sift, which was a third of a pop.
Invariant: a parent is not after its children. Loses when very many timers are due at almost the same time: O(log n).
"""

from __future__ import annotations

from ..base.atomics import before, exchange, get, put, store
from ..base.kernel import apart, helper, inlined
from ..base.layout import SLOT_BITS, TIMERS
from ..memory.system import block_give, block_take

SMALL_HEAP = 64  # entries that an empty heap has room for


@helper
def order_of(sequence: int) -> int:
    """The order of the timer that was armed as the so many-eth, without its slot. Never 0, and with 64 bits, as a word
    has them, the same again for `sequence` + 2**41.
    """
    return (2 * sequence + 1) << SLOT_BITS


@inlined
def heap_place(heap: int, at: int, deadline: int, order: int) -> None:
    """Write entry `at`."""
    entry = heap + (at << 4)
    put(entry, deadline)
    put(entry + 8, order)


@inlined
def heap_up(heap: int, at: int, deadline: int, order: int) -> None:
    """Fill the hole at `at` with an entry that may belong nearer the root. O(log n)."""
    while at > 0:
        parent = (at - 1) >> 2
        entry = heap + (parent << 4)
        over = get(entry)
        if over < deadline:
            break
        over_order = get(entry + 8)
        if over == deadline and before(over_order, order):
            break
        heap_place(heap, at, over, over_order)
        at = parent
    heap_place(heap, at, deadline, order)


@inlined
def heap_before(deadline: int, order: int, other: int, other_order: int) -> bool:
    """Is the first entry before the second? Without a branch: which child is first can not be predicted, and a wrong
    guess costs 5 ns.
    """
    return (deadline < other) | ((deadline == other) & before(order, other_order))


@helper
def heap_first_child(heap: int, child: int, size: int) -> int:
    """The first in order of the up to four children that begin at `child`."""
    at = heap + (child << 4)
    if child + 4 <= size:  # the usual case: one line, two rounds of a tournament
        left = heap_before(get(at + 16), get(at + 24), get(at), get(at + 8))
        right = heap_before(get(at + 48), get(at + 56), get(at + 32), get(at + 40))
        first = 1 if left else 0
        second = 3 if right else 2
        one, two = at + (first << 4), at + (second << 4)
        return child + (second if heap_before(get(two), get(two + 8), get(one), get(one + 8)) else first)
    first = child
    while child + 1 < size:
        child += 1
        one, two = heap + (first << 4), heap + (child << 4)
        if heap_before(get(two), get(two + 8), get(one), get(one + 8)):
            first = child
    return first


@helper
def heap_hole_down(heap: int, size: int) -> int:
    """Move the hole at the root to a leaf, each time lifting its first child in order; where it ended. O(log n).

    Bottom-up (Wegener 1993): the last entry, which will fill the hole, nearly always belongs near a leaf, so
    comparing it on the way down would be wasted; `heap_up` from the leaf corrects the rest.
    """
    at = 0
    while True:
        child = (at << 2) + 1
        if child >= size:
            return at
        first = heap_first_child(heap, child, size)
        entry = heap + (first << 4)
        heap_place(heap, at, get(entry), get(entry + 8))
        at = first


@inlined
def heap_pop(timers: int) -> None:
    """Take out the first entry; there must be one. O(log n)."""
    heap = get(timers + TIMERS.HEAP)
    size = get(timers + TIMERS.SIZE) - 1
    store(timers + TIMERS.SIZE, size)
    if size > 0:
        deadline, order = get(heap + (size << 4)), get(heap + (size << 4) + 8)
        heap_up(heap, heap_hole_down(heap, size), deadline, order)


@helper
def heap_bytes(capacity: int) -> int:
    """The size of a block with room for so many entries, wherever its first line begins (`heap_base`)."""
    return (capacity << 4) + 128


@apart
def heap_resize(timers: int, capacity: int) -> int:
    """Move to a block with room for `capacity` entries, no fewer than there are. 0, or -1 and nothing changed."""
    block = block_take(heap_bytes(capacity))
    if block == 0:
        return -1
    new, old = heap_base(block), get(timers + TIMERS.HEAP)
    for i in range(2 * get(timers + TIMERS.SIZE)):
        put(new + (i << 3), get(old + (i << 3)))
    heap_end(timers)
    put(timers + TIMERS.HEAP, new)
    put(timers + TIMERS.HEAP_BLOCK, block)
    put(timers + TIMERS.CAPACITY, capacity)
    return 0


@helper
def heap_end(timers: int) -> None:
    """Give back the block, if there is one."""
    block_give(exchange(timers + TIMERS.HEAP_BLOCK, 0), heap_bytes(get(timers + TIMERS.CAPACITY)))


@inlined
def heap_reserve(timers: int, count: int) -> int:
    """Make room for `count` more entries. 0, or -1 for no memory. Amortised O(1)."""
    needed = get(timers + TIMERS.SIZE) + count
    capacity = get(timers + TIMERS.CAPACITY)
    if needed <= capacity:
        return 0
    return heap_resize(timers, max(needed, 2 * capacity))


@helper
def heap_trim(timers: int) -> None:
    """Shrink a large block that is hardly used any more. Before a sleep."""
    capacity, size = get(timers + TIMERS.CAPACITY), get(timers + TIMERS.SIZE)
    if capacity >= 64 * SMALL_HEAP and 8 * size < capacity:
        heap_resize(timers, max(SMALL_HEAP, 2 * size))


@helper
def heap_base(address: int) -> int:
    """Where entry 0 goes in a block, so that entry 1 begins a 64-byte line."""
    return ((address + 63) & ~63) + 48


@inlined
def heap_insert(timers: int, deadline: int, order: int) -> None:
    """Add an entry; `heap_reserve` has made room. O(log n), on average O(1)."""
    size = get(timers + TIMERS.SIZE)
    store(timers + TIMERS.SIZE, size + 1)
    heap_up(get(timers + TIMERS.HEAP), size, deadline, order)
