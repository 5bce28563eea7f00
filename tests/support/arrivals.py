"""Signals that arrive at every instruction of a call, one after the other.

Problem: a signal handler runs between two instructions, and may raise there. Which two depends on the moment, so a
test that sends signals at random finds such a fault once in many runs, and never shows that there is none. Idea:
`sys.monitoring` reports every instruction before it is executed, so a signal can be made to arrive exactly there.
It arrives as a real one does: the word that the interpreter checks is set, and the handler runs, and raises, where
the interpreter checks it: at the entry of a function, at a jump backwards and at the end of a call. Of several
instructions of one function after which it looks for the first time at the same place, one is enough;
`test_arrivals.py` shows that the others reach no other place.

What is interrupted is all Python code that the call executes on the main thread, the standard library's included.
Meanwhile the collector begins nothing by itself: a finaliser in the middle of the call would be another place each
time. Only the code that holds the place is instrumented, so the threads of a loop keep their speed.
"""

from __future__ import annotations

import _thread
import asyncio
import dis
import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import pytest

from nbloop.kernels.build import object_cache

TOOL = 4
INSTRUCTION = sys.monitoring.events.INSTRUCTION
TESTS = os.path.dirname(os.path.dirname(__file__)) + os.sep
# Since CPython 3.14 each of asyncio's loops is made with `os.close(os.pidfd_open(pid))`: an exception between these two
# calls leaves a descriptor, on asyncio's own loop, too.
SPARED: set[CodeType] = {asyncio.unix_events.can_use_pidfd.__code__} if sys.platform != "win32" else set()
LOOKS = ("JUMP_BACKWARD", "CALL", "RETURN", "YIELD")  # how the names begin of what a look follows, or may follow

type Place = tuple[CodeType, int, int]  # an instruction, and the how manieth time that it is executed


class _Signal(int):
    """A signal's number. `arrive` is an attribute and not a method, as the interpreter would look at the end of a
    call.
    """

    arrive = property(_thread.interrupt_main)


class Arrivals:
    """Lists the instructions of a call, and makes a signal arrive at the chosen one."""

    def __init__(self) -> None:
        self.arrived = False
        self._at: Place | None = None
        self._left = 0
        self._signal = _Signal(signal.SIGINT)
        self._main = _thread.get_ident()
        self._seen: list[tuple[CodeType, int]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For as long as this lasts `during` works."""
        sys.monitoring.use_tool_id(TOOL, "nbloop interrupts")
        try:
            yield
        finally:
            sys.monitoring.free_tool_id(TOOL)

    def during(self, call: Callable[[], object], at: Place | None, number: int) -> None:
        """Call it; signal `number` arrives at that place. None: nowhere, and `places` are this call's."""
        self.arrived, self._at, self._signal = False, at, _Signal(number)
        if at is None:
            self._seen.clear()
        else:
            self._left = at[2]
        collects = gc.isenabled()
        gc.disable()
        self._instrument(INSTRUCTION)
        self._listen(self._see if at is None else self._meet)
        try:
            call()
        finally:
            self._listen(None)
            self._instrument(0)
            if collects:
                gc.enable()

    def _instrument(self, events: int) -> None:
        if self._at is None:
            sys.monitoring.set_events(TOOL, events)
        else:
            sys.monitoring.set_local_events(TOOL, self._at[0], events)

    def places(self, all_of_them: bool = False) -> list[Place]:
        """Of the last call without an arrival: the instructions that the interpreter's next look follows each at a
        place of its own, or all.
        """
        times: dict[tuple[CodeType, int], int] = {}
        found = []
        for (code, offset), (next_code, _) in zip(self._seen, [*self._seen[1:], (None, 0)], strict=True):
            times[code, offset] = times.get((code, offset), 0) + 1
            if all_of_them or code is not next_code or _name(code, offset).startswith(LOOKS):
                found.append((code, offset, times[code, offset]))
        return found

    def _listen(self, listener: Callable[[CodeType, int], Any] | None) -> None:
        sys.monitoring.register_callback(TOOL, INSTRUCTION, listener)

    def _see(self, code: CodeType, offset: int) -> None:
        if _thread.get_ident() == self._main and not code.co_filename.startswith(TESTS) and code not in SPARED:
            self._seen.append((code, offset))

    def _meet(self, code: CodeType, offset: int) -> None:
        assert self._at is not None
        if code is not self._at[0] or offset != self._at[1] or _thread.get_ident() != self._main:
            return
        self._left -= 1
        if self._left == 0:
            self.arrived = True
            self._listen(None)  # its own entry would be where the interpreter looks
            self._signal.arrive  # noqa: B018


@functools.cache
def _instructions(code: CodeType) -> bytes:
    return code.co_code


def _name(code: CodeType, offset: int) -> str:
    return dis.opname[_instructions(code)[offset]]


def described(place: Place | None) -> str:
    """Where that is, for a message."""
    if place is None:
        return "nowhere"
    code, offset, times = place
    line = next((line for start, end, line in code.co_lines() if start <= offset < end), None)
    return f"{code.co_qualname} ({code.co_filename}:{line}), {_name(code, offset)}, time {times}"


class Interruption(Exception):
    """What the tests' own signal handler raises."""


def interrupt(_number: int, _frame: object) -> None:
    """A signal handler that raises."""
    raise Interruption


@contextmanager
def handled(number: int, handler: Callable[[int, Any], object]) -> Iterator[None]:
    """A signal handler for a while."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


# For tests of calls whose kernels would be Python code otherwise, in which a signal arrives, too.
compiled_only = pytest.mark.skipif(
    object_cache.status.mode != "compiled", reason="a signal would arrive in the kernels' own code"
)


def at_each_place(attempt: Callable[[Arrivals, Place | None], object], least: int = 20) -> None:
    """Call ``attempt(arrivals, at)``, which calls ``arrivals.during(call, at, number)``, for each place of its call."""
    arrivals = Arrivals()
    with arrivals.watching():
        attempt(arrivals, None)
        attempt(arrivals, None)
        places = arrivals.places()
        for at in places:
            attempt(arrivals, at)
    assert len(places) > least
