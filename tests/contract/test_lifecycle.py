"""The life of a loop: run, stop, run again, shut down, close; from wherever, in whatever order, together."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import time

import pytest

from nbloop import (
    FastPathMode,
    IOEvents,
    Loop,
    LoopAlreadyRunningError,
    LoopState,
    LoopTerminatedError,
    ReentrantCloseError,
    ReentrantRunError,
)


class TestStates:
    """contract: state: AWAKE, RUNNING, SLEEPING, TERMINATING, TERMINATED."""

    def test_all_of_them(self, loop, asleep, wait_for):
        """Each state is seen where it holds."""
        seen, go = [], threading.Event()
        assert loop.state is LoopState.AWAKE
        thread = loop.start()
        asleep(loop)
        loop.submit(lambda: seen.append(loop.state))
        loop.submit(wait_for, go)
        loop.submit(lambda: seen.append(loop.state))
        wait_for(lambda: seen)
        with pytest.raises(TimeoutError):
            loop.shutdown(timeout=0)
        assert loop.state is LoopState.TERMINATING
        go.set()
        thread.join()
        assert loop.state is LoopState.TERMINATED
        assert seen == [LoopState.RUNNING, LoopState.TERMINATING]

    def test_stop_goes_back_to_awake(self, loop, turns):
        """contract: stop: the loop can be run again."""
        turns(loop)
        assert loop.state is LoopState.AWAKE

    def test_is_loop_thread(self, loop, elsewhere, turns):
        """contract: is_loop_thread: only the thread inside run(), and only while it is."""
        seen = [loop.is_loop_thread()]
        loop.submit(lambda: seen.extend((loop.is_loop_thread(), elsewhere(loop.is_loop_thread))))
        turns(loop)
        assert [*seen, loop.is_loop_thread()] == [False, True, False, False]

    def test_now(self, loop):
        """contract: now(): the clock of time.monotonic."""
        before = time.monotonic()
        assert before <= loop.now() + 1e-6
        assert loop.now() <= time.monotonic() + 1e-6

    def test_wake(self, loop, asleep):
        """contract: wake(): whether the loop slept and this call woke it."""
        assert loop.wake() is False
        with loop:
            asleep(loop)
            assert loop.wake() is True

    def test_repr(self, make_loop):
        """The name and the state, for logs."""
        loop = make_loop(name="mine")
        assert repr(loop) == "<nbloop.Loop mine awake>"
        assert "mine" in repr(loop.producer())


class TestStop:
    """contract: stop(): run() returns after the current turn; the loop can be run again."""

    def test_from_a_callback(self, loop):
        """The turn in progress is finished, what it queued stays queued."""
        ran = []
        loop.submit(loop.stop)
        loop.submit(loop.submit, ran.append, "next turn")
        loop.submit(ran.append, "this turn")
        loop.run()
        assert ran == ["this turn"]
        loop.submit(loop.stop)
        loop.run()
        assert ran == ["this turn", "next turn"]

    def test_before_run(self, loop):
        """Without a run in progress it is the next one's first turn that is the last, and it does not wait."""
        loop.stop()
        loop.stop()
        loop.run()
        loop.schedule_timer(0.001, loop.stop)
        loop.run()

    def test_wakes_a_sleeping_loop(self, loop, mode, asleep):
        """From another thread, in each mode."""
        loop.set_fast_path_mode(mode)
        for _ in range(20):
            thread = loop.start()
            asleep(loop)
            loop.stop()
            thread.join(30)
            assert loop.state is LoopState.AWAKE

    def test_run_again_on_another_thread(self, loop, turns, elsewhere):
        """Any thread may call run(), one after the other."""
        ran = []
        for run in (turns, lambda loop: elsewhere(turns, loop)) * 3:
            loop.submit(lambda: ran.append(threading.get_ident()))
            run(loop)
        assert len(ran) == 6
        assert ran[0] == ran[2] == ran[4] == threading.get_ident() != ran[1]


class TestWhoMayRun:
    """contract: run(): LoopAlreadyRunningError, ReentrantRunError, LoopTerminatedError."""

    def test_fifty_threads(self, loop, together, wait_for):
        """Exactly one runs, the others get an error."""
        refused = []
        ender = threading.Thread(target=lambda: (wait_for(lambda: len(refused) == 49), loop.shutdown(30)))
        ender.start()

        def run(_):
            try:
                loop.run()
            except LoopAlreadyRunningError:
                refused.append(1)

        together(50, run)
        ender.join(30)
        assert len(refused) == 49

    @pytest.mark.parametrize("call", ["run", "start"])
    def test_from_its_own_callback(self, make_loop, turns, call):
        """Also in a microtask, a timer; another loop may run there."""
        errors = []
        loop = make_loop(on_error=lambda error, _: errors.append(type(error)))
        other = make_loop(auto_exit=True)
        loop.submit(getattr(loop, call))
        loop.schedule_microtask(getattr(loop, call))
        loop.schedule_timer(0, getattr(loop, call))
        loop.submit(other.run)
        turns(loop)
        assert errors == [ReentrantRunError] * 3
        assert other.state is LoopState.TERMINATED

    @pytest.mark.parametrize("end", ["shutdown", "close"])
    def test_after_the_end(self, loop, end):
        """A loop that has ended does not come back."""
        getattr(loop, end)()
        for call in (loop.run, loop.start, loop.__enter__):
            with pytest.raises(LoopTerminatedError, match="terminated"):
                call()

    def test_start_while_running(self, loop):
        """start() raises what run() would, in the caller."""
        with loop, pytest.raises(LoopAlreadyRunningError):
            loop.start()

    def test_start(self, make_loop, wait_for):
        """contract: start() -> Thread: its own, named after the loop, in which the loop runs."""
        loop = make_loop(name="named")
        ran, done = [], threading.Event()
        thread = loop.start()
        assert loop.state in (LoopState.RUNNING, LoopState.SLEEPING)
        loop.submit(lambda: (ran.append(threading.current_thread()), done.set()))
        wait_for(done)
        assert ran == [thread]
        assert (thread.name, thread.daemon) == ("named", True)
        loop.shutdown()
        thread.join(30)
        assert not thread.is_alive()

    def test_context_manager(self):
        """contract: leaving the block shuts down gracefully, also when an exception leaves it."""
        ran = []
        with Loop() as loop:
            assert isinstance(loop, Loop)
            for i in range(1000):
                loop.submit(ran.append, i)
        assert ran == list(range(1000))
        assert loop.state is LoopState.TERMINATED
        with contextlib.suppress(KeyError), Loop() as loop:
            loop.submit(ran.clear)
            raise KeyError
        assert ran == []


class TestShutdown:
    """contract: shutdown(): refuse new work, run what was accepted, end."""

    def fill(self, loop, ran):
        loop.schedule_timer(0, ran.append, "timer")
        loop.submit(ran.append, "external")
        loop.submit_internal(ran.append, "internal")
        loop.schedule_close(ran.append, "close")
        loop.schedule_immediate(ran.append, "immediate")
        loop.schedule_microtask(ran.append, "microtask")
        loop.schedule_next_tick(ran.append, "tick")

    drained = ("tick", "microtask", "immediate", "close", "internal", "external")

    def test_before_run(self, loop):
        """What was accepted runs on a thread of its own, in order; timers never."""
        ran, threads = [], []
        self.fill(loop, ran)
        loop.submit(lambda: threads.append(threading.get_ident()))
        loop.shutdown()
        assert tuple(ran) == self.drained
        assert threads != [threading.get_ident()]
        assert loop.state is LoopState.TERMINATED

    def test_from_a_callback(self, loop):
        """Requests the end and returns; run() returns when the rest has run."""
        ran = []

        def task():
            self.fill(loop, ran)
            loop.shutdown()
            ran.append("returned")

        loop.submit(task)
        loop.run()
        assert tuple(ran) == ("returned", *self.drained)
        assert loop.state is LoopState.TERMINATED

    def test_of_a_sleeping_loop(self, loop, mode, asleep):
        """It is woken, and ends; its timers do not matter."""
        loop.set_fast_path_mode(mode)
        loop.schedule_timer(1000, int)
        thread = loop.start()
        asleep(loop)
        loop.shutdown(timeout=30)
        thread.join(30)
        assert not thread.is_alive()

    def test_of_a_loop_that_falls_asleep(self, make_loop, mode):
        """contract: no lost wake-up: at every moment between the last callback and the sleep, shutdown is seen."""
        for i in range(150):
            loop = make_loop(fast_path_mode=mode)
            loop.start()
            loop.submit(int)
            for _ in range(i * 10):  # a little later each time
                pass
            loop.shutdown(timeout=30)

    def test_more_than_a_budget(self, make_loop):
        """A drain is not bounded by the budget, and is no overload."""
        ran = []
        loop = make_loop(ingress_budget=1, on_overload=ran.append)
        handle = loop.producer()
        for i in range(5000):
            loop.submit(ran.append, i)
            handle.submit(ran.append, i)
        loop.shutdown()
        assert sorted(ran) == sorted([*range(5000), *range(5000)])

    def test_microtasks_in_the_drain(self, make_loop):
        """Callbacks of the drain may queue microtasks and next-ticks, nested too, and nothing else."""
        errors, ran = [], []
        loop = make_loop(on_error=lambda error, _: errors.append(type(error)))

        def task():
            loop.schedule_microtask(loop.schedule_microtask, ran.append, "nested")
            loop.schedule_microtask(ran.append, "microtask")
            loop.schedule_next_tick(ran.append, "tick")
            for refused in (
                lambda: loop.submit(int),
                lambda: loop.submit_many([int]),
                lambda: loop.submit_internal(int),
                lambda: loop.schedule_immediate(int),
                lambda: loop.schedule_close(int),
                lambda: loop.schedule_timer(0, int),
                lambda: loop.schedule_interval(0, int),
                loop.producer,
            ):
                with pytest.raises(LoopTerminatedError):
                    refused()
            ran.append("task")

        loop.submit(task)
        loop.submit(ran.append, "last")
        loop.shutdown()
        assert not errors
        assert ran == ["task", "tick", "microtask", "nested", "last"]

    def test_from_a_draining_callback(self, make_loop):
        """Shutdown again is fine, close and run are not; none of it is a deadlock."""
        errors = []
        loop = make_loop(on_error=lambda error, _: errors.append(type(error)))
        for call in (loop.shutdown, loop.close, loop.run, loop.stop):
            loop.submit(call)
        loop.shutdown()
        assert errors == [ReentrantCloseError, ReentrantRunError]

    def test_concurrent(self, make_loop, together):
        """Ten threads shut down, or close, or some of each: all return, and the loop has ended."""
        ends = ["shutdown"] * 10, ["close"] * 10, ["shutdown", "close"] * 5
        for calls in ends * 5:
            for running in (True, False):
                loop = make_loop()
                thread = loop.start() if running else None
                loop.submit(int)
                assert together(10, lambda i, loop=loop, calls=calls: getattr(loop, calls[i])()) == [None] * 10
                assert loop.state is LoopState.TERMINATED
                if thread:
                    thread.join(30)
                    assert not thread.is_alive()

    def test_twice(self, loop):
        """Any number of times, in any mixture."""
        loop.shutdown()
        loop.shutdown(timeout=0)
        loop.close()
        loop.close()

    def test_timeout(self, loop, wait_for):
        """TimeoutError at the deadline, and the end goes on."""
        ran, go = [], threading.Event()
        thread = loop.start()
        loop.submit(wait_for, go)
        loop.submit(ran.append, "after")
        with pytest.raises(TimeoutError):
            loop.shutdown(timeout=0.01)
        with pytest.raises(LoopTerminatedError):
            loop.submit(int)
        go.set()
        loop.shutdown()
        thread.join(30)
        assert ran == ["after"]

    @pytest.mark.parametrize(
        ("timeout", "error"), [("1", TypeError), (True, TypeError), (-1, ValueError), (float("nan"), ValueError)]
    )
    def test_timeout_is_checked_first(self, loop, timeout, error):
        """A wrong timeout changes nothing."""
        with pytest.raises(error, match="timeout"):
            loop.shutdown(timeout=timeout)
        assert loop.state is LoopState.AWAKE

    def test_races_with_submits(self, make_loop, together):
        """Accepted is run, refused is not, whichever entrance, while the loop is shut down."""
        for _ in range(10):
            loop, ran = make_loop(), []

            def body(thread, loop=loop, ran=ran):
                if thread == 0:
                    loop.shutdown()
                    return 0
                accepted = 0
                with contextlib.suppress(LoopTerminatedError):
                    put = (loop.submit, loop.submit_internal, loop.schedule_microtask, loop.producer().submit)[
                        thread - 1
                    ]
                    while accepted < 1000:
                        put(ran.append, thread)
                        accepted += 1
                return accepted

            with loop:
                accepted = together(5, body)
            assert [ran.count(thread) for thread in range(5)] == accepted

    def test_interrupted_drain(self, make_loop, caplog):
        """contract: KeyboardInterrupt and SystemExit in a shutdown lose no accepted work and do not hang it, before
        run too.
        """
        loop, ran = make_loop(), []
        for error in (KeyboardInterrupt, SystemExit):
            loop.submit(_raise, error)
            loop.submit(ran.append, error)
        loop.shutdown(timeout=20)
        assert ran == [KeyboardInterrupt, SystemExit]
        assert [record.exc_info[0] for record in caplog.records] == [KeyboardInterrupt, SystemExit]


def _raise(error):
    raise error


class TestClose:
    """contract: close(): immediate; the callback in progress ends, the rest is dropped."""

    def test_before_run(self, loop):
        """What was queued is dropped, and nothing is alive."""
        ran = []
        TestShutdown().fill(loop, ran)
        loop.producer().submit(ran.append, 1)
        loop.close()
        assert ran == []
        assert not loop.alive()
        assert loop.state is LoopState.TERMINATED

    @pytest.mark.parametrize(
        "put", ["submit", "submit_internal", "schedule_immediate", "schedule_close", "schedule_microtask"]
    )
    def test_while_a_callback_runs(self, loop, wait_for, put):
        """It finishes, and the next in the same phase does not start."""
        ran, started, go = [], threading.Event(), threading.Event()
        schedule = getattr(loop, put)
        schedule(lambda: (started.set(), wait_for(go), ran.append("in progress")))
        schedule(ran.append, "next")
        TestShutdown().fill(loop, ran)
        thread = loop.start()
        wait_for(started)
        before = list(ran)
        closer = threading.Thread(target=loop.close)
        closer.start()
        wait_for(lambda: loop.state is LoopState.TERMINATING)
        wait_for(lambda: int(loop._record["interrupt"]))
        assert closer.is_alive()
        go.set()
        for each in (closer, thread):
            each.join(30)
            assert not each.is_alive()
        assert ran == [*before, "in progress"]

    def test_from_its_own_callback(self, make_loop, turns):
        """ReentrantCloseError, and the loop lives."""
        errors = []
        loop = make_loop(on_error=lambda error, _: errors.append(type(error)))
        loop.submit(loop.close)
        turns(loop)
        assert errors == [ReentrantCloseError]
        assert loop.state is LoopState.AWAKE

    def test_of_another_loop_from_a_callback(self, make_loop, turns):
        """Only the loop's own callbacks may not."""
        loop, other = make_loop(), make_loop()
        other.start()
        loop.submit(other.close)
        turns(loop)
        assert other.state is LoopState.TERMINATED

    def test_cuts_a_shutdown_short(self, loop, wait_for):
        """Close() during a drain drops what has not run; both calls return."""
        ran, started, go = [], threading.Event(), threading.Event()
        thread = loop.start()
        loop.submit(lambda: (started.set(), wait_for(go)))
        loop.submit(ran.append, "rest")
        wait_for(started)
        ends = [threading.Thread(target=loop.shutdown), threading.Thread(target=loop.close)]
        ends[0].start()
        wait_for(lambda: loop.state is LoopState.TERMINATING)
        ends[1].start()
        wait_for(lambda: int(loop._record["interrupt"]))
        go.set()
        for each in (*ends, thread):
            each.join(30)
            assert not each.is_alive()
        assert ran == []

    def test_releasing_schedules_and_cancels(self, make_loop):
        """contract: close: code that runs while references are released is refused new work, and cancels nothing
        that is left.
        """
        loop, answers = make_loop(), []

        class Parting:
            def __call__(self):
                answers.append("ran")

            def __del__(self):
                try:
                    loop.submit(int)
                except LoopTerminatedError:
                    answers.append("refused")

        loop.submit(Parting())
        loop.schedule_timer(10, Parting())
        loop.schedule_immediate(Parting())
        loop.close()
        gc.collect()
        assert answers == ["refused"] * 3


class TestAutoExit:
    """contract: auto_exit."""

    def test_runs_everything_first(self, make_loop):
        """It ends when nothing is left, whatever that was."""
        loop, ran = make_loop(auto_exit=True), []
        TestShutdown().fill(loop, ran)
        loop.producer().submit(ran.append, "handle")
        loop.run()
        assert len(ran) == 8
        assert loop.state is LoopState.TERMINATED
        with pytest.raises(LoopTerminatedError):
            loop.submit(int)

    def test_callback_keeps_it_alive(self, make_loop):
        """Work that the last callback schedules is run."""
        loop, ran = make_loop(auto_exit=True), []

        def again(left):
            ran.append(left)
            if left:
                (loop.submit, loop.schedule_immediate, loop.submit_internal, loop.producer().submit)[left % 4](
                    again, left - 1
                )

        loop.submit(again, 20)
        loop.run()
        assert ran == list(range(20, -1, -1))

    @pytest.mark.parametrize("entrance", ["submit", "producer", "submit_internal", "timer", "immediate"])
    def test_races_with_submits(self, make_loop, together, entrance):
        """Work of the last instant runs, or is refused with LoopTerminatedError."""
        for _ in range(100):
            loop, ran = make_loop(auto_exit=True), []
            put = {
                "submit": loop.submit,
                "producer": loop.producer().submit,
                "submit_internal": loop.submit_internal,
                "timer": lambda *what, loop=loop: loop.schedule_timer(0, *what),
                "immediate": loop.schedule_immediate,
            }[entrance]

            def body(thread, loop=loop, put=put, ran=ran):
                if thread == 0:
                    return loop.run()
                accepted = 0
                with contextlib.suppress(LoopTerminatedError):
                    while accepted < 100:
                        put(ran.append, thread)
                        accepted += 1
                return accepted

            _, accepted = together(2, body)
            assert len(ran) == accepted
            assert loop.state is LoopState.TERMINATED

    @pytest.mark.parametrize("end", ["shutdown", "close", "stop"])
    def test_races_with_the_end(self, make_loop, together, end):
        """One ends it while it finds itself quiet, one submits meanwhile: each call keeps its promise."""
        for _ in range(100):
            loop, ran = make_loop(auto_exit=True), []

            def body(thread, loop=loop, ran=ran):
                if thread == 0:
                    loop.run()
                elif thread == 1:
                    getattr(loop, end)()
                else:
                    accepted = 0
                    with contextlib.suppress(LoopTerminatedError):
                        for put in (loop.submit, loop.producer().submit, loop.schedule_immediate) * 10:
                            put(ran.append, 1)
                            accepted += 1
                    return accepted

            results = together(3, body)
            if isinstance(results[0], LoopTerminatedError):  # the end came before the run
                assert end != "stop"
                results[0] = None
            assert results[:2] == [None, None]
            if loop.state is LoopState.AWAKE:
                assert end == "stop"
                loop.run()
            assert loop.state is LoopState.TERMINATED
            assert len(ran) == results[2] or (end == "close" and len(ran) < results[2])

    def test_with_start(self, make_loop):
        """The thread ends by itself, and shutdown then has nothing to do."""
        loop = make_loop(auto_exit=True)
        loop.submit(int)
        loop.start().join(30)
        assert loop.state is LoopState.TERMINATED
        loop.shutdown()


@pytest.mark.parametrize("mode", list(FastPathMode), ids=lambda mode: mode.value)
def test_quick_lives(mode, descriptors, wait_for):
    """A hundred loops made, run and ended at once: no hang, no thread and no descriptor left."""
    before, threads = descriptors(), set(threading.enumerate())
    for i in range(100):
        loop = Loop(fast_path_mode=mode)
        if i % 3 == 0:
            loop.start()
        if i % 2:
            loop.shutdown()
        else:
            loop.close()
    wait_for(lambda: set(threading.enumerate()) <= threads)
    assert descriptors() == before


@pytest.mark.parametrize("mode", list(FastPathMode), ids=lambda mode: mode.value)
def test_forgotten_loops(mode, descriptors, wait_for):
    """contract: a loop that is only forgotten leaves no descriptor either, never run or stopped."""
    before = descriptors()
    for i in range(20):
        loop = Loop(fast_path_mode=mode)
        loop.submit(int)
        if i % 2:
            loop.stop()
            loop.run()
    del loop
    gc.collect()
    wait_for(lambda: descriptors() == before)


def test_methods_of_the_class(make_loop, turns):
    """A method taken from the class does what the loop's own does, also for a subclass that calls it so."""

    class Counting(Loop):
        submitted = 0

        def submit(self, callback, *args):
            self.submitted += 1
            Loop.submit(self, callback, *args)

    loop, counting, ran = make_loop(), Counting(), []
    Loop.submit(loop, ran.append, 1)
    assert Loop.alive(loop)
    assert Loop.cancel_timer(loop, Loop.schedule_timer(loop, 9, int))
    counting.submit(ran.append, 2)
    turns(loop)
    turns(counting)
    counting.close()
    assert (ran, counting.submitted) == ([1, 2], 1)


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, pickle.dumps])
def test_no_copies(make_loop, turns, make_copy):
    """A copy would end the loop with it."""
    loop, ran = make_loop(), []
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        make_copy(loop)
    gc.collect()
    loop.submit(ran.append, 1)
    turns(loop)
    assert ran == [1]


@pytest.mark.parametrize("change", ["cancel_timer", "cancel_timers", "unref_timer", "unregister_fd"])
def test_auto_exit_hears_of_the_last(make_loop, pair, wait_for, mode, change):
    """contract: an auto-exit loop that sleeps ends when another thread takes away the last that it stays for."""
    loop = make_loop(auto_exit=True, fast_path_mode=mode)
    if change == "unregister_fd":
        if mode is FastPathMode.FORCED:
            pytest.skip("no descriptors in this mode")
        argument = pair()[0].fileno()
        loop.register_fd(argument, IOEvents.READ, print)
    else:
        argument = loop.schedule_timer(1000, int)
    thread = loop.start()
    wait_for(lambda: loop.state is LoopState.SLEEPING)
    getattr(loop, change)([argument] if change == "cancel_timers" else argument)
    thread.join(30)
    assert loop.state is LoopState.TERMINATED


def test_auto_exit_and_who_comes_at_the_last_moment(run_script):
    """Between the kernel's finding that nothing is left and the end, on the loop's own thread (a signal's handler):
    what is accepted is run, and what is refused is refused at once.
    """
    run_script("""
        from nbloop import Loop, LoopTerminatedError
        class Late(Loop):
            asked = 0
            def _quiet_for_good(self):
                self.asked += 1
                if self.asked == 1:
                    try:
                        self.submit(seen.append, "refused")
                    except LoopTerminatedError:
                        seen.append("told so")
                    self.schedule_timer(0, seen.append, "timer")
                return super()._quiet_for_good()
        seen = []
        loop = Late(auto_exit=True)
        loop.run()
        assert seen == ["told so", "timer"], seen
        assert loop.asked == 2
    """)
