"""A connected socket's two hot calls: readable -> `recv` -> `data_received`, and `write` -> `send`.

Problem: between epoll and `data_received` asyncio runs five Python frames, and between `write` and `send` two more.
They are most of what a small message costs a server. Idea: a `Stream` is what a watch calls (fd_watches.py), and a
transport's `write`. Its ``__slots__`` are the words that the kernels work on. They do the case that nearly every
message is, with one system call and no frame except the protocol's, and give anything else to Python, where asyncio's
own code decides. An echo of 64 bytes costs 1.5 us of user time instead of 3.9.

* One `recv` for each readiness, as in asyncio, into a buffer that all streams of the loop share; the `bytes` is cut to
  size from there. No Python runs between the two, so nobody else writes the buffer meanwhile. After a large message the
  system is asked how many bytes there are (0.3 us), and large ones are received into their `bytes` without the copy. A
  BufferedProtocol has its own buffer, and `recv` writes into that.
* `target` is (protocol, context, None or True for a BufferedProtocol), or None while Python is to read. The kernel
  swaps it out for as long as it uses it, and back in unless another was set meanwhile, so that a thread which sets one
  never frees what is in use.
* `clear` is None unless the next bytes may go straight to the system: nothing waits before them, and the transport is
  neither closed nor half-closed. Python keeps it. It is never an object that could be freed.
* The rest is one tuple, set once. It refers to the transport weakly, so that a stream makes no cycle with it.

The calls stay attached: the descriptor does not block. On a build with the GIL they keep it, where `socket.recv` gives
it up and has to win it back from each thread that computes.
"""

from __future__ import annotations

from typing import Any

from ...unique import Unique
from ..base.atomics import compare_and_swap, exchange, get, get_half, load, put
from ..base.capi import (
    BUFFER_BYTES,
    BUFFER_LENGTH,
    BUFFER_WRITABLE,
    EAGAIN,
    EINTR,
    FIONREAD,
    MSG_NOSIGNAL,
    SYS_IOCTL,
    TYPE_BYTES,
    Py_DecRef,
    Py_IncRef,
    PyBuffer_Release,
    PyBytes_AsString,
    PyBytes_FromStringAndSize,
    PyBytes_Size,
    PyContext_Enter,
    PyContext_Exit,
    PyErr_BadArgument,
    PyErr_Clear,
    PyErr_GetRaisedException,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyMem_RawFree,
    PyMem_RawMalloc,
    PyObject_CallOneArg,
    PyObject_GetAttr,
    PyObject_GetBuffer,
    PyObject_Vectorcall,
    PyTuple_New,
    PyType_GetFlags,
    errno_location,
    libc_recv,
    libc_send,
    libc_syscall,
)
from ..base.interpreter import OBJECT_TYPE, TUPLE_ITEMS, slot_offsets
from ..base.kernel import MANY, ONE, apart, data, helper, inlined, kernel
from ..base.layout import ERROR, READ, WRITE, Fields

RECEIVED_MOST = 256 * 1024  # asyncio's `max_size`
LARGE = 64 * 1024  # bytes from which on a copy costs more than to ask how many there are
# Behind what is received, in a loop's array: how many bytes came last, and where the system writes how many there are.
LAST_SIZE, AVAILABLE = RECEIVED_MOST, RECEIVED_MOST + 8
BUFFER_SIZE = RECEIVED_MOST + 16


class StreamWords(Unique):
    """The words of a stream; `aio/transports.py` adds its methods. `_made` is a tuple of what is set once."""

    __slots__ = ("_clear", "_made", "_target")
    _clear: bool | None
    _made: tuple[Any, ...]


STREAM = Fields(
    "STREAM",
    {
        slot.removeprefix("_").upper(): at
        for slot, at in zip(StreamWords.__slots__, slot_offsets(StreamWords), strict=True)
    },
)
# The items of `_made`: None; a weak reference of the transport; its descriptor; the array to receive into;
# the names of a protocol's methods; and Python's functions: for other events, for the end of the reading (with the name
# of the method that it came to), for what was not sent.
MADE_ITEMS = ("none", "owner", "fd", "buffer", "name", "get_buffer", "buffer_updated", "other", "ended", "unsent")
MADE = Fields("MADE", {name.upper(): TUPLE_ITEMS + 8 * at for at, name in enumerate(MADE_ITEMS)})


@helper
def made_of(self: int) -> int:
    """What was set once; 0 with an exception set: `__new__` alone made it, or the collector has taken it apart."""
    made = load(self + STREAM.MADE)
    if made == 0:
        PyErr_BadArgument()
    return made


@kernel(MANY)
def stream_ready(self: int, arguments: int, count: int) -> int:
    """(descriptor, events), from its watch: receive once, and give the protocol what has come. Loop thread."""
    made = made_of(self)
    if made == 0:
        return 0
    if count != 2:
        PyErr_BadArgument()
        return 0
    none = get(made + MADE.NONE)
    target = none
    if PyLong_AsLongLong(get(arguments + 8)) & (READ | WRITE | ERROR) == READ:
        target = exchange(self + STREAM.TARGET, 0)
    if target == 0 or target == none:
        if target != 0:
            compare_and_swap(self + STREAM.TARGET, 0, none)
        return PyObject_Vectorcall(get(made + MADE.OTHER), arguments, 2, 0)
    result = 0
    context = get(target + TUPLE_ITEMS + 8)
    if PyContext_Enter(context) == 0:
        if get(target + TUPLE_ITEMS + 16) == none:
            result = stream_receive(made, get(target + TUPLE_ITEMS))
        else:
            result = stream_receive_into(made, get(target + TUPLE_ITEMS))
        PyContext_Exit(context)
    if not compare_and_swap(self + STREAM.TARGET, 0, target):
        Py_DecRef(target)
    return result


@helper
def stream_receive(made: int, protocol: int) -> int:
    """One `recv`, and what follows it. What a Python call returned, or None; 0 with an exception set."""
    buffer = data(get(made + MADE.BUFFER))
    descriptor = PyLong_AsLongLong(get(made + MADE.FD))
    chunk = 0
    into, most = buffer, RECEIVED_MOST
    if get(buffer + LAST_SIZE) >= LARGE:
        chunk = stream_chunk(buffer, descriptor)
        if chunk != 0:
            into, most = PyBytes_AsString(chunk), PyBytes_Size(chunk)
    received = stream_recv(descriptor, into, most)
    if received <= 0:
        if chunk != 0:
            Py_DecRef(chunk)
        return stream_stopped(made, get(made + MADE.NAME), -received)
    put(buffer + LAST_SIZE, received)
    if received < most and chunk != 0:  # somebody else has read from it: cut to size
        whole = chunk
        chunk = PyBytes_FromStringAndSize(into, received)
        Py_DecRef(whole)
    elif chunk == 0:
        chunk = PyBytes_FromStringAndSize(buffer, received)
    result = 0
    if chunk != 0:
        result = stream_tells(protocol, get(made + MADE.NAME), chunk)
        Py_DecRef(chunk)
    if result == 0:
        return stream_hands(made, get(made + MADE.ENDED), get(made + MADE.NAME), PyErr_GetRaisedException())
    return result


@apart
def stream_chunk(buffer: int, descriptor: int) -> int:
    """New bytes of as many as the socket has to give, to receive into; 0 if these are few, or nobody knows."""
    put(buffer + LAST_SIZE, 0)  # of the next one nothing is known, unless this one is as large
    put(buffer + AVAILABLE, 0)
    if SYS_IOCTL == 0 or libc_syscall(SYS_IOCTL, descriptor, FIONREAD, buffer + AVAILABLE, 0, 0, 0) != 0:
        return 0
    available = min(get_half(buffer + AVAILABLE), RECEIVED_MOST)
    if available < LARGE:
        return 0
    chunk = PyBytes_FromStringAndSize(0, available)
    if chunk == 0:
        PyErr_Clear()
    return chunk


@helper
def stream_receive_into(made: int, protocol: int) -> int:
    """`stream_receive` for a BufferedProtocol: into what its `get_buffer` gives."""
    view = PyMem_RawMalloc(BUFFER_BYTES)
    if view == 0:
        return get(made + MADE.NONE)  # it is reported again
    number = PyLong_FromLongLong(-1)
    given = stream_tells(protocol, get(made + MADE.GET_BUFFER), number)
    Py_DecRef(number)
    reached = get(made + MADE.GET_BUFFER)
    received = 0
    size = 0
    if given != 0:
        if PyObject_GetBuffer(given, view, BUFFER_WRITABLE) == 0:
            size = get(view + BUFFER_LENGTH)
            if size != 0:
                reached = get(made + MADE.BUFFER_UPDATED)
                received = stream_recv(PyLong_AsLongLong(get(made + MADE.FD)), get(view), size)
            PyBuffer_Release(view)
        else:
            reached = get(made + MADE.NONE)
            size = -1
        Py_DecRef(given)
    PyMem_RawFree(view)
    if size > 0:
        if received <= 0:
            return stream_stopped(made, reached, -received)
        number = PyLong_FromLongLong(received)
        result = 0
        if number != 0:
            result = stream_tells(protocol, reached, number)
            Py_DecRef(number)
        if result != 0:
            return result
    elif size == 0 and given != 0:
        return stream_hands(made, get(made + MADE.ENDED), reached, PyLong_FromLongLong(-1))
    return stream_hands(made, get(made + MADE.ENDED), reached, PyErr_GetRaisedException())


@inlined
def stream_recv(descriptor: int, into: int, most: int) -> int:
    """How many bytes were received, 0 at their end, or -errno."""
    received = libc_recv(descriptor, into, most, 0)
    return received if received >= 0 else -get_half(errno_location())


@inlined
def stream_tells(protocol: int, name: int, argument: int) -> int:
    """Call a method of the protocol, looked up each time, as asyncio does: it may be patched."""
    method = PyObject_GetAttr(protocol, name)
    if method == 0:
        return 0
    result = PyObject_CallOneArg(method, argument)
    Py_DecRef(method)
    return result


@apart
def stream_stopped(made: int, name: int, error: int) -> int:
    """After a `recv` that gave nothing: an error, or 0 for the end of what the peer sends, goes to Python."""
    if error == EAGAIN or error == EINTR:
        return get(made + MADE.NONE)
    return stream_hands(made, get(made + MADE.ENDED), name, PyLong_FromLongLong(error))


@apart
def stream_hands(made: int, function: int, item: int, last: int) -> int:
    """Call a Python function with a tuple of the owner, an `item` unless that is 0, and `last`, a reference given away:
    0 for it means that an exception is set.
    """
    if last == 0:
        return 0
    arguments = PyTuple_New(2 if item == 0 else 3)
    if arguments == 0:
        Py_DecRef(last)
        return 0
    at = arguments + TUPLE_ITEMS
    owner = get(made + MADE.OWNER)
    Py_IncRef(owner)
    put(at, owner)
    if item != 0:
        Py_IncRef(item)
        put(at + 8, item)
        at += 8
    put(at + 8, last)
    result = PyObject_CallOneArg(function, arguments)
    Py_DecRef(arguments)
    return result


@kernel(ONE)
def stream_write(self: int, sent: int) -> int:
    """Give bytes to the system at once, if nothing waits before them. What it leaves, and all else, goes to Python."""
    made = made_of(self)
    if made == 0:
        return 0
    outcome = get(made + MADE.NONE)  # not tried
    clear = load(self + STREAM.CLEAR)
    if clear != 0 and clear != outcome and PyType_GetFlags(get(sent + OBJECT_TYPE)) & TYPE_BYTES != 0:
        size = PyBytes_Size(sent)
        if size == 0:
            return outcome
        taken = libc_send(PyLong_AsLongLong(get(made + MADE.FD)), PyBytes_AsString(sent), size, MSG_NOSIGNAL)
        if taken == size:
            return outcome
        if taken < 0:
            error = get_half(errno_location())
            taken = 0 if error == EAGAIN or error == EINTR else -error
        outcome = PyLong_FromLongLong(taken)
    return stream_hands(made, get(made + MADE.UNSENT), sent, outcome)


@kernel(ONE)
def stream_aim(self: int, target: int) -> int:
    """From now on, what is received is for this `target`, or for Python if it is None. Any thread."""
    made = made_of(self)
    if made == 0:
        return 0
    Py_IncRef(target)
    before = exchange(self + STREAM.TARGET, target)
    if before != 0:
        Py_DecRef(before)
    return get(made + MADE.NONE)
