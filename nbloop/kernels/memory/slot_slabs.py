"""Slabs: where slots (slots.py) come from, 1,024 at a time, and how their memory is given back after a peak.

A slab is a mapping, or, once there are many, one of the 64 parts of a large mapping with huge pages. When a million
slots are used in random order, each access costs a page-table walk besides its own cache miss, on a virtual machine a
walk through two sets of tables; with huge pages cancelling takes 0.8 times as long. The first slabs are small, because
a few timers should not cost 4 MiB.

Problem: a peak of a million timers would cost 72 MB for ever, and each collection would visit a million slots. But a
mapping cannot be released, because any thread may read a slot with an id that is long stale. Idea: a slab *rests* while
none of its slots is used. Its pages go back to the system, and so do those of its links in the stack's table, but the
addresses stay (`map_empty`). A stale reader finds zeros: no id has that generation, and a stale pop fails at the
stack's counter. The slab's number waits in a stack, and the collector skips it. Its *floor*, the highest generation of
its slots plus 1, stays in a table: when the slab *opens* again, its slots continue from there, so no id repeats. Every
slab begins at rest, with the floor 1.

Nothing counts the free slots of a slab, because every arm and cancel would pay for that. Instead, before a sleep, the
loop thread sorts the stack of free slots, `PORTION` at a time: it moves each to its slab's chain of *gathered* slots,
whose word also counts them. A chain of all the slab's slots is a slab that may rest. Gathered slots are still available
to every thread: a thread that finds the stack empty takes a whole chain, and pushes it onto the stack. Only the loop
thread adds to a chain, and every thread takes all of it or nothing, so a swap cannot meet ABA.

Invariants: a free slot is in the stack, in its slab's chain, among the spares, or in a slab at rest, and only once.
`floors` of a slab is 0 while the slab is open; otherwise its number is in the stack of slabs at rest, or a thread is
just opening it or sending it to rest, and `rest_count` counts it. Only a thread that took all 1,024 slots of a slab
sends it to rest, and only a thread that popped its number opens it.

It loses when each slab keeps one slot in use: nothing can rest, and the sorting, 0.1 µs per slot, was for nothing. A
part of a large mapping that has rested gets small pages when it opens again.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, exchange, fetch_add, get, load, put, store
from ..base.kernel import apart, helper, inlined
from ..base.layout import SLOT, SLOT_BYTES, SLOT_LIMIT, SLOTS_PER_SLAB_BITS, TIMERS
from .stack import INDEX_BITS, INDEX_MASK, stack_pop, stack_push
from .system import map_empty, map_give, map_take

GENERATION_SHIFT = 4  # in a slot's word, as timer_slots.py explains
PER_SLAB = 1 << SLOTS_PER_SLAB_BITS
MANY = 64 * PER_SLAB  # slots: a mapping of 4 MiB, the smallest with huge pages
KEEP_SLABS = 16  # open slabs that never rest: 1 MiB, and 0.1 ms of a collection
PORTION = 2048  # slots that are sorted in one turn, which takes 0.2 ms
REST_COST = 256  # what sending a slab to rest counts in a portion, in sorted slots


@inlined
def slot_at(timers: int, slot: int) -> int:
    """The address of a slot's record."""
    return (
        load(get(timers + TIMERS.SLABS) + ((slot >> SLOTS_PER_SLAB_BITS) << 3)) + (slot & (PER_SLAB - 1)) * SLOT_BYTES
    )


@helper
def slots_at_once(made: int) -> int:
    """The number of slots in the next mapping, when `made` slots exist."""
    return MANY if made >= MANY and made + MANY <= SLOT_LIMIT else PER_SLAB


@apart
def slots_make(timers: int) -> int:
    """`slot_take` when the stack is empty: take gathered slots, else open a slab at rest, else make a mapping. Any
    thread; O(slabs), and O(1) amortised over the slots that it pushes onto the stack.
    """
    while True:
        slot = slots_regain(timers)
        if slot >= 0:
            return slot
        slab = stack_pop(timers + TIMERS.RESTING, get(timers + TIMERS.SLAB_NEXT))
        if slab >= 0:
            return slab_open(timers, slab)
        first = load(timers + TIMERS.SLOT_COUNT)
        count = slots_at_once(first)
        address = map_take(count * SLOT_BYTES) if first + count <= SLOT_LIMIT else 0
        if address == 0:
            return stack_pop(timers + TIMERS.FREE, get(timers + TIMERS.NEXT))  # others may have freed some meanwhile
        if compare_and_swap(timers + TIMERS.SLOT_COUNT, first, first + count):
            return slabs_begin(timers, first >> SLOTS_PER_SLAB_BITS, count >> SLOTS_PER_SLAB_BITS, address)
        map_give(address, count * SLOT_BYTES)  # another thread was first to make some
        slot = stack_pop(timers + TIMERS.FREE, get(timers + TIMERS.NEXT))
        if slot >= 0:
            return slot


@helper
def slabs_begin(timers: int, slab: int, count: int, address: int) -> int:
    """Send the slabs of a new mapping to rest, but open the first; return one of its slots."""
    fetch_add(timers + TIMERS.REST_COUNT, count)
    links = get(timers + TIMERS.SLAB_NEXT)
    for part in range(slab, slab + count):
        store(get(timers + TIMERS.FLOORS) + (part << 3), 1)
        store(get(timers + TIMERS.SLABS) + (part << 3), address + (part - slab) * PER_SLAB * SLOT_BYTES)
        store(links + (part << 3), part + 2)  # links are index + 1
    if count > 1:
        stack_push(timers + TIMERS.RESTING, links, slab + 1, slab + count - 1)
    return slab_open(timers, slab)


@helper
def slab_open(timers: int, slab: int) -> int:
    """End the rest of a slab whose number the caller took: return its first slot, and push the others onto the
    stack.
    """
    floor = get(timers + TIMERS.FLOORS) + (slab << 3)
    generation = load(floor) - 1
    first = slab << SLOTS_PER_SLAB_BITS
    if generation != 0:
        for slot in range(first, first + PER_SLAB):
            store(slot_at(timers, slot) + SLOT.WORD, generation << GENERATION_SHIFT)
    store(floor, 0)
    fetch_add(timers + TIMERS.REST_COUNT, -1)
    table = get(timers + TIMERS.NEXT)
    for slot in range(first + 1, first + PER_SLAB - 1):
        store(table + (slot << 3), slot + 2)
    stack_push(timers + TIMERS.FREE, table, first + 1, first + PER_SLAB - 1)
    return first


@helper
def slab_rests(timers: int, slab: int) -> bool:
    """Whether a slab is at rest: none of its slots is used or owns anything."""
    return load(get(timers + TIMERS.FLOORS) + (slab << 3)) != 0


@helper
def slots_regain(timers: int) -> int:
    """Take a chain of gathered slots: return the first, and push the others onto the stack; -1 if there is no chain.

    It begins where the last chain was: if each slab has only a few gathered slots, a search from the front would cost
    O(slabs) for each.
    """
    slabs = load(timers + TIMERS.SLOT_COUNT) >> SLOTS_PER_SLAB_BITS
    slab = load(timers + TIMERS.REGAINED)
    for _ in range(slabs):
        if slab >= slabs:
            slab = 0
        chain = get(timers + TIMERS.GATHERED) + (slab << 3)
        word = exchange(chain, 0) if load(chain) != 0 else 0
        if word != 0:
            store(timers + TIMERS.REGAINED, slab)
            first = (word & INDEX_MASK) - 1
            count = word >> INDEX_BITS
            fetch_add(timers + TIMERS.GATHERED_COUNT, -count)
            if count > 1:
                table = get(timers + TIMERS.NEXT)
                second = last = load(table + (first << 3)) - 1
                for _ in range(count - 2):
                    last = load(table + (last << 3)) - 1
                stack_push(timers + TIMERS.FREE, table, second, last)
            return first
        slab += 1
    return -1


@helper
def slot_gather(timers: int, slot: int) -> int:
    """Add a free slot, which the caller took, to its slab's chain; return the chain's word. Loop thread."""
    chain = get(timers + TIMERS.GATHERED) + ((slot >> SLOTS_PER_SLAB_BITS) << 3)
    while True:
        old = load(chain)
        store(get(timers + TIMERS.NEXT) + (slot << 3), old & INDEX_MASK)
        new = (old & ~INDEX_MASK) + (1 << INDEX_BITS) | slot + 1
        if compare_and_swap(chain, old, new):
            return new
        fetch_add(timers + TIMERS.RESTING_RETRIES, 1)


@apart
def slab_rest(timers: int, slab: int) -> None:
    """Send a slab to rest. The caller took all of its slots. Loop thread; some 20 µs."""
    first = slot_at(timers, slab << SLOTS_PER_SLAB_BITS)
    generation = 0
    for record in range(first, first + PER_SLAB * SLOT_BYTES, SLOT_BYTES):
        generation = max(generation, load(record + SLOT.WORD) >> GENERATION_SHIFT)
    store(get(timers + TIMERS.FLOORS) + (slab << 3), generation + 1)
    map_empty(first, PER_SLAB * SLOT_BYTES)
    links = PER_SLAB << 3
    if links & (get(timers + TIMERS.PAGE) - 1) == 0:  # not with pages of 16 KiB: they hold other slabs' links too
        map_empty(get(timers + TIMERS.NEXT) + slab * links, links)
    fetch_add(timers + TIMERS.REST_COUNT, 1)
    stack_push(timers + TIMERS.RESTING, get(timers + TIMERS.SLAB_NEXT), slab, slab)


@helper
def slabs_open(timers: int) -> int:
    """How many slabs are not at rest. Any thread; a moment old."""
    return (load(timers + TIMERS.SLOT_COUNT) >> SLOTS_PER_SLAB_BITS) - load(timers + TIMERS.REST_COUNT)


@inlined
def spare_pop(timers: int) -> int:
    """Take a spare slot; -1 if there is none. Loop thread."""
    spare = get(timers + TIMERS.SPARE)
    if spare == 0:
        return -1
    put(timers + TIMERS.SPARE, get(slot_at(timers, spare - 1) + SLOT.PLACE))
    put(timers + TIMERS.SPARES, get(timers + TIMERS.SPARES) - 1)
    return spare - 1


@helper
def slots_trim(timers: int, used: int) -> bool:
    """Before a sleep, when about `used` slots are in use: sort a portion of the free ones, and send to rest the slabs
    that turn out to be free. Whether more is left to do. Loop thread.

    It begins once `KEEP_SLABS` slabs' worth of free slots is in no chain, or when half of the slots that were in use
    when it last ended have been freed: these may be all that kept slabs open. It sorts no more slots than are in no
    chain when it begins. So each sorting is paid for by that many frees, also while other threads undo it. Slots freed
    meanwhile count for the next one. But these may be few, and yet one in each slab; so it also begins when more than
    `2 * KEEP_SLABS` slabs are open in which no slot can be in use. Then at least `KEEP_SLABS` of them come to rest,
    which pays for it.
    """
    slabs = slabs_open(timers)
    free = (slabs << SLOTS_PER_SLAB_BITS) - used
    keep = KEEP_SLABS << SLOTS_PER_SLAB_BITS
    unsorted = get(timers + TIMERS.UNSORTED)
    if unsorted == 0:
        loose = free - load(timers + TIMERS.GATHERED_COUNT)
        last = get(timers + TIMERS.LAST_USED)
        if free < 2 * keep or (loose < keep and slabs - used <= 2 * KEEP_SLABS and (last == 0 or 2 * used > last)):
            return False
        unsorted = loose
    left = PORTION
    gathered = 0
    while left > 0 and unsorted > 0:
        slot = spare_pop(timers)  # first: each may lie in a slab that is otherwise free
        if slot < 0:
            slot = stack_pop(timers + TIMERS.FREE, get(timers + TIMERS.NEXT))
        if slot < 0:
            unsorted = 0
            break
        unsorted -= 1
        gathered += 1
        left -= 1
        slab = slot >> SLOTS_PER_SLAB_BITS
        word = slot_gather(timers, slot)
        if (
            word >> INDEX_BITS == PER_SLAB
            and slabs_open(timers) > KEEP_SLABS
            and compare_and_swap(get(timers + TIMERS.GATHERED) + (slab << 3), word, 0)
        ):
            slab_rest(timers, slab)
            gathered -= PER_SLAB
            left -= REST_COST
    fetch_add(timers + TIMERS.GATHERED_COUNT, gathered)
    put(timers + TIMERS.UNSORTED, unsorted)
    if unsorted == 0:
        put(timers + TIMERS.LAST_USED, used)
    return unsorted != 0


@helper
def slots_end(timers: int) -> bool:
    """Release some 4 MiB of mappings, at most 16, the last first, and the pages of their links. Whether more are left.
    No slot may be in use any more.
    """
    store(timers + TIMERS.FREE, 0)
    store(timers + TIMERS.RESTING, 0)
    put(timers + TIMERS.SPARE, 0)
    made = load(timers + TIMERS.SLOT_COUNT)
    left = MANY
    while made > 0 and left > 0:
        first = 0
        while first + slots_at_once(first) < made:
            first += slots_at_once(first)
        map_give(load(get(timers + TIMERS.SLABS) + ((first >> SLOTS_PER_SLAB_BITS) << 3)), (made - first) * SLOT_BYTES)
        if made - first == MANY:  # otherwise the links are few: they go with the table
            map_empty(get(timers + TIMERS.NEXT) + (first << 3), MANY << 3)
        left -= max(made - first, MANY >> 4)  # 64 small ones, which end a full table, would take 0.8 ms
        made = first
    store(timers + TIMERS.SLOT_COUNT, made)
    return made > 0
