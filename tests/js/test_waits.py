"""What coroutines wait for: `sleep` and `promisify` with a limit, `queue`, `interval`, `once`, `on`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import signal
import threading
import weakref
from fractions import Fraction

import pytest

from nbloop import Loop, LoopTerminatedError
from nbloop.js import JS, AbortController, AbortError, AbortSignal, CancelledError, CustomEvent, Event, EventTarget
from nbloop.js.coroutines import coroutines_of
from tests.support.arrivals import at_each_place, compiled_only, described, handled
from tests.support.driver import Page
from tests.support.waiting import PATIENCE, elsewhere, together, wait_for

# --- limits of sleep and promisify ------------------------------------------------------------------------------------


def sleeping(page, **limits):
    return page.js.sleep(1e6, **limits)


def working(page, **limits):
    """In seconds, as all that is the loop's."""
    if "timeout" in limits:
        limits["timeout"] /= 1e3
    return page.loop.promisify(page.gate.wait, PATIENCE, **limits)


@pytest.fixture
def gated(page):
    """A page with a gate for its workers, which is open in the end."""
    page.gate = threading.Event()
    yield page
    page.gate.set()
    page.loop.shutdown()


WAITS = pytest.mark.parametrize("wait", [sleeping, working], ids=["sleep", "promisify"])


@WAITS
def test_an_abort_rejects(gated, wait):
    """contract: `signal`: its reason, from any thread; nothing listens any more, and no timer is left."""
    for reason in ("text", ValueError("why"), None):
        controller = AbortController()
        promise = wait(gated, signal=controller.signal)
        gated.turn()
        assert promise.state == "pending"
        elsewhere(controller.abort, reason)
        got = gated.reason(promise)
        assert got is reason or (reason is None and type(got) is AbortError)
        assert not controller.signal._algorithms
    gated.gate.set()
    gated.quiet()


@WAITS
def test_aborted_before(gated, wait):
    """contract: one that is aborted already: at once, and the function never begins."""
    assert gated.reason(wait(gated, signal=AbortSignal.abort("why"))) == "why"
    gated.quiet()


@WAITS
def test_a_timeout_rejects(gated, wait):
    """contract: `timeout`: TimeoutError, in milliseconds of a view and seconds of a loop."""
    assert type(gated.reason(wait(gated, timeout=1))) is TimeoutError
    assert type(gated.reason(wait(gated, timeout=1, signal=AbortController().signal))) is TimeoutError
    gated.gate.set()
    gated.quiet()


@WAITS
def test_in_time(gated, wait):
    """contract: what is done in time is as without a limit, and leaves neither timer nor listener."""
    gated.gate.set()
    controller = AbortController()
    limits = {"signal": controller.signal, "timeout": 1e6}
    promise = gated.js.sleep(1, **limits) if wait is sleeping else wait(gated, **limits)
    assert gated.value(promise) in (None, True)
    gated.quiet()
    wait_for(lambda: not controller.signal._strong and not controller.signal._algorithms)
    del promise, limits
    gc.collect()
    assert not controller.signal._dependents
    assert gated.loop._record["timers"]["live_here"] + gated.loop._record["timers"]["live_elsewhere"] == 0
    controller.abort()


@WAITS
@pytest.mark.parametrize(
    "wrong", [{"signal": 5}, {"timeout": "1"}, {"timeout": -1}, {"timeout": float("nan")}], ids=repr
)
def test_bad_limits(page, wait, wrong):
    """contract: TypeError and ValueError name the argument; nothing was stored."""
    page.gate = threading.Event()
    page.gate.set()
    if wait is working:
        wrong = dict(wrong)
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            page.loop.promisify(page.gate.wait, **wrong)
    else:
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            page.js.sleep(1e6, **wrong)
    page.turn()
    assert not page.loop.alive()


NO_TIME = ("1", float("nan"), float("inf"), 5e12, 10**400)
CHECKED = {
    "sleep": ("ms", lambda page, wrong, **more: page.js.sleep(wrong, **more), (*NO_TIME, None)),
    "sleep's limit": ("timeout", lambda page, wrong, **more: page.js.sleep(1, timeout=wrong, **more), (*NO_TIME, -1)),
    "promisify": ("function", lambda page, wrong, **more: page.loop.promisify(wrong, **more), (5, None)),
    "promisify's limit": (
        "timeout",
        lambda page, wrong, **more: page.loop.promisify(int, timeout=wrong, **more),
        (*NO_TIME, -1, 5e9),
    ),
    "once": ("target", lambda page, wrong, **more: page.js.once(wrong, "x", **more), (5, None)),
    "once's type": ("type", lambda page, wrong, **more: page.js.once(page.target, wrong, **more), (5, None)),
    "on": ("target", lambda page, wrong, **more: page.js.on(wrong, "x", **more), (5, None)),
    "on's type": ("type", lambda page, wrong, **more: page.js.on(page.target, wrong, **more), (5, None)),
    "spawn": ("spawn takes a coroutine", lambda page, wrong, **more: page.js.spawn(wrong, **more), (5, int)),
}


@pytest.mark.parametrize("call", CHECKED)
@pytest.mark.parametrize("state", ["none", "not aborted", "aborted"])
def test_arguments_come_before_the_signal(page, call, state):
    """contract: TypeError and ValueError name the argument, whatever the signal's state; nothing was stored."""
    name, wait, wrongs = CHECKED[call]
    page.target = EventTarget()
    controller = AbortController()
    if state == "aborted":
        controller.abort()
    more = {} if state == "none" else {"signal": controller.signal}
    for wrong in wrongs:
        with pytest.raises((TypeError, ValueError), match=f"^{name}( must be .*)?, not "):
            wait(page, wrong, **more)
    assert page.target._listeners == ()
    assert controller.signal._algorithms == {}
    assert page.loop._record["timers"]["live_here"] + page.loop._record["timers"]["live_elsewhere"] == 0
    assert not page.loop.alive()


def test_sleep_takes_each_number_that_a_timer_takes(page, js):
    """contract: delays: negative is 0; the longest is 4e12 ms, and nobody waits for it."""

    class Number:
        def __index__(self):
            return 1

    aborted = AbortSignal.abort("why")
    for ms in (-1, -float("inf"), True, Fraction(1, 3), Number()):
        js.clear_timeout(js.set_timeout(int, ms))
        assert page.value(js.sleep(ms)) is None
        assert page.reason(js.sleep(ms, signal=aborted)) == "why"
    assert page.reason(js.sleep(4e12, timeout=4e12, signal=aborted)) == "why"
    js.timeout(4e12)
    js.interval(4e12)
    controller = AbortController()
    promise = js.sleep(4e12, signal=controller.signal)
    controller.abort("enough")
    assert page.reason(promise) == "enough"


@WAITS
@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_the_end_with_a_limit(make_page, wait, end):
    """contract: promises settle when the loop ends, and the signal is let go of."""
    page, controller = make_page(), AbortController()
    page.gate = threading.Event()
    promise = wait(page, signal=controller.signal, timeout=1e6)
    page.turn()
    if wait is working:
        if end == "close":
            page.loop.close()
            page.gate.set()
        else:
            page.gate.set()
            page.loop.shutdown()
    else:
        getattr(page.loop, end)()
    assert promise.state != "pending"
    wait_for(lambda: not controller.signal._strong)
    controller.abort()


def test_aborted_in_the_queue(make_page):
    """contract: a function that has not begun never will; the loop goes on to wait for one that has."""
    page, controller, ran = make_page(workers=1), AbortController(), []
    gate, inside = threading.Event(), threading.Event()
    first = page.loop.promisify(lambda: (inside.set(), gate.wait(PATIENCE)), signal=controller.signal)
    second = page.loop.promisify(ran.append, 2, signal=controller.signal)
    third = page.loop.promisify(ran.append, 3)
    wait_for(inside)
    controller.abort("why")
    assert (page.reason(first), page.reason(second)) == ("why", "why")
    assert page.loop.alive()
    gate.set()
    page.value(third)
    assert ran == [3]
    page.quiet()


@pytest.mark.parametrize("most", [1, 2, 40])
def test_workers(make_page, most):
    """contract: `Loop(workers=n)`: so many functions of `promisify` run at once."""
    page = make_page(workers=most)
    barrier, running, seen = threading.Barrier(most), [], []

    def function():
        running.append(1)
        seen.append(len(running))
        barrier.wait(PATIENCE)
        running.pop()

    page.value(page.js.all([page.loop.promisify(function) for _ in range(2 * most)]))
    assert max(seen) == most
    assert page.loop._workers._threads == most


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "4", (1 << 15) + 1])
def test_workers_is_checked(wrong):
    """contract: the error names the option."""
    with pytest.raises((TypeError, ValueError), match="workers must be"):
        Loop(workers=wrong)


# --- a queue ----------------------------------------------------------------------------------------------------------


async def taken(items, count=None):
    """All, or so many."""
    got = []
    async for item in items:
        got.append(item)
        if len(got) == count:
            break
    return got


def test_from_any_thread(make_page):
    """contract: `queue`: each item once, those of a thread in order, then the end."""
    page = make_page()
    items = page.js.queue()
    with page.loop:
        promise = page.js.spawn(taken(items))

        def put(i):
            for n in range(1_000):
                items.put((i, n))

        together(4, put)
        items.shutdown()
        got = promise.result(PATIENCE)
    for i in range(4):
        assert [n for j, n in got if j == i] == list(range(1_000))
    assert len(got) == 4_000
    assert len(items) == 0


def test_several_takers(page, js):
    """contract: of several coroutines that wait, the first gets the first."""
    items, got = js.queue(), []

    async def take(name):
        got.append((name, await items.get()))

    for name in "abc":
        js.spawn(take(name))
    page.turn()
    for i in range(3):
        items.put(i)
    page.quiet()
    assert got == [("a", 0), ("b", 1), ("c", 2)]


def test_the_end_of_a_queue(page, js):
    """contract: after `shutdown` items are taken still, then iteration ends and `get` and `put` raise ShutDown."""
    items = js.queue()
    waiting = [js.spawn(taken(items)), js.spawn(items.get())]
    page.turn()
    items.shutdown()
    items.shutdown()
    assert page.value(waiting[0]) == []
    assert isinstance(page.reason(waiting[1]), queue.ShutDown)
    with pytest.raises(queue.ShutDown):
        items.put(1)
    more = js.queue()
    more.put(1)
    more.put(2)
    more.shutdown()
    assert page.value(js.spawn(taken(more))) == [1, 2]


@pytest.mark.parametrize("when", ["waiting", "woken"])
def test_a_cancelled_taker_takes_nothing(page, js, when):
    """contract: one that is cancelled takes no item: another gets it."""
    items, controller = js.queue(), AbortController()
    first = js.spawn(items.get(), signal=controller.signal)
    second = js.spawn(items.get())
    page.turn()
    if when == "woken":  # the abort's microtask is before the one that resumes the taker
        page.loop.submit(lambda: (items.put("item"), js.queue_microtask(lambda: None), controller.abort("why")))
    else:
        controller.abort("why")
        page.turn()
        items.put("item")
    page.until(lambda: first.state != "pending")
    if first.state == "rejected":
        assert page.value(second) == "item"
    else:
        assert first.value == "item"
        items.put("another")
        assert page.value(second) == "another"
    assert not items._waiting


def test_an_abort_between_wake_and_take(page, js):
    """contract: the item that it was woken for goes to the next."""
    items, controller = js.queue(), AbortController()
    first = js.spawn(items.get(), signal=controller.signal)
    second = js.spawn(items.get())
    page.turn()

    def scene():
        controller.abort("why")  # its microtask runs after the next, and before the taker is resumed
        items.put("item")

    page.loop.submit(scene)
    page.turn()
    assert isinstance(first.reason, Exception)
    assert page.value(second) == "item"


def test_put_in_a_signal_handler(make_page):
    """contract: `put` is safe in a signal handler, also one that interrupts it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        pytest.skip("no signal handlers here")
    page = make_page()
    items = page.js.queue()
    promise = page.js.spawn(taken(items))
    count = [0, 0]

    def handler(*_signal):
        with contextlib.suppress(queue.ShutDown):  # a last signal, that came when the main thread was done
            items.put("handler")
            count[0] += 1

    old = signal.signal(signal.SIGALRM, handler)
    try:
        with page.loop:
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            while count[0] < 50:
                items.put("main")
                count[1] += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            items.shutdown()
            got = promise.result(PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert (got.count("handler"), got.count("main")) == tuple(count)


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_a_queue_of_a_loop_that_has_ended(make_page, end):
    """contract: who waits is cancelled; `put` is refused, and stores nothing; `shutdown` may be called."""
    page = make_page()
    items = page.js.queue()
    promise = page.js.spawn(taken(items))
    page.turn()
    getattr(page.loop, end)()
    assert isinstance(promise.reason, LoopTerminatedError)
    with pytest.raises(LoopTerminatedError):
        items.put(1)
    assert len(items) == 0
    items.shutdown()


# --- intervals --------------------------------------------------------------------------------------------------------


def test_interval(make_page):
    """contract: `interval`: every `ms` milliseconds, never early; leaving ends its timer."""
    page = make_page()
    times = []

    async def body():
        began = page.loop.now()
        async for _ in page.js.interval(10):
            times.append(page.loop.now() - began)
            if len(times) == 5:
                break

    page.value(page.js.spawn(body()))
    for i, time in enumerate(times):
        assert time >= 0.010 * (i + 1) - 1e-4
    page.quiet()


def test_a_slow_block_misses_times(page, js):
    """contract: the times that a slow block has missed are one."""
    times = []

    async def body():
        async for _ in js.interval(5):
            times.append(page.loop.now())
            if len(times) == 3:
                break
            await js.sleep(40)

    page.value(js.spawn(body()))
    assert times[1] - times[0] >= 0.039  # at once after the block, which was eight periods long
    assert times[2] - times[1] >= 0.039
    page.quiet()


@pytest.mark.parametrize("end", ["abort", "shutdown"])
def test_the_end_of_an_interval(make_page, end):
    """contract: a coroutine that is cancelled in it leaves no timer."""
    page, controller, rounds = make_page(), AbortController(), []

    async def body():
        async for _ in page.js.interval(1):
            rounds.append(1)  # noqa: PERF401

    promise = page.js.spawn(body(), signal=controller.signal)
    page.until(lambda: len(rounds) > 2)
    if end == "abort":
        controller.abort("why")
        page.reason(promise)
        page.quiet()
    else:
        page.loop.shutdown()
    assert promise.state == "rejected"


@pytest.mark.parametrize("wrong", [-1, None, "1", float("inf"), 5e12])
def test_interval_checks(js, wrong):
    """contract: TypeError, ValueError, by the call."""
    with pytest.raises((TypeError, ValueError), match="ms must be"):
        js.interval(wrong)


# --- events -----------------------------------------------------------------------------------------------------------


def test_once(page, js):
    """contract: `once`: the next event, dispatched on any thread; then nothing listens."""
    target = EventTarget()
    promise = js.once(target, "x")
    target.dispatch_event(Event("y"))
    event = CustomEvent("x", detail=5)
    elsewhere(target.dispatch_event, event)
    assert page.value(promise) is event
    assert not target._listeners


def test_once_aborted(page, js):
    """contract: an abort rejects with its reason, and nothing listens; one that came in time does nothing more."""
    target, controller = EventTarget(), AbortController()
    promise = js.once(target, "x", signal=controller.signal)
    heard = js.once(target, "y", signal=controller.signal)
    target.dispatch_event(Event("y"))
    assert len(controller.signal._algorithms) == 1
    controller.abort("why")
    assert page.reason(promise) == "why"
    assert page.value(heard).type == "y"
    assert not target._listeners
    assert page.reason(js.once(target, "x", signal=controller.signal)) == "why"
    assert not target._listeners


def test_on(page, js):
    """contract: `on`: each event from the call on, in order, those that come meanwhile too."""
    target, got = EventTarget(), []
    events = js.on(target, "x")
    elsewhere(target.dispatch_event, CustomEvent("x", detail=0))

    async def body():
        async for event in events:
            got.append(event.detail)
            await js.sleep(1)
            if event.detail == 0:
                for i in range(1, 4):
                    target.dispatch_event(CustomEvent("x", detail=i))
            if event.detail == 3:
                await events.aclose()
                await events.aclose()
                target.dispatch_event(CustomEvent("x", detail=4))

    page.value(js.spawn(body()))
    assert got == [0, 1, 2, 3]
    assert not target._listeners


def test_on_aborted(page, js):
    """contract: an aborted signal ends it with its reason, after the events that came before."""
    target, controller, got = EventTarget(), AbortController(), []

    async def body():
        async for event in js.on(target, "x", signal=controller.signal):
            got.append(event.type)  # noqa: PERF401

    promise = js.spawn(body())
    page.turn()
    target.dispatch_event(Event("x"))
    target.dispatch_event(Event("x"))
    controller.abort(ValueError("why"))
    target.dispatch_event(Event("x"))
    assert isinstance(page.reason(promise), ValueError)
    assert got == ["x", "x"]
    assert not target._listeners


def test_on_that_nobody_refers_to(page, js):
    """contract: it listens until nobody refers to it; and an event for a loop that has ended is nobody's."""
    target = EventTarget()

    async def body():
        async for _ in js.on(target, "x"):
            break

    promise = js.spawn(body())
    page.turn()
    target.dispatch_event(Event("x"))
    page.value(promise)
    page.until(lambda: gc.collect() is None or not target._listeners)
    kept = js.on(target, "x")
    page.loop.shutdown()
    target.dispatch_event(Event("x"))
    del kept
    gc.collect()
    assert not target._listeners
    assert page.errors == []


@pytest.mark.parametrize("call", ["once", "on"])
def test_events_are_checked(js, call):
    """contract: TypeError names the argument."""
    for arguments, named, name in (
        ((5, "x"), {}, "target"),
        ((EventTarget(), 5), {}, "type"),
        ((EventTarget(), "x"), {"signal": 5}, "signal"),
    ):
        with pytest.raises(TypeError, match=f"{name} must be"):
            getattr(js, call)(*arguments, **named)


def test_nothing_keeps_the_loop():
    """contract: a forgotten loop is closed, whatever was made of it."""
    loop = Loop()
    js = JS(loop)
    kept = [js.queue(), js.on(EventTarget(), "x"), js.timeout(1), js.group()]
    circle = EventTarget()
    circle.events = js.on(circle, "x")  # it listens to what refers to it
    gone = weakref.ref(loop)
    kept.clear()
    del loop, js, circle
    gc.collect()
    with contextlib.suppress(LoopTerminatedError):
        assert gone() is None


def timers_of(loop):
    timers = loop._record["timers"]
    return int(timers["live_here"] + timers["live_elsewhere"])


async def waits_for(promise):
    await promise


def soon(page, function):
    """What it returns when it runs as a callback; then some turns, which do not wait for timers."""
    results = []
    page.loop.submit(lambda: results.append(function()))
    page.turn(5)
    return results[0]


def spawned(page, promise):
    """Spawn a coroutine that awaits a promise; a function that interrupts it."""
    controller = AbortController()
    soon(page, lambda: page.js.spawn(waits_for(promise), signal=controller.signal).catch(lambda reason: None))
    return lambda: soon(page, controller.abort)


@pytest.mark.parametrize("how", ["abort", "timeout", "group", "task"])
def test_an_interrupted_sleep_leaves_no_timer(page, how):
    js, loop = page.js, page.loop
    promise = soon(page, lambda: js.sleep(1e6))

    async def main():
        if how == "timeout":
            async with js.timeout(1):
                await promise
        else:
            async with js.group() as group:
                group.spawn(waits_for(promise))
                raise ValueError

    async def task():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(waits_for(promise), 0.001)

    assert timers_of(loop) == 1
    if how == "abort":
        spawned(page, promise)()
    elif how == "task":
        asyncio.run(task())
    else:
        page.value(soon(page, lambda: js.spawn(main()).catch(lambda reason: None)))
    page.until(lambda: promise.state == "rejected")
    assert type(promise.reason) is CancelledError
    assert timers_of(loop) == 0
    assert not coroutines_of(loop).sleeping
    assert page.unhandled == []


def test_others_who_wait_for_a_sleep_keep_it(page):
    promise = soon(page, lambda: page.js.sleep(1e6))
    interrupt_both = [spawned(page, promise), spawned(page, promise)]
    interrupt_both[0]()
    assert promise.state == "pending"
    interrupt_both[1]()
    assert promise.state == "rejected"
    promise = soon(page, lambda: page.js.sleep(1e6))
    seen = []
    soon(page, lambda: promise.then(None, seen.append))
    spawned(page, promise)()
    assert promise.state == "pending"
    assert timers_of(page.loop) == 1
    page.loop.shutdown()
    assert [type(reason) for reason in seen] == [LoopTerminatedError]


def test_a_sleep_that_nobody_has_awaited_ends_in_time(page):
    promise = soon(page, lambda: page.js.sleep(1))
    page.until(lambda: promise.state == "fulfilled")


def test_an_interrupted_once_listens_no_more(page):
    target = EventTarget()
    interrupt = spawned(page, soon(page, lambda: page.js.once(target, "x")))
    assert len(target._listeners) == 1
    interrupt()
    assert target._listeners == ()


def test_a_signal_forgets_a_sleep_that_was_interrupted(page):
    limit = AbortController()
    spawned(page, soon(page, lambda: page.js.sleep(1e6, signal=limit.signal)))()
    assert limit.signal._algorithms == {}


def test_a_coroutine_that_the_loop_ends_leaves_a_sleep_to_the_loop(page):
    """It is the loop that ends it, so that is what its promise is rejected with."""
    promise = soon(page, lambda: page.js.sleep(1e6))
    spawned(page, promise)
    page.loop.shutdown()
    assert type(promise.reason) is LoopTerminatedError


@pytest.mark.parametrize("early", ["A", "AC"])
def test_newcomers_do_not_overtake_a_taker_that_was_woken(page, js, early):
    """contract: of several takers that wait, the first gets the first item."""
    numbers, taken = js.queue(), []

    async def take(who):
        taken.append((who, await numbers.get()))

    async def main():
        for who in early:
            js.spawn(take(who))
        numbers.put(1)
        js.queue_microtask(lambda: js.spawn(take("B")))  # runs between A's wake and A's step
        await js.sleep(0)
        numbers.put(2)
        numbers.put(3)

    js.spawn(main())
    page.quiet()
    assert taken == [(who, n) for n, who in enumerate(early + "B", 1)]


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_nothing_is_put_once_the_end_has_begun(make_page, end):
    """Not even behind an item for which a wake is on its way."""
    page = make_page()
    numbers = page.js.queue()
    numbers.put(1)
    getattr(page.loop, end)()
    for _ in range(2):
        with pytest.raises(LoopTerminatedError):
            numbers.put(2)
    assert len(numbers) == 1

    page = make_page()
    numbers, refused = page.js.queue(), []

    def ends():
        numbers.put(1)
        page.loop.shutdown()
        try:
            numbers.put(2)
        except LoopTerminatedError:
            refused.append(2)

    page.loop.submit(ends)
    page.loop.run()
    assert refused == [2]


@pytest.mark.parametrize("kind", ["sleep", "once"])
def test_a_signal_forgets_what_ended_before_it_was_followed(page, js, monkeypatch, kind):
    """On another thread: the timer fires, or the event is dispatched, before the signal has the callback."""
    controller, target = AbortController(), EventTarget()
    follow = AbortSignal.on_abort

    def late(self, callback):
        if kind == "sleep":
            wait_for(lambda: not coroutines_of(page.loop).sleeping)
        else:
            target.dispatch_event(Event("x"))
        return follow(self, callback)

    monkeypatch.setattr(AbortSignal, "on_abort", late)
    with page.loop:
        promise = (
            js.sleep(0, signal=controller.signal) if kind == "sleep" else js.once(target, "x", signal=controller.signal)
        )
        promise.result(PATIENCE)
    assert controller.signal._algorithms == {}


@pytest.mark.parametrize("how", ["left", "exhausted"])
def test_a_signal_forgets_events_that_nobody_hears(page, js, how):
    controller, target = AbortController(), EventTarget()

    async def hear():
        events = js.on(target, "x", signal=controller.signal)
        target.dispatch_event(Event("x"))
        if how == "exhausted":
            events._queue.shutdown()
        async for _event in events:
            if how == "left":
                break

    js.spawn(hear())
    page.quiet()
    gc.collect()
    assert controller.signal._algorithms == {}


def test_a_signal_that_is_not_aborted_keeps_no_loop():
    loop, controller, target = Loop(), AbortController(), EventTarget()
    events = JS(loop).on(target, "x", signal=controller.signal)
    held = weakref.ref(loop)
    del loop, events
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("reverse", [False, True])
def test_items_of_interrupted_takers_come_back_in_order(page, js, reverse):
    """Whichever of them is interrupted first, and before what was put meanwhile."""
    items, got = js.queue(), []

    async def take(who):
        got.append((who, await items.get()))

    controllers = [AbortController() for _ in range(3)]
    order = controllers[1::-1] if reverse else controllers[:2]
    for who, controller in enumerate(controllers):
        js.spawn(take(who), signal=controller.signal).catch(lambda _reason: None)
    page.turn()

    def scene():
        for controller in order:
            controller.abort()
        for item in "abcd":
            items.put(item)  # before the aborts' microtasks; those that resume the takers come after them

    page.loop.submit(scene)
    page.turn()
    assert got == [(2, "c")]
    for who in (3, 4, 5):
        js.spawn(take(who))
    page.quiet()
    assert got == [(2, "c"), (3, "a"), (4, "b"), (5, "d")]
    assert len(items) == 0


def put_beside_takers(page, items, take):
    """Two coroutines wait, and an item is put."""
    for _ in range(2):
        page.js.spawn(take())
    page.turn()
    return lambda: (items.put(1), page.turn(2))


def take_from_nothing(page, items, take):
    """A coroutine begins to wait."""

    def call():
        page.js.spawn(take())
        page.turn(2)

    return call


def leave_with_an_item(page, items, take):
    """The first of two coroutines is interrupted after it was handed an item."""
    controller = AbortController()
    page.js.spawn(take(), signal=controller.signal).catch(lambda _reason: None)
    page.js.spawn(take())
    page.turn()

    def call():
        controller.abort()
        items.put(1)
        page.turn(2)

    return call


@compiled_only
@pytest.mark.parametrize("scene", [put_beside_takers, take_from_nothing, leave_with_an_item])
def test_a_signal_handler_puts_in_the_middle_of_a_call(scene):
    """contract: `put`, from a signal handler, too: wherever that comes, each item is taken once, without another
    call.
    """

    def attempt(arrivals, at):
        page, got = Page(), []
        items = page.js.queue()

        async def take():
            got.append(await items.get())

        call = scene(page, items, take)
        with handled(signal.SIGINT, lambda _number, _frame: items.put(2)):
            arrivals.during(call, at, signal.SIGINT)
        page.quiet()
        before = len(got) + len(items)
        while items._waiting or len(items):  # everything that could be handed has been
            assert not (items._waiting and len(items)), described(at)
            page.js.spawn(take()) if len(items) else items.put(3)
            page.quiet()
        page.loop.close()
        assert page.errors == [], described(at)
        numbers = [number for number in got if number != 3]
        assert len(numbers) == before == (scene is not take_from_nothing) + arrivals.arrived, described(at)
        assert len(set(numbers)) == len(numbers), described(at)

    at_each_place(attempt)


@compiled_only
def test_a_taker_leaves_in_the_middle_of_a_put():
    """A signal handler closes the first taker: the item is the second one's."""

    def attempt(arrivals, at):
        page, got = Page(), []
        items = page.js.queue()

        async def take():
            got.append(await items.get())

        first = take()
        page.js.spawn(first).catch(lambda _reason: None)  # it cannot be resumed if it was closed
        page.js.spawn(take())
        page.quiet()
        with handled(signal.SIGINT, lambda _number, _frame: first.close()):
            arrivals.during(lambda: items.put(1), at, signal.SIGINT)
        page.quiet()
        assert got == [1], described(at)
        assert len(items) == 0
        page.loop.close()

    at_each_place(attempt)


@compiled_only
def test_a_signal_handler_takes_in_the_middle_of_a_call():
    """One taker gets the item, and the other one the next."""

    def attempt(arrivals, at):
        page, got = Page(), []
        items = page.js.queue()
        items.put(0)

        async def take():
            got.append(await items.get())

        with handled(signal.SIGINT, lambda _number, _frame: page.js.spawn(take())):
            arrivals.during(lambda: page.loop.submit(page.js.spawn, take()) or page.turn(), at, signal.SIGINT)
        page.quiet()
        items.put(1)
        page.quiet()
        assert page.errors == [], described(at)
        assert got == [0, 1][: 1 + arrivals.arrived], described(at)
        page.loop.close()

    at_each_place(attempt)


def test_a_signal_ends_events_that_a_coroutine_waits_for(page, js):
    """Nothing but the signal refers to the coroutine, and a collection comes first."""
    controller = AbortController()

    async def hear():
        async for _event in js.on(EventTarget(), "x", signal=controller.signal):
            pass

    heard = js.spawn(hear())
    page.turn()
    gc.collect()
    controller.abort("enough")
    page.turn()
    assert heard.state == "rejected"
    heard.catch(lambda _reason: None)
    page.quiet()


def test_a_put_in_a_forked_child_says_so(run_script):
    run_script(
        """
        import os
        from nbloop import ForkedLoopError, Loop
        from nbloop.js import JS
        items = JS(Loop()).queue()
        pid = os.fork()
        if pid == 0:
            try:
                items.put(1)
            except ForkedLoopError:
                os._exit(7)
            os._exit(8)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        """
    )
