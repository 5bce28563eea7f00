"""What a server costs: CPU time of its loop's thread, for a message that arrives and goes back over TCP.

CPU time, not elapsed time: another thread of this process makes the load, and other work on the machine hardly affects
CPU time.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Any

from .drive import Asyncio


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's are no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


class Served:
    """A probe: ns of CPU time for a message of `size` bytes, sent back by a protocol or, with `streams`, through
    asyncio's. `driven` runs in a thread of its own. All of the `connections` have a message on its way at once.
    """

    def __init__(
        self, label: str, driven: Asyncio, streams: bool, size: int, connections: int = 20, rounds: int = 50
    ) -> None:
        self.label, self.driven, self.rounds = label, driven, rounds
        self._message = bytes(size)
        opened = self._open(streams)
        self._server = asyncio.run_coroutine_threadsafe(opened, driven.loop).result()
        address = self._server.sockets[0].getsockname()
        self._clients = [socket.create_connection(address) for _ in range(connections)]
        for client in self._clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @staticmethod
    async def _open(streams: bool) -> asyncio.Server:
        if streams:
            return await asyncio.start_server(_serve, "127.0.0.1", 0)
        return await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0)

    async def _spent(self) -> int:
        return time.thread_time_ns()

    def _cpu(self) -> int:
        return asyncio.run_coroutine_threadsafe(self._spent(), self.driven.loop).result()

    def __call__(self) -> Mapping[str, float]:
        start = self._cpu()
        for _ in range(self.rounds):
            for client in self._clients:
                client.sendall(self._message)
            for client in self._clients:
                client.recv(len(self._message), socket.MSG_WAITALL)
        return {self.label: (self._cpu() - start) / (self.rounds * len(self._clients))}

    def close(self) -> None:
        """Close all connections, and the server."""
        for client in self._clients:
            client.close()
        asyncio.run_coroutine_threadsafe(self._end(), self.driven.loop).result(10)

    async def _end(self) -> None:
        self._server.close()
        await self._server.wait_closed()
