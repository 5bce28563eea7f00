"""The ticket queue: from any thread to the loop, in one total order, without a lock.

Problem: many threads append, one consumes, and appending must cost one atomic operation, however many threads append.
If the tail is advanced by compare-and-swap, swaps fail and are retried under contention (measured: 30 ns alone, 330 ns
each with two producers). Idea: a *ticket*. One `fetch_add` on the tail gives each producer a cell of its own, and
defines the total order; nobody ever retries. The cells lie in chunks of the pool, found through a directory indexed by
``ticket // chunk_size``; a producer that needs a missing chunk installs it, and losing that race costs a push back to
the pool. (Segments addressed by a fetch-add ticket: Yang and Mellor-Crummey, PPoPP 2016; here with one consumer, so
hazard pointers are unnecessary: a directory entry is cleared only after all its tickets were taken.)

* A cell is one word: an owned, tagged reference, 0 while empty. Publishing is one release store; the consumer writes
  the 0 back.
* Consecutive tickets lie on different 64-byte lines of the chunk, so two producers write to different lines.
* Closing sets the tail's sign bit: tickets drawn after that are negative, so *refused* and *accepted* also have one
  order, and the consumer knows exactly which tickets it owes (`final`). This makes 'returned means it will run' a
  property of one instruction.
* Going to sleep: the consumer announces it, then reads the tail (`load_sc`); a producer draws its ticket
  (`fetch_add`), then reads the sleep word. One of the two sees the other (Dekker), and the producer needs no second
  fence, because the ticket is the fence.

A large batch is filled before its tickets are drawn, not after (`queue_publish`). Between the draw and the last store
the producer may not run any Python: a signal handler that closed the loop would wait for cells that only this thread
can fill. Filling ten million cells would take 80 ms; ten million filled ones lie in 78,125 chunks, and entering those
in the directory takes less than 1 ms. To make this possible, the batch gets whole segments of its own. The cells left
over hold *fillers*, which the consumer steps over: the rest of the segment in which the tail was, and the beginning of
the batch's last segment (not its end: after a filler there is always a task). Fillers count towards no limit and no
figure: ``filled`` of them were drawn, and the consumer has stepped over ``passed``.

Invariants: head <= tail; cell(t) is empty unless head <= t < tail; a directory entry is a chunk number + 1, or empty:
0, or a void mark of another segment. If no chunk is available, the entry becomes the void mark ``~segment``, and *all*
tickets of that segment are refused with MemoryError, so none is half stored. The mark names its segment and is never
cleared, so a producer that arrives long after the consumer has stepped over the segment still sees it.

It loses when a producer is descheduled between ticket and store: the consumer cannot get past it (`stalls` counts
these). And the tail is a single cache line, which producers that submit at the same instant pass around; for that
reason each `producer()` handle has a queue of its own.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, exchange, fetch_add, get, load, load_sc, pause, put, store
from ..base.kernel import apart, helper, inlined
from ..base.layout import (
    BLOCK,
    EXACT,
    FILLER,
    FULL,
    MINUS,
    OPEN,
    POOL,
    QUEUE,
    REFUSED_CLOSED,
    REFUSED_FULL,
    REFUSED_MEMORY,
    STAMPED,
    STAMPED_EIGHTH,
)
from ..memory.pool import pool_address, pool_give, pool_take
from ..observe.event_ring import push_recorded
from ..observe.meter import clock, stamp

SLACK = 256  # unused segments of the directory, so that producers that have passed the gate still find one


@inlined
def queue_cell(chunk: int, ticket: int, shift: int) -> int:
    """The address of a ticket's cell in a chunk of 2**shift cells: consecutive tickets lie on consecutive 64-byte
    lines, wrapping around.
    """
    at = ticket & ((1 << shift) - 1)
    lines_bits = shift - 3  # 8 cells per line
    return chunk + (((at & ((1 << lines_bits) - 1)) << 3 | at >> lines_bits) << 3)


@inlined
def queue_entry(queue: int, ticket: int) -> int:
    """The address of the directory entry of a ticket's segment."""
    segment = ticket >> get(queue + QUEUE.SHIFT)
    return get(queue + QUEUE.DIRECTORY) + ((segment & get(queue + QUEUE.DIRECTORY_MASK)) << 3)


@inlined
def queue_segment(queue: int, ticket: int) -> int:
    """The address of the chunk for a ticket that the caller drew; the first thread to need it installs it. 0 if void.
    Lock-free.
    """
    entry = load(queue_entry(queue, ticket))
    if entry <= 0:
        return queue_install(queue, ticket)
    return pool_address(get(queue + QUEUE.POOL), entry - 1)


@apart
def queue_install(queue: int, ticket: int) -> int:
    """`queue_segment` for the first thread that needs the chunk."""
    at = queue_entry(queue, ticket)
    void = ~(ticket >> get(queue + QUEUE.SHIFT))
    entry = load(at)
    pool = get(queue + QUEUE.POOL)
    if entry <= 0 and entry != void:
        chunk = pool_take(pool)
        new = void if chunk < 0 else chunk + 1
        if compare_and_swap(at, entry, new):
            entry = new
        else:
            fetch_add(queue + QUEUE.RETRIES, 1)
            if chunk >= 0:
                pool_give(pool, chunk)
            entry = load(at)
    if entry == void:
        return 0
    return pool_address(pool, entry - 1)


@inlined
def queue_draw(queue: int, count: int) -> int:
    """Draw `count` consecutive tickets; return the first, or -REFUSED_x if none was drawn. Any thread."""
    shift = get(queue + QUEUE.SHIFT)
    if load(queue + QUEUE.GATE) != OPEN or count > 1 << shift:
        return queue_draw_exactly(queue, count)
    ticket = fetch_add(queue + QUEUE.TAIL, count)
    if ticket < 0:
        return -REFUSED_CLOSED
    if ticket >> shift != (ticket - count) >> shift:  # check once per segment whether the directory is filling up
        backlog = ticket - load(queue + QUEUE.HEAD)
        if (backlog >> shift) > get(queue + QUEUE.DIRECTORY_MASK) + 1 - 2 * SLACK:
            compare_and_swap(queue + QUEUE.GATE, OPEN, FULL)
    return ticket


@apart
def queue_draw_exactly(queue: int, count: int) -> int:
    """`queue_draw` with an exact limit, or when the end of the directory is near, or a batch might reach it: check
    first, then swap.
    """
    while True:
        ticket = load(queue + QUEUE.TAIL)
        if ticket < 0:
            return -REFUSED_CLOSED
        if not queue_has_room(queue, ticket, count, count):
            return -REFUSED_FULL
        if compare_and_swap(queue + QUEUE.TAIL, ticket, ticket + count):
            return ticket
        fetch_add(queue + QUEUE.RETRIES, 1)


@apart
def queue_has_room(queue: int, tail: int, count: int, cells: int) -> bool:
    """Whether there is room for `count` tasks in `cells` cells from `tail` on. If `tail` is still the tail afterwards,
    True is certain: the head only grows, and a filler counts as a task until it is known to be none. Any thread.
    """
    backlog = tail - load(queue + QUEUE.HEAD)
    passed = load(queue + QUEUE.PASSED)  # after the head: fillers passed since then make the backlog look longer
    tasks = backlog - (load(queue + QUEUE.FILLED) - passed)
    most = (get(queue + QUEUE.DIRECTORY_MASK) + 1 - 2 * SLACK) << get(queue + QUEUE.SHIFT)
    if backlog + cells > most or (get(queue + QUEUE.GATE) == EXACT and tasks + count > get(queue + QUEUE.LIMIT)):
        return False
    if load(queue + QUEUE.GATE) == FULL:  # it has drained; a gate that is EXACT stays
        compare_and_swap(queue + QUEUE.GATE, FULL, OPEN)
    return True


@inlined
def queue_push(queue: int, word: int) -> int:
    """Store one tagged reference. Returns 0, and the queue owns it; or REFUSED_x, and the caller still does. Any
    thread.
    """
    ticket = queue_draw(queue, 1)
    if ticket < 0:
        return -ticket
    chunk = queue_segment(queue, ticket)
    if chunk == 0:
        fetch_add(queue + QUEUE.FILLED, 1)  # the ticket has no task; the consumer will step over it
        return REFUSED_MEMORY
    cell = queue_cell(chunk, ticket, get(queue + QUEUE.SHIFT))
    if get(queue + QUEUE.OBSERVED) != 0:
        word |= push_begins(queue, cell, ticket)
    store(cell, word)
    return 0


@apart
def push_begins(queue: int, cell: int, ticket: int) -> int:
    """Stamp and record a push, if enabled; return the mark for its word. The ticket's owner, before the store."""
    push_recorded(queue, ticket, 1)
    measured = get(queue + QUEUE.MEASURED)
    return stamp(measured, cell, get(queue + QUEUE.SHIFT), ticket) if measured != 0 else 0


@helper
def chunks_reserve(pool: int, count: int) -> int:
    """Take `count` chunks, chained through their links; return the first, or -1 if none was taken. Any thread."""
    table = get(pool + POOL.NEXT)
    first = -1
    for _ in range(count):
        chunk = pool_take(pool)
        if chunk < 0:
            chunks_return(pool, first)
            return -1
        store(table + (chunk << 3), first)
        first = chunk
    return first


@helper
def chunks_return(pool: int, first: int) -> None:
    """Put back a chain of reserved chunks. Any thread."""
    table = get(pool + POOL.NEXT)
    while first >= 0:
        below = load(table + (first << 3))
        pool_give(pool, first)
        first = below


@helper
def queue_push_many(queue: int, words: int, count: int) -> int:
    """Move `count` references out of an array at `words`: all under consecutive tickets, or none, and then REFUSED_x is
    returned. Any thread.

    References that were moved are 0 in the array. (One case is neither all nor none: a competitor runs out of memory in
    the middle of our tickets, *and* the queue is closed before new ones are drawn. Then the moved references run, the
    rest stay the caller's, and REFUSED_CLOSED is returned.) Every chunk that the batch may need is reserved before
    tickets are drawn, because a ticket cannot be given back.
    """
    shift = get(queue + QUEUE.SHIFT)
    pool = get(queue + QUEUE.POOL)
    reserve = chunks_reserve(pool, (count >> shift) + 2)
    if reserve < 0:
        return REFUSED_MEMORY
    ticket = queue_draw(queue, count)
    if ticket < 0:
        chunks_return(pool, reserve)
        return -ticket
    push_recorded(queue, ticket, count)
    measured = get(queue + QUEUE.MEASURED)
    pace = load(measured + BLOCK.PACE) if measured != 0 else 0
    now = clock(measured) if measured != 0 else 0
    mark = STAMPED_EIGHTH if pace != 0 else STAMPED
    end = ticket + count
    last = words + (count << 3)
    while words < last:
        if ticket == end:  # a competitor without memory voided one of our segments: draw more tickets, in order
            count = (last - words) >> 3
            ticket = queue_draw(queue, count)
            if ticket < 0:
                chunks_return(pool, reserve)
                return -ticket
            end = ticket + count
            push_recorded(queue, ticket, count)
        at = queue_entry(queue, ticket)
        entry = load(at)
        if entry <= 0 and entry != ~(ticket >> shift) and reserve >= 0:
            below = load(get(pool + POOL.NEXT) + (reserve << 3))
            if compare_and_swap(at, entry, reserve + 1):
                reserve = below
            else:
                fetch_add(queue + QUEUE.RETRIES, 1)
        chunk = queue_segment(queue, ticket)
        stop = min(end, ((ticket >> shift) + 1) << shift)
        if chunk == 0:
            fetch_add(queue + QUEUE.FILLED, stop - ticket)  # as in `queue_push`
            ticket = stop
        while ticket < stop:
            word = get(words)
            put(words, 0)  # moved: as soon as it is stored it may be taken, run and released
            cell = queue_cell(chunk, ticket, shift)
            if measured != 0 and ticket & pace == 0:
                put(cell + (8 << shift), now)
                word |= mark
            store(cell, word)
            words += 8
            ticket += 1
    chunks_return(pool, reserve)
    return 0


@helper
def queue_publish(queue: int, first: int, count: int) -> int:
    """Append a chain of chunks that begins with `first` and holds `count` words, with fillers before those of the last
    chunk. Either all get tickets that are consecutive except for fillers, and the queue owns the chunks; or none do,
    and REFUSED_x is returned. Any thread; O(chunks); no Python runs between the draw and the end.
    """
    shift = get(queue + QUEUE.SHIFT)
    pool = get(queue + QUEUE.POOL)
    table = get(pool + POOL.NEXT)
    rest = (1 << shift) - 1
    spare = pool_take(pool)  # for the segment in which the tail is, if it has no chunk yet
    if spare < 0:
        return REFUSED_MEMORY
    while True:
        ticket = load(queue + QUEUE.TAIL)
        start = (ticket + rest) & ~rest
        end = start + ((count + rest) & ~rest)
        status = 0
        if ticket < 0:
            status = REFUSED_CLOSED
        elif not queue_has_room(queue, ticket, count, end - ticket):
            status = REFUSED_FULL
        if status != 0:
            pool_give(pool, spare)
            return status
        if compare_and_swap(queue + QUEUE.TAIL, ticket, end):
            break
        fetch_add(queue + QUEUE.RETRIES, 1)
    fetch_add(queue + QUEUE.FILLED, end - ticket - count)
    push_recorded(queue, start, count)
    if ticket < start:
        at = queue_entry(queue, ticket)
        entry = load(at)
        if entry <= 0 and entry != ~(ticket >> shift) and compare_and_swap(at, entry, spare + 1):
            spare = -1
        chunk = queue_segment(queue, ticket)
        if chunk == 0:  # void: the consumer steps over its tickets all at once
            ticket = start
        while ticket < start:
            store(queue_cell(chunk, ticket, shift), FILLER)
            ticket += 1
    while ticket < end:  # no other thread has a ticket of these segments, so none writes their entries
        below = load(table + (first << 3))
        store(queue_entry(queue, ticket), first + 1)
        first = below
        ticket += rest + 1
    if spare >= 0:
        pool_give(pool, spare)
    return 0


@inlined
def queue_peek(queue: int) -> int:
    """The oldest word, without taking it; 0 if there is none *yet*. Consumer only; O(1)."""
    while True:
        head = get(queue + QUEUE.HEAD)
        chunk = get(queue + QUEUE.CHUNK)
        if chunk == 0:
            entry = load(queue_entry(queue, head))
            if entry == ~(head >> get(queue + QUEUE.SHIFT)) and queue_tail(queue) != head:
                queue_skip(queue, head)
                continue
            if entry <= 0:
                return 0
            chunk = pool_address(get(queue + QUEUE.POOL), entry - 1)
            put(queue + QUEUE.CHUNK, chunk)
        return load(queue_cell(chunk, head, get(queue + QUEUE.SHIFT)))


@inlined
def queue_advance(queue: int) -> None:
    """Take the word that `queue_peek` has just returned: the caller now owns its reference. Consumer only; O(1)."""
    head = get(queue + QUEUE.HEAD)
    shift = get(queue + QUEUE.SHIFT)
    put(queue_cell(get(queue + QUEUE.CHUNK), head, shift), 0)
    if (head + 1) & ((1 << shift) - 1) == 0:
        queue_retire(queue, head)
    store(queue + QUEUE.HEAD, head + 1)


@inlined
def queue_take(queue: int) -> int:
    """Take the oldest word, whose reference the caller then owns; 0 if there is none *yet*. Consumer only; O(1).

    If the word is marked STAMPED, its stamp is copied to the queue's `stamp`, since the cell may be gone afterwards.
    """
    word = queue_peek(queue)
    if word & STAMPED_EIGHTH != 0:
        if word == FILLER:
            word = queue_pass(queue)
        if word & STAMPED != 0 and get(queue + QUEUE.MEASURED) != 0:
            shift = get(queue + QUEUE.SHIFT)
            put(
                queue + QUEUE.STAMP,
                get(queue_cell(get(queue + QUEUE.CHUNK), get(queue + QUEUE.HEAD), shift) + (8 << shift)),
            )
    if word != 0:
        queue_advance(queue)
    return word


@apart
def queue_pass(queue: int) -> int:
    """Step over the next fillers; return the word after them, or 0 if there is none *yet*. Consumer only."""
    word = FILLER
    while word == FILLER:
        store(queue + QUEUE.PASSED, get(queue + QUEUE.PASSED) + 1)  # before the head, see `queue_has_room`
        queue_advance(queue)
        word = queue_peek(queue)
    return word


@apart
def queue_retire(queue: int, ticket: int) -> None:
    """Put the chunk of `ticket`, all of whose cells were taken, back into the pool. Consumer only."""
    at = queue_entry(queue, ticket)
    entry = get(at)
    store(at, 0)
    put(queue + QUEUE.CHUNK, 0)
    if entry > 0:
        pool_give(get(queue + QUEUE.POOL), entry - 1)


@apart
def queue_skip(queue: int, head: int) -> None:
    """Step over the refused tickets of a void segment. Consumer only."""
    shift = get(queue + QUEUE.SHIFT)
    end = ((head >> shift) + 1) << shift
    tail = min(queue_tail(queue), end)
    store(queue + QUEUE.PASSED, get(queue + QUEUE.PASSED) + tail - head)  # before the head, see `queue_has_room`
    store(queue + QUEUE.HEAD, tail)


@inlined
def queue_tail(queue: int) -> int:
    """The number of tickets accepted so far. Any thread; sequentially consistent, for the sleep protocol."""
    while True:
        tail = load_sc(queue + QUEUE.TAIL)
        if tail >= 0:
            return tail
        final = load(queue + QUEUE.FINAL)
        if final >= 0:
            return final
        pause()  # between the two stores of a close or of a reopening


@inlined
def queue_length(queue: int) -> int:
    """Tickets accepted but not yet taken. Any thread (slightly old except for the consumer)."""
    return queue_tail(queue) - load(queue + QUEUE.HEAD)


@helper
def queue_tasks(queue: int) -> int:
    """`queue_length` without the fillers of large batches: the length for figures, budgets and marks. Any thread; exact
    if nothing changes meanwhile.
    """
    passed = load(queue + QUEUE.PASSED)  # before the head moves on, as in `queue_has_room`
    return max(0, queue_length(queue) - (load(queue + QUEUE.FILLED) - passed))


@helper
def queue_closed(queue: int) -> int:
    """REFUSED_CLOSED if the queue is closed, else 0. Any thread."""
    return REFUSED_CLOSED if load(queue + QUEUE.TAIL) < 0 else 0


@helper
def queue_close(queue: int) -> None:
    """Refuse every ticket from now on. Any thread; idempotent; afterwards `queue_tail` never changes.

    A swap, not an atomic "or": x86 has none that returns the old value, and LLVM's substitute begins with a plain read,
    which ThreadSanitizer rightly reports as a race.
    """
    while True:
        tail = load(queue + QUEUE.TAIL)
        if tail < 0:
            return
        if compare_and_swap(queue + QUEUE.TAIL, tail, tail | MINUS):
            store(queue + QUEUE.FINAL, tail)
            return
        fetch_add(queue + QUEUE.RETRIES, 1)


@helper
def queue_close_if_empty(queue: int) -> bool:
    """Close, unless something is queued; return whether it closed. Consumer only; `queue_reopen` may follow."""
    head = get(queue + QUEUE.HEAD)
    if not compare_and_swap(queue + QUEUE.TAIL, head, head | MINUS):
        return False
    store(queue + QUEUE.FINAL, head)
    return True


@helper
def queue_reopen(queue: int) -> None:
    """Undo a close; tickets refused meanwhile do not count. Consumer only.

    This also undoes another thread's concurrent `queue_close`, so the caller must check afterwards whether the loop is
    still meant to live.
    """
    final = load(queue + QUEUE.FINAL)
    if final >= 0:
        store(queue + QUEUE.FINAL, -1)
        exchange(queue + QUEUE.TAIL, final)


@helper
def queue_return_chunk(queue: int) -> None:
    """Put the chunk that an empty queue keeps for its next tickets back into the pool. Consumer only, when the queue
    ends.
    """
    at = queue_entry(queue, get(queue + QUEUE.HEAD))
    entry = load(at)
    if entry > 0:
        store(at, 0)
        put(queue + QUEUE.CHUNK, 0)
        pool_give(get(queue + QUEUE.POOL), entry - 1)
