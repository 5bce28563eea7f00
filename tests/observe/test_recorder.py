"""The flight recorder: what it remembers, that it can be had while the loop hangs, and the traces it makes."""

from __future__ import annotations

import abc
import copy
import dataclasses
import gc
import json
import os
import signal
import threading
import time
import weakref
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbloop import IOEvents, Loop, LoopTerminatedError
from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import fetch_add, store
from nbloop.kernels.base.capi import Py_IncRef
from nbloop.kernels.build import object_cache
from nbloop.kernels.channels import records
from nbloop.kernels.ingress import ticket_queue
from nbloop.observe import recorder
from nbloop.observe.contention import totals
from nbloop.observe.trace import Recorded
from nbloop.observe.trace import trace as made_of
from tests.support import trace_format
from tests.support.waiting import PATIENCE, elsewhere, together, wait_for

compiled = pytest.mark.skipif(object_cache.status.mode != "compiled", reason="C signal handlers need compiled kernels")


def kinds(loop):
    return Counter(event.kind for event in loop.recorder.events())


def of(loop, *wanted):
    return [event for event in loop.recorder.events() if event.kind in wanted]


def fail():
    raise LookupError("on purpose")


def place(event):
    return event.subject & 0xFFFF, event.subject >> 16


def test_off_is_none(loop):
    assert loop.recorder is None


@pytest.mark.parametrize(
    ("value", "error"), [(True, TypeError), ("64", TypeError), (100, ValueError), (32, ValueError)]
)
def test_option_is_checked(make_loop, value, error):
    with pytest.raises(error, match="recorder must be"):
        make_loop(recorder=value)


@pytest.mark.parametrize("measured", [False, True])
def test_each_kind_of_callback(make_loop, turns, pair, measured):
    """Each is there once, under its name; and so is what led to it."""
    loop = make_loop(recorder=1024, metrics=measured, on_error=lambda *_: None)
    a, b = pair()

    class Callable:
        def __call__(self, *_):
            pass

        def bound(self):
            loop.schedule_microtask(len, ())
            loop.schedule_next_tick(int)
            loop.schedule_checkpoint_end(str)

    class Abstract(abc.ABC):  # noqa: B024 - a class of another class than `type`
        pass

    loop.submit(Callable().bound)
    loop.submit(Abstract)
    loop.submit_many([fail, Callable()])
    loop.producer().submit(dict, ())
    loop.submit_internal(list)
    loop.schedule_close(set)
    loop.schedule_immediate(tuple)
    timer = loop.schedule_timer(0, frozenset)
    loop.register_fd(a.fileno(), IOEvents.READ, Callable())
    b.send(b"x")
    turns(loop, 2)
    loop.unregister_fd(a.fileno())
    ran = [event for event in loop.recorder.events() if event.kind in layout.KIND_NAMES.values()]
    names = {(event.kind, event.name) for event in ran}
    cls = "test_each_kind_of_callback.<locals>.Callable"
    assert names >= {
        ("task", f"{cls}.bound"),
        ("microtask", "len"),
        ("next-tick", "int"),
        ("checkpoint end", "str"),
        ("task", "fail"),
        ("task", cls),
        ("task", "dict"),
        ("task", "test_each_kind_of_callback.<locals>.Abstract"),
        ("internal task", "list"),
        ("close callback", "set"),
        ("immediate", "tuple"),
        ("timer", "frozenset"),
        ("readiness callback", cls),
    }
    assert [event.name for event in ran if event.failed] == ["fail"]
    assert {event.value for event in ran if event.kind == "readiness callback"} == {a.fileno()}
    assert [event.subject for event in of(loop, "arm", "timer")] == [timer, timer]
    assert {event.thread for event in ran} == {threading.get_ident()}
    assert (loop.metrics() is not None) is measured
    trace_format.check(loop.recorder.trace())


def test_every_callback_leads_back_to_its_submit(make_loop):
    """Four threads, by each entrance: as many arrows as callbacks, each from the thread that submitted."""
    # 8,000 events, and two for each turn in which the loop waits for a producer that lost its core: 80,000 seen.
    loop = make_loop(recorder=1 << 18, name="arrows")
    with loop:

        def produce(i):
            handle = loop.producer()
            for _ in range(50):
                loop.submit(int)
                handle.submit(int)
                loop.submit_internal(int)
                loop.schedule_microtask(int)
                loop.schedule_next_tick(int)
                loop.schedule_immediate(int)
                loop.schedule_close(int)
                loop.schedule_checkpoint_end(int)
                loop.schedule_timer(0, int)
                loop.submit_many([int, int])
            return threading.get_ident()

        threads = together(4, produce)
        wait_for(lambda: not loop.alive())
    assert loop.recorder.lost == 0
    count = kinds(loop)
    assert [count[kind] for kind in ("task", "internal task", "microtask", "next-tick")] == [800, 200, 200, 200]
    assert [count[kind] for kind in ("immediate", "close callback", "checkpoint end", "timer")] == [200, 200, 200, 200]
    trace = loop.recorder.trace()
    trace_format.check(trace)
    starts = [e for e in trace["traceEvents"] if e["ph"] == "s"]
    assert len(starts) == 2200
    assert sorted(Counter(e["tid"] for e in starts).values()) == [550] * len(set(threads))
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names[1] == "loop arrows"


def test_own_submits_lead_to_their_callbacks(make_loop, turns):
    """What a callback submits has its arrow too, out of that callback's slice."""
    loop = make_loop(recorder=64)
    loop.submit(lambda: [loop.submit(int), loop.schedule_microtask(str), loop.schedule_timer(0, list)])
    turns(loop, 2)
    trace = loop.recorder.trace()
    trace_format.check(trace)
    assert sum(e["ph"] == "f" for e in trace["traceEvents"]) == 4


def test_times_are_those_of_the_clock(make_loop):
    loop = make_loop(recorder=64)
    seen = []

    def work():
        seen.append(time.monotonic())
        time.sleep(0.02)
        seen.append(time.monotonic())

    before = time.monotonic()
    loop.submit(work)
    loop.submit(loop.stop)
    loop.run()
    (event,) = (event for event in of(loop, "task") if event.name.endswith("work"))
    assert before - 1e-4 <= event.time <= seen[0] + 1e-4
    assert seen[1] - 1e-4 <= event.time + event.duration <= time.monotonic() + 1e-4
    assert event.duration >= 0.0199


def test_only_the_last_are_remembered(make_loop, turns):
    loop = make_loop(recorder=64)
    for _ in range(500):
        loop.submit(int)
    turns(loop)
    events = loop.recorder.events()
    assert len(events) == 64
    assert [event.number for event in events] == list(range(events[0].number, events[0].number + 64))
    trace_format.check(loop.recorder.trace())  # callbacks whose submit is forgotten have no arrow


def test_cancelled_timers(make_loop, turns):
    loop = make_loop(recorder=64)
    here = loop.schedule_timer(100, int)
    there = elsewhere(loop.schedule_timer, 100, int)
    assert elsewhere(loop.cancel_timer, here)
    assert loop.cancel_timer(there)
    assert not loop.cancel_timer(there)
    assert [(event.kind, event.subject) for event in of(loop, "arm", "cancel")] == [
        ("arm", here),
        ("arm", there),
        ("cancel", here),
        ("cancel", there),
    ]


def test_sleeps_wakes_and_overload(make_loop, mode, asleep):
    loop = make_loop(recorder=4096, fast_path_mode=mode, ingress_budget=2)
    with loop:
        asleep(loop)
        loop.submit_many([int] * 5)
        wait_for(lambda: not loop.alive())
        asleep(loop)
        loop.submit(int)
        wait_for(lambda: kinds(loop)["task"] == 6)
    count = kinds(loop)
    assert count["wake"] >= 2
    assert count["sleep"] >= 2
    assert count["overload"] >= 1
    waited = [event.subject for event in of(loop, "turn")]
    assert 5 in waited
    sleeps = of(loop, "sleep")
    assert all(event.duration > 0 for event in sleeps)
    trace_format.check(loop.recorder.trace())


def test_a_callback_that_hangs_is_named(make_loop):
    loop = make_loop(recorder=64)
    hung, release = threading.Event(), threading.Event()

    def hang():
        hung.set()
        release.wait(PATIENCE)

    with loop as running:
        running.submit(hang)
        wait_for(hung)
        last = loop.recorder.events()[-1]
        trace_format.check(loop.recorder.trace())
        release.set()
    assert (last.number, last.kind) == (-1, "task")
    assert last.name.endswith("hang")
    assert last.thread != threading.get_ident()
    assert all(event.number >= 0 for event in loop.recorder.events())


@compiled
def test_dump_by_signal_while_the_loop_hangs(make_loop, tmp_path):
    loop = make_loop(recorder=256)
    path = tmp_path / "hang.json"
    loop.recorder.dump_on(path, signal=signal.SIGUSR2)
    hung, release = threading.Event(), threading.Event()
    with loop:
        loop.submit(lambda: [hung.set(), release.wait(PATIENCE)])
        wait_for(hung)
        os.kill(os.getpid(), signal.SIGUSR2)
        wait_for(path.exists)
        release.set()
    trace = json.loads(path.read_text())
    trace_format.check(trace)
    assert [e for e in trace["traceEvents"] if e.get("args", {}).get("state") == "in progress"]
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert list(tmp_path.iterdir()) == [path]


def test_dump_on_exception(make_loop, tmp_path):
    loop = make_loop(recorder=256)
    path = tmp_path / "left.json"

    def leave():
        raise SystemExit(3)

    loop.submit(leave)
    with pytest.raises(SystemExit):
        loop.run()
    assert not path.exists()
    loop.recorder.dump_on(path)
    loop.submit(leave)
    with pytest.raises(SystemExit):
        loop.run()
    trace = json.loads(path.read_text())
    trace_format.check(trace)
    assert sum("raised" in e.get("args", {}) for e in trace["traceEvents"]) == 2


def test_a_dump_that_fails(make_loop, tmp_path, caplog):
    loop = make_loop(recorder=256)
    with pytest.raises(FileNotFoundError):
        loop.recorder.dump(tmp_path / "missing" / "trace.json")
    loop.recorder.dump_on(tmp_path / "missing" / "trace.json")

    def leave():
        raise SystemExit

    loop.submit(leave)
    with pytest.raises(SystemExit):
        loop.run()
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("options", "error"),
    [({"signal": "USR1"}, TypeError), ({"signal": 12345}, ValueError), ({"exception": 1}, TypeError)],
)
def test_dump_on_checks(make_loop, tmp_path, options, error):
    loop = make_loop(recorder=64)
    with pytest.raises(error):
        loop.recorder.dump_on(tmp_path / "trace.json", **options)


def test_outlives_its_loop(make_loop, turns):
    loop = make_loop(recorder=64)
    loop.submit(int)
    turns(loop)
    kept = loop.recorder
    loop.close()
    assert "task" in {event.kind for event in kept.events()}
    kept.trace()


def test_names_do_not_keep_callables(make_loop, turns):
    """A callable and its arguments live no longer than without a recorder."""

    class Argument:
        pass

    loop = make_loop(recorder=64)
    argument = Argument()
    gone = weakref.ref(argument)
    loop.submit(lambda _: None, argument)
    turns(loop)
    del argument
    wait_for(lambda: gone() is None)


def test_the_checker_finds_what_is_wrong(make_loop, turns):
    """Each rule, broken once."""
    loop = make_loop(recorder=256)
    loop.submit(lambda: [loop.submit(int), loop.schedule_timer(0, int)])
    turns(loop, 3)
    good = loop.recorder.trace()
    trace_format.check(good)

    def first(trace, ph, n=0):
        return [e for e in trace["traceEvents"] if e["ph"] == ph][n]

    def drop(trace, ph):
        trace["traceEvents"].remove(first(trace, ph))

    def move(trace, ph, ts):
        first(trace, ph)["ts"] = ts

    def overlap(trace):
        one, other = first(trace, "X"), first(trace, "X", 1)
        assert one["tid"] == other["tid"]
        one["dur"] = round(other["ts"] + other["dur"] / 2 - one["ts"], 3)

    def behind_another_slice(trace):
        """An arrow that Perfetto binds to an instant, the last that it has read on this track."""
        events = trace["traceEvents"]
        at = events.index(first(trace, "s"))
        common = {key: events[at][key] for key in ("ts", "pid", "tid")}
        events.insert(at, {"name": "wake", "cat": "loop", "ph": "i", "s": "t", "args": {}, **common})

    breaks = [
        lambda t: drop(t, "f"),
        lambda t: drop(t, "s"),
        lambda t: drop(t, "M"),
        lambda t: t["traceEvents"].remove(next(e for e in t["traceEvents"] if e["name"] == "thread_name")),
        lambda t: first(t, "X").pop("dur"),
        lambda t: first(t, "X").update(ph="Z"),
        overlap,
        lambda t: first(t, "X").update(dur=-1),
        lambda t: first(t, "C")["args"].update(external=-1),
        lambda t: first(t, "X").update(tid=1 << 40),
        lambda t: move(t, "X", 1e12),
        lambda t: first(t, "f").update(id=10**6),
        lambda t: first(t, "s").update(name="else"),
        lambda t: t["traceEvents"].reverse(),
        lambda t: first(t, "X").update(ts=1.001),  # which Perfetto takes for 1000 ns
        behind_another_slice,
    ]
    for broken in breaks:
        bad = copy.deepcopy(good)
        broken(bad)
        with pytest.raises((AssertionError, KeyError)):
            trace_format.check(bad)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_clocks_that_jump_or_differ_make_a_valid_trace(data):
    """Each event's time is off, as on a core whose counter is another's no more; a viewer takes the trace still."""
    loop = Loop(recorder=256, on_error=lambda *_: None)
    loop.submit(lambda: [loop.submit(int), loop.schedule_timer(0, int), loop.schedule_microtask(int)])
    elsewhere(lambda: [loop.submit(fail), loop.schedule_immediate(int)])
    for _ in range(3):
        loop.stop()
        loop.run()
    events = loop.recorder.events()
    thread = int(loop.recorder._record["thread"])
    loop.close()
    seconds = st.sampled_from([0.0, 1e-9, -1e-9, 1e-7, -1e-7, 1e-5, -1e-5, 1.0, -1.0, 1e5])
    shifted = [dataclasses.replace(event, time=max(0.0, event.time + data.draw(seconds))) for event in events]
    trace_format.check(made_of("jumps", [Recorded("jumps", thread, shifted)]))


@pytest.mark.usefixtures("no_collections")
def test_batches(make_loop, turns, monkeypatch):
    """Read in several calls of the kernel, it is the same."""
    loop = make_loop(recorder=64)
    loop.submit_many([int] * 40)
    turns(loop)
    whole = [event.number for event in loop.recorder.events()]
    monkeypatch.setattr(recorder, "_BATCH", 7)
    assert [event.number for event in loop.recorder.events()] == whole


def test_no_signal_for_a_loop_that_has_ended(make_loop, tmp_path):
    """contract: the signal is given back at the end, so it is not taken afterwards."""
    loop = make_loop(recorder=64)
    loop.close()
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(LoopTerminatedError):
        loop.recorder.dump_on(tmp_path / "trace.json", signal=signal.SIGUSR2)
    assert signal.getsignal(signal.SIGUSR2) == before
    loop.recorder.dump_on(tmp_path / "trace.json", exception=False)


def test_a_wait_for_a_producer_is_recorded_once(make_loop):
    """A ticket is drawn as `submit` does it, and the word stored a while later. Meanwhile the loop makes turns."""
    loop = make_loop(recorder=1024)
    ran = threading.Event()
    call = ran.set
    queue = loop._state.ctypes.data + layout.STATE.EXTERNAL
    with loop:
        loop.call(int)
        ticket = fetch_add(queue + layout.QUEUE.TAIL, 1)
        loop.wake()
        wait_for(lambda: totals(loop).stalls >= 200)
        stalls, events = of(loop, "stall"), loop.recorder.events()  # judged below: the loop could not end here
        Py_IncRef(id(call))
        chunk = ticket_queue.queue_segment(queue, ticket)
        store(ticket_queue.queue_cell(chunk, ticket, 7), id(call))
        wait_for(ran)
        loop.call(int)
    assert len(events) < 50
    (stall,) = stalls
    assert stall.subject == 1  # task waits
    run = [event for event in of(loop, "task") if event.time >= stall.time]
    assert len(run) == 2  # that one, and the last call
    trace_format.check(loop.recorder.trace())


def test_a_delivery_that_waits_for_a_producer_is_recorded_once(make_loop):
    """As above, between claim and publication of a record of a channel."""
    loop = make_loop(recorder=1024)
    got = []
    channel = loop.channel([("a", "i8")], lambda records: got.extend(records["a"].tolist()), max_batch=8)
    words = channel._state.ctypes.data
    with loop:
        loop.call(int)
        ticket = fetch_add(words + layout.HANDLE.QUEUE + layout.QUEUE.TAIL, 1)
        channel.put(2)  # which has the delivery queued
        wait_for(lambda: totals(loop).stalls >= 200)
        stalls, events = of(loop, "stall"), loop.recorder.events()  # judged below: the loop could not end here
        records.records_publish(words, ticket, 1)
        wait_for(lambda: got == [0, 2])
    assert len(stalls) == 1
    assert len(events) < 50
    trace_format.check(loop.recorder.trace())


class Cycle:
    def __init__(self):
        self.me = self


@pytest.mark.usefixtures("no_collections")
def test_collections_of_garbage_are_recorded_and_have_a_track(make_loop):
    loop = make_loop(recorder=1024, auto_exit=True)

    def litters():
        for _ in range(100):
            Cycle()
        gc.collect()

    gc.collect()
    loop.submit(litters)
    loop.run()
    (run,) = of(loop, "task")
    seen = next(event for event in of(loop, "collection") if event.value >= 100 and event.time >= run.time)
    assert run.time <= seen.time <= seen.time + seen.duration <= run.time + run.duration + 1e-6
    assert seen.duration > 0
    assert seen.subject == 2
    assert seen.thread == run.thread
    trace = loop.recorder.trace()
    trace_format.check(trace)
    drawn = next(event for event in trace["traceEvents"] if event.get("args", {}).get("number") == seen.number)
    (track,) = [
        event["tid"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name" and event["args"]["name"] == "collections of garbage"
    ]
    assert drawn["tid"] == track
    assert drawn["name"] == "collection"


@pytest.mark.parallel_threads(1)  # the list is the process's
def test_the_interpreter_forgets_a_recorder_that_is_gone():
    gc.collect()
    before = list(gc.callbacks)
    loop = Loop(recorder=64)
    assert len(gc.callbacks) == len(before) + 1
    loop.close()
    del loop
    gc.collect()
    assert gc.callbacks == before
    loop = Loop(recorder=64)
    gc.callbacks[:] = before  # a program that clears the list
    del loop
    gc.collect()


@pytest.mark.usefixtures("no_collections")
def test_a_recorder_that_is_made_during_a_collection_misses_it(make_loop):
    made = []

    class Makes(Cycle):
        def __del__(self):
            made.append(make_loop(recorder=64))

    gc.collect()
    Makes()
    gc.collect()
    (loop,) = made
    assert of(loop, "collection") == []
    gc.collect()
    assert len(of(loop, "collection")) >= 1


def test_batches_of_records(make_loop, turns):
    """contract: one event a batch, with the channel's name and the number of records, in the trace too."""
    loop = make_loop(recorder=1024)
    channel = loop.channel([("a", "i8")], lambda _records: None, max_batch=4, name="ticks")
    producer = channel.producer()
    for n in range(6):
        channel.put(n)
    producer.put(1)
    turns(loop, 3)
    batches = [event for event in loop.recorder.events() if event.kind == "batch"]
    assert [(event.name, event.value) for event in batches] == [("ticks", 4), ("ticks", 1), ("ticks", 2)]
    assert batches[0].subject == batches[2].subject != batches[1].subject
    shown = [one["args"] for one in loop.recorder.trace()["traceEvents"] if one["name"] == "batch"]
    assert [(one["channel"], one["records"]) for one in shown] == [("ticks", 4), ("ticks", 1), ("ticks", 2)]
