"""Readiness: from the system's report that a descriptor is ready to its callback, in one kernel call.

Problem: between an event of the system and its callback, asyncio makes a list of pairs, looks each up in a dict, and
allocates a handle for each. Idea: the poller carries a 64-bit *token* with every event, and the token is the id of a
slot (slots.py) that holds the callback, so three loads turn an event into a call. The token contains the slot's
generation: an event for a watch that is gone reaches no callback, even if the descriptor's number has been reused.

The slot's word decides, as for timers. The loop claims an event's callback by WATCHED -> DISPATCHING and gives it back
afterwards. A thread that unregisters swaps WATCHED for SPENT and releases the callback, or swaps DISPATCHING for
CANCELLED, and then the loop releases it. So once that swap is done, on whichever thread, no callback starts. Interest
is one word, read again before the call: a watch that was muted after its event was collected stays quiet.

Where kernels can wait in the poller themselves (epoll: the event buffer is plain memory), they do, detached; otherwise
Python waits, and writes its results into the same table of (token, events). It loses against io_uring where each
readiness is followed by a read or a write of known size: that is two system calls here and none there.
"""

from __future__ import annotations

from ..base.atomics import (
    compare_and_swap,
    exchange,
    fetch_add,
    get,
    get_half,
    load,
    monotonic_ns,
    pause,
    put,
    put_half,
    store,
)
from ..base.capi import (
    EBADF,
    EEXIST,
    EINTR,
    ENOENT,
    EPERM,
    EPOLL_DATA,
    EPOLL_EVENT_BYTES,
    SYS_EPOLL_CTL,
    SYS_EPOLL_PWAIT,
    SYS_EPOLL_PWAIT2,
    Py_DecRef,
    Py_IncRef,
    PyBool_FromLong,
    PyContext_Enter,
    PyDict_DelItem,
    PyDict_GetItemWithError,
    PyDict_SetItem,
    PyErr_BadArgument,
    PyErr_Clear,
    PyErr_GetRaisedException,
    PyErr_Occurred,
    PyErr_SetRaisedException,
    PyEval_RestoreThread,
    PyEval_SaveThread,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyObject_CallNoArgs,
    PyObject_Vectorcall,
    errno_location,
    libc_syscall,
)
from ..base.clock import FOREVER, clock_jump, sleep_ns
from ..base.interpreter import TUPLE_ITEMS
from ..base.kernel import MANY, ONE, apart, data, helper, inlined, kernel
from ..base.layout import (
    CALLBACK_AT,
    EDGE,
    ERROR,
    HANGUP,
    IO,
    KIND_READINESS,
    ONESHOT,
    PARK_EPOLL,
    POINTER_MASK,
    READ,
    READY_MOST,
    REFUSED_SLOTS,
    SLOT,
    SLOT_BITS,
    SLOT_LIMIT,
    STATE,
    TAG_ARGUMENTS,
    TERMINATING,
    TIMERS,
    WRITE,
)
from ..base.refusal import on_loop_thread, refuse
from ..calls.captured import context_left, pack_captured
from ..calls.invoke import call_hook, called
from ..ingress.parking import (
    SPIN_LOOKS,
    arrivals,
    fall_asleep,
    nap_ended,
    nap_ns,
    slept_for,
    spin_ended,
    spin_limit,
    wake_to_exit,
    wide_awake,
)
from ..memory.slot_slabs import GENERATION_SHIFT, slot_at
from ..memory.slots import (
    CANCELLED,
    DISPATCHING,
    STATE_MASK,
    WATCHED,
    slot_free,
    slot_of,
    slot_open,
    slot_take,
)
from ..observe.probes import callback_begins
from .checkpoint import checkpoint

EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP = 1, 4, 8, 16, 0x2000
EPOLLONESHOT, EPOLLET = 1 << 30, 1 << 31
EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD = 1, 2, 3

UNKNOWN = -1  # what `watch_finish` returns for a descriptor that is not registered
CHANGES = -2  # what `watch_begin` returns if the loop has to sleep in another way from now on
DECLINED = -3  # what `watch_begin_here` and `watch_finish_here` return if Python has to do it, from the beginning
# The items of the table that these are given: its three dicts, and two callables: one takes its lock, unless another
# thread has it, and one releases it.
TOKENS, INTERESTS, LATEST, ACQUIRE, RELEASE = (TUPLE_ITEMS + 8 * item for item in range(5))


@kernel(MANY)
def watch_open(self: int, arguments: int, _count: int) -> int:
    """(descriptor, callback, interest, tokens) -> token, which is also ``tokens[descriptor]`` from then on: a slot and
    the entry that names it are made in one call, because between two a signal handler may raise. The slot owns
    references to descriptor, an exact int, and callback. Any thread that has the table's lock; O(1).
    """
    callback = get(arguments + 8)
    Py_IncRef(callback)
    return watch_store(data(self), arguments, get(arguments + 24), callback)


@kernel(MANY)
def watch_open_captured(self: int, arguments: int, _count: int) -> int:
    """`watch_open`, captured (captured.py): one context for all calls."""
    word = pack_captured(data(self), get(arguments + 8), 0, 0)
    return watch_store(data(self), arguments, get(arguments + 24), word) if word != 0 else 0


@helper
def watch_store(base: int, arguments: int, tokens: int, callback: int) -> int:
    """`watch_open` with an owned callback, which is marked if it is captured. 0 with an exception set."""
    timers = base + STATE.TIMERS
    slot = slot_take(timers)
    if slot < 0:
        Py_DecRef(callback & POINTER_MASK)
        refuse(base, REFUSED_SLOTS, get(base + STATE.NONE))
        return 0
    record = slot_at(timers, slot)
    descriptor = get(arguments)
    Py_IncRef(descriptor)
    put(record + SLOT.DESCRIPTOR, descriptor)
    store(record + SLOT.INTEREST, PyLong_AsLongLong(get(arguments + 16)))
    fetch_add(base + STATE.IO + IO.WATCHES, 1)
    fetch_add(base + STATE.HOLDS, 1)  # a watch keeps an auto-exit loop alive
    identifier = slot_open(timers, slot, callback, WATCHED)
    token = PyLong_FromLongLong(identifier)
    if token != 0 and PyDict_SetItem(tokens, descriptor, token) != 0:  # no memory
        Py_DecRef(token)
        token = 0
    if token == 0:
        error = PyErr_GetRaisedException()  # the end may wake the loop, which calls Python on some systems
        watch_end(base, identifier)
        PyErr_SetRaisedException(error)
    return token


@kernel(MANY)
def watch_change(self: int, arguments: int, _count: int) -> int:
    """(token, interest): change which events the callback receives. The token of a watch that is closed, whose slot may
    serve another one, does nothing. Any thread.
    """
    base = data(self)
    token = PyLong_AsLongLong(get(arguments))
    record = slot_of(base + STATE.TIMERS, token)
    if record != 0 and load(record + SLOT.WORD) >> GENERATION_SHIFT == token >> SLOT_BITS:
        store(record + SLOT.INTEREST, PyLong_AsLongLong(get(arguments + 8)))
    return get(base + STATE.NONE)


@kernel(MANY)
def watch_close(self: int, arguments: int, _count: int) -> int:
    """(descriptor, tokens): take the entry out, and close its slot: after this returns, its callback does not start any
    more. False if there is no entry. Any thread that has the table's lock; O(1).
    """
    descriptor, tokens = get(arguments), get(arguments + 8)
    token = PyDict_GetItemWithError(tokens, descriptor)
    if token == 0:
        return 0 if PyErr_Occurred() != 0 else PyBool_FromLong(0)
    identifier = PyLong_AsLongLong(token)
    taken = PyDict_DelItem(tokens, descriptor)
    ended = watch_end(data(self), identifier)
    return PyBool_FromLong(ended) if taken == 0 else 0


@apart
def watch_end(base: int, identifier: int) -> int:
    """Close a slot by its token. 0 if it was already closed. Any thread; O(1)."""
    timers = base + STATE.TIMERS
    record = slot_of(timers, identifier)
    while record != 0:
        word = load(record + SLOT.WORD)
        if word >> GENERATION_SHIFT != identifier >> SLOT_BITS or word & STATE_MASK < WATCHED:
            break
        if word & STATE_MASK == DISPATCHING:
            if compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK | CANCELLED):
                watch_gone(base)
                return 1
        elif compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK):
            watch_gone(base)
            watch_release(timers, record, identifier & (SLOT_LIMIT - 1))
            return 1
        fetch_add(timers + TIMERS.RETRIES, 1)
    return 0


@apart
def watch_gone(base: int) -> None:
    """Account for a closed watch, which may have been the last thing that kept the loop alive."""
    fetch_add(base + STATE.IO + IO.WATCHES, -1)
    fetch_add(base + STATE.HOLDS, -1)
    wake_to_exit(base)


@apart
def watch_release(timers: int, record: int, slot: int) -> None:
    """Release what a closed watch owned. Called only by the thread that closed it, or by the loop."""
    callback = get(record + SLOT.CALLBACK)
    descriptor = get(record + SLOT.DESCRIPTOR)
    slot_free(timers, slot)
    Py_DecRef(descriptor)
    Py_DecRef(callback & POINTER_MASK)


@inlined
def watch_call(callback: int, arguments: int) -> int:
    """Call the callback of a watch. A new reference, or 0 with an exception set."""
    if callback & TAG_ARGUMENTS == 0:
        return PyObject_Vectorcall(callback, arguments, 2, 0)
    items = (callback & POINTER_MASK) + TUPLE_ITEMS
    context = get(items + 8)
    if PyContext_Enter(context) != 0:
        return 0
    return context_left(context, PyObject_Vectorcall(get(items + (CALLBACK_AT << 3)), arguments, 2, 0))


@inlined
def watch_ready(base: int, token: int, events: int) -> int:
    """Run the callback of a token, if it still wants these events. Returns 0 or LEAVE. Loop thread."""
    timers = base + STATE.TIMERS
    io = base + STATE.IO
    record = slot_of(timers, token)
    if record == 0:
        return 0
    word = load(record + SLOT.WORD)
    if word >> GENERATION_SHIFT != token >> SLOT_BITS or word & STATE_MASK != WATCHED:
        # The watch was closed while its event was on the way; or the user closed the descriptor first, a duplicate
        # lives, and the system goes on reporting an entry that can no longer be removed: the poller must be rebuilt.
        if load(io + IO.SUSPECT) != 0 and exchange(io + IO.SUSPECT, 0) != 0:
            return call_hook(get(base + STATE.RENEW))
        return 0
    interest = load(record + SLOT.INTEREST) & (READ | WRITE)
    events &= interest | ERROR | HANGUP
    if interest == 0 or events == 0 or not compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK | DISPATCHING):
        return 0
    callback = get(record + SLOT.CALLBACK)
    put(io + IO.ARGUMENT0, get(record + SLOT.DESCRIPTOR))
    put(io + IO.ARGUMENT0 + 8, get(get(io + IO.MASKS) + (events << 3)))
    put(base + STATE.SUBJECT, token)
    if get(base + STATE.OBSERVED) != 0:
        callback_begins(base, callback, KIND_READINESS)
    status = called(base, watch_call(callback, io + IO.ARGUMENT0), callback, KIND_READINESS)
    while True:
        word = load(record + SLOT.WORD)
        if word & STATE_MASK == CANCELLED:
            store(record + SLOT.WORD, word & ~STATE_MASK)
            watch_release(timers, record, token & (SLOT_LIMIT - 1))
            break
        if compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK | WATCHED):
            break
        fetch_add(timers + TIMERS.RETRIES, 1)
    if status != 0:
        return status
    return checkpoint(base)


@helper
def epoll_bits(interest: int) -> int:
    """What epoll is asked for an interest.

    A half-close by the peer is requested together with READ only. To a reader it is news; for a watch that only writes,
    the condition would stay true and be reported for ever. A muted descriptor has no events, and EPOLLET: the system
    always reports errors and hang-ups, and level-triggered reports for a muted socket would spin the loop.
    """
    if interest & (READ | WRITE) == 0:
        return EPOLLET
    bits = 0
    if interest & READ:
        bits |= EPOLLIN | EPOLLRDHUP
    if interest & WRITE:
        bits |= EPOLLOUT
    if interest & EDGE:
        bits |= EPOLLET
    if interest & ONESHOT:
        bits |= EPOLLONESHOT
    return bits


@helper
def epoll_control(event: int, poller: int, operation: int, descriptor: int, interest: int, token: int) -> int:
    """epoll_ctl, with room for an event of the system at `event`. Returns 0 or an errno."""
    put_half(event, epoll_bits(interest))
    put_half(event + EPOLL_DATA, token)  # which need not be at a multiple of 8
    put_half(event + EPOLL_DATA + 4, token >> 32)
    status = libc_syscall(SYS_EPOLL_CTL, poller, operation, descriptor, event, 0, 0)
    return 0 if status == 0 else get_half(errno_location())


@kernel(MANY)
def epoll_change(self: int, arguments: int, _count: int) -> int:
    """(set, operation, descriptor, interest, token) -> 0 or an errno. ``self`` is room for an event of the system, for
    one thread at a time.
    """
    status = epoll_control(
        data(self),
        PyLong_AsLongLong(get(arguments)),
        PyLong_AsLongLong(get(arguments + 8)),
        PyLong_AsLongLong(get(arguments + 16)),
        PyLong_AsLongLong(get(arguments + 24)),
        PyLong_AsLongLong(get(arguments + 32)),
    )
    return PyLong_FromLongLong(status)


@kernel(MANY)
def watch_begin(self: int, arguments: int, _count: int) -> int:
    """(descriptor, callback, interest, tokens) -> 0, CHANGES, or an errno: `watch_open`, and epoll's entry. One call,
    so that no signal handler can come between the two; a method of the poller's for the second took 0.5 µs more. If
    the system refuses, nothing has changed. Any thread that has the table's lock; O(1).
    """
    callback = get(arguments + 8)
    Py_IncRef(callback)
    return watch_add(data(self), arguments, get(arguments + 24), callback)


@kernel(MANY)
def watch_begin_captured(self: int, arguments: int, _count: int) -> int:
    """`watch_begin`, captured (captured.py): one context for all calls."""
    word = pack_captured(data(self), get(arguments + 8), 0, 0)
    return watch_add(data(self), arguments, get(arguments + 24), word) if word != 0 else 0


@helper
def watch_add(base: int, arguments: int, tokens: int, callback: int) -> int:
    """`watch_begin` with an owned callback, which is marked if it is captured."""
    token = watch_store(base, arguments, tokens, callback)
    if token == 0:
        return 0
    identifier = PyLong_AsLongLong(token)
    Py_DecRef(token)
    event, poller = base + STATE.IO + IO.CHANGE0, get(base + STATE.IO + IO.POLLER)
    descriptor, interest = PyLong_AsLongLong(get(arguments)), PyLong_AsLongLong(get(arguments + 16))
    status = epoll_control(event, poller, EPOLL_CTL_ADD, descriptor, interest, identifier)
    if status == EEXIST:  # closed, unregistered, and restored under its old number by dup2()
        status = epoll_control(event, poller, EPOLL_CTL_MOD, descriptor, interest, identifier)
    if status != 0:
        taken = PyDict_DelItem(tokens, get(arguments))
        watch_end(base, identifier)
        if taken != 0:
            return 0
    elif load(base + STATE.IO + IO.WATCHES) == 1 and not (
        # It still sleeps in its poller. Another thread cannot know: the loop may be about to choose the futex.
        on_loop_thread(base) and load(base + STATE.PARK_MODE) == PARK_EPOLL
    ):
        status = CHANGES
    return PyLong_FromLongLong(status)


@kernel(MANY)
def watch_finish(self: int, arguments: int, _count: int) -> int:
    """(descriptor, tokens) -> 0, UNKNOWN, or an errno with which the watch has ended, too: epoll forgets the
    descriptor, then `watch_close`. One call, as `watch_begin`. Any thread that has the table's lock; O(1).
    """
    return watch_forget(data(self), get(arguments), get(arguments + 8))


@helper
def watch_forget(base: int, number: int, tokens: int) -> int:
    """`watch_finish` of the descriptor with that number, an object."""
    token = PyDict_GetItemWithError(tokens, number)
    if token == 0:
        return 0 if PyErr_Occurred() != 0 else PyLong_FromLongLong(UNKNOWN)
    identifier = PyLong_AsLongLong(token)
    io = base + STATE.IO
    descriptor = PyLong_AsLongLong(number)
    status = epoll_control(io + IO.CHANGE0, get(io + IO.POLLER), EPOLL_CTL_DEL, descriptor, 0, 0)
    if status != 0:
        store(io + IO.SUSPECT, 1)
        if status == EBADF or status == ENOENT or status == EPERM:  # closed; another file; not pollable
            status = 0
    taken = PyDict_DelItem(tokens, number)
    watch_end(base, identifier)
    return PyLong_FromLongLong(status) if taken == 0 else 0


@helper
def table_taken(base: int, table: int) -> bool:
    """Take the table's lock, if no other thread has it, this is the loop's own thread, and the loop sleeps in epoll."""
    if not on_loop_thread(base) or load(base + STATE.PARK_MODE) != PARK_EPOLL:
        return False
    if load(base + STATE.LIFECYCLE) >= TERMINATING:
        return False
    taken = PyObject_CallNoArgs(get(table + ACQUIRE))
    if taken == 0:
        PyErr_Clear()
        return False
    Py_DecRef(taken)
    return taken == PyBool_FromLong(1)  # an address to compare


@helper
def table_left(table: int, result: int) -> int:
    """Release the table's lock. Returns the result, or 0 with the exception that was set."""
    error = PyErr_GetRaisedException()
    released = PyObject_CallNoArgs(get(table + RELEASE))
    if error != 0:
        PyErr_SetRaisedException(error)
    elif released == 0:
        Py_DecRef(result)
        return 0
    Py_DecRef(released)
    return result


@helper
def done_or_declined(status: int) -> int:
    """A status as an object, whose reference is consumed: 0 remains, and any other becomes DECLINED."""
    if status == 0 or PyLong_AsLongLong(status) == 0:
        return status
    Py_DecRef(status)
    return PyLong_FromLongLong(DECLINED)


@kernel(MANY)
def watch_begin_here(self: int, arguments: int, count: int) -> int:
    """(table, descriptor, callback, interest) -> 0 or DECLINED: `watch_begin`, with all that Python does around it, for
    the loop's own thread if no other has the lock and the descriptor is not registered. In Python that takes nine
    frames. O(1).
    """
    if count != 4:
        PyErr_BadArgument()
        return 0
    base, table, watched = data(self), get(arguments), arguments + 8
    if not table_taken(base, table):
        return PyLong_FromLongLong(DECLINED)
    descriptor, callback, tokens = get(watched), get(watched + 8), get(table + TOKENS)
    if get(base + STATE.IO + IO.FORCED) != 0 or PyDict_GetItemWithError(tokens, descriptor) != 0:
        return table_left(table, PyLong_FromLongLong(DECLINED))
    # The latest registration is this one: a `register` in which a signal handler has called us must not find its mark.
    if (
        PyDict_SetItem(get(table + INTERESTS), descriptor, get(watched + 16)) != 0
        or PyDict_SetItem(get(table + LATEST), descriptor, descriptor) != 0
    ):
        return table_left(table, 0)
    Py_IncRef(callback)
    return table_left(table, done_or_declined(watch_add(base, watched, tokens, callback)))


@kernel(MANY)
def watch_finish_here(self: int, arguments: int, count: int) -> int:
    """(table, descriptor) -> 0, UNKNOWN, an errno, or DECLINED: `watch_finish`, as `watch_begin_here`."""
    if count != 2:
        PyErr_BadArgument()
        return 0
    base, table = data(self), get(arguments)
    if not table_taken(base, table):
        return PyLong_FromLongLong(DECLINED)
    return table_left(table, watch_forget(base, get(arguments + 8), get(table + TOKENS)))


@helper
def epoll_collect(base: int, count: int) -> int:
    """After the system call, translate its events into the table. Returns 0, or -1 with the reason in `error`."""
    io = base + STATE.IO
    if count < 0:
        error = get_half(errno_location())
        if error == EINTR:
            return 0
        put(io + IO.ERROR, error)
        return -1
    ready = 0
    for number in range(count):
        at = get(io + IO.EVENTS) + number * EPOLL_EVENT_BYTES
        token = get_half(at + EPOLL_DATA) | get_half(at + EPOLL_DATA + 4) << 32
        if token == 0:
            continue  # the wake descriptor: edge-triggered and never read, which saves a system call per wake
        bits = get_half(at)
        events = 0
        if bits & EPOLLIN:
            events |= READ
        if bits & EPOLLOUT:
            events |= WRITE
        if bits & EPOLLERR:
            events |= ERROR
        if bits & (EPOLLHUP | EPOLLRDHUP):
            events |= HANGUP
        put(get(io + IO.READY) + (ready << 4), token)
        put(get(io + IO.READY) + (ready << 4) + 8, events)
        ready += 1
    put(io + IO.READY_COUNT, ready)
    put(io + IO.READY_DONE, 0)
    return 0


@helper
def epoll_look(base: int) -> int:
    """Collect what is ready now, without waiting. Returns 0, or -1 with the reason in `error`."""
    io = base + STATE.IO
    return epoll_collect(
        base, libc_syscall(SYS_EPOLL_PWAIT, get(io + IO.POLLER), get(io + IO.EVENTS), READY_MOST, 0, 0)
    )


@helper
def epoll_spin(base: int, deadline: int) -> int:
    """`spin` with descriptors, which only a system call can check: one is made first, and one per reading of the clock.
    (If the queues were checked first, a descriptor that is ready in each turn would wait 1 µs for that, and the checks
    are cheaper than the call only if they see something.) Returns 1 if it saw something, 0 if not, or -1 with the
    reason in `error`. Loop thread, detached.
    """
    until = spin_limit(base, deadline)
    while until != 0:
        if epoll_look(base) != 0:
            return -1
        if get(base + STATE.IO + IO.READY_COUNT) != 0:
            spin_ended(base, True)
            return 1
        for _ in range(SPIN_LOOKS):
            if arrivals(base):
                spin_ended(base, True)
                return 1
            pause()
        if monotonic_ns() >= until:
            spin_ended(base, False)
            return 0
    return 0


@helper
def epoll_sleep(base: int, deadline: int) -> int:
    """Wait until a descriptor is ready, the loop is woken, or the deadline is due. Returns 0, or -1 with the reason in
    `error`. Attached; detached while it waits.
    """
    thread = PyEval_SaveThread()
    status = epoll_spin(base, deadline)
    if status == 0:
        status = epoll_block(base, deadline) if fall_asleep(base, deadline) else epoll_look(base)
    PyEval_RestoreThread(thread)
    return min(status, 0)


@helper
def epoll_block(base: int, deadline: int) -> int:
    """The sleep itself, after its announcement; afterwards the loop is awake again. Returns 0, or -1 with the reason in
    `error`. Detached.

    Before Linux 5.11 timeouts are in whole ms, and are rounded up so that no timer fires early.
    """
    io = base + STATE.IO
    put(base + STATE.PARKS, get(base + STATE.PARKS) + 1)
    poller = get(io + IO.POLLER)
    events = get(io + IO.EVENTS)
    start = monotonic_ns()
    left = sleep_ns(base, deadline)
    span = nap_ns(base, left)
    if span == FOREVER:
        count = libc_syscall(SYS_EPOLL_PWAIT, poller, events, READY_MOST, -1, 0)
    elif get(io + IO.NS_TIMEOUTS) == 0:
        count = libc_syscall(SYS_EPOLL_PWAIT, poller, events, READY_MOST, min((span + 999999) // 1000000, 1 << 30), 0)
    else:
        put(base + STATE.SECONDS, span // 1000000000)
        put(base + STATE.NANOSECONDS, span % 1000000000)
        count = libc_syscall(SYS_EPOLL_PWAIT2, poller, events, READY_MOST, base + STATE.SECONDS, 0)
    status = epoll_collect(base, count)  # before anything else can change errno
    slept = monotonic_ns() - start
    if count == 0 and not arrivals(base):
        nap_ended(base, left, slept)
        clock_jump(base, deadline, slept)
    wide_awake(base)
    slept_for(base, slept)
    return status


@kernel(ONE)
def collected(self: int, count: int) -> int:
    """Python has waited and written `count` pairs into the table of (token, events). Owner only."""
    base = data(self)
    put(base + STATE.IO + IO.READY_COUNT, PyLong_AsLongLong(count))
    put(base + STATE.IO + IO.READY_DONE, 0)
    return get(base + STATE.NONE)
