"""slots.py and slot_slabs.py: slots taken, used and freed, slabs that rest and open, against a dict of ids."""

from __future__ import annotations

import ctypes
import mmap
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import compare_and_swap, load
from nbloop.kernels.base.layout import SLOT, SLOT_BYTES, TIMERS
from nbloop.kernels.memory import slot_slabs
from nbloop.kernels.memory.slot_slabs import slab_rests, slot_at, slots_trim
from nbloop.kernels.memory.slots import SPENT, slot_free, slot_open, slot_take
from nbloop.kernels.state import traverse
from tests.support import rig

SMALL = mmap.PAGESIZE // SLOT_BYTES  # slots of a slab that is one page, so that slabs often come to rest
SLABS, KEEP = 16, 2
GIVES_BACK = sys.platform == "linux"


class SlotMachine(RuleBasedStateMachine):
    """Slots are taken here and elsewhere, freed in any order, sorted in portions; memory runs out now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        rig.small_slabs(self.patch, SMALL, SLABS, keep=KEEP)
        self.its = rig.Slots()

    def teardown(self) -> None:
        self.its.end()
        self.patch.undo()

    @rule(count=st.sampled_from([1, 3, SMALL + 30, 6 * SMALL]), here=st.booleans())
    def take(self, count: int, here: bool) -> None:
        """A slot that nobody has, under an id that nobody had."""
        for _ in range(count):
            before = self.its.resting() if count < 4 and self.its.free() else None
            if not self.its.take(here):
                assert rig.maps.failing or len(self.its.slabs()) == SLABS
                assert not self.its.resting(), "there was a slab to open"
                assert set(self.its.free()) <= (set() if here else set(self.its.spare())), "there was a free slot"
                return
            assert not here or before in (None, self.its.resting()), "a slab was opened for nothing"

    @precondition(lambda self: self.its.naive.taken)
    @rule(choice=st.integers(0, 1 << 20), share=st.sampled_from([0, 1, 1, 2, SMALL, SMALL + 1]), here=st.booleans())
    def free(self, choice: int, share: int, here: bool) -> None:
        """One; all; every second; all but one of each slab, more or less."""
        taken = sorted(self.its.naive.taken.values())
        random.Random(choice).shuffle(taken)
        if share == 0:
            taken = taken[:1]
        elif share > 1:
            taken = [identifier for identifier in taken if identifier % share]
        for identifier in taken:
            self.its.give(identifier, here)

    def on_the_stack(self) -> int:
        return len(rig.stacked(self.its.timers + TIMERS.FREE, int(self.its.record["next"])))

    @rule(portions=st.sampled_from([1, 1, 3]))
    def trim(self, portions: int) -> None:
        """A portion sorts no more than it may."""
        for _ in range(portions):
            before = self.on_the_stack()
            self.its.trim()
            assert before - self.on_the_stack() <= slot_slabs.PORTION

    @rule()
    def trim_all(self) -> None:
        """When nothing is left to do, only as many slabs are open and free as may be; without reason nothing is
        done.
        """
        free = (len(self.its.slabs()) - len(self.its.resting())) * SMALL - len(self.its.naive.taken)
        begun = int(self.its.record["unsorted"]) != 0
        loose = free - int(self.its.record["gathered_count"])
        last, used = int(self.its.record["last_used"]), len(self.its.naive.taken)
        empty = len(self.its.slabs()) - len(self.its.resting()) - used
        reason = free >= 2 * KEEP * SMALL and (
            loose >= KEEP * SMALL or empty > 2 * KEEP or (last > 0 and 2 * used <= last)
        )
        kept = self.its.free()
        if self.its.trim_all() or self.its.free() != kept:
            assert begun or reason, "trimmed for nothing"
            used = {slot // SMALL for slot in self.its.naive.taken}
            still = set(self.its.slabs()) - self.its.resting()
            assert still <= used or len(still) <= KEEP or begun
        else:
            assert not reason, "nothing was done"

    @rule(failing=st.booleans())
    def allocations(self, failing: bool) -> None:
        rig.maps.failing = failing

    @invariant()
    def in_one_place(self) -> None:
        self.its.check()

    @invariant()
    def visited(self) -> None:
        """The collector sees what is in use, and does not look at slabs at rest."""
        seen: list[int] = []
        looked: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(traverse, "visit_object", lambda _visit, target, _argument: seen.append(target) or 0)
            patch.setattr(traverse, "slot_at", lambda timers, slot: looked.append(slot) or slot_at(timers, slot))
            assert traverse.visit_slots(self.its.timers, 0, 0) == 0
        assert seen == [16] * len(self.its.naive.taken)
        still = set(self.its.slabs()) - self.its.resting()
        assert {slot // SMALL for slot in looked} == still
        assert len(looked) == len(still) * SMALL


TestSlots = SlotMachine.TestCase
TestSlots.settings = rig.settings(rig.MACHINE, max_examples=30, stateful_step_count=25)


@pytest.fixture
def its(monkeypatch: pytest.MonkeyPatch) -> Iterator[rig.Slots]:
    rig.small_slabs(monkeypatch, SMALL, SLABS, keep=0)
    made = rig.Slots()
    yield made
    made.check()
    made.end()


def fill(its: rig.Slots, slabs: int) -> list[int]:
    return [its.take(here=False) for _ in range(slabs * SMALL)]


def free(its: rig.Slots, identifiers: list[int]) -> None:
    for identifier in identifiers:
        its.give(identifier, here=False)


def between(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[int, int, int], bool], other: Callable[[], Any]) -> None:
    """Have `other` happen once, just before the first swap that is `wanted`."""
    waiting = [other]

    def swap(address: int, expected: int, value: int) -> bool:
        if waiting and wanted(address, expected, value):
            waiting.pop()()
        return compare_and_swap(address, expected, value)

    monkeypatch.setattr(slot_slabs, "compare_and_swap", swap)


def test_a_chain_that_somebody_takes_does_not_rest(its: rig.Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """All slots of a slab are gathered; before the loop's thread takes the chain, another thread has taken it."""
    free(its, fill(its, 1))
    taken: list[int] = []
    between(monkeypatch, lambda _, __, value: value == 0, lambda: taken.append(its.take(here=False)))
    its.trim()
    assert taken != [0]
    assert its.resting() == set()
    assert len(its.free()) == SMALL - 1


def test_a_chain_that_somebody_takes_while_a_slot_joins_it(its: rig.Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot is then alone in the chain, and the retry is counted."""
    made = fill(its, 2)
    free(its, made[1 : SMALL - 1])
    while its.trim():
        pass
    assert len(its.gathered(0)) == SMALL - 2
    free(its, made[:1])
    taken: list[int] = []
    between(monkeypatch, lambda _, expected, __: expected != 0, lambda: taken.append(its.take(here=False)))
    its.trim()
    assert its.record["resting_retries"] == 1
    assert taken != [0]
    assert len(its.free()) == SMALL - 2


def test_a_slab_may_open_as_soon_as_its_number_is_in_the_stack(its: rig.Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    free(its, fill(its, 1))
    stack_push, taken = slot_slabs.stack_push, list[int]()

    def and_open(head: int, *chain: int) -> None:
        stack_push(head, *chain)
        if head == its.timers + TIMERS.RESTING:
            taken.append(its.take(here=False))

    monkeypatch.setattr(slot_slabs, "stack_push", and_open)
    its.trim()
    assert len(taken) == 1
    assert its.resting() == set()


def test_two_threads_make_slots_at_once(its: rig.Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mapping is released again, and both get slots of the other."""
    before = set(rig.maps.living)
    between(monkeypatch, lambda *_: True, lambda: its.take(here=False))
    assert its.take(here=False) != 0
    assert len(set(rig.maps.living) - before) == 1
    assert len(its.slabs()) == 1


def test_half_of_what_outlives_a_peak_lets_slabs_rest(its: rig.Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slot of each slab is left, and a few more of the first: nothing can rest. When all but those of the first
    slab are freed, the other slabs rest.
    """
    monkeypatch.setattr(slot_slabs, "KEEP_SLABS", KEEP)
    made = fill(its, SLABS)
    stay, go = made[: SLABS - 2 * KEEP + 1], made[SMALL::SMALL]
    free(its, [identifier for identifier in made if identifier not in {*stay, *go}])
    assert its.trim_all()
    assert its.resting() == set()
    free(its, go)
    assert SLABS - len(stay) <= 2 * KEEP, "so many are used that every slab might be"
    assert its.trim_all()
    assert len(its.resting()) == SLABS - KEEP


def test_what_is_freed_during_a_sorting_counts_for_the_next(its: rig.Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peak that comes and goes between two portions: its memory goes back, too."""
    monkeypatch.setattr(slot_slabs, "KEEP_SLABS", KEEP)
    monkeypatch.setattr(slot_slabs, "PORTION", SMALL)
    free(its, fill(its, SLABS // 2))
    assert its.trim(), "there is more to sort"
    free(its, fill(its, SLABS))
    while its.trim():
        pass
    its.trim_all()
    assert len(its.resting()) == SLABS - KEEP


def test_a_few_that_are_freed_during_a_sorting_keep_nothing_open(
    its: rig.Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is freed is sorted before what was free. When the sorting ends, one slot of each slab is in no chain: too
    few to begin another because of their number, but no slab could rest.
    """
    monkeypatch.setattr(slot_slabs, "KEEP_SLABS", SLABS // 4)
    made = fill(its, SLABS)
    for share in (0, *range(2, SMALL)):
        free(its, made[share::SMALL])
    assert its.trim(), "there is more to sort"
    free(its, made[1::SMALL])
    while its.trim():
        pass
    its.trim_all()
    assert len(its.resting()) == SLABS - SLABS // 4


def test_spare_slots_do_not_keep_their_slabs_open(its: rig.Slots) -> None:
    """The loop's thread has kept one slot of each of eight slabs."""
    made = fill(its, 8)
    for identifier in made[::SMALL]:
        its.give(identifier, here=True)
    free(its, [identifier for number, identifier in enumerate(made) if number % SMALL])
    assert len(its.spare()) == 8
    its.trim_all()
    assert its.resting() == set(range(8))


def test_a_slab_begins_at_rest(its: rig.Slots) -> None:
    """Of a large mapping, one slab opens at a time, and the lowest first."""
    fill(its, 4)
    its.take(here=False)
    assert len(its.slabs()) == 8
    assert its.resting() == {5, 6, 7}
    fill(its, 1)
    assert its.resting() == {6, 7}


def test_ids_go_on_where_the_slab_left_off(its: rig.Slots) -> None:
    """Also if a single slot of the slab was used very often."""
    made = fill(its, 1)
    for _ in range(100):
        its.give(made[SMALL // 2], here=True)
        made[SMALL // 2] = its.take(here=True)
    free(its, made)
    its.trim_all()
    assert its.resting() == {0}
    again = fill(its, 1)
    assert {identifier >> layout.SLOT_BITS for identifier in again} == {102}


def test_what_rests_has_no_pages_and_reads_as_zero() -> None:
    """At the size that it has: the slots, and their links in the stack's table. Others keep theirs."""
    memory = rig.Memory()
    timers, count = memory.timers, 40 * slot_slabs.PER_SLAB
    taken = [slot_take(timers) for _ in range(count)]
    for slot in taken:
        slot_open(timers, slot, 16, SPENT)
    for slot in taken[slot_slabs.PER_SLAB // 2 :]:
        slot_free(timers, slot)
    while slots_trim(timers, slot_slabs.PER_SLAB // 2):
        pass
    resting = {slab for slab in range(40) if slab_rests(timers, slab)}
    assert len(resting) == 40 - slot_slabs.KEEP_SLABS
    assert 0 not in resting
    links = 8 * slot_slabs.PER_SLAB
    for slab in range(40):
        slots_at = slot_at(timers, slab * slot_slabs.PER_SLAB)
        links_at = int(memory.record["timers"]["next"]) + slab * links
        if GIVES_BACK:  # first: a read of a missing page makes it present
            assert resident(slots_at, slot_slabs.PER_SLAB * SLOT_BYTES) == (slab not in resting)
            if links % mmap.PAGESIZE == 0:
                assert resident(links_at, links) == (slab not in resting)
            assert (load(slots_at + SLOT.WORD) != 0) == (slab not in resting)


def test_links_stay_where_a_page_holds_those_of_several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(slot_slabs, "map_empty", lambda address, _size: emptied.append(address))
    memory = rig.Memory()
    memory.record["timers"]["page"] = 4 * 8 * slot_slabs.PER_SLAB
    for slot in [slot_take(memory.timers) for _ in range(slot_slabs.PER_SLAB)]:
        slot_slabs.slot_gather(memory.timers, slot)
    slot_slabs.slab_rest(memory.timers, 0)
    assert emptied == [slot_at(memory.timers, 0)]


def resident(address: int, size: int) -> bool:
    """Whether all pages are in memory; fails if only some are."""
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
    here = {page & 1 for page in pages}
    assert len(here) == 1
    return here == {1}
