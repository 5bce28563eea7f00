"""What does it cost to have several loops instead of one?"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import nbloop

TASKS = 10_000


class GroupSubmit:
    """A task for the less busy of two loops, beside a task for a loop that the caller names; no loop runs."""

    params = ("loop", "group", "group, by key")
    param_names = ("entrance",)

    def setup(self, entrance: str) -> None:
        self.group = nbloop.LoopGroup(2)
        numbers = itertools.cycle(range(64))
        self.submit = {
            "loop": self.group.loops[0].submit,
            "group": self.group.submit,
            "group, by key": lambda callback: self.group.submit_to(next(numbers), callback),
        }[entrance]

    def teardown(self, _entrance: str) -> None:
        self.group.close()

    def time_submit(self, _entrance: str) -> None:
        """Decides whether reading the words of two loops may be the way that a group takes for every task."""
        submit = self.submit
        for _ in range(TASKS):
            submit(int)


class GroupLife:
    """A group of two made, started and ended."""

    def time_make_start_and_end(self) -> None:
        """Decides whether a test or a job may have a group of its own."""
        with nbloop.LoopGroup(2):
            pass


class WorkerCall:
    """`worker.call` there and back, beside what asyncio has for it, on the same two loops."""

    params = ("worker.call", "run_coroutine_threadsafe")
    param_names = ("way",)
    CALLS = 3_000

    def track_call(self, way: str) -> float:
        """Decides whether a call to another loop is cheap enough to be how workers share what only one of them has."""

        async def main(worker: nbloop.Worker) -> float:
            if not worker.primary:
                await done
                return 0.0
            begun = time.perf_counter()
            for _ in range(self.CALLS):
                if way == "worker.call":
                    await worker.call(1, nothing)
                else:
                    there = asyncio.run_coroutine_threadsafe(nothing(), worker.group.loops[1])
                    await asyncio.wrap_future(there)
            took = time.perf_counter() - begun
            await worker.call(1, end)
            return took / self.CALLS * 1e6

        async def nothing() -> None: ...

        async def end() -> None:
            done.set_result(None)

        done: asyncio.Future[None]

        async def make(worker: nbloop.Worker) -> float:
            nonlocal done
            if worker.index == 1:
                done = worker.loop.create_future()
                ready.set()
            else:
                await asyncio.to_thread(ready.wait)
            return await main(worker)

        ready = threading.Event()
        return nbloop.serve(make, loops=2)[0]

    track_call.unit = "µs"  # type: ignore[attr-defined]
