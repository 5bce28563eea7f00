"""Large batches that block nobody: iterables are read in parts, and a batch of tasks is filled before it is published.

Problem: one call may get ten million callables, which is 100 ms of work. A kernel that did it in one piece would delay,
for that long, every thread that wants to stop the world and every signal handler. Idea: parts of `PART` items, some
20 µs each, with an interrupt check between two, in which the interpreter does its pending work. An interrupt check can
raise, like any line of Python, and run Python code; so everything must be consistent there. Items already taken from
the iterable lie in chunks of the pool that no other thread knows, until `queue_publish` adds all of them to the queue
in one step, or they are released.

Even reading must not take long. Copying a list of ten million takes 100 ms in CPython, so lists and tuples are read in
slices; changes that another thread makes meanwhile are seen or missed, as in a loop over the list. Other iterables are
asked for each item.

Invariant: a list whose references are moved out of it was never visible to other code, and no Python runs before it is
gone, because `gc.get_objects` would expose its empty places.
"""

from __future__ import annotations

from ..base.atomics import get, load, put, store
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyErr_GetRaisedException,
    PyErr_Occurred,
    PyErr_SetRaisedException,
    PyIter_Next,
    PyList_Append,
    PyList_New,
    PyObject_GetIter,
    PySequence_GetSlice,
    PySequence_List,
)
from ..base.interpreter import LIST_ITEMS, OBJECT_TYPE, SEQUENCE_SIZE, TYPE_CALL
from ..base.kernel import apart, helper
from ..base.layout import FILLER, POINTER_MASK, POOL, QUEUE, REFUSED_CALLABLE, REFUSED_MEMORY, STAMPED_EIGHTH, STATE
from ..base.refusal import refuse
from ..calls.captured import pack_captured
from ..calls.invoke import breathe_on, call_hook
from ..ingress.ticket_queue import queue_cell, queue_closed, queue_publish, queue_push_many
from ..memory.pool import pool_address, pool_give, pool_take
from ..memory.system import block_give, block_take
from ..observe.meter import clock

PART = 1024  # items between two interrupt checks
CHECK_EVERY = 64  # items from an iterator between two interrupt checks: it may be slow and run no bytecode
SMALL = 4096  # so few tasks are not worth the fillers of a large batch, which take up to two segments
PACE = 7  # tickets divisible by 8 are stamped in a large batch, as meter.py does under a backlog


@helper
def items_source(base: int, iterable: int) -> int:
    """The object that `items_next` reads: a list or tuple itself, else an iterator of the iterable. A new reference, or
    0 with an exception set.
    """
    kind = get(iterable + OBJECT_TYPE)
    if kind == get(base + STATE.LIST_TYPE) or kind == get(base + STATE.TUPLE_TYPE):
        Py_IncRef(iterable)
        return iterable
    return PyObject_GetIter(iterable)


@helper
def items_next(base: int, source: int, at: int, most: int) -> int:
    """The next `most` items, or fewer at the end, as a list that no other code can see; `at` is the number of items
    read before. 0 with an exception set.
    """
    kind = get(source + OBJECT_TYPE)
    if kind == get(base + STATE.LIST_TYPE):
        return PySequence_GetSlice(source, at, at + most)
    if kind == get(base + STATE.TUPLE_TYPE):
        found = PySequence_GetSlice(source, at, at + most)
        items = PySequence_List(found) if found != 0 else 0
    else:
        found = items_gathered(base, source, most)
        # Other code may have seen `found`, and made it longer.
        items = PySequence_GetSlice(found, 0, most) if found != 0 else 0
    if found != 0:
        Py_DecRef(found)
    return items


@apart
def items_gathered(base: int, iterator: int, most: int) -> int:
    """The next `most` items of an iterator, or fewer at its end, in a list; 0 with an exception set."""
    found = PyList_New(0)
    if found == 0:
        return 0
    for n in range(1, most + 1):
        item = PyIter_Next(iterator)
        if item == 0:
            if PyErr_Occurred() == 0:
                return found
            break
        status = PyList_Append(found, item)
        Py_DecRef(item)
        if status != 0 or (n & (CHECK_EVERY - 1) == 0 and call_hook(get(base + STATE.CHECK_INTERRUPTS)) != 0):
            break
        if n == most:
            return found
    Py_DecRef(found)
    return 0


@helper
def all_callable(base: int, items: int) -> bool:
    """Whether all items of a list are callable. If not, an exception is set that names the first that is not."""
    count = get(items + SEQUENCE_SIZE)
    first = get(items + LIST_ITEMS)
    for i in range(count):
        item = get(first + (i << 3))
        if get(get(item + OBJECT_TYPE) + TYPE_CALL) == 0:
            refuse(base, REFUSED_CALLABLE, item)
            return False
    return True


@helper
def send_many(base: int, queue: int, iterable: int, captured: bool) -> int:
    """Push every callable of an iterable under consecutive tickets. Returns their number, or -1 with an exception set,
    and then nothing was stored. If `captured`, each runs in a copy of the current context.
    """
    most = max(SMALL, 8 << get(queue + QUEUE.SHIFT))
    kind = get(iterable + OBJECT_TYPE)
    if (kind == get(base + STATE.LIST_TYPE) or kind == get(base + STATE.TUPLE_TYPE)) and load(
        iterable + SEQUENCE_SIZE
    ) <= most:
        items = PySequence_List(iterable)
        return send_few(base, queue, items, iterable, captured) if items != 0 else -1
    return send_parts(base, queue, iterable, most, captured)


@helper
def send_few(base: int, queue: int, items: int, culprit: int, captured: bool) -> int:
    """`send_many` for a list that no other code can see, whose reference it consumes: draw first, then fill."""
    if not all_callable(base, items):
        Py_DecRef(items)
        return -1
    count = get(items + SEQUENCE_SIZE)
    words = get(items + LIST_ITEMS)
    if captured and count > 0:
        words = words_captured(base, words, count)
        if words == 0:
            Py_DecRef(items)
            return -1
    while True:
        status = queue_push_many(queue, words, count) if count > 0 else queue_closed(queue)
        if status == 0 or refuse(base, status, culprit) != 0:
            break
    if captured and count > 0:
        words_release(words, count)
    if status != 0:
        count = -1
    Py_DecRef(items)  # the list's deallocation skips the places of moved references, which are NULL
    return count


@helper
def words_captured(base: int, items: int, count: int) -> int:
    """A block of as many words as there are callables at `items`, each a reference of its own to a callable with a copy
    of the current context. 0 with an exception set. The collector does not see the block, and treats its contents as
    held from outside.
    """
    block = block_take(count << 3)
    if block == 0:
        refuse(base, REFUSED_MEMORY, get(base + STATE.NONE))
        return 0
    for at in range(0, count << 3, 8):
        put(block + at, 0)
    for at in range(0, count << 3, 8):
        word = pack_captured(base, get(items + at), 0, 0)
        if word == 0:
            words_release(block, count)
            return 0
        put(block + at, word)
    return block


@helper
def words_release(block: int, count: int) -> None:
    """Give back a block of words, and release those that have not been moved out of it. An exception that is set stays
    so.
    """
    for at in range(0, count << 3, 8):
        if get(block + at) != 0:
            Py_DecRef(get(block + at) & POINTER_MASK)
    block_give(block, count << 3)


@apart
def send_parts(base: int, queue: int, iterable: int, most: int, captured: bool) -> int:
    """`send_many` for very many items, or for an iterable of unknown length."""
    source = items_source(base, iterable)
    if source == 0:
        return -1
    items = items_next(base, source, 0, most)
    count = -1
    if items != 0:
        if get(items + SEQUENCE_SIZE) < most:
            count = send_few(base, queue, items, iterable, captured)
        else:
            count = send_large(base, queue, source, items, iterable, captured)
    Py_DecRef(source)
    return count


@helper
def send_large(base: int, queue: int, source: int, items: int, culprit: int, captured: bool) -> int:
    """`send_many` for very many items; consumes the reference of `items`, the first of them. Fill first, then draw."""
    pool = get(queue + QUEUE.POOL)
    table = get(pool + POOL.NEXT)
    shift = get(queue + QUEUE.SHIFT)
    first = last = -1  # a chain of chunks through their links
    count = 0
    status = 0
    while status == 0 and items != 0 and get(items + SEQUENCE_SIZE) != 0:
        if not all_callable(base, items):
            break
        length = get(items + SEQUENCE_SIZE)
        words = get(items + LIST_ITEMS)
        if captured:
            words = words_captured(base, words, length)
            if words == 0:
                break
        done = 0
        while done < length:
            if count & ((1 << shift) - 1) == 0:
                chunk = pool_take(pool)
                if chunk < 0:
                    status = REFUSED_MEMORY
                    break
                store(table + (chunk << 3), -1)
                if last < 0:
                    first = chunk
                else:
                    store(table + (last << 3), chunk)
                last = chunk
            fits = min(length - done, (1 << shift) - (count & ((1 << shift) - 1)))
            chunk_fill(queue, pool_address(pool, last), count, words + (done << 3), fits)
            done += fits
            count += fits
        if captured:
            words_release(words, length)
        Py_DecRef(items)
        items = 0
        if status == 0 and call_hook(get(base + STATE.CHECK_INTERRUPTS)) == 0:
            items = items_next(base, source, count, PART)
    failed = items == 0 or get(items + SEQUENCE_SIZE) != 0
    if items != 0:
        Py_DecRef(items)
    if status != 0:
        refuse(base, status, culprit)
    if not failed:
        chunk_ends(pool_address(pool, last), count, shift)
        while True:
            status = queue_publish(queue, first, count)
            if status == 0:
                return count
            if refuse(base, status, culprit) != 0:
                break
    chunks_release(base, queue, first)
    return -1


@helper
def chunk_fill(queue: int, chunk: int, place: int, words: int, count: int) -> None:
    """Move `count` references from an array at `words` to the cells of a chunk that only the caller knows, beginning
    with the cell of ticket `place`.
    """
    shift = get(queue + QUEUE.SHIFT)
    measured = get(queue + QUEUE.MEASURED)
    now = clock(measured) if measured != 0 else 0
    for i in range(count):
        word = get(words + (i << 3))
        put(words + (i << 3), 0)
        cell = queue_cell(chunk, place + i, shift)
        if measured != 0 and (place + i) & PACE == 0:
            put(cell + (8 << shift), now)
            word |= STAMPED_EIGHTH
        put(cell, word)


@helper
def chunk_ends(chunk: int, count: int, shift: int) -> None:
    """Move the words of a batch's last chunk to its end, and fill its beginning with fillers."""
    size = 1 << shift
    used = count & (size - 1)
    if used == 0:
        return
    for back in range(1, size + 1):
        cell = queue_cell(chunk, size - back, shift)
        if back > used:
            put(cell, FILLER)
        else:
            old = queue_cell(chunk, used - back, shift)
            put(cell, get(old))
            if get(old) & STAMPED_EIGHTH != 0:
                put(cell + (8 << shift), get(old + (8 << shift)))


@apart
def chunks_release(base: int, queue: int, chunk: int) -> None:
    """Release the contents and the chunks of a refused batch. An exception is set, and is set again afterwards."""
    pool = get(queue + QUEUE.POOL)
    table = get(pool + POOL.NEXT)
    shift = get(queue + QUEUE.SHIFT)
    error = PyErr_GetRaisedException()
    count = 0
    while chunk >= 0:
        below = load(table + (chunk << 3))
        address = pool_address(pool, chunk)
        for at in range(address, address + (8 << shift), 8):
            word = get(at) & POINTER_MASK
            put(at, 0)
            if word != 0:
                Py_DecRef(word)
        pool_give(pool, chunk)
        chunk = below
        count += 1 << shift
        if count & (PART - 1) == 0:
            error = breathe_on(base, error)
    PyErr_SetRaisedException(error)
