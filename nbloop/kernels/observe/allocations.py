"""Count the blocks and bytes that each thread allocates, by allocators in front of the interpreter's own.

Problem: tracemalloc knows the blocks that are alive, but not those that have been freed, which are most of what a busy
loop allocates. Idea: a kernel can *be* an allocator of the interpreter (`PyMem_SetAllocator`). It adds the block to a
line of the table that only its thread writes, and calls the allocator that was there before: some 10 ns a block.

The context that the interpreter passes stays the previous allocator's, and so does its `free`. So a thread that calls
in the middle of an exchange, with the context of one allocator and the function of the other, calls a valid pair. The
table is never freed, because a thread may be inside one of these functions when they are taken away.

It misses what needs no allocator: objects that the interpreter takes from its own free lists (floats, small tuples),
and memory that other libraries get from the system. Threads beyond `THREADS` in the life of a process are not counted.
"""

from __future__ import annotations

import ctypes

from ..base.atomics import compare_and_swap, get, load, store
from ..base.capi import PyLong_FromLongLong, PyThread_get_thread_ident
from ..base.kernel import MANY, NOARGS, ONE, helper, kernel

THREADS = 1024  # a power of two
LINE = 8  # words: the thread, its blocks, its bytes
PROBES = 32
# The first line of the table: the previous functions of the domain of objects, and then of that of their buffers.
MALLOC, CALLOC, REALLOC, OTHERS = 0, 8, 16, 24

_twin = ctypes.c_ssize_t()


def allocation_word() -> int:
    """The address of a word of the compiled object, which holds the table's address (twin)."""
    return ctypes.addressof(_twin)


def call_two(function: int, context: int, size: int) -> int:
    """Call an allocator's function; un-jitted kernels are no allocators."""
    raise RuntimeError(f"an un-jitted kernel cannot call {function:#x}({context:#x}, {size})")


def call_three(function: int, context: int, first: int, second: int) -> int:
    """Call an allocator's function; un-jitted kernels are no allocators."""
    raise RuntimeError(f"an un-jitted kernel cannot call {function:#x}({context:#x}, {first:#x}, {second})")


@helper
def allocated(table: int, size: int) -> None:
    """Add a block to the calling thread's line."""
    thread = PyThread_get_thread_ident()
    place = (thread >> 12) ^ (thread >> 22)
    for step in range(1, PROBES + 1):
        line = table + (1 + ((place + step) & (THREADS - 1))) * (LINE * 8)
        if load(line) == 0:
            compare_and_swap(line, 0, thread)
        if load(line) == thread:
            store(line + 8, get(line + 8) + 1)
            store(line + 16, get(line + 16) + size)
            return


@kernel(ONE)
def object_malloc(context: int, size: int) -> int:
    """``malloc`` of the domain of objects."""
    table = load(allocation_word())
    allocated(table, size)
    return call_two(load(table + MALLOC), context, size)


@kernel(MANY)
def object_calloc(context: int, count: int, size: int) -> int:
    """``calloc`` of the domain of objects."""
    table = load(allocation_word())
    allocated(table, count * size)
    return call_three(load(table + CALLOC), context, count, size)


@kernel(MANY)
def object_realloc(context: int, block: int, size: int) -> int:
    """``realloc`` of the domain of objects: counts as a new block."""
    table = load(allocation_word())
    allocated(table, size)
    return call_three(load(table + REALLOC), context, block, size)


@kernel(ONE)
def buffer_malloc(context: int, size: int) -> int:
    """``malloc`` of the domain of buffers."""
    table = load(allocation_word())
    allocated(table, size)
    return call_two(load(table + OTHERS + MALLOC), context, size)


@kernel(MANY)
def buffer_calloc(context: int, count: int, size: int) -> int:
    """``calloc`` of the domain of buffers."""
    table = load(allocation_word())
    allocated(table, count * size)
    return call_three(load(table + OTHERS + CALLOC), context, count, size)


@kernel(MANY)
def buffer_realloc(context: int, block: int, size: int) -> int:
    """``realloc`` of the domain of buffers: counts as a new block."""
    table = load(allocation_word())
    allocated(table, size)
    return call_three(load(table + OTHERS + REALLOC), context, block, size)


@kernel(NOARGS)
def allocation_word_address(_self: int, _unused: int) -> int:
    """The address of the word that `nbloop.observe.allocations` fills."""
    return PyLong_FromLongLong(allocation_word())
