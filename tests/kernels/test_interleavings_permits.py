"""`aio.Queue` under controlled schedules: the word of permits.py, stepped through, and the lines of waiters around it.

Each model also shows that it would notice a bug.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

from nbloop.aio import queues  # noqa: E402
from nbloop.kernels.base.kernel import TwinMethod  # noqa: E402
from nbloop.kernels.base.layout import PERMITS_BUSY, PERMITS_PLACE  # noqa: E402
from nbloop.kernels.channels import permits  # noqa: E402
from tests.support import steps  # noqa: E402
from tests.support.checker import Operation, linearizable  # noqa: E402
from tests.support.explorer import find, mutant, replace, search, together  # noqa: E402

KERNELS = {
    "_put": permits.permits_put,
    "_put_held": permits.permits_put_held,
    "_take": permits.permits_take,
    "_take_held": permits.permits_take_held,
    "_hold": permits.permits_hold,
    "_change": permits.permits_change,
}


class Gate(queues._Waiter):
    """A waiter of the scheduler's."""

    __slots__ = ("event",)

    def prepare(self) -> None:
        self.event = it.Event()

    def wake(self) -> bool:
        self.event.set()
        return True


def stepped(maxsize: int) -> queues.Queue[Any]:
    """A queue whose kernels are plain Python, and whose lock the scheduler knows."""
    queue: Any = queues.Queue(maxsize)
    words = queue._put.__self__
    for name, kernel in KERNELS.items():
        setattr(queue, name, TwinMethod(kernel, words, kernel.function))
    queue._lock = it.Lock()
    return queue  # type: ignore[no-any-return]


def put(queue: Any, item: object) -> None:
    """`Queue.put`, with a gate in place of the future."""
    done = queue._put(item)
    if done is not None:
        waiter = Gate(queue._putters)
        if not queue._end_put(done, item, waiter):
            waiter.event.wait()
            queue._locked(queue._finish_put, waiter, item)


def get(queue: Any) -> Any:
    try:
        item = queue._take()
        if type(item) is queues._Due:
            waiter = Gate(queue._getters)
            item = queue._end_get(item, waiter)
            if item is queues._NOTHING:
                waiter.event.wait()
                item = queue._locked(queue._finish_get, waiter)
        return item
    except IndexError:
        raise AssertionError("a permit without an item") from None


def get_impatiently(queue: Any) -> Any:
    """A getter that gives up at once, though it may have been woken meanwhile. None then."""
    item = queue._take()
    if type(item) is queues._Due:
        waiter = Gate(queue._getters)
        item = queue._end_get(item, waiter)
        if item is queues._NOTHING:
            queue._locked(queue._give_up, waiter)
            return None
    return item


def at_rest(queue: Any, items: int) -> None:
    """Nobody waits, nothing is promised, and the word counts what is there."""
    assert not queue._getters
    assert not queue._putters
    assert queue._reserved == queue._granted == 0
    word = queue._change(0)
    assert not word & PERMITS_BUSY
    assert permits.available_of(word) == word // PERMITS_PLACE == len(queue._items) == items


class Flow:
    """Producers and consumers of two items each; with `impatient`, a getter more that may take one."""

    def __init__(self, maxsize: int, producers: int = 2, consumers: int = 2, impatient: bool = False) -> None:
        self.maxsize, self.producers, self.consumers, self.impatient = maxsize, producers, consumers, impatient

    def __call__(self) -> None:
        with it.no_interleave():
            queue = stepped(self.maxsize)
        seen: list[list[Any]] = [[] for _ in range(self.consumers + 1)]

        def produce(who: int) -> None:
            for n in range(2 * self.consumers // self.producers + (self.impatient and who == 0)):
                put(queue, (who, n))
                assert not self.maxsize or len(queue._items) <= self.maxsize, "more than maxsize"

        def consume(mine: list[Any]) -> None:
            mine.append(get(queue))
            mine.append(get(queue))

        threads: list[Callable[[], object]] = [lambda who=who: produce(who) for who in range(self.producers)]
        threads += [lambda mine=mine: consume(mine) for mine in seen[: self.consumers]]
        if self.impatient:
            threads.append(lambda: seen[-1].append(get_impatiently(queue)))
        together(*threads)
        with it.no_interleave():
            got = [item for mine in seen for item in mine if item is not None]
            left = list(queue._items)
            assert len(set(got + left)) == len(got + left) == 2 * self.consumers + self.impatient
            for mine in (*seen, left):
                for who in range(self.producers):
                    numbers = [item[1] for item in mine if item is not None and item[0] == who]
                    assert numbers == sorted(numbers), "out of order"
            at_rest(queue, len(left))


def one_for_another() -> None:
    """A putter waits for the place of the only item, and nobody comes after the getter."""
    with it.no_interleave():
        queue = stepped(1)
        queue.put_nowait(0)
    together(lambda: put(queue, 1), lambda: get(queue))
    with it.no_interleave():
        assert list(queue._items) == [1]
        at_rest(queue, 1)


class Shut:
    """A shutdown against two putters, and a getter that takes items until QueueShutDown."""

    def __init__(self, maxsize: int, immediate: bool) -> None:
        self.maxsize, self.immediate = maxsize, immediate

    def __call__(self) -> None:
        with it.no_interleave():
            queue: Any = stepped(self.maxsize)
        accepted: list[int] = []
        got: list[int] = []

        def produce(item: int) -> None:
            try:
                put(queue, item)
            except asyncio.QueueShutDown:
                return
            accepted.append(item)

        def consume() -> None:
            try:
                while True:
                    got.append(get(queue))
            except asyncio.QueueShutDown:
                pass

        together(lambda: produce(1), lambda: produce(2), consume, lambda: queue.shutdown(self.immediate))
        with it.no_interleave():
            assert set(got) <= set(accepted)
            assert self.immediate or sorted(got) == sorted(accepted), "an item was accepted and never came"
            at_rest(queue, 0)


def twin(state: Any, operation: Operation) -> Any:
    """(items, maxsize), for calls that do not wait."""
    items, maxsize = state
    if operation.name == "put":
        if len(items) == maxsize:
            return state if operation.result == "full" else None
        return ((*items, operation.argument), maxsize) if operation.result is None else None
    if not items:
        return state if operation.result == "empty" else None
    return (items[1:], maxsize) if items[0] == operation.result else None


class Verdicts:
    """Calls that do not wait: some order explains what each was answered, "full" and "empty" too."""

    def __init__(self, maxsize: int, *threads: str) -> None:
        self.maxsize, self.threads = maxsize, threads

    def __call__(self) -> None:
        with it.no_interleave():
            queue: Any = stepped(self.maxsize)
            for n in range(self.maxsize):
                queue.put_nowait(n)
        clock, numbers = itertools.count(), itertools.count(self.maxsize)
        history: list[Operation] = []

        def calls(names: str) -> None:
            for name in names:
                start, item = next(clock), None
                try:
                    if name == "p":
                        item = next(numbers)
                        result = queue.put_nowait(item)
                    else:
                        result = queue.get_nowait()
                except asyncio.QueueFull:
                    result = "full"
                except asyncio.QueueEmpty:
                    result = "empty"
                except IndexError:
                    raise AssertionError("a permit without an item") from None
                history.append(Operation("put" if name == "p" else "get", item, result, start, next(clock)))

        together(*(lambda names=names: calls(names) for names in self.threads))
        with it.no_interleave():
            assert linearizable(history, twin, (tuple(range(self.maxsize)), self.maxsize or 99)), history
            at_rest(queue, len(queue._items))


@pytest.fixture(autouse=True)
def logical_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that asks again lets others go first."""
    monkeypatch.setattr(queues, "time", SimpleNamespace(sleep=lambda _seconds: steps.pause()))


MODELS: dict[str, Callable[[], None]] = {
    "no size": Flow(0),
    "a size of 1": Flow(1),
    "a size of 2, one consumer": Flow(2, consumers=1),
    "no size, one gives up": Flow(0, producers=1, consumers=1, impatient=True),
    "a size of 1, one gives up": Flow(1, consumers=1, producers=1, impatient=True),
    "one for another": one_for_another,
    "shut": Shut(1, False),
    "shut, no size": Shut(0, False),
    "shut at once": Shut(1, True),
    "empty?": Verdicts(0, "p", "p", "gg"),
    "full?": Verdicts(2, "g", "g", "pp"),
}


@pytest.mark.parametrize("name", MODELS)
def test_queues(name: str) -> None:
    search(MODELS[name], 15)


def planted(function: Callable[..., Any], *edits: tuple[str, str]) -> Callable[[pytest.MonkeyPatch], None]:
    """A plant for `find`: a kernel's function with its bug."""
    return lambda patch: replace(patch, function, mutant(function, *edits))


def planted_method(name: str, *edits: tuple[str, str]) -> Callable[[pytest.MonkeyPatch], None]:
    """A method of the queue with its bug."""
    return lambda patch: patch.setattr(queues.Queue, name, mutant(getattr(queues.Queue, name), *edits))


@pytest.mark.parametrize(
    ("model", "plant"),
    [
        (
            "a size of 1",
            planted(
                permits.place_take,
                (
                    "if compare_and_swap(permits + PERMITS.WORD, word, word + PERMITS_PLACE):",
                    "if fetch_add(permits + PERMITS.WORD, PERMITS_PLACE) >= 0:",
                ),
            ),
        ),
        (
            "no size",
            planted(
                permits.permit_take,
                (
                    "if compare_and_swap(permits + PERMITS.WORD, word, word - PERMITS_AVAILABLE):",
                    "if fetch_add(permits + PERMITS.WORD, -PERMITS_AVAILABLE) >= 0:",
                ),
            ),
        ),
        ("no size", planted(permits.put_item, ("if word & FLAGS != 0 else", "if False else"))),
        ("one for another", planted(permits.take_item, ("if word & refusing != 0 and due == 0:", "if False:"))),
        ("no size", planted_method("_settle", ("    if not getters and not putters:", "    if True:"))),
        ("empty?", planted_method("_get_or_wait", ("elif not self._under_way(word):", "else:"))),
        ("full?", planted_method("_put_or_wait", ("elif not self._under_way(word):", "else:"))),
        (
            "shut, no size",
            planted_method("_none_will_come", (" and word // _PLACE == self._reserved + self._granted", "")),
        ),
    ],
    ids=[
        *(
            "place without swap",
            "permit without swap",
            "put does not serve",
            "get does not serve",
        ),
        *("not busy while somebody waits", "empty while one is under way", "full while one is under way"),
        "shut while one is under way",
    ],
)
def test_broken_queues_are_caught(model: str, plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    find(MODELS[model], plant)
