"""What a loop did last: its flight recorder, readable at any time, and written to a file when something goes wrong.

A reader copies the complete entries with a kernel (`kernels/observe/event_ring.py`) and does everything else on its
copy; the loop does not wait, and need not be alive. With the GIL, a callback that hangs in C code without releasing it
blocks every other thread, hence the reader; on a free-threaded build it does not.

>>> import nbloop
>>> loop = nbloop.Loop(recorder=1024, auto_exit=True)
>>> loop.submit(len, "four")
>>> loop.run()
>>> [(event.kind, event.name) for event in loop.recorder.events() if event.kind in ("submit", "task")]
[('submit', None), ('task', 'len')]
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import hooks, signals
from ..errors import LoopTerminatedError
from ..kernels.base import layout
from ..kernels.calls.captured import RUN_IN_CONTEXT
from ..kernels.observe import event_ring, meter
from ..parts import Part
from ..threads import begin
from ..unique import Unique
from .block import Words, the_clock
from .event import Event
from .trace import Recorded, trace

_KINDS = layout.KIND_NAMES | {
    layout.EVENT_SUBMIT: "submit",
    layout.EVENT_MOVE: "move",
    layout.EVENT_ARM: "arm",
    layout.EVENT_CANCEL: "cancel",
    layout.EVENT_SLEEP: "sleep",
    layout.EVENT_WAKE: "wake",
    layout.EVENT_OVERLOAD: "overload",
    layout.EVENT_TURN: "turn",
    layout.EVENT_CHECKPOINT: "checkpoint",
    layout.EVENT_STALL: "stall",
    layout.EVENT_COLLECTION: "collection",
    layout.EVENT_BATCH: "batch",
}
_FACTS = ("start", "generation", "collected")  # which kernels find in the arguments of `gc.callbacks`
_BATCH = 4096  # entries that a kernel copies at once: 0.2 ms in which the world cannot be stopped
_LONG = 100_000_000  # ns: two readings of both clocks this far apart give their rates better than the calibration does


class Recorder(Unique, Part):
    """A loop's flight recorder (`Loop.recorder`). Any thread may call any method, even while the loop hangs or after
    its end. Signal handlers may not: `dump_on` is for them.

    Reading takes O(entries), and nothing raises but `dump` and `dump_on`. `entries` and `name` are those of the loop.

    >>> import nbloop
    >>> loop = nbloop.Loop(recorder=1024, auto_exit=True)
    >>> loop.submit(len, "four")
    >>> loop.run()
    >>> loop.recorder.entries, loop.recorder.lost, len(loop.recorder.trace()["traceEvents"]) > 0
    (1024, 0, True)
    """

    def __init__(self, entries: int, name: str) -> None:
        self._name = name
        self._entries = entries
        self._names: dict[int, Any] = {}
        self.channels: dict[int, str] = {}
        """The names of the loop's channels, by the numbers of their rings."""
        # A mapping begins on a page boundary, so each entry has cache lines of its own.
        self._words: Words = layout.table((layout.RECORDER.dtype.itemsize + entries * layout.ENTRY.dtype.itemsize) // 8)
        record = self._record = self._words[: layout.RECORDER.dtype.itemsize // 8].view(layout.RECORDER.dtype)[0]
        clock = the_clock()
        record["cycles"] = clock.cycles
        record["mask"] = entries - 1
        record["names"] = id(self._names)
        record["function_type"] = id(types.FunctionType)
        record["method_type"] = id(types.MethodType)
        record["builtin_type"] = id(types.BuiltinFunctionType)
        record["run_in_context"] = id(RUN_IN_CONTEXT)
        record["word_start"], record["word_generation"], record["word_collected"] = map(id, _FACTS)
        record["tick_base"], record["ns_base"] = clock.pair()
        record["boundary"] = record["rested"] = record["tick_base"]
        self._read = event_ring.recorder_read.bind(self._words)
        self._head = event_ring.recorder_head.bind(self._words)
        self._running = event_ring.recorder_running.bind(self._words)
        collected = event_ring.record_collection.bind(self._words)
        cleanup: Any = weakref.finalize(self, _unregister, collected)
        cleanup.atexit = False
        gc.callbacks.append(collected)
        self._when_raised: Path | None = None
        self._targets: dict[_OnSignal, None] = {}  # of signals: one, or more after an interrupted `dump_on`
        self._ended = False

    @property
    def entries(self) -> int:
        """The number of events that the ring holds."""
        return self._entries

    @property
    def lost(self) -> int:
        """Events that were not written because their thread was delayed until the ring had wrapped around."""
        return int(self._record["lost"])

    def events(self) -> list[Event]:
        """The recorded events, oldest first by number, and at the end the callback in progress, if there is one.

        Entries that are being written at this moment are left out. Some 2 µs per event.
        """
        head = self._head(None)
        batches = []
        for first in range(max(0, head - self._entries), head, _BATCH):
            batch = np.zeros((_BATCH, layout.ENTRY.dtype.itemsize // 8), np.int64)
            batches.append(batch[: self._read(batch, first, min(_BATCH, head - first))])
        running = np.zeros(5, np.int64)
        hangs = self._running(running) != 0
        names = self._names.copy()
        when = self._seconds()
        rows: list[list[int]] = np.concatenate(batches).tolist() if batches else []
        channels = self.channels.copy()
        events = [_event(row, when, names, channels) for row in rows]
        if hangs:
            kind, since, subject, what, value = (int(word) for word in running)
            row = [
                -1,
                since,
                max(0, when.now - since),
                int(self._record["thread"]),
                (kind & 255) - 1,
                subject,
                what,
                value,
            ]
            events.append(_event(row, when, names, channels))
        return events

    def trace(self, since: float = 0.0) -> dict[str, Any]:
        """The events as a Chrome trace (`nbloop.observe.trace`), ready for `json.dump`; only those that had not ended
        by `since`, a time on the clock of `time.monotonic`.
        """
        return trace(self._name, [self.recorded(since)])

    def recorded(self, since: float = 0.0) -> Recorded:
        """What `trace` is made of, with the same `since`, for a trace of several loops."""
        events = [event for event in self.events() if event.time + event.duration >= since]
        return Recorded(self._name, int(self._record["thread"]), events)

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write `trace` to the file `path` as JSON. A reader sees the whole new file or the old one. Raises OSError."""
        path = Path(path)
        part = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
        try:
            with part.open("w") as file:
                json.dump(self.trace(), file, separators=(",", ":"))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def dump_on(self, path: str | os.PathLike[str], *, signal: int | None = None, exception: bool = True) -> None:
        """From now on, write the trace to `path` automatically: when `run()` raises, if `exception` is true, and at
        each arrival of `signal`, on a separate thread, so even while the loop hangs. Replaces any earlier request.

        A dump that fails is logged. The signal's previous handler returns when the loop ends; after that, requesting a
        signal raises LoopTerminatedError. TypeError or ValueError for a signal that cannot be caught.
        """
        path = Path(path)
        if not isinstance(exception, bool):
            raise TypeError(f"exception must be True or False, not {exception!r}")
        earlier = list(self._targets)
        if signal is not None:
            if self._ended:
                raise LoopTerminatedError(f"{self._name} has ended: its recorder cannot take a signal any more")
            target = _OnSignal()
            self._targets[target] = None  # first: an exception of a signal handler may come when the signal is taken
            signals.add(target, signal, self._dump_or_log, (path,))
        self._forget(earlier)
        self._when_raised = path if exception else None
        if self._ended:  # meanwhile
            self._forget(list(self._targets))

    def _dump_or_log(self, path: Path) -> None:
        try:
            self.dump(path)
        except OSError as error:
            hooks.log(error, "the recorder of %s cannot be written to %s", self._name, path, loop=self._name)

    def _run_raised(self) -> None:
        if self._when_raised is not None:
            self._dump_or_log(self._when_raised)

    def _loop_ended(self) -> None:
        self._ended = True
        self._forget(list(self._targets))

    def _forget(self, targets: list[_OnSignal]) -> None:
        for target in targets:
            signals.forget(target)
            self._targets.pop(target, None)

    def _seconds(self) -> _Clock:
        return _Clock(int(self._record["tick_base"]), int(self._record["ns_base"]))


def _unregister(callback: Callable[..., object]) -> None:
    with contextlib.suppress(ValueError):  # other code has emptied the list, which belongs to the whole process
        gc.callbacks.remove(callback)


class _OnSignal:
    """The target that nbloop.signals delivers to. Each dump has its own thread: other signals do not wait for it."""

    _children_ignore = False

    def submit_internal(self, callback: Callable[..., object], *args: object) -> None:
        begin(threading.Thread(target=callback, args=args, name="nbloop-recorder", daemon=True))


class _Clock:
    """Converts the recorder's ticks to seconds; two readings of both clocks, far apart, give the rate."""

    def __init__(self, ticks: int, ns: int) -> None:
        clock = the_clock()
        self.now, self._ns = clock.pair()
        self._rate = clock.multiplier / (1 << meter.MULTIPLIER_BITS)  # ns a tick
        if self._ns - ns > _LONG:
            self._rate = (self._ns - ns) / (self.now - ticks)

    def time(self, ticks: int) -> float:
        return (self._ns - self.duration_ns(self.now - ticks)) / 1e9

    def duration_ns(self, ticks: int) -> float:
        return ticks * self._rate


def _event(row: list[int], clock: _Clock, names: dict[int, Any], channels: dict[int, str]) -> Event:
    number, ticks, duration, thread, kind, subject, what, value = row
    failed = False
    immediates = 0
    if kind < layout.EVENT_SUBMIT:
        failed = bool(value & 1)
        value >>= 1
    elif kind == layout.EVENT_TURN:
        immediates = what
    return Event(
        number=number,
        time=clock.time(ticks),
        duration=clock.duration_ns(duration) / 1e9,
        thread=thread,
        kind=_KINDS[kind],
        subject=subject,
        name=channels.get(subject) if kind == layout.EVENT_BATCH else _name(names.get(what)),
        value=value,
        failed=failed,
        immediates=immediates,
    )


def _name(entered: Any) -> str | None:
    """The name of what the kernels stored: a code object, a type, or a built-in's own name."""
    if isinstance(entered, types.CodeType):
        return entered.co_qualname
    if isinstance(entered, type):
        return entered.__qualname__
    return entered  # type: ignore[no-any-return]
