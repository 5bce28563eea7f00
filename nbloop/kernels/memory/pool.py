"""The chunk pool: memory for queues that grows and shrinks with the backlog.

Chunks (``chunk_size`` cells of 8 bytes, all zero when free) are numbered; 64 consecutive numbers form a *slab*, a
memory mapping (system.py) that is made when the stack of free chunks is empty. All queues of a loop share one pool,
which they visit once per chunk, not once per task. Idea: a number says both where the chunk lies (slab table + offset)
and where it waits (stack.py), so nothing is ever searched.

Invariants: a free chunk is zero; a chunk is in one place only: in the stack, in the chain or in a directory entry of
one queue; only a slab's entry in ``slabs`` refers to its mapping. A slab's link in ``slab_next``, while its number is
in use, counts its chunks in the chain; if it was released, the count is negative.

`pool_trim` gives memory back: it empties the stack, and releases each slab all of whose 64 chunks came out of it. It
runs on the loop thread before a sleep, when more than `2 * KEEP_CHUNKS` are free, so a loop under load never pays for
it. After a backlog of ten million tasks it takes 15 ms, so it does `PORTION` chunks in each turn. Chunks that it has
taken out of the stack, and not yet put back, wait in a chain of their own; a thread that needs one gets a new slab.
It loses when a backlog leaves one chunk in use in every slab: then nothing can be released until those drain.
"""

from __future__ import annotations

from ..base.atomics import fetch_add, get, load, put, store
from ..base.kernel import helper, inlined
from ..base.layout import CHUNKS_PER_SLAB_BITS, POOL
from .stack import stack_pop, stack_push
from .system import map_give, map_take

PER_SLAB = 1 << CHUNKS_PER_SLAB_BITS
PORTION = 2048  # chunks that are taken out or put back in one turn, which takes 0.1 ms
RELEASE_BITS = 10  # releasing a slab counts as one of them for each KiB, so that a turn releases at most 2 MiB
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
    store(get(pool + POOL.SLAB_NEXT) + (slab << 3), 0)  # a delayed stack_pop may read it, and its swap then fails
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
def pool_end(pool: int) -> bool:
    """Release a portion of the slabs, the last first. Whether more are left. The pool must no longer be in use."""
    store(pool + POOL.FREE, 0)
    store(pool + POOL.FREE_SLABS, 0)
    put(pool + POOL.TAKING, 0)
    put(pool + POOL.TAKEN, 0)
    slabs = load(pool + POOL.SLAB_COUNT)
    left = PORTION
    while slabs > 0 and left > 0:
        slabs -= 1
        slab_give(pool, slabs)
        left -= (get(pool + POOL.CHUNK_BYTES) << CHUNKS_PER_SLAB_BITS) >> RELEASE_BITS
    store(pool + POOL.SLAB_COUNT, slabs)
    return slabs > 0


@helper
def pool_trim(pool: int) -> bool:
    """Do a portion of the work of releasing the completely free slabs, except `KEEP_CHUNKS`: first it takes chunks out
    of the stack, as many as were free when it began, then it puts them back or releases their slabs. Whether more is
    left to do. Loop thread.

    It needs no extra memory: chunks that were taken out are chained through their own links, and a slab's are counted
    in the slab's link. A released slab's number may be used again once all its chunks are accounted for.
    """
    table = get(pool + POOL.NEXT)
    counts = get(pool + POOL.SLAB_NEXT)
    if get(pool + POOL.TAKING) == 0 and get(pool + POOL.TAKEN) == 0:
        free = load(pool + POOL.FREE_CHUNKS)
        if free <= 2 * KEEP_CHUNKS:
            return False
        put(pool + POOL.TAKING, free)
        put(pool + POOL.KEPT, 0)
    left = PORTION
    while left > 0 and get(pool + POOL.TAKING) != 0:
        chunk = stack_pop(pool + POOL.FREE, table)
        if chunk < 0:
            put(pool + POOL.TAKING, 0)
            break
        fetch_add(pool + POOL.FREE_CHUNKS, -1)
        put(pool + POOL.TAKING, get(pool + POOL.TAKING) - 1)
        left -= 1
        at = counts + ((chunk >> CHUNKS_PER_SLAB_BITS) << 3)
        store(at, get(at) + 1)
        store(table + (chunk << 3), get(pool + POOL.TAKEN))
        put(pool + POOL.TAKEN, chunk + 1)
    while left > 0 and get(pool + POOL.TAKEN) != 0:
        chunk = get(pool + POOL.TAKEN) - 1
        put(pool + POOL.TAKEN, load(table + (chunk << 3)))
        left -= 1
        slab = chunk >> CHUNKS_PER_SLAB_BITS
        at = counts + (slab << 3)
        count = get(at)
        if count == PER_SLAB and get(pool + POOL.KEPT) == KEEP_CHUNKS // PER_SLAB:
            slab_give(pool, slab)
            left -= (get(pool + POOL.CHUNK_BYTES) << CHUNKS_PER_SLAB_BITS) >> RELEASE_BITS
            count = 1 - PER_SLAB
            store(at, count)
        elif count > 0:
            if count == PER_SLAB:
                put(pool + POOL.KEPT, get(pool + POOL.KEPT) + 1)
            store(at, count - 1)
            pool_give(pool, chunk)
        else:
            count += 1
            store(at, count)
            if count == 0:
                stack_push(pool + POOL.FREE_SLABS, counts, slab, slab)
    return get(pool + POOL.TAKING) != 0 or get(pool + POOL.TAKEN) != 0
