"""What descriptors cost: from an event to its callback, a byte over and back, and descriptors without events.

As in `workloads`, each function makes a probe. Callbacks take the descriptor and its events, both optional, because
nbloop gives them and asyncio does not.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from .drive import Driven
from .measure import clock

ECHO = 64  # bytes


def room() -> None:
    """Raise this process's limit of descriptors to the most that the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def eventfds(ready: int, idle: int = 0) -> Iterator[list[int]]:
    """Descriptors of which the first `ready` can be read; closed at the end. Raises OSError where the system does not
    allow that many.
    """
    room()
    fds: list[int] = []
    try:
        for _ in range(ready + idle):
            fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))  # noqa: PERF401 - to close those made so far
        for fd in fds[:ready]:
            os.eventfd_write(fd, 1)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


class Ready:
    """A probe: ns for one callback of a readable descriptor. All of them are ready in every turn, since nobody reads
    the data. `close` unregisters them. Several loops can watch the same descriptors.
    """

    def __init__(self, label: str, driven: Driven, fds: list[int], calls: int = 5000) -> None:
        self.label, self.driven, self.calls = label, driven, calls
        self._left = 0
        self._marks: list[int] = []
        self._resources = contextlib.ExitStack()
        for fd in fds:
            driven.watch(fd, self._called)
            self._resources.callback(driven.unwatch, fd)

    def _called(self, _fd: int = 0, _events: int = 0) -> None:
        self._left -= 1
        if self._left == 0:
            self._marks.append(clock())
            self.driven.stop()

    def __call__(self) -> Mapping[str, float]:
        self._marks.clear()
        self._left = self.calls

        def begin() -> None:
            self._marks.append(clock())

        self.driven.run(begin)
        start, end = self._marks
        return {self.label: (end - start) / self.calls}

    def close(self) -> None:
        """Watch nothing any more."""
        self._resources.close()


class Echo:
    """A probe: ns for 64 bytes sent, received, sent back and received, over each of `connections` TCP connections.

    Both ends are on the loop. Every connection sends again as soon as it has its answer, so all are always busy.
    """

    def __init__(self, label: str, driven: Driven, connections: int = 100, rounds: int = 10) -> None:
        self.label, self.driven, self.rounds = label, driven, rounds
        self.clients: list[socket.socket] = []
        self._resources = contextlib.ExitStack()
        room()
        with socket.create_server(("127.0.0.1", 0), backlog=connections) as server:
            for _ in range(connections):
                client = self._resources.enter_context(socket.create_connection(server.getsockname()))
                answering = self._resources.enter_context(server.accept()[0])
                for end in (client, answering):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    end.setblocking(False)
                self._watch(client, self._answered(client))
                self._watch(answering, self._echo(answering))
                self.clients.append(client)
        self._left = 0
        self._marks: list[int] = []

    def _watch(self, end: socket.socket, callback: Callable[..., None]) -> None:
        self.driven.watch(end.fileno(), callback)
        self._resources.callback(self.driven.unwatch, end.fileno())

    @staticmethod
    def _echo(end: socket.socket) -> Callable[..., None]:
        receive, send = end.recv, end.send

        def echo(_fd: int = 0, _events: int = 0) -> None:
            send(receive(4096))

        return echo

    def _answered(self, end: socket.socket) -> Callable[..., None]:
        receive, send = end.recv, end.send
        message = bytes(ECHO)

        def answered(_fd: int = 0, _events: int = 0) -> None:
            receive(4096)
            self._left -= 1
            if self._left >= len(self.clients):
                send(message)
            elif self._left == 0:
                self._marks.append(clock())
                self.driven.stop()

        return answered

    def __call__(self) -> Mapping[str, float]:
        self._marks.clear()
        total = self._left = self.rounds * len(self.clients)

        def begin() -> None:
            self._marks.append(clock())
            for client in self.clients:
                client.send(bytes(ECHO))

        self.driven.run(begin)
        start, end = self._marks
        return {self.label: (end - start) / total}

    def close(self) -> None:
        """Close all connections."""
        self._resources.close()


class Signalled:
    """A probe: ns from another thread's write to an eventfd, the loop asleep, to the callback and back to the writer.

    Back is a lock that the callback releases, as in `crossing.hop`. `driven` runs in a thread of its own. Without time
    to `settle` the next write follows the answer at once.
    """

    def __init__(self, label: str, driven: Driven, settle: float, hops: int = 10) -> None:
        self.label, self.hops, self.settle = label, hops, settle
        self._resources = contextlib.ExitStack()
        (self._fd,) = self._resources.enter_context(eventfds(0, idle=1))
        self._back = threading.Lock()
        self._back.acquire()
        registered = threading.Event()

        def begin() -> None:
            driven.watch(self._fd, self._called)
            registered.set()

        def end() -> None:
            driven.unwatch(self._fd)
            registered.set()

        def unwatch() -> None:
            registered.clear()
            driven.soon_threadsafe(end)
            registered.wait()

        driven.soon_threadsafe(begin)
        registered.wait()
        self._resources.callback(unwatch)

    def _called(self, _fd: int = 0, _events: int = 0) -> None:
        os.eventfd_read(self._fd)
        self._back.release()

    def __call__(self) -> Mapping[str, float]:
        times = []
        for _ in range(self.hops):
            if self.settle:
                time.sleep(self.settle)
            start = clock()
            os.eventfd_write(self._fd, 1)
            self._back.acquire()
            times.append(clock() - start)
        return {self.label: sorted(times)[self.hops // 2]}

    def close(self) -> None:
        """Watch it no more."""
        self._resources.close()
