"""ticket_queue.py against a deque that can be closed."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import fetch_add, get, load, put
from nbloop.kernels.base.layout import REFUSED_CLOSED, REFUSED_FULL, REFUSED_MEMORY
from nbloop.kernels.ingress import ticket_queue
from nbloop.kernels.ingress.ticket_queue import (
    queue_cell,
    queue_close,
    queue_close_if_empty,
    queue_entry,
    queue_length,
    queue_publish,
    queue_push,
    queue_push_many,
    queue_reopen,
    queue_return_chunk,
    queue_segment,
    queue_tail,
    queue_take,
    queue_tasks,
)
from nbloop.kernels.memory.pool import pool_give, pool_take
from tests.support import naive, rig

CHUNK = 16
SEGMENTS = 1 << layout.DIRECTORY_BITS
WRAP = SEGMENTS * CHUNK  # the ticket whose segment has the first one's place in the directory
STATUS = {None: 0, naive.CLOSED: REFUSED_CLOSED, naive.FULL: REFUSED_FULL}


def void(segment: int) -> int:
    """The mark of a segment for which no chunk was available."""
    return ~segment


def start_at(queue: int, ticket: int) -> None:
    """As if that many tickets had been drawn and taken."""
    put(queue + layout.QUEUE.TAIL, ticket)
    put(queue + layout.QUEUE.HEAD, ticket)


def push_many(queue: int, words: list[int]) -> int:
    array = (ctypes.c_int64 * len(words))(*words)
    return queue_push_many(queue, ctypes.addressof(array), len(words))


class Starvation:
    """No chunk is available: the free ones are hoarded, and no slab can be made."""

    def __init__(self, memory: rig.Memory) -> None:
        self.memory = memory
        self.hoard: list[int] = []

    def begin(self) -> None:
        rig.maps.failing = True
        while (chunk := pool_take(self.memory.pool)) >= 0:
            self.hoard.append(chunk)

    def end(self) -> None:
        rig.maps.failing = False
        while self.hoard:
            pool_give(self.memory.pool, self.hoard.pop())


class QueueMachine(RuleBasedStateMachine):
    """One thread plays producers and consumer; memory comes and goes; chunks are of 16 cells, so segments pass
    quickly.
    """

    memory: rig.Memory

    @initialize(
        start=st.sampled_from([0, 5, WRAP - 40, (1 << 40) + 15]), limit=st.sampled_from([None, None, 1, 20, 40])
    )
    def make(self, start: int, limit: int | None) -> None:
        self.memory = rig.Memory(chunk_size=CHUNK, ingress_limit=limit)
        self.queue = self.memory.external
        start_at(self.queue, start)
        self.naive = naive.Queue(limit)
        self.starvation = Starvation(self.memory)
        self.next = 16

    def new(self, count: int) -> list[int]:
        words = list(range(self.next, self.next + 16 * count, 16))  # as references are: the low bits are for marks
        self.next += 16 * count
        return words

    def expect(self, status: int, tail: int, words: list[int]) -> None:
        """A push that was refused for want of memory found a VOID segment, or drew no ticket; any other is as the
        twin's.
        """
        if status == REFUSED_MEMORY and not self.naive.closed:
            drawn = queue_tail(self.queue) - tail
            ticket = tail + max(drawn, 1) - 1
            voided = load(queue_entry(self.queue, ticket)) == void(ticket // CHUNK)
            assert self.starvation.hoard or voided
            assert drawn == 0 or voided
            return
        waiting = tail - get(self.queue + layout.QUEUE.HEAD) - self.fillers
        if status == REFUSED_FULL and waiting > len(self.naive.items):
            return  # refused tickets count until the consumer has stepped over them
        assert status == STATUS[self.naive.push(*words)]

    @rule(count=st.sampled_from([1, 1, 3, 15, 16, 17]))
    def push(self, count: int) -> None:
        for word in self.new(count):
            tail = queue_tail(self.queue)
            self.fillers = get(self.queue + layout.QUEUE.FILLED) - get(self.queue + layout.QUEUE.PASSED)
            self.expect(queue_push(self.queue, word), tail, [word])

    @rule(count=st.sampled_from([1, 2, 16, 17, 40]))
    def push_many(self, count: int) -> None:
        """All under consecutive tickets, or none; without memory none, and no ticket is drawn."""
        words, tail = self.new(count), queue_tail(self.queue)
        self.fillers = get(self.queue + layout.QUEUE.FILLED) - get(self.queue + layout.QUEUE.PASSED)
        status = push_many(self.queue, words)
        if status == REFUSED_MEMORY:
            assert self.starvation.hoard
            assert queue_tail(self.queue) == tail
        else:
            self.expect(status, tail, words)

    @rule(count=st.sampled_from([1, 2, 16, 17, 40]))
    def publish(self, count: int) -> None:
        """As `push_many`, but all or none whatever happens."""
        words, tail = self.new(count), queue_tail(self.queue)
        self.fillers = get(self.queue + layout.QUEUE.FILLED) - get(self.queue + layout.QUEUE.PASSED)
        first = rig.chain(self.memory, words)
        status = queue_publish(self.queue, first, count) if first >= 0 else REFUSED_MEMORY
        if status != 0:
            rig.give_back(self.memory, first)
            assert queue_tail(self.queue) == tail
        if status == REFUSED_MEMORY:
            assert self.starvation.hoard
        else:
            self.expect(status, tail, words)

    @rule(count=st.sampled_from([1, 2, 16, 50]))
    def take(self, count: int) -> None:
        """In the order of the pushes, and 0 when there is nothing."""
        for _ in range(count):
            assert queue_take(self.queue) == self.naive.take()

    @rule()
    def drain(self) -> None:
        while self.naive.items:
            assert queue_take(self.queue) == self.naive.take()
        assert queue_take(self.queue) == 0
        assert queue_length(self.queue) == 0, "refused tickets are stepped over"

    @rule()
    def close(self) -> None:
        tail = queue_tail(self.queue)
        queue_close(self.queue)
        self.naive.closed = True
        assert queue_tail(self.queue) == tail

    @rule()
    def close_if_empty(self) -> None:
        empty = queue_length(self.queue) == 0 and not self.naive.closed
        assert queue_close_if_empty(self.queue) == empty
        self.naive.closed |= empty

    @precondition(lambda self: self.naive.closed)
    @rule()
    def reopen(self) -> None:
        """Tickets that were refused meanwhile never count."""
        tail = queue_tail(self.queue)
        queue_reopen(self.queue)
        self.naive.closed = False
        assert queue_tail(self.queue) == tail

    @rule(starving=st.booleans())
    def starve(self, starving: bool) -> None:
        if starving:
            self.starvation.begin()
        else:
            self.starvation.end()

    @invariant()
    def same(self) -> None:
        """head <= tail; what lies between them, except refused tickets and fillers, is the twin's, in order. After a
        filler there is a task, and `filled` and `passed` say how many tickets have none.
        """
        if "memory" not in self.__dict__:
            return
        found, void = [], 0
        head, tail = get(self.queue + layout.QUEUE.HEAD), queue_tail(self.queue)
        assert head <= tail
        for ticket in range(head, tail):
            chunk = queue_segment(self.queue, ticket)
            word = get(queue_cell(chunk, ticket, get(self.queue + layout.QUEUE.SHIFT))) if chunk else 0
            assert (word == 0) == (chunk == 0), "a ticket that was drawn, neither stored nor refused"
            found += [word] if word else []
            void += chunk == 0
        fillers = found.count(layout.FILLER)
        assert fillers + void == get(self.queue + layout.QUEUE.FILLED) - get(self.queue + layout.QUEUE.PASSED)
        assert found[-1:] != [layout.FILLER]
        found = [word for word in found if word != layout.FILLER]
        assert found == list(self.naive.items)
        assert queue_length(self.queue) == tail - head == len(found) + fillers + void
        assert queue_tasks(self.queue) == len(found)

    @invariant()
    def directory_holds_what_is_in_use(self) -> None:
        """An entry is 0, a void mark or a chunk number + 1, which only the segments from head's to tail's have. No
        chunk is lost.
        """
        if "memory" not in self.__dict__:
            return
        directory = rig.table(int(self.memory.record["external"]["directory"]), SEGMENTS)
        used = (directory > 0).nonzero()[0].tolist()
        head, tail = get(self.queue + layout.QUEUE.HEAD), queue_tail(self.queue)
        assert {at % SEGMENTS for at in range(head // CHUNK, tail // CHUNK + 1)} >= set(used)
        chunks = [int(directory[at]) - 1 for at in used]
        free = rig.stacked(self.memory.pool + layout.POOL.FREE, int(self.memory.record["pool"]["next"]))
        everywhere = chunks + free + self.starvation.hoard
        assert sorted(everywhere) == list(range(int(self.memory.record["pool"]["slab_count"]) * 64))

    def teardown(self) -> None:
        """A queue that has ended gives back all its chunks, zeroed."""
        if "memory" not in self.__dict__:
            return
        queue_close(self.queue)
        self.naive.closed = True
        self.drain()
        queue_return_chunk(self.queue)
        self.starvation.end()
        pool = self.memory.record["pool"]
        assert int(pool["free_chunks"]) == int(pool["slab_count"]) * 64
        for slab in rig.table(int(pool["slabs"]), int(pool["slab_count"])).tolist():
            assert not rig.table(slab, 64 * CHUNK).any()


TestQueue = QueueMachine.TestCase
TestQueue.settings = rig.MACHINE


@pytest.mark.parametrize("chunk_size", [16, 128, 4096])
def test_cells_of_a_chunk(chunk_size: int) -> None:
    """Each ticket of a segment has a cell of its own, and neighbours lie on different lines of 64 bytes."""
    shift = chunk_size.bit_length() - 1
    cells = [queue_cell(0, ticket, shift) for ticket in range(chunk_size)]
    assert sorted(cells) == [8 * i for i in range(chunk_size)]
    assert all(one // 64 != other // 64 for one, other in pairwise(cells))
    assert queue_cell(0, chunk_size + 3, shift) == cells[3]


def test_gate_closes_near_the_end_of_the_directory_and_opens_when_drained() -> None:
    """A full directory refuses with FULL, loses nothing, and takes again once there is room."""
    memory = rig.Memory(chunk_size=CHUNK)
    queue, record = memory.external, memory.record["external"]
    segments = 1024
    record["directory_mask"] = segments - 1
    record["limit"] = (segments - 512) * CHUNK
    accepted = 0
    while (status := queue_push(queue, 16 * (accepted + 1))) == 0:
        accepted += 1
    assert status == REFUSED_FULL
    assert record["gate"] == layout.FULL
    assert (segments - 512) * CHUNK <= accepted <= (segments - 256) * CHUNK
    for word in range(1, accepted + 1):
        assert queue_take(queue) == 16 * word
    assert queue_push(queue, 7) == 0
    assert record["gate"] == layout.OPEN
    assert queue_take(queue) == 7


def test_exact_limit_is_exact() -> None:
    """`ingress_limit` tasks and not one more, also as a batch, and again after each that is taken."""
    memory = rig.Memory(ingress_limit=10)
    queue = memory.external
    assert push_many(queue, [1, *range(12, 19)]) == 0
    assert push_many(queue, [9, 10, 11]) == REFUSED_FULL
    assert push_many(queue, [9, 10]) == 0
    assert queue_push(queue, 11) == REFUSED_FULL
    assert queue_take(queue) == 1
    assert queue_push(queue, 11) == 0
    assert queue_push(queue, 12) == REFUSED_FULL
    assert memory.record["external"]["gate"] == layout.EXACT


def test_batch_goes_on_in_the_next_segment_when_a_competitor_voids_one() -> None:
    """A batch whose second segment is VOID stores the rest under new tickets, in order."""
    memory = rig.Memory(chunk_size=CHUNK)
    queue = memory.external
    put(queue_entry(queue, CHUNK), void(1))
    words = list(range(16, 16 * 25, 16))
    assert push_many(queue, words) == 0
    assert [queue_take(queue) for _ in words] == words
    assert queue_take(queue) == 0
    assert queue_length(queue) == 0


def after_first_draw(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Run `act()` right after the next ticket was drawn, as another thread might."""
    draw = ticket_queue.queue_draw

    def once(queue: int, count: int) -> int:
        monkeypatch.setattr(ticket_queue, "queue_draw", draw)
        ticket = draw(queue, count)
        act()
        return ticket

    monkeypatch.setattr(ticket_queue, "queue_draw", once)


def test_batch_cut_by_want_of_memory_and_a_close_owns_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one case that is neither all nor none: what was stored has left the array, what is left is still the
    caller's.
    """
    memory = rig.Memory(chunk_size=CHUNK)
    queue = memory.external

    def competitor() -> None:  # draws a ticket of the batch's second segment, gets no chunk for it; then the end
        fetch_add(queue + layout.QUEUE.TAIL, 1)
        put(queue_entry(queue, CHUNK), void(1))
        queue_close(queue)

    after_first_draw(monkeypatch, competitor)
    words = np.arange(16, 16 * 25, 16)
    assert queue_push_many(queue, words.ctypes.data, len(words)) == REFUSED_CLOSED
    taken = [word for _ in range(40) if (word := queue_take(queue))]
    assert taken == list(range(16, 16 * (CHUNK + 1), 16))
    assert [word for word in words.tolist() if word] == list(range(16 * (CHUNK + 1), 16 * 25, 16))


def test_late_producer_of_a_void_segment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """*All* tickets of a VOID segment are refused, also one whose producer comes when the consumer has stepped over
    it.
    """
    memory = rig.Memory(chunk_size=CHUNK)
    queue, starvation = memory.external, Starvation(memory)

    def others() -> None:
        starvation.begin()
        for word in range(1, CHUNK + 3):
            assert queue_push(queue, word) == REFUSED_MEMORY
        assert queue_take(queue) == 0
        starvation.end()

    after_first_draw(monkeypatch, others)
    status = queue_push(queue, 99)
    assert (status, queue_take(queue)) in ((REFUSED_MEMORY, 0), (0, 99)), "a task was accepted, and never comes out"
    assert queue_length(queue) == 0


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("before", [0, 1, 15, 16])
def test_a_large_batch_lies_in_segments_of_its_own(before: int, count: int) -> None:
    """Between what was pushed before and after it, in order; the fillers are stepped over, and count for no limit."""
    memory = rig.Memory(chunk_size=CHUNK, ingress_limit=before + count + 1)
    queue = memory.external
    words = [16 * (n + 1) for n in range(before + count + 1)]
    for word in words[:before]:
        assert queue_push(queue, word) == 0
    assert queue_publish(queue, rig.chain(memory, words[before:-1]), count) == 0
    assert queue_push(queue, words[-1]) == 0
    assert queue_push(queue, 7) == REFUSED_FULL
    assert [queue_take(queue) for _ in words] == words
    assert queue_length(queue) == 0
    assert get(queue + layout.QUEUE.FILLED) == get(queue + layout.QUEUE.PASSED) == -before % CHUNK + -count % CHUNK


def test_a_large_batch_after_a_void_segment() -> None:
    """Its fillers there need no cell: the consumer steps over the segment, and nothing is left counted."""
    memory = rig.Memory(chunk_size=CHUNK)
    queue, starvation = memory.external, Starvation(memory)
    first = rig.chain(memory, [16, 32])
    spare = pool_take(memory.pool)
    starvation.begin()
    assert queue_push(queue, 48) == REFUSED_MEMORY
    pool_give(memory.pool, spare)
    assert queue_publish(queue, first, 2) == 0
    assert [queue_take(queue) for _ in range(3)] == [16, 32, 0]
    assert queue_length(queue) == 0
    assert get(queue + layout.QUEUE.FILLED) == get(queue + layout.QUEUE.PASSED) == 2 * CHUNK - 2
    starvation.end()


def test_a_large_batch_near_the_end_of_the_directory() -> None:
    """Refused as a whole, with its fillers counted, before a segment would be used twice."""
    memory = rig.Memory(chunk_size=CHUNK)
    queue, record = memory.external, memory.record["external"]
    record["directory_mask"] = 1023
    most = (1024 - 512) * CHUNK
    assert queue_push(queue, 32) == 0
    first = rig.chain(memory, [16] * (most - CHUNK + 1))
    assert queue_publish(queue, first, most - CHUNK + 1) == REFUSED_FULL
    rig.give_back(memory, first)
    assert queue_publish(queue, rig.chain(memory, [16] * (most - CHUNK)), most - CHUNK) == 0
    first = rig.chain(memory, [48])
    assert queue_publish(queue, first, 1) == REFUSED_FULL
    taken = 0
    while queue_take(queue):
        taken += 1
    assert taken == most - CHUNK + 1
    assert queue_publish(queue, first, 1) == 0
    assert queue_take(queue) == 48
