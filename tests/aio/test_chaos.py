"""Connections of `nbloop.aio` through a proxy that misbehaves (support/chaos.py): as asyncio's, and as they must be.

Problem: how a stream is cut into pieces, and what has arrived when something else happens, depends on time; so two runs
of a program are not equal call by call. Idea: both ends of a connection run on the loop under test, and a program is so
made that it says what must happen whatever the network does. Each loop, asyncio's too, is held to that:

* The bytes of each way have no pattern, so one that is lost, repeated or overtaken shows. What arrives is a prefix of
  what was written; all of it, or exactly as many as the system has taken, wherever the program does not cut it off.
* The calls of a protocol, pieces of data merged, are exactly those of the program's fate, in their order.
* `pause_writing` and `resume_writing` alternate, come above and below the marks, and the last one is `resume_writing`
  unless the connection failed.
* Nothing comes after `connection_lost`. Its exception is None exactly where the end's own socket met no error.
* Addresses and objects of `get_extra_info` are the sockets', before and after the end. Both sockets are closed.

``NBLOOP_CHAOS=1000`` begins with another seed, and ``NBLOOP_FUZZ=30`` tries thirty times as many.
"""

from __future__ import annotations

import array
import asyncio
import dataclasses
import os
import random
import socket
import ssl
import threading
from asyncio import selector_events as _selector_events
from collections.abc import Callable
from typing import Any

import pytest

import nbloop
from nbloop.aio.transports import KERNELS_READ, StreamTransport
from tests.support.chaos import Plan, Proxy, Reset
from tests.support.connections import LOOPS, Logged, on_loop, pair, settle
from tests.support.secure import End, contexts
from tests.support.waiting import drain

pytestmark = pytest.mark.skipif(not KERNELS_READ, reason="asyncio's own transports here")

FIRST = int(os.environ.get("NBLOOP_CHAOS", "0"))
FACTOR = float(os.environ.get("NBLOOP_FUZZ", "1"))
EXAMPLES = 30  # of each fate, half of them over Unix sockets
FATES = ("half close", "close", "abort", "half open", "rude", "reset")
NOT_SECURE = {"half close", "half open"}  # TLS has no half-closed connections
FAILURES = {ConnectionResetError, BrokenPipeError}
# asyncio's transport of 3.13 keeps what `writelines` gets after the end. If `resume_writing` closes it, as TLS does by
# itself, it ends twice.
_writelines = _selector_events._SelectorSocketTransport.writelines  # type: ignore[attr-defined]
FAULTY = "_conn_lost" not in _writelines.__code__.co_names
# asyncio's upgrade gives the `StreamReader` the new transport since 3.14, and forgets that it has paused the old one.
LOSES_PAUSE = hasattr(asyncio.StreamReader, "_replace_transport")
# The first 3.13 does not pause for lines.
LINES_PAUSE = "_maybe_pause_protocol" in _writelines.__code__.co_names
STYLES = ("plain", "buffered", "stream")


def runs_ours() -> bool:
    return isinstance(asyncio.get_running_loop(), nbloop.aio.EventLoop)


# --- the two ends


class Side:
    """One end: it records the calls that it gets, checks each, and runs the steps of its program."""

    def __init__(self, seed: str, size: int, keeps_open: bool, meet: Callable[[], Any], wrong: list[object]) -> None:
        self.data = random.Random(seed).randbytes(size)  # to write
        self.dice = random.Random(seed)
        self.keeps_open, self.meet, self.wrong = keeps_open, meet, wrong
        self.log: list[object] = []
        self.received = bytearray()
        self.written = self.left = 0  # bytes: of `data`; that waited when the transport was aborted
        self.transport: Any = None
        self.secure = self.paused = self.lost = self.ended = False
        self.reads = True
        self.marks = 16 * 1024, 64 * 1024
        self._changed: asyncio.Future[None] | None = None

    def check(self, holds: object, *what: object) -> None:
        if not holds:
            self.wrong.append(what)

    def note(self, what: object) -> None:
        self.check(not self.lost, what, "after connection_lost")
        self.check((what == "made") == (not self.log), what, "begins")
        self.log.append(what)
        self.tell()

    def tell(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def change(self) -> None:
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed

    async def until(self, holds: Callable[[], object]) -> None:
        """Return when it holds, or when the peer has ended the connection."""
        while not (holds() or self.lost or (self.ended and not self.keeps_open)):
            await self.change()

    # what the transport calls

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.note("made")
        if transport.get_extra_info("sslcontext") is not None:
            self.becomes_secure()
        self.names = {name: transport.get_extra_info(name) for name in ("peername", "sockname")}
        self.sock = transport.get_extra_info("socket")
        super().connection_made(transport)  # type: ignore[misc]

    def takes(self, data: bytes | bytearray) -> None:
        self.check(data, "no data")
        self.check(not self.ended, "data after the end")
        self.check(self.reads, "data while it does not read")  # `is_reading` would send what waits
        self.received += data
        if self.log[-1] != "data":
            self.log.append("data")
        self.tell()

    def eof_received(self) -> bool | None:
        self.ended = True
        self.note("eof")
        super().eof_received()  # type: ignore[misc]
        return self.keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.note(("lost", None if exc is None else type(exc)))
        self.lost = True
        self.tell()
        super().connection_lost(exc)  # type: ignore[misc]

    def pause_writing(self) -> None:
        size = self.transport.get_write_buffer_size()
        self.check(not self.paused, "paused twice")
        self.check(size > self.marks[1] or (self.secure and size == self.marks[1]), "paused at", size, self.marks)
        self.check(not self.lost, "paused after the end")
        self.paused = True
        super().pause_writing()  # type: ignore[misc]

    def resume_writing(self) -> None:
        self.check(self.paused, "resumed twice")
        self.check(self.transport.get_write_buffer_size() <= self.marks[0], "resumed above", self.marks)
        self.check(not self.lost, "resumed after the end")
        self.paused = False
        self.tell()
        super().resume_writing()  # type: ignore[misc]

    def becomes_secure(self) -> None:
        self.secure, self.marks = True, (128 * 1024, 512 * 1024)  # sslproto's own

    # what the program does

    def next(self, size: int) -> bytes:
        self.written += size
        return self.data[self.written - size : self.written]

    async def write(self, how: str, size: int) -> None:
        if how == "pieces":
            for each in cut(self.dice, self.next(size)):
                self.transport.write(each)
        elif how == "lines":
            lines = cut(self.dice, self.next(size))
            while lines and not lines[-1]:  # asyncio before 3.14 sends it for ever
                lines.pop()
            if not (FAULTY and not runs_ours() and getattr(self.transport, "_closing", False)):
                self.transport.writelines(lines)
                if not LINES_PAUSE and not self.secure and not runs_ours():
                    self.transport._maybe_pause_protocol()
        elif how == "view":
            self.transport.write(memoryview(self.next(size)))
        elif how == "array":
            self.transport.write(bytearray(self.next(size)))
        else:
            self.transport.write(self.next(size))
        if not self.secure and self.dice.random() < 0.3:  # these calls send what waits for the end of the turn
            paused = self.paused
            over = self.transport.get_write_buffer_size() > self.marks[1]
            self.check(self.paused == paused or self.marks[1] >= 65536, "paused after the write", self.marks)
            self.check(self.transport.is_closing() or self.paused or not over, "not paused above", self.marks)

    async def drain(self) -> None:
        await self.until(lambda: not self.paused)

    async def wait(self, count: int) -> None:
        await self.until(lambda: len(self.received) >= count)

    async def wait_ended(self) -> None:
        await self.until(lambda: self.ended)

    async def wait_lost(self) -> None:
        while not self.lost:
            await self.change()

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def pause(self) -> None:
        if not self.ended:  # to resume would bring the end again, as with asyncio
            self.reads = False
            self.transport.pause_reading()

    async def resume(self) -> None:
        self.goes_on(self.transport)

    def goes_on(self, transport: asyncio.Transport) -> None:
        self.reads = not transport.is_closing()
        transport.resume_reading()

    async def limits(self, high: int) -> None:
        self.marks = high // 4, high
        self.transport.set_write_buffer_limits(high)

    async def eof(self) -> None:
        self.transport.write_eof()

    async def close(self) -> None:
        self.reads = self.secure  # sslproto still tells a BufferedProtocol what it had decrypted
        self.transport.close()
        if self.dice.random() < 0.5:  # which sends what waits
            self.check(self.transport.is_closing(), "not closing")

    async def abort(self) -> None:
        self.left = self.transport.get_write_buffer_size()
        self.reads = False
        self.transport.abort()
        self.check(self.transport.is_closing(), "not closing")

    async def upgrade(self, context: ssl.SSLContext, serves: bool) -> None:
        loop = asyncio.get_running_loop()
        self.transport = await loop.start_tls(self.transport, self, context, server_side=serves)  # type: ignore[arg-type]
        self.becomes_secure()

    async def run(self, steps: list[tuple[str, tuple[Any, ...]]]) -> None:
        for name, arguments in steps:
            if not self.lost:
                await getattr(self, name)(*arguments)
        await self.wait_lost()

    async def finish(self) -> None:
        """After the end."""


class Plain(Side, asyncio.Protocol):
    """Pauses at some pieces, and goes on some turns later."""

    def data_received(self, data: bytes) -> None:
        self.check(type(data) is bytes, type(data))
        self.takes(data)
        if self.dice.random() < 0.1:
            self.reads = False
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.goes_on, self.transport)


class Buffered(Side, asyncio.BufferedProtocol):
    """Receives into buffers of many sizes."""

    buffer = bytearray()

    def get_buffer(self, _sizehint: int) -> memoryview:
        self.buffer = bytearray(self.dice.choice((1, 100, 5000, 100_000)))
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.check(0 < nbytes <= len(self.buffer), "updated by", nbytes)
        self.takes(self.buffer[:nbytes])


class Streamed(Side, asyncio.StreamReaderProtocol):
    """A `StreamReader` and a `StreamWriter`, and a task that reads: any way, sometimes slowly, sometimes cancelled."""

    writer: asyncio.StreamWriter

    def __init__(self, *arguments: Any) -> None:
        Side.__init__(self, *arguments)
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(limit=self.dice.choice((1, 1000, 65536)), loop=loop)
        asyncio.StreamReaderProtocol.__init__(self, self.reader, self.has_streams, loop)
        self.got = bytearray()  # what the reader has told of `received`

    def has_streams(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.reading = asyncio.get_running_loop().create_task(self.read())

    def data_received(self, data: bytes) -> None:
        self.takes(data)
        super().data_received(data)

    async def read(self) -> None:
        try:
            while chunk := await self.read_once():
                self.got += chunk
                self.tell()
                await self.turns(self.dice.choice((0, 0, 0, 5, 50)))
        except OSError as error:
            self.check(self.log[-1] == ("lost", type(error)), "read raised", error)
        else:
            self.check(self.ended or self.lost, "an end without an end")
            self.check(self.reader.at_eof(), "not at the end")

    async def read_once(self) -> bytes:
        """At least a byte, if there is one."""
        size = self.dice.choice((1, 7, 1000, 65536, 1 << 20))
        here = min(size, len(self.received) - len(self.got))
        if here and self.dice.random() < 0.2:
            return await self.reader.readexactly(here)
        while True:
            reading = asyncio.get_running_loop().create_task(self.reader.read(size))
            if self.dice.random() < 0.3:
                await self.turns(self.dice.randrange(4))
                reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                return reading.result()

    async def drain(self) -> None:
        try:
            await self.writer.drain()
        except OSError as error:
            self.check(self.lost, "drain raised", error)
            self.check(isinstance(error, ConnectionError), "drain raised", error)
        else:
            self.check(not self.paused, "drained, and paused")

    async def wait(self, count: int) -> None:
        """Until the program has it: an upgrade takes what the reader still keeps for the beginning of TLS."""
        await self.until(lambda: len(self.got) >= count)

    async def pause(self) -> None:
        """The reader decides."""

    resume = pause

    async def upgrade(self, context: ssl.SSLContext, serves: bool) -> None:
        self._client_connected_cb = self.has_streams if serves else None  # by which asyncio knows a server
        reader: Any = self.reader
        limit = reader._limit
        if LOSES_PAUSE and not runs_ours():
            reader._limit = len(self.data) + (1 << 20)
        await self.writer.start_tls(context)
        reader._limit = limit
        self.transport = self.writer.transport
        self.becomes_secure()

    async def finish(self) -> None:
        await self.reading
        failure = self.log[-1][1]  # type: ignore[index]
        raised = None
        try:
            await self.writer.wait_closed()
        except OSError as error:
            raised = type(error)
        self.check(raised is failure, "wait_closed raised", raised, failure)
        if failure is None:
            self.check(self.got == self.received, "the reader has lost something")
        else:
            self.check(self.received.startswith(self.got), "the reader has mixed something up")


def cut(dice: random.Random, data: bytes) -> list[bytes]:
    """Into a few pieces, some of them empty; up to 20, which is more than wait for the end of a turn."""
    places = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((1, 3, 19))))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


# --- programs


@dataclasses.dataclass
class Program:
    """What both ends do, what happens to them, and what each must then have been told."""

    fate: str
    kind: str
    seed: int
    tls: str
    styles: tuple[str, str]
    steps: list[tuple[int, str, tuple[Any, ...]]] = dataclasses.field(default_factory=list)
    keeps_open: list[bool] = dataclasses.field(default_factory=lambda: [False, False])
    sizes: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    plan: Plan = Plan(0)  # noqa: RUF009 - frozen
    calls: tuple[Any, Any] = (None, None)  # exactly these besides "made" and "data"; None: as `failed` says
    whole: tuple[bool, bool] = (True, True)  # everything that it sends arrives
    ends: int | None = None  # this one ends the connection, and perhaps does not wait for the other


class Writer:
    """Writes a program, whose steps are in such an order that an end waits only for what the other did before."""

    def __init__(self, fate: str, kind: str, seed: int) -> None:
        name = f"{fate} {kind} {seed}"
        self.dice = dice = random.Random(name)
        self.fate = fate
        tls = "" if fate in NOT_SECURE else dice.choice(("", "", "ssl", "start_tls"))
        self.tls = tls if getattr(ssl, "HAS_PSK", False) else ""
        self.made = Program(fate, kind, seed, self.tls, (dice.choice(STYLES), dice.choice(STYLES)))
        self.stops_reading = [False, False]
        self.has_ended = [False, False]
        buffers = dice.choice((0, 16384))
        self.made.plan = Plan(seed, buffers=buffers)
        getattr(self, "write_" + fate.replace(" ", "_"))()

    def step(self, side: int, name: str, *arguments: Any) -> None:
        self.made.steps.append((side, name, arguments))

    def reads(self, side: int) -> None:
        if self.stops_reading[side]:
            self.step(side, "resume")
            self.stops_reading[side] = False

    def writes(self, side: int, size: int) -> None:
        self.made.sizes[side] += size
        self.step(side, "write", self.dice.choice(("bytes", "bytes", "pieces", "lines", "view", "array")), size)

    def waits(self, side: int) -> None:
        self.reads(side)
        self.step(side, "wait", self.made.sizes[1 - side])

    def talks(self, count: int, waits: bool = True, eof: bool = False) -> None:
        """Some steps of both."""
        dice = self.dice
        for _ in range(dice.randrange(count)):
            side = dice.randrange(2)
            op = dice.choice(("write",) * 5 + ("drain", "wait", "pause", "resume", "limits", "turns", "turns", "eof"))
            if op == "write" and not self.has_ended[side]:
                self.writes(side, dice.choice((0, 1, 10, 300, 5000, 60_000, 70_000, 300_000)))
            elif op == "drain":
                self.reads(side)
                self.step(side, "drain")
            elif op == "wait" and waits:
                self.waits(side)
            elif op == "pause" and not self.stops_reading[side]:
                self.step(side, "pause")
                self.stops_reading[side] = True
            elif op == "resume":
                self.reads(side)
            elif op == "limits" and not self.tls:
                self.step(side, "limits", dice.choice((0, 1, 1000, 100_000)))
            elif op == "turns":
                self.step(side, "turns", dice.choice((1, 3, 30)))
            elif op == "eof" and eof and not self.has_ended[side]:
                self.step(side, "eof")
                self.has_ended[side] = True

    def begins(self) -> None:
        """With TLS from some moment on, if that is not the beginning."""
        if self.tls == "start_tls":
            self.talks(6)
            for side in (0, 1):
                self.waits(side)
                self.step(side, "drain")  # asyncio cannot upgrade while writing is paused
            self.made.sizes[1] += 1
            self.step(1, "write", "bytes", 1)  # "go on": the server is ready when this has left
            self.step(1, "upgrade")
            self.step(0, "wait", self.made.sizes[1])
            self.step(0, "upgrade")

    def reads_all(self) -> None:
        for side in (0, 1):
            self.reads(side)

    # --- fates

    def write_half_close(self) -> None:
        """Each end closes its half at some moment, and everything when it has heard the other's."""
        self.made.keeps_open = [True, True]
        self.talks(25, eof=True)
        for side in (0, 1):
            self.reads(side)
            if not self.has_ended[side]:
                self.step(side, "eof")
        for side in (0, 1):
            self.step(side, "wait_ended")
            self.step(side, "close")
        self.made.calls = ("eof", ("lost", None)), ("eof", ("lost", None))

    def write_close(self) -> None:
        """One end closes the connection when it has received everything; the other has nothing more to say."""
        self.begins()
        self.talks(20)
        self.reads_all()
        side = self.dice.randrange(2)
        self.waits(side)
        if self.dice.random() < 0.5:  # it may wait for the end of the turn, and the system may not take all of it
            self.writes(side, 60_000)
        self.step(side, "close")
        if not self.tls and self.dice.random() < 0.5:
            self.made.keeps_open[1 - side] = True
            self.step(1 - side, "wait_ended")
            self.step(1 - side, "close")
        # With TLS the one that closes hears the other's close_notify.
        both = ("eof", ("lost", None)), (("eof", ("lost", None)) if self.tls else (("lost", None),))
        self.made.calls = both[1 - (side == 1)], both[1 - (side == 0)]

    def write_abort(self) -> None:
        """One end drops what the system has not taken from it, after it has received everything."""
        self.begins()
        self.talks(20)
        self.reads_all()
        side = self.made.ends = self.dice.randrange(2)
        self.waits(side)
        self.step(side, "abort")
        lost = (("lost", None),)
        both = ("eof", ("lost", None)), lost
        self.made.calls = both[1 - (side == 1)], both[1 - (side == 0)]
        self.made.whole = side != 0, side != 1
        if self.tls:  # the end of a socket with unread records, such as a session's ticket, is a reset over TCP
            self.made.calls = (None, lost) if side else (lost, None)

    def write_half_open(self) -> None:
        """One end closes its half, and the other does not hear of it until it has ended by itself."""
        side = self.dice.randrange(2)
        self.talks(15)
        self.reads(side)
        self.step(side, "eof")
        self.has_ended[side] = True
        self.talks(15)
        self.reads_all()
        other = 1 - side
        self.waits(other)
        if self.dice.random() < 0.5:
            self.step(other, "close")
            calls: tuple[Any, ...] = (("lost", None),)
        else:
            self.step(other, "eof")
            calls = "eof", ("lost", None)
        both = calls, ("eof", ("lost", None))
        self.made.calls = both[side == 0], both[side == 1]
        self.made.plan = dataclasses.replace(self.made.plan, holds_eof=(side == 0, side == 1))

    def write_rude(self) -> None:
        """One end goes while the other still speaks."""
        self.begins()
        self.talks(20)
        side = self.made.ends = self.dice.randrange(2)
        self.step(side, self.dice.choice(("close", "abort")))
        self.has_ended[side], self.stops_reading[side] = True, False
        for _ in range(self.dice.randrange(6)):
            self.writes(1 - side, 5000)
            self.step(1 - side, "turns", 3)
        self.reads_all()
        self.made.whole = False, False

    def write_reset(self) -> None:
        """The connection breaks after so many bytes, at one end or at both."""
        self.begins()
        start = list(self.made.sizes)
        for side in (0, 1):
            self.step(side, "meet")
        self.talks(25, waits=False)
        self.reads_all()
        sizes = [size - base for size, base in zip(self.made.sizes, start, strict=True)]
        victims = self.dice.choice((frozenset({0}), frozenset({1}), frozenset({0, 1})))
        given: list[int | None] = [
            self.dice.choice((size, self.dice.randrange(size + 1))) if 1 - side in victims else None
            for side, size in enumerate(sizes)
        ]
        taken = [0 if given[side] is not None else self.dice.choice((size, 0)) for side, size in enumerate(sizes)]
        self.made.plan = dataclasses.replace(
            self.made.plan, reset=Reset(victims, (given[0], given[1]), (taken[0], taken[1]))
        )
        self.made.whole = False, False


# --- a run


class Run:
    """A program on a loop: what both ends were told, and what is wrong with it."""

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop], program: Program) -> None:
        self.program = program
        self.wrong: list[object] = []
        told: list[Any] = []
        on_loop(factory, told, self.play(factory is LOOPS["nbloop"]))
        twice = FAULTY and program.tls and factory is LOOPS["asyncio"]
        self.wrong += [one for one in told if not (twice and "_call_connection_lost()" in one[0])]

    async def play(self, ours: bool) -> None:
        program, loop = self.program, asyncio.get_running_loop()
        family, anywhere = (socket.AF_UNIX, "") if program.kind == "unix" else (socket.AF_INET, ("127.0.0.1", 0))
        classes = {"plain": Plain, "buffered": Buffered, "stream": Streamed}
        barrier = asyncio.Barrier(2)

        async def meet() -> None:
            if await barrier.wait() == 0:
                proxy.arm()
            await barrier.wait()

        self.sides = sides = [
            classes[style](f"{program.seed} {number}", size, keeps_open, meet, self.wrong)
            for number, (style, size, keeps_open) in enumerate(
                zip(program.styles, program.sizes, program.keeps_open, strict=True)
            )
        ]
        client, server = sides
        contexts_of = contexts() if program.tls else (None, None)
        at_once = contexts_of if program.tls == "ssl" else (None, None)
        with socket.socket(family) as listener, socket.socket(family) as sock:
            for one in (listener, sock):
                one.setblocking(False)
                if program.plan.buffers:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, program.plan.buffers)
            listener.bind(anywhere)
            listens: Any = loop.create_unix_server if program.kind == "unix" else loop.create_server
            async with await listens(lambda: server, sock=listener, ssl=at_once[0]) as accepting:
                upstream = listener.getsockname()
                with Proxy(family, anywhere, upstream, program.plan) as proxy:
                    await loop.sock_connect(sock, proxy.address)
                    name = {"server_hostname": ""} if at_once[1] else {}
                    await loop.create_connection(lambda: client, sock=sock, ssl=at_once[1], **name)
                    await server.until(lambda: server.transport)
                    if program.seed % 2:
                        accepting.close()  # which waits for the connection at the end, and leaves it alone till then
                    carrier = client.transport
                    if program.tls == "ssl":
                        carrier = carrier._ssl_protocol._transport
                    assert isinstance(carrier, StreamTransport) == ours
                    try:
                        async with asyncio.TaskGroup() as group:
                            for number, side in enumerate(sides):
                                steps = [
                                    (what, (contexts_of[number == 0], number == 1) if what == "upgrade" else arguments)
                                    for who, what, arguments in program.steps
                                    if who == number
                                ]
                                group.create_task(side.run(steps))
                    finally:
                        for side in sides:
                            if not side.lost:  # the server would wait for it
                                side.transport.abort()
                    await settle()
                    for side in sides:
                        await side.finish()
                    proxy.join()
                    self.judge(proxy, upstream)

    # --- what must hold

    def check(self, holds: object, *what: object) -> None:
        if not holds:
            self.wrong.append(what)

    def judge(self, proxy: Proxy, upstream: Any) -> None:
        program, (client, server) = self.program, self.sides
        peers, own = (proxy.address, proxy.names[1]), (proxy.names[0], upstream)
        for number, (side, other) in enumerate(((client, server), (server, client))):
            who = ("client", "server")[number]
            names = {"peername": peers[number], "sockname": own[number]}
            self.check(side.names == names, who, "has the names", side.names, names)
            self.check(side.sock.fileno() == -1, who, "has not closed its socket")
            if not program.tls:
                after = {name: side.transport.get_extra_info(name) for name in side.names}
                self.check(after == side.names, who, "has afterwards the names", after)
                size = side.transport.get_write_buffer_size()
                self.check(side.log[-1] != ("lost", None) or size == 0, who, "still has bytes", size)
            came = bytes(side.received)
            self.check(other.data.startswith(came), who, "has received what was not sent", len(came))
            if program.whole[1 - number]:
                self.check(len(came) == len(other.data), who, "has received", len(came), "of", len(other.data))
            calls = side.log[1:]
            if calls[0] == "data":
                del calls[0]
            failure = calls[-1][1]  # type: ignore[index]
            # Records that come after the end's own close_notify are OpenSSL's errors.
            ssl_error = program.tls and number == program.ends and failure is ssl.SSLError
            self.check(failure is None or failure in FAILURES or ssl_error, who, "has lost it by", failure)
            if program.calls[number] is not None:
                self.check(tuple(calls) == program.calls[number], who, "was told", calls)
            if failure is None and number != program.ends:
                self.check(not side.paused, who, "remains paused")
            getattr(self, "judge_" + program.fate.replace(" ", "_"), lambda *_: None)(proxy, number, side, other, calls)

    def judge_abort(self, _proxy: Proxy, number: int, side: Side, other: Side, _calls: list[object]) -> None:
        """What the system had taken arrives."""
        if number != self.program.ends and not self.program.tls:
            taken = other.written - other.left
            self.check(len(side.received) == taken, "of", taken, "bytes that had left", len(side.received), "arrived")

    def judge_rude(self, _proxy: Proxy, number: int, _side: Side, _other: Side, calls: list[object]) -> None:
        """The one that goes hears nothing more; the other one hears that."""
        if self.program.tls:
            return
        if number == self.program.ends:
            self.check(calls == [("lost", None)], "the one that ends was told", calls)
        else:
            self.check((calls == ["eof", ("lost", None)]) or calls[-1] != ("lost", None), "the other was told", calls)

    def judge_reset(self, proxy: Proxy, number: int, side: Side, other: Side, calls: list[object]) -> None:
        """A victim has what was delivered before, at least where it had nothing to write; a survivor has all of it."""
        reset = self.program.plan.reset
        assert reset is not None
        self.check(proxy.has_reset, "no reset")
        if self.program.tls:
            return
        given = proxy.ways[1 - number].given
        quiet = number not in reset.victims or (
            len(reset.victims) == 1 and reset.taken[number] == self.program.sizes[number]
        )
        self.check(len(side.received) <= given, "more than was given")
        if quiet:
            self.check(len(side.received) == given, "of", given, "bytes that were given", len(side.received), "arrived")
        if number not in reset.victims:
            self.check(calls == ["eof", ("lost", None)], "the survivor was told", calls)
        elif self.program.kind == "tcp":
            self.check(calls[-1][1] in FAILURES, "the victim was told", calls)  # type: ignore[index]
            self.check(len(calls) == 1, "the victim was told", calls)
            if quiet:
                self.check(calls[-1] == ("lost", ConnectionResetError), "the victim was told", calls)


@pytest.fixture(autouse=True, scope="module")
def _made_once() -> None:
    """Make what a process has only once before descriptors are counted."""
    for factory in LOOPS.values():
        Run(factory, Writer("close", "tcp", 0).made)


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_survives_a_bad_network(fate, kind, loop, descriptors):
    """Or fails as it must: on asyncio's own loop, which shows that it is the loop's part, and on nbloop's."""
    opened, threads = descriptors(), threading.active_count()
    for seed in range(FIRST, FIRST + int(EXAMPLES * FACTOR / 2)):
        program = Writer(fate, kind, seed).made
        try:
            wrong = Run(LOOPS[loop], program).wrong
        except BaseException as error:
            error.add_note(str(program))
            raise
        assert wrong == [], program
    assert threading.active_count() == threads
    assert descriptors() == opened


class Closes(Logged):
    """Closes when it may write again."""

    lines: tuple[bytes, ...] = ()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.writelines(self.lines)
        self.transport.close()


class WritesAndCloses(Closes):
    lines = (b"last", b"lines")


class Aborts(Logged):
    """Aborts when the connection has ended."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.transport.abort()


@pytest.mark.parametrize(("protocol", "closed"), [(Closes, False), (WritesAndCloses, False), (Aborts, True)])
def test_a_connection_ends_once(protocol, closed):
    """If `resume_writing` closes it; and if `connection_lost` aborts it, after a `close` while bytes waited."""
    log: list[object] = []

    async def play() -> None:
        peer, mine = pair("unix")
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol(log), mine)
        transport.write(bytes(1_000_000))
        if closed:
            transport.close()
        while mine.fileno() >= 0:
            drain(peer)
            await asyncio.sleep(0)
        await settle()
        peer.close()

    on_loop(LOOPS["nbloop"], log, play())
    assert log == ["made", "pause", "resume", ("lost", type(None), None)]


def test_lines_after_the_end_harm_no_later_connection():
    """Which may have the same descriptor."""
    log: list[object] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()
        peer, mine = pair("unix")
        number = mine.fileno()
        transport, _ = await loop.connect_accepted_socket(lambda: Logged([]), mine)
        transport.close()
        transport.writelines([b"too", b"late"])
        transport.writelines([array.array("i", [1, 2])])
        await settle()
        later, other = pair("unix")
        with peer, other:
            assert later.fileno() == number
            transport, _ = await loop.connect_accepted_socket(lambda: Logged(log), later)
            other.send(b"x")
            await settle()
            transport.abort()
            await settle()

    on_loop(LOOPS["nbloop"], log, play())
    assert log == ["made", ("data", b"x"), ("lost", type(None), None)]


@pytest.mark.skipif(not getattr(ssl, "HAS_PSK", False), reason="this OpenSSL has no shared keys")
@pytest.mark.parametrize("how", ["writer", "loop"])
def test_an_upgrade_keeps_the_pause_of_a_reader(how):
    """The client's first data comes before the program hears that the handshake is done, and is more than a reader
    keeps.
    """

    async def main() -> None:
        sock, mine = pair("unix")
        server, client = contexts()
        end = End(sock, client)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=10, loop=loop)
        writers: list[asyncio.StreamWriter] = []
        protocol = asyncio.StreamReaderProtocol(reader, lambda _reader, writer: writers.append(writer), loop)
        await loop.connect_accepted_socket(lambda: protocol, mine)

        async def start() -> None:  # as programs do that upgrade by themselves: the reader keeps the old transport
            (writer,) = writers
            writer._transport = await loop.start_tls(  # type: ignore[attr-defined]
                writer.transport, protocol, server, server_side=True
            )

        upgrade = asyncio.ensure_future(writers[0].start_tls(server) if how == "writer" else start())
        try:
            await settle()
            end.step()
            await settle()
            assert not upgrade.done()
            end.step()  # the client's last record of the handshake, and the first data
            end.write(b"x" * 100)
            await upgrade
            assert await reader.readexactly(100) == b"x" * 100
            end.write(b"y")
            reading = asyncio.ensure_future(reader.readexactly(1))
            await settle()
            reading.cancel()
            assert reading.done()
        finally:
            writers[0].transport.abort()
            await settle()
            sock.close()

    nbloop.run(main())
