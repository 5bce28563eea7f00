"""A turn of the loop: which callbacks run, in which order, and what happens around each.

The order is the contract's and the same in every mode: microtask checkpoint, poll and I/O callbacks, immediates,
close callbacks, due timers, internal queue, external queue up to the budget. Each phase takes its queue's length at
entry; what is added meanwhile waits for the next turn, so no phase can starve the others. A checkpoint follows
*every* callback.

`run` is one kernel call that turns until Python is needed: to poll, to report that the loop must stop, or to raise.
"""

from __future__ import annotations

from .agenda import agenda_due, agenda_insert, agenda_next
from .atomics import before, compare_and_swap, exchange, fetch_add, get, load, load_sc, put, store
from .callbacks import LEAVE, call_hook, invoke
from .capi import (
    POLLIN,
    SYS_PPOLL,
    Py_DecRef,
    PyEval_RestoreThread,
    PyEval_SaveThread,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    libc_syscall,
)
from .checkpoint import checkpoint, invoke_owned
from .clock import FOREVER, loop_ns, sleep_ns
from .external import ingress_length, phase_external
from .heap import heap_pop, heap_trim, order_of
from .ingress import queue_close_if_empty, queue_length, queue_reopen
from .kernel import NONE as NO_ARGUMENTS
from .kernel import ONE, data, helper, inlined, kernel
from .layout import (
    ARGUMENTS,
    AUTO_EXIT,
    BREATHE,
    BUDGET,
    CLOSING,
    DUE,
    EXTERNAL,
    F_COUNT,
    F_OPENING,
    FAR_AT,
    HOLDS,
    IMMEDIATES,
    INTERNAL,
    INTERRUPT,
    IO_AT,
    IO_POLLER,
    IO_READY_COUNT,
    IO_READY_DONE,
    IO_WATCHES,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_TIMER,
    LIFECYCLE,
    MICROTASKS,
    NANOSECONDS,
    NAPPED,
    OBSERVED,
    P_FREE_CHUNKS,
    PARK_EPOLL,
    PARK_FUTEX,
    PARK_MODE,
    PARK_POLLER,
    PARKS,
    POINTER_MASK,
    POLL_TIMEOUT,
    POLLED,
    POOL_AT,
    READY,
    REMOTE,
    S_CALLBACK,
    S_ORDER,
    S_PERIOD,
    S_WORD,
    SECONDS,
    SLOT_BITS,
    SLOT_LIMIT,
    STOP,
    SUBJECT,
    T_LIVE_HERE,
    T_NESTING,
    T_RETRIES,
    T_SEQUENCE,
    T_SIZE,
    T_UNREFERENCED,
    TICKS,
    TIMERS_AT,
    TURNS,
)
from .layout import RUNNING as LOOP_RUNNING
from .observed import loop_enters, loop_rests, turn_begins
from .parking import arrivals, fall_asleep, nap_ns, park, wide_awake
from .pool import KEEP_CHUNKS, pool_trim
from .readiness import epoll_look, epoll_sleep, phase_readiness
from .ring import ring_length, ring_pop, ring_trim
from .safepoint import EVERY
from .slots import GENERATION_SHIFT, slot_at, slot_free_here, timers_referenced
from .timers import (
    ARMED,
    CANCELLED,
    QUEUED,
    RUNNING,
    STATE_MASK,
    UNREFERENCED,
    due_after,
    nesting_flags,
    timer_removed,
)

# Why `run` returned.
ENDED_STOP, ENDED_PARK, ENDED_INTERRUPT, ENDED_TERMINATING, ENDED_QUIET, ENDED_DRAINED = 1, 2, 3, 4, 5, 6
ENDED_LOOK, ENDED_BROKEN, ENDED_NAP = 7, 8, 9


@helper
def phase(base: int, ring: int, kind: int) -> int:
    """Run what a ring held at entry. 0, or LEAVE."""
    count = ring_length(ring)
    while count > 0 and load(base + INTERRUPT) == 0:
        count -= 1
        if invoke_owned(base, ring_pop(ring), kind) != 0:
            return LEAVE
    return 0


@helper
def phase_immediates(base: int) -> int:
    """The check phase: immediates queued at entry, but for those cancelled meanwhile. 0, or LEAVE."""
    ring = base + IMMEDIATES
    timers = base + TIMERS_AT
    count = ring_length(ring)
    while count > 0 and load(base + INTERRUPT) == 0:
        count -= 1
        slot = ring_pop(ring)
        record = slot_at(timers, slot)
        word = load(record + S_WORD)
        callback = load(record + S_CALLBACK)
        mine = word & STATE_MASK == QUEUED and compare_and_swap(record + S_WORD, word, word & ~STATE_MASK)
        if not mine:  # cancelled: its reference is gone already
            store(record + S_WORD, load(record + S_WORD) & ~STATE_MASK)
        slot_free_here(timers, slot)
        if mine:
            if invoke_owned(base, callback, KIND_IMMEDIATE) != 0:
                return LEAVE
        elif count & (EVERY - 1) == 0 and call_hook(get(base + BREATHE)) != 0:  # of a million cancelled ones
            return LEAVE
    return 0


@helper
def phase_timers(base: int) -> int:
    """Run the timers that are due now and were armed before this phase; none once the end has begun. 0, or LEAVE."""
    timers = base + TIMERS_AT
    far = base + FAR_AT
    if get(timers + T_SIZE) == 0 and get(far + F_COUNT) == 0 and get(far + F_OPENING) == 0:
        return 0
    now = loop_ns(base)
    first = order_of(get(timers + T_SEQUENCE) + 1)  # of those that this phase arms
    while load(base + INTERRUPT) == 0 and load(base + LIFECYCLE) == LOOP_RUNNING:
        order = agenda_due(base, now)
        if order == 0:
            break
        # Between the two: to be after `first` is not enough, as a timer of 2**40 armings ago seems to be.
        if not before(order, first) and before(order, order_of(get(timers + T_SEQUENCE) + 1)):
            break
        if timer_fire(base, order & (SLOT_LIMIT - 1)) != 0:
            return LEAVE
    return 0


@inlined
def timer_fire(base: int, slot: int) -> int:
    """Run the heap's first timer, of `slot`, unless somebody cancelled it. 0, or LEAVE.

    An interval is armed anew *before* its callback, anchored to the callback's start, so it never leaves the heap:
    nothing can fail afterwards, and a callback that raises changes nothing. RUNNING tells a canceller that the loop
    holds the callback just now.
    """
    timers = base + TIMERS_AT
    record = slot_at(timers, slot)
    callback = load(record + S_CALLBACK)
    period = get(record + S_PERIOD)
    flags = load(record + S_ORDER) & (SLOT_LIMIT - 1)
    nesting = flags >> 1
    while True:
        word = load(record + S_WORD)
        if word & STATE_MASK == CANCELLED:  # elsewhere; the command that frees the slot is on its way
            heap_pop(timers)
            store(record + S_ORDER, 0)
            return call_hook(get(base + BREATHE)) if get(timers + T_SIZE) & (EVERY - 1) == 0 else 0
        new = word & ~STATE_MASK | RUNNING if period >= 0 else word & ~STATE_MASK & ~UNREFERENCED
        if compare_and_swap(record + S_WORD, word, new):
            break
        fetch_add(timers + T_RETRIES, 1)
    heap_pop(timers)
    store(record + S_ORDER, 0)
    if period < 0:
        if word & UNREFERENCED:
            fetch_add(timers + T_UNREFERENCED, -1)
        store(timers + T_LIVE_HERE, get(timers + T_LIVE_HERE) - 1)
        slot_free_here(timers, slot)
    else:
        clamp = flags & 1
        deadline = due_after(loop_ns(base), period, nesting, clamp)
        # It can not fail: if no bucket has room, the heap has, from which an entry was just taken.
        agenda_insert(base, slot, record, deadline, nesting_flags(nesting + 1, clamp))
    put(timers + T_NESTING, nesting)
    put(base + SUBJECT, (word >> GENERATION_SHIFT) << SLOT_BITS | slot)
    status = invoke(base, callback, KIND_TIMER)
    put(timers + T_NESTING, 0)
    if period < 0:
        Py_DecRef(callback & POINTER_MASK)
    else:
        interval_ran(base, slot)
    if status != 0:
        return status
    return checkpoint(base)


@inlined
def interval_ran(base: int, slot: int) -> None:
    """After an interval's callback: RUNNING -> ARMED, or, if it was cancelled meanwhile, let go of all of it."""
    record = slot_at(base + TIMERS_AT, slot)
    while True:
        word = load(record + S_WORD)
        if word & STATE_MASK == CANCELLED:
            callback = get(record + S_CALLBACK)
            timer_removed(base, slot)
            Py_DecRef(callback & POINTER_MASK)
            return
        if compare_and_swap(record + S_WORD, word, word & ~STATE_MASK | ARMED):
            return
        fetch_add(base + TIMERS_AT + T_RETRIES, 1)


@helper
def idle(base: int) -> bool:
    """Nothing to run but timers, as far as the loop thread's own queues go."""
    return (
        ring_length(base + IMMEDIATES) == 0
        and ring_length(base + CLOSING) == 0
        and ring_length(base + INTERNAL) == 0
        and get(base + DUE) == 0
    )


@helper
def next_deadline(base: int) -> int:
    """When the first timer is due, FOREVER if there is none."""
    return agenda_next(base)


@helper
def tidy(base: int) -> None:
    """Before a sleep: give back memory that a burst has left."""
    if load(base + POOL_AT + P_FREE_CHUNKS) > 2 * KEEP_CHUNKS:
        pool_trim(base + POOL_AT)
    ring_trim(base + MICROTASKS)
    ring_trim(base + TICKS)
    ring_trim(base + IMMEDIATES)
    ring_trim(base + INTERNAL)
    heap_trim(base + TIMERS_AT)


@helper
def quiet(base: int) -> bool:
    """For auto-exit: nothing referenced is left. Closes both queues if so, which makes it final: who is refused now
    was not promised.
    """
    if load(base + HOLDS) > 0 or timers_referenced(base) > 0 or arrivals(base) or not idle(base):
        return False
    if not queue_close_if_empty(base + EXTERNAL):
        return False
    if not queue_close_if_empty(base + REMOTE):
        queue_reopen(base + EXTERNAL)
        return False
    if load_sc(base + READY) != 0 or load_sc(base + HOLDS) > 0 or timers_referenced(base) > 0:
        queue_reopen(base + REMOTE)
        queue_reopen(base + EXTERNAL)
        return False
    return True


@helper
def wait(base: int) -> int:
    """Phase 1: if nothing is to be run, sleep; else look at the descriptors, if there are any. 0 to go on with the
    turn; ENDED_PARK: the sleep is announced, and Python sleeps; ENDED_LOOK: Python looks; ENDED_BROKEN: the poller is;
    ENDED_NAP: the last sleep was a nap, and the next is to be a doze.
    """
    io = base + IO_AT
    mode = load(base + PARK_MODE)
    if get(io + IO_READY_DONE) < get(io + IO_READY_COUNT):
        return 0  # a callback of the last poll has left `run()`; the others of that poll come first
    deadline = next_deadline(base) if idle(base) and not arrivals(base) else 0
    if deadline == 0 or (deadline != FOREVER and deadline <= loop_ns(base)):
        if load(io + IO_WATCHES) == 0:
            return 0
        if mode == PARK_EPOLL:
            return 0 if epoll_look(base) == 0 else ENDED_BROKEN
        if mode == PARK_POLLER:
            put(base + POLL_TIMEOUT, 0)
            put(base + POLLED, 1)
            return ENDED_LOOK
        return 0  # just registered: the change of mode is in the internal queue
    tidy(base)
    if get(base + NAPPED) != 0:
        put(base + NAPPED, 0)
        return ENDED_NAP
    if mode == PARK_FUTEX:
        park(base, deadline)
        return 0
    if mode == PARK_EPOLL:
        return 0 if epoll_sleep(base, deadline) == 0 else ENDED_BROKEN
    if not fall_asleep(base, deadline):
        return 0
    put(base + PARKS, get(base + PARKS) + 1)
    left = nap_ns(base, sleep_ns(base, deadline))
    put(base + POLL_TIMEOUT, -1 if left == FOREVER else left)
    put(base + POLLED, 1)
    return ENDED_PARK


@kernel(ONE)
def doze(self: int, descriptor: int) -> int:
    """Sleep until the loop is woken, one of its descriptors is ready, this one can be read, or the first deadline:
    ENDED_BROKEN as an int, or 0. Owner only, with an epoll poller; attached, and detached meanwhile.

    Also a loop that else sleeps on a futex is woken through its eventfd then.
    """
    base = data(self)
    io = base + IO_AT
    deadline = next_deadline(base) if idle(base) and not arrivals(base) else 0
    if deadline == 0 or (deadline != FOREVER and deadline <= loop_ns(base)) or load(base + LIFECYCLE) != LOOP_RUNNING:
        return PyLong_FromLongLong(0)
    fds = base + ARGUMENTS  # two struct pollfd
    put(fds, PyLong_AsLongLong(descriptor) | POLLIN << 32)
    put(fds + 8, get(io + IO_POLLER) | POLLIN << 32)
    mode = load(base + PARK_MODE)
    store(base + PARK_MODE, PARK_EPOLL)
    thread = PyEval_SaveThread()
    if fall_asleep(base, deadline):
        put(base + PARKS, get(base + PARKS) + 1)
        left = sleep_ns(base, deadline)
        timeout = 0
        if left != FOREVER:
            put(base + SECONDS, left // 1000000000)
            put(base + NANOSECONDS, left % 1000000000)
            timeout = base + SECONDS
        libc_syscall(SYS_PPOLL, fds, 2, timeout, 0, 0)
        wide_awake(base)
    status = epoll_look(base)  # also takes the wake out of the set, or the next doze would end at once
    PyEval_RestoreThread(thread)
    store(base + PARK_MODE, mode)
    put(base + POLLED, 1)
    return PyLong_FromLongLong(0 if status == 0 else ENDED_BROKEN)


@helper
def phases(base: int) -> int:
    """A turn, from the callbacks of what was polled to the external tasks. 0, or LEAVE."""
    io = base + IO_AT
    if get(io + IO_READY_DONE) < get(io + IO_READY_COUNT) and phase_readiness(base) != 0:
        return LEAVE
    if ring_length(base + IMMEDIATES) != 0 and phase_immediates(base) != 0:
        return LEAVE
    if ring_length(base + CLOSING) != 0 and phase(base, base + CLOSING, KIND_CLOSE) != 0:
        return LEAVE
    if phase_timers(base) != 0:
        return LEAVE
    if ring_length(base + INTERNAL) != 0 and phase(base, base + INTERNAL, KIND_INTERNAL) != 0:
        return LEAVE
    return phase_external(base)


@kernel(NO_ARGUMENTS)
def run(self: int, _unused: int) -> int:
    """Turn until Python is needed: ENDED_x as an int, or the exception of a callback that must leave the loop. Owner
    only.
    """
    base = data(self)
    observed = get(base + OBSERVED) != 0
    if observed:
        loop_enters(base, get(base + POLLED) != 0)
    while True:
        status = checkpoint(base)
        if observed:
            loop_rests(base)
        if status != 0:
            return 0
        ended = 0
        if load(base + INTERRUPT) != 0:
            ended = ENDED_INTERRUPT
        elif load(base + LIFECYCLE) != LOOP_RUNNING:
            ended = ENDED_TERMINATING
        elif get(base + POLLED) != 0:
            put(base + POLLED, 0)
        elif get(base + AUTO_EXIT) != 0 and quiet(base):
            ended = ENDED_QUIET
        else:  # which does not sleep if this turn was asked to be the last one
            ended = wait(base)
        if ended != 0:
            return PyLong_FromLongLong(ended)
        if observed:
            turn_begins(base, ingress_length(base))
        if checkpoint(base) != 0 or phases(base) != 0 or call_hook(get(base + BREATHE)) != 0:
            if observed:
                loop_rests(base)
            return 0
        put(base + TURNS, get(base + TURNS) + 1)
        if exchange(base + STOP, 0) != 0:
            if observed:
                loop_rests(base)
            return PyLong_FromLongLong(ENDED_STOP)


@kernel(NO_ARGUMENTS)
def drain(self: int, _unused: int) -> int:
    """Graceful end: run what was accepted (immediates, close, internal, external; no timers) until nothing is left,
    checkpoints included. ENDED_DRAINED or ENDED_INTERRUPT as an int, or an exception as in `run`. Owner only,
    queues closed.
    """
    base = data(self)
    put(base + BUDGET, 1 << 62)
    observed = get(base + OBSERVED) != 0
    if observed:
        loop_enters(base, False)
    while True:
        status = checkpoint(base)
        if observed:
            loop_rests(base)
        if status != 0:
            return 0
        if load(base + INTERRUPT) != 0:
            return PyLong_FromLongLong(ENDED_INTERRUPT)
        if (
            idle(base)
            and queue_length(base + EXTERNAL) == 0
            and queue_length(base + REMOTE) == 0
            and load(base + READY) == 0
        ):
            return PyLong_FromLongLong(ENDED_DRAINED)
        if (
            phase_immediates(base) != 0
            or phase(base, base + CLOSING, KIND_CLOSE) != 0
            or phase(base, base + INTERNAL, KIND_INTERNAL) != 0
            or phase_external(base) != 0
            or call_hook(get(base + BREATHE)) != 0
        ):
            if observed:
                loop_rests(base)
            return 0
