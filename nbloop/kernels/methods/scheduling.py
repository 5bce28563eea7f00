"""The built-in methods of a loop and of a producer handle: arguments in, one structure called, a status turned into a
result.

How a call is refused is in refusal.py.
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
from ..calls.remote import due_push, fetch_remote
from ..ingress.parking import wake as wake_loop
from ..ingress.remote_words import remote_slot, remote_word
from ..ingress.ticket_queue import queue_length, queue_push
from ..memory.ring import ring_push
from ..memory.slots import QUEUED, slot_open, slot_take, slot_take_here
from ..observe.event_ring import ring_recorded
from ..timers.timer_slots import immediate_cancel, slot_unopen
from ..turn.external import handle_ready
from .batch import send_many


@inlined
def pack(base: int, callback: int, rest: int, count: int) -> int:
    """An owned tagged reference for `callback` with `count` arguments at `rest`, or 0 with an exception set."""
    if get(get(callback + OBJECT_TYPE) + TYPE_CALL) == 0:
        refuse(base, REFUSED_CALLABLE, callback)
        return 0
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
def pack_all(base: int, arguments: int, count: int) -> int:
    """`pack` for ``callback, *args`` at `arguments`, where the callback may be missing."""
    if count == 0:
        refuse(base, REFUSED_ARGUMENTS, get(base + STATE.NONE))
        return 0
    return pack(base, get(arguments), arguments + 8, count - 1)


@inlined
def send(base: int, queue: int, word: int, culprit: int) -> int:
    """Push an owned word and wake the loop: None, or 0 with an exception set and the reference released. Any thread."""
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
    """`send` for the ring of `kind`, from a thread that is not the loop's."""
    word = remote_word(word, kind)
    return send(base, base + STATE.REMOTE, word, culprit) if word != 0 else 0


@inlined
def schedule(base: int, arguments: int, count: int, ring: int, kind: int, at_checkpoint: bool) -> int:
    """Into a ring on the loop thread, as a command from any other; what runs `at_checkpoint` also while the loop
    ends.
    """
    word = pack_all(base, arguments, count)
    if word == 0:
        return 0
    culprit = get(arguments)
    if not on_loop_thread(base):
        return send_remote(base, word, kind, culprit)
    if queue_length(base + STATE.REMOTE) != 0:
        fetch_remote(base)  # what returned elsewhere before this call began comes first
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


@kernel(MANY)
def submit(self: int, arguments: int, count: int) -> int:
    """Any thread: one ticket, one release store, one look at the sleep word."""
    base = data(self)
    word = pack_all(base, arguments, count)
    if word == 0:
        return 0
    return send(base, base + STATE.EXTERNAL, word, get(arguments))


@kernel(ONE)
def submit_many(self: int, iterable: int) -> int:
    """Any thread: one addition to the tail for the whole batch, at most one wake."""
    base = data(self)
    count = send_many(base, base + STATE.EXTERNAL, iterable)
    if count < 0:
        return 0
    if count > 0:
        wake_loop(base)
    return PyLong_FromLongLong(count)


@inlined
def announce(handle: int) -> None:
    """After a handle's push: if the loop does not know of it yet, put it on the ready stack and wake the loop."""
    if load_sc(handle + HANDLE.QUEUED) == 0 and exchange(handle + HANDLE.QUEUED, 1) == 0:
        # The ready stack's reference: the handle outlives its user until it is drained.
        Py_IncRef(get(handle + HANDLE.SELF))
        base = get(handle + HANDLE.LOOP)
        handle_ready(base, handle)
        wake_loop(base)


@kernel(MANY)
def producer_submit(self: int, arguments: int, count: int) -> int:
    """As `submit`, on the handle's own queue: no line is shared with another producer."""
    handle = data(self)
    base = get(handle + HANDLE.LOOP)
    word = pack_all(base, arguments, count)
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


@kernel(ONE)
def producer_submit_many(self: int, iterable: int) -> int:
    """As `submit_many`, on the handle's own queue."""
    handle = data(self)
    count = send_many(get(handle + HANDLE.LOOP), handle + HANDLE.QUEUE, iterable)
    if count < 0:
        return 0
    if count > 0:
        announce(handle)
    return PyLong_FromLongLong(count)


@kernel(MANY)
def submit_internal(self: int, arguments: int, count: int) -> int:
    """The internal ring, before the external queue of the same turn."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.INTERNAL, KIND_INTERNAL, False)


@kernel(MANY)
def schedule_microtask(self: int, arguments: int, count: int) -> int:
    """The microtask ring."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.MICROTASKS, KIND_MICROTASK, True)


@kernel(MANY)
def schedule_next_tick(self: int, arguments: int, count: int) -> int:
    """The next-tick ring."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.NEXT_TICKS, KIND_NEXT_TICK, True)


@kernel(MANY)
def schedule_close(self: int, arguments: int, count: int) -> int:
    """The close ring."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.CLOSING, KIND_CLOSE, False)


@kernel(MANY)
def schedule_immediate(self: int, arguments: int, count: int) -> int:
    """A slot whose number goes into the check ring, so that it can be cancelled; its id."""
    base = data(self)
    timers = base + STATE.TIMERS
    word = pack_all(base, arguments, count)
    if word == 0:
        return 0
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
            number = PyLong_FromLongLong(identifier)
            if number == 0:  # no memory for the id: an immediate that nobody can name is not stored
                immediate_cancel(base, identifier)
            return number
        if slot >= 0 and not slot_unopen(timers, slot, identifier, QUEUED):
            if refuse(base, status, get(arguments)) == 0:
                refuse(base, REFUSED_MEMORY, get(arguments))
            return 0
        if refuse(base, status, get(arguments)) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@kernel(MANY)
def schedule_checkpoint_end(self: int, arguments: int, count: int) -> int:
    """The ring that a checkpoint comes to last."""
    base = data(self)
    return schedule(base, arguments, count, base + STATE.CHECKPOINT_ENDS, KIND_CHECKPOINT_END, True)


@kernel(MANY)
def empty_many(self: int, _arguments: int, _count: int) -> int:
    """The same with any number of arguments."""
    return get(data(self) + STATE.NONE)


@kernel(NOARGS)
def empty(self: int, _unused: int) -> int:
    """Does nothing: what a built-in call costs, for benchmarks and `doctor`."""
    return get(data(self) + STATE.NONE)
