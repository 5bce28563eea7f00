"""What the trace-event format demands, checked strictly: of a trace that viewers merely put up with nothing is sure."""

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
