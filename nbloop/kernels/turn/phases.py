"""The phases of a turn, in the order in which they run; to read a turn from start to end, begin with `phases`."""

from __future__ import annotations

from ..base.atomics import before, compare_and_swap, fetch_add, get, load, put, store
from ..base.capi import Py_DecRef
from ..base.clock import loop_ns
from ..base.kernel import helper, inlined
from ..base.layout import (
    FAR,
    IO,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_TIMER,
    POINTER_MASK,
    RUNNING,
    SLOT,
    SLOT_BITS,
    SLOT_LIMIT,
    STATE,
    TIMERS,
)
from ..base.safepoint import EVERY
from ..calls.invoke import LEAVE, call_hook, invoke
from ..memory.ring import ring_length, ring_pop
from ..memory.slot_slabs import GENERATION_SHIFT, slot_at
from ..memory.slots import (
    ARMED,
    CANCELLED,
    FIRING,
    QUEUED,
    STATE_MASK,
    UNREFERENCED,
    slot_free_here,
)
from ..timers.timer_heap import heap_pop, order_of
from ..timers.timer_queue import timer_queue_due, timer_queue_insert
from ..timers.timer_slots import due_after, nesting_flags, timer_removed
from .checkpoint import checkpoint, invoke_owned
from .external import pressure, run_external
from .fd_watches import watch_ready


@helper
def phase_immediates(base: int) -> int:
    """The check phase: run the immediates queued at entry, except those cancelled meanwhile. Returns 0 or LEAVE."""
    ring = base + STATE.IMMEDIATES
    timers = base + STATE.TIMERS
    count = ring_length(ring)
    while count > 0 and load(base + STATE.INTERRUPT) == 0:
        count -= 1
        slot = ring_pop(ring)
        record = slot_at(timers, slot)
        word = load(record + SLOT.WORD)
        callback = load(record + SLOT.CALLBACK)
        mine = word & STATE_MASK == QUEUED and compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK)
        if not mine:  # cancelled: its reference has already been released
            store(record + SLOT.WORD, load(record + SLOT.WORD) & ~STATE_MASK)
        slot_free_here(timers, slot)
        if mine:
            if invoke_owned(base, callback, KIND_IMMEDIATE) != 0:
                return LEAVE
        elif (
            count & (EVERY - 1) == 0 and call_hook(get(base + STATE.CHECK_INTERRUPTS)) != 0
        ):  # there may be a million cancelled ones
            return LEAVE
    return 0


@helper
def phase(base: int, ring: int, kind: int) -> int:
    """Run what a ring held at entry. Returns 0 or LEAVE."""
    count = ring_length(ring)
    while count > 0 and load(base + STATE.INTERRUPT) == 0:
        count -= 1
        if invoke_owned(base, ring_pop(ring), kind) != 0:
            return LEAVE
    return 0


@helper
def phase_timers(base: int) -> int:
    """Run the timers that are due now and were armed before this phase, but none once the loop is ending. Returns 0 or
    LEAVE.
    """
    timers = base + STATE.TIMERS
    far = base + STATE.FAR
    if get(timers + TIMERS.SIZE) == 0 and get(far + FAR.COUNT) == 0 and get(far + FAR.OPENING) == 0:
        return 0
    now = loop_ns(base)
    first = order_of(get(timers + TIMERS.SEQUENCE) + 1)  # the first order of timers that this phase arms
    while load(base + STATE.INTERRUPT) == 0 and load(base + STATE.LIFECYCLE) == RUNNING:
        order = timer_queue_due(base, now)
        if order == 0:
            break
        # Test both bounds: a timer armed 2**40 armings ago also seems to be after `first`.
        if not before(order, first) and before(order, order_of(get(timers + TIMERS.SEQUENCE) + 1)):
            break
        if timer_fire(base, order & (SLOT_LIMIT - 1)) != 0:
            return LEAVE
    return 0


@inlined
def timer_fire(base: int, slot: int) -> int:
    """Run the heap's first timer, that of `slot`, unless it was cancelled. Returns 0 or LEAVE.

    An interval is re-armed *before* its callback, relative to the callback's start, so it never leaves the queue:
    nothing can fail afterwards, and a callback that raises changes nothing. FIRING tells a canceller that the loop is
    using the callback at the moment.
    """
    timers = base + STATE.TIMERS
    record = slot_at(timers, slot)
    callback = load(record + SLOT.CALLBACK)
    period = get(record + SLOT.PERIOD)
    flags = load(record + SLOT.ORDER) & (SLOT_LIMIT - 1)
    nesting = flags >> 1
    while True:
        word = load(record + SLOT.WORD)
        if word & STATE_MASK == CANCELLED:  # by another thread; the command that frees the slot is on its way
            heap_pop(timers)
            store(record + SLOT.ORDER, 0)
            return call_hook(get(base + STATE.CHECK_INTERRUPTS)) if get(timers + TIMERS.SIZE) & (EVERY - 1) == 0 else 0
        new = word & ~STATE_MASK | FIRING if period >= 0 else word & ~STATE_MASK & ~UNREFERENCED
        if compare_and_swap(record + SLOT.WORD, word, new):
            break
        fetch_add(timers + TIMERS.RETRIES, 1)
    heap_pop(timers)
    store(record + SLOT.ORDER, 0)
    if period < 0:
        if word & UNREFERENCED:
            fetch_add(timers + TIMERS.UNREFERENCED, -1)
        store(timers + TIMERS.LIVE_HERE, get(timers + TIMERS.LIVE_HERE) - 1)
        slot_free_here(timers, slot)
    else:
        clamp = flags & 1
        deadline = due_after(loop_ns(base), period, nesting, clamp)
        # This cannot fail: if no bucket has room, the heap has, because an entry was just popped.
        timer_queue_insert(base, slot, record, deadline, nesting_flags(nesting + 1, clamp))
    put(timers + TIMERS.NESTING, nesting)
    put(base + STATE.SUBJECT, (word >> GENERATION_SHIFT) << SLOT_BITS | slot)
    status = invoke(base, callback, KIND_TIMER)
    put(timers + TIMERS.NESTING, 0)
    if period < 0:
        Py_DecRef(callback & POINTER_MASK)
    else:
        interval_ran(base, slot)
    if status != 0:
        return status
    return checkpoint(base)


@inlined
def interval_ran(base: int, slot: int) -> None:
    """After an interval's callback: FIRING -> ARMED, or, if it was cancelled meanwhile, release callback and slot."""
    record = slot_at(base + STATE.TIMERS, slot)
    while True:
        word = load(record + SLOT.WORD)
        if word & STATE_MASK == CANCELLED:
            callback = get(record + SLOT.CALLBACK)
            timer_removed(base, slot)
            Py_DecRef(callback & POINTER_MASK)
            return
        if compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK | ARMED):
            return
        fetch_add(base + STATE.TIMERS + TIMERS.RETRIES, 1)


@helper
def phases(base: int) -> int:
    """A turn, from the callbacks of polled events to the external tasks. Returns 0 or LEAVE."""
    io = base + STATE.IO
    if get(io + IO.READY_DONE) < get(io + IO.READY_COUNT) and phase_readiness(base) != 0:
        return LEAVE
    if ring_length(base + STATE.IMMEDIATES) != 0 and phase_immediates(base) != 0:
        return LEAVE
    if ring_length(base + STATE.CLOSING) != 0 and phase(base, base + STATE.CLOSING, KIND_CLOSE) != 0:
        return LEAVE
    if phase_timers(base) != 0:
        return LEAVE
    if ring_length(base + STATE.INTERNAL) != 0 and phase(base, base + STATE.INTERNAL, KIND_INTERNAL) != 0:
        return LEAVE
    return phase_external(base)


@helper
def phase_readiness(base: int) -> int:
    """Run the callbacks of the events that the last poll reported. Returns 0 or LEAVE.

    If a callback leaves `run()`, the remaining events stay in the table for the next `run()`: otherwise an event that
    the system reports only once (EDGE, ONESHOT) would be lost. Once the loop is ending, no more of them run.
    """
    io = base + STATE.IO
    while get(io + IO.READY_DONE) < get(io + IO.READY_COUNT) and load(base + STATE.INTERRUPT) == 0:
        if load(base + STATE.LIFECYCLE) != RUNNING:
            return 0
        done = get(io + IO.READY_DONE)
        put(io + IO.READY_DONE, done + 1)
        at = get(io + IO.READY) + (done << 4)
        if watch_ready(base, get(at), get(at + 8)) != 0:
            return LEAVE
    return 0


@helper
def phase_external(base: int) -> int:
    """Run external tasks, and check the backlog against its marks before and after. Returns 0 or LEAVE.

    Before, because producers should learn of the high mark before `budget` tasks have run; after, because the loop may
    sleep next, while producers wait for the low mark.
    """
    if get(base + STATE.PRESSURE_HIGH) == 0:
        return run_external(base)
    if pressure(base) != 0 or run_external(base) != 0 or pressure(base) != 0:
        return LEAVE
    return 0
