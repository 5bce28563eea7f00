"""What belongs to one asyncio loop and is used on another: an error at once, which names it and both loops."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
import threading
import types
from asyncio import futures

import pytest

import nbloop
from nbloop import js
from nbloop.aio import transports
from tests.support.waiting import PATIENCE, wait_for

KINDS = {"nbloop": nbloop.new_event_loop, "asyncio": asyncio.SelectorEventLoop}


@pytest.fixture(params=[("nbloop", "nbloop"), ("asyncio", "nbloop"), ("nbloop", "asyncio")], ids="-".join)
def loops(request):
    """The owner's and another one."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(KINDS[kind]())) for kind in request.param]


@pytest.fixture
def two():
    one, two = nbloop.new_event_loop(name="one"), nbloop.new_event_loop(name="two")
    with contextlib.closing(one), contextlib.closing(two):
        yield one, two


def named(loop):
    return re.escape(repr(loop).partition(" running=")[0] if isinstance(loop, nbloop.EventLoop) else f"{id(loop):#x}")


def both(owner, here):
    """The words of a message that names both."""
    return rf"belongs to .*{named(owner)}.*, and this is .*{named(here)}"


def on(loop, function, *args):
    """What `function(*args)` returns or raises, called, and awaited if that can be, in a task of `loop`."""

    async def main():
        result = function(*args)
        return await asyncio.wait_for(result, PATIENCE) if hasattr(result, "__await__") else result

    return loop.run_until_complete(main())


def test_a_loop_says_its_name(two):
    assert repr(two[0]) == "<nbloop.EventLoop one running=False closed=False debug=False>"
    two[0].set_debug(True)
    assert on(two[0], repr, two[0]) == "<nbloop.EventLoop one running=True closed=False debug=True>"


# --- awaitables


async def forever():
    await asyncio.get_running_loop().create_future()


async def directly(future):
    return await future


async def deep(future):
    return await directly(future)


async def in_a_generator(future):
    async def generator():
        yield await future

    async for one in generator():
        return one


async def in_a_generator_that_is_sent_to(future):
    async def generator():
        yield await (yield)

    one = generator()
    await one.asend(None)
    return await one.asend(future)


async def with_a_default(future):
    async def generator():
        yield await future

    return await anext(generator(), None)


async def by_yield_from(future):
    @types.coroutine
    def generator():
        return (yield from future)

    return await generator()


class Awaits:
    def __init__(self, future):
        self.future = future

    def __await__(self):
        return directly(self.future).__await__()


async def in_a_time_out(future):
    async with asyncio.timeout(PATIENCE):
        await future


WAYS = [
    *(directly, deep, in_a_generator, in_a_generator_that_is_sent_to, with_a_default, by_yield_from, Awaits),
    *(in_a_time_out, asyncio.shield, asyncio.gather),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", ["future", "task", "python"])
def test_a_future_of_another_loop(loops, kind, way, debug):
    """contract: whatever lies between the task and the future."""
    owner, here = loops
    here.set_debug(debug)
    future = {
        "future": owner.create_future,
        "task": lambda: owner.create_task(forever()),
        "python": lambda: futures._PyFuture(loop=owner),
    }[kind]()
    raised: type[Exception] = RuntimeError
    if way is asyncio.gather and sys.version_info >= (3, 14):  # asyncio refuses before there is a task
        raised, words = ValueError, "a different loop"
    elif not isinstance(here, nbloop.EventLoop):  # asyncio's loop has asyncio's message
        words = "attached to a different loop"
    elif way in (asyncio.gather, asyncio.shield):  # they make a future of the same loop
        words = rf"^Task .* got Future .* attached to a different loop: it {both(owner, here)}"
    else:
        words = rf"{re.escape(repr(future)[:20])}.* attached to a different loop: it {both(owner, here)}"
    owner.run_until_complete(asyncio.sleep(0))
    with pytest.raises(raised, match=words) as error:
        on(here, way, future)
    assert str(error.value).count("different loop") == 1
    future.cancel()
    owner.run_until_complete(asyncio.sleep(0))


@pytest.mark.parametrize("wrong", [1, "self"])
def test_other_errors_of_a_step_are_asyncios(two, wrong):
    """asyncio gives a task other errors to raise in the same way."""

    async def bad():
        await yields()

    @types.coroutine
    def yields():
        yield wrong

    async def waits_for_itself():
        await asyncio.current_task()

    with pytest.raises(RuntimeError, match=r"bad yield|await on itself") as error:
        on(two[0], waits_for_itself if wrong == "self" else bad)
    assert "one" not in str(error.value).replace("None", "").replace("done", "")


def test_it_is_caught_where_it_is_awaited(two):
    owner, here = two
    future = owner.create_future()

    async def main():
        for _ in range(2):
            with pytest.raises(RuntimeError, match=both(owner, here)):
                await future
        await asyncio.sleep(0)
        return "goes on"

    assert here.run_until_complete(main()) == "goes on"
    owner.call_soon(future.set_result, "is as good as before")
    assert on(owner, directly, future) == "is as good as before"


def test_a_subclass_with_its_own_call_soon():
    class Own(nbloop.EventLoop):
        def call_soon(self, callback, *args, context=None):
            return super().call_soon(callback, *args, context=context)

    here, owner = Own(name="own"), nbloop.new_event_loop()
    with contextlib.closing(here), contextlib.closing(owner):  # noqa: SIM117 - the loops outlive the block
        with pytest.raises(RuntimeError, match=both(owner, here)):
            on(here, directly, owner.create_future())


# --- what tasks wait at


async def locked(lock):
    await lock.acquire()
    await lock.acquire()


async def notified(condition):
    async with condition:
        await condition.wait()


async def filled(queue):
    await queue.put(1)
    await queue.put(2)


PLACES = {
    "lock": (asyncio.Lock, locked),
    "event": (asyncio.Event, lambda event: event.wait()),
    "condition": (asyncio.Condition, notified),
    "semaphore": (lambda: asyncio.Semaphore(0), lambda semaphore: semaphore.acquire()),
    "bounded semaphore": (lambda: asyncio.BoundedSemaphore(1), locked),
    "barrier": (lambda: asyncio.Barrier(3), lambda barrier: barrier.wait()),
    "empty queue": (asyncio.Queue, lambda queue: queue.get()),
    "full queue": (lambda: asyncio.Queue(1), filled),
    "priority queue": (asyncio.PriorityQueue, lambda queue: queue.get()),
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_place_to_wait_of_another_loop(loops, kind):
    owner, here = loops
    make, use = PLACES[kind]
    one = make()

    async def waits():
        task = asyncio.ensure_future(use(one))  # it belongs to a loop from its first wait on
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    task = owner.run_until_complete(waits())
    if kind in ("condition", "barrier"):  # made of others, which may be the one that is named
        what = ""
    else:
        what = f"{id(one):#x}.*"
    with pytest.raises(RuntimeError, match=rf"{what}is bound to a different event loop: it {both(owner, here)}"):
        on(here, use, one)
    task.cancel()
    owner.run_until_complete(asyncio.wait([task]))


def test_a_place_belongs_to_the_loop_of_its_first_wait(two):
    lock = asyncio.Lock()
    for loop in two:
        on(loop, lock.acquire)
        lock.release()


# --- transports


@contextlib.contextmanager
def connection(loop):
    """A stream's writer over `loop`, and the socket of its peer."""
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    _, writer = on(loop, lambda: asyncio.open_connection(sock=ours))
    try:
        yield writer, peer
    finally:
        writer.transport.abort()
        loop.run_until_complete(asyncio.sleep(0))
        peer.close()


USES = {
    "write": lambda writer: writer.transport.write(b"x"),
    "much": lambda writer: writer.transport.write(bytes(1 << 20)),
    "bytearray": lambda writer: writer.transport.write(bytearray(b"x")),
    "lines": lambda writer: writer.transport.writelines([b"x", b"y"]),
    "eof": lambda writer: writer.transport.write_eof(),
    "writer": lambda writer: writer.write(b"x"),
    "writer's lines": lambda writer: writer.writelines([b"x"]),
}


@pytest.mark.skipif(not transports.KERNELS_READ, reason="asyncio's transports, which check nothing")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("state", ["plain", "low mark", "waits", "debug"])
@pytest.mark.parametrize("other", KINDS)
def test_a_transport_of_another_loop(use, state, other):
    owner = nbloop.new_event_loop(name="owner")
    with contextlib.closing(owner), contextlib.closing(KINDS[other]()) as here, connection(owner) as (writer, peer):
        if state == "low mark":
            writer.transport.set_write_buffer_limits(high=10)
        elif state == "waits":
            on(owner, lambda: writer.transport.write(bytes(1 << 22)))
        owner.set_debug(state == "debug")
        words = (
            rf"StreamTransport fd={writer.get_extra_info('socket').fileno()} .* different loop: it {both(owner, here)}"
        )
        with pytest.raises(RuntimeError, match=words):
            on(here, USES[use], writer)
        if state != "waits":
            with pytest.raises(BlockingIOError):
                peer.recv(1)
            on(owner, lambda: writer.transport.write(b"mine"))
            assert peer.recv(100) == b"mine"


def test_where_no_loop_runs_a_transport_may_be_used(two):
    with connection(two[0]) as (writer, peer):
        writer.write(b"x")
        assert peer.recv(100) == b"x"


@pytest.mark.skipif(not transports.KERNELS_READ, reason="asyncio's transports, which check nothing")
def test_another_loop_may_close_it(two):
    """contract: to end a connection is never refused."""
    owner, here = two
    with connection(owner) as (writer, peer):
        on(here, writer.close)
        on(owner, writer.wait_closed)
        assert peer.recv(1) == b""


@pytest.mark.skipif(not transports.KERNELS_READ, reason="asyncio's transports, which check nothing")
def test_a_thread_without_a_loop_writes_after_what_was_written():
    """It is as thread-safe as asyncio's, but no bytes of one thread overtake those of another that came first."""
    with contextlib.closing(nbloop.new_event_loop()) as loop, connection(loop) as (writer, peer):

        def body():
            writer.write(b"first")
            thread = threading.Thread(target=writer.write, args=(b"second",))
            thread.start()
            thread.join(PATIENCE)

        on(loop, body)
        assert peer.recv(100) == b"firstsecond"


# --- between loops on threads of their own


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.filterwarnings("ignore:.*the GIL is on:RuntimeWarning")
def test_workers_of_one_process():
    """contract: the names in the message are those of the workers' loops."""
    found, met, told = [], threading.Event(), threading.Event()

    async def main(worker):
        if worker.primary:
            found.append(worker.loop.create_future())
            met.set()
            await asyncio.to_thread(wait_for, told)
            return
        await asyncio.to_thread(wait_for, met)
        try:
            with pytest.raises(RuntimeError, match=r"EventLoop web-0 running=True.*EventLoop web-1 running=True"):
                await asyncio.wait_for(found[0], PATIENCE)
        finally:
            told.set()

    nbloop.serve(main, loops=2, name="web")


@pytest.mark.parametrize("kind", KINDS)
def test_promises_and_queues_are_for_every_loop(kind):
    """contract: what nbloop itself makes may be awaited anywhere, and hangs nowhere."""
    queue = nbloop.aio.Queue()
    with nbloop.Loop() as core, contextlib.closing(KINDS[kind]()) as here:
        view = js.JS(core)
        promise, resolve, _ = view.with_resolvers()
        core.submit(resolve, 1)
        assert on(here, directly, promise) == 1
        core.submit(queue.put_nowait, 2)
        assert on(here, queue.get) == 2
