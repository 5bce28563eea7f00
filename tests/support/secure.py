"""TLS without certificates: contexts with a shared key, and an end of a connection that a test drives by hand."""

from __future__ import annotations

import contextlib
import socket
import ssl


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    key = bytes(32)
    server.set_psk_server_callback(lambda _identity: key)
    client.set_psk_client_callback(lambda _hint: ("test", key))
    return server, client


class End:
    """Speaks TLS over a socket that does not block. Nothing happens between two calls."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool = False) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side)
        self._unsent = b""
        self.got = b""
        self.shaken = self.ended = False

    def step(self) -> None:
        """Send what is ready, and take what has come: into `got`; `ended` after the peer's close_notify."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while chunk := self.sock.recv(1 << 16):
                self._incoming.write(chunk)
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self.shaken:
                self._object.do_handshake()
                self.shaken = True
            while not self.ended:
                chunk = self._object.read(1 << 16)
                self.got += chunk
                self.ended = chunk == b""
        self.flush()

    def encrypt(self, data: bytes) -> None:
        """Make records of it, for `flush` to send."""
        while data:
            data = data[self._object.write(data) :]

    def write(self, data: bytes) -> None:
        """Encrypt, and send as much as the system takes; `step` sends the rest."""
        self.encrypt(data)
        self.flush()

    def end(self) -> None:
        """Send close_notify."""
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        self.flush()

    def flush(self) -> None:
        """Send as much as the system takes of what is encrypted."""
        self._unsent += self._outgoing.read()
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
