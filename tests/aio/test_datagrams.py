"""The datagram transports of `nbloop.aio` behave as asyncio's, seen from both ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import itertools
import os
import random
import socket
import subprocess
import sys
import unittest.mock
import weakref
from asyncio import selector_events
from typing import Any

import pytest

import nbloop
from nbloop.aio.datagrams import HEADER, Datagrams, DatagramTransport
from nbloop.aio.loop import UNPOLLED_TURNS
from nbloop.aio.transports import KERNELS_READ
from nbloop.kernels.turn.datagram import RECEIVED_AT_ONCE
from nbloop.kernels.turn.socket_words import MADE_SLOT
from tests.support.connections import Notes, Wrapped, left_by, misused, on_loop, settle
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(not KERNELS_READ, reason="asyncio's own transports here")

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
POLL_EVERY = UNPOLLED_TURNS + 1  # turns
ENDPOINTS = 60  # of each end


class Mended(selector_events._SelectorDatagramTransport):  # type: ignore[name-defined,misc]
    """asyncio's, which before 3.14 counts a header for each datagram that has ever waited."""

    def get_write_buffer_size(self):
        return sum(len(data) + HEADER for data, _ in self._buffer)


class Asyncio(asyncio.SelectorEventLoop):
    def _make_datagram_transport(self, sock, protocol, address=None, waiter=None, extra=None):
        return Mended(self, sock, protocol, address, waiter, extra)


LOOPS = {"asyncio": Asyncio, "nbloop": nbloop.new_event_loop}
FAMILIES = [socket.AF_INET]
with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
    probe.bind(("::1", 0))
    FAMILIES.append(socket.AF_INET6)
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def udp(family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((HOSTS[family], 0))
    sock.setblocking(False)
    return sock


def pair(kind: str, path: Any = None) -> tuple[socket.socket, socket.socket]:
    """A peer, and the socket of an endpoint. Each knows the other as far as the kind says."""
    if kind == "pair":
        peer, mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    elif "unix" in kind:
        peer, mine = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        for number, sock in enumerate((peer, mine)):
            name = f"{path}/{number}"
            with contextlib.suppress(FileNotFoundError):
                os.remove(name)
            sock.bind(name)
        peer.connect(mine.getsockname())
        if "connected" in kind:
            mine.connect(peer.getsockname())
    else:
        family = socket.AF_INET6 if "6" in kind else socket.AF_INET
        peer, mine = udp(family), udp(family)
        peer.connect(mine.getsockname())
        if "connected" in kind:
            mine.connect(peer.getsockname())
    for sock in (peer, mine):
        sock.setblocking(False)
    return peer, mine


class Logged(Notes, asyncio.DatagramProtocol):
    """Notes its calls, and does in the next one what `plans` says."""

    def __init__(self, log: list[object]) -> None:
        super().__init__(log)
        self.plans: list[str] = []
        self.fails = False
        self.transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.log.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert type(data) is bytes
        self.log.append(("data", data, addr))
        plans, self.plans = self.plans, []
        for plan in plans:
            if plan == "echo":
                self.plans = plans
                self.transport.sendto(data, addr)
            elif plan == "raise":
                raise ValueError(len(data))
            elif plan == "replace":
                self.transport.set_protocol(Logged([*self.log, "replaced"]))
                self.transport.get_protocol().log = self.log
                self.transport.get_protocol().transport = self.transport
            else:
                getattr(self.transport, plan)()

    def error_received(self, exc: Exception) -> None:
        self.log.append(("error", type(exc), exc.args))
        if self.fails:
            raise ValueError("raised")


KINDS = ["udp", "udp connected", "unix", "unix connected", *(["udp6", "udp6 connected"] if len(FAMILIES) == 2 else [])]
NO_ADDRESSES = (
    ("127.0.0.1", 70_000),
    ("127.0.0.1\0", 5),
    ("127.0.0.1", -1),
    ("127.0.0.1", 1 << 70),
    ("127.0.0.1", 1.5),
    ("127.0.0.1",),
    ("127.0.0.1", 9, 0, 0, 0),
    (b"127.0.0.1", "9"),
    ("\ud800", 9),
    "no address",
    7,
)


def played(factory: Any, kind: str, seed: int, path: Any) -> list[object]:
    """What happens at both ends while a random program runs on a loop."""
    dice = random.Random(seed)
    log: list[object] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()
        peer, mine = pair(kind, path)
        ports = {peer.getsockname(): "peer", mine.getsockname(): "mine"}  # another loop's are others
        transport, protocol = await loop.create_datagram_endpoint(lambda: Logged(log), sock=mine)
        assert isinstance(transport, DatagramTransport) == (factory is nbloop.new_event_loop)
        there = peer.getsockname()
        for _ in range(dice.randrange(3, 25)):
            size = dice.choice((0, 1, 10, 300, 5_000, 70_000))
            data = bytes([dice.randrange(256)]) * size
            op = dice.choice(
                ("send", "receive", "sendto", "sendto", "many", "plan", "other address") * 4
                + ("bytes-like", "pause_reading", "resume_reading", "limits", "again", "error", "buffer") * 2
                + ("no address", "close", "abort", "peer_close")
            )
            log.append((op, size))
            addr = None if "connected" in kind or kind == "pair" else there
            try:
                if op == "send":
                    log.extend([peer.send(data) for _ in range(dice.choice((1, 1, 3)))])
                elif op == "receive":
                    log.append(peer.recv(1 << 20))
                elif op == "sendto":
                    if dice.random() < 0.5:
                        transport.sendto(data, addr=addr)
                    else:
                        transport.sendto(data, *(() if addr is None and dice.random() < 0.5 else (addr,)))
                elif op == "many":
                    for number in range(dice.choice((3, 20))):  # a Unix socket takes some ten
                        transport.sendto(data[:1000] + bytes([number]), addr)
                elif op == "bytes-like":
                    transport.sendto(dice.choice((bytearray, memoryview, str))(data), addr)
                elif op == "other address":
                    name = there if isinstance(there, str) else ("localhost", there[1])
                    transport.sendto(data, dice.choice((None, there, name)))
                elif op == "no address":
                    transport.sendto(data, dice.choice(NO_ADDRESSES))
                elif op == "limits":
                    transport.set_write_buffer_limits(size)
                elif op == "plan":
                    plan = dice.choice(("echo", "echo", "echo", "raise", "close", "pause_reading", "replace", "abort"))
                    protocol.plans = [plan]
                elif op == "error":
                    protocol.fails = not protocol.fails
                elif op == "again":
                    transport.set_protocol(protocol)
                elif op == "buffer":
                    log.append(transport.get_write_buffer_size())
                elif op == "peer_close":
                    peer.close()
                else:
                    getattr(transport, op)()
            except (OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:
                log.append((type(error), str(error)))
            if dice.random() < 0.7:
                await settle()
                log.append((transport.get_write_buffer_size(), transport.is_closing(), transport.is_reading()))
        while not transport.is_closing():
            transport.abort()
        await settle()
        with contextlib.suppress(OSError):  # none is left, or the peer is closed
            while True:
                log.append(("left", peer.recv(1 << 20)))
        if mine.fileno() != -1:  # asyncio cannot abort what is gone
            transport.abort()
        await settle()
        log.append((transport.is_closing(), mine.fileno()))
        peer.close()
        log[:] = [named(one, ports) for one in log]

    on_loop(factory, log, play())
    return log


def named(one: object, ports: dict[object, str]) -> object:
    """An entry of the log, in which the addresses of this run have the names of their ends."""
    if isinstance(one, tuple):
        if one[:1] == ("data",):
            assert type(one[2]) in (tuple, str, type(None))
            return (*one[:2], ports.get(one[2], one[2]))
        return tuple(named(each, ports) for each in one)
    if isinstance(one, str):
        for address in ports:
            if isinstance(address, tuple):
                one = one.replace(str(address[1]), "PORT")
    return one


@pytest.mark.parametrize("kind", [*KINDS, "pair"])  # of a pair neither end has a name: nothing is sent
@pytest.mark.parametrize("seed", range(0, 80, 20))
def test_random_programs_mean_the_same(kind, seed, tmp_path):
    """Callbacks and their order, datagrams, addresses, exceptions, marks and answers are asyncio's."""
    for number in range(seed, seed + 20):
        ours, theirs = (played(LOOPS[name], kind, number, tmp_path) for name in ("nbloop", "asyncio"))
        assert ours == theirs, number


@pytest.fixture
def endpoint(tmp_path):
    """A function that runs ``test(transport, protocol, peer)`` on an endpoint of nbloop's."""

    def run(test, kind="udp", factory=Logged):
        async def main():
            peer, mine = pair(kind, tmp_path)
            protocol = factory([])
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: protocol, sock=mine)
            await settle()
            try:
                return await asyncio.wait_for(test(transport, protocol, peer), PATIENCE)
            finally:
                peer.close()
                if mine.fileno() != -1:  # asyncio cannot abort what is gone
                    transport.abort()
                await settle()

        return nbloop.run(main())

    return run


def received(protocol) -> list[bytes]:
    return [one[1] for one in protocol.log if one[0] == "data"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_address_is_what_the_socket_gives(family):
    """Object for object, from any host and port, and it leads back."""

    async def main():
        log: list[Any] = []
        local = ("0.0.0.0" if family == socket.AF_INET else "::", 0)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Logged(log), local)
        port = transport.get_extra_info("sockname")[1]
        reference = socket.socket(family, socket.SOCK_DGRAM)
        reference.bind(local)
        reference.settimeout(PATIENCE)
        hosts = ("127.0.0.1", "127.9.80.255", "127.255.255.254") if family == socket.AF_INET else ("::1",)
        for host in hosts:
            with socket.socket(family, socket.SOCK_DGRAM) as peer:
                peer.bind((host, 0))
                peer.sendto(b"x", (host, port))
                peer.sendto(b"x", (host, reference.getsockname()[1]))
                await settle()
                theirs = reference.recvfrom(100)
                ours = log.pop()
                assert ours == ("data", *theirs)
                assert [type(one) for one in ours[2]] == [type(one) for one in theirs[1]]
                transport.sendto(b"back", ours[2])
                peer.settimeout(PATIENCE)
                assert peer.recv(100) == b"back"
        reference.close()
        transport.close()
        await settle()

    nbloop.run(main())


@pytest.mark.parametrize("name", [None, "/name", "/name" + "x" * 80, "\0abstract %d", "\0%d\0x\0", ""])
def test_a_path_is_what_the_socket_gives(name, tmp_path):
    """A str, bytes in the abstract namespace, or None of a sender that has no name."""

    async def main():
        log: list[Any] = []
        with contextlib.ExitStack() as end:
            mine, reference, peer = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3))
            os.chdir(tmp_path)  # the system's limit is short
            for number, sock in enumerate((mine, reference)):
                end.enter_context(sock)
                sock.bind(f"to{number}")
            end.enter_context(peer)
            if name is not None:
                peer.bind(name.replace("%d", str(os.getpid())).removeprefix("/"))
            opened = asyncio.get_running_loop().create_datagram_endpoint(lambda: Logged(log), sock=mine)
            transport, _ = await opened
            peer.sendto(b"x", "to0")
            peer.sendto(b"x", "to1")
            await settle()
            theirs = reference.recvfrom(100)
            assert log.pop() == ("data", *theirs)
            transport.close()
            await settle()
            return type(theirs[1])

    before = os.getcwd()
    try:
        kind = nbloop.run(main())
    finally:
        os.chdir(before)
    assert kind is (type(None) if name is None else bytes if name[:1] in ("\0", "") else str)


@pytest.mark.skipif(len(FAMILIES) == 1, reason="no IPv6 here")
def test_an_address_of_ipv6_may_be_short_and_old():
    """A socket of IPv6 hears IPv4, and sends to tuples of two, three and four."""

    async def main():
        log: list[Any] = []
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Logged(log), sock=sock)
        with udp() as peer:
            peer.settimeout(PATIENCE)
            number = peer.getsockname()[1]
            peer.sendto(b"x", ("127.0.0.1", sock.getsockname()[1]))
            await settle()
            assert log.pop() == ("data", b"x", ("::ffff:127.0.0.1", number, 0, 0))
            for more in ((), (0,), (0, 0)):
                transport.sendto(b"%d" % len(more), ("::ffff:127.0.0.1", number, *more))
                assert peer.recv(10) == b"%d" % len(more)
        transport.close()
        await settle()

    nbloop.run(main())


@pytest.mark.skipif(not COMPILED, reason="kernels that are Python have frames")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unix"])
def test_no_frame_of_ours_runs_for_a_datagram(endpoint, kind):
    """Between the loop's run and `datagram_received`, and below `sendto`, no Python function is called."""

    async def test(transport, protocol, peer):
        calls = []
        came = asyncio.get_running_loop().create_future()
        connected = "connected" in kind

        def datagram_received(data, addr):
            transport.sendto(data, *(() if connected else (addr,)))
            transport.sendto(data, addr=None if connected else addr)
            sys.setprofile(None)
            came.set_result(sys._getframe().f_back.f_code.co_name)

        protocol.datagram_received = datagram_received

        def note(frame, event, _argument):
            if event == "call":
                calls.append(frame.f_code.co_name)

        asyncio.get_running_loop().call_soon(sys.setprofile, note)
        asyncio.get_running_loop().core.submit(peer.send, b"x")
        caller = await came
        assert peer.recv(10) == peer.recv(10) == b"x"
        return caller, calls

    caller, calls = endpoint(test, kind)
    assert caller == "_turn_until_end"  # which has called the kernel that turns
    assert set(calls) <= {"datagram_received", "check_interrupts"}  # the second once a turn


@pytest.mark.parametrize("kind", KINDS)
def test_a_poll_brings_several_datagrams_and_not_all(endpoint, kind):
    """So many that a poll costs little, and so few that others have their turn."""
    many = 9  # what a Unix socket keeps

    async def test(transport, protocol, peer):
        seen = []
        transport.pause_reading()
        for _ in range(many if "unix" in kind else 2 * RECEIVED_AT_ONCE + 1):
            peer.send(b"x")
        transport.resume_reading()
        called = transport._datagrams.ready
        while len(received(protocol)) < many or not seen or seen[-1] != len(received(protocol)):
            seen.append(len(received(protocol)))
            called(transport._sock_fd, nbloop.IOEvents.READ)
        return seen

    seen = endpoint(test, kind)
    steps = [later - before for before, later in itertools.pairwise(seen)]
    if "unix" in kind:
        assert steps[0] == many
    else:
        assert steps[:3] == [RECEIVED_AT_ONCE, RECEIVED_AT_ONCE, 1]


@pytest.mark.parametrize("end", ["close", "abort", "pause_reading", "replace", "raise"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_protocol_that_had_enough_gets_no_more(endpoint, kind, end):
    """Of what the same poll has brought: it closes, pauses, is replaced or raises at the first of several."""

    async def test(transport, protocol, peer):
        loop = asyncio.get_running_loop()
        told = []
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        transport.pause_reading()
        for number in range(4):
            peer.send(b"%d" % number)
        transport.resume_reading()
        protocol.plans = [end]
        transport._datagrams.ready(transport._sock_fd, nbloop.IOEvents.READ)
        first = received(protocol)
        await settle()
        if end == "pause_reading":
            assert received(protocol) == first
            transport.resume_reading()
            await settle()
        if end == "raise":
            (context,) = told
            assert type(context["exception"]) is ValueError
            assert "_read_ready" in context["message"]
            assert "_read_ready" in repr(context["handle"])
        else:
            assert told == []
        return first, received(protocol)

    first, all_of_them = endpoint(test, kind)
    assert first == [b"0"]
    assert all_of_them == ([b"0"] if end in ("close", "abort") else [b"0", b"1", b"2", b"3"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_ready_before_a_datagram_runs_before_it(tmp_path, kind):
    """The first turn of a run polls, and what waits for it then is older."""
    peer, mine = pair(kind, tmp_path)
    with contextlib.closing(nbloop.new_event_loop()) as loop:
        opened = loop.create_datagram_endpoint(lambda: Logged([]), sock=mine)
        transport, protocol = loop.run_until_complete(opened)
        loop.run_until_complete(settle())
        peer.send(b"x")
        loop.call_soon(protocol.log.append, "before")
        loop.run_until_complete(settle())
        assert [one if isinstance(one, str) else one[0] for one in protocol.log] == ["made", "before", "data"]
        transport.close()
        loop.run_until_complete(settle())
    peer.close()


def test_an_interrupt_leaves_the_loop(endpoint):
    """KeyboardInterrupt and SystemExit leave `run`, as in asyncio."""

    async def test(_transport, protocol, peer):
        def datagram_received(_data, _addr):
            raise SystemExit(7)

        protocol.datagram_received = datagram_received
        peer.send(b"x")
        await asyncio.sleep(PATIENCE)

    with pytest.raises(SystemExit) as raised:
        endpoint(test)
    assert raised.value.code == 7


def test_the_exception_handler_runs_in_the_endpoints_context(endpoint):
    """As that of a handle of asyncio's; the context is not left entered."""
    variable = contextvars.ContextVar("variable", default=0)
    seen = []

    class Counts(Logged):
        def datagram_received(self, data, addr):
            variable.set(variable.get() + 1)
            raise ValueError(variable.get())

    async def test(_transport, _protocol, peer):
        def handler(_loop, context):
            seen.append((variable.get(), context["exception"].args))

        asyncio.get_running_loop().set_exception_handler(handler)
        for _ in range(3):
            peer.send(b"x")
            await settle()
        return variable.get()

    assert endpoint(test, factory=Counts) == 0
    assert seen == [(number, (number,)) for number in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["udp", "udp connected", "unix connected"])
def test_an_error_is_the_protocols(endpoint, kind):
    """Of what was sent before, or of a datagram that is too large; the endpoint lives on."""

    async def test(transport, protocol, peer):
        there = None if kind != "udp" else peer.getsockname()
        transport.sendto(b"x" * 10_000_000, there)
        assert protocol.log.pop() == ("error", OSError, (errno.EMSGSIZE, os.strerror(errno.EMSGSIZE)))
        peer.close()
        for _ in range(2):  # UDP tells of the first one at the second, or when it is polled
            transport.sendto(b"x", there)
            await settle()
        return list(protocol.log), transport.is_closing()

    log, closing = endpoint(test, kind)
    codes = {
        "udp": [],
        "udp connected": [errno.ECONNREFUSED] * 2,
        "unix connected": [errno.ECONNREFUSED, errno.ENOTCONN],
    }
    errors = [OSError(code, os.strerror(code)) for code in codes[kind]]
    assert log == ["made", *(("error", type(error), error.args) for error in errors)]
    assert not closing


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("kind", ["unix", "unix connected"])
def test_what_the_system_does_not_take_follows(endpoint, kind, closes):
    """In its order, with asyncio's flow control, before a `close`; and writing goes on however often that happens."""

    async def test(transport, protocol, peer):
        there = None if "connected" in kind else peer.getsockname()
        transport.set_write_buffer_limits(3 * (1 + HEADER))
        got, sent = [], []
        for _ in range(20):
            while "pause" not in protocol.log:
                assert len(sent) < 100_000
                sent.append(b"%c" % (len(sent) % 256))
                transport.sendto(sent[-1], there)
            waits = transport.get_write_buffer_size()
            assert waits == 4 * (1 + HEADER)
            if closes:
                transport.close()
            while len(got) < len(sent):
                with contextlib.suppress(BlockingIOError):
                    got.append(peer.recv(10))
                await asyncio.sleep(0)
            await settle()
            if closes:
                break
            assert protocol.log.pop() == "resume"
            assert protocol.log.pop() == "pause"
            assert transport.get_write_buffer_size() == 0
        assert got == sent
        return list(protocol.log)

    log = endpoint(test, kind)
    assert log == (["made", "pause", "resume", ("lost", type(None), None)] if closes else ["made"])


def test_closing_in_resume_writing_ends_the_transport_once(tmp_path):
    """asyncio's 3.13 and 3.14.8 end it a second time, which fails."""
    log = []

    class Closes(Logged):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.mine = transport

        def resume_writing(self):
            super().resume_writing()
            self.mine.close()

    async def play():
        loop = asyncio.get_running_loop()
        peer, mine = pair("unix connected", tmp_path)
        with peer:
            transport, _ = await loop.create_datagram_endpoint(lambda: Closes(log), sock=mine)
            transport.set_write_buffer_limits(0)
            for _ in range(100_000):
                transport.sendto(b"x")
                if "pause" in log:
                    break
            while mine.fileno() >= 0:
                with contextlib.suppress(BlockingIOError):
                    peer.recv(10)
                await asyncio.sleep(0)
            await settle()

    on_loop(nbloop.new_event_loop, log, play())
    assert log == ["made", "pause", "resume", ("lost", type(None), None)]


def test_aborting_for_the_last_that_waits_leaves_no_watch(tmp_path):
    """asyncio goes on watching for room, by a number that a later file may get."""
    log = []

    class Aborts(Logged):
        def error_received(self, exc):
            super().error_received(exc)
            self.transport.abort()

    async def play():
        loop = asyncio.get_running_loop()
        peer, mine = pair("unix connected", tmp_path)
        transport, _ = await loop.create_datagram_endpoint(lambda: Aborts(log), sock=mine)
        for _ in range(100_000):
            transport.sendto(b"x")
            if transport.get_write_buffer_size():
                break
        number = mine.fileno()
        peer.close()
        while mine.fileno() >= 0:
            await asyncio.sleep(0)
        await settle()
        assert number not in loop._selector.get_map()
        assert number not in loop.core._descriptors.table

    on_loop(nbloop.new_event_loop, log, play())
    assert log[0] == "made"
    assert log[-1] == ("lost", type(None), None)


def test_a_datagram_does_not_overtake_those_that_wait(endpoint):
    """Although the peer has made room for it."""

    async def test(transport, _protocol, peer):
        sent, got = 0, []
        while transport.get_write_buffer_size() == 0:
            assert sent < 100_000
            transport.sendto(b"%d" % sent)
            sent += 1
        got.append(peer.recv(10))
        transport.sendto(b"%d" % sent)
        while len(got) <= sent:
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                got.append(peer.recv(10))
        return got == [b"%d" % number for number in range(sent + 1)]

    assert endpoint(test, "unix connected")


def test_a_datagram_of_another_loop_is_not_sent():
    """contract: used on another loop, a transport raises and names both."""
    owner, here = nbloop.new_event_loop(name="owner"), nbloop.new_event_loop(name="here")
    with udp() as peer, contextlib.closing(owner), contextlib.closing(here):
        opened = owner.create_datagram_endpoint(lambda: Logged([]), ("127.0.0.1", 0))
        transport, _ = owner.run_until_complete(opened)

        async def use():
            transport.sendto(b"x", peer.getsockname())

        with pytest.raises(RuntimeError, match=r"DatagramTransport fd=\d+ .*owner.*here"):
            here.run_until_complete(use())
        with pytest.raises(BlockingIOError):
            peer.recv(10)
        transport.sendto(b"no loop runs", peer.getsockname())
        assert peer.recv(100) == b"no loop runs"
        transport.close()
        owner.run_until_complete(settle())


@pytest.mark.parametrize("way", ["close", "detach"])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_datagram_never_reaches_another_file_of_the_number(endpoint, kind, way):
    """A program closes a socket behind its transport, and its number denotes another file; nor is that one read."""

    async def test(transport, protocol, peer):
        other_peer, other = pair("pair")
        there = None if "connected" in kind else peer.getsockname()
        mine = transport._sock
        number = mine.fileno()
        getattr(mine, way)()
        os.dup2(other.fileno(), number)
        other_peer.send(b"not yours")
        transport.sendto(b"secret", there)
        transport._datagrams.ready(number, nbloop.IOEvents.READ)
        with pytest.raises(BlockingIOError):
            other_peer.recv(100)
        assert other.recv(100) == b"not yours"
        transport.abort()
        await settle()
        os.close(number)
        for one in (other_peer, other):
            one.close()
        return list(protocol.log)

    bad = ("error", OSError, (errno.EBADF, os.strerror(errno.EBADF)))
    assert endpoint(test, kind) == ["made", bad, bad, ("lost", type(None), None)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["close", "abort", "in flight", "paused", "raises", "error", "inside"])
def test_nothing_is_left_of_a_closed_endpoint(tmp_path, kind, end):
    """Transport, protocol and its words are gone, without a collection."""
    if end in ("raises", "error", "inside") and not COMPILED:
        pytest.skip("an exception keeps the frames of kernels that are Python")

    async def main():
        gone = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)
        for _ in range(ENDPOINTS):
            peer, mine = pair(kind, tmp_path)
            transport, protocol = await loop.create_datagram_endpoint(lambda: Logged([]), sock=mine)
            gone += [weakref.ref(transport), weakref.ref(protocol)]
            protocol.plans = {"raises": ["raise"], "inside": ["close"]}.get(end, ["echo"])
            peer.send(b"x")
            await settle()
            there = None if "connected" in kind else peer.getsockname()
            if end == "in flight":
                for _ in range(30):
                    transport.sendto(b"y", there)
            elif end == "paused":
                transport.pause_reading()
                peer.send(b"x")
            elif end == "error":
                peer.close()
                transport.sendto(b"y", there)
                await settle()
            transport.abort() if end == "abort" else transport.close()
            if end == "in flight":
                transport.abort()
            assert transport.is_closing()
            del transport, protocol
            await settle()
            peer.close()
        return [one for one in gone if one() is not None]

    assert left_by(main, Datagrams) == []


def test_nothing_is_leaked_by_a_datagram(endpoint):
    """Neither what is sent, nor its address, nor what is asked for each of them."""

    async def test(transport, protocol, peer):
        data, there = b"mark %d" % id(peer), peer.getsockname()
        watched = (data, there, protocol, transport, transport._datagrams, MADE_SLOT.__get__(transport._datagrams))
        before = [sys.getrefcount(one) for one in watched]
        for _ in range(50):
            transport.sendto(data, there)
            transport.sendto(data, addr=there)
            assert peer.recv(100) == peer.recv(100) == data
            peer.send(data)
            await settle()
        protocol.log.clear()
        return before, [sys.getrefcount(one) for one in watched]

    before, after = endpoint(test)
    assert before == after


class Last(Logged):
    """Keeps what came last."""

    def datagram_received(self, data, addr):
        self.log[:] = [data, addr]


def references(log):
    data, addr = log.pop(0), log.pop()
    return sys.getrefcount(data), sys.getrefcount(addr), [sys.getrefcount(one) for one in addr[:2]]


def test_what_was_received_goes_with_its_last_reference(endpoint):
    """Bytes and addresses are held as often as those of `recvfrom`."""

    async def test(_transport, protocol, peer):
        with udp() as other:
            peer.send(b"a datagram")
            peer.sendto(b"a datagram", other.getsockname())
            await settle()
            return references(protocol.log), references([*other.recvfrom(100)])

    ours, theirs = endpoint(test, factory=Last)
    assert ours == theirs


def test_an_audit_hook_hears_of_what_is_sent():
    """As of CPython's own `sendto`, and may refuse it, which is fatal to the transport. In a process of its own: a hook
    stays.
    """
    program = """
import asyncio, socket, sys, nbloop
heard, refuse = [], False

def hook(event, args):
    if event == "socket.sendto":
        heard.append((type(args[0]), args[1]))
        other.sendto(b"the hook's", sink.getsockname())  # the same buffer
        if refuse:
            raise PermissionError("no")

class Protocol(asyncio.DatagramProtocol):
    def connection_lost(self, exc):
        lost.append(exc)

    def error_received(self, exc):
        lost.append(exc)

async def main():
    global other, sink, refuse
    sink, peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for one in (sink, peer):
        one.bind(("127.0.0.1", 0))
        one.settimeout(10)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Protocol, ("127.0.0.1", 0))
    inner, _ = await loop.create_datagram_endpoint(Protocol, ("127.0.0.1", 0))

    class Other:
        busy = False

        def sendto(self, *args):
            if not self.busy:
                self.busy = True
                inner.sendto(*args)
                self.busy = False

    other = Other()
    sys.addaudithook(hook)
    there = peer.getsockname()
    transport.sendto(b"heard", there)
    assert peer.recv(100) == b"heard"
    assert sink.recv(100) == b"the hook's"
    assert heard == [(socket.socket, there), (socket.socket, sink.getsockname())], heard
    refuse = True
    other.busy = True
    transport.sendto(b"refused", there)
    await asyncio.sleep(0)
    peer.settimeout(0)
    try:
        peer.recv(100)
    except BlockingIOError:
        pass
    assert [type(one) for one in lost] == [PermissionError], lost
    refuse = False
    inner.close()
    transport.close()
    await asyncio.sleep(0)

lost = []
nbloop.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE * 4, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_transport_used_from_other_threads_does_no_harm(endpoint):
    """It belongs to the loop thread. Calls from other threads may fail, but do not corrupt memory."""

    async def test(transport, protocol, peer):
        there = peer.getsockname()
        calls = (lambda: transport.sendto(b"z", there)), (lambda: transport.set_protocol(Logged([])))
        got = await misused(peer, 100, *calls)
        transport.set_protocol(protocol)
        return got

    assert endpoint(test) > 0


def test_debug_mode_sees_slow_protocols(endpoint, caplog):
    """asyncio's debug mode warns of a slow `datagram_received`, also where it is switched on later."""

    async def test(_transport, protocol, peer):
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 0
        loop.set_debug(True)
        peer.send(b"x")
        await settle()
        loop.set_debug(False)
        peer.send(b"y")
        await settle()
        return received(protocol)

    assert endpoint(test) == [b"x", b"y"]
    assert "_read_ready" in caplog.text


def test_what_only_behaves_as_a_socket_gets_asyncios_transport():
    """Kernels read the descriptor of a socket by address."""

    async def main():
        peer, mine = pair("udp connected")
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Logged([]), sock=Wrapped(mine)
        )
        assert not isinstance(transport, DatagramTransport)
        transport.sendto(b"x")
        assert peer.recv(10) == b"x"
        transport.abort()
        await settle()
        peer.close()
        return list(protocol.log)

    assert nbloop.run(main()) == ["made", ("lost", type(None), None)]


def test_a_mock_of_a_socket_gets_asyncios_transport():
    """It says that it is an instance of `socket.socket`, and has no descriptor in its memory."""
    with contextlib.closing(nbloop.new_event_loop()) as loop:
        sock = unittest.mock.Mock(socket.socket)
        sock.family, sock.fileno.return_value = socket.AF_INET, 7
        transport = loop._make_datagram_transport(sock, unittest.mock.Mock())
        assert isinstance(sock, socket.socket)
        assert not isinstance(transport, DatagramTransport)
        transport._sock = None  # as if it had been closed


def test_another_family_gets_asyncios_transport():
    """Whose addresses only CPython knows."""

    async def main():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Logged([]), sock=sock)
        assert not isinstance(transport, DatagramTransport)
        transport.close()
        await settle()

    nbloop.run(main())


def test_words_that_were_not_made_refuse():
    """What `__new__` alone made has none."""
    words = Datagrams.__new__(Datagrams)
    for call in (lambda: words.ready(0, 1), lambda: words.sendto(b"x"), lambda: words.aim(None)):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("arguments", [(), (b"x", None, None)])
def test_a_call_of_other_arguments_is_refused(endpoint, arguments):
    async def test(transport, _protocol, _peer):
        with pytest.raises(TypeError, match="sendto"):
            transport.sendto(*arguments)
        with pytest.raises(TypeError, match="sendto"):
            transport.sendto(b"x", address=None)

    endpoint(test)
