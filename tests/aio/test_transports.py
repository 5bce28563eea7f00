"""The transports of `nbloop.aio` behave as asyncio's, seen from both ends of a connection."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import ctypes
import errno
import itertools
import os
import random
import socket
import ssl
import struct
import sys
import threading
import weakref

import pytest

import nbloop
from nbloop.aio.transports import KERNELS_READ, Stream, StreamTransport, kernels_take
from tests.support.arrivals import compiled_only
from tests.support.connections import (
    LOOPS,
    Buffered,
    Logged,
    Wrapped,
    left_by,
    misused,
    on_loop,
    pair,
    settle,
)
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(not KERNELS_READ, reason="asyncio's own transports here")

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
CONNECTIONS = 120  # of each of 18 ends


def played(factory, kind: str, seed: int) -> list[object]:
    """What happens at both ends of a connection while a random program runs on a loop.

    How much TCP takes and delivers at once depends on time, except where it is little. How much a socket takes depends
    on how many pieces it comes in. So half of the programs for Unix sockets write little and let it wait for the end of
    the turn. The others fill a small socket, and ask after each call how much waits, which sends what was written.
    """
    dice = random.Random(seed)
    log: list[object] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()
        peer, mine = pair(kind)
        waits = kind == "unix" and dice.random() < 0.5
        if not waits:
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        protocol = Logged(log)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, mine)
        assert isinstance(transport, StreamTransport) == (factory is nbloop.new_event_loop)
        protocol.keeps_open = dice.random() < 0.3
        for _ in range(dice.randrange(3, 25)):
            size = dice.choice((0, 1, 10, 300, 5_000, 70_000, 400_000)[: 4 if waits else 5 if kind == "tcp" else 7])
            data = bytes([dice.randrange(256)]) * size
            # what ends a connection is rarer than what goes on with it
            op = dice.choice(
                ("send", "receive", "write", "writes" if waits else "write", "plan") * 6
                + ("write_other", "writelines", "pause_reading", "resume_reading", "limits", "buffered", "again") * 2
                + ("shutdown", "write_eof", "close", "abort", "peer_close", "reset")
            )
            log.append((op, size))
            if waits and op in ("send", "receive", "shutdown", "peer_close", "reset"):
                transport.get_write_buffer_size()  # what was written has left by now
            try:
                if op == "send":
                    log.append(peer.send(data))
                elif op == "receive":
                    log.append(peer.recv(max(1, size)))
                elif op == "write":
                    transport.write(data)
                elif op == "writes":
                    for _ in range(dice.choice((2, 3, 20))):
                        transport.write(data)
                        data = bytes([dice.randrange(256)]) * dice.choice((0, 1, 300))
                elif op == "write_other":
                    transport.write(dice.choice((bytearray, memoryview, str))(data))
                elif op == "writelines":
                    transport.writelines([data, b"", b"more"])
                elif op == "limits":
                    transport.set_write_buffer_limits(size)
                elif op == "plan":
                    plan = dice.choice(("echo", "echo", "raise", "close", "pause_reading", "replace", "buffered"))
                    protocol.plans = [plan]
                elif op == "buffered":
                    transport.set_protocol(Buffered(log))
                elif op == "again":
                    transport.set_protocol(protocol)
                elif op == "shutdown":
                    peer.shutdown(socket.SHUT_WR)
                elif op == "peer_close":
                    peer.close()
                elif op == "reset":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    peer.close()
                else:
                    getattr(transport, op)()
            except (OSError, RuntimeError, TypeError, AttributeError) as error:
                reset = kind == "tcp" and isinstance(error, (BrokenPipeError, ConnectionResetError))
                log.append("gone" if reset else (type(error), str(error)))  # which of the two depends on time
            settles = dice.random() < 0.7
            if not waits or settles:
                log.append(transport.get_write_buffer_size())
                log.append((transport.is_closing(), transport.is_reading()))
            if settles:
                await settle()
        while not transport.is_closing():
            transport.abort()
        await settle()
        rest = 0
        with contextlib.suppress(OSError):  # none is left, or the peer is closed
            while chunk := peer.recv(1 << 20):
                rest += len(chunk)
        log.append(("left", rest))
        peer.close()

    on_loop(factory, log, play())
    return log


class AsyncioTransport(asyncio.selector_events._SelectorSocketTransport):
    """asyncio's, with what it does since 3.14.8: lines that come after the end are dropped, and after a `close` that
    sent what waited the connection counts as lost. The first 3.13 fails for lines after a `close` while bytes wait, and
    does not pause for lines.
    """

    def close(self):
        super().close()
        if self._sock is not None:
            self._write_ready = self._write_sendmsg

    def writelines(self, list_of_data):
        if self._conn_lost and list_of_data and not self._eof and self._empty_waiter is None:
            return self.write(b"dropped")
        super().writelines(list_of_data)
        if self._buffer:
            self._maybe_pause_protocol()

    def _call_connection_lost(self, exc):
        self._conn_lost = self._conn_lost or 1
        super()._call_connection_lost(exc)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("seed", range(0, 400, 40))
def test_random_programs_mean_the_same(kind, seed, monkeypatch):
    """Callbacks and their order, bytes, exceptions, marks and answers are asyncio's, whatever the program is."""
    monkeypatch.setattr(asyncio.selector_events, "_SelectorSocketTransport", AsyncioTransport)
    for number in range(seed, seed + 40):
        assert played(LOOPS["nbloop"], kind, number) == played(LOOPS["asyncio"], kind, number), number


@pytest.fixture
def connected():
    """A function that runs ``test(transport, protocol, peer)`` on a connection of nbloop's."""

    def run(test, factory=Logged, kind="unix"):
        async def main():
            peer, mine = pair(kind)
            protocol = factory([])
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, mine)
            await settle()
            try:
                return await test(transport, protocol, peer)
            finally:
                peer.close()
                if transport.get_extra_info("socket").fileno() != -1:  # asyncio cannot abort what is gone
                    transport.abort()
                await settle()

        return nbloop.run(main())

    return run


class Raises(Logged):
    def data_received(self, data):
        raise ValueError(data)


class Broken(Buffered):
    """Fails where `fault` says."""

    fault = ""

    def get_buffer(self, sizehint):
        self.log.append(("get_buffer", sizehint))
        if self.fault == "get_buffer":
            raise ValueError("no buffer")
        if self.fault == "closes":
            self.transport.close()
        return {"empty": bytearray(), "read-only": b"12345", "none": None, "small": self.buffer}.get(
            self.fault, memoryview(self.buffer)[5:]
        )

    def buffer_updated(self, nbytes):
        super().buffer_updated(nbytes)
        if self.fault == "buffer_updated":
            raise ValueError(nbytes)
        if self.fault == "replaces":
            self.transport.set_protocol(Logged(self.log))


@pytest.mark.parametrize(
    "fault", ["", "get_buffer", "empty", "read-only", "none", "small", "closes", "buffer_updated", "replaces"]
)
def test_a_buffered_protocol_receives_into_its_buffer(fault):
    """Or fails, and the connection with it, as on asyncio."""

    def run(factory):
        log = []

        async def play():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: log.append(context["message"]))
            peer, mine = pair("unix")
            protocol = Broken(log)
            protocol.buffer = bytearray(10)
            protocol.transport, _ = await loop.connect_accepted_socket(lambda: protocol, mine)
            protocol.fault = fault
            for data in (b"abc", b"defghijklmnopqrstuvwxyz"):
                with contextlib.suppress(OSError):
                    peer.send(data)
                await settle()
            log.append(bytes(protocol.buffer))
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
            await settle()
            protocol.transport.abort()
            await settle()
            peer.close()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(play(), PATIENCE))
        return [("lost", bool(one[1])) if one[0] == "lost" else one for one in log]

    assert run(LOOPS["nbloop"]) == run(LOOPS["asyncio"])


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_large_messages_arrive_whole(connected, kind):
    """Whatever came before: after a large one the system is asked how much there is."""

    async def test(transport, protocol, peer):
        sizes = (100, 70_000, 70_000, 10, 200_000, 300_000, 65_536, 65_535, 1, 500_000, 500_000, 3)
        sent = b"".join(bytes([number]) * size for number, size in enumerate(sizes))
        loop = asyncio.get_running_loop()

        def send():
            peer.setblocking(True)
            for number, size in enumerate(sizes):
                peer.sendall(bytes([number]) * size)

        def received():
            return b"".join(data for name, data in (one for one in protocol.log if one != "made"))

        await loop.run_in_executor(None, send)
        while len(received()) < len(sent):
            await asyncio.sleep(0)
        assert max(len(one[1]) for one in protocol.log if one != "made") > 65_536
        return received() == sent

    assert connected(test, kind=kind)


@pytest.mark.skipif(not COMPILED, reason="kernels that are Python have frames")
def test_no_frame_of_ours_runs_for_a_message(connected):
    """Between the loop's run and `data_received`, and below `write`, no Python function is called."""

    async def test(transport, protocol, peer):
        calls = []
        came = asyncio.get_running_loop().create_future()

        def data_received(data):
            transport.write(data)
            sys.setprofile(None)
            came.set_result(sys._getframe().f_back.f_code.co_name)

        protocol.data_received = data_received

        def note(frame, event, _argument):
            if event == "call":
                calls.append(frame.f_code.co_name)

        asyncio.get_running_loop().call_soon(sys.setprofile, note)
        asyncio.get_running_loop().core.submit(peer.send, b"x")
        caller = await came
        await settle()
        assert peer.recv(10) == b"x"
        return caller, calls

    caller, calls = connected(test)
    assert caller == "_turn_until_end"  # which has called the kernel that turns
    assert set(calls) <= {"data_received", "check_interrupts"}  # the second once a turn


@pytest.mark.skipif(not COMPILED, reason="kernels that are Python have frames")
def test_no_frame_of_ours_runs_for_a_stream():
    """Nor for the future that a reader waits for, its callback, and the step of the task."""

    async def main():
        peer, mine = pair("unix")
        reader, writer = await asyncio.open_connection(sock=mine)
        ours = []

        def note(frame, event, _argument):
            if event == "call" and frame.f_code.co_filename.startswith(os.path.dirname(nbloop.__file__)):
                ours.append(frame.f_code.co_name)

        sys.setprofile(note)
        for _ in range(10):
            asyncio.get_running_loop().call_soon(peer.send, b"x")
            assert await reader.read(100) == b"x"
            writer.write(b"y")
        await asyncio.sleep(0)
        sys.setprofile(None)
        ours = [name for name in ours if name not in ("check_interrupts", "main", "note")]
        assert peer.recv(100) == b"y" * 10
        peer.close()
        writer.close()
        return ours

    assert nbloop.run(main()) == []


@pytest.mark.parametrize(
    ("follows", "at_once", "more"),
    [
        (lambda _transport: None, False, b""),
        (lambda transport: transport.write(b""), False, b""),
        (lambda transport: [transport.write(b"%x" % n) for n in range(13)], False, b"0123456789abc"),
        (lambda transport: [transport.write(b"%x" % n) for n in range(14)], True, b"0123456789abcd"),
        (lambda transport: transport.write(b"x" * 65527), False, b"x" * 65527),
        (lambda transport: transport.write(b"x" * 65528), True, b"x" * 65528),
        (lambda transport: transport.write(bytearray(b"!")), True, b"!"),
        (lambda transport: transport.write(memoryview(b"!")), True, b"!"),
        (lambda transport: transport.writelines([b"!", b"?"]), True, b"!?"),
        (lambda transport: transport.get_write_buffer_size(), True, b""),
        (lambda transport: transport.is_closing(), True, b""),
        (lambda transport: transport.set_write_buffer_limits(10), True, b""),
        (lambda transport: transport.write_eof(), True, b""),
        (lambda transport: transport.close(), True, b""),
        (lambda transport: transport.abort(), True, b""),
    ],
)
def test_what_one_turn_writes_leaves_together(connected, follows, at_once, more):
    """At its end, or when something follows that has to come after it, or when it is much."""

    async def test(transport, _protocol, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        transport.write(b"head ")
        transport.write(b"body")
        with pytest.raises(BlockingIOError):
            peer.recv(100)
        follows(transport)
        if not at_once:
            with pytest.raises(BlockingIOError):
                peer.recv(100)
            await asyncio.sleep(0)
        return peer.recv(1 << 20)

    assert connected(test) == b"head body" + more


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("size", [60_000, 20_000, 5_000])
def test_what_the_system_does_not_take_at_the_end_of_a_turn_follows(connected, size, closes):
    """Of one piece or of several, in their order, and before a `close`."""

    async def test(transport, _protocol, peer):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        data = random.Random(size).randbytes(60_000)
        for at in range(0, len(data), size):
            transport.write(data[at : at + size])
        if closes:
            transport.close()
        got = b""
        async with asyncio.timeout(PATIENCE):
            while len(got) < len(data):
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    chunk = peer.recv(1000)
                    assert chunk != b""
                    got += chunk
        return got == data

    assert connected(test)


@pytest.mark.parametrize("size", [2_000_000, 100_000])
def test_what_the_system_does_not_take_is_counted(connected, size):
    """Also where asyncio keeps the count in a word of its own, since 3.15."""

    async def test(transport, _protocol, peer):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        for _ in range(2_000_000 // size):
            transport.write(bytes(size))
        await settle()
        counted, waiting = transport.get_write_buffer_size(), sum(map(len, transport._buffer))
        left = 2_000_000
        async with asyncio.timeout(PATIENCE):
            while left:
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    left -= len(peer.recv(1 << 20))
        await settle()
        return counted, waiting, transport.get_write_buffer_size()

    counted, waiting, at_the_end = connected(test)
    assert counted == waiting > 0
    assert at_the_end == 0


def test_a_flush_in_the_middle_of_a_turn_is_not_the_last(connected):
    """What is written after it leaves at the turn's end, in this turn and in later ones."""

    async def test(transport, _protocol, peer):
        got = []
        for _ in range(3):
            transport.write(b"a")
            transport.get_write_buffer_size()
            transport.write(b"b")
            await settle()
            got.append(peer.recv(10))
        return got

    assert connected(test) == [b"ab"] * 3


@pytest.mark.parametrize("way", ["close", "detach"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_bytes_never_reach_another_file_of_the_number(connected, way, pieces):
    """A program closes a socket behind its transport, and its number denotes another file before the turn ends."""

    async def test(transport, protocol, peer):
        other_peer, other = pair("unix")
        mine = transport._sock
        number = mine.fileno()
        for _ in range(pieces):
            transport.write(b"secret")
        getattr(mine, way)()
        os.dup2(other.fileno(), number)
        await settle()
        with pytest.raises(BlockingIOError):
            other_peer.recv(100)
        assert peer.recv(100) == b""
        for one in (other_peer, other):
            one.close()
        os.close(number)
        return protocol.log[-1]

    assert connected(test) == ("lost", OSError, (errno.EBADF, os.strerror(errno.EBADF)))


class Displaces(Logged):
    """At `data_received` of one byte, the other's socket is closed, and `put` takes its number."""

    other: Displaces
    put: socket.socket
    displaced = -1

    def data_received(self, data):
        self.log.append(data)
        if len(data) == 1 and self.displaced == self.other.displaced == -1:
            mine = self.other.transport._sock
            self.displaced = mine.fileno()
            mine.close()
            os.dup2(self.put.fileno(), self.displaced)


class DisplacesBuffered(Displaces, Buffered):
    """The same, with a buffer."""

    def __init__(self, log):
        Buffered.__init__(self, log)

    def buffer_updated(self, nbytes):
        self.data_received(bytes(nbytes))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", [Displaces, DisplacesBuffered])
def test_nothing_is_received_from_another_file_of_the_number(kind, large):
    """A socket that one callback of a poll closes was reported by the same poll. asyncio does not read from it either.
    After a large message the kernel first asks a socket how much it has.
    """

    async def main():
        other_peer, other = pair("unix")
        other_peer.send(b"not yours")
        peers, mines = zip(pair("unix"), pair("unix"), strict=True)
        protocols = [kind([]), kind([])]
        for number, mine in enumerate(mines):
            protocols[number].put, protocols[number].other = other, protocols[1 - number]
            await asyncio.get_running_loop().connect_accepted_socket(lambda at=number: protocols[at], mine)
        await settle()
        for peer in peers if large else ():
            peer.send(bytes(70_000))
            await settle()
        for peer in peers:
            peer.send(b"x")
        await settle()
        first, last = sorted(protocols, key=lambda protocol: protocol.displaced, reverse=True)
        assert last.transport.is_closing()
        assert other.recv(100) == b"not yours"
        assert first.log[-1] == (bytes(1) if kind is DisplacesBuffered else b"x")
        first.transport.abort()
        await settle()
        os.close(first.displaced)
        for one in (other_peer, other, *peers):
            one.close()
        del first.other, last.other

    nbloop.run(main())


def sends(sock: socket.socket, data: bytes) -> None:
    with sock:
        sock.send(data)


@pytest.mark.parametrize(
    ("use", "then"),
    [
        (lambda sock: sends(sock.dup(), b" last"), b" last"),
        (lambda sock: os.write(sock.fileno(), b" last"), b" last"),
        (lambda sock: sock.shutdown(socket.SHUT_WR), b""),
        (lambda sock: sock._sock.close(), b""),
        (lambda sock: os.close(sock._sock.detach()), b""),
    ],
    ids=["dup", "fileno", "shutdown", "close", "detach"],
)
def test_what_is_done_with_the_transports_socket_comes_after_what_was_written(connected, use, then):
    """As with asyncio, where it has left by then."""

    async def test(transport, _protocol, peer):
        sock = transport.get_extra_info("socket")
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        transport.write(b"fir")
        transport.write(b"st")
        use(sock)
        await settle()
        transport.abort()
        got = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := peer.recv(100):
                got += chunk
        return got

    assert connected(test) == b"first" + then


@pytest.mark.parametrize("waits", [False, True])
def test_what_an_iterator_writes_comes_before_its_lines(waits):
    """`writelines` takes all lines first, and what is written meanwhile is before them: as on asyncio, which takes line
    by line from 3.15 on.
    """
    got = []

    async def play():
        loop = asyncio.get_running_loop()
        peer, mine = pair("unix")
        with peer:
            transport, _ = await loop.connect_accepted_socket(lambda: Logged([]), mine)

            def lines():
                for number in range(20):
                    transport.write(b"w%d." % number)
                    yield b"l%d." % number

            if waits:
                transport.write(b"first.")
            transport.writelines(lines())
            transport.write(b"last")
            transport.close()
            await settle()
            got.append(peer.recv(1000))

    on_loop(LOOPS["nbloop"], [], play())
    written, sent = (b"".join(b"%c%d." % (letter, number) for number in range(20)) for letter in b"wl")
    assert got == [(b"first." if waits else b"") + written + sent + b"last"]


def test_what_only_behaves_as_a_socket_gets_asyncios_transport():
    """Kernels read the descriptor of a socket by address."""

    async def main():
        peer, mine = pair("unix")
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: Logged([]), Wrapped(mine))
        assert not isinstance(transport, StreamTransport)
        transport.write(b"x")
        assert peer.recv(10) == b"x"
        transport.abort()
        await settle()
        peer.close()

    nbloop.run(main())


def test_a_low_mark_is_as_exact_as_ever(connected):
    """Below 64 KiB nothing is queued, because `pause_writing` may be due at once."""

    async def test(transport, protocol, peer):
        transport.set_write_buffer_limits(0)
        transport.write(b"x")
        assert peer.recv(10) == b"x"
        transport.write(b"x" * 10_000_000)
        paused = list(protocol.log)
        transport.abort()
        return paused

    assert connected(test) == ["made", "pause"]


def test_writes_without_a_pause_are_bounded(connected):
    """A writer that never lets the loop turn has to pause when the system takes no more."""

    async def test(transport, protocol, _peer):
        for written in range(100_000):
            if "pause" in protocol.log:
                return written
            transport.write(b"x" * 1000)
        return None

    assert connected(test) is not None


@pytest.mark.parametrize("ends", ["stop", "exception", "forgotten"])
def test_what_was_written_leaves_however_the_run_ends(ends):
    """In the turn that stops the loop, before an exception leaves it, by a transport that nobody closes."""
    loop = nbloop.new_event_loop()
    peer, mine = pair("unix")
    transport, protocol = loop.run_until_complete(loop.connect_accepted_socket(lambda: Logged([]), mine))

    def last():
        nonlocal transport
        transport.write(b"last")
        loop.stop()
        if ends == "exception":
            raise KeyboardInterrupt
        if ends == "forgotten":
            loop._remove_reader(mine.fileno())
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                transport = protocol.transport = None  # the last reference: nothing is left to the collector

    loop.call_soon(last)
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_forever()
    assert peer.recv(100) == b"last"
    if transport is not None:
        transport.write(b" words")  # no loop runs
        assert peer.recv(100) == b" words"
        transport.abort()
        loop.run_until_complete(settle())
    loop.close()
    peer.close()


def test_a_flush_that_fails_closes_the_connection(connected):
    """Of one stream; the others' bytes leave."""

    async def test(transport, protocol, peer):
        other_peer, mine = pair("unix")
        other, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: Logged([]), mine)
        peer.close()
        transport.write(b"a")
        other.write(b"b")
        transport.write(b"c")
        await settle()
        assert other_peer.recv(10) == b"b"
        other.abort()
        other_peer.close()
        return protocol.log[-1][:2]

    assert connected(test) == ("lost", BrokenPipeError)


def test_what_waits_for_the_turn_to_end_is_not_leaked(connected):
    """Bytes, and the streams of the chain."""

    async def test(transport, _protocol, peer):
        marks = [b"mark %d" % number for number in range(3)]
        before = [sys.getrefcount(mark) for mark in (*marks, transport._stream)]
        for count in (1, 2, 3):
            for number in range(count):
                transport.write(marks[number])
            await settle()
        assert peer.recv(1000) == b"mark 0mark 0mark 1mark 0mark 1mark 2"
        return before, [sys.getrefcount(mark) for mark in (*marks, transport._stream)]

    before, after = connected(test)
    assert before == after


def test_interest_is_not_changed_for_a_message(connected, monkeypatch):
    """Two system calls per message, `recv` and `send`, and none for the poller."""

    async def test(transport, protocol, peer):
        core = asyncio.get_running_loop().core
        protocol.plans = ["echo"]
        changes = []
        for name in ("_watch", "modify_fd", "_unwatch"):
            monkeypatch.setattr(core, name, lambda *_arguments: changes.append(1))
        for _ in range(10):
            peer.send(b"x")
            await settle()
            assert peer.recv(10) == b"x"
        monkeypatch.undo()
        return changes

    assert connected(test) == []


@pytest.mark.parametrize("method", ["close", "abort", "pause_reading", "write_eof"])
@pytest.mark.parametrize("factory", LOOPS.values(), ids=LOOPS)
def test_a_transports_method_may_watch_another_descriptor(factory, method):
    """What the loop calls for the transport's own descriptor is chosen by that descriptor, too."""

    async def play():
        loop = asyncio.get_running_loop()
        peer, mine = pair("unix")
        stop, stopper = socket.socketpair()
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, mine)
        await settle()
        with peer, stop, stopper:
            loop.add_reader(stop.fileno(), getattr(transport, method))
            stopper.send(b"x")
            await settle()
            log.append((transport.is_closing(), transport.is_reading(), transport._eof))
            loop.remove_reader(stop.fileno())
            transport.abort()
            await settle()

    log = []
    on_loop(factory, log, play())
    closes = method in ("close", "abort")
    assert log == [(closes, not closes and method != "pause_reading", method == "write_eof")]


@pytest.mark.parametrize("factory", LOOPS.values(), ids=LOOPS)
def test_a_program_may_read_while_a_closing_transport_sends(factory):
    """The protocol gets nothing then, and the transport sends all that it has."""

    async def play():
        loop = asyncio.get_running_loop()
        peer, mine = pair("unix")
        protocol = Logged(log)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, mine)
        await settle()
        size = 3_000_000
        transport.write(bytes(size))
        assert transport.get_write_buffer_size() > 0
        transport.close()
        with peer:
            read = loop.create_future()
            loop.add_reader(mine.fileno(), lambda: read.set_result(mine.recv(10)))
            peer.send(b"x")
            log.append(await read)
            loop.remove_reader(mine.fileno())
            received = 0
            while data := await loop.sock_recv(peer, 1 << 20):
                received += len(data)
            log.append(received == size)

    log = []
    on_loop(factory, log, play())
    assert log == ["made", "pause", b"x", "resume", ("lost", type(None), None), True]


def test_an_interrupt_leaves_the_loop(connected):
    """KeyboardInterrupt and SystemExit are not the protocol's failure: they leave `run`, as in asyncio."""

    async def test(_transport, protocol, peer):
        def data_received(_data):
            raise SystemExit(7)

        protocol.data_received = data_received
        peer.send(b"x")
        await asyncio.sleep(PATIENCE)

    with pytest.raises(SystemExit) as raised:
        connected(test)
    assert raised.value.code == 7


def test_the_context_is_the_connections(connected):
    """Each callback runs in the context in which reading began, and what it sets there is still set the next time."""
    seen = []
    variable = contextvars.ContextVar("variable", default=0)

    class Counts(Logged):
        def data_received(self, data):
            variable.set(variable.get() + 1)
            seen.append(variable.get())

        def connection_lost(self, exc):
            seen.append(("lost", variable.get()))

    async def test(_transport, _protocol, peer):
        for _ in range(3):
            peer.send(b"x")
            await settle()
        peer.close()
        await settle()
        return variable.get()

    assert connected(test, Counts) == 0
    assert seen == [1, 2, 3, ("lost", 3)]


def test_debug_mode_sees_slow_protocols(connected, caplog):
    """asyncio's debug mode warns of a slow `data_received`, also where it is switched on later."""

    async def test(_transport, _protocol, peer):
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 0
        loop.set_debug(True)
        peer.send(b"x")
        await settle()
        loop.set_debug(False)

    connected(test)
    assert "_read_ready" in caplog.text


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize(
    "end", ["close", "abort", "peer", "in flight", "close in flight", "paused", "half", "reset", "raises"]
)
def test_nothing_is_left_of_a_closed_connection(kind, end):
    """Transport, protocol and stream are gone with the connection, without a collection."""
    if end == "raises" and not COMPILED:
        pytest.skip("an exception keeps the frames of kernels that are Python")

    async def main():
        gone = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)
        for number in range(CONNECTIONS):
            peer, mine = pair(kind)
            make = Buffered if number % 2 else Logged
            transport, protocol = await loop.connect_accepted_socket(lambda make=make: make([]), mine)
            gone += [weakref.ref(transport), weakref.ref(protocol)]
            peer.send(b"x")
            await settle()
            transport.write(b"y" * (10_000_000 if "in flight" in end else 1))
            if end == "close":
                transport.close()
            elif end == "abort":
                transport.abort()
            elif end == "close in flight":
                transport.close()
                peer.close()
            elif end == "paused":
                transport.pause_reading()
                peer.send(b"x")
                transport.close()
            elif end == "half":
                transport.write_eof()
                peer.shutdown(socket.SHUT_WR)
            elif end == "reset":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
            elif end == "raises":
                transport.set_protocol(Raises([]))
                peer.send(b"x")
            else:
                peer.close()
            del transport, protocol
            await settle()
            peer.close()
        return [one for one in gone if one() is not None]

    assert left_by(main, Stream) == []


def test_a_transport_used_from_other_threads_does_no_harm(connected):
    """It belongs to the loop thread. Calls from other threads may fail and mix bytes, but do not corrupt memory."""

    async def test(transport, protocol, peer):
        calls = (lambda: transport.write(b"z")), (lambda: transport.set_protocol(Logged([])))
        got = await misused(peer, 300, *calls)
        transport.set_protocol(protocol)
        return got

    assert connected(test) > 0


def test_a_stream_that_was_not_made_refuses():
    """What `__new__` alone made has no words."""
    stream = Stream.__new__(Stream)
    for call in (lambda: stream.ready(0, 1), lambda: stream.write(b"x"), lambda: stream.aim(None)):
        with pytest.raises(TypeError):
            call()


def test_a_socket_that_has_nothing_is_left_alone(connected):
    """The system may report a socket that cannot be read: neither an error nor the end."""

    async def test(transport, protocol, peer):
        transport._stream.ready(transport._sock_fd, nbloop.IOEvents.READ)
        peer.send(b"x")
        await settle()
        return list(protocol.log)

    assert connected(test) == ["made", ("data", b"x")]


# --- accepting


@pytest.fixture
def exhausted(monkeypatch):
    """`exhausted.left`: how many more times the system has no descriptor for `accept`; `calls`: when it was called."""

    class Exhausted:
        left = 0
        calls: list[float] = []  # noqa: RUF012 - of one test

    state = Exhausted()
    state.calls = []
    accept = socket.socket.accept

    def refused(self):
        state.calls.append(asyncio.get_running_loop().time())
        if state.left > 0:
            state.left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", refused)
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.01)
    return state


@pytest.mark.parametrize("times", [1, 3])
def test_a_listener_rests_and_comes_back_once(exhausted, times):
    """One failure, one rest, one retry; then all that wait are accepted."""

    async def main():
        made, told = [], []

        class Counts(asyncio.Protocol):
            def connection_made(self, transport):
                made.append(transport)
                if len(made) == 5:
                    done.set_result(None)

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: told.append(context["message"]))
        done = loop.create_future()
        server = await loop.create_server(Counts, "127.0.0.1", 0)
        exhausted.left = times
        clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(5)]
        await asyncio.wait_for(done, PATIENCE)
        assert told == ["socket.accept() out of system resource"] * times
        retries = exhausted.calls[: times + 1]
        assert all(later - before >= 0.009 for before, later in itertools.pairwise(retries))
        for client in clients:
            client.close()
        for transport in made:
            transport.abort()
        server.close()
        await server.wait_closed()

    nbloop.run(main())


def test_a_listener_closed_while_it_rests_stays_closed(exhausted):
    async def main():
        told, rested = [], asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(_loop, context):
            told.append(context)
            rested.set()

        loop.set_exception_handler(note)
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        exhausted.left = 1
        with socket.create_connection(server.sockets[0].getsockname()):
            await asyncio.wait_for(rested.wait(), PATIENCE)
            server.close()
            await asyncio.sleep(0.03)
        return len(told)

    assert nbloop.run(main()) == 1


class Opened(Logged):
    """Tells `opened` of itself."""

    def __init__(self, opened: asyncio.Queue[Opened]) -> None:
        super().__init__([])
        self.opened = opened

    def connection_made(self, transport):
        super().connection_made(transport)
        self.task = asyncio.current_task()
        self.opened.put_nowait(self)


VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


def serving(test, debug=None):
    """Run ``test(loop, server, accepts, opened, told)`` beside a server. `accepts(n, *doing)` connects n clients before
    the loop accepts any, and the factory of each connection in turn calls one of `doing`. `told` is what the loop's
    exception handler has heard.
    """

    async def main():
        loop = asyncio.get_running_loop()
        told, made, clients = [], [], []
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        opened: asyncio.Queue[Opened] = asyncio.Queue()

        def factory():
            if made:
                made.pop(0)()
            VARIABLE.set(VARIABLE.get() + 1)
            assert asyncio.current_task() is None
            return Opened(opened)

        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        def accepts(count, *doing):
            made.extend(doing)
            clients.extend(socket.create_connection(address, timeout=PATIENCE) for _ in range(count))
            return clients[-count:]

        try:
            async with asyncio.timeout(PATIENCE):
                await test(loop, server, accepts, opened, told)
        finally:
            server.close()
            for client in clients:
                client.close()
            for transport in list(loop._transports.values()):
                transport.abort()
            await server.wait_closed()

    nbloop.run(main(), debug=debug)


@pytest.mark.parametrize("debug", [False, True])
def test_a_connection_begins_without_a_task(debug):
    """In a context of its own, whatever its factory sets there."""

    async def test(_loop, _server, accepts, opened, told):
        accepts(3)
        protocols = [await opened.get() for _ in range(3)]
        assert [protocol.task for protocol in protocols] == [None] * 3
        await settle()
        assert [protocol.transport._reads_in[VARIABLE] for protocol in protocols] == [1, 1, 1]
        peers = [protocol.transport.get_extra_info("peername") for protocol in protocols]
        assert all(peer[0] == "127.0.0.1" for peer in peers)
        assert told == []

    serving(test, debug)


@pytest.mark.parametrize("debug", [False, True])
def test_a_factory_that_raises_costs_its_own_connection_only(debug):
    """It is closed at once. Debug mode says why, as with asyncio."""

    def raises():
        raise ValueError("no protocol")

    async def test(_loop, _server, accepts, opened, told):
        first, second = accepts(2, raises)
        protocol = await opened.get()
        assert await asyncio.to_thread(first.recv, 1) == b""
        protocol.transport.write(b"x")
        assert await asyncio.to_thread(second.recv, 1) == b"x"
        assert [str(context["exception"]) for context in told] == ["no protocol"] * debug

    serving(test, debug)


def test_an_interrupt_of_a_factory_leaves_the_loop():
    """As any callback's, and the connection is closed."""

    def raises():
        raise SystemExit(7)

    async def test(_loop, _server, accepts, _opened, _told):
        accepts(1, raises)
        await asyncio.sleep(PATIENCE)

    with pytest.raises(SystemExit) as raised:
        serving(test)
    assert raised.value.code == 7


def test_a_factory_may_close_the_server():
    """Its connection is closed, those behind it are refused by the system, and nothing is left or reported."""

    async def test(_loop, server, accepts, opened, told):
        _, first, *others = accepts(4, lambda: None, server.close)
        protocol = await opened.get()
        assert await asyncio.to_thread(first.recv, 1) == b""
        for other in others:
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(other.recv, 1)
        protocol.transport.abort()  # what was there before is not the server's affair
        await server.wait_closed()
        assert opened.empty()
        assert told == []

    serving(test)


def test_a_server_closed_before_the_handshake_leaves_nothing():
    """A connection that has been accepted, and whose task has not begun, is closed."""

    async def main():
        loop = asyncio.get_running_loop()
        told = []
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        (listener,) = server._sockets
        with socket.create_connection(listener.getsockname(), timeout=PATIENCE) as client:
            loop._accept_connection(asyncio.Protocol, listener, context, server)
            server.close()
            await settle()
            assert client.recv(1) == b""
        await server.wait_closed()
        assert told == []
        assert list(loop._transports) == []

    nbloop.run(main())


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("factory", [Logged, Buffered])
def test_what_a_protocol_raises_after_it_has_ended_the_connection_is_reported(connected, factory, end):
    reported = []

    class Ends(factory):
        def fails(self):
            getattr(self.transport, end)()
            raise ValueError("after the end")

        def data_received(self, _data):
            self.fails()

        def buffer_updated(self, _count):
            self.fails()

    async def test(transport, protocol, peer):
        protocol.transport = transport
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
        peer.send(b"x")
        await settle()

    connected(test, Ends)
    method = "buffer_updated" if factory is Buffered else "data_received"
    (context,) = reported
    assert context["message"] == f"Fatal error: protocol.{method}() call failed."
    assert isinstance(context["exception"], ValueError)


def test_lines_of_which_the_last_is_empty(connected):
    """asyncio before 3.14 sends the empty one for ever, and the connection never closes."""

    async def test(transport, protocol, peer):
        transport.writelines([b"head", b"", memoryview(b"")])
        transport.writelines([])
        transport.writelines([b"", b"body", b""])
        assert transport.get_write_buffer_size() == 0
        transport.close()
        await settle()
        assert peer.recv(100) == b"headbody"
        assert peer.recv(100) == b""

    connected(test)


class Scrambles(socket.socket):
    """A proxy's, say: what leaves and what arrives is not what the program sees."""

    def recv(self, *args):
        return super().recv(*args).swapcase()

    def send(self, data, *args):
        return super().send(bytes(data).swapcase(), *args)

    def sendmsg(self, buffers, *args):
        return super().sendmsg([bytes(each).swapcase() for each in buffers], *args)

    def recvfrom(self, *args):
        data, address = super().recvfrom(*args)
        return data.removeprefix(b"HEAD"), address

    def sendto(self, data, *args):
        return super().sendto(b"HEAD" + data, *args)


class Plain(socket.socket):
    """It overrides nothing that kernels do."""

    def close(self):
        super().close()


@pytest.mark.parametrize("made", LOOPS)
def test_a_socket_of_a_class_of_its_own_is_asked(made):
    async def main():
        loop = asyncio.get_running_loop()
        peer, mine = pair("unix")
        log = []
        transport, _ = await loop.create_connection(
            lambda: Logged(log), sock=Scrambles(mine.family, mine.type, 0, mine.detach())
        )
        transport.write(b"abc")
        peer.send(b"def")
        await settle()
        assert peer.recv(10) == b"ABC"
        assert ("data", b"DEF") in log
        transport.abort()
        peer.close()

        received = []

        class Datagrams(asyncio.DatagramProtocol):
            def datagram_received(self, data, _addr):
                received.append(data)

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            own = Scrambles(socket.AF_INET, socket.SOCK_DGRAM)
            own.bind(("127.0.0.1", 0))
            own.setblocking(False)
            transport, _ = await loop.create_datagram_endpoint(Datagrams, sock=own)
            other.sendto(b"HEADxyz", own.getsockname())
            transport.sendto(b"xyz", other.getsockname())
            await settle()
            assert other.recv(100) == b"HEADxyz"
            assert received == [b"xyz"]
            transport.abort()
            await settle()

    on_loop(LOOPS[made], [], main())


def test_a_class_that_overrides_nothing_of_it_gets_the_kernels():
    async def main():
        peer, mine = pair("unix")
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: Logged([]), sock=Plain(mine.family, mine.type, 0, mine.detach())
        )
        assert isinstance(transport, StreamTransport)
        transport.abort()
        peer.close()
        await settle()

    nbloop.run(main())
    mine = Plain()
    mine.recv = print
    assert not kernels_take(mine)
    mine.close()


def test_a_backlog_of_0_accepts_one_at_a_time():
    """As in asyncio since 3.14; before, the listener spun."""

    async def main():
        loop = asyncio.get_running_loop()
        log = []
        server = await loop.create_server(lambda: Logged(log), "127.0.0.1", 0, backlog=0)
        async with server:
            with socket.create_connection(server.sockets[0].getsockname()):
                while not log:
                    await asyncio.sleep(0.001)
        await settle()

    async def limited():
        async with asyncio.timeout(PATIENCE):
            await main()

    nbloop.run(limited())


@compiled_only
@pytest.mark.parametrize("datagrams", [False, True])
def test_a_protocol_that_leaves_a_context_entered(datagrams: bool, caplog: pytest.LogCaptureFixture) -> None:
    """As C code can. The error is its own, and not the next callback's."""
    api = ctypes.PyDLL(None)
    enter, leave = api.PyContext_Enter, api.PyContext_Exit
    for function in (enter, leave):
        function.argtypes, function.restype = [ctypes.py_object], ctypes.c_int
    other = contextvars.copy_context()
    entered, reported, seen = [], [], []
    done = threading.Event()

    class Enters(asyncio.DatagramProtocol, asyncio.Protocol):
        def received(self, *_message):
            loop.call_soon(seen.append, "next")
            loop.call_later(0.01, loop.stop)
            entered[:] = made[0]._reads_in, other
            enter(other)

        data_received = datagram_received = received

    kind = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
    here, there = socket.socketpair(socket.AF_UNIX, kind)
    loop = nbloop.new_event_loop()
    loop.set_exception_handler(lambda _loop, context: reported.append(context))

    def in_a_thread():  # of `_thread`: since 3.14 those of `threading` have a context to leave
        make = loop.create_datagram_endpoint if datagrams else loop.create_connection
        made.append(loop.run_until_complete(make(Enters, sock=here))[0])
        there.send(b"one")
        loop.run_forever()
        while entered:
            leave(entered.pop())
        done.set()

    made = []
    with there, contextlib.closing(loop):
        _thread.start_new_thread(in_a_thread, ())
        assert done.wait(PATIENCE)
        made[0].abort()
        loop.run_until_complete(asyncio.sleep(0))
    assert seen == ["next"]
    # The handler may have to run in the context that is entered still: asyncio logs that.
    assert reported or "cannot exit context" in caplog.text
    assert all("context" in str(one["exception"]) for one in reported)
