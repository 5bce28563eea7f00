"""Far timers: unsorted in buckets by range of deadlines, so that arming and cancelling one takes the same few ns among
a thousand as among a million.

Problem: a heap of a million entries is 16 MB, and each operation walks ten levels of it, each a cache miss. Nearly all
of this work is wasted: most timers are cancelled before they are due. Idea: sort a timer only when it is nearly due.
Everything up to the *horizon* is in the heap (timer_heap.py). A later deadline belongs to the bucket given by the
highest base-64 digit in which it differs from the horizon: which digit is the level, its value the bucket within the
level. So near buckets are narrow (33 µs) and far ones wide (64 times as wide per level), every deadline of level 0 is
before every one of level 1, and within a level digits are in order: one `first_bit` per level finds the first non-empty
bucket. When its time comes, the horizon moves to the bucket's beginning, and its entries go to the heap or, if they are
many, to buckets of lower levels. This is a radix heap (Ahuja, Mehlhorn, Orlin and Tarjan 1990) with the digits of a
hierarchical timing wheel (Varghese and Lauck 1987). Unlike a wheel it is exact to the nanosecond, because the heap
sorts, and nothing ticks, because each bucket knows its least deadline.

A bucket is a chain of chunks from the loop's pool, filled with (deadline, order) like the heap: 63 entries in 1 KiB,
read in sequence when it is opened, while slots are prefetched. The slot's ``order`` word ties an entry to its timer: an
entry whose sequence number no longer matches its slot's is *stale*, its timer cancelled. The callable and the slot of
such a timer are released immediately, its 16 bytes when half of the bucket is stale, so memory follows the number of
timers. Then each cancel sweeps the bucket, or, if it is large, one chunk of it.

Invariants: every entry is after the horizon, in the bucket that its deadline and the horizon determine; the horizon is
the last ns of a bucket of level 0; ``place`` in the slot of each live entry is its bucket's number + 1; a bucket with
entries has a live one, unless it is being opened, and its bit in its level is set; ``stale`` of its ``count`` entries
are stale; ``least`` is no later than any live entry, and exact unless ``loose``. Everything belongs to the loop thread.

It loses when a bucket of a million entries is opened: each entry moves up to five times in its life, some 20 to 50 ms
in all. No timer fires meanwhile, but everything else runs: `timer_queue_open` moves 2048 entries per turn. And a bucket
with a single timer takes 1 KiB.
"""

from __future__ import annotations

from ..base.atomics import first_bit, get, last_bit, load, prefetch, put
from ..base.clock import FOREVER
from ..base.kernel import helper, inlined
from ..base.layout import (
    BUCKET,
    BUCKET_BYTES,
    DIGIT_BITS,
    FAR,
    FAR_LEVELS,
    NODE_BYTES,
    POOL,
    SLOT,
    SLOT_BITS,
    SLOT_LIMIT,
    STATE,
)
from ..base.safepoint import safepoint
from ..memory.pool import pool_address, pool_give, pool_take
from ..memory.slot_slabs import slot_at

GRAIN_BITS = 15  # a bucket of level 0 is 2**15 ns wide; with eight levels of six bits that makes 63 bits
GRAIN_MASK = (1 << GRAIN_BITS) - 1
DIGIT_MASK = (1 << DIGIT_BITS) - 1
SCAN_MOST = 256  # a bucket with at most this many entries is searched for its least deadline before a sleep
AHEAD = 8 * NODE_BYTES  # how far ahead of the current entry slots are prefetched
SWEEP_LEAST = 64  # this many stale entries, or fewer, are not worth a sweep while others beside them live
SWEEP_MOST = 4096  # a bucket, or heap, of more entries is not swept in one piece: these take 0.04 ms
ALL = 1 << 62  # chunks


@helper
def buckets_begin(base: int, now: int) -> None:
    """Move the horizon up to `now`, when nothing is far. Not while a bucket is being opened, which may hold nothing but
    stale entries: a timer that is armed now must not belong to that bucket.
    """
    far = base + STATE.FAR
    if get(far + FAR.OPENING) == 0:
        put(far + FAR.HORIZON, max(get(far + FAR.HORIZON), now | GRAIN_MASK))


@inlined
def bucket_at(base: int, bucket: int) -> int:
    """The address of a bucket's record."""
    return get(base + STATE.FAR + FAR.BUCKETS) + bucket * BUCKET_BYTES


@helper
def bucket_for(horizon: int, deadline: int) -> int:
    """The number of the bucket for a deadline after the horizon."""
    level = (last_bit(deadline ^ horizon) - GRAIN_BITS) // DIGIT_BITS
    return level << DIGIT_BITS | (deadline >> (GRAIN_BITS + level * DIGIT_BITS)) & DIGIT_MASK


@helper
def bucket_start(horizon: int, bucket: int) -> int:
    """The first ns of a bucket."""
    shift = GRAIN_BITS + (bucket >> DIGIT_BITS) * DIGIT_BITS
    above = shift + DIGIT_BITS
    return horizon >> above << above | (bucket & DIGIT_MASK) << shift


@helper
def buckets_first(base: int) -> int:
    """The bucket with the earliest entries, or -1 if all are empty."""
    levels = base + STATE.FAR + FAR.LEVEL0
    for level in range(FAR_LEVELS):
        bits = get(levels + (level << 3))
        if bits != 0:
            return level << DIGIT_BITS | first_bit(bits)
    return -1


@helper
def buckets_insert(base: int, record: int, deadline: int, order: int) -> int:
    """Add an entry, after the horizon, for the slot at `record`. Returns 0, or -1 if there is no memory, and then
    nothing has changed. O(1).
    """
    far = base + STATE.FAR
    number = bucket_for(get(far + FAR.HORIZON), deadline)
    bucket = bucket_at(base, number)
    at = get(bucket + BUCKET.NEXT)
    if at == get(bucket + BUCKET.END):
        at = bucket_grow(base, bucket)
        if at == 0:
            return -1
    put(at, deadline)
    put(at + 8, order)
    put(bucket + BUCKET.NEXT, at + NODE_BYTES)
    count = get(bucket + BUCKET.COUNT)
    put(bucket + BUCKET.COUNT, count + 1)
    put(far + FAR.COUNT, get(far + FAR.COUNT) + 1)
    if count == 0:
        level = far + FAR.LEVEL0 + ((number >> DIGIT_BITS) << 3)
        put(level, get(level) | 1 << (number & DIGIT_MASK))
    if count == 0 or deadline < get(bucket + BUCKET.LEAST):
        put(bucket + BUCKET.LEAST, deadline)
        put(bucket + BUCKET.LOOSE, 0)
    put(record + SLOT.PLACE, number + 1)
    return 0


@helper
def bucket_grow(base: int, bucket: int) -> int:
    """Add a chunk. Returns the address of its first entry, or 0 if there is no memory. A chunk's first word is the
    number of the previous chunk + 1.
    """
    pool = base + STATE.POOL
    chunk = pool_take(pool)
    if chunk < 0:
        return 0
    address = pool_address(pool, chunk)
    put(address, 0 if get(bucket + BUCKET.END) == 0 else get(bucket + BUCKET.CHUNK) + 1)
    put(bucket + BUCKET.CHUNK, chunk)
    put(bucket + BUCKET.END, address + get(pool + POOL.CHUNK_BYTES))
    return address + NODE_BYTES


@helper
def bucket_chunk(base: int, bucket: int) -> int:
    """The address of a bucket's last chunk; it must have one."""
    return get(bucket + BUCKET.END) - get(base + STATE.POOL + POOL.CHUNK_BYTES)


@helper
def bucket_shrink(base: int, bucket: int) -> None:
    """Give back the last chunk, whose entries are gone and zeroed."""
    pool = base + STATE.POOL
    address = bucket_chunk(base, bucket)
    below = get(address)
    put(address, 0)
    if get(bucket + BUCKET.SWEEP) == get(bucket + BUCKET.CHUNK) + 1:
        put(bucket + BUCKET.SWEEP, below)
    pool_give(pool, get(bucket + BUCKET.CHUNK))
    end = 0
    if below != 0:
        put(bucket + BUCKET.CHUNK, below - 1)
        end = pool_address(pool, below - 1) + get(pool + POOL.CHUNK_BYTES)
    put(bucket + BUCKET.END, end)
    put(bucket + BUCKET.NEXT, end)


@helper
def bucket_lost(base: int, number: int, gone: int, stale: int) -> None:
    """Account for `gone` entries that left a bucket, `stale` of which were stale."""
    far = base + STATE.FAR
    bucket = bucket_at(base, number)
    count = get(bucket + BUCKET.COUNT) - gone
    put(bucket + BUCKET.COUNT, count)
    put(bucket + BUCKET.STALE, get(bucket + BUCKET.STALE) - stale)
    put(far + FAR.COUNT, get(far + FAR.COUNT) - (gone - stale))
    if count == 0:
        level = far + FAR.LEVEL0 + ((number >> DIGIT_BITS) << 3)
        put(level, get(level) & ~(1 << (number & DIGIT_MASK)))


@helper
def buckets_remove(base: int, record: int) -> None:
    """Remove the timer of the slot at `record`, whose ``order`` has already been cleared. Amortised O(1).

    Its entry stays, stale, until its bucket is opened or half of the bucket is stale. This touches only the slot, one
    cold line among a million timers. Removing the entry immediately, by filling its hole with the bucket's last entry,
    touches three lines and took 1.5 times as long.
    """
    far = base + STATE.FAR
    number = get(record + SLOT.PLACE) - 1
    bucket = bucket_at(base, number)
    stale = get(bucket + BUCKET.STALE) + 1
    put(bucket + BUCKET.STALE, stale)
    put(far + FAR.COUNT, get(far + FAR.COUNT) - 1)
    count = get(bucket + BUCKET.COUNT)
    if stale == count or (stale > SWEEP_LEAST and 2 * stale > count):
        if count <= SWEEP_MOST:
            bucket_sweep(base, number, ALL)
        elif get(far + FAR.OPENING) != number + 1:  # what is being opened loses its stale entries anyway
            bucket_sweep(base, number, 1 if stale < count else ALL)
    elif get(record + SLOT.DEADLINE) == get(bucket + BUCKET.LEAST):
        put(bucket + BUCKET.LOOSE, 1)


@inlined
def entry_live(timers: int, order: int) -> bool:
    """Whether an entry's slot still has the entry's sequence number."""
    return (load(slot_at(timers, order & (SLOT_LIMIT - 1)) + SLOT.ORDER) ^ order) >> SLOT_BITS == 0


@helper
def bucket_sweep(base: int, number: int, chunks: int) -> None:
    """Remove the stale entries of the next `chunks` chunks of a bucket, from last to first: the bucket's last entry
    fills each hole. With `ALL`, which begins anew, that one is live or the removed one itself, so no stale one is left;
    otherwise it may be stale, and is found next time. O(entries), with slots prefetched.
    """
    timers = base + STATE.TIMERS
    pool = base + STATE.POOL
    bucket = bucket_at(base, number)
    none_live = get(bucket + BUCKET.STALE) == get(bucket + BUCKET.COUNT)
    gone = 0
    chunk, at = bucket_chunk(base, bucket), get(bucket + BUCKET.NEXT)
    goes_on = get(bucket + BUCKET.SWEEP)
    if chunks != ALL and goes_on != 0 and goes_on != get(bucket + BUCKET.CHUNK) + 1:
        chunk = pool_address(pool, goes_on - 1)
        at = chunk + get(pool + POOL.CHUNK_BYTES)
    while True:
        first, below = chunk + NODE_BYTES, get(chunk)
        while at > first:
            at -= NODE_BYTES
            if at - AHEAD >= first and not none_live:
                prefetch(slot_at(timers, get(at - AHEAD + 8) & (SLOT_LIMIT - 1)))
            if none_live or not entry_live(timers, get(at + 8)):
                last = get(bucket + BUCKET.NEXT) - NODE_BYTES
                put(at, get(last))
                put(at + 8, get(last + 8))
                put(last, 0)  # a free chunk is zero
                put(last + 8, 0)
                put(bucket + BUCKET.NEXT, last)
                gone += 1
                if last == bucket_chunk(base, bucket) + NODE_BYTES:
                    bucket_shrink(base, bucket)
        safepoint()  # every 63 entries; only the loop thread uses them, and the collector does not read them
        chunks -= 1
        if below == 0 or chunks == 0:
            break
        chunk = pool_address(pool, below - 1)
        at = chunk + get(pool + POOL.CHUNK_BYTES)
    put(bucket + BUCKET.SWEEP, below)
    bucket_lost(base, number, gone, gone)
    put(bucket + BUCKET.LOOSE, 1)


@helper
def buckets_least(base: int) -> int:
    """The earliest far deadline; or, if that timer was cancelled and its bucket is large, a lower bound in the same
    bucket: the loop then wakes, opens the bucket, and learns the exact one. There must be a far timer.
    """
    bucket = bucket_at(base, buckets_first(base))
    if get(bucket + BUCKET.LOOSE) != 0 and get(bucket + BUCKET.COUNT) <= SCAN_MOST:
        timers = base + STATE.TIMERS
        pool = base + STATE.POOL
        least = FOREVER
        chunk, end = bucket_chunk(base, bucket), get(bucket + BUCKET.NEXT)
        while True:
            for at in range(chunk + NODE_BYTES, end, NODE_BYTES):
                if get(at) < least and entry_live(timers, get(at + 8)):
                    least = get(at)
            below = get(chunk)
            if below == 0:
                break
            chunk = pool_address(pool, below - 1)
            end = chunk + get(pool + POOL.CHUNK_BYTES)
        put(bucket + BUCKET.LEAST, least)
        put(bucket + BUCKET.LOOSE, 0)
    return get(bucket + BUCKET.LEAST)
