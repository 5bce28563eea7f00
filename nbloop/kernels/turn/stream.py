"""A connected socket's two hot calls: readable -> `recv` -> `data_received`, and `write` -> `send`.

Problem: between epoll and `data_received` asyncio runs five Python frames, and between `write` and `send` two more.
They are most of what a small message costs a server. Idea: a `Stream` is what a watch calls (fd_watches.py), and a
transport's `write`. Its ``__slots__`` are the words that the kernels work on. They do the case that nearly every
message is, with one system call and no frame except the protocol's, and give anything else to Python, where asyncio's
own code decides. An echo of 64 bytes costs 1.5 us of user time instead of 3.9.

* One `recv` for each readiness, as in asyncio, into a buffer that all streams of the loop share; the `bytes` is cut to
  size from there. No Python runs between the two, so nobody else writes the buffer meanwhile.
* `target` is (protocol, context), or None while Python is to read. The kernel swaps it out for as long as it uses it,
  and back in unless another was set meanwhile, so that a thread which sets one never frees what is in use.
* `clear` is None unless the next bytes may go straight to the system: nothing waits before them, and the transport is
  neither closed nor half-closed. Python keeps it. It is never an object that could be freed.
* The rest is one tuple, set once. It refers to the transport weakly, so that a stream makes no cycle with it.

It loses where messages are large: the copy out of the shared buffer is a second one.

The calls stay attached: the descriptor does not block. On a build with the GIL they keep it, where `socket.recv` gives
it up and has to win it back from each thread that computes.
"""

from __future__ import annotations

from typing import Any

from ...unique import Unique
from ..base.atomics import compare_and_swap, exchange, get, get_half, load, put
from ..base.capi import (
    EAGAIN,
    EINTR,
    MSG_NOSIGNAL,
    TYPE_BYTES,
    Py_DecRef,
    Py_IncRef,
    PyBytes_AsString,
    PyBytes_FromStringAndSize,
    PyBytes_Size,
    PyContext_Enter,
    PyContext_Exit,
    PyErr_BadArgument,
    PyErr_GetRaisedException,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyObject_CallOneArg,
    PyObject_GetAttr,
    PyObject_Vectorcall,
    PyTuple_New,
    PyType_GetFlags,
    errno_location,
    libc_recv,
    libc_send,
)
from ..base.interpreter import OBJECT_TYPE, TUPLE_ITEMS, slot_offsets
from ..base.kernel import MANY, ONE, apart, data, helper, kernel
from ..base.layout import ERROR, READ, WRITE, Fields

RECEIVED_MOST = 256 * 1024  # asyncio's `max_size`


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
# "data_received"; and Python's functions: for other events, for the end of the reading, for what was not sent.
MADE_ITEMS = ("none", "owner", "fd", "buffer", "name", "other", "ended", "unsent")
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
        result = stream_receive(made, get(target + TUPLE_ITEMS))
        PyContext_Exit(context)
    if not compare_and_swap(self + STREAM.TARGET, 0, target):
        Py_DecRef(target)
    return result


@helper
def stream_receive(made: int, protocol: int) -> int:
    """One `recv`, and what follows it. What a Python call returned, or None; 0 with an exception set."""
    buffer = data(get(made + MADE.BUFFER))
    received = libc_recv(PyLong_AsLongLong(get(made + MADE.FD)), buffer, RECEIVED_MOST, 0)
    if received <= 0:
        error = 0  # the end of what the peer sends
        if received < 0:
            error = get_half(errno_location())
        if error == EAGAIN or error == EINTR:
            return get(made + MADE.NONE)
        return stream_hands(made, get(made + MADE.ENDED), 0, PyLong_FromLongLong(error))
    result = 0
    chunk = PyBytes_FromStringAndSize(buffer, received)
    if chunk != 0:
        method = PyObject_GetAttr(protocol, get(made + MADE.NAME))  # each time, as asyncio: it may be patched
        if method != 0:
            result = PyObject_CallOneArg(method, chunk)
            Py_DecRef(method)
        Py_DecRef(chunk)
    if result == 0:
        return stream_hands(made, get(made + MADE.ENDED), 0, PyErr_GetRaisedException())
    return result


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
    """From now on, what is received is for this (protocol, context), or for Python if it is None. Any thread."""
    made = made_of(self)
    if made == 0:
        return 0
    Py_IncRef(target)
    before = exchange(self + STREAM.TARGET, target)
    if before != 0:
        Py_DecRef(before)
    return get(made + MADE.NONE)
