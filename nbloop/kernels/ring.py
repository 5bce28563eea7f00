"""A growable ring of words with one owner: microtasks, next-ticks, immediates, close callbacks, internal tasks.

Everything here belongs to the loop thread (other threads' microtasks come through the remote queue), so it is the
plain textbook ring: power-of-two cells, head and tail that only grow. Growth doubles the array; `ring_trim` lets go
of a large empty one before a sleep. Loses against a deque only while growing, which copies: amortised O(1).

Invariants: head <= tail <= head + mask + 1; a cell outside [head, tail) means nothing.
"""

from __future__ import annotations

from .atomics import get, load, put, store
from .capi import Py_DecRef
from .kernel import apart, data, helper, inlined
from .layout import R_ARRAY, R_CELLS, R_HEAD, R_MASK, R_TAIL
from .pool import words_array

SMALL = 1024  # cells that an empty ring keeps


@inlined
def ring_length(ring: int) -> int:
    """How many words wait. Owner."""
    return get(ring + R_TAIL) - get(ring + R_HEAD)


@helper
def ring_seen(ring: int) -> bool:
    """Does anything wait, as any thread sees it: a moment old. Both words are written with release stores."""
    return load(ring + R_TAIL) != load(ring + R_HEAD)


@inlined
def ring_push(ring: int, make_array: int, word: int) -> int:
    """Append. 0, or -1 if it is full and there is no memory for a larger array. Owner; amortised O(1)."""
    tail = get(ring + R_TAIL)
    if (
        tail - get(ring + R_HEAD) > get(ring + R_MASK)
        and ring_resize(ring, make_array, 2 * (get(ring + R_MASK) + 1)) < 0
    ):
        return -1
    put(get(ring + R_CELLS) + ((tail & get(ring + R_MASK)) << 3), word)
    store(ring + R_TAIL, tail + 1)
    return 0


@inlined
def ring_pop(ring: int) -> int:
    """Take the oldest word; the ring must not be empty. Owner; O(1)."""
    head = get(ring + R_HEAD)
    word = get(get(ring + R_CELLS) + ((head & get(ring + R_MASK)) << 3))
    store(ring + R_HEAD, head + 1)
    return word


@apart
def ring_resize(ring: int, make_array: int, cells: int) -> int:
    """Move to an array of `cells` words, a power of two no smaller than the length. 0, or -1 and nothing changed.
    Owner.
    """
    array = words_array(make_array, cells)
    if array == 0:
        return -1
    new = data(array)
    at = get(ring + R_HEAD)
    old, old_mask = get(ring + R_CELLS), get(ring + R_MASK)
    while at < get(ring + R_TAIL):
        put(new + ((at & (cells - 1)) << 3), get(old + ((at & old_mask) << 3)))
        at += 1
    old_array = get(ring + R_ARRAY)
    put(ring + R_CELLS, new)
    put(ring + R_MASK, cells - 1)
    put(ring + R_ARRAY, array)
    Py_DecRef(old_array)
    return 0


@helper
def ring_trim(ring: int, make_array: int) -> None:
    """Shrink an empty ring that a burst has left large. Owner, before a sleep."""
    if get(ring + R_MASK) >= 16 * SMALL and ring_length(ring) == 0:
        ring_resize(ring, make_array, SMALL)
