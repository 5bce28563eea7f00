"""How a loop sleeps: on a futex, on a lock (where there is none), in a poller. All three keep the same promises."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from nbloop import FastPathMode, Loop, LoopState, LoopTerminatedError, PollerFailedError
from nbloop.kernels.base import layout

PARKERS = {
    "futex": (FastPathMode.AUTO, layout.PARK_FUTEX),
    "lock": (FastPathMode.AUTO, layout.PARK_PYTHON),
    "poller": (FastPathMode.DISABLED, layout.PARK_EPOLL if sys.platform == "linux" else layout.PARK_POLLER),
}


@pytest.fixture(params=PARKERS)
def loop(request, monkeypatch, make_loop):
    """A loop that sleeps in each of the ways."""
    if request.param == "lock":
        monkeypatch.setenv("NBLOOP_PARK", "lock")
    mode, park_mode = PARKERS[request.param]
    loop = make_loop(fast_path_mode=mode)
    assert int(loop._record["park_mode"]) == park_mode
    return loop


def test_hop(loop, asleep, wait_for):
    """contract: no lost wake-up: a submit to a sleeping loop runs, time and again."""
    with loop:
        for _ in range(50):
            done = threading.Event()
            asleep(loop)
            loop.submit(done.set)
            wait_for(done)


@pytest.mark.parametrize(
    "put",
    ["submit", "submit_internal", "schedule_microtask", "schedule_immediate", "schedule_close", "timer", "producer"],
)
def test_everything_wakes(loop, asleep, wait_for, put):
    """contract: no lost wake-up, whichever call brings the work."""
    schedule = {"timer": lambda what: loop.schedule_timer(0, what), "producer": loop.producer().submit}.get(put)
    with loop:
        done = threading.Event()
        asleep(loop)
        (schedule or getattr(loop, put))(done.set)
        wait_for(done)


def test_no_wake_is_lost_in_a_race(loop, together):
    """Submits at every moment of falling asleep: each is run before the loop sleeps over it."""
    with loop:
        answers = together(2, lambda _: sum(_round_trip(loop) for _ in range(1000)))
    assert answers == [1000, 1000]


def _round_trip(loop):
    done = threading.Lock()
    done.acquire()
    loop.submit(done.release)
    return done.acquire(timeout=30)


def test_timers_fire_while_asleep(loop, asleep, wait_for):
    """contract: a sleeping loop wakes by itself for its timers, and not before."""
    fired = []
    with loop:
        for delay in (0.0005, 0.003, 0.02):
            start = time.monotonic()
            loop.schedule_timer(delay, lambda start=start: fired.append(time.monotonic() - start))
        wait_for(lambda: len(fired) == 3)
    assert all(took >= delay for took, delay in zip(fired, (0.0005, 0.003, 0.02), strict=True))


def test_distant_timer(loop, asleep, wait_for):
    """contract: a deadline of a century is slept for like any other, and work wakes the loop."""
    with loop:
        timer = loop.schedule_timer(3.9e9, int)
        wait_for(lambda: int(loop._record["timers"]["commands"]) == 0)
        for _ in range(3):
            asleep(loop)
            assert _round_trip(loop)
        assert int(loop._record["parks"]) < 20
        assert loop.cancel_timer(timer) is True


def test_failing_parker(make_loop, monkeypatch, caplog):
    """behaviour 67: a failing poll is logged as critical and ends the loop, with what was accepted run; run() says
    why.
    """
    monkeypatch.setenv("NBLOOP_PARK", "lock")
    loop, ran = make_loop(), []

    def fail(timeout):
        loop.submit(ran.append, 1)  # accepted before the end
        raise OSError(errno.EIO, "on purpose")

    loop._descriptors.parker.wait = fail
    with pytest.raises(PollerFailedError, match="on purpose") as raised:
        loop.run()
    assert raised.value.errno == errno.EIO
    assert isinstance(raised.value.__cause__, OSError)
    assert loop.state is LoopState.TERMINATED
    assert ran == [1]
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    with pytest.raises(LoopTerminatedError):
        loop.run()


def test_one_wake_for_a_crowd(loop, together, asleep, wait_for):
    """contract: a submit to a sleeping loop costs one wake, to an awake one none."""
    release = threading.Event()
    with loop:
        asleep(loop)
        before = int(loop._record["wakes_sent"])
        together(20, lambda _: [loop.submit(release.wait, 30) for _ in range(50)])  # the first one keeps the loop awake
        assert int(loop._record["wakes_sent"]) == before + 1
        release.set()


def test_no_wake_for_its_own_work(loop, turns):
    """contract: what the loop schedules for itself needs no wake and no sleep."""

    def again(left):
        if left:
            loop.submit(again, left - 1)
            loop.schedule_timer(0, int)
            loop.schedule_immediate(int)
        else:
            loop.stop()

    loop.submit(again, 1000)
    loop.run()
    assert int(loop._record["wakes_sent"]) == 0
    assert int(loop._record["parks"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how often a thread was switched to")
def test_many_idle_loops(monkeypatch, make_loop, asleep):
    """contract: an idle loop makes no system call (it is not switched to once) and uses no CPU."""
    loops = [make_loop(fast_path_mode=mode) for mode in FastPathMode]
    monkeypatch.setenv("NBLOOP_PARK", "lock")
    loops.append(make_loop())
    loops[0].schedule_timer(1000, int)
    threads = [loop.start() for loop in loops]
    for loop in loops:
        asleep(loop)

    def used():
        """Of each thread: CPU time in ns, and how often it was switched to."""
        return [Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[::2] for thread in threads]

    def settled():
        """What was on its way to sleep is asleep: the figures stand still."""
        before = used()
        time.sleep(0.02)
        return used() == before

    deadline = time.monotonic() + 30
    while not settled():
        assert time.monotonic() < deadline, "the loops do not come to rest"
    before = used()
    time.sleep(0.5)
    assert used() == before


def test_sleeps_again_after_each_wake(loop, asleep, wait_for):
    """contract: no busy loop: after work it goes back to sleep, and does not spin longer than it has learnt to."""
    with loop:
        for _ in range(10):
            asleep(loop)
            loop.submit(int)
            loop.wake()
        asleep(loop)
        parks = int(loop._record["parks"])
        assert parks <= 1 + 10 + int(loop._record["wakes_sent"])


def test_changing_mode_at_run_time(make_loop, together, wait_for):
    """Modes flipped at random while threads submit: what is accepted runs; nothing is lost
    between two ways to sleep.
    """
    loop, ran, ends = make_loop(), [], threading.Event()

    def body(thread):
        if thread == 0:
            for i in range(300):
                loop.set_fast_path_mode(list(FastPathMode)[i % 3])
            ends.set()
            return 0
        accepted = 0
        while not ends.is_set():
            loop.submit(ran.append, 1)
            accepted += 1
            if accepted % 10 == 0 and not _round_trip(loop):
                return -1
        return accepted + accepted // 10

    with loop:
        accepted = together(3, body)
        assert -1 not in accepted
        wait_for(lambda: not loop.alive())
    assert len(ran) == sum(count - count // 11 for count in accepted)


def test_changing_mode_in_a_callback(loop, turns, asleep, wait_for):
    """contract: set_fast_path_mode from any thread, a callback included; it takes effect before the next sleep."""
    done = threading.Event()
    with loop:
        for mode in list(FastPathMode) * 3:
            loop.submit(loop.set_fast_path_mode, mode)
            wait_for(lambda mode=mode: loop.fast_path_mode is mode)
            asleep(loop)
            assert (int(loop._record["park_mode"]) == PARKERS["poller"][1]) == (mode is FastPathMode.DISABLED)
        loop.submit(done.set)
        wait_for(done)


def test_changing_mode_while_asleep(loop, asleep, wait_for):
    """contract: a sleeping loop is woken to switch."""
    with loop:
        for mode in list(FastPathMode) * 3:
            asleep(loop)
            loop.set_fast_path_mode(mode)
            wait_for(
                lambda mode=mode: (loop._record["park_mode"] == PARKERS["poller"][1]) == (mode is FastPathMode.DISABLED)
            )
            assert _round_trip(loop)


def test_mode_races_with_run(loop, together, turns):
    """contract: set_fast_path_mode by another thread must not make run() report that the loop is already running."""
    modes = list(FastPathMode) * 30
    assert together(2, lambda i: turns(loop, 300) if i else [*map(loop.set_fast_path_mode, modes)])[1] is None
    assert loop.fast_path_mode is modes[-1]


def test_mode_before_run(loop, turns):
    """contract: set_fast_path_mode of a loop that does not run takes effect at once."""
    for mode in FastPathMode:
        loop.set_fast_path_mode(mode)
        assert loop.fast_path_mode is mode
        assert (int(loop._record["park_mode"]) == PARKERS["poller"][1]) == (mode is FastPathMode.DISABLED)
        turns(loop)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_no_spin_on_one_core(monkeypatch, make_loop, wait_for):
    """contract: no busy loop: with one usable core a spin would take the core that the producer needs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    loop = make_loop()
    with loop:
        for _ in range(200):
            assert _round_trip(loop)
        assert int(loop._record["spins_won"]) == 0
        assert int(loop._record["spins_lost"]) == 0


def test_descriptors(descriptors, mode, asleep, make_loop):
    """contract: a loop that never polls holds no descriptor; one that does holds two until it ends."""
    before = len(descriptors())
    loop = make_loop(fast_path_mode=mode)
    assert len(descriptors()) - before == (2 if mode is FastPathMode.DISABLED else 0)
    with loop:
        for _ in range(5):
            loop.set_fast_path_mode(FastPathMode.DISABLED)
            loop.set_fast_path_mode(FastPathMode.FORCED)
        asleep(loop)
        _round_trip(loop)
        assert len(descriptors()) == before + 2
        loop.set_fast_path_mode(mode)
    assert len(descriptors()) == before


def test_close_races_with_wakes(mode, together, descriptors):
    """Submits racing with the end never write to a closed descriptor, or to a new file with its number."""
    before = descriptors()
    for _ in range(40):
        loop = Loop(fast_path_mode=mode)
        loop.start()
        watched = []

        def body(thread, loop=loop, watched=watched):
            if thread == 0:
                loop.close()
                for _ in range(4):  # takes the numbers that have just become free
                    watched.append(os.eventfd(0, os.EFD_NONBLOCK))
            else:
                for _ in range(200):
                    loop.submit(int)

        together(3, body)
        for number in watched:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(number)
            os.close(number)
        assert loop.state is LoopState.TERMINATED
    assert descriptors() == before
