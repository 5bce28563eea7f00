"""`JS.spawn`: coroutines as ECMAScript's async functions (27.7.5)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import threading
import weakref

import pytest

from nbloop import LoopTerminatedError
from nbloop.js import JS, AbortController, AbortError, AbortSignal, RejectedError
from tests.support.waiting import elsewhere, together

ERROR = ValueError("the reason")


def test_values_and_promises(page, js):
    """27.7.5.3, Await: the value of a promise, settled or not; 27.7.5.2: what is returned fulfils."""

    async def body():
        return [
            await js.resolve(1),
            await js.sleep(1),
            await js.resolve(js.resolve(2)),
            await js.all([3, js.resolve(4)]),
        ]

    assert page.value(js.spawn(body())) == [1, None, 2, [3, 4]]


def test_a_returned_promise_is_followed(page, js):
    """27.7.5.2: returning resolves, so a promise, a thenable or a future is adopted."""

    class Thenable:
        def then(self, resolve, _reject):
            resolve(7)

    async def body(value):
        return value

    assert page.value(js.spawn(body(js.sleep(1).then(lambda _value: 6)))) == 6
    assert page.value(js.spawn(body(Thenable()))) == 7
    assert page.reason(js.spawn(body(js.reject(8)))) == 8


def test_exceptions(page, js):
    """27.7.5.3: a rejection is raised where it is awaited, with its traceback; what the body raises rejects."""

    async def catches():
        try:
            await js.reject(ERROR)
        except ValueError as error:
            return error

    async def fails():
        await js.resolve()
        raise ERROR

    assert page.value(js.spawn(catches())) is ERROR
    assert page.reason(js.spawn(fails())) is ERROR
    assert page.unhandled == []


@pytest.mark.parametrize("reason", [None, 0, "text", ValueError], ids=repr)
def test_a_reason_that_is_no_exception(page, js, reason):
    """contract: raised in a RejectedError, whose `reason` it is."""

    async def catches():
        with pytest.raises(RejectedError) as raised:
            await js.reject(reason)
        return raised.value.reason

    async def fails():
        await js.reject(reason)

    assert page.value(js.spawn(catches())) is reason
    assert isinstance(page.reason(js.spawn(fails())), RejectedError)


def test_coroutines_await_coroutines(page, js):
    """contract: `await` of another coroutine runs it in place; spawned, it runs beside."""

    async def inner(value):
        await js.sleep(0)
        return value + 1

    async def outer():
        beside = [js.spawn(inner(i)) for i in range(5)]
        return await inner(await inner(0)), [await promise for promise in beside]

    assert page.value(js.spawn(outer())) == (2, [1, 2, 3, 4, 5])


def test_finally_blocks_and_context_managers(page, js):
    """contract: they work across awaits."""
    order = []

    class Manager:
        async def __aenter__(self):
            await js.resolve()
            order.append("enter")

        async def __aexit__(self, *_exc):
            await js.resolve()
            order.append("exit")

    async def numbers():
        for i in range(3):
            await js.sleep(0)
            yield i

    async def body():
        async with Manager():
            return [i async for i in numbers()]

    assert page.value(js.spawn(body())) == [0, 1, 2]
    assert order == ["enter", "exit"]


# --- the order of steps ----------------------------------------------------------------------------------------------


def test_the_first_step_is_synchronous(page, js):
    """27.7.5.1: on the loop's thread the body runs to its first await before spawn returns."""
    order = []

    async def body():
        order.append("first step")
        await js.resolve()
        order.append("second step")

    def scene():
        promise = js.spawn(body())
        order.append("spawned")
        js.queue_microtask(order.append, "microtask")
        return promise

    page.on_loop(scene)
    assert order == ["first step", "spawned", "second step", "microtask"]


def test_spawned_from_another_thread(make_page):
    """contract: every step is on the loop's thread."""
    page = make_page()
    threads = []
    done = threading.Event()

    async def body():
        threads.append(threading.current_thread())
        await page.js.sleep(1)
        threads.append(threading.current_thread())
        done.set()

    thread = page.loop.start()
    page.js.spawn(body())
    assert done.wait(30)
    page.loop.shutdown()
    assert threads == [thread, thread]


def test_one_job_for_an_await(page, js):
    """27.7.5.3, PromiseResolve in Await: a promise of the same view takes one job, one of another view three."""
    order = []

    async def ticking(name, make):
        for i in range(3):
            await make()
            order.append((name, i))

    def scene():
        js.spawn(ticking("a", js.resolve))
        js.spawn(ticking("b", js.resolve))

    page.on_loop(scene)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    order.clear()
    other = JS(page.loop)

    def scene_of_two_views():
        js.spawn(ticking("same", js.resolve))
        js.spawn(ticking("other", other.resolve))

    page.on_loop(scene_of_two_views)
    first_of_other = order.index(("other", 0))
    assert order[:first_of_other] == [("same", 0), ("same", 1), ("same", 2)]


def test_many_at_once(page, js):
    """contract: 2,000 coroutines, spawned from four threads."""

    async def body(i):
        await js.sleep(0)
        return i

    promises = together(4, lambda i: [js.spawn(body((i, n))) for n in range(500)])
    values = page.value(js.all([promise for some in promises for promise in some]))
    assert values == [(i, n) for i in range(4) for n in range(500)]


def test_a_long_chain_of_awaits(page, js):
    """contract: no recursion: 20,000 awaits of settled promises."""

    async def body():
        total = 0
        for i in range(20_000):
            total += await js.resolve(i)
        return total

    assert page.value(js.spawn(body())) == sum(range(20_000))


# --- other awaitables ------------------------------------------------------------------------------------------------


def test_futures(page, js):
    """contract: a concurrent.futures.Future is awaited through `resolve`."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        async def body():
            return await js.resolve(pool.submit(lambda: 5)), await page.loop.promisify(lambda: 6)

        assert page.value(js.spawn(body())) == (5, 6)


def test_a_promise_of_another_loop(make_page):
    """contract: followed; the coroutine stays on its own loop's thread."""
    page, other = make_page(), make_page()
    with other.loop:

        async def body():
            value = await other.js.sleep(1).then(lambda _value: threading.get_ident())
            return value != threading.get_ident()

        assert page.value(page.js.spawn(body())) is True


def test_foreign_awaitables(page, js):
    """contract: what belongs to another framework is a TypeError that names it, raised at the await."""

    class Foreign:
        def __await__(self):
            yield "a foreign token"

    async def fails():
        await Foreign()

    async def catches():
        with pytest.raises(TypeError, match=r"can await promises.*'a foreign token'"):
            await Foreign()
        return await js.resolve("goes on")

    async def sleeps():
        await asyncio.sleep(0)

    error = page.reason(js.spawn(fails()))
    assert isinstance(error, TypeError)
    assert page.value(js.spawn(catches())) == "goes on"
    assert isinstance(page.reason(js.spawn(sleeps())), TypeError)


@pytest.mark.parametrize("thing", [None, 5, print, iter(())], ids=["none", "int", "function", "iterator"])
def test_spawn_takes_coroutines(js, thing):
    """contract: TypeError."""
    with pytest.raises(TypeError, match="spawn takes a coroutine"):
        js.spawn(thing)


def test_spawn_follows_signals_only(js):
    """contract: TypeError, and the coroutine has not begun."""

    async def never():
        raise AssertionError

    coroutine = never()
    with pytest.raises(TypeError, match="signal must be an AbortSignal or None, not 5"):
        js.spawn(coroutine, signal=5)
    coroutine.close()


# --- abort -----------------------------------------------------------------------------------------------------------


def test_an_abort_raises_where_it_waits(page, js):
    """contract: `signal`: its reason at the current await, once; the coroutine may clean up, and go on."""
    controller = AbortController()
    order = []

    async def body():
        try:
            await js.with_resolvers()[0]
        except ValueError as error:
            order.append(error)
            await js.sleep(1)
            order.append("cleaned up")
        return "value"

    promise = js.spawn(body(), signal=controller.signal)
    page.turn()
    controller.abort(ERROR)
    controller.abort("second")
    assert page.value(promise) == "value"
    assert order == [ERROR, "cleaned up"]


def test_an_abort_that_nobody_catches(page, js):
    """contract: the promise is rejected with the reason; no exception: in a RejectedError."""
    for reason, expected in ((None, AbortError), ("text", RejectedError), (ERROR, ValueError)):
        controller = AbortController()

        async def body():
            await js.with_resolvers()[0]

        promise = js.spawn(body(), signal=controller.signal)
        page.turn()
        elsewhere(controller.abort, reason)
        assert isinstance(page.reason(promise), expected)


def test_aborted_before(page, js):
    """contract: the body never runs, and the promise has the reason itself."""
    ran = []

    async def body():
        ran.append(1)

    promise = js.spawn(body(), signal=AbortSignal.abort("reason"))
    assert page.reason(promise) == "reason"
    assert ran == []


def test_aborted_before_the_first_step(page, js):
    """contract: spawned elsewhere and aborted before the loop came to it: settled once, with the reason."""
    controller = AbortController()
    ran = []

    async def body():
        ran.append(1)
        await js.with_resolvers()[0]

    promise = js.spawn(body(), signal=controller.signal)
    controller.abort(ERROR)
    assert page.reason(promise) is ERROR
    page.quiet()
    assert page.unhandled == []


def test_what_it_awaited_does_not_resume_it(page, js):
    """contract: a promise that settles after an abort has interrupted the await is not heard any more."""
    controller = AbortController()
    awaited, resolve, _ = js.with_resolvers()

    async def body():
        try:
            await awaited
        except AbortError:
            return await js.sleep(1).then(lambda _value: "slept")

    promise = js.spawn(body(), signal=controller.signal)
    page.turn()
    controller.abort()
    resolve("late")
    page.turn()
    assert page.value(promise) == "slept"


def test_an_abort_after_the_end(page, js):
    """contract: nothing happens, not even to one that has ended with a promise that is still pending; the signal
    forgets it.
    """
    controller = AbortController()
    pending, resolve, _ = js.with_resolvers()

    async def returns():
        return 1

    async def aborts_and_returns():
        await js.resolve()
        controller.abort(ERROR)
        return pending

    async def returns_pending():
        return pending

    first = js.spawn(returns(), signal=controller.signal)
    second = js.spawn(returns_pending(), signal=controller.signal)
    page.turn()
    assert not controller.signal._algorithms
    third = js.spawn(aborts_and_returns(), signal=controller.signal)
    page.turn()
    assert (second.state, third.state) == ("pending", "pending")
    resolve(2)
    assert [page.value(first), page.value(second), page.value(third)] == [1, 2, 2]
    assert page.unhandled == []


def test_an_abort_beside_a_foreign_awaitable(page, js):
    """contract: one settlement even when two things would resume it."""
    controller = AbortController()

    class Foreign:
        def __await__(self):
            controller.abort(ERROR)
            yield 5

    async def body():
        await js.resolve()
        await Foreign()

    promise = js.spawn(body(), signal=controller.signal)
    assert page.reason(promise) is ERROR
    page.quiet()
    assert page.reason(promise) is ERROR


def test_aborts_racing_with_the_end(page, js):
    """contract: from another thread at any moment: one outcome."""
    for i in range(100):
        controller = AbortController()

        async def body():
            for _ in range(5):
                await js.resolve()
            return "value"

        promises = together(
            2,
            lambda who, controller=controller, i=i: (
                js.spawn(body(), signal=controller.signal) if who == 0 else controller.abort(i)
            ),
        )
        state, outcome = page.outcome(promises[0])
        assert (state, outcome) == ("fulfilled", "value") or (
            state == "rejected" and isinstance(outcome, RejectedError | int)
        )
        page.quiet()
        assert promises[0].state == state
    assert page.unhandled == []


# --- memory and the end ----------------------------------------------------------------------------------------------


def test_a_dropped_coroutine_is_closed(page, js):
    """contract: what waits for a promise that nobody can settle any more is collected, its finally blocks run."""
    order = []

    class Payload:
        pass

    async def body():
        payload = Payload()
        references.append(weakref.ref(payload))
        try:
            await js.with_resolvers()[0]
        finally:
            order.append("closed")

    references = []
    js.spawn(body())
    page.turn()
    gc.collect()
    assert order == ["closed"]
    assert references[0]() is None


def test_after_the_end(make_page):
    """A coroutine that waits when the loop has ended does not run on another thread; its promise is
    rejected.
    """
    page = make_page()
    threads = set()
    awaited, resolve, _ = page.js.with_resolvers()

    async def body():
        try:
            await awaited
        finally:
            threads.add(threading.get_ident())

    promise = page.js.spawn(body())
    page.turn()
    page.loop.close()
    elsewhere(resolve, 1)
    assert repr(promise).startswith("<Promise rejected LoopTerminatedError")
    coroutine = body()
    with pytest.raises(LoopTerminatedError):
        page.js.spawn(coroutine)
    coroutine.close()


def test_an_end_before_the_start_leaves_no_listener(make_page):
    """A coroutine that could not be scheduled is closed, and the signal forgets it."""
    page, controller = make_page(), AbortController()
    page.loop.close()

    async def body():
        raise AssertionError  # pragma: no cover

    coroutine = body()
    with pytest.raises(LoopTerminatedError):
        page.js.spawn(coroutine, signal=controller.signal)
    assert coroutine.cr_frame is None
    assert not controller.signal._algorithms
    controller.abort()


def test_what_leaves_the_loop_rejects_too(make_page):
    """SystemExit in a coroutine leaves run(), and whoever waits for the coroutine learns of it."""
    page, controller = make_page(), AbortController()

    async def body():
        raise SystemExit(3)

    page.js.queue_microtask(lambda: promises.append(page.js.spawn(body(), signal=controller.signal)))
    promises = []
    with pytest.raises(SystemExit):
        page.turn()
    page.loop.submit(lambda: promises[0].catch(seen.append) if promises else None)
    seen = []
    page.turn()
    assert not controller.signal._algorithms


def entries(error):
    """How long its traceback is."""
    count, traceback = 0, error.__traceback__
    while traceback is not None:
        count, traceback = count + 1, traceback.tb_next
    return count


@pytest.mark.parametrize("caught", [True, False])
def test_one_exception_awaited_again_and_again(page, caught):
    """Its traceback is as long after a hundred coroutines as after one, as asyncio's."""
    error, lengths = ValueError("cached"), []
    rejected = page.js.reject(error)
    rejected.catch(lambda reason: None)

    async def user():
        try:
            await rejected
        except ValueError:
            if not caught:
                raise
        finally:
            lengths.append(entries(error))

    for _ in range(100):
        page.js.spawn(user()).catch(lambda reason: None)
    page.quiet()
    assert len(lengths) == 100
    assert lengths[0] == lengths[-1]


class Held:
    """What a failed function holds."""


async def raises(held):
    raise ValueError


def fails(held, *_more):
    raise ValueError


async def awaits(js, held):
    await js.reject(ValueError())


async def catches(js, held):
    with contextlib.suppress(ValueError):
        await js.reject(ValueError())


class Thenable:
    """One whose `then` raises, or cannot be had."""

    def __init__(self, held, early):
        self.held, self.early = held, early

    @property
    def then(self):
        if self.early:
            fails(self.held)
        return lambda resolve, reject: fails(self.held)


FAILURES = {
    "spawn": lambda js, held: js.spawn(raises(held)),
    "await": lambda js, held: js.spawn(awaits(js, held)),
    "caught": lambda js, held: js.spawn(catches(js, held)),
    "executor": lambda js, held: js.promise(lambda resolve, reject, held=held: fails(held)),
    "try_": lambda js, held: js.try_(fails, held),
    "then": lambda js, held: js.resolve(held).then(fails),
    "thenable": lambda js, held: js.resolve(Thenable(held, early=False)),
    "getter": lambda js, held: js.resolve(Thenable(held, early=True)),
    "all": lambda js, held: js.all([js.resolve(held), js.reject(ValueError())]),
    "iterable": lambda js, held: js.all(fails(one) for one in [held]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_leaves_no_cycle(page, name):
    """What a failed function or coroutine held goes with it, and does not wait for a collection."""
    gone = []

    def start():
        held = Held()
        gone.append(weakref.ref(held))
        FAILURES[name](page.js, held).catch(lambda reason: None)

    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            page.loop.submit(start)
        page.quiet()
        assert [one() for one in gone] == [None] * 10
    finally:
        gc.enable()
