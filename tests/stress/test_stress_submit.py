"""Many producers at once on the compiled kernels: nothing lost, nothing twice, everybody's order kept."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import nbloop
from tests.support.crowd import GIL, PATIENCE, arrived, crowd, scaled

PRODUCERS = 8


class Receipts:
    """One list of numbers for each producer, appended to on the loop's thread only."""

    def __init__(self, producers: int) -> None:
        self.lists: list[list[int]] = [[] for _ in range(producers)]

    def check(self, counts: list[int]) -> None:
        for received, count in zip(self.lists, counts, strict=True):
            assert len(received) == count, f"{count} submitted, {len(received)} ran"
            assert received == list(range(count)), "not in the order of one producer"


def rest(dice: random.Random) -> None:
    """Now and then let others on the core, so that producers meet the loop both behind and asleep."""
    if dice.random() < 0.001:
        time.sleep(0)


def one_by_one(submit: Callable[..., None], _many: Any, receive: Callable[[int], None], count: int, seed: int) -> None:
    dice = random.Random(seed)
    for number in range(count):
        submit(receive, number)
        rest(dice)


def mixed(
    submit: Callable[..., None], submit_many: Callable[..., int], receive: Callable[[int], None], count: int, seed: int
) -> None:
    """Batches of up to 300, which cross segments of 128, between single ones."""
    dice = random.Random(seed)
    number = 0
    while number < count:
        if dice.random() < 0.9:
            submit(receive, number)
            number += 1
        else:
            size = min(dice.choice([1, 2, 17, 128, 300]), count - number)
            assert submit_many([partial(receive, number + i) for i in range(size)]) == size
            number += size
        rest(dice)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("chunk_size", [16, 128])
@pytest.mark.parametrize("produce", [one_by_one, mixed])
@pytest.mark.parametrize("entrance", ["loop", "handle"])
def test_nothing_lost_nothing_twice(entrance: str, produce: Callable[..., None], chunk_size: int) -> None:
    """8 × 200,000 submits, from `submit`, `submit_many` or handles of one's own, to a running loop."""
    count = scaled(200_000)
    receipts = Receipts(PRODUCERS)
    loop = nbloop.Loop(chunk_size=chunk_size)
    loop.start()
    with crowd() as producers:
        for number, received in enumerate(receipts.lists):
            door = loop if entrance == "loop" else loop.producer()
            producers.add(produce, door.submit, door.submit_many, received.append, count, number)
    loop.shutdown(PATIENCE)
    receipts.check([count] * PRODUCERS)


def test_one_total_order() -> None:
    """Two producers that take turns by a lock submit in its order, and the tasks run in that order."""
    loop, order = nbloop.Loop(chunk_size=16), []
    lock, numbers = threading.Lock(), iter(range(1 << 60))
    count = scaled(20_000, 1000)

    def produce() -> None:
        for _ in range(count):
            with lock:
                loop.submit(order.append, next(numbers))

    loop.start()
    with crowd() as producers:
        for _ in range(2):
            producers.add(produce)
    loop.shutdown(PATIENCE)
    assert order == list(range(2 * count))


@pytest.mark.parametrize("name", ["schedule_microtask", "schedule_next_tick", "submit_internal", "schedule_close"])
def test_other_queues_from_foreign_threads(name: str) -> None:
    """Microtasks, next-ticks, internal tasks and close callbacks of other threads: none lost, each thread's in
    order.
    """
    receipts = Receipts(4)
    loop = nbloop.Loop(chunk_size=16)
    count = scaled(20_000, 500)

    def produce(received: list[int]) -> None:
        schedule = getattr(loop, name)
        for number in range(count):
            schedule(received.append, number)

    loop.start()
    with crowd() as producers:
        for received in receipts.lists:
            producers.add(produce, received)
    loop.shutdown(PATIENCE)
    receipts.check([count] * 4)


def fill(loop: nbloop.Loop, done: list[None], accepted: list[int], number: int) -> None:
    try:
        while True:
            loop.submit(done.append, None)
            accepted[number] += 1
    except nbloop.LoopOverloadedError:
        return


def test_limit_is_exact() -> None:
    """Four producers fill a loop that does not run: `ingress_limit` tasks are accepted, not one more or less, and
    run.
    """
    for limit in range(90, 90 + scaled(50, 10)):
        loop, done = nbloop.Loop(chunk_size=16, ingress_limit=limit), []
        accepted = [0] * 4

        with crowd() as producers:
            for number in range(4):
                producers.add(fill, loop, done, accepted, number)
        assert sum(accepted) == limit
        loop.shutdown(PATIENCE)
        assert len(done) == limit


def test_handles_come_and_go() -> None:
    """Short-lived handles, dropped while the loop drains them: their tasks run all the same, and their memory is
    released.
    """
    loop, done = nbloop.Loop(chunk_size=16), []
    rounds = scaled(500, 50)

    def produce() -> None:
        for _ in range(rounds):
            handle = loop.producer()
            for _ in range(5):
                handle.submit(done.append, None)

    loop.start()
    with crowd() as producers:
        for _ in range(4):
            producers.add(produce)
    loop.shutdown(PATIENCE)
    assert len(done) == 4 * rounds * 5
    assert not loop._state.handles


def test_sleeping_loop_gets_every_task() -> None:
    """Sleep and wake, many times: after each task the producer waits for it, so the loop goes to sleep between any
    two.
    """
    loop = nbloop.Loop()
    rounds = scaled(5000, 500)
    loop.start()
    dice = random.Random(1)
    for number in range(rounds):
        event = threading.Event()
        loop.submit(event.set)
        arrived(event, f"task {number}")
        if number % 8 == 0:  # let it come to different points of its way to sleep
            for _ in range(dice.randrange(2000)):
                pass
    loop.shutdown(PATIENCE)


@pytest.mark.skipif(GIL, reason="with the GIL the two threads take turns of milliseconds")
def test_submit_meets_the_moment_of_falling_asleep() -> None:
    """A loop that does not spin goes to sleep within a microsecond of its last task; the next submit comes about
    then.
    """
    loop, done = nbloop.Loop(), []
    loop._record["spin_max"] = 0
    rounds = scaled(60_000, 300)
    loop.start()
    dice = random.Random(1)
    for number in range(rounds):
        loop.submit(done.append, None)
        tries = 0
        while len(done) <= number:
            tries += 1
            if tries % 100_000 == 0:
                time.sleep(0.001)  # so that a machine with one core goes on too
                assert tries < 50_000_000, f"task {number} was lost"
        for _ in range(dice.randrange(40)):
            pass
    loop.shutdown(PATIENCE)


def test_sleeping_loop_and_two_producers() -> None:
    """As above with two producers, one of them through a handle: a wake-up claimed by one serves the other."""
    loop = nbloop.Loop()
    rounds = scaled(3000, 300)

    def produce(submit: Callable[..., None], seed: int) -> None:
        dice = random.Random(seed)
        for number in range(rounds):
            event = threading.Event()
            submit(event.set)
            arrived(event, f"task {number}")
            for _ in range(dice.randrange(300)):
                pass

    loop.start()
    with crowd() as producers:
        producers.add(produce, loop.submit, 1)
        producers.add(produce, loop.producer().submit, 2)
    loop.shutdown(PATIENCE)
    record = loop._record
    assert record["wakes_sent"] == record["claimed"], "a wake-up that the loop has not seen"
