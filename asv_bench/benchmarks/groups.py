"""What does it cost to have several loops instead of one?"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import nbloop
import nbloop.aio

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


class QueueThrough:
    """Items through a queue from threads, or a second loop, to a coroutine, beside what asyncio has for it."""

    params = (("aio.Queue", "asyncio.Queue"), (1, 2, 4), ("threads", "loop"))
    param_names = ("queue", "producers", "from_")
    ITEMS = 4_000

    def setup(self, queue: str, producers: int, from_: str) -> None:
        if from_ == "loop" and producers > 1:
            raise NotImplementedError

    def track_item(self, queue: str, producers: int, from_: str) -> float:
        """Decides whether one queue may serve threads and loops, or each way needs one of its own."""
        each = self.ITEMS // producers

        async def main() -> float:
            loop = asyncio.get_running_loop()
            if queue == "aio.Queue":
                ours: nbloop.aio.Queue[int] = nbloop.aio.Queue()
                put, get = ours.put_nowait, ours.get
            else:
                theirs: asyncio.Queue[int] = asyncio.Queue()
                get = theirs.get

                def put(item: int) -> None:
                    loop.call_soon_threadsafe(theirs.put_nowait, item)

            async def put_all() -> None:
                for item in range(each):
                    put(item)
                    if item & 63 == 0:
                        await asyncio.sleep(0)

            def produce() -> None:
                if from_ == "loop":
                    nbloop.run(put_all())
                    return
                for item in range(each):
                    put(item)

            threads = [threading.Thread(target=produce) for _ in range(producers)]
            begun = time.perf_counter()
            for thread in threads:
                thread.start()
            for _ in range(each * producers):
                await get()
            took = time.perf_counter() - begun
            for thread in threads:
                thread.join()
            return took / (each * producers) * 1e6

        return nbloop.run(main())

    track_item.unit = "µs"  # type: ignore[attr-defined]
