"""A 4-ary heap of (deadline, order): the timers that are due soon.

Why four children: they fill one 64-byte line (entry 1 is line-aligned), so a level costs one cache miss, and there are
half as many levels as in a binary heap. The heap is small and stays in the first-level cache, because timers that are
not due soon wait in buckets (buckets.py). It belongs to the loop thread alone: plain loads and stores.

``order`` is ``number << SLOT_BITS | slot``: equal deadlines fire in scheduling order, and the entry names its slot.
The number is odd, so it is never 0, and starts over after 2**41 armings: `before` compares two numbers like times on a
clock face, correctly if fewer than 2**40 armings lie between them.
A slot does not know its entry's position: a cancelled timer's entry stays, and is recognised by its sequence number
when it reaches the front or when `timer_queue.py` sweeps. Tracking positions cost one store per level of each sift,
which was a third of a pop.
Invariant: a parent is not after its children. It loses when very many timers are due at almost the same time: O(log n).
"""

from __future__ import annotations

from ..base.atomics import before, exchange, get, put, store
from ..base.kernel import apart, helper, inlined
from ..base.layout import SLOT_BITS, SLOT_LIMIT, TIMERS
from ..memory.system import block_give, block_take, map_empty

SMALL_HEAP = 64  # entries for which the first block has room, and the last one when the heap has become empty
LARGE_HEAP = 1 << 14  # entries: 256 KiB, which are copied in 0.1 ms
MOST = 2 * SLOT_LIMIT + SLOT_LIMIT // 4  # half may be stale, and 1/8 more while a sweep goes on: 144 MiB of addresses
PORTION = 1 << 17  # entries whose pages are given back in one turn: 2 MiB, which takes 0.2 ms


@helper
def order_of(sequence: int) -> int:
    """The order, without the slot, of the timer that was armed as number `sequence`. Never 0. In a word's 64 bits it
    repeats for `sequence` + 2**41.
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
    """Fill the hole at `at` with an entry that may belong nearer to the root. O(log n)."""
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
    """Whether the first entry is before the second. Branch-free: the outcome is unpredictable, and a mispredicted
    branch costs 5 ns.
    """
    return (deadline < other) | ((deadline == other) & before(order, other_order))


@helper
def heap_first_child(heap: int, child: int, size: int) -> int:
    """The earliest of the up to four children that begin at `child`."""
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
def heap_hole_down(heap: int, at: int, size: int) -> int:
    """Move the hole at `at` down to a leaf, lifting its earliest child at each level; return where it ended. O(log n).

    Bottom-up (Wegener 1993): the last entry, which will fill the hole, nearly always belongs near a leaf, so comparing
    it on the way down would be wasted; `heap_up` from the leaf corrects the rest.
    """
    while True:
        child = (at << 2) + 1
        if child >= size:
            return at
        first = heap_first_child(heap, child, size)
        entry = heap + (first << 4)
        heap_place(heap, at, get(entry), get(entry + 8))
        at = first


@inlined
def heap_remove(timers: int, at: int) -> None:
    """Remove entry `at`; there must be one. The last entry takes its place, wherever it belongs. O(log n)."""
    heap = get(timers + TIMERS.HEAP)
    size = get(timers + TIMERS.SIZE) - 1
    store(timers + TIMERS.SIZE, size)
    if size > at:
        deadline, order = get(heap + (size << 4)), get(heap + (size << 4) + 8)
        heap_up(heap, heap_hole_down(heap, at, size), deadline, order)


@inlined
def heap_pop(timers: int) -> None:
    """Remove the first entry; there must be one. O(log n)."""
    heap_remove(timers, 0)


@helper
def heap_bytes(capacity: int) -> int:
    """The size of a block with room for `capacity` entries, wherever its first line begins (`heap_base`)."""
    return (capacity << 4) + 128


@helper
def heap_pages(timers: int, capacity: int) -> int:
    """The size of the whole pages in which `capacity` entries lie."""
    page = get(timers + TIMERS.PAGE)
    return (heap_bytes(capacity) + page - 1) & -page


@apart
def heap_resize(timers: int, capacity: int) -> int:
    """Move to a block with room for `capacity` entries, at least as many as there are. Returns 0, or -1 if there is no
    memory, and then nothing has changed.
    """
    block = block_take(heap_bytes(capacity))
    if block == 0:
        return -1
    new, old = heap_base(block), get(timers + TIMERS.HEAP)
    for i in range(2 * get(timers + TIMERS.SIZE)):
        put(new + (i << 3), get(old + (i << 3)))
    block_give(get(timers + TIMERS.HEAP_BLOCK), get(timers + TIMERS.HEAP_BYTES))
    put(timers + TIMERS.HEAP, new)
    put(timers + TIMERS.HEAP_BLOCK, block)
    put(timers + TIMERS.HEAP_BYTES, heap_bytes(capacity))
    put(timers + TIMERS.CAPACITY, capacity)
    return 0


@helper
def heap_end(timers: int) -> bool:
    """Release a portion of the block, if there is one. Whether more is left."""
    if heap_lower(timers):
        return True
    block_give(exchange(timers + TIMERS.HEAP_BLOCK, 0), exchange(timers + TIMERS.HEAP_BYTES, 0))
    return False


@inlined
def heap_reserve(timers: int, count: int) -> int:
    """Make room for `count` more entries. Returns 0, or -1 if there is no memory. Amortised O(1)."""
    needed = get(timers + TIMERS.SIZE) + count
    capacity = get(timers + TIMERS.CAPACITY)
    if needed <= capacity:
        return 0
    return heap_grow(timers, needed)


@apart
def heap_grow(timers: int, needed: int) -> int:
    """Move to a larger block. A large heap gets room for all entries that there can be at once: the system gives pages
    where they are first used, and nothing large is ever copied. Where it refuses that, the block doubles.
    """
    whole = (get(timers + TIMERS.HEAP_BYTES) >> 4) - 8
    if needed <= whole:  # `heap_lower` has given back the pages behind `CAPACITY`; they come back as they are used
        put(timers + TIMERS.CAPACITY, whole)
        return 0
    doubled = max(needed, 2 * get(timers + TIMERS.CAPACITY), SMALL_HEAP)
    if doubled > LARGE_HEAP and needed <= MOST and heap_resize(timers, MOST) == 0:
        return 0
    return heap_resize(timers, doubled)


@helper
def heap_lower(timers: int) -> bool:
    """Give back the pages of the last `PORTION` entries of a large block's capacity; none may be in use. Whether the
    block was large.

    The system takes 5 ms to release the 64 MiB of four million timers in one piece. The block keeps its addresses, so
    that a heap that grows meanwhile need not be copied.
    """
    capacity = get(timers + TIMERS.CAPACITY)
    if capacity <= LARGE_HEAP:
        return False
    lower = max(LARGE_HEAP, capacity - PORTION)
    first = heap_pages(timers, lower)
    map_empty(get(timers + TIMERS.HEAP_BLOCK) + first, heap_pages(timers, capacity) - first)
    put(timers + TIMERS.CAPACITY, lower)
    return True


@helper
def heap_trim(timers: int) -> bool:
    """Shrink a large block that is hardly used any more: give back its pages, a portion in each call, then copy at most
    2,048 entries into a smaller one. Whether more is left to do. Called before a sleep.
    """
    capacity, size = get(timers + TIMERS.CAPACITY), get(timers + TIMERS.SIZE)
    if capacity < 64 * SMALL_HEAP or 8 * size >= min(capacity, LARGE_HEAP):
        return False
    if heap_lower(timers):
        return True
    heap_resize(timers, max(SMALL_HEAP, 2 * size))
    return False


@helper
def heap_base(address: int) -> int:
    """The address of entry 0 in a block: entry 1 then begins a 64-byte line."""
    return ((address + 63) & ~63) + 48


@inlined
def heap_insert(timers: int, deadline: int, order: int) -> None:
    """Add an entry; `heap_reserve` has made room. O(log n), on average O(1)."""
    size = get(timers + TIMERS.SIZE)
    store(timers + TIMERS.SIZE, size + 1)
    heap_up(get(timers + TIMERS.HEAP), size, deadline, order)
