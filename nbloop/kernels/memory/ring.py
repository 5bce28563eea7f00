"""A growable ring of words with one owner: microtasks, next-ticks, immediates, close callbacks, internal tasks.

Everything here belongs to the loop thread (other threads' microtasks come through the remote queue), so it is the
plain textbook ring: power-of-two cells, head and tail that only grow. Growth doubles the block of cells; `ring_trim`
releases a large empty one before a sleep. It loses against a deque only while growing, which copies: amortised O(1).

Invariants: head <= tail <= head + mask + 1; the content of cells outside [head, tail) is meaningless.
"""

from __future__ import annotations

from ..base.atomics import exchange, get, load, put, store
from ..base.kernel import apart, helper, inlined
from ..base.layout import RING
from .system import block_give, block_take

SMALL = 1024  # cells that an empty ring keeps


@inlined
def ring_length(ring: int) -> int:
    """The number of waiting words. Owner."""
    return get(ring + RING.TAIL) - get(ring + RING.HEAD)


@helper
def ring_waiting(ring: int) -> int:
    """`ring_length`, as any thread sees it: a moment old."""
    head = load(ring + RING.HEAD)  # before the tail, which is never behind it
    return load(ring + RING.TAIL) - head


@helper
def ring_seen(ring: int) -> bool:
    """Whether anything waits. Any thread, which may see a slightly old state: both words are release-stored."""
    return load(ring + RING.TAIL) != load(ring + RING.HEAD)


@inlined
def ring_push(ring: int, word: int) -> int:
    """Append a word. Returns 0, or -1 if the ring is full and there is no memory for more. Owner; amortised O(1)."""
    tail = get(ring + RING.TAIL)
    if tail - get(ring + RING.HEAD) > get(ring + RING.MASK) and ring_resize(ring, 2 * (get(ring + RING.MASK) + 1)) < 0:
        return -1
    put(get(ring + RING.CELLS) + ((tail & get(ring + RING.MASK)) << 3), word)
    store(ring + RING.TAIL, tail + 1)
    return 0


@inlined
def ring_pop(ring: int) -> int:
    """Take the oldest word; the ring must not be empty. Owner; O(1)."""
    head = get(ring + RING.HEAD)
    word = get(get(ring + RING.CELLS) + ((head & get(ring + RING.MASK)) << 3))
    store(ring + RING.HEAD, head + 1)
    return word


@apart
def ring_resize(ring: int, cells: int) -> int:
    """Move to a block of `cells` words, a power of two no smaller than the length. Returns 0, or -1 if there is no
    memory, and then nothing has changed. Owner.
    """
    new = block_take(cells << 3)
    if new == 0:
        return -1
    at = get(ring + RING.HEAD)
    old, old_mask = get(ring + RING.CELLS), get(ring + RING.MASK)
    while at < get(ring + RING.TAIL):
        put(new + ((at & (cells - 1)) << 3), get(old + ((at & old_mask) << 3)))
        at += 1
    put(ring + RING.CELLS, new)
    put(ring + RING.MASK, cells - 1)
    block_give(old, (old_mask + 1) << 3)
    return 0


@helper
def ring_trim(ring: int) -> None:
    """Shrink an empty ring that a burst left large. Owner, before a sleep."""
    if get(ring + RING.MASK) >= 16 * SMALL and ring_length(ring) == 0:
        ring_resize(ring, SMALL)


@helper
def ring_open(ring: int) -> int:
    """Give a zeroed ring its first cells. Returns 0, or -1 if there is no memory."""
    cells = block_take(SMALL << 3)
    if cells == 0:
        return -1
    put(ring + RING.CELLS, cells)
    put(ring + RING.MASK, SMALL - 1)
    return 0


@helper
def ring_end(ring: int) -> None:
    """Release the cells, if there are any. The ring must no longer be in use."""
    block_give(exchange(ring + RING.CELLS, 0), (get(ring + RING.MASK) + 1) << 3)
