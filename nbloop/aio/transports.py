"""asyncio's transport for connected sockets; kernels do the work for each message (kernels/turn/stream.py).

Problem: a transport has a hundred rules (marks, half-close, sendfile, `start_tls`, errors), and two calls that matter:
read one message, write one message. Idea: asyncio's own code keeps the rules. The core watches the transport's `Stream`
in place of a handle, and the `Stream` reads; the transport's `write` is the stream's, and it sends. Both leave the work
to asyncio's methods in every case that is not plain: debug mode, bytes that wait, the end of the file, an error.

A short connection costs mostly its beginning and its end. Both are written out here, because asyncio's take a dozen
frames: they took 45 of 55 us of CPU time, and take 18 of 28.

What differs: data is delivered when the poll reports it, ahead of callbacks that were ready before, as in uvloop;
asyncio queues it behind them.
"""

from __future__ import annotations

import _socket
import asyncio
import os
import socket
import sys
import warnings
import weakref
from asyncio import selector_events as _selector_events
from asyncio import transports, trsock
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Literal

import numpy as np

from ..awaiting import set_done
from ..kernels.base.capi import SYS_EPOLL_PWAIT
from ..kernels.base.kernel import method
from ..kernels.base.layout import READ
from ..kernels.methods.asyncio_methods import KEPT_SLOT, RECEIVED_SLOT, SHARE_SLOT
from ..kernels.turn import stream as kernels
from ..kernels.turn.socket_words import BUFFER_SIZE, MADE_SLOT, socket_aim
from ..kernels.turn.stream import QUEUED_MOST, StreamWords
from ..unique import Unique
from .guard import check_here
from .handles import Handle

KERNELS_READ = sys.platform == "linux" and SYS_EPOLL_PWAIT != 0  # elsewhere Python waits, and asyncio's transports read

# Since Python 3.15 asyncio's transports have the context of their server, and count the bytes that wait.
TRANSPORTS_HAVE_CONTEXTS = sys.version_info >= (3, 15)
_begins: Any = transports._FlowControlMixin(loop=object())  # type: ignore[arg-type]
UNMARKED = _begins._high_water >= QUEUED_MOST  # until `set_write_buffer_limits`
# A socket's family and type as numbers: `socket.family` and `socket.type` make enum members of them, in 1 us each.
_family_of, _type_of = _socket.socket.family.__get__, _socket.socket.type.__get__
_new_socket: Any = socket.socket.__new__
_init_socket: Any = _socket.socket.__init__
_INTERNET, _STREAM = (int(socket.AF_INET), int(socket.AF_INET6)), int(socket.SOCK_STREAM)
_SocketTransport: Any = _selector_events._SelectorSocketTransport  # type: ignore[attr-defined]

# The methods of a socket that kernels replace. A class that overrides one gets asyncio's transport, which calls it.
REPLACED = frozenset({"recv", "recv_into", "recvfrom", "send", "sendmsg", "sendto"})


KERNELS_SOCKET = socket.socket if KERNELS_READ else None  # what `kernels_take` takes, most often


def kernels_take(sock: Any) -> bool:
    """Can kernels work on this? They read the words of a `socket.socket`, and do what its methods do. A mock of one
    claims to be an instance.
    """
    kind = type(sock)
    return KERNELS_READ and (
        kind is socket.socket
        or (
            issubclass(kind, socket.socket)
            and all(getattr(kind, name) is getattr(socket.socket, name) for name in REPLACED)
            and REPLACED.isdisjoint(getattr(sock, "__dict__", ()))
        )
    )


class KernelTransport(Unique):
    """A transport whose kernel the loop calls when its socket can be read. The finaliser of a copy would close its
    socket.
    """

    _reads_in: Context | None = None  # the context of its reader; None: the reader is the program's own

    def aim(self) -> None:
        """Choose whether the kernel or asyncio reads."""
        raise NotImplementedError

    def watched(self) -> Callable[..., object]:
        """Return the callable that the core is to call."""
        raise NotImplementedError


class Stream(StreamWords):
    """Receives for a watch when a socket can be read, and sends for the socket's transport."""

    __slots__ = ()

    def __init__(self, owner: weakref.ref[StreamTransport], sock: socket.socket, shared: tuple[Any, ...]) -> None:
        MADE_SLOT.__set__(self, (None, owner, sock, *shared))
        self._clear = UNMARKED
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

    @method(socket_aim)
    def aim(self, target: tuple[Any, Context, Literal[True] | None] | None, /) -> None:
        """Set the protocol and the context that receive data; None: asyncio's own code reads. Any thread."""


def new_buffer() -> Any:
    """A buffer into which the transports of one loop receive. It takes memory only where data has been received."""
    return np.zeros(BUFFER_SIZE, np.uint8)


def buffer_of(loop: Any) -> Any:
    """The buffer that all transports of a loop share; made for the first one."""
    try:
        return RECEIVED_SLOT.__get__(loop)
    except AttributeError:
        made = new_buffer()
        RECEIVED_SLOT.__set__(loop, made)
        return made


def state_of(loop: Any) -> Any:
    """The array of a loop's core."""
    return KEPT_SLOT.__get__(loop)[1]


def share_of(loop: Any) -> tuple[Any, ...]:
    """The items that all streams of a loop share: those of `MADE_ITEMS` after the first three."""
    try:
        return SHARE_SLOT.__get__(loop)  # type: ignore[no-any-return]
    except AttributeError:
        names = "data_received", "get_buffer", "buffer_updated"
        made = buffer_of(loop), *names, loop._selector._ready, _ended, _unsent, state_of(loop), True
        SHARE_SLOT.__set__(loop, made)
        return made


class StreamSocket(trsock.TransportSocket):
    """The object that `get_extra_info("socket")` returns. Operations on it come after all earlier writes."""

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
    """A connection over TCP or a Unix socket. As with asyncio's, only the loop's thread may use it; on a thread that
    runs another loop, `write`, `writelines` and `write_eof` raise RuntimeError.
    """

    # Initial values that few transports ever change: on the class they cost a connection nothing.
    _conn_lost = _buffer_size = 0
    _closing = _paused = _eof = _protocol_paused = False
    _protocol_connected = True
    # `resume_writing` has closed the transport. Its end is queued, so `_write_sendmsg`, which has called it, must not
    # end it, too (as asyncio since 3.14.8).
    _ends_later = False
    _high_water, _low_water = _begins._high_water, _begins._low_water
    _empty_waiter: Any = None
    _context: Context | None = None
    _buffer: Any = ()  # becomes a deque, which takes 0.6 KB, with the first byte that waits

    def __init__(
        self,
        loop: Any,
        sock: Any,
        protocol: Any,
        waiter: Any = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: Context | None = None,
    ) -> None:
        """What asyncio's four constructors do, in one frame."""
        fd = sock.fileno()
        # asyncio's two weak containers have Python methods, and a callback for each reference. Here each entry is taken
        # out by the end of the connection, and one plain reference serves both.
        transports = loop._transports.data
        if fd in transports:
            loop._ensure_fd_no_transport(fd)
        self._loop, self._sock_fd, self._protocol, self._server = loop, fd, protocol, server
        self._extra = extra = {} if extra is None else extra
        try:
            extra["sockname"] = sock.getsockname()
        except OSError:
            extra["sockname"] = None
        if "peername" not in extra:
            try:
                extra["peername"] = sock.getpeername()
            except OSError:
                extra["peername"] = None
        self._owner = owner = weakref.ref(self)
        self._stream = Stream(owner, sock, share_of(loop))
        self.write = self._stream.write  # type: ignore[method-assign, assignment] # no Python frame
        self._sock = sock
        if server is not None:
            server._clients.data.add(owner)
        transports[fd] = owner
        if sock.proto == socket.IPPROTO_TCP and _family_of(sock) in _INTERNET and _type_of(sock) == _STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            self._context = context
        made = protocol.connection_made
        if loop._debug:  # which shows each handle
            loop.call_soon(made, self, context=context)
            loop.call_soon(self._add_reader, fd, self._read_ready, context=context)
        else:
            reads_in = copy_context() if context is None else context  # without what `connection_made` sets
            loop.call_soon(self._begin, made, reads_in, context=context)
        if waiter is not None:
            loop.call_soon(set_done, waiter, context=context)

    def _begin(self, made: Callable[[Any], object], reads_in: Context) -> None:
        """asyncio's two callbacks: `connection_made`, and begin to read."""
        loop = self._loop
        try:
            made(self)
        except (SystemExit, KeyboardInterrupt):
            loop.call_soon(self._start_reading, reads_in)  # the second one, if the loop runs again
            raise
        except BaseException as error:
            loop._callback_raised(Handle(made, (self,), loop, copy_context()), made, (self,), error)
        if not self._closing and not self._paused:
            loop._add_watcher(self._sock_fd, READ, self._read_ready, (), reads_in)

    def _start_reading(self, context: Context) -> None:
        if not self._closing and not self._paused:
            self._loop._add_watcher(self._sock_fd, READ, self._read_ready, (), context)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's; also after the end. The object for "socket" is made when it is first asked for."""
        if name == "socket" and name not in self._extra:
            self._extra.setdefault(name, StreamSocket(MADE_SLOT.__get__(self._stream)[2], self._stream))
        return self._extra.get(name, default)

    # --- reading

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol
        self.aim()

    def _add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        if not self._closing and not self._paused:
            self._loop._add_reader(fd, callback, context=self._context)

    def _read_ready(self) -> None:
        if isinstance(self._protocol, asyncio.BufferedProtocol):
            self._read_ready__get_buffer()
        else:
            self._read_ready__data_received()

    _read_ready_cb: Any = _read_ready  # asyncio's tests check whether it is None, which means closed

    def aim(self) -> None:
        """Choose whether the kernel or asyncio reads."""
        context, protocol, loop = self._reads_in, self._protocol, self._loop
        if context is None or loop is None or loop._debug:  # None: another thread has misused it at its end
            self._stream.aim(None)
        else:
            self._stream.aim((protocol, context, True if isinstance(protocol, asyncio.BufferedProtocol) else None))

    def watched(self) -> Callable[..., object]:
        return self._stream.ready

    def _read_ended(self, name: str | None, why: int | BaseException) -> None:
        """Reading has ended, in that method of the protocol or at the buffer that it gave. `why` is an exception,
        errno, 0 for the end, or -1 for an empty buffer.
        """
        if isinstance(why, (SystemExit, KeyboardInterrupt)):
            raise why
        if self._conn_lost and isinstance(why, int):  # what the protocol raised is reported in any case
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
        """Note whether the next bytes may go to the system, and whether they may wait for the end of the turn."""
        waits = self._buffer or self._eof or self._conn_lost or self._empty_waiter is not None or self._sock is None
        self._stream._clear = None if waits else self._high_water >= QUEUED_MOST

    def write(self, data: Any) -> None:
        check_here(self)
        self._stream.flush()
        self._buffer = self._buffer or deque()
        try:
            super().write(data)
        finally:
            self._judge()

    def _write_unsent(self, data: Any, sent: int | None) -> None:
        """Go on after the kernel: the system took `sent` bytes, or refused with errno -`sent`; None: the kernel did not
        ask it. Several pieces of data are a list.
        """
        if sent is None:
            StreamTransport.write(self, data)
        elif sent < 0:
            self._failed(-sent, "Fatal write error on socket transport")
        else:
            add_writer = self._add_writer if TRANSPORTS_HAVE_CONTEXTS else self._loop._add_writer
            add_writer(self._sock_fd, self._write_ready)
            views = [memoryview(one) for one in (data if isinstance(data, list) else (data,))]
            self._buffer = self._buffer or deque()
            self._buffer.extend(views)
            if TRANSPORTS_HAVE_CONTEXTS:
                self._buffer_size += sum(view.nbytes for view in views)
            self._adjust_leftover_buffer(sent)
            self._stream._clear = None
            self._maybe_pause_protocol()

    def writelines(self, list_of_data: Any) -> None:
        check_here(self)
        if list_of_data and not isinstance(list_of_data, (list, tuple)):
            list_of_data = list(list_of_data)  # an iterator may write, and that comes before
        # In asyncio before 3.14 an empty one at the end stays in the buffer, and the connection sends it for ever.
        list_of_data = [data for data in list_of_data or () if memoryview(data).nbytes]
        self._stream.flush()
        if self._conn_lost and list_of_data and not self._eof and self._empty_waiter is None:
            # Since 3.14 asyncio drops such lines and counts the call, as its `write` does. Before, it watches the
            # descriptor, which is about to be closed, and whose number a later connection gets.
            super().write(b"dropped")
            return
        self._buffer = self._buffer or deque()
        try:
            super().writelines(list_of_data)
            if self._buffer:  # the first 3.13 does not look
                self._maybe_pause_protocol()
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
            self._ends_later = False
            self._judge()

    def _maybe_resume_protocol(self) -> None:
        super()._maybe_resume_protocol()
        self._ends_later = self._conn_lost > 0

    _write_ready: Any = _write_sendmsg

    def is_closing(self) -> bool:
        self._stream.flush()  # `drain` asks it, so as to wait for `connection_lost` if the system has refused
        return self._closing

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
        self._read_ready_cb = None
        if self._closing:
            return
        self._closing = True
        loop, fd = self._loop, self._sock_fd
        watched = {} if loop._closed else loop._selector._fd_to_key
        if fd in watched:
            loop._remove_watcher(fd, READ)
        self._stream._clear = None
        if not self._buffer:
            self._conn_lost += 1
            if fd in watched:  # there is a writer, too
                loop._remove_writer(fd)
            loop.call_soon(self._call_connection_lost, None, context=self._context)

    def _force_close(self, exc: BaseException | None) -> None:
        self._stream.flush()
        super()._force_close(exc)
        self._judge()

    def __del__(self, _warn: Callable[..., object] = warnings.warn) -> None:
        if self._sock is not None:
            self._stream.flush()
            self._forget()
            super().__del__(_warn)

    def _forget(self) -> None:
        """Remove it from the two weak containers, which do not notice its end by themselves."""
        transports = self._loop._transports.data
        if transports.get(self._sock_fd) is self._owner:
            del transports[self._sock_fd]
        if self._server is not None:
            self._server._clients.data.discard(self._owner)

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        if self._ends_later:
            return
        self._conn_lost = self._conn_lost or 1  # so that `abort` in `connection_lost` does nothing, as since 3.14.8
        self._stream._clear = None
        try:
            self._protocol.connection_lost(exc)
        finally:
            if self._reads_in is not None:
                self._reads_in = None
                self._stream.aim(None)
            self._forget()
            self._sock.close()
            server, self._server = self._server, None
            of: Any = self
            of._sock = of._protocol = of._loop = None
            if self._context is not None:  # in which the program may have set the protocol
                self._context = None
            if server is not None and server._sockets is None:
                server._detach(self)
            if self._empty_waiter is not None and not self._empty_waiter.done():
                self._empty_waiter.set_exception(ConnectionError("Connection is closed by peer"))


def numbers_of(sock: socket.socket) -> tuple[int, int, int]:
    """Family, type and protocol of a socket, as those that it accepts have them."""
    return _family_of(sock), _type_of(sock), sock.proto


plain_accept = socket.socket.accept


def accept_plainly(listener: Any, family: int, kind: int, proto: int) -> tuple[socket.socket, Any]:
    """Do what `plain_accept` does, except making two enum members for each connection: 1.6 us of its 3."""
    fd, address = listener._accept()
    made = _new_socket(socket.socket)
    _init_socket(made, family, kind, proto, fd)
    made._io_refs, made._closed = 0, False  # as its own constructor
    return made, address


# The methods that transports give the loop, for their own descriptors. A program may give it other methods of a
# transport, such as `close`, for a descriptor of its own.
_WATCHED = frozenset({"_read_ready", "_write_sendmsg", "_sendto_ready"})


def _watching(handle: Any) -> KernelTransport | None:
    """The transport that waits for its descriptor with this handle."""
    callback = None if handle is None else handle._callback
    transport = getattr(callback, "__self__", None)
    if isinstance(transport, KernelTransport) and getattr(callback, "__name__", None) in _WATCHED:
        return transport
    return None


def watched_by(reader: Any, writer: Any) -> Any:
    """The method that the core calls for a descriptor with these handles, if one of them is a transport's; else None.
    While a closing transport still sends, a program may read from its descriptor. Then the kernel does not.
    """
    reading = _watching(reader)
    transport = reading or _watching(writer)
    if transport is None:
        return None
    if reader is not None:
        context = None if reading is None else reader._context
        if context is not transport._reads_in:
            transport._reads_in = context
            transport.aim()
    return transport.watched()
