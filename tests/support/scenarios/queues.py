"""`nbloop.aio.Queue`: calls of the main thread, beside waiters on a thread of their own or in a coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

import nbloop
from nbloop.aio import Queue
from tests.support.waiting import PATIENCE, wait_for
from tests.support.world import World

from .scenario import Steps, scenario


class Other:
    """Somebody who gets or puts once, on a thread: blocking, or in a coroutine."""

    def __init__(self, queue: Queue[Any], call: str, *args: object) -> None:
        self.outcome: list[object] = []
        self._queue = queue
        self._call = call
        self._args = args
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        call: Callable[..., Any] = getattr(self._queue, self._call)
        try:
            self.outcome.append(call(*self._args) if "wait" in self._call else nbloop.run(call(*self._args)))
        except asyncio.QueueShutDown:
            self.outcome.append("shut down")

    def start(self) -> None:
        self._thread.start()

    def join(self) -> object:
        """What it got. It must not hang."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it waits for ever"
        return self.outcome[0]


def waiting(queue: Queue[Any]) -> int:
    return len(queue._getters) + len(queue._putters)


def line_up(queue: Queue[Any], *others: Other) -> None:
    """They wait then, in this order."""
    for number, other in enumerate(others, 1):
        other.start()
        wait_for(lambda number=number: waiting(queue) == number)  # type: ignore[misc]


def at_rest(queue: Queue[Any]) -> None:
    """Nothing is promised to anybody, and the queue works as a new one does."""
    assert queue._reserved == queue._granted == waiting(queue) == 0
    for _ in range(queue.qsize()):
        queue.get_nowait()
    assert queue.empty()
    for number in range(queue.maxsize):
        queue.put_nowait(number)
    assert queue.full() or not queue.maxsize
    assert [queue.get_nowait() for _ in range(queue.maxsize)] == list(range(queue.maxsize))
    with pytest.raises(asyncio.QueueEmpty):
        queue.get_nowait()


def _puts(world: World, call: str, getter: str) -> Steps:
    """The item is put, and the getter has it without another call, or it is not put."""
    queue = world.to_go(Queue[int]())
    other = Other(queue, getter)
    line_up(queue, other)
    yield lambda: getattr(queue, call)(1)
    wait_for(lambda: other.outcome or queue.qsize() == 0)
    queue.put_nowait(2)
    assert other.join() in (1, 2)
    at_rest(queue)


def _gets(world: World, call: str, putter: str) -> Steps:
    """The item is taken, and the putter has its place without another call, or it is not taken."""
    queue = world.to_go(Queue[int](1))
    queue.put_nowait(1)
    other = Other(queue, putter, 2)
    line_up(queue, other)
    yield getattr(queue, call)
    wait_for(lambda: other.outcome or (waiting(queue) and queue.qsize() == 1))
    if not other.outcome:
        assert queue.get_nowait() == 1
    assert other.join() is None
    assert queue.get_nowait() == 2
    at_rest(queue)


@scenario
def put_wait_for_a_thread(world: World) -> Steps:
    return _puts(world, "put_wait", "get_wait")


@scenario
def put_nowait_for_a_coroutine(world: World) -> Steps:
    return _puts(world, "put_nowait", "get")


@scenario
def get_wait_before_a_thread(world: World) -> Steps:
    return _gets(world, "get_wait", "put_wait")


@scenario
def get_nowait_before_a_coroutine(world: World) -> Steps:
    return _gets(world, "get_nowait", "put")


def _waits(world: World, queue: Queue[int], call: Callable[[], object], serve: Callable[[], object]) -> Steps:
    """It gets what it waits for, or leaves the line."""
    over = threading.Event()

    def meet() -> None:
        wait_for(lambda: over.is_set() or waiting(queue))
        serve()

    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    yield call
    over.set()
    thread.join(PATIENCE)
    at_rest(queue)


@scenario
def get_wait_in_line(world: World) -> Steps:
    queue = world.to_go(Queue[int]())
    return _waits(world, queue, queue.get_wait, lambda: queue.put_nowait(1))


@scenario
def put_wait_in_line(world: World) -> Steps:
    queue = world.to_go(Queue[int](1))
    queue.put_nowait(1)
    return _waits(world, queue, lambda: queue.put_wait(2), queue.get_nowait)


@scenario
def get_wait_that_gives_up(world: World) -> Steps:
    """The next one in line gets the item."""
    queue = world.to_go(Queue[int]())
    other = Other(queue, "get_wait")

    def call() -> None:
        with pytest.raises(TimeoutError):
            queue.get_wait(0)

    line_up(queue, other)
    yield call
    queue.put_nowait(1)
    assert other.join() == 1
    at_rest(queue)


@scenario
def cancelled_get(world: World) -> Steps:
    """It leaves the line, and the next item is not for it."""
    queue, loop = world.to_go(Queue[int]()), nbloop.EventLoop()
    asyncio._set_running_loop(loop)
    coroutine = queue.get()
    coroutine.send(None)

    def call() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            coroutine.throw(asyncio.CancelledError())

    try:
        yield call
    finally:
        coroutine.close()
        asyncio._set_running_loop(None)
        loop.close()
    queue.put_nowait(1)
    assert queue.get_nowait() == 1
    at_rest(queue)


def _shuts(world: World, immediate: bool) -> Steps:
    """It is complete, or the next call completes it: all who wait are refused."""
    queue = world.to_go(Queue[int]())
    others = [Other(queue, "get_wait"), Other(queue, "get")]
    line_up(queue, *others)
    yield lambda: queue.shutdown(immediate)
    queue.shutdown(immediate)
    assert [other.join() for other in others] == ["shut down"] * 2
    assert queue._reserved == queue._granted == waiting(queue) == 0


@scenario
def shutdown_with_getters(world: World) -> Steps:
    return _shuts(world, False)


@scenario
def immediate_shutdown_with_getters(world: World) -> Steps:
    return _shuts(world, True)


@scenario
def immediate_shutdown_with_items(world: World) -> Steps:
    """The items are dropped, and the putter is refused."""
    queue = world.to_go(Queue[int](1))
    queue.put_nowait(1)
    other = Other(queue, "put_wait", 2)
    line_up(queue, other)
    yield lambda: queue.shutdown(True)
    queue.shutdown(True)
    assert other.join() == "shut down"
    assert queue.qsize() == 0
    with pytest.raises(asyncio.QueueShutDown):
        queue.get_nowait()
