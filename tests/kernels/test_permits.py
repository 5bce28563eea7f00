"""permits.py where memory runs out: nothing is lost, and the word counts what is there."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from nbloop.kernels.base.layout import PERMITS_AVAILABLE, PERMITS_BUSY, PERMITS_MOST, PERMITS_PLACE, PERMITS_SHUT
from nbloop.kernels.channels import permits
from nbloop.kernels.state.state import Permits, make_permits

NOTHING = object()


class Due(BaseException):
    pass


class Items(deque[Any]):
    """A deque that calls a function before each append and pop."""

    before: Callable[[], object] = staticmethod(lambda: None)

    def append(self, item: Any) -> None:
        self.before()
        super().append(item)

    def popleft(self) -> Any:
        self.before()
        return super().popleft()


def fails(*_arguments: object) -> Any:
    raise MemoryError


def word(words: Permits) -> int:
    return permits.permits_change.bind(words)(0)  # type: ignore[no-any-return]


def test_an_append_that_fails_gives_its_place_back() -> None:
    items = Items()
    words = make_permits(1, items, Due, NOTHING)
    put = permits.permits_put.bind(words)
    items.before = fails
    with pytest.raises(MemoryError):
        put("lost")
    assert word(words) == 0
    del items.before
    assert put("kept") is None
    assert put("too many") is False
    assert word(words) == PERMITS_AVAILABLE + PERMITS_PLACE
    assert list(items) == ["kept"]


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "no memory"])
def test_somebody_begins_to_wait_during_a_pop(memory: bool) -> None:
    """The item comes in a `Due`; without memory for one it stays in its place, and so does its permit."""
    items = Items()
    words = make_permits(2, items, Due if memory else fails, NOTHING)  # type: ignore[arg-type]
    put, take = permits.permits_put.bind(words), permits.permits_take.bind(words)
    put("first")
    put("second")
    items.before = permits.permits_hold.bind(words)
    if memory:
        due = take()
        assert type(due) is Due
        assert due.args == ("first",)
        assert list(items) == ["second"]
    else:
        with pytest.raises(MemoryError):
            take()
        assert list(items) == ["first", "second"]
    assert word(words) == PERMITS_BUSY + len(items) * (PERMITS_AVAILABLE + PERMITS_PLACE)
    assert take() is NOTHING  # it is busy
    assert put("third") is False


def test_a_put_that_ends_when_somebody_waits_says_so() -> None:
    items = Items()
    words = make_permits(2, items, Due, NOTHING)
    items.before = permits.permits_hold.bind(words)
    assert permits.permits_put.bind(words)("item") is True
    assert permits.permits_put_held.bind(words)("another") is True
    assert permits.permits_put_held.bind(words)("too many") is False
    del items.before
    assert permits.permits_take_held.bind(words)() == "item"
    permits.permits_change.bind(words)(PERMITS_SHUT)
    assert permits.permits_put_held.bind(words)("late") is False
    assert permits.permits_take_held.bind(words)() == "another"
    assert permits.permits_take_held.bind(words)() is NOTHING
    assert word(words) == PERMITS_BUSY + PERMITS_SHUT


def test_the_counts_end_apart() -> None:
    """Neither count reaches into the other, nor into the flags or the sign."""
    words = make_permits(PERMITS_MOST, Items(), Due, NOTHING)
    change, put = permits.permits_change.bind(words), permits.permits_put.bind(words)
    almost = (PERMITS_MOST - 1) * (PERMITS_AVAILABLE + PERMITS_PLACE)
    assert change(almost) == almost
    assert put("last") is None
    assert put("too many") is False
    full = word(words)
    assert (permits.available_of(full), full // PERMITS_PLACE, full & 3) == (PERMITS_MOST, PERMITS_MOST, 0)
    assert permits.permits_take.bind(words)() == "last"
    assert word(words) == almost


def test_what_it_returns_and_keeps_has_the_references_that_it_should() -> None:
    items = Items()
    words = make_permits(3, items, Due, NOTHING)
    put, take = permits.permits_put.bind(words), permits.permits_take.bind(words)
    item = Due()  # of a type of this module: mortal
    before = sys.getrefcount(item), sys.getrefcount(NOTHING)
    for _ in range(50):
        put(item)
        take()
        take()
        items.before = permits.permits_hold.bind(words)
        put(item)
        del items.before
        permits.permits_take_held.bind(words)()
        permits.permits_change.bind(words)(-PERMITS_BUSY)
        put(item)
        items.before = permits.permits_hold.bind(words)
        take()
        del items.before
        permits.permits_change.bind(words)(-PERMITS_BUSY)
    assert (sys.getrefcount(item), sys.getrefcount(NOTHING)) == before
