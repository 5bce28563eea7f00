"""Signals: Ctrl-C leaves run() at once, whatever the loop does; and loops in any thread can ask for signals."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest

from nbloop import Loop, LoopTerminatedError, signals

CTRL_C = """
import functools, os, signal, threading, time
from nbloop import FastPathMode, Loop, LoopState

loop = Loop(fast_path_mode=FastPathMode.{mode})
sent = []

def interrupt():
    while loop.state is LoopState.AWAKE or {idle} and loop.state is not LoopState.SLEEPING:
        time.sleep(0.001)
    time.sleep(0.05)  # so that it is in the thick of it
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

{work}
threading.Thread(target=interrupt).start()
try:
    loop.run()
except KeyboardInterrupt:
    took = time.monotonic() - sent[0]
    assert took < 0.1, took
    assert loop.state is LoopState.AWAKE
    loop.close()
else:
    raise AssertionError("run() returned")
"""

# Built-ins only, so that no bytecode runs in which Python would look at its signals.
AGAIN = "again = functools.partial(int); again.__setstate__(({}, (again,), {{}}, None)); again()"
WORK = {
    "idle": "",
    "idle with a timer": "loop.schedule_timer(1000, int)",
    "task": AGAIN.format("loop.submit"),
    "microtask": AGAIN.format("loop.schedule_microtask"),
    "producer": "handle = loop.producer(); " + AGAIN.format("handle.submit"),
    "interval": "loop.schedule_interval(0, int)",
}


@pytest.mark.parametrize("work", WORK)
def test_ctrl_c(run_script, mode, work):
    """contract: KeyboardInterrupt leaves run() within 100 ms, idle or busy with built-ins only, in each mode."""
    run_script(CTRL_C.format(mode=mode.name, work=WORK[work], idle=work.startswith("idle")))


def test_ctrl_c_with_a_lock(run_script):
    """contract: the same where there is no futex."""
    run_script(CTRL_C.format(mode="AUTO", work="", idle=True), NBLOOP_PARK="lock")


def test_ctrl_c_loses_nothing(run_script):
    """contract: Ctrl-C in the middle of a burst: what was accepted runs when the loop is run again."""
    run_script(
        """
        import os, signal, threading
        from nbloop import Loop

        def kill():
            begun.wait()
            os.kill(os.getpid(), signal.SIGINT)

        loop, ran, begun = Loop(), [], threading.Event()
        threading.Thread(target=kill).start()
        loop.submit(begun.set)
        for i in range(300_000):
            loop.submit(ran.append, i)
        loop.submit(loop.stop)
        try:
            while True:
                loop.run()
        except KeyboardInterrupt:
            pass
        while len(ran) < 300_000:
            loop.run()
        assert ran == list(range(300_000))
        """
    )


@pytest.fixture
def before():
    """The disposition of SIGUSR1 is left as it was found."""
    handler = signal.getsignal(signal.SIGUSR1)
    yield
    assert signal.getsignal(signal.SIGUSR1) is handler


class Counter:
    """Counts its calls, for a loop in another thread."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args):
        self.calls.append((threading.current_thread(), args))


def hit(number=signal.SIGUSR1):
    os.kill(os.getpid(), number)


class TestAddSignalHandler:
    """contract: Signals: a loop in any thread can ask for one."""

    @pytest.fixture(autouse=True)
    def restored(self, before):
        pass

    def test_in_another_thread(self, loop, wait_for):
        """The callback runs on the loop's thread, with its arguments, once for each arrival."""
        counter = Counter()
        with loop:
            loop.add_signal_handler(signal.SIGUSR1, counter, 1, "two")
            for count in range(1, 6):
                hit()
                wait_for(lambda count=count: len(counter.calls) == count)
            assert {args for _, args in counter.calls} == {(1, "two")}
            assert {thread.name for thread, _ in counter.calls} == {loop.name}
            assert loop.remove_signal_handler(signal.SIGUSR1) is True

    def test_from_another_thread(self, loop, elsewhere, wait_for):
        """Asking for one, and giving it back, is not bound to the main thread."""
        counter = Counter()
        with loop:
            elsewhere(loop.add_signal_handler, signal.SIGUSR1, counter)
            hit()
            wait_for(lambda: counter.calls)
            assert elsewhere(loop.remove_signal_handler, signal.SIGUSR1) is True

    def test_wakes_the_main_thread(self, loop, mode):
        """A loop asleep on the main thread, which the signal interrupts, in each mode."""
        loop.set_fast_path_mode(mode)
        loop.add_signal_handler(signal.SIGUSR1, loop.stop)
        timer = threading.Timer(0.01, hit)
        timer.start()
        loop.run()
        timer.join()

    def test_replaces(self, loop, wait_for):
        """One handler for each signal of a loop: the last."""
        first, second = Counter(), Counter()
        with loop:
            loop.add_signal_handler(signal.SIGUSR1, first)
            loop.add_signal_handler(signal.SIGUSR1, second)
            hit()
            wait_for(lambda: second.calls)
        assert not first.calls

    def test_several_loops(self, make_loop, wait_for):
        """Each loop that asks gets it, until it no longer does."""
        loops, counters = [make_loop() for _ in range(3)], [Counter() for _ in range(3)]
        for loop, counter in zip(loops, counters, strict=True):
            loop.start()
            loop.add_signal_handler(signal.SIGUSR1, counter)
        hit()
        wait_for(lambda: all(counter.calls for counter in counters))
        assert loops[0].remove_signal_handler(signal.SIGUSR1) is True
        loops[1].shutdown()
        hit()
        wait_for(lambda: len(counters[2].calls) == 2)
        assert [len(counter.calls) for counter in counters] == [1, 1, 2]

    def test_full_loop(self, make_loop, wait_for):
        """A loop whose ingress_limit is reached gets its signals all the same."""
        loop, counter = make_loop(ingress_limit=1), Counter()
        loop.submit(int)
        loop.add_signal_handler(signal.SIGUSR1, counter)
        hit()
        with loop:
            wait_for(lambda: counter.calls)

    def test_no_memory(self, make_loop, wait_for, caplog):
        """One loop has no memory to take it: that is logged, the others get it, and so does it the next time."""
        poor, rich, hits = make_loop(name="poor"), make_loop(), []
        submit_internal, failing = poor.submit_internal, [True]

        def internal(*arguments):
            if failing:
                raise MemoryError(failing.pop())
            submit_internal(*arguments)

        poor.__dict__["submit_internal"] = internal
        poor.add_signal_handler(signal.SIGUSR1, hits.append, "poor")
        rich.add_signal_handler(signal.SIGUSR1, hits.append, "rich")
        with poor, rich:
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(lambda: hits == ["rich"])
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(lambda: sorted(hits) == ["poor", "rich", "rich"])
        assert "did not reach <nbloop.Loop poor" in caplog.text

    def test_old_meaning_comes_back(self, loop, wait_for):
        """The last to remove gives the signal back to the Python handler from before."""
        seen, old = [], signal.getsignal(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, lambda *_: seen.append("old"))
        try:
            loop.add_signal_handler(signal.SIGUSR1, seen.append, "loop")
            assert loop.remove_signal_handler(signal.SIGUSR1) is True
            assert loop.remove_signal_handler(signal.SIGUSR1) is False
            hit()
            wait_for(lambda: seen)
            assert seen == ["old"]
        finally:
            signal.signal(signal.SIGUSR1, old)

    @pytest.mark.parametrize("end", ["shutdown", "close"])
    def test_ends_with_the_loop(self, loop, wait_for, end):
        """A loop that has ended asks for nothing, and can ask for nothing."""
        seen, old = [], signal.getsignal(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, lambda *_: seen.append("old"))
        try:
            loop.add_signal_handler(signal.SIGUSR1, seen.append, "loop")
            getattr(loop, end)()
            hit()
            wait_for(lambda: seen)
            assert seen == ["old"]
            with pytest.raises(LoopTerminatedError):
                loop.add_signal_handler(signal.SIGUSR1, int)
            assert loop.remove_signal_handler(signal.SIGUSR1) is False
        finally:
            signal.signal(signal.SIGUSR1, old)

    def test_forgotten_loop_in_a_cycle(self, wait_for):
        """contract: a forgotten loop is closed; the signal has its old meaning again, whoever found the loop."""
        seen = []
        old = signal.signal(signal.SIGUSR1, lambda *_: seen.append("old"))
        try:
            loop = Loop()
            loop.itself = loop
            loop.add_signal_handler(signal.SIGUSR1, seen.append, "loop")
            del loop
            gc.collect()
            hit()
            wait_for(lambda: seen)
            assert seen == ["old"]
        finally:
            signal.signal(signal.SIGUSR1, old)

    def test_added_while_the_loop_ends(self, monkeypatch):
        """contract: LoopTerminatedError, and the signal has its old meaning: also if the end comes in between."""
        loop = Loop()
        add = signals.add

        def late(*arguments):
            loop.close()
            add(*arguments)

        monkeypatch.setattr(signals, "add", late)
        with pytest.raises(LoopTerminatedError):
            loop.add_signal_handler(signal.SIGUSR1, int)
        assert signal.SIGUSR1 not in signals._asked

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ((0, int), ValueError),
            ((-1, int), ValueError),
            ((10_000, int), ValueError),
            ((signal.SIGKILL, int), ValueError),
            ((signal.SIGSTOP, int), ValueError),
            (("SIGUSR1", int), TypeError),
            ((True, int), TypeError),
            ((signal.SIGUSR1, None), TypeError),
            ((signal.SIGUSR1,), TypeError),
        ],
        ids=str,
    )
    def test_refused(self, loop, arguments, error):
        """What is no signal, can not be caught or is no callable."""
        with pytest.raises(error):
            loop.add_signal_handler(*arguments)
        for number in (signal.SIGUSR1, signal.SIGKILL):
            assert loop.remove_signal_handler(number) is False
        with pytest.raises(TypeError, match="sig must be a signal number, not 'SIGUSR1'"):
            loop.remove_signal_handler("SIGUSR1")

    def test_sigint(self, run_script):
        """While a loop asks for SIGINT it raises no KeyboardInterrupt; afterwards it does again."""
        run_script(
            """
            import os, signal, threading, time
            from nbloop import Loop

            done = threading.Event()
            with Loop() as loop:
                loop.add_signal_handler(signal.SIGINT, done.set)
                os.kill(os.getpid(), signal.SIGINT)
                assert done.wait(30)
                loop.remove_signal_handler(signal.SIGINT)
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(30)
                except KeyboardInterrupt:
                    pass
                else:
                    raise AssertionError("SIGINT did nothing")
            """
        )

    def test_forked_child(self, run_script):
        """The child's signals are its own: one sent to it does not reach the parent's loop."""
        run_script(
            """
            import os, signal, time, warnings
            from nbloop import Loop
            warnings.simplefilter("ignore")

            seen = []
            with Loop() as loop:
                loop.add_signal_handler(signal.SIGTERM, seen.append, 1)
                ready, child_is_up = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.write(child_is_up, b"1")
                    time.sleep(30)
                    os._exit(0)
                os.read(ready, 1)
                os.kill(pid, signal.SIGTERM)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
                os.kill(os.getpid(), signal.SIGTERM)
                deadline = time.monotonic() + 30
                while not seen and time.monotonic() < deadline:
                    time.sleep(0.001)
            assert seen == [1]
            """
        )


def test_burst_of_signals(loop, wait_for, before):
    """contract: Signals: arrivals are not lost to each other's delivery; those that the system itself merged count
    once.
    """
    counter = Counter()
    with loop:
        loop.add_signal_handler(signal.SIGUSR1, counter)
        for _ in range(500):
            hit()
        wait_for(lambda: counter.calls)
        deadline = time.monotonic() + 30
        while (
            len(counter.calls) < 500 and time.monotonic() < deadline
        ):  # to itself, a process's signals arrive before kill returns
            time.sleep(0.001)
        assert len(counter.calls) == 500
        loop.remove_signal_handler(signal.SIGUSR1)


def test_ctrl_c_at_any_moment_of_run(run_script):
    """Wherever the exception of a signal's handler comes, the loop is nobody's afterwards, and can be run and ended."""
    run_script("""
        import random, signal, time
        from nbloop import Loop
        def handler(*_): raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, handler)
        loop, rng, raised = Loop(), random.Random(1), 0
        until = time.monotonic() + 3
        while time.monotonic() < until:
            loop.stop()
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.random() * 100e-6 + 1e-6)
                try:
                    loop.run()
                    time.sleep(0.0005)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                raised += 1
            assert not loop._record["owner"], raised
        assert raised > 100, raised
        ran = []
        loop.submit(ran.append, 1)
        loop.shutdown()
        assert ran == [1]
    """)
