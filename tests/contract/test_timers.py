"""Timers, intervals and immediates: never early, in order, and cancelled for certain."""

from __future__ import annotations

import functools
import gc
import itertools
import random
import socket
import threading
import time

import pytest

from nbloop import FastPathMode, IOEvents
from nbloop.kernels.state.traverse import traverse_loop
from tests.support.waiting import PATIENCE, wait_for


def test_never_early(loop):
    """contract: schedule_timer: never early, by a clock of our own."""
    early = []
    delays = [i * 0.0007 for i in range(60)]
    left = list(delays)

    def fired(asked, delay):
        if time.monotonic_ns() - asked < delay * 1e9:
            early.append(delay)
        left.remove(delay)
        if not left:
            loop.stop()

    random.Random(1).shuffle(delays)
    for delay in delays:
        loop.schedule_timer(delay, fired, time.monotonic_ns(), delay)
    loop.run()
    assert not early


def test_earliest_first_and_ties_in_order(loop, turns):
    """contract: earliest deadline first, equal deadlines in scheduling order."""
    ran = []
    for delay in (0.04, 0.02, 0.06):  # the first makes a table, which takes 15 ms under Wine
        loop.schedule_timer(delay, ran.append, delay)
    loop.schedule_timer(0.08, loop.stop)
    loop.run()
    assert ran == [0.02, 0.04, 0.06]
    ran.clear()
    for i in range(500):  # all due by the next timer phase, with deadlines that may be equal but never go back
        loop.schedule_timer(0, ran.append, i)
    turns(loop)
    assert ran == list(range(500))


@pytest.mark.parametrize("delay", [0, 0.0, -0.0, -1, -3.9e9, False, 1e-9, -1e-300], ids=repr)
def test_due_at_once(loop, turns, delay):
    """contract: negative or zero delay: the next timer phase."""
    ran = []
    loop.schedule_timer(delay, ran.append, delay)
    turns(loop)
    assert ran == [delay]


@pytest.mark.parametrize(
    "delay", [float("nan"), float("inf"), 4.1e9, 1e300, 10**400, -(10**400)], ids=lambda d: str(d)[:8]
)
@pytest.mark.parametrize("schedule", ["schedule_timer", "schedule_interval"])
def test_not_a_delay(loop, schedule, delay):
    """contract: NaN, inf: ValueError; so is what no clock can hold. Nothing is stored."""
    with pytest.raises(ValueError, match="finite"):
        getattr(loop, schedule)(delay, int)
    assert not loop.alive()


def test_the_longest_delay_and_the_shortest(loop, turns):
    """contract: more than 4e9 is refused, and not 4e9; zero or negative, however far: the next timer phase."""
    ran = []
    assert loop.cancel_timer(loop.schedule_timer(4e9, int))
    for delay in (-4.1e9, -1e300, -float("inf")):
        loop.schedule_timer(delay, ran.append, delay)
    turns(loop)
    assert ran == [-4.1e9, -1e300, -float("inf")]


def test_no_more_than_there_are_ids(loop, turns):
    """contract: 4,194,304 timers, immediates and descriptors at once; then MemoryError, and nothing was stored."""
    schedule = loop.schedule_timer
    first = schedule(1000, int)
    for _ in range((1 << 22) - 1):
        schedule(1000, int)
    reader, writer = socket.socketpair()
    with reader, writer:
        for refused in (
            lambda: schedule(0, pytest.fail),
            lambda: loop.schedule_interval(0, pytest.fail),
            lambda: loop.schedule_immediate(pytest.fail),
            lambda: loop.register_fd(writer.fileno(), IOEvents.WRITE, pytest.fail),
        ):
            with pytest.raises(MemoryError, match="already has 4,194,304 of them; nothing was stored"):
                refused()
        turns(loop)
        assert loop.cancel_timer(first)
        ran = []
        loop.submit(lambda: loop.schedule_immediate(ran.append, "as one has gone"))
        turns(loop, 2)
    assert ran == ["as one has gone"]


@pytest.mark.parametrize("delay", [None, "1", [], 1j], ids=repr)
@pytest.mark.parametrize("schedule", ["schedule_timer", "schedule_interval"])
def test_not_a_number(loop, schedule, delay):
    """contract: what is not a number: TypeError. Nothing is stored."""
    with pytest.raises(TypeError, match="number"):
        getattr(loop, schedule)(delay, int)
    assert not loop.alive()


def test_number_like(loop, turns):
    """contract: delays are seconds as float, or whatever converts to one."""
    import fractions

    ran = []
    loop.schedule_timer(fractions.Fraction(-1, 3), ran.append, 1)
    turns(loop)
    assert ran == [1]


def test_ids(loop, turns):
    """contract: ids are ints, none of them 0 or used twice, though slots are used again."""
    ids = []
    for _ in range(20):
        ids += [loop.schedule_timer(0, int) for _ in range(50)] + [loop.schedule_immediate(int) for _ in range(50)]
        turns(loop)
    assert len(set(ids)) == 2000
    assert all(type(i) is int and i > 0 for i in ids)


def test_id_is_valid_before_the_callback_can_start(loop, wait_for):
    """Another thread has the id though the loop runs the callback at once: cancel answers truly."""
    ran = []
    with loop:
        cancelled = sum(loop.cancel_timer(loop.schedule_timer(0, ran.append, 1)) for _ in range(2000))
        done = threading.Event()
        loop.schedule_timer(0, done.set)
        wait_for(done)
    assert cancelled + len(ran) == 2000


def test_added_in_the_timer_phase(loop, turns):
    """contract: a timer added in the timer phase waits for the next turn, also one whose deadline is the earliest of
    all.
    """
    ran = []

    def first():
        ran.append("first")
        loop.schedule_timer(-1, ran.append, "added")

    loop.schedule_timer(0, first)
    loop.schedule_timer(0, ran.append, "second")
    turns(loop)
    assert ran == ["first", "second"]
    turns(loop)
    assert ran == ["first", "second", "added"]


def test_due_while_the_turn_was_slow(loop, wait_for):
    """A timer that fell due during a slow callback fires without a sleep."""
    done = threading.Event()

    def slow():
        loop.schedule_timer(0.002, done.set)
        loop.schedule_timer(0.002, loop.stop)
        until = time.monotonic() + 0.005
        while time.monotonic() < until:
            pass

    loop.submit(slow)
    loop.run()
    assert done.is_set()
    assert int(loop._record["parks"]) == 0


@pytest.mark.parametrize("where", ["here", "elsewhere"])
class TestCancel:
    """contract: cancel_timer, cancel_timers: True and it never runs, or False."""

    @pytest.fixture
    def cancel(self, loop, where, elsewhere):
        return loop.cancel_timer if where == "here" else functools.partial(elsewhere, loop.cancel_timer)

    def test_before_run(self, loop, cancel, turns):
        """Cancelled before the loop ever ran: definite at once; the second time it is unknown."""
        ran = []
        ids = [loop.schedule_timer(0, ran.append, i) for i in range(100)]
        for i in ids[::2]:
            assert cancel(i) is True
            assert cancel(i) is False
        turns(loop)
        assert ran == list(range(1, 100, 2))
        assert not loop.alive()

    def test_after_it_ran(self, loop, cancel, turns):
        """contract: False: already started; also when its slot has been used for another timer."""
        old = loop.schedule_timer(0, int)
        turns(loop)
        assert cancel(old) is False
        new = loop.schedule_timer(100, int)
        assert cancel(old) is False
        assert cancel(new) is True

    def test_due_in_this_phase(self, loop, cancel, turns):
        """Cancelled by the callback before it in the same phase: it does not run."""
        ran = []
        loop.schedule_timer(0, lambda: ran.append(cancel(second)))
        second = loop.schedule_timer(0, ran.append, "second")
        loop.schedule_timer(0, ran.append, "third")
        turns(loop)
        assert ran == [True, "third"]

    def test_armed_on_the_loop_thread(self, loop, cancel, turns):
        """contract: any thread cancels what the loop thread armed, while it runs."""
        ran = []

        def task():
            ids = [loop.schedule_timer(0, ran.append, "timer") for _ in range(20)]
            ran.extend(cancel(i) for i in ids)
            ran.extend(cancel(i) for i in ids)

        loop.submit(task)
        turns(loop, 3)
        assert ran == [True] * 20 + [False] * 20

    def test_own_callback(self, loop, cancel, turns):
        """contract: in its own callback a timer has started: False."""
        ran = []
        own = loop.schedule_timer(0, lambda: ran.append(cancel(own)))
        turns(loop)
        assert ran == [False]

    def test_interval_in_its_own_callback(self, loop, cancel, turns):
        """An interval cancelled in its own callback does not run again; only the first cancel is True."""
        ran = []
        own = loop.schedule_interval(0, lambda: ran.append((cancel(own), cancel(own))))
        turns(loop, 5)
        assert ran == [(True, False)]
        assert not loop.alive()

    def test_immediate(self, loop, where, elsewhere, turns):
        """An immediate cancelled before it ran never runs; afterwards it is unknown."""
        ran = []
        cancel = loop.cancel_immediate
        call = cancel if where == "here" else functools.partial(elsewhere, cancel)
        ids = [loop.schedule_immediate(ran.append, i) for i in range(10)]
        assert [call(i) for i in ids[::2]] == [True] * 5
        assert [call(i) for i in ids[::2]] == [False] * 5
        loop.schedule_immediate(lambda: ran.append(call(last)))
        last = loop.schedule_immediate(ran.append, "last")
        turns(loop)
        assert ran == [1, 3, 5, 7, 9, True]
        assert [call(i) for i in ids] == [False] * 10


@pytest.mark.parametrize("call", ["cancel_timer", "cancel_immediate", "ref_timer", "unref_timer"])
def test_garbage_ids(loop, turns, call):
    """contract: unknown: False, for any int; what is not an int: TypeError."""
    call = getattr(loop, call)
    known = loop.schedule_timer(100, int)
    for garbage in (
        0,
        1,
        -1,
        True,
        False,
        known + 1,
        known ^ 1 << 30,
        -known,
        2**62,
        2**63 - 1,
        2**63,
        -(2**63),
        10**30,
        -(10**30),
    ):
        assert call(garbage) is False
    for wrong in (None, "1", 1.0, [], object()):
        with pytest.raises(TypeError, match="int"):
            call(wrong)
    assert loop.cancel_timer(known) is True


def test_ids_of_timers_and_immediates_are_apart(loop, turns):
    """contract: a timer's id cancels no immediate, an immediate's no timer."""
    ran = []
    timer = loop.schedule_timer(0, ran.append, "timer")
    immediate = loop.schedule_immediate(ran.append, "immediate")
    assert loop.cancel_timer(immediate) is False
    assert loop.cancel_immediate(timer) is False
    turns(loop)
    assert ran == ["immediate", "timer"]


def test_cancel_timers(loop, turns):
    """Known, unknown and duplicate ids in one call, from any iterable."""
    ran = []
    first, second, third = (loop.schedule_timer(0, ran.append, i) for i in range(3))
    assert loop.cancel_timers([first, 12345, first, second]) == [True, False, False, True]
    assert loop.cancel_timers(i for i in (first, third)) == [False, True]
    assert loop.cancel_timers([]) == []
    turns(loop)
    assert ran == []


def test_cancel_timers_is_checked_first(loop, turns):
    """contract: cancel_timers: none is cancelled if one is not an int."""
    ran = []
    first = loop.schedule_timer(0, ran.append, 1)
    for wrong in ([first, None], [first, "2"], first, None):
        with pytest.raises(TypeError):
            loop.cancel_timers(wrong)
    turns(loop)
    assert ran == [1]


def test_cancel_half_from_other_threads(loop, together):
    """A thousand timers, half of them cancelled at random from other threads: the other half fires."""
    ran = []
    ids = [loop.schedule_timer(0.02, ran.append, i) for i in range(1000)]
    chosen = random.Random(2).sample(range(1000), 500)
    answers = together(4, lambda thread: [loop.cancel_timer(ids[i]) for i in chosen])
    assert [sum(each) for each in zip(*answers, strict=True)] == [1] * 500  # of four, one cancelled it
    loop.schedule_timer(0.03, loop.stop)
    loop.run()
    assert sorted(ran) == sorted(set(range(1000)) - set(chosen))


def test_cancel_storm(loop, together, wait_for):
    """Threads that create and cancel while the loop fires: each timer is cancelled or runs, once."""
    ran = []

    def body(thread):
        count = 0
        for i in range(500):
            mine = loop.schedule_timer(0 if i % 2 else 0.0002, ran.append, (thread, i))
            count += loop.cancel_timer(mine)
        return count

    with loop:
        cancelled = sum(together(8, body))
        wait_for(lambda: not loop.alive())
    assert len(set(ran)) == len(ran)
    assert cancelled + len(ran) == 8 * 500


def test_interval_cancelled_from_many_threads(loop, together):
    """Several threads cancel a running interval at once: one wins, and at most one run follows."""
    with loop:
        for _ in range(10):
            ran = []
            interval = loop.schedule_interval(0, ran.append, 1)
            answers = together(3, lambda _, id=interval, ran=ran: (loop.cancel_timer(id), len(ran)))
            assert sorted(won for won, _ in answers) == [False, False, True]
            (count,) = (count for won, count in answers if won)
            assert len(ran) <= count + 1


def test_interval_is_anchored(loop):
    """contract: anchored to callback start: never early, and a slow callback's own time is not added to the period."""
    starts = []

    def slow():
        starts.append(time.monotonic())
        while time.monotonic() < starts[-1] + 0.03:
            pass
        if len(starts) == 6:
            loop.stop()

    began = time.monotonic()
    loop.schedule_interval(0.04, slow)
    loop.run()
    # Not from start to start: each is read a moment after the loop's own, and on a busy machine that moment is long.
    assert all(start - began >= 0.04 * number for number, start in enumerate(starts, 1))
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert min(gaps) < 0.07  # 0.03 + 0.04 if it drifted; the least of five, for a busy machine


def test_interval_survives_its_exceptions(make_loop, turns):
    """An exception does not stop it, and each is reported."""
    errors = []
    loop = make_loop(on_error=lambda error, context: errors.append((type(error), context["kind"])))
    loop.schedule_interval(0, int, "not a number")
    turns(loop, 3)
    assert errors == [(ValueError, "timer")] * 3


def test_interval_of_zero(loop, turns):
    """With a period of 0 it runs once a turn."""
    ran = []
    loop.schedule_interval(0, ran.append, 1)
    loop.schedule_interval(-1, ran.append, 2)
    turns(loop, 4)
    assert ran == [1, 2] * 4


def test_interval_with_arguments(loop, turns):
    """contract: schedule_interval(period, fn, *args): the same arguments each time."""
    ran = []
    loop.schedule_interval(0, lambda *args: ran.append(args), 1, 2)
    turns(loop, 2)
    assert ran == [(1, 2)] * 2


class TestReferences:
    """contract: ref_timer, unref_timer, alive, auto_exit."""

    def test_alive(self, loop, turns):
        """Only referenced work counts; each answer is whether the timer is live."""
        assert not loop.alive()
        timer = loop.schedule_timer(100, int)
        assert loop.alive()
        assert loop.unref_timer(timer) is True
        assert loop.unref_timer(timer) is True
        assert not loop.alive()
        assert loop.ref_timer(timer) is True
        assert loop.alive()
        loop.cancel_timer(timer)
        assert not loop.alive()
        assert loop.ref_timer(timer) is False
        assert loop.unref_timer(timer) is False

    @pytest.mark.parametrize(
        "put",
        [
            "submit",
            "submit_internal",
            "schedule_microtask",
            "schedule_next_tick",
            "schedule_immediate",
            "schedule_close",
        ],
    )
    def test_work_is_alive(self, loop, turns, put):
        """Everything queued counts until it has run."""
        getattr(loop, put)(int)
        assert loop.alive()
        turns(loop)
        assert not loop.alive()

    def test_cancelled_unreferenced(self, loop, turns):
        """Cancelled, fired and unreferenced again in any order: the count is right afterwards."""
        ids = [loop.schedule_timer(0, int) for _ in range(6)]
        for i in ids[:4]:
            loop.unref_timer(i)
        loop.ref_timer(ids[0])
        for i in ids[1:4:2]:
            loop.cancel_timer(i)
        turns(loop)
        assert not loop.alive()
        loop.schedule_timer(100, int)
        assert loop.alive()

    def test_empty_auto_exit_loop(self, make_loop):
        """An auto_exit loop with nothing to do returns at once."""
        make_loop(auto_exit=True).run()

    def test_auto_exit(self, make_loop):
        """Referenced timers are waited for, unreferenced ones are not; they run if something else
        holds the loop.
        """
        loop = make_loop(auto_exit=True)
        ran = []
        loop.unref_timer(loop.schedule_timer(0.001, ran.append, "unreferenced, early"))
        loop.unref_timer(loop.schedule_timer(1000, ran.append, "unreferenced"))
        loop.schedule_timer(0.005, ran.append, "referenced")
        loop.run()
        assert ran == ["unreferenced, early", "referenced"]

    def test_unreferenced_interval(self, make_loop):
        """An unreferenced interval keeps running, in its callback too, and holds nothing."""
        loop = make_loop(auto_exit=True)
        ran = []
        interval = loop.schedule_interval(0, lambda: ran.append(loop.unref_timer(interval)))
        loop.run()
        assert ran == [True]


class TestNesting:
    """contract: clamp_nested_timers (HTML, timer initialisation steps). Turns that never wait
    tell what was due at once.
    """

    @pytest.fixture
    def chain(self, make_loop):
        """`chain(delay, length)`: timers that each schedule the next; their start times."""

        def chain(length, delay=0.0, clamp=True):
            starts = []
            loop = make_loop(clamp_nested_timers=clamp)

            def link():
                starts.append(time.monotonic())
                if len(starts) < length:
                    loop.schedule_timer(delay, link)

            loop.schedule_timer(delay, link)
            return loop, starts

        return chain

    @pytest.mark.parametrize("delay", [0, -1])
    def test_seventh_callback_waits(self, chain, turns, delay):
        """Callbacks 1 to 6 are due at once, each later one at least 4 ms after the one before;
        negative is 0.
        """
        loop, starts = chain(9, delay)
        turns(loop, 6)
        assert len(starts) == 6
        loop.schedule_timer(0.05, loop.stop)
        loop.run()
        assert len(starts) == 9
        assert all(later - earlier >= 0.0039 for earlier, later in itertools.pairwise(starts[5:]))

    def test_off_by_default(self, make_loop, turns):
        """contract: clamp_nested_timers=False."""
        loop = make_loop()
        ran = []

        def link():
            ran.append(1)
            loop.schedule_timer(0, link)

        loop.schedule_timer(0, link)
        turns(loop, 20)
        assert len(ran) == 20

    def test_interval_is_nested_in_itself(self, make_loop, turns):
        """HTML: each repetition of an interval is one level deeper."""
        loop = make_loop(clamp_nested_timers=True)
        starts = []
        loop.schedule_interval(0, lambda: starts.append(time.monotonic()))
        turns(loop, 6)
        assert len(starts) == 6
        loop.schedule_timer(0.02, loop.stop)
        loop.run()
        assert starts[6] - starts[5] >= 0.0039

    def test_not_inherited_through_microtasks(self, make_loop, turns):
        """HTML: a timer that a microtask schedules is not nested, however deep the timer whose checkpoint it is."""
        loop = make_loop(clamp_nested_timers=True)
        ran = []

        def link():
            ran.append(1)
            loop.schedule_microtask(loop.schedule_timer, 0, link)

        loop.schedule_timer(0, link)
        turns(loop, 12)
        assert len(ran) == 12

    def test_starts_anew(self, make_loop, turns):
        """Timers scheduled by tasks are independent, also after a deep one has raised."""
        loop = make_loop(clamp_nested_timers=True, on_error=lambda *_: None)
        depth, ran = [], []

        def link():
            depth.append(1)
            if len(depth) == 6:
                raise ValueError
            loop.schedule_timer(0, link)

        loop.schedule_timer(0, link)
        turns(loop, 6)
        loop.submit(loop.schedule_timer, 0, ran.append, "independent")
        turns(loop, 2)
        assert ran == ["independent"]


def test_nothing_but_a_timer(make_loop, wait_for):
    """1.2 s with nothing else to do, asleep in each mode: it fires in time and not early."""
    fired = {}
    start = time.monotonic()
    loops = [make_loop(fast_path_mode=mode) for mode in FastPathMode]
    for loop in loops:
        loop.start()
        loop.schedule_timer(1.2, lambda loop=loop: fired.setdefault(loop, time.monotonic() - start))
    wait_for(lambda: len(fired) == len(loops))
    assert min(fired.values()) >= 1.2


def test_earlier_timer_wakes_a_sleeping_loop(loop, mode, asleep, wait_for):
    """contract, schedule_timer from other threads: a sleeping loop is woken only if this deadline is its earliest."""
    loop.set_fast_path_mode(mode)
    ran = []
    with loop:
        loop.schedule_timer(600, ran.append, "late")
        wait_for(lambda: int(loop._record["timers"]["commands"]) == 0)
        asleep(loop)
        before = int(loop._record["wakes_sent"])
        later = [loop.schedule_timer(601 + i, ran.append, "later") for i in range(50)]
        assert int(loop._record["wakes_sent"]) == before
        loop.schedule_timer(0.001, ran.append, "early")
        assert int(loop._record["wakes_sent"]) == before + 1
        wait_for(lambda: ran)
        assert loop.cancel_timers(later) == [True] * 50
    assert ran == ["early"]


def test_immediate_before_zero_timer(loop, turns):
    """Immediates are FIFO, and one that a task schedules comes before its 0 ms timer."""
    ran = []

    def task():
        loop.schedule_timer(0, ran.append, "timer")
        loop.schedule_immediate(ran.append, "immediate 1")
        loop.schedule_immediate(ran.append, "immediate 2")

    loop.submit(task)
    turns(loop, 2)
    assert ran == ["immediate 1", "immediate 2", "timer"]


def test_many_timers(loop, wait_for):
    """contract: timers by the thousand, armed in any order, here and elsewhere: each fires once, none early."""
    early = []

    def fired(due):
        early.append(time.monotonic() < due)

    def arm():
        for delay in random.Random(3).choices(range(20_000), k=3000):
            loop.schedule_timer(delay / 1e6, fired, time.monotonic() + delay / 1e6 - 1e-7)

    arm()
    with loop:
        loop.submit(arm)
        wait_for(lambda: len(early) == 6000)
        assert not loop.alive()
    assert not any(early)


def test_deadlines(loop, turns):
    """contract: schedule_timer_at: equal deadlines in order, one that has passed in the next phase, none early."""
    ran = []
    late = loop.schedule_timer_at(loop.now() + 3600, ran.append, "never")
    loop.schedule_timer_at(-1, ran.append, "past")
    turns(loop)
    assert ran == ["past"]
    assert loop.cancel_timer(late)
    soon = loop.now() + 0.01  # or it passes meanwhile: the order is the same
    for number in range(50):
        loop.schedule_timer_at(soon, ran.append, number)
    loop.schedule_timer_at(soon - 1e-6, ran.append, "before")
    cancelled = loop.schedule_timer_at(soon, ran.append, "never")
    assert loop.cancel_timer(cancelled)
    loop.schedule_timer_at(soon, lambda: ran.append(loop.now() >= soon))
    loop.schedule_timer_at(soon + 1e-6, loop.stop)
    loop.run()
    assert ran == ["past", "before", *range(50), True]


def test_no_deadline(loop):
    """An impossible deadline is named in the error, and nothing is stored."""
    with pytest.raises(ValueError, match="deadline"):
        loop.schedule_timer_at(float("nan"), int)
    with pytest.raises(TypeError, match="deadline"):
        loop.schedule_timer_at("soon", int)
    assert not loop.alive()


def test_site_of_a_deadline(make_loop):
    """Debug mode remembers where a timer with a deadline was scheduled, as of all others."""
    told = []
    loop = make_loop(debug=True, auto_exit=True, on_error=lambda error, context: told.append(context))
    loop.schedule_timer_at(0, divmod, 1, 0)
    loop.run()
    assert "test_site_of_a_deadline" in str(told[0]["scheduled_at"])


class TestAfterAPeak:
    """The memory of slots goes back in the turns before a sleep, and nobody notices."""

    PEAK = 100_000
    KEPT = 36 * 1024  # slots: below 32 free slabs the loop sorts nothing, and the survivors lie in others

    def slots_left(self, loop):
        """Slots of slabs that are not at rest."""
        record = loop._record["timers"]
        return int(record["slot_count"]) - 1024 * int(record["rest_count"])

    def settle(self, loop, left):
        """Run until so few slots are left."""
        until = time.monotonic() + PATIENCE
        while self.slots_left(loop) > left:
            assert time.monotonic() < until, "the memory of slots is kept"
            loop.schedule_timer(0.001, loop.stop)
            loop.run()

    def test_survivors_and_ids(self, loop):
        """Timers that are left fire; the collector sees their callbacks; an id never comes again, and a stale one
        cancels nothing.
        """
        callbacks = [functools.partial(ran.append, n) for ran in [[]] for n in range(3)]
        ids = [loop.schedule_timer(600, len, ()) for _ in range(self.PEAK)]
        live = [loop.schedule_timer(600, callback) for callback in callbacks]
        assert all(loop.cancel_timers(ids))
        self.settle(loop, self.KEPT)
        if traverse_loop.address:  # the collector sees nothing of plain Python
            assert {id(callback) for callback in callbacks} <= set(map(id, gc.get_referents(loop._state)))
        assert not any(loop.cancel_timers(ids))
        again = [loop.schedule_timer(600, len, ()) for _ in range(self.PEAK)]
        assert len({*ids, *live, *again}) == 2 * self.PEAK + 3
        assert not any(loop.cancel_timers(ids))
        assert all(loop.cancel_timers([*live, *again]))
        assert not loop.alive()
        self.settle(loop, self.KEPT)

    def test_timers_that_fired(self, loop):
        """Not only cancelled ones; and those that other threads armed."""
        ran, armed = [], threading.Event()
        with loop:
            loop.submit(armed.wait, PATIENCE)  # so that none fires before all are armed
            for _ in range(self.PEAK):
                loop.schedule_timer(0, ran.append, 1)
            armed.set()
            wait_for(lambda: len(ran) == self.PEAK)
            wait_for(lambda: self.slots_left(loop) <= self.KEPT)

    @pytest.mark.parametrize("fast", list(FastPathMode))
    def test_descriptors_are_polled_meanwhile(self, make_loop, pair, fast):
        """A descriptor that is ready does not wait until all slots are sorted."""
        if fast is FastPathMode.FORCED:
            pytest.skip("it has no descriptors")
        loop = make_loop(fast_path_mode=fast)
        here, there = pair()
        unsorted = []

        def readable(_fd, _events):
            unsorted.append(int(loop._record["timers"]["unsorted"]))
            loop.stop()

        loop.register_fd(here.fileno(), IOEvents.READ, readable)
        ids = [loop.schedule_timer(600, len, ()) for _ in range(self.PEAK)]
        loop.submit(loop.stop)
        loop.run()
        assert all(loop.cancel_timers(ids))
        there.send(b"x")
        loop.run()
        assert unsorted == [0] or unsorted[0] > self.PEAK // 2
        assert self.slots_left(loop) > self.PEAK // 2, "all was sorted first"
        here.recv(1)
        self.settle(loop, self.KEPT)
