"""``async for records in channel``: in coroutines of asyncio and of `js.spawn`, with an end, and nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import threading
import weakref

import numpy as np
import pytest

import nbloop
from nbloop import LoopOverloadedError
from nbloop import channel as channel_module
from nbloop.js import JS, AbortController
from nbloop.kernels.base import layout
from nbloop.testing import VirtualClock
from tests.support.waiting import raises_elsewhere, wait_for

NUMBER = np.dtype([("n", "i8")])


class Asyncio:
    """An asyncio loop, whose core has the channels."""

    @contextlib.contextmanager
    def __call__(self):
        loop = nbloop.new_event_loop()
        try:
            yield loop.core, loop.run_until_complete
        finally:
            loop.close()

    sleep = staticmethod(lambda loop: asyncio.sleep(0))


class Spawned:
    """The JavaScript view of a loop."""

    @contextlib.contextmanager
    def __call__(self):
        loop = nbloop.Loop()
        js = JS(loop)

        def run(coroutine):
            promise = js.spawn(coroutine)
            promise.finally_(loop.stop)
            loop.run()
            return promise.result(0)

        try:
            yield loop, run
        finally:
            loop.close()

    sleep = staticmethod(lambda loop: JS(loop).sleep(0))


@pytest.fixture(params=[Asyncio(), Spawned()], ids=["asyncio", "js"])
def kind(request):
    """`with kind() as (loop, run):` a loop, and what runs a coroutine on it to its end; `kind.sleep(loop)`."""
    return request.param


async def take_all(channel):
    """The batches, as lists."""
    return [batch["n"].tolist() async for batch in channel]


def numbers(*values):
    return np.array([(value,) for value in values], NUMBER)


def test_what_is_put_is_taken(kind):
    """In order, in batches of up to max_batch, round the ring; then the end."""
    with kind() as (loop, run):
        channel = loop.channel(NUMBER, capacity=8, max_batch=3, on_full="wait")

        def produce():
            for n in range(20):
                channel.put(n)
            channel.shutdown()

        thread = threading.Thread(target=produce)
        thread.start()
        taken = run(take_all(channel))
        thread.join(30)
    assert [n for batch in taken for n in batch] == list(range(20))
    assert max(map(len, taken)) <= 3
    assert (channel.delivered, channel.batches, channel.dropped) == (20, len(taken), 0)


def test_one_after_another(kind):
    """Each record wakes a loop that sleeps; nothing is asked for in vain."""
    with kind() as (loop, run):
        channel = loop.channel(NUMBER)
        seen = threading.Semaphore(0)

        async def main():
            async for batch in channel:
                assert len(batch) == 1
                seen.release()

        def produce():
            for n in range(50):
                channel.put(n)
                assert seen.acquire(timeout=30)
            channel.shutdown()

        thread = threading.Thread(target=produce)
        thread.start()
        run(main())
        thread.join(30)
    assert channel.batches == 50


@pytest.mark.parametrize("on_full", ["raise", "drop_new", "drop_old", "wait"])
def test_a_slow_coroutine(kind, on_full):
    """contract: what is not taken waits in the ring, and on_full says what becomes of more."""
    with kind() as (loop, run):
        channel = loop.channel(NUMBER, capacity=4, on_full=on_full)

        async def main():
            taken = []
            async for batch in channel:
                taken += batch["n"].tolist()
                if taken[0] == batch["n"][0]:
                    for _ in range(5):
                        await kind.sleep(loop)
                    for n in range(1, 5):
                        channel.put(n)
                    assert channel.waiting() == 4
                    for _ in range(5):
                        await kind.sleep(loop)
                    if on_full == "raise":
                        with pytest.raises(LoopOverloadedError):
                            channel.put(5)
                    elif on_full != "wait":
                        channel.put(5)
                    channel.shutdown()
            return taken

        channel.put(0)
        taken = run(main())
    assert taken == {"drop_old": [0, 2, 3, 4, 5]}.get(on_full, [0, 1, 2, 3, 4])
    assert channel.dropped == (on_full.startswith("drop"))


def test_a_batch_belongs_to_the_coroutine(kind):
    """docs: it is an array of its own, which later records do not change."""
    with kind() as (loop, run):
        channel = loop.channel(NUMBER, capacity=2, on_full="wait")

        async def main():
            channel.put_many(numbers(1, 2))
            first = await anext(channel)
            channel.put_many(numbers(3, 4))
            second = await anext(channel)
            first["n"] += 10
            return first["n"].tolist(), second["n"].tolist()

        assert run(main()) == ([11, 12], [3, 4])


def test_max_delay(kind):
    """A batch that is not full waits for more, unless the coroutine comes later; a full one does not wait."""
    with kind() as (loop, run):
        channel = loop.channel(NUMBER, max_batch=4, max_delay=0.02)

        async def main():
            now = loop.now
            started = now()
            loop.submit(lambda: [channel.put(n) for n in range(2)])
            batch = await anext(channel)
            assert now() - started >= 0.02
            channel.put_many(numbers(*range(9)))
            return [len(batch), *[len(await anext(channel)) for _ in range(3)]]

        assert run(main()) == [2, 4, 4, 1]


def test_shutdown(kind):
    """contract: put raises ShutDown; what was accepted is taken; again does nothing."""
    with kind() as (loop, run):
        channel = loop.channel(NUMBER)
        channel.put(1)
        channel.shutdown()
        channel.shutdown()
        for refused in (lambda: channel.put(2), lambda: channel.put_many(numbers(2))):
            with pytest.raises(queue.ShutDown, match=channel.name):
                refused()
        assert run(take_all(channel)) == [[1]]
        assert run(take_all(channel)) == []


def test_shutdown_while_it_waits(kind):
    with kind() as (loop, run):
        channel = loop.channel(NUMBER)
        loop.submit(loop.submit, channel.shutdown)
        assert run(take_all(channel)) == []


def test_shutdown_of_a_channel_with_on_batch(make_loop):
    """It ends a ring: the channel's, or one producer's. An auto-exit loop, which closes and reopens, leaves it shut."""
    got = []
    loop = make_loop(auto_exit=True)
    channel = loop.channel(NUMBER, lambda records: got.extend(records["n"].tolist()), capacity=2, on_full="wait")
    producer = channel.producer()
    channel.put_many(numbers(1, 2))
    producer.put(3)
    with raises_elsewhere(queue.ShutDown, channel.put, 4):
        wait_for(lambda: channel._state.record["sleepers"])
        channel.shutdown()
    producer.put(5)
    loop.schedule_timer(0.01, lambda: producer.put(6))
    loop.run()
    assert sorted(got) == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("woken", [False, True])
def test_cancelled(kind, woken):
    """A coroutine that is cancelled while it waits, or in the turn in which it is woken, loses nothing."""
    with kind() as (loop, run):
        channel = loop.channel(NUMBER)
        taken = []

        async def take():
            async for batch in channel:
                taken.extend(batch["n"].tolist())

        async def main():
            if isinstance(kind, Asyncio):
                task = asyncio.create_task(take())
                cancel = task.cancel
            else:
                controller = AbortController()
                task = JS(loop).spawn(take(), signal=controller.signal)
                cancel = controller.abort
            for _ in range(3):
                await kind.sleep(loop)
            assert channel._taker.resume is not None
            if woken:
                channel.put(7)
            cancel()
            with pytest.raises(BaseException):  # noqa: B017, PT011 - each kind has its own
                await task
            assert channel._taker.resume is None
            channel.put(8)
            channel.shutdown()
            await take()

        run(main())
    assert taken == ([7, 8] if woken else [8])


def test_one_at_a_time(kind):
    with kind() as (loop, run):
        channel = loop.channel(NUMBER)

        async def main():
            if isinstance(kind, Asyncio):
                task = asyncio.create_task(take_all(channel))
            else:
                task = JS(loop).spawn(take_all(channel))
            for _ in range(3):
                await kind.sleep(loop)
            with pytest.raises(RuntimeError, match="another coroutine waits"):
                await anext(channel)
            channel.put(1)
            channel.shutdown()
            return await task

        assert run(main()) == [[1]]


def test_where_it_is_refused(kind, make_loop):
    """On another loop, without a coroutine, and of a channel that has an on_batch; producers have other rings."""
    with kind() as (loop, run):
        other = make_loop().channel(NUMBER)
        with pytest.raises(RuntimeError, match="coroutines of"):
            run(take_all(other))
        with pytest.raises(RuntimeError, match="coroutines of"):
            anext(loop.channel(NUMBER)).send(None)
        with pytest.raises(TypeError, match="has an on_batch"):
            run(take_all(loop.channel(NUMBER, print)))
        with pytest.raises(TypeError, match="no on_batch"):
            other.producer()


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_the_loops_end(make_loop, end):
    """contract: shutdown gives a coroutine that waits what was accepted, and cancels it; other records are dropped."""
    taken = []
    loop = make_loop()
    js = JS(loop)
    waited, left = loop.channel(NUMBER), loop.channel(NUMBER)

    async def main():
        async for batch in waited:
            taken.extend(batch["n"].tolist())

    left.put_many(numbers(1, 2, 3))
    js.spawn(main())

    def finish():
        waited.put(5)
        threading.Thread(target=loop.shutdown if end == "shutdown" else loop.close).start()
        wait_for(lambda: waited._state.record["handle"]["queue"]["tail"] < 0)
        with pytest.raises(nbloop.LoopTerminatedError):
            waited.put(6)

    loop.submit(finish)
    loop.run()
    wait_for(lambda: loop._lifecycle() == layout.TERMINATED)
    assert taken == ([5] if end == "shutdown" else [])
    wait_for(lambda: left.dropped == 3)
    assert waited.dropped == (0 if end == "shutdown" else 1)


def test_auto_exit_does_not_wait_for_records_that_nobody_takes(make_loop):
    loop = make_loop(auto_exit=True)
    channel = loop.channel(NUMBER)
    channel.put(1)
    loop.run()
    assert channel.dropped == 1


def test_auto_exit_waits_for_records_that_somebody_takes(make_loop):
    loop = make_loop(auto_exit=True)
    js = JS(loop)
    channel = loop.channel(NUMBER)
    taken = []

    async def main():
        async for batch in channel:
            taken.extend(batch["n"].tolist())

    js.spawn(main())
    loop.schedule_timer(0.01, lambda: channel.put(1))
    loop.run()
    assert taken == [1]


def test_it_is_forgotten(kind):
    """A channel whose coroutine has ended goes with its last reference, records or not."""
    with kind() as (loop, run):
        channel = loop.channel(NUMBER)

        async def main(channel):
            channel.put_many(numbers(1, 2))
            assert len(await anext(channel)) == 2
            channel.put(3)
            await kind.sleep(loop)
            await kind.sleep(loop)

        run(main(channel))
        state = weakref.ref(channel._state)
        del channel
        gc.collect()
        assert state() is None
        assert loop._state.channels == {}


def test_producers_against_the_end(kind):
    """Threads put as fast as they can while a coroutine takes, until one of them shuts the channel: what was accepted
    is taken, once, in order.
    """
    with kind() as (loop, run):
        channel = loop.channel(NUMBER, capacity=64, max_batch=16, on_full="wait")
        accepted = [0, 0, 0]

        def produce(who):
            with contextlib.suppress(queue.ShutDown):
                for n in range(2000):
                    channel.put(who * 10000 + n)
                    accepted[who] = n + 1
                    if who == 0 and n == 500:
                        channel.shutdown()

        threads = [threading.Thread(target=produce, args=(who,)) for who in range(3)]
        for thread in threads:
            thread.start()
        taken = [n for batch in run(take_all(channel)) for n in batch]
        for thread in threads:
            thread.join(30)
    for who in range(3):
        assert [n for n in taken if n // 10000 == who] == [who * 10000 + n for n in range(accepted[who])]


def test_a_batch_waits_once_for_its_delay(make_loop, turns):
    """It is announced when its time has come, and then taken, however long that takes."""
    loop = make_loop()
    clock = VirtualClock(loop)
    channel = loop.channel(NUMBER, max_batch=4, max_delay=1.0)
    taken = JS(loop).spawn(take_all(channel))
    turns(loop, 2)
    channel.put(7)
    turns(loop, 2)
    clock.advance(0.9)
    turns(loop, 2)
    assert channel.waiting() == 1
    clock.advance(0.2)
    turns(loop, 3)
    assert channel.waiting() == 0
    channel.shutdown()
    turns(loop, 3)
    assert taken.result(0) == [[7]]


def test_what_is_accepted_while_a_channel_is_shut_down_is_taken(make_loop, turns, monkeypatch):
    """A coroutine may find the ring empty between the two steps of `shutdown`, while the ring is still open."""
    loop = make_loop()
    channel = loop.channel(NUMBER)
    taken = JS(loop).spawn(take_all(channel))
    turns(loop, 2)
    closes = channel_module.channel_methods.channel_close

    class Late:
        @staticmethod
        def bind(state):
            channel._taker.ready()
            turns(loop, 3)
            channel.put(7)
            return closes.bind(state)

    with monkeypatch.context() as patch:
        patch.setattr(channel_module.channel_methods, "channel_close", Late)
        channel.shutdown()
    turns(loop, 4)
    assert taken.result(0) == [[7]]


def test_a_time_limit_beyond_all_clocks(make_loop):
    """It is one that never comes."""
    loop = make_loop()
    channel = loop.channel(NUMBER, print, capacity=2, on_full="wait", timeout=threading.TIMEOUT_MAX)
    until = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(channel._room), "wait", lambda _room, _count, until_: until.append(until_) or loop.close())
        channel.put(1)
        channel.put(2)
        with pytest.raises(nbloop.LoopTerminatedError):
            channel.put(3)
    assert until == [(1 << 63) - 1]
