"""Promises that many threads add handlers to and settle at once: each handler once, in its thread's order."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

import nbloop
from nbloop.js import JS, Promise
from tests.support.crowd import PATIENCE, arrived, crowd, scaled

EACH = 100  # handlers that a thread adds to a promise


@pytest.mark.parametrize("how", ["resolve", "reject"])
def test_then_meets_settle(how: str) -> None:
    """One thread adds handlers all the while; another adds some, and settles with the queue of reactions long."""
    rounds = scaled(1_000)
    logs: list[list[list[int]]] = [[[], []] for _ in range(rounds)]
    with nbloop.Loop() as loop:
        js = JS(loop)
        made = [js.with_resolvers() for _ in range(rounds)]
        arrivals = [0, 0]  # a barrier would let one go 50 us before the other, and that one be done by then

        def note(mine: list[int], n: int, _outcome: object) -> None:
            mine.append(n)

        def add(who: int) -> None:
            for (promise, resolve, reject), log in zip(made, logs, strict=True):
                arrivals[who] += 1
                while arrivals[1 - who] < arrivals[who]:
                    time.sleep(0)
                for n in range(EACH):
                    if who and n == EACH // 2:
                        (resolve if how == "resolve" else reject)(5)
                    handler = partial(note, log[who], n)
                    promise.then(handler, handler)

        with crowd() as threads:
            for who in range(2):
                threads.add(add, who)
        end = threading.Event()
        loop.submit(end.set)
        arrived(end, "the last handlers")
    assert {tuple(mine) for log in logs for mine in log} == {tuple(range(EACH))}


def test_all_of_promises_settled_everywhere() -> None:
    """Every list is complete and in order, whichever thread brings the last value."""
    rounds, size = scaled(2_000), 16
    results: list[list[int]] = []
    with nbloop.Loop() as loop:
        js = JS(loop)
        made = [[js.with_resolvers() for _ in range(size)] for _ in range(rounds)]
        done = threading.Event()

        def note(values: list[int]) -> None:
            results.append(values)
            if len(results) == rounds:
                done.set()

        def subscribe() -> None:
            for row in made:
                js.all([promise for promise, _resolve, _reject in row]).then(note)

        def settle(part: int) -> None:
            for row in made:
                for n in range(part, size, 3):
                    row[n][1](n)

        with crowd() as threads:
            threads.add(subscribe)
            for part in range(3):
                threads.add(settle, part)
        arrived(done, "the last list")
    assert results == [list(range(size))] * rounds


def test_chains_grow_while_they_settle() -> None:
    """Threads build chains on promises of other threads, whose ends are counted."""
    rounds, length = 2 * scaled(1_500), 10
    with nbloop.Loop() as loop:
        js = JS(loop)
        ends = 0
        done = threading.Event()

        def end(value: int) -> None:
            nonlocal ends
            assert value == length
            ends += 1
            if ends == 3 * rounds:
                done.set()

        heads: list[Promise[int]] = [
            js.resolve(0) if n % 2 else js.sleep(0).then(lambda _none: 0) for n in range(rounds)
        ]

        def build() -> None:
            for promise in heads:
                for _ in range(length):
                    promise = promise.then(lambda value: value + 1)  # noqa: PLW2901
                promise.then(end)

        with crowd() as threads:
            for _ in range(3):
                threads.add(build)
        assert done.wait(PATIENCE), f"{ends} of {3 * rounds} chains ended"
