"""The external phase: tasks of the submit queue and of producer handles, up to the budget, so that no producer can keep
a turn from ending.

Handles that have work are in the *ready stack*, once each: a handle's first submit after a rest pushes it, and the
phase takes the whole stack at once (so there is no ABA). A handle whose queue is empty is put to rest by clearing its
`queued` word and then checking the queue once more. This is the sleep protocol in miniature: a submit that comes in
between either sees the word cleared, and announces the handle itself, or is seen. The stack owns a reference to each
handle in it, so that a handle dropped by its user lives until it is drained.

The thread that sets `queued` becomes the queue's consumer, or passes that role to the thread that takes the stack. At a
loop's end the consumer is the thread that ends it, the collector's thread if the loop was forgotten, or a late
producer; each queue has exactly one.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, exchange, fetch_add, get, load, load_sc, put, store_sc
from ..base.capi import Py_DecRef
from ..base.kernel import apart, helper
from ..base.layout import HANDLE, KIND_TASK, POINTER_MASK, QUEUE, STAMPED, STATE, TERMINATED
from ..base.safepoint import EVERY, safepoint
from ..calls.invoke import LEAVE, breathe_on, call_hook
from ..ingress.parking import stall, step_aside
from ..ingress.remote_words import remote_reference
from ..ingress.ticket_queue import queue_length, queue_take, queue_tasks
from ..observe.meter import task_begins
from ..observe.probes import overload_begins
from .checkpoint import checkpoint, invoke_owned


@helper
def pressure(base: int) -> int:
    """Call the hook if the backlog has crossed a mark since the last call. Returns 0 or LEAVE. Loop thread."""
    length = ingress_length(base)
    if get(base + STATE.PRESSED) == 0 and length >= get(base + STATE.PRESSURE_HIGH):
        put(base + STATE.PRESSED, 1)
    elif get(base + STATE.PRESSED) != 0 and length <= get(base + STATE.PRESSURE_LOW):
        put(base + STATE.PRESSED, 0)
    else:
        return 0
    if call_hook(get(base + STATE.PRESSURE)) != 0:
        return LEAVE
    return checkpoint(base)


@helper
def run_external(base: int) -> int:
    """Run up to `budget` of the tasks that waited at entry, in the submit queue and in producer handles; if more
    waited, call the overload hook once. Returns 0 or LEAVE.
    """
    queue = base + STATE.EXTERNAL
    put(base + STATE.SUBJECT, queue)
    budget = get(base + STATE.BUDGET)
    waiting = queue_tasks(queue)
    left = budget
    share = min(waiting, budget)
    order = 0
    if load(base + STATE.READY) != 0:
        # The stack is last in, first out: reverse it once, so that handles are served in the order in which they became
        # ready. This turn runs at most what each holds now; what a callback adds waits for the next turn.
        handle = exchange(base + STATE.READY, 0)
        if waiting >= budget:  # neither kind starves the other; a budget of 1 alternates between them
            share = (budget + (get(base + STATE.TURNS) & 1)) >> 1
        while handle != 0:
            below = get(handle + HANDLE.NEXT_READY)
            held = queue_tasks(handle + HANDLE.QUEUE)
            put(handle + HANDLE.WAITING, held)
            waiting += held
            put(handle + HANDLE.NEXT_READY, order)
            order = handle
            handle = below
    overloaded = waiting > budget
    while share > 0 and load(base + STATE.INTERRUPT) == 0:
        word = queue_take(queue)
        if word == 0:
            if queue_length(queue) == 0:
                break  # the tickets had been refused
            if left == budget:
                stall(base)  # nothing ran: a producer is between its ticket and its store
            break
        share -= 1
        left -= 1
        if word & STAMPED != 0:
            task_begins(base, word, get(queue + QUEUE.STAMP))
        if invoke_owned(base, word, KIND_TASK) != 0:
            handles_put_back(base, order)
            return LEAVE
    again = 0  # handles that ran and have more: they go behind those that this turn does not reach
    last = 0
    while order != 0:
        below = get(order + HANDLE.NEXT_READY)
        status = 0
        taken = left
        if load(base + STATE.INTERRUPT) == 0:
            taken = handle_drain(base, order, min(get(order + HANDLE.WAITING), left))
            if taken < 0:
                status = LEAVE
                taken = 0
            put(base + STATE.HANDLED, get(base + STATE.HANDLED) + taken)
        left -= taken
        if queue_length(order + HANDLE.QUEUE) == 0:
            handle_rest(base, order)
        elif taken > 0:
            put(order + HANDLE.NEXT_READY, 0)
            if again == 0:
                again = order
            else:
                put(last + HANDLE.NEXT_READY, order)
            last = order
        else:
            handle_ready(base, order)  # `queued` is still set: it goes back with its reference
        order = below
        if status != 0:
            handles_put_back(base, order)
            handles_put_back(base, again)
            return LEAVE
    handles_put_back(base, again)
    if overloaded and load(base + STATE.INTERRUPT) == 0:
        if get(base + STATE.OBSERVED) != 0:
            overload_begins(base)
        if call_hook(get(base + STATE.OVERLOAD)) != 0:
            return LEAVE
        return checkpoint(base)
    return 0


@helper
def ingress_length(base: int) -> int:
    """The number of tasks in the submit queue and in ready handles. Loop thread, as only that takes handles off the
    stack, which owns them.
    """
    length = queue_tasks(base + STATE.EXTERNAL)
    handle = load(base + STATE.READY)
    while handle != 0:
        length += queue_tasks(handle + HANDLE.QUEUE)
        handle = get(handle + HANDLE.NEXT_READY)
    return length


@helper
def handle_drain(base: int, handle: int, count: int) -> int:
    """Run up to `count` tasks of a handle's queue. Returns how many ran, or LEAVE. Loop thread."""
    queue = handle + HANDLE.QUEUE
    put(base + STATE.SUBJECT, queue)
    ran = 0
    while ran < count:
        word = queue_take(queue)
        if word == 0:
            if ran == 0 and queue_length(queue) != 0:
                stall(base)
            break
        ran += 1
        if word & STAMPED != 0:
            task_begins(base, word, get(queue + QUEUE.STAMP))
        if invoke_owned(base, word, KIND_TASK) != 0:
            return LEAVE
        if load(base + STATE.INTERRUPT) != 0:
            break
    return ran


@apart
def handle_ready(base: int, handle: int) -> None:
    """Push a handle on the ready stack, which takes over the reference. Any thread. No ABA, because the stack is only
    ever emptied as a whole.
    """
    while True:
        top = load(base + STATE.READY)
        put(handle + HANDLE.NEXT_READY, top)
        if compare_and_swap(base + STATE.READY, top, handle):
            break
        fetch_add(base + STATE.READY_RETRIES, 1)
    if (
        load_sc(base + STATE.LIFECYCLE) == TERMINATED
    ):  # the handle was closed while its producer was between ticket and announcement,
        handles_drop(base, False, 0)  # and nobody else will look at the stack any more


@helper
def handle_rest(base: int, handle: int) -> None:
    """Put a drained handle to rest: its next submit announces it again. Releases the stack's reference. Loop thread."""
    store_sc(handle + HANDLE.QUEUED, 0)
    if queue_length(handle + HANDLE.QUEUE) != 0 and exchange(handle + HANDLE.QUEUED, 1) == 0:
        handle_ready(base, handle)  # a submit came in between and saw the handle still announced
        return
    Py_DecRef(get(handle + HANDLE.SELF))


@apart
def handles_put_back(base: int, handle: int) -> None:
    """Put back a chain of ready handles that this turn did not reach."""
    while handle != 0:
        below = get(handle + HANDLE.NEXT_READY)
        handle_ready(base, handle)
        handle = below


@helper
def let_in(base: int, count: int, breathing: bool, error: int) -> int:
    """Called after each release with their `count`; every `EVERY` releases it checks for interrupts and returns the
    exception to raise at the end (`breathe_on`), or, if not `breathing`, runs no Python and only passes a safepoint.
    """
    if count & (EVERY - 1) != 0:
        return error
    if breathing:
        return breathe_on(base, error)
    safepoint()
    return error


@helper
def queue_drop(base: int, queue: int, remote: bool, breathing: bool, error: int) -> int:
    """Release everything in a closed task queue, or in the remote queue. Returns the exception to raise at the end, see
    `let_in`.
    """
    dropped = 0
    while queue_length(queue) != 0:
        word = queue_take(queue)
        if word == 0:
            step_aside()
            continue
        owned = remote_reference(word) if remote else word & POINTER_MASK
        if owned != 0:
            Py_DecRef(owned)
        dropped += 1
        error = let_in(base, dropped, breathing, error)
    return error


@helper
def handle_drop(handle: int) -> bool:
    """Release everything in a closed handle's queue. False: another thread is its consumer and does it. Any thread."""
    if exchange(handle + HANDLE.QUEUED, 1) != 0:
        return False
    queue_drop(get(handle + HANDLE.LOOP), handle + HANDLE.QUEUE, False, False, 0)
    return True


@helper
def handles_drop(base: int, breathing: bool, error: int) -> int:
    """Release everything in the queues of ready handles. Any thread, when the loop has ended. Returns the exception to
    raise at the end, see `let_in`.
    """
    handle = exchange(base + STATE.READY, 0)
    while handle != 0:
        below = get(handle + HANDLE.NEXT_READY)
        error = queue_drop(base, handle + HANDLE.QUEUE, False, breathing, error)
        Py_DecRef(get(handle + HANDLE.SELF))
        handle = below
    return error
