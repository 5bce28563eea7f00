"""`nbloop.LoopGroup`: what goes to which loop, and that the loops start and end as one, however they end."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
import weakref
from collections import Counter

import pytest

import nbloop
from nbloop import LoopGroup, LoopState
from nbloop.kernels.base.kernel import data
from nbloop.kernels.methods.group import less_busy
from nbloop.options import usable_cores
from tests.support.waiting import PATIENCE, together, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:.*the GIL is on:RuntimeWarning")


@pytest.fixture
def make_group():
    made = []

    def make(*args, **options):
        made.append(LoopGroup(*args, **options))
        return made[-1]

    yield make
    for group in made:
        group.close()


def threads_of(group):
    return [thread for thread in threading.enumerate() if thread.name.startswith(group.name)]


def ended(group):
    return [loop.state for loop in group.loops] == [LoopState.TERMINATED] * len(group.loops)


class Held:
    """A loop that is in a callback until it is let go."""

    def __init__(self, loop):
        self.entered, self.gate = threading.Event(), threading.Event()
        loop.submit(self)
        wait_for(self.entered)

    def __call__(self):
        self.entered.set()
        assert self.gate.wait(PATIENCE)


# --- construction


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"loops": 0}, ValueError),
        ({"loops": 1025}, ValueError),
        ({"loops": 1.0}, TypeError),
        ({"loops": True}, TypeError),
        ({"name": 1}, TypeError),
        ({"pin": 1}, TypeError),
        ({"auto_exit": True}, ValueError),
        ({"require_free_threading": 1}, TypeError),
        ({"chunk_size": 17}, ValueError),
        ({"nonsense": 1}, TypeError),
    ],
)
def test_options_are_checked(options, error):
    with pytest.raises(error, match=next(iter(options))):
        LoopGroup(**{"loops": 2} | options)


def test_a_loop_for_each_core(make_group):
    assert len(make_group().loops) == usable_cores()


def test_names(make_group):
    group = make_group(2, name="web")
    assert [loop.name for loop in group.loops] == ["web-0", "web-1"]
    group.start()
    assert sorted(thread.name for thread in threads_of(group)) == ["web-0", "web-1"]


def test_loops_that_were_made_before_one_fails_are_closed(monkeypatch):
    made = []

    class Third(nbloop.Loop):
        def __init__(self, **options):
            if len(made) == 2:
                raise MemoryError
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr("nbloop.group.Loop", Third)
    with pytest.raises(MemoryError):
        LoopGroup(3)
    assert [loop.state for loop in made] == [LoopState.TERMINATED] * 2


# --- work


def test_of_two_loops_the_one_where_less_waits(make_group):
    group = make_group(2)
    ran = [[], []]
    for _ in range(3):
        group.loops[0].submit(ran[0].append, "there")
    for number in range(6):
        group.submit(lambda n=number: ran[group.loops[1].is_loop_thread()].append(n))
    group.start()
    group.shutdown()
    assert ran[1][:3] == [0, 1, 2]  # until as many wait there
    assert abs(len(ran[1]) - 4.5) == 0.5  # nine in all


def test_a_loop_that_sleeps_and_not_one_that_is_in_a_callback(make_group, asleep):
    group = make_group(2)
    group.start()
    held = Held(group.loops[0])
    for _ in range(50):
        asleep(group.loops[1])
        done = threading.Event()
        group.submit(done.set)
        wait_for(done)
    held.gate.set()


@pytest.mark.parametrize("loops", [1, 2, 3, 7])
def test_chance_leaves_no_loop_out(make_group, loops):
    group = make_group(loops)
    count = 200 * loops
    for _ in range(count):
        group.submit(int)
    waiting = [int(loop._record["external"]["tail"]) for loop in group.loops]
    assert sum(waiting) == count
    assert max(waiting) - min(waiting) <= 8, waiting  # two choices even out; one choice would be off by some 40


@pytest.mark.parametrize("step", [1, 8, 37, 1024])
def test_counters_of_neighbouring_calls_pick_different_loops(make_group, step):
    group = make_group(3)
    address = data(id(group._state))
    picked = Counter(less_busy(address, 1 << 50 | number * step) for number in range(3000))
    assert len(picked) == 3
    assert min(picked.values()) > 800, picked


@pytest.mark.parametrize("keys", [range(0, 16 * 256, 16), range(256), [f"key {n}" for n in range(256)]])
def test_keys_spread(make_group, keys):
    group = make_group(4)
    for key in keys:
        group.submit_to(key, int)
    waiting = [int(loop._record["external"]["tail"]) for loop in group.loops]
    assert min(waiting) > 30, waiting


def test_a_key_is_a_queue(make_group):
    group = make_group(3)
    group.start()
    seen = {key: [] for key in range(20)}

    def producer(who):
        for number in range(300):
            group.submit_to(who, lambda n=number, k=who: seen[k].append((n, threading.get_ident())))

    together(4, lambda i: [producer(key) for key in range(i, 20, 4)])
    group.shutdown()
    for ran in seen.values():
        assert [number for number, _ in ran] == list(range(300))
        assert len({thread for _, thread in ran}) == 1


def test_broadcast_is_once_on_each(make_group):
    group = make_group(3)
    group.start()
    seen = []
    group.broadcast(lambda: seen.append(threading.current_thread().name))
    group.shutdown()
    assert sorted(seen) == [loop.name for loop in group.loops]


def test_next_takes_turns(make_group):
    group = make_group(3)
    assert [group.next() for _ in range(6)] == [*group.loops, *group.loops]


def test_refusals_are_those_of_a_loop(make_group):
    group = make_group(2, ingress_limit=1)
    for call in (group.submit, lambda fn: group.submit_to(1, fn), group.broadcast):
        with pytest.raises(TypeError, match="callable"):
            call(3)
    with pytest.raises(TypeError, match="missing"):
        group.submit()
    with pytest.raises(TypeError, match="unhashable"):
        group.submit_to([], int)
    group.submit(int)
    group.submit(int)
    with pytest.raises(nbloop.LoopOverloadedError):
        group.submit(int)
    with pytest.raises(TypeError, match="LoopGroup"):
        LoopGroup.submit(nbloop.Loop(), int)


def test_debug_mode_remembers_the_call(make_group):
    told = []
    group = make_group(2, debug=True, on_error=lambda error, context: told.append(context))
    group.submit(lambda: 1 / 0)
    group.start()
    group.shutdown()
    assert "scheduled_at" in told[0]


def test_figures_of_all(make_group):
    group = make_group(2, metrics=True)
    for loop in group.loops:
        loop.submit_many([int] * 10)
    group.loops[0].submit(lambda: 1 / 0)
    group.start()
    group.shutdown()
    figures = group.metrics()
    assert (figures.callbacks, figures.errors, figures.delay.count, figures.running) == (21, 1, 21, None)
    assert figures.latency.max == max(loop.metrics().latency.max for loop in group.loops)
    assert figures.busy_time == pytest.approx(sum(loop.metrics().busy_time for loop in group.loops))
    assert make_group(2, metrics=False).metrics() is None


def test_prometheus(make_group):
    pytest.importorskip("prometheus_client")
    from nbloop.observe.prometheus import LoopCollector

    group = make_group(2, name="web", metrics=True)
    samples = {
        sample.labels["loop"]
        for family in LoopCollector(*group.loops).collect()
        for sample in family.samples
        if family.name == "nbloop_callbacks"
    }
    assert samples == {"web-0", "web-1"}


# --- the end


def test_what_was_accepted_runs(make_group):
    """Threads submit in every way until they are refused; each accepted call has run."""
    group = make_group(3)
    group.start()
    ran, accepted = [], [0] * 4

    def producer(who):
        calls = (group.submit, lambda fn, n: group.submit_to(n, fn, n))
        try:
            while True:
                calls[accepted[who] & 1](ran.append, who)
                accepted[who] += 1
                if who == 0 and accepted[who] == 3000:
                    group.shutdown()
        except nbloop.LoopTerminatedError:
            return

    assert together(4, producer) == [None] * 4
    group.wait(PATIENCE)
    assert [ran.count(who) for who in range(4)] == accepted
    assert threads_of(group) == [] or wait_for(lambda: not threads_of(group)) is None


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_an_end_of_what_was_never_started(make_group, end):
    group = make_group(2)
    ran = []
    group.submit(ran.append, 1)
    getattr(group, end)()
    assert ended(group)
    assert ran == ([1] if end == "shutdown" else [])
    with pytest.raises(nbloop.LoopTerminatedError):
        group.start()


def test_an_end_from_a_callback(make_group):
    group = make_group(2)
    group.start()
    told = []

    def end():
        with pytest.raises(nbloop.ReentrantCloseError):
            group.close()
        with pytest.raises(nbloop.ReentrantWaitError):
            group.wait()
        group.shutdown()  # returns, although this loop has not ended
        told.append(1)

    group.submit(end)
    group.wait(PATIENCE)
    assert told == [1]


def test_an_end_from_a_worker(make_group):
    group = make_group(2)
    group.start()
    group.loops[1].promisify(group.shutdown).result(PATIENCE)
    group.wait(PATIENCE)


def test_a_callback_may_wait_for_another_loop_while_the_group_ends(make_group):
    group = make_group(2)
    group.start()
    one, other = group.loops
    held = Held(other)
    told = []
    one.submit(lambda: told.append(other.call(int, timeout=PATIENCE)))
    wait_for(lambda: int(other._record["external"]["tail"]) == 2)
    with pytest.raises(TimeoutError):
        group.shutdown(0)
    held.gate.set()
    group.wait(PATIENCE)
    assert told == [0]


def test_a_shutdown_that_takes_too_long_goes_on(make_group):
    group = make_group(2)
    group.start()
    held = Held(group.loops[0])  # the first that is waited for
    with pytest.raises(TimeoutError, match=group.loops[0].name):
        group.shutdown(0.01)
    with pytest.raises(nbloop.LoopTerminatedError):
        group.submit(int)
    with pytest.raises(TimeoutError):
        group.wait(0.01)
    held.gate.set()
    group.wait(PATIENCE)


def die():
    raise KeyboardInterrupt("enough")


@pytest.mark.parametrize("way", ["exception", "stop", "shutdown", "close", "exit"])
def test_a_loop_that_dies_takes_the_group_down(make_group, way, caplog):
    group = make_group(3)
    group.start()
    loop = group.loops[1]
    held = Held(group.loops[0])
    ran = []
    group.loops[0].submit(ran.append, "accepted")
    {
        "exception": lambda: loop.submit(die),
        "exit": lambda: loop.submit(exit),
        "stop": loop.stop,
        "shutdown": loop.shutdown,
        "close": loop.close,
    }[way]()
    wait_for(lambda: group._failures)
    held.gate.set()
    with pytest.raises(nbloop.LoopTerminatedError, match=f"{loop.name} has") as told:
        group.wait(PATIENCE)
    cause = {"exception": KeyboardInterrupt, "exit": SystemExit}.get(way, type(None))
    assert isinstance(told.value.__cause__, cause)
    assert ended(group)
    assert ran == ["accepted"]
    with pytest.raises(nbloop.LoopTerminatedError) as refused:
        group.submit(int)
    assert loop.name in str(refused.value.__cause__)
    assert isinstance(refused.value.__cause__.__cause__, cause)
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    wait_for(lambda: not threads_of(group))


def test_a_block_raises_what_ended_the_group():
    def block(error):
        with LoopGroup(2) as group:
            group.submit(die)
            wait_for(lambda: group._failures)
            if error:
                raise error

    with pytest.raises(nbloop.LoopTerminatedError, match="KeyboardInterrupt"):
        block(None)
    with pytest.raises(ZeroDivisionError):
        block(ZeroDivisionError())


def test_a_start_that_fails_halfway_leaves_nothing(make_group, monkeypatch):
    for failing in range(3):
        group = make_group(3)
        real, calls = nbloop.Loop._start, []

        def start(loop, left, calls=calls, failing=failing, real=real):
            calls.append(loop)
            if len(calls) == failing + 1:
                raise RuntimeError("can't start new thread")
            return real(loop, left)

        with monkeypatch.context() as patched:
            patched.setattr(nbloop.Loop, "_start", start)
            with pytest.raises(RuntimeError, match="new thread"):
                group.start()
        assert ended(group)
        assert group._failures == []
        wait_for(lambda group=group: not threads_of(group))


def test_a_start_is_once(make_group):
    group = make_group(2)
    group.start()
    with pytest.raises(nbloop.LoopAlreadyRunningError):
        group.start()
    assert not any(loop.state is LoopState.TERMINATED for loop in group.loops)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to pin threads here")
def test_pinned_threads_stay_on_their_cores(make_group):
    group = make_group(2, pin=True)
    mine = os.sched_getaffinity(0)
    group.start()
    cores = [loop.call(os.sched_getaffinity, 0) for loop in group.loops]
    assert [len(one) for one in cores] == [1, 1]
    assert set.union(*cores) == set(sorted(mine)[:2])
    assert os.sched_getaffinity(0) == mine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_refused(make_group):
    group = make_group(2)
    group.start()
    if (child := os.fork()) == 0:
        status = 1
        try:
            for call in (lambda: group.submit(int), group.shutdown, group.close, lambda: group.broadcast(int)):
                try:
                    call()
                except nbloop.ForkedLoopError:
                    continue
                os._exit(2)
            group.__exit__(None, None, None)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    group.submit(int)


def test_two_hundred_groups_leave_nothing(descriptors):
    opened, threads = None, set(threading.enumerate())
    for number in range(200):
        group = LoopGroup(2)
        kept = [weakref.ref(one) for one in (group, group.loops[0], group._state)]
        if number % 3:
            group.start()
        group.broadcast(int)
        (group.close if number % 2 else group.shutdown)()
        wait_for(lambda group=group: not threads_of(group))
        del group
        if number % 50 == 10:
            # `collect` does nothing while another thread collects, and a thread that has ended releases a little later.
            wait_for(lambda kept=kept: gc.collect() >= 0 and [ref() for ref in kept] == [None] * 3)
            # A thread that finishes a loop which no thread ran leaves a little later, and has no name at first.
            wait_for(lambda: set(threading.enumerate()) <= threads)
            opened = opened or descriptors()
            assert descriptors() == opened


def test_a_started_group_that_is_forgotten_goes_on():
    group = LoopGroup(2)
    group.start()
    submit, shutdown = group.submit, group.shutdown
    del group
    gc.collect()
    done = threading.Event()
    submit(done.set)
    wait_for(done)
    shutdown()


# --- signals, and the GIL


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals between threads here")
def test_ctrl_c_in_the_block_ends_the_group():
    def block():
        with group:
            group.submit(signal.pthread_kill, threading.get_ident(), signal.SIGINT)
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:  # in parts: a signal in the instant before a wait does not end it
                threading.Event().wait(0.01)

    group = LoopGroup(2)
    with pytest.raises(KeyboardInterrupt):
        block()
    assert ended(group)


@pytest.mark.filterwarnings("error")
def test_with_the_gil_on(monkeypatch):
    monkeypatch.setattr("nbloop.gil.enabled", lambda: True)
    monkeypatch.setattr("nbloop.gil._warned", [])
    with pytest.raises(RuntimeError, match="the GIL is on"):
        LoopGroup(2, require_free_threading=True)
    LoopGroup(1, require_free_threading=True).close()
    with pytest.warns(RuntimeWarning, match="the GIL is on") as warned:
        LoopGroup(2).close()
    LoopGroup(2).close()  # where a second warning would be an error
    assert warned[0].filename == __file__


def test_who_turned_the_gil_on(run_script, tmp_path):
    """A module of C that says nothing of free threading turns it on, and is named."""
    compiler, headers = shutil.which("cc"), sysconfig.get_path("include")
    if compiler is None or not os.path.exists(f"{headers}/Python.h"):
        pytest.skip("no C compiler here, or no headers of Python")
    source = tmp_path / "of_old.c"
    source.write_text(
        """
        #include <Python.h>
        static struct PyModuleDef of_old = {PyModuleDef_HEAD_INIT, "of_old"};
        PyMODINIT_FUNC PyInit_of_old(void) { return PyModule_Create(&of_old); }
        """
    )
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{headers}", source, "-o", tmp_path / "of_old.so"], check=True)
    said = run_script(
        f"""
        import sys
        import nbloop
        sys.path.insert(0, {str(tmp_path)!r})
        import of_old
        try:
            nbloop.LoopGroup(2, require_free_threading=True)
        except RuntimeError as error:
            print(error)
        """,
        PYTHON_GIL="",
    )
    assert "the GIL is on" in said
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
    assert ("'of_old' turned it on" if free_threaded else "not a free-threaded build") in said
