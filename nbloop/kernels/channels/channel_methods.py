"""The built-in methods of a channel: numbers or an array in, records claimed, filled and published."""

from __future__ import annotations

from ..base.atomics import compare_and_swap, fetch_add, get, load, load_sc, put, store
from ..base.capi import (
    Py_DecRef,
    PyBool_FromLong,
    PyEval_RestoreThread,
    PyEval_SaveThread,
    PyGILState_Ensure,
    PyGILState_Release,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyObject_Vectorcall,
    libc_memmove,
)
from ..base.kernel import KEYWORDS, MANY, NATIVE, NOARGS, ONE, apart, data, helper, inlined, kernel
from ..base.layout import (
    ASK_CLOSED,
    ASK_FULL,
    ASK_NATIVE,
    ASK_WAIT,
    CHANNEL,
    CHANNEL_BUSY,
    CHANNEL_FILLS,
    CHANNEL_LATE,
    HANDLE,
    NATIVE_TOO_MANY,
    ON_FULL_DROP_NEW,
    ON_FULL_DROP_OLD,
    ON_FULL_WAIT,
    QUEUE,
    REFUSED_CLOSED,
    STATE,
)
from ..ingress.parking import step_aside
from ..ingress.ticket_queue import queue_close
from .delivery import ask, channel_schedule, channel_wake, deliver, late_release, made_busy, records_waiting
from .fields import fields_fit, fields_write
from .records import (
    RING,
    records_claim,
    records_drop_old,
    records_place,
    records_publish,
    records_take_begins,
    records_take_ends,
)

DROPPED, RAISED = -1, -2  # NATIVE_ERROR and the errors after it are less
DETACHED = 1 << 18  # bytes: copies from this size on run detached, as a stop of the world would wait 20 µs for them


@apart
def claim_refused(channel: int, count: int, ticket: int, native: int) -> int:
    """`records_claim` has refused: do what the channel then does. Returns a ticket, DROPPED, or RAISED; with `native`,
    which is ASK_NATIVE or 0, also the number of an error. Any thread.
    """
    until = 0
    while ticket < 0:
        on_full = get(channel + CHANNEL.ON_FULL)
        if ticket == -REFUSED_CLOSED:
            again = ask(channel, ASK_CLOSED + native, count, 0)
            if again < 0:
                return min(again, RAISED)
        elif on_full == ON_FULL_DROP_NEW:
            fetch_add(channel + CHANNEL.DROPPED, count)
            return DROPPED
        elif on_full == ON_FULL_DROP_OLD:
            if not records_drop_old(channel, count):
                step_aside()
        else:
            until = ask(channel, (ASK_WAIT if on_full == ON_FULL_WAIT else ASK_FULL) + native, count, until)
            if until < 0:
                return min(until, RAISED)
        ticket = records_claim(channel, count)
    return ticket


@inlined
def announce(channel: int, end: int) -> bool:
    """After a publication, make sure that the loop learns of it. False with an exception set; the records stay."""
    return load_sc(channel + HANDLE.QUEUED) == CHANNEL_BUSY or channel_wake(channel, end)


@inlined
def records_fill(channel: int, ticket: int, source: int, count: int) -> None:
    """Copy `count` records to the places of their tickets, round the end of the ring."""
    size = get(channel + CHANNEL.RECORD_BYTES)
    limit = get(channel + RING + QUEUE.LIMIT)
    first = min(count, limit - (ticket & (limit - 1)))
    libc_memmove(records_place(channel, ticket), source, first * size)
    if count > first:
        libc_memmove(get(channel + CHANNEL.RECORDS), source + first * size, (count - first) * size)


@apart
def copy_in(channel: int, source: int, count: int) -> int:
    """Put `count` records that lie at `source`, in one publication. How many were stored, or RAISED. Any thread."""
    ticket = records_claim(channel, count)
    if ticket < 0:
        ticket = claim_refused(channel, count, ticket, 0)
        if ticket < 0:
            return 0 if ticket == DROPPED else RAISED
    thread = PyEval_SaveThread() if count * get(channel + CHANNEL.RECORD_BYTES) >= DETACHED else 0
    records_fill(channel, ticket, source, count)
    if thread != 0:
        PyEval_RestoreThread(thread)
    records_publish(channel, ticket, count)
    return count if announce(channel, ticket + count) else RAISED


@apart
def put_converted(channel: int, arguments: int, count: int, names: int) -> int:
    """`put` of values that are not plain: numpy makes a record of them, in Python, before anything is claimed."""
    record = PyObject_Vectorcall(get(channel + CHANNEL.CONVERT), arguments, count, names)
    if record == 0:
        return 0
    stored = copy_in(channel, data(record), 1)
    Py_DecRef(record)
    if stored < 0:
        return 0
    return get(channel + CHANNEL.TRUE) if stored != 0 else get(channel + CHANNEL.FALSE)


@kernel(KEYWORDS)
def channel_put(self: int, arguments: int, count: int, names: int) -> int:
    """Any thread: one swap of the tail, plain stores, one release store, one look at whether the channel is busy."""
    channel = data(self)
    if names != 0 or not fields_fit(channel, arguments, count):
        return put_converted(channel, arguments, count, names)
    ticket = records_claim(channel, 1)
    if ticket < 0:
        ticket = claim_refused(channel, 1, ticket, 0)
        if ticket < 0:
            return get(channel + CHANNEL.FALSE) if ticket == DROPPED else 0
    fields_write(channel, arguments, count, records_place(channel, ticket))
    records_publish(channel, ticket, 1)
    if not announce(channel, ticket + 1):
        return 0
    return get(channel + CHANNEL.TRUE)


@kernel(MANY)
def channel_put_array(self: int, arguments: int, _count: int) -> int:
    """Put the records of a contiguous array of the channel's dtype; the second argument is their number, not 0 and not
    more than the channel holds.
    """
    stored = copy_in(data(self), data(get(arguments)), PyLong_AsLongLong(get(arguments + 8)))
    return PyLong_FromLongLong(stored) if stored >= 0 else 0


@apart
def native_refused(channel: int, count: int, ticket: int) -> int:
    """`claim_refused` for a thread that may be detached."""
    attached = PyGILState_Ensure()
    ticket = claim_refused(channel, count, ticket, ASK_NATIVE)
    PyGILState_Release(attached)
    return ticket


@apart
def native_wake(channel: int, end: int) -> bool:
    """`channel_wake` for a thread that may be detached: it attaches once a burst."""
    was = made_busy(channel, end)
    if was < 0:
        return True
    attached = PyGILState_Ensure()
    done = channel_schedule(channel, was)
    PyGILState_Release(attached)
    return done


@kernel(NATIVE)
def channel_put_native(channel: int, source: int, count: int) -> int:
    """Put `count` records that lie at `source`, at least 1, for the user's compiled code. Returns how many were stored,
    0 if they were dropped, RAISED, or the number of an error. Any thread, attached or not.
    """
    if count > get(channel + RING + QUEUE.LIMIT):
        return NATIVE_TOO_MANY
    ticket = records_claim(channel, count)
    if ticket < 0:
        ticket = native_refused(channel, count, ticket)
        if ticket < 0:
            return 0 if ticket == DROPPED else ticket
    records_fill(channel, ticket, source, count)
    records_publish(channel, ticket, count)
    if load_sc(channel + HANDLE.QUEUED) != CHANNEL_BUSY and not native_wake(channel, ticket + count):
        return RAISED
    return count


@kernel(NOARGS)
def channel_deliver(self: int, _unused: int) -> int:
    """The task of a busy channel. A channel whose batches coroutines take may not be busy any more."""
    channel = data(self)
    if get(channel + CHANNEL.PULLED) != 0 and load_sc(channel + HANDLE.QUEUED) != CHANNEL_BUSY:
        return get(get(channel + HANDLE.LOOP) + STATE.NONE)
    return deliver(channel, False, False)


@kernel(NOARGS)
def channel_due(self: int, _unused: int) -> int:
    """The timer of a channel that fills."""
    channel = data(self)
    put(channel + CHANNEL.TIMER, 0)
    if compare_and_swap(channel + HANDLE.QUEUED, CHANNEL_FILLS, CHANNEL_BUSY):
        return deliver(channel, True, False)
    return get(get(channel + HANDLE.LOOP) + STATE.NONE)


@kernel(NOARGS)
def channel_take(self: int, _unused: int) -> int:
    """Take the batch that is there, as `on_batch` returns it. None if there is none; the channel calls the waiting
    coroutine when there is one. Loop thread, for channels whose batches coroutines take.
    """
    channel = data(self)
    was = load_sc(channel + HANDLE.QUEUED)
    while was != CHANNEL_BUSY and not compare_and_swap(channel + HANDLE.QUEUED, was, CHANNEL_BUSY):
        was = load_sc(channel + HANDLE.QUEUED)
    result = deliver(channel, False, True)
    if was == CHANNEL_LATE:
        Py_DecRef(get(channel + HANDLE.SELF))
    return result


@kernel(NOARGS)
def channel_close(self: int, _unused: int) -> int:
    """Refuse records from now on. Any thread, under the loop's lock; idempotent."""
    channel = data(self)
    queue_close(channel + RING)
    return get(get(channel + HANDLE.LOOP) + STATE.NONE)


@kernel(ONE)
def channel_sleeps(self: int, change: int) -> int:
    """Count one producer more, or one less, that waits for room. Any thread, before it checks for room."""
    channel = data(self)
    fetch_add(channel + CHANNEL.SLEEPERS, PyLong_AsLongLong(change))
    return get(get(channel + HANDLE.LOOP) + STATE.NONE)


@kernel(NOARGS)
def channel_room(self: int, _unused: int) -> int:
    """The number of records that fit now; the whole capacity if the channel is closed, so that no producer waits. Any
    thread.
    """
    channel = data(self)
    room = get(channel + RING + QUEUE.LIMIT)
    if load_sc(channel + RING + QUEUE.TAIL) >= 0:
        room -= records_waiting(channel)
    return PyLong_FromLongLong(room)


@kernel(NOARGS)
def channel_length(self: int, _unused: int) -> int:
    """How many records wait. Any thread."""
    return PyLong_FromLongLong(records_waiting(data(self)))


@kernel(NOARGS)
def channel_resume(self: int, _unused: int) -> int:
    """Queue the delivery of a channel that is late, or that waits for a timer which will not run. Loop thread."""
    channel = data(self)
    was = load_sc(channel + HANDLE.QUEUED)
    if was >= CHANNEL_FILLS and compare_and_swap(channel + HANDLE.QUEUED, was, CHANNEL_BUSY):
        channel_schedule(channel, was)
    return PyBool_FromLong(1)


@helper
def channel_empty(channel: int) -> None:
    """Drop and count what waits in a closed channel. One thread at a time, when the loop has ended."""
    while not records_take_begins(channel):
        step_aside()
    queue = channel + RING
    waiting = records_waiting(channel)
    fetch_add(channel + CHANNEL.DROPPED, waiting)
    store(queue + QUEUE.HEAD, load(queue + QUEUE.HEAD) + waiting)
    records_take_ends(channel)


@kernel(NOARGS)
def channel_drop(self: int, _unused: int) -> int:
    """Drop and count what waits in a closed channel, and release the reference of a late one. The loop has ended."""
    channel = data(self)
    channel_empty(channel)
    late_release(channel)
    return PyBool_FromLong(1)


@kernel(NOARGS)
def channel_destroy(self: int, _unused: int) -> int:
    """A channel's finaliser: refuse from now on."""
    channel = data(self)
    queue_close(channel + RING)
    return PyBool_FromLong(1)
