"""A turn of the loop: which callbacks run, in which order, and what happens around each.

The contract fixes the order, which is the same in every mode: microtask checkpoint, poll and I/O callbacks, immediates,
close callbacks, due timers, internal queue, external queue up to the budget. Each phase takes its queue's length at
entry; what is added meanwhile waits for the next turn, so no phase can starve the others. A checkpoint follows *every*
callback.

`run` is one kernel call, which runs turns until Python is needed: to poll, to report that the loop must stop, or to
raise.
"""

from __future__ import annotations

from ..base.atomics import exchange, get, load, load_sc, monotonic_ns, put, store
from ..base.capi import (
    POLLIN,
    SYS_PPOLL,
    PyEval_RestoreThread,
    PyEval_SaveThread,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    libc_syscall,
)
from ..base.clock import FOREVER, loop_ns, sleep_ns
from ..base.kernel import NOARGS, ONE, data, helper, kernel
from ..base.layout import (
    IO,
    KIND_CLOSE,
    KIND_INTERNAL,
    PARK_EPOLL,
    PARK_FUTEX,
    PARK_POLLER,
    RUNNING,
    SLOTS_PER_SLAB_BITS,
    STATE,
    TIMERS,
)
from ..calls.invoke import call_hook
from ..ingress.parking import arrivals, fall_asleep, nap_ns, park, wide_awake
from ..ingress.ticket_queue import queue_close_if_empty, queue_length, queue_reopen
from ..memory.pool import pool_trim
from ..memory.ring import ring_length, ring_trim
from ..memory.slot_slabs import KEEP_SLABS, slots_trim
from ..memory.slots import timers_referenced
from ..observe.probes import loop_enters, loop_rests, turn_begins
from ..timers.timer_heap import heap_trim
from ..timers.timer_queue import timer_queue_next
from .checkpoint import checkpoint
from .external import ingress_length
from .fd_watches import epoll_look, epoll_sleep
from .phases import phase, phase_external, phase_immediates, phases
from .stream import streams_flush

# Why `run` returned.
ENDED_STOP, ENDED_PARK, ENDED_INTERRUPT, ENDED_TERMINATING, ENDED_QUIET, ENDED_DRAINED = 1, 2, 3, 4, 5, 6
ENDED_LOOK, ENDED_BROKEN, ENDED_NAP = 7, 8, 9

# ns for which a loop that need not poll in each turn leaves it out. A poll costs 0.4 µs: 1 % of that time.
UNPOLLED_NS = 50_000


@helper
def idle(base: int) -> bool:
    """Whether the loop thread's own queues hold nothing to run except timers."""
    return (
        ring_length(base + STATE.IMMEDIATES) == 0
        and ring_length(base + STATE.CLOSING) == 0
        and ring_length(base + STATE.INTERNAL) == 0
        and get(base + STATE.DUE) == 0
    )


@helper
def next_deadline(base: int) -> int:
    """When the first timer is due; FOREVER if there is none."""
    return timer_queue_next(base)


@helper
def tidy(base: int) -> bool:
    """Before a sleep, release memory that a burst left behind. Whether more is left to release."""
    more = pool_trim(base + STATE.POOL)
    ring_trim(base + STATE.MICROTASKS)
    ring_trim(base + STATE.NEXT_TICKS)
    ring_trim(base + STATE.IMMEDIATES)
    ring_trim(base + STATE.INTERNAL)
    timers = base + STATE.TIMERS
    more = heap_trim(timers) or more
    if load(timers + TIMERS.SLOT_COUNT) <= (2 * KEEP_SLABS) << SLOTS_PER_SLAB_BITS:
        return more
    # No immediate waits now; one that another thread just scheduled makes no difference.
    used = load(timers + TIMERS.LIVE_HERE) + load(timers + TIMERS.LIVE_ELSEWHERE) + load(base + STATE.IO + IO.WATCHES)
    return slots_trim(timers, used) or more


@helper
def quiet(base: int) -> bool:
    """Whether nothing keeps an auto-exit loop alive. If so, it closes both queues, which makes this final: a submit
    that is refused now was never promised to run.
    """
    if load(base + STATE.HOLDS) > 0 or timers_referenced(base) > 0 or arrivals(base) or not idle(base):
        return False
    if not queue_close_if_empty(base + STATE.EXTERNAL):
        return False
    if not queue_close_if_empty(base + STATE.REMOTE):
        queue_reopen(base + STATE.EXTERNAL)
        return False
    if load_sc(base + STATE.READY) != 0 or load_sc(base + STATE.HOLDS) > 0 or timers_referenced(base) > 0:
        queue_reopen(base + STATE.REMOTE)
        queue_reopen(base + STATE.EXTERNAL)
        return False
    return True


@helper
def poll_can_wait(base: int) -> bool:
    """Whether this turn, which has something to run, may leave the descriptors for a later one: the loop has polled
    them in one of the last `unpolled_most` turns, less than UNPOLLED_NS ago.
    """
    left_out = get(base + STATE.UNPOLLED)
    if left_out < get(base + STATE.UNPOLLED_MOST) and monotonic_ns() - get(base + STATE.POLLED_AT) < UNPOLLED_NS:
        put(base + STATE.UNPOLLED, left_out + 1)
        return True
    poll_noted(base)
    return False


@helper
def poll_noted(base: int) -> None:
    """The loop polls now, or has just done so."""
    if get(base + STATE.UNPOLLED_MOST) != 0:
        put(base + STATE.UNPOLLED, 0)
        put(base + STATE.POLLED_AT, monotonic_ns())


@helper
def wait(base: int) -> int:
    """Phase 1: sleep if there is nothing to run or to tidy; else poll the descriptors, if there are any. Returns 0 to
    go on with the turn; ENDED_PARK: the sleep is announced, and Python must sleep; ENDED_LOOK: Python must poll;
    ENDED_BROKEN: the poller failed; ENDED_NAP: the last sleep was a nap, and the next must be a doze.
    """
    io = base + STATE.IO
    mode = load(base + STATE.PARK_MODE)
    if get(io + IO.READY_DONE) < get(io + IO.READY_COUNT):
        return 0  # a callback left `run()` in the middle of a poll's events; the others come first
    deadline = next_deadline(base) if idle(base) and not arrivals(base) else 0
    if deadline == 0 or (deadline != FOREVER and deadline <= loop_ns(base)) or tidy(base):
        if load(io + IO.WATCHES) == 0 or poll_can_wait(base):
            return 0
        if mode == PARK_EPOLL:
            return 0 if epoll_look(base) == 0 else ENDED_BROKEN
        if mode == PARK_POLLER:
            put(base + STATE.POLL_TIMEOUT, 0)
            put(base + STATE.POLLED, 1)
            return ENDED_LOOK
        return 0  # the first descriptor was just registered: the change of mode waits in the internal queue
    if get(base + STATE.NAPPED) != 0:
        put(base + STATE.NAPPED, 0)
        return ENDED_NAP
    if mode == PARK_EPOLL and get(io + IO.RETIRES) != 0 and load(io + IO.WATCHES) == 0:
        # Not when the last watch ends: a socket that is watched for one read after the other would change the mode
        # twice a read. A thread that begins a watch now has the loop change over afterwards, which wakes it.
        mode = PARK_FUTEX
        store(base + STATE.PARK_MODE, mode)
    if mode == PARK_FUTEX:
        park(base, deadline)
        return 0
    if mode == PARK_EPOLL:
        status = epoll_sleep(base, deadline)
        poll_noted(base)
        return 0 if status == 0 else ENDED_BROKEN
    if not fall_asleep(base, deadline):
        return 0
    put(base + STATE.PARKS, get(base + STATE.PARKS) + 1)
    left = nap_ns(base, sleep_ns(base, deadline))
    put(base + STATE.POLL_TIMEOUT, -1 if left == FOREVER else left)
    put(base + STATE.POLLED, 1)
    return ENDED_PARK


@kernel(ONE)
def doze(self: int, descriptor: int) -> int:
    """Sleep until the loop is woken, one of its descriptors is ready, this `descriptor` is readable, or the first
    deadline is due. Returns ENDED_BROKEN as an int, or 0. Owner only, with an epoll poller; attached, detached while it
    sleeps.

    During a doze even a loop that otherwise sleeps on a futex is woken through its eventfd.
    """
    base = data(self)
    io = base + STATE.IO
    deadline = next_deadline(base) if idle(base) and not arrivals(base) else 0
    if deadline == 0 or (deadline != FOREVER and deadline <= loop_ns(base)) or load(base + STATE.LIFECYCLE) != RUNNING:
        return PyLong_FromLongLong(0)
    fds = base + STATE.ARGUMENTS0  # two struct pollfd
    put(fds, PyLong_AsLongLong(descriptor) | POLLIN << 32)
    put(fds + 8, get(io + IO.POLLER) | POLLIN << 32)
    mode = load(base + STATE.PARK_MODE)
    store(base + STATE.PARK_MODE, PARK_EPOLL)
    thread = PyEval_SaveThread()
    if fall_asleep(base, deadline):
        put(base + STATE.PARKS, get(base + STATE.PARKS) + 1)
        left = sleep_ns(base, deadline)
        timeout = 0
        if left != FOREVER:
            put(base + STATE.SECONDS, left // 1000000000)
            put(base + STATE.NANOSECONDS, left % 1000000000)
            timeout = base + STATE.SECONDS
        libc_syscall(SYS_PPOLL, fds, 2, timeout, 0, 0)
        wide_awake(base)
    status = epoll_look(base)  # this also consumes the wake event, which would otherwise end the next doze at once
    PyEval_RestoreThread(thread)
    store(base + STATE.PARK_MODE, mode)
    put(base + STATE.POLLED, 1)
    return PyLong_FromLongLong(0 if status == 0 else ENDED_BROKEN)


@kernel(NOARGS)
def run(self: int, _unused: int) -> int:
    """Run turns until Python is needed. Returns ENDED_x as an int, or raises an exception that must leave the loop.
    Owner only.
    """
    base = data(self)
    put(base + STATE.UNPOLLED, get(base + STATE.UNPOLLED_MOST))  # the first turn of a run polls
    observed = get(base + STATE.OBSERVED) != 0
    if observed:
        loop_enters(base, get(base + STATE.POLLED) != 0)
    while True:
        status = checkpoint(base)
        while status == 0 and get(base + STATE.UNSENT) != 0:
            status = streams_flush(base)
            if status == 0:
                status = checkpoint(base)
        if observed:
            loop_rests(base, ingress_length(base))
        if status != 0:
            return 0
        ended = 0
        if load(base + STATE.INTERRUPT) != 0:
            ended = ENDED_INTERRUPT
        elif load(base + STATE.LIFECYCLE) != RUNNING:
            ended = ENDED_TERMINATING
        elif get(base + STATE.POLLED) != 0:
            put(base + STATE.POLLED, 0)
        elif get(base + STATE.AUTO_EXIT) != 0 and quiet(base):
            ended = ENDED_QUIET
        else:  # `wait` does not sleep if `stop` was called
            ended = wait(base)
        if ended != 0:
            return PyLong_FromLongLong(ended)
        if observed:
            turn_begins(base, ingress_length(base))
        if checkpoint(base) != 0 or phases(base) != 0 or call_hook(get(base + STATE.CHECK_INTERRUPTS)) != 0:
            if observed:
                loop_rests(base, ingress_length(base))
            return 0
        put(base + STATE.TURNS, get(base + STATE.TURNS) + 1)
        if exchange(base + STATE.STOP, 0) != 0:
            if observed:
                loop_rests(base, ingress_length(base))
            return PyLong_FromLongLong(ENDED_STOP)


@kernel(NOARGS)
def drain(self: int, _unused: int) -> int:
    """Graceful end: run what was accepted (immediates, close, internal, external; no timers) until nothing is left,
    checkpoints included. Returns ENDED_DRAINED or ENDED_INTERRUPT as an int, or raises as `run` does. Owner only,
    queues closed.
    """
    base = data(self)
    put(base + STATE.BUDGET, 1 << 62)
    observed = get(base + STATE.OBSERVED) != 0
    if observed:
        loop_enters(base, False)
    while True:
        status = checkpoint(base)
        if observed:
            loop_rests(base, ingress_length(base))
        if status != 0:
            return 0
        if load(base + STATE.INTERRUPT) != 0:
            return PyLong_FromLongLong(ENDED_INTERRUPT)
        if (
            idle(base)
            and queue_length(base + STATE.EXTERNAL) == 0
            and queue_length(base + STATE.REMOTE) == 0
            and load(base + STATE.READY) == 0
        ):
            return PyLong_FromLongLong(ENDED_DRAINED)
        if (
            phase_immediates(base) != 0
            or phase(base, base + STATE.CLOSING, KIND_CLOSE) != 0
            or phase(base, base + STATE.INTERNAL, KIND_INTERNAL) != 0
            or phase_external(base) != 0
            or call_hook(get(base + STATE.CHECK_INTERRUPTS)) != 0
        ):
            if observed:
                loop_rests(base, ingress_length(base))
            return 0
