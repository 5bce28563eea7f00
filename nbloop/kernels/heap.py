"""A 4-ary heap of (deadline, order) with positions, so that cancelling is a real removal.

Why four children: they are one 64-byte line (entry 1 is line-aligned), so a level costs one miss, and there are half
as many levels as in a binary heap. Why a table of positions and not one inside each slot: a sift writes one position
a level, and 8-byte entries of one table share lines where 64-byte slots would each miss. Belongs to the loop thread
alone: plain loads and stores.

``order`` is ``sequence << SLOT_BITS | slot``: equal deadlines fire in scheduling order, and the entry names its slot.
Invariants: a parent is not after its children; positions[slot of entry i] == i; -1 for a slot that has no entry.
Loses against a timing wheel for a million timers of which nearly all are cancelled: O(log n) against O(1).
"""

from __future__ import annotations

from .atomics import get, put, store
from .capi import Py_DecRef
from .kernel import data, helper
from .layout import (
    SLOT_LIMIT,
    T_CAPACITY,
    T_HEAP,
    T_HEAP_ARRAY,
    T_POSITIONS,
    T_POSITIONS_ARRAY,
    T_POSITIONS_CAPACITY,
    T_SIZE,
)
from .pool import words_array


@helper
def heap_place(timers: int, at: int, deadline: int, order: int) -> None:
    """Write entry `at` and the position of its slot."""
    entry = get(timers + T_HEAP) + (at << 4)
    put(entry, deadline)
    put(entry + 8, order)
    put(get(timers + T_POSITIONS) + ((order & (SLOT_LIMIT - 1)) << 3), at)


@helper
def heap_up(timers: int, at: int, deadline: int, order: int) -> None:
    """Fill the hole at `at` with an entry that may belong nearer the root. O(log n)."""
    heap = get(timers + T_HEAP)
    while at > 0:
        parent = (at - 1) >> 2
        entry = heap + (parent << 4)
        over = get(entry)
        if over < deadline:
            break
        over_order = get(entry + 8)
        if over == deadline and over_order < order:
            break
        heap_place(timers, at, over, over_order)
        at = parent
    heap_place(timers, at, deadline, order)


@helper
def heap_before(deadline: int, order: int, other: int, other_order: int) -> bool:
    """Is the first entry before the second? Without a branch: which child is first can not be predicted, and a wrong
    guess costs 5 ns.
    """
    return (deadline < other) | ((deadline == other) & (order < other_order))


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
def heap_hole_down(timers: int, at: int) -> int:
    """Move the hole at `at` to a leaf, each time lifting its first child in order; where it ended. O(log n).

    Bottom-up (Wegener 1993): the last entry, which will fill the hole, nearly always belongs near a leaf, so
    comparing it on the way down would be wasted; `heap_up` from the leaf corrects the rest.
    """
    heap = get(timers + T_HEAP)
    size = get(timers + T_SIZE)
    while True:
        child = (at << 2) + 1
        if child >= size:
            return at
        first = heap_first_child(heap, child, size)
        entry = heap + (first << 4)
        heap_place(timers, at, get(entry), get(entry + 8))
        at = first


@helper
def heap_remove(timers: int, at: int) -> None:
    """Take out entry `at`. O(log n)."""
    heap = get(timers + T_HEAP)
    put(get(timers + T_POSITIONS) + ((get(heap + (at << 4) + 8) & (SLOT_LIMIT - 1)) << 3), -1)
    size = get(timers + T_SIZE) - 1
    store(timers + T_SIZE, size)
    if at < size:
        deadline, order = get(heap + (size << 4)), get(heap + (size << 4) + 8)
        hole = heap_hole_down(timers, at)
        heap_up(timers, hole, deadline, order)


@helper
def heap_reserve(timers: int, make_array: int, slot: int) -> int:
    """Make room for one more entry, and for `slot` in the positions. 0, or -1 for no memory. Amortised O(1)."""
    capacity = get(timers + T_POSITIONS_CAPACITY)
    if slot >= capacity:
        larger = max(2 * capacity, slot + 1024)
        array = words_array(make_array, larger)
        if array == 0:
            return -1
        new, old = data(array), get(timers + T_POSITIONS)
        for i in range(capacity):
            put(new + (i << 3), get(old + (i << 3)))
        for i in range(capacity, larger):
            put(new + (i << 3), -1)
        old_array = get(timers + T_POSITIONS_ARRAY)
        put(timers + T_POSITIONS, new)
        put(timers + T_POSITIONS_ARRAY, array)
        put(timers + T_POSITIONS_CAPACITY, larger)
        Py_DecRef(old_array)
    size = get(timers + T_SIZE)
    if size == get(timers + T_CAPACITY):
        array = words_array(make_array, 4 * size + 16)
        if array == 0:
            return -1
        new, old = heap_base(data(array)), get(timers + T_HEAP)
        for i in range(2 * size):
            put(new + (i << 3), get(old + (i << 3)))
        old_array = get(timers + T_HEAP_ARRAY)
        put(timers + T_HEAP, new)
        put(timers + T_HEAP_ARRAY, array)
        put(timers + T_CAPACITY, 2 * size)
        Py_DecRef(old_array)
    return 0


@helper
def heap_base(address: int) -> int:
    """Where entry 0 goes in an array, so that entry 1 begins a 64-byte line. The array needs 14 words more than its
    entries.
    """
    return ((address + 63) & ~63) + 48


@helper
def heap_insert(timers: int, slot: int, deadline: int, sequence_order: int) -> None:
    """Add an entry; `heap_reserve` has made room. O(log n)."""
    size = get(timers + T_SIZE)
    store(timers + T_SIZE, size + 1)
    heap_up(timers, size, deadline, sequence_order | slot)
