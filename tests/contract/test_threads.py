"""`nbloop.threads`: what is done on another thread is done when the caller goes on, also by an exception."""

from __future__ import annotations

import _thread
import contextvars
import signal
import threading

import pytest

from nbloop.threads import aside
from tests.support.waiting import PATIENCE


def test_an_exception_leaves_when_the_call_has_ended():
    """contract, Interruptions: a close that is called again relies on it."""
    arrived, left, ended = threading.Event(), threading.Event(), []

    def handler(_number, _frame):
        arrived.set()
        raise KeyboardInterrupt

    def call():
        _thread.interrupt_main(signal.SIGINT)
        assert arrived.wait(PATIENCE)
        ended.append(left.wait(0.1))  # long enough for a caller that does not wait

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            aside(call)
        left.set()
        assert ended == [False]
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_the_call_raises_is_raised():
    """Its exception, not one of the helper thread."""
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)


def test_a_call_that_finds_no_thread(monkeypatch):
    """RuntimeError, and nothing waits."""

    def none(*_args):
        raise RuntimeError("can't start new thread")

    called = []
    monkeypatch.setattr(_thread, "start_new_thread", none)
    with pytest.raises(RuntimeError, match="new thread"):
        aside(lambda: called.append(True))
    assert called == []


def test_the_call_has_the_callers_context():
    """As `asyncio.to_thread` has it; and it is on another thread."""
    variable = contextvars.ContextVar("variable", default="another")
    variable.set("the caller's")
    seen = []
    aside(lambda: seen.append((variable.get(), threading.get_ident())))
    assert seen[0][0] == "the caller's"
    assert seen[0][1] != threading.get_ident()
