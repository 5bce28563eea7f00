"""Channels for compiled code: a user's `@numba.njit` functions put records, and handle batches, without Python.

Problem: a compiled function that puts records in a loop would have to go through the interpreter for each, and
`on_batch` costs a Python call however small its batch is. Idea: the kernels' library has a C function that puts records
(`channel_put_native`). Numba learns here what `ring.put(...)` of a `NativeRing` means: the record is written on the
caller's stack, and that function copies it. For the other direction, a handler is compiled to a C function that takes
the address and the number of the records; the turn calls it.

Both have twins: where kernels run as plain Python, the same calls do the same. `user_code.py`, which imports Numba, is
imported only if one of them is used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from queue import ShutDown
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import ForkedLoopError, LoopOverloadedError, LoopTerminatedError, ReentrantWaitError
from .kernels.base import capi
from .kernels.build import object_cache
from .kernels.channels.delivery import Entry
from .options import check_callable
from .unique import Unique

type Records = npt.NDArray[Any]

# The errors of compiled code, which has numbers for them (layout.NATIVE_ERROR - index).
REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (ValueError, "records must be at most as many as the channel holds"),
    (LoopTerminatedError, "the channel takes no more records: its loop has terminated or is about to"),
    (LoopOverloadedError, "the channel is full: as many records wait as it holds; nothing was stored"),
    (TimeoutError, "the channel has had no room within its timeout; nothing was stored"),
    (ReentrantWaitError, "the channel is full, and only the thread that was to wait for room can make some"),
    (ShutDown, "the channel has been shut down"),
    (ForkedLoopError, "the channel belongs to the parent of this process"),
)


def _interpreted() -> bool:
    return object_cache.status.mode == "interpreted"


def check_numba(what: str) -> None:
    """Raise ImportError if Numba is needed and is not installed."""
    if not _interpreted() and find_spec("numba") is None:
        raise ImportError(f"{what} needs numba: pip install 'nbloop[jit]'", name="numba")


class Entrance(Protocol):
    """A channel, or one of its producers."""

    name: str
    dtype: np.dtype[Any]

    @property
    def _state(self) -> npt.NDArray[np.int64]:
        """The words of its ring."""

    def put(self, *values: Any) -> bool:
        """Put one record."""

    def put_many(self, records: Records, /) -> int:
        """Put the records of an array."""


class NativeRing(Unique):
    """A channel or one of its producers, for functions that Numba compiles: made by `Channel.native`.

    They take it as an argument, and may only call its `put` and `put_many`. It keeps the channel alive.

    >>> import nbloop
    >>> got = []
    >>> loop = nbloop.Loop(auto_exit=True)
    >>> channel = loop.channel([("price", "f8")], lambda records: got.extend(records["price"]))
    >>> ring = channel.native
    >>> ring.put(1.5), ring.put_many(np.zeros(1, channel.dtype))
    (True, 1)
    >>> loop.run()
    >>> [float(price) for price in got]
    [1.5, 0.0]
    """

    __slots__ = ("_numba_type_", "address", "entrance")

    def __init__(self, entrance: Entrance) -> None:
        check_numba(f"{entrance.name}.native")
        self.entrance = entrance
        #: The address of the ring's words, for compiled code.
        self.address = int(entrance._state.ctypes.data)
        if not _interpreted():
            from .user_code import ring_type

            self._numba_type_ = ring_type(entrance.dtype, REFUSALS)

    def put(self, *values: Any) -> bool:
        """Put one record: a value for each field, in the order of the dtype. True; False if it was dropped.

        It works like `Channel.put`, in Python and in compiled functions. There the fields must be plain native numbers,
        and the values floats, ints and bools; nothing else compiles. A value out of range is an OverflowError that
        names the field. It also works with or without ``nogil=True``, and in threads that Python does not know. An
        error has a message, but not the cause that `Channel.put` gives it. If a signal handler raises while this waits
        for room, the exception leaves the compiled function, which must not have a `try` around this call.

        Lock-free, unless it waits or drops old records; it attaches to the interpreter only for that, for an error, and
        to wake an idle channel. O(1).
        """
        return self.entrance.put(*values)

    def put_many(self, records: Records, /) -> int:
        """Put the records of an array of the channel's dtype, all or none, with nothing between them; return how many.

        It works like `Channel.put_many`, in Python and in compiled functions. There the array must be C-contiguous. As
        thread-safe as `put`. O(records), a copy.
        """
        return self.entrance.put_many(records)

    def __repr__(self) -> str:
        return f"<nbloop.NativeRing of {self.entrance.name}>"


class NativeHandler(Unique):
    """Made by `native`: an `on_batch` that a channel calls without Python.

    Immutable; any thread may hand it to any number of channels. Called from Python, it does what `function` does,
    errors included. O(1) apart from that.

    >>> total = np.zeros(1)
    >>> def add(records, total):
    ...     total += records["price"].sum()
    >>> handler = native(add, total)
    >>> handler(np.ones(3, [("price", "f8")]))
    >>> print(total[0])
    3.0
    """

    def __init__(self, function: Callable[..., object], arrays: tuple[Records, ...]) -> None:
        check_callable("function", function)
        for array in arrays:
            if not isinstance(array, np.ndarray):
                raise TypeError(f"arrays must be numpy arrays, which the function may write, not {array!r:.200}")
        check_numba("native()")
        self.function = function
        self.arrays = arrays
        self._entries: dict[np.dtype[Any], tuple[int, Any]] = {}

    def __call__(self, records: Records) -> object:
        """``function(records, *arrays)``, as Python calls it."""
        return self.function(records, *self.arrays)

    def _entry(self, dtype: np.dtype[Any]) -> int:
        """The address of a C function, ``int(address, count)``, for records of this dtype. This object keeps it."""
        found = self._entries.get(dtype)
        if found is None:
            if _interpreted():
                function = Entry(lambda address, count: self._interpret(dtype, address, count))
                made = ctypes.cast(function, ctypes.c_void_p).value or 0, function
            else:
                from .user_code import compile_handler

                made = compile_handler(self.function, dtype, self.arrays)
            found = self._entries.setdefault(dtype, made)
        return found[0]

    def _interpret(self, dtype: np.dtype[Any], address: int, count: int) -> int:
        """What the compiled entry does."""
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        records = np.frombuffer(memoryview(memory).toreadonly(), dtype)
        try:
            self(records)
        except BaseException as error:
            capi.pending.error = error
            return -1
        return 0

    def __repr__(self) -> str:
        return f"<nbloop.NativeHandler of {self.function!r}>"


def native(function: Callable[..., object], /, *arrays: Records) -> NativeHandler:
    """Make an `on_batch` for `Loop.channel` that the loop calls as ``function(records, *arrays)``, without the
    interpreter. Numba (extra ``nbloop[jit]``) compiles it, if it is not compiled already.

    `records` is a read-only array in the channel's ring, valid until the function returns: the function must copy what
    it keeps into one of `arrays`. These are its memory: numpy arrays that it may write and that other threads may read
    meanwhile. Its return value is ignored; an exception goes to `on_error`, as from any callback.

    It runs on the loop's thread, attached to the interpreter: a collection on another thread waits for it, so batches
    should take less than a millisecond. Compiling takes about a second, once for each dtype, when the channel is made;
    Numba never frees what it has compiled. O(1) apart from compiling. Any thread.

    Raises TypeError if `function` is not callable or one of `arrays` is not a numpy array, and ImportError without
    Numba. `Loop.channel` raises TypeError for a function that cannot be compiled.

    >>> import nbloop
    >>> def add(records, total):
    ...     for record in records:
    ...         total[0] += record["price"] * record["size"]
    >>> loop, total = nbloop.Loop(auto_exit=True), np.zeros(1)
    >>> ticks = loop.channel([("price", "f8"), ("size", "i4")], native(add, total))
    >>> ticks.put(100.5, 2)
    True
    >>> loop.run()
    >>> print(total[0])
    201.0
    """
    return NativeHandler(function, arrays)
