"""What holds the memory: the allocations `tracemalloc` traced, as a profile that ``go tool pprof`` opens.

tracemalloc knows the file and line of each live allocation, numpy's arrays included, but no function names. Idea: take
the innermost function, among those found in modules and classes, whose lines contain that line. A line outside all of
them, as in a module's body, gets the file's name. (Parsing the sources instead takes a minute in a traced process.)

Tracing slows code that allocates by a third to a half, so it is opt-in: `tracemalloc.start`, or
``python -X tracemalloc=25``. Nothing here starts it.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from pathlib import PurePath
from types import CodeType, FunctionType

from . import pprof


def heap() -> bytes:
    """What was allocated since tracing began and is still alive: values inuse_objects and inuse_space (the default).

    Stacks are as deep as the argument of `tracemalloc.start` (1 by default: the line that allocates). Any thread.
    O(what is traced). RuntimeError if tracemalloc is not tracing.

    >>> tracemalloc.start()
    >>> heap()[:2] == b"\\x1f\\x8b"  # gzip
    True
    >>> tracemalloc.stop()
    """
    if not tracemalloc.is_tracing():
        raise RuntimeError("tracemalloc is not tracing: call tracemalloc.start(25), or run python -X tracemalloc=25")
    now = time.time_ns()
    # "traceback" groups the traces by their raw frames, without making an object for each
    held = tracemalloc.take_snapshot().statistics("traceback")
    places = _Places(_functions({frame.filename for one in held for frame in one.traceback}))
    return pprof.encode(
        (([places[frame] for frame in reversed(one.traceback)], (one.count, one.size), {}) for one in held),
        types=[("inuse_objects", "count"), ("inuse_space", "bytes")],
        default="inuse_space",
        time_ns=now,
        duration_ns=0,
        period=("space", "bytes", 1),
    )


class _Places(dict[tracemalloc.Frame, pprof.Place]):
    """Maps a line to itself with the innermost function that contains it."""

    def __init__(self, functions: dict[str, list[tuple[int, int, str]]]) -> None:
        super().__init__()
        self._functions = functions

    def __missing__(self, frame: tracemalloc.Frame) -> pprof.Place:
        start, name = 0, PurePath(frame.filename).name
        for first, last, inner in self._functions[frame.filename]:
            if first <= frame.lineno <= last:
                start, name = first, inner
        self[frame] = pprof.Place(name, frame.filename, start, frame.lineno)
        return self[frame]


def _functions(files: set[str]) -> dict[str, list[tuple[int, int, str]]]:
    """(first line, last line, qualified name) of each function in these files that a module or class holds, by file,
    outer functions first.
    """
    found: dict[str, list[tuple[int, int, str]]] = {file: [] for file in files}
    waiting: list[object] = [thing for module in list(sys.modules.values()) for thing in list(vars(module).values())]
    seen = set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, CodeType):
            if thing.co_filename in files:
                last = max((line for _, _, line in thing.co_lines() if line is not None), default=0)
                found[thing.co_filename].append((thing.co_firstlineno, last, thing.co_qualname))
                waiting += thing.co_consts
        elif isinstance(thing, FunctionType):
            waiting += [thing.__code__, thing.__dict__.get("__wrapped__")]
        elif isinstance(thing, type):
            waiting += vars(thing).values()
        elif isinstance(thing, classmethod | staticmethod):
            waiting.append(thing.__func__)
        elif isinstance(thing, property):
            waiting += [thing.fget, thing.fset, thing.fdel]
    for functions in found.values():
        functions.sort(key=lambda one: (one[0], -one[1]))
    return found
