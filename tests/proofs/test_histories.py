"""Recorded histories of real threads on the compiled kernels: each must be one that a sequential twin could have
given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

import nbloop
from nbloop.kernels.build import object_cache
from tests.support.checker import Operation, linearizable, queue, timer

HISTORIES = 500 if object_cache.status.mode == "compiled" else 40


class Recorder:
    """Operations of several threads, with a common clock."""

    def __init__(self) -> None:
        self.history: list[Operation] = []  # list.append is atomic

    def __call__(self, name: str, argument: object, call: Callable[[], object]) -> None:
        start = time.monotonic_ns()
        result = call()
        self.history.append(Operation(name, argument, result, start, time.monotonic_ns()))

    def mark(self, name: str, argument: object, result: object, start: int) -> None:
        self.history.append(Operation(name, argument, result, start, time.monotonic_ns()))


def together(*bodies: Callable[[], None]) -> None:
    """Run them as threads that begin at the same moment."""
    barrier = threading.Barrier(len(bodies))
    failures: list[BaseException] = []

    def run(body: Callable[[], None]) -> None:
        try:
            barrier.wait(30)
            body()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def put(loop: nbloop.Loop, run: Callable[[int], None], item: int) -> bool:
    try:
        loop.submit(run, item)
    except nbloop.LoopTerminatedError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
def test_submits_are_a_queue(closing: bool) -> None:
    """put = submit, take = the callback's run; all of a history's tasks are there before it ends."""
    for number in range(HISTORIES):
        recorder = Recorder()
        with nbloop.Loop(chunk_size=16) as loop:
            free = [time.monotonic_ns()]  # since when the loop could have taken its next task

            def run(item: int, recorder: Recorder = recorder, free: list[int] = free) -> None:
                recorder.mark("take", None, item, free[0])
                free[0] = time.monotonic_ns()

            def produce(first: int, loop: nbloop.Loop = loop, recorder: Recorder = recorder) -> None:
                for item in range(first, first + 2):
                    recorder("put", item, lambda item=item: put(loop, run, item))

            bodies = [lambda first=first: produce(first) for first in (10, 20)]
            if closing:
                bodies.append(lambda loop=loop, recorder=recorder: recorder("close", None, loop.shutdown))
            together(*bodies)
        assert linearizable(recorder.history, queue, ((), True)), f"history {number}: {recorder.history}"


def test_a_timer_fires_or_one_cancel_is_told_so() -> None:
    with nbloop.Loop() as loop:
        for number in range(HISTORIES):
            recorder = Recorder()
            armed = time.monotonic_ns()

            def fire(recorder: Recorder = recorder, armed: int = armed) -> None:
                recorder.mark("fire", None, None, armed)

            identifier = loop.schedule_timer(20e-6 * (number % 4), fire)

            def cancel(identifier: int = identifier, recorder: Recorder = recorder) -> None:
                for _ in range(2):
                    recorder("cancel", None, lambda: loop.cancel_timer(identifier))

            together(cancel, cancel)
            done = threading.Event()
            loop.submit(loop.schedule_timer, 0, done.set)  # a turn later: the callback in progress has ended
            assert done.wait(30)
            assert linearizable(recorder.history, timer, "armed"), f"history {number}: {recorder.history}"
            outcomes = [op for op in recorder.history if op.name == "fire" or op.result is True]
            assert len(outcomes) == 1, f"history {number}: {recorder.history}"


def operation(name: str, argument: object, result: object, start: int, end: int) -> Operation:
    return Operation(name, argument, result, start, end)


@pytest.mark.parametrize(
    ("history", "right"),
    [
        ([("put", 1, True, 0, 3), ("put", 2, True, 1, 2), ("take", None, 2, 3, 4), ("take", None, 1, 5, 6)], True),
        ([("put", 1, True, 0, 1), ("put", 2, True, 2, 3), ("take", None, 2, 4, 5), ("take", None, 1, 6, 7)], False),
        ([("put", 1, True, 0, 1), ("take", None, 1, 2, 3), ("take", None, 1, 4, 5)], False),
        ([("close", None, None, 0, 1), ("put", 1, True, 2, 3)], False),
        ([("put", 1, False, 0, 1), ("close", None, None, 2, 3)], False),
        ([("put", 1, False, 0, 2), ("close", None, None, 1, 3)], True),
    ],
)
def test_the_checker_itself(history: list[tuple[str, object, object, int, int]], right: bool) -> None:
    assert linearizable([operation(*each) for each in history], queue, ((), True)) is right
