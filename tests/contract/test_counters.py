"""Counters near their ends: what docs/reliability.md says of each, with values planted as years would leave them.

Those of the structures by themselves are in tests/kernels: of stacks, of slots' generations, of timers' numbers.
"""

from __future__ import annotations

import itertools

import pytest

from nbloop.kernels.base import layout
from nbloop.kernels.observe import histogram, meter
from nbloop.observe import block

FAR = 1 << 62  # at one a ns after 146 years


@pytest.mark.parametrize("count", [(1 << 31) - 100, (1 << 47) - 100, (1 << 48) - 100, FAR], ids=hex)
@pytest.mark.parametrize("options", [{}, {"metrics": True, "recorder": 1024}], ids=["plain", "observed"])
def test_tickets_and_positions(make_loop, elsewhere, count, options):
    """So many tasks, commands and microtasks later everything runs, in order, and is counted."""
    loop, ran = make_loop(**options), []
    record = loop._state.record
    for queue in ("external", "remote"):
        record[queue]["tail"] = record[queue]["head"] = count
    for ring in ("next_ticks", "microtasks", "immediates", "closing", "internal"):
        record[ring]["tail"] = record[ring]["head"] = count
    for word in ("callbacks", "turns", "wakes_sent", "parks", "claimed", "handled", "stalls"):
        record[word] = count

    def callback(number):
        loop.schedule_microtask(ran.append, number)
        loop.schedule_next_tick(ran.append, number)
        loop.schedule_immediate(ran.append, -number)

    for number in range(1, 201):
        loop.submit(callback, number)
    elsewhere(loop.schedule_microtask, ran.append, 0)
    loop.submit_many([lambda: ran.append("many")] * 300)
    loop.submit(loop.stop)
    loop.run()
    loop.stop()
    loop.run()
    each = [number for number in range(1, 201) for _ in range(2)]
    assert ran == [0, *each, *["many"] * 300, *range(-1, -201, -1)]
    assert record["callbacks"] == count + 1 + 3 * 200 + 200 + 300 + 1
    assert record["external"]["head"] == count + 501
    if options:
        flows = [event for event in loop.recorder.trace()["traceEvents"] if event["ph"] in "sf"]
        assert flows
        assert {event["id"] for event in flows if event["ph"] == "s"} == {e["id"] for e in flows if e["ph"] == "f"}


@pytest.mark.parametrize("which", ["latency", "delay"])
def test_sums_of_durations_have_no_end(make_loop, turns, which):
    """A million tasks a second that wait for 0.1 s each are 2**63 ns within a day: the sum goes on, and stays exact."""
    loop = make_loop(metrics=True)
    turns(loop)
    live = loop._block.view(layout.BLOCK.dtype)[0]["live"]
    start = (1 << histogram.CARRY_BITS) - 1
    for carry in (1, 2):
        live[which][0] = start
        before = getattr(loop.metrics(), which).histogram._total
        assert before == (carry << histogram.CARRY_BITS) - 1
        for _ in range(200):
            loop.submit(list)
        turns(loop)
        seen = getattr(loop.metrics(), which)
        assert 0 < seen.histogram._total - before < 10**10
        assert seen.mean > 0
        assert live[which][2] == carry


def test_a_seqlock_goes_on(make_loop, turns):
    loop = make_loop(metrics=True)
    record = loop._block.view(layout.BLOCK.dtype)[0]
    record["sequence"] = record["published"] = FAR
    loop.submit_many([list] * 100)
    turns(loop)
    assert loop.metrics().callbacks == 100
    assert record["sequence"] > FAR


@pytest.mark.parametrize("ghz", [0.02, 0.4, 0.6, 1, 2.5, 5])
def test_ticks_times_multiplier_have_no_end(monkeypatch, ghz):
    """Whatever rate a cycle counter has: no number of ticks becomes a wrong number of ns, or a negative one."""
    monkeypatch.setattr(block, "cycles_count_time", lambda: True)
    monkeypatch.setattr(block.time, "sleep", lambda _seconds: None)
    pairs = iter([(0, 0), (int(10**7 * ghz), 10**7)])
    monkeypatch.setattr(block.Clock, "pair", lambda _self: next(pairs))
    clock = block.Clock()
    assert clock.cycles == (ghz > 0.5)
    figures = layout.table(layout.BLOCK.dtype.itemsize // 8)
    figures.view(layout.BLOCK.dtype)[0]["multiplier"] = clock.multiplier
    address = figures.ctypes.data
    rate = ghz if clock.cycles else 1
    for ticks in (1, 10**9, meter.MOST_TICKS, meter.MOST_TICKS + 1, FAR, (1 << 63) - 1):
        expected = min(ticks, meter.MOST_TICKS) / rate
        assert meter.in_ns(address, ticks) == pytest.approx(expected, rel=1e-5, abs=1)
    assert meter.MOST_TICKS * clock.multiplier < 1 << 63


def test_handle_numbers_begin_anew(make_loop):
    """They are 16 bits of a place in the recorder's events, beside the queues' and the rings'."""
    loop = make_loop(recorder=64)
    loop._state.handle_numbers = itertools.count((1 << layout.PLACE_BITS) - layout.NUMBER_HANDLES - 1)
    last, first = loop.producer(), loop.producer()
    numbers = [int(handle._state.record["queue"]["number"]) for handle in (last, first)]
    assert numbers == [(1 << layout.PLACE_BITS) - 1, layout.NUMBER_HANDLES]
