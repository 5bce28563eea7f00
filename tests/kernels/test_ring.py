"""ring.py against a deque."""

from __future__ import annotations

from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop.kernels.memory.ring import SMALL, ring_length, ring_pop, ring_push, ring_trim
from tests.support import rig


class RingMachine(RuleBasedStateMachine):
    """A ring that starts with four cells, so that it grows and wraps often."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = rig.Memory()
        self.ring = self.memory.base + rig.layout.STATE.MICROTASKS
        self.record = self.memory.record["microtasks"]
        self.record["mask"] = 3
        self.others = set(rig.blocks.living)
        self.naive: deque[int] = deque()
        self.next = 1

    @rule(count=st.sampled_from([1, 1, 2, 3, 5, 40]))
    def push(self, count: int) -> None:
        """Refused only if full, and if there is no memory for a larger array; then nothing has changed."""
        for _ in range(count):
            full = len(self.naive) > self.record["mask"]
            status = ring_push(self.ring, self.next)
            assert status == (-1 if full and rig.blocks.failing else 0)
            if status == 0:
                self.naive.append(self.next)
                self.next += 1

    @precondition(lambda self: self.naive)
    @rule(count=st.sampled_from([1, 2, 3, 30]))
    def pop(self, count: int) -> None:
        for _ in range(min(count, len(self.naive))):
            assert ring_pop(self.ring) == self.naive.popleft()

    @rule()
    def trim(self) -> None:
        """Small rings and rings in use stay as they are."""
        cells = self.record["cells"]
        ring_trim(self.ring)
        assert self.record["cells"] == cells

    @rule(failing=st.booleans())
    def allocations(self, failing: bool) -> None:
        rig.blocks.failing = failing

    @invariant()
    def same(self) -> None:
        """head <= tail <= head + mask + 1, and the cells between are the twin's."""
        head, tail, mask = (int(self.record[name]) for name in ("head", "tail", "mask"))
        assert head <= tail <= head + mask + 1
        assert ring_length(self.ring) == tail - head == len(self.naive)
        cells = rig.table(int(self.record["cells"]), mask + 1)
        assert [int(cells[at & mask]) for at in range(head, tail)] == list(self.naive)

    @invariant()
    def one_block(self) -> None:
        """Growing releases the old block."""
        assert set(rig.blocks.living) - self.others <= {int(self.record["cells"])}


TestRing = RingMachine.TestCase
TestRing.settings = rig.MACHINE


def test_trim_lets_go_of_a_large_empty_block() -> None:
    """What a burst has left is given back before a sleep; without memory for a small one the large one is kept."""
    memory = rig.Memory()
    ring = memory.base + rig.layout.STATE.MICROTASKS
    before = set(rig.maps.living)
    burst = 16 * SMALL + 1
    for word in range(burst):
        assert ring_push(ring, word) == 0
    record = memory.record["microtasks"]
    large = 32 * SMALL - 1
    ring_trim(ring)
    assert record["mask"] == large, "it was not empty"
    for word in range(burst):
        assert ring_pop(ring) == word
    assert set(rig.maps.living) - before == {int(record["cells"])}, "so large a block is a map"
    rig.blocks.failing = True
    ring_trim(ring)
    assert record["mask"] == large
    rig.blocks.failing = False
    ring_trim(ring)
    assert record["mask"] == SMALL - 1
    assert set(rig.maps.living) == before
    assert int(record["cells"]) in rig.blocks.living
    assert ring_push(ring, 7) == 0
    assert ring_pop(ring) == 7
