"""Memory for tests that call the kernels' helpers directly, as plain Python, with made-up words in place of references.

Also what several tests share: settings of the state machines, allocators that fail on demand, ways to read tables.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from nbloop.kernels import batch, layout
from nbloop.kernels.atomics import get
from nbloop.kernels.capi import Py_DecRef
from nbloop.kernels.ingress import chunks_reserve
from nbloop.kernels.kernel import Kernel, TwinMethod
from nbloop.kernels.pool import pool_address, pool_give
from nbloop.kernels.stack import INDEX_MASK
from nbloop.kernels.state import State, make_loop_state

# One machine's share of the suite: some seconds. A failure prints the blob that repeats it.
MACHINE = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


RINGS = ("ticks", "microtasks", "immediates", "closing", "internal", "checkpoint_ends")


class Allocator:
    """Stands in for a state's `make_slab` or `make_array`: counts what lives of it, and fails when told to."""

    def __init__(self, words: int = 0) -> None:
        self.words = words
        self.failing = False
        self.made: list[weakref.ref[Any]] = []

    def __call__(self, words: int | None = None) -> Any:
        if self.failing:
            raise MemoryError
        array = np.zeros(self.words if words is None else words, np.int64)
        self.made.append(weakref.ref(array))
        return array

    def living(self) -> int:
        return sum(made() is not None for made in self.made)


def _same(array: np.ndarray) -> np.ndarray:
    """In place of the pool's `as_array`: what the allocator made is an array already."""
    return array


class Memory:
    """The words of a loop that never runs: `base` is their address, `record` shows them by name.

    They are a copy in a plain array, because a real state shows its words to the cycle collector and releases what they
    refer to, and here they refer to nothing. The copy owns the arrays that its words name; the state keeps the tables.
    """

    def __init__(self, *, chunk_size: int = 16, ingress_limit: int | None = None) -> None:
        names = ("report", "refuse", "overload", "warn", "breathe", "waker")
        self.state: State = make_loop_state(
            chunk_size=chunk_size,
            initial_chunks=1,
            ingress_limit=ingress_limit,
            hooks={name: (lambda *_: None) for name in names},
        )
        self.state.whole = False  # it is not to release anything: all that it owned is owned here
        size = len(self.state)
        raw = np.zeros(size + layout.WORDS, np.int64)
        start = -(raw.ctypes.data // 8) % layout.WORDS
        self.words = raw[start : start + size]
        self.words[:] = self.state.view(np.ndarray)
        self.record: Any = self.words.view(layout.STATE)[0]
        theirs = self.state.record  # what the copy owns now is not for the state's memory to release as well
        for ring in RINGS:
            theirs[ring]["array"] = 0
        theirs["timers"]["heap_array"] = theirs["timers"]["slot_count"] = theirs["pool"]["slab_count"] = 0
        self.base = self.words.ctypes.data
        self.pool = self.base + layout.POOL_AT
        self.external = self.base + layout.EXTERNAL
        self.remote = self.base + layout.REMOTE
        self.timers = self.base + layout.TIMERS_AT
        self.record["external"]["pool"] = self.record["remote"]["pool"] = self.pool
        self.slabs = Allocator((chunk_size << layout.CHUNKS_PER_SLAB_BITS) + 8)
        self.slots = Allocator()
        self.arrays = Allocator()
        self.record["pool"]["make_slab"] = id(self.slabs)
        self.record["pool"]["as_array"] = id(_same)
        self.record["timers"]["make_slab"] = id(self.slots)
        self.record["make_array"] = id(self.arrays)

    def method(self, kernel: Kernel) -> TwinMethod:
        """A kernel over these words, always as plain Python."""
        return TwinMethod(kernel, self.words, kernel.function)

    def owned(self) -> list[int]:
        """Addresses of the arrays that the words own a reference of."""
        timers, pool = self.record["timers"], self.record["pool"]
        owned = [self.record[ring]["array"] for ring in RINGS]
        owned += [timers["heap_array"]]
        owned += list(table(int(timers["slab_objects"]), int(timers["slot_count"]) >> layout.SLOTS_PER_SLAB_BITS))
        owned += list(table(int(pool["slab_objects"]), int(pool["slab_count"])))
        return [int(array) for array in owned if array]

    def __del__(self) -> None:
        if "arrays" in self.__dict__:
            for array in self.owned():
                Py_DecRef(array)


def chain(memory: Memory, words: list[int]) -> int:
    """A large batch as `send_large` leaves it: chunks that only the caller knows; -1 if there is no memory for them."""
    queue, table = memory.external, get(memory.pool + layout.P_NEXT)
    size = 1 << get(queue + layout.Q_SHIFT)
    first = chunks_reserve(memory.pool, -(-len(words) // size))
    array = (ctypes.c_int64 * len(words))(*words)
    chunk, done = first, 0
    while chunk >= 0:
        count = min(size, len(words) - done)
        address = pool_address(memory.pool, chunk)
        batch.chunk_fill(queue, address, done, ctypes.addressof(array) + 8 * done, count)
        done += count
        if done == len(words):
            batch.chunk_ends(address, done, size.bit_length() - 1)
        chunk = get(table + 8 * chunk)
    assert first < 0 or not any(array), "moved"
    return first


def give_back(memory: Memory, chunk: int) -> None:
    """What nobody has published."""
    size = 1 << get(memory.external + layout.Q_SHIFT)
    while chunk >= 0:
        below = get(get(memory.pool + layout.P_NEXT) + 8 * chunk)
        table(pool_address(memory.pool, chunk), size)[:] = 0
        pool_give(memory.pool, chunk)
        chunk = below


def table(address: int, count: int) -> np.ndarray:
    """The `count` words at `address`, as an array over the same memory."""
    if count == 0:
        return np.zeros(0, np.int64)
    return np.frombuffer((ctypes.c_int64 * count).from_address(address), np.int64)


def stacked(head: int, links: int) -> list[int]:
    """The indices in a stack (stack.py), top first; fails on a cycle."""
    found: list[int] = []
    index = get(head) & INDEX_MASK
    while index:
        assert index - 1 not in found[-1:], "a cycle"
        found.append(index - 1)
        assert len(found) <= layout.SLOT_LIMIT, "a cycle"
        index = get(links + ((index - 1) << 3))
    return found
