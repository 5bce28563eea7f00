"""Signals: Ctrl-C leaves run() at once, whatever the loop does; and loops in any thread can handle signals."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref

import pytest

from nbloop import FastPathMode, IOEvents, Loop, LoopTerminatedError, hooks, signals
from nbloop.kernels.build import object_cache

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
    """contract: Signals: a loop in any thread can handle one."""

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
        """Each loop that handles it gets it, until it removes its handler."""
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
        """A loop that has ended handles no signal, and cannot add a handler."""
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
        """contract: a forgotten loop is closed; the signal's previous handler returns, however it was collected."""
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
        """What is not a signal, cannot be caught, or is not callable."""
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
    """Wherever a signal handler raises, the loop has no owner afterwards, and can be run and ended."""
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


# --- process-wide state is given back only where it is still ours -----------------------------------------------------

HELPERS = """
import os, signal, socket, sys, threading, time, warnings
from nbloop import FastPathMode, IOEvents, Loop, LoopState, signals

def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)

def elsewhere(call, *args):
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join()

def here(call, *args):
    call(*args)

def hit(number):
    os.kill(os.getpid(), number)
"""


@pytest.mark.slow
@pytest.mark.parametrize("remover", ["here", "elsewhere"])
@pytest.mark.parametrize("adder", ["here", "elsewhere"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGCHLD"])
def test_a_handler_that_is_saved_and_put_back(run_script, name, adder, remover):
    """contract: what getsignal() names leads to the loops again when it is put back, as uvicorn does; and what was
    there before comes back, from whichever thread.
    """
    run_script(
        HELPERS
        + f"""
number, seen = signal.{name}, []
old = lambda *_: seen.append("old")
signal.signal(number, old)
with Loop() as loop:
    {adder}(loop.add_signal_handler, number, seen.append, "loop")
    for _ in range(2):
        saved = signal.signal(number, lambda *_: seen.append("other"))
        assert saved is not old and saved is not signal.SIG_DFL, saved
        hit(number)
        until(lambda: seen == ["other"])
        signal.signal(number, saved)
        hit(number)
        until(lambda: seen == ["other", "loop"])
        hit(number)
        until(lambda: seen == ["other", "loop", "loop"])
        seen.clear()
    {remover}(loop.remove_signal_handler, number)
    until(lambda: signal.getsignal(number) is old)
    hit(number)
    until(lambda: seen == ["old"])
"""
    )


@pytest.mark.slow
@pytest.mark.parametrize("remover", ["here", "elsewhere"])
@pytest.mark.parametrize("adder", ["here", "elsewhere"])
@pytest.mark.parametrize("before", ["SIG_DFL", "SIG_IGN"])
@pytest.mark.parametrize("put_back", ["never", "after", "before"])
def test_removal_leaves_nothing_that_swallows_a_signal(run_script, adder, remover, before, put_back):
    """contract: after the last removal a signal does what it did before, also if a library puts ours back too late."""
    run_script(
        HELPERS
        + f"""
number = signal.SIGTERM
signal.signal(number, signal.{before})
pid = os.fork()
if not pid:
    loop = Loop()
    {adder}(loop.add_signal_handler, number, print)
    saved = signal.signal(number, print) if {put_back!r} != "never" else None
    if {put_back!r} == "before":
        signal.signal(number, saved)
    {remover}(loop.remove_signal_handler, number)
    if {put_back!r} == "after":
        signal.signal(number, saved)
    hit(number)
    until(lambda: signal.getsignal(number) is signal.{before})  # the pending call, or the stand-in's own
    os._exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert status == (-number if {before!r} == "SIG_DFL" else 7), status
"""
    )


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("end", ["remove_signal_handler(number)", "shutdown()", "close()"])
def test_a_handler_that_somebody_else_has_set_since(run_script, end, where):
    """contract: it stays, however the loop gives the signal up."""
    run_script(
        HELPERS
        + f"""
number, seen = signal.SIGUSR1, []
loop = Loop()
loop.add_signal_handler(number, print)
theirs = lambda *_: seen.append("theirs")
signal.signal(number, theirs)
{where}(lambda: loop.{end})
assert signal.getsignal(number) is theirs
hit(number)
until(lambda: seen == ["theirs"])
"""
    )


def test_a_disposition_comes_back_with_its_flags(run_script):
    """The system's whole record of a signal, as `siginterrupt` and C libraries have left it."""
    run_script(
        HELPERS
        + """
import ctypes, faulthandler
libc = ctypes.CDLL(None)

def disposition(number):
    record = ctypes.create_string_buffer(256)
    libc.sigaction(number, None, record)
    flags = int.from_bytes(record.raw[136:140], sys.byteorder) & ~0x04000000  # SA_RESTORER, which the C library sets
    return record.raw[:16], flags  # handler and mask; what lies between is not the system's

signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, False)
faulthandler.register(signal.SIGUSR2)
for where in (here, elsewhere):
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        before, named = disposition(number), signal.getsignal(number)
        loop = Loop()
        where(loop.add_signal_handler, number, print)
        assert disposition(number) != before or not signals._NATIVE
        where(loop.remove_signal_handler, number)
        until(lambda: signal.getsignal(number) == named)
        assert disposition(number) == before, number
"""
    )


@pytest.mark.skipif(object_cache.status.mode != "compiled", reason="un-jitted there is no C handler to save")
@pytest.mark.parametrize("other", ["", "loop.add_signal_handler(signal.SIGUSR1, print)"])
def test_a_c_library_that_puts_our_handler_back(run_script, other):
    """It was saved while a loop handled the signal, and no loop does any more: the previous handler takes effect."""
    run_script(
        HELPERS
        + f"""
import faulthandler
number = signal.SIGUSR2
pid = os.fork()
if not pid:
    loop = Loop()
    {other}
    loop.add_signal_handler(number, print)
    faulthandler.register(number, file=open(os.devnull, "w"))
    loop.remove_signal_handler(number)
    faulthandler.unregister(number)
    hit(number)
    time.sleep(30)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -number
"""
    )


def test_system_calls_go_on_after_a_signal(run_script):
    """As with asyncio: what a C library does meanwhile is not interrupted by a signal that a loop handles."""
    run_script(
        HELPERS
        + """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
ends, result, seen = os.pipe(), [], []
reading = lambda: result.append(libc.read(ends[0], ctypes.create_string_buffer(1), 1))
with Loop() as loop:
    loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
    thread = threading.Thread(target=reading)
    thread.start()
    until(lambda: open(f"/proc/self/task/{thread.native_id}/stat").read().rpartition(")")[2].split()[0] == "S")
    signal.pthread_kill(thread.ident, signal.SIGUSR1)
    until(lambda: seen)
    os.write(ends[1], b"x")
    thread.join()
assert result == [1], result
"""
    )


THREADS = """
def threads():
    return len(os.listdir("/proc/self/task"))

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))
"""


def test_no_thread_without_a_handler(run_script):
    """contract: no thread before a handler asks for one, none after the last, no descriptor left; os.fork() does not
    warn.
    """
    run_script(
        HELPERS
        + THREADS
        + """
warnings.simplefilter("error")

def forks():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)

before = threads(), descriptors()
loop = Loop()
loop.submit(forks)
loop.schedule_timer(0.2, forks)  # it naps, and then dozes
loop.schedule_timer(0.21, loop.stop)
loop.run()
loop.close()
assert (threads(), descriptors()) == before, (threads(), descriptors(), before)
for end in (lambda: loop.remove_signal_handler(signal.SIGUSR1), lambda: loop.close()):
    loop, other = Loop(), Loop()
    for one in (loop, other):
        one.add_signal_handler(signal.SIGUSR1, print)
    other.close()
    until(lambda: [thread.name for thread in threading.enumerate()][1:] == ["nbloop-signals"] * signals._NATIVE)
    end()
    assert (threads(), descriptors()) == before, (threads(), descriptors(), before)
    forks()
""",
        OPENBLAS_NUM_THREADS="1",
    )


@pytest.mark.parametrize("mode", ["AUTO", "DISABLED"])
def test_a_wakeup_descriptor_of_somebody_else(run_script, mode):
    """contract: Python's wake-up descriptor is free while callbacks run; what they set stays, after the run too,
    and Ctrl-C is seen beside it.
    """
    run_script(
        HELPERS
        + f"""
a, b = socket.socketpair()
a.setblocking(False); b.setblocking(False)
loop, found = Loop(fast_path_mode=FastPathMode.{mode}), []
loop.schedule_timer(0.2, lambda: found.append(signal.set_wakeup_fd(b.fileno())))
loop.schedule_timer(0.2, loop.stop)
loop.run()
assert found == [-1], found
loop.schedule_timer(0.2, loop.stop)
loop.run()
assert signal.set_wakeup_fd(b.fileno()) == b.fileno()
begun = time.monotonic()
loop.schedule_timer(25, loop.stop)
threading.Timer(0.2, __import__("_thread").interrupt_main).start()
try:
    loop.run()
    raise SystemExit("Ctrl-C was not seen")
except KeyboardInterrupt:
    assert time.monotonic() - begun < 20, "the timer has woken it, and not Ctrl-C"
assert signal.set_wakeup_fd(-1) == b.fileno() and a.recv(9) == bytes([signal.SIGINT])
"""
    )


@pytest.mark.parametrize("park", ["AUTO", "DISABLED", "lock"])
@pytest.mark.parametrize("stage", ["nap", "doze"])
def test_a_signal_that_interrupts_no_system_call(run_script, park, stage):
    """contract: Ctrl-C is not lost in the instant before a sleep, nor on another thread: Python has noted it, and
    nothing interrupts the loop's system call.
    """
    run_script(
        HELPERS
        + f"""
import _thread
loop = Loop(fast_path_mode=FastPathMode.{park if park != "lock" else "AUTO"})

def interrupt():
    until(lambda: loop.state is LoopState.SLEEPING and ({stage!r} == "nap" or signals._wakeup is not None))
    _thread.interrupt_main()

begun = time.monotonic()
loop.schedule_timer(25, loop.stop)
thread = threading.Thread(target=interrupt)
thread.start()
try:
    loop.run()
    raise SystemExit("Ctrl-C was not seen")
except KeyboardInterrupt:
    assert time.monotonic() - begun < 20, "the timer has woken it, and not Ctrl-C"
thread.join()
assert signals._wakeup is None and signal.set_wakeup_fd(-1) == -1
""",
        NBLOOP_PARK="lock" if park == "lock" else "",
    )


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="loops doze on Linux only")
@pytest.mark.parametrize("mode", ["AUTO", "DISABLED"])
class TestDoze:
    """An idle loop on the main thread waits for Python's wake-up descriptor as well."""

    @pytest.fixture
    def dozing(self, loop, mode, wait_for):
        """`dozing(act)`: run the loop here; `act()` is called on another thread while it dozes."""
        loop.set_fast_path_mode(FastPathMode[mode])

        def dozing(act):
            def body():
                wait_for(lambda: signals._wakeup is not None and loop._record["sleep"])
                act()

            thread = threading.Thread(target=body)
            watchdog = loop.schedule_timer(25, loop.stop)
            thread.start()
            loop.run()
            thread.join()
            assert loop.cancel_timer(watchdog), "nothing woke it"

        return dozing

    def test_woken_by_submit(self, loop, dozing):
        """By work, again and again, and by stop."""
        for _ in range(3):
            dozing(lambda: loop.submit(loop.stop))
        dozing(loop.stop)

    def test_ends_for_a_timer(self, loop, dozing):
        """One that is armed meanwhile, from another thread."""
        begun = time.monotonic()
        dozing(lambda: loop.schedule_timer(0.05, loop.stop))
        assert time.monotonic() - begun >= 0.05

    def test_sees_a_descriptor(self, loop, dozing, pair):
        """That was registered before, or is meanwhile."""
        ours, theirs = pair()

        def readable(fd, events):
            loop.unregister_fd(fd)
            ours.recv(1)
            loop.stop()

        loop.register_fd(ours.fileno(), IOEvents.READ, readable)
        dozing(lambda: theirs.send(b"x"))
        dozing(lambda: (loop.register_fd(ours.fileno(), IOEvents.READ, readable), theirs.send(b"x")))

    def test_is_idle(self, loop, dozing):
        """contract: an idle loop makes no system call and uses no CPU."""
        status = f"/proc/self/task/{threading.main_thread().native_id}/status"

        def switches():
            with open(status) as file:
                return [line for line in file if "ctxt_switches" in line]

        def look():
            turns, before = int(loop._record["turns"]), switches()
            time.sleep(0.3)  # ten naps would be over
            assert (int(loop._record["turns"]), switches()) == (turns, before)
            loop.stop()

        dozing(look)
        dozing(lambda: loop.submit(loop.stop))
        dozing(look)  # nor after a wake

    def test_without_descriptors(self, loop, dozing, wait_for, monkeypatch):
        """Without free descriptors the loop goes on with naps, and can still be woken."""
        import errno

        tried = []

        def none():
            tried.append(1)
            raise OSError(errno.EMFILE, "none left")

        monkeypatch.setattr(signals._socket, "socketpair", none)
        threading.Thread(target=lambda: (wait_for(lambda: len(tried) > 2), loop.stop())).start()
        loop.run()

    def test_not_on_another_thread(self, loop, mode, asleep):
        """Where no signal's handler can run there are no naps either."""
        loop.set_fast_path_mode(FastPathMode[mode])
        with loop:
            asleep(loop)
            assert int(loop._record["nap"]) == 0
            turns = int(loop._record["turns"])
            time.sleep(0.15)
            assert int(loop._record["turns"]) == turns


def test_an_exception_at_any_moment_of_add_and_remove(run_script):
    """Whenever a handler raises, the signal is the loop's or is not; and what was before comes back in the end."""
    run_script(
        HELPERS
        + THREADS
        + """
import random
def handler(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
number, rng, raised = signal.SIGUSR1, random.Random(1), 0
old = lambda *_: None
signal.signal(number, old)
loop = Loop()
loop.add_signal_handler(number, print)
loop.remove_signal_handler(number)
before = threads()
until_then = time.monotonic() + 3
while time.monotonic() < until_then:
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.random() * 300e-6 + 1e-6)
        try:
            for _ in range(5):
                loop.add_signal_handler(number, print)
                loop.remove_signal_handler(number)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        raised += 1
assert raised > 100, raised
loop.add_signal_handler(number, print)
loop.remove_signal_handler(number)
assert signal.getsignal(number) is old
until(lambda: threads() == before)
"""
    )


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit", "ValueError"])
def test_an_exception_in_the_middle_of_a_wake_up(run_script, error):
    """What a signal's handler raises there comes out of the program's next line, and the wake-up is made. Only a loop
    that sleeps in Python is woken by Python.
    """
    run_script(
        HELPERS
        + f"""
loop, ran = Loop(), []
loop.start()
until(lambda: loop.state is LoopState.SLEEPING)
wake, raised = loop._descriptors.parker.wake, []

def interrupted():
    if not raised:
        raised.append({error}("of a handler"))
        raise raised[0]
    wake()

loop._descriptors.parker.wake = interrupted
try:
    loop.submit(ran.append, 1)
    for _ in range(1000):
        pass
    raise AssertionError("it was swallowed")
except {error} as error:
    assert error is raised[0]
until(lambda: ran)
assert not signals._interruptions
loop.shutdown()
""",
        NBLOOP_PARK="lock",
    )


def test_an_exception_that_another_thread_raises_in_a_wake_up(elsewhere, caplog):
    """There is nowhere to raise it: it is logged."""
    loop = Loop()
    elsewhere(hooks.wake_parker, weakref.ref(loop), ValueError("of another thread"))
    loop.close()
    assert [record.exc_info[1].args for record in caplog.records] == [("of another thread",)]
