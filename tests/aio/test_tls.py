"""TLS of `nbloop.aio`: asyncio's protocol over nbloop's transports behaves as over asyncio's, and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import weakref

import pytest

import nbloop
from nbloop.aio.tls import RECORD, TlsProtocol
from nbloop.aio.transports import KERNELS_READ, Stream, StreamTransport
from tests.support.connections import LOOPS, Buffered, Logged, left_by, on_loop, pair, settle
from tests.support.secure import End, contexts
from tests.support.waiting import PATIENCE

pytestmark = [
    pytest.mark.skipif(not KERNELS_READ, reason="asyncio's own transports here"),
    pytest.mark.skipif(not getattr(ssl, "HAS_PSK", False), reason="this OpenSSL has no shared keys"),
]


class Owns(Buffered):
    """Keeps its transport, as protocols do."""

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, _sizehint):
        return memoryview(self.buffer)


async def shaken(end: End, other: asyncio.Future) -> None:
    """Step until both ends are done with the handshake."""
    await asyncio.sleep(0)  # the other end begins
    async with asyncio.timeout(PATIENCE):
        while not (end.shaken and other.done()):
            end.step()
            await settle()


def played(factory, begins: str, seed: int) -> list[object]:
    """What the program sees of a connection with TLS while a random program runs on a loop, and what its peer gets.

    TLS `begins` with the connection ("ssl"), or later ("start_tls"), after some plain bytes. Over Unix sockets only:
    what TCP takes and delivers depends on time.
    """
    dice = random.Random(seed)
    log: list[object] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()
        sock, mine = pair("unix")
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        server, client = contexts()
        serves = dice.random() < 0.5
        context, other = (server, client) if serves else (client, server)
        end = End(sock, other, not serves)
        protocol = Logged(log)
        if begins == "ssl" and serves:
            making = asyncio.ensure_future(loop.connect_accepted_socket(lambda: protocol, mine, ssl=context))
            await shaken(end, making)
            transport, _ = making.result()
        elif begins == "ssl":
            name = {"server_hostname": ""}
            making = asyncio.ensure_future(loop.create_connection(lambda: protocol, sock=mine, ssl=context, **name))
            await shaken(end, making)
            transport, _ = making.result()
        else:
            plain, _ = await loop.connect_accepted_socket(lambda: protocol, mine)
            for _ in range(dice.randrange(4)):
                size = dice.choice((1, 300, 5000))
                plain.write(bytes(size))
                await settle()
                log.append(len(sock.recv(size)))
                sock.send(bytes(size))
                await settle()
            making = asyncio.ensure_future(loop.start_tls(plain, protocol, context, server_side=serves))
            await shaken(end, making)
            transport = protocol.transport = making.result()
        carrier = transport._ssl_protocol._transport
        assert isinstance(carrier, StreamTransport) == (factory is nbloop.new_event_loop)
        tls = transport.get_extra_info("ssl_object")
        log.append((tls.version(), tls.cipher(), transport.get_extra_info("cipher")))
        log.append((transport.get_extra_info("peercert"), transport.get_extra_info("compression")))
        log.append((transport.get_extra_info("sslcontext") is context, transport.get_extra_info("sockname") is None))
        del tls
        for _ in range(dice.randrange(3, 25)):
            size = dice.choice((0, 1, 10, 300, 5_000, 16_384, 70_000, 300_000))
            data = bytes([dice.randrange(256)]) * size
            op = dice.choice(
                ("send", "send", "sends", "write", "write", "writes", "plan") * 3
                + ("write_other", "writelines", "pause_reading", "resume_reading", "limits", "buffered", "again")
                + ("close", "abort", "peer_ends", "peer_close", "shutdown", "reset", "garbage")[dice.randrange(2) :: 2]
            )
            log.append((op, size))
            try:
                if op == "send":
                    end.write(data[:RECORD])  # how larger ones are cut depends on time
                elif op == "sends":
                    for _ in range(3):
                        end.write(data[:5000])
                elif op == "write":
                    transport.write(data)
                elif op == "writes":
                    for _ in range(3):
                        transport.write(data[:5000])
                elif op == "write_other":
                    transport.write(dice.choice((bytearray, memoryview, str))(data))
                elif op == "writelines":
                    transport.writelines([data, b"", b"more"])
                elif op == "limits":
                    transport.set_write_buffer_limits(max(1, size))
                elif op == "plan":
                    plans = ("echo", "echo", "raise", "close", "pause_reading", "replace")
                    protocol.plans = [dice.choice(plans)]
                elif op == "buffered":
                    transport.set_protocol(Owns(log))
                elif op == "again":
                    transport.set_protocol(protocol)
                elif op == "peer_ends":
                    end.end()
                elif op == "peer_close":
                    sock.close()
                elif op == "shutdown":
                    sock.shutdown(socket.SHUT_WR)
                elif op == "garbage":
                    sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
                elif op == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
                else:
                    getattr(transport, op)()
            except (OSError, RuntimeError, TypeError, AttributeError) as error:
                log.append((type(error), str(error)))
            with contextlib.suppress(OSError):
                carrier.get_extra_info("socket").fileno()  # what was written has left by now
            for _ in range(dice.choice((1, 1, 2))):
                await settle()
                with contextlib.suppress(OSError):
                    end.step()
            if transport._ssl_protocol is not None:  # asyncio forgets it at the second `close`
                log.append(transport.get_write_buffer_size())
            log.append(transport.is_closing())
        for _ in range(100):  # until nothing is on its way
            await settle()
            before = len(end.got)
            with contextlib.suppress(OSError):
                end.step()
            if len(end.got) == before:
                break
        log.append((end.got, end.ended))
        if carrier.get_extra_info("socket").fileno() != -1:
            carrier.abort()
        await settle()
        sock.close()

    on_loop(factory, log, play())
    return log


@pytest.mark.parametrize("begins", ["ssl", "start_tls"])
@pytest.mark.parametrize("seed", range(0, 100, 20))
def test_random_programs_mean_the_same(begins, seed):
    """Callbacks and their order, bytes, exceptions, marks and answers are asyncio's, whatever the program is."""
    for number in range(seed, seed + 20):
        assert played(LOOPS["nbloop"], begins, number) == played(LOOPS["asyncio"], begins, number), number


@pytest.fixture
def connected():
    """A function that runs ``test(transport, protocol, end)`` on a server's connection with TLS, of nbloop's."""

    def run(test, factory=Logged):
        async def main():
            sock, mine = pair("unix")
            server, client = contexts()
            end = End(sock, client)
            protocol = factory([])
            loop = asyncio.get_running_loop()
            making = asyncio.ensure_future(loop.connect_accepted_socket(lambda: protocol, mine, ssl=server))
            await shaken(end, making)
            transport, _ = making.result()
            try:
                async with asyncio.timeout(PATIENCE):
                    return await test(transport, protocol, end)
            finally:
                transport.abort()
                await settle()
                sock.close()

        return nbloop.run(main())

    return run


@pytest.mark.parametrize("kind", [lambda buffer: buffer, lambda buffer: memoryview(buffer).cast("H")], ids="BH")
def test_a_buffer_of_any_kind_is_filled_by_several_records(connected, kind):
    """asyncio reads the second record into a copy of a bytearray's rest, and loses it."""

    class Given(Owns):
        def get_buffer(self, _sizehint):
            return kind(self.buffer)

    async def test(_transport, protocol, end):
        for number in range(5):
            end.encrypt(bytes([number]) * 3000)
        end.flush()
        await settle()
        return b"".join(data for _name, data in protocol.log)

    assert connected(test, Given) == b"".join(bytes([number]) * 3000 for number in range(5))


def test_a_small_buffer_is_filled_again_and_again(connected):
    """Of one record, and of several, until nothing is left."""

    class Small(Owns):
        def get_buffer(self, _sizehint):
            return memoryview(self.buffer)[:100]

    async def test(_transport, protocol, end):
        sent = random.Random(1).randbytes(5000)
        end.encrypt(sent[:4000])
        end.encrypt(sent[4000:])
        end.flush()
        while sum(len(data) for _name, data in protocol.log) < len(sent):
            await settle()
        assert {len(data) for _name, data in protocol.log} == {100}
        return b"".join(data for _name, data in protocol.log) == sent

    assert connected(test, Small)


def test_an_empty_buffer_ends_the_connection(connected):
    """asyncio takes it for the end of what the peer sends. That a buffer is empty is the protocol's fault."""

    class Empty(Owns):
        room = None

        def get_buffer(self, _sizehint):
            return memoryview(self.buffer)[: self.room]

    async def test(_transport, protocol, end):
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))
        protocol.room = 0
        end.write(b"x")
        while not protocol.log:
            await settle()
        assert [str(error) for error in told] == ["get_buffer() returned an empty buffer"]
        return protocol.log

    assert connected(test, Empty) == [("lost", RuntimeError, ("get_buffer() returned an empty buffer",))]


@pytest.mark.parametrize("size", [1, 999, 1000, RECORD // 4, 40_000])
def test_a_memoryview_of_large_items_is_sent_whole(connected, size):
    """Whatever counts items, and whatever bytes."""

    async def test(transport, _protocol, end):
        sent = random.Random(size).randbytes(4 * size)
        transport.write(memoryview(sent).cast("I"))
        transport.writelines([b"<", memoryview(sent).cast("I"), b">"])
        while len(end.got) < 2 * len(sent) + 2:
            await settle()
            end.step()
        return end.got == sent + b"<" + sent + b">"

    assert connected(test)


def test_a_mark_of_0_pauses_for_what_waits_only(connected):
    """asyncio pauses although nothing waits, and `drain` waits for ever."""

    async def test(transport, protocol, end):
        transport.set_write_buffer_limits(0)
        transport.write(b"x")
        assert protocol.log == ["made"]
        transport.write(b"x" * 10_000_000)  # which the transport below takes, and asks for no more
        assert protocol.log == ["made"]
        transport.write(b"x")
        assert protocol.log == ["made", "pause"]
        while "resume" not in protocol.log:
            await settle()
            end.step()
        assert transport.get_write_buffer_size() == 0

    connected(test)


@pytest.mark.parametrize("records", [1, 2, 3, 17])
@pytest.mark.parametrize("size", [1, 1000, RECORD - 1, RECORD])
def test_records_that_arrive_together_are_delivered_together(connected, records, size):
    """And none is left in OpenSSL until the next arrives."""

    async def test(_transport, protocol, end):
        data = [bytes([number]) * size for number in range(records)]
        for one in data:
            end.encrypt(one)
        end.flush()
        while sum(len(one[1]) for one in protocol.log[1:]) < records * size:
            await settle()
            end.flush()
        return b"".join(one[1] for one in protocol.log[1:]) == b"".join(data)

    assert connected(test)


class Carrier(asyncio.Transport):
    """A transport of the program's own: it asks for the buffer, and receives later."""

    _start_tls_compatible = True

    def __init__(self, sock):
        super().__init__()
        self.sock = sock

    def set_protocol(self, protocol):
        self.protocol = protocol

    def asks(self):
        self.buffer = self.protocol.get_buffer(-1)

    def receives(self):
        try:
            self.received = self.sock.recv_into(self.buffer)
        except BlockingIOError:
            self.received = 0

    def tells(self):
        if self.received:
            self.protocol.buffer_updated(self.received)

    def write(self, data):
        self.sock.send(data)

    def abort(self, *_why):
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    close = _force_close = abort
    pause_reading = resume_reading = get_extra_info = lambda *_arguments: None


@pytest.mark.parametrize("factory", LOOPS.values(), ids=LOOPS.keys())
def test_a_transport_of_the_programs_own_may_receive_later(factory):
    """While it waits, another connection receives: each one's bytes are its own."""
    log = []

    async def play():
        loop = asyncio.get_running_loop()
        server, client = contexts()
        ends, carriers, makings, protocols = [], [], [], []
        for _ in range(2):
            sock, mine = pair("unix")
            ends.append(End(sock, client))
            carriers.append(Carrier(mine))
            protocols.append(Logged([]))
            makings.append(asyncio.ensure_future(loop.start_tls(carriers[-1], protocols[-1], server, server_side=True)))
        await settle()
        sent = False
        while not all(len(protocol.log) > 0 for protocol in protocols):
            for end in ends:
                end.step()
            if not sent and all(making.done() for making in makings) and all(end.shaken for end in ends):
                for end, name in zip(ends, (b"first", b"second"), strict=True):
                    end.write(name)
                sent = True
            for does in (Carrier.asks, Carrier.receives, Carrier.tells):
                for carrier in carriers:
                    does(carrier)
            await settle()
        log.extend(protocol.log[0] for protocol in protocols)
        for making, answer in zip(makings, (b"one", b"two"), strict=True):
            making.result().write(bytearray(answer))
        while not all(end.got for end in ends):
            for end in ends:
                end.step()
            await settle()
        log.extend(end.got for end in ends)
        for carrier, end in zip(carriers, ends, strict=True):
            carrier.abort()
            carrier.sock.close()
            end.sock.close()
        await settle()

    on_loop(factory, log, play())
    assert log == [("data", b"first"), ("data", b"second"), b"one", b"two"]


@pytest.mark.parametrize("way", ["write", "writelines"])
def test_a_write_on_another_loop_is_refused_before_it_is_encrypted(connected, way):
    """So the connection is as good as before."""

    async def test(transport, _protocol, end):
        transport.get_extra_info("socket").fileno()
        transport.write(b"one")

        def elsewhere():
            async def main():
                getattr(transport, way)([b"wrong"] if way == "writelines" else b"wrong")

            asyncio.run(main())

        with pytest.raises(RuntimeError, match="is used on a different loop"):
            await asyncio.to_thread(elsewhere)
        transport.write(b" two")
        await settle()
        end.step()
        return end.got

    assert connected(test) == b"one two"


def test_an_upgrade_takes_what_the_client_sent_before():
    """The client's first record is in the `StreamReader` before the server calls `start_tls`."""

    async def main():
        sock, mine = pair("unix")
        server, client = contexts()
        end = End(sock, client)
        heard = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            assert await reader.readline() == b"STARTTLS\n"
            while not reader._buffer:
                await asyncio.sleep(0)
            await writer.start_tls(server)
            writer.write(b"safe")
            heard.set_result(await reader.read(100))
            writer.close()

        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, serve, loop=loop)
        await loop.connect_accepted_socket(lambda: protocol, mine)
        sock.send(b"STARTTLS\n")
        end.step()
        async with asyncio.timeout(PATIENCE):
            while end.got != b"safe":
                await settle()
                end.step()
            end.write(b"secret")
            assert await heard == b"secret"
            while not end.ended:
                await settle()
                end.step()
            end.end()
        await settle()
        sock.close()

    nbloop.run(main())


@pytest.mark.parametrize("serves", [False, True])
def test_an_upgrade_while_writing_is_paused(serves):
    """The bytes that wait leave first, and `resume_writing` comes. asyncio fails an assertion instead."""

    async def main():
        loop = asyncio.get_running_loop()
        told = []
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        sock, mine = pair("unix")
        server, client = contexts()
        end = End(sock, client if serves else server, not serves)
        protocol = Logged([])
        plain, _ = await loop.connect_accepted_socket(lambda: protocol, mine)
        plain.write(bytes(1_000_000))
        assert protocol.log == ["made", "pause"]
        context = server if serves else client
        making = asyncio.ensure_future(loop.start_tls(plain, protocol, context, server_side=serves))
        left = 1_000_000
        async with asyncio.timeout(PATIENCE):
            while left:
                await settle()
                with contextlib.suppress(BlockingIOError):
                    left -= len(sock.recv(left))
        await shaken(end, making)
        making.result().write(b"after")
        await settle()
        end.step()
        assert end.got == b"after"
        assert protocol.log == ["made", "pause", "resume"]
        assert told == []
        making.result().abort()
        await settle()
        sock.close()

    nbloop.run(main())


@pytest.mark.parametrize("how", ["close", "abort", "peer", "in flight", "garbage"])
def test_nothing_is_left_of_a_closed_connection(how):
    """Transports, protocols and streams are gone with the connection, without a collection."""

    async def main():
        gone = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)
        for number in range(20):
            sock, mine = pair("unix")
            server, client = contexts()
            end = End(sock, client)
            protocol = Owns([]) if number % 2 else Logged([])
            making = asyncio.ensure_future(
                loop.connect_accepted_socket(lambda to=protocol: to, mine, ssl=server)  # type: ignore[misc]
            )
            await shaken(end, making)
            transport = making.result()[0]
            tls = transport._ssl_protocol
            assert isinstance(tls, TlsProtocol)
            gone += [weakref.ref(one) for one in (transport, protocol, tls, tls._transport)]
            del tls
            transport.write(b"x" * (10_000_000 if how == "in flight" else 1))
            end.write(b"y")
            await settle()
            end.step()
            if how == "close":
                transport.close()
                await settle()
                end.step()
                end.end()
            elif how == "garbage":
                sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
            elif how == "abort":
                transport.abort()
            else:
                sock.close()
            del transport, protocol, making
            await settle()
            sock.close()
            await settle()
        return [one() for one in gone if one() is not None]

    assert left_by(main, Stream) == []
