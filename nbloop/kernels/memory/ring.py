"""A ring: a growable queue of words with one owner. Microtasks, next-ticks, immediates, close callbacks and internal
tasks wait in rings.

Everything here belongs to the loop thread (other threads' microtasks come through the remote queue), so only the counts
need atomics. Problem: a ring that doubles copies all that waits in one piece; with ten million entries that held up a
stop of the world for 0.2 s. Idea: a chain of blocks. A push at the end of the last block takes another one, and a pop
at the end of the first gives it back, so both are O(1) whatever waits. The words that link a block lie behind its last
cell.

A short ring uses blocks of 8 KiB, of which it keeps one spare: it alternates between two. A backlog takes blocks of
64 KiB, which are mappings and go back to the system as they drain. An array used as a ring would save each pop a
comparison.

Invariants: cells from ``head_at`` in the first block to ``tail_at`` in the last one hold the words number ``head`` to
``tail``; the content of all others is meaningless. A ring without blocks is all zeros except the two counts, and a new
ring is all zeros. An empty one has at most one block, besides the spare.
"""

from __future__ import annotations

from ..base.atomics import exchange, get, load, put, store
from ..base.kernel import apart, helper, inlined
from ..base.layout import RING
from .system import block_give, block_take

SMALL = 1 << 13  # bytes of a block
LARGE = 1 << 16  # of a block, while at least a small one's worth of words waits: the smallest that is a mapping
LINK = 16  # bytes at the end of a block: the end of the next block's cells, or 0; the address of this block


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
    """Append a word. Returns 0, or -1 if the last block is full and there is no memory for another. Owner; O(1)."""
    at = get(ring + RING.TAIL_AT)
    if at == get(ring + RING.TAIL_END):
        at = ring_grow(ring)
        if at == 0:
            return -1
    put(at, word)
    put(ring + RING.TAIL_AT, at + 8)
    store(ring + RING.TAIL, get(ring + RING.TAIL) + 1)
    return 0


@inlined
def ring_pop(ring: int) -> int:
    """Take the oldest word; the ring must not be empty. Owner; O(1)."""
    at = get(ring + RING.HEAD_AT)
    if at == get(ring + RING.HEAD_END):
        at = ring_cross(ring)
    put(ring + RING.HEAD_AT, at + 8)
    store(ring + RING.HEAD, get(ring + RING.HEAD) + 1)
    return get(at)


@apart
def ring_grow(ring: int) -> int:
    """Add a block. Returns the address of its first cell, or 0 if there is no memory, and then nothing has changed."""
    end = get(ring + RING.SPARE)
    if end == 0:
        size = SMALL if ring_length(ring) < SMALL >> 3 else LARGE
        start = block_take(size)
        if start == 0:
            return 0
        end = start + size - LINK
        put(end + 8, start)
    put(ring + RING.SPARE, 0)
    put(end, 0)
    last = get(ring + RING.TAIL_END)
    if last == 0:
        put(ring + RING.HEAD_AT, get(end + 8))
        put(ring + RING.HEAD_END, end)
    else:
        put(last, end)
    put(ring + RING.TAIL_END, end)
    return get(end + 8)


@apart
def ring_cross(ring: int) -> int:
    """Give up the first block, all of whose words were popped. Returns the address of the next one's first cell."""
    end = get(ring + RING.HEAD_END)
    following = get(end)
    put(ring + RING.HEAD_END, following)
    if get(ring + RING.SPARE) == 0 and end + LINK - get(end + 8) == SMALL:
        put(ring + RING.SPARE, end)
    else:
        block_end(end)
    return get(following + 8)


@helper
def block_end(end: int) -> None:
    """Release the block whose cells end at `end`."""
    start = get(end + 8)
    block_give(start, end + LINK - start)


@helper
def ring_trim(ring: int) -> None:
    """Release the large block of an empty ring. Owner, before a sleep."""
    end = get(ring + RING.TAIL_END)
    if end != 0 and ring_length(ring) == 0 and end + LINK - get(end + 8) > SMALL:
        put(ring + RING.HEAD_AT, 0)
        put(ring + RING.HEAD_END, 0)
        put(ring + RING.TAIL_AT, 0)
        put(ring + RING.TAIL_END, 0)
        block_end(end)


@helper
def ring_end(ring: int) -> None:
    """Release all blocks. The ring must no longer be in use."""
    end = exchange(ring + RING.HEAD_END, 0)
    while end != 0:
        following = get(end)
        block_end(end)
        end = following
    spare = exchange(ring + RING.SPARE, 0)
    if spare != 0:
        block_end(spare)
