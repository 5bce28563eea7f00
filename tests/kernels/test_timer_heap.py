"""timer_heap.py against a sorted list."""

from __future__ import annotations

import ctypes
import mmap

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop.kernels.base.atomics import put
from nbloop.kernels.base.layout import SLOT_BITS
from nbloop.kernels.memory.system import MADV_DONTNEED
from nbloop.kernels.timers import timer_heap
from nbloop.kernels.timers.timer_heap import (
    LARGE_HEAP,
    MOST,
    PORTION,
    SMALL_HEAP,
    heap_bytes,
    heap_end,
    heap_insert,
    heap_pop,
    heap_reserve,
    heap_trim,
    order_of,
)
from tests.support import naive, rig

gives_back = pytest.mark.skipif(not MADV_DONTNEED, reason="this system keeps the pages of a mapping")


class HeapMachine(RuleBasedStateMachine):
    """Few different deadlines, so that many are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = rig.Memory()
        self.timers = self.memory.timers
        self.record = self.memory.record["timers"]
        self.small = pytest.MonkeyPatch()
        self.small.setattr(timer_heap, "SMALL_HEAP", 2)  # grow early; there is no block at first
        self.naive = naive.Heap()
        self.sequence = 0

    def teardown(self) -> None:
        self.small.undo()

    def entries(self) -> list[tuple[int, int]]:
        size = int(self.record["size"])
        return [tuple(entry) for entry in rig.table(int(self.record["heap"]), 2 * size).reshape(-1, 2).tolist()]

    @rule(deadline=st.integers(0, 6), count=st.integers(1, 5))
    def insert(self, deadline: int, count: int) -> None:
        entries, reserved = self.entries(), heap_reserve(self.timers, count)
        if reserved < 0:
            assert rig.blocks.failing
            assert self.entries() == entries
            return
        for _ in range(count):
            self.sequence += 1
            heap_insert(self.timers, deadline, order_of(self.sequence))
            self.naive.insert(deadline, order_of(self.sequence), 0)

    @precondition(lambda self: self.naive.entries)
    @rule(count=st.integers(1, 5))
    def pop(self, count: int) -> None:
        """Earliest first, and equal deadlines in the order of scheduling."""
        for deadline, order, _ in self.naive.entries[:count]:
            assert self.entries()[0] == (deadline, order)
            heap_pop(self.timers)
            del self.naive.entries[0]

    @rule(failing=st.booleans())
    def allocations(self, failing: bool) -> None:
        rig.blocks.failing = failing

    @invariant()
    def ordered(self) -> None:
        """A parent is not after its children; the entries are the twin's; entry 1 begins a 64-byte line."""
        entries = self.entries()
        assert all(entries[(at - 1) // 4] < entries[at] for at in range(1, len(entries)))
        assert sorted(entries) == [(deadline, order) for deadline, order, _ in self.naive.entries]
        assert self.record["capacity"] == 0 or (int(self.record["heap"]) + rig.layout.NODE_BYTES) % 64 == 0
        assert len(entries) <= self.record["capacity"]


TestHeap = HeapMachine.TestCase
TestHeap.settings = rig.MACHINE


def test_large_block_is_given_back_when_hardly_used() -> None:
    memory = rig.Memory()
    timers, record = memory.timers, memory.record["timers"]
    before = set(rig.maps.living)
    assert heap_reserve(timers, 64 * SMALL_HEAP) == 0
    assert set(rig.maps.living) - before == {int(record["heap_block"])}
    for number in range(10):
        heap_insert(timers, 10 - number, number + 1 << SLOT_BITS)
    heap_trim(timers)
    assert record["capacity"] == SMALL_HEAP
    assert set(rig.maps.living) == before, "the large block was a map"
    assert int(record["heap_block"]) in rig.blocks.living
    popped = []
    while record["size"]:
        popped.append(int(rig.table(int(record["heap"]), 1)[0]))
        heap_pop(timers)
    assert popped == list(range(1, 11))


def test_a_large_heap_gets_room_for_all_timers_at_once() -> None:
    """Only what is used has pages; so it is copied while it is small, and never again."""
    memory = rig.Memory()
    timers, record = memory.timers, memory.record["timers"]
    for number in range(100):
        assert heap_reserve(timers, 1) == 0
        heap_insert(timers, 100 - number, number + 1 << SLOT_BITS)
    assert heap_reserve(timers, LARGE_HEAP) == 0
    assert record["capacity"] == MOST
    block = int(record["heap_block"])
    assert heap_reserve(timers, MOST - 100) == 0
    assert int(record["heap_block"]) == block
    while heap_trim(timers):
        assert int(record["heap_block"]) == block
    assert record["capacity"] == 200
    assert sorted(rig.table(int(record["heap"]), 200)[::2].tolist()) == list(range(1, 101))


def large(count: int) -> rig.Memory:
    """A heap with room for all timers, in which as many have pages."""
    memory = rig.Memory()
    assert heap_reserve(memory.timers, LARGE_HEAP + 1) == 0
    block, size = int(memory.record["timers"]["heap_block"]), heap_bytes(count)
    for at in range(block, block + size, mmap.PAGESIZE):
        put(at, 1)
    return memory


def present(memory: rig.Memory) -> int:
    """How many bytes of a large heap's block are in memory."""
    block, size = int(memory.record["timers"]["heap_block"]), -(-heap_bytes(MOST) // mmap.PAGESIZE)
    pages = (ctypes.c_ubyte * size)()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(block), ctypes.c_size_t(size * mmap.PAGESIZE), pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


@gives_back
def test_a_large_heap_gives_its_pages_back_in_portions() -> None:
    """The system releases a block of 100 MiB in 7 ms, in which no signal is handled."""
    memory = large(MOST)
    record = memory.record["timers"]
    block, left = int(record["heap_block"]), present(memory)
    trims = 0
    while heap_trim(memory.timers):
        trims += 1
        assert int(record["heap_block"]) == block
        before, left = left, present(memory)
        assert before - left <= 16 * PORTION
        assert left <= heap_bytes(int(record["capacity"])) + mmap.PAGESIZE
    assert trims == -(-(MOST - LARGE_HEAP) // PORTION)
    assert record["capacity"] == SMALL_HEAP


@gives_back
def test_a_heap_that_grows_again_while_it_shrinks_is_not_copied() -> None:
    memory = large(MOST)
    record, timers = memory.record["timers"], memory.timers
    block = int(record["heap_block"])
    for number in range(100):
        heap_insert(timers, 100 - number, number + 1 << SLOT_BITS)
    for _ in range(30):
        assert heap_trim(timers)
    assert record["capacity"] == MOST - 30 * PORTION
    assert heap_reserve(timers, MOST - 30 * PORTION) == 0  # more than is left
    assert (int(record["heap_block"]), int(record["capacity"])) == (block, MOST)
    assert sorted(rig.table(int(record["heap"]), 200)[::2].tolist()) == list(range(1, 101))
    put(int(record["heap"]) + 16 * (MOST - 1), 7)  # it has pages again
    while heap_trim(timers):
        pass
    assert record["capacity"] == 200


@gives_back
def test_the_end_of_a_large_heap_comes_in_portions() -> None:
    memory = large(MOST)
    ended = 1
    block = int(memory.record["timers"]["heap_block"])
    while heap_end(memory.timers):
        ended += 1
        assert present(memory) <= heap_bytes(int(memory.record["timers"]["capacity"])) + mmap.PAGESIZE
    assert ended == 1 + -(-(MOST - LARGE_HEAP) // PORTION)
    assert block not in rig.maps.living


def test_a_heap_without_room_for_all_timers_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may refuse so many addresses."""
    taken = timer_heap.block_take
    monkeypatch.setattr(timer_heap, "block_take", lambda size: 0 if size > 1 << 24 else taken(size))
    memory = rig.Memory()
    assert heap_reserve(memory.timers, LARGE_HEAP + 1) == 0
    assert memory.record["timers"]["capacity"] == LARGE_HEAP + 1
    assert heap_reserve(memory.timers, LARGE_HEAP + 2) == 0
    assert memory.record["timers"]["capacity"] == 2 * LARGE_HEAP + 2
    assert heap_reserve(memory.timers, MOST) == -1
    assert memory.record["timers"]["capacity"] == 2 * LARGE_HEAP + 2
