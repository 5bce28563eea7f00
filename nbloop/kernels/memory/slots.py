"""Slots: where the callable of a timer, an immediate or a watched descriptor waits, under a number and a generation.

A slot is 64 bytes in a slab of 1,024; it never moves, and its memory lives as long as the loop, so any thread may read
any slot that was ever used. Free slots wait in a lock-free stack (stack.py), and up to `SPARES_MOST` in a private one
of the loop thread. An id is ``generation << SLOT_BITS | slot``, and the slot's word also holds the generation. When a
slot is reused the two differ, so a stale id is unknown and never denotes another timer (until one slot has been used
2**41 times). `timer_slots.py` explains the states in the word.

A slab is a mapping, or, once there are many, one of the 64 parts of a large mapping with huge pages. When a million
slots are used in random order, each access costs a page-table walk besides its own cache miss, on a virtual machine a
walk through two sets of tables; with huge pages cancelling takes 0.8 times as long. The first slabs are small, because
a few timers should not cost 4 MiB.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, exchange, get, load, load_sc, put, store
from ..base.kernel import apart, helper, inlined
from ..base.layout import SLOT, SLOT_BITS, SLOT_BYTES, SLOT_LIMIT, SLOTS_PER_SLAB_BITS, STATE, TIMERS
from .stack import stack_pop, stack_push
from .system import map_give, map_take

WATCHED, DISPATCHING = 6, 7  # states of a slot, beside those of timers

SPENT, PENDING, ARMED, FIRING, CANCELLED, QUEUED = 0, 1, 2, 3, 4, 5  # QUEUED: an immediate
STATE_MASK, UNREFERENCED = 7, 8

GENERATION_SHIFT = 4
GENERATION_MASK = (1 << (63 - SLOT_BITS)) - 1
PER_SLAB = 1 << SLOTS_PER_SLAB_BITS
MANY = 64 * PER_SLAB  # slots: a mapping of 4 MiB, the smallest with huge pages
SPARES_MOST = 1024  # free slots that the loop's thread keeps for itself


@inlined
def slot_at(timers: int, slot: int) -> int:
    """The address of a slot's record."""
    return (
        load(get(timers + TIMERS.SLABS) + ((slot >> SLOTS_PER_SLAB_BITS) << 3)) + (slot & (PER_SLAB - 1)) * SLOT_BYTES
    )


@helper
def slot_take(timers: int) -> int:
    """Take a free slot; return its number, or -1 if no memory or no number is left. Any thread; O(1)."""
    slot = stack_pop(timers + TIMERS.FREE, get(timers + TIMERS.NEXT))
    return slot if slot >= 0 else slots_make(timers)


@helper
def slots_at_once(made: int) -> int:
    """The number of slots in the next mapping, when `made` slots exist."""
    return MANY if made >= MANY and made + MANY <= SLOT_LIMIT else PER_SLAB


@apart
def slots_make(timers: int) -> int:
    """`slot_take` when none is free: make a mapping of slots, return the first, and push the others onto the stack."""
    table = get(timers + TIMERS.NEXT)
    while True:
        first = load(timers + TIMERS.SLOT_COUNT)
        count = slots_at_once(first)
        address = map_take(count * SLOT_BYTES) if first + count <= SLOT_LIMIT else 0
        if address == 0:
            return stack_pop(timers + TIMERS.FREE, table)  # another thread may have freed some meanwhile
        if compare_and_swap(timers + TIMERS.SLOT_COUNT, first, first + count):
            break
        map_give(address, count * SLOT_BYTES)  # another thread was first to make some
        slot = stack_pop(timers + TIMERS.FREE, table)
        if slot >= 0:
            return slot
    slab = first >> SLOTS_PER_SLAB_BITS
    for part in range(count >> SLOTS_PER_SLAB_BITS):
        store(get(timers + TIMERS.SLABS) + ((slab + part) << 3), address + part * PER_SLAB * SLOT_BYTES)
    for slot in range(first + 1, first + count - 1):
        store(table + (slot << 3), slot + 2)
    stack_push(timers + TIMERS.FREE, table, first + 1, first + count - 1)
    return first


@helper
def slots_end(timers: int) -> None:
    """Release every mapping. No slot may be in use any more."""
    made = exchange(timers + TIMERS.SLOT_COUNT, 0)
    store(timers + TIMERS.FREE, 0)
    put(timers + TIMERS.SPARE, 0)
    first = 0
    while first < made:
        count = slots_at_once(first)
        map_give(load(get(timers + TIMERS.SLABS) + ((first >> SLOTS_PER_SLAB_BITS) << 3)), count * SLOT_BYTES)
        first += count


@helper
def slot_free(timers: int, slot: int) -> None:
    """Put back a slot that no command names. The loop thread, or the thread that failed to arm it."""
    stack_push(timers + TIMERS.FREE, get(timers + TIMERS.NEXT), slot, slot)


@inlined
def slot_take_here(timers: int) -> int:
    """`slot_take` on the loop's thread: from its private stack of spare slots if possible, which saves the
    compare-and-swap.
    """
    spare = get(timers + TIMERS.SPARE)
    if spare == 0:
        return slot_take(timers)
    put(timers + TIMERS.SPARE, get(slot_at(timers, spare - 1) + SLOT.PLACE))
    put(timers + TIMERS.SPARES, get(timers + TIMERS.SPARES) - 1)
    return spare - 1


@inlined
def slot_free_here(timers: int, slot: int) -> None:
    """`slot_free` on the loop's thread: keeps the slot as a spare, unless there are `SPARES_MOST`."""
    if get(timers + TIMERS.SPARES) >= SPARES_MOST:
        slot_free(timers, slot)
        return
    # The slot's own line is warm; its line in the table `next` would be cold.
    put(slot_at(timers, slot) + SLOT.PLACE, get(timers + TIMERS.SPARE))
    put(timers + TIMERS.SPARE, slot + 1)
    put(timers + TIMERS.SPARES, get(timers + TIMERS.SPARES) + 1)


@inlined
def slot_open(timers: int, slot: int, callback: int, state: int) -> int:
    """Start a slot's next generation and return its id. The slot's owner; the slot takes the reference `callback`."""
    record = slot_at(timers, slot)
    generation = ((load(record + SLOT.WORD) >> GENERATION_SHIFT) + 1) & GENERATION_MASK
    if generation == 0:
        generation = 1  # so that no id is 0
    store(record + SLOT.CALLBACK, callback)  # a canceller with a stale id may read it; its swap then fails
    store(record + SLOT.WORD, (generation << GENERATION_SHIFT) | state)
    return (generation << SLOT_BITS) | slot


@helper
def timers_referenced(base: int) -> int:
    """The number of live, referenced timers. Any thread; exact if nothing changes meanwhile."""
    timers = base + STATE.TIMERS
    return (
        load_sc(timers + TIMERS.LIVE_HERE)
        + load_sc(timers + TIMERS.LIVE_ELSEWHERE)
        - load_sc(timers + TIMERS.UNREFERENCED)
    )


@inlined
def slot_of(timers: int, identifier: int) -> int:
    """The address of the slot that an id names, or 0 if no such slot was ever used. Any thread."""
    slot = identifier & (SLOT_LIMIT - 1)
    if identifier <= 0 or slot >= load(timers + TIMERS.SLOT_COUNT):
        return 0
    slab = load(get(timers + TIMERS.SLABS) + ((slot >> SLOTS_PER_SLAB_BITS) << 3))
    if slab == 0:  # counted, but not made yet
        return 0
    return slab + (slot & (PER_SLAB - 1)) * SLOT_BYTES
