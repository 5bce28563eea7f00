"""Writers that lap each other in a ring of two entries, and a reader, under controlled schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

from nbloop.kernels.base import layout  # noqa: E402
from nbloop.kernels.observe import event_ring  # noqa: E402
from tests.support import rig  # noqa: E402
from tests.support.explorer import find, mutant, replace, search, together  # noqa: E402


def model() -> None:
    """Two threads record three events each, whose words are all alike; a third reads all numbers twice.

    What is read is one event's words, and those of that number: no two numbers tell the same event.
    """
    with it.no_interleave():
        words = layout.table((layout.RECORDER.dtype.itemsize + 2 * layout.ENTRY.dtype.itemsize) // 8)
        words[: layout.RECORDER.dtype.itemsize // 8].view(layout.RECORDER.dtype)[0]["mask"] = 1
        address = words.ctypes.data
        told: dict[int, int] = {}

    def write(first: int) -> Callable[[], None]:
        def body() -> None:
            for i in range(first, first + 3):
                event_ring.record(address, i, i, i, i, i, i)

        return body

    def read() -> None:
        target = rig.np.zeros(8, rig.np.int64)
        for number in [*range(6), *range(6)]:
            if event_ring.read_entry(address, number, target.ctypes.data):
                number_read, time, duration, _thread, *rest = target.tolist()
                assert number_read == number
                assert {duration, *rest} == {time}, "torn"
                assert told.setdefault(number, time) == time, "two events have one number"

    together(write(10), write(20), read)
    with it.no_interleave():
        read()
        assert len(set(told.values())) == len(told)


@pytest.mark.slow
def test_what_is_read_is_whole() -> None:
    search(model, 100)


def plant(function: Callable[..., Any], *edits: tuple[str, str]) -> Callable[[pytest.MonkeyPatch], None]:
    bug = mutant(function, *edits)

    def put(patch: pytest.MonkeyPatch) -> None:
        if function is event_ring.read_entry:
            patch.setattr(event_ring, "read_entry", bug)
        else:
            replace(patch, function, bug)

    return put


def test_a_sequence_written_first_is_caught() -> None:
    """Published before the words are there."""
    find(
        model,
        plant(event_ring.record, ("compare_and_swap(entry, old, whole | 1)", "compare_and_swap(entry, old, whole)")),
    )


def test_a_place_that_is_not_claimed_is_caught() -> None:
    """Two writers, one of which was asleep for a whole round, in one entry."""
    claim = "if old & 1 != 0 or old > whole or not compare_and_swap(entry, old, whole | 1):"
    find(model, plant(event_ring.record, (claim, "if store(entry, whole | 1):")))


def test_a_claim_that_overlooks_another_is_caught() -> None:
    find(model, plant(event_ring.record, ("old & 1 != 0 or old > whole or", "old > whole or")))


def test_a_claim_that_goes_back_is_caught() -> None:
    """An old number in the place of a newer one is read by nobody: the newer event is gone, and not counted."""
    find(kept, plant(event_ring.record, ("old & 1 != 0 or old > whole or", "old & 1 != 0 or")), first_seed=5)


def test_a_reader_that_does_not_look_again_is_caught() -> None:
    find(model, plant(event_ring.read_entry, ("return load(entry) == whole", "return whole != 0")))


def kept() -> None:
    """Of the last two events each is there, or counted as lost."""
    with it.no_interleave():
        words = layout.table((layout.RECORDER.dtype.itemsize + 2 * layout.ENTRY.dtype.itemsize) // 8)
        record = words[: layout.RECORDER.dtype.itemsize // 8].view(layout.RECORDER.dtype)[0]
        record["mask"] = 1
        address = words.ctypes.data

    def write() -> None:
        for i in range(3):
            event_ring.record(address, i, i, i, i, i, i)

    together(write, write)
    with it.no_interleave():
        target = rig.np.zeros(8, rig.np.int64)
        found = sum(bool(event_ring.read_entry(address, number, target.ctypes.data)) for number in (4, 5))
        assert found + int(record["lost"]) >= 2, "an event is gone, and nobody counts it"


@pytest.mark.slow
def test_nothing_is_gone_uncounted() -> None:
    search(kept, 100)
