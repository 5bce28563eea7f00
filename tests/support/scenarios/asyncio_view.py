"""asyncio's view of a loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import nbloop
from nbloop import EventLoop
from tests.support.world import World

from .scenario import Count, Steps, of_ctrl_c, scenario


def forgotten_by_asyncio() -> None:
    """asyncio's own runner and `run_forever` are Python: interrupted, they leave these behind, with any loop."""
    asyncio._set_running_loop(None)
    asyncio.set_event_loop(None)
    sys.set_asyncgen_hooks(None, None)
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(world: World, main: Callable[[], Any]) -> Steps:
    """A program runs to its end or not; the next one runs. Of Ctrl-C only, for which asyncio cancels the program: the
    exception of another handler in the middle of its own Python can leave a task that no loop resumes.
    """
    made: list[EventLoop] = []

    def factory() -> EventLoop:
        made.append(world.to_go(EventLoop()))
        return made[-1]

    def call() -> None:
        with contextlib.suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    yield call
    forgotten_by_asyncio()
    for loop in made:
        loop._thread_id = None  # as above
        loop.close()
        world.to_go(loop.core)
    assert nbloop.run(asyncio.sleep(0, 1)) == 1


@scenario
@of_ctrl_c
def run_sleeping(world: World) -> Steps:
    """Timers and tasks."""

    async def main() -> None:
        await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.001))

    return _run(world, main)


@scenario
@of_ctrl_c
def run_streams(world: World) -> Steps:
    """A connection over our transports."""

    async def main() -> None:
        one, other = socket.socketpair()
        with other:
            reader, writer = await asyncio.open_connection(sock=one)
            writer.write(b"x")
            await writer.drain()
            other.send(b"y")
            assert await reader.read(1) == b"y"
            writer.close()
            await writer.wait_closed()

    return _run(world, main)


class Datagram(asyncio.DatagramProtocol):
    """Completes a future with the first datagram. Not a class of the scenario's own: 3.13t would keep it for ever, once
    there has been a second thread, and all that its methods refer to.
    """

    def __init__(self, came: asyncio.Future[Any]) -> None:
        self.came = came

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.came.done():
            self.came.set_result((data, addr))


@scenario
@of_ctrl_c
def run_datagrams(world: World) -> Steps:
    """An endpoint over our transports."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        came = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(partial(Datagram, came), ("127.0.0.1", 0))
        address = transport.get_extra_info("sockname")
        transport.sendto(b"x", address)
        assert await came == (b"x", address)
        transport.close()

    return _run(world, main)


@scenario
@of_ctrl_c
def run_queue(world: World) -> Steps:
    """Getters and putters wait in turn."""

    async def main() -> None:
        queue = nbloop.aio.Queue[int](1)
        got = await asyncio.gather(*(queue.put(number) for number in range(3)), *(queue.get() for _ in range(3)))
        assert got[3:] == [0, 1, 2]

    return _run(world, main)


def _idle(world: World, call: Callable[[EventLoop, Count], object]) -> Steps:
    """A call of a loop that does not run; it runs and closes afterwards."""
    loop, count = world.to_go(EventLoop()), Count()
    world.to_go(loop.core)
    yield lambda: call(loop, count)
    forgotten_by_asyncio()
    loop.call_soon(count.add)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert count.calls in (1, 2)
    loop.close()


@scenario
def call_later(world: World) -> Steps:
    """Scheduled, or not, where Python does it: the kernel takes no bool, and has no place for an interruption."""
    return _idle(world, lambda loop, count: loop.call_later(False, count.add))


@scenario
def cancel_later(world: World) -> Steps:
    """Cancelled, or not, where Python does it: a timer that Python has made."""
    return _idle(world, lambda loop, count: loop.call_later(False, count.add).cancel())


def _watches(world: World, *, writer: bool) -> Steps:
    """The loop watches for what its table says, goes on calling the writer, and calls the next reader."""
    loop = world.to_go(EventLoop())
    one, other = socket.socketpair()
    with one, other:
        if writer:
            loop.add_writer(one, int)

        def call() -> None:
            loop.add_reader(one, int)
            loop.remove_reader(one)

        yield call
        assert not writer or loop._selector.get_key(one).data[1] is not None
        loop.add_reader(one, loop.stop)
        other.send(b"x")
        loop.run_forever()
        interest = loop.core._descriptors.table._interests[one.fileno()]
        assert interest == loop._selector.get_key(one).events
        loop.remove_reader(one)
        loop.remove_writer(one)
        loop.close()


@scenario
def add_and_remove_reader(world: World) -> Steps:
    return _watches(world, writer=False)


@scenario
def reader_beside_a_writer(world: World) -> Steps:
    return _watches(world, writer=True)


@scenario
def add_and_remove_a_signal(world: World) -> Steps:
    """The signal is given back."""
    loop = world.to_go(EventLoop())

    def call() -> None:
        loop.add_signal_handler(signal.SIGURG, int)
        loop.remove_signal_handler(signal.SIGURG)

    yield call
    loop.add_signal_handler(signal.SIGURG, int)
    loop.close()
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


@scenario
def event_loop(world: World) -> Steps:
    """What is half made leaves nothing."""
    yield lambda: world.to_go(EventLoop())


@scenario
def close_event_loop(world: World) -> Steps:
    """It is closed, or can be."""
    loop = world.to_go(EventLoop())
    world.to_go(loop.core)
    loop.call_soon(int)
    yield loop.close
    loop.close()
    loop.core.close()
