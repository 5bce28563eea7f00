"""Swaps that fail because of another thread are counted, each once, and no others: the words `retries` of the kernels.

Two ways: another thread comes exactly between a kernel's look and its swap; and, under every schedule that the explorer
tries, the words are what a count of the swaps themselves says.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from nbloop.kernels.base import atomics, layout
from nbloop.kernels.base.atomics import get, put
from nbloop.kernels.base.capi import Py_IncRef
from nbloop.kernels.base.layout import EXACT, HANDLE
from nbloop.kernels.ingress import ticket_queue
from nbloop.kernels.memory import pool, slots, stack
from nbloop.kernels.timers import timer_slots
from nbloop.kernels.turn import external
from tests.support import rig

CHUNK = 16
type Act = Callable[[], object]


def between(monkeypatch: pytest.MonkeyPatch, module: ModuleType, other: Act) -> list[bool]:
    """Have `other` happen between the module's next look at a word and its swap; how its swaps went, as they go."""
    went: list[bool] = []
    waiting = [other]

    def swap(address: int, expected: int, value: int) -> bool:
        if waiting:
            waiting.pop()()
            del went[:]  # the other's own
        went.append(atomics.compare_and_swap(address, expected, value))
        return went[-1]

    monkeypatch.setattr(module, "compare_and_swap", swap)
    return went


def all_retries(memory: rig.Memory) -> dict[str, int]:
    record = memory.record
    return {
        "submit": int(record["external"]["retries"]),
        "remote": int(record["remote"]["retries"]),
        "producers": int(record["ready_retries"]),
        "chunks": int(record["pool"]["free_retries"]),
        "slabs": int(record["pool"]["free_slabs_retries"]),
        "slots": int(record["timers"]["retries"]),
    }


@pytest.fixture
def memory() -> rig.Memory:
    return rig.Memory(chunk_size=CHUNK)


def test_nothing_is_counted_without_contention(memory: rig.Memory) -> None:
    queue = memory.external
    for word in range(16, 16 * 100, 16):
        assert ticket_queue.queue_push(queue, word) == 0
    while ticket_queue.queue_take(queue):
        pass
    for _ in range(5):
        pool.pool_give(memory.pool, pool.pool_take(memory.pool))
        slots.slot_free(memory.timers, slots.slot_take(memory.timers))
    pool.pool_trim(memory.pool)
    ticket_queue.queue_close(queue)
    assert set(all_retries(memory).values()) == {0}


def test_stack(memory: rig.Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a push, and of a pop."""
    one, two, three = (pool.pool_take(memory.pool) for _ in range(3))
    went = between(monkeypatch, stack, lambda: pool.pool_give(memory.pool, two))
    pool.pool_give(memory.pool, one)
    assert went == [False, True]
    assert all_retries(memory)["chunks"] == 1
    assert rig.stacked(memory.pool + layout.POOL.FREE, get(memory.pool + layout.POOL.NEXT))[:2] == [one, two]
    went = between(monkeypatch, stack, lambda: pool.pool_give(memory.pool, three))
    assert pool.pool_take(memory.pool) == three
    assert went == [False, True]
    counted = all_retries(memory)
    assert counted.pop("chunks") == 2
    assert set(counted.values()) == {0}


def test_slots(memory: rig.Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    slots.slot_free(memory.timers, slots.slot_take(memory.timers))
    went = between(monkeypatch, stack, lambda: slots.slot_take(memory.timers))
    slots.slot_take(memory.timers)
    assert went == [False, True]
    assert all_retries(memory)["slots"] == 1


def test_a_draw_with_a_limit(memory: rig.Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = memory.external
    put(queue + layout.QUEUE.GATE, EXACT)
    went = between(monkeypatch, ticket_queue, lambda: ticket_queue.queue_draw(queue, 1))
    assert ticket_queue.queue_draw(queue, 1) == 1
    assert went == [False, True]
    assert all_retries(memory)["submit"] == 1


def test_a_chunk_that_another_has_installed(memory: rig.Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One swap, which is not made again: what it was for has been done."""
    queue = memory.external
    went = between(monkeypatch, ticket_queue, lambda: ticket_queue.queue_push(queue, 16))
    assert ticket_queue.queue_push(queue, 32) == 0
    assert went == [False]
    assert all_retries(memory)["submit"] == 1


def test_a_chunk_that_another_has_installed_for_a_batch(memory: rig.Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = memory.external
    words = rig.np.array([16, 32], rig.np.int64)
    went = between(monkeypatch, ticket_queue, lambda: ticket_queue.queue_push(queue, 48))
    assert ticket_queue.queue_push_many(queue, words.ctypes.data, 2) == 0
    assert went == [False]
    assert all_retries(memory)["submit"] == 1


def test_a_close(memory: rig.Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = memory.external
    went = between(monkeypatch, ticket_queue, lambda: ticket_queue.queue_draw(queue, 1))
    ticket_queue.queue_close(queue)
    assert went == [False, True]
    assert all_retries(memory)["submit"] == 1


def test_handles(memory: rig.Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [rig.np.zeros(layout.HANDLE.dtype.itemsize // 8, rig.np.int64) for _ in range(2)]
    one, two = (state.ctypes.data for state in states)
    went = between(monkeypatch, external, lambda: external.handle_ready(memory.base, two))
    external.handle_ready(memory.base, one)
    assert went == [False, True]
    assert all_retries(memory)["producers"] == 1
    assert int(memory.record["ready"]) == one
    assert get(one + HANDLE.NEXT_READY) == two


@pytest.mark.parametrize("what", ["cancel", "reference"])
def test_a_timer_s_word(memory: rig.Memory, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Both read the word, and another thread flips its other bit before they swap it."""
    base = memory.base
    slot = slots.slot_take(memory.timers)
    callback = object()
    Py_IncRef(id(callback))
    identifier = slots.slot_open(memory.timers, slot, id(callback), slots.PENDING)
    went = between(monkeypatch, timer_slots, lambda: timer_slots.timer_reference(base, identifier, False))
    if what == "cancel":
        assert timer_slots.timer_cancel(base, identifier, False)
        assert went == [False, True]
    else:
        assert timer_slots.timer_reference(base, identifier, False)
        assert went == [False]  # and then there is nothing left to do
    assert all_retries(memory)["slots"] == 1


def test_the_words_are_what_has_failed() -> None:
    """Under all schedules: two threads at one stack."""
    it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")
    from tests.support.explorer import search, together

    most = 0

    def model() -> None:
        nonlocal most
        with it.no_interleave():
            words = rig.np.zeros(5, rig.np.int64)
            head, links = words.ctypes.data, words.ctypes.data + 16
            for index in range(3):
                stack.stack_push(head, links, index, index)
        failed: list[Any] = []
        swap = stack.compare_and_swap

        def counting(address: int, expected: int, value: int) -> bool:
            done = swap(address, expected, value)
            if not done:
                failed.append(None)
            return done

        def body() -> None:
            index = stack.stack_pop(head, links)
            stack.stack_push(head, links, index, index)

        stack.compare_and_swap = counting
        try:
            together(body, body)
        finally:
            stack.compare_and_swap = swap
        assert get(head + stack.RETRIES) == len(failed), "counted and failed differ"
        most = max(most, len(failed))

    search(model, 60)
    assert most >= 2, "no schedule had the threads meet"
