"""Bounds checks for kernels that have no array indices: each address that one touches lies inside memory that is alive.

Numba's own (``NUMBA_BOUNDSCHECK=1``) checks the indices of arrays, and kernels have none
(tests/kernels/test_structure.py). What they have is addresses, and every access is one of atomics.py's verbs; so,
with kernels run as plain Python, the verbs look each address up before they use it.

Known are the arrays that a state is made of (forgotten when the array dies), the memory that its kernels take
(forgotten when they give it back, so that a slab that was released is out of bounds too), and the objects that pass
through a kernel's hands: its arguments, what it makes, and what it takes a reference of, until it gives up the last.
What no kernel has been seen to hold is asked of the collector, and remembered; so of Python's objects this says where
they begin and end, and not always whether they live.

A pytest plugin: ``NUMBA_DISABLE_JIT=1 pytest -p tests.support.checked tests/proofs`` (``make test-checked``). Not for
tests that queue objects by the ten thousand: it knows the last 10,000, and to ask the collector takes milliseconds.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import gc
import os
import sys
import threading
import traceback
import types
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nbloop.readiness
from nbloop.aio import handles as aio_handles
from nbloop.aio import transports as aio_transports
from nbloop.kernels.base import atomics, capi, kernel
from nbloop.kernels.base.interpreter import ARRAY_DATA, LIST_ITEMS, TUPLE_ITEMS
from nbloop.kernels.build import object_cache
from nbloop.kernels.methods import asyncio_methods, signal_handler
from nbloop.kernels.promises import classes
from nbloop.kernels.state import state

MAKERS = (
    *("PyTuple_New", "PySequence_List", "PyList_New", "PyType_GenericAlloc"),
    *("PySequence_GetSlice", "PyObject_GetIter", "PyIter_Next", "PyList_GetItemRef"),
    *("PyObject_CallNoArgs", "PyObject_CallOneArg", "PyObject_Vectorcall"),
    *("PyObject_GetAttr", "PyContext_CopyCurrent"),
)
PAGE = 4096
OBJECTS_MOST = 10_000  # then those from before are forgotten, and looked up again
SIZE_MOST = 1 << 32
WIDTHS = dict.fromkeys(
    ("get", "put", "load", "store", "load_sc", "store_sc", "fetch_add", "exchange", "compare_and_swap"), 8
) | {"get_half": 4, "put_half": 4}


class OutOfBounds(AssertionError):
    """A kernel was about to touch memory that belongs to nothing."""


class Regions:
    """Pieces of memory that do not overlap, to find whether an address is in one of them."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, size: int) -> None:
        """Forget whatever was known to be there."""
        low = bisect.bisect_right(self.starts, start)
        if low and self.ends[low - 1] > start:
            low -= 1
        high = bisect.bisect_left(self.starts, start + size)
        self.starts[low:high], self.ends[low:high] = [start], [start + size]

    def remove(self, start: int) -> None:
        at = bisect.bisect_left(self.starts, start)
        if at < len(self.starts) and self.starts[at] == start:
            del self.starts[at], self.ends[at]

    def holds(self, address: int, width: int) -> bool:
        at = bisect.bisect_right(self.starts, address) - 1
        return at >= 0 and address + width <= self.ends[at]

    def near(self, address: int) -> str:
        at = bisect.bisect_right(self.starts, address) - 1
        if at < 0:
            return "below all that is known"
        return f"{address - self.starts[at]} bytes into {self.ends[at] - self.starts[at]}"


def _single() -> int:
    """What `sys.getrefcount` says in `_last` of an object with one reference."""
    made = object()
    return _count(id(made))


def _count(address: int) -> int:
    return sys.getrefcount(ctypes.cast(address, ctypes.py_object).value)


SINGLE = _single()


def _size(what: object) -> int:
    """How many bytes an object has. What a generator has where others keep their length is an address."""
    size = tuple.__sizeof__(what) if isinstance(what, tuple) else object.__sizeof__(what)
    return size if size < SIZE_MOST else type(what).__basicsize__


class Checker:
    """The memory that is alive, and how many looks were taken at it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.arrays, self.objects = Regions(), Regions()
        self.older = Regions()  # a kernel still has those in hand that it had when `objects` was full
        # Finalisers only note: one may come in the middle of anything. What comes late, for a view that died before the
        # owner of its memory, must not make the checker forget what is in that place by then: hence the marks.
        self.gone: deque[tuple[int, object]] = deque()
        self.marks: dict[int, object] = {}
        self.looks = 0
        self.problems: list[str] = []

    def array(self, array: Any) -> Any:
        """Its memory, and where the array says so itself. It lives as long as the array that owns it."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base  # of a State the collector forgets weak references before the finaliser has run
        with self.lock:
            self.settle()
            for start, size in ((array.ctypes.data, array.nbytes), (id(array) + ARRAY_DATA, 8)):
                self.arrays.add(start, size)
                mark = self.marks[start] = object()
                weakref.finalize(owner, self.gone.append, (start, mark)).atexit = False
        return array

    def words(self, start: int, size: int) -> None:
        with self.lock:
            self.arrays.add(start, size)

    def took(self, start: int, size: int) -> int:
        if start not in (0, -1):
            self.words(start, size)
        return start

    def forget(self, start: int) -> None:
        with self.lock:
            self.arrays.remove(start)

    def settle(self) -> None:
        while self.gone:
            start, mark = self.gone.popleft()
            if self.marks.get(start) is mark:
                del self.marks[start]
                self.arrays.remove(start)

    @staticmethod
    def items(address: int) -> int:
        """Where a list's are."""
        return ctypes.c_ssize_t.from_address(address + LIST_ITEMS).value

    def object(self, address: int) -> int:
        """A live object's memory; that of its type, of a list's items, and of a method's function and its code too."""
        if address == 0:
            return 0
        what = ctypes.cast(address, ctypes.py_object).value
        with self.lock:
            if len(self.objects.starts) > OBJECTS_MOST:
                self.older, self.objects = self.objects, Regions()
            self.objects.add(address, _size(what))
            self.objects.add(id(type(what)), _size(type(what)))  # whether it can be called
            if isinstance(what, list) and what:
                self.objects.add(self.items(address), 8 * len(what))
        if isinstance(what, types.MethodType):
            self.object(id(what.__func__))
        elif isinstance(what, types.FunctionType):
            self.object(id(what.__code__))  # whether it is a coroutine's
        return address

    def made(self, address: int) -> int:
        """An object that a kernel has made, and what it holds: of strings and numbers the collector knows nothing."""
        if self.object(address):
            what = ctypes.cast(address, ctypes.py_object).value
            if isinstance(what, (tuple, list)):
                for at in range(len(what)):
                    start = address + TUPLE_ITEMS if isinstance(what, tuple) else self.items(address)
                    self.object(ctypes.c_ssize_t.from_address(start + 8 * at).value)
        return address

    def given(self, address: int) -> None:
        """An argument."""
        if address:
            what = ctypes.cast(address, ctypes.py_object).value
            with self.lock:
                self.settle()  # or what another array, gone from the same place, has left would be taken for this one's
            if not isinstance(what, np.ndarray):
                self.object(address)
                if isinstance(what, list):  # of arrays that no collector tracks: the words of a loop's handles
                    for one in what:
                        if isinstance(one, np.ndarray):
                            self.given(id(one))
            elif not (self.arrays.holds(address + ARRAY_DATA, 8) and self.arrays.holds(what.ctypes.data, what.nbytes)):
                self.array(what)  # both, because its place may have been another's, which has died since

    def released(self, address: int) -> None:
        """A reference is about to be given up."""
        with self.lock:
            if self._holds_object(address, 8) and _count(address) <= SINGLE:
                self.objects.remove(address)
                self.older.remove(address)

    def _holds_object(self, address: int, width: int) -> bool:
        return self.objects.holds(address, width) or self.older.holds(address, width)

    def check(self, verb: str, address: int, width: int) -> None:
        with self.lock:
            self.looks += 1
            self.settle()
            if address % width == 0 and (self.arrays.holds(address, width) or self._holds_object(address, width)):
                return
            for one in gc.get_objects():
                if id(one) <= address < id(one) + _size(one):
                    self.object(id(one))
                    return
            where = f"arrays: {self.arrays.near(address)}; objects: {self.objects.near(address)}"
        problem = f"{verb}({address:#x}): {where}"
        self.problems.append(f"{problem}\n{''.join(traceback.format_stack())}")
        os.write(sys.__stderr__.fileno(), self.problems[-1].encode())  # a callback may swallow the error
        raise OutOfBounds(problem)


checker = Checker()


def _checking(name: str, verb: Callable[..., Any], width: int) -> Callable[..., Any]:
    @functools.wraps(verb)
    def checking(address: int, *values: int) -> Any:
        checker.check(name, address, width)
        return verb(address, *values)

    return checking


def _making(function: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(function)
    def making(*values: int) -> int:
        return checker.made(function(*values))

    return making


def _holding(function: Callable[..., int]) -> Callable[..., int]:
    def hold(address: int) -> int:
        checker.object(address)
        return function(address)

    return hold


def _releasing(function: Callable[..., int]) -> Callable[..., int]:
    def release(address: int) -> int:
        checker.released(address)
        return function(address)

    return release


def _allocating(malloc: Callable[[int], int]) -> Callable[[int], int]:
    return lambda size: checker.took(malloc(size), size)


def _freeing(free: Callable[[int], int]) -> Callable[[int], int]:
    def freeing(address: int) -> int:
        checker.forget(address)
        return free(address)

    return freeing


def _entering(of: kernel.Kernel) -> None:
    """A kernel's arguments are alive while it runs."""
    function = of.function

    @functools.wraps(function)
    def enter(instance: int, *arguments: int) -> Any:
        checker.given(instance)
        if of.arity not in (kernel.MANY, kernel.KEYWORDS):
            checker.given(arguments[0])
            return function(instance, *arguments)
        array, count, *names = arguments
        if names and names[0]:
            checker.object(names[0])
            count += len(ctypes.cast(names[0], ctypes.py_object).value)
        for at in range(count):
            checker.given(ctypes.c_ssize_t.from_address(array + 8 * at).value)
        checker.words(array, 8 * count)
        try:
            return function(instance, *arguments)
        finally:
            checker.forget(array)

    of.function = enter  # type: ignore[assignment]


def _array(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: checker.array(make())


def replace(original: Any, other: Any) -> None:
    """Wherever a kernel's module knows the one, it knows the other."""
    for name, module in list(sys.modules.items()):
        if name.startswith("nbloop.") and module is not atomics and module is not capi:
            for word, value in list(vars(module).items()):
                if value is original:
                    setattr(module, word, other)


def install() -> None:
    """From now on every access is checked; kernels must be plain Python, and no loop be there yet."""
    if object_cache.status.mode != "interpreted":
        raise pytest.UsageError("addresses can be checked only with NUMBA_DISABLE_JIT=1")
    for name, width in WIDTHS.items():
        replace(getattr(atomics, name), _checking(name, getattr(atomics, name), width))
    for name in MAKERS:
        replace(getattr(capi, name), _making(getattr(capi, name)))
    replace(capi.Py_IncRef, _holding(capi.Py_IncRef))
    replace(capi.Py_DecRef, _releasing(capi.Py_DecRef))
    for one in kernel.kernels.values():
        if one.arity > kernel.SIGNAL:
            _entering(one)
    checker.words(capi.errno_location(), 4)
    checker.words(signal_handler.signal_words(), 8 * len(signal_handler.INITIAL))
    checker.words(asyncio_methods.aio_shared_word(), 8)
    checker.array(aio_handles._WORDS)

    take, give = capi.libc_mmap, capi.libc_munmap

    def taking(address: int, size: int, *how: int) -> int:
        return checker.took(take(address, size + PAGE, *how), size)  # a guard page, as for tables

    def giving(address: int, size: int) -> int:
        checker.forget(address)
        return give(address, size + PAGE)

    append = capi.PyList_Append

    def appending(address: int, item: int) -> int:
        status = append(address, item)
        checker.made(address)  # its items may have moved
        return status

    replace(append, appending)
    replace(take, taking)
    replace(give, giving)
    for malloc, free in (capi.PyMem_RawMalloc, capi.PyMem_RawFree), (capi.PyMem_Malloc, capi.PyMem_Free):
        replace(malloc, _allocating(malloc))
        replace(free, _freeing(free))

    address, make = state._address, state.make_state
    for made in (aio_handles.new_words, aio_transports.new_buffer):
        replace(made, _array(made))
    view, poller = classes.make_view, nbloop.readiness.FdTable.open_poller
    state._address = lambda array: address(checker.array(array))

    # Tables lie wall to wall: each gets a page before it that is nobody's, so that an overrun does not end in another.
    for kind in (state.LoopWords, state.HandleWords):
        kind.lay_out(PAGE)

    def made(kind: Any, *how: Any, **more: Any) -> Any:
        words = checker.array(make(kind, *how, **more))
        for at, start in kind.starts:
            checker.array(np.ndarray((kind.tables[at],), np.int64, buffer=words.base, offset=start))
        return words

    state.make_state = made

    def opening(watches: Any) -> Any:
        made = poller(watches)
        for one in watches._state.keep:
            if isinstance(one, np.ndarray):
                checker.array(one)
        return made

    replace(view, lambda *arguments: checker.array(view(*arguments)))
    nbloop.readiness.FdTable.open_poller = opening  # type: ignore[method-assign]
    checker.array(nbloop.readiness._MASK_ADDRESSES)
    result_slots = classes.ResultSlots.__init__

    def counting(self: Any, *arguments: Any) -> None:
        result_slots(self, *arguments)
        checker.array(self._counts)

    classes.ResultSlots.__init__ = counting  # type: ignore[method-assign]


def pytest_configure() -> None:
    """The plugin."""
    import nbloop.js  # noqa: F401 - what knows a verb is there before it is replaced

    install()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{checker.looks:,} addresses checked, {len(checker.problems)} out of bounds")
    for problem in checker.problems:  # pytest shows what a test wrote only if the test failed
        terminalreporter.write_line(problem)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Even an error that was raised where nobody saw it."""
    if checker.problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
