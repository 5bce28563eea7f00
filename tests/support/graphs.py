"""Random graphs of public objects, tied into cycles by objects whose finalisers call everything that they can reach.

``python -m tests.support.graphs FIRST COUNT`` builds one graph for each seed, drops it and collects. It fails if a call
raises what is not documented, or if a state, a descriptor or a thread is left. It is a process of its own, because what
it looks for ends in a crash or in a call that does not return.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import queue
import random
import socket
import sys
import warnings
from collections.abc import Callable
from concurrent import futures
from typing import Any, ClassVar

import nbloop
from nbloop import js
from nbloop.kernels.state.state import State
from nbloop.testing import VirtualClock

# asyncio's own refusals are RuntimeErrors; an attribute is missing of an object that `__init__` has not seen
EXPECTED = (
    *(nbloop.NbloopError, TypeError, ValueError, LookupError, OSError, RuntimeError, AttributeError),
    *(js.AbortError, asyncio.InvalidStateError, asyncio.CancelledError, futures.InvalidStateError),
    *(queue.ShutDown, asyncio.QueueShutDown, asyncio.QueueEmpty, asyncio.QueueFull),
)
# What waits for something that nobody does, begins threads or processes, writes files, or changes the process.
# `detach` of a socket leaves its number to the caller.
LEFT_OUT = {
    *("start", "run", "run_forever", "run_until_complete", "result", "exception", "wait", "call", "map"),
    *("promisify", "watch", "dump", "dump_on", "advance", "add_signal_handler", "create_task", "detach"),
    *("run_in_executor", "executor", "core", "subprocess_exec", "subprocess_shell", "sock_connect"),
    *("shutdown_default_executor", "set_exception_handler"),
    *("setblocking", "settimeout"),  # with which a socket waits
    *("put_wait", "get_wait", "print_stack"),
}
HANGS = 45  # seconds, below those that the test gives this process
ATTEMPTS: tuple[tuple[Any, ...], ...] = ((), (len,), (0.0, len), (1,), ([len],), (None, None))


class Knot:
    """Refers to any objects, can be any callback, and calls what they have when it is finalised."""

    calls = 0
    unexpected: ClassVar[list[str]] = []

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.links: list[object] = []

    def __call__(self, *_args: object) -> None:
        """As a callback."""

    def __del__(self) -> None:
        for one in self.links:
            names = [n for n in dir(type(one)) if not n.startswith("_") and n not in LEFT_OUT]
            if isinstance(one, nbloop.LoopExecutor):
                names.remove("shutdown")  # which waits
            self.dice.shuffle(names)
            for name in [None, *names[:12]]:
                try:
                    self._try(one if name is None else getattr(one, name))
                except EXPECTED:
                    continue
                except BaseException as error:
                    Knot.unexpected.append(f"{type(one).__name__}.{name}: {error!r}")

    def _try(self, found: Any) -> None:
        if not callable(found) or isinstance(found, (type, Knot)):
            return
        Knot.calls += 1
        for args in ATTEMPTS:
            try:
                found(*args[: self.dice.randrange(3)])
            except EXPECTED:
                continue
            return


def objects(dice: random.Random, knot: Callable[[], Knot]) -> list[object]:
    """A loop and all that is made of it, some of it at work."""
    loop = nbloop.Loop(
        on_error=knot(),
        on_overload=knot(),
        auto_exit=dice.random() < 0.3,
        metrics=dice.choice([True, False]),
        recorder=dice.choice([None, 64]),
        debug=dice.random() < 0.2,
        ingress_limit=dice.choice([None, 8]),
        fast_path_mode=dice.choice([nbloop.FastPathMode.AUTO, nbloop.FastPathMode.DISABLED]),
    )
    made: list[object] = [VirtualClock(loop)] if dice.random() < 0.3 else []
    handle, view = loop.producer(), js.JS(loop, on_unhandled_rejection=knot())
    promise, resolve, reject = view.with_resolvers()
    controller, target = js.AbortController(), js.EventTarget()
    target.add_event_listener("a", knot())
    controller.signal.on_abort(knot())
    executor = nbloop.LoopExecutor(loop)
    made += [loop, handle, view, promise, resolve, reject, controller, controller.signal, target, executor]
    made += [
        promise.then(knot(), knot()),
        promise.finally_(knot()),
        view.all([promise, view.sleep(1)]),
        promise.future(),
    ]
    made += [view.any([promise]), view.race([promise]), view.all_settled([promise]), view.performance, loop.recorder]
    channel = loop.channel(
        [("n", "i8")],
        knot(),
        max_delay=dice.choice([None, 1.0]),
        on_full=dice.choice(["raise", "drop_new", "drop_old"]),
    )
    producer = channel.producer()
    made += [channel, producer, channel.put, producer.put_many, channel.native, loop.channel([("n", "f4")])]
    for put in (channel.put, producer.put):
        if dice.random() < 0.6:
            put(7)
    made += [loop.submit, loop.cancel_timer, loop.schedule_timer, handle.submit, handle.submit_many, promise.then]
    made += [loop.schedule_microtask, loop.schedule_immediate, loop.alive, loop.cancel_timers, view.set_timeout]
    if dice.random() < 0.3:
        made.append(loop.watch(1000))
    if dice.random() < 0.5:
        pair = socket.socketpair()
        for end in pair:
            end.setblocking(False)  # finalisers call accept() too
        loop.register_fd(pair[0].fileno(), nbloop.IOEvents.READ, knot())
        made += pair
    for put in (loop.submit, handle.submit, loop.schedule_microtask, loop.schedule_next_tick, loop.schedule_close):
        if dice.random() < 0.6:
            put(knot(), knot())
    for put in (loop.schedule_immediate, loop.submit_internal, loop.schedule_checkpoint_end, executor.submit):
        if dice.random() < 0.6:
            put(knot())
    for _ in range(dice.randint(0, 5)):
        loop.schedule_timer(dice.choice([0, 1, 1e6]), knot())
    if dice.random() < 0.3:
        loop.submit(loop.stop)
        loop.run()
    if dice.random() < 0.2:
        reject(knot())
    elif dice.random() < 0.3:
        resolve(knot())
    return made


class Tied(asyncio.Protocol):
    """The protocol of a connection or of datagrams, tied to a knot."""

    def __init__(self, knot: Knot) -> None:
        self.knot = knot

    def datagram_received(self, data: bytes, address: object) -> None:
        """As of a DatagramProtocol."""


async def connected(knot: Callable[[], Knot]) -> list[object]:
    """A connection with both ends, something on its way between them, datagrams, and a queue."""
    loop = asyncio.get_running_loop()
    made: list[object] = [nbloop.aio.Queue(3), loop.create_task(asyncio.sleep(100))]
    ends = socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    for one in (*ends, udp):
        one.setblocking(False)
    for end in ends:
        transport, protocol = await loop.create_connection(lambda: Tied(knot()), sock=end)
        transport.write(b"1")
        made += [transport, protocol, transport.write, transport.get_extra_info("socket")]
    endpoint, _ = await loop.create_datagram_endpoint(lambda: Tied(knot()), sock=udp)  # type: ignore[arg-type]
    endpoint.sendto(b"2", udp.getsockname())
    return [*made, endpoint, endpoint.sendto]


def graph(seed: int, kept: list[object]) -> None:
    """Build one, and drop it; but perhaps for one object, which goes later."""
    dice = random.Random(seed)
    knots = [Knot(dice) for _ in range(dice.randint(2, 6))]

    def knot() -> Knot:
        return dice.choice(knots)

    made = [one for _ in range(dice.randint(1, 2)) for one in objects(dice, knot)]
    if dice.random() < 0.3:
        aio = nbloop.new_event_loop()
        made += [aio, aio.call_soon(knot()), aio.call_later(100, knot()), aio.create_future()]
        if dice.random() < 0.7:
            made += aio.run_until_complete(connected(knot))
    if dice.random() < 0.3:
        group = nbloop.LoopGroup(2)
        group.broadcast(knot())
        made += [group, *group.loops]
    for one in made:
        knot().links.append(one)
        if isinstance(one, (nbloop.Loop, nbloop.Producer, js.JS, js.EventTarget)):
            one.back = knot()  # type: ignore[union-attr]
    for each in knots:
        each.links.append(knot())
        dice.shuffle(each.links)
    if dice.random() < 0.5:
        kept.append(dice.choice(made))


def left() -> tuple[int, int, int]:
    """States, descriptors and threads."""
    states = sum(isinstance(one, State) for one in gc.get_objects())
    return states, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def main(first: int, count: int) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(HANGS, exit=True)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda what: Knot.unexpected.append(f"unraisable: {what.exc_value!r} in {what.object!r}")
    gc.disable()
    kept: list[object] = []
    before = None
    for seed in range(first, first + count):
        graph(seed, kept)
        gc.collect()
        if seed % 3 == 0:
            kept.clear()
        assert not Knot.unexpected, (seed, Knot.unexpected)
        if before is None:  # what the first one has imported stays
            kept.clear()
            while gc.collect():
                pass
            before = left()
    kept.clear()
    while gc.collect():  # a finaliser may make new cycles
        pass
    assert before is not None
    after = left()
    assert all(now <= then for now, then in zip(after, before, strict=True)), f"left behind: {after} of {before}"
    print(f"{count} graphs, {Knot.calls} calls in finalisers")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
