"""Figures that another process reads: of a loop that works, that hangs, that was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from waiting import PATIENCE, wait_for

from nbloop import Loop

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from nbloop.kernels import layout
from nbloop.observe import block, shared

HANGS = """
import nbloop, threading
loop = nbloop.Loop(metrics="shared", name="hangs")
def hang():
    print("inside", flush=True)
    threading.Event().wait(60)
loop.submit_many([int] * 1000)
loop.schedule_timer(0, hang)
for _ in range(1000):
    loop.submit(int)
loop.run()
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "nbloop"


@pytest.fixture
def hanging():
    program = subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout.readline() == "inside\n"
        yield program
    finally:
        program.kill()
        program.communicate(timeout=PATIENCE)


def test_a_loop_that_hangs_is_read_from_outside(hanging):
    (seen,) = shared.loops(hanging.pid)
    got = seen.snapshot()
    assert (seen.name, seen.pid, seen.alive()) == ("hangs", hanging.pid, True)
    assert got.running.kind == "timer"
    assert 0 <= time.monotonic() - got.running.since < PATIENCE
    assert got.queue_max.ingress == 2000
    assert got.callbacks == 0
    assert seen.snapshot().running.since == pytest.approx(got.running.since, abs=1e-3)
    with open(f"/proc/{hanging.pid}/stat") as file:
        assert seen.process_start == int(file.read().rpartition(")")[2].split()[19])


def test_a_stopped_process_is_read_too(hanging):
    hanging.send_signal(signal.SIGSTOP)
    (seen,) = shared.loops(hanging.pid)
    assert seen.snapshot().running.kind == "timer"


def test_a_killed_process_leaves_nothing_to_trip_over(hanging, place):
    (seen,) = shared.loops(hanging.pid)
    hanging.kill()
    hanging.wait(PATIENCE)
    assert not seen.alive()
    assert list(place.iterdir()) == [seen.path]
    with Loop(metrics="shared", name="next"):
        assert [one.name for one in shared.loops()] == ["next"]
    assert list(place.iterdir()) == []
    assert seen.snapshot().running.kind == "timer"  # what it was last


BUSY = """
import nbloop, threading
loop = nbloop.Loop(metrics="shared", name="busy")
loop.schedule_interval(0.001, int)
def produce():
    while True:
        loop.submit_many([int] * 1000)
threading.Thread(target=produce, daemon=True).start()
loop.schedule_timer(0.02, lambda: print("busy", flush=True))
loop.run()
"""


def test_processes_killed_at_any_moment(place):
    """While they change their figures all the time: what is left can be read or not, and troubles nobody."""
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout.readline() == "busy\n"
            (seen,) = shared.loops()  # and not those of its predecessors
            seen.snapshot()
            program.kill()
        assert not seen.alive()
        with contextlib.suppress(RuntimeError):  # it was in the middle of a change, and no copy was asked for
            assert seen.snapshot().callbacks > 0
    with Loop(metrics="shared", name="next") as loop:
        assert [one.name for one in shared.loops()] == ["next"]
        assert loop.metrics().errors == 0
    assert list(place.iterdir()) == []


def test_a_process_killed_in_the_middle_of_a_change(place, monkeypatch):
    """Its sequence is odd for ever: readers say so, and `top` shows the others."""
    from nbloop.cli.top import Looker

    monkeypatch.setattr(block, "PATIENCE", 0.05)
    with Loop(metrics="shared", name="torn") as loop, Loop(metrics="shared", name="whole"):
        record = loop._block.view(layout.BLOCK)[0]
        wait_for(lambda: record["sequence"] % 2 == 0 and loop.state.value == "sleeping")
        record["sequence"] += 1
        torn = next(one for one in shared.loops() if one.name == "torn")
        with pytest.raises(RuntimeError, match="no coherent copy"):
            torn.snapshot()
        assert [look.loop.name for look in Looker(None).look()] == ["whole"]
        record["sequence"] += 1
        assert torn.snapshot().errors == 0


def test_a_file_that_was_never_finished_is_removed(place):
    """By whoever comes a minute later; until then it may be one that is just being made."""
    with Loop(metrics="shared"):
        half = place / ".new-killed"
        half.write_bytes(b"half")
        assert len(shared.loops()) == 1
        assert half.exists()
        os.utime(half, (time.time() - 61, time.time() - 61))
        assert len(shared.loops()) == 1
        assert not half.exists()


def test_only_the_user_may_read(place):
    with Loop(metrics="shared") as loop:
        assert stat.S_IMODE(loop._shared.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        place.chmod(0o755)
        with pytest.raises(PermissionError, match="nobody else may enter"):
            Loop(metrics="shared")
        with pytest.raises(PermissionError):
            shared.loops()
        place.chmod(0o700)


def test_what_is_no_block_is_left_alone(place):
    with Loop(metrics="shared", name="good") as loop:
        copy = place / "1-1.metrics"
        copy.write_bytes(loop._shared.path.read_bytes())
        with copy.open("r+b") as file:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(8)
            file.write(b"another layout"[:8])  # of another version
            file.flush()
            assert [one.name for one in shared.loops()] == ["good"]
            file.truncate(100)
            assert [one.name for one in shared.loops()] == ["good"]
    assert not loop._shared.path.exists()


def test_a_forgotten_loop_is_removed(place):
    loop = Loop(metrics="shared")
    assert len(list(place.iterdir())) == 1
    del loop
    wait_for(lambda: not list(place.iterdir()))


def test_no_descriptors_are_left():
    def count():
        return len(os.listdir("/proc/self/fd"))

    with Loop(metrics="shared"):
        pass
    before = count()
    for _ in range(5):
        with Loop(metrics="shared", name="x"):
            assert shared.loops(os.getpid())[0].snapshot().errors == 0
    assert count() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_neither_removes_nor_holds(place):
    """The child ends: the file stays. The parent is gone, the child lives: the file does not."""
    program = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import nbloop, os, sys
from nbloop.observe import shared
loop = nbloop.Loop(metrics="shared")
if os.fork() == 0:
    sys.exit(0)
os.wait()
assert loop._shared.path.exists()
r, w = os.pipe()
r_ready, w_ready = os.pipe()
if os.fork() == 0:
    os.write(w_ready, b"x")
    os.read(r, 1)
    os._exit(0)
os.read(r_ready, 1)
(one,) = shared.loops()
os.close(loop._shared._fd)  # as if it was killed
assert not one.alive()
os.write(w, b"x")
os.wait()
os._exit(0)
""",
        ],
        timeout=60,
        check=False,
    )
    assert program.returncode == 0
    assert shared.loops() == []
