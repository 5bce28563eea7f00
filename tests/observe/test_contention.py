"""The figures of contention, against sleeps, wakes and waits that the tests cause themselves."""

from __future__ import annotations

import ast
import dataclasses
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbloop
from nbloop import FastPathMode, ForkedLoopError, Loop
from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import fetch_add, store
from nbloop.kernels.base.capi import Py_IncRef
from nbloop.kernels.ingress import ticket_queue
from nbloop.lock import CountingLock
from nbloop.observe import contention as module
from nbloop.observe.contention import Contention, contention, totals
from nbloop.options import usable_cores
from tests.support.waiting import PATIENCE, together, wait_for

type Asleep = Callable[[Loop], None]

pytestmark = pytest.mark.parallel_threads(1)


@pytest.mark.parametrize("park", ["", "lock"])
def test_sleeps_and_wakes(
    make_loop: Any, mode: FastPathMode, asleep: Asleep, monkeypatch: pytest.MonkeyPatch, park: str
) -> None:
    """As many of each as tasks that were handed to a loop that slept, one by one."""
    monkeypatch.setenv("NBLOOP_PARK", park)
    loop = make_loop(fast_path_mode=mode)
    with loop:
        wait_for(lambda: totals(loop).parks == 1)
        before = totals(loop)
        for done in range(1, 21):
            asleep(loop)
            loop.submit(int)
            wait_for(lambda done=done: totals(loop).parks == 1 + done)
        seen = totals(loop) - before
    assert (seen.wakes_sent, seen.wakes_elided, seen.parks) == (20, 0, 20)
    assert seen.retries.total == seen.stalls == seen.lock_waits == 0
    assert 0 < seen.parked_time <= seen.seconds * 1.000001  # the last digit of a float


@pytest.mark.parametrize("through", ["submit", "handle", "microtask"])
def test_wakes_that_were_not_needed(make_loop: Any, asleep: Asleep, through: str) -> None:
    """The loop is in a callback while 100 come; and what is not from outside is not counted."""
    loop = make_loop()
    inside, go, over = threading.Event(), threading.Event(), threading.Event()
    with loop:
        asleep(loop)
        before = totals(loop)
        loop.submit(lambda: (inside.set(), go.wait(PATIENCE)))
        wait_for(inside)
        send = {
            "submit": loop.submit,
            "handle": loop.producer().submit,
            "microtask": loop.schedule_microtask,
        }[through]
        for _ in range(99):
            send(int)
        send(over.set)
        assert totals(loop).wakes_sent - before.wakes_sent == 1
        go.set()
        wait_for(over)
        asleep(loop)
        seen = totals(loop) - before
    assert (seen.wakes_sent, seen.wakes_elided) == (1, 100)


@pytest.mark.parametrize("park", ["", "lock"])
def test_time_asleep(
    make_loop: Any, mode: FastPathMode, asleep: Asleep, monkeypatch: pytest.MonkeyPatch, park: str
) -> None:
    """All of the time of a loop with nothing to do, though its sleep has no end yet, and none while a callback runs."""
    monkeypatch.setenv("NBLOOP_PARK", park)
    loop = make_loop(fast_path_mode=mode)
    inside, go = threading.Event(), threading.Event()
    with loop:
        wait_for(lambda: totals(loop).parks == 1)
        idle = contention(loop, 0.1)
        assert idle.seconds >= 0.1
        assert idle.parked_time == pytest.approx(idle.seconds, abs=1e-3)
        assert idle.per_second()["parked_time"] == pytest.approx(1.0, abs=0.01)
        loop.submit(lambda: (inside.set(), go.wait(PATIENCE)))
        wait_for(inside)
        busy = contention(loop, 0.05)
        assert (busy.parked_time, busy.parks, busy.wakes_sent) == (0.0, 0, 0)
        go.set()
    ended = totals(loop)
    assert idle.parked_time <= ended.parked_time <= ended.seconds - 0.05
    assert totals(loop).parked_time == ended.parked_time


def test_sleeps_of_known_length(make_loop: Any) -> None:
    """Between timers."""
    loop = make_loop(auto_exit=True)
    for i in range(1, 6):
        loop.schedule_timer(i * 0.02, int)
    before = totals(loop)
    loop.run()
    seen = totals(loop) - before
    assert seen.parks + seen.spins_lost >= 5
    assert 0.09 <= seen.parked_time <= seen.seconds * 1.000001
    assert (seen.wakes_sent, seen.wakes_elided) == (0, 5)  # the five that armed them


def test_a_producer_between_ticket_and_store(make_loop: Any) -> None:
    """A ticket is drawn as `submit` does it, and the word stored a while later: the loop waits, and says how long."""
    loop = make_loop()
    ran = threading.Event()
    call = ran.set
    queue = loop._state.ctypes.data + layout.STATE.EXTERNAL
    with loop:
        wait_for(lambda: totals(loop).parks == 1)
        ticket = fetch_add(queue + layout.QUEUE.TAIL, 1)
        begun = time.perf_counter()
        loop.wake()
        wait_for(lambda: totals(loop).stalls >= 5)
        Py_IncRef(id(call))
        chunk = ticket_queue.queue_segment(queue, ticket)
        store(ticket_queue.queue_cell(chunk, ticket, 7), id(call))
        wait_for(ran)
        took = time.perf_counter() - begun
    seen = totals(loop)
    assert seen.stalls * 50e-6 * 0.9 <= seen.stalled_time <= took


def test_waits_for_the_lock(loop: Loop) -> None:
    """One that must wait, and how long; taking it again by the same thread is none."""
    with loop._lock, loop._lock:
        waiter = threading.Thread(target=loop.producer)
        waiter.start()
        wait_for(lambda: (frame := sys._current_frames().get(waiter.ident or 0)) and "lock.py" in str(frame))
        begun = time.perf_counter()
        time.sleep(0.02)  # how long the wait is, at least
        least = time.perf_counter() - begun
        assert totals(loop).lock_waits == 0
    waiter.join(PATIENCE)
    seen = totals(loop)
    assert seen.lock_waits == 1
    assert least <= seen.lock_time <= least + time.perf_counter() - begun
    loop.producer()
    assert totals(loop).lock_waits == 1


class Interrupted(CountingLock):
    """A signal handler raises when the lock was just taken, or just before."""

    after = True

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self.after:
            super().acquire(blocking, timeout)
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_signal_leaves_the_lock_as_it_was(after: bool, depth: int) -> None:
    lock = Interrupted()
    lock.after = after
    if depth:
        CountingLock.acquire(lock)
    with pytest.raises(KeyboardInterrupt), lock:
        pytest.fail("not reached")
    assert lock._recursion_count() == depth
    if depth:
        lock.release()
    assert together(1, lambda _: CountingLock.acquire(lock, False)) == [True]


BUILT_IN = {"Lock", "RLock", "allocate_lock"}
# Twins of instructions, which no user runs; and a lock of threads that no signal handler interrupts.
MAY_ENTER_BUILT_IN = {"kernels/base/atomics.py", "cli/demo.py"}


def entered_built_ins(source: str) -> list[str]:
    """The variables and attributes that are assigned a built-in lock, and that a `with` enters."""

    def name(node: ast.expr) -> str:
        return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""

    made, entered = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and name(node.value.func) in BUILT_IN:
            made.update(map(name, node.targets))
        elif isinstance(node, ast.With):
            entered.update(name(item.context_expr) for item in node.items)
    return sorted(made & entered)


def test_no_block_enters_a_built_in_lock() -> None:
    """CPython 3.14 looks for signals between a built-in lock's `__enter__` and the block: the lock would stay taken."""
    package = Path(nbloop.__file__).parent
    found = {
        str(path.relative_to(package)): names
        for path in package.rglob("*.py")
        if (names := entered_built_ins(path.read_text(encoding="utf-8")))
    }
    assert set(found) == MAY_ENTER_BUILT_IN


def test_a_lock_of_a_module_is_free_in_a_forked_child() -> None:
    for path in Path(nbloop.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and (made := ast.unparse(node.value)).endswith("Lock()"):
                assert made in ("ModuleLock()", "threading.RLock()"), path


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="with the GIL no two threads swap at once")
@pytest.mark.skipif(usable_cores() < 2, reason="one core: no two threads swap at once")
def test_compiled_kernels_count_repeated_swaps(make_loop: Any) -> None:
    """With a limit a submit is a swap, and threads that submit at once spoil each other's."""
    loop = make_loop(ingress_limit=1_000_000)
    with loop:
        deadline = time.monotonic() + PATIENCE
        while not totals(loop).retries.submit:
            assert time.monotonic() < deadline, "no two threads have met"
            together(4, lambda _: [loop.submit(int) for _ in range(20_000)])
        seen = totals(loop).retries
    assert seen.submit == seen.total - seen.chunks - seen.producers - seen.remote - seen.slots > 0
    assert seen.remote == seen.producers == seen.slots == 0


def test_rates_and_differences() -> None:
    retries = module.Retries(1, 2, 3, 4, 5)
    seen = Contention(2.0, 10, 20, 30, 1.0, 0, 0, 0, 0.0, 4, 0.5, retries)
    assert retries.total == 15
    assert seen.per_second() == {
        "wakes_sent": 5.0,
        "wakes_elided": 10.0,
        "parks": 15.0,
        "parked_time": 0.5,
        "spins_won": 0.0,
        "spins_lost": 0.0,
        "stalls": 0.0,
        "stalled_time": 0.0,
        "lock_waits": 2.0,
        "lock_time": 0.25,
        "retries": 7.5,
    }
    nothing = seen - seen
    assert nothing.retries.total == nothing.seconds == nothing.wakes_sent == 0
    assert nothing.per_second() == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.parks = 1  # type: ignore[misc]


def test_it_is_detached(loop: Loop, turns: Any) -> None:
    seen = totals(loop)
    loop.submit(int)
    turns(loop)
    assert seen.wakes_elided == 0
    assert totals(loop).wakes_elided == 1


@pytest.mark.parametrize(
    ("seconds", "error"), [("1", TypeError), (True, TypeError), (-1, ValueError), (float("nan"), ValueError)]
)
def test_bad_seconds(loop: Loop, seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="seconds must be"):
        contention(loop, seconds)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_has_none(loop: Loop) -> None:
    child = os.fork()
    if child == 0:
        try:
            totals(loop)
        except ForkedLoopError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
