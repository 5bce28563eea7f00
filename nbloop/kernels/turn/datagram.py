"""A datagram socket's two hot calls: readable -> `recvfrom` -> `datagram_received`, and `sendto` -> the system.

Problem and idea are those of stream.py: a `Datagrams` is what a watch queues and what a transport's `sendto` is, its
``__slots__`` are the words that the kernels work on, and Python decides whatever is not plain. It is queued and not
called, because asyncio runs what was ready before first, and CPython's tests rely on that. How the data travels:

* Readable: up to `RECEIVED_AT_ONCE` times a `recvfrom` into the loop's buffer, the bytes cut to size, the address as
  CPython's `socket` makes it, and `datagram_received(data, addr)` in the reader's context. It stops early where nothing
  is left, at an error, and when the protocol has set another `target`: replaced itself, paused, closed.
* `sendto`: one system call, at once. Datagrams keep their bounds, so there is nothing to join, and none waits for the
  end of the turn.
* `target` (socket_words.py) is (protocol, context).
* `clear` is None while Python is to send: a datagram waits in the transport, it is closed, or the addresses are paths.
  True: the socket is connected. False: each datagram has its address.

An echo of 64 bytes over UDP takes 5.2 us of CPU time, most of it the system's, where 16 datagrams wait (asyncio 10.1,
uvloop 6.1), and 8.8 where one does (14.9, 9.6). CPython's own `recvfrom` and `sendto`, called from here, would cost 0.9
and 2.5 us more: the former allocates 256 KiB each time, and both parse their arguments. So addresses are made here, as
CPython makes them. The C library converts them to text in 0.1 us, and back in 0.02.

Where 64 wait, an echo takes 6.3 us if a poll brings one, 5.7 if 2, 5.4 if 4, 5.2 if 8, 5.1 if 16, 5.0 if 32 or 64. To
find that no second one has come costs 0.3 us.
"""

from __future__ import annotations

from ..base.atomics import get, get_half, load, put, write_8
from ..base.capi import (
    AF_INET6,
    AF_UNIX,
    EAGAIN,
    EINTR,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    TYPE_BYTES,
    TYPE_LONG,
    TYPE_TUPLE,
    TYPE_UNICODE,
    Py_DecRef,
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
    PyObject_GetAttr,
    PyObject_Vectorcall,
    PySys_Audit,
    PyTuple_New,
    PyType_GetFlags,
    PyUnicode_AsUTF8AndSize,
    PyUnicode_Compare,
    PyUnicode_DecodeFSDefault,
    PyUnicode_FromString,
    errno_location,
    libc_inet_ntop,
    libc_inet_pton,
    libc_recvfrom,
    libc_send,
    libc_sendto,
    libc_strlen,
)
from ..base.interpreter import OBJECT_TYPE, SEQUENCE_SIZE, TUPLE_ITEMS
from ..base.kernel import KEYWORDS, MANY, apart, data, helper, inlined, kernel
from ..base.refusal import on_loop_thread
from .socket_words import (
    ADDRESS,
    RECEIVED_MOST,
    SOCKET,
    descriptor_of,
    hand_over,
    made_fields,
    made_of,
    target_give_back,
    target_take,
)

RECEIVED_AT_ONCE = 16  # datagrams of one socket for each poll, before others have their turn
UNKNOWN, REFUSED = -2, -3  # where a system call returns -1
# In the loop's buffer, while no Python runs: the socket address, its size, its text, and the size of a text.
ADDRESS_MOST, TEXT_MOST = 128, 64
ADDRESS_SIZE = ADDRESS + ADDRESS_MOST
TEXT = ADDRESS_SIZE + 8
TEXT_SIZE = TEXT + TEXT_MOST


# The items of `_made`: those of all sockets; the family of the socket; the name of the protocol's method; Python's
# functions: for other events, for an exception of the protocol's, for an error of the system's, for what the kernel
# does not send; the two messages of those errors; the array of the loop's state; True; and strings.
MADE = made_fields(
    *("family", "name", "other", "raised", "failed", "slowly", "reading", "writing"),
    *("state", "connected", "addr", "event", "form"),
)


@inlined
def is_a(one: int, flag: int) -> bool:
    """Whether an object is an instance of the type of that flag."""
    return PyType_GetFlags(get(one + OBJECT_TYPE)) & flag != 0


# --- receiving


@kernel(MANY)
def datagrams_ready(self: int, arguments: int, count: int) -> int:
    """(descriptor, events), of its watch: receive what has come, and give it to the protocol. Loop thread."""
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
    error = 0
    context = get(target + TUPLE_ITEMS + 8)
    if PyContext_Enter(context) == 0:
        error = datagrams_receive(self, made, get(target + TUPLE_ITEMS))
        if PyContext_Exit(context) != 0:  # the protocol has left the thread in another one
            if error != 0:
                PyErr_Clear()
            else:
                error = PyErr_GetRaisedException()
    else:
        error = PyErr_GetRaisedException()
    target_give_back(self, target)
    # Outside of the context, which the loop's exception handler enters.
    return none if error == 0 else hand_over(made, get(made + MADE.RAISED), 0, error)


@helper
def datagrams_receive(self: int, made: int, protocol: int) -> int:
    """Receive, and call the protocol. Returns a reference to what was raised, or 0."""
    none = get(made + MADE.NONE)
    for _ in range(RECEIVED_AT_ONCE):
        pair = datagram_take(made)
        if pair == none:
            return 0
        result = 0
        if pair != 0:
            method = PyObject_GetAttr(protocol, get(made + MADE.NAME))  # each time, as asyncio: it may be patched
            if method != 0:
                result = PyObject_Vectorcall(method, pair + TUPLE_ITEMS, 2, 0)
                Py_DecRef(method)
            Py_DecRef(pair)
        if result == 0:
            return PyErr_GetRaisedException()
        Py_DecRef(result)
        # The protocol has closed or paused, or is another one; or this is a forked child, and the rest belongs to the
        # parent.
        if load(self + SOCKET.TARGET) != 0 or not on_loop_thread(data(get(made + MADE.STATE))):
            return 0
    return 0


@helper
def datagram_take(made: int) -> int:
    """Receive one: a new tuple of its bytes and its address. None if there is none, or if an error was reported; 0 with
    an exception set.
    """
    none = get(made + MADE.NONE)
    buffer = data(get(made + MADE.BUFFER))
    put(buffer + ADDRESS_SIZE, ADDRESS_MOST)
    where = buffer + ADDRESS
    received = libc_recvfrom(descriptor_of(made), buffer, RECEIVED_MOST, MSG_DONTWAIT, where, buffer + ADDRESS_SIZE)
    if received < 0:
        error = get_half(errno_location())
        if error == EAGAIN or error == EINTR:
            return none
        return datagram_failed(made, get(made + MADE.READING), PyLong_FromLongLong(error))
    address = address_object(buffer, none)
    if address == 0:
        return 0
    taken = PyBytes_FromStringAndSize(buffer, received)
    pair = PyTuple_New(2) if taken != 0 else 0
    if pair == 0:
        if taken != 0:
            Py_DecRef(taken)
        Py_DecRef(address)
        return 0
    put(pair + TUPLE_ITEMS, taken)
    put(pair + TUPLE_ITEMS + 8, address)
    return pair


@apart
def datagram_failed(made: int, message: int, error: int) -> int:
    """Report a system error to the transport: a number or an exception, whose reference this consumes. None, or 0 with
    an exception set.
    """
    result = hand_over(made, get(made + MADE.FAILED), message, error)
    if result == 0:
        return 0
    Py_DecRef(result)
    return get(made + MADE.NONE)


@inlined
def address_object(buffer: int, none: int) -> int:
    """What `socket.recvfrom` returns for the address in the buffer: a new tuple or a path; None if there is no address;
    0 with an exception set.
    """
    size = get_half(buffer + ADDRESS_SIZE)
    if size == 0:
        return none
    word = get(buffer + ADDRESS)
    family = word & 0xFFFF
    if family == AF_UNIX:
        return path_object(buffer + ADDRESS + 2, size - 2)
    six = family == AF_INET6
    libc_inet_ntop(family, buffer + ADDRESS + (8 if six else 4), buffer + TEXT, TEXT_MOST)
    host = PyUnicode_FromString(buffer + TEXT)
    port = PyLong_FromLongLong((word >> 16 & 0xFF) << 8 | word >> 24 & 0xFF)
    address = PyTuple_New(4 if six else 2)
    flow = scope = 0
    if six:
        flow = PyLong_FromLongLong(
            (word >> 32 & 0xFF) << 24 | (word >> 40 & 0xFF) << 16 | (word >> 48 & 0xFF) << 8 | word >> 56 & 0xFF
        )
        scope = PyLong_FromLongLong(get_half(buffer + ADDRESS + 24))
    if host != 0 and port != 0 and address != 0 and (not six or (flow != 0 and scope != 0)):
        put(address + TUPLE_ITEMS, host)
        put(address + TUPLE_ITEMS + 8, port)
        if six:
            put(address + TUPLE_ITEMS + 16, flow)
            put(address + TUPLE_ITEMS + 24, scope)
        return address
    for one in (host, port, address, flow, scope):  # no memory
        if one != 0:
            Py_DecRef(one)
    return 0


@helper
def path_object(path: int, size: int) -> int:
    """A Unix socket's address: bytes in the abstract namespace of Linux, where the first one is 0, else a str."""
    write_8(path + size, 0)
    if size > 0 and get_half(path - 2) >> 16 & 0xFF == 0:
        return PyBytes_FromStringAndSize(path, size)
    return PyUnicode_DecodeFSDefault(path)


# --- sending


@kernel(KEYWORDS)
def datagram_send(self: int, arguments: int, count: int, names: int) -> int:
    """``data, addr=None``: send at once, if nothing waits. Python does all else, and handles calls from other threads:
    a thread of another loop may not send.
    """
    made = made_of(self)
    if made == 0:
        return 0
    none = get(made + MADE.NONE)
    clear = load(self + SOCKET.CLEAR)
    plain = clear != 0 and clear != none and on_loop_thread(data(get(made + MADE.STATE)))
    address = none
    if names != 0:
        plain = plain and count == 1 and get(names + SEQUENCE_SIZE) == 1
        plain = plain and PyUnicode_Compare(get(names + TUPLE_ITEMS), get(made + MADE.ADDR)) == 0
    else:
        plain = plain and (count == 1 or count == 2)
    if plain and (names != 0 or count == 2):
        address = get(arguments + 8)
    if plain and is_a(get(arguments), TYPE_BYTES):
        taken = UNKNOWN
        if clear != get(made + MADE.CONNECTED):
            taken = datagram_send_to(made, get(arguments), address)
        elif address == none:
            sent = get(arguments)
            size = PyBytes_Size(sent)
            taken = libc_send(descriptor_of(made), PyBytes_AsString(sent), size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if taken >= 0:
            return none
        if taken == REFUSED:
            return datagram_failed(made, get(made + MADE.WRITING), PyErr_GetRaisedException())
        if taken == -1:
            error = get_half(errno_location())
            if error != EAGAIN and error != EINTR:
                return datagram_failed(made, get(made + MADE.WRITING), PyLong_FromLongLong(error))
    return PyObject_Vectorcall(get(made + MADE.SLOWLY), arguments, count, names)


@helper
def datagram_send_to(made: int, sent: int, address: int) -> int:
    """Send to an address. Returns what the system returned; UNKNOWN for an address that the kernel cannot convert;
    REFUSED with an exception set by an audit hook.
    """
    buffer = data(get(made + MADE.BUFFER))
    length = address_bytes(buffer, PyLong_AsLongLong(get(made + MADE.FAMILY)), address)
    if length == 0:
        return UNKNOWN
    where = buffer + ADDRESS
    first, second, third, fourth = get(where), get(where + 8), get(where + 16), get(where + 24)
    event, form = PyBytes_AsString(get(made + MADE.EVENT)), PyBytes_AsString(get(made + MADE.FORM))
    if PySys_Audit(event, form, get(made + MADE.SOCKET), address) != 0:  # as CPython's `sendto` does
        return REFUSED
    put(where, first)  # a hook is Python code, and may have used the buffer
    put(where + 8, second)
    put(where + 16, third)
    put(where + 24, fourth)
    flags = MSG_DONTWAIT | MSG_NOSIGNAL
    return libc_sendto(descriptor_of(made), PyBytes_AsString(sent), PyBytes_Size(sent), flags, where, length)


@inlined
def address_bytes(buffer: int, family: int, address: int) -> int:
    """Convert an address to the system's, in the buffer. Returns its length, or 0 if CPython has to convert it, which
    asks resolvers for names and refuses nonsense. No Python runs.
    """
    if not is_a(address, TYPE_TUPLE):
        return 0
    items = address + TUPLE_ITEMS
    size = get(address + SEQUENCE_SIZE)
    six = family == AF_INET6
    if size < 2 or size > (4 if six else 2) or not is_a(get(items), TYPE_UNICODE):
        return 0
    port = small(get(items + 8), 0xFFFF)
    scope = 0
    if size > 2 and small(get(items + 16), 0) != 0:
        return 0
    if size > 3:
        scope = small(get(items + 24), 0xFFFFFFFF)
    text = PyUnicode_AsUTF8AndSize(get(items), buffer + TEXT_SIZE) if port >= 0 and scope >= 0 else 0
    if text == 0:
        PyErr_Clear()
        return 0
    if libc_strlen(text) != get(buffer + TEXT_SIZE):  # there is a NUL in it
        return 0
    put(buffer + ADDRESS, family | (port >> 8) << 16 | (port & 0xFF) << 24)
    put(buffer + ADDRESS + 8, 0)
    put(buffer + ADDRESS + 24, scope)
    if libc_inet_pton(family, text, buffer + ADDRESS + (8 if six else 4)) != 1:
        return 0
    return 28 if six else 16


@inlined
def small(number: int, most: int) -> int:
    """The value of an int from 0 to `most`; -1 for anything else."""
    if not is_a(number, TYPE_LONG):
        return -1
    value = PyLong_AsLongLong(number)
    if value == -1:
        PyErr_Clear()  # too large, perhaps
    return value if 0 <= value <= most else -1
