"""The calls of threads, read while the world is stopped (`nbloop.observe.stacks` explains why, and calls this).

A visitor for `PyUnstable_GC_VisitObjects`, which stops the world around it and ends the visit when it returns 0. It
must be compiled: in a stopped world, bytecode would check whether it should stop itself, and wait for ever. It runs no
Python code and waits for nothing. It makes frame objects but releases none, because releasing the last reference may
run any code; the caller releases them when the world runs again.

The table is an array of words: number of frames given, words available, words used, the addresses of a code object and
of the name of one of its arguments to look up (or 0), then the frames; after them, for each frame: rows of frame, code,
line, variable (owned references; 0: none), and a 0.
"""

from __future__ import annotations

from ..base.atomics import get, put
from ..base.capi import Py_IncRef, PyFrame_GetBack, PyFrame_GetCode, PyFrame_GetLineNumber, PyFrame_GetVar
from ..base.kernel import ONE, kernel

GIVEN, WORDS, USED, ASKED_CODE, ASKED_NAME, FRAMES = 0, 1, 2, 3, 4, 5
ROW = 4


@kernel(ONE)
def frames_visit(_object: int, table: int) -> int:
    """Follow each given frame to its callers, while there is room. The world is stopped."""
    given = get(table + 8 * GIVEN)
    room = (get(table + 8 * WORDS) - FRAMES - given - given) // given  # for each frame
    at = table + 8 * (FRAMES + given)
    for i in range(given):
        frame = get(table + 8 * (FRAMES + i))
        Py_IncRef(frame)
        rows = 0
        while frame != 0:
            if (rows + 1) * ROW > room:
                put(at, frame)  # only the frame of this row is used: the caller must release it
                put(at + 8, 0)
                at += 8 * ROW
                break
            code = PyFrame_GetCode(frame)
            put(at, frame)
            put(at + 8, code)
            put(at + 16, PyFrame_GetLineNumber(frame))
            put(at + 24, 0)
            if code == get(table + 8 * ASKED_CODE):
                # The variable is an argument, so it exists: an error would be formatted, which may start a collection.
                put(at + 24, PyFrame_GetVar(frame, get(table + 8 * ASKED_NAME)))
            at += 8 * ROW
            rows += 1
            frame = PyFrame_GetBack(frame)
        put(at, 0)
        at += 8
    put(table + 8 * USED, (at - table) // 8)
    return 0
