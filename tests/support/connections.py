"""Both ends of a connection on this machine, and protocols that note what happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import nbloop
from nbloop.aio.loop import UNPOLLED_TURNS
from tests.support.waiting import PATIENCE

POLL_EVERY = UNPOLLED_TURNS + 1  # turns
LOOPS = {"asyncio": asyncio.new_event_loop, "nbloop": nbloop.new_event_loop}


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    ends = tcp_pair() if kind == "tcp" else socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return ends


async def settle() -> None:
    """Let what has happened to sockets of this machine reach the protocols, and that have its effect in turn."""
    for _ in range(8 * POLL_EVERY):
        await asyncio.sleep(0)


def on_loop(
    factory: Callable[[], asyncio.AbstractEventLoop], log: list[object], play: Coroutine[Any, Any, None]
) -> None:
    """Run a program on a loop of `factory`'s; what the loop's exception handler gets is noted, too."""

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: log.append((context["message"], repr(context.get("exception"))))
        )
        await asyncio.wait_for(play, PATIENCE)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def misused(peer: socket.socket, rounds: int, *calls: Callable[[], object]) -> int:
    """Messages come from `peer`, while other threads make these calls, one thread each. Returns how many bytes the peer
    got meanwhile.
    """
    stop = threading.Event()

    def misuse(call: Callable[[], object]) -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):
                call()

    threads = [threading.Thread(target=misuse, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    got = 0
    for _ in range(rounds):
        with contextlib.suppress(OSError):
            peer.send(b"x" * 100)
        with contextlib.suppress(OSError):
            got += len(peer.recv(1 << 16))
        await settle()
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    return got


def left_by(main: Callable[[], Coroutine[Any, Any, list[object]]], kind: type) -> list[object]:
    """Run `main` without a collection: what it returns, and the objects of `kind` that it has left. What was there
    before does not count, because 3.13t frees no class that was made beside a second thread, nor what it refers to.
    """

    def there() -> list[object]:
        return [one for one in gc.get_objects() if type(one) is kind]

    gc.collect()
    gc.disable()
    try:
        before = set(map(id, there()))
        left = nbloop.run(main())
        return left + [one for one in there() if id(one) not in before]
    finally:
        gc.enable()


class Wrapped:
    """Not a socket, but behaves as one."""

    def __init__(self, sock: socket.socket) -> None:
        self.inner = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Notes(asyncio.BaseProtocol):
    """Notes the calls that all protocols get."""

    def __init__(self, log: list[object]) -> None:
        self.log = log

    def connection_lost(self, exc: Exception | None) -> None:
        self.log.append(("lost", type(exc), getattr(exc, "args", None)))

    def pause_writing(self) -> None:
        self.log.append("pause")

    def resume_writing(self) -> None:
        self.log.append("resume")


class Logged(Notes, asyncio.Protocol):
    """Notes its calls, and does in the next one what `plans` says."""

    def __init__(self, log: list[object]) -> None:
        super().__init__(log)
        self.plans: list[str] = []
        self.keeps_open = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.log.append("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.log.append(("data", data))
        for plan in self.plans:
            if plan == "echo":
                self.transport.write(data)
            elif plan == "raise":
                self.plans = []
                raise ValueError(len(data))
            elif plan == "replace":
                self.plans = []
                self.transport.set_protocol(Logged(self.log))
            elif plan == "buffered":
                self.plans = []
                self.transport.set_protocol(Buffered(self.log))
            else:
                getattr(self.transport, plan)()

    def eof_received(self) -> bool:
        self.log.append("eof")
        return self.keeps_open


class Buffered(asyncio.BufferedProtocol):
    def __init__(self, log: list[object]) -> None:
        self.log = log
        self.buffer = bytearray(65536)

    def get_buffer(self, sizehint: int) -> bytearray:
        assert sizehint == -1
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.log.append(("buffer", bytes(self.buffer[:nbytes])))

    def connection_lost(self, exc: Exception | None) -> None:
        self.log.append(("lost", type(exc), getattr(exc, "args", None)))
