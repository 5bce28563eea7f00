"""timer_slots.py, through the public methods of a loop that makes one turn at a time, against a dict."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop import Loop
from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import get, put
from nbloop.kernels.base.capi import Py_DecRef, Py_IncRef
from nbloop.kernels.ingress.ticket_queue import queue_close
from nbloop.kernels.memory import slot_slabs, slots
from nbloop.kernels.methods import lifetime, timer_methods
from nbloop.kernels.timers import timer_slots
from tests.support import naive, rig

NEVER = 3600.0
HERE, ELSEWHERE = "from a callback", "from another thread"


def turn(loop: Loop) -> None:
    loop.stop()
    loop.run()


def elsewhere(call: Callable[[], Any]) -> Any:
    """The result of `call()` on another thread."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join(30)
    return results[0]


class Callback:
    """Notes its calls; an interval may cancel itself after a number of them."""

    def __init__(self, machine: TimerMachine, name: int, left: int) -> None:
        self.machine, self.name, self.left = machine, name, left
        self.identifier = 0

    def __call__(self) -> None:
        self.machine.fired.append(self.name)
        self.left -= 1
        if self.left == 0:
            assert self.machine.loop.cancel_timer(self.identifier)
            assert not self.machine.loop.cancel_timer(self.identifier)


class TimerMachine(RuleBasedStateMachine):
    """Timers that are due in every turn or never, armed and cancelled outside the loop, inside it, and on another
    thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.naive = naive.Timers()
        self.fired: list[int] = []
        self.callbacks: dict[int, weakref.ref[Callback]] = {}  # by name
        self.ids: list[int] = [0, -1, 1 << 70, 12345]  # of all that ever were, and of none
        self.names: dict[int, int] = {}

    def do(self, where: str, call: Callable[[], Any]) -> Any:
        if where == ELSEWHERE:
            return elsewhere(call)
        if where == HERE:
            self.naive.turn()  # the timers of the same turn come before its tasks
            results: list[Any] = []
            self.loop.submit(lambda: results.append(call()))
            turn(self.loop)
            return results[0]
        return call()

    where = st.sampled_from(["outside", "outside", HERE, ELSEWHERE])

    @rule(where=where, due=st.booleans(), left=st.sampled_from([None, None, 0, 1, 2]))
    def arm(self, where: str, due: bool, left: int | None) -> None:
        """An interval if `left` is given; it cancels itself after that many calls, 0 for never."""
        name, delay = len(self.callbacks), 0 if due else NEVER
        callback = Callback(self, name, left or 0)
        self.callbacks[name] = weakref.ref(callback)
        schedule = self.loop.schedule_timer if left is None else self.loop.schedule_interval
        identifier = callback.identifier = self.do(where, lambda: schedule(delay, callback))
        assert identifier > 0
        assert identifier not in self.ids
        self.ids.append(identifier)
        self.names[identifier] = name
        self.naive.live[identifier] = naive.Timer(name, due, left is not None, left=left or 0)

    @rule(where=where, choice=st.integers(0, 1 << 20))
    def cancel(self, where: str, choice: int) -> None:
        """Definite at once, from anywhere; False for an id that was used up, and for what never was one."""
        identifier = self.ids[choice % len(self.ids)]
        answer = self.do(where, lambda: self.loop.cancel_timer(identifier))
        assert answer == self.naive.cancel(identifier)

    @rule(choices=st.lists(st.integers(0, 1 << 20), max_size=4))
    def cancel_many(self, choices: list[int]) -> None:
        ids = [self.ids[choice % len(self.ids)] for choice in choices]
        assert self.loop.cancel_timers(ids) == [self.naive.cancel(identifier) for identifier in ids]

    @rule(choice=st.integers(0, 1 << 20), referenced=st.booleans())
    def reference(self, choice: int, referenced: bool) -> None:
        identifier = self.ids[choice % len(self.ids)]
        call = self.loop.ref_timer if referenced else self.loop.unref_timer
        assert call(identifier) == self.naive.reference(identifier, referenced)

    @precondition(lambda self: any(timer.due for timer in self.naive.live.values()))
    @rule()
    def turn(self) -> None:
        """All that is due runs once, in the order of arming; an interval goes to the end of it."""
        self.naive.turn()
        turn(self.loop)

    @invariant()
    def same(self) -> None:
        """What has fired; whether the loop has a reason to live."""
        assert self.fired == self.naive.fired
        assert self.loop.alive() == self.naive.alive()

    @invariant()
    def callbacks_live_as_long_as_their_timers(self) -> None:
        """A callback is released when its timer has fired for the last time or was cancelled, and not before."""
        live = {timer.name for timer in self.naive.live.values()}
        assert {name for name, callback in self.callbacks.items() if callback() is not None} == live

    def teardown(self) -> None:
        self.loop.close()
        assert all(callback() is None for callback in self.callbacks.values())


TestTimers = TimerMachine.TestCase
TestTimers.settings = rig.settings(rig.MACHINE, max_examples=20)


def test_ids_of_a_slot_used_again_differ() -> None:
    """A stale id is unknown, and never denotes another timer."""
    loop = Loop()
    stale = loop.schedule_timer(0, list)
    turn(loop)
    others = [loop.schedule_timer(NEVER, list) for _ in range(2000)]
    assert len({stale, *others}) == 2001
    assert not loop.cancel_timer(stale)
    assert all(loop.cancel_timers(others))
    loop.close()


@pytest.mark.parametrize("cancelled", [False, True])
def test_equal_deadlines_fire_in_scheduling_order(cancelled: bool) -> None:
    """Also when those between them were cancelled."""
    loop, fired = Loop(), []
    ids = [loop.schedule_timer(0, fired.append, i) for i in range(200)]
    if cancelled:
        assert all(loop.cancel_timers(ids[::3]))
    turn(loop)
    assert fired == [i for i in range(200) if not cancelled or i % 3]
    loop.close()


def test_no_id_is_zero() -> None:
    """Not even after the last generation of slot 0, when generations start over."""
    memory = rig.Memory()
    slot = slots.slot_take(memory.timers)
    assert slot == 0
    record = slot_slabs.slot_at(memory.timers, slot)
    last = slots.slot_open(memory.timers, slot, 8, 1)
    assert last > 0
    put(record + layout.SLOT.WORD, slots.GENERATION_MASK << slots.GENERATION_SHIFT)
    assert slots.slot_open(memory.timers, slot, 8, 1) == last


def test_delays_are_rounded_up() -> None:
    """A delay of any part of a ns is one ns: never early."""
    base = rig.Memory().base
    asked = {0.0: 0, -1.0: 0, 0.1: 1, 1.0: 1, 1.5: 2, 7: 7}
    assert {delay: timer_methods.nanoseconds(base, id(delay), 1.0, layout.REFUSED_DELAY) for delay in asked} == asked


def test_a_stale_id_is_nobodys_reference() -> None:
    """The slot that the id names belongs to another timer by now, which stays as it is."""
    loop = Loop()
    stale = loop.schedule_timer(0, list)
    turn(loop)
    others: list[int] = []
    # There slots come back first.
    loop.submit(lambda: others.extend(loop.schedule_timer(NEVER, list) for _ in range(10)))
    turn(loop)
    assert stale & (layout.SLOT_LIMIT - 1) in {other & (layout.SLOT_LIMIT - 1) for other in others}
    assert not loop.unref_timer(stale)
    assert all(loop.unref_timer(other) for other in others)
    assert not loop.ref_timer(stale)
    assert not loop.alive()
    loop.close()


def test_slots_of_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there are many, a map has many slabs: every slot once, each with its own 64 bytes, zeroed."""
    memory = rig.Memory()
    before = set(rig.maps.living)
    monkeypatch.setattr(slot_slabs, "MANY", 4 * slot_slabs.PER_SLAB)
    count = 4 * slot_slabs.PER_SLAB + 2 * slot_slabs.MANY
    taken = [slots.slot_take(memory.timers) for _ in range(count)]
    assert sorted(taken) == list(range(count))
    assert memory.record["timers"]["slot_count"] == count
    assert len(set(rig.maps.living) - before) == 4 + 2
    places = sorted(slot_slabs.slot_at(memory.timers, slot) for slot in taken)
    assert all(place % layout.SLOT_BYTES == 0 for place in places)
    assert all(after - place >= layout.SLOT_BYTES for place, after in itertools.pairwise(places))
    assert all(get(place + layout.SLOT.WORD) == 0 for place in places)
    assert all(slots.slot_of(memory.timers, 1 << layout.SLOT_BITS | slot) for slot in (taken[0], taken[-1]))
    rig.maps.failing = True
    assert slots.slot_take(memory.timers) == -1
    slots.slot_free(memory.timers, taken[-1])
    assert slots.slot_take(memory.timers) == taken[-1]
    ended = 1
    while slot_slabs.slots_end(memory.timers):  # while maps are as small
        ended += 1
    assert ended == 3  # a portion has as many slots as a large map
    assert set(rig.maps.living) == before


def test_the_last_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large map that would go beyond the last number is a small one; then there is none, and nothing is lost."""
    memory = rig.Memory()
    before = set(rig.maps.living)
    monkeypatch.setattr(slot_slabs, "MANY", 4 * slot_slabs.PER_SLAB)
    monkeypatch.setattr(slot_slabs, "SLOT_LIMIT", 13 * slot_slabs.PER_SLAB)
    taken = {slots.slot_take(memory.timers) for _ in range(13 * slot_slabs.PER_SLAB)}
    assert taken == set(range(13 * slot_slabs.PER_SLAB))
    assert len(set(rig.maps.living) - before) == 4 + 2 + 1
    assert slots.slot_take(memory.timers) == -1
    assert memory.record["timers"]["slot_count"] == 13 * slot_slabs.PER_SLAB
    assert len(set(rig.maps.living) - before) == 4 + 2 + 1
    ended = 1
    while slot_slabs.slots_end(memory.timers):  # while maps are as small
        ended += 1
    assert ended == 3  # a portion has as many slots as a large map
    assert set(rig.maps.living) == before


def test_small_maps_are_released_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a system call, as a large one does."""
    memory = rig.Memory()
    before = set(rig.maps.living)
    monkeypatch.setattr(slot_slabs, "MANY", 32 * slot_slabs.PER_SLAB)
    for _ in range(31 * slot_slabs.PER_SLAB):
        slots.slot_take(memory.timers)
    living = [len(set(rig.maps.living) - before)]
    while slot_slabs.slots_end(memory.timers):
        living.append(len(set(rig.maps.living) - before))
    assert living == [31, 15]
    assert set(rig.maps.living) == before


def test_threads_make_large_maps_at_once() -> None:
    """More timers than small slabs have, armed by four threads; each id is its own, and each cancel finds its timer."""
    loop, ids = Loop(), [list[int]() for _ in range(4)]
    share = 3 * slot_slabs.MANY // 8
    barrier = threading.Barrier(4)

    def arm(mine: list[int]) -> None:
        barrier.wait(30)
        mine.extend(loop.schedule_timer(NEVER, list) for _ in range(share))

    threads = [threading.Thread(target=arm, args=(mine,)) for mine in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    every = [identifier for mine in ids for identifier in mine]
    assert len({identifier & (layout.SLOT_LIMIT - 1) for identifier in every}) == 4 * share
    assert loop._record["timers"]["slot_count"] > slot_slabs.MANY
    assert all(loop.cancel_timer(identifier) for identifier in every)
    assert not any(loop.cancel_timers(every))
    assert not loop.alive()
    loop.close()


def test_the_end_releases_each_slot_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finaliser that visited four million slots of a closed loop took 8 ms, in which no signal was handled."""
    memory = rig.Memory()
    for _ in range(3):
        slots.slot_take(memory.timers)
    visited: list[int] = []
    monkeypatch.setattr(lifetime, "slot_of", lambda _timers, identifier: visited.append(identifier) or 0)
    lifetime.release_all(memory.base, False)
    assert len(visited) == memory.record["timers"]["slot_count"]
    visited.clear()
    lifetime.release_all(memory.base, False)
    assert visited == []


@pytest.mark.parametrize("end", ["closed", "released"])
def test_a_foreign_arm_that_is_refused(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """The queue is closed between a slot's opening and its command. The arming thread gets its reference back, unless
    the end has meanwhile released what all slots hold: never both.
    """
    memory = rig.Memory()
    callback = object()
    before = sys.getrefcount(callback)
    Py_IncRef(id(callback))
    slot_open = timer_slots.slot_open

    def then_the_end(*args: int) -> int:
        identifier = slot_open(*args)
        queue_close(memory.external)
        queue_close(memory.remote)
        if end == "released":
            lifetime.release_all(memory.base, False)
        return identifier

    monkeypatch.setattr(timer_slots, "slot_open", then_the_end)
    status = -timer_slots.timer_arm_elsewhere(memory.base, id(callback), 10**9, -1, 0)
    assert status & ~layout.GONE == layout.REFUSED_CLOSED
    assert (status & layout.GONE != 0) == (end == "released")
    assert sys.getrefcount(callback) == before + (end == "closed")
    if end == "closed":
        Py_DecRef(id(callback))
    assert get(slot_slabs.slot_at(memory.timers, 0) + layout.SLOT.WORD) & slots.STATE_MASK == slots.SPENT
    assert slots.slot_take(memory.timers) == 0  # free again
