"""Promises and asyncio: awaited in tasks, made of futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest

import nbloop
from nbloop.js import JS, RejectedError

PATIENCE = 30  # seconds, for what comes at once

runners = pytest.mark.parametrize("run", [nbloop.run, asyncio.run], ids=["nbloop.run", "asyncio.run"])


@pytest.fixture
def other():
    """A view of a loop that runs in a thread of its own."""
    with nbloop.Loop() as loop:
        yield JS(loop)


def in_task(body, run=nbloop.run):
    """What ``body()``, a coroutine function, returns in a task."""

    async def main():
        return await asyncio.wait_for(body(), PATIENCE)

    return run(main())


def own_view():
    """Of the loop that runs the task."""
    return JS(asyncio.get_running_loop().core, on_unhandled_rejection=lambda _reason, _promise: None)


class TestAwait:
    @runners
    def test_values_of_another_loop(self, other, run):
        async def body():
            return [
                await other.resolve(1),
                await other.sleep(1).then(lambda _: 2),
                await other.loop.promisify(pow, 2, 8),
                await asyncio.gather(other.resolve(3), other.sleep(1).then(lambda _: 4)),
            ]

        assert in_task(body, run) == [1, 2, 256, [3, 4]]

    def test_values_of_its_own_loop(self):
        async def body():
            js = own_view()
            promise, resolve, _ = js.with_resolvers()
            asyncio.get_running_loop().call_soon(resolve, 5)
            values = [await js.resolve(1), await js.sleep(1).then(lambda _: 2), await js.loop.promisify(pow, 2, 8)]
            return [*values, await promise]

        assert in_task(body) == [1, 2, 256, 5]

    @runners
    def test_reasons(self, other, run):
        async def body():
            told = []
            for reason in (ValueError("no"), "no exception"):
                try:
                    await other.reject(reason)
                except BaseException as error:
                    told.append(error)
            return told

        first, second = in_task(body, run)
        assert (type(first), first.args) == (ValueError, ("no",))
        assert (type(second), second.reason) == (RejectedError, "no exception")

    @runners
    def test_cancelling_the_task_leaves_the_promise(self, other, run):
        promise, resolve, _ = other.with_resolvers()

        async def wait():
            await promise

        async def body():
            task = asyncio.create_task(wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(promise, 0.001)
            assert promise.state == "pending"
            resolve(7)
            return await promise

        assert in_task(body, run) == 7

    @runners
    def test_the_loop_ends_first(self, run):
        loop = nbloop.Loop()
        loop.start()
        promise = JS(loop).with_resolvers()[0]

        async def body():
            waiting = asyncio.ensure_future(promise)
            await asyncio.sleep(0)
            await asyncio.to_thread(loop.close)
            await waiting

        with pytest.raises(nbloop.LoopTerminatedError):
            in_task(body, run)


class TestSpawnInATask:
    """Two who run coroutines on one thread: each awaits by its own means."""

    def test_the_first_step_is_no_task(self):
        async def body():
            js, seen = own_view(), []

            async def coroutine():
                seen.append(asyncio.current_task())
                seen.append(await js.resolve(1))
                seen.append(asyncio.current_task())
                return await js.sleep(1).then(lambda _: 2)

            task = asyncio.current_task()
            promise = js.spawn(coroutine())
            assert asyncio.current_task() is task
            seen.append(await promise)
            return seen

        assert in_task(body) == [None, 1, None, 2]

    @pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
    def test_a_first_step_that_raises(self, error):
        async def body():
            js = own_view()

            async def fails():
                raise error

            task = asyncio.current_task()
            promise = js.spawn(fails())
            assert asyncio.current_task() is task
            with pytest.raises(error):
                await promise

        in_task(body)

    def test_a_coroutine_that_makes_an_eager_task(self):
        """Whose first step is made in the middle of the coroutine's, and which waits as a task."""

        async def body():
            js = own_view()
            loop = asyncio.get_running_loop()

            async def wait():
                return await js.sleep(1).then(lambda _: "the task"), asyncio.current_task() is not None

            async def coroutine():
                task = asyncio.Task(wait(), loop=loop, eager_start=True)
                return await js.sleep(1).then(lambda _: "the coroutine"), await js.from_future(task)

            return await js.spawn(coroutine())

        assert in_task(body) == ("the coroutine", ("the task", True))


class TestFromFuture:
    def test_of_a_thread(self, other):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            assert other.from_future(pool.submit(pow, 2, 8)).result(PATIENCE) == 256
            with pytest.raises(ZeroDivisionError):
                other.from_future(pool.submit(divmod, 1, 0)).result(PATIENCE)
        cancelled = concurrent.futures.Future()
        cancelled.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            other.from_future(cancelled).result(PATIENCE)

    @runners
    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_of_asyncio(self, other, run, elsewhere):
        """Made on the thread of the future's loop, and on another."""

        async def fails():
            await asyncio.sleep(0.001)
            raise ZeroDivisionError

        async def body():
            loop = asyncio.get_running_loop()
            make = other.from_future
            futures = [
                asyncio.ensure_future(asyncio.sleep(0.001, 7)),
                asyncio.ensure_future(fails()),
                loop.create_future(),
            ]
            if elsewhere:
                promises = [await asyncio.to_thread(make, future) for future in futures]
            else:
                promises = [make(future) for future in futures]
            futures[2].cancel()
            return await other.all_settled(promises)

        first, second, third = in_task(body, run)
        assert first["value"] == 7
        assert isinstance(second["reason"], ZeroDivisionError)
        assert isinstance(third["reason"], concurrent.futures.CancelledError)

    def test_combinators_take_them(self, other):
        async def body():
            future = asyncio.get_running_loop().create_future()
            future.set_result(1)
            return await other.all([future, asyncio.create_task(asyncio.sleep(0.001, 2)), 3])

        assert in_task(body) == [1, 2, 3]

    def test_a_coroutine_awaits_one_through_it(self, other):
        async def body():
            task = asyncio.create_task(asyncio.sleep(0.001, 2))

            async def coroutine():
                return await other.from_future(task)

            return await other.spawn(coroutine())

        assert in_task(body) == 2

    def test_of_a_closed_loop(self, other):
        loop = asyncio.new_event_loop()
        future = loop.create_future()
        loop.close()
        with pytest.raises(RuntimeError, match="closed"):
            other.from_future(future)
        with pytest.raises(RuntimeError, match="closed"):
            other.resolve(future).result(PATIENCE)

    @pytest.mark.parametrize("value", [None, 1, asyncio.sleep, JS])
    def test_of_no_future(self, other, value):
        with pytest.raises(TypeError, match="future must be"):
            other.from_future(value)

    @runners
    def test_and_back(self, other, run):
        async def body():
            return await asyncio.wrap_future(other.sleep(1).then(lambda _: 3).future())

        assert in_task(body, run) == 3


def test_without_asyncio_nothing_imports_it(run_script):
    code = """
        import sys, nbloop
        from nbloop.js import JS
        loop = nbloop.Loop(auto_exit=True)
        js = JS(loop)
        async def main():
            print(await js.resolve(1), "asyncio" in sys.modules)
        loop.submit(js.spawn, main())
        loop.run()
    """
    assert run_script(code).split() == ["1", "False"]


def test_tasks_of_many_loops_at_once(other, together):
    """Each thread has its own current task."""
    barrier = threading.Barrier(2)

    def run(i):
        async def body():
            barrier.wait(PATIENCE)
            return [await other.resolve(i) for _ in range(20)]

        return in_task(body, asyncio.run if i else nbloop.run)

    assert together(2, run) == [[0] * 20, [1] * 20]


@pytest.mark.parametrize("closed", [False, True])
def test_an_asyncio_future_that_is_done_needs_no_loop(make_loop, closed):
    """Its loop has stopped, or is closed."""

    async def seven():
        return 7

    asyncios = asyncio.new_event_loop()
    task = asyncios.create_task(seven())
    asyncios.run_until_complete(task)
    if closed:
        asyncios.close()
    with make_loop() as loop:
        js = JS(loop)
        assert js.from_future(task).result(PATIENCE) == 7
        assert js.resolve(task).result(PATIENCE) == 7
        assert js.all([task, 1]).result(PATIENCE) == [7, 1]
    asyncios.close()
