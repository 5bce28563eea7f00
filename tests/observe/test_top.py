"""`nbloop top` sees loops of other processes: busy, hanging, and gone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.parallel_threads(1),
    pytest.mark.skipif(sys.platform == "win32", reason="loops are read through files with locks"),
]

HANGING = """
import sys, threading, nbloop
loop = nbloop.Loop(name="stuck", metrics="shared")
loop.start()
for _ in range(99):
    loop.submit(int)
def hang():
    print("hanging", flush=True)
    sys.stdin.read()
loop.submit(hang)
threading.Event().wait(60)
"""


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    tmp_path.chmod(0o700)
    return os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def hanging(place: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"hanging\n"
    yield process
    process.kill()
    process.communicate()


def top(place: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nbloop", "top", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env=place,
        check=False,
    )


def test_a_hanging_loop_is_seen_with_what_it_is_in(place: dict[str, str], hanging: subprocess.Popen[bytes]) -> None:
    done = top(place, "--json", str(hanging.pid))
    assert done.returncode == 0, done.stderr
    (seen,) = json.loads(done.stdout)
    assert (seen["pid"], seen["name"]) == (hanging.pid, "stuck")
    assert seen["metrics"]["callbacks"] == 99
    assert seen["metrics"]["running"]["kind"] == "task"
    again = json.loads(top(place, "--json").stdout)[0]
    assert again["running_for"] > seen["running_for"] > 0
    done = top(place, "--once")
    assert done.returncode == 0
    assert "stuck" in done.stdout
    assert "in a task" in done.stdout


def test_a_stopped_process_is_seen_too(place: dict[str, str], hanging: subprocess.Popen[bytes]) -> None:
    os.kill(hanging.pid, signal.SIGSTOP)
    try:
        assert json.loads(top(place, "--json").stdout)[0]["name"] == "stuck"
    finally:
        os.kill(hanging.pid, signal.SIGCONT)


def test_a_killed_process_is_gone_and_so_is_its_file(
    place: dict[str, str], hanging: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert list(tmp_path.rglob("*.metrics"))
    hanging.kill()
    hanging.wait(30)
    done = top(place, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, [])
    assert not list(tmp_path.rglob("*.metrics"))
    done = top(place, "--once", str(hanging.pid))
    assert done.returncode == 1
    assert f"process {hanging.pid} has no readable loop" in done.stdout


def test_the_live_view_moves_and_ends_with_ctrl_c(place: dict[str, str], hanging: subprocess.Popen[bytes]) -> None:
    pytest.importorskip("rich")
    code = "import sys, nbloop.cli.top as t; t.PERIOD = 0.05; import nbloop.__main__ as m; sys.exit(m.main(['top']))"
    terminal, inside = os.openpty()
    environment = place | {"COLUMNS": "200", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=inside, stderr=subprocess.PIPE, env=environment)
    os.close(inside)
    try:
        seen = b""
        while seen.count(b"stuck") < 3:
            assert select.select([terminal], [], [], 30)[0], seen
            seen += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other side has closed
            while select.select([terminal], [], [], 30)[0] and os.read(terminal, 65536):
                pass
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        assert b"in a task" in seen
    finally:
        process.kill()
        process.communicate()
        os.close(terminal)


def test_rates_are_between_two_looks(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch, make_loop: Callable[..., Any], wait_for: Any
) -> None:
    from nbloop.cli.top import Looker

    monkeypatch.setenv("XDG_RUNTIME_DIR", place["XDG_RUNTIME_DIR"])
    loop = make_loop(name="rated", metrics="shared")
    loop.start()
    looker = Looker(os.getpid())
    (first,) = looker.look()
    for _ in range(500):
        loop.submit(int)
    wait_for(lambda: loop.metrics().callbacks == 500)
    (second,) = looker.look()
    passed = second.now.time - first.now.time
    assert second.rate == pytest.approx(500 / passed)
    assert 0 < second.busy < 1
    inside, go = threading.Event(), threading.Event()
    loop.submit(lambda: (inside.set(), go.wait(30)))
    wait_for(inside)
    looker.look()
    (hanging,) = looker.look()
    assert (hanging.busy, hanging.rate) == (pytest.approx(1.0, abs=0.01), 0)
    go.set()
    wait_for(lambda: loop.metrics().running is None)
    looker.look()
    time.sleep(0.01)
    (resting,) = looker.look()
    assert resting.busy == pytest.approx(0.0, abs=0.01)


def test_a_loop_that_has_only_slept_is_not_busy(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch, make_loop: Callable[..., Any], asleep: Any
) -> None:
    """At the first look too, when its sleep has not ended yet."""
    from nbloop.cli.top import Looker

    monkeypatch.setenv("XDG_RUNTIME_DIR", place["XDG_RUNTIME_DIR"])
    loop = make_loop(metrics="shared")
    loop.start()
    asleep(loop)
    time.sleep(0.05)
    (only,) = Looker(os.getpid()).look()
    assert only.busy < 0.9


def test_a_loops_channels_stand_below_it(place: dict[str, str]) -> None:
    program = """
import nbloop, sys
with nbloop.Loop(name="reads", metrics="shared") as loop:
    kept = [loop.channel([("x", "f8")], lambda _: None, name=name, capacity=2, on_full="drop_new") for name in "ab"]
    kept.append(kept[0].producer())
    loop.call(lambda: [one.put(1.0) for one in kept for _ in range(3)])
    while kept[-1].delivered < 2:
        pass
    print("made", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        (facts,) = json.loads(top(place, "--json", str(process.pid)).stdout)
        if facts["channels"] is None:
            pytest.skip("this process may not trace its children's children")
        figures = [(one["name"], one["capacity"], one["delivered"], one["dropped"]) for one in facts["channels"]]
        assert figures == [("a", 4, 4, 2), ("b", 2, 2, 1)]
        assert all(one["records_per_second"] > 0 for one in facts["channels"])
        assert all(0 < one["delay"]["p50"] <= one["delay"]["p99"] for one in facts["channels"])
        lines = [line for line in top(place, "--once").stdout.splitlines() if str(process.pid) in line]
        cells = [re.split("  +", line.strip()) for line in lines]
        assert [(row[0], row[2]) for row in cells] == [("reads", "resting"), ("a", "channel"), ("b", "channel")]
        assert [row[-1] for row in cells] == ["0", "2", "1"]
    finally:
        process.communicate(b"")


def test_records_a_second_are_between_two_looks(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch, make_loop: Callable[..., Any], wait_for: Any
) -> None:
    from nbloop.cli.top import Looker

    monkeypatch.setenv("XDG_RUNTIME_DIR", place["XDG_RUNTIME_DIR"])
    loop = make_loop(name="rated", metrics="shared")
    loop.start()
    channel = loop.channel([("x", "f8")], lambda _: None)
    looker = Looker(os.getpid())
    for records in (100, 300):
        for _ in range(records):
            channel.put(1.0)
        wait_for(lambda: channel.waiting() == 0)
        (look,) = looker.look()
    assert look.channels is not None
    (one,) = look.channels
    assert one.delivered == 400
    assert look.records_per_second(one) == pytest.approx(300 / look._passed)


def test_a_narrow_terminal_has_fewer_columns_and_whole_names() -> None:
    from nbloop.cli.top import COLUMNS, fitting

    row = ["a loop's name", "4194304", "in a readiness callback", "1,234 s", *["999,999"] * (len(COLUMNS) - 4)]
    widths = [3 + max(len(cell), len(name)) for cell, name in zip(row, COLUMNS, strict=True)]
    assert fitting([row], 200) == list(range(len(COLUMNS)))
    for room in (60, 80, 100, 120):
        kept = fitting([row], room)
        assert kept == sorted(kept)
        assert {0, 1, 2, 3, 4} <= set(kept)  # name, process, state, for how long, rate
        assert sum(widths[i] for i in kept) <= room or len(kept) == 5


GROUP = """
import sys, nbloop
with nbloop.LoopGroup(2, name="web", metrics="shared") as group, nbloop.Loop(name="alone", metrics="shared"):
    for _ in range(50):
        group.broadcast(int)
    print("made", flush=True)
    sys.stdin.read()
"""


def test_the_loops_of_a_group_stand_together(place: dict[str, str]) -> None:
    """contract: below a row of their sums."""
    process = subprocess.Popen([sys.executable, "-c", GROUP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        facts = json.loads(top(place, "--json", str(process.pid)).stdout)
        assert [(one["name"], one["group"]) for one in facts] == [("alone", None), ("web-0", "web"), ("web-1", "web")]
        lines = [line for line in top(place, "--once").stdout.splitlines() if str(process.pid) in line]
        assert [re.split("  +", line.strip())[0] for line in lines] == ["alone", "web", "web-0", "web-1"]
        assert "2 loops" in lines[1]
    finally:
        process.communicate(b"")


def test_the_row_of_a_group_is_the_sum_of_its_loops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    import nbloop
    from nbloop.cli.top import COLUMNS, Looker, rows

    with nbloop.LoopGroup(3, name="web", metrics="shared") as group:
        for n, loop in enumerate(group.loops):
            for _ in range(n + 1):
                loop.call(int)
        looks = Looker(os.getpid()).look()
        (whole, stuck), *parts = list(rows(looks))
    assert not stuck
    assert [row[0] for row, _ in parts] == ["  web-0", "  web-1", "  web-2"]
    at = COLUMNS.index("callbacks/s")
    assert whole[:4] == ["web", str(os.getpid()), "3 loops", ""]
    assert float(whole[at].replace(",", "")) == pytest.approx(sum(look.rate for look in looks), abs=1)
