"""What goes from loop to loop: `worker.call` and `nbloop.aio.Queue`, beside what others have for it.

    python -m asv_bench.between [--md docs/figures.md]

All of one row take turns, round by round. Calls go between two loops in two threads: a hundred at once, so that both
loops are awake, or one after both have slept. Queues are measured on nbloop's loops, and `asyncio.Queue` on the other
loops, too. The time after a sleep is elapsed time. All other is CPU time of the process, both sides: it hardly depends
on what else the machine does. Culsans and janus are in requirements/ecosystem.txt, uvloop in requirements/peers.txt.
What is not installed is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import nbloop
import nbloop.aio

from . import report
from .peers import installed

CALLS = 4000
AT_ONCE = 100
CALLS_ASLEEP = 100
REST = 0.002  # seconds after which a loop is surely asleep
ITEMS = 4000
ROUNDS = 5

type Make = Callable[[], asyncio.AbstractEventLoop]
type Run = Callable[[], float]  # µs for one call or item


async def nothing() -> None:
    """What is called."""


async def _timed(call: Callable[[], Awaitable[object]], asleep: bool) -> float:
    """µs for a call, from a coroutine that awaits it."""
    if not asleep:
        await asyncio.gather(*(call() for _ in range(AT_ONCE)))
        begun = time.process_time()
        for _ in range(CALLS // AT_ONCE):
            await asyncio.gather(*(call() for _ in range(AT_ONCE)))
        return (time.process_time() - begun) / CALLS * 1e6
    took = []
    for _ in range(CALLS_ASLEEP):
        await asyncio.sleep(REST)
        begun = time.perf_counter()
        await call()
        took.append(time.perf_counter() - begun)
    return statistics.median(took) * 1e6


def call_of_workers(asleep: bool) -> float:
    """`worker.call`."""

    async def main(worker: nbloop.Worker) -> float:
        return await _timed(lambda: worker.call(1, nothing), asleep) if worker.primary else 0.0

    return nbloop.serve(main, loops=2)[0]


def call_of_asyncio(make: Make, asleep: bool) -> float:
    """`asyncio.run_coroutine_threadsafe` and `asyncio.wrap_future`, on two loops that `make` makes."""
    other = make()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    def call() -> Awaitable[object]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(nothing(), other))

    try:
        with asyncio.Runner(loop_factory=make) as runner:
            return runner.run(_timed(call, asleep))
    finally:
        other.call_soon_threadsafe(other.stop)
        thread.join()
        other.close()


class AioQueue:
    """`nbloop.aio.Queue`."""

    name = "aio.Queue"

    def __init__(self) -> None:
        queue: nbloop.aio.Queue[int] = nbloop.aio.Queue()
        self.put, self.get = queue.put_nowait, queue.get


class AsyncioQueue:
    """`asyncio.Queue` and `call_soon_threadsafe`."""

    name = "asyncio.Queue"

    def __init__(self) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.put, self.get = lambda item: loop.call_soon_threadsafe(queue.put_nowait, item), queue.get


class Culsans:
    """`culsans.Queue`."""

    name = "culsans"

    def __init__(self) -> None:
        queue = importlib.import_module("culsans").Queue()
        self.put, self.get = queue.sync_q.put_nowait, queue.async_q.get


class Janus:
    """`janus.Queue`."""

    name = "janus"

    def __init__(self) -> None:
        queue = importlib.import_module("janus").Queue()
        self.put, self.get = queue.sync_q.put_nowait, queue.async_q.get


def through(queue: Callable[[], Any], producers: int, loops: bool, make: Make = nbloop.new_event_loop) -> float:
    """µs for an item from `producers` threads, or coroutines on as many loops, to one coroutine; `make` makes loops."""
    each = ITEMS // producers

    async def main() -> float:
        way = queue()

        async def put_all() -> None:
            for item in range(each):
                way.put(item)
                if item & 63 == 0:
                    await asyncio.sleep(0)

        def produce() -> None:
            if loops:
                run(put_all())
            else:
                for item in range(each):
                    way.put(item)

        threads = [threading.Thread(target=produce) for _ in range(producers)]
        begun = time.process_time()
        for thread in threads:
            thread.start()
        for _ in range(each * producers):
            await way.get()
        took = time.process_time() - begun
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        return took / (each * producers) * 1e6

    def run[T](coroutine: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=make) as runner:
            return runner.run(coroutine)

    return run(main())


def rows() -> dict[str, tuple[float, dict[str, Run]]]:
    """By what is measured: how many times faster nbloop has to be, and what takes part, nbloop first."""
    found: dict[str, tuple[float, dict[str, Run]]] = {}
    makers: dict[str, Make] = {"asyncio": asyncio.SelectorEventLoop}
    if installed("uvloop"):
        makers["uvloop"] = importlib.import_module("uvloop").new_event_loop
    for asleep in (False, True):
        ways: dict[str, Run] = {"nbloop": lambda asleep=asleep: call_of_workers(asleep)}
        for name, make in makers.items():
            ways[name] = lambda make=make, asleep=asleep: call_of_asyncio(make, asleep)
        found[f"a call there and back, {'asleep: elapsed' if asleep else 'awake: CPU'} time"] = 2.0, ways
    queues: list[Any] = [AioQueue, AsyncioQueue]
    queues += [one for one in (Culsans, Janus) if installed(one.name)]
    for loops in (False, True):
        for producers in (1, 2, 4):
            what = f"an item, {producers} {'loop' if loops else 'thread'}{'s' * (producers > 1)} to a loop: CPU time"
            ways = {
                one.name: lambda one=one, producers=producers, loops=loops: through(one, producers, loops)
                for one in queues
            }
            for name, make in makers.items():
                ways[f"asyncio.Queue on {name}"] = lambda producers=producers, loops=loops, make=make: through(
                    AsyncioQueue, producers, loops, make
                )
            found[what] = 3.0, ways
    return found


def measure(ways: dict[str, Run]) -> dict[str, list[float]]:
    """All that take part, in turn; the first round is not counted."""
    rounds = [{name: run() for name, run in ways.items()} for _ in range(ROUNDS + 1)][1:]
    return {name: [one[name] for one in rounds] for name in ways}


def table() -> str:
    """Each row as Markdown: medians, and how many times nbloop's the others take, by medians of the rounds' ratios."""
    lines = ["| what | nbloop | others | reach | reached |", "|---|---|---|---|---|"]
    for what, (target, ways) in rows().items():
        seen = measure(ways)
        first, *others = seen
        ratios = {
            name: statistics.median(theirs / ours for ours, theirs in zip(seen[first], seen[name], strict=True))
            for name in others
        }
        cells = ", ".join(f"{name} {statistics.median(seen[name]):.3g} µs ({ratios[name]:.2g}x)" for name in others)
        lost = [name for name, ratio in ratios.items() if ratio < target]
        lines.append(
            f"| {what} | {statistics.median(seen[first]):.3g} µs | {cells} | ≥ {target:g}x | "
            f"{'yes' if not lost else '**NO**: ' + ', '.join(lost)} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--md", type=Path, help="write the table into this file, between its marks")
    options = parser.parse_args()
    text = f"{report.prose(report.heading() + '.')}\n\n{table()}\n"
    if options.md:
        report.write(options.md, text, "written by python -m asv_bench.between")
