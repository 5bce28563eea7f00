r"""Timer slots: armed and cancelled from any thread, with a definite answer at once.

Problem: the heap belongs to the loop thread, but `cancel` on another thread must say *now* whether the callback will
run, without a round trip through the loop (tens of µs). Idea: the answer is not in the heap. Each timer has a slot
with one atomic word, ``generation << 4 | unreferenced << 3 | state``, and whoever swaps that word decides: the loop
by ARMED -> SPENT before it calls, the canceller by ARMED -> CANCELLED. The id that the user holds is ``generation <<
SLOT_BITS | slot``: of a slot used again the generation differs, so a stale id is 'unknown', never somebody else's
timer (until 2**41 uses of one slot).

::

    SPENT --arm on the loop thread--> ARMED --fire--> SPENT            (one-shot; the loop then owns the callback)
      |                                 |  \--fire--> RUNNING --> ARMED  (interval: armed anew after its callback)
      |                                 |                |
      +--arm elsewhere--> PENDING ------+----cancel------+--> CANCELLED --out of the heap--> SPENT, slot free

Another thread's arm and cancel travel to the heap as commands in the remote queue; until the loop runs they are
tombstones, never more than `WAKE_BACKLOG` of them. They wake a sleeping loop only if the new deadline is earlier than
the one it sleeps until.

Invariants: the callback reference belongs to the slot while PENDING, ARMED or RUNNING; who swaps the word to
CANCELLED from PENDING or ARMED takes and releases it, from RUNNING the loop does. A slot goes back to the free stack
once, by the loop thread, when no command names it any more. ``live_here + live_elsewhere`` is the number of PENDING,
ARMED and RUNNING slots; ``unreferenced`` of them do not count.
"""

from __future__ import annotations

from .atomics import compare_and_swap, fetch_add, get, load, load_sc, put, store
from .capi import Py_DecRef, PyErr_Clear, PyObject_CallNoArgs
from .heap import heap_insert, heap_remove, heap_reserve
from .ingress import queue_length, queue_push
from .kernel import data, helper
from .layout import (
    KIND_ARM,
    KIND_CANCEL,
    KIND_SHIFT,
    MAKE_ARRAY,
    POINTER_MASK,
    REFUSED_SLOTS,
    REMOTE,
    S_CALLBACK,
    S_CLAMP,
    S_DEADLINE,
    S_NESTING,
    S_PERIOD,
    S_WORD,
    SLEEP,
    SLEEP_DEADLINE,
    SLOT_BITS,
    SLOT_BYTES,
    SLOT_LIMIT,
    SLOTS_PER_SLAB_BITS,
    T_COMMANDS,
    T_FREE,
    T_LIVE_ELSEWHERE,
    T_LIVE_HERE,
    T_MAKE_SLAB,
    T_NESTING,
    T_NEXT,
    T_POSITIONS,
    T_POSITIONS_CAPACITY,
    T_SEQUENCE,
    T_SLAB_OBJECTS,
    T_SLABS,
    T_SLOT_COUNT,
    T_SPARE,
    T_SPARES,
    T_UNREFERENCED,
    TIMERS_AT,
)
from .parking import FOREVER, IS_ASLEEP, wake
from .stack import stack_pop, stack_push

SPENT, PENDING, ARMED, RUNNING, CANCELLED, QUEUED = 0, 1, 2, 3, 4, 5  # QUEUED: an immediate
STATE_MASK, UNREFERENCED, GENERATION_SHIFT = 7, 8, 4
GENERATION_MASK = (1 << (63 - SLOT_BITS)) - 1
WAKE_BACKLOG = 1024  # commands that may wait while the loop sleeps
CLAMP_LEVEL, CLAMP_NS = 5, 4_000_000  # HTML, timer initialisation steps: nesting level greater than 5, less than 4 ms
PER_SLAB = 1 << SLOTS_PER_SLAB_BITS
SPARES_MOST = 1024  # slots that the loop's thread keeps for itself


@helper
def slot_at(timers: int, slot: int) -> int:
    """Address of a slot's record."""
    return load(get(timers + T_SLABS) + ((slot >> SLOTS_PER_SLAB_BITS) << 3)) + (slot & (PER_SLAB - 1)) * SLOT_BYTES


@helper
def slot_take(timers: int) -> int:
    """A free slot's number, or -1 if there is no memory or no number left. Any thread; O(1)."""
    slot = stack_pop(timers + T_FREE, get(timers + T_NEXT))
    if slot >= 0:
        return slot
    array = PyObject_CallNoArgs(get(timers + T_MAKE_SLAB))
    if array == 0:
        PyErr_Clear()
        return -1
    first = fetch_add(timers + T_SLOT_COUNT, PER_SLAB)
    if first >= SLOT_LIMIT:
        fetch_add(timers + T_SLOT_COUNT, -PER_SLAB)
        Py_DecRef(array)
        return -1
    slab = first >> SLOTS_PER_SLAB_BITS
    put(get(timers + T_SLAB_OBJECTS) + (slab << 3), array)
    store(get(timers + T_SLABS) + (slab << 3), (data(array) + 63) & ~63)
    table = get(timers + T_NEXT)
    for slot in range(first + 1, first + PER_SLAB - 1):
        store(table + (slot << 3), slot + 2)
    stack_push(timers + T_FREE, table, first + 1, first + PER_SLAB - 1)
    return first


@helper
def slot_free(timers: int, slot: int) -> None:
    """Put a slot back that no command names. The loop thread, or whoever failed to arm it."""
    stack_push(timers + T_FREE, get(timers + T_NEXT), slot, slot)


@helper
def slot_take_here(timers: int) -> int:
    """`slot_take` on the loop's thread: from its own stack of spare slots if it can, which saves the
    compare-and-swap.
    """
    spare = get(timers + T_SPARE)
    if spare == 0:
        return slot_take(timers)
    put(timers + T_SPARE, load(get(timers + T_NEXT) + ((spare - 1) << 3)))
    put(timers + T_SPARES, get(timers + T_SPARES) - 1)
    return spare - 1


@helper
def slot_free_here(timers: int, slot: int) -> None:
    """`slot_free` on the loop's thread: kept as a spare, unless there are `SPARES_MOST`."""
    if get(timers + T_SPARES) >= SPARES_MOST:
        slot_free(timers, slot)
        return
    store(get(timers + T_NEXT) + (slot << 3), get(timers + T_SPARE))
    put(timers + T_SPARE, slot + 1)
    put(timers + T_SPARES, get(timers + T_SPARES) + 1)


@helper
def slot_open(timers: int, slot: int, callback: int, state: int) -> int:
    """Start a slot's next generation; its id is returned. The slot's owner; the reference `callback` goes to the
    slot.
    """
    record = slot_at(timers, slot)
    generation = ((load(record + S_WORD) >> GENERATION_SHIFT) + 1) & GENERATION_MASK
    if generation == 0:
        generation = 1  # so that no id is 0
    store(record + S_CALLBACK, callback)  # a canceller with a stale id may be reading it; its swap then fails
    store(record + S_WORD, (generation << GENERATION_SHIFT) | state)
    return (generation << SLOT_BITS) | slot


@helper
def slot_of(timers: int, identifier: int) -> int:
    """Address of the slot that an id names, if such a slot was ever used, or 0. Any thread."""
    slot = identifier & (SLOT_LIMIT - 1)
    if identifier <= 0 or slot >= load(timers + T_SLOT_COUNT):
        return 0
    slab = load(get(timers + T_SLABS) + ((slot >> SLOTS_PER_SLAB_BITS) << 3))
    if slab == 0:  # counted, not made yet
        return 0
    return slab + (slot & (PER_SLAB - 1)) * SLOT_BYTES


@helper
def due_after(now: int, delay: int, nesting: int, clamp: int) -> int:
    """The deadline for a delay of ns; with `clamp`, of the sixth nesting level and deeper not under 4 ms (HTML)."""
    if clamp != 0 and nesting > CLAMP_LEVEL and delay < CLAMP_NS:
        delay = CLAMP_NS
    return now + delay


@helper
def next_order(timers: int) -> int:
    """The order part of the next heap entry. Loop thread."""
    sequence = get(timers + T_SEQUENCE) + 1
    put(timers + T_SEQUENCE, sequence)
    return sequence << SLOT_BITS


@helper
def timer_arm_here(base: int, callback: int, deadline: int, period: int, clamp: int) -> int:
    """Arm on the loop thread: straight into the heap. The id, or -REFUSED_x and the callback is still the caller's."""
    timers = base + TIMERS_AT
    slot = slot_take_here(timers)
    if slot < 0:
        return -REFUSED_SLOTS
    if heap_reserve(timers, get(base + MAKE_ARRAY), slot) < 0:
        slot_free_here(timers, slot)
        return -REFUSED_SLOTS
    record = slot_at(timers, slot)
    put(record + S_DEADLINE, deadline)
    put(record + S_PERIOD, period)
    put(record + S_CLAMP, clamp)
    put(record + S_NESTING, get(timers + T_NESTING) + 1)
    store(timers + T_LIVE_HERE, get(timers + T_LIVE_HERE) + 1)
    identifier = slot_open(timers, slot, callback, ARMED)
    heap_insert(timers, slot, deadline, next_order(timers))
    return identifier


@helper
def timer_arm_elsewhere(base: int, callback: int, deadline: int, period: int, clamp: int) -> int:
    """Arm on any other thread: a command to the loop. The id, or -REFUSED_x and the callback is still the caller's."""
    timers = base + TIMERS_AT
    slot = slot_take(timers)
    if slot < 0:
        return -REFUSED_SLOTS
    record = slot_at(timers, slot)
    put(record + S_DEADLINE, deadline)
    put(record + S_PERIOD, period)
    put(record + S_CLAMP, clamp)
    put(record + S_NESTING, 1)
    fetch_add(timers + T_LIVE_ELSEWHERE, 1)
    identifier = slot_open(timers, slot, callback, PENDING)
    fetch_add(timers + T_COMMANDS, 1)
    status = queue_push(base + REMOTE, (slot << 4) | (KIND_ARM << KIND_SHIFT))
    if status != 0:  # nobody knows the id yet, so nobody can have cancelled it
        fetch_add(timers + T_COMMANDS, -1)
        fetch_add(timers + T_LIVE_ELSEWHERE, -1)
        store(record + S_WORD, load(record + S_WORD) & ~STATE_MASK)
        slot_free(timers, slot)
        return -status
    wake_for(base, deadline)
    return identifier


@helper
def wake_for(base: int, deadline: int) -> None:
    """Wake the loop if it sleeps past `deadline`, or if too many commands wait for it. Any thread, after its command
    was queued.
    """
    if load_sc(base + SLEEP) == IS_ASLEEP and (
        deadline < load(base + SLEEP_DEADLINE) or queue_length(base + REMOTE) >= WAKE_BACKLOG
    ):
        wake(base)


@helper
def timer_armed(base: int, slot: int) -> int:
    """Carry out another thread's arm. 0, or -1 for no memory and the command has to be tried again. Loop thread."""
    timers = base + TIMERS_AT
    record = slot_at(timers, slot)
    if heap_reserve(timers, get(base + MAKE_ARRAY), slot) < 0:
        return -1
    while True:
        word = load(record + S_WORD)
        if word & STATE_MASK == CANCELLED:
            store(record + S_WORD, word & ~STATE_MASK)
            slot_free_here(timers, slot)
            return 0
        if compare_and_swap(record + S_WORD, word, word & ~STATE_MASK | ARMED):
            heap_insert(timers, slot, get(record + S_DEADLINE), next_order(timers))
            return 0


@helper
def timer_removed(base: int, slot: int) -> None:
    """Carry out another thread's cancel, or the loop's own: out of the heap, slot free. Loop thread."""
    timers = base + TIMERS_AT
    if slot < get(timers + T_POSITIONS_CAPACITY):
        position = get(get(timers + T_POSITIONS) + (slot << 3))
        if position >= 0:
            heap_remove(timers, position)
    record = slot_at(timers, slot)
    store(record + S_WORD, load(record + S_WORD) & ~STATE_MASK)
    slot_free_here(timers, slot)


@helper
def timer_cancel(base: int, identifier: int, here: bool) -> bool:
    """True: it will never run (again). False: unknown, started, or cancelled already. Any thread; `here` on the loop
    thread.

    The callback is released before this returns, and that can run any Python code: nothing is half done by then.
    """
    timers = base + TIMERS_AT
    record = slot_of(timers, identifier)
    if record == 0:
        return False
    slot = identifier & (SLOT_LIMIT - 1)
    while True:
        word = load(record + S_WORD)
        state = word & STATE_MASK
        if word >> GENERATION_SHIFT != identifier >> SLOT_BITS or state == SPENT or state >= CANCELLED:
            return False
        # Read before the swap: from then on the slot may be freed and used again. If the swap succeeds, no generation
        # lay between.
        callback = load(record + S_CALLBACK)
        if compare_and_swap(record + S_WORD, word, word & ~STATE_MASK & ~UNREFERENCED | CANCELLED):
            break
    if word & UNREFERENCED:
        fetch_add(timers + T_UNREFERENCED, -1)
    if here:
        store(timers + T_LIVE_HERE, get(timers + T_LIVE_HERE) - 1)
    else:
        fetch_add(timers + T_LIVE_ELSEWHERE, -1)
    if state == RUNNING:  # an interval in its own callback: the loop sees the word and lets go of both
        return True
    if state == ARMED:
        if here:
            timer_removed(base, slot)
        else:
            fetch_add(timers + T_COMMANDS, 1)
            if queue_push(base + REMOTE, (slot << 4) | (KIND_CANCEL << KIND_SHIFT)) == 0:
                wake_for(base, FOREVER)  # only for the backlog's sake
            else:  # closed, or no memory: a tombstone until its deadline
                fetch_add(timers + T_COMMANDS, -1)
    Py_DecRef(callback & POINTER_MASK)
    return True


@helper
def timer_reference(base: int, identifier: int, referenced: bool) -> bool:
    """Make a live timer count, or not, for `alive`. False: it is not live. Any thread."""
    timers = base + TIMERS_AT
    record = slot_of(timers, identifier)
    if record == 0:
        return False
    while True:
        word = load(record + S_WORD)
        state = word & STATE_MASK
        if word >> GENERATION_SHIFT != identifier >> SLOT_BITS or state == SPENT or state >= CANCELLED:
            return False
        new = word & ~UNREFERENCED if referenced else word | UNREFERENCED
        if new == word:
            return True
        if compare_and_swap(record + S_WORD, word, new):
            fetch_add(timers + T_UNREFERENCED, -1 if referenced else 1)
            return True


@helper
def timers_referenced(base: int) -> int:
    """How many live timers count. Any thread; exact when nothing changes meanwhile."""
    timers = base + TIMERS_AT
    return load(timers + T_LIVE_HERE) + load(timers + T_LIVE_ELSEWHERE) - load(timers + T_UNREFERENCED)


@helper
def immediate_cancel(base: int, identifier: int) -> bool:
    """As `timer_cancel`, for an immediate; its slot stays in the ring and is freed when its turn comes. Any thread."""
    timers = base + TIMERS_AT
    record = slot_of(timers, identifier)
    if record == 0:
        return False
    word = ((identifier >> SLOT_BITS) << GENERATION_SHIFT) | QUEUED
    callback = load(record + S_CALLBACK)  # before the swap, as in timer_cancel
    if not compare_and_swap(record + S_WORD, word, word & ~STATE_MASK | CANCELLED):
        return False
    Py_DecRef(callback & POINTER_MASK)
    return True
