"""High and low water: each crossing is reported once, on the loop, alternately."""

from __future__ import annotations

import pytest

from tests.support.waiting import together


def test_each_crossing_once(make_loop, turns):
    told = []
    loop = make_loop(on_pressure=told.append, pressure_high=10, pressure_low=4, ingress_budget=3)
    loop.submit_many([int] * 9)
    turns(loop)
    assert told == []  # 9 never were 10
    loop.submit_many([int] * 4)
    turns(loop)
    assert told == ["high"]  # 6 + 4, 7 left
    loop.submit_many([int] * 5)
    turns(loop)
    assert told == ["high"]  # 12, 9 left: above the high mark again, below it never since
    turns(loop)
    assert told == ["high"]  # 6 left
    turns(loop)
    assert told == ["high", "low"]  # 3 left
    loop.submit_many([int] * 7)
    turns(loop)
    assert told == ["high", "low", "high"]


def test_low_is_told_before_the_loop_sleeps(make_loop):
    """One turn runs all of it, and nothing else comes to make another turn."""
    told, order = [], []
    loop = make_loop(on_pressure=lambda level: (told.append(level), order.append(len(order))), pressure_high=100)
    loop.submit_many([lambda: order.append("task")] * 100)
    loop.stop()
    loop.run()
    assert told == ["high", "low"]
    assert order[0] == 0  # before the first task
    assert order[-1] == 101


def test_handles_count(make_loop, turns):
    told = []
    loop = make_loop(on_pressure=told.append, pressure_high=20, pressure_low=0)
    handles = [loop.producer() for _ in range(4)]
    for handle in handles:
        handle.submit_many([int] * 5)
    turns(loop)
    assert told == ["high", "low"]


def test_it_may_raise_and_schedule(make_loop, turns, caplog):
    ran = []
    loop = make_loop(on_pressure=lambda level: (loop.schedule_microtask(ran.append, level), 1 / 0), pressure_high=5)
    loop.submit_many([lambda: ran.append("task")] * 5)
    turns(loop)
    assert ran == ["high", *["task"] * 5, "low"]
    assert [r.getMessage() for r in caplog.records] == [f"on_pressure of {loop.name} raised"] * 2


def test_under_load_they_alternate(make_loop):
    told = []
    loop = make_loop(on_pressure=told.append, pressure_high=500, pressure_low=100)
    with loop:
        together(3, lambda _: [loop.submit(int) for _ in range(20_000)])
    assert told == ["high", "low"] * (len(told) // 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"on_pressure": 5}, TypeError, "on_pressure must be callable"),
        ({"pressure_high": 5}, ValueError, "need on_pressure"),
        ({"on_pressure": print, "pressure_high": 0}, ValueError, "pressure_high must be from 1"),
        ({"on_pressure": print, "pressure_high": 5.0}, TypeError, "pressure_high must be an int"),
        ({"on_pressure": print, "pressure_high": 5, "pressure_low": 5}, ValueError, "pressure_low must be from 0 to 4"),
        ({"on_pressure": print, "pressure_high": 50, "ingress_limit": 40}, ValueError, "pressure_high must be from 1"),
    ],
)
def test_options(make_loop, options, error, message):
    with pytest.raises(error, match=message):
        make_loop(**options)
