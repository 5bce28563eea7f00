"""Where kernels get memory: from the system and from the interpreter's raw allocator, and never through Python.

Problem: a structure grows in the middle of an operation, when its words do not agree yet. To ask Python for an array
there means that Python code can run there: ``mmap.mmap`` raises an audit event, numpy makes objects, whose memory a
debugger's allocator watches, and a `KeyboardInterrupt` in an audit hook looks like a failed allocation. Idea: kernels
call the system's functions by name, as they call the futex. None of them knows Python, so none can run it, raise, or
switch threads; what fails returns 0.

* ``map_take``, ``map_give``: whole pages, all zero, which the system has back as soon as they are given back. The C
  library keeps freed blocks of some sizes, and an idle loop should not hold on to what a burst took.
* ``block_take``, ``block_give``: any size, with anything in it. A small one comes from ``PyMem_RawMalloc``, which any
  thread may call in any state, and which `tracemalloc` sees and a failing test allocator can make fail; a large one is
  a map.

The caller remembers how large a piece was: no header, and no table of what was taken.
"""

from __future__ import annotations

import mmap

from ..base.capi import (
    WINDOWS,
    PyMem_RawFree,
    PyMem_RawMalloc,
    VirtualAlloc,
    VirtualFree,
    libc_madvise,
    libc_mmap,
    libc_munmap,
)
from ..base.kernel import apart

MAPPED = 1 << 16  # bytes from which on a block is a map: below, a page that is half used costs more than it gives back
HUGE = 1 << 22  # bytes from which on huge pages are asked for; slots.py says what for
MEM_COMMIT_RESERVE, MEM_RELEASE, PAGE_READWRITE = 0x3000, 0x8000, 4  # Windows
READ_WRITE = 3
# Private, so that a forked child that lets go of its copy of a loop does not empty the parent's.
PRIVATE = 0 if WINDOWS else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", 0)  # 0: the system has no such advice


@apart
def map_take(size: int) -> int:
    """Address of `size` bytes in whole pages, all zero, or 0 if there is no memory. Any thread; one system call."""
    if WINDOWS:
        return VirtualAlloc(0, size, MEM_COMMIT_RESERVE, PAGE_READWRITE)
    address = libc_mmap(0, size, READ_WRITE, PRIVATE, -1, 0)
    if address == -1:
        return 0
    if MADV_HUGEPAGE != 0 and size >= HUGE:
        libc_madvise(address, size, MADV_HUGEPAGE)
    return address


@apart
def map_give(address: int, size: int) -> None:
    """Give back what `map_take` returned for `size`; 0 is nothing. Any thread; one system call."""
    if address == 0:
        return
    if WINDOWS:
        VirtualFree(address, 0, MEM_RELEASE)
    else:
        libc_munmap(address, size)


@apart
def block_take(size: int) -> int:
    """Address of `size` bytes, at a multiple of 16, or 0 if there is no memory. Any thread."""
    return map_take(size) if size >= MAPPED else PyMem_RawMalloc(size)


@apart
def block_give(address: int, size: int) -> None:
    """Give back what `block_take` returned for `size`; 0 is nothing. Any thread."""
    if size >= MAPPED:
        map_give(address, size)
    else:
        PyMem_RawFree(address)
