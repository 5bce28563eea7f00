"""A proxy that does to a connection what a bad network and a bad peer do.

Problem: on one machine the system delivers at once, in large pieces and in order of the calls, so that tests between
two sockets meet few of the states that a transport has between a byte and the next. Idea: each way of a connection goes
through a thread that forwards it as dice say: single bytes, small and large pieces; nothing until the other way has
moved; nothing read, so that the sender's buffers fill; the end late, or only after the other end's; and after a given
number of bytes a reset. The thread uses blocking calls and `poll` only: no loop that is under test carries it.

Invariants:

* What leaves is what came, in its order: nothing is invented, repeated or overtaken. `given` counts what left.
* A way's decisions come from its own dice and from its own bytes, so a seed means the same whatever takes how long.
* Everything that rests goes on after `QUIET` seconds in which nothing moves, unless the plan says that it waits for an
  end of the connection. So ends that both read cannot be blocked for ever.
* A reset comes when exactly `Reset.given` bytes have left and at least `Reset.taken` have come, and the victims'
  systems have what left. It is an RST over TCP; a Unix socket says so only if it is closed with bytes unread.
* The thread ends by itself, and leaves no descriptor, when both ends of the connection have closed their sockets.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import termios
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fcntl import ioctl
from functools import partial
from typing import Any

from tests.support.waiting import PATIENCE

QUIET = 0.002  # seconds
MOST = 1 << 16  # bytes that a way keeps


@dataclass(frozen=True)
class Reset:
    """The ends that get one (0 is the client, 1 the server), and when: `given` and `taken` are of the ways from the
    client and from the server; None: whatever it is. An end that is no victim gets the end of the stream instead, and
    the proxy swallows what it sends.
    """

    victims: frozenset[int]
    given: tuple[int | None, int | None]
    taken: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    seed: int
    reset: Reset | None = None
    holds_eof: tuple[bool, bool] = (False, False)  # of what came from the client, from the server: until the other's
    buffers: int = 0  # bytes of the system's buffers, where it is not 0


class Way:
    """What one end sends to the other."""

    def __init__(self, seed: str, source: socket.socket, sink: socket.socket, holds_eof: bool) -> None:
        self.dice = random.Random(seed)
        self.source, self.sink, self.holds_eof = source, sink, holds_eof
        self.waiting = bytearray()
        self.taken = self.given = self.pieces = 0
        self.last: int | None = None  # where a reset comes
        self.ended = self.shut = self.swallows = False
        self._most, self._left = MOST, 0  # bytes of a piece, and for how many more bytes that holds
        self.rests_until: int | None = None  # the other way's count of pieces
        self.deaf = False

    def decide(self, other: Way) -> None:
        """Choose how the next bytes go."""
        mood = self.dice.choice(("flow", "flow", "pieces", "pieces", "bytes", "rest", "deaf"))
        if mood in ("rest", "deaf"):
            self.rests_until = other.pieces + self.dice.choice((1, 1, 2, 5))
            self.deaf = mood == "deaf"
            mood = "pieces"
        self._most = {"flow": MOST, "pieces": self.dice.choice((10, 100, 1448, 5000)), "bytes": 1}[mood]
        self._left = self.dice.choice((1, 3, 30)) * (MOST // 8 if mood == "flow" else self._most)

    def rests(self, other: Way) -> bool:
        if self.rests_until is not None and (other.pieces >= self.rests_until or other.shut or self.swallows):
            self.wake()
        return self.rests_until is not None

    def wake(self) -> None:
        self.rests_until, self.deaf = None, False

    def reads(self) -> bool:
        return not self.ended and not self.deaf and len(self.waiting) < MOST

    def sends(self) -> bool:
        return bool(self.waiting) and self.rests_until is None and self.given != self.last

    def ends(self, other: Way) -> bool:
        """Is it time to send the end?"""
        held = self.holds_eof and not other.ended
        return self.ended and not self.shut and not self.waiting and self.rests_until is None and not held

    def read(self) -> None:
        data = self.source.recv(MOST - len(self.waiting))
        if not data:
            self.ended = True
        self.taken += len(data)
        if not self.swallows:
            self.waiting += data

    def send(self, other: Way) -> None:
        """Send one piece, or begin to rest."""
        if self._left <= 0:
            self.decide(other)
            if self.rests_until is not None:
                return
        most = min(self._most, self._left)
        if self.last is not None:
            most = min(most, self.last - self.given)
        sent = self.sink.send(self.waiting[:most])
        del self.waiting[:sent]
        self._left -= sent
        self.given += sent
        self.pieces += 1

    def end(self) -> None:
        self.shut = True
        if not self.swallows:
            with contextlib.suppress(OSError):  # the other end has closed its socket
                self.sink.shutdown(socket.SHUT_WR)


class Proxy:
    """Listens at `address`, forwards one connection to `upstream`, and begins to count towards a reset at `arm()`."""

    def __init__(self, family: int, address: Any, upstream: Any, plan: Plan) -> None:
        self._plan, self._upstream = plan, upstream
        self._victims: frozenset[int] = plan.reset.victims if plan.reset is not None else frozenset()
        self._listener = socket.socket(family)
        self._narrow(self._listener)
        self._listener.bind(address)
        self._listener.listen(1)
        self.address = self._listener.getsockname()
        self.names: list[Any] = []  # the client's, and the proxy's own towards the server
        self.ways: list[Way] = []
        self.has_reset = False
        self._waker, self._woken = socket.socketpair()
        self._armed, self._stopped = threading.Event(), False
        self._base: list[int] | None = None  # what each way had taken when the proxy was armed
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._body, name="chaos")

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_why: object) -> None:
        """Give the connection up, if it is still there."""
        self._stopped = True
        self._waker.send(b"x")
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the proxy hangs"
        for one in (self._listener, self._waker, self._woken):
            one.close()

    def arm(self) -> None:
        """A reset may come. Bytes count from the moment at which this returns."""
        self._waker.send(b"x")
        assert self._armed.wait(PATIENCE)

    def join(self) -> None:
        """Wait until both ends have closed their sockets."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "an end has not closed its socket"
        if self._error is not None:
            raise self._error

    def _narrow(self, sock: socket.socket) -> None:
        if self._plan.buffers:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, self._plan.buffers)

    def _body(self) -> None:
        try:
            self._connects()
        except BaseException as error:
            self._error = error

    def _connects(self) -> None:
        with contextlib.ExitStack() as stack:
            wait = select.poll()
            wait.register(self._listener, select.POLLIN)
            wait.register(self._woken, select.POLLIN)
            wait.poll()
            if self._stopped:
                return
            client, name = self._listener.accept()
            stack.enter_context(client)
            server = stack.enter_context(socket.socket(self._listener.family))
            self._narrow(server)
            server.connect(self._upstream)
            self.names += [name, server.getsockname()]
            self._ends = client, server
            for end in self._ends:
                end.setblocking(False)
                if end.family == socket.AF_INET:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            seed, holds = self._plan.seed, self._plan.holds_eof
            self.ways += [Way(f"{seed} up", client, server, holds[0]), Way(f"{seed} down", server, client, holds[1])]
            try:
                self._forwards()
            except ConnectionError:  # an end has closed its socket and not read everything: the other one hears of it
                for end in self._ends:
                    _reset(end)

    def _forwards(self) -> None:
        """Until both ways have ended, or a reset has ended both ends, or the test has stopped waiting."""
        while not self._stopped and not all(way.shut for way in self.ways):
            wait = select.poll()
            wait.register(self._woken, select.POLLIN)
            calls: dict[int, list[tuple[int, Callable[[], None]]]] = {}
            quiet: float | None = None
            for way, other in zip(self.ways, reversed(self.ways), strict=True):
                if way.rests(other):
                    quiet = QUIET if quiet is None else quiet
                if way.ends(other):
                    way.end()
                    quiet = 0
                if way.reads():
                    calls.setdefault(way.source.fileno(), []).append((select.POLLIN, way.read))
                if way.sends():
                    calls.setdefault(way.sink.fileno(), []).append((select.POLLOUT, partial(way.send, other)))
            for fd, wanted in calls.items():
                wait.register(fd, sum(event for event, _ in wanted))
            if self._reset_is_due() and quiet is None:
                quiet = QUIET  # the systems have to take what was given before
            ready = wait.poll(None if quiet is None else quiet * 1000)
            if not ready:
                for way in self.ways:
                    way.wake()
            for fd, events in ready:
                if fd == self._woken.fileno():
                    self._wakes()
                for event, does in calls.get(fd, ()):
                    if events & (event | select.POLLHUP | select.POLLERR):
                        with contextlib.suppress(BlockingIOError):
                            does()
            if self._reset_is_due() and self._all_delivered():
                self._resets()

    def _wakes(self) -> None:
        self._woken.recv(100)
        reset = self._plan.reset
        if self._base is None and reset is not None:
            for way, given in zip(self.ways, reset.given, strict=True):
                way.last = None if given is None else way.given + given
            self._base = [way.taken for way in self.ways]
            self._armed.set()

    # --- resets

    def _reset_is_due(self) -> bool:
        reset = self._plan.reset
        if reset is None or self._base is None or self.has_reset:
            return False
        pairs = zip(self.ways, self._base, reset.taken, strict=True)
        return all(way.given == way.last or way.last is None for way in self.ways) and all(
            way.taken - base >= taken for way, base, taken in pairs
        )

    def _all_delivered(self) -> bool:
        """Does no victim's bytes wait in the proxy's own system?"""
        waiting = (ioctl(self._ends[victim], termios.TIOCOUTQ, bytes(4)) for victim in self._victims)
        return not any(struct.unpack("i", count)[0] for count in waiting)

    def _resets(self) -> None:
        self.has_reset = True
        for victim in self._victims:
            way = self.ways[victim]
            way.ended = way.shut = True
            way.waiting.clear()
            _reset(self._ends[victim])
        for survivor in {0, 1} - self._victims:
            way = self.ways[survivor]
            way.swallows = True
            way.wake()
            way.waiting.clear()
            with contextlib.suppress(OSError):
                self._ends[survivor].shutdown(socket.SHUT_WR)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
