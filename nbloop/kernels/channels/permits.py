"""The word of a queue between loops: how many items it has promised, how many it holds, and whether there are waiters.

Problem: `aio.Queue` has several producers, several consumers, and perhaps a size. Without waiters, a lock around an
append is most of what an item costs: 1.8 µs with it, 0.4 without, from a thread to a loop. Idea: an item needs a
*place* before it is appended and a *permit* before it is taken. One word counts both, so a compare-and-swap decides
whether there is room, or whether there is an item. The items themselves lie in a `collections.deque`, whose appends and
pops are atomic, and which the collector knows.

The same word says that there are waiters (`PERMITS_BUSY`) or that the queue is shut. With either, every call goes to
the waiters' lock in Python. So the word also decides, for each call, whether it comes before or after a caller that
begins to wait: nothing is lost between "there is no item" and "I wait".

Invariants. ``items in the deque >= available + permits that were taken and not used yet``: a permit is given after the
append, so a call that has one finds an item. ``places <= limit``: a place is taken before the append, and given back
after the pop. Only the holder of the waiters' lock changes the flags. A call that finds a flag when it gives a permit
or a place reports this (`due`), and its caller then passes it to the waiters.

It loses when a caller waits for each item: then an item takes the lock, as it did before.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, fetch_add, get, load
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyErr_GetRaisedException,
    PyErr_SetRaisedException,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyObject_CallNoArgs,
    PyObject_CallOneArg,
)
from ..base.kernel import NOARGS, ONE, data, helper, kernel
from ..base.layout import (
    PERMITS,
    PERMITS_AVAILABLE,
    PERMITS_BUSY,
    PERMITS_MOST,
    PERMITS_PLACE,
    PERMITS_SHUT,
)

FLAGS = PERMITS_BUSY | PERMITS_SHUT


@helper
def available_of(word: int) -> int:
    """How many items may be taken."""
    return word // PERMITS_AVAILABLE & PERMITS_MOST


@helper
def place_take(permits: int, refusing: int) -> bool:
    """Take a place, unless the queue is full or has a flag of `refusing`. Any thread; lock-free."""
    while True:
        word = load(permits + PERMITS.WORD)
        if word & refusing != 0 or word // PERMITS_PLACE >= get(permits + PERMITS.LIMIT):
            return False
        if compare_and_swap(permits + PERMITS.WORD, word, word + PERMITS_PLACE):
            return True


@helper
def permit_take(permits: int, refusing: int) -> bool:
    """Take a permit, unless there is none or the queue has a flag of `refusing`. Any thread; lock-free."""
    while True:
        word = load(permits + PERMITS.WORD)
        if word & refusing != 0 or available_of(word) == 0:
            return False
        if compare_and_swap(permits + PERMITS.WORD, word, word - PERMITS_AVAILABLE):
            return True


@helper
def put_item(permits: int, item: int, refusing: int) -> int:
    """Append an item. None; True if waiters must be served now; False if nothing was done; 0 with an exception."""
    if not place_take(permits, refusing):
        return get(permits + PERMITS.REFUSED)
    appended = PyObject_CallOneArg(get(permits + PERMITS.APPEND), item)
    if appended == 0:  # for lack of memory; the next call serves a putter that waits for the place
        fetch_add(permits + PERMITS.WORD, -PERMITS_PLACE)
        return 0
    Py_DecRef(appended)
    word = fetch_add(permits + PERMITS.WORD, PERMITS_AVAILABLE)
    return get(permits + PERMITS.DUE) if word & FLAGS != 0 else get(permits + PERMITS.NONE)


@helper
def put_back(permits: int, item: int) -> None:
    """Put a popped item back to the front, into the room that it has just left. An exception that is set stays."""
    error = PyErr_GetRaisedException()
    done = PyObject_CallOneArg(get(permits + PERMITS.APPENDLEFT), item)
    if done != 0:
        Py_DecRef(done)
    Py_DecRef(item)
    PyErr_SetRaisedException(error)


@helper
def take_item(permits: int, refusing: int) -> int:
    """Pop an item. Returns the item, the empty `Due` if nothing was done, or 0 with an exception, and then nothing was
    taken. If a flag of `refusing` is set meanwhile, it returns a `Due` that holds the item: waiters must be served now.
    """
    if not permit_take(permits, refusing):
        nothing = get(permits + PERMITS.NOTHING)
        Py_IncRef(nothing)
        return nothing
    item = PyObject_CallNoArgs(get(permits + PERMITS.POPLEFT))
    due = 0
    while item != 0:
        word = load(permits + PERMITS.WORD)
        if word & refusing != 0 and due == 0:
            due = PyObject_CallOneArg(get(permits + PERMITS.DUE_TYPE), item)
            if due == 0:  # for lack of memory
                put_back(permits, item)
                break
        if compare_and_swap(permits + PERMITS.WORD, word, word - PERMITS_PLACE):
            if due == 0:
                return item
            Py_DecRef(item)  # the `Due` has its own reference
            return due
    fetch_add(permits + PERMITS.WORD, PERMITS_AVAILABLE)
    return 0


@kernel(ONE)
def permits_put(self: int, item: int) -> int:
    """`put_item`, while there are no waiters. Any thread."""
    return put_item(data(self), item, FLAGS)


@kernel(ONE)
def permits_put_held(self: int, item: int) -> int:
    """`put_item`, for the holder of the waiters' lock."""
    return put_item(data(self), item, PERMITS_SHUT)


@kernel(NOARGS)
def permits_take(self: int, _nothing: int) -> int:
    """`take_item`, while there are no waiters. Any thread."""
    return take_item(data(self), FLAGS)


@kernel(NOARGS)
def permits_take_held(self: int, _nothing: int) -> int:
    """`take_item`, for the holder of the waiters' lock."""
    return take_item(data(self), 0)


@kernel(NOARGS)
def permits_hold(self: int, _nothing: int) -> int:
    """Mark the word busy, and return what it is now. The caller has just taken the waiters' lock."""
    word = data(self) + PERMITS.WORD
    while True:
        old = load(word)
        if old & PERMITS_BUSY != 0 or compare_and_swap(word, old, old | PERMITS_BUSY):
            return PyLong_FromLongLong(load(word))


@kernel(ONE)
def permits_change(self: int, change: int) -> int:
    """Add to the word, and return what it is now. With 0, read it: any thread. Otherwise the caller
    holds the waiters' lock."""
    by = PyLong_AsLongLong(change)
    return PyLong_FromLongLong(fetch_add(data(self) + PERMITS.WORD, by) + by)
