"""The sampling profiler: what it sees, and that its files are what other tools read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbloop.observe import pprof, stacks
from nbloop.observe.profile import Profile, Profiler, profile
from tests.support.pprof_schema import decode

pytestmark = pytest.mark.parallel_threads(1)  # looks at all threads of the process


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


@pytest.fixture(scope="module")
def seen() -> Profile:
    """One thread that works for 0.4 s of its processor's time, and one that waits as long."""
    over = threading.Event()

    def work() -> None:
        burn(0.4)
        over.set()

    def wait() -> None:
        over.wait(30)

    threads = [threading.Thread(target=body, name=body.__name__) for body in (work, wait)]
    with Profiler(hertz=250) as profiler:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return profiler.profile()


def of(seen: Profile, thread: str, clock: str) -> float:
    return sum(getattr(run, clock) for run in seen.threads[thread]) / 1e9


def test_working_is_told_from_waiting(seen: Profile) -> None:
    assert 0.1 < of(seen, "work", "cpu_ns") < 0.45
    assert of(seen, "wait", "cpu_ns") < 0.05
    assert of(seen, "wait", "wall_ns") > 0.2
    assert of(seen, "wait", "wall_ns") <= seen.duration
    assert not any("profiler" in name for name in seen.threads)


def test_stacks_are_whole_and_innermost_first(seen: Profile) -> None:
    runs = seen.threads["work"]
    busiest = max(runs, key=lambda run: run.cpu_ns)
    names = [call.code.co_name for call in busiest.stack]
    assert names[:2] == ["burn", "work"]
    assert names[-1] == "_bootstrap"
    inside = {run.stack[0].line for run in runs if run.stack[0].code is burn.__code__}
    assert {line - burn.__code__.co_firstlineno for line in inside} <= {1, 2, 3}


def test_pprof_is_decoded_by_protobuf(seen: Profile) -> None:
    message, samples = decode(seen.pprof())
    assert message.string_table[message.default_sample_type] == "cpu"
    assert message.period == 4_000_000
    assert abs(message.duration_nanos / 1e9 - seen.duration) < 1e-6
    assert message.mapping[0].has_functions
    for thread in ("work", "wait"):
        mine = [values for _, values, labels in samples if labels == {"thread": thread}]
        assert sum(values["cpu"] for values in mine) == sum(run.cpu_ns for run in seen.threads[thread])
        assert sum(values["samples"] for values in mine) == sum(run.looks for run in seen.threads[thread])
    functions = {stack[0][0] for stack, values, labels in samples if labels["thread"] == "work"}
    assert "burn" in functions
    assert {stack[0][1] for stack, _, _ in samples if stack[0][0] == "burn"} == {__file__}


def test_numbers_and_text_that_need_more_than_a_byte_survive() -> None:
    places = [pprof.Place("größe" * 100, "x\udcff.py", 1 << 40, line) for line in (0, 127, 128, 1 << 50)]
    content = pprof.encode(
        [(places, (0, (1 << 63) - 1), {})],
        types=[("a", "count"), ("b", "bytes")],
        default="b",
        time_ns=1 << 62,
        duration_ns=0,
        period=("a", "count", 1),
    )
    message, ((stack, values, labels),) = decode(content)
    assert [line for _, _, line in stack] == [0, 127, 128, 1 << 50]
    assert values == {"a": 0, "b": (1 << 63) - 1}
    assert labels == {}
    assert stack[0][:2] == ("größe" * 100, "x?.py")
    assert message.function[0].start_line == 1 << 40
    assert message.time_nanos == 1 << 62


def test_go_tool_pprof_opens_it(seen: Profile, tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: what `go tool pprof` says to the profile is not tried")
    file = tmp_path / "cpu.pb.gz"
    file.write_bytes(seen.pprof())
    done = subprocess.run(
        [go, "tool", "pprof", "-top", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert "Type: cpu" in done.stdout
    assert "burn" in done.stdout


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_speedscope_is_as_its_schema_asks(seen: Profile, clock: Any) -> None:
    file = json.loads(seen.speedscope(clock))
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = file["shared"]["frames"]
    assert all(set(frame) <= {"name", "file", "line", "col"} and isinstance(frame["name"], str) for frame in frames)
    assert 0 <= file["activeProfileIndex"] < len(file["profiles"])
    for one in file["profiles"]:
        assert set(one) == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert (one["type"], one["unit"]) == ("sampled", "nanoseconds")
        assert len(one["samples"]) == len(one["weights"])
        assert all(0 <= number < len(frames) for sample in one["samples"] for number in sample)
        assert all(weight > 0 for weight in one["weights"])
        assert one["endValue"] - one["startValue"] == sum(one["weights"])
    (work,) = [one for one in file["profiles"] if one["name"] == f"work ({clock})"]
    deepest = max(work["samples"], key=len)
    assert frames[deepest[0]]["name"].endswith("_bootstrap")
    with pytest.raises(ValueError, match="clock must be"):
        seen.speedscope("sun")  # type: ignore[arg-type]


def test_profile_takes_so_long() -> None:
    seen = profile(0.05, hertz=1000)
    assert 0.05 <= seen.duration < 30
    assert "MainThread" in seen.threads


def test_use_in_another_order_is_refused() -> None:
    profiler = Profiler()
    with pytest.raises(RuntimeError, match="has not been stopped"):
        profiler.profile()
    with profiler, pytest.raises(RuntimeError, match="started once"):
        profiler.start()
    profiler.stop()
    profiler.profile()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: Profiler(0), ValueError),
        (lambda: Profiler(1001), ValueError),
        (lambda: Profiler(True), TypeError),
        (lambda: Profiler("9"), TypeError),
        (lambda: profile(-1), ValueError),
        (lambda: profile(float("nan")), ValueError),
        (lambda: profile("1"), TypeError),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


@pytest.fixture
def churning() -> Iterator[list[threading.Thread]]:
    """Threads that call, return, generate, raise and make rubbish all the time."""
    over = threading.Event()

    def deep(n: int) -> int:
        return deep(n - 1) if n else 0

    def raising() -> None:
        try:
            raise ValueError
        except ValueError:
            pass

    def body() -> None:
        while not over.is_set():
            deep(100)
            ring: list[Any] = [*(j for j in range(3))]
            ring.append(ring)
            raising()

    threads = [threading.Thread(target=body, name="churn") for _ in range(2)]
    for thread in threads:
        thread.start()
    yield threads
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_looks_at_threads_that_call_and_return_all_the_time(churning: list[threading.Thread]) -> None:
    """Following `f_back` of running threads instead crashes within some 100,000 looks; what can be seen here is that
    no stack is torn, none is lost, and no reference is left behind.
    """
    code = sys._getframe().f_code
    references = sys.getrefcount(code)
    for _ in range(300):
        seen = stacks.capture()
        for thread in churning:
            names = [call.code.co_name for call in seen[thread.ident or 0][0]]
            assert names[-1] == "_bootstrap"
            assert "body" in names
        (mine,) = [calls for calls, _ in seen.values() if any(call.code is code for call in calls)]
        assert mine[1].code is stacks.capture.__code__
    del seen, mine
    assert sys.getrefcount(code) <= references + 2


class Thing:
    """Something that a weak reference can refer to."""


@pytest.mark.usefixtures("no_collections")
def test_a_look_keeps_nobodys_variables() -> None:
    """Among the frames is its own, whose variables have the frames."""

    def look() -> weakref.ref[Thing]:
        thing = Thing()
        stacks.capture()
        return weakref.ref(thing)

    assert look()() is None


def test_deep_stacks_lose_the_outermost() -> None:
    def deep(n: int) -> tuple[stacks.Stack, list[object]]:
        return deep(n - 1) if n else stacks.capture(ask=(deep.__code__, "n"))[threading.get_ident()]

    calls, answers = deep(700)
    assert stacks.DEPTH <= len(calls) < stacks.DEPTH + 5
    assert calls[2].code.co_name == "deep"
    assert answers[:3] == [0, 1, 2]
    with pytest.raises(ValueError, match="not an argument"):
        stacks.capture(ask=(deep.__code__, "nothing"))
