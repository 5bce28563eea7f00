"""Blocked loops are reported while they are blocked: once, with the place, and with where the callback came from."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from nbloop import Loop


class Hang:
    """A callback that runs until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        self.let_go.wait(30)


@pytest.fixture
def hang() -> Any:
    one = Hang()
    yield one
    one.let_go.set()


def test_told_while_blocked_once_and_of_the_next_again(make_loop: Callable[..., Loop], wait_for: Any) -> None:
    told: list[Any] = []
    inside: list[Any] = []
    hangs = [Hang(), Hang()]
    loop = make_loop(name="held")

    def on_blocked(blockage: Any) -> None:
        inside.append((blockage.look(), [one.let_go.is_set() for one in hangs]))
        told.append(blockage)

    loop.watch(0.02, on_blocked)
    thread = loop.start()
    loop.submit(hangs[0])
    wait_for(lambda: told)
    looks = threading.Event()
    threading.Timer(0.1, looks.set).start()  # five thresholds: a second report would have come
    wait_for(looks)
    assert len(told) == 1
    assert told[0].loop == "held"
    assert told[0].thread == thread.ident
    assert told[0].blocked_for >= 0.02
    seen, state = inside[0]
    assert state == [False, False]
    assert seen.callback.code is Hang.__call__.__code__
    assert seen.scheduled is None
    assert [call.code.co_name for call in seen.stack][-1] == "_bootstrap"
    hangs[0].let_go.set()
    loop.submit(hangs[1])
    wait_for(lambda: len(told) == 2)
    hangs[1].let_go.set()


def test_debug_mode_says_where_it_was_scheduled(make_loop: Callable[..., Loop], hang: Hang, wait_for: Any) -> None:
    told: list[Any] = []
    loop = make_loop(debug=True)
    loop.watch(0.02, lambda blockage: told.append(blockage.look()))
    loop.start()

    def who_submits() -> None:
        loop.submit(hang)

    who_submits()
    wait_for(lambda: told)
    assert told[0].scheduled is hang
    assert told[0].callback.code is Hang.__call__.__code__
    assert told[0].scheduled_at[-1].name == "who_submits"


def test_idle_busy_and_polling_loops_are_not_blocked(
    make_loop: Callable[..., Loop], asleep: Any, pair: Any, wait_for: Any
) -> None:
    told: list[Any] = []
    loop = make_loop()
    dog = loop.watch(0.02, told.append)
    end = time.monotonic() + 0.1

    def again() -> None:
        if time.monotonic() < end:
            loop.submit(again)

    loop.start()
    asleep(loop)
    loop.submit(again)
    wait_for(lambda: time.monotonic() > end)
    asleep(loop)
    one, _other = pair()
    loop.register_fd(one.fileno(), 1, lambda fd, events: None)
    asleep(loop)
    end = time.monotonic() + 0.1
    wait_for(lambda: time.monotonic() > end)
    loop.unregister_fd(one.fileno())
    dog.stop()
    assert told == []


def test_by_default_the_log_has_the_report_and_the_stack(
    make_loop: Callable[..., Loop], hang: Hang, wait_for: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "nbloop"):
        loop = make_loop(name="slow", debug=True)
        loop.watch(0.02)
        loop.start()
        loop.submit(hang)
        wait_for(lambda: len(caplog.messages) == 2)
    first, second = caplog.messages
    assert first.startswith("slow has been in one callback for 0.0")
    assert "in Hang.__call__" in second
    assert "scheduled at" in second
    assert "test_by_default" in second


def test_a_handler_that_raises_is_logged_and_watching_goes_on(
    make_loop: Callable[..., Loop], wait_for: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []

    def bad(blockage: Any) -> None:
        calls.append(blockage)
        raise LookupError("of the handler")

    loop = make_loop()
    loop.watch(0.02, bad)
    loop.start()
    for n in (1, 2):
        hang = Hang()
        loop.submit(hang)
        wait_for(lambda n=n: len(calls) == n)
        hang.let_go.set()
    wait_for(lambda: sum("on_blocked" in message for message in caplog.messages) == 2)


def test_its_thread_ends_with_the_loop_with_stop_and_does_not_keep_the_loop(wait_for: Any) -> None:
    def watching() -> int:
        return sum("watched-watchdog" in thread.name for thread in threading.enumerate())

    loop = Loop(name="watched")
    dog = loop.watch(0.004)
    assert watching() == 1
    dog.stop()
    assert watching() == 0
    loop.watch(0.004)
    loop.close()
    wait_for(lambda: watching() == 0)
    loop = Loop(name="watched")
    loop.watch(0.004)
    del loop
    wait_for(lambda: watching() == 0)


@pytest.mark.parametrize(
    ("threshold", "handler", "error", "says"),
    [
        ("1", None, TypeError, "threshold must be a number"),
        (True, None, TypeError, "threshold must be a number"),
        (0, None, ValueError, "from 0.001"),
        (float("nan"), None, ValueError, "from 0.001"),
        (1, 3, TypeError, "on_blocked must be callable"),
    ],
)
def test_bad_arguments(loop: Loop, threshold: Any, handler: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        loop.watch(threshold, handler)


def test_its_thread_ends_with_the_loop(make_loop: Callable[..., Loop], wait_for: Any) -> None:
    """However long the threshold; also of a watchdog that comes when the loop has ended."""
    loop = make_loop()
    before = loop.watch(1e6)
    loop.start()
    loop.shutdown()
    after = loop.watch(1e6)
    for watchdog in (before, after):
        wait_for(lambda watchdog=watchdog: not watchdog._thread.is_alive())


def test_a_handler_that_refers_to_its_loop_does_not_keep_it(wait_for: Any) -> None:
    loop = Loop()
    loop.watch(1e6, lambda blockage, loop=loop: loop.stop())
    thread = next(reversed(loop._parts))._thread
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None
    wait_for(lambda: not thread.is_alive())
