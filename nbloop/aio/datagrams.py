"""asyncio's transport for datagram sockets; kernels do the work for each datagram (kernels/turn/datagram.py).

As for streams (transports.py), asyncio's own code keeps the rules. A watch queues `Datagrams.ready`, and the
transport's `sendto` is `Datagrams.sendto`. asyncio's methods run in every case that is not plain: debug mode, datagrams
that wait, an error, an address that is a name or a path.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import weakref
from asyncio import selector_events as _selector_events
from collections.abc import Callable
from contextvars import Context
from typing import Any

from ..kernels.base.kernel import method
from ..kernels.turn import datagram as kernels
from ..kernels.turn.socket_words import MADE_SLOT, SocketWords, socket_aim
from .guard import check_here
from .transports import KernelTransport, buffer_of, state_of

_DatagramTransport: Any = _selector_events._SelectorDatagramTransport  # type: ignore[attr-defined]
FAMILIES = socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None)  # the kernel can make their addresses
HEADER = 8  # bytes that each waiting datagram counts in addition to its own


class Datagrams(SocketWords):
    """Receives for a watch when a socket can be read, and sends for the socket's transport."""

    __slots__ = ()

    def __init__(self, owner: DatagramTransport, sock: socket.socket, loop: Any) -> None:
        self._clear = None
        owner_of = weakref.ref(owner)
        told = "Fatal read error on datagram transport", "Fatal write error on datagram transport"
        made = (
            *(None, owner_of, sock, buffer_of(loop), int(sock.family), "datagram_received"),
            *(
                functools.partial(_otherwise, owner_of),
                _raised,
                _failed,
                functools.partial(_send_slowly, owner_of),
                *told,
            ),
            *(state_of(loop), True, "addr", b"socket.sendto", b"OO"),
        )
        MADE_SLOT.__set__(self, made)
        self.aim(None)

    @method(kernels.datagrams_ready)
    def ready(self, fd: int, events: int, /) -> None:
        """Receive waiting datagrams, and pass them to the protocol. The loop's thread."""

    @method(kernels.datagram_send)
    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send now; the transport keeps what the system does not take."""

    @method(socket_aim)
    def aim(self, target: tuple[Any, Context] | None, /) -> None:
        """Set the protocol and the context that receive datagrams; None: asyncio's own code reads. Any thread."""


def _otherwise(owner: weakref.ref[DatagramTransport], fd: int, events: int) -> None:
    transport = owner()
    if transport is not None and transport._sock is not None:  # else another file may have the number by now
        transport._loop._selector._ready(fd, events)


def _raised(told: tuple[weakref.ref[DatagramTransport], BaseException]) -> None:
    owner, error = told
    transport = owner()
    if transport is None or isinstance(error, (SystemExit, KeyboardInterrupt)):
        raise error
    transport._protocol_raised(error)


def _failed(told: tuple[weakref.ref[DatagramTransport], str, int | BaseException]) -> None:
    transport = told[0]()
    if transport is not None:
        transport._system_failed(*told[1:])


def _send_slowly(owner: weakref.ref[DatagramTransport], *args: Any, **keywords: Any) -> None:
    transport = owner()
    if transport is not None:
        DatagramTransport.sendto(transport, *args, **keywords)


class DatagramTransport(KernelTransport, _DatagramTransport):  # type: ignore[misc]
    """The transport of a datagram socket: UDP or Unix. As with asyncio's, only the loop's thread may use it; on a
    thread that runs another loop, `sendto` raises RuntimeError.
    """

    _conn_lost: int

    def __init__(self, loop: Any, sock: Any, protocol: Any, *arguments: Any, **more: Any) -> None:
        self._datagrams = Datagrams(self, sock, loop)
        self._by_number = sock.family in (socket.AF_INET, socket.AF_INET6)
        super().__init__(loop, sock, protocol, *arguments, **more)
        self.sendto = self._datagrams.sendto  # type: ignore[method-assign] # no Python frame
        self._judge()

    # --- receiving

    def set_protocol(self, protocol: Any) -> None:
        super().set_protocol(protocol)
        self.aim()

    def pause_reading(self) -> None:
        super().pause_reading()
        self.aim()

    def resume_reading(self) -> None:
        super().resume_reading()
        self.aim()

    def aim(self) -> None:
        """Choose whether the kernel or asyncio receives. Datagrams that a poll leaves wait for the next one."""
        context = self._reads_in
        if context is None or not self.is_reading() or self._loop.get_debug():
            self._datagrams.aim(None)
        else:
            self._datagrams.aim((self._protocol, context))

    def watched(self) -> Callable[..., object]:
        """Queue the kernel behind what is ready already: CPython's tests rely on that order. It costs 0.2 us a poll."""
        return functools.partial(self._loop._submit, self._datagrams.ready)

    def _protocol_raised(self, error: BaseException) -> None:
        """Report it like an exception of any callback: the transport goes on."""
        handle = asyncio.Handle(self._read_ready, (), self._loop, self._reads_in)
        self._loop._callback_raised(handle, self._read_ready, (), error)

    def _system_failed(self, message: str, why: int | BaseException) -> None:
        """A kernel's call has failed, with an errno or with the exception of an audit hook."""
        try:
            raise OSError(why, os.strerror(why)) if isinstance(why, int) else why
        except OSError as error:
            self._protocol.error_received(error)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, message)

    # --- sending

    def _judge(self) -> None:
        """Note whether the next datagram may go to the system, and whether it needs an address."""
        datagrams, connected = self._datagrams, bool(self._extra["peername"])
        addressed = not self._address and self._by_number
        waits = self._buffer or self._closing or self._conn_lost or self._sock is None
        datagrams._clear = None if waits or not (connected or addressed) else connected

    def sendto(self, data: Any, addr: Any = None) -> None:
        check_here(self)
        try:
            super().sendto(data, addr)
        finally:
            self._judge()

    def _sendto_ready(self) -> None:
        """asyncio 3.14's. 3.13's subtracts too little for each datagram that waited, until writing stays paused."""
        try:
            self._send_queued()
        finally:
            self._judge()

    def _send_queued(self) -> None:
        while self._buffer:
            data, addr = self._buffer.popleft()
            self._buffer_size -= len(data) + HEADER
            try:
                if self._extra["peername"]:
                    self._sock.send(data)
                else:
                    self._sock.sendto(data, addr)
            except (BlockingIOError, InterruptedError):
                self._buffer.appendleft((data, addr))
                self._buffer_size += len(data) + HEADER
                break
            except OSError as error:
                self._protocol.error_received(error)
                return
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, "Fatal write error on datagram transport")
                return
        self._maybe_resume_protocol()  # may send more
        if not self._buffer:
            self._loop._remove_writer(self._sock_fd)
            if self._closing and not self._conn_lost:  # else `resume_writing` has closed it, and the end is on its way
                self._conn_lost = 1
                self._call_connection_lost(None)

    # --- the end

    def close(self) -> None:
        super().close()
        self.aim()
        self._judge()

    def _force_close(self, exc: BaseException | None) -> None:
        if not self._conn_lost:  # asyncio leaves the watch if `error_received` of the last datagram that waited aborts
            self._loop._remove_writer(self._sock_fd)
        super()._force_close(exc)
        if not self._buffer:
            self._buffer_size = 0  # as asyncio since 3.15
        self.aim()
        self._judge()

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        self._datagrams._clear = None
        try:
            super()._call_connection_lost(exc)
        finally:
            self._reads_in = None
            self.__dict__.pop("sendto", None)
