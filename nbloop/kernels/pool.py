"""The chunk pool: memory for queues that follows the backlog.

Chunks (``chunk_size`` cells of 8 bytes, all zero when free) are numbered; 64 consecutive numbers are one *slab*, a
numpy array made when the stack of free chunks is empty. All queues of a loop share one pool, which they visit once
per chunk, not per task. Idea: a number says both where the chunk is (slab table + offset) and where it waits
(stack.py), so nothing is ever searched.

Invariants: a free chunk is zero; a chunk is in the stack, or in one directory entry of one queue, never both; a
slab's array is referenced by exactly its entry in ``slab_objects``.

`pool_trim` gives memory back: it empties the stack, and a slab all of whose 64 chunks came out of it is released. It
runs on the loop thread before a sleep, when more than `KEEP_CHUNKS` are free, so a loop under load never pays for it.
It loses when a backlog leaves one chunk in use in every slab: then nothing can be released until those drain.
"""

from __future__ import annotations

from .atomics import fetch_add, get, load, put, store
from .capi import Py_DecRef, PyErr_Clear, PyLong_FromLongLong, PyObject_CallNoArgs, PyObject_CallOneArg
from .kernel import data, helper, inlined
from .layout import (
    CHUNKS_PER_SLAB_BITS,
    P_AS_ARRAY,
    P_CHUNK_BYTES,
    P_FREE,
    P_FREE_CHUNKS,
    P_FREE_SLABS,
    P_MAKE_SLAB,
    P_NEXT,
    P_SLAB_COUNT,
    P_SLAB_LIMIT,
    P_SLAB_NEXT,
    P_SLAB_OBJECTS,
    P_SLABS,
)
from .stack import stack_pop, stack_push

PER_SLAB = 1 << CHUNKS_PER_SLAB_BITS
KEEP_CHUNKS = 8 * PER_SLAB  # half a megabyte at the default chunk size: 65,536 tasks in a burst without a new array


@helper
def words_array(make_array: int, words: int) -> int:
    """A new array of `words` words, zeroed if `make_array` does that, an owned reference; 0 if there is no memory (no
    exception is left set).
    """
    number = PyLong_FromLongLong(words)
    if number == 0:
        PyErr_Clear()
        return 0
    array = PyObject_CallOneArg(make_array, number)
    Py_DecRef(number)
    if array == 0:
        PyErr_Clear()
    return array


@inlined
def pool_address(pool: int, chunk: int) -> int:
    """Where a chunk's cells are. `chunk` must be the caller's, or in a queue whose consumer the caller is."""
    slab = load(get(pool + P_SLABS) + ((chunk >> CHUNKS_PER_SLAB_BITS) << 3))
    return slab + (chunk & (PER_SLAB - 1)) * get(pool + P_CHUNK_BYTES)


@helper
def pool_take(pool: int) -> int:
    """A free chunk's number, or -1 if there is no memory for more (no exception is left set). Any thread; O(1)."""
    chunk = stack_pop(pool + P_FREE, get(pool + P_NEXT))
    if chunk >= 0:
        fetch_add(pool + P_FREE_CHUNKS, -1)
        return chunk
    # The C functions behind these hooks run no Python code: no signal handler, no callback can enter in the middle.
    array = 0
    buffer = PyObject_CallNoArgs(get(pool + P_MAKE_SLAB))
    if buffer != 0:
        array = PyObject_CallOneArg(get(pool + P_AS_ARRAY), buffer)
        Py_DecRef(buffer)
    if array == 0:
        PyErr_Clear()  # the caller says what could not be stored; that memory was short is all this would add
        return -1
    slab = stack_pop(pool + P_FREE_SLABS, get(pool + P_SLAB_NEXT))
    if slab < 0:
        slab = fetch_add(pool + P_SLAB_COUNT, 1)
        if slab >= get(pool + P_SLAB_LIMIT):
            fetch_add(pool + P_SLAB_COUNT, -1)
            Py_DecRef(array)
            return -1
    put(get(pool + P_SLAB_OBJECTS) + (slab << 3), array)
    store(get(pool + P_SLABS) + (slab << 3), (data(array) + 63) & ~63)
    first = slab << CHUNKS_PER_SLAB_BITS
    table = get(pool + P_NEXT)
    for chunk in range(first + 1, first + PER_SLAB - 1):
        store(table + (chunk << 3), chunk + 2)  # links are index + 1
    fetch_add(pool + P_FREE_CHUNKS, PER_SLAB - 1)
    stack_push(pool + P_FREE, table, first + 1, first + PER_SLAB - 1)
    return first


@helper
def pool_give(pool: int, chunk: int) -> None:
    """Put back a chunk whose cells are all zero. Any thread; O(1)."""
    fetch_add(pool + P_FREE_CHUNKS, 1)
    stack_push(pool + P_FREE, get(pool + P_NEXT), chunk, chunk)


@helper
def pool_trim(pool: int) -> int:
    """Release the slabs that are wholly free, all but `KEEP_CHUNKS`. Loop thread; O(free chunks). How many were
    released.

    It needs no memory of its own: chunks out of the stack are chained through their own links, and a slab's free
    chunks are counted in the slab's link, which means something only while the slab's number is unused.
    """
    table = get(pool + P_NEXT)
    taken = -1  # numbers taken out, chained through the table
    while True:
        chunk = stack_pop(pool + P_FREE, table)
        if chunk < 0:
            break
        fetch_add(pool + P_FREE_CHUNKS, -1)
        store(table + (chunk << 3), taken)
        taken = chunk
    counts = get(pool + P_SLAB_NEXT)
    chunk = taken
    while chunk >= 0:
        at = counts + ((chunk >> CHUNKS_PER_SLAB_BITS) << 3)
        store(at, 0)  # not `put`: a stack_pop that is late may read the link, before its swap fails
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
            store(counts + (slab << 3), -1)  # condemned: its other chunks are skipped, and it goes with the first
            array = get(get(pool + P_SLAB_OBJECTS) + (slab << 3))
            put(get(pool + P_SLAB_OBJECTS) + (slab << 3), 0)
            store(get(pool + P_SLABS) + (slab << 3), 0)
            Py_DecRef(array)
            released += 1
        chunk = below
    # Only now may the numbers of released slabs be used again: their chunks are all accounted for.
    if released:
        # `slab_count` is above the limit for as long as a taker finds out that there is no number left.
        for slab in range(min(load(pool + P_SLAB_COUNT), get(pool + P_SLAB_LIMIT))):
            if get(counts + (slab << 3)) == -1:
                stack_push(pool + P_FREE_SLABS, counts, slab, slab)
    return released
