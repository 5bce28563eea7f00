"""JavaScript's view of a loop: promises, their combinators, coroutines, timers, abort signals, events."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

from nbloop import LoopState
from nbloop.js import JS, AbortController, AbortSignal, Event, EventTarget, Promise
from nbloop.js.coroutines import coroutines_of
from tests.support.arrivals import Interruption
from tests.support.waiting import PATIENCE
from tests.support.world import World

from .scenario import Count, Steps, scenario, until_quiet


def _makes(world: World, make: Callable[[JS], Any], *, elsewhere: bool = False) -> Steps:
    """A call that makes a promise, which settles if there is one."""
    loop = world.running() if elsewhere else world.loop()
    js = world.to_go(JS(loop, on_unhandled_rejection=lambda _reason, _promise: None))
    made: list[Promise[Any]] = []
    settled = Count()
    yield lambda: made.append(make(js))
    for promise in made:
        world.to_go(promise)
        promise.then(settled, settled)
    if loop.state is LoopState.AWAKE:
        until_quiet(loop)
    else:
        for promise in made:
            with contextlib.suppress(ZeroDivisionError, Interruption, KeyboardInterrupt):
                promise.result(PATIENCE)
    loop.shutdown(PATIENCE)
    assert settled.calls == len(made)


async def _steps(js: JS) -> int:
    await js.sleep(0)
    with contextlib.suppress(ZeroDivisionError):
        await js.reject(ZeroDivisionError())
    return 1


_MAKES: dict[str, Callable[[JS], Any]] = {
    "executor": lambda js: js.promise(lambda resolve, _reject: resolve(1)),
    "resolve": lambda js: js.resolve(1),
    "reject": lambda js: js.reject(ZeroDivisionError()),
    "sleep": lambda js: js.sleep(0),
    "then": lambda js: js.resolve(1).then(str).catch(int),
    "finally": lambda js: js.resolve(1).finally_(int),
    "thenable": lambda js: js.resolve(js.resolve(js.sleep(0))),
    "all": lambda js: js.all([1, js.sleep(0), js.resolve(2)]),
    "all_settled": lambda js: js.all_settled([1, js.sleep(0), js.resolve(2)]),
    "any": lambda js: js.any([js.sleep(0), js.reject(ZeroDivisionError())]),
    "race": lambda js: js.race([1, js.sleep(0), js.resolve(2)]),
    "spawn": lambda js: js.spawn(_steps(js)),
    "spawn_with_signal": lambda js: js.spawn(_steps(js), signal=AbortController().signal),
}


def _declare() -> None:
    for name, make in _MAKES.items():
        for elsewhere in (False, True):

            def steps(world: World, make: Callable[[JS], Any] = make, elsewhere: bool = elsewhere) -> Steps:
                return _makes(world, make, elsewhere=elsewhere)

            steps.__name__ = f"promise_{name}{'_elsewhere' if elsewhere else ''}"
            scenario(steps)


_declare()


@scenario
def view(world: World) -> Steps:
    """A view, or none."""
    loop = world.loop()
    yield lambda: world.to_go(JS(loop))


def _runs(world: World, begin: Callable[[JS], Promise[Any]]) -> Steps:
    """The loop's own thread is interrupted, in the middle of what promises and coroutines do there. What it was in may
    be lost; everything else goes on.
    """
    loop = world.loop()
    js = world.to_go(JS(loop, on_unhandled_rejection=lambda _reason, _promise: None))
    world.to_go(begin(js))
    # None of these is a function of Python, in which the signal could be handled; `sleep` wakes in one.
    later, resolve, _ = js.with_resolvers()
    js.set_timeout(resolve, 1)
    js.set_timeout(loop.stop, 2)
    values: list[None] = []
    later.then(values.append)
    yield loop.run
    until_quiet(loop)
    assert values == [None]


@scenario
def run_reactions(world: World) -> Steps:
    """The loop goes on."""
    return _runs(world, lambda js: js.all([js.sleep(0).finally_(int), js.resolve(js.sleep(0)).then(str)]))


def _settles(world: World, begin: Callable[[JS], Promise[Any]]) -> Steps:
    """A coroutine, or what it waits for, is interrupted at a step. Its promise settles all the same."""
    loop = world.loop(auto_exit=True)
    js = world.to_go(JS(loop, on_unhandled_rejection=lambda _reason, _promise: None))
    settled: list[object] = []
    begin(js).then(settled.append, settled.append)  # no function of Python, which the signal could interrupt instead
    yield loop.run
    if loop.state is LoopState.AWAKE:
        until_quiet(loop)
    assert len(settled) == 1
    settled.clear()  # an exception refers to what it has passed through
    assert not coroutines_of(loop).running.all()


async def _awaits(js: JS) -> int:
    with contextlib.suppress(ZeroDivisionError):
        await js.reject(ZeroDivisionError())
    await js.resolve(1)
    return 1


@scenario
def run_coroutine(world: World) -> Steps:
    """Its promise settles."""
    return _settles(world, lambda js: js.spawn(_awaits(js)))


@scenario
def run_sleep(world: World) -> Steps:
    """It is over in time, or the coroutine has been interrupted."""
    return _settles(world, lambda js: js.spawn(_steps(js), signal=AbortController().signal))


@scenario
def result(world: World) -> Steps:
    """It can be waited for again."""
    promise = world.to_go(JS(world.running()).sleep(1))
    yield promise.result
    promise.result(PATIENCE)


@scenario
def future(world: World) -> Steps:
    """A future, or none."""
    promise = world.to_go(JS(world.running()).sleep(1))
    yield promise.future
    promise.future().result(PATIENCE)


@scenario
def timers(world: World) -> Steps:
    """Armed, or not."""
    loop, count = world.loop(), Count()
    js = JS(loop)
    yield lambda: js.set_timeout(count.add, 0)
    until_quiet(loop)
    assert count.calls <= 1


@scenario
def abort(world: World) -> Steps:
    """Aborted with all that follows, or not."""
    loop = world.loop()
    js = JS(loop)
    controller, heard = AbortController(), Count()
    composite = world.to_go(AbortSignal.any([controller.signal, AbortSignal.timeout(js, 1000)]))
    composite.on_abort(heard)
    yield controller.abort
    controller.abort()
    assert controller.signal.aborted
    until_quiet(loop)
    assert heard.calls <= 1


@scenario
def dispatch(world: World) -> Steps:
    """The event can be dispatched again."""
    world.loop()
    target, event, heard = EventTarget(), Event("x"), Count()
    target.add_event_listener("x", heard)
    yield lambda: target.dispatch_event(event)
    target.dispatch_event(event)
    assert heard.calls in (1, 2)


@scenario
def queue_with_two_takers(world: World) -> Steps:
    """An interruption loses no more than the item, or the taker, that it meets: later items come, at once."""
    loop = world.loop()
    js = world.to_go(JS(loop, on_unhandled_rejection=lambda _reason, _promise: None))
    items, got = js.queue(), []

    async def take() -> None:
        async for item in items:
            got.append(item)  # noqa: PERF401

    def put_and_take() -> None:
        for number in range(2):
            items.put(number)
        loop.stop()
        loop.run()

    for _ in range(2):
        js.spawn(take())
    until_quiet(loop)
    yield put_and_take
    until_quiet(loop)
    js.spawn(take())
    until_quiet(loop)
    assert len(items) == 0
    got.clear()
    for number in (3, 4, 5):
        items.put(number)
    until_quiet(loop)
    if len(got) < 3:  # a taker that was lost at the end of its step was handed one, and is closed by the collector
        gc.collect()
        until_quiet(loop)
    assert sorted(got) == [3, 4, 5]
    items.shutdown()
    until_quiet(loop)
    assert items._waiting == {}


@scenario
def queue_with_an_interrupted_end(world: World) -> Steps:
    """All takers learn of the end without another call, if it has begun."""
    loop = world.loop()
    js = world.to_go(JS(loop, on_unhandled_rejection=lambda _reason, _promise: None))
    items = js.queue()
    for _ in range(3):
        js.spawn(items.get())
    until_quiet(loop)
    yield items.shutdown
    until_quiet(loop)
    assert not items._waiting or not items._shut
    items.shutdown()
    until_quiet(loop)
    assert not items._waiting


@scenario
def queue_of_an_interrupted_put(world: World) -> Steps:
    """The item is put, and the taker has it without another call, or it is lost."""
    loop = world.loop()
    js = world.to_go(JS(loop, on_unhandled_rejection=lambda _reason, _promise: None))
    items, got = js.queue(), []

    async def take() -> None:
        got.append(await items.get())

    js.spawn(take())
    until_quiet(loop)
    yield lambda: items.put(1)
    until_quiet(loop)
    assert len(items) == 0
    if not got:
        items.put(2)
        until_quiet(loop)
    assert got in ([1], [2])
