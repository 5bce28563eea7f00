"""What N loops in one process cost a server, beside N processes and beside one loop.

    python -m asv_bench.cores [--md docs/figures.md]

A server is a process, or two that listen at one address, and this process is all of its clients. Servers take turns.
CPU time of the servers' processes is what counts: clients that use the same two cores decide how many requests there
are a second, but hardly what one costs. uvicorn takes part if it is installed (requirements/ecosystem.txt).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import nbloop

from . import report
from .peers import installed

CONNECTIONS = 32
SECONDS = 0.7
ROUNDS = 5
TICK = os.sysconf("SC_CLK_TCK")
MESSAGE = bytes(64)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAVY = 1_500  # µs of work that a message to the heavy connection takes


# --- servers


class Echo(asyncio.Protocol):
    """Sends back what comes; first works as long as a message says, which begins with `!`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if data[:1] == b"!":
            over = time.perf_counter() + HEAVY / 1e6
            while time.perf_counter() < over:
                pass
        self._transport.write(data)


async def _echo(sock: socket.socket, _index: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, sock=sock)
    await server.serve_forever()


async def _streams(sock: socket.socket, _index: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()

    server = await asyncio.start_server(serve, sock=sock)
    await server.serve_forever()


async def hello(_scope: Any, _receive: Any, send: Any) -> None:
    """An ASGI application with one answer."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


async def _uvicorn(sock: socket.socket, index: int) -> None:
    asgi = importlib.import_module("nbloop.asgi")
    config = asgi._config(hello, index, log_level="error", lifespan="off", access_log=False)
    server = asgi.uvicorn.Server(config)
    with contextlib.suppress(asyncio.CancelledError):
        await server.serve(sockets=[sock])


KINDS: Mapping[str, tuple[Callable[[socket.socket, int], Coroutine[Any, Any, None]], bytes]] = {
    "echo": (_echo, MESSAGE),
    "streams": (_streams, MESSAGE),
    "uvicorn": (_uvicorn, GET),
}


def serve(kind: str, loops: int, placement: str, port: int) -> None:
    """A server of one process, until SIGTERM."""
    serving, _ = KINDS[kind]
    if port:  # one of several processes
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen(1024)
            print(port, flush=True)
            nbloop.run(serving(sock, 0))

    async def main(worker: nbloop.Worker) -> None:
        sock = worker.listen("127.0.0.1", 0, placement=placement)  # type: ignore[arg-type]
        await worker.broadcast(asyncio.sleep, 0)
        if worker.primary:
            print(sock.getsockname()[1], flush=True)
        await serving(sock, worker.index)

    nbloop.serve(main, loops=loops)


# --- clients


class Server:
    """`processes` processes with `loops` loops each at one port, and its clients."""

    def __init__(self, kind: str, loops: int, processes: int = 1, placement: str = "system") -> None:
        self._ask = KINDS[kind][1]
        self._made: list[subprocess.Popen[str]] = []
        port = 0
        if processes > 1:
            with socket.create_server(("127.0.0.1", 0)) as one:
                port = one.getsockname()[1]
        for _ in range(processes):
            command = [sys.executable, "-W", "ignore", "-m", "asv_bench.cores", "--serve", kind]
            command += [str(loops), placement, str(port)]
            self._made.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in self._made:
            assert process.stdout is not None
            self.port = int(process.stdout.readline())
        until = time.monotonic() + 30
        while True:  # it has the port, and listens a moment later
            try:
                self.connect().close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > until:
                    raise

    def cpu(self) -> float:
        """Seconds of CPU time that its processes have taken."""
        total = 0
        for process in self._made:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def connect(self) -> socket.socket:
        """A client."""
        one = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return one

    def round(self) -> tuple[float, float]:
        """Requests a second, and µs of CPU time for one."""
        # No requests are on their way at the end, so servers see no resets.
        with contextlib.ExitStack() as stack:
            clients = {one.fileno(): one for one in (stack.enter_context(self.connect()) for _ in range(CONNECTIONS))}
            poll = stack.enter_context(select.epoll())
            for one in clients.values():
                poll.register(one, select.EPOLLIN)
                one.sendall(self._ask)
            done, before, begun = 0, self.cpu(), time.perf_counter()
            waiting = len(clients)
            while waiting:
                over = time.perf_counter() - begun > SECONDS
                for descriptor, _ in poll.poll(30):
                    clients[descriptor].recv(4096)
                    done += 1
                    if over:
                        waiting -= 1
                    else:
                        clients[descriptor].sendall(self._ask)
            took = time.perf_counter() - begun
            return done / took, (self.cpu() - before) / done * 1e6

    def delay(self) -> float:
        """ms that the slowest of a hundred answers takes on twenty connections that come while another one works."""
        with contextlib.ExitStack() as stack:
            over = threading.Event()
            heavy = stack.enter_context(self.connect())

            def work() -> None:
                while not over.is_set():
                    heavy.sendall(b"!" + MESSAGE[1:])
                    heavy.recv(4096)

            thread = threading.Thread(target=work)
            thread.start()
            stack.callback(thread.join)
            stack.callback(over.set)
            others = []
            for _ in range(20):
                time.sleep(0.02)  # clients come by and by, and a look at the loops takes place every 50 ms
                others.append(stack.enter_context(self.connect()))
            took = []
            until = time.perf_counter() + SECONDS
            while time.perf_counter() < until:
                for one in others:
                    begun = time.perf_counter()
                    one.sendall(MESSAGE)
                    one.recv(4096)
                    took.append(time.perf_counter() - begun)
            return sorted(took)[int(len(took) * 0.99)] * 1e3

    def close(self) -> None:
        """End it."""
        for process in self._made:
            process.send_signal(signal.SIGTERM)
        for process in self._made:
            process.communicate(timeout=60)


def measure(kind: str) -> str:
    """A row: two loops against two processes, and against one loop."""
    with contextlib.ExitStack() as stack:
        servers = [Server(kind, 2), Server(kind, 1, 2), Server(kind, 1)]
        for one in servers:
            stack.callback(one.close)
        rounds = [[one.round() for one in servers] for _ in range(ROUNDS + 1)][1:]
    rates = [statistics.median(one[at][0] for one in rounds) for at in range(3)]
    costs = [statistics.median(one[at][1] for one in rounds) for at in range(3)]
    per_cpu = [one[1][1] / one[0][1] for one in rounds]
    more = [one[0][1] / one[2][1] for one in rounds]
    beside = [one[0][0] / one[1][0] for one in rounds]
    cells = [kind, *(f"{cost:.1f} µs, {rate:,.0f}/s" for cost, rate in zip(costs, rates, strict=True))]
    for values in (beside, per_cpu, more):
        low, *_, high = sorted(values)
        cells.append(f"{statistics.median(values):.2f} ({low:.2f}–{high:.2f})")
    print("| " + " | ".join(cells) + " |", flush=True)
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """Markdown: medians of interleaved rounds, with the least and the most of the ratios."""
    lines = [
        "| server | 2 loops | 2 processes | 1 loop | requests, 2 loops / 2 processes (≥ 1.0) "
        "| the same for the CPU time (≥ 1.0) | CPU time a request, 2 loops / 1 loop (≤ 1.05) |",
        "|---|---|---|---|---|---|---|",
        *(measure(kind) for kind in KINDS if kind != "uvicorn" or installed("uvicorn")),
    ]
    with contextlib.ExitStack() as stack:
        servers = {placement: Server("echo", 2, 1, placement) for placement in ("system", "least busy")}
        for one in servers.values():
            stack.callback(one.close)
        rounds = [{name: one.delay() for name, one in servers.items()} for _ in range(ROUNDS)]
    system, least = (statistics.median(one[name] for one in rounds) for name in servers)
    ratio = statistics.median(one["system"] / one["least busy"] for one in rounds)
    heavy = (
        f"One heavy connection ({HEAVY / 1000:g} ms a message) among twenty others, on two loops: p99 of the others "
        f"{system:.2f} ms with placement by the system, {least:.2f} ms on the least busy loop: {ratio:.1f}x (≥ 2x)."
    )
    lines += ["", report.prose(heavy)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--md", type=Path, help="write the table into this file, between its marks")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, loops, placement, port = options.serve
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            serve(kind, int(loops), placement, int(port))
        sys.exit()
    text = f"{report.prose(report.heading() + '.')}\n\n{table()}"
    if options.md:
        report.write(options.md, text, "written by python -m asv_bench.cores")
