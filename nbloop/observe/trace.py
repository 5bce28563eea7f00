"""A recorder's events in the trace-event format that Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

Each thread has a track. The loop's shows its callbacks and sleeps; every track shows submits and the arming and
cancelling of timers. Arrows (flows) lead from a submit or an arm to the callback that it caused; counters show how much
waited; collections of garbage, which stop or slow every thread, have a track of their own. The format is described in
Google's "Trace Event Format"; this uses complete events (X), instants (i), counters (C), flows (s, f) and names (M).
Times are µs from the first event; `otherData` holds that event's time on the clock of `time.monotonic`.

Perfetto's importer does two things that the format does not mention and that make it drop slices and arrows silently.
It truncates times to whole ns: 1.001 µs, which in binary is a little less, becomes 1000 ns, and two neighbours overlap
(`microseconds`). And it binds an arrow to the slice that was read last on its track, so an arrow's ends come directly
after their slices.
"""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..kernels.base.layout import PLACE_BITS
from .event import Event

# `threading.enumerate` without its lock: on CPython 3.14 an exception of a signal handler could leave it taken, and a
# handler may come here while its own thread holds it. It is not documented; without it, tracks have numbers for names.
_threads: Callable[[], list[threading.Thread]] = getattr(threading, "_enumerate", list)
MARK = 100  # ns: a submit is recorded as a moment, and drawn this long unless something follows sooner
_MOMENTS = {"submit", "arm"}
_INSTANTS = {"cancel", "wake", "overload", "stall", "batch"}
_COUNTERS = {"turn", "checkpoint"}


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one loop's recorder remembers: its events, sorted by time; the loop's name, and the thread that runs it."""

    loop: str
    thread: int
    events: list[Event]


@dataclass(slots=True)
class _Slice:
    """Something with a duration on a track. In integer ns, so that neighbours and parents compare exactly."""

    event: Event
    start: int
    end: int


def trace(name: str, loops: Sequence[Recorded]) -> dict[str, Any]:
    """The trace of one loop, or of several that belong together; `name` is the name of the whole. A thread has one
    track, even if it runs one loop and submits to another.
    """
    began = min((event.time for one in loops for event in one.events), default=0.0)
    pid = os.getpid()
    tids = _tracks(loops)
    collections = len(tids) + 1  # their track
    names = list(_names(pid, name, loops, tids))
    if any(event.kind == "collection" for one in loops for event in one.events):
        names += _track(pid, collections, "collections of garbage")
    runs: list[_Slice] = []
    moments: list[_Slice] = []
    others: list[tuple[_Slice, str]] = []  # with the suffix of its counter's name
    flows: list[tuple[_Slice, _Slice]] = []
    # Each recorder has seen each collection of the process: one of them is enough.
    collecting = max(loops, key=_collections)
    for one in loops:
        of = f" of {one.loop}" if len(loops) > 1 else ""
        ran: list[_Slice] = []
        marks: list[_Slice] = []
        for event in one.events:
            start = round((event.time - began) * 1e9)
            slice = _Slice(event, start, max(start, round((event.time + event.duration - began) * 1e9)))
            if event.kind in _MOMENTS:
                marks.append(slice)
            elif event.kind in _INSTANTS | _COUNTERS or (event.kind == "collection" and one is collecting):
                others.append((slice, of))
            elif event.kind != "collection":
                ran.append(slice)
        flows += _flows(ran, marks, [event for event in one.events if event.kind == "move"])
        runs += [run for run in ran if run.event.kind != "move"]
        moments += marks
    _set_apart(runs, moments)

    ends: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)  # arrows' ends, by the identity of their slice
    for number, (source, target) in enumerate(flows):
        if source.start < target.start:  # else the clocks of two cores differ by more than the callback took
            for slice, which in ((source, {"ph": "s"}), (target, {"ph": "f", "bp": "e"})):
                common = {"ts": microseconds(slice.start), "pid": pid, "tid": tids[slice.event.thread]}
                ends[id(slice)].append({"name": source.event.kind, "cat": "flow", "id": number, **which, **common})
    made: list[dict[str, Any]] = []
    for slice in sorted((*runs, *moments), key=lambda one: (one.start, -one.end)):  # outer slices before inner ones
        made += [_complete(slice, pid, tids[slice.event.thread]), *ends[id(slice)]]
    for other, of in others:
        event = other.event
        tid = tids.get(event.thread, collections)  # a thread may do nothing but collect
        common = {"ts": microseconds(other.start), "pid": pid, "tid": tid}
        if event.kind == "turn":
            waits = {"external": event.subject, "internal": event.value, "immediates": event.immediates}
            made.append({"name": f"waiting{of}", "ph": "C", **common, "args": waits})
        elif event.kind == "collection":
            made.append(_complete(other, pid, collections))
        elif event.kind == "checkpoint":
            made.append({"name": f"microtasks{of}", "ph": "C", **common, "args": {"microtasks": event.subject}})
        else:
            made.append({"name": event.kind, "cat": "loop", "ph": "i", "s": "t", **common, "args": _args(event)})
    made.sort(key=lambda one: one["ts"])  # stable
    return {
        "displayTimeUnit": "ns",
        "otherData": {"loop": name, "began": began},
        "traceEvents": [*names, *made],
    }


def microseconds(ns: int) -> float:
    """ns as µs, such that a reader that multiplies by 1000 and truncates gets the same ns.

    >>> int(1.001 * 1000), int(microseconds(1001) * 1000)
    (1000, 1001)
    """
    value = ns / 1e3
    return value if int(value * 1e3) == ns else math.nextafter(value, math.inf)


def _collections(one: Recorded) -> int:
    return sum(event.kind == "collection" for event in one.events)


def _tracks(loops: Sequence[Recorded]) -> dict[int, int]:
    """A small number for each thread, those of the loops first: viewers accept 32 bits, and an identifier has 64."""
    tids: dict[int, int] = {}
    for one in loops:
        tids.setdefault(one.thread, len(tids) + 1)
    for one in loops:
        for event in one.events:
            if event.kind != "collection":
                tids.setdefault(event.thread, len(tids) + 1)
    return tids


def _names(pid: int, name: str, loops: Sequence[Recorded], tids: dict[int, int]) -> Iterator[dict[str, Any]]:
    yield {"name": "process_name", "ph": "M", "ts": 0, "pid": pid, "tid": 0, "args": {"name": f"nbloop {name}"}}
    known = {thread.ident: thread.name for thread in _threads()}
    known |= {one.thread: f"loop {one.loop}" for one in loops}
    for thread, tid in tids.items():
        yield from _track(pid, tid, known.get(thread, f"thread {thread:#x}"))


def _track(pid: int, tid: int, name: str) -> Iterator[dict[str, Any]]:
    common = {"ph": "M", "ts": 0, "pid": pid, "tid": tid}
    yield {"name": "thread_name", **common, "args": {"name": name}}
    yield {"name": "thread_sort_index", **common, "args": {"sort_index": tid}}


def _flows(runs: list[_Slice], moments: list[_Slice], moves: list[Event]) -> Iterator[tuple[_Slice, _Slice]]:
    """Pairs of a submit or arm and the callback it caused. A callback's slice begins where the previous one ended;
    since no callback begins before its submit, the slice is moved to begin later if necessary.
    """
    moved = {move.value: move.subject for move in moves}
    armed = {moment.event.subject: moment for moment in moments if moment.event.kind == "arm"}
    submits: defaultdict[int, list[tuple[int, int, _Slice]]] = defaultdict(list)  # by queue: first, end, which
    for moment in moments:
        if moment.event.kind == "submit":
            first = moment.event.subject >> PLACE_BITS
            queue = moment.event.subject & ((1 << PLACE_BITS) - 1)
            submits[queue].append((first, first + moment.event.value, moment))
    for ranges in submits.values():
        ranges.sort(key=lambda one: one[:2])
    for run in runs:
        source = None
        if run.event.kind == "timer":
            source = armed.pop(run.event.subject, None)  # for an interval only its first callback
        elif run.event.kind not in ("readiness callback", "sleep", "move"):
            place = moved.get(run.event.subject, run.event.subject)
            position, ranges = place >> PLACE_BITS, submits[place & ((1 << PLACE_BITS) - 1)]
            at = bisect_right(ranges, position, key=lambda one: one[0]) - 1
            if at >= 0 and position < ranges[at][1]:
                source = ranges[at][2]
        if source is not None:
            run.start = min(max(run.start, source.start + 1), run.end)
            yield source, run


def _set_apart(runs: list[_Slice], moments: list[_Slice]) -> None:
    """Make the slices of a track nest: callbacks do not overlap, and a moment ends before the next event and within
    the callback that contains it.
    """
    tracks: defaultdict[int, tuple[list[_Slice], list[_Slice]]] = defaultdict(lambda: ([], []))
    for run in runs:
        tracks[run.event.thread][0].append(run)
    for moment in moments:
        tracks[moment.event.thread][1].append(moment)
    for outer, inner in tracks.values():
        outer.sort(key=lambda run: (run.start, run.end))
        inner.sort(key=lambda moment: moment.start)
        for one, following in pairwise(outer):
            one.end = min(one.end, following.start)
        starts = [run.start for run in outer]
        for i, moment in enumerate(inner):
            moment.end = moment.start + MARK
            if i + 1 < len(inner):
                moment.end = min(moment.end, inner[i + 1].start)
            at = bisect_right(starts, moment.start)
            if at < len(outer):
                moment.end = min(moment.end, outer[at].start)
            if at > 0 and moment.start < outer[at - 1].end:
                moment.end = min(moment.end, outer[at - 1].end)


def _complete(slice: _Slice, pid: int, tid: int) -> dict[str, Any]:
    event = slice.event
    return {
        "name": event.name or event.kind,
        "cat": event.kind,
        "ph": "X",
        "ts": microseconds(slice.start),
        "dur": microseconds(slice.end - slice.start),
        "pid": pid,
        "tid": tid,
        "args": _args(event),
    }


def _args(event: Event) -> dict[str, Any]:
    """What a click on the event shows."""
    args: dict[str, Any] = {"number": event.number}
    if event.number < 0:
        args["state"] = "in progress"
    if event.failed:
        args["raised"] = True
    if event.kind in ("timer", "arm", "cancel"):
        args["id"] = event.subject
    if event.kind == "submit":
        args["count"] = event.value
    if event.kind == "readiness callback":
        args["fd"] = event.value
    if event.kind == "batch":
        args |= {"channel": event.name, "records": event.value}
    if event.kind == "collection":
        args |= {"generation": event.subject, "collected": event.value}
    return args
