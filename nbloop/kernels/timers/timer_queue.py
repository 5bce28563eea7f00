"""The timer queue: all armed timers in the order in which they are due; near timers are sorted, far ones are not.

`timer_heap.py` and `buckets.py` are the two halves; this file decides which half holds a timer, and moves the timer
over when its time comes. In the heap as in a bucket, the entry of a cancelled timer is *stale* (buckets.py) until it
reaches the front, or until half of the entries are stale and a sweep removes them. So a cancel is amortised O(1) and
mostly touches only the slot. More than `SWEEP_MOST` entries are not swept in one piece, which held up signals for 34 ms
with four million timers: each cancel sweeps a few, as long as half of all are stale.

Invariants: a far timer is after the horizon (a near one may be too: a few are not worth a bucket); `stale` is the
number of stale entries in the heap; no stale entry outlives 2**EPOCH_BITS armings, so all are gone when their numbers
are reused. Everything here belongs to the loop thread.
"""

from __future__ import annotations

from ..base.atomics import get, load, prefetch, put, store
from ..base.clock import FOREVER
from ..base.kernel import apart, helper, inlined
from ..base.layout import (
    BUCKET,
    BUCKET_TOTAL,
    FAR,
    NODE_BYTES,
    POINTER_MASK,
    SLOT,
    SLOT_BITS,
    SLOT_LIMIT,
    STATE,
    TIMERS,
)
from ..base.safepoint import EVERY, safepoint
from ..memory.slot_slabs import slot_at
from .buckets import (
    AHEAD,
    ALL,
    GRAIN_MASK,
    SWEEP_LEAST,
    SWEEP_MOST,
    bucket_at,
    bucket_chunk,
    bucket_lost,
    bucket_shrink,
    bucket_start,
    bucket_sweep,
    buckets_first,
    buckets_insert,
    buckets_least,
    buckets_remove,
    entry_live,
)
from .timer_heap import heap_insert, heap_pop, heap_remove, heap_reserve, heap_up, order_of

EPOCH_BITS = 39  # an epoch is 2**39 armings; their numbers repeat after 2**41
FEW = 128  # a bucket with at most so many timers goes straight to the heap, however wide it is
OPEN_MOST = 2048  # entries of a bucket that are moved in one turn, which takes 0.1 ms
PRUNE_MOST = 1024  # stale entries that are popped in one turn
SWEEP_PART = 16  # entries of the heap that a cancel sweeps, if it does not sweep all: 0.3 µs


@inlined
def timer_queue_insert(base: int, slot: int, record: int, deadline: int, flags: int) -> int:
    """Insert a timer after all others of the same deadline. Returns 0, or -1 if there is no memory, and then nothing
    has changed. Amortised O(1) for a far timer, else O(log near timers).
    """
    timers = base + STATE.TIMERS
    sequence = get(timers + TIMERS.SEQUENCE) + 1
    order = order_of(sequence)
    put(record + SLOT.PLACE, 0)
    if deadline <= get(base + STATE.FAR + FAR.HORIZON) or buckets_insert(base, record, deadline, order | slot) < 0:
        if heap_reserve(timers, 1) < 0:
            return -1
        heap_insert(timers, deadline, order | slot)
    put(timers + TIMERS.SEQUENCE, sequence)
    put(record + SLOT.DEADLINE, deadline)
    store(record + SLOT.ORDER, order | flags)
    return 0


@helper
def timer_queue_remove(base: int, record: int) -> None:
    """Remove a slot's timer, if it is in the queue. Amortised O(1)."""
    if load(record + SLOT.ORDER) >> SLOT_BITS == 0:
        return
    timers = base + STATE.TIMERS
    store(record + SLOT.ORDER, 0)
    if get(record + SLOT.PLACE) != 0:
        buckets_remove(base, record)
        return
    stale = get(timers + TIMERS.STALE) + 1
    put(timers + TIMERS.STALE, stale)
    size = get(timers + TIMERS.SIZE)
    if stale > SWEEP_LEAST and 2 * stale > size:
        if size <= SWEEP_MOST:
            timer_queue_sweep(timers)
        else:
            timer_queue_sweep_part(timers)


@apart
def timer_queue_sweep_part(timers: int) -> None:
    """Look at the next `SWEEP_PART` entries of the heap, from the last to the first, and remove the stale ones. What
    moves meanwhile may be missed, and is found next time. O(log n).
    """
    at = get(timers + TIMERS.SWEEP)
    if at == 0:
        at = get(timers + TIMERS.SIZE)
    at = min(at, get(timers + TIMERS.SIZE))
    end = max(0, at - SWEEP_PART)
    while at > end:
        at -= 1
        if not entry_live(timers, get(get(timers + TIMERS.HEAP) + (at << 4) + 8)):
            heap_remove(timers, at)
            put(timers + TIMERS.STALE, get(timers + TIMERS.STALE) - 1)
    put(timers + TIMERS.SWEEP, at)


@apart
def timer_queue_sweep(timers: int) -> None:
    """Rebuild the heap in place, without its stale entries. O(n): on average an entry rises by less than one level."""
    heap = get(timers + TIMERS.HEAP)
    kept = 0
    for at in range(get(timers + TIMERS.SIZE)):
        deadline, order = get(heap + (at << 4)), get(heap + (at << 4) + 8)
        if entry_live(timers, order):
            heap_up(heap, kept, deadline, order)
            kept += 1
        if at & (EVERY - 1) == EVERY - 1:
            safepoint()  # only the loop thread uses the heap, and the collector does not read it
    store(timers + TIMERS.SIZE, kept)
    put(timers + TIMERS.STALE, 0)
    put(timers + TIMERS.SWEEP, 0)


@inlined
def timer_queue_prune(timers: int) -> bool:
    """Pop stale entries until the heap's first entry is live. False if too many were stale, and the first still is."""
    left = PRUNE_MOST
    while get(timers + TIMERS.SIZE) != 0 and not entry_live(timers, get(get(timers + TIMERS.HEAP) + 8)):
        if left == 0:
            return False
        left -= 1
        heap_pop(timers)
        put(timers + TIMERS.STALE, get(timers + TIMERS.STALE) - 1)
    return True


@inlined
def timer_queue_due(base: int, now: int) -> int:
    """If the earliest timer is due, bring it to the front of the heap and return its entry's order; else 0. Also 0 if
    that takes longer than one turn may, which `timer_queue_next` reports.
    """
    timers = base + STATE.TIMERS
    far = base + STATE.FAR
    while True:
        horizon = get(far + FAR.HORIZON)
        if not timer_queue_prune(timers):
            return 0
        if get(timers + TIMERS.SIZE) != 0 and get(far + FAR.OPENING) == 0:
            heap = get(timers + TIMERS.HEAP)
            deadline = get(heap)
            if deadline > now and horizon >= now:
                return 0
            if deadline <= now and deadline <= horizon:
                return get(heap + 8)
        elif horizon >= now and get(far + FAR.OPENING) == 0:
            return 0
        if timer_queue_advance(base, now) != 0:
            return 0


@apart
def timer_queue_advance(base: int, now: int) -> int:
    """Move the horizon to the first non-empty bucket and open it, if its range has begun; else move it up to `now`.
    Returns 0; or, if it must be called again before anything else is due, 1 if there is more to open, -1 if there is no
    memory for it.
    """
    far = base + STATE.FAR
    if get(far + FAR.OPENING) == 0:
        timer_queue_epoch(base)
        horizon = get(far + FAR.HORIZON)
        first = buckets_first(base)
        start = bucket_start(horizon, first) if first >= 0 else FOREVER
        if start > now:
            put(far + FAR.HORIZON, max(horizon, now | GRAIN_MASK))
            return 0
        put(far + FAR.HORIZON, start | GRAIN_MASK)
        put(far + FAR.OPENING, first + 1)
    return timer_queue_open(base, get(far + FAR.OPENING) - 1)


@helper
def timer_queue_epoch(base: int) -> None:
    """Once in 2**EPOCH_BITS armings, remove all stale entries, one bucket per call, because a bucket of a million
    entries takes some 10 ms. All other calls only read three words.
    """
    timers = base + STATE.TIMERS
    far = base + STATE.FAR
    epoch = get(timers + TIMERS.SEQUENCE) >> EPOCH_BITS
    if get(far + FAR.EPOCH) != epoch:
        put(far + FAR.EPOCH, epoch)
        put(far + FAR.UNSWEPT, BUCKET_TOTAL)
        timer_queue_sweep(timers)
    left = get(far + FAR.UNSWEPT)
    if left != 0:
        put(far + FAR.UNSWEPT, left - 1)
        if get(bucket_at(base, left - 1) + BUCKET.STALE) != 0:
            bucket_sweep(base, left - 1, ALL)


@helper
def timer_queue_open(base: int, number: int) -> int:
    """Empty a bucket whose time has come into the heap; later entries go into buckets of lower levels, as the new
    horizon determines. Returns 0; or, if entries are left, 1 after `OPEN_MOST` entries, -1 if there is no memory. It
    moves a chunk at a time.

    No timer that is due later fires before the rest has been moved, so timers fire in the order of their deadlines; but
    the turn goes on.
    """
    timers = base + STATE.TIMERS
    far = base + STATE.FAR
    horizon = get(far + FAR.HORIZON)
    bucket = bucket_at(base, number)
    few = get(bucket + BUCKET.COUNT) <= FEW
    left = OPEN_MOST
    while get(bucket + BUCKET.NEXT) != 0:
        if left <= 0:
            return 1
        first, end = bucket_chunk(base, bucket) + NODE_BYTES, get(bucket + BUCKET.NEXT)
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
            elif few or deadline <= horizon or buckets_insert(base, record, deadline, order) < 0:
                put(record + SLOT.PLACE, 0)
                heap_insert(timers, deadline, order)
                prefetch(load(record + SLOT.CALLBACK) & POINTER_MASK)
        bucket_lost(base, number, (end - first) // NODE_BYTES, stale)
        bucket_shrink(base, bucket)
        left -= (end - first) // NODE_BYTES
    put(far + FAR.OPENING, 0)
    return 0


@helper
def timer_queue_next(base: int) -> int:
    """When the first timer is due, or a little earlier (see `buckets_least`); FOREVER if there is none; 0, a time in
    the past, if it is unknown until a bucket has been opened or very many entries have been popped.
    """
    timers = base + STATE.TIMERS
    far = base + STATE.FAR
    if get(far + FAR.OPENING) != 0:
        return 0
    if not timer_queue_prune(timers):
        return 0
    deadline = FOREVER
    if get(timers + TIMERS.SIZE) != 0:
        deadline = get(get(timers + TIMERS.HEAP))
    if get(far + FAR.COUNT) != 0 and deadline > get(far + FAR.HORIZON):
        deadline = min(deadline, buckets_least(base))
    return deadline


@helper
def timer_queue_clear(base: int) -> bool:
    """Empty the queue, one chunk per call; False when nothing is left. The timers are already gone. Their slots are not
    touched: for four million timers that would be as many cache misses.
    """
    timers = base + STATE.TIMERS
    far = base + STATE.FAR
    store(timers + TIMERS.SIZE, 0)
    put(timers + TIMERS.STALE, 0)
    put(far + FAR.OPENING, 0)
    number = buckets_first(base)
    if number < 0:
        return False
    bucket = bucket_at(base, number)
    put(far + FAR.COUNT, get(far + FAR.COUNT) - (get(bucket + BUCKET.COUNT) - get(bucket + BUCKET.STALE)))
    put(bucket + BUCKET.STALE, get(bucket + BUCKET.COUNT))
    first, end = bucket_chunk(base, bucket) + NODE_BYTES, get(bucket + BUCKET.NEXT)
    for at in range(first, end, 8):
        put(at, 0)
    gone = (end - first) // NODE_BYTES
    bucket_lost(base, number, gone, gone)
    bucket_shrink(base, bucket)
    return True
