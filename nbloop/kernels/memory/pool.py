"""The chunk pool: memory for queues that grows and shrinks with the backlog.

Chunks (``chunk_size`` cells of 8 bytes, all zero when free) are numbered; 64 consecutive numbers form a *slab*, a
memory mapping (system.py) that is made when the stack of free chunks is empty. All queues of a loop share one pool,
which they visit once per chunk, not once per task. Idea: a number says both where the chunk lies (slab table + offset)
and where it waits (stack.py), so nothing is ever searched.

Invariants: a free chunk is zero; a chunk is in the stack or in one directory entry of one queue, never both; only a
slab's entry in ``slabs`` refers to its mapping.

`pool_trim` gives memory back: it empties the stack, and releases each slab all of whose 64 chunks came out of it. It
runs on the loop thread before a sleep, when more than `KEEP_CHUNKS` are free, so a loop under load never pays for it.
It loses when a backlog leaves one chunk in use in every slab: then nothing can be released until those drain.
"""

from __future__ import annotations

from ..base.atomics import exchange, fetch_add, get, load, store
from ..base.kernel import helper, inlined
from ..base.layout import CHUNKS_PER_SLAB_BITS, POOL
from .stack import stack_pop, stack_push
from .system import map_give, map_take

PER_SLAB = 1 << CHUNKS_PER_SLAB_BITS
KEEP_CHUNKS = 8 * PER_SLAB  # half a megabyte at the default chunk size: a burst of 65,536 tasks without a new mapping


@inlined
def pool_address(pool: int, chunk: int) -> int:
    """The address of a chunk's cells. The caller must own the chunk, or be the consumer of the queue that holds it."""
    slab = load(get(pool + POOL.SLABS) + ((chunk >> CHUNKS_PER_SLAB_BITS) << 3))
    return slab + (chunk & (PER_SLAB - 1)) * get(pool + POOL.CHUNK_BYTES)


@helper
def pool_take(pool: int) -> int:
    """Take a free chunk; return its number, or -1 if there is no memory. Any thread; O(1)."""
    chunk = stack_pop(pool + POOL.FREE, get(pool + POOL.NEXT))
    if chunk >= 0:
        fetch_add(pool + POOL.FREE_CHUNKS, -1)
        return chunk
    size = get(pool + POOL.CHUNK_BYTES) << CHUNKS_PER_SLAB_BITS
    made = map_take(size)
    if made == 0:
        return -1
    slab = stack_pop(pool + POOL.FREE_SLABS, get(pool + POOL.SLAB_NEXT))
    if slab < 0:
        slab = fetch_add(pool + POOL.SLAB_COUNT, 1)
        if slab >= get(pool + POOL.SLAB_LIMIT):
            fetch_add(pool + POOL.SLAB_COUNT, -1)
            map_give(made, size)
            return -1
    store(get(pool + POOL.SLABS) + (slab << 3), made)
    first = slab << CHUNKS_PER_SLAB_BITS
    table = get(pool + POOL.NEXT)
    for chunk in range(first + 1, first + PER_SLAB - 1):
        store(table + (chunk << 3), chunk + 2)  # links are index + 1
    fetch_add(pool + POOL.FREE_CHUNKS, PER_SLAB - 1)
    stack_push(pool + POOL.FREE, table, first + 1, first + PER_SLAB - 1)
    return first


@helper
def pool_give(pool: int, chunk: int) -> None:
    """Put back a chunk whose cells are all zero. Any thread; O(1)."""
    fetch_add(pool + POOL.FREE_CHUNKS, 1)
    stack_push(pool + POOL.FREE, get(pool + POOL.NEXT), chunk, chunk)


@helper
def slab_give(pool: int, slab: int) -> None:
    """Release a slab's memory, if it has any. None of its chunks may be in use."""
    at = get(pool + POOL.SLABS) + (slab << 3)
    made = get(at)
    store(at, 0)
    map_give(made, get(pool + POOL.CHUNK_BYTES) << CHUNKS_PER_SLAB_BITS)


@helper
def pool_end(pool: int) -> None:
    """Release every slab. The pool must no longer be in use."""
    slabs = exchange(pool + POOL.SLAB_COUNT, 0)
    store(pool + POOL.FREE, 0)
    store(pool + POOL.FREE_SLABS, 0)
    for slab in range(slabs):
        slab_give(pool, slab)


@helper
def pool_trim(pool: int) -> int:
    """Release the completely free slabs, but keep `KEEP_CHUNKS`; return how many were released. Loop thread; O(free
    chunks).

    It needs no extra memory: chunks popped from the stack are chained through their own links, and a slab's free
    chunks are counted in the slab's link, which is otherwise used only while the slab's number is free.
    """
    table = get(pool + POOL.NEXT)
    taken = -1  # numbers taken out, chained through the table
    while True:
        chunk = stack_pop(pool + POOL.FREE, table)
        if chunk < 0:
            break
        fetch_add(pool + POOL.FREE_CHUNKS, -1)
        store(table + (chunk << 3), taken)
        taken = chunk
    counts = get(pool + POOL.SLAB_NEXT)
    chunk = taken
    while chunk >= 0:
        at = counts + ((chunk >> CHUNKS_PER_SLAB_BITS) << 3)
        store(at, 0)  # not `put`: a delayed stack_pop may read the link before its swap fails
        chunk = load(table + (chunk << 3))
    chunk = taken
    while chunk >= 0:
        at = counts + ((chunk >> CHUNKS_PER_SLAB_BITS) << 3)
        store(at, get(at) + 1)
        chunk = load(table + (chunk << 3))
    released = kept = 0
    chunk = taken
    while chunk >= 0:
        below = load(table + (chunk << 3))
        slab = chunk >> CHUNKS_PER_SLAB_BITS
        count = get(counts + (slab << 3))
        if count == PER_SLAB and kept < KEEP_CHUNKS // PER_SLAB:
            kept += 1
            store(counts + (slab << 3), 0)
            count = 0
        if count < PER_SLAB and count >= 0:
            pool_give(pool, chunk)
        elif count == PER_SLAB:
            store(counts + (slab << 3), -1)  # condemned: released at its first chunk, and its other chunks are skipped
            slab_give(pool, slab)
            released += 1
        chunk = below
    # Only now may the numbers of released slabs be used again: their chunks are all accounted for.
    if released:
        # `slab_count` briefly exceeds the limit while a `pool_take` finds that no number is left.
        for slab in range(min(load(pool + POOL.SLAB_COUNT), get(pool + POOL.SLAB_LIMIT))):
            if get(counts + (slab << 3)) == -1:
                stack_push(pool + POOL.FREE_SLABS, counts, slab, slab)
    return released
