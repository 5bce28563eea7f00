"""Figures that another process reads: of a loop that works, that hangs, that was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nbloop import Loop, LoopState
from tests.support.waiting import PATIENCE, wait_for

if sys.platform != "linux":
    pytest.skip("Linux only", allow_module_level=True)

import fcntl

from nbloop.kernels.base import layout
from nbloop.kernels.build import object_cache
from nbloop.observe import Queues, block, shared

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
        with contextlib.suppress(RuntimeError):  # it was in the middle of a change, and no copy was requested
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
        record = loop._block.view(layout.BLOCK.dtype)[0]
        wait_for(lambda: record["sequence"] % 2 == 0 and loop.state.value == "sleeping")
        record["sequence"] += 1
        torn = next(one for one in shared.loops() if one.name == "torn")
        with pytest.raises(RuntimeError, match="no coherent copy"):
            torn.snapshot()
        assert [look.loop.name for look in Looker(None).look()] == ["whole"]
        record["sequence"] += 1
        assert torn.snapshot().errors == 0


def test_a_file_that_was_never_finished_is_removed(place):
    """By any process a minute later; until then it may be a file that is just being made."""
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


def locked(path, content):
    """A file that a living process seems to have made; what it holds open."""
    path.write_bytes(content)
    file = path.open("r+b")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_what_names_no_block_is_left_alone(place):
    """Another version's, another namespace's, another file's, a file that can be truncated, and garbage."""
    with Loop(metrics="shared", name="good") as loop, contextlib.ExitStack() as stack:
        pid, number, device, inode = loop._shared.path.read_bytes().split()
        mine = os.open(place.parent / "plain", os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, mine)
        os.write(mine, bytes(loop._block))
        found = os.fstat(mine)
        memory = stack.enter_context(shared._make_memory())
        other = memory.fileno()
        os.pwrite(other, bytes(loop._block), 0)
        os.pwrite(other, b"another layout"[:8], 8)
        version = os.fstat(other)
        contents = [
            b"",
            b"garbage",
            b"\0" * 100_000,
            b"%s %s" % (pid, number),
            b"%s %s %s 1" % (pid, number, device),
            b"1 1 %s %s" % (device, inode),
            b"-1 -1 0 0",
            b"9" * 190,
            b"%s %d %d %d" % (pid, mine, found.st_dev, found.st_ino),  # can be truncated
            b"%s %d %d %d" % (pid, other, version.st_dev, version.st_ino),
        ]
        for number, content in enumerate(contents):
            stack.enter_context(locked(place / f"1-{number}.metrics", content))
        assert [one.name for one in shared.loops()] == ["good"]
        assert len(list(place.iterdir())) == len(contents) + 1
    assert not loop._shared.path.exists()


def test_what_is_no_file_is_left_alone(place):
    """A pipe keeps nobody waiting; a link leads nowhere."""
    with Loop(metrics="shared", name="good") as loop:
        os.mkfifo(place / "2-pipe.metrics")
        (place / "2-link.metrics").symlink_to(loop._shared.path)
        (place / "2-loop.metrics").symlink_to(place / "2-loop.metrics")
        (place / "2-folder.metrics").mkdir()
        if os.geteuid() == 0:
            foreign = place / "2-foreign.metrics"
            foreign.write_bytes(loop._shared.path.read_bytes())
            os.chown(foreign, 12345, -1)
        assert [one.name for one in shared.loops()] == ["good"]
        (seen,) = shared.loops()
        loop._shared.path.rename(place / "moved")
        os.mkfifo(loop._shared.path)
        assert not seen.alive()
        (place / "moved").rename(loop._shared.path)


def test_nobody_can_truncate_what_is_mapped(place):
    """Neither through the file, nor through the descriptor it names; reader and loop go on."""
    with Loop(metrics="shared", name="whole") as loop:
        (seen,) = shared.loops()
        os.truncate(seen.path, 0)
        for size in (0, 4096, shared.SIZE - 1, shared.SIZE + 1):
            with pytest.raises(PermissionError):
                os.truncate(f"/proc/self/fd/{loop._shared._files.memory.fileno()}", size)
        ran = threading.Event()
        loop.submit(ran.set)
        assert ran.wait(PATIENCE)
        assert seen.snapshot().errors == 0
        assert shared.loops() == []
        assert seen.alive()


def test_the_pages_are_there_before_the_loop_is():
    """So no later moment can find that there is no memory left for one."""
    with shared._make_memory() as memory:
        assert os.fstat(memory.fileno()).st_blocks * 512 >= shared.SIZE


def test_no_room_is_an_error_of_the_constructor(place, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    for name in ("posix_fallocate", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(shared.os, name, full)
            with pytest.raises(OSError, match="No space left"):
                Loop(metrics="shared")
    assert list(place.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(
    object_cache.status.mode != "compiled", reason="as plain Python, a division by what lies there raises"
)
def test_nonsense_is_an_error_of_the_reader(place):
    """Whatever somebody of the same user has written there; the loop goes on."""
    dice = random.Random(1)
    with Loop(metrics="shared", name="scribbled") as loop:
        (seen,) = shared.loops()
        good = np.array(loop._block)
        for fill in (0, -1, 1 << 62, -(1 << 63), None):
            words = len(good)
            loop._block[:] = [dice.getrandbits(63) for _ in range(words)] if fill is None else fill
            record = loop._block.view(layout.BLOCK.dtype)[0]
            record["sequence"] = record["published"] = 0
            with contextlib.suppress(RuntimeError):
                seen.snapshot()
            for _ in range(100):
                loop.submit(int)
            ran = threading.Event()
            loop.submit(ran.set)
            assert ran.wait(PATIENCE)
        loop._block[:] = good


def test_what_a_callback_has_queued_before_it_hangs(place):
    """contract, Metrics: what waits now. Another process sees it, also in a process that is stopped."""
    program = """
import nbloop, sys, threading
loop = nbloop.Loop(metrics="shared", name="hangs")
handle = loop.producer()
inside = threading.Event()
def hang():
    for _ in range(3):
        loop.submit_internal(int)
    for _ in range(4):
        loop.schedule_microtask(int)
    inside.set()
    sys.stdin.read()
loop.start()
for _ in range(500):
    loop.submit(int)
loop.call(int)
loop.submit(hang)
inside.wait()
for _ in range(700):
    loop.submit(int)
for _ in range(77):
    handle.submit(int)
print("made", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout.readline() == "made\n"
            child.send_signal(signal.SIGSTOP)
            (seen,) = shared.loops(child.pid)
            assert dataclasses.astuple(seen.snapshot().queue_current) == (777, 3, 4, 0)
            assert seen.channels() == []
        finally:
            child.kill()


def test_channels_are_read_from_outside(place):
    """With their producers, in the order of their making, as long as they live."""
    with Loop(metrics="shared", name="reads") as loop:
        held, go = threading.Event(), threading.Event()
        first = loop.channel([("x", "f8")], lambda _: None, capacity=8, on_full="drop_new", name="first")
        second = loop.channel([("x", "i4"), ("y", "u2")], lambda _: None, name="zweiter Kanal, " + "ü" * 60)
        producer = first.producer()
        for _ in range(5):
            assert first.put(1.0)
        wait_for(lambda: first.delivered == 5)
        loop.submit(lambda: (held.set(), go.wait(PATIENCE)))
        wait_for(held)
        for n in range(10):
            assert first.put(1.0) is (n < 8)
        second.put(1, 2)
        producer.put(1.0)
        (seen,) = shared.loops()
        mine, found = loop.channels(), seen.channels()
        assert [one.name for one in found] == ["first", mine[1].name.encode()[:63].decode(errors="replace"), "first"]
        for one, other in zip(mine, found, strict=True):
            assert one.delay.count == other.delay.count
            assert dataclasses.replace(one, name="", delay=None) == dataclasses.replace(other, name="", delay=None)
        assert [one.waiting for one in found] == [8, 1, 1]
        assert (found[0].dropped, found[0].delivered, found[0].delay.count) == (2, 5, found[0].batches)
        go.set()
        wait_for(lambda: [one.waiting for one in seen.channels()] == [0, 0, 0])
        del producer
        wait_for(lambda: gc.collect() >= 0 and len(seen.channels()) == 2)
    assert seen.channels() == []


def test_more_handles_than_there_are_places(place):
    """What has no place is not seen, and a place is free again when its handle goes."""
    with Loop(metrics="shared", name="many") as loop:
        (seen,) = shared.loops()
        entrances = loop._block.view(layout.BLOCK.dtype)[0]["entrances"]
        held, go = threading.Event(), threading.Event()
        loop.submit(lambda: (held.set(), go.wait(PATIENCE)))
        wait_for(held)
        handles = [loop.producer() for _ in range(layout.ENTRANCES + 5)]
        channel = loop.channel([("x", "f8")], lambda _: None)
        for handle in handles:
            handle.submit(int)
        assert seen.snapshot().queue_current.ingress == layout.ENTRANCES
        assert seen.channels() == []
        go.set()
        loop.call(int)
        handles.clear()
        del channel
        wait_for(lambda: gc.collect() >= 0 and not entrances.any())
        channel = loop.channel([("x", "f8")], lambda _: None)
        assert [one.name for one in seen.channels()] == [channel.name]


def test_without_permission_the_last_turn_is_read(place, monkeypatch):
    """As where tracing is restricted. `top` says so."""
    from nbloop.cli.top import Looker, unseen

    opens = os.open

    def refuse(path, *rest):
        if str(path).endswith("/mem"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opens(path, *rest)

    with Loop(metrics="shared", name="private") as loop:
        channel = loop.channel([("x", "f8")], lambda _: None)
        (seen,) = shared.loops()
        held, go = threading.Event(), threading.Event()
        loop.submit(lambda: (held.set(), go.wait(PATIENCE)))
        wait_for(held)
        for _ in range(7):
            loop.submit(int)
        (look,) = Looker(None).look()
        assert (look.now.queue_current.ingress, unseen([look])) == (7, "")
        assert [one.name for one in look.channels] == [channel.name]
        monkeypatch.setattr(shared.os, "open", refuse)
        with pytest.raises(PermissionError):
            seen.channels()
        (look,) = Looker(None).look()
        assert look.now.queue_current.ingress == 1  # the one that hangs, which waited at the turn's start
        assert str(os.getpid()) in unseen([look])
        assert look.facts()["channels"] is None
        assert list(look.channel_rows()) == []
        go.set()
        wait_for(lambda: loop.state is LoopState.SLEEPING)
        (look,) = Looker(None).look()
        assert look.now.queue_current == Queues(0, 0, 0, 0)  # at the last turn's end


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_gives_no_place_back(place):
    """Its copies of handles and channels end with it, those of the parent do not."""
    with Loop(metrics="shared", name="parent") as loop:
        things = [loop.producer(), loop.channel([("x", "f8")], lambda _: None)]
        record = loop._block.view(layout.BLOCK.dtype)[0]
        before = (int(record["state"]), record["entrances"].tolist())
        assert before[0]
        assert len(set(before[1])) == 3
        child = os.fork()
        if child == 0:
            things.clear()
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (int(record["state"]), record["entrances"].tolist()) == before


def test_a_loop_that_has_gone_is_not_followed(place):
    """Its words are somebody else's memory then."""
    loop = Loop(metrics="shared", name="gone")
    loop.submit(int)
    (seen,) = shared.loops()
    assert seen.snapshot().queue_current.ingress == 1
    loop.close()
    record = seen._words.view(layout.BLOCK.dtype)[0]
    assert record["state"]
    del loop
    wait_for(lambda: gc.collect() >= 0 and record["state"] == 0)
    assert seen.snapshot().queue_current.ingress == 0
    assert seen.channels() == []


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
loop._shared._files.file.close()  # as if it was killed
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
