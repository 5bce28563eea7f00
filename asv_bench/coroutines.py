"""The typical work of an asyncio program, on any asyncio loop: switching between tasks, talking through streams.

As in `workloads`, each function makes a probe of one thread, which is the loop's. The probes for all loops measure
callbacks, timers and hops of these loops; this file has what only coroutines do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from .drive import Asyncio
from .measure import Probe, clock

MESSAGE = bytes(63) + b"\n"


def switches(label: str, driven: Asyncio, tasks: int = 100, times: int = 20) -> Probe:
    """ns for a task to give way and be resumed (``await asyncio.sleep(0)``), a number of tasks in turn."""

    async def one() -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    async def main() -> float:
        start = clock()
        await asyncio.gather(*(one() for _ in range(tasks)))
        return (clock() - start) / (tasks * times)

    return lambda: {label: driven.loop.run_until_complete(main())}


def tasks(label: str, driven: Asyncio, times: int = 500) -> Probe:
    """ns to make a task that ends at once, and await it."""

    async def nothing() -> None:
        pass

    async def main() -> float:
        start = clock()
        for _ in range(times):
            await asyncio.create_task(nothing())
        return (clock() - start) / times

    return lambda: {label: driven.loop.run_until_complete(main())}


def lives(label: str, make: Callable[[], asyncio.AbstractEventLoop], times: int = 20) -> Probe:
    """ns to make a loop and close it."""

    def probe() -> Mapping[str, float]:
        start = clock()
        for _ in range(times):
            make().close()
        return {label: (clock() - start) / times}

    return probe


def runs(label: str, make: Callable[[], asyncio.AbstractEventLoop], times: int = 20) -> Probe:
    """ns for a program that awaits nothing, as `asyncio.run` does it."""

    async def main() -> None:
        pass

    def probe() -> Mapping[str, float]:
        start = clock()
        for _ in range(times):
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(main())
        return {label: (clock() - start) / times}

    return probe


class Streams:
    """A probe: ns for a line of 64 bytes to a server and back through asyncio's streams, both ends on the loop."""

    def __init__(self, label: str, driven: Asyncio, connections: int = 20, times: int = 10) -> None:
        self.label, self.driven, self.connections, self.times = label, driven, connections, times

    def __call__(self) -> Mapping[str, float]:
        return {self.label: self.driven.loop.run_until_complete(self._main())}

    @staticmethod
    async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()
        await writer.wait_closed()

    async def _main(self) -> float:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            ends = [await asyncio.open_connection(*address) for _ in range(self.connections)]

            async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                for _ in range(self.times):
                    writer.write(MESSAGE)
                    await reader.readline()

            await asyncio.gather(*(talk(*end) for end in ends))  # what is made at first is made
            start = clock()
            await asyncio.gather(*(talk(*end) for end in ends))
            took = clock() - start
            for _, writer in ends:
                writer.close()
                await writer.wait_closed()
        return took / (self.connections * self.times)
