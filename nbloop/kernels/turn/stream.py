"""A connected socket's two hot calls: readable -> `recv` -> `data_received`, and `write` -> `send`.

Problem: between epoll and `data_received` asyncio runs five Python frames, and between `write` and `send` two more.
They are most of what a small message costs a server. Idea: a `Stream` is what a watch calls (fd_watches.py), and what
serves as a transport's `write`. Its ``__slots__`` are the words that the kernels work on. The kernels handle the case
of nearly every message, with one system call and no frame except the protocol's, and leave everything else to Python,
where asyncio's own code decides. An echo of 64 bytes costs 1.5 us of user time instead of 3.9.

* One `recv` for each readiness, as in asyncio, into a buffer that all streams of the loop share; the `bytes` is cut to
  size from there. No Python runs between the two, so no other code writes to the buffer meanwhile. After a large
  message the kernel asks the system how many bytes there are (0.3 us), and receives large ones into their `bytes`
  without the copy. A BufferedProtocol has its own buffer, and `recv` writes into that.
* `target` (socket_words.py) is (protocol, context, None or True for a BufferedProtocol).
* Written bytes wait in `queued` until the turn ends, and leave before the loop polls or sleeps: a response that is
  written in two pieces costs one system call and not two. One `bytes` waits as it is; several wait in a list, and leave
  through one `sendmsg`. At 64 KiB, or 16 pieces, they leave at once. So no more waits here than asyncio would keep
  without a `pause_writing`, and marks are as exact as asyncio's. Whatever has to come after what was written (`close`,
  `write_eof`, other kinds of buffers, asking how much waits) flushes it first. Streams with something queued form a
  chain through `next`: a reference to the next one, None in the last, nothing outside the chain.
* `clear` is None unless the next bytes may go to the system: nothing waits in the transport before them, and it is
  neither closed nor half-closed. True: they may be queued. False: the transport's mark is too low for that. Python
  keeps it. It is never an object that could be freed.

The calls stay attached, because the descriptor does not block. On a build with the GIL they keep the GIL, whereas
`socket.recv` releases it and has to win it back from each thread that computes.
"""

from __future__ import annotations

from ..base.atomics import exchange, get, get_half, load, put, store
from ..base.capi import (
    BUFFER_BYTES,
    BUFFER_LENGTH,
    BUFFER_WRITABLE,
    EAGAIN,
    EINTR,
    FIONREAD,
    IOVEC_BYTES,
    MSG_NOSIGNAL,
    MSGHDR_BYTES,
    MSGHDR_COUNT,
    MSGHDR_PIECES,
    SYS_IOCTL,
    TYPE_BYTES,
    Py_DecRef,
    Py_IncRef,
    PyBuffer_Release,
    PyBytes_AsString,
    PyBytes_FromStringAndSize,
    PyBytes_Size,
    PyContext_Enter,
    PyErr_BadArgument,
    PyErr_Clear,
    PyErr_GetRaisedException,
    PyList_Append,
    PyList_New,
    PyLong_FromLongLong,
    PyMem_RawFree,
    PyMem_RawMalloc,
    PyObject_CallOneArg,
    PyObject_GetAttr,
    PyObject_GetBuffer,
    PyObject_Vectorcall,
    PyType_GetFlags,
    errno_location,
    libc_recv,
    libc_send,
    libc_sendmsg,
    libc_syscall,
)
from ..base.interpreter import LIST_ITEMS, OBJECT_TYPE, SEQUENCE_SIZE, TUPLE_ITEMS, hidden_slots, slot_offsets
from ..base.kernel import MANY, NOARGS, ONE, apart, data, helper, inlined, kernel
from ..base.layout import STATE, TERMINATED, Fields
from ..base.refusal import on_loop_thread
from ..calls.captured import context_left
from ..calls.invoke import LEAVE
from .socket_words import (
    AVAILABLE,
    LAST_SIZE,
    RECEIVED_MOST,
    SOCKET,
    SocketWords,
    descriptor_of,
    hand_over,
    made_fields,
    made_of,
    target_give_back,
    target_take,
)

QUEUED_MOST = 64 * 1024  # bytes that may wait for the end of a turn: asyncio's mark for `pause_writing`
QUEUED_PIECES = 16  # and in how many pieces
LARGE = 64 * 1024  # bytes: from this size on, a copy costs more than asking how many there are


class StreamWords(SocketWords):
    """The words of a stream; `aio/transports.py` adds its methods."""

    __slots__ = ("_next", "_queued")


STREAM = Fields("STREAM", dict(zip(("NEXT", "QUEUED"), slot_offsets(StreamWords), strict=True)))
hidden_slots(StreamWords, "_next", "_queued")
# The items of `_made`: those of all sockets; the names of a protocol's methods; and Python's functions: for other
# events, for the end of the reading (with the name of the method that it came to), for what was not sent; the array of
# the loop's state; True.
MADE = made_fields(
    *("name", "get_buffer", "buffer_updated"),
    *("other", "ended", "unsent"),
    *("state", "queues"),
)


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
    target = target_take(self, get(arguments + 8), none)
    if target == 0:
        return PyObject_Vectorcall(get(made + MADE.OTHER), arguments, 2, 0)
    result = 0
    context = get(target + TUPLE_ITEMS + 8)
    if PyContext_Enter(context) == 0:
        if get(target + TUPLE_ITEMS + 16) == none:
            result = stream_receive(made, get(target + TUPLE_ITEMS))
        else:
            result = stream_receive_into(made, get(target + TUPLE_ITEMS))
        result = context_left(context, result)
    target_give_back(self, target)
    return result


@helper
def stream_receive(made: int, protocol: int) -> int:
    """One `recv`, and what follows it. What a Python call returned, or None; 0 with an exception set."""
    buffer = data(get(made + MADE.BUFFER))
    descriptor = descriptor_of(made)
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
    if received < most and chunk != 0:  # other code has read from it: cut to size
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
        return hand_over(made, get(made + MADE.ENDED), get(made + MADE.NAME), PyErr_GetRaisedException())
    return result


@apart
def stream_chunk(buffer: int, descriptor: int) -> int:
    """A new `bytes` to receive into, for all that can be read from the socket; 0 if that is little, or unknown."""
    put(buffer + LAST_SIZE, 0)  # nothing is known about the next one, unless this one is as large
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
                received = stream_recv(descriptor_of(made), get(view), size)
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
        return hand_over(made, get(made + MADE.ENDED), reached, PyLong_FromLongLong(-1))
    return hand_over(made, get(made + MADE.ENDED), reached, PyErr_GetRaisedException())


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
    return hand_over(made, get(made + MADE.ENDED), name, PyLong_FromLongLong(error))


@kernel(ONE)
def stream_write(self: int, sent: int) -> int:
    """Have bytes leave before the next poll, or at once, if nothing waits before them. Python does all else, and
    handles calls from other threads: a thread of another loop may not write.
    """
    made = made_of(self)
    if made == 0:
        return 0
    none = get(made + MADE.NONE)
    clear = load(self + SOCKET.CLEAR)
    base = data(get(made + MADE.STATE))
    if (
        clear == 0
        or clear == none
        or not on_loop_thread(base)  # which may be another loop's
        or PyType_GetFlags(get(sent + OBJECT_TYPE)) & TYPE_BYTES == 0
    ):
        return hand_over(made, get(made + MADE.UNSENT), sent, none)  # not tried
    size = PyBytes_Size(sent)
    if size == 0:
        return none
    if clear == get(made + MADE.QUEUES):
        queued = exchange(self + STREAM.QUEUED, 0)
        if queued != 0:
            return stream_queue_more(self, made, queued, sent)
        if size <= QUEUED_MOST:
            Py_IncRef(sent)
            store(self + STREAM.QUEUED, sent)
            if load(self + STREAM.NEXT) == 0:
                stream_chain(base, self, none)
            return none
    taken = stream_send(made, sent, size)
    return none if taken == size else hand_over(made, get(made + MADE.UNSENT), sent, PyLong_FromLongLong(taken))


@inlined
def stream_send(made: int, sent: int, size: int) -> int:
    """Send `size` bytes. Returns how many the system took, or -errno."""
    taken = libc_send(descriptor_of(made), PyBytes_AsString(sent), size, MSG_NOSIGNAL)
    return taken if taken >= 0 else stream_refused()


@helper
def stream_refused() -> int:
    """After a send that failed: 0 if the system takes nothing now, or -errno."""
    error = get_half(errno_location())
    return 0 if error == EAGAIN or error == EINTR else -error


@inlined
def stream_chain(base: int, self: int, none: int) -> None:
    """Append to the streams that are flushed before the next poll. Loop thread."""
    store(self + STREAM.NEXT, none)
    Py_IncRef(self)
    last = get(base + STATE.UNSENT_LAST)
    if last == 0:
        put(base + STATE.UNSENT, self)
    else:
        store(last + STREAM.NEXT, self)
    put(base + STATE.UNSENT_LAST, self)


@helper
def stream_queue_more(self: int, made: int, queued: int, sent: int) -> int:
    """Put bytes behind those that are `queued` and were taken out; flush them if they are many. None, or 0 with an
    exception set. Loop thread.
    """
    none = get(made + MADE.NONE)
    pieces = queued
    if PyType_GetFlags(get(queued + OBJECT_TYPE)) & TYPE_BYTES != 0:
        pieces = PyList_New(0)
        if pieces != 0 and PyList_Append(pieces, queued) != 0:
            Py_DecRef(pieces)
            pieces = 0
        if pieces != 0:
            Py_DecRef(queued)
    if pieces == 0 or PyList_Append(pieces, sent) != 0:  # no memory
        PyErr_Clear()
        store(self + STREAM.QUEUED, pieces if pieces != 0 else queued)
        if stream_flush(self, made) == 0:
            return 0
        return hand_over(made, get(made + MADE.UNSENT), sent, none)
    store(self + STREAM.QUEUED, pieces)
    if get(pieces + SEQUENCE_SIZE) >= QUEUED_PIECES or stream_size(pieces) > QUEUED_MOST:
        return stream_flush(self, made)
    return none


@inlined
def stream_size(pieces: int) -> int:
    """How many bytes there are in a list."""
    size = 0
    for i in range(get(pieces + SEQUENCE_SIZE)):
        size += PyBytes_Size(get(get(pieces + LIST_ITEMS) + (i << 3)))
    return size


@helper
def stream_flush(self: int, made: int) -> int:
    """Send what is queued, and give Python what the system leaves. None, or 0 with an exception set. Any thread."""
    none = get(made + MADE.NONE)
    queued = exchange(self + STREAM.QUEUED, 0)
    if queued == 0 or queued == none:
        return none
    if get(data(get(made + MADE.STATE)) + STATE.LIFECYCLE) == TERMINATED:  # in a forked child: its parent sends them
        Py_DecRef(queued)
        return none
    if PyType_GetFlags(get(queued + OBJECT_TYPE)) & TYPE_BYTES != 0:
        size = PyBytes_Size(queued)
        taken = stream_send(made, queued, size)
    else:
        size = stream_size(queued)
        taken = stream_send_pieces(made, queued)
    result = none
    if taken != size:
        result = hand_over(made, get(made + MADE.UNSENT), queued, PyLong_FromLongLong(taken))
    Py_DecRef(queued)
    return result


@helper
def stream_send_pieces(made: int, pieces: int) -> int:
    """`stream_send` of a list of bytes, in one system call."""
    count = get(pieces + SEQUENCE_SIZE)
    message = PyMem_RawMalloc(MSGHDR_BYTES + count * IOVEC_BYTES)
    if message == 0:
        return 0  # nothing was taken
    for at in range(0, MSGHDR_BYTES, 8):
        put(message + at, 0)
    vector = message + MSGHDR_BYTES
    put(message + MSGHDR_PIECES, vector)
    put(message + MSGHDR_COUNT, count)
    for i in range(count):
        piece = get(get(pieces + LIST_ITEMS) + (i << 3))
        put(vector + (i << 4), PyBytes_AsString(piece))
        put(vector + (i << 4) + 8, PyBytes_Size(piece))
    taken = libc_sendmsg(descriptor_of(made), message, MSG_NOSIGNAL)
    if taken < 0:
        taken = stream_refused()
    PyMem_RawFree(message)
    return taken


@apart
def streams_flush(base: int) -> int:
    """Flush all streams that have something queued, in the order in which they got it. Returns 0, or LEAVE, and then
    the others are still queued. Loop thread, or the thread that has just run the loop.
    """
    while True:
        stream = get(base + STATE.UNSENT)
        if stream == 0:
            return 0
        made = load(stream + SOCKET.MADE)
        following = exchange(stream + STREAM.NEXT, 0)
        if following == get(base + STATE.NONE):
            following = 0
            put(base + STATE.UNSENT_LAST, 0)
        put(base + STATE.UNSENT, following)
        result = stream_flush(stream, made)
        Py_DecRef(stream)
        if result == 0:
            return LEAVE


@kernel(NOARGS)
def flush_streams(self: int, _unused: int) -> int:
    """`streams_flush`, after the loop's run has ended in the middle of a turn. ``self`` is its state. Owner only."""
    base = data(self)
    return get(base + STATE.NONE) if streams_flush(base) == 0 else 0


@kernel(NOARGS)
def stream_flush_now(self: int, _unused: int) -> int:
    """Send what is queued, before something that has to come after it. Any thread."""
    made = made_of(self)
    return stream_flush(self, made) if made != 0 else 0
