"""What asyncio programs do, on every asyncio loop that is installed: nbloop, asyncio, uvloop, zuvloop, rloop.

    python -m asv_bench.others [--md docs/figures.md] [--only WORD]

The loops of a row take turns in one process. A server's row is the CPU time of its loop's thread for a message or a
request; the other rows are elapsed time of one thread. None of the loops but asyncio and nbloop has a wheel for 3.13t,
so this is for an ordinary CPython (`pip install uvloop zuvloop rloop aiohttp uvicorn httptools`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import coroutines, report, workloads
from .cores import GET, hello
from .drive import Asyncio, NbloopAio
from .measure import Probe, Sample, clock, interleave, ratios
from .peers import Rloop, Uvloop, Zuvloop, installed, version
from .served import Served, ServedDatagrams, Visited, spent

ROUNDS = 15
PEERS = (Uvloop, Zuvloop, Rloop)
LIBRARIES = ("aiohttp", "uvicorn", "httptools")
# rloop 0.5 has no TLS, and crashes or hangs on the others.
LEFT_OUT = {("rloop", "tls"), ("rloop", "accept"), ("rloop", "datagram")}

type End = Callable[[], Coroutine[Any, Any, None]]


def loops() -> dict[str, Callable[[], Asyncio]]:
    """What makes each loop, by name; nbloop's is the first."""
    return {"nbloop": NbloopAio, "asyncio": Asyncio} | {of.name: of for of in PEERS if installed(of.name)}


# --- what only this table has


def sockets(label: str, driven: Asyncio, times: int = 500) -> Probe:
    """ns for a message to a socket and back through `sock_sendall` and `sock_recv`, both ends on the loop."""

    async def answer(sock: socket.socket) -> None:
        for _ in range(times):
            await driven.loop.sock_sendall(sock, await driven.loop.sock_recv(sock, 64))

    async def main() -> float:
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            there.setblocking(False)
            other = asyncio.ensure_future(answer(there))
            start = clock()
            for _ in range(times):
                await driven.loop.sock_sendall(here, b"x" * 64)
                await driven.loop.sock_recv(here, 64)
            took = clock() - start
            await other
            return took / times

    return lambda: {label: driven.loop.run_until_complete(main())}


def watchers(label: str, driven: Asyncio, times: int = 2000) -> Probe:
    """ns to watch a descriptor and forget it, with a turn after each, in which libuv does what it has put off."""

    async def main() -> float:
        here, there = socket.socketpair()
        with here, there:
            number = here.fileno()  # rloop takes no socket
            start = clock()
            for _ in range(times):
                driven.loop.add_reader(number, print)
                await asyncio.sleep(0)
                driven.loop.remove_reader(number)
                await asyncio.sleep(0)
            return (clock() - start) / times

    return lambda: {label: driven.loop.run_until_complete(main())}


def timeouts(label: str, driven: Asyncio, times: int = 500) -> Probe:
    """ns for an ``async with asyncio.timeout(...)``."""

    async def main() -> float:
        start = clock()
        for _ in range(times):
            async with asyncio.timeout(1000):
                pass
        return (clock() - start) / times

    return lambda: {label: driven.loop.run_until_complete(main())}


def executed(label: str, driven: Asyncio, times: int = 200) -> Probe:
    """ns for a call in the loop's executor that does nothing."""

    async def main() -> float:
        start = clock()
        for _ in range(times):
            await driven.loop.run_in_executor(None, int)
        return (clock() - start) / times

    return lambda: {label: driven.loop.run_until_complete(main())}


def processes(label: str, driven: Asyncio, times: int = 5) -> Probe:
    """ns for a subprocess that does nothing, until it has been waited for."""

    async def main() -> float:
        start = clock()
        for _ in range(times):
            process = await asyncio.create_subprocess_exec("true")
            await process.wait()
        return (clock() - start) / times

    return lambda: {label: driven.loop.run_until_complete(main())}


async def _uvicorn(sock: socket.socket) -> End:
    uvicorn = importlib.import_module("uvicorn")
    config = uvicorn.Config(hello, log_level="error", lifespan="off", access_log=False)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # it runs in a thread
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.01)

    async def end() -> None:
        server.should_exit = True
        await serving

    return end


async def _aiohttp(sock: socket.socket) -> End:
    web = importlib.import_module("aiohttp.web")

    async def hello(_request: Any) -> Any:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    return runner.cleanup  # type: ignore[no-any-return]


class Requested:
    """A probe: ns of CPU time for a request to an HTTP server, 20 connections at once. `driven` has its own thread."""

    def __init__(self, label: str, driven: Asyncio, serve: Any, connections: int = 20, rounds: int = 25) -> None:
        self.label, self.driven, self.rounds = label, driven, rounds
        sock = socket.create_server(("127.0.0.1", 0))
        address = sock.getsockname()  # the loops take the socket
        self._end = asyncio.run_coroutine_threadsafe(serve(sock), driven.loop).result(10)
        self._clients = [socket.create_connection(address) for _ in range(connections)]

    def __call__(self) -> Mapping[str, float]:
        start = spent(self.driven)
        for _ in range(self.rounds):
            for client in self._clients:
                client.sendall(GET)
            for client in self._clients:
                answer = b""
                while not answer.endswith(b"hello"):
                    if not (data := client.recv(4096)):
                        raise ConnectionError(f"{self.label} closed a connection after {answer!r}")
                    answer += data
        return {self.label: (spent(self.driven) - start) / (self.rounds * len(self._clients))}

    def close(self) -> None:
        for client in self._clients:
            client.close()
        asyncio.run_coroutine_threadsafe(self._end(), self.driven.loop).result(10)


# --- the rows


type Make = Callable[[str, Asyncio], Any]

ON_ITS_THREAD: dict[str, Make] = {
    "`call_soon`, until it has run": lambda name, of: workloads.burst(name, of, of.soon),
    "`call_soon_threadsafe` on the loop's thread, until it has run": lambda name, of: workloads.burst(
        name, of, of.soon_threadsafe
    ),
    "`call_later` and `cancel`": workloads.timer_pairs,
    "`asyncio.sleep(0)`, 100 tasks in turn": coroutines.switches,
    "`asyncio.create_task`, until it is awaited": coroutines.tasks,
    "`asyncio.timeout`": timeouts,
    "`add_reader`, a turn, `remove_reader`, a turn": watchers,
    "`sock_sendall` and `sock_recv`, there and back": sockets,
    "a line through streams, both ends": coroutines.Streams,
    "`run_in_executor`": executed,
    "a subprocess": processes,
}
MAKING: dict[str, Callable[[str, Callable[[], asyncio.AbstractEventLoop]], Probe]] = {
    "make a loop and close it": coroutines.lives,
    "`asyncio.Runner`": coroutines.runs,
}
SERVING: dict[str, tuple[str, Make]] = {
    "echo of 64 B": ("", lambda name, of: Served(name, of, streams=False, size=64)),
    "echo of 100 KiB": ("", lambda name, of: Served(name, of, streams=False, size=100 << 10)),
    "echo of 64 B through streams": ("", lambda name, of: Served(name, of, streams=True, size=64)),
    "echo of 100 KiB through streams": ("", lambda name, of: Served(name, of, streams=True, size=100 << 10)),
    "echo of 1 KiB with TLS": ("tls", lambda name, of: Served(name, of, streams=False, size=1024, tls=True)),
    "echo of a datagram of 64 B": ("datagram", lambda name, of: ServedDatagrams(name, of, 64)),
    "a connection: accept, a line, close": ("accept", lambda name, of: Visited(name, of, line=True, connections=200)),
    "uvicorn, a request": ("uvicorn", lambda name, of: Requested(name, of, _uvicorn)),
    "aiohttp, a request": ("aiohttp", lambda name, of: Requested(name, of, _aiohttp)),
}


def measured(only: str) -> Iterator[tuple[str, Mapping[str, list[float]]]]:
    """Each row, with what each loop took in each round."""
    makers = loops()
    for what, make in ON_ITS_THREAD.items():
        if only in what:
            driven = {name: made() for name, made in makers.items()}
            values = interleave(ROUNDS, [make(name, of) for name, of in driven.items()])
            yield what, {name: values.get(f"{name}+run", values[name]) for name in driven}
            for of in driven.values():
                of.close()
    for what, life in MAKING.items():
        if only in what:
            driven = {name: made() for name, made in makers.items()}
            yield what, interleave(ROUNDS, [life(name, of.make) for name, of in driven.items()])
            for of in driven.values():
                of.close()
    for what, (need, serve) in SERVING.items():
        if only in what and (need not in LIBRARIES or installed(need)):
            driven = {name: made() for name, made in makers.items() if (name, need) not in LEFT_OUT}
            for of in driven.values():
                of.start()
            probes = [serve(name, of) for name, of in driven.items()]
            yield what, interleave(ROUNDS, probes)
            for probe in probes:
                probe.close()
            for of in driven.values():
                of.close()


def table(only: str = "") -> str:
    """As Markdown: medians, and each other loop's as a multiple of nbloop's, by the median of the rounds' ratios."""
    names = list(loops())
    heads = [name if name in ("nbloop", "asyncio") else f"{name} {version(name)}" for name in names]
    lines = ["| " + " | ".join(["what", *heads, "faster than nbloop"]) + " |", "|---" * (len(names) + 2) + "|"]
    for what, values in measured(only):
        cells, faster = [report.brief_time(Sample.of(values["nbloop"]).median)], []
        for name in names[1:]:
            if name not in values:
                cells.append("–")
                continue
            ratio = Sample.of(ratios(values[name], values["nbloop"]))
            cells.append(f"{report.brief_time(Sample.of(values[name]).median)} ({ratio.median:.2f}x)")
            if ratio.high < 1:
                faster.append(name)
        lines.append("| " + " | ".join([what, *cells, ", ".join(faster) or "–"]) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m asv_bench.others", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the table into this file, between its marks")
    parser.add_argument("--only", default="", metavar="WORD", help="only rows with this in their name")
    options = parser.parse_args()
    servers = ", ".join(f"{one} {version(one)}" for one in LIBRARIES if installed(one))
    text = f"{report.prose(report.heading() + '; ' + servers + '.')}\n\n{table(options.only)}\n"
    if options.md:
        report.write(options.md, text, "written by python -m asv_bench.others")
