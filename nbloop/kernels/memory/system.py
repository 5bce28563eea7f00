"""Where kernels get memory: from the system and from the interpreter's raw allocator, never through Python.

Problem: a structure grows in the middle of an operation, when its words are inconsistent. Asking Python for an array at
that point would let Python code run: ``mmap.mmap`` raises an audit event, numpy makes objects through an allocator that
a debugger may hook, and a `KeyboardInterrupt` in an audit hook looks like a failed allocation. Idea: kernels call the
system's functions by name, as they call the futex. These know nothing of Python, so they cannot run it, raise, or
switch threads; on failure they return 0.

* ``map_take``, ``map_give``: whole zeroed pages, which go back to the system as soon as they are released. The C
  library keeps freed blocks of some sizes, but an idle loop should not hold on to a burst's memory.
* ``map_empty``: the pages of a mapping go back and its addresses stay, so a late reader finds zeros.
* ``block_take``, ``block_give``: uninitialised memory of any size. Small blocks come from ``PyMem_RawMalloc``, which
  any thread may call in any state, which `tracemalloc` sees, and which a test's allocator can make fail; large ones are
  mappings.

The caller remembers the size of each piece: there is no header, and no table of allocations.
"""

from __future__ import annotations

import mmap
import sys

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

MAPPED = 1 << 16  # blocks of at least so many bytes are mappings: for smaller ones a half-used page wastes too much
HUGE = 1 << 22  # mappings of at least so many bytes get huge pages; slot_slabs.py explains why
MEM_COMMIT_RESERVE, MEM_RELEASE, PAGE_READWRITE = 0x3000, 0x8000, 4  # Windows
READ_WRITE = 3
# Private, so that a forked child that releases its copy of a loop does not empty the parent's.
PRIVATE = 0 if WINDOWS else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MADV_DONTNEED = mmap.MADV_DONTNEED if sys.platform == "linux" else 0  # elsewhere it does not promise zeros
MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", 0)  # 0: the system has no such advice
MADV_NOHUGEPAGE = getattr(mmap, "MADV_NOHUGEPAGE", 0)


@apart
def map_take(size: int) -> int:
    """The address of `size` zeroed bytes in whole pages, or 0 if there is no memory. Any thread; one system call."""
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
    """Release what `map_take` returned for `size`; address 0 does nothing. Any thread; one system call."""
    if address == 0:
        return
    if WINDOWS:
        VirtualFree(address, 0, MEM_RELEASE)
    else:
        libc_munmap(address, size)


@apart
def map_empty(address: int, size: int) -> None:
    """Give back whole pages of a mapping, which then reads as zeros and gets new pages where it is written. Where the
    system cannot do that, nothing changes. Any thread; two system calls.
    """
    if MADV_DONTNEED != 0:
        # Otherwise Linux collects what is left of a huge page into a whole one again, and the memory is back.
        if MADV_NOHUGEPAGE != 0:
            libc_madvise(address, size, MADV_NOHUGEPAGE)
        libc_madvise(address, size, MADV_DONTNEED)


@apart
def block_take(size: int) -> int:
    """The address of `size` bytes, aligned to 16, or 0 if there is no memory. Any thread."""
    return map_take(size) if size >= MAPPED else PyMem_RawMalloc(size)


@apart
def block_give(address: int, size: int) -> None:
    """Release what `block_take` returned for `size`; address 0 does nothing. Any thread."""
    if size >= MAPPED:
        map_give(address, size)
    else:
        PyMem_RawFree(address)
