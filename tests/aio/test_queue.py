"""`nbloop.aio.Queue`: against a naive twin, against `asyncio.Queue`, and histories of loops and threads together."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import threading
import time
import weakref
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import nbloop
from nbloop.aio import Queue
from nbloop.kernels.base import layout
from nbloop.kernels.channels import permits
from tests.support.checker import Operation, linearizable
from tests.support.waiting import PATIENCE, together, wait_for


async def settled():
    for _ in range(4):
        await asyncio.sleep(0)


def consistent(queue):
    """The invariants that the module states, when nobody holds the lock and nobody who was woken is on the way."""
    assert queue._reserved == queue._granted == 0
    assert not (queue._getters and queue._items)
    assert not queue._putters or len(queue._items) == queue.maxsize
    assert not queue.maxsize or len(queue._items) <= queue.maxsize
    word = queue._change(0)
    assert bool(word & layout.PERMITS_BUSY) == bool(queue._getters or queue._putters)
    assert permits.available_of(word) == word // layout.PERMITS_PLACE == len(queue._items)


# --- what asyncio.Queue does too


@pytest.mark.parametrize("make", [Queue, asyncio.Queue])
def test_as_asyncio(make):
    """One script over both."""

    async def main():
        said = []
        queue = make(2)
        said.append((queue.maxsize, queue.qsize(), queue.empty(), queue.full()))
        with pytest.raises(asyncio.QueueEmpty):
            queue.get_nowait()
        queue.put_nowait(1)
        await queue.put(2)
        said.append((queue.qsize(), queue.empty(), queue.full()))
        with pytest.raises(asyncio.QueueFull):
            queue.put_nowait(3)
        putter = asyncio.create_task(queue.put(3))
        await settled()
        said.append((putter.done(), await queue.get()))
        await settled()
        said.append((putter.done(), queue.get_nowait(), queue.get_nowait()))
        getters = [asyncio.create_task(queue.get()) for _ in range(3)]
        await settled()
        getters[1].cancel()
        queue.put_nowait("a")
        queue.put_nowait("b")
        said.append([str(one) for one in await asyncio.gather(*getters, return_exceptions=True)])
        getter = asyncio.create_task(queue.get())
        await settled()
        queue.shutdown()
        with pytest.raises(asyncio.QueueShutDown):
            await getter
        for call in (queue.get, lambda: queue.put(1)):
            with pytest.raises(asyncio.QueueShutDown):
                await call()
        for call in (queue.get_nowait, lambda: queue.put_nowait(1)):
            with pytest.raises(asyncio.QueueShutDown):
                call()
        return said

    assert nbloop.run(main()) == [
        (2, 0, True, False),
        (2, False, True),
        (False, 1),
        (True, 2, 3),
        ["a", "", "b"],
    ]


@pytest.mark.parametrize("make", [Queue, asyncio.Queue])
@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_as_asyncio(make, immediate):
    async def main():
        queue = make(1)
        queue.put_nowait(1)
        putter = asyncio.create_task(queue.put(2))
        await settled()
        queue.shutdown(immediate)
        queue.shutdown(immediate)
        with pytest.raises(asyncio.QueueShutDown):
            await putter
        if immediate:
            assert queue.empty()
        else:
            assert await queue.get() == 1
        with pytest.raises(asyncio.QueueShutDown):
            await queue.get()

    nbloop.run(main())


# --- what it promises beyond that


def test_nobody_overtakes_who_was_woken():
    """An item for which a waiter was woken is reserved for it; asyncio's queue gives it to the first caller."""

    async def main():
        queue = Queue()
        getter = asyncio.create_task(queue.get())
        await settled()
        queue.put_nowait(1)
        with pytest.raises(asyncio.QueueEmpty):
            queue.get_nowait()
        assert queue.empty()
        late = asyncio.create_task(queue.get())
        assert await getter == 1
        assert not late.done()
        queue.put_nowait(2)
        assert await late == 2

        queue = Queue(1)
        queue.put_nowait("full")
        putter = asyncio.create_task(queue.put("waits"))
        await settled()
        assert queue.get_nowait() == "full"
        assert queue.full()
        with pytest.raises(asyncio.QueueFull):
            queue.put_nowait("late")
        await putter
        assert queue.get_nowait() == "waits"
        consistent(queue)

    nbloop.run(main())


def test_one_who_was_woken_and_is_cancelled_passes_it_on():
    async def main():
        queue = Queue()
        first, second = (asyncio.create_task(queue.get()) for _ in range(2))
        await settled()
        queue.put_nowait(1)
        first.cancel()
        assert await second == 1
        third = asyncio.create_task(queue.get())
        await settled()
        queue.put_nowait(2)
        queue.put_nowait(3)
        third.cancel()
        await settled()
        assert [queue.get_nowait(), queue.get_nowait()] == [2, 3]  # their order has stayed
        consistent(queue)

        queue = Queue(1)
        queue.put_nowait(0)
        first, second = (asyncio.create_task(queue.put(n)) for n in (1, 2))
        await settled()
        queue.get_nowait()
        first.cancel()
        await second
        assert queue.get_nowait() == 2
        consistent(queue)

    nbloop.run(main())


def test_a_getter_whose_loop_is_closed_is_passed_over():
    queue = Queue()
    gone = nbloop.new_event_loop()
    task = gone.create_task(queue.get())
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()
    queue.put_nowait(1)
    assert queue.get_wait(PATIENCE) == 1
    consistent(queue)
    task._log_destroy_pending = False
    task.get_coro().close()


@pytest.mark.parametrize("side", ["get", "put"])
@pytest.mark.parametrize("factory", [nbloop.new_event_loop, asyncio.new_event_loop])
def test_a_coroutine_of_a_closed_loop_gives_up_once(side, factory):
    """Its right was passed on when its loop was found closed; when the coroutine ends, it has none any more."""
    queue = Queue(1)
    if side == "put":
        queue.put_nowait("before")
    gone = factory()
    task = gone.create_task(queue.get() if side == "get" else queue.put("never"))
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()
    if side == "get":
        queue.put_nowait("before")
    assert queue.get_nowait() == "before"
    task._log_destroy_pending = False
    task.get_coro().close()
    consistent(queue)
    assert queue.empty()
    with pytest.raises(asyncio.QueueEmpty):
        queue.get_nowait()


@pytest.mark.parametrize("error", [TimeoutError, asyncio.QueueEmpty, KeyboardInterrupt])
def test_what_a_signals_handler_raises_ends_a_wait(error):
    """Whatever it is, also what the call raises itself: nothing is for that waiter any more."""
    queue = Queue()

    def handler(*_):
        raise error

    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.get_ident()

    def interrupt():
        wait_for(lambda: queue._getters)
        signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(error):
            queue.get_wait()
    finally:
        thread.join(PATIENCE)
        signal.signal(signal.SIGUSR1, before)
    queue.put_nowait("item")
    assert queue.get_nowait() == "item"
    consistent(queue)


@pytest.mark.parametrize("waits", ["get", "put"])
@pytest.mark.parametrize("calls", ["get", "put"])
def test_a_coroutine_that_waits_is_collected_in_the_middle_of_a_call(waits, calls):
    """Its end needs the lock, which the call on this thread holds."""
    queue = Queue(1)
    if waits == "put":
        queue.put_nowait("before")
    gone = nbloop.new_event_loop()
    task = gone.create_task(queue.get() if waits == "get" else queue.put("never"))
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()
    task._log_destroy_pending = False
    coroutine, settle, give_up = task.get_coro(), queue._settle, queue._give_up
    said, gave_up = [], threading.Event()

    def give_up_and_say(*arguments):
        """The waiter's end, which runs on a thread of its own."""
        give_up(*arguments)
        gave_up.set()

    def settle_and_collect(*lists):
        """What a collection does in the middle of the step that holds the lock: it closes the coroutine."""
        queue._settle = settle
        assert queue._lock.locked()
        coroutine.close()
        settle(*lists)

    queue._settle = settle_and_collect
    queue._give_up = give_up_and_say

    def call():
        said.append(nowait(queue.get_nowait) if calls == "get" else nowait(queue.put_nowait, "now"))

    thread = threading.Thread(target=call, daemon=True)  # which would hang
    thread.start()
    thread.join(PATIENCE)
    left, answer = {
        "getget": ([], "empty"),
        "getput": (["now"], None),
        "putget": ([], "before"),
        "putput": (["before"], "full"),
    }[waits + calls]
    assert said == [answer]
    wait_for(gave_up)
    wait_for(lambda: not queue._lock.locked())
    consistent(queue)
    assert list(queue._items) == left


def test_an_exception_in_the_middle_of_serving_leaves_nobody_half_served():
    """When the lock is free again, a waiter that has been granted an item is out of its line, and about to be woken."""
    queue, got = Queue(), []
    getter = threading.Thread(target=lambda: got.append(queue.get_wait()))
    getter.start()
    wait_for(lambda: queue._getters)
    change, wake, seen = queue._change, queue._wake, []

    def interrupted(by):
        result = change(by)
        if by == -layout.PERMITS_AVAILABLE:
            queue._change = change
            raise KeyboardInterrupt
        return result

    def look_and_wake(woken, dropped):
        seen.append((len(woken), len(queue._getters)))
        wake(woken, dropped)

    queue._change, queue._wake = interrupted, look_and_wake
    with pytest.raises(KeyboardInterrupt):
        queue.put_nowait("item")
    assert seen[0] == (1, 0)
    getter.join(PATIENCE)
    assert got == ["item"]
    consistent(queue)


def test_a_coroutine_that_is_dropped_leaves_the_line():
    queue = Queue()
    gone = nbloop.new_event_loop()
    task = gone.create_task(queue.get())
    gone.run_until_complete(asyncio.sleep(0))
    gone.call_soon(queue.put_nowait, 1)
    gone.call_soon(gone.stop)
    gone.run_forever()
    task._log_destroy_pending = False
    task.get_coro().close()
    assert queue.get_nowait() == 1
    gone.close()
    consistent(queue)


def test_threads_wait_with_a_timeout():
    queue = Queue(1)
    with pytest.raises(TimeoutError, match="item"):
        queue.get_wait(0)
    queue.put_wait(1)
    with pytest.raises(TimeoutError, match="room"):
        queue.put_wait(2, 0.01)
    assert queue.get_wait(0) == 1
    for bad, error in ((-1, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="timeout"):
            queue.get_wait(bad)
        with pytest.raises(error, match="timeout"):
            queue.put_wait(1, bad)
    consistent(queue)


def test_threads_do_not_block_a_loop():
    async def main():
        for call in (Queue().get_wait, lambda: Queue().put_wait(1)):
            with pytest.raises(RuntimeError, match="would block"):
                call()

    nbloop.run(main())


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_frees_threads(immediate):
    queue = Queue(1)
    full = Queue(1)
    full.put_nowait(0)

    def body(i):
        if i == 3:
            wait_for(lambda: len(queue._getters) == 2 and len(full._putters) == 1)
            queue.shutdown(immediate)
            full.shutdown(immediate)
        elif i == 2:
            full.put_wait(1, PATIENCE)
        else:
            queue.get_wait(PATIENCE)

    said = together(4, body)
    assert [type(one) for one in said] == [asyncio.QueueShutDown] * 3 + [type(None)]


def test_maxsize_is_checked():
    for bad, error in ((-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="maxsize"):
            Queue(bad)


def test_items_are_released():
    class Item:
        pass

    async def main():
        queue = Queue()
        kept = []
        for _ in range(3):
            item = Item()
            kept.append(weakref.ref(item))
            queue.put_nowait(item)
            del item
        getter = asyncio.create_task(Queue().get())
        await settled()
        getter.cancel()
        queue.get_nowait()
        assert kept[0]() is None
        await queue.get()
        assert kept[1]() is None
        queue.shutdown(immediate=True)
        gc.collect()
        assert kept[2]() is None

    nbloop.run(main())


def test_an_item_that_uses_the_queue_when_it_goes():
    """Its finaliser runs while `shutdown` drops it: not under the lock."""
    queue = Queue()

    class Item:
        def __del__(self):
            seen.append(queue.qsize() or queue.empty())
            with pytest.raises(asyncio.QueueShutDown):
                queue.put_nowait(1)

    seen = []
    queue.put_nowait(Item())
    queue.shutdown(immediate=True)
    gc.collect()
    assert seen == [True]


@pytest.mark.parametrize("factory", [nbloop.new_event_loop, asyncio.new_event_loop])
def test_any_loop(factory):
    queue, back = Queue(1), Queue(1)

    async def main():
        while (item := await queue.get()) is not None:
            await back.put(item * 2)

    def run():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    for number in range(200):
        queue.put_wait(number, PATIENCE)
        assert back.get_wait(PATIENCE) == number * 2
    queue.put_wait(None)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_an_awake_loop_is_woken_without_a_system_call():
    queue = Queue()

    async def main():
        core = asyncio.get_running_loop().core
        before = int(core._record["wakes_sent"])
        getters = [asyncio.create_task(queue.get()) for _ in range(50)]
        await settled()
        thread = threading.Thread(target=lambda: [queue.put_nowait(n) for n in range(50)])
        thread.start()
        thread.join(PATIENCE)  # this loop is in a callback meanwhile
        assert int(core._record["wakes_sent"]) == before
        return [await one for one in getters]

    assert nbloop.run(main()) == list(range(50))


# --- a naive twin


class Twin:
    """The queue as one would write it if nothing happened at the same time: who waits is served at once."""

    def __init__(self, maxsize):
        self.maxsize, self.items, self.getters, self.putters, self.shut = maxsize, deque(), deque(), deque(), False
        self.said = {}

    def settle(self):
        while True:
            if self.putters and (not self.maxsize or len(self.items) < self.maxsize):
                who, item = self.putters.popleft()
                self.items.append(item)
                self.said[who] = "put"
            elif self.getters and self.items:
                self.said[self.getters.popleft()] = self.items.popleft()
            else:
                return

    def put(self, who, item):
        if self.shut:
            self.said[who] = "shut"
        else:
            self.putters.append((who, item))
            self.settle()

    def get(self, who):
        if not self.items and self.shut:
            self.said[who] = "shut"
        else:
            self.getters.append(who)
            self.settle()

    def put_nowait(self, item):
        if self.shut:
            return "shut"
        if self.maxsize and len(self.items) >= self.maxsize:
            return "full"
        self.items.append(item)
        self.settle()
        return "put"

    def get_nowait(self):
        if not self.items:
            return "shut" if self.shut else "empty"
        item = self.items.popleft()
        self.settle()
        return item

    def cancel(self, who):
        if who not in self.said:
            self.said[who] = "cancelled"
            self.getters = deque(one for one in self.getters if one != who)
            self.putters = deque(one for one in self.putters if one[0] != who)

    def shutdown(self, immediate):
        self.shut = True
        if immediate:
            self.items.clear()
        for who in (*self.getters, *(one for one, _ in self.putters)):
            self.said[who] = "shut"
        self.getters.clear()
        self.putters.clear()


SAID = {asyncio.QueueShutDown: "shut", asyncio.QueueFull: "full", asyncio.QueueEmpty: "empty"}


class QueueMachine(RuleBasedStateMachine):
    @initialize(maxsize=st.integers(0, 3))
    def begin(self, maxsize):
        self.loop = nbloop.new_event_loop()
        self.queue, self.twin = Queue(maxsize), Twin(maxsize)
        self.tasks, self.number = [], 0

    def run(self, call):
        async def main():
            result = call()
            await settled()
            return result

        return self.loop.run_until_complete(main())

    def said(self, call, *args):
        try:
            result = call(*args)
        except tuple(SAID) as error:
            return SAID[type(error)]
        return "put" if result is None else result

    async def wait(self, call, *args):
        try:
            result = await call(*args)
        except tuple(SAID) as error:
            return SAID[type(error)]
        except asyncio.CancelledError:
            return "cancelled"
        return "put" if result is None else result

    @rule()
    def put(self):
        self.number += 1
        self.run(lambda: self.tasks.append(self.loop.create_task(self.wait(self.queue.put, self.number))))
        self.twin.put(len(self.tasks) - 1, self.number)

    @rule()
    def get(self):
        self.run(lambda: self.tasks.append(self.loop.create_task(self.wait(self.queue.get))))
        self.twin.get(len(self.tasks) - 1)

    @rule()
    def put_nowait(self):
        self.number += 1
        assert self.run(lambda: self.said(self.queue.put_nowait, self.number)) == self.twin.put_nowait(self.number)

    @rule()
    def get_nowait(self):
        assert self.run(lambda: self.said(self.queue.get_nowait)) == self.twin.get_nowait()

    @rule()
    def put_and_get_at_once(self):
        """Before who was woken by the first has come."""
        self.number += 1

        def both():
            return self.said(self.queue.put_nowait, self.number), self.said(self.queue.get_nowait)

        assert self.run(both) == (self.twin.put_nowait(self.number), self.twin.get_nowait())

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), first=st.sampled_from(["cancel", "put", "get"]))
    def cancel(self, data, first):
        """Also one that a call in the same moment has just woken: then as if the cancellation had come first, because
        who is cancelled has taken nothing.
        """
        which = data.draw(st.integers(0, len(self.tasks) - 1))
        self.number += 1

        def both():
            said = None
            if first == "put":
                said = self.said(self.queue.put_nowait, self.number)
            elif first == "get":
                said = self.said(self.queue.get_nowait)
            if not self.tasks[which].done():
                self.tasks[which].cancel()
            return said

        waited = which not in self.twin.said
        said = self.run(both)
        if waited:
            self.twin.cancel(which)
        if first == "put" and said != "full":
            assert said == self.twin.put_nowait(self.number)
        elif first == "get" and said not in ("empty",):
            assert said == self.twin.get_nowait()

    @rule(immediate=st.booleans())
    def shutdown(self, immediate):
        if self.number % 3 == 0:  # else every run would be a short one
            self.run(lambda: self.queue.shutdown(immediate))
            self.twin.shutdown(immediate)

    @invariant()
    def alike(self):
        if not hasattr(self, "queue"):
            return
        assert list(self.queue._items) == list(self.twin.items)
        assert {n: task.result() for n, task in enumerate(self.tasks) if task.done()} == self.twin.said
        assert (self.queue.empty(), self.queue.qsize()) == (not self.twin.items, len(self.twin.items))
        consistent(self.queue)

    def teardown(self):
        if hasattr(self, "queue"):
            self.run(lambda: [task.cancel() for task in self.tasks])
            self.loop.close()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=30)


# --- histories


def twin(state, operation):
    """(items, maxsize). "full" and "empty" are said of what is not promised, which a twin that is asked for one
    operation at a time does not know: the state machine above checks those.
    """
    items, maxsize = state
    if operation.result in ("full", "empty"):
        return state
    if operation.name == "put":
        return None if len(items) >= maxsize else ((*items, operation.argument), maxsize)
    return (items[1:], maxsize) if items and items[0] == operation.result else None


def nowait(call, *args):
    try:
        return call(*args)
    except asyncio.QueueFull:
        return "full"
    except asyncio.QueueEmpty:
        return "empty"


@pytest.mark.parametrize("maxsize", [1, 2])
def test_histories_are_those_of_a_queue(maxsize):
    """Two threads that put, a loop and a thread that get, waiting and not; each history must be linearizable."""
    for _ in range(60):
        queue, history = Queue(maxsize), []
        left = [1, 2]  # producers at work: a pop of the list is atomic

        def mark(name, argument, start, result, history=history):
            history.append(Operation(name, argument, result, start, time.monotonic_ns()))

        def produce(who, queue=queue, mark=mark, left=left):
            for n in range(4):
                start = time.monotonic_ns()
                if n % 2:
                    mark("put", (who, n), start, nowait(queue.put_nowait, (who, n)))
                else:
                    mark("put", (who, n), start, queue.put_wait((who, n), PATIENCE))
            if left.pop() == 1:
                queue.shutdown()

        async def consume(queue=queue, mark=mark):
            while True:
                start = time.monotonic_ns()
                mark("get", None, start, await queue.get())
                start = time.monotonic_ns()
                mark("get", None, start, nowait(queue.get_nowait))

        def consume_thread(queue=queue, mark=mark):
            while True:
                start = time.monotonic_ns()
                mark("get", None, start, queue.get_wait(PATIENCE))

        bodies = [
            lambda: produce(0),
            lambda: produce(1),
            lambda: nbloop.run(consume()),
            consume_thread,
        ]
        said = together(4, lambda i: bodies[i]())  # noqa: B023
        assert [type(one) for one in said] == [type(None)] * 2 + [asyncio.QueueShutDown] * 2
        assert queue.qsize() == 0
        assert linearizable(history, twin, ((), maxsize)), history


def test_stress():
    """Producers and consumers of all kinds, with cancellations and time-outs: each item that was put comes out once, a
    consumer sees those of one producer in order, and no more than maxsize wait.
    """
    each, maxsize = 400, 4
    queue = Queue(maxsize)
    got, sizes = [], []

    def take(seen, item):
        seen.append(item)
        sizes.append(queue.qsize())

    def produce_thread(who):
        sent = 0
        while sent < each:
            try:
                queue.put_wait((who, sent), 0.0005)
            except TimeoutError:
                continue
            sent += 1

    async def produce_loop(who):
        chance = random.Random(who)
        sent = 0
        while sent < each:
            try:
                await asyncio.wait_for(queue.put((who, sent)), chance.choice([0, 0.0005, None]))
            except TimeoutError:
                continue
            sent += 1

    async def consume_loop(seen, who):
        chance = random.Random(who)
        while True:
            try:
                take(seen, await asyncio.wait_for(queue.get(), chance.choice([0, 0.0005, None])))
            except TimeoutError:
                continue
            except asyncio.QueueShutDown:
                return

    def consume_thread(seen):
        while True:
            try:
                take(seen, queue.get_wait(0.0005))
            except TimeoutError:
                continue
            except asyncio.QueueShutDown:
                return

    def loop(*coroutines):
        async def main():
            await asyncio.gather(*coroutines)

        nbloop.run(main())

    lists = [[] for _ in range(4)]
    got.extend(lists)
    left = threading.Semaphore(0)

    def body(i):
        if i == 0:
            produce_thread(0)
        elif i == 1:
            loop(produce_loop(1), produce_loop(2))
        elif i == 2:
            loop(produce_loop(3), consume_loop_until_end())
            return
        elif i == 3:
            loop(consume_loop(lists[0], 10), consume_loop(lists[1], 11))
            return
        else:
            consume_thread(lists[2])
            return
        left.release()

    async def consume_loop_until_end():
        consumer = asyncio.create_task(consume_loop(lists[3], 12))
        await asyncio.to_thread(lambda: [left.acquire(timeout=PATIENCE) for _ in range(2)])
        await asyncio.to_thread(wait_for, lambda: sum(map(len, lists)) == 4 * each)
        queue.shutdown()
        await consumer

    assert together(5, body) == [None] * 5
    items = [item for seen in lists for item in seen]
    assert sorted(items) == sorted((who, n) for who in range(4) for n in range(each))
    for seen in lists:
        for who in range(4):
            mine = [n for producer, n in seen if producer == who]
            assert mine == sorted(mine)
    assert max(sizes) <= maxsize
    consistent(queue)
