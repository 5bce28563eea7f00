"""ring.py against a deque."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop.kernels.memory import ring as module
from nbloop.kernels.memory.ring import LARGE, LINK, SMALL, ring_end, ring_length, ring_pop, ring_push, ring_trim
from tests.support import rig

FEW, MORE = 4, 7  # words in a block


def blocks_of(record: rig.Any) -> list[tuple[int, int]]:
    """(first cell, end of the cells) of each block in use."""
    found = []
    end = int(record["head_end"])
    while end:
        following, start = (int(word) for word in rig.table(end, 2))
        found.append((start, end))
        end = following
    return found


def content(record: rig.Any) -> list[int]:
    """What waits, as the blocks have it."""
    words: list[int] = []
    at = int(record["head_at"])
    for start, end in blocks_of(record):
        at = at if start <= at <= end else start
        until = int(record["tail_at"]) if end == record["tail_end"] else end
        words += rig.table(at, (until - at) // 8).tolist()
        at = -1
    return words


class RingMachine(RuleBasedStateMachine):
    """A ring with blocks of four words, or of seven while so many wait, so that it grows and crosses often."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = rig.Memory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "SMALL", 8 * FEW + LINK)
        self.patch.setattr(module, "LARGE", 8 * MORE + LINK)
        self.ring = self.memory.base + rig.layout.STATE.MICROTASKS
        ring_end(self.ring)  # of the first block, which is not as small
        self.memory.record["microtasks"] = np.zeros((), rig.layout.RING.dtype)
        self.record = self.memory.record["microtasks"]
        self.others = set(rig.blocks.living)
        self.naive: deque[int] = deque()
        self.next = 1

    def teardown(self) -> None:
        ring_end(self.ring)
        assert set(rig.blocks.living) <= self.others, "an ended ring keeps nothing"
        self.patch.undo()

    @rule(count=st.sampled_from([1, 1, 2, 3, 5, 40]))
    def push(self, count: int) -> None:
        """Refused only if the block is full, and if there is no memory for another; then nothing has changed."""
        for _ in range(count):
            full = self.record["tail_at"] == self.record["tail_end"] and self.record["spare"] == 0
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
        """A large block of an empty ring goes; a small one, and all of a ring in use, stays."""
        before = blocks_of(self.record)
        ring_trim(self.ring)
        if self.naive or all(end - start == 8 * FEW for start, end in before):
            assert blocks_of(self.record) == before
        else:
            assert blocks_of(self.record) == []

    @rule(failing=st.booleans())
    def allocations(self, failing: bool) -> None:
        rig.blocks.failing = failing

    @invariant()
    def same(self) -> None:
        """What waits is the twin's."""
        assert ring_length(self.ring) == self.record["tail"] - self.record["head"] == len(self.naive)
        assert content(self.record) == list(self.naive)

    @invariant()
    def no_more_than_needed(self) -> None:
        """What has drained was given back, or is the spare, which is small."""
        used = {start for start, _ in blocks_of(self.record)}
        spare = int(self.record["spare"])
        if spare:
            start = int(rig.table(spare, 2)[1])
            assert start not in used
            assert spare - start == 8 * FEW
            used.add(start)
        assert set(rig.blocks.living) - self.others == used - self.others
        assert len(blocks_of(self.record)) <= 2 + len(self.naive) // FEW

    @invariant()
    def large_ones_for_a_backlog(self) -> None:
        assert {(end - start) // 8 for start, end in blocks_of(self.record)} <= {FEW, MORE}
        if len(self.naive) > 6 * MORE:
            assert len(blocks_of(self.record)) <= 5 + len(self.naive) // MORE


TestRing = RingMachine.TestCase
TestRing.settings = rig.MACHINE


@pytest.fixture
def memory() -> Iterator[rig.Memory]:
    yield rig.Memory()
    rig.blocks.failing = rig.maps.failing = False


def test_a_burst_leaves_nothing(memory: rig.Memory) -> None:
    """Its blocks are maps, each is given back when it has drained, and the last before a sleep."""
    ring = memory.base + rig.layout.STATE.MICROTASKS
    before = set(rig.maps.living)
    burst = 16 * SMALL
    for word in range(burst):
        assert ring_push(ring, word) == 0
    ring_trim(ring)
    most = len(set(rig.maps.living) - before)
    assert most == -(-(burst - (SMALL - LINK) // 8) // ((LARGE - LINK) // 8)), "so large a block is a map"
    for word in range(burst):
        assert ring_pop(ring) == word
        left = len(set(rig.maps.living) - before)
        assert left <= 2 + (burst - word) // ((LARGE - LINK) // 8)
    ring_trim(ring)
    assert set(rig.maps.living) == before
    assert ring_push(ring, 7) == 0
    assert ring_pop(ring) == 7


def test_growing_copies_nothing(memory: rig.Memory) -> None:
    """A word stays where it was put, however many follow: no push takes longer than another by what waits."""
    ring = memory.base + rig.layout.STATE.MICROTASKS
    record = memory.record["microtasks"]
    for word in range(10):
        assert ring_push(ring, word) == 0
    at = int(record["head_at"])
    for word in range(10, 100_000):
        assert ring_push(ring, word) == 0
    assert int(record["head_at"]) == at
    assert rig.table(at, 10).tolist() == list(range(10))


def test_a_short_ring_alternates_between_two_blocks(memory: rig.Memory) -> None:
    """It asks nobody for memory."""
    ring = memory.base + rig.layout.STATE.MICROTASKS
    for word in range(3 * SMALL):
        assert ring_push(ring, word) == 0
        assert ring_pop(ring) == word
        if word == SMALL // 4:
            rig.blocks.failing = rig.maps.failing = True
