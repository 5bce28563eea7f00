"""Slots: where the callable of a timer, an immediate or a watched descriptor waits, under a number and a generation.

A slot is 64 bytes in a slab of 1,024; it never moves, and its memory lives as long as the loop, so any thread may
look at any slot that was ever used. Free ones wait in a lock-free stack (stack.py), and up to `SPARES_MOST` in one of
the loop thread's own. An id is ``generation << SLOT_BITS | slot``, and the slot's word holds the generation too: of a
slot that is used again they differ, so a stale id is unknown, never somebody else's (until 2**41 uses of one slot).
What else the word means is its user's: `timer_slots.py` has the states.

A slab is a map of its own, or, once there are many, one of 64 parts of a large one, for which huge pages are asked
for. Of a million slots used in random order each costs a walk through the page tables besides its own cache miss, on
a virtual machine through two sets of them; in huge pages cancelling takes 0.8 times as long. The first slabs are small,
because a few timers should not cost 4 MiB.
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
MANY = 64 * PER_SLAB  # slots: a map of 4 MiB, the least for which huge pages are asked for
SPARES_MOST = 1024  # slots that the loop's thread keeps for itself


@inlined
def slot_at(timers: int, slot: int) -> int:
    """Address of a slot's record."""
    return (
        load(get(timers + TIMERS.SLABS) + ((slot >> SLOTS_PER_SLAB_BITS) << 3)) + (slot & (PER_SLAB - 1)) * SLOT_BYTES
    )


@helper
def slot_take(timers: int) -> int:
    """A free slot's number, or -1 if there is no memory or no number left. Any thread; O(1)."""
    slot = stack_pop(timers + TIMERS.FREE, get(timers + TIMERS.NEXT))
    return slot if slot >= 0 else slots_make(timers)


@helper
def slots_at_once(made: int) -> int:
    """How many slots the map has that comes after so many."""
    return MANY if made >= MANY and made + MANY <= SLOT_LIMIT else PER_SLAB


@apart
def slots_make(timers: int) -> int:
    """`slot_take` when no free one is left: as many as a map has, all but the first of them into the stack."""
    table = get(timers + TIMERS.NEXT)
    while True:
        first = load(timers + TIMERS.SLOT_COUNT)
        count = slots_at_once(first)
        address = map_take(count * SLOT_BYTES) if first + count <= SLOT_LIMIT else 0
        if address == 0:
            return stack_pop(timers + TIMERS.FREE, table)  # somebody may have put some there meanwhile
        if compare_and_swap(timers + TIMERS.SLOT_COUNT, first, first + count):
            break
        map_give(address, count * SLOT_BYTES)  # another thread has made some
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
    """Give back every map. Nobody looks at a slot any more."""
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
    """Put a slot back that no command names. The loop thread, or whoever failed to arm it."""
    stack_push(timers + TIMERS.FREE, get(timers + TIMERS.NEXT), slot, slot)


@inlined
def slot_take_here(timers: int) -> int:
    """`slot_take` on the loop's thread: from its own stack of spare slots if it can, which saves the
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
    """`slot_free` on the loop's thread: kept as a spare, unless there are `SPARES_MOST`."""
    if get(timers + TIMERS.SPARES) >= SPARES_MOST:
        slot_free(timers, slot)
        return
    # A line that is warm; that of T_NEXT would be cold.
    put(slot_at(timers, slot) + SLOT.PLACE, get(timers + TIMERS.SPARE))
    put(timers + TIMERS.SPARE, slot + 1)
    put(timers + TIMERS.SPARES, get(timers + TIMERS.SPARES) + 1)


@inlined
def slot_open(timers: int, slot: int, callback: int, state: int) -> int:
    """Start a slot's next generation; its id is returned. The slot's owner; the reference `callback` goes to the
    slot.
    """
    record = slot_at(timers, slot)
    generation = ((load(record + SLOT.WORD) >> GENERATION_SHIFT) + 1) & GENERATION_MASK
    if generation == 0:
        generation = 1  # so that no id is 0
    store(record + SLOT.CALLBACK, callback)  # a canceller with a stale id may be reading it; its swap then fails
    store(record + SLOT.WORD, (generation << GENERATION_SHIFT) | state)
    return (generation << SLOT_BITS) | slot


@helper
def timers_referenced(base: int) -> int:
    """How many live timers count. Any thread; exact when nothing changes meanwhile."""
    timers = base + STATE.TIMERS
    return (
        load_sc(timers + TIMERS.LIVE_HERE)
        + load_sc(timers + TIMERS.LIVE_ELSEWHERE)
        - load_sc(timers + TIMERS.UNREFERENCED)
    )


@inlined
def slot_of(timers: int, identifier: int) -> int:
    """Address of the slot that an id names, if such a slot was ever used, or 0. Any thread."""
    slot = identifier & (SLOT_LIMIT - 1)
    if identifier <= 0 or slot >= load(timers + TIMERS.SLOT_COUNT):
        return 0
    slab = load(get(timers + TIMERS.SLABS) + ((slot >> SLOTS_PER_SLAB_BITS) << 3))
    if slab == 0:  # counted, not made yet
        return 0
    return slab + (slot & (PER_SLAB - 1)) * SLOT_BYTES
