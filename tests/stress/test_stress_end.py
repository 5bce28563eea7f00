"""Submits that race the end of a loop: what was accepted runs (`shutdown`), or is dropped and released (`close`)."""

from __future__ import annotations

import threading
import time
import weakref
from itertools import chain
from typing import Any

import pytest

import nbloop
from tests.support.crowd import PATIENCE, crowd, scaled


class Task:
    """A callback whose release can be observed, and which notes that it ran."""

    def __init__(self, executed: list[int], name: int) -> None:
        self.executed, self.name = executed, name

    def __call__(self) -> None:
        self.executed.append(self.name)


class Producer:
    """Submits until it is refused; what was accepted, and how much of it has been released."""

    def __init__(self, submit: Any, executed: list[int], first: int) -> None:
        self.submit, self.executed, self.first = submit, executed, first
        self.accepted: list[int] = []
        self.tasks: list[weakref.ref[Task]] = []
        self.started = threading.Event()

    def __call__(self) -> None:
        try:
            for name in range(self.first, self.first + 1_000_000):
                task = Task(self.executed, name)
                watch = weakref.ref(task)
                self.submit(task)
                self.accepted.append(name)
                self.tasks.append(watch)
                self.started.set()
        except nbloop.LoopTerminatedError:
            return
        finally:
            del task
            self.started.set()


def race(end: str, entrance: str, running: bool) -> tuple[list[Producer], list[int]]:
    """Two producers against the end of one loop."""
    loop, executed = nbloop.Loop(chunk_size=16), []
    doors = [loop if entrance == "loop" else loop.producer() for _ in range(2)]
    producers = [Producer(door.submit, executed, i * 1_000_000) for i, door in enumerate(doors)]
    if running:
        loop.start()
    with crowd() as threads:
        for producer in producers:
            threads.add(producer)
        threads.go.set()
        for producer in producers:
            assert producer.started.wait(PATIENCE)
        loop.shutdown(PATIENCE) if end == "shutdown" else loop.close()
    return producers, executed


@pytest.mark.slow
@pytest.mark.parametrize("running", [True, False], ids=["running", "awake"])
@pytest.mark.parametrize("entrance", ["loop", "handle"])
def test_shutdown_runs_what_was_accepted(entrance: str, running: bool) -> None:
    """accepted = executed, each once; also if the loop was never run."""
    for _ in range(scaled(30, 5)):
        producers, executed = race("shutdown", entrance, running)
        assert sorted(executed) == sorted(chain(*(p.accepted for p in producers)))
        for producer in producers:
            mine = [name for name in executed if name // 1_000_000 == producer.first // 1_000_000]
            assert mine == producer.accepted


@pytest.mark.slow
@pytest.mark.parametrize("running", [True, False], ids=["running", "awake"])
@pytest.mark.parametrize("entrance", ["loop", "handle"])
def test_close_runs_or_releases_what_was_accepted(entrance: str, running: bool) -> None:
    """accepted = executed + dropped; every callback is released, whichever of the two became of it."""
    for _ in range(scaled(30, 5)):
        producers, executed = race("close", entrance, running)
        for producer in producers:
            mine = [name for name in executed if name // 1_000_000 == producer.first // 1_000_000]
            assert mine == producer.accepted[: len(mine)], "dropped is a tail of what was accepted"
            settle(producer.tasks)


def settle(tasks: list[weakref.ref[Task]]) -> None:
    """Every task is released. The owner of a reference count may do so a moment after another thread released it."""
    deadline = time.monotonic() + PATIENCE
    while any(task() is not None for task in tasks):
        assert time.monotonic() < deadline, "a callback was not released"
        time.sleep(0)


@pytest.mark.slow
def test_shutdown_of_a_loop_on_its_way_to_sleep() -> None:
    """A shutdown that comes while the loop spins before its sleep is seen."""
    for number in range(scaled(1000, 100)):
        loop = nbloop.Loop()
        thread = loop.start()
        arrived = threading.Event()
        loop.submit(arrived.set)
        assert arrived.wait(PATIENCE)
        for _ in range(number % 64):
            pass
        loop.shutdown(PATIENCE)
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.slow
def test_stop_of_a_loop_on_its_way_to_sleep() -> None:
    """So is a stop, and the loop can be run again."""
    loop = nbloop.Loop()
    for number in range(scaled(1000, 100)):
        thread = loop.start()
        arrived = threading.Event()
        loop.submit(arrived.set)
        assert arrived.wait(PATIENCE)
        for _ in range(number % 64):
            pass
        loop.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"stop {number} was lost"
    loop.close()


def test_auto_exit_against_submit() -> None:
    """A loop that ends by itself runs what it accepted, or refuses it."""
    for _ in range(scaled(400, 50)):
        loop, executed = nbloop.Loop(auto_exit=True), []
        producer = Producer(loop.submit, executed, 0)
        loop.submit(executed.append, -1)

        def few(producer: Producer = producer) -> None:
            try:
                for name in range(20):
                    producer.submit(producer.executed.append, name)
                    producer.accepted.append(name)
            except nbloop.LoopTerminatedError:
                pass

        with crowd() as threads:
            threads.add(few)
            threads.add(loop.run)
        assert executed == [-1, *producer.accepted]
