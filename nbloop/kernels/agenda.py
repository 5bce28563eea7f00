"""The agenda: all armed timers in the order in which they are due, the near ones sorted and the far ones not.

`heap.py` and `far.py` are the two halves; this file decides which of them a timer is in and moves it over when its
time comes. In the heap as in a bucket the entry of a cancelled timer is *stale* (far.py) until it comes first, or
until half of the entries are and a sweep takes them all; so a cancel is O(1), amortised, and touches the slot alone.

Invariants: a timer that is far is after the horizon (a near one may be too: few are not worth a bucket); `stale` is
the number of stale entries of the heap; no stale entry outlives 2**EPOCH_BITS armings, so none is there when its number
comes again. Everything here belongs to the loop thread.
"""

from __future__ import annotations

from .atomics import get, load, prefetch, put, store
from .clock import FOREVER
from .far import (
    AHEAD,
    GRAIN_MASK,
    SWEEP_LEAST,
    bucket_at,
    bucket_chunk,
    bucket_lost,
    bucket_shrink,
    bucket_start,
    bucket_sweep,
    entry_live,
    far_first,
    far_insert,
    far_least,
    far_remove,
)
from .heap import heap_insert, heap_pop, heap_reserve, heap_up, order_of
from .kernel import apart, helper, inlined
from .layout import (
    B_COUNT,
    B_NEXT,
    B_STALE,
    BUCKET_COUNT,
    F_COUNT,
    F_EPOCH,
    F_HORIZON,
    F_OPENING,
    F_UNSWEPT,
    FAR_AT,
    NODE_BYTES,
    POINTER_MASK,
    S_CALLBACK,
    S_DEADLINE,
    S_ORDER,
    S_PLACE,
    SLOT_BITS,
    SLOT_LIMIT,
    T_HEAP,
    T_SEQUENCE,
    T_SIZE,
    T_STALE,
    TIMERS_AT,
)
from .safepoint import EVERY, safepoint
from .slots import slot_at

EPOCH_BITS = 39  # of armings; their numbers begin anew after 2**41
FEW = 128  # timers of a bucket that go to the heap at once, however wide it is
OPEN_MOST = 2048  # entries of a bucket that are moved in one turn, which takes 0.1 ms
PRUNE_MOST = 1024  # stale entries that are popped in one turn


@inlined
def agenda_insert(base: int, slot: int, record: int, deadline: int, flags: int) -> int:
    """Enter a timer: after all others of the same deadline. 0, or -1 if there is no memory and nothing changed.
    Amortised O(1) if it is far, else O(log near ones).
    """
    timers = base + TIMERS_AT
    sequence = get(timers + T_SEQUENCE) + 1
    order = order_of(sequence)
    put(record + S_PLACE, 0)
    if deadline <= get(base + FAR_AT + F_HORIZON) or far_insert(base, record, deadline, order | slot) < 0:
        if heap_reserve(timers, 1) < 0:
            return -1
        heap_insert(timers, deadline, order | slot)
    put(timers + T_SEQUENCE, sequence)
    put(record + S_DEADLINE, deadline)
    store(record + S_ORDER, order | flags)
    return 0


@helper
def agenda_remove(base: int, record: int) -> None:
    """Take the timer of a slot out, if it is in. Amortised O(1)."""
    if load(record + S_ORDER) >> SLOT_BITS == 0:
        return
    timers = base + TIMERS_AT
    store(record + S_ORDER, 0)
    if get(record + S_PLACE) != 0:
        far_remove(base, record)
        return
    stale = get(timers + T_STALE) + 1
    put(timers + T_STALE, stale)
    if stale > SWEEP_LEAST and 2 * stale > get(timers + T_SIZE):
        agenda_sweep(timers)


@apart
def agenda_sweep(timers: int) -> None:
    """Build the heap anew without its stale entries, in place. O(n): on average an entry rises by less than a level."""
    heap = get(timers + T_HEAP)
    kept = 0
    for at in range(get(timers + T_SIZE)):
        deadline, order = get(heap + (at << 4)), get(heap + (at << 4) + 8)
        if entry_live(timers, order):
            heap_up(heap, kept, deadline, order)
            kept += 1
        if at & (EVERY - 1) == EVERY - 1:
            safepoint()  # the heap is the loop thread's own, and the collector does not look into it
    store(timers + T_SIZE, kept)
    put(timers + T_STALE, 0)


@inlined
def agenda_prune(timers: int) -> bool:
    """Pop stale entries until the heap's first is live. False if it is not yet, because there are very many."""
    left = PRUNE_MOST
    while get(timers + T_SIZE) != 0 and not entry_live(timers, get(get(timers + T_HEAP) + 8)):
        if left == 0:
            return False
        left -= 1
        heap_pop(timers)
        put(timers + T_STALE, get(timers + T_STALE) - 1)
    return True


@inlined
def agenda_due(base: int, now: int) -> int:
    """Make the earliest timer the heap's first, if it is due; the order of its entry, or 0 if none is. Also 0 if that
    takes longer than one turn should: `agenda_next` says so.
    """
    timers = base + TIMERS_AT
    far = base + FAR_AT
    while True:
        horizon = get(far + F_HORIZON)
        if not agenda_prune(timers):
            return 0
        if get(timers + T_SIZE) != 0 and get(far + F_OPENING) == 0:
            heap = get(timers + T_HEAP)
            deadline = get(heap)
            if deadline > now and horizon >= now:
                return 0
            if deadline <= now and deadline <= horizon:
                return get(heap + 8)
        elif horizon >= now and get(far + F_OPENING) == 0:
            return 0
        if agenda_advance(base, now) != 0:
            return 0


@apart
def agenda_advance(base: int, now: int) -> int:
    """Move the horizon: to the first bucket that is not empty, if that has begun, which is opened; else up to `now`.
    0, or else it has to be called again before anything else is due: 1 if there is more to open, -1 if there is no
    memory for it.
    """
    far = base + FAR_AT
    if get(far + F_OPENING) == 0:
        agenda_epoch(base)
        horizon = get(far + F_HORIZON)
        first = far_first(base)
        start = bucket_start(horizon, first) if first >= 0 else FOREVER
        if start > now:
            put(far + F_HORIZON, max(horizon, now | GRAIN_MASK))
            return 0
        put(far + F_HORIZON, start | GRAIN_MASK)
        put(far + F_OPENING, first + 1)
    return agenda_open(base, get(far + F_OPENING) - 1)


@helper
def agenda_epoch(base: int) -> None:
    """Once in 2**EPOCH_BITS armings, take all stale entries out: of one bucket a call, because that of a million takes
    some 20 ms. Each call but those is a look at three words.
    """
    timers = base + TIMERS_AT
    far = base + FAR_AT
    epoch = get(timers + T_SEQUENCE) >> EPOCH_BITS
    if get(far + F_EPOCH) != epoch:
        put(far + F_EPOCH, epoch)
        put(far + F_UNSWEPT, BUCKET_COUNT)
        agenda_sweep(timers)
    left = get(far + F_UNSWEPT)
    if left != 0:
        put(far + F_UNSWEPT, left - 1)
        if get(bucket_at(base, left - 1) + B_STALE) != 0:
            bucket_sweep(base, left - 1)


@helper
def agenda_open(base: int, number: int) -> int:
    """Empty a bucket whose time has come: into the heap, or, what is later, into the buckets of lower levels, which
    the new horizon says. 0, or the rest stays: 1 after `OPEN_MOST` entries, -1 if there is no memory. A chunk at a
    time.

    No timer that is due later fires before the rest is in, so the order is that of the deadlines; but the turn goes on.
    """
    timers = base + TIMERS_AT
    far = base + FAR_AT
    horizon = get(far + F_HORIZON)
    bucket = bucket_at(base, number)
    few = get(bucket + B_COUNT) <= FEW
    left = OPEN_MOST
    while get(bucket + B_NEXT) != 0:
        if left <= 0:
            return 1
        first, end = bucket_chunk(base, bucket) + NODE_BYTES, get(bucket + B_NEXT)
        if heap_reserve(timers, (end - first) // NODE_BYTES) < 0:
            return -1
        for at in range(first, min(first + AHEAD, end), NODE_BYTES):
            prefetch(slot_at(timers, get(at + 8) & (SLOT_LIMIT - 1)))
        stale = 0
        for at in range(first, end, NODE_BYTES):
            if at + AHEAD < end:
                prefetch(slot_at(timers, get(at + AHEAD + 8) & (SLOT_LIMIT - 1)))
            deadline, order = get(at), get(at + 8)
            put(at, 0)
            put(at + 8, 0)
            record = slot_at(timers, order & (SLOT_LIMIT - 1))
            if not entry_live(timers, order):
                stale += 1
            elif few or deadline <= horizon or far_insert(base, record, deadline, order) < 0:
                put(record + S_PLACE, 0)
                heap_insert(timers, deadline, order)
                prefetch(load(record + S_CALLBACK) & POINTER_MASK)
        bucket_lost(base, number, (end - first) // NODE_BYTES, stale)
        bucket_shrink(base, bucket)
        left -= (end - first) // NODE_BYTES
    put(far + F_OPENING, 0)
    return 0


@helper
def agenda_next(base: int) -> int:
    """When the first timer is due, or a little earlier (see `far_least`); FOREVER if there is none; 0, which is past,
    if there is still a bucket to open, or very many entries to pop, before that is known.
    """
    timers = base + TIMERS_AT
    far = base + FAR_AT
    if get(far + F_OPENING) != 0:
        return 0
    if not agenda_prune(timers):
        return 0
    deadline = FOREVER
    if get(timers + T_SIZE) != 0:
        deadline = get(get(timers + T_HEAP))
    if get(far + F_COUNT) != 0 and deadline > get(far + F_HORIZON):
        deadline = min(deadline, far_least(base))
    return deadline


@helper
def agenda_clear(base: int) -> bool:
    """Empty it, a chunk in each call; False when there is nothing left. The timers are gone already, and their slots
    are not touched: of four million that would be as many cache misses.
    """
    timers = base + TIMERS_AT
    far = base + FAR_AT
    store(timers + T_SIZE, 0)
    put(timers + T_STALE, 0)
    put(far + F_OPENING, 0)
    number = far_first(base)
    if number < 0:
        return False
    bucket = bucket_at(base, number)
    put(far + F_COUNT, get(far + F_COUNT) - (get(bucket + B_COUNT) - get(bucket + B_STALE)))
    put(bucket + B_STALE, get(bucket + B_COUNT))
    first, end = bucket_chunk(base, bucket) + NODE_BYTES, get(bucket + B_NEXT)
    for at in range(first, end, 8):
        put(at, 0)
    gone = (end - first) // NODE_BYTES
    bucket_lost(base, number, gone, gone)
    bucket_shrink(base, bucket)
    return True
