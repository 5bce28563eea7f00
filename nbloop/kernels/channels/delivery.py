"""How the loop learns of records, and how they reach `on_batch`.

A channel is idle, busy, fills, or is late (`queued`, CHANNEL_x). Busy means that one *delivery* is queued as an
internal task, or runs. A delivery hands over one batch, and queues itself again while there is more: other tasks of the
loop run in between, and producers, which see that the channel is busy, queue nothing. The producer that finds it idle
queues the first delivery. As with a sleeping loop, the ticket is the fence: a producer claims, then reads `queued`; the
loop's thread writes `queued`, then reads the tail (`rest`). One of the two sees the other.

**How long records wait.** No record carries a time. A clock is read once a burst, by the producer that finds the
channel idle, and once a batch: `mark` is the tail at the moment `marked`, so tickets from there on were drawn later.
When the head reaches the mark, that moment becomes `since`, and a new mark is set. So `since` is no later than the put
of the oldest record, and too early by no more than the ring took to be emptied once.

With `max_delay` a batch that is not full waits for a timer, and the channel fills: the producer whose ticket completes
the batch makes it busy.

When the loop ends, its queues close before its channels, or a moment after: a record may be accepted, and its delivery
refused. Then the channel is *late*. Its word owns a reference to the state, which may be the only one, and once all
channels are closed, the thread that ends the loop queues the delivery itself (`channel_resume`).
"""

from __future__ import annotations

import ctypes

from ..base.atomics import compare_and_swap, get, load, load_sc, put, store, store_sc
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyErr_GetRaisedException,
    PyErr_SetRaisedException,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyObject_CallNoArgs,
    PyObject_CallOneArg,
    PyObject_Vectorcall,
    PySequence_GetSlice,
    PyTuple_New,
    libc_memmove,
)
from ..base.clock import loop_ns
from ..base.interpreter import TUPLE_ITEMS
from ..base.kernel import apart, helper
from ..base.layout import (
    ASK_AGAIN,
    ASK_KEPT,
    ASK_WAKE,
    CHANNEL,
    CHANNEL_BUSY,
    CHANNEL_FILLS,
    CHANNEL_IDLE,
    CHANNEL_LATE,
    FAR,
    HANDLE,
    KIND_INTERNAL,
    MINUS,
    ON_FULL_DROP_OLD,
    QUEUE,
    REFUSED_CLOSED,
    RUNNING,
    STATE,
    TAG_ARGUMENTS,
    TERMINATED,
)
from ..base.refusal import on_loop_thread
from ..calls.remote import fetch_remote
from ..ingress.parking import stall
from ..ingress.parking import wake as wake_loop
from ..ingress.ticket_queue import queue_length, queue_push
from ..memory.ring import ring_push
from ..observe.event_ring import record_batch
from ..observe.histogram import histogram_add
from ..timers.buckets import buckets_begin
from ..timers.timer_slots import timer_arm_here, timer_cancel
from .records import (
    RING,
    records_place,
    records_published,
    records_release,
    records_take_begins,
    records_take_ends,
)


@apart
def ask(channel: int, code: int, count: int, until: int) -> int:
    """Call the channel's Python function for rare cases. Its answer, at least 0, or -1 with an exception set."""
    three = PyTuple_New(3)
    if three == 0:
        return -1
    for i in range(3):
        number = PyLong_FromLongLong(code if i == 0 else count if i == 1 else until)
        if number == 0:
            Py_DecRef(three)
            return -1
        put(three + TUPLE_ITEMS + (i << 3), number)
    result = PyObject_Vectorcall(get(channel + CHANNEL.ASK), three + TUPLE_ITEMS, 3, 0)
    Py_DecRef(three)
    if result == 0:
        return -1
    answer = PyLong_AsLongLong(result)
    Py_DecRef(result)
    return answer


@helper
def records_waiting(channel: int) -> int:
    """How many tickets were drawn and not taken. Any thread; sequentially consistent, see `rest`, and for the head
    `records_release`.
    """
    queue = channel + RING
    return (load_sc(queue + QUEUE.TAIL) & ~MINUS) - load_sc(queue + QUEUE.HEAD)


@helper
def made_busy(channel: int, end: int) -> int:
    """After the publication of the tickets before `end`: make the channel busy, if it is idle or a batch is full now.
    Returns what it was, and then the caller queues the delivery; -1 if there is nothing to do. Any thread, attached or
    not.
    """
    while True:
        was = load_sc(channel + HANDLE.QUEUED)
        if was == CHANNEL_BUSY:
            return -1
        if was == CHANNEL_FILLS and end - load(channel + RING + QUEUE.HEAD) < get(channel + CHANNEL.MAX_BATCH):
            return -1
        if compare_and_swap(channel + HANDLE.QUEUED, was, CHANNEL_BUSY):
            break
    if was == CHANNEL_IDLE and get(channel + CHANNEL.TIMED) != 0:
        store(channel + CHANNEL.SINCE, loop_ns(get(channel + HANDLE.LOOP)))
    return was


@apart
def channel_wake(channel: int, end: int) -> bool:
    """Make sure that the loop learns of a publication. False with an exception set, which a signal handler has raised:
    the records stay. Any thread.
    """
    was = made_busy(channel, end)
    return was < 0 or channel_schedule(channel, was)


@apart
def channel_schedule(channel: int, was: int) -> bool:
    """Queue a delivery for a channel that the caller has made busy, from what it `was`. False with an exception set; in
    any case it is queued, or the channel is late. Any thread.
    """
    base = get(channel + HANDLE.LOOP)
    task = get(channel + CHANNEL.TASK)
    Py_IncRef(task)
    queued = False
    raised = False
    if on_loop_thread(base):
        queued = ring_push(base + STATE.INTERNAL, task | TAG_ARGUMENTS) == 0
    else:
        while True:
            status = queue_push(base + STATE.REMOTE, task | (KIND_INTERNAL + 1))
            queued = status == 0
            if queued:
                wake_loop(base)
            if status != REFUSED_CLOSED:
                break  # without memory it is late: a later record, or the loop's end, tries again
            again = ask(channel, ASK_AGAIN, 0, 0)
            raised = again < 0
            if again <= 0:
                break
    if queued:
        if was == CHANNEL_LATE:
            Py_DecRef(get(channel + HANDLE.SELF))
        return True
    error = PyErr_GetRaisedException()
    Py_DecRef(task)
    if was != CHANNEL_LATE:
        Py_IncRef(get(channel + HANDLE.SELF))
    store_sc(channel + HANDLE.QUEUED, CHANNEL_LATE)
    if load_sc(base + STATE.LIFECYCLE) == TERMINATED:  # no other thread will look at it
        late_release(channel)
    if raised:
        PyErr_SetRaisedException(error)
    elif error != 0:
        Py_DecRef(error)
    return not raised


@helper
def late_release(channel: int) -> None:
    """Give up the reference that the word of a late channel owns. Any thread, when the loop has ended: the word is
    read sequentially consistently, as a swap that fails does not.
    """
    queued = channel + HANDLE.QUEUED
    if load_sc(queued) == CHANNEL_LATE and compare_and_swap(queued, CHANNEL_LATE, CHANNEL_IDLE):
        Py_DecRef(get(channel + HANDLE.SELF))


@helper
def rest(channel: int) -> None:
    """After a delivery: queue the next, or be idle if nothing waits. Loop thread."""
    if records_waiting(channel) == 0:
        store_sc(channel + HANDLE.QUEUED, CHANNEL_IDLE)
        if records_waiting(channel) == 0 or not compare_and_swap(channel + HANDLE.QUEUED, CHANNEL_IDLE, CHANNEL_BUSY):
            return
        if get(channel + CHANNEL.TIMED) != 0:
            store(channel + CHANNEL.SINCE, loop_ns(get(channel + HANDLE.LOOP)))
    channel_schedule(channel, CHANNEL_BUSY)


@helper
def fill(channel: int, deadline: int) -> None:
    """Wait for the rest of a batch, until `deadline`. Loop thread."""
    base = get(channel + HANDLE.LOOP)
    store_sc(channel + HANDLE.QUEUED, CHANNEL_FILLS)
    full = records_waiting(channel) >= get(channel + CHANNEL.MAX_BATCH)
    if not full and get(channel + CHANNEL.TIMER) == 0:
        if queue_length(base + STATE.REMOTE) != 0:
            fetch_remote(base)
        if get(base + STATE.FAR + FAR.COUNT) == 0:
            buckets_begin(base, loop_ns(base))
        due = get(channel + CHANNEL.DUE)
        Py_IncRef(due)
        identifier = timer_arm_here(base, due | TAG_ARGUMENTS, deadline, -1, 0)
        if identifier > 0:
            put(channel + CHANNEL.TIMER, identifier)
        else:
            Py_DecRef(due)
            full = True  # no memory for a timer: the next delivery looks again
    if full and compare_and_swap(channel + HANDLE.QUEUED, CHANNEL_FILLS, CHANNEL_BUSY):
        channel_schedule(channel, CHANNEL_BUSY)


@helper
def references(channel: int, array: int) -> int:
    """The number of references to the array that all batches are views of; 0 if it is unknown."""
    number = PyObject_CallOneArg(get(channel + CHANNEL.REFERENCES), array)
    if number == 0:
        error = PyErr_GetRaisedException()
        Py_DecRef(error)
        return 0
    count = PyLong_AsLongLong(number)
    Py_DecRef(number)
    return count


Entry = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_ssize_t, ctypes.c_ssize_t)  # of a compiled `on_batch`


def call_entry(entry: int, records: int, count: int) -> int:
    """Call a compiled `on_batch` by its address: 0, or -1 with an exception set."""
    return int(Entry(entry)(records, count))


@helper
def copy_out(channel: int, ticket: int, count: int, to: int) -> None:
    """Copy `count` records from a ticket's place on, round the end of the ring."""
    size = get(channel + CHANNEL.RECORD_BYTES)
    limit = get(channel + RING + QUEUE.LIMIT)
    first = min(count, limit - (ticket & (limit - 1)))
    libc_memmove(to, records_place(channel, ticket), first * size)
    if count > first:
        libc_memmove(to + first * size, get(channel + CHANNEL.RECORDS), (count - first) * size)


@helper
def batch_of(channel: int, array: int, place: int, count: int) -> int:
    """The batch of `count` records from a place on: a new view of the array, or 0 with an exception set. For a compiled
    `on_batch` the address of its first record.
    """
    if get(channel + CHANNEL.ENTRY) == 0:
        return PySequence_GetSlice(array, place, place + count)
    if array == get(channel + CHANNEL.COPIES):
        return get(channel + CHANNEL.COPY)
    return records_place(channel, place)


@helper
def handed_over(channel: int, array: int, batch: int, count: int) -> int:
    """Call `on_batch` with a batch, whose reference is consumed, and check that no view of it is kept. Returns what it
    returned, or 0 with an exception set.
    """
    entry = get(channel + CHANNEL.ENTRY)
    if entry != 0:
        return get(get(channel + HANDLE.LOOP) + STATE.NONE) if call_entry(entry, batch, count) == 0 else 0
    before = references(channel, array)
    result = PyObject_CallOneArg(get(channel + CHANNEL.ON_BATCH), batch)
    Py_DecRef(batch)
    if result == 0:
        return 0  # the frames in its traceback keep their views
    if before != 0 and references(channel, array) >= before and ask(channel, ASK_KEPT, 0, 0) < 0:
        Py_DecRef(result)
        return 0
    return result


@helper
def deliver(channel: int, due: bool, taken: bool) -> int:
    """Deliver one batch, if there is one: a `due` one even if it is not full. Returns None, or what `on_batch`
    returned, or 0 with its exception set; the records then still count as delivered. Loop thread; the channel is busy.

    Where coroutines take the batches (`pulled`), a batch that is not `taken` stays, and the waiting coroutine is
    called. The channel stays busy, with no task, until it is taken.
    """
    base = get(channel + HANDLE.LOOP)
    none = get(base + STATE.NONE)
    head = channel + RING + QUEUE.HEAD
    copied = get(channel + CHANNEL.ON_FULL) == ON_FULL_DROP_OLD
    if copied and not records_take_begins(channel):
        stall(base)
        channel_schedule(channel, CHANNEL_BUSY)
        return none
    most = get(channel + CHANNEL.MAX_BATCH)
    limit = get(channel + RING + QUEUE.LIMIT)
    ready = records_published(channel, most)
    first = get(head)
    place = first & (limit - 1)
    count = min(ready, most)
    pulled = 0 if taken else get(channel + CHANNEL.PULLED)
    deadline = 0
    since = 0
    now = 0
    if get(channel + CHANNEL.TIMED) != 0 and count > 0:
        now = loop_ns(base)
        since = load(channel + CHANNEL.SINCE)
        if get(channel + CHANNEL.MARK) <= first:
            since = max(since, get(channel + CHANNEL.MARKED))
        if get(channel + CHANNEL.MAX_DELAY) != 0:
            deadline = since + get(channel + CHANNEL.MAX_DELAY)
            if due or ready >= most or deadline <= now or load(base + STATE.LIFECYCLE) != RUNNING:
                deadline = 0
    array = get(channel + CHANNEL.RING)
    if copied:
        array = get(channel + CHANNEL.COPIES)
        place = 0
    else:
        count = min(count, limit - place)
    batch = 0
    if count > 0 and deadline == 0 and pulled == 0:
        if get(channel + CHANNEL.TIMED) != 0 and get(channel + CHANNEL.MARK) <= first:
            store(channel + CHANNEL.SINCE, since)
            put(channel + CHANNEL.MARKED, now)
            put(channel + CHANNEL.MARK, load(channel + RING + QUEUE.TAIL) & ~MINUS)
        batch = batch_of(channel, array, place, count)
        if copied and batch != 0:
            copy_out(channel, first, count, get(channel + CHANNEL.COPY))
            records_release(channel, count)
    if copied:
        records_take_ends(channel)
    if deadline != 0:
        fill(channel, deadline)
        return none
    if count > 0 and pulled != 0:
        return PyObject_CallNoArgs(pulled)
    if batch == 0:
        error = PyErr_GetRaisedException()
        if count == 0 and records_waiting(channel) != 0:
            stall(base)  # a producer is between claim and publication
        rest(channel)
        if error != 0:
            PyErr_SetRaisedException(error)
            return 0
        return none
    if get(channel + CHANNEL.TIMER) != 0:
        timer_cancel(base, get(channel + CHANNEL.TIMER), True)
        put(channel + CHANNEL.TIMER, 0)
    delays = get(channel + CHANNEL.DELAYS)
    if delays != 0:
        histogram_add(delays, now - since, 1, now - since)
    record_batch(base, get(channel + RING + QUEUE.NUMBER), count)
    result = handed_over(channel, array, batch, count)
    error = PyErr_GetRaisedException() if result == 0 else 0
    if not copied:
        records_release(channel, count)
    store(channel + CHANNEL.BATCHES, get(channel + CHANNEL.BATCHES) + 1)
    store(channel + CHANNEL.DELIVERED, get(channel + CHANNEL.DELIVERED) + count)
    rest(channel)
    if load_sc(channel + CHANNEL.SLEEPERS) != 0 and ask(channel, ASK_WAKE, 0, 0) < 0:
        Py_DecRef(error if error != 0 else result)  # of two exceptions, the signal handler's goes on
        return 0
    if error != 0:
        PyErr_SetRaisedException(error)
    return result
