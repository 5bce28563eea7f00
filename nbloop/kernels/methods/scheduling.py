"""The scheduling methods of a loop and of a producer handle: each packs its arguments, calls one structure, and turns a
status into a result.

refusal.py explains how a call is refused.

Each method that schedules has a second kernel, which captures the caller's context (captured.py). A loop binds the
one or the other, so a loop that does not capture does not even test whether it does.
"""

from __future__ import annotations

from ..base.atomics import exchange, get, load, load_sc, put
from ..base.capi import Py_DecRef, Py_IncRef, PyLong_FromLongLong, PyTuple_New
from ..base.interpreter import OBJECT_TYPE, TUPLE_ITEMS, TYPE_CALL
from ..base.kernel import MANY, NOARGS, ONE, apart, data, inlined, kernel
from ..base.layout import (
    HANDLE,
    KIND_CHECKPOINT_END,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_NEXT_TICK,
    POINTER_MASK,
    REFUSED_ARGUMENTS,
    REFUSED_CALLABLE,
    REFUSED_CLOSED,
    REFUSED_MEMORY,
    REFUSED_SLOTS,
    STATE,
    TAG_ARGUMENTS,
    TERMINATING,
)
from ..base.refusal import on_loop_thread, refuse
from ..calls.captured import pack_captured
from ..calls.remote import due_push, fetch_remote
from ..ingress.parking import wake as wake_loop
from ..ingress.remote_words import remote_slot, remote_word
from ..ingress.ticket_queue import queue_length, queue_push
from ..memory.ring import ring_push
from ..memory.slots import QUEUED, slot_open, slot_take, slot_take_here
from ..observe.event_ring import ring_recorded
from ..observe.meter import remote_counted
from ..timers.timer_slots import immediate_cancel, slot_unopen
from ..turn.external import handle_ready
from .batch import send_many


@inlined
def pack(base: int, callback: int, rest: int, count: int, captured: bool) -> int:
    """An owned tagged reference for `callback` with `count` arguments at `rest`, or 0 with an exception set. With
    `captured` it will run in a copy of the current context.
    """
    if get(get(callback + OBJECT_TYPE) + TYPE_CALL) == 0:
        refuse(base, REFUSED_CALLABLE, callback)
        return 0
    if captured:
        return pack_captured(base, callback, rest, count)
    if count > 0:
        return pack_arguments(callback, rest, count)
    Py_IncRef(callback)
    return callback


@apart
def pack_arguments(callback: int, rest: int, count: int) -> int:
    """`pack` for a callback with arguments."""
    packed = PyTuple_New(count + 1)
    if packed == 0:
        return 0
    Py_IncRef(callback)
    put(packed + TUPLE_ITEMS, callback)
    for i in range(count):
        item = get(rest + (i << 3))
        Py_IncRef(item)
        put(packed + TUPLE_ITEMS + ((i + 1) << 3), item)
    return packed | TAG_ARGUMENTS


@inlined
def pack_all(base: int, arguments: int, count: int, captured: bool) -> int:
    """`pack` for ``callback, *args`` at `arguments`, where the callback may be missing."""
    if count == 0:
        refuse(base, REFUSED_ARGUMENTS, get(base + STATE.NONE))
        return 0
    return pack(base, get(arguments), arguments + 8, count - 1, captured)


@inlined
def send(base: int, queue: int, word: int, culprit: int) -> int:
    """Push an owned word and wake the loop. Returns None, or 0 with an exception set and the reference released. Any
    thread.
    """
    while True:
        status = queue_push(queue, word)
        if status == 0:
            wake_loop(base)
            return get(base + STATE.NONE)
        if refuse(base, status, culprit) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@apart
def send_remote(base: int, word: int, kind: int, culprit: int) -> int:
    """`send` to the ring of `kind`, from a thread other than the loop's."""
    word = remote_word(word, kind)
    if word == 0 or send(base, base + STATE.REMOTE, word, culprit) == 0:
        return 0
    if get(base + STATE.METRICS) != 0:
        remote_counted(base, kind, 1)
    return get(base + STATE.NONE)


@inlined
def schedule(base: int, arguments: int, count: int, ring: int, kind: int, at_checkpoint: bool, captured: bool) -> int:
    """`schedule_word` of ``callback, *args``."""
    word = pack_all(base, arguments, count, captured)
    if word == 0:
        return 0
    return schedule_word(base, word, get(arguments), ring, kind, at_checkpoint)


@inlined
def schedule_word(base: int, word: int, culprit: int, ring: int, kind: int, at_checkpoint: bool) -> int:
    """Put an owned word into a ring: directly on the loop thread, as a command from any other. A ring that runs
    `at_checkpoint` accepts it also while the loop ends.
    """
    if not on_loop_thread(base):
        return send_remote(base, word, kind, culprit)
    if queue_length(base + STATE.REMOTE) != 0:
        fetch_remote(base)  # calls that returned on other threads before this one began come first
    if at_checkpoint:
        status = due_push(base, ring, word)
    elif load(base + STATE.LIFECYCLE) < TERMINATING:
        status = ring_push(ring, word)
    else:
        status = 1
    if status == 0:
        if get(base + STATE.RECORDER) != 0:
            ring_recorded(base, kind)
        return get(base + STATE.NONE)
    refuse(base, REFUSED_CLOSED if status > 0 else REFUSED_MEMORY, culprit)
    Py_DecRef(word & POINTER_MASK)
    return 0


@inlined
def submit_one(base: int, arguments: int, count: int, captured: bool) -> int:
    """Any thread: one ticket, one release store, one load of the sleep word."""
    word = pack_all(base, arguments, count, captured)
    if word == 0:
        return 0
    return send(base, base + STATE.EXTERNAL, word, get(arguments))


@inlined
def submit_all(base: int, iterable: int, captured: bool) -> int:
    """Any thread: one addition to the tail for the whole batch, at most one wake."""
    count = send_many(base, base + STATE.EXTERNAL, iterable, captured)
    if count < 0:
        return 0
    if count > 0:
        wake_loop(base)
    return PyLong_FromLongLong(count)


@inlined
def announce(handle: int) -> None:
    """After a push: if the handle is not on the ready stack yet, put it there and wake the loop."""
    if load_sc(handle + HANDLE.QUEUED) == 0 and exchange(handle + HANDLE.QUEUED, 1) == 0:
        # The ready stack's reference: it keeps the handle alive until it is drained, even if its user drops it.
        Py_IncRef(get(handle + HANDLE.SELF))
        base = get(handle + HANDLE.LOOP)
        handle_ready(base, handle)
        wake_loop(base)


@inlined
def producer_submit_one(handle: int, arguments: int, count: int, captured: bool) -> int:
    """As `submit_one`, on the handle's own queue: no cache line is shared with another producer."""
    base = get(handle + HANDLE.LOOP)
    word = pack_all(base, arguments, count, captured)
    if word == 0:
        return 0
    while True:
        status = queue_push(handle + HANDLE.QUEUE, word)
        if status == 0:
            announce(handle)
            return get(base + STATE.NONE)
        if refuse(base, status, get(arguments)) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@inlined
def producer_submit_all(handle: int, iterable: int, captured: bool) -> int:
    """As `submit_all`, on the handle's own queue."""
    count = send_many(get(handle + HANDLE.LOOP), handle + HANDLE.QUEUE, iterable, captured)
    if count < 0:
        return 0
    if count > 0:
        announce(handle)
    return PyLong_FromLongLong(count)


@inlined
def immediate_word(base: int, word: int, culprit: int) -> int:
    """Put an owned word in a slot, so that it can be cancelled, and the slot's number in a ring; return the id."""
    timers = base + STATE.TIMERS
    here = on_loop_thread(base)
    while True:
        status = 0
        identifier = 0
        slot = -1
        if load(base + STATE.LIFECYCLE) >= TERMINATING:
            status = REFUSED_CLOSED
        else:
            slot = slot_take_here(timers) if here else slot_take(timers)
            if slot < 0:
                status = REFUSED_SLOTS
        if status == 0:
            identifier = slot_open(timers, slot, word, QUEUED)
            if here:
                if queue_length(base + STATE.REMOTE) != 0:
                    fetch_remote(base)
                if ring_push(base + STATE.IMMEDIATES, slot) != 0:
                    status = REFUSED_MEMORY
                elif get(base + STATE.RECORDER) != 0:
                    ring_recorded(base, KIND_IMMEDIATE)
            else:
                status = queue_push(base + STATE.REMOTE, remote_slot(slot, KIND_IMMEDIATE))
        if status == 0:
            if not here:
                wake_loop(base)
                if get(base + STATE.METRICS) != 0:
                    remote_counted(base, KIND_IMMEDIATE, 1)
            number = PyLong_FromLongLong(identifier)
            if number == 0:  # no memory for the id: nobody could name this immediate, so it is withdrawn
                immediate_cancel(base, identifier)
            return number
        if slot >= 0 and not slot_unopen(timers, slot, identifier, QUEUED):
            if refuse(base, status, culprit) == 0:
                refuse(base, REFUSED_MEMORY, culprit)
            return 0
        if refuse(base, status, culprit) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@kernel(MANY)
def submit(self: int, arguments: int, count: int) -> int:
    """The external queue."""
    return submit_one(data(self), arguments, count, False)


@kernel(ONE)
def submit_many(self: int, iterable: int) -> int:
    """All of them into the external queue."""
    return submit_all(data(self), iterable, False)


@kernel(MANY)
def producer_submit(self: int, arguments: int, count: int) -> int:
    """The handle's own queue."""
    return producer_submit_one(data(self), arguments, count, False)


@kernel(ONE)
def producer_submit_many(self: int, iterable: int) -> int:
    """All of them into the handle's own queue."""
    return producer_submit_all(data(self), iterable, False)


@kernel(MANY)
def submit_internal(self: int, arguments: int, count: int) -> int:
    """The internal ring, before the external queue of the same turn."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.INTERNAL, KIND_INTERNAL, False, False)


@kernel(MANY)
def schedule_microtask(self: int, arguments: int, count: int) -> int:
    """The microtask ring."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.MICROTASKS, KIND_MICROTASK, True, False)


@kernel(MANY)
def schedule_next_tick(self: int, arguments: int, count: int) -> int:
    """The next-tick ring."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.NEXT_TICKS, KIND_NEXT_TICK, True, False)


@kernel(MANY)
def schedule_close(self: int, arguments: int, count: int) -> int:
    """The close ring."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.CLOSING, KIND_CLOSE, False, False)


@kernel(MANY)
def schedule_checkpoint_end(self: int, arguments: int, count: int) -> int:
    """Add to the ring that a checkpoint runs last."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.CHECKPOINT_ENDS, KIND_CHECKPOINT_END, True, False)


@kernel(MANY)
def schedule_immediate(self: int, arguments: int, count: int) -> int:
    """The check ring."""
    base = data(self)
    word = pack_all(base, arguments, count, False)
    return immediate_word(base, word, get(arguments)) if word != 0 else 0


# --- the same methods, run in the context of their caller -------------------------------------------------------------


@kernel(MANY)
def submit_captured(self: int, arguments: int, count: int) -> int:
    """`submit`, captured."""
    return submit_one(data(self), arguments, count, True)


@kernel(ONE)
def submit_many_captured(self: int, iterable: int) -> int:
    """`submit_many`, captured."""
    return submit_all(data(self), iterable, True)


@kernel(MANY)
def producer_submit_captured(self: int, arguments: int, count: int) -> int:
    """`producer_submit`, captured."""
    return producer_submit_one(data(self), arguments, count, True)


@kernel(ONE)
def producer_submit_many_captured(self: int, iterable: int) -> int:
    """`producer_submit_many`, captured."""
    return producer_submit_all(data(self), iterable, True)


@kernel(MANY)
def submit_internal_captured(self: int, arguments: int, count: int) -> int:
    """`submit_internal`, captured."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.INTERNAL, KIND_INTERNAL, False, True)


@kernel(MANY)
def schedule_microtask_captured(self: int, arguments: int, count: int) -> int:
    """`schedule_microtask`, captured."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.MICROTASKS, KIND_MICROTASK, True, True)


@kernel(MANY)
def schedule_next_tick_captured(self: int, arguments: int, count: int) -> int:
    """`schedule_next_tick`, captured."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.NEXT_TICKS, KIND_NEXT_TICK, True, True)


@kernel(MANY)
def schedule_close_captured(self: int, arguments: int, count: int) -> int:
    """`schedule_close`, captured."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.CLOSING, KIND_CLOSE, False, True)


@kernel(MANY)
def schedule_checkpoint_end_captured(self: int, arguments: int, count: int) -> int:
    """`schedule_checkpoint_end`, captured."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.CHECKPOINT_ENDS, KIND_CHECKPOINT_END, True, True)


@kernel(MANY)
def schedule_immediate_captured(self: int, arguments: int, count: int) -> int:
    """`schedule_immediate`, captured."""
    base = data(self)
    word = pack_all(base, arguments, count, True)
    return immediate_word(base, word, get(arguments)) if word != 0 else 0


@kernel(MANY)
def empty_many(self: int, _arguments: int, _count: int) -> int:
    """`empty`, with any number of arguments."""
    return get(data(self) + STATE.NONE)


@kernel(NOARGS)
def empty(self: int, _unused: int) -> int:
    """Do nothing: it shows what a built-in call costs, for benchmarks and `doctor`."""
    return get(data(self) + STATE.NONE)
