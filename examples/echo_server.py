"""An echo server: what a client sends comes back, until it closes its half.

    python examples/echo_server.py [PORT]           # prints where it listens; Ctrl-C ends it
    socat - TCP:127.0.0.1:PORT

A connection is a socket and the bytes that it still has to send. As long as there are any, it reads nothing more, so a
client that does not read its echo delays nobody, and costs one chunk of memory.
"""

from __future__ import annotations

import contextlib
import socket
import sys

from nbloop import IOEvents, Loop

READ, WRITE = IOEvents.READ, IOEvents.WRITE


class Connection:
    def __init__(self, loop: Loop, client: socket.socket) -> None:
        self.loop, self.client, self.unsent = loop, client, b""
        client.setblocking(False)
        loop.register_fd(client.fileno(), READ, self.ready)

    def ready(self, fd: int, events: IOEvents) -> None:
        try:
            if not self.unsent:
                self.unsent = self.client.recv(65536)
                if not self.unsent:
                    self.close()  # the client has closed its half, and has been sent everything
                    return
            sent = self.client.send(self.unsent)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            self.close()
            return
        self.unsent = self.unsent[sent:]
        if bool(self.unsent) != bool(events & WRITE):
            self.loop.modify_fd(fd, WRITE if self.unsent else READ)

    def close(self) -> None:
        self.loop.unregister_fd(self.client.fileno())  # before the number is reused
        self.client.close()


def serve(loop: Loop, port: int = 0) -> socket.socket:
    """Accept connections on the loopback interface; returns the listening socket."""
    server = socket.create_server(("127.0.0.1", port))
    server.setblocking(False)

    def accept(fd: int, events: IOEvents) -> None:
        with contextlib.suppress(BlockingIOError):  # the client has gone again
            Connection(loop, server.accept()[0])

    loop.register_fd(server.fileno(), READ, accept)
    return server


if __name__ == "__main__":
    loop = Loop(name="echo")
    with serve(loop, int(sys.argv[1]) if len(sys.argv) > 1 else 0) as server:
        print("listening on port", server.getsockname()[1], flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            loop.run()
        loop.close()
