"""What the trace-event format demands, checked strictly: of a trace that viewers merely put up with nothing is sure.

And what Perfetto makes of it: `imported` does what its JSON importer does (in src/trace_processor/importers:
json/json_trace_tokenizer.cc, CoerceToTs in json/, common/slice_tracker.cc, common/flow_tracker.cc). Events are sorted
by time, stably, and time is ``int64(ts * 1000.0)``, *cut off*: 1.001 is 1000 ns. A slice that overlaps another one by
that one ns is dropped silently. An instant is a slice without length. A flow is bound to whatever slice of its
track was put on the stack last, whether that one has ended or not. Perfetto itself is not run here: its package on PyPI
downloads the program that imports.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

NEEDED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "i": {"name", "cat", "ph", "ts", "s", "pid", "tid", "args"},
    "C": {"name", "ph", "ts", "pid", "tid", "args"},
    "s": {"name", "cat", "ph", "ts", "id", "pid", "tid"},
    "f": {"name", "cat", "ph", "ts", "id", "bp", "pid", "tid"},
    "M": {"name", "ph", "ts", "pid", "tid", "args"},
}


def check(trace: Any) -> None:
    """Fail with the first event that breaks a rule."""
    assert json.loads(json.dumps(trace, allow_nan=False)) == trace, "JSON has something else in its place"
    assert set(trace) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    for event in events:
        assert set(event) == NEEDED[event["ph"]], event
        assert isinstance(event["name"], str), event
        assert event["name"], event
        assert all(type(event[key]) is int and 0 <= event[key] < 1 << 31 for key in ("pid", "tid")), event
        assert isinstance(event["ts"], int | float), event
        assert event["ts"] >= 0, event
        assert event.get("dur", 0) >= 0, event
        assert isinstance(event.get("args", {}), dict), event
    assert len({event["pid"] for event in events}) <= 1
    _check_names(events)
    timed = [event for event in events if event["ph"] != "M"]
    assert [e["ts"] for e in timed] == sorted(e["ts"] for e in timed), "not in order of time"
    for event in timed:
        if event["ph"] == "i":
            assert event["s"] in ("g", "p", "t"), event
        if event["ph"] == "C":
            assert event["args"], event
            assert all(type(v) is int and v >= 0 for v in event["args"].values()), event
    _check_nesting(timed)
    _check_flows(timed)
    for source, target in imported(timed):
        assert source["cat"] in ("submit", "arm"), f"an arrow begins at {source}"
        assert target["cat"] not in ("submit", "arm", "loop"), f"an arrow ends at {target}"


def _check_names(events: list[dict[str, Any]]) -> None:
    """One process name; each track has one name, before anything happens on it."""
    names = [(e["name"], e["tid"]) for e in events if e["ph"] == "M"]
    assert len(names) == len(set(names)), "named twice"
    assert [name for name, _ in names].count("process_name") == 1
    named: set[int] = set()
    for event in events:
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index"), event
            key = "sort_index" if event["name"] == "thread_sort_index" else "name"
            assert set(event["args"]) == {key}, event
            if event["name"] == "thread_name":
                named.add(event["tid"])
        else:
            assert event["tid"] in named, event


def _ns(event: dict[str, Any]) -> tuple[int, int]:
    start = round(event["ts"] * 1000)
    return start, start + round(event["dur"] * 1000)


def _check_nesting(events: list[dict[str, Any]]) -> None:
    """Of two slices of a track one is inside the other, or they do not overlap."""
    tracks: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["tid"]].append(event)
    for slices in tracks.values():
        open_until: list[tuple[int, dict[str, Any]]] = []
        for event in slices:
            start, end = _ns(event)
            while open_until and open_until[-1][0] <= start:
                open_until.pop()
            if open_until:
                assert end <= open_until[-1][0], f"{event} overlaps {open_until[-1][1]}"
            open_until.append((end, event))


def _check_flows(events: list[dict[str, Any]]) -> None:
    """Each begins once and ends once, later, both in a slice of their track."""
    slices: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["tid"]].append(_ns(event))
    begun: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["ph"] not in "sf":
            continue
        at = round(event["ts"] * 1000)
        assert any(start <= at <= end for start, end in slices[event["tid"]]), f"{event} is in no slice"
        if event["ph"] == "s":
            assert event["id"] not in begun, event
            begun[event["id"]] = event
        else:
            start = begun.pop(event["id"])
            assert event["bp"] == "e", event
            assert (start["name"], start["cat"]) == (event["name"], event["cat"]), event
    assert begun == {}, "flows without an end"


def _perfetto_ns(microseconds: float) -> int:
    ns = int(microseconds * 1000.0)
    assert ns == round(microseconds * 1000), f"{microseconds!r} µs becomes {ns} ns"
    return ns


def imported(events: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The flows that Perfetto has in the end, as (slice, slice); fails where it would drop a slice or a flow."""
    stacks: defaultdict[int, list[tuple[int, int, dict[str, Any]]]] = defaultdict(list)
    open_flows: dict[tuple[str, str, int], dict[str, Any]] = {}
    flows = []
    for event in sorted(events, key=lambda event: _perfetto_ns(event["ts"])):
        start = _perfetto_ns(event["ts"])
        stack = stacks[event["tid"]]
        if event["ph"] in "Xi":
            length = _perfetto_ns(event.get("dur", 0))
            for began, ended, other in reversed(stack[:]):
                if ended < start or (ended == start and not (began == ended and length == 0)):
                    stack.pop()
                else:
                    assert not start < ended < start + length, f"dropped: {event} overlaps {other}"
            stack.append((start, start + length, event))
        elif event["ph"] in "sf":
            assert stack, f"dropped: {event} has no slice"
            began, _, slice = stack[-1]
            assert slice["ph"] == "X", f"{event} is bound to {slice}"
            assert began == start, f"{event} is bound to {slice}"
            key = (event["cat"], event["name"], event["id"])
            if event["ph"] == "s":
                open_flows[key] = slice
            else:
                flows.append((open_flows.pop(key), slice))
    assert open_flows == {}, "flows without an end"
    return flows
