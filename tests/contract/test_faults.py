"""How a loop behaves when other things fail: memory, the wake call, signals, the processor, and the callbacks.

After each fault the counts are exact, a refused call has changed nothing, and references and descriptors are back
where they were. (Descriptors that run out, and pollers that break, are in test_readiness_wait.py.)
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

from nbloop import FastPathMode, ForkedLoopError, Loop, LoopTerminatedError, ReentrantCloseError

try:
    import _testcapi as nomemory
except ImportError:
    nomemory = None

HERE = os.path.dirname(__file__)
ROOT = os.path.dirname(os.path.dirname(HERE))
needs_testcapi = pytest.mark.skipif(nomemory is None, reason="this Python has no _testcapi")


class Task:
    """A callback whose release can be observed."""

    def __init__(self, ran=None):
        self.ran = ran

    def __call__(self, *args):
        if self.ran is not None:
            self.ran.append(self)


# --- memory: the loop's own


def handle_of(loop):
    """A producer handle, made once: numpy itself crashes where it finds no memory for its objects."""
    if "test_handle" not in loop.__dict__:
        loop.test_handle = loop.producer()
    return loop.test_handle


PUTS = {
    "submit": lambda loop, task: loop.submit(task),
    "submit with arguments": lambda loop, task: loop.submit(task, 1, 2),
    "submit_many": lambda loop, task: loop.submit_many(itertools.repeat(task, 100)),
    "producer": lambda loop, task: handle_of(loop).submit(task),
    "producer submit_many": lambda loop, task: handle_of(loop).submit_many(itertools.repeat(task, 100)),
    "submit_internal": lambda loop, task: loop.submit_internal(task),
    "microtask": lambda loop, task: loop.schedule_microtask(task),
    "next-tick": lambda loop, task: loop.schedule_next_tick(task),
    "checkpoint end": lambda loop, task: loop.schedule_checkpoint_end(task),
    "close": lambda loop, task: loop.schedule_close(task),
    "immediate": lambda loop, task: loop.schedule_immediate(task),
    "timer": lambda loop, task: loop.schedule_timer(0, task),
}
each_put = pytest.mark.parametrize("put", PUTS)
# an iterator and not a list: CPython 3.13's list(list) crashes itself where there is no memory (list_extend_fast)
MANY = {"submit_many": 100, "producer submit_many": 100}


def starve(put, inside):
    """Whichever piece of memory cannot be had: MemoryError and nothing stored, or it is stored and runs, once. In a
    process of its own (scarce.py).
    """
    from tests.support import scarce

    ran, refused = [], 0
    loop = Loop(chunk_size=16)
    watch, expected = weakref.WeakSet(), []

    def turns(count=1):
        for _ in range(count):
            loop.stop()
            loop.run()

    def attempt():
        task = Task(ran)
        watch.add(task)
        try:
            PUTS[put](loop, task)
        except MemoryError:
            return False
        expected.extend([task] * MANY.get(put, 1))
        return True

    def fill(left):
        """Schedule until one is refused because there is no memory for piece `left` after the first; then once more."""
        nonlocal refused
        with scarce.failing_after(left):
            refused += not all(attempt() for _ in range(20_000))
        assert any(attempt() for _ in range(17)), "the tickets of a segment without memory are 16"

    for left in range(4):
        if inside:
            loop.submit(fill, left)
            turns()
        else:
            fill(left)
        turns(2 + len(expected) // 1024)
        assert len(ran) == len(expected)
        assert set(map(id, ran)) == set(map(id, expected))
    assert refused >= 2  # a ring that has grown holds the rest
    assert not loop.alive()
    ran.clear()
    expected.clear()
    loop.close()
    gc.collect()
    assert not len(watch)
    print("starved, and served")


@pytest.mark.slow
@each_put
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_no_memory_for_the_loop(run_script, put, inside):
    code = f"""
        from tests.support import scarce  # before nbloop is imported
        import test_faults
        test_faults.starve({put!r}, {inside})
    """
    path = os.pathsep.join([HERE, ROOT, os.environ.get("PYTHONPATH", "")])
    assert run_script(code, PYTHONPATH=path).endswith("served\n")


# --- memory: the interpreter's objects


@needs_testcapi
@each_put
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_no_memory_for_objects(make_loop, turns, put, where):
    """The n-th allocation of the interpreter's fails, for each n until none is made: MemoryError, nothing stored."""
    ran = []
    loop = make_loop()
    PUTS[put](loop, ran.clear)
    turns(loop, 2)  # what is made once is made
    outcomes = []

    def attempt(n):
        """The n-th allocation from here on fails, once."""
        call, task = PUTS[put], Task(ran)
        nomemory.set_nomemory(n, n + 1)
        try:
            call(loop, task)
        except MemoryError:
            nomemory.remove_mem_hooks()
            return MemoryError
        finally:
            nomemory.remove_mem_hooks()
        return None

    for n in range(40):
        if where == "inside":
            loop.submit(lambda n=n: outcomes.append(attempt(n)))
            turns(loop)
        else:
            outcomes.append(attempt(n))
        turns(loop, 2)
        stored = outcomes[-1] is None
        assert len(ran) == (MANY.get(put, 1) if stored else 0), f"allocation {n}: {outcomes[-1]}"
        ran.clear()
    assert outcomes[-1] is None, "some allocation always fails: look further than 40"
    assert not loop.alive()


RINGS = {
    "submit_internal": "internal",
    "microtask": "microtasks",
    "next-tick": "next_ticks",
    "checkpoint end": "checkpoint_ends",
    "close": "closing",
    "immediate": "immediates",
}


@needs_testcapi
@pytest.mark.parametrize("put", RINGS)
def test_no_memory_for_a_full_ring(make_loop, turns, put):
    """As above, of what needs a larger ring: the kernels' own allocations are among those that fail."""
    ran, loop, outcomes = [], make_loop(), []
    ring = loop._record[RINGS[put]]

    def fill(n):
        nonlocal cells
        call, task = PUTS[put], Task(ran)
        cells = 0
        while cells == 0 or ring["tail_at"] != ring["tail_end"]:
            call(loop, task)
            cells += 1
        nomemory.set_nomemory(n, n + 1)
        try:
            call(loop, task)
        except MemoryError:
            nomemory.remove_mem_hooks()
            outcomes.append(0)
        else:
            nomemory.remove_mem_hooks()
            outcomes.append(1)

    for n in range(40):
        cells = 0
        loop.submit(fill, n)
        turns(loop, 3)
        assert len(ran) == cells + outcomes[-1]
        ran.clear()
        if outcomes[-1]:
            break
    assert outcomes[-1], "some allocation always fails: look further than 40"
    assert 0 in outcomes


@needs_testcapi
def test_no_memory_while_running(make_loop, turns, caplog):
    """Allocations fail while callbacks run, raise and are reported: nothing is lost but the reports."""
    ran, heard = [0] * 180, []  # its places are there already
    loop = make_loop(on_error=lambda error, context: heard.append(type(error)))

    def fail():
        raise ValueError

    def begin(n):
        nomemory.set_nomemory(n, n + 1)

    for n in range(60):
        loop.submit(begin, n)
        for i in range(3 * n, 3 * n + 3):
            loop.submit(ran.__setitem__, i, 1)
            loop.submit(fail)
        loop.submit(nomemory.remove_mem_hooks)
        try:
            turns(loop)
        finally:
            nomemory.remove_mem_hooks()
    turns(loop)
    # A turn has one failure, which is a callback's own, or loses one report.
    assert int(loop._record["callbacks"]) == 60 * 8
    for n in range(60):
        assert sum(ran[3 * n : 3 * n + 3]) >= 2
    assert set(heard) <= {ValueError, MemoryError, SystemError}  # of a raise that had no memory for its exception
    assert heard.count(ValueError) >= 2 * 60


# --- the wake call


@pytest.mark.parametrize("failures", [1, 3])
def test_wake_call_fails(make_loop, monkeypatch, asleep, wait_for, failures):
    """behaviour 18: a wake call that fails is lost, but a later submit makes another, and what was accepted runs."""
    monkeypatch.setattr("nbloop.descriptors.futex_available", lambda: False)  # sleeps in Python, where a wake can fail
    loop = make_loop()
    parker, ran = loop._descriptors._lock_parker, []
    wake, left = parker.wake, [failures]

    def failing():
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "injected")
        wake()

    parker.wake = failing
    with loop:
        asleep(loop)
        for i in range(failures + 1):
            loop.submit(ran.append, i)
            if i < failures:
                loop._record["sleep"] = 1  # as the loop itself leaves it: it is still asleep
        wait_for(lambda: len(ran) == failures + 1)
    assert ran == list(range(failures + 1))


# --- signals


@pytest.mark.parametrize("with_descriptor", [False, True], ids=["futex", "poller"])
def test_storm_of_signals(make_loop, pair, wait_for, with_descriptor):
    """EINTR by the thousand, while it sleeps and while it works: nothing early, nothing lost, nothing twice."""
    hits, ran, fired = [], [], []
    old = signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))
    loop = make_loop()
    stop = threading.Event()
    try:
        if with_descriptor:
            loop.register_fd(pair()[0].fileno(), 1, lambda fd, events: None)
        thread = loop.start()

        def storm():
            while not stop.is_set():
                signal.pthread_kill(thread.ident, signal.SIGUSR1)
                time.sleep(0.0001)

        stormer = threading.Thread(target=storm)
        stormer.start()
        begun = loop.now()
        for i in range(50):
            delay = 0.002 * i
            loop.schedule_timer(delay, lambda due=begun + delay: fired.append(loop.now() - due))
            loop.submit(ran.append, i)
        wait_for(lambda: len(fired) == 50)
        stop.set()
        stormer.join(30)
    finally:
        stop.set()
        loop.close()
        signal.signal(signal.SIGUSR1, old)
    assert min(fired) >= 0
    assert ran == list(range(50))


# --- the processor


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity")
def test_one_core(run_script):
    """On one core, with producers that fight for it: the counts are exact, and it ends."""
    print(
        run_script(
            """
            import os, threading
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            import nbloop
            ran = []
            with nbloop.Loop() as loop:
                doors = [loop, loop, loop.producer(), loop.producer()]
                def produce(door, first):
                    for i in range(2000):
                        door.submit(ran.append, first + i)
                threads = [threading.Thread(target=produce, args=(d, i * 2000)) for i, d in enumerate(doors)]
                for t in threads: t.start()
                for t in threads: t.join()
            assert sorted(ran) == list(range(8000))
            for first in range(0, 8000, 2000):
                assert [i for i in ran if i // 2000 == first // 2000] == list(range(first, first + 2000))
            """
        )
    )


def test_stopped_and_continued(wait_for):
    """SIGSTOP and SIGCONT of the whole process, again and again: late, never early, nothing lost."""
    code = """
        import sys, threading, nbloop
        ran, early = [], []
        with nbloop.Loop() as loop:
            print("ready", flush=True)
            def timer(i, due):
                early.append(loop.now() < due)
                ran.append(i)
                if i < 60:
                    loop.schedule_timer(0.005, timer, i + 1, loop.now() + 0.005)
                else:
                    done.set()
            done = threading.Event()
            loop.schedule_timer(0, timer, 0, 0.0)
            count = []
            while not done.is_set():
                for _ in range(100):
                    loop.submit(count.append, 1)
                loop.submit(lambda: None)
                done.wait(0.001)
        print(ran == list(range(61)), any(early), len(count) % 100, flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        while child.poll() is None:
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            child.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.003)
        assert child.stdout.read() == "True False 0\n"
        assert child.returncode == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


# --- callbacks


def sleeps(loop):
    time.sleep(0.0001)


def collects(loop):
    gc.collect()


def submits(loop):
    loop.submit(int)
    loop.schedule_microtask(int)
    loop.submit_internal(int)


def closes(loop):
    with pytest.raises(ReentrantCloseError):
        loop.close()


def raises(loop):
    raise ValueError


def arms_and_cancels(loop):
    assert loop.cancel_timer(loop.schedule_timer(3600, int))


def comes_and_goes(loop):
    handle = loop.producer()
    handle.submit(int)


def flips(loop):
    for mode in FastPathMode:
        loop.set_fast_path_mode(mode)


def forks(loop):
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(ForkedLoopError):
            try:
                loop.submit(int)
            except ForkedLoopError:
                code = 0
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


BEHAVIOURS = [sleeps, collects, submits, closes, raises, arms_and_cancels, comes_and_goes, flips]


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
def test_callbacks_that_misbehave(make_loop, descriptors, wait_for, behaviour):
    """Whatever a callback does, those before and after it run, in order, and nothing is kept."""
    make_loop().close()  # what is opened once is open
    before, ran, watch = descriptors(), [], weakref.WeakSet()
    times = 20 if behaviour is collects else 200  # a collection takes 0.15 s with all that the tests have imported
    loop = Loop(on_error=lambda error, context: None)
    with loop:
        for i in range(times):
            task = Task()
            watch.add(task)
            loop.submit(ran.append, i)
            loop.submit(behaviour, loop)
            loop.submit(task)
        del task
    assert ran == list(range(times))
    gc.collect()
    wait_for(lambda: not len(watch))
    assert descriptors() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_callback_that_forks(make_loop, turns):
    """The child's copy refuses; the parent's goes on."""
    ran, loop = [], make_loop()
    for i in range(3):
        loop.submit(forks, loop)
        loop.submit(ran.append, i)
    turns(loop)
    assert ran == [0, 1, 2]


def test_callback_that_drops_the_last_reference(wait_for):
    """The loop in whose callback its last other reference goes: it runs on, and is collected when it has ended."""
    loops = [Loop(auto_exit=True)]
    watch, ran = weakref.ref(loops[0]), []
    loops[0].submit(loops.clear)
    loops[0].submit(gc.collect)
    loops[0].submit(ran.append, 1)
    loops[0].run()
    assert ran == [1]
    gc.collect()
    wait_for(lambda: watch() is None)


class Dying:
    """Its release schedules: Python code in the middle of the operation that releases it."""

    def __init__(self, loop, log):
        self.loop, self.log = loop, log

    def __call__(self, *args):
        pass

    def __del__(self):
        try:
            self.loop.submit(int)
            self.loop.cancel_timer(self.loop.schedule_timer(3600, int))
            self.log.append("accepted")
        except LoopTerminatedError:
            self.log.append("refused")


@pytest.mark.parametrize("end", ["close", "shutdown"])
@pytest.mark.parametrize("schedule", ["schedule_microtask", "schedule_next_tick", "schedule_checkpoint_end"])
def test_release_that_schedules_for_a_checkpoint_at_the_end(make_loop, wait_for, end, schedule):
    """There will be none: what is released last, on the loop's own thread, is refused too, and nothing is kept."""
    loop, log, watch = make_loop(), [], weakref.WeakSet()

    class Late:
        def __call__(self):
            log.append("ran")

        def __del__(self):
            task = Task()
            watch.add(task)
            try:
                getattr(loop, schedule)(task)
            except LoopTerminatedError:
                log.append("refused")

    for _ in range(20):
        loop.schedule_timer(3600, Late())
    getattr(loop, end)()
    gc.collect()
    wait_for(lambda: log == ["refused"] * 20)
    assert not loop.alive()
    wait_for(lambda: not len(watch))


@pytest.mark.parametrize("end", ["run", "cancel", "close", "shutdown"])
def test_release_that_schedules(make_loop, turns, wait_for, end):
    """A reference that is released, by running, cancelling or dropping, calls the loop that releases it."""
    loop, log = make_loop(), []
    ids = [loop.schedule_timer(0 if end == "run" else 3600, Dying(loop, log)) for _ in range(50)]
    for _ in range(50):
        if end != "cancel":
            loop.submit(Dying(loop, log))
            loop.schedule_microtask(Dying(loop, log), Dying(loop, log))
    if end == "run":
        turns(loop, 3)
    elif end == "cancel":
        assert all(loop.cancel_timers(ids))
    else:
        getattr(loop, end)()
    expected = 50 if end == "cancel" else 200
    gc.collect()
    wait_for(lambda: len(log) == expected)
    if end in ("run", "cancel"):
        assert set(log) == {"accepted"}
    elif end == "close":
        assert set(log) == {"refused"}
