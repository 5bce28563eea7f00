"""What becomes of coroutines when their loop ends: as with asyncio they are cancelled, and what they do about that runs
on the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import weakref

import pytest

import nbloop
from nbloop import Loop, LoopTerminatedError
from nbloop.js import JS, AbortController, CancelledError
from nbloop.js.coroutines import coroutines_of
from tests.support.waiting import elsewhere, wait_for

# --- the same programs as tasks of asyncio ----------------------------------------------------------------------------


class Ours:
    """What a program of `PROGRAMS` uses, on a loop of nbloop. It is run, and then ended while everything waits."""

    Cancelled = CancelledError

    def __init__(self):
        self.trace = []

    def forever(self):
        promise, *self.kept = self.js.with_resolvers()
        return promise

    def tick(self):
        return self.js.resolve()

    def spawn(self, coroutine):
        return self.js.spawn(coroutine)

    def run(self, program, end):
        loop = Loop(on_error=lambda error, _context: self.trace.append(("unhandled", repr(error))))
        self.js = JS(
            loop, on_unhandled_rejection=lambda reason, _promise: self.trace.append(("unhandled", repr(reason)))
        )
        promises = []
        loop.submit(lambda: promises.append(self.spawn(program(self))))
        loop.stop()
        loop.run()
        end(loop)
        (promise,) = promises
        if promise.state == "fulfilled":
            outcome = ("returned", promise.value)
        elif isinstance(promise.reason, LoopTerminatedError):
            outcome = ("cancelled",)
        else:
            outcome = ("raised", repr(promise.reason))
        return self.trace, outcome


class Theirs:
    """The same on asyncio, whose `run` cancels what is left when its main coroutine returns."""

    Cancelled = asyncio.CancelledError

    def __init__(self):
        self.trace = []

    def forever(self):
        self.kept = asyncio.get_running_loop().create_future()
        return self.kept

    def tick(self):
        return asyncio.sleep(0)

    def spawn(self, coroutine):
        return asyncio.get_running_loop().create_task(coroutine)

    def run(self, program):
        async def main():
            def handler(_loop, context):
                if "exception" in context:
                    self.trace.append(("unhandled", repr(context["exception"])))

            asyncio.get_running_loop().set_exception_handler(handler)
            self.task = self.spawn(program(self))
            for _ in range(30):
                await asyncio.sleep(0)

        asyncio.run(main())
        if self.task.cancelled():
            return self.trace, ("cancelled",)
        if self.task.exception() is not None:
            return self.trace, ("raised", repr(self.task.exception()))
        return self.trace, ("returned", self.task.result())


class Manager:
    def __init__(self, env):
        self.env = env

    async def __aenter__(self):
        await self.env.tick()

    async def __aexit__(self, kind, *_more):
        self.env.trace.append(("exit", kind is self.env.Cancelled))
        await self.env.tick()
        self.env.trace.append("exited")


async def waits(env):
    await env.forever()


async def cleans_up(env):
    try:
        await env.forever()
    finally:
        env.trace.append("finally")


async def cleans_up_with_awaits(env):
    try:
        await env.forever()
    finally:
        for i in range(3):
            await env.tick()
            env.trace.append(i)


async def manager(env):
    async with Manager(env):
        await env.forever()


async def nested(env):
    async def inner():
        async with Manager(env):
            await cleans_up_with_awaits(env)

    await inner()


async def no_exception(env):
    try:
        await env.forever()
    except Exception:
        env.trace.append("is not reached")


async def swallows(env):
    try:
        await env.forever()
    except env.Cancelled:
        env.trace.append("cancelled")
    await env.tick()
    return "value"


async def raises_instead(env):
    try:
        await env.forever()
    finally:
        raise ValueError("on purpose")


async def waits_for_another(env):
    other = env.spawn(cleans_up_with_awaits(env))
    try:
        await other
    finally:
        env.trace.append("outer")


async def two_of_which_one_ends_the_other(env):
    async def settles(wake):
        try:
            await env.forever()
        finally:
            wake()

    gate = env.forever()
    wake = env.kept[0] if isinstance(env, Ours) else lambda: None if gate.done() else gate.set_result(None)
    env.spawn(settles(wake))
    try:
        await gate
        env.trace.append("is not reached")
    except env.Cancelled:
        env.trace.append("cancelled")
        raise


async def numbers(env):
    try:
        for i in range(10):
            yield i
            await env.tick()
    finally:
        env.trace.append("closing")
        await env.tick()
        env.trace.append("closed")


async def in_a_generator(env):
    async for i in numbers(env):
        if i == 2:
            await env.forever()


async def abandons_a_generator(env):
    async for _ in numbers(env):
        break
    for _ in range(10):
        await env.tick()
    env.trace.append("after")


async def keeps_a_generator(env):
    env.generator = numbers(env)
    await anext(env.generator)
    await env.forever()


async def keeps_a_generator_that_raises(env):
    async def raising():
        try:
            yield
        finally:
            await env.tick()
            raise ValueError("on purpose")

    env.generator = raising()
    await anext(env.generator)


PROGRAMS = [
    waits,
    cleans_up,
    cleans_up_with_awaits,
    manager,
    nested,
    no_exception,
    swallows,
    raises_instead,
    waits_for_another,
    two_of_which_one_ends_the_other,
    in_a_generator,
    abandons_a_generator,
    keeps_a_generator,
    keeps_a_generator_that_raises,
]


def after_stop(loop):
    """On the thread made to end it, or on this one."""
    loop.shutdown()


def while_it_runs(loop):
    loop.start()
    loop.shutdown()


ENDS = {"shutdown": after_stop, "shutdown while it runs": while_it_runs}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_as_asyncio_ends_tasks(program, end):
    """contract, nbloop.js, the end of coroutines."""
    ours, theirs = Ours().run(program, ENDS[end]), Theirs().run(program)
    if program is waits_for_another:  # a promise is not cancelled with who awaits it, so here nobody waits for it
        assert ours[0][0] == "outer"
        ours[0].sort(key=str)
        theirs[0].sort(key=str)
    assert ours == theirs


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_close_runs_what_needs_no_microtask(program, caplog):
    """contract: `close` runs each cleanup up to its first await that waits, and settles the promise."""
    trace, outcome = Ours().run(program, Loop.close)
    assert outcome[0] in ("cancelled", "raised", "returned")
    begun = {"cleans_up": "finally", "manager": ("exit", True), "in_a_generator": "closing", "swallows": "cancelled"}
    if program.__name__ in begun:
        assert begun[program.__name__] in trace
    assert "exited" not in trace
    assert "is not reached" not in trace


# --- on which thread, and when ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_on_the_thread_that_runs_the_loop(make_page, end):
    """contract: cleanups run on the loop's thread, also if another thread ends the loop."""
    page, threads, ready = make_page(), [], threading.Event()
    kept = []

    async def body():
        promise, *more = page.js.with_resolvers()
        kept.extend(more)
        ready.set()
        try:
            await promise
        finally:
            threads.append(threading.current_thread())
            assert page.loop.is_loop_thread()

    thread = page.loop.start()
    promise = page.js.spawn(body())
    wait_for(ready)
    getattr(page.loop, end)()
    assert threads == [thread]
    assert isinstance(promise.reason, LoopTerminatedError)


def test_who_waits_hears_of_it(make_page):
    """contract: promises settle, and their handlers run, before a graceful end is over; threads that wait go on."""
    page, heard, ready = make_page(), [], threading.Event()

    async def body():
        ready.set()
        await page.js.sleep(1e6)

    with page.loop:
        promise = page.js.spawn(body())
        promise.then(None, heard.append).finally_(lambda: heard.append("finally"))
        wait_for(ready)
        future = promise.future()
    reason, last = heard
    assert isinstance(reason, LoopTerminatedError)
    assert last == "finally"
    assert isinstance(future.exception(), LoopTerminatedError)
    assert page.unhandled == []


def test_accepted_before_the_end(make_page):
    """contract: a coroutine that was accepted from another thread begins, and is cancelled then."""
    page, order = make_page(), []

    async def body():
        order.append("begun")
        try:
            await page.never()
        finally:
            order.append("finally")

    promise = page.js.spawn(body())
    page.loop.shutdown()
    assert order == ["begun", "finally"]
    assert isinstance(promise.reason, LoopTerminatedError)


@pytest.mark.filterwarnings("error")
def test_dropped_before_it_began(make_page):
    """contract: `close` drops it: nothing of it runs, its promise is rejected, nobody warns."""
    page, controller = make_page(), AbortController()

    async def body():
        raise AssertionError("nothing of it runs")

    coroutines = [body(), body()]
    promises = [page.js.spawn(coroutines[0]), page.js.spawn(coroutines[1], signal=controller.signal)]
    page.loop.close()
    assert [type(promise.reason) for promise in promises] == [LoopTerminatedError] * 2
    assert [coroutine.cr_frame for coroutine in coroutines] == [None] * 2
    assert not controller.signal._algorithms


def test_a_forgotten_loop(collected):
    """contract: a forgotten loop is closed: its coroutines too, and their promises settle."""
    order = []

    def make():
        loop = Loop()
        js = JS(loop)
        kept = js.with_resolvers()

        async def body():
            try:
                await kept[0]
            finally:
                order.append("finally")

        promise = js.spawn(body())
        loop.stop()
        loop.run()
        return weakref.ref(loop), promise.future(), kept[1:]

    loop, future, resolvers = make()
    del resolvers
    collected()
    assert loop() is None
    assert order == ["finally"]
    assert isinstance(future.exception(0), LoopTerminatedError)


@pytest.fixture
def collected():
    """No collection but those that a test asks for."""
    gc.disable()
    yield gc.collect
    gc.enable()


# --- those that do not want to end ------------------------------------------------------------------------------------


def test_what_waits_again_is_closed(make_page):
    """contract: what goes on waiting after its cancellation, waits for what never comes: it is closed."""
    page, order = make_page(), []

    async def body():
        try:
            await page.never()
        except CancelledError:
            order.append("cancelled")
        try:
            await page.never()
        except GeneratorExit:
            order.append("closed")
            raise

    promise = page.js.spawn(body())
    page.loop.shutdown()
    assert order == ["cancelled", "closed"]
    assert isinstance(promise.reason, LoopTerminatedError)


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_what_ignores_even_that_is_reported(make_page, caplog, end):
    """contract: a coroutine that waits on is left there, and its promise says so."""
    page = make_page()

    async def body():
        for _ in range(2):
            with contextlib.suppress(BaseException):
                await page.never()
        await page.never()

    promise = page.js.spawn(body())
    page.turn()
    getattr(page.loop, end)()
    assert isinstance(promise.reason, RuntimeError)
    assert "ignored GeneratorExit" in str(promise.reason)
    reported = [str(reason) for reason in page.unhandled] + [record.getMessage() for record in caplog.records]
    assert len(reported) == 1
    assert "ignored GeneratorExit" in reported[0]


def test_spawned_in_a_cleanup(make_page):
    """contract: what a cleanup spawns runs, is cancelled if it waits, and spawns nothing more."""
    page, order = make_page(), []

    async def supervised(number):
        try:
            order.append(number)
            await page.never()
        finally:
            try:
                page.js.spawn(supervised(number + 1))
            except LoopTerminatedError:
                order.append("refused")

    page.js.spawn(supervised(1))
    page.loop.shutdown()
    assert order == [1, 2, "refused"]


def test_a_cleanup_that_only_needs_microtasks(make_page):
    """contract: it may spawn, and wait for what it spawned."""
    page, order = make_page(), []

    async def closes(name):
        await page.js.resolve()
        order.append(name)

    async def body():
        try:
            await page.never()
        finally:
            await page.js.all([page.js.spawn(closes(name)) for name in "abc"])
            order.append("all")

    page.js.spawn(body())
    page.loop.shutdown()
    assert order == ["a", "b", "c", "all"]


@pytest.mark.parametrize("leaves", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("run", [True, False], ids=["in run()", "on the finisher's thread"])
def test_what_leaves_in_a_cleanup(make_page, caplog, leaves, run):
    """contract: KeyboardInterrupt and SystemExit of a cleanup leave run(), and the others are ended all the same."""
    page, order = make_page(), []

    async def body(number):
        try:
            await page.never()
        finally:
            order.append(number)
            if number == 1:
                raise leaves

    promises = [page.js.spawn(body(number)) for number in range(4)]
    page.turn()
    if run:
        page.loop.submit(page.loop.shutdown)
        with pytest.raises(leaves):
            page.loop.run()
    page.loop.shutdown()
    assert sorted(order) == [0, 1, 2, 3]
    assert [promise.state for promise in promises] == ["rejected"] * 4


# --- sleeping ---------------------------------------------------------------------------------------------------------


def test_sleep_settles(make_page):
    """contract: `sleep` is rejected when the loop ends first, and handlers run if the end is graceful."""
    page, heard = make_page(), []
    page.js.sleep(1e6).then(None, heard.append)
    page.loop.shutdown()
    assert [type(reason) for reason in heard] == [LoopTerminatedError]
    closed = make_page()
    sleeping = closed.js.sleep(1e6)
    unheard = sleeping.then()
    closed.loop.close()
    assert [type(promise.reason) for promise in (sleeping, unheard)] == [LoopTerminatedError] * 2
    with pytest.raises(LoopTerminatedError):
        closed.js.sleep(1)
    assert page.unhandled == closed.unhandled == []


def test_sleepers_are_forgotten(page, js):
    """Nothing is kept of one that has slept, or that was refused."""
    page.value(js.all([js.sleep(0) for _ in range(10)]))
    for wrong in (None, float("nan"), "1"):
        with pytest.raises((TypeError, ValueError)):
            js.sleep(wrong)
    assert not coroutines_of(page.loop).sleeping


def test_what_has_ended_is_forgotten(page, js):
    """Nothing is kept of a coroutine that has ended, nor of one that nobody can resume."""

    async def body():
        await js.resolve()

    for _ in range(10):
        js.spawn(body())
    page.quiet()
    assert coroutines_of(page.loop).running.all() == []
    assert coroutines_of(page.loop).running._references == {}


# --- asynchronous generators ------------------------------------------------------------------------------------------


def test_forgotten_on_another_thread(make_page, collected):
    """contract: a generator that is collected before its end is ended on the loop's thread."""
    page, threads, done = make_page(), [], threading.Event()

    async def numbers():
        try:
            yield 1
        finally:
            await page.js.resolve()
            threads.append(threading.current_thread())
            done.set()

    async def body():
        cycle = [numbers()]
        cycle.append(cycle)
        await anext(cycle[0])

    thread = page.loop.start()
    page.js.spawn(body()).result()
    elsewhere(collected)
    wait_for(done)
    page.loop.shutdown()
    assert threads == [thread]


@pytest.mark.parametrize("end", ["stop", "shutdown", "close"])
def test_the_hooks_are_given_back(make_page, end):
    """contract: the thread has what it had, after the run."""
    page, inside = make_page(), []

    async def body():
        inside.append(sys.get_asyncgen_hooks())

    page.js.spawn(body())
    page.turn()
    assert inside[0] != (None, None)
    assert sys.get_asyncgen_hooks() == (None, None)
    page.js.spawn(body())
    getattr(page.loop, end)()
    assert sys.get_asyncgen_hooks() == (None, None)


def test_asyncio_keeps_its_own():
    """On the thread of an asyncio loop a coroutine of ours changes the hooks for its own steps only."""
    closed = []

    async def numbers(name):
        try:
            yield 1
        finally:
            closed.append(name)

    async def ours(js):
        generator = numbers("ours")
        await anext(generator)
        await js.resolve()
        return generator

    async def main():
        js = JS(asyncio.get_running_loop().core)
        before = sys.get_asyncgen_hooks()
        kept = [await asyncio.wrap_future(js.spawn(ours(js)).future())]
        assert sys.get_asyncgen_hooks() == before
        async for _ in (theirs := numbers("theirs")):
            break
        del theirs
        kept.clear()
        while len(closed) < 2:
            await asyncio.sleep(0)

    nbloop.run(main())
    assert sorted(closed) == ["ours", "theirs"]


# --- rejections that come late ----------------------------------------------------------------------------------------


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_rejection_after_the_end_is_logged_once(make_page, caplog):
    """contract: a rejection that nobody handles after the end is logged, once; the view's handler is not called."""
    page = make_page()
    promise, _resolve, reject = page.js.with_resolvers()
    page.loop.close()
    elsewhere(reject, ValueError("late"))
    assert promise.state == "rejected"
    (message,) = messages(caplog)
    assert "late" in message
    assert page.unhandled == []


def test_a_rejection_that_the_end_overtakes_is_logged_once(make_page, caplog):
    """contract: so is one of the callback in progress when `close` comes."""
    page, inside, go = make_page(), threading.Event(), threading.Event()

    def callback():
        page.js.reject(ValueError("overtaken"))
        inside.set()
        wait_for(go)

    page.loop.start()
    page.loop.submit(callback)
    wait_for(inside)
    closing = threading.Thread(target=page.loop.close)
    closing.start()
    wait_for(lambda: page.loop._record["interrupt"])
    go.set()
    closing.join()
    (message,) = messages(caplog)
    assert "overtaken" in message


def test_cancelled_is_not_reported(page, js, caplog):
    """contract: a promise rejected with CancelledError is no unhandled rejection, as asyncio has it."""

    async def body():
        raise CancelledError

    assert isinstance(page.reason(js.spawn(body())), CancelledError)
    js.spawn(body())
    page.quiet()
    assert page.unhandled == []
    assert messages(caplog) == []


@pytest.mark.parametrize("workers_first", [True, False])
def test_what_workers_bring_comes_before_the_cancelling(workers_first):
    """contract, Ends: a graceful end waits for the functions of promisify, and a coroutine that waits for one gets its
    result, whichever of the two the loop had first.
    """
    loop, begun, seen = Loop(), threading.Event(), []
    js = JS(loop)

    def work():
        begun.set()
        wait_for(lambda: loop.state is nbloop.LoopState.TERMINATING)
        return 7

    async def wait_for_work():
        seen.append(await loop.promisify(work))
        try:
            await js.with_resolvers()[0]
        except CancelledError:
            seen.append("cancelled")
            raise

    async def nothing():
        pass

    if workers_first:
        loop.promisify(int)
    else:
        js.spawn(nothing())
    loop.start()
    loop.submit(lambda: js.spawn(wait_for_work()))
    wait_for(begun)
    loop.shutdown(30)
    assert seen == [7, "cancelled"]
