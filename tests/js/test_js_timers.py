"""Timers, immediates and microtasks of the view: HTML 8.7, and what WPT's html/webappapis tests; Node's order
where HTML has none.
"""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from tests.support.waiting import together

FOUR = 0.0039  # seconds: 4 ms, less what may pass between the clock's look and the callback's own


# --- arguments -------------------------------------------------------------------------------------------------------


def test_arguments_are_passed_on(page, js):
    """WPT html/webappapis/timers/settimeout-setinterval-handles-non-string…: any number, for both kinds."""
    ran = []
    js.set_timeout(lambda *args: ran.append(args), 0, 1, "two", None)
    js.set_timeout(lambda *args: ran.append(args))
    interval = js.set_interval(lambda *args: (ran.append(args), js.clear_interval(interval)), 0, 3)
    js.set_immediate(lambda *args: ran.append(args), 4, 5)
    js.queue_microtask(lambda *args: ran.append(args), 6)
    js.next_tick(lambda *args: ran.append(args), 7)
    page.quiet()
    assert sorted(ran) == [(), (1, "two", None), (3,), (4, 5), (6,), (7,)]


@pytest.mark.parametrize("delay", [-1, -(2**31) - 1, -0.5, 0, False, -1e9], ids=repr)
def test_negative_timeout(page, js, delay):
    """WPT negative-settimeout.any.js: as 0."""
    ran = []
    js.set_timeout(ran.append, delay, 1)
    page.turn()
    assert ran == [1]


def test_negative_interval(page, js):
    """WPT negative-setinterval.any.js: as 0, and repeats."""
    ran = []
    interval = js.set_interval(lambda: ran.append(1), -1000)
    page.until(lambda: len(ran) > 3)
    assert js.clear_interval(interval) is True


def test_long_delays(page, js):
    """WPT type-long-settimeout.any.js and type-long-setinterval.any.js: there is no 32-bit wrap here: long is long."""
    ran = []
    ids = [js.set_timeout(ran.append, 2.0**32, 1), js.set_interval(ran.append, 2**31, 1)]
    page.turn(3)
    assert ran == []
    assert [js.clear_timeout(i) for i in ids] == [True, True]
    with pytest.raises(ValueError, match="at most"):
        js.set_timeout(ran.append, 1e300)


def test_fractions_count(page, js):
    """contract: milliseconds as float; never early."""
    for delay in (0.3, 1.5, 2.25):
        started = time.monotonic()
        page.value(js.promise(lambda resolve, _reject, delay=delay: js.set_timeout(resolve, delay)))
        assert time.monotonic() - started >= delay / 1000


def test_evil_delay(page, js):
    """WPT evil-spec-example.any.js: what the conversion of an argument schedules comes first."""
    ran = []

    class Evil:
        def __float__(self):
            js.set_timeout(ran.append, 0, "one")
            return 0.0

    js.set_timeout(ran.append, Evil(), "two")
    page.quiet()
    assert ran == ["one", "two"]


@pytest.mark.parametrize("schedule", ["set_timeout", "set_interval"])
def test_missing_callback(js, schedule):
    """WPT missing-timeout-setinterval.any.js: without a delay it is 0; without a callback a TypeError."""
    with pytest.raises(TypeError):
        getattr(js, schedule)()


def test_interval_without_delay(page, js):
    """WPT missing-timeout-setinterval.any.js: repeats."""
    ran = []
    interval = js.set_interval(lambda: ran.append(1))
    page.until(lambda: len(ran) > 2)
    js.clear_interval(interval)


# --- clearing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clear", ["clear_timeout", "clear_interval"])
@pytest.mark.parametrize("schedule", ["set_timeout", "set_interval"])
def test_either_clears_either(page, js, schedule, clear):
    """WPT cleartimeout-clearinterval.any.js: one list of ids."""
    ran = []
    identifier = getattr(js, schedule)(ran.append, 0, 1)
    assert getattr(js, clear)(identifier) is True
    assert getattr(js, clear)(identifier) is False
    page.turn(3)
    assert ran == []
    assert not page.loop.alive()


def test_ids_are_distinct_ints(js):
    """HTML 8.7, step 2: greater than zero, one namespace."""
    ids = [schedule(print, 1000) for schedule in (js.set_timeout, js.set_interval) * 50]
    assert all(isinstance(i, int) and i > 0 for i in ids)
    assert len(set(ids)) == 100


def test_clear_from_its_own_callback(page, js):
    """WPT clearinterval-from-callback.any.js: it does not run again."""
    ran = []

    def callback():
        ran.append(1)
        js.clear_interval(interval)

    interval = js.set_interval(callback, 0)
    page.quiet()
    page.turn(3)
    assert ran == [1]


def test_clear_another_from_a_callback(page, js):
    """HTML 8.7: two due at the same time: the second can still be cleared by the first."""
    ran = []
    js.set_timeout(lambda: ran.append(js.clear_timeout(second)), 0)
    second = js.set_timeout(ran.append, 0, "second")
    page.quiet()
    assert ran == [True]


@pytest.mark.parametrize("identifier", [0, -1, 2**31, 2**70], ids=repr)
def test_clear_what_never_was(js, identifier):
    """HTML 8.7, clearTimeout: nothing happens."""
    assert js.clear_timeout(identifier) is False
    assert js.clear_interval(identifier) is False
    assert js.clear_immediate(identifier) is False


def test_clear_after_it_ran(page, js):
    """HTML 8.7: nothing happens, and no later timer is hit by the old id."""
    ran = []
    old = js.set_timeout(ran.append, 0, 1)
    page.quiet()
    js.set_timeout(ran.append, 0, 2)
    assert js.clear_timeout(old) is False
    page.quiet()
    assert ran == [1, 2]


# --- order -----------------------------------------------------------------------------------------------------------


def test_equal_delays_in_order(page, js):
    """HTML 8.7, step 'wait until any invocations … that started before': order of the calls."""
    ran = []
    for i in range(200):
        js.set_timeout(ran.append, 1, i)
    page.quiet()
    assert ran == list(range(200))


def test_shorter_first(page, js):
    """HTML 8.7, run steps after a timeout: by time of expiry."""
    ran = []
    for delay in (6, 2, 4):
        js.set_timeout(ran.append, delay, delay)
    page.quiet()
    assert ran == [2, 4, 6]


def test_microtasks_between_timers(page, js):
    """HTML 8.1.7.3: a checkpoint after each callback."""
    ran = []
    for i in range(3):
        js.set_timeout(
            lambda i=i: (ran.append(i), js.resolve().then(lambda _value: ran.append(f"microtask of {i}"))), 0
        )
    page.quiet()
    assert ran == [0, "microtask of 0", 1, "microtask of 1", 2, "microtask of 2"]


def test_an_interval_survives_exceptions(page, js):
    """HTML 8.7: reporting an exception does not end the interval."""
    ran = []

    def callback():
        ran.append(1)
        if len(ran) == 3:
            js.clear_interval(interval)
        raise ValueError(len(ran))

    interval = js.set_interval(callback, 0)
    page.quiet()
    assert len(ran) == 3
    assert [str(error) for error in page.errors] == ["1", "2", "3"]
    page.errors.clear()


# --- nested timers ---------------------------------------------------------------------------------------------------


def chain(page, js, count, schedule):
    """Moments at which each of a chain of timers ran; `schedule(callback)` makes the next."""
    moments = []

    def callback():
        moments.append(time.monotonic())
        if len(moments) < count:
            schedule(callback)

    schedule(callback)
    return moments


def test_six_levels_without_a_wait(page, js):
    """HTML 8.7, steps 5 and 11: of a chain of 0 ms timers six run in as many turns, the seventh is the
    first to wait 4 ms.
    """
    moments = chain(page, js, 9, lambda callback: js.set_timeout(callback, 0))
    page.turn(6)
    assert len(moments) == 6
    page.until(lambda: len(moments) == 9)
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert min(gaps[5:]) >= FOUR


@pytest.mark.parametrize("delay", [0, -5, 1, 3.9], ids=repr)
def test_short_delays_become_four(page, js, delay):
    """HTML 8.7: under 4 ms, negative included (WPT negative-settimeout)."""
    moments = chain(page, js, 8, lambda callback: js.set_timeout(callback, delay))
    page.until(lambda: len(moments) == 8)
    assert moments[6] - moments[5] >= FOUR
    assert moments[7] - moments[6] >= FOUR


def test_intervals_nest_too(page, js):
    """HTML 8.7, step 9.9: each repetition is one level deeper: the seventh call is the first to wait 4 ms."""
    moments = []
    interval = js.set_interval(lambda: moments.append(time.monotonic()), 0)
    page.turn(6)
    assert len(moments) == 6
    page.until(lambda: len(moments) == 8)
    js.clear_interval(interval)
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert min(gaps[5:7]) >= FOUR


def test_longer_delays_stay(page, js):
    """Timers of 4 ms and more, however deep, wait as long as they say: turn by turn beside a
    plain timer.
    """
    deep = []

    def callback():
        deep.append(time.monotonic())
        if len(deep) < 8:
            js.set_timeout(callback, 0)
            return
        js.set_timeout(lambda: deep.append("deep"), 10)
        page.loop.schedule_timer(0.010, lambda: deep.append("plain"))

    js.set_timeout(callback, 0)
    page.until(lambda: len(deep) == 10)
    assert deep[8:] == ["deep", "plain"]


def test_independent_timers_start_at_zero(page, js):
    """After a deep chain, and after an exception deep in one, others are unaffected."""

    def callback(depth):
        if depth < 8:
            js.set_timeout(callback, 0, depth + 1)
        else:
            raise ValueError("deep")

    js.set_timeout(callback, 0, 1)
    page.until(lambda: page.errors)
    page.errors.clear()
    moments = chain(page, js, 6, lambda callback: js.set_timeout(callback, 0))
    page.turn(6)
    assert len(moments) == 6


def test_nesting_is_not_inherited_by_microtasks(page, js):
    """WPT timer-nesting-not-inherited-in-microtask.html: a timer made by a microtask of a timer is at level 0."""
    moments = chain(page, js, 20, lambda callback: js.queue_microtask(js.set_timeout, callback, 0))
    page.turn(20)
    assert len(moments) == 20


def test_nesting_is_not_inherited_by_other_callbacks(page, js):
    """HTML 8.7, step 4: only a task that a timer made has a level."""
    moments = chain(page, js, 20, lambda callback: page.loop.submit(js.set_timeout, callback, 0))
    page.turn(40)
    assert len(moments) == 20


# --- immediates, microtasks, ticks -----------------------------------------------------------------------------------


def test_immediates(page, js):
    """Node, setImmediate: FIFO, one made by an immediate waits for the next turn, and they can be
    cleared.
    """
    ran = []

    def first():
        ran.append(1)
        js.set_immediate(ran.append, "next turn")
        assert js.clear_immediate(third) is True

    js.set_immediate(first)
    js.set_immediate(ran.append, 2)
    third = js.set_immediate(ran.append, 3)
    page.turn()
    assert ran == [1, 2]
    page.turn()
    assert ran == [1, 2, "next turn"]
    assert js.clear_immediate(third) is False


def test_microtasks_are_fifo(page, js):
    """WPT html/webappapis/microtask-queuing/queue-microtask.any.js: in order, with promise jobs, before any task."""
    ran = []

    def scene():
        js.set_timeout(ran.append, 0, "timer")
        js.queue_microtask(ran.append, 1)
        js.resolve(2).then(ran.append)
        js.queue_microtask(lambda: (ran.append(3), js.queue_microtask(ran.append, 5)))
        js.resolve(4).then(ran.append)
        ran.append(0)

    page.loop.submit(scene)
    page.quiet()
    assert ran == [0, 1, 2, 3, 4, 5, "timer"]


def test_a_microtask_that_raises(page, js):
    """WPT html/webappapis/microtask-queuing/queue-microtask-exceptions.any.js: reported; the next one runs."""
    ran = []

    def raises():
        raise ValueError("reported")

    js.queue_microtask(raises)
    js.queue_microtask(ran.append, 1)
    page.quiet()
    assert ran == [1]
    assert [str(error) for error in page.errors] == ["reported"]
    page.errors.clear()


def test_ticks_before_microtasks(page, js):
    """Node, process.nextTick: all ticks, then all microtasks, and again; a tick made by a microtask waits for the
    other microtasks.
    """
    ran = []

    def scene():
        js.queue_microtask(lambda: (ran.append("microtask 1"), js.next_tick(ran.append, "tick 3")))
        js.queue_microtask(ran.append, "microtask 2")
        js.next_tick(lambda: (ran.append("tick 1"), js.queue_microtask(ran.append, "microtask 3")))
        js.next_tick(lambda: (ran.append("tick 2"), js.next_tick(ran.append, "tick of tick")))
        js.resolve().then(lambda _value: ran.append("promise job"))

    page.loop.submit(scene)
    page.quiet()
    assert ran == [
        "tick 1",
        "tick 2",
        "tick of tick",
        "microtask 1",
        "microtask 2",
        "promise job",
        "microtask 3",
        "tick 3",
    ]


def test_sleep(page, js):
    """contract: a promise of None, never early, in order of their ends."""
    started = time.monotonic()
    ran = []
    promises = [js.sleep(ms).then(lambda _value, ms=ms: ran.append(ms)) for ms in (4, 1, 2)]
    assert page.value(js.all(promises)) == [None] * 3
    assert ran == [1, 2, 4]
    assert time.monotonic() - started >= 0.004
    assert page.value(js.sleep(0)) is None


# --- threads ---------------------------------------------------------------------------------------------------------


def test_timers_from_threads(make_page):
    """1,000 timers made on four threads while the loop runs, half of them cleared: the others run,
    once, on the loop.
    """
    page = make_page()
    ran, threads = [], set()

    def callback(key):
        threads.add(threading.get_ident())
        ran.append(key)

    def act(i):
        for n in range(250):
            identifier = page.js.set_timeout(callback, 60_000 if n % 2 else n % 5, (i, n))
            if n % 2:
                assert page.js.clear_timeout(identifier) is True

    thread = page.loop.start()
    assert together(4, act) == [None] * 4
    done = threading.Event()
    page.js.set_timeout(done.set, 6)
    assert done.wait(30)
    page.loop.shutdown()
    assert sorted(ran) == [(i, n) for i in range(4) for n in range(0, 250, 2)]
    assert threads == {thread.ident}


def test_an_interval_cleared_from_threads(make_page):
    """Several clear at once: one winner, and it does not start again."""
    page = make_page()
    with page.loop:
        for _ in range(20):
            ran = []
            started = threading.Event()
            interval = page.js.set_interval(lambda ran=ran, started=started: (ran.append(1), started.set()), 0)
            assert started.wait(30)
            results = together(4, lambda _i, interval=interval: page.js.clear_interval(interval))
            assert sorted(results) == [False, False, False, True]
            passed = threading.Event()  # a callback in progress ends before these do
            page.loop.submit(page.js.set_timeout, passed.set, 1)
            assert passed.wait(30)
            count = len(ran)
            passed = threading.Event()
            page.js.set_timeout(passed.set, 1)
            assert passed.wait(30)
            assert len(ran) == count
