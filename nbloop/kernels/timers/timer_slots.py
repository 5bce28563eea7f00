r"""Timer slots: armed and cancelled from any thread, with a definite answer at once.

Problem: the agenda belongs to the loop thread, but `cancel` on another thread must say *now* whether the callback will
run, without a round trip through the loop (tens of µs). Idea: the answer is not in there. Each timer has a slot
with one atomic word, ``generation << 4 | unreferenced << 3 | state``, and whoever swaps that word decides: the loop
by ARMED -> SPENT before it calls, the canceller by ARMED -> CANCELLED. The id that the user holds is ``generation <<
SLOT_BITS | slot``: of a slot used again the generation differs, so a stale id is 'unknown', never somebody else's
timer (until 2**41 uses of one slot).

::

    SPENT --arm on the loop thread--> ARMED --fire--> SPENT            (one-shot; the loop then owns the callback)
      |                                 |  \--fire--> FIRING --> ARMED  (interval: armed anew after its callback)
      |                                 |                |
      +--arm elsewhere--> PENDING ------+----cancel------+--> CANCELLED --out of the agenda--> SPENT, slot free

Another thread's arm and cancel travel to the agenda as commands in the remote queue; until the loop runs they are
tombstones, never more than `WAKE_BACKLOG` of them. They wake a sleeping loop only if the new deadline is earlier than
the one it sleeps until.

Invariants: the callback reference belongs to the slot while PENDING, ARMED or FIRING; who swaps the word to
CANCELLED from PENDING or ARMED takes and releases it, from FIRING the loop does. A slot goes back to the free stack
once, by the loop thread, when no command names it any more. ``live_here + live_elsewhere`` is the number of PENDING,
ARMED and FIRING slots; ``unreferenced`` of them do not count.
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
from ..memory.slots import (
    ARMED,
    CANCELLED,
    FIRING,
    GENERATION_SHIFT,
    PENDING,
    QUEUED,
    SPENT,
    STATE_MASK,
    UNREFERENCED,
    slot_at,
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
    """The deadline for a delay of ns; with `clamp`, of the sixth nesting level and deeper not under 4 ms (HTML).

    At most LAST, which only a virtual clock comes near: a sum that wrapped would be in the past, and due at once. A
    delay of FOREVER is never over.
    """
    if delay == FOREVER:
        return FOREVER
    if clamp != 0 and nesting > CLAMP_LEVEL and delay < CLAMP_NS:
        delay = CLAMP_NS
    return min(now, LAST - delay) + delay


@inlined
def nesting_flags(nesting: int, clamp: int) -> int:
    """What a slot remembers of both: of levels beyond the one that clamps it need not know how many."""
    return min(nesting, CLAMP_LEVEL + 1) << 1 | (1 if clamp != 0 else 0)


@inlined
def timer_arm_here(base: int, callback: int, deadline: int, period: int, clamp: int) -> int:
    """Arm on the loop thread, at once. The id, or -REFUSED_x and the callback is still the caller's."""
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
    """Undo `slot_open` of a slot whose command was refused, and free it. True: the callback is the caller's again.
    False: the loop's end, which releases what every slot holds, came between the two, and has released it. Any thread.
    """
    record = slot_at(timers, slot)
    word = (identifier >> SLOT_BITS) << GENERATION_SHIFT
    mine = compare_and_swap(record + SLOT.WORD, word | state, word)
    if not mine:
        store(record + SLOT.WORD, word)  # also if somebody has guessed the id, and cancelled it
    slot_free(timers, slot)
    return mine


@helper
def timer_arm_elsewhere(base: int, callback: int, deadline: int, period: int, clamp: int) -> int:
    """Arm on any other thread: a command to the loop. The id, or -REFUSED_x and the callback is still the caller's,
    unless GONE is beside it.
    """
    timers = base + STATE.TIMERS
    slot = slot_take(timers)
    if slot < 0:
        return -REFUSED_SLOTS
    record = slot_at(timers, slot)
    put(record + SLOT.DEADLINE, deadline)
    put(record + SLOT.PERIOD, period)
    store(record + SLOT.ORDER, nesting_flags(1, clamp))  # the loop may look whether a stale entry is this slot's
    fetch_add(timers + TIMERS.LIVE_ELSEWHERE, 1)
    identifier = slot_open(timers, slot, callback, PENDING)
    if get(base + STATE.RECORDER) != 0:  # now, because it may fire as soon as it is pushed
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
    """Wake the loop if it sleeps past `deadline`, or if too many commands wait for it. Any thread, after its command
    was queued.
    """
    if load_sc(base + STATE.SLEEP) == IS_ASLEEP and (
        deadline < load(base + STATE.SLEEP_DEADLINE) or queue_length(base + STATE.REMOTE) >= WAKE_BACKLOG
    ):
        wake(base)


@helper
def timer_armed(base: int, slot: int) -> int:
    """Carry out another thread's arm. 0, or -1 for no memory and the command has to be tried again. Loop thread."""
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
    """Carry out another thread's cancel, or the loop's own: out of the agenda, slot free. Loop thread."""
    timers = base + STATE.TIMERS
    record = slot_at(timers, slot)
    timer_queue_remove(base, record)
    store(record + SLOT.WORD, load(record + SLOT.WORD) & ~STATE_MASK)
    slot_free_here(timers, slot)


@inlined
def timer_cancel(base: int, identifier: int, here: bool) -> bool:
    """True: it will never run (again). False: unknown, started, or cancelled already. Any thread; `here` on the loop
    thread.

    The callback is released before this returns, and that can run any Python code: nothing is half done by then.
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
        # Read before the swap: from then on the slot may be freed and used again. If the swap succeeds, no generation
        # lay between.
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
    if state == FIRING:  # an interval in its own callback: the loop sees the word and lets go of both
        return True
    if state == ARMED:
        if here:
            timer_removed(base, slot)
        else:
            fetch_add(timers + TIMERS.COMMANDS, 1)
            if queue_push(base + STATE.REMOTE, remote_slot(slot, KIND_CANCEL)) == 0:
                wake_for(base, FOREVER)  # only for the backlog's sake
            else:  # closed, or no memory: a tombstone until its deadline
                fetch_add(timers + TIMERS.COMMANDS, -1)
    if not here:
        wake_to_exit(base)
    Py_DecRef(callback & POINTER_MASK)
    return True


@helper
def timer_reference(base: int, identifier: int, referenced: bool) -> bool:
    """Make a live timer count, or not, for `alive`. False: it is not live. Any thread."""
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
    """As `timer_cancel`, for an immediate; its slot stays in the ring and is freed when its turn comes. Any thread."""
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
