"""What a server costs: CPU time of its loop's thread, for a message that arrives and goes back over TCP, for a datagram
that does, and for a connection that comes and goes.

CPU time, not elapsed time: another thread of this process makes the load, and other work on the machine hardly affects
CPU time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

from .descriptors import room
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


class _EchoDatagram(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(data, addr)


class _Line(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)
        self._transport.close()


class _Drop(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Visited:
    """A probe: ns of CPU time for a connection that is opened, and closed by the server: at once, or with `line` after
    an answer of one line. All of the `connections` are opened before the first one is used.
    """

    def __init__(self, label: str, driven: Asyncio, line: bool, connections: int = 1000) -> None:
        self.label, self.driven, self.connections, self._line = label, driven, connections, line
        room()
        self._server = asyncio.run_coroutine_threadsafe(self._open(), driven.loop).result()

    async def _open(self) -> asyncio.Server:
        made = _Line if self._line else _Drop
        return await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0, backlog=self.connections)

    def __call__(self) -> Mapping[str, float]:
        address = self._server.sockets[0].getsockname()
        start = spent(self.driven)
        clients = [socket.create_connection(address) for _ in range(self.connections)]
        for client in clients if self._line else ():
            client.sendall(b"one line\n")
        for client in clients:
            while client.recv(100):
                pass
            client.close()
        return {self.label: (spent(self.driven) - start) / self.connections}

    def close(self) -> None:
        """Close the server."""
        asyncio.run_coroutine_threadsafe(closed(self._server), self.driven.loop).result(10)


async def _thread_time() -> int:
    return time.thread_time_ns()


def spent(driven: Asyncio) -> int:
    """The CPU time of a loop's thread, in ns."""
    return asyncio.run_coroutine_threadsafe(_thread_time(), driven.loop).result()


async def closed(server: asyncio.Server) -> None:
    """Close a server, on its loop."""
    server.close()
    await server.wait_closed()


def secured() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context of TLS 1.3, with a shared key instead of a certificate."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    key = bytes(32)
    server.set_psk_server_callback(lambda _identity: key)
    client.set_psk_client_callback(lambda _hint: ("benchmark", key))
    return server, client


class Served:
    """A probe: ns of CPU time for a message of `size` bytes, sent back by a protocol or, with `streams`, through
    asyncio's; with `tls`, encrypted. `driven` runs in a thread of its own. All of the `connections` have a message on
    its way at once.
    """

    def __init__(
        self,
        label: str,
        driven: Asyncio,
        streams: bool,
        size: int,
        tls: bool = False,
        connections: int = 20,
        rounds: int = 50,
    ) -> None:
        self.label, self.driven, self.rounds = label, driven, rounds
        self._message = bytes(size)
        server, client = secured() if tls else (None, None)
        opened = self._open(streams, server)
        self._server = asyncio.run_coroutine_threadsafe(opened, driven.loop).result()
        address = self._server.sockets[0].getsockname()
        self._clients = [socket.create_connection(address) for _ in range(connections)]
        for one in self._clients:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if client is not None:
            self._clients = [client.wrap_socket(one) for one in self._clients]

    @staticmethod
    async def _open(streams: bool, context: ssl.SSLContext | None) -> asyncio.Server:
        if streams:
            return await asyncio.start_server(_serve, "127.0.0.1", 0, ssl=context)
        return await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0, ssl=context)

    def __call__(self) -> Mapping[str, float]:
        start = spent(self.driven)
        for _ in range(self.rounds):
            for client in self._clients:
                client.sendall(self._message)
            for client in self._clients:
                left = len(self._message)
                while left:
                    left -= len(client.recv(left))
        return {self.label: (spent(self.driven) - start) / (self.rounds * len(self._clients))}

    def close(self) -> None:
        """Close all connections, and the server."""
        for client in self._clients:
            client.close()
        asyncio.run_coroutine_threadsafe(closed(self._server), self.driven.loop).result(10)


class ServedDatagrams:
    """A probe: ns of CPU time for a datagram of `size` bytes over UDP, sent back by a protocol. `driven` runs in a
    thread of its own. Each of the `clients` has a datagram on its way at once, and all go to one socket.
    """

    def __init__(self, label: str, driven: Asyncio, size: int, clients: int = 20, rounds: int = 50) -> None:
        self.label, self.driven, self.rounds = label, driven, rounds
        self._message = bytes(size)
        self._server: Any = asyncio.run_coroutine_threadsafe(self._open(), driven.loop).result()
        address = self._server.get_extra_info("sockname")
        self._clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(clients)]
        for client in self._clients:
            client.settimeout(10)  # UDP may lose one, and a benchmark that hangs says nothing
            client.connect(address)

    @staticmethod
    async def _open() -> Any:
        loop = asyncio.get_running_loop()
        return (await loop.create_datagram_endpoint(_EchoDatagram, ("127.0.0.1", 0)))[0]

    def __call__(self) -> Mapping[str, float]:
        start = spent(self.driven)
        for _ in range(self.rounds):
            for client in self._clients:
                client.send(self._message)
            for client in self._clients:
                client.recv(len(self._message))
        return {self.label: (spent(self.driven) - start) / (self.rounds * len(self._clients))}

    def close(self) -> None:
        """Close all sockets."""
        for client in self._clients:
            client.close()
        self.driven.loop.call_soon_threadsafe(self._server.close)
