"""What a loop reports of itself, against what the tests have counted and timed themselves."""

from __future__ import annotations

import dataclasses
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbloop.js import JS
from nbloop.kernels.base import layout
from nbloop.kernels.observe import meter
from nbloop.observe import Histogram, block, server, shared
from tests.support.waiting import PATIENCE, together, wait_for


def returned(loop):
    """Everything submitted before has been run and counted."""
    done = threading.Event()
    loop.submit(done.set)
    wait_for(done)
    turns = loop.metrics().turns
    wait_for(lambda: loop.metrics().turns > turns or not loop.metrics().running)


def fail():
    raise LookupError("on purpose")


def test_off_is_none(loop):
    assert loop.metrics() is None


@pytest.mark.parametrize("value", [1, "on", 0.5])
def test_option_is_checked(make_loop, value):
    with pytest.raises(TypeError, match="metrics must be True, False"):
        make_loop(metrics=value)


def test_environment_speaks_for_loops_that_say_nothing(make_loop, monkeypatch):
    monkeypatch.setenv("NBLOOP_METRICS", "1")
    assert make_loop().metrics() is not None
    assert make_loop(metrics=False).metrics() is None
    monkeypatch.setenv("NBLOOP_METRICS", "all")
    with pytest.raises(ValueError, match="NBLOOP_METRICS must be"):
        make_loop()


@pytest.mark.parametrize("handles", [False, True])
def test_counts(make_loop, handles):
    """Four threads' tasks, some of which raise."""
    errors = []
    loop = make_loop(metrics=True, on_error=lambda error, context: errors.append(error))
    with loop:

        def produce(_):
            submit = loop.producer().submit if handles else loop.submit
            for i in range(5_000):
                submit(fail if i % 500 == 0 else int)

        together(4, produce)
        returned(loop)
    got = loop.metrics()
    assert got.callbacks >= 20_001
    assert got.errors == len(errors) == 40
    assert got.latency.count == got.callbacks
    assert abs(got.delay.count - 20_001) <= 8 * 16 * (4 if handles else 1)  # eighths begin and end a few times
    assert got.wakes_sent + got.wakes_elided >= 20_001
    assert got.turns > 0
    assert got.running is None


def test_all_delays_while_few_wait(make_loop, turns):
    loop = make_loop(metrics=True)
    for _ in range(100):
        loop.submit(int)
        loop.submit_many([int, int])
        turns(loop)
    assert loop.metrics().delay.count == 300


def test_snapshots_are_of_one_moment(make_loop):
    """Four read while four submit; and a snapshot never changes."""
    loop = make_loop(metrics=True)
    done = threading.Event()
    with loop:

        def either(i):
            if i < 4:
                for _ in range(30_000):
                    loop.submit(int)
                if i == 0:
                    done.set()
                return 0
            seen, last = 0, loop.metrics()
            while not done.is_set() or seen < 20:
                got = loop.metrics()
                seen += 1
                assert 0 <= got.callbacks - got.latency.count < meter.GROUP_MOST
                assert got.callbacks >= last.callbacks
                assert got.busy_time >= last.busy_time
                total = got.latency.histogram.sum
                assert total <= got.busy_time + 1e-6 * got.callbacks  # each is rounded down to 1 ns
                assert got.latency.max <= total
                assert got.delay.count <= got.callbacks + 64
                last = got
            return seen

        results = together(8, either)
    assert [r for r in results if isinstance(r, Exception)] == []
    assert min(results[4:]) >= 20


def test_latency_is_what_callbacks_took(make_loop):
    loop = make_loop(metrics=True)
    never, took = threading.Event(), []

    def work(seconds):
        start = time.perf_counter()
        never.wait(seconds)
        took.append(time.perf_counter() - start)

    with loop:
        for i in range(20):
            loop.submit(work, 0.002 if i < 15 else 0.02)
        returned(loop)
    took.sort()
    got = loop.metrics()
    exact = sorted(took + [0.0] * (got.latency.count - 20))
    for q, figure in ((0.5, got.latency.p50), (0.9, got.latency.p90), (0.99, got.latency.p99)):
        assert figure == pytest.approx(exact[max(0, int(np.ceil(q * len(exact))) - 1)], rel=0.02, abs=5e-4)
    assert got.latency.max == pytest.approx(took[-1], rel=0.01, abs=5e-4)
    assert got.latency.histogram.sum == pytest.approx(sum(took), rel=0.01, abs=2e-3)
    assert got.busy_time >= sum(took)


def test_a_slow_callback_among_short_ones_shows(make_loop, turns):
    loop = make_loop(metrics=True)
    took = []

    def slow():
        start = time.perf_counter()
        threading.Event().wait(0.01)
        took.append(time.perf_counter() - start)

    loop.submit_many([int] * 500 + [slow] + [int] * 500)
    turns(loop)
    got = loop.metrics().latency
    assert got.count == 1001
    assert got.max == pytest.approx(took[0], rel=0.05)
    assert got.p99 < 0.001


def test_delay_is_from_submit_to_start(make_loop):
    loop = make_loop(metrics=True)
    inside, go = threading.Event(), threading.Event()
    times = {}
    with loop:
        loop.submit(lambda: (inside.set(), go.wait(PATIENCE)))
        wait_for(inside)
        times["submit"] = time.perf_counter()
        loop.submit(lambda: times.update(start=time.perf_counter()))
        threading.Event().wait(0.03)
        go.set()
        returned(loop)
    assert loop.metrics().delay.max == pytest.approx(times["start"] - times["submit"], rel=0.02, abs=1e-3)


def test_answers_while_a_callback_hangs(make_loop):
    loop = make_loop(metrics=True)
    inside, go = threading.Event(), threading.Event()
    with loop:
        loop.submit_many([int] * 10)
        loop.schedule_microtask(lambda: (inside.set(), go.wait(PATIENCE)))
        wait_for(inside)
        before = time.monotonic()
        first, second = loop.metrics(), loop.metrics()
        go.set()
    assert first.running.kind == "microtask"
    assert first.running.since <= before
    assert first.running.since == pytest.approx(second.running.since, abs=1e-3)
    assert first.callbacks == second.callbacks
    assert loop.metrics().running is None


def test_depths(make_loop, turns):
    loop = make_loop(metrics=True)
    for _ in range(30):
        loop.submit(int)
    for _ in range(20):
        loop.submit_internal(int)
    for _ in range(10):
        loop.schedule_immediate(int)
    for _ in range(5):
        loop.schedule_microtask(int)
    turns(loop)
    got = loop.metrics()
    assert (got.queue_max.ingress, got.queue_max.internal, got.queue_max.immediate) == (30, 20, 10)
    assert got.queue_max.microtask == 5
    assert got.queue_ema.ingress == 30.0  # the first sample starts it
    turns(loop)
    got = loop.metrics()
    assert got.queue_current == type(got.queue_current)(0, 0, 0, 0)
    assert got.queue_max.ingress == 30
    assert got.queue_ema.ingress == pytest.approx(27.0, abs=1e-4)


def depths(loop):
    """What waits, as every reader says it: those of this process, and `top`, if the loop's figures are shared."""
    prometheus_client = pytest.importorskip("prometheus_client")
    from nbloop.observe.prometheus import LoopCollector

    registry = prometheus_client.CollectorRegistry()
    registry.register(LoopCollector(loop))
    names = [field.name for field in dataclasses.fields(loop.metrics().queue_current)]
    exported = [registry.get_sample_value("nbloop_queue_depth", {"loop": loop.name, "queue": name}) for name in names]
    page = server.variables(loop)["metrics"]["queue_current"]
    now = loop.metrics().queue_current
    assert dataclasses.astuple(now) == tuple(exported) == tuple(page.values())
    if loop._shared is not None and loop._shared.path.exists():
        (other,) = [other for other in shared.loops(os.getpid()) if other.name == loop.name]
        assert other.snapshot().queue_current == now
    return dataclasses.astuple(now)


both_kinds = pytest.mark.parametrize(
    "metrics", [True, pytest.param("shared", marks=pytest.mark.skipif("sys.platform != 'linux'"))]
)


@both_kinds
def test_an_idle_loop_has_nothing_waiting(make_loop, asleep, metrics):
    """contract, Metrics: queue_current is what waits now, also for an idle loop."""
    loop = make_loop(metrics=metrics)
    for _ in range(500):
        loop.submit(int)
        loop.submit_internal(int)
        loop.schedule_immediate(int)
        loop.schedule_microtask(int)
    assert depths(loop) == (500, 500, 500, 500)
    with loop:
        returned(loop)
        asleep(loop)
        assert depths(loop) == (0, 0, 0, 0)
    assert depths(loop) == (0, 0, 0, 0)


@both_kinds
def test_what_waits_behind_a_callback_that_hangs(make_loop, metrics):
    """contract, Metrics: and while a callback hangs; in another process's eyes, too."""
    loop = make_loop(metrics=metrics)
    inside, go = threading.Event(), threading.Event()
    handles = [loop.producer() for _ in range(3)]
    js = JS(loop)
    promise, resolve, _reject = js.with_resolvers()
    for _ in range(5):
        promise.then(int)

    def hangs():
        loop.submit_internal(int)
        loop.schedule_microtask(int)
        loop.schedule_next_tick(int)
        loop.schedule_immediate(int)
        inside.set()
        go.wait(PATIENCE)

    with loop:
        loop.submit(hangs)
        wait_for(inside)
        for _ in range(777):
            loop.submit(int)
        assert depths(loop) == (777, 1, 2, 1)
        loop.submit_many([int] * 1000)
        for handle in handles:
            handle.submit_many([int] * 10)
            handle.submit(int)
        assert depths(loop) == (1777 + 33, 1, 2, 1)
        handles.clear()  # what they hold is still run
        assert depths(loop) == (1777 + 33, 1, 2, 1)
        for _ in range(20):
            loop.submit_internal(int)
            loop.schedule_immediate(int)
        for _ in range(7):
            loop.schedule_microtask(int)
            loop.schedule_next_tick(int)
        resolve(1)
        loop.schedule_close(int)
        loop.schedule_timer(1e6, int)
        assert depths(loop) == (1777 + 33, 21, 2 + 14 + 5, 21)
        assert loop.metrics().queue_max.ingress == 1777 + 33
        go.set()
        returned(loop)
        wait_for(lambda: depths(loop) == (0, 0, 0, 0))


@both_kinds
def test_nothing_waits_in_a_loop_that_was_closed(make_loop, metrics):
    loop = make_loop(metrics=metrics)
    seen = [other for other in shared.loops(os.getpid()) if other.name == loop.name] if loop._shared else []
    loop.submit_many([int] * 10)
    for _ in range(10):
        loop.submit_internal(int)
        loop.schedule_microtask(int)
        loop.schedule_immediate(int)
    loop.close()
    assert depths(loop) == (0, 0, 0, 0)
    assert [dataclasses.astuple(other.snapshot().queue_current) for other in seen] == [(0, 0, 0, 0)] * len(seen)


def test_the_page_says_what_its_figures_say(make_loop, asleep):
    """contract, Metrics: running or sleeping, of the same instant as the figures."""
    loop = make_loop(metrics=True)
    assert server.variables(loop)["state"] == "awake"
    inside, go, over = threading.Event(), threading.Event(), threading.Event()
    with loop:
        asleep(loop)
        assert server.variables(loop)["state"] == "sleeping"
        loop.submit(lambda: (inside.set(), go.wait(PATIENCE)))
        wait_for(inside)
        assert server.variables(loop)["state"] == "running"
        go.set()

        def either(i):
            if i == 0:
                for _ in range(2_000):
                    loop.submit(int)
                over.set()
                return
            while not over.is_set():
                seen = server.variables(loop)
                assert seen["state"] == ("running" if seen["metrics"]["running"] else "sleeping")

        assert together(2, either) == [None, None]
    assert server.variables(loop)["state"] == "terminated"


def test_overloads(make_loop, turns):
    seen = []
    loop = make_loop(metrics=True, ingress_budget=10, on_overload=seen.append)
    loop.submit_many([int] * 35)
    turns(loop, 5)
    assert loop.metrics().overloads == len(seen) == 3


def test_idle_and_busy_are_all_of_the_time(make_loop):
    loop = make_loop(metrics=True)
    start = time.perf_counter()
    with loop:
        loop.submit(threading.Event().wait, 0.03)
        returned(loop)
        threading.Event().wait(0.05)
        returned(loop)
    wall = time.perf_counter() - start
    got = loop.metrics()
    assert got.busy_time >= 0.03
    assert got.idle_time >= 0.045
    assert got.idle_time + got.busy_time <= wall * 1.01
    loop.close()


def test_rate(make_loop, turns):
    """Only what returned counts, over ten seconds whatever the loop's age."""
    loop = make_loop(metrics=True, on_error=lambda *_: None)
    loop.submit_many([int] * 1_000 + [fail] * 100)
    turns(loop, 3)
    assert loop.metrics().tps == pytest.approx(100.0)


@pytest.mark.parametrize("jump", [-(10**9), -3600, -1, 1, 3600, 10**9])
def test_a_clock_that_jumps(make_loop, turns, monkeypatch, jump):
    """The rate is never negative and counts on; delays and latencies are clipped, sums stay what they were."""
    monkeypatch.setattr(block, "cycles_count_time", lambda: False)
    plain = block.Clock()
    monkeypatch.setattr(block, "the_clock", lambda: plain)
    loop = make_loop(metrics=True)
    loop.submit_many([int] * 100)
    turns(loop)
    live = loop._block.view(layout.BLOCK.dtype)[0]["live"]
    for name in ("now", "mark", "bucket_end"):
        live[name] += jump * 10**9
    live["rate"][:, 0] += jump * 10
    loop.submit_many([int] * 100)
    turns(loop, 2)
    got = loop.metrics()
    assert 0 <= got.tps <= 20
    assert got.callbacks == got.latency.count == 200
    assert 0 <= got.latency.max <= 2 * 3600
    assert got.busy_time >= 0
    assert got.idle_time >= 0


def test_the_clock_is_monotonic_s():
    """Calibrated: a tenth of a second is that on both, and a wrong rate would show."""
    clock = block.Clock()
    first = clock.pair()
    threading.Event().wait(0.1)
    last = clock.pair()
    ns = (last[0] - first[0]) * clock.multiplier >> meter.MULTIPLIER_BITS
    assert ns == pytest.approx(last[1] - first[1], rel=1e-3)


def test_forked_child_has_none(make_loop):
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    from nbloop import ForkedLoopError

    loop = make_loop(metrics=True)
    child = os.fork()
    if child == 0:
        try:
            loop.metrics()
        except ForkedLoopError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- the histogram --------------------------------------------------------------------------------

durations = st.lists(st.integers(0, 3 * 10**12).map(lambda ns: ns / 1e9), min_size=1, max_size=200)


@given(durations, st.floats(0, 1))
def test_quantiles_are_within_one_per_cent(values, q):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(1, int(np.ceil(q * len(values)))) - 1]
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.01, abs=1e-9)
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(sum(values))
    assert histogram.max == pytest.approx(max(values))


@given(durations, durations)
def test_merging_is_counting_together(first, second):
    one, other, both = Histogram(), Histogram(), Histogram()
    for into, values in ((one, first), (other, second), (both, first + second)):
        for value in values:
            into.add(value)
    one.merge(other)
    assert one.buckets() == both.buckets()
    assert (one.sum, one.max, one.count) == (both.sum, both.max, both.count)
    one.reset()
    assert (one.count, one.sum, one.max, one.quantile(0.5), one.mean) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_durations(bad):
    with pytest.raises(ValueError, match="seconds must be"):
        Histogram().add(bad)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_bad_quantiles(bad):
    with pytest.raises(ValueError, match="q must be from 0 to 1"):
        Histogram().quantile(bad)
