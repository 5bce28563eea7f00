"""What a stream (stream.py) and a datagram socket (datagram.py) have in common: their first words, and who receives.

* ``__slots__`` of the object are the words that the kernels work on. `_made` is one tuple, set once. It refers to the
  transport weakly, so that the object makes no cycle with it, and begins with the same four items for both.
* `target` is (protocol, context, ...), or None while Python is to read. The kernel swaps it out for as long as it uses
  it, and back in unless another was set meanwhile, so that a thread which sets one never frees what is in use.
* Each call asks the socket for its descriptor. A socket that was closed or detached behind its transport has none, and
  the call fails with EBADF, as asyncio's does; a number kept here could denote another file by then.
* All sockets of a loop receive into one array. No Python runs between receiving and making the object from it.
"""

from __future__ import annotations

from ...unique import Unique
from ..base.atomics import compare_and_swap, exchange, get, get_half, load, put
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyErr_BadArgument,
    PyLong_AsLongLong,
    PyObject_CallOneArg,
    PyTuple_New,
)
from ..base.interpreter import SOCKET_DESCRIPTOR, TUPLE_ITEMS, hidden_slots, slot_offsets
from ..base.kernel import ONE, apart, helper, inlined, kernel
from ..base.layout import ERROR, READ, WRITE, Fields

RECEIVED_MOST = 256 * 1024  # asyncio's `max_size`
# In a loop's array, behind what is received: how many bytes a stream received last, where the system writes how many
# are available, and where datagram.py has an address and its text.
LAST_SIZE, AVAILABLE = RECEIVED_MOST, RECEIVED_MOST + 8
ADDRESS = RECEIVED_MOST + 16
BUFFER_SIZE = ADDRESS + 256


class SocketWords(Unique):
    """The words that both kinds of socket have."""

    __slots__ = ("_clear", "_made", "_target")
    _clear: bool | None


SOCKET = Fields(
    "SOCKET",
    {
        slot.removeprefix("_").upper(): at
        for slot, at in zip(SocketWords.__slots__, slot_offsets(SocketWords), strict=True)
    },
)
MADE_SLOT, _ = hidden_slots(SocketWords, "_made", "_target")
# The first items of `_made`: None; a weak reference of the transport; its socket; the array to receive into.
MADE_ITEMS = ("none", "owner", "socket", "buffer")


def made_fields(*more: str) -> Fields:
    """Where the items of `_made` are: those of all sockets, then those of a kind."""
    return Fields("MADE", {name.upper(): TUPLE_ITEMS + 8 * at for at, name in enumerate((*MADE_ITEMS, *more))})


MADE = made_fields()


@helper
def made_of(self: int) -> int:
    """The tuple `_made`; 0 with an exception set if only `__new__` was called, or the collector has cleared it."""
    made = load(self + SOCKET.MADE)
    if made == 0:
        PyErr_BadArgument()
    return made


@inlined
def descriptor_of(made: int) -> int:
    """The descriptor that the socket has now, as the 32 bits of a C int: all ones if it has none any more."""
    return get_half(get(made + MADE.SOCKET) + SOCKET_DESCRIPTOR)


@inlined
def target_take(self: int, events: int, none: int) -> int:
    """Take the target out, for `target_give_back`. 0 if Python must read: the target says so, or the events say more
    than that the socket can be read. Loop thread.
    """
    if PyLong_AsLongLong(events) & (READ | WRITE | ERROR) != READ:
        return 0
    target = exchange(self + SOCKET.TARGET, 0)
    if target == none:
        compare_and_swap(self + SOCKET.TARGET, 0, none)
        return 0
    return target


@inlined
def target_give_back(self: int, target: int) -> None:
    """Put the target back, unless another one was set meanwhile. Loop thread."""
    if not compare_and_swap(self + SOCKET.TARGET, 0, target):
        Py_DecRef(target)


@kernel(ONE)
def socket_aim(self: int, target: int) -> int:
    """From now on, what is received is for this `target`, or for Python if it is None. Any thread."""
    made = made_of(self)
    if made == 0:
        return 0
    Py_IncRef(target)
    before = exchange(self + SOCKET.TARGET, target)
    if before != 0:
        Py_DecRef(before)
    return get(made + MADE.NONE)


@apart
def hand_over(made: int, function: int, item: int, last: int) -> int:
    """Call a Python function with a tuple of the owner, an `item` unless that is 0, and `last`, whose reference this
    consumes. If `last` is 0, an exception is set.
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
