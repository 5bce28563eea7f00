"""Memory that runs out when a test says so, for compiled kernels as for plain ones.

Kernels take memory from functions that they know by name (kernels/memory/system.py), and here their table of
C functions gets wrappers instead. Only for a separate process: the wrappers are Python, which then runs in the middle
of a structure.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from typing import Any

from nbloop.kernels.base import capi
from nbloop.kernels.base.atomics import put
from nbloop.kernels.build import object_cache
from nbloop.kernels.memory import system

WORD, INT = ctypes.c_ssize_t, ctypes.c_int
TAKERS: dict[str, tuple[Any, list[Any], int]] = {  # where it is, its arguments, and what it returns if it fails
    "mmap": (ctypes.CDLL(None), [WORD, WORD, INT, INT, INT, WORD], -1),
    "PyMem_RawMalloc": (ctypes.pythonapi, [WORD], 0),
}
left = sys.maxsize  # pieces that can be taken
kept: list[Any] = []  # the table has addresses only


def _in_front(name: str) -> Callable[..., int]:
    library, arguments, failure = TAKERS[name]
    real = ctypes.PYFUNCTYPE(WORD, *arguments)((name, library))

    def take(*values: int) -> int:
        global left
        left -= 1
        return failure if left < 0 else real(*values)

    return take


@contextlib.contextmanager
def failing_after(count: int) -> Iterator[None]:
    """From here on that many pieces can be taken, and none after them."""
    global left
    left = count
    try:
        yield
    finally:
        left = sys.maxsize


def _install() -> None:
    if object_cache.status.mode == "interpreted":
        system.libc_mmap, system.PyMem_RawMalloc = _in_front("mmap"), _in_front("PyMem_RawMalloc")
        return
    for name, (_library, arguments, _failure) in TAKERS.items():
        kept.append(ctypes.PYFUNCTYPE(WORD, *arguments)(_in_front(name)))
        at = object_cache.status.imports + 8 * list(capi.externals).index(name)
        put(at, ctypes.cast(kept[-1], ctypes.c_void_p).value or 0)


_install()
