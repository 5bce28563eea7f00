"""What every thread executes at this moment, even on a free-threaded Python.

Problem: `sys._current_frames` gives each thread's innermost frame; the callers are found by following `f_back`, while
the thread runs on. Without a GIL that reads frames as they are popped and reused: sampling two threads that constantly
call and return crashed CPython 3.13t within two minutes. Idea: follow the callers while the world is stopped. The only
public function that stops the world around a callback is `PyUnstable_GC_VisitObjects`; our callback is a kernel
(`nbloop.kernels.observe.frames`), which ends the visit at its first object. Capturing 7 threads takes 0.1 ms, and they
stand still for part of it.

It loses when a thread is in a long C call that neither returns to bytecode nor detaches: stopping the world waits for
it, and so do all other threads, as in any garbage collection.
"""

from __future__ import annotations

import ctypes
import sys
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

from ..kernels.base.interpreter import function
from ..kernels.observe import frames

DEPTH = 500  # calls that are followed in each thread, at least
AGAIN = 5  # attempts, if a generator has just yielded
_SUSPENDS = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR

# `function` leaves the thread attached during the call, as these functions require.
_visit = function("PyUnstable_GC_VisitObjects", None, ctypes.c_void_p, ctypes.c_void_p)
_release = function("Py_DecRef", None, ctypes.c_void_p)


class Call(NamedTuple):
    """One call on a stack: its code, and the line that it executes."""

    code: CodeType
    line: int

    def __str__(self) -> str:
        return f'File "{self.code.co_filename}", line {self.line}, in {self.code.co_qualname}'


type Stack = tuple[Call, ...]
"""The calls of a thread, innermost first."""


def capture(ask: tuple[CodeType, str] | None = None) -> dict[int, tuple[Stack, list[object]]]:
    """Each thread's stack, by its identifier, including the caller's own; all stacks belong to one moment.

    `ask` is a code object and the name of one of its arguments, which the code never deletes: the argument's values in
    the calls of that code come with the stack, innermost first. ValueError if the code has no such argument. Stacks of
    more than some 500 calls lose the outermost ones. Any thread; not a signal handler. O(calls); see above for what it
    may wait for.
    """
    if ask is not None and ask[1] not in ask[0].co_varnames[: ask[0].co_argcount]:
        raise ValueError(f"{ask[1]!r} is not an argument of {ask[0].co_qualname}")
    for _ in range(AGAIN):
        found = _look(ask)
        # A generator that was innermost when the frames were taken, and yielded before the world stopped, has lost its
        # callers. Otherwise a thread's outermost call is never a generator's.
        if not any(calls and calls[-1].code.co_flags & _SUSPENDS for calls, _ in found.values()):
            break
    return found


def _look(ask: tuple[CodeType, str] | None) -> dict[int, tuple[Stack, list[object]]]:
    innermost = sys._current_frames()
    words = frames.FRAMES + len(innermost) * (2 + (DEPTH + 1) * frames.ROW)
    table = np.zeros(words, np.int64)
    table[frames.GIVEN], table[frames.WORDS] = len(innermost), words
    if ask is not None:
        table[frames.ASKED_CODE], table[frames.ASKED_NAME] = id(ask[0]), id(ask[1])
    table[frames.FRAMES : frames.FRAMES + len(innermost)] = [id(frame) for frame in innermost.values()]
    if frames.frames_visit.address:
        _visit(frames.frames_visit.address, table.ctypes.data)
    else:  # un-jitted kernels, for debuggers: nothing stops the world, and nobody profiles that
        frames.frames_visit.function(0, table.ctypes.data)
    rows = iter(table[frames.FRAMES + len(innermost) : table[frames.USED]].tolist())
    found: dict[int, tuple[Stack, list[object]]] = {}
    for thread in innermost:
        calls: list[Call] = []
        answers: list[object] = []
        while frame := next(rows):
            code, line, variable = next(rows), next(rows), next(rows)
            _release(frame)
            if code:
                calls.append(Call(_owned(code), line))
            if variable:
                answers.append(_owned(variable))
        found[thread] = tuple(calls), answers
    innermost.clear()  # this call's own frame is among them, and would keep them all until a collection
    return found


def _owned(address: int) -> Any:
    """The object behind an owned reference, which is exchanged for the result's own."""
    value = ctypes.py_object.from_buffer(ctypes.c_void_p(address)).value
    _release(address)
    return value
