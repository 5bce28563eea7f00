"""What the JavaScript view does: promises, combinators, its timeouts; each beside what an asyncio user writes instead.

As in `workloads`, each function makes a probe of one thread, which is the loop's. `queue_microtask` and
`set_immediate` are the loop's own methods: `workloads.burst` measures them, and `subprocesses.Node` measures Node's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import repeat
from typing import Any, Literal

import numpy as np

from nbloop.js import JS
from nbloop.js.promise import Promise

from .drive import Asyncio, Nbloop
from .measure import Probe, clock, each, loop_cost, nothing
from .workloads import arm_and_cancel, until_end

CHAIN = 10  # handlers in a chain
ITEMS = 100  # promises for `all`
REPEAT = 20  # chains, or calls of `all`, in a round
PENDING = 1000  # timers that wait meanwhile
QUEUED = 1000  # items of a queue in a round


def create(label: str, js: JS, count: int = 1000) -> Probe:
    """Make a pending promise and drop it: ``label``; with its two resolving functions: ``label+resolvers``."""

    def probe() -> Mapping[str, float]:
        base = loop_cost()
        bare = each(Promise, count, js) - base
        return {label: bare, f"{label}+resolvers": each(js.with_resolvers, count) - base}

    return probe


def create_future(label: str, theirs: Asyncio, count: int = 1000) -> Probe:
    """`create` for an asyncio future."""
    return lambda: {label: each(theirs.loop.create_future, count) - loop_cost()}


def _in_turn(label: str, ours: Nbloop, begin: Callable[[Callable[[Any], None]], object], times: int) -> Probe:
    """ns for one of `times` runs, each begun by the end of the previous one: ``begin(end)`` must make ``end(...)`` be
    called.
    """

    def all_runs(end: Callable[..., object]) -> None:
        left = times

        def next_run(outcome: Any) -> None:
            nonlocal left
            left -= 1
            if left:
                begin(next_run)
            else:
                end(outcome)

        begin(next_run)

    return lambda: {label: until_end(ours, all_runs) / times}


def same(value: Any) -> Any:
    """The handler of a chain of plain values."""
    return value


def chain(
    label: str, ours: Nbloop, js: JS, length: int = CHAIN, times: int = REPEAT, step: Callable[[Any], Any] = same
) -> Probe:
    """A resolved promise and `length` times `then`, until the last handler runs: ns for all of it."""

    def begin(end: Callable[[Any], None]) -> None:
        promise = js.resolve(1)
        for _ in repeat(None, length - 1):
            promise = promise.then(step)
        promise.then(end)

    return _in_turn(label, ours, begin, times)


def all_resolved(label: str, ours: Nbloop, js: JS, items: int = ITEMS, times: int = REPEAT) -> Probe:
    """`all` of promises that are already resolved, until the handler of its promise runs."""
    promises = [js.resolve(value) for value in range(items)]
    return _in_turn(label, ours, lambda end: js.all(promises).then(end), times)


def _coroutine(label: str, theirs: Asyncio, work: Callable[[], Coroutine[Any, Any, object]], times: int) -> Probe:
    """ns for one of `times` runs of a coroutine, awaited in turn by one task."""

    async def main() -> int:
        start = clock()
        for _ in repeat(None, times):
            await work()
        return clock() - start

    return lambda: {label: theirs.loop.run_until_complete(main()) / times}


def await_chain(label: str, theirs: Asyncio, length: int = CHAIN, times: int = REPEAT) -> Probe:
    """`length` futures awaited in turn, each completed through `call_soon`: what `chain` is to a coroutine."""
    create_future, soon = theirs.loop.create_future, theirs.loop.call_soon

    async def work() -> None:
        for _ in repeat(None, length):
            future = create_future()
            soon(future.set_result, 1)
            await future

    return _coroutine(label, theirs, work, times)


def gather_done(label: str, theirs: Asyncio, items: int = ITEMS, times: int = REPEAT) -> Probe:
    """`asyncio.gather` of futures that are already done."""
    futures = [theirs.loop.create_future() for _ in range(items)]
    for value, future in enumerate(futures):
        future.set_result(value)

    async def work() -> None:
        await asyncio.gather(*futures)

    return _coroutine(label, theirs, work, times)


def timeouts(label: str, ours: Nbloop, js: JS, pending: int = PENDING) -> Probe:
    """`set_timeout` and `clear_timeout` of the id that it returned: what `workloads.timer_pairs` is to the loop's own
    timers, and to asyncio's.
    """
    for delay in np.random.default_rng(1).uniform(1e6, 2e6, pending).tolist():
        js.set_timeout(nothing, delay)
    return arm_and_cancel(label, ours, js.set_timeout, js.clear_timeout, nothing, 1000)


def queue(label: str, ours: Nbloop, js: JS, takers: int, how: Literal["backlog", "one by one", "passed on"]) -> Probe:
    """ns of CPU time for an item of a `js.queue` from `put` to one of its takers. All items are put at once; or each
    when the one before has been taken and all takers wait; or each by the taker of the one before, while only the other
    takers wait.
    """
    items, left = js.queue(), 0
    put_next: Callable[[], None] = {
        "backlog": nothing,
        "one by one": partial(js.queue_microtask, items.put, None),
        "passed on": partial(items.put, None),
    }[how]
    end: Callable[..., object] = nothing

    async def take() -> None:
        nonlocal left
        async for _ in items:
            left -= 1
            if not left:
                end()
            else:
                put_next()

    for _ in repeat(None, takers):
        js.spawn(take())

    def probe() -> Mapping[str, float]:
        marks: list[int] = []

        def begin(until: Callable[..., object]) -> None:
            nonlocal left, end
            left, end = QUEUED, until
            marks.append(time.thread_time_ns())
            for _ in repeat(None, QUEUED if how == "backlog" else 1):
                items.put(None)

        until_end(ours, begin)
        return {label: (time.thread_time_ns() - marks[0]) / QUEUED}

    return probe
