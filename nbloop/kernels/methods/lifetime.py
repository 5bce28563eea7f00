"""The built-in methods of a loop's life: which thread runs it, whether it should end, and how everything it holds is
released.

Releasing is the delicate part, because releasing a reference can run any Python code, which may call methods of the
same loop. So the queues are closed by then: that code's attempts to schedule are refused, its cancels are answered
truthfully, and what it reads is consistent, though possibly empty.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, exchange, fetch_add, get, load, put, store, store_sc
from ..base.capi import (
    Py_DecRef,
    PyBool_FromLong,
    PyErr_SetRaisedException,
    PyFloat_FromDouble,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyThreadState_GetUnchecked,
)
from ..base.clock import FOREVER, LAST, clock_jump, loop_ns
from ..base.interpreter import LIST_ITEMS, SEQUENCE_SIZE
from ..base.kernel import MANY, NOARGS, ONE, data, helper, kernel
from ..base.layout import (
    AWAKE,
    HANDLE,
    IO,
    POINTER_MASK,
    RING,
    RUNNING,
    SLOT,
    SLOT_BITS,
    SLOTS_PER_SLAB_BITS,
    STATE,
    TERMINATED,
    TERMINATING,
    TIMERS,
)
from ..base.refusal import on_loop_thread
from ..ingress.parking import arrivals, wake_to_exit, wide_awake
from ..ingress.parking import wake as wake_loop
from ..ingress.ticket_queue import (
    chunks_reserve,
    chunks_return,
    queue_close,
    queue_length,
    queue_reopen,
    queue_return_chunk,
    queue_tasks,
)
from ..memory.pool import pool_end
from ..memory.ring import ring_end, ring_length, ring_pop, ring_seen, ring_waiting
from ..memory.slot_slabs import slab_rests, slots_end
from ..memory.slots import CANCELLED, SPENT, STATE_MASK, WATCHED, slot_of, timers_referenced
from ..timers.timer_heap import heap_end
from ..timers.timer_queue import timer_queue_clear
from ..turn.external import handle_drop, handles_drop, let_in, queue_drop


@kernel(NOARGS)
def alive(self: int, _unused: int) -> int:
    """Whether anything is left to run except unreferenced timers. Reads two words of each queue."""
    return PyBool_FromLong(1 if something_left(data(self)) else 0)


@helper
def something_left(base: int) -> bool:
    """`alive`, for kernels."""
    return (
        queue_length(base + STATE.EXTERNAL) != 0
        or queue_length(base + STATE.REMOTE) > load(base + STATE.TIMERS + TIMERS.COMMANDS)
        or load(base + STATE.READY) != 0
        or ring_seen(base + STATE.NEXT_TICKS)
        or ring_seen(base + STATE.MICROTASKS)
        or ring_seen(base + STATE.IMMEDIATES)
        or ring_seen(base + STATE.CLOSING)
        or ring_seen(base + STATE.INTERNAL)
        or ring_seen(base + STATE.CHECKPOINT_ENDS)
        or timers_referenced(base) > 0
        or load(base + STATE.HOLDS) > 0
    )


@kernel(MANY)
def waiting(self: int, arguments: int, _count: int) -> int:
    """Write how much waits now into an array of four words, the first argument: in the submit queue and in the handles
    of a list, the second; in the internal ring; as microtasks and next-ticks; as immediates. Any thread, also while a
    callback hangs; a moment old. O(handles).
    """
    base = data(self)
    target = data(get(arguments))
    handles = get(arguments + 8)
    ingress = queue_tasks(base + STATE.EXTERNAL)
    for i in range(get(handles + SEQUENCE_SIZE)):
        ingress += queue_tasks(data(get(get(handles + LIST_ITEMS) + (i << 3))) + HANDLE.QUEUE)
    put(target, ingress)
    put(target + 8, ring_waiting(base + STATE.INTERNAL) + max(0, load(base + STATE.REMOTE_INTERNALS)))
    microtasks = ring_waiting(base + STATE.NEXT_TICKS) + ring_waiting(base + STATE.MICROTASKS)
    put(target + 16, microtasks + max(0, load(base + STATE.REMOTE_MICROTASKS)))
    put(target + 24, ring_waiting(base + STATE.IMMEDIATES) + max(0, load(base + STATE.REMOTE_IMMEDIATES)))
    return get(base + STATE.NONE)


# What `something_left` checks, in the order in which `reasons` counts it.
REASONS = (
    *("tasks", "commands of other threads", "producers with tasks", "next-ticks", "microtasks", "checkpoint ends"),
    *("immediates", "close callbacks", "internal tasks", "timers", "descriptors", "functions of promisify"),
)


@kernel(ONE)
def reasons(self: int, array: int) -> int:
    """Write the count of each of `REASONS` to an array. Any thread; possibly outdated.

    The tasks in handles are not counted: other threads must not follow the stack of ready handles.
    """
    base = data(self)
    at = data(array)
    timers = base + STATE.TIMERS
    watches = load(base + STATE.IO + IO.WATCHES)
    put(at, queue_tasks(base + STATE.EXTERNAL))
    put(at + 8, queue_length(base + STATE.REMOTE) - load(timers + TIMERS.COMMANDS))
    put(at + 16, 1 if load(base + STATE.READY) != 0 else 0)
    put(at + 24, ring_waiting(base + STATE.NEXT_TICKS))
    put(at + 32, ring_waiting(base + STATE.MICROTASKS))
    put(at + 40, ring_waiting(base + STATE.CHECKPOINT_ENDS))
    put(at + 48, ring_waiting(base + STATE.IMMEDIATES))
    put(at + 56, ring_waiting(base + STATE.CLOSING))
    put(at + 64, ring_waiting(base + STATE.INTERNAL))
    put(at + 72, timers_referenced(base))
    put(at + 80, watches)
    put(at + 88, load(base + STATE.HOLDS) - watches)
    return get(base + STATE.NONE)


@kernel(ONE)
def hold(self: int, change: int) -> int:
    """Change the number of external reasons to stay alive: busy worker threads (and watches, which count themselves).
    Any thread.
    """
    base = data(self)
    fetch_add(base + STATE.HOLDS, PyLong_AsLongLong(change))
    wake_to_exit(base)
    return get(base + STATE.NONE)


@kernel(NOARGS)
def stop(self: int, _unused: int) -> int:
    """Set the word that the loop checks after each turn, and wake the loop so that it does."""
    base = data(self)
    store_sc(base + STATE.STOP, 1)
    wake_loop(base)
    return get(base + STATE.NONE)


@kernel(NOARGS)
def wake(self: int, _unused: int) -> int:
    """The wake call alone."""
    base = data(self)
    return PyBool_FromLong(1 if wake_loop(base) else 0)


@kernel(NOARGS)
def now(self: int, _unused: int) -> int:
    """The loop's clock in seconds."""
    return PyFloat_FromDouble(loop_ns(data(self)) / 1e9)


@kernel(ONE)
def clock_advance(self: int, ns: int) -> int:
    """Move a virtual clock, unless that would pass the end of time; return whether it moved. Any thread."""
    base = data(self)
    step = PyLong_AsLongLong(ns)
    now = load(base + STATE.VIRTUAL_NOW)
    while now <= LAST - step:
        if compare_and_swap(base + STATE.VIRTUAL_NOW, now, now + step):
            return PyBool_FromLong(1)
        now = load(base + STATE.VIRTUAL_NOW)
    return PyBool_FromLong(0)


@kernel(NOARGS)
def is_loop_thread(self: int, _unused: int) -> int:
    """Compare the owner word with the caller's thread state."""
    return PyBool_FromLong(1 if on_loop_thread(data(self)) else 0)


@kernel(ONE)
def warm(self: int, chunks: int) -> int:
    """At construction, allocate `chunks` chunks in the pool, at least one, before the first submit needs them. False if
    there is no memory; `destroy` then releases what was allocated.
    """
    pool = data(self) + STATE.POOL
    first = chunks_reserve(pool, PyLong_AsLongLong(chunks))
    chunks_return(pool, first)
    return PyBool_FromLong(1 if first >= 0 else 0)


@kernel(NOARGS)
def acquire(self: int, _unused: int) -> int:
    """Make the calling thread the owner. Returns 0 if it now is, 1 if another thread is, 2 if it already was."""
    base = data(self)
    me = PyThreadState_GetUnchecked()
    if compare_and_swap(base + STATE.OWNER, 0, me):
        return PyLong_FromLongLong(0)
    return PyLong_FromLongLong(2 if load(base + STATE.OWNER) == me else 1)


@kernel(NOARGS)
def release(self: int, _unused: int) -> int:
    """Give up ownership of the loop. Owner only."""
    base = data(self)
    store_sc(base + STATE.OWNER, 0)
    return get(base + STATE.NONE)


@kernel(NOARGS)
def leave(self: int, _unused: int) -> int:
    """The last step of `run`: if the calling thread is the owner, RUNNING becomes AWAKE, and the loop has no owner. It
    is one call, because a signal handler can raise between any two, and the loop would stay owned.

    The loop may have closed its queues to find out whether it is quiet (`quiet` in turn.py). A loop that can run again
    must accept work, so they are reopened here before the loop is AWAKE, as a refusal is final from then on, and closed
    again if another thread has asked for the end meanwhile.
    """
    base = data(self)
    if on_loop_thread(base):
        if load(base + STATE.LIFECYCLE) == RUNNING:
            queue_reopen(base + STATE.REMOTE)
            queue_reopen(base + STATE.EXTERNAL)
        if not compare_and_swap(base + STATE.LIFECYCLE, RUNNING, AWAKE) and load(base + STATE.LIFECYCLE) >= TERMINATING:
            queue_close(base + STATE.EXTERNAL)
            queue_close(base + STATE.REMOTE)
        store_sc(base + STATE.OWNER, 0)
    return get(base + STATE.NONE)


@kernel(NOARGS)
def awaken(self: int, _unused: int) -> int:
    """End the announced sleep, after Python slept for the loop. Owner only."""
    base = data(self)
    if get(base + STATE.IO + IO.READY_DONE) >= get(base + STATE.IO + IO.READY_COUNT) and not arrivals(base):
        put(base + STATE.NAPPED, 1 if get(base + STATE.NAP) != 0 else 0)
        # The parker returns when it is woken, or not before the deadline.
        clock_jump(base, load(base + STATE.SLEEP_DEADLINE), FOREVER)
    wide_awake(base)
    return get(base + STATE.NONE)


@kernel(MANY)
def transition(self: int, arguments: int, _count: int) -> int:
    """Swap the lifecycle from the first int to the second; return whether it was the first. Any thread."""
    base = data(self)
    old = PyLong_AsLongLong(get(arguments))
    new = PyLong_AsLongLong(get(arguments + 8))
    return PyBool_FromLong(1 if compare_and_swap(base + STATE.LIFECYCLE, old, new) else 0)


@kernel(ONE)
def interrupt(self: int, flag: int) -> int:
    """Set or clear the word that the loop checks after each callback, and wake the loop. Any thread."""
    base = data(self)
    store_sc(base + STATE.INTERRUPT, PyLong_AsLongLong(flag))
    wake_loop(base)
    return get(base + STATE.NONE)


@kernel(NOARGS)
def close_queues(self: int, _unused: int) -> int:
    """Refuse new work from now on. Any thread; idempotent."""
    base = data(self)
    queue_close(base + STATE.EXTERNAL)
    queue_close(base + STATE.REMOTE)
    wake_loop(base)
    return get(base + STATE.NONE)


@kernel(ONE)
def end_if_quiet(self: int, handles: int) -> int:
    """The rest of auto-exit, after `quiet` in turn.py: also close a list of handles, and move to TERMINATING. If one of
    them has work, or something has arrived since (from a signal handler on this thread, or a watch from another), all
    are reopened. Returns whether the loop ends. Owner only, under the loop's lock.

    It is one call, because a signal handler that raised between two closes would leave handles that refuse work
    although the loop goes on.
    """
    base = data(self)
    count = get(handles + SEQUENCE_SIZE)
    first = get(handles + LIST_ITEMS)
    waiting = 0
    for i in range(count):
        queue = data(get(first + (i << 3))) + HANDLE.QUEUE
        queue_close(queue)
        waiting += queue_length(queue)
    if waiting == 0 and not something_left(base) and compare_and_swap(base + STATE.LIFECYCLE, RUNNING, TERMINATING):
        return PyBool_FromLong(1)
    for i in range(count):
        queue_reopen(data(get(first + (i << 3))) + HANDLE.QUEUE)
    queue_reopen(base + STATE.REMOTE)
    queue_reopen(base + STATE.EXTERNAL)
    if load(base + STATE.LIFECYCLE) != RUNNING:  # a concurrent shutdown(): the reopening may have undone its close
        queue_close(base + STATE.EXTERNAL)
        queue_close(base + STATE.REMOTE)
        for i in range(count):
            queue_close(data(get(first + (i << 3))) + HANDLE.QUEUE)
    return PyBool_FromLong(0)


@kernel(NOARGS)
def producer_close(self: int, _unused: int) -> int:
    """Refuse new work from a handle; return how much it still holds. Any thread; idempotent."""
    queue = data(self) + HANDLE.QUEUE
    queue_close(queue)
    return PyLong_FromLongLong(queue_length(queue))


@helper
def ring_drop(base: int, ring: int, breathing: bool, error: int) -> int:
    """Release everything in a ring of references. Returns the exception to raise at the end, see `let_in`."""
    while ring_length(ring) != 0:
        Py_DecRef(ring_pop(ring) & POINTER_MASK)
        error = let_in(base, get(ring + RING.HEAD), breathing, error)
    return error


@kernel(NOARGS)
def release_pending(self: int, _unused: int) -> int:
    """`release_all` as a method. Owner only, queues closed. If a signal handler raises meanwhile, this raises as well,
    after everything has been released.
    """
    base = data(self)
    return raised_or_none(base, release_all(base, True))


@helper
def raised_or_none(base: int, error: int) -> int:
    """Raise an exception, consuming its reference, or return None if there is none."""
    if error != 0:
        PyErr_SetRaisedException(error)
        return 0
    return get(base + STATE.NONE)


@helper
def release_all(base: int, breathing: bool) -> int:
    """Release everything that was accepted and will not run, because the loop has ended. Queues closed, no thread
    inside `run`. Releasing can run any Python code: its attempts to schedule are refused, and its cancels are answered
    truthfully. Returns the exception to raise at the end, see `let_in`.

    Timer slots are released before the timer queue, which thus stays consistent: what that code cancels is still in it.
    """
    timers = base + STATE.TIMERS
    store_sc(base + STATE.LIFECYCLE, TERMINATED)
    store_sc(base + STATE.INTERRUPT, 1)  # otherwise the loop's own thread could still schedule for a checkpoint
    error = queue_drop(base, base + STATE.EXTERNAL, False, breathing, 0)
    error = queue_drop(base, base + STATE.REMOTE, True, breathing, error)
    store(base + STATE.REMOTE_MICROTASKS, 0)
    store(base + STATE.REMOTE_INTERNALS, 0)
    store(base + STATE.REMOTE_IMMEDIATES, 0)
    error = ring_drop(base, base + STATE.NEXT_TICKS, breathing, error)
    error = ring_drop(base, base + STATE.MICROTASKS, breathing, error)
    error = ring_drop(base, base + STATE.CLOSING, breathing, error)
    error = ring_drop(base, base + STATE.INTERNAL, breathing, error)
    error = ring_drop(base, base + STATE.CHECKPOINT_ENDS, breathing, error)
    put(base + STATE.DUE, 0)
    # These are slot numbers; their references are released below.
    store(base + STATE.IMMEDIATES + RING.HEAD, get(base + STATE.IMMEDIATES + RING.TAIL))
    store(timers + TIMERS.COMMANDS, 0)
    # A finaliser does not visit the slots of a closed loop again: what has been armed since was refused, and cleared.
    released, made = get(timers + TIMERS.RELEASED), load(timers + TIMERS.SLOT_COUNT)
    for slot in range(released, made):
        record = 0 if slab_rests(timers, slot >> SLOTS_PER_SLAB_BITS) else slot_of(timers, slot | 1 << SLOT_BITS)
        while record != 0:
            word = load(record + SLOT.WORD)
            state = word & STATE_MASK
            callback = load(record + SLOT.CALLBACK)
            if state == SPENT or state == CANCELLED:
                break
            descriptor = load(record + SLOT.DESCRIPTOR) if state >= WATCHED else 0
            if compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK):
                Py_DecRef(callback & POINTER_MASK)
                if descriptor != 0:
                    Py_DecRef(descriptor)
                break
            fetch_add(timers + TIMERS.RETRIES, 1)
        error = let_in(base, slot, breathing, error)
    put(timers + TIMERS.RELEASED, made)
    emptied = 0
    while timer_queue_clear(base):
        emptied += 64  # a chunk has about 64 entries
        error = let_in(base, emptied, breathing, error)
    store(timers + TIMERS.LIVE_HERE, 0)
    store(timers + TIMERS.LIVE_ELSEWHERE, 0)
    store(timers + TIMERS.UNREFERENCED, 0)
    fetch_add(base + STATE.HOLDS, -exchange(base + STATE.IO + IO.WATCHES, 0))
    put(base + STATE.IO + IO.READY_COUNT, 0)
    return handles_drop(base, breathing, error)


@kernel(NOARGS)
def destroy(self: int, _unused: int) -> int:
    """The state's finaliser: end the loop for good and release every callable that kernels own.

    The collector calls the finalisers of a cycle in any order, so others may still call methods of this state. These
    are refused or find nothing; the memory stays valid until `dismantle`.
    """
    base = data(self)
    queue_close(base + STATE.EXTERNAL)
    queue_close(base + STATE.REMOTE)
    release_all(base, False)
    return get(base + STATE.NONE)


@kernel(NOARGS)
def dismantle(self: int, _unused: int) -> int:
    """Release a portion of the memory that kernels took, some 4 MiB, in 0.5 ms. Whether more is left. Its ``self`` is
    the `Memory` of a destroyed state, which is gone.
    """
    base = data(self)
    if heap_end(base + STATE.TIMERS) or slots_end(base + STATE.TIMERS) or pool_end(base + STATE.POOL):
        return PyBool_FromLong(1)  # not None, whose address may not have been stored yet
    ring_end(base + STATE.NEXT_TICKS)
    ring_end(base + STATE.MICROTASKS)
    ring_end(base + STATE.IMMEDIATES)
    ring_end(base + STATE.CLOSING)
    ring_end(base + STATE.INTERNAL)
    ring_end(base + STATE.CHECKPOINT_ENDS)
    return PyBool_FromLong(0)


@kernel(NOARGS)
def producer_drop(self: int, _unused: int) -> int:
    """Release what a closed handle holds, unless it is in the ready stack or on its way there, where `handles_drop`
    will find it. Any thread, at the loop's end.
    """
    handle = data(self)
    handle_drop(handle)
    return get(get(handle + HANDLE.LOOP) + STATE.NONE)


@kernel(NOARGS)
def producer_destroy(self: int, _unused: int) -> int:
    """A handle's finaliser: refuse new work, release what it holds, and put its chunk back into the loop's pool."""
    handle = data(self)
    queue = handle + HANDLE.QUEUE
    queue_close(queue)
    if handle_drop(handle):
        queue_return_chunk(queue)
    return get(get(handle + HANDLE.LOOP) + STATE.NONE)
