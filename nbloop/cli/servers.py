"""For `nbloop demo`: what a request costs a server, with each loop that is installed.

Problem: clients on the same machine take most of its time, so requests a second say little about the loop. Idea: only
the CPU time of the loop's own thread counts. The loops take turns, round by round, so that other work of the machine
affects all of them.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from ..aio import new_event_loop

CONNECTIONS = 20
REQUESTS = 50  # of each connection, in a round
ROUNDS = 5
PATIENCE = 30.0  # seconds for an answer

PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\nHello world\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's transports are not instances of asyncio.Transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Http(_Echo):
    """Answers each request with the same page: what any framework does, and nothing more."""

    def __init__(self) -> None:
        self._read = b""

    def data_received(self, data: bytes) -> None:
        *requests, self._read = (self._read + data).split(b"\r\n\r\n")
        self._transport.write(PAGE * len(requests))


KINDS: dict[str, tuple[type[_Echo], bytes, bytes]] = {
    "echo": (_Echo, bytes(64), bytes(64)),
    "HTTP": (_Http, GET, PAGE),
}


class _Server:
    """A loop that serves, in a thread of its own, with its clients."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: type[_Echo], request: bytes, answer: bytes) -> None:
        self._loop, self._protocol, self._request, self._answer = loop, protocol, request, answer
        self._thread = threading.Thread(target=loop.run_forever, name="server", daemon=True)
        self._clients: list[socket.socket] = []
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._server = server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
            for _ in range(CONNECTIONS):
                self._clients.append(socket.create_connection(server.sockets[0].getsockname(), timeout=PATIENCE))
            self.round()  # what happens once in a connection's life
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(self._protocol, "127.0.0.1", 0)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _spent(self) -> int:
        return time.thread_time_ns()

    def spent(self) -> int:
        """The CPU time of the loop's thread, in ns."""
        return asyncio.run_coroutine_threadsafe(self._spent(), self._loop).result()

    def round(self) -> float:
        """ns of CPU time for a request."""
        before = self.spent()
        for _ in range(REQUESTS):
            for client in self._clients:
                client.sendall(self._request)
            for client in self._clients:
                missing = len(self._answer)
                while missing:
                    got = len(client.recv(missing))
                    if not got:
                        raise ConnectionError("the server has hung up")
                    missing -= got
        return (self.spent() - before) / (REQUESTS * CONNECTIONS)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The function that makes each loop, nbloop's first."""
    found: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "nbloop": new_event_loop,
        "asyncio": asyncio.SelectorEventLoop,
    }
    if importlib.util.find_spec("uvloop") is not None:
        found["uvloop"] = importlib.import_module("uvloop").new_event_loop
    return found


def measure() -> dict[str, dict[str, float]]:
    """ns of CPU time for a request, by kind of server and by loop: medians of interleaved rounds."""
    figures: dict[str, dict[str, float]] = {}
    for kind, (protocol, request, answer) in KINDS.items():
        with ExitStack() as stack:
            servers = {
                name: stack.enter_context(_Server(make(), protocol, request, answer)) for name, make in loops().items()
            }
            rounds = [{name: server.round() for name, server in servers.items()} for _ in range(ROUNDS)]
        figures[kind] = {name: statistics.median(one[name] for one in rounds) for name in servers}
    return figures
