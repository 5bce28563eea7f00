"""The calls of threads, read while the world is stopped (`nbloop.observe.stacks` says why, and how it gets here).

A visitor for `PyUnstable_GC_VisitObjects`, which stops the world around it and ends its visit when 0 is returned. It
has to be compiled: bytecode, in a stopped world, would look whether it is to stop itself, and wait for ever. It runs no
Python code and waits for nobody; it makes frame objects, releases none, and keeps a reference to each, because the last
one may run any code: who asked gives them back when the world runs again.

The table, an array of words: frames given, words that there are, words used, address of a code and of the name of
an argument of its that is asked for (or 0), then the frames, and behind them for each: rows of frame, code, line,
variable (owned references; 0: none), and a 0.
"""

from __future__ import annotations

from ..base.atomics import get, put
from ..base.capi import Py_IncRef, PyFrame_GetBack, PyFrame_GetCode, PyFrame_GetLineNumber, PyFrame_GetVar
from ..base.kernel import ONE, kernel

GIVEN, WORDS, USED, ASKED_CODE, ASKED_NAME, FRAMES = 0, 1, 2, 3, 4, 5
ROW = 4


@kernel(ONE)
def frames_visit(_object: int, table: int) -> int:
    """Follow each given frame to its callers, as long as there is room. The world is stopped."""
    given = get(table + 8 * GIVEN)
    room = (get(table + 8 * WORDS) - FRAMES - given - given) // given  # of each
    at = table + 8 * (FRAMES + given)
    for i in range(given):
        frame = get(table + 8 * (FRAMES + i))
        Py_IncRef(frame)
        rows = 0
        while frame != 0:
            if (rows + 1) * ROW > room:
                put(at, frame)  # a row of which only the frame is of use: it has to be given back
                put(at + 8, 0)
                at += 8 * ROW
                break
            code = PyFrame_GetCode(frame)
            put(at, frame)
            put(at + 8, code)
            put(at + 16, PyFrame_GetLineNumber(frame))
            put(at + 24, 0)
            if code == get(table + 8 * ASKED_CODE):
                # An argument, which is always there: an error would be formatted, and that may begin a collection
                put(at + 24, PyFrame_GetVar(frame, get(table + 8 * ASKED_NAME)))
            at += 8 * ROW
            rows += 1
            frame = PyFrame_GetBack(frame)
        put(at, 0)
        at += 8
    put(table + 8 * USED, (at - table) // 8)
    return 0
