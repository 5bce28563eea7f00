"""The `sock_*` methods of `nbloop.aio`: the same as asyncio's, except that a call which is cancelled takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

import nbloop
from tests.support.waiting import PATIENCE

MOST_TURNS = 8  # after how many turns at most a call that was cancelled had taken what came


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


async def cancelled_after(turns: int, task: asyncio.Task) -> bool:
    """Cancel a task after that many turns; whether it has ended without a result."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return task.cancelled()


@pytest.mark.parametrize("turns", range(MOST_TURNS))
def test_a_cancelled_accept_loses_no_connection(listener, turns):
    """Whenever it is cancelled, each connection goes to a call that returns, and stays open."""

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(loop.sock_accept(listener))
        await asyncio.sleep(0)
        with socket.create_connection(listener.getsockname()) as client:
            if await cancelled_after(turns, task):
                conn, address = await asyncio.wait_for(loop.sock_accept(listener), PATIENCE)
            else:
                conn, address = task.result()
            with conn:
                assert address == client.getsockname()
                client.sendall(b"heard")
                assert await asyncio.wait_for(loop.sock_recv(conn, 9), PATIENCE) == b"heard"

    nbloop.run(main())


RECEIVE = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 9),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(9)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 9),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(9)),
}


@pytest.mark.parametrize("turns", range(MOST_TURNS))
@pytest.mark.parametrize("receive", RECEIVE)
def test_a_cancelled_receive_loses_no_bytes(pair, receive, turns):
    """Whenever it is cancelled, the bytes are in the socket, or the call returns them."""
    ours, theirs = pair

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(RECEIVE[receive](loop, ours))
        await asyncio.sleep(0)
        theirs.send(b"here")
        if await cancelled_after(turns, task):
            assert ours.recv(9) == b"here"
        with pytest.raises(BlockingIOError):
            ours.recv(9)

    nbloop.run(main())


def test_a_call_that_is_no_longer_awaited_watches_nothing(pair):
    """A cancelled or finished call leaves no reader; one whose reader was replaced leaves the new one."""
    ours, theirs = pair

    async def main():
        loop = asyncio.get_running_loop()
        waits = asyncio.create_task(loop.sock_recv(ours, 1))
        await asyncio.sleep(0)
        assert loop.core.what_keeps_alive().get("descriptors") == 1
        await cancelled_after(0, waits)
        assert "descriptors" not in loop.core.what_keeps_alive()
        assert not loop.remove_reader(ours)

        waits = asyncio.create_task(loop.sock_recv(ours, 1))
        await asyncio.sleep(0)
        told = loop.create_future()
        loop.add_reader(ours, lambda: told.done() or told.set_result(None))
        await cancelled_after(0, waits)
        theirs.send(b"x")
        await asyncio.wait_for(told, PATIENCE)
        assert loop.remove_reader(ours)

    nbloop.run(main())


def test_two_tasks_that_accept_share_what_comes(listener):
    """Somebody else may take a connection first; who then finds none waits on."""

    async def main():
        loop = asyncio.get_running_loop()
        with listener.dup() as other:
            tasks = [asyncio.create_task(loop.sock_accept(one)) for one in (listener, other)]
            await asyncio.sleep(0)
            with socket.create_connection(listener.getsockname()):
                done, waiting = await asyncio.wait(tasks, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                assert len(done) == len(waiting) == 1
                with socket.create_connection(listener.getsockname()):
                    done = [await asyncio.wait_for(task, PATIENCE) for task in tasks]
        for conn, _address in done:
            conn.close()

    nbloop.run(main())


# --- beside asyncio


async def program(loop, ours, theirs, listener):
    """Calls of each kind, in order; returns what each gave or raised."""
    seen = []

    async def does(name, call):
        try:
            seen.append((name, await asyncio.wait_for(call(), PATIENCE)))
        except Exception as error:
            seen.append((name, type(error), str(error)))

    async def later(call, then):
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        then()
        return await task

    into = bytearray(5)
    await does("recv now", lambda: (theirs.send(b"now"), loop.sock_recv(ours, 9))[1])
    await does("recv later", lambda: later(lambda: loop.sock_recv(ours, 2), lambda: theirs.send(b"later")))
    await does("rest", lambda: loop.sock_recv(ours, 9))
    await does("into", lambda: later(lambda: loop.sock_recv_into(ours, into), lambda: theirs.send(b"abc")))
    seen.append(bytes(into))
    await does("from", lambda: later(lambda: loop.sock_recvfrom(ours, 9), lambda: theirs.send(b"from")))
    view = memoryview(into)[1:]
    await does("from into", lambda: later(lambda: loop.sock_recvfrom_into(ours, view), lambda: theirs.send(b"wxyz")))
    await does("from into 2", lambda: later(lambda: loop.sock_recvfrom_into(ours, into, 2), lambda: theirs.send(b"12")))
    seen.append(bytes(into))
    for n in (0, -1, "1", None):
        await does(f"recv {n!r}", lambda n=n: loop.sock_recv(ours, n))
    await does("sendall", lambda: loop.sock_sendall(theirs, b"all"))
    await does("recv all", lambda: loop.sock_recv(ours, 9))
    with socket.socket() as client:
        client.setblocking(False)
        accepting = asyncio.create_task(loop.sock_accept(listener))
        await does("connect", lambda: loop.sock_connect(client, listener.getsockname()))
        conn, address = await accepting
        seen.append((type(conn), conn.gettimeout(), address == client.getsockname()))
        client.close()
        await does("end", lambda: loop.sock_recv(conn, 9))
        conn.close()
        await does("closed", lambda: loop.sock_recv(conn, 9))
        await does("not a listener", lambda: loop.sock_accept(ours))
    used = ours.dup()
    _reader, writer = await asyncio.open_connection(sock=used)
    await does("a transport's", lambda: loop.sock_recv(used, 9))
    seen[-1] = seen[-1][:2]  # its message names the transport
    writer.close()
    await writer.wait_closed()
    loop.set_debug(True)
    theirs.setblocking(True)
    for name, receive in RECEIVE.items():
        await does(f"blocking {name}", lambda receive=receive: receive(loop, theirs))
    await does("blocking accept", lambda: loop.sock_accept(theirs))
    loop.set_debug(False)
    return seen


def test_beside_asyncio():
    """Each call gives or raises what it does on asyncio."""
    seen = []
    for make in (asyncio.SelectorEventLoop, nbloop.new_event_loop):
        ours, theirs = socket.socketpair()
        with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener, asyncio.Runner(loop_factory=make) as run:
            for one in (ours, theirs, listener):
                one.setblocking(False)
            loop = run.get_loop()
            seen.append(run.run(program(loop, ours, theirs, listener)))
    for theirs, ours in zip(*seen, strict=True):
        assert ours == theirs
