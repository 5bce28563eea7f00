"""asyncio's transport of a connected socket, of which kernels do what each message needs (kernels/turn/stream.py).

Problem: a transport has a hundred rules (marks, half-close, sendfile, `start_tls`, errors), and two calls that matter:
read one message, write one message. Idea: the rules stay asyncio's own code. What is watched is the `Stream` of a
transport instead of a handle, and it reads; the transport's `write` is the stream's, and it sends. Both give up, and
asyncio's methods run, wherever the case is not the plain one: the debug mode, bytes that wait, the end of the file, an
error.

What differs: data is delivered when the poll reports it, ahead of callbacks that were ready before, as in uvloop;
asyncio queues it behind them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import warnings
import weakref
from asyncio import selector_events as _selector_events
from asyncio import trsock
from collections.abc import Callable
from contextvars import Context
from typing import Any, Literal

import numpy as np

from ..kernels.base.capi import SYS_EPOLL_PWAIT
from ..kernels.base.kernel import method
from ..kernels.turn import stream as kernels
from ..kernels.turn.stream import BUFFER_SIZE, QUEUED_MOST, StreamWords
from .guard import check_here

KERNELS_READ = sys.platform == "linux" and SYS_EPOLL_PWAIT != 0  # elsewhere Python waits, and asyncio's transports read

# Since Python 3.15 asyncio's transports have the context of their server, and count the bytes that wait.
TRANSPORTS_HAVE_CONTEXTS = sys.version_info >= (3, 15)
_SocketTransport: Any = _selector_events._SelectorSocketTransport  # type: ignore[attr-defined]


class KernelTransport:
    """A transport whose kernel the loop calls when its socket can be read."""

    _reads_in: Context | None = None

    def reads_in(self, context: Context) -> None:
        """There is a reader, whose context this is."""
        if context is not self._reads_in:
            self._reads_in = context
            self.aim()

    def aim(self) -> None:
        """Have the kernel read, or asyncio."""
        raise NotImplementedError

    def watched(self) -> Callable[..., object]:
        """What the core is to call."""
        raise NotImplementedError


class Stream(StreamWords):
    """What a watch calls when a socket can be read, and what its transport sends through."""

    __slots__ = ()

    def __init__(self, owner: StreamTransport, sock: socket.socket, loop: Any) -> None:
        self._clear = None
        names = "data_received", "get_buffer", "buffer_updated"
        self._made = (
            *(None, weakref.ref(owner), sock, loop._received, *names),
            *(loop._selector._ready, _ended, _unsent, loop._core._state, True),
        )
        self.aim(None)

    @method(kernels.stream_ready)
    def ready(self, fd: int, events: int, /) -> None:
        """Receive once, and give it to the protocol. The loop's thread."""

    @method(kernels.stream_write)
    def write(self, data: Any, /) -> None:
        """Send before the loop polls, or now if it is much; the transport keeps what the system does not take."""

    @method(kernels.stream_flush_now)
    def flush(self) -> None:
        """Send now what `write` has left for the end of the turn. Any thread."""

    @method(kernels.stream_aim)
    def aim(self, target: tuple[Any, Context, Literal[True] | None] | None, /) -> None:
        """Whom to give what is received, and in which context; None: asyncio's own code reads. Any thread."""


class StreamSocket(trsock.TransportSocket):
    """What `get_extra_info("socket")` gives: whatever is done with it comes after what was written before."""

    __slots__ = ("_behind", "_stream")

    def __init__(self, sock: socket.socket, stream: Stream) -> None:
        self._behind, self._stream = sock, stream

    @property
    def _sock(self) -> socket.socket:  # asyncio's methods use it
        self._stream.flush()
        return self._behind


def _ended(told: tuple[weakref.ref[StreamTransport], str | None, int | BaseException]) -> None:
    transport = told[0]()
    if transport is not None:
        transport._read_ended(*told[1:])


def _unsent(told: tuple[weakref.ref[StreamTransport], Any, int | None]) -> None:
    transport = told[0]()
    if transport is not None:
        transport._write_unsent(*told[1:])


class StreamTransport(KernelTransport, _SocketTransport):  # type: ignore[misc]
    """A connection over TCP or a Unix socket. As asyncio's, it is for the loop's thread alone; where another loop runs,
    `write`, `writelines` and `write_eof` raise RuntimeError.
    """

    def __init__(self, loop: Any, sock: Any, protocol: Any, *arguments: Any, **more: Any) -> None:
        self._stream = Stream(self, sock, loop)
        super().__init__(loop, sock, protocol, *arguments, **more)
        self._extra["socket"] = StreamSocket(sock, self._stream)
        del self._write_ready  # asyncio's is a cycle, which its first 3.13 leaves to the collector; below is the same
        self.write = self._stream.write  # type: ignore[method-assign, assignment] # no Python frame
        self._judge()

    # --- reading

    def set_protocol(self, protocol: Any) -> None:
        super().set_protocol(protocol)
        self.aim()

    def aim(self) -> None:
        """Have the kernel read, or asyncio."""
        context, protocol = self._reads_in, self._protocol
        if context is None or self._loop.get_debug():
            self._stream.aim(None)
        else:
            self._stream.aim((protocol, context, True if isinstance(protocol, asyncio.BufferedProtocol) else None))

    def watched(self) -> Callable[..., object]:
        return self._stream.ready

    def _read_ended(self, name: str | None, why: int | BaseException) -> None:
        """At that method of the protocol, or at the buffer that it gave: an exception, errno, 0 for the end, or -1 for
        a buffer that is empty.
        """
        if isinstance(why, (SystemExit, KeyboardInterrupt)):
            raise why
        if self._conn_lost:
            return
        if why == 0:
            self._read_ready__on_eof()
        elif why == -1:
            try:
                raise RuntimeError("get_buffer() returned an empty buffer")
            except RuntimeError as error:
                self._fatal_error(error, "Fatal error: protocol.get_buffer() call failed.")
        elif isinstance(why, int):
            self._failed(why, "Fatal read error on socket transport")
        elif name is None and isinstance(why, BufferError):  # it is a buffer, but a read-only one
            self._fatal_error(why, "Fatal read error on socket transport")
        else:
            self._fatal_error(why, f"Fatal error: protocol.{name or 'get_buffer'}() call failed.")

    def _failed(self, number: int, message: str) -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            self._fatal_error(error, message)

    # --- writing

    def _judge(self) -> None:
        """May the next bytes go to the system, and may they wait for the end of the turn?"""
        waits = self._buffer or self._eof or self._conn_lost or self._empty_waiter is not None or self._sock is None
        self._stream._clear = None if waits else self._high_water >= QUEUED_MOST

    def write(self, data: Any) -> None:
        check_here(self)
        self._stream.flush()
        try:
            super().write(data)
        finally:
            self._judge()

    def _write_unsent(self, data: Any, sent: int | None) -> None:
        """After the kernel: the system took `sent` bytes, or refused with errno -`sent`; None: it was not asked. The
        data are a list if there were several.
        """
        if sent is None:
            StreamTransport.write(self, data)
        elif sent < 0:
            self._failed(-sent, "Fatal write error on socket transport")
        else:
            add_writer = self._add_writer if TRANSPORTS_HAVE_CONTEXTS else self._loop._add_writer
            add_writer(self._sock_fd, self._write_ready)
            views = [memoryview(one) for one in (data if isinstance(data, list) else (data,))]
            self._buffer.extend(views)
            if TRANSPORTS_HAVE_CONTEXTS:
                self._buffer_size += sum(view.nbytes for view in views)
            self._adjust_leftover_buffer(sent)
            self._stream._clear = None
            self._maybe_pause_protocol()

    def writelines(self, list_of_data: Any) -> None:
        check_here(self)
        self._stream.flush()
        try:
            super().writelines(list_of_data)
        finally:
            self._judge()

    def write_eof(self) -> None:
        check_here(self)
        self._stream.flush()
        try:
            super().write_eof()
        finally:
            self._judge()

    def _write_sendmsg(self) -> None:
        try:
            super()._write_sendmsg()
        finally:
            self._judge()

    _write_ready = _write_sendmsg

    def is_closing(self) -> bool:
        self._stream.flush()  # `drain` asks it, so as to wait for `connection_lost` if the system has refused
        return self._closing  # type: ignore[no-any-return]

    def get_write_buffer_size(self) -> int:
        self._stream.flush()
        return super().get_write_buffer_size()  # type: ignore[no-any-return]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._stream.flush()
        try:
            super().set_write_buffer_limits(high, low)
        finally:
            self._judge()

    def _make_empty_waiter(self) -> Any:
        self._stream.flush()
        try:
            return super()._make_empty_waiter()
        finally:
            self._judge()

    def _reset_empty_waiter(self) -> None:
        super()._reset_empty_waiter()
        self._judge()

    # --- the end

    def close(self) -> None:
        self._stream.flush()
        super().close()
        self._judge()

    def _force_close(self, exc: BaseException | None) -> None:
        self._stream.flush()
        super()._force_close(exc)
        self._judge()

    def __del__(self, _warn: Callable[..., object] = warnings.warn) -> None:
        if self._sock is not None:
            self._stream.flush()
        super().__del__(_warn)

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        self._stream._clear = None
        try:
            super()._call_connection_lost(exc)
        finally:
            self._reads_in = None
            self._stream.aim(None)
            self.__dict__.pop("write", None)
            self._read_ready_cb = None  # a method of this object, of which asyncio makes a cycle that stays


def watched_by(reader: Any, writer: Any) -> Any:
    """What the core is to call for a descriptor with these handles, if they are a transport's of ours; else None."""
    for handle in (reader, writer):
        transport = getattr(handle and handle._callback, "__self__", None)
        if isinstance(transport, KernelTransport):
            if reader is not None:
                transport.reads_in(reader._context)
            return transport.watched()
    return None


def new_buffer() -> Any:
    """For what the transports of one loop receive. Memory only where something has been received."""
    return np.zeros(BUFFER_SIZE, np.uint8)
