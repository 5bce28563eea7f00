"""stack.py against a list."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop.kernels.base.atomics import get
from nbloop.kernels.base.layout import CHUNK_LIMIT, SLOT_LIMIT
from nbloop.kernels.memory.stack import COUNTER_MASK, COUNTER_STEP, INDEX_MASK, stack_pop, stack_push
from tests.support import naive, rig

SIZE = 12


class StackMachine(RuleBasedStateMachine):
    """Indices move between their owners and the stack; a chain is pushed as one."""

    def __init__(self) -> None:
        super().__init__()
        self.words = (ctypes.c_int64 * (SIZE + 2))()  # the head, its count of retries, the links
        self.head = ctypes.addressof(self.words)
        self.links = self.head + 16
        self.naive = naive.Stack()
        self.owned = list(range(SIZE))
        self.pops = 0

    @precondition(lambda self: self.owned)
    @rule(choice=st.integers(0, SIZE))
    def push(self, choice: int) -> None:
        index = self.owned.pop(choice % len(self.owned))
        stack_push(self.head, self.links, index, index)
        self.naive.push(index)

    @precondition(lambda self: len(self.owned) >= 2)
    @rule(count=st.integers(2, SIZE))
    def push_chain(self, count: int) -> None:
        """The caller links the chain, except its last element, which the push links to the previous top."""
        chain, self.owned = self.owned[:count], self.owned[count:]
        for upper, lower in pairwise(chain):
            self.words[2 + upper] = lower + 1
        stack_push(self.head, self.links, chain[0], chain[-1])
        self.naive.push(*chain)

    @rule()
    def pop(self) -> None:
        expected = self.naive.pop()
        assert stack_pop(self.head, self.links) == expected
        if expected >= 0:
            self.owned.append(expected)
            self.pops += 1

    @invariant()
    def same(self) -> None:
        """An index is in the stack at most once, and nowhere else."""
        found = rig.stacked(self.head, self.links)
        assert found == self.naive.items[::-1]
        assert sorted(found + self.owned) == list(range(SIZE))

    @invariant()
    def counter_moves_with_every_pop(self) -> None:
        """What makes a head read before a pop never match after it."""
        assert (get(self.head) & COUNTER_MASK) // COUNTER_STEP == self.pops


TestStack = StackMachine.TestCase
TestStack.settings = rig.MACHINE


def test_counter_wraps_and_the_head_stays_positive() -> None:
    """After 2**40 pops the counter starts again, and never reaches the sign bit."""
    words = (ctypes.c_int64 * 4)()
    head = ctypes.addressof(words)
    words[0] = COUNTER_MASK
    stack_push(head, head + 16, 1, 1)
    assert stack_pop(head, head + 16) == 1
    assert words[0] == 0
    assert words[1] == 0
    assert stack_pop(head, head + 16) == -1


def test_the_largest_index_leaves_the_counter_alone() -> None:
    words = (ctypes.c_int64 * 2)()
    head = ctypes.addressof(words)
    links = np.zeros(SLOT_LIMIT, np.int64)
    last = max(SLOT_LIMIT, CHUNK_LIMIT) - 1
    assert last + 1 <= INDEX_MASK
    stack_push(head, links.ctypes.data, last, last)
    assert get(head) & COUNTER_MASK == 0
    assert stack_pop(head, links.ctypes.data) == last
