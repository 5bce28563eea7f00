"""`performance`: High Resolution Time and User Timing Level 3."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from nbloop.js import Performance, PerformanceEntry
from tests.support.waiting import PATIENCE, together


@pytest.fixture
def performance():
    """Without entries."""
    return Performance()


def test_a_view_has_one(js):
    """contract: js.performance."""
    assert isinstance(js.performance, Performance)
    assert js.performance.now() >= 0


def test_now(performance):
    """WPT hr-time/monotonic-clock.any.js, basic.any.js: milliseconds, a fraction, never back."""
    before = time.monotonic()
    moments = [performance.now() for _ in range(10_000)]
    elapsed = (time.monotonic() - before) * 1000
    assert moments == sorted(moments)
    assert all(isinstance(moment, float) for moment in moments)
    assert 0 <= moments[-1] - moments[0] <= elapsed


def test_time_origin():
    """WPT hr-time/timeOrigin.html: the wall clock's milliseconds at its making."""
    before = time.time() * 1000
    performance = Performance()
    after = time.time() * 1000
    assert before - 1 <= performance.time_origin <= after + 1
    assert performance.now() >= 0


def test_mark(performance):
    """WPT user-timing/mark.any.js: an entry of duration 0, now or at the given time."""
    before = performance.now()
    entry = performance.mark("a", detail={"k": 1})
    assert before <= entry.start_time <= performance.now()
    assert (entry.name, entry.entry_type, entry.duration, entry.detail) == ("a", "mark", 0, {"k": 1})
    assert performance.mark("b", start_time=5).start_time == 5
    assert performance.mark("c").detail is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.name = "other"


def test_measure_between_marks(performance):
    """WPT user-timing/measure.html: from one mark to another, or to numbers."""
    performance.mark("a", start_time=10)
    performance.mark("b", start_time=25.5)
    entry = performance.measure("m", "a", "b", detail=7)
    assert entry == PerformanceEntry("m", "measure", 10, 15.5, 7)
    assert performance.measure("n", 5, "b").duration == 20.5
    assert performance.measure("o", "a", 11).duration == 1


def test_measure_defaults(performance):
    """WPT user-timing/measure_navigation_timing.html: no start is the origin, no end is now."""
    before = performance.now()
    entry = performance.measure("m")
    assert entry.start_time == 0
    assert before <= entry.duration <= performance.now()
    mark = performance.mark("a")
    assert performance.measure("n", "a").start_time == mark.start_time


def test_measure_takes_the_last_mark(performance):
    """WPT user-timing/measure-with-dict.any.js: of marks with one name the most recent."""
    performance.mark("a", start_time=1)
    performance.mark("a", start_time=7)
    assert performance.measure("m", "a", 10).duration == 3


def test_measure_backwards(performance):
    """WPT user-timing/measure-exceptions.html: the end may be before the start; the duration is negative."""
    assert performance.measure("m", 10, 4).duration == -6


def test_names_are_strings(performance):
    """contract: TypeError; nothing is remembered."""
    for remember in (performance.mark, performance.measure):
        with pytest.raises(TypeError, match="name must be a str, not 5"):
            remember(5)
    assert performance.get_entries() == []


def test_measure_of_an_unknown_mark(performance):
    """WPT user-timing/measure-exceptions.html: a SyntaxError there, a LookupError here; nothing is remembered."""
    performance.mark("a")
    for arguments in (("never",), ("a", "never")):
        with pytest.raises(LookupError, match="never"):
            performance.measure("m", *arguments)
    performance.measure("was a measure", 0, 1)
    with pytest.raises(LookupError):
        performance.measure("m", "was a measure")
    performance.clear_marks("a")
    with pytest.raises(LookupError):
        performance.measure("m", "a")
    assert [e.name for e in performance.get_entries(entry_type="measure")] == ["was a measure"]


def test_entries(performance):
    """WPT performance-timeline/po-getentries.any.js, user-timing/entry_type.any.js: in order of start, by name, by
    type.
    """
    performance.mark("a", start_time=3)
    performance.mark("b", start_time=1)
    performance.measure("a", 2, 5)
    performance.mark("a", start_time=2)
    assert [(e.name, e.start_time) for e in performance.get_entries()] == [("b", 1), ("a", 2), ("a", 2), ("a", 3)]
    assert [e.start_time for e in performance.get_entries(name="a", entry_type="mark")] == [2, 3]
    assert [e.entry_type for e in performance.get_entries(name="a")] == ["measure", "mark", "mark"]
    assert performance.get_entries(name="never") == []
    performance.get_entries().clear()
    assert len(performance.get_entries()) == 4


def test_clear(performance):
    """WPT user-timing/clearMarks.html, clearMeasures.html, clear_one_mark.any.js, clear_non_existent_measure.any.js."""
    for name in ("a", "b"):
        performance.mark(name)
        performance.measure(name)
    performance.clear_marks("a")
    performance.clear_measures("never")
    assert sorted((e.name, e.entry_type) for e in performance.get_entries()) == [
        ("a", "measure"),
        ("b", "mark"),
        ("b", "measure"),
    ]
    performance.clear_measures()
    assert [(e.name, e.entry_type) for e in performance.get_entries()] == [("b", "mark")]
    performance.clear_marks()
    assert performance.get_entries() == []


def test_threads(performance):
    """contract: every method from any thread: no mark is lost."""

    def act(i):
        for n in range(200):
            performance.mark(f"{i} {n}")
            performance.measure(f"{i}", f"{i} {n}")
            performance.get_entries(name=f"{i}")

    assert together(4, act) == [None] * 4
    assert len(performance.get_entries(entry_type="mark")) == 800
    assert len(performance.get_entries(entry_type="measure")) == 800


@pytest.mark.parametrize(("moment", "error"), [("oops", TypeError), (True, TypeError), (float("nan"), ValueError)])
def test_bad_moments(performance, moment, error):
    """What is not a number of ms is refused before it becomes an entry that cannot be sorted."""
    with pytest.raises(error, match="start_time must be"):
        performance.mark("a", start_time=moment)
    if not isinstance(moment, str):  # which is a mark's name
        with pytest.raises(error, match="end must be"):
            performance.measure("a", end=moment)
        with pytest.raises(error, match="start must be"):
            performance.measure("a", start=moment)
    assert performance.get_entries() == []


class Marks(str):
    """A name whose comparison, the program's own code, makes a mark."""

    __slots__ = ("performance",)

    def __eq__(self, other):
        self.performance.mark("meanwhile")
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_mark_in_the_middle_of_a_call(performance):
    """As a finaliser may make one, in the middle of any call."""
    name = Marks("a")
    name.performance = performance
    performance.mark("a")
    left = []

    def uses():
        performance.clear_marks(name)
        left.extend(entry.name for entry in performance.get_entries())

    thread = threading.Thread(target=uses, daemon=True)  # which would hang
    thread.start()
    thread.join(PATIENCE)
    assert left == ["meanwhile"]
