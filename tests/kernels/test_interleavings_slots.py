"""Slabs of slots that rest and open (slot_slabs.py) under controlled schedules; the model notices planted bugs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

from nbloop.kernels.memory import slot_slabs  # noqa: E402
from tests.support import rig  # noqa: E402
from tests.support.explorer import find, mutant, replace, search, together  # noqa: E402

PER_SLAB = 2


class SlabModel:
    """Two threads take slots and free them again, while the loop's thread sorts what is free and sends slabs to rest.

    Checked at each step: a slot has one owner, an id never repeats, nobody writes to a slot that is in use. At the end:
    each slot is in one place, slabs at rest are counted and stacked, and stale ids find nothing.
    """

    def __init__(self, free: int) -> None:
        self.free = free  # how many slots are free at first; one more is used
        self.last: rig.Slots | None = None

    def end(self) -> None:
        """Release what the last schedule made, while slabs are as small; it may have failed half-way."""
        if self.last is not None:
            self.last.end()

    def __call__(self) -> None:
        with it.no_interleave():
            self.end()
            slots = self.last = rig.Slots()
            kept, *freed = [slots.take(here=False) for _ in range(self.free + 1)]
            for identifier in reversed(freed):
                slots.give(identifier, here=False)

        def use(count: int) -> None:
            for identifier in [slots.take(here=False) for _ in range(count)]:
                assert identifier != 0
                slots.give(identifier, here=False)

        def trim() -> None:
            for _ in range(2):
                slots.trim()

        together(lambda: use(1), lambda: use(1), trim)
        with it.no_interleave():
            slots.check()
            slots.give(kept, here=True)
            slots.trim_all()
            assert len(slots.resting()) == len(slots.slabs()), "a free slab does not rest"
            again = [slots.take(here=True) for _ in range(len(slots.slabs()) * PER_SLAB)]
            assert len(again) == len(set(again)) == len(slots.slabs()) * PER_SLAB
            slots.check()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    rig.small_slabs(monkeypatch, PER_SLAB, 8, keep=0, pages=False)


@pytest.mark.parametrize("free", [1, 3])
def test_slabs(free: int) -> None:
    model = SlabModel(free)
    search(model, 80)
    model.end()


BUGS: dict[str, tuple[Callable[..., Any], list[tuple[str, str]], int]] = {
    "a chain is taken twice": (
        slot_slabs.slots_regain,
        [("exchange(chain, 0) if load(chain) != 0 else 0", "load(chain); store(chain, 0)")],
        4,
    ),
    "a number is taken without a swap": (
        slot_slabs.slots_make,
        [
            (
                "slab = stack_pop(timers + TIMERS.RESTING, get(timers + TIMERS.SLAB_NEXT))",
                "slab = (load(timers + TIMERS.RESTING) & 7) - 1",
            )
        ],
        0,
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    original, edits, first_seed = BUGS[bug]
    broken = mutant(original, *edits)
    model = SlabModel(3)
    find(model, lambda patch: replace(patch, original, broken), first_seed)
    model.end()
