"""One address for all workers of `nbloop.serve`.

Two ways to spread connections over loops. **System**: each loop has its own listening socket, all bound to one address
with SO_REUSEPORT, and the system chooses by a hash of the addresses. Nothing is shared and nothing is added to an
accept, but a few connections may be spread unevenly, and the system does not know which loops are busy. **Least busy**:
one thread accepts and hands each connection to a loop. That costs a thread switch per connection, but takes the loops'
load into account. Unix sockets have no SO_REUSEPORT, so for them it is the only way.

The first worker that needs an address binds all of its sockets, so that the others find theirs. A socket listens only
when its worker's server does: a socket that is bound but does not listen gets no connections.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .. import hooks
from ..lock import CountingLock
from ..observe.contention import totals
from ..threads import begin, join

if TYPE_CHECKING:
    from .loop import EventLoop

type Placement = Literal["system", "least busy"]

SPREADS = sys.platform == "linux"  # elsewhere SO_REUSEPORT is missing, or gives all connections to one socket
LOOK = 0.05  # seconds between two measurements of how long the loops slept
REST = 0.25  # seconds without accepting, when the process has no descriptors left
# `select` refuses descriptors from 1,024 on, and epoll would need a descriptor of its own.
_Waits: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class SharerGroup(Protocol):
    """A group of workers, as their addresses see it."""

    name: str

    @property
    def workers(self) -> Sequence[Sharer]: ...


class Sharer(Protocol):
    """A worker, as its addresses see it."""

    index: int
    loop: EventLoop

    @property
    def count(self) -> int: ...
    @property
    def group(self) -> SharerGroup: ...


class Listeners:
    """The addresses of one group of workers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = CountingLock()  # held while an address is bound: once each
        self._bound: dict[tuple[object, ...], list[socket.socket]] = {}
        self._asked: Counter[tuple[object, ...]] = Counter()
        self._fronts: list[Front] = []
        self._closed = False

    def listen(self, worker: Sharer, host: str, port: int, family: int, placement: Placement | None) -> socket.socket:
        if placement is None:
            placement = "system" if SPREADS else "least busy"
        if placement not in ("system", "least busy"):
            raise ValueError(f'placement must be "system" or "least busy", not {placement!r}')
        if not 0 <= port <= 0xFFFF:  # `getaddrinfo` takes only the last 16 bits
            raise OverflowError(f"port must be 0 to 65535, not {port}")
        if placement == "system" and not SPREADS:
            raise NotImplementedError('placement="system" needs Linux; elsewhere SO_REUSEPORT does not spread')

        def bind() -> list[socket.socket]:
            found = socket.getaddrinfo(host or None, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            kind, _, _, _, address = found[0]
            if placement == "system":
                return bind_each(kind, address, worker.count)
            return self._hand(bind_one(kind, address), worker)

        return self._of(worker, (host, port, family, placement), bind)

    def listen_unix(self, worker: Sharer, path: str) -> socket.socket:
        def bind() -> list[socket.socket]:
            front = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                front.bind(path)
            except BaseException:
                front.close()
                raise
            return self._hand(front, worker, path)

        return self._of(worker, (path,), bind)

    def _of(
        self, worker: Sharer, address: tuple[object, ...], bind: Callable[[], list[socket.socket]]
    ) -> socket.socket:
        """The worker's socket for an address. The n-th request of one worker matches the n-th of all others, since
        port 0 may be requested twice.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} has ended")
            time_asked = self._asked[(worker.index, *address)]
            key = (time_asked, *address)
            if key not in self._bound:
                self._bound[key] = bind()
            self._asked[(worker.index, *address)] += 1
            return self._bound[key][worker.index]

    def _hand(self, front: socket.socket, worker: Sharer, path: str | None = None) -> list[socket.socket]:
        made = Front(front, worker.group.workers, path)
        self._fronts.append(made)
        return list(made.backs)

    def close(self) -> None:
        """Close what the workers, which have ended, did not close."""
        with self._lock:
            self._closed = True
            for sockets in self._bound.values():
                for one in sockets:
                    one.close()
            for front in self._fronts:
                front.close()
            self._bound.clear()


def bind_one(family: int, address: Any) -> socket.socket:
    """A bound socket, if no other socket listens there."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def bind_each(family: int, address: Any, count: int) -> list[socket.socket]:
    """Several sockets, all bound to one address, if no other socket listens there.

    The first is bound without SO_REUSEPORT: with it, a second process of the same user could bind to the address, too,
    and would silently get half of the connections.
    """
    made = [bind_one(family, address)]
    try:
        made[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(count - 1):
            one = socket.socket(family, socket.SOCK_STREAM)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(made[0].getsockname())
    except BaseException:
        for one in made:
            one.close()
        raise
    return made


class Back(socket.socket):
    """A loop's end of an address: a listening socket to asyncio. Another thread hands it the accepted connections."""

    def __init__(self, front: Front, worker: Sharer) -> None:
        mine, self._waker = socket.socketpair()
        super().__init__(mine.family, mine.type, mine.proto, mine.detach())
        self.setblocking(False)
        self._waker.setblocking(False)
        self._front = front
        self.worker = worker
        self.listening = False
        self.slept = 0.0  # seconds that the loop had slept at the last look
        self.busy = 0  # quarters of the time between the last two looks
        self.held: dict[weakref.ref[socket.socket], None] = {}  # connections that live
        self._handed: deque[tuple[socket.socket, Any]] = deque()

    @property
    def family(self) -> socket.AddressFamily:
        """The family of the address."""
        return self._front.family

    def getsockname(self) -> Any:
        """The address."""
        return self._front.address

    def listen(self, backlog: int = 128, /) -> None:
        """Take connections from now on."""
        self._front.listen(backlog)
        self.listening = True

    def accept(self) -> tuple[socket.socket, Any]:
        """A connection that was handed to this loop; BlockingIOError if there is none."""
        try:
            return self._handed.popleft()
        except IndexError:
            with contextlib.suppress(BlockingIOError):  # what is handed over from now on is signalled again
                while self.recv(4096):
                    pass
        try:
            return self._handed.popleft()
        except IndexError:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None

    def hand(self, connection: socket.socket, address: Any) -> None:
        """Hand over a connection. The accepting thread."""
        self.held[weakref.ref(connection, self._forget)] = None
        self._handed.append((connection, address))
        with contextlib.suppress(BlockingIOError):  # full of wake bytes, so the loop is awake
            self._waker.send(b"\0")

    def _forget(self, connection: weakref.ref[socket.socket]) -> None:
        self.held.pop(connection, None)

    def close(self) -> None:
        """Take no more connections, and close those that were handed over and not accepted."""
        self.listening = False
        self._front.left()
        super().close()
        self.drop()
        self._waker.close()

    def drop(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._handed.popleft()[0].close()


class Front:
    """A listening socket, and the thread that accepts for several loops."""

    def __init__(self, sock: socket.socket, workers: Sequence[Sharer], path: str | None) -> None:
        self.family = sock.family
        self.address = sock.getsockname()
        self._sock = sock
        self._path = path
        self._process = os.getpid()
        self._lock = CountingLock()  # of start and end
        self._thread: threading.Thread | None = None
        self._ended = False
        self._seen = 0.0
        self._stop, self._stopper = socket.socketpair()
        self.backs = [Back(self, worker) for worker in workers]

    def listen(self, backlog: int) -> None:
        with self._lock:
            if self._ended:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if self._thread is None:
                self._sock.listen(backlog)
                self._sock.setblocking(False)
                self._thread = threading.Thread(target=self._accept, name=f"nbloop-accept {self.address}", daemon=True)
                begin(self._thread)

    def left(self) -> None:
        """A loop accepts no more connections; after the last loop, stop listening."""
        if not any(back.listening for back in self.backs):
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._stopper.close()
            if self._thread is not None and self._thread is not threading.current_thread():
                join(self._thread)
            self._sock.close()
            self._stop.close()
            if self._path is not None and os.getpid() == self._process:  # not by a forked child
                with contextlib.suppress(OSError, ValueError):  # ValueError: an abstract address, which is not a file
                    os.unlink(self._path)

    def _accept(self) -> None:
        """The body of the thread. Nothing here waits for a loop."""
        waits = _Waits()
        waits.register(self._stop, selectors.EVENT_READ)
        accepts = waits.register(self._sock, selectors.EVENT_READ)
        while True:
            if any(key is not accepts for key, _ in waits.select()):
                return
            try:
                connection, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:  # no descriptors left, mostly
                hooks.log(error, "%s cannot accept a connection", self.address, loop=self.backs[0].worker.group.name)
                waits.unregister(self._sock)
                if waits.select(REST):
                    return
                accepts = waits.register(self._sock, selectors.EVENT_READ)
                continue
            self._place(connection, address)

    def _place(self, connection: socket.socket, address: Any) -> None:
        self._look()
        while open_ones := [back for back in self.backs if back.listening]:
            chosen = min(open_ones, key=lambda back: (back.busy, len(back.held)))
            try:
                chosen.hand(connection, address)
            except OSError:  # closed in this moment
                chosen.listening = False
                continue
            if not chosen.listening:  # it may have checked for the last time before this arrived
                chosen.drop()
            return
        connection.close()

    def _look(self) -> None:
        """Measure how busy each loop was since the last time, in quarters: less is noise among equally busy loops."""
        now = time.monotonic()
        gone = now - self._seen
        if gone < LOOK:
            return
        self._seen = now
        for back in self.backs:
            slept = totals(back.worker.loop.core).parked_time
            back.busy = round(4 * max(0.0, 1 - (slept - back.slept) / gone))
            back.slept = slept
