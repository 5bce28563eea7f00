"""TLS over nbloop's own transports: asyncio's `sslproto`, with a stream's kernel that receives for it.

Problem: asyncio has the state machine of TLS (handshake, close_notify, flow control on both sides), and a second one is
not needed. But for each message asyncio's Python costs more than the encryption does. The largest part of that is an
exception: after each message asyncio reads once more, and OpenSSL raises because there is nothing. Idea: the state
machine stays. Only the code that runs for each message is written anew, in few frames and without unnecessary work. For
an echo of 1 KiB the protocol takes 6 us; asyncio's takes 12, and OpenSSL's part of both is 3.

* One `read` asks for one record, because it never returns more. asyncio allocates 256 KiB for each.
* There is no second `read` if nothing waits for OpenSSL, and OpenSSL holds nothing.
* All connections of a loop receive into one buffer. asyncio allocates and clears 256 KiB for each connection. A
  program's own transport (`start_tls`) may receive on a thread, so each connection over such a transport has its own
  buffer.

This module also repairs faults of asyncio, because each loses bytes or stops a connection: a buffer that is not a
memoryview (`get_buffer`), a mark of 0, and an upgrade (`start_tls`) while writing or a reader is paused, or after the
client's first record has arrived.
"""

from __future__ import annotations

from asyncio import _get_running_loop, sslproto, streams
from typing import Any

from ..kernels.turn.socket_words import RECEIVED_MOST
from ..unique import Unique
from .guard import check_here
from .transports import StreamTransport, buffer_of

_SSLProtocol: Any = sslproto.SSLProtocol
_SSLProtocolTransport: Any = sslproto._SSLProtocolTransport
WRAPPED = sslproto.SSLProtocolState.WRAPPED
AGAIN = getattr(sslproto, "SSLAgainErrors", ())  # a Python may lack `ssl`
FAILED = "Fatal error on SSL protocol"
RECORD = 16 * 1024  # the most bytes that a record of TLS holds


class SSLTransport(Unique, _SSLProtocolTransport):  # type: ignore[misc]
    """The program's transport, for the loop's thread alone. Where another loop runs, `write` and `writelines` raise
    RuntimeError. Its name says "SSL" as asyncio's does: CPython's tests recognise a transport of TLS by that.
    """

    def write(self, data: Any) -> None:
        tls = self._ssl_protocol
        if (
            type(data) is bytes
            and 0 < len(data) <= RECORD
            and tls is not None
            and tls._state is WRAPPED
            and not tls._write_backlog
            and _get_running_loop() is self._loop
        ):
            try:
                tls._sslobj.write(data)
                tls._process_outgoing()
                return
            except AGAIN:
                pass
            except Exception as error:
                tls._fatal_error(error, FAILED)
                return
        super().write(data)

    def resume_reading(self) -> None:
        """Also if the open transport was paused. A `StreamReader` that is full when an upgrade ends has paused that
        one, and resumes this one since CPython 3.14. With asyncio's the connection stops.
        """
        super().resume_reading()
        tls = self._ssl_protocol
        if tls is not None and tls._transport is not None and not tls._ssl_reading_paused:
            tls._transport.resume_reading()


OURS = StreamTransport, SSLTransport


class TlsProtocol(_SSLProtocol):  # type: ignore[misc]
    """The protocol that a stream's transport calls."""

    max_size = RECORD
    _app_transport: Any
    _app_protocol_get_buffer: Any
    _app_protocol_buffer_updated: Any

    def __init__(self, loop: Any, *arguments: Any, **more: Any) -> None:
        super().__init__(loop, *arguments, **more)
        self._received = buffer_of(loop)

    def connection_made(self, transport: Any) -> None:
        if isinstance(transport, OURS):
            # No other code runs between the receiving and `buffer_updated`, which first gives the bytes to OpenSSL.
            self._ssl_buffer = self._ssl_buffer_view = memoryview(self._received)[:RECEIVED_MOST]
        super().connection_made(transport)

    def _get_app_transport(self) -> Any:
        if self._app_transport is None:
            self._app_transport = SSLTransport(self._loop, self)
        return self._app_transport

    def takes_over(self, transport: Any) -> None:
        """Continue where the protocol of an open connection stops: with the bytes that it has received and the program
        has not read, and with its pause.
        """
        protocol = self._app_protocol
        # A client sends the first record, perhaps before its server wants TLS. A server never does: what a client has
        # received before TLS must not become a part of it.
        if self._server_side and isinstance(protocol, streams.StreamReaderProtocol):
            reader: Any = protocol._stream_reader  # type: ignore[attr-defined]
            if reader is not None and reader._buffer:
                self._incoming.write(reader._buffer)
                reader._buffer.clear()
        paused = getattr(transport, "_protocol_paused", False)  # a program's own transport may lack it
        self._ssl_writing_paused = self._app_writing_paused = paused

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._app_protocol_get_buffer = self._app_protocol_buffer_updated = None  # which would make a cycle

    # --- reading

    def get_buffer(self, _hint: int) -> memoryview:
        return self._ssl_buffer_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._state is WRAPPED:
            self._incoming.write(self._ssl_buffer_view[:nbytes])
            self._do_read()
        else:
            super().buffer_updated(nbytes)

    def _do_read(self) -> None:
        if self._state is not WRAPPED or self._app_reading_paused:
            super()._do_read()
            return
        incoming, outgoing = self._incoming, self._outgoing
        try:
            if self._app_protocol_is_buffer:
                self._do_read__buffered()
            else:
                self._do_read__copied()
            if self._write_backlog:
                self._do_write()
            elif outgoing.pending or self._app_writing_paused:
                self._process_outgoing()
            if self._ssl_reading_paused or incoming.pending >= self._incoming_high_water:
                self._control_ssl_reading()
        except Exception as error:
            self._fatal_error(error, FAILED)

    def _do_read__copied(self) -> None:
        incoming, sslobj = self._incoming, self._sslobj
        try:
            chunk = sslobj.read(RECORD)
        except AGAIN:
            return
        rest = []
        last = chunk
        # OpenSSL has the rest of a record only if this read returned as much as it asked for.
        while last and (incoming.pending or (len(last) == RECORD and sslobj.pending())):
            try:
                last = sslobj.read(RECORD)
            except AGAIN:
                break
            rest.append(last)
        if chunk:
            self._app_protocol.data_received(b"".join((chunk, *rest)) if rest else chunk)
        if not last:
            self._peer_ended()

    def _do_read__buffered(self) -> None:
        incoming, sslobj = self._incoming, self._sslobj
        size, count = 0, 1
        with memoryview(self._app_protocol_get_buffer(incoming.pending)) as given, given.cast("B") as view:
            room = len(view)
            if room == 0:
                raise RuntimeError("get_buffer() returned an empty buffer")
            try:
                while count and size < room and (size == 0 or incoming.pending or sslobj.pending()):
                    count = sslobj.read(room - size, view[size:])
                    size += count
            except AGAIN:
                pass
        if size == room:
            self._loop.call_soon(self._do_read)
        if size > 0:
            self._app_protocol_buffer_updated(size)
        if count == 0:
            self._peer_ended()

    def _peer_ended(self) -> None:
        """The peer has sent its close_notify."""
        self._call_eof_received()
        self._start_shutdown()

    # --- writing

    def _write_appdata(self, list_of_data: Any) -> None:
        if self._transport is not None:
            check_here(self._app_transport)  # before something is encrypted that would not be sent
        super()._write_appdata(list_of_data)

    def _process_outgoing(self) -> None:
        outgoing = self._outgoing
        if not self._ssl_writing_paused and outgoing.pending:
            self._transport.write(outgoing.read())
        if self._app_writing_paused or outgoing.pending + self._write_buffer_size:
            self._control_app_writing()

    def _control_app_writing(self) -> None:
        # With a mark of 0 asyncio pauses a protocol for which nothing waits, and nothing resumes it.
        if self._app_writing_paused or self._outgoing.pending + self._write_buffer_size:
            super()._control_app_writing()
