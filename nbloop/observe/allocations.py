"""How much each thread allocates: blocks and bytes since counting began, of objects and their buffers.

Problem: tracemalloc shows what is held, not what came and went. Idea: while counting is on, kernels stand in front of
the interpreter's allocators, which costs some 10 ns a block (`kernels/observe/allocations.py`). The profiler weighs
stacks by these counts, and ``python -m nbloop bench`` divides them by operations.

Not counted: objects that the interpreter takes from its free lists, and memory that extension modules fetch from the
system, numpy's arrays among it. A block that changes its size counts as a new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..kernels.base import layout
from ..kernels.base.interpreter import function, keep_for_ever
from ..kernels.observe import allocations as kernels
from ..lock import ModuleLock


class Allocated(NamedTuple):
    """What a thread has allocated since counting first began."""

    blocks: int
    bytes: int


class _Allocator(ctypes.Structure):
    """``PyMemAllocatorEx``."""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("malloc", ctypes.c_void_p),
        ("calloc", ctypes.c_void_p),
        ("realloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


_get = function("PyMem_GetAllocator", None, ctypes.c_int, ctypes.POINTER(_Allocator))
_set = function("PyMem_SetAllocator", None, ctypes.c_int, ctypes.POINTER(_Allocator))
_OBJECTS, _BUFFERS = 2, 1  # PYMEM_DOMAIN_OBJ, PYMEM_DOMAIN_MEM
_HOOKS = {
    _OBJECTS: (kernels.object_malloc, kernels.object_calloc, kernels.object_realloc),
    _BUFFERS: (kernels.buffer_malloc, kernels.buffer_calloc, kernels.buffer_realloc),
}
_lock = ModuleLock()
_counting = 0
_before: dict[int, _Allocator] = {}  # the allocators that ours replaced, by domain
_table: npt.NDArray[np.int64] | None = None


def supported() -> bool:
    """Whether this process can count: only if its kernels are compiled."""
    return bool(kernels.object_malloc.address)


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Count while the ``with`` block runs. Several blocks may count at the same time, on any threads.
    NotImplementedError if the kernels are not compiled.
    """
    if not supported():
        raise NotImplementedError("allocations are counted by compiled kernels, and these are not compiled")
    _change(1)
    try:
        yield
    finally:
        _change(-1)


def _change(by: int) -> None:
    global _counting, _table
    with _lock:
        if _table is None:
            _table = keep_for_ever(layout.table((1 + kernels.THREADS) * kernels.LINE))
            word = kernels.allocation_word_address.bind(_table)()
            ctypes.c_ssize_t.from_address(word).value = _table.ctypes.data
        if _counting == 0:
            for domain in _HOOKS:
                _install(domain)
        _counting += by
        if _counting == 0:
            for domain in _HOOKS:
                _remove(domain)


def _install(domain: int) -> None:
    if domain in _before:  # other code put an allocator in front of ours, which is still behind it
        return
    found = _Allocator()
    _get(domain, found)
    assert _table is not None
    at = (kernels.OTHERS if domain == _BUFFERS else 0) // 8
    _table[at : at + 3] = found.malloc, found.calloc, found.realloc
    malloc, calloc, realloc = (hook.address for hook in _HOOKS[domain])
    _before[domain] = found
    _set(domain, _Allocator(found.context, malloc, calloc, realloc, found.free))


def _remove(domain: int) -> None:
    """Restore the earlier allocator, unless other code has put one in front of ours: then ours counts on behind it."""
    now = _Allocator()
    _get(domain, now)
    if now.malloc == _HOOKS[domain][0].address:
        _set(domain, _before.pop(domain))


def allocated() -> dict[int, Allocated]:
    """What each thread, by `threading.get_ident`, has allocated while somebody counted. Any thread. 20 µs.

    Identifiers are reused: a new thread goes on with the figures of one that has ended.
    """
    if _table is None:
        return {}
    lines: Any = _table.reshape(-1, kernels.LINE)[1:]
    used = lines[lines[:, 0] != 0]
    return {thread: Allocated(blocks, size) for thread, blocks, size in used[:, :3].tolist()}


def allocated_here() -> Allocated:
    """What the calling thread has."""
    return allocated().get(threading.get_ident(), Allocated(0, 0))
