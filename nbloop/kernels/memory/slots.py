"""Slots: where the callable of a timer, an immediate or a watched descriptor waits, under a number and a generation.

A slot is 64 bytes in a slab of 1,024 (slot_slabs.py); it never moves, and its address stays valid as long as the loop,
so any thread may read any slot that was ever used. Free slots wait in a lock-free stack (stack.py), and up to
`SPARES_MOST` in a private one of the loop thread. An id is ``generation << SLOT_BITS | slot``, and the slot's word also
holds the generation. When a slot is reused the two differ, so a stale id is unknown and never denotes another timer
(until a slot of its slab has been used 2**41 times). `timer_slots.py` explains the states in the word.
"""

from __future__ import annotations

from ..base.atomics import get, load, load_sc, put, store
from ..base.kernel import helper, inlined
from ..base.layout import SLOT, SLOT_BITS, SLOT_BYTES, SLOT_LIMIT, SLOTS_PER_SLAB_BITS, STATE, TIMERS
from .slot_slabs import GENERATION_SHIFT, PER_SLAB, slot_at, slots_make, spare_pop
from .stack import stack_pop, stack_push

WATCHED, DISPATCHING = 6, 7  # states of a slot, beside those of timers

SPENT, PENDING, ARMED, FIRING, CANCELLED, QUEUED = 0, 1, 2, 3, 4, 5  # QUEUED: an immediate
STATE_MASK, UNREFERENCED = 7, 8

GENERATION_MASK = (1 << (63 - SLOT_BITS)) - 1
SPARES_MOST = 1024  # free slots that the loop's thread keeps for itself


@helper
def slot_take(timers: int) -> int:
    """Take a free slot; return its number, or -1 if no memory or no number is left. Any thread; O(1)."""
    slot = stack_pop(timers + TIMERS.FREE, get(timers + TIMERS.NEXT))
    return slot if slot >= 0 else slots_make(timers)


@helper
def slot_free(timers: int, slot: int) -> None:
    """Put back a slot that no command names. The loop thread, or the thread that failed to arm it."""
    stack_push(timers + TIMERS.FREE, get(timers + TIMERS.NEXT), slot, slot)


@inlined
def slot_take_here(timers: int) -> int:
    """`slot_take` on the loop's thread: from its private stack of spare slots if possible, which saves the
    compare-and-swap.
    """
    spare = spare_pop(timers)
    return spare if spare >= 0 else slot_take(timers)


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
