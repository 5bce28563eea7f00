"""`JS.timeout` and `JS.group`, against asyncio's `timeout` and `TaskGroup`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import threading
import weakref

import pytest

from nbloop import LoopTerminatedError
from nbloop.js import JS, AbortController, AbortError, CancelledError
from tests.support.waiting import elsewhere

# --- the same programs on both ----------------------------------------------------------------------------------------


class Ours:
    Cancelled = CancelledError

    def __init__(self, page):
        self.page, self.js, self.trace = page, page.js, []

    def sleep(self, ms):
        return self.js.sleep(ms)

    def timeout(self, ms):
        return self.js.timeout(ms)

    def group(self):
        return self.js.group()

    def spawn_in(self, group, coroutine):
        return group.spawn(coroutine)

    def run(self, program):
        state, outcome = self.page.outcome(self.js.spawn(program(self)))
        self.page.turn(3)
        return self.trace, state, described(outcome)


class Theirs:
    Cancelled = asyncio.CancelledError

    def __init__(self):
        self.trace = []

    def sleep(self, ms):
        return asyncio.sleep(ms / 1e3)

    def timeout(self, ms):
        return asyncio.timeout(ms / 1e3)

    def group(self):
        return asyncio.TaskGroup()

    def spawn_in(self, group, coroutine):
        return group.create_task(coroutine)

    def run(self, program):
        try:
            return self.trace, "fulfilled", described(asyncio.run(program(self)))
        except BaseException as error:
            return self.trace, "rejected", described(error)


def described(outcome):
    """An exception by its type and what it is made of: ours and asyncio's of one name are the same."""
    if isinstance(outcome, BaseExceptionGroup):
        return type(outcome).__name__, [described(one) for one in outcome.exceptions]
    if isinstance(outcome, BaseException):
        return type(outcome).__name__
    return outcome


async def forever(env, name="forever"):
    """Says how it ended."""
    try:
        await env.sleep(1e6)
    except env.Cancelled:
        env.trace.append(f"{name} cancelled")
        raise


async def fails(env, ms=1, error=ValueError):
    await env.sleep(ms)
    raise error


async def returns(env, value, ms=1):
    await env.sleep(ms)
    return value


async def in_time(env):
    async with env.timeout(1e6):
        return await returns(env, 7)


async def too_late(env):
    async with env.timeout(1):
        await forever(env)


async def too_late_and_caught(env):
    try:
        async with env.timeout(1):
            await forever(env)
    except TimeoutError:
        env.trace.append("caught")
    await env.sleep(1)
    return "goes on"


async def swallowed(env):
    async with env.timeout(1):
        with contextlib.suppress(env.Cancelled):
            await env.sleep(1e6)
        await env.sleep(1)
        env.trace.append("after")
    return "no TimeoutError"


async def another_exception(env):
    async with env.timeout(1):
        try:
            await env.sleep(1e6)
        finally:
            raise LookupError


async def outer_first(env):
    try:
        async with env.timeout(1):
            try:
                async with env.timeout(1e6):
                    await forever(env)
            except TimeoutError:
                env.trace.append("inner")
    except TimeoutError:
        env.trace.append("outer")


async def inner_first(env):
    async with env.timeout(1e6):
        try:
            async with env.timeout(1):
                await forever(env)
        except TimeoutError:
            env.trace.append("inner")
        return await returns(env, 1)


async def outer_while_inner_cleans_up(env):
    try:
        async with env.timeout(150):
            try:
                async with env.timeout(1):
                    try:
                        await forever(env)
                    finally:
                        await forever(env, "cleanup")
            except TimeoutError:
                env.trace.append("inner")
    except TimeoutError:
        env.trace.append("outer")


async def inner_while_outer_cleans_up(env):
    try:
        async with env.timeout(1), env.timeout(150):
            try:
                await forever(env)
            finally:
                await forever(env, "cleanup")
    except TimeoutError:
        env.trace.append("outer")


async def all_return(env):
    async with env.group() as group:
        promises = [env.spawn_in(group, returns(env, i)) for i in range(5)]
    return [await promise for promise in promises]


async def empty_group(env):
    async with env.group():
        pass
    return "empty"


async def body_waits_for_children(env):
    async with env.group() as group:
        first = await env.spawn_in(group, returns(env, 1))
        second = await env.spawn_in(group, returns(env, 2))
        return first + second


async def one_fails(env):
    async with env.group() as group:
        env.spawn_in(group, forever(env, "a"))
        env.spawn_in(group, fails(env))
        env.spawn_in(group, forever(env, "b"))
        await forever(env, "body")


async def one_fails_while_leaving(env):
    async with env.group() as group:
        env.spawn_in(group, forever(env, "a"))
        env.spawn_in(group, fails(env))


async def one_fails_at_once(env):
    async def at_once():
        raise ValueError

    async with env.group() as group:
        env.spawn_in(group, at_once())
        env.trace.append("spawned")
        await forever(env, "body")


async def after_a_failure(env):
    try:
        async with env.group() as group:
            env.spawn_in(group, fails(env))
            await forever(env, "body")
    except* ValueError:
        env.trace.append("caught")
    await env.sleep(1)
    return "goes on"


async def several_fail(env):
    async def fails_too():
        try:
            await env.sleep(1e6)
        finally:
            raise LookupError

    async with env.group() as group:
        env.spawn_in(group, fails_too())
        env.spawn_in(group, fails_too())
        env.spawn_in(group, fails(env))


async def body_fails(env):
    async with env.group() as group:
        env.spawn_in(group, forever(env, "a"))
        await env.sleep(1)
        raise KeyError


async def body_and_child_fail(env):
    async with env.group() as group:
        env.spawn_in(group, fails(env))
        try:
            await forever(env, "body")
        finally:
            raise KeyError


async def child_cancels_itself(env):
    async def cancels():
        await env.sleep(1)
        raise env.Cancelled

    async with env.group() as group:
        env.spawn_in(group, cancels())
        env.spawn_in(group, returns(env, 1, 5))
    return "goes on"


async def child_does_not_want_to(env):
    async def stubborn():
        with contextlib.suppress(env.Cancelled):
            await env.sleep(1e6)
        await env.sleep(1)
        env.trace.append("stubborn")

    async with env.group() as group:
        env.spawn_in(group, stubborn())
        env.spawn_in(group, fails(env))


async def spawned_by_children(env):
    async with env.group() as group:

        async def grows(depth):
            await env.sleep(0)
            env.trace.append(depth)
            if depth:
                env.spawn_in(group, grows(depth - 1))

        env.spawn_in(group, grows(4))


async def spawned_too_late(env):
    async with env.group() as group:
        pass
    coroutine = forever(env)
    try:
        env.spawn_in(group, coroutine)
    except RuntimeError:
        env.trace.append(coroutine.cr_frame)


async def spawned_while_cancelled(env):
    async with env.group() as group:
        env.spawn_in(group, fails(env))
        try:
            await env.sleep(1e6)
        except env.Cancelled:
            coroutine = forever(env)
            try:
                env.spawn_in(group, coroutine)
            except RuntimeError:
                env.trace.append(coroutine.cr_frame)
            raise


async def group_in_a_timeout(env):
    async with env.timeout(5), env.group() as group:
        env.spawn_in(group, forever(env, "a"))
        env.spawn_in(group, forever(env, "b"))
        await forever(env, "body")


async def group_in_a_timeout_while_leaving(env):
    async with env.timeout(5), env.group() as group:
        env.spawn_in(group, forever(env, "a"))


async def timeout_in_a_group(env):
    async def limited():
        async with env.timeout(1):
            await forever(env, "limited")

    async with env.group() as group:
        env.spawn_in(group, limited())
        env.spawn_in(group, forever(env, "a"))


async def nested_groups(env):
    async def inner():
        async with env.group() as group:
            env.spawn_in(group, forever(env, "inner"))
            await forever(env, "inner body")

    async with env.group() as group:
        env.spawn_in(group, inner())
        env.spawn_in(group, fails(env, 2))


async def failure_of_an_inner_group(env):
    async with env.group() as outer:
        env.spawn_in(outer, forever(env, "outer"))
        async with env.group() as inner:
            env.spawn_in(inner, fails(env))
            await forever(env, "body")


async def timeout_while_a_failed_group_cleans_up(env):
    async def slow():
        try:
            await env.sleep(1e6)
        finally:
            await env.sleep(300)

    async with env.timeout(100), env.group() as group:
        env.spawn_in(group, slow())
        env.spawn_in(group, fails(env))


PROGRAMS = [thing for name, thing in list(globals().items()) if inspect.iscoroutinefunction(thing)]
PROGRAMS = [program for program in PROGRAMS if program not in (forever, fails, returns)]


@pytest.mark.filterwarnings("ignore:.*asyncio.iscoroutinefunction:DeprecationWarning")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_as_asyncio(page, program):
    """contract, nbloop.js: `timeout` and `group` as asyncio's."""
    ours, theirs = Ours(page).run(program), Theirs().run(program)
    if program in (one_fails, group_in_a_timeout):  # asyncio cancels in the order of a set
        ours[0].sort()
        theirs[0].sort()
    assert ours == theirs
    assert page.unhandled == []


# --- what asyncio has no word for -------------------------------------------------------------------------------------


def test_an_abort_cancels_the_group(page, js):
    """contract: an aborted signal leaves the group as its reason, when all have ended."""
    env, controller = Ours(page), AbortController()

    async def body():
        async with js.group() as group:
            group.spawn(forever(env, "a"))
            await forever(env, "body")

    async def leaving():
        async with js.group() as group:
            group.spawn(forever(env, "b"))

    promises = [js.spawn(body(), signal=controller.signal), js.spawn(leaving(), signal=controller.signal)]
    page.turn()
    controller.abort()
    assert [type(page.reason(promise)) for promise in promises] == [AbortError] * 2
    assert sorted(env.trace) == ["a cancelled", "b cancelled"]


def test_the_loop_s_end_cancels_the_group(make_page):
    """contract: the block and all of the group are cancelled, once each; the promises are rejected."""
    page = make_page()
    env = Ours(page)

    async def cleans_up():
        try:
            await forever(env, "a")
        finally:
            await page.js.resolve()
            env.trace.append("cleaned up")

    async def body():
        async with page.js.timeout(1e6), page.js.group() as group:
            children.append(group.spawn(cleans_up()))
            await forever(env, "body")

    children = []
    promise = page.js.spawn(body())
    page.turn()
    page.loop.shutdown()
    assert env.trace == ["a cancelled", "body cancelled", "cleaned up"]
    assert [type(one.reason) for one in (promise, *children)] == [LoopTerminatedError] * 2
    assert page.unhandled == []


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_scopes_in_a_cleanup_at_the_end(make_page, end):
    """contract: a block that is entered at the loop's end has no limit, and a group may be left."""
    page, order = make_page(), []

    async def body():
        try:
            await page.never()
        finally:
            async with page.js.timeout(1):
                order.append("in time")
            async with page.js.group():
                order.append("in a group")

    page.js.spawn(body())
    page.turn()
    getattr(page.loop, end)()
    assert order == ["in time", "in a group"]


def test_only_in_coroutines_of_the_loop(page, js):
    """contract: RuntimeError outside of coroutines that `spawn` runs on this loop, and for a second entry."""

    async def enter(scope):
        async with scope:
            pass

    async def both(scope):
        await enter(scope)
        await enter(scope)

    async def not_entered():
        group = js.group()
        coroutine = forever(Ours(page))
        with pytest.raises(RuntimeError, match="has not been entered"):
            group.spawn(coroutine)
        assert coroutine.cr_frame is None
        with pytest.raises(TypeError, match="spawn takes a coroutine"):
            group.spawn(5)

    async def from_another_thread():
        async with js.group() as group:
            coroutine = forever(Ours(page))
            with pytest.raises(RuntimeError, match="loop's thread"):
                elsewhere(group.spawn, coroutine)

    page.value(js.spawn(not_entered()))
    page.value(js.spawn(from_another_thread()))
    for make in (js.group, lambda: js.timeout(1)):
        with pytest.raises(RuntimeError, match=r"is for coroutines that js\.spawn runs"):
            asyncio.run(enter(make()))
        assert isinstance(page.reason(js.spawn(both(make()))), RuntimeError)
        assert isinstance(page.reason(JS(page.loop).spawn(both(make()))), RuntimeError)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), 5e12, 10**400, None, "1", True])
def test_bad_limits(js, wrong):
    """contract: TypeError and ValueError."""
    with pytest.raises((TypeError, ValueError), match="ms must be"):
        js.timeout(wrong)


def test_expired(page, js):
    """`Timeout.expired` says whether the time was over in the block."""

    async def body(ms):
        limit = js.timeout(ms)
        with contextlib.suppress(TimeoutError):
            async with limit:
                await js.sleep(5)
        return limit.expired

    assert page.value(js.spawn(body(1))) is True
    assert page.value(js.spawn(body(1e6))) is False
    page.quiet()  # its timer is gone


@pytest.mark.parametrize("leaves", [KeyboardInterrupt, SystemExit])
def test_what_leaves_the_loop(make_page, leaves):
    """contract: KeyboardInterrupt and SystemExit in a child leave run(), and the group as they are."""
    page = make_page()

    async def child():
        await page.js.resolve()
        raise leaves

    async def body():
        async with page.js.group() as group:
            group.spawn(forever(env, "a"))
            group.spawn(child())
            await forever(env, "body")

    env = Ours(page)
    caught = []

    async def outer():
        try:
            await body()
        except BaseException as error:
            caught.append(type(error))

    page.js.spawn(outer())
    with pytest.raises(leaves):
        page.turn()
    page.turn(5)
    assert caught == [leaves]
    assert env.trace == ["body cancelled", "a cancelled"]


def test_a_failed_group_leaves_no_cycle(page, js):
    """What failed coroutines of a group held goes with them."""

    class Held:
        """Can be referred to weakly."""

    gone = []

    async def holds(held):
        await js.resolve()
        raise ValueError

    async def body():
        with contextlib.suppress(ExceptionGroup):
            async with js.group() as group:
                held = Held()
                gone.append(weakref.ref(held))
                group.spawn(holds(held))
                del held
                await js.with_resolvers()[0]

    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            page.value(js.spawn(body()))
        assert [one() for one in gone] == [None] * 5
    finally:
        gc.enable()


def test_a_thread_waits_for_a_group(make_page):
    """contract: a child's promise is any thread's."""
    page = make_page()
    with page.loop:
        found = []
        known = threading.Event()

        async def body():
            async with page.js.group() as group:
                found.append(group.spawn(returns(Ours(page), 5)))
                known.set()

        page.js.spawn(body()).result(30)
        assert known.is_set()
        assert found[0].result(30) == 5
