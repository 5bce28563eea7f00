"""heap.py against a sorted list."""

from __future__ import annotations

import naive
import rig
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop.kernels.heap import heap_insert, heap_remove, heap_reserve
from nbloop.kernels.timers import next_order

SLOTS = 60


class HeapMachine(RuleBasedStateMachine):
    """Few different deadlines, so that many are equal; any entry may be removed, the first is popped."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = rig.Memory()
        self.timers = self.memory.timers
        self.record = self.memory.record["timers"]
        self.record["capacity"] = 4  # grow early; the array is larger than that
        self.naive = naive.Heap()

    def entries(self) -> list[tuple[int, int]]:
        size = int(self.record["size"])
        return [tuple(entry) for entry in rig.table(int(self.record["heap"]), 2 * size).reshape(-1, 2).tolist()]

    def remove(self, slot: int) -> None:
        positions = rig.table(int(self.record["positions"]), int(self.record["positions_capacity"]))
        heap_remove(self.timers, int(positions[slot]))
        self.naive.remove(slot)

    @rule(deadline=st.integers(0, 6), slot=st.integers(0, SLOTS))
    def insert(self, deadline: int, slot: int) -> None:
        """A slot beyond the table of positions makes that grow too."""
        slot = slot * 400
        if slot in self.naive.slots():
            return
        entries, reserved = self.entries(), heap_reserve(self.timers, id(self.memory.arrays), slot)
        if reserved < 0:
            assert self.memory.arrays.failing
            assert self.entries() == entries
            return
        order = next_order(self.timers)
        heap_insert(self.timers, slot, deadline, order)
        self.naive.insert(deadline, order, slot)

    @precondition(lambda self: self.naive.entries)
    @rule(choice=st.integers(0, 1 << 20))
    def cancel(self, choice: int) -> None:
        self.remove(self.naive.entries[choice % len(self.naive.entries)][2])

    @precondition(lambda self: self.naive.entries)
    @rule(count=st.integers(1, 5))
    def pop(self, count: int) -> None:
        """Earliest first, and equal deadlines in the order of scheduling."""
        for deadline, order, slot in self.naive.entries[:count]:
            assert self.entries()[0] == (deadline, order | slot)
            self.remove(slot)

    @rule(failing=st.booleans())
    def allocations(self, failing: bool) -> None:
        self.memory.arrays.failing = failing

    @invariant()
    def ordered(self) -> None:
        """A parent is not after its children; the entries are the twin's; entry 1 begins a 64-byte line."""
        entries = self.entries()
        assert all(entries[(at - 1) // 4] < entries[at] for at in range(1, len(entries)))
        assert sorted(entries) == [(deadline, order | slot) for deadline, order, slot in self.naive.entries]
        assert (int(self.record["heap"]) + rig.layout.NODE_BYTES) % 64 == 0
        assert len(entries) <= self.record["capacity"]

    @invariant()
    def positions(self) -> None:
        """positions[slot of entry i] == i, and -1 for a slot that has no entry."""
        table = rig.table(int(self.record["positions"]), int(self.record["positions_capacity"]))
        expected = {order & (rig.layout.SLOT_LIMIT - 1): at for at, (_, order) in enumerate(self.entries())}
        assert {slot: at for slot, at in enumerate(table.tolist()) if at != -1} == expected


TestHeap = HeapMachine.TestCase
TestHeap.settings = rig.MACHINE


def test_pops_in_order_after_many_removals() -> None:
    """A thousand entries, every third removed from the middle: the rest comes out sorted."""
    memory = rig.Memory()
    timers, record = memory.timers, memory.record["timers"]
    kept = []
    for slot in range(1000):
        assert heap_reserve(timers, id(memory.arrays), slot) == 0
        order = next_order(timers)
        heap_insert(timers, slot, slot * 7919 % 101, order)
        kept.append((slot * 7919 % 101, order | slot))
    for slot in range(0, 1000, 3):
        heap_remove(timers, int(rig.table(int(record["positions"]), 1000)[slot]))
    popped = []
    while record["size"]:
        popped.append(tuple(rig.table(int(record["heap"]), 2).tolist()))
        heap_remove(timers, 0)
    assert popped == sorted(entry for slot, entry in enumerate(kept) if slot % 3)
