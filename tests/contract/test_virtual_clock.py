"""nbloop.testing.VirtualClock: timers without sleeping, and the contract's rows about timers where time is exact."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time

import pytest

import nbloop
from nbloop import FastPathMode, Loop
from nbloop.js import JS, AbortSignal
from nbloop.testing import VirtualClock


@pytest.fixture
def clock(make_loop):
    return VirtualClock(make_loop())


def test_stands_still(clock, turns):
    """Time is what `advance` says, from 0 on, and nothing is due before."""
    loop, ran = clock.loop, []
    loop.schedule_timer(1e-9, ran.append, 1)
    turns(loop, 3)
    assert (clock.now(), ran) == (0.0, [])
    clock.advance(1e-9)
    turns(loop)
    assert ran == [1]
    assert loop.now() == clock.now() == 1e-9


def test_never_early_and_in_order(clock, turns):
    """contract: never early; earliest deadline first, equal deadlines in scheduling order: here to the nanosecond."""
    loop, fired, expected = clock.loop, [], []
    chance = random.Random(1)
    for order in range(3000):
        delay = chance.choice([chance.randrange(10), chance.randrange(10_000), chance.randrange(10**7)]) / 1000
        loop.schedule_timer(delay, lambda entry=(delay, order): fired.append((loop.now(), *entry)))
        expected.append((delay, order))
    expected.sort()
    while len(fired) < len(expected):
        due = len(fired)
        clock.advance(chance.choice([0.001, 0.5, 7.0, 1000.0]))
        turns(loop)
        now = clock.now()
        while due < len(expected) and expected[due][0] <= now + 1e-12:
            due += 1
        assert len(fired) == due
    assert [entry[1:] for entry in fired] == expected
    assert all(now >= delay - 1e-9 for now, delay, _ in fired)


def test_interval_is_anchored(clock, turns):
    """contract: anchored to callback start: what was missed is not made up for."""
    loop, at = clock.loop, []
    identifier = loop.schedule_interval(10, lambda: at.append(loop.now()))
    for seconds in (9.5, 0.5, 25, 5, 5):
        clock.advance(seconds)
        turns(loop)
    assert at == [10, 35, 45]
    assert loop.cancel_timer(identifier)


def test_advance_in_a_callback(clock, turns):
    """What a callback makes due comes in the next turn's timer phase, or in this one's if it is still to come."""
    loop, ran = clock.loop, []
    loop.schedule_timer(5, ran.append, "timer")
    loop.schedule_immediate(clock.advance, 5)
    turns(loop)
    assert ran == ["timer"]
    loop.schedule_timer(5, ran.append, "later")
    loop.submit(clock.advance, 5)
    turns(loop)
    assert ran == ["timer"]
    turns(loop)
    assert ran == ["timer", "later"]


@pytest.mark.parametrize("mode", list(FastPathMode))
def test_wakes_a_sleeping_loop(make_loop, asleep, wait_for, mode):
    """From another thread, in every mode; and an earlier timer armed elsewhere is not waited for in real time."""
    loop = make_loop(fast_path_mode=mode)
    clock, ran = VirtualClock(loop), []
    with loop:
        loop.schedule_timer(3600, ran.append, 1)
        for day in range(1, 6):
            asleep(loop)
            assert len(ran) == day - 1
            clock.advance(3600)
            wait_for(lambda day=day: len(ran) == day)
            loop.schedule_timer(3600, ran.append, day)


def test_advance_is_not_lost(make_loop, together):
    """Against a loop that is just falling asleep, and by several threads at once: every second counts."""
    loop = make_loop()
    clock, done = VirtualClock(loop), threading.Event()

    def advance(_):
        for _ in range(500):
            clock.advance(1)

    with loop:
        loop.schedule_timer(2000, done.set)
        together(4, advance)
        assert done.wait(30)
        assert clock.now() == 2000


@pytest.mark.parametrize("mode", list(FastPathMode))
@pytest.mark.parametrize("autojump", [0, 0.005])
def test_autojump(make_loop, mode, autojump):
    """An idle loop jumps from deadline to deadline, and to none before something is idle."""
    loop = make_loop(auto_exit=True, fast_path_mode=mode)
    VirtualClock(loop, autojump=autojump)
    at, begun = [], time.monotonic()
    for hours in (3, 1, 2):
        loop.schedule_timer(3600 * hours, lambda: at.append(loop.now()))
    loop.run()
    assert at == [3600, 7200, 10800]
    assert time.monotonic() - begun >= 3 * autojump


def test_autojump_waits_for_others(make_loop):
    """A thread that submits within `autojump` is not jumped over."""
    loop, ran = make_loop(auto_exit=True), []
    VirtualClock(loop, autojump=30)
    timer = loop.schedule_timer(10, ran.append, "timer")
    threading.Thread(target=lambda: loop.submit(lambda: ran.append(loop.cancel_timer(timer)))).start()
    loop.run()
    assert ran == [True]
    assert loop.now() == 0


def test_javascript_follows(make_loop, turns):
    """set_timeout, sleep, AbortSignal.timeout and performance.now."""
    loop = make_loop()
    clock, log = VirtualClock(loop), []
    js = JS(loop)
    js.set_timeout(log.append, 1000, "timeout")
    js.sleep(2000).then(lambda _: log.append("slept"))
    signal = AbortSignal.timeout(js, 3000)
    for expected in (["timeout"], ["timeout", "slept"], ["timeout", "slept"]):
        clock.advance(1)
        turns(loop)
        assert log == expected
    assert signal.aborted
    assert js.performance.now() == 3000


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 4.1e9])
def test_bad_advance(clock, seconds):
    with pytest.raises(ValueError, match="seconds must be from 0"):
        clock.advance(seconds)
    with pytest.raises(TypeError, match="seconds must be a number"):
        clock.advance("1")


def test_time_ends(make_loop, turns):
    """After 292 years: the clock does not go beyond, and no deadline wraps into the past."""
    loop, ran = make_loop(), []
    clock = VirtualClock(loop)
    for _ in range(2):
        clock.advance(4e9)
    with pytest.raises(ValueError, match=r"seconds must not move the clock, now 8e\+09, beyond 9\.2e9"):
        clock.advance(4e9)
    assert clock.now() == 8e9
    loop.schedule_timer(4e9, ran.append, "last")  # at the end of time, which is earlier than requested
    loop.schedule_timer(1, ran.append, "first")
    turns(loop, 3)
    assert ran == []
    clock.advance(2)
    turns(loop)
    assert ran == ["first"]
    clock.advance(1.2e9)
    turns(loop)
    assert ran == ["first"]
    clock.advance(((1 << 63) - 2) / 1e9 - clock.now() - 1e-5)  # as near as a float comes
    turns(loop)
    assert ran == ["first"]
    assert loop.cancel_timer(loop.schedule_interval(4e9, int))


def test_jumps_to_the_end_of_time(make_loop):
    """With autojump an interval gets there by itself, and the loop can still be left."""
    loop, at = make_loop(auto_exit=True), []
    VirtualClock(loop, autojump=0)

    def tick():
        at.append(loop.now())
        if len(at) == 5:
            assert loop.cancel_timer(interval)

    interval = loop.schedule_interval(4e9, tick)
    loop.run()
    assert at[:2] == [4e9, 8e9]
    assert at[2:] == [((1 << 63) - 2) / 1e9] * 3


def test_only_a_new_loop(make_loop, turns):
    """A loop with another clock, with timers, that was run or has ended has no use for it; and only a Loop has."""
    used, timed, idle, ended, twice = (make_loop() for _ in range(5))
    turns(used)
    timed.schedule_timer(1, int)
    idle.unref_timer(idle.schedule_timer(1, int))
    ended.close()
    VirtualClock(twice)
    for loop in (used, timed, idle, ended, twice):
        with pytest.raises(ValueError, match="must be new"):
            VirtualClock(loop)
    with pytest.raises(TypeError, match=r"must be an nbloop\.Loop"):
        VirtualClock(None)
    with pytest.raises(ValueError, match="autojump must be from 0"):
        VirtualClock(Loop(), autojump=-1)


def test_advance_after_the_end(clock):
    """Harmless."""
    clock.loop.close()
    clock.advance(1)
    assert clock.now() == 1


def test_a_timer_of_the_timer_phase_waits(make_loop, turns):
    """Also when no time has gone by since the phase began: it is the next turn's."""
    loop, log = make_loop(), []
    VirtualClock(loop)
    loop.schedule_timer(0, lambda: loop.schedule_timer(0, log.append, "next"))
    turns(loop)
    assert log == []
    turns(loop)
    assert log == ["next"]


def test_deadlines_up_to_the_end_of_time(make_loop):
    """A deadline beyond 4e9 s keeps its place; one beyond the clock's end is never due, and no clock jumps to it."""
    loop, ran = make_loop(), []
    clock = VirtualClock(loop, autojump=0)
    never = [loop.schedule_timer_at(at, ran.append, at) for at in (float("inf"), 1e10, 9.3e9)]
    clock.advance(4e9)
    for at in (9.2e9, 4e9 + 3600, 4e9 + 1, 4e9 + 2):
        loop.schedule_timer_at(at, lambda at=at: ran.append((at, loop.now())))
    loop.schedule_timer_at(9.2e9, loop.schedule_immediate, loop.stop)
    loop.run()
    assert ran == [(at, at) for at in (4e9 + 1, 4e9 + 2, 4e9 + 3600, 9.2e9)]
    assert loop.cancel_timers(never) == [True, True, True]
    assert not loop.alive()


def test_infinite_timeout_of_asyncio():
    """wait_for(future, inf) on a clock that jumps waits for the future."""
    loop = nbloop.new_event_loop()
    clock = VirtualClock(loop.core, autojump=0)

    async def main():
        future = loop.create_future()
        loop.call_later(5e9, future.set_result, "at last")
        return await asyncio.wait_for(future, math.inf)

    with contextlib.closing(loop):
        assert loop.run_until_complete(main()) == "at last"
        assert clock.now() == 5e9
