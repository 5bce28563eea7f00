"""Timers and immediates cancelled from many threads: every answer is definite, and they add up."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections import deque
from collections.abc import Callable

import pytest

import nbloop
from tests.support.crowd import PATIENCE, arrived, crowd, scaled

NEVER = 3600.0


def flush(loop: nbloop.Loop, after: float = 0.0) -> None:
    """Everything that is due by then has run."""
    done = threading.Event()
    loop.schedule_timer(after, lambda: loop.submit(done.set))
    arrived(done, "a timer")


def test_cancelled_and_fired_add_up() -> None:
    """Armed with short delays on some threads, cancelled on others, twice each: cancelled + fired = scheduled."""
    loop, fired = nbloop.Loop(), []
    count, crews = scaled(20_000, 500), 4
    cancelled = [0] * crews
    wrong: list[int] = []
    loop.start()

    def arm(ids: deque[tuple[int, int]], crew: int) -> None:
        dice = random.Random(crew)
        for number in range(count):
            delay = dice.choice([0, 0, 0.0001, 0.001, NEVER])
            ids.append((loop.schedule_timer(delay, fired.append, (crew, number)), delay == NEVER))
        ids.append((0, False))

    def cancel(ids: deque[tuple[int, int]], crew: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            if not ids:
                assert time.monotonic() < deadline
                time.sleep(0)
                continue
            identifier, never = ids.popleft()
            if identifier == 0:
                return
            answer = loop.cancel_timer(identifier)
            if (never and not answer) or loop.cancel_timer(identifier):
                wrong.append(identifier)
            cancelled[crew] += answer

    with crowd() as threads:
        for crew in range(crews):
            ids: deque[tuple[int, int]] = deque()
            threads.add(arm, ids, crew)
            threads.add(cancel, ids, crew)
    flush(loop, 0.01)
    assert not wrong
    assert len(fired) + sum(cancelled) == crews * count
    assert len(set(fired)) == len(fired)
    assert not loop.alive()
    loop.shutdown(PATIENCE)


def test_many_threads_cancel_the_same_timers() -> None:
    """Of all that cancel one timer, the loop included, exactly one is told True, unless the timer fired."""
    loop, fired = nbloop.Loop(), []
    loop.start()
    for _ in range(scaled(50, 10)):
        fired.clear()
        ids = [loop.schedule_timer(0.0005, fired.append, number) for number in range(100)]
        cancelled: list[list[int]] = []

        def cancel(order: list[int], ids: list[int] = ids, cancelled: list[list[int]] = cancelled) -> None:
            answers = loop.cancel_timers([ids[number] for number in order])
            cancelled.append([number for number, answer in zip(order, answers, strict=True) if answer])

        with crowd() as threads:
            for start in (0, 25, 50, 75):
                threads.add(cancel, [*range(start, 100), *range(start)])
            threads.add(loop.submit, cancel, list(range(99, -1, -1)))
        flush(loop, 0.002)
        assert len(cancelled) == 5
        assert sorted(sum(cancelled, fired)) == list(range(100))
    loop.shutdown(PATIENCE)


def test_intervals_cancelled_from_elsewhere() -> None:
    """After `cancel_timer` has returned True to another thread, at most the call in progress still ends."""
    loop = nbloop.Loop()
    loop.start()
    counts = [0] * 50

    def tick(number: int) -> None:
        counts[number] += 1

    for _ in range(scaled(10, 3)):
        ids = [loop.schedule_interval(0, tick, number) for number in range(50)]
        flush(loop)
        with crowd() as threads:
            for part in range(5):
                threads.add(cancel_all, loop, ids[part::5])
        flush(loop)  # the call in progress has ended
        before = list(counts)
        flush(loop, 0.001)
        assert counts == before, "an interval ran after it was cancelled"
        assert not loop.alive()
    assert all(counts)
    loop.shutdown(PATIENCE)


def cancel_all(loop: nbloop.Loop, ids: list[int]) -> None:
    assert all(loop.cancel_timers(ids))


def each(call: Callable[[int], object], ids: list[int]) -> None:
    for identifier in ids:
        call(identifier)


def test_immediates_cancelled_from_elsewhere() -> None:
    """cancelled + run = scheduled, for immediates of foreign threads."""
    loop, ran = nbloop.Loop(), []
    count = scaled(20_000, 500)
    cancelled = [0] * 4
    loop.start()

    def produce(number: int) -> None:
        for i in range(count):
            identifier = loop.schedule_immediate(ran.append, (number, i))
            if i % 3 == 0:
                cancelled[number] += loop.cancel_immediate(identifier)

    with crowd() as threads:
        for number in range(4):
            threads.add(produce, number)
    loop.shutdown(PATIENCE)
    assert len(ran) + sum(cancelled) == 4 * count
    for number in range(4):
        mine = [i for who, i in ran if who == number]
        assert mine == sorted(mine)
        assert set(range(count)) - set(mine) <= set(range(0, count, 3)), "one ran not, and was not cancelled"


def test_references_follow_their_timers() -> None:
    """ref and unref from two threads while a third cancels: nothing is left that counts."""
    loop = nbloop.Loop()
    loop.start()
    for _ in range(scaled(50, 10)):
        ids = [loop.schedule_timer(NEVER, list) for _ in range(100)]
        with crowd() as threads:
            threads.add(each, loop.unref_timer, ids)
            threads.add(each, loop.ref_timer, ids[::-1])
            threads.add(cancel_all, loop, ids)
        assert not loop.alive()
        record = loop._record["timers"]
        assert record["unreferenced"] == 0
    loop.shutdown(PATIENCE)


@pytest.mark.slow
def test_collector_is_not_held_up_by_built_in_callbacks() -> None:
    """A loop whose callbacks execute no bytecode lets another thread collect garbage: it checks for interrupts."""
    loop = nbloop.Loop()
    numbers: deque[int] = deque(maxlen=1)
    stop = threading.Event()
    loop.start()

    def feed() -> None:
        batch = [numbers.clear] * 1000
        while not stop.is_set():
            loop.submit_many(batch)
            done = threading.Event()
            loop.submit(done.set)
            arrived(done, "a task")

    with crowd() as threads:
        threads.add(feed)
        threads.go.set()
        try:
            for _ in range(20):
                start = time.monotonic()
                gc.collect()
                assert time.monotonic() - start < 5.0
        finally:
            stop.set()
    loop.shutdown(PATIENCE)


def test_collector_is_not_held_up_by_a_sleeping_loop() -> None:
    """A waiting thread is detached."""
    with nbloop.Loop() as loop:
        for _ in range(5):
            start = time.monotonic()
            gc.collect()
            assert time.monotonic() - start < 5.0
        assert loop.state in (nbloop.LoopState.SLEEPING, nbloop.LoopState.RUNNING)


def test_slots_go_back_while_others_take_them() -> None:
    """Peaks of timers on three threads, while the loop sends slabs of slots to rest between them: each id is new, each
    cancel finds its own timer, and a stale id none.
    """
    loop, peak, rounds = nbloop.Loop(), 40_000, scaled(4, 1)
    wrong: list[str] = []
    every: set[int] = set()
    loop.start()

    def peaks(crew: int) -> None:
        mine: list[int] = []
        for _ in range(rounds):
            ids = [loop.schedule_timer(NEVER + number, len, ()) for number in range(peak)]
            some = random.Random(crew).sample(ids, peak)
            if not all(loop.cancel_timers(some)) or any(loop.cancel_timers(mine[-2 * peak :])):
                wrong.append("a cancel")
            mine += ids
        every.update(mine)

    with crowd() as threads:
        for crew in range(3):
            threads.add(peaks, crew)
    assert not wrong
    assert len(every) == 3 * rounds * peak
    flush(loop)
    deadline = time.monotonic() + PATIENCE
    record = loop._record["timers"]
    while int(record["slot_count"]) - 1024 * int(record["rest_count"]) > 32 * 1024:
        assert time.monotonic() < deadline, "the memory of slots is kept"
        flush(loop, 0.001)
    assert not loop.alive()
    loop.shutdown(PATIENCE)
