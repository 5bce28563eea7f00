"""What `nbloop.aio` leaves out when a connection comes and goes is nothing that a program can see: as on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import socket
import warnings
import weakref
from unittest import mock

import pytest

import nbloop
from nbloop.aio.transports import KERNELS_READ, TRANSPORTS_HAVE_CONTEXTS, StreamTransport, accept_plainly, numbers_of
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(not KERNELS_READ, reason="asyncio's own transports here")

FACTORIES = {"asyncio": asyncio.new_event_loop, "nbloop": nbloop.new_event_loop}
VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")
KINDS = ["tcp", "tcp6", "unix"]


def listening(kind, path):
    family, address = {
        "tcp": (socket.AF_INET, ("127.0.0.1", 0)),
        "tcp6": (socket.AF_INET6, ("::1", 0)),
        "unix": (socket.AF_UNIX, str(path / "socket")),
    }[kind]
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.bind(address)
    except OSError:  # no IPv6 here
        made.close()
        pytest.skip(f"no {kind} here")
    made.listen(100)
    return made


def connection(listener):
    client = socket.socket(listener.family, socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    client.connect(listener.getsockname())
    return client


def run(factory, main):
    """With all that the exception handler was told."""
    told = []

    async def whole():
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        async with asyncio.timeout(PATIENCE):
            return await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(whole()), told


def on_both(main):
    return {name: run(factory, main) for name, factory in FACTORIES.items()}


class Noted(asyncio.Protocol):
    """Whose events can be waited for."""

    def __init__(self):
        self.made, self.lost, self.data = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.received = b""

    def connection_made(self, transport):
        self.transport = transport
        self.made.set()

    def data_received(self, data):
        self.received += data
        self.data.set()

    def connection_lost(self, exc):
        self.lost.set()


# --- what a transport is


def attributes(transport, names):
    """Those names, or all that it has of its own."""
    slots = {name for kind in type(transport).__mro__ for name in getattr(kind, "__slots__", ())}
    return {name: getattr(transport, name) for name in names or slots | set(vars(transport))}


def test_a_transport_begins_as_asyncios():
    """Each attribute that asyncio's constructors set, in this version of Python, has its value here."""

    async def main():
        ours, theirs = socket.socketpair()
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
        found = attributes(transport, names)
        transport.abort()
        theirs.close()
        return found

    names = set()
    theirs, _ = run(asyncio.new_event_loop, main)
    del theirs["_read_ready_cb"]  # which only methods use that are replaced
    names = set(theirs)
    ours, told = run(nbloop.new_event_loop, main)
    assert told == []
    ours["_sock_fd"] = theirs["_sock_fd"]
    plain = {name: value for name, value in theirs.items() if isinstance(value, (int, str, tuple, type(None)))}
    assert {"_conn_lost", "_closing", "_paused", "_eof", "_high_water", "_low_water", "_empty_waiter"} <= set(plain)
    assert {name: ours[name] for name in plain} == plain
    assert len(ours["_buffer"]) == len(theirs["_buffer"]) == 0
    assert set(ours["_extra"]) | {"socket"} == set(theirs["_extra"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_of_a_connection_is_known_after_its_end(kind, tmp_path):
    """Whether it was asked for before or not; the peer is gone by then, too."""

    async def main():
        loop = asyncio.get_running_loop()
        listener = listening(kind, tmp_path)
        made = []
        server = await loop.create_server(lambda: made.append(Noted()) or made[-1], sock=listener)
        clients = [connection(listener) for _ in range(2)]
        while len(made) < 2:
            await asyncio.sleep(0)
        before, after = [], []
        for number, (client, protocol) in enumerate(zip(clients, made, strict=True)):
            await protocol.made.wait()
            of = protocol.transport
            names = "sockname", "peername", "socket"
            if number == 0:
                before = [of.get_extra_info(name) for name in names]
                assert before[2] is of.get_extra_info("socket")
                assert before[2].fileno() == of._sock_fd
            client.close()
            await protocol.lost.wait()
            of.close()
            after.append([of.get_extra_info(name) for name in names])
            assert of.get_extra_info("no such", 7) == 7
            assert of.get_extra_info("no such") is None
        server.close()
        (tmp_path / "socket").unlink(missing_ok=True)
        assert after[0] == before
        assert [known[2].fileno() for known in after] == [-1, -1]
        assert [known[2].family for known in after] == [listener.family] * 2
        return [[type(one).__name__ for one in known[:2]] for known in after], after[1][0][:1]

    results = on_both(main)
    assert results["nbloop"] == results["asyncio"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_accepted_socket_is_as_accept_makes_it(kind, tmp_path):
    with contextlib.ExitStack() as resources:
        listener = resources.enter_context(listening(kind, tmp_path))
        listener.setblocking(False)
        clients = [resources.enter_context(connection(listener)) for _ in range(2)]
        theirs, address = listener.accept()
        ours, our_address = accept_plainly(listener, *numbers_of(listener))
        resources.callback(theirs.close)
        resources.callback(ours.close)
        assert type(ours) is type(theirs) is socket.socket
        assert type(our_address) is type(address)
        for of in (
            lambda one: (one.family, one.type, one.proto, one.gettimeout(), one.get_inheritable()),
            lambda one: (one.getsockname(), one._io_refs, one._closed),
            repr,
        ):
            if of is repr and kind != "unix":  # the ports of the peers are in it
                continue
            assert str(of(ours)).replace(f"fd={ours.fileno()}", "") == str(of(theirs)).replace(
                f"fd={theirs.fileno()}", ""
            )
        if kind != "unix":
            assert our_address == clients[1].getsockname()
        with ours.makefile("rb") as file:  # what counts its users
            ours.close()
            assert ours.fileno() != -1
            clients[1].sendall(b"line\n")
            assert file.readline() == b"line\n"
        assert ours.fileno() == -1
        with pytest.raises(BlockingIOError):
            accept_plainly(listener, *numbers_of(listener))


def test_a_listener_may_have_an_accept_of_its_own():
    """As the workers' of `nbloop.serve` have."""

    class Counts(socket.socket):
        accepted = 0

        def accept(self):
            made = super().accept()
            Counts.accepted += 1
            return made

    async def main():
        loop = asyncio.get_running_loop()
        listener = Counts(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        protocol = Noted()
        server = await loop.create_server(lambda: protocol, sock=listener)
        with connection(listener) as client:
            client.sendall(b"x")
            await protocol.data.wait()
            protocol.transport.abort()
        server.close()
        return Counts.accepted

    assert run(nbloop.new_event_loop, main) == (1, [])


@pytest.mark.parametrize("proto", [0, socket.IPPROTO_TCP])
def test_small_writes_wait_for_no_acknowledgement(proto):
    """Where asyncio asks for that: of a socket whose protocol is named."""

    async def main():
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, proto)
        listener.bind(("127.0.0.1", 0))
        protocol = Noted()
        server = await loop.create_server(lambda: protocol, sock=listener)
        with connection(listener):
            await protocol.made.wait()
            sock = protocol.transport.get_extra_info("socket")
            value = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            protocol.transport.abort()
        server.close()
        return bool(value)

    results = on_both(main)
    assert results["nbloop"] == results["asyncio"] == (proto != 0, [])


def test_a_mock_of_a_socket_is_not_read_as_one():
    """It says that it is an instance of `socket.socket`. Kernels would take words of it for its descriptor."""

    async def main():
        loop = asyncio.get_running_loop()
        sock = mock.MagicMock(socket.socket)
        sock.fileno.return_value = 1 << 20
        sock.proto = 0
        sock.send.return_value = 4
        assert isinstance(sock, socket.socket)
        transport = loop._make_socket_transport(sock, asyncio.Protocol())
        assert not isinstance(transport, StreamTransport)
        transport._paused = True  # its number cannot be watched
        transport.write(b"data")
        sock.send.assert_called_once_with(b"data")
        transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert run(nbloop.new_event_loop, main) == (None, [])


# --- the beginning


def test_what_connection_made_does_to_its_context():
    """Data arrive in the context in which the transport was made. Since 3.15 all of a connection shares one."""

    class Sets(Noted):
        def connection_made(self, transport):
            VARIABLE.set("set")
            super().connection_made(transport)

        def data_received(self, data):
            self.saw = VARIABLE.get()
            super().data_received(data)

    async def main():
        VARIABLE.set("outside")
        ours, theirs = socket.socketpair()
        with theirs:
            protocol = Sets()
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours)
            theirs.sendall(b"x")
            await protocol.data.wait()
            protocol.transport.abort()
            await protocol.lost.wait()
            return protocol.saw

    results = on_both(main)
    saw = "set" if TRANSPORTS_HAVE_CONTEXTS else "outside"
    assert results["nbloop"] == results["asyncio"] == (saw, [])


def test_a_connection_made_that_raises_is_reported_and_reads():
    class Raises(Noted):
        def connection_made(self, transport):
            super().connection_made(transport)
            raise ValueError("made")

    async def main():
        ours, theirs = socket.socketpair()
        with theirs:
            protocol = Raises()
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours)
            theirs.sendall(b"x")
            await protocol.data.wait()
            protocol.transport.abort()
            await protocol.lost.wait()

    said = {}
    for name, (_, told) in on_both(main).items():
        (context,) = told
        message = context["message"].replace("_SelectorSocketTransport", "StreamTransport")
        said[name] = message.partition("(")[0], repr(context["exception"]), sorted(context)
        assert "Raises.connection_made" in repr(context["handle"])
    assert said["nbloop"] == said["asyncio"]


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_an_interrupt_of_connection_made_leaves_the_loop_and_the_connection_reads(factory):
    class Leaves(Noted):
        def connection_made(self, transport):
            super().connection_made(transport)
            raise SystemExit(3)

    loop = factory()
    ours, theirs = socket.socketpair()
    made = []

    async def main():
        made.append(Leaves())
        await loop.connect_accepted_socket(lambda: made[0], ours)

    task = loop.create_task(main())
    with pytest.raises(SystemExit):
        loop.run_until_complete(task)
    theirs.sendall(b"x")
    loop.run_until_complete(asyncio.wait_for(made[0].data.wait(), PATIENCE))
    loop.run_until_complete(task)
    made[0].transport.abort()
    loop.run_until_complete(asyncio.wait_for(made[0].lost.wait(), PATIENCE))
    loop.close()
    theirs.close()


@pytest.mark.parametrize("debug", [False, True])
def test_a_connection_that_pauses_at_once_does_not_read(debug):
    class Pauses(Noted):
        def connection_made(self, transport):
            transport.pause_reading()
            super().connection_made(transport)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_debug(debug)
        ours, theirs = socket.socketpair()
        with theirs:
            protocol = Pauses()
            await loop.connect_accepted_socket(lambda: protocol, ours)
            theirs.sendall(b"x")
            for _ in range(100):
                await asyncio.sleep(0)
            assert protocol.received == b""
            protocol.transport.resume_reading()
            await protocol.data.wait()
            protocol.transport.close()
            await protocol.lost.wait()

    for _, told in on_both(main).values():
        assert told == []


# --- the end


class Server:
    """A server with `count` connections, and what is to be gone after them: no collection happens meanwhile."""

    def __init__(self, count):
        self.count = count
        self.gone = []

    async def __aenter__(self):
        self.protocols = []
        self.server = await asyncio.get_running_loop().create_server(self._new, "127.0.0.1", 0)
        (self.listener,) = self.server.sockets
        self.clients = [connection(self.listener) for _ in range(self.count)]
        while len(self.protocols) < self.count:
            await asyncio.sleep(0)
        for protocol in self.protocols:
            await protocol.made.wait()
            transport = protocol.transport
            self.gone += [weakref.ref(one) for one in (protocol, transport, transport._sock)]
        return self

    def _new(self):
        protocol = Noted()
        VARIABLE.set(protocol)  # so its context is gone, too, if the protocol is
        self.protocols.append(protocol)
        return protocol

    async def __aexit__(self, *_exc):
        for client in self.clients:
            client.close()
        self.server.close()


def test_a_server_knows_its_connections():
    """And forgets each one at its end, or when nobody has it any more."""

    async def main():
        async with Server(4) as of:
            known = of.server._clients
            assert set(known) == {protocol.transport for protocol in of.protocols}
            assert len(known) == 4
            of.protocols[0].transport.abort()
            await of.protocols[0].lost.wait()
            assert len(known) == 3
            of.clients[1].close()
            await of.protocols[1].lost.wait()
            assert len(known) == 2
            loop = asyncio.get_running_loop()
            loop._remove_reader(of.protocols[2].transport._sock_fd)
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                del of.protocols[2].transport
            assert len(known) == 1
            of.server.close()
            closed = asyncio.ensure_future(of.server.wait_closed())
            await asyncio.sleep(0)
            assert not closed.done()
            of.server.close_clients()
            await of.protocols[3].lost.wait()
            await closed
            assert len(known) == 0
            assert list(loop._transports.values()) == []

    assert run(nbloop.new_event_loop, main) == (None, [])


@pytest.mark.usefixtures("no_collections")
def test_a_connection_that_the_collector_takes_ends_the_wait():
    """Its references are dead by then, and nobody finds it in a container by itself."""

    class Forgets(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport  # a cycle
            transport.pause_reading()  # and so the loop does not have it
            made.append(None)

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Forgets, "127.0.0.1", 0)
        with await asyncio.to_thread(socket.create_connection, server.sockets[0].getsockname()) as client:
            async with asyncio.timeout(PATIENCE):
                while not made or len(asyncio.all_tasks()) > 1:  # asyncio accepts in a task, which has the transport
                    await asyncio.sleep(0.001)
            server.close()
            closed = asyncio.ensure_future(server.wait_closed())
            await asyncio.sleep(0)
            with warnings.catch_warnings(record=True) as warned:  # the socket may be taken before its transport
                warnings.simplefilter("always", ResourceWarning)
                gc.collect()
            assert any("unclosed transport" in str(one.message) for one in warned)
            await asyncio.wait_for(closed, PATIENCE)
            assert not loop._transports.data
            assert await asyncio.to_thread(client.recv, 1) == b""

    for factory in (asyncio.new_event_loop, nbloop.new_event_loop):
        made = []
        assert run(factory, main) == (None, [])


def test_the_last_connection_that_is_forgotten_ends_the_wait():
    async def main():
        async with Server(1) as of:
            loop = asyncio.get_running_loop()
            of.server.close()
            closed = asyncio.ensure_future(of.server.wait_closed())
            await asyncio.sleep(0)
            loop._remove_reader(of.protocols[0].transport._sock_fd)
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                del of.protocols[0].transport
            await closed

    assert run(nbloop.new_event_loop, main) == (None, [])


def test_the_table_of_transports_follows_the_numbers():
    """A descriptor's number that is used again is the new transport's, whenever the old one goes."""

    async def main():
        loop = asyncio.get_running_loop()
        kept = []
        for _ in range(3):
            ours, theirs = socket.socketpair()
            with theirs:
                protocol = Noted()
                await loop.connect_accepted_socket(lambda of=protocol: of, ours)
                fd = protocol.transport._sock_fd
                kept.append(protocol.transport)
                assert loop._transports[fd] is protocol.transport
                with pytest.raises(RuntimeError, match="is used by transport"):
                    loop.add_reader(fd, print)
                with pytest.raises(RuntimeError, match="is used by transport"):
                    await loop.connect_accepted_socket(Noted, ours)
                protocol.transport.close()
                await protocol.lost.wait()

    for _, told in on_both(main).values():
        assert told == []


def idle(_protocol, _client):
    pass


def queued(protocol, _client):
    protocol.transport.write(b"one")
    protocol.transport.write(b"two")


def waiting(protocol, _client):
    protocol.transport.write(b"x" * 10_000_000)
    assert protocol.transport.get_write_buffer_size() > 0


def half_closed(protocol, _client):
    protocol.transport.write_eof()


def paused(protocol, client):
    protocol.transport.pause_reading()
    client.sendall(b"unread")


def asked(protocol, _client):
    protocol.transport.get_extra_info("socket").getsockname()


STATES = [idle, queued, waiting, half_closed, paused, asked]


@pytest.mark.parametrize("end", ["close", "abort", "peer", "reset"])
@pytest.mark.parametrize("state", STATES, ids=[state.__name__ for state in STATES])
def test_connections_are_gone_without_a_collection(state, end):
    """No protocol, transport, socket, buffer or context is left, whatever was in flight and whichever end closes."""

    async def main():
        was = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            async with Server(20) as of:
                for protocol, client in zip(of.protocols, of.clients, strict=True):
                    state(protocol, client)
                    if end in ("close", "abort"):
                        getattr(protocol.transport, end)()
                    elif end == "reset":
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
                    client.close()
                    if state is paused and end in ("peer", "reset"):
                        protocol.transport.resume_reading()
                protocol = client = None
                for lost in [protocol.lost for protocol in of.protocols]:
                    await lost.wait()
                of.protocols.clear()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                return [one for one in (ref() for ref in of.gone) if one is not None]
        finally:
            if was:
                gc.enable()

    left, told = run(nbloop.new_event_loop, main)
    assert told == []
    assert left == []


def test_a_writer_of_several_buffers_makes_its_buffer_when_it_needs_one():
    """All three ways in which bytes come to wait; asyncio's own methods go on with them."""

    async def main():
        loop = asyncio.get_running_loop()
        received = []
        for way in ("write", "writelines", "bytearray"):
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            protocol = Noted()
            transport, _ = await loop.connect_accepted_socket(lambda of=protocol: of, ours)
            size = 3_000_000
            if way == "writelines":
                transport.writelines([b"a" * size, b"b" * size])
            elif way == "write":
                transport.write(b"a" * size)
                transport.write(b"b" * size)
            else:
                transport.write(bytearray(b"a" * size))
                transport.write(memoryview(b"b" * size))
            assert transport.get_write_buffer_size() > 0
            transport.close()
            whole = bytearray()
            while part := await loop.sock_recv(theirs, 1 << 20):
                whole += part
            await protocol.lost.wait()
            theirs.close()
            received.append(bytes(whole) == b"a" * size + b"b" * size)
        return received

    results = on_both(main)
    assert results["nbloop"] == results["asyncio"] == ([True] * 3, [])
