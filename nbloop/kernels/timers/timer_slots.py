r"""Timer slots: armed and cancelled from any thread, with a definite answer at once.

Problem: the timer queue belongs to the loop thread, but `cancel` on another thread must say *now* whether the callback
will run, without a round trip through the loop (tens of µs). Idea: the queue does not hold the answer. Each timer has a
slot with one atomic word, ``generation << 4 | unreferenced << 3 | state``, and the thread that swaps this word decides:
the loop by ARMED -> SPENT before the call, a canceller by ARMED -> CANCELLED. The id that the user holds is
``generation << SLOT_BITS | slot``: a reused slot has another generation, so a stale id is 'unknown' and never denotes
another timer (until a slot of its slab has been used 2**41 times).

::

    SPENT --arm on the loop thread--> ARMED --fire--> SPENT            (one-shot; the loop then owns the callback)
      |                                 |  \--fire--> FIRING --> ARMED  (interval: re-armed after its callback)
      |                                 |                |
      +--arm elsewhere--> PENDING ------+----cancel------+--> CANCELLED --out of the queue--> SPENT, slot free

Another thread's arm and cancel travel to the queue as commands in the remote queue. Until the loop carries them out,
cancelled timers are tombstones, of which a sleeping loop never collects more than `WAKE_BACKLOG`. A command wakes a
sleeping loop only if its deadline is earlier than the sleep's.

Invariants: the slot owns the callback reference while PENDING, ARMED or FIRING; the thread that swaps the word from
PENDING or ARMED to CANCELLED takes and releases it; from FIRING the loop does. The loop thread puts a slot back on the
free stack exactly once, when no command names it any more. ``live_here + live_elsewhere`` is the number of PENDING,
ARMED and FIRING slots; ``unreferenced`` of them do not keep an auto-exit loop alive.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, fetch_add, get, load, load_sc, prefetch, put, store
from ..base.capi import Py_DecRef
from ..base.clock import FOREVER, LAST
from ..base.kernel import helper, inlined
from ..base.layout import (
    EVENT_ARM,
    EVENT_CANCEL,
    GONE,
    KIND_ARM,
    KIND_CANCEL,
    POINTER_MASK,
    REFUSED_SLOTS,
    SLOT,
    SLOT_BITS,
    SLOT_LIMIT,
    STATE,
    TIMERS,
)
from ..ingress.parking import IS_ASLEEP, wake, wake_to_exit
from ..ingress.remote_words import remote_slot
from ..ingress.ticket_queue import queue_length, queue_push
from ..memory.slot_slabs import GENERATION_SHIFT, slot_at
from ..memory.slots import (
    ARMED,
    CANCELLED,
    FIRING,
    PENDING,
    QUEUED,
    SPENT,
    STATE_MASK,
    UNREFERENCED,
    slot_free,
    slot_free_here,
    slot_of,
    slot_open,
    slot_take,
    slot_take_here,
)
from ..observe.event_ring import event
from .timer_queue import timer_queue_insert, timer_queue_remove

WAKE_BACKLOG = 1024  # commands that may wait while the loop sleeps
CLAMP_LEVEL, CLAMP_NS = 5, 4_000_000  # HTML, timer initialisation steps: nesting level greater than 5, less than 4 ms


@inlined
def due_after(now: int, delay: int, nesting: int, clamp: int) -> int:
    """The deadline for a delay in ns; with `clamp`, from the sixth nesting level on the delay is at least 4 ms (HTML).

    At most LAST, which only a virtual clock comes near: a sum that wrapped would lie in the past, and be due at once. A
    delay of FOREVER never ends.
    """
    if delay == FOREVER:
        return FOREVER
    if clamp != 0 and nesting > CLAMP_LEVEL and delay < CLAMP_NS:
        delay = CLAMP_NS
    return min(now, LAST - delay) + delay


@inlined
def nesting_flags(nesting: int, clamp: int) -> int:
    """What a slot stores of both: it does not distinguish the levels beyond the one that clamps."""
    return min(nesting, CLAMP_LEVEL + 1) << 1 | (1 if clamp != 0 else 0)


@inlined
def timer_arm_here(base: int, callback: int, deadline: int, period: int, clamp: int) -> int:
    """Arm on the loop thread, immediately. Returns the id, or -REFUSED_x, and then the caller keeps the callback."""
    timers = base + STATE.TIMERS
    slot = slot_take_here(timers)
    if slot < 0:
        return -REFUSED_SLOTS
    record = slot_at(timers, slot)
    put(record + SLOT.PERIOD, period)
    if timer_queue_insert(base, slot, record, deadline, nesting_flags(get(timers + TIMERS.NESTING) + 1, clamp)) < 0:
        slot_free_here(timers, slot)
        return -REFUSED_SLOTS
    store(timers + TIMERS.LIVE_HERE, get(timers + TIMERS.LIVE_HERE) + 1)
    identifier = slot_open(timers, slot, callback, ARMED)
    if get(base + STATE.RECORDER) != 0:
        event(get(base + STATE.RECORDER), EVENT_ARM, identifier, deadline)
    return identifier


@helper
def slot_unopen(timers: int, slot: int, identifier: int, state: int) -> bool:
    """Undo `slot_open` of a slot whose command was refused, and free it. True: the caller owns the callback again.
    False: the loop ended in between and released the callback, as it does for every slot. Any thread.
    """
    record = slot_at(timers, slot)
    word = (identifier >> SLOT_BITS) << GENERATION_SHIFT
    mine = compare_and_swap(record + SLOT.WORD, word | state, word)
    if not mine:
        store(record + SLOT.WORD, word)  # also if somebody guessed the id and cancelled it
    slot_free(timers, slot)
    return mine


@helper
def timer_arm_elsewhere(base: int, callback: int, deadline: int, period: int, clamp: int) -> int:
    """Arm on any other thread, by a command to the loop. Returns the id, or -REFUSED_x, and then the caller keeps the
    callback, unless GONE is added.
    """
    timers = base + STATE.TIMERS
    slot = slot_take(timers)
    if slot < 0:
        return -REFUSED_SLOTS
    record = slot_at(timers, slot)
    put(record + SLOT.DEADLINE, deadline)
    put(record + SLOT.PERIOD, period)
    store(record + SLOT.ORDER, nesting_flags(1, clamp))  # the loop may compare a stale entry with this slot
    fetch_add(timers + TIMERS.LIVE_ELSEWHERE, 1)
    identifier = slot_open(timers, slot, callback, PENDING)
    if get(base + STATE.RECORDER) != 0:  # before the push: afterwards it may fire at any moment
        event(get(base + STATE.RECORDER), EVENT_ARM, identifier, deadline)
    fetch_add(timers + TIMERS.COMMANDS, 1)
    status = queue_push(base + STATE.REMOTE, remote_slot(slot, KIND_ARM))
    if status != 0:
        fetch_add(timers + TIMERS.COMMANDS, -1)
        if slot_unopen(timers, slot, identifier, PENDING):
            fetch_add(timers + TIMERS.LIVE_ELSEWHERE, -1)
        else:
            status |= GONE
        if get(base + STATE.RECORDER) != 0:
            event(get(base + STATE.RECORDER), EVENT_CANCEL, identifier, 0)
        return -status
    wake_for(base, deadline)
    return identifier


@helper
def wake_for(base: int, deadline: int) -> None:
    """Wake the loop if it sleeps past `deadline` or too many commands wait. Any thread, after queueing a command."""
    if load_sc(base + STATE.SLEEP) == IS_ASLEEP and (
        deadline < load(base + STATE.SLEEP_DEADLINE) or queue_length(base + STATE.REMOTE) >= WAKE_BACKLOG
    ):
        wake(base)


@helper
def timer_armed(base: int, slot: int) -> int:
    """Carry out another thread's arm. Returns 0, or -1 if there is no memory, and then the command must be retried.
    Loop thread.
    """
    record = slot_at(base + STATE.TIMERS, slot)
    flags = load(record + SLOT.ORDER) & (SLOT_LIMIT - 1)
    if timer_queue_insert(base, slot, record, get(record + SLOT.DEADLINE), flags) < 0:
        return -1
    while True:
        word = load(record + SLOT.WORD)
        if word & STATE_MASK == CANCELLED:
            timer_removed(base, slot)
            return 0
        if compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK | ARMED):
            return 0
        fetch_add(base + STATE.TIMERS + TIMERS.RETRIES, 1)


@helper
def timer_removed(base: int, slot: int) -> None:
    """Carry out a cancel, of another thread or of the loop: remove the timer from the queue, free its slot. Loop
    thread.
    """
    timers = base + STATE.TIMERS
    record = slot_at(timers, slot)
    timer_queue_remove(base, record)
    store(record + SLOT.WORD, load(record + SLOT.WORD) & ~STATE_MASK)
    slot_free_here(timers, slot)


@inlined
def timer_cancel(base: int, identifier: int, here: bool) -> bool:
    """Cancel a timer. True: it will never run (again). False: unknown, started, or already cancelled. Any thread;
    `here`: the caller is the loop thread.

    The callback is released before this returns. That may run any Python code, so it comes last, when all is
    consistent.
    """
    timers = base + STATE.TIMERS
    record = slot_of(timers, identifier)
    if record == 0:
        return False
    slot = identifier & (SLOT_LIMIT - 1)
    while True:
        word = load(record + SLOT.WORD)
        state = word & STATE_MASK
        if word >> GENERATION_SHIFT != identifier >> SLOT_BITS or state == SPENT or state >= CANCELLED:
            return False
        # Read before the swap, after which the slot may be freed and reused. If the swap succeeds, the generation did
        # not change in between.
        callback = load(record + SLOT.CALLBACK)
        prefetch(callback & POINTER_MASK)  # to be released at the end
        if compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK & ~UNREFERENCED | CANCELLED):
            break
        fetch_add(timers + TIMERS.RETRIES, 1)
    if get(base + STATE.RECORDER) != 0:
        event(get(base + STATE.RECORDER), EVENT_CANCEL, identifier, 0)
    if word & UNREFERENCED:
        fetch_add(timers + TIMERS.UNREFERENCED, -1)
    if here:
        store(timers + TIMERS.LIVE_HERE, get(timers + TIMERS.LIVE_HERE) - 1)
    else:
        fetch_add(timers + TIMERS.LIVE_ELSEWHERE, -1)
    if state == FIRING:  # an interval in its own callback: the loop will see the word and release callback and slot
        return True
    if state == ARMED:
        if here:
            timer_removed(base, slot)
        else:
            fetch_add(timers + TIMERS.COMMANDS, 1)
            if queue_push(base + STATE.REMOTE, remote_slot(slot, KIND_CANCEL)) == 0:
                wake_for(base, FOREVER)  # wakes only because of the backlog
            else:  # closed, or no memory: the entry is a tombstone until its deadline
                fetch_add(timers + TIMERS.COMMANDS, -1)
    if not here:
        wake_to_exit(base)
    Py_DecRef(callback & POINTER_MASK)
    return True


@helper
def timer_reference(base: int, identifier: int, referenced: bool) -> bool:
    """Make a live timer count for `alive`, or not. False if it is not live. Any thread."""
    timers = base + STATE.TIMERS
    record = slot_of(timers, identifier)
    if record == 0:
        return False
    while True:
        word = load(record + SLOT.WORD)
        state = word & STATE_MASK
        if word >> GENERATION_SHIFT != identifier >> SLOT_BITS or state == SPENT or state >= CANCELLED:
            return False
        new = word & ~UNREFERENCED if referenced else word | UNREFERENCED
        if new == word:
            return True
        if compare_and_swap(record + SLOT.WORD, word, new):
            fetch_add(timers + TIMERS.UNREFERENCED, -1 if referenced else 1)
            wake_to_exit(base)
            return True
        fetch_add(timers + TIMERS.RETRIES, 1)


@helper
def immediate_cancel(base: int, identifier: int) -> bool:
    """`timer_cancel` for an immediate. Its slot stays in the ring and is freed when its turn comes. Any thread."""
    timers = base + STATE.TIMERS
    record = slot_of(timers, identifier)
    if record == 0:
        return False
    word = ((identifier >> SLOT_BITS) << GENERATION_SHIFT) | QUEUED
    callback = load(record + SLOT.CALLBACK)  # before the swap, as in timer_cancel
    if not compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK | CANCELLED):
        return False
    Py_DecRef(callback & POINTER_MASK)
    return True
