"""timer_queue.py and buckets.py against a sorted list, and through loops that fire in exactly that order."""

from __future__ import annotations

import ctypes
import random
import time

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop import Loop
from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import first_bit, load, store
from nbloop.kernels.base.layout import SLOT, SLOT_BITS, SLOT_LIMIT
from nbloop.kernels.ingress.parking import FOREVER
from nbloop.kernels.memory.slot_slabs import slot_at
from nbloop.kernels.memory.slots import slot_free, slot_take
from nbloop.kernels.timers import buckets, timer_queue
from nbloop.kernels.timers.buckets import GRAIN_BITS, bucket_at, bucket_chunk, bucket_for, bucket_start
from nbloop.kernels.timers.timer_heap import heap_pop, order_of
from nbloop.kernels.timers.timer_queue import (
    timer_queue_clear,
    timer_queue_due,
    timer_queue_insert,
    timer_queue_next,
    timer_queue_remove,
)
from tests.support import naive, rig

# ns; the last reaches the highest level
SPANS = [1, 1 << GRAIN_BITS, 1 << 21, 1 << 27, 1 << 33, 1 << 40, 1 << 50, 1 << 62]


@pytest.mark.parametrize("sequence", [0, 1, (1 << 41) - 1, 1 << 41, (1 << 63) - 1])
def test_the_order_of_a_timer_is_never_0(sequence: int) -> None:
    """0 in a slot means that there is no entry."""
    order = ctypes.c_int64(order_of(sequence)).value
    assert order != 0
    assert order & (SLOT_LIMIT - 1) == 0  # where the slot goes


class AgendaMachine(RuleBasedStateMachine):
    """Deadlines of every range, many of them equal; time that creeps and leaps; memory that runs out."""

    FIRST = 0  # the number of timers armed before

    def __init__(self) -> None:
        super().__init__()
        self.memory = rig.Memory()
        self.base, self.timers = self.memory.base, self.memory.timers
        self.now = 1 << 40 | 12345
        buckets.buckets_begin(self.base, self.now)
        self.naive = naive.Heap()
        self.memory.record["timers"]["sequence"] = self.FIRST
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(timer_queue, "FEW", 2)  # so that small buckets are opened level by level too
        self.patch.setattr(timer_queue, "SWEEP_LEAST", 3)
        self.patch.setattr(buckets, "SWEEP_LEAST", 3)

    def teardown(self) -> None:
        self.patch.undo()

    def sequence(self) -> int:
        return int(self.memory.record["timers"]["sequence"])

    @rule(span=st.sampled_from(SPANS), part=st.integers(0, 16), count=st.sampled_from([1, 1, 3, 20]))
    def insert(self, span: int, part: int, count: int) -> None:
        deadline = self.now + span * part // 16
        if deadline >= 1 << 63:  # the loop takes delays of 126 years, and its clock does not reach as many
            return
        if self.memory.record["far"]["count"] == 0:  # as `arm` does
            buckets.buckets_begin(self.base, self.now)
        for _ in range(count):
            slot = slot_take(self.timers)
            if slot < 0:
                return
            record = slot_at(self.timers, slot)
            before = self.sequence()
            if timer_queue_insert(self.base, slot, record, deadline, 6) < 0:
                assert rig.blocks.failing
                assert self.sequence() == before
                slot_free(self.timers, slot)
                continue
            assert load(record + SLOT.ORDER) == self.order(before + 1) | 6
            self.naive.insert(deadline, before + 1, slot)

    @staticmethod
    def order(sequence: int) -> int:
        """As a word has it."""
        return ctypes.c_int64(order_of(sequence)).value

    def forget(self, slot: int) -> None:
        slot_free(self.timers, slot)
        self.naive.remove(slot)

    @precondition(lambda self: self.naive.entries)
    @rule(choice=st.integers(0, 1 << 20), count=st.sampled_from([1, 1, 4, 30]))
    def cancel(self, choice: int, count: int) -> None:
        for _ in range(min(count, len(self.naive.entries))):
            slot = self.naive.entries[choice % len(self.naive.entries)][2]
            before = int(self.memory.record["timers"]["stale"])
            timer_queue_remove(self.base, slot_at(self.timers, slot))
            timer_queue_remove(self.base, slot_at(self.timers, slot))  # of one that is not in: nothing
            self.forget(slot)
            timers = self.memory.record["timers"]
            if timers["stale"] > before:
                self.check_swept(int(timers["stale"]), int(timers["size"]))

    def check_swept(self, stale: int, size: int) -> None:
        """After a cancel that left one more stale entry in the heap."""
        assert stale <= max(3, size // 2), "no sweep"

    @rule(span=st.sampled_from(SPANS[:7]), part=st.integers(1, 16))
    def wait(self, span: int, part: int) -> None:
        self.now += span * part // 16
        self.fire()

    @precondition(lambda self: self.naive.entries)
    @rule()
    def wait_for_the_first(self) -> None:
        self.now = max(self.now, self.naive.entries[0][0])
        self.fire()

    def fire(self) -> None:
        """What is due comes out in order, and nothing else; without memory, what comes is in order too."""
        while (order := self.due()) != 0:
            deadline, sequence, slot = self.naive.entries[0]
            assert deadline <= self.now
            assert order == self.order(sequence) | slot
            heap_pop(self.timers)
            store(slot_at(self.timers, slot) + SLOT.ORDER, 0)
            self.forget(slot)
        if self.naive.entries and self.naive.entries[0][0] <= self.now:
            assert rig.blocks.failing
            assert timer_queue_next(self.base) <= self.now, "the loop would sleep"

    def due(self) -> int:
        """The entry of the first timer that is due, however many turns it takes to open its bucket."""
        while True:
            order = timer_queue_due(self.base, self.now)
            if order != 0 or not self.memory.record["far"]["opening"] or rig.blocks.failing:
                return order

    @rule(span=st.sampled_from(SPANS[:4]), part=st.integers(1, 16))
    def a_turn(self, span: int, part: int) -> None:
        """Of a loop whose callbacks are slow: it may leave a bucket half open."""
        self.now += span * part // 16
        if timer_queue_due(self.base, self.now) != 0:
            self.fire()

    @rule(blocks=st.booleans(), maps=st.booleans())
    def allocations(self, blocks: bool, maps: bool) -> None:
        rig.blocks.failing, rig.maps.failing = blocks, maps

    @rule()
    def clear(self) -> None:
        while timer_queue_clear(self.base):
            assert self.memory.record["timers"]["size"] == 0
        for _, _, slot in list(self.naive.entries):
            store(slot_at(self.timers, slot) + SLOT.ORDER, 0)
            self.forget(slot)

    @invariant()
    def next_deadline(self) -> None:
        """Exact, for as few as these; 0 while a bucket cannot be opened."""
        first = self.naive.entries[0][0] if self.naive.entries else FOREVER
        assert timer_queue_next(self.base) == (0 if self.memory.record["far"]["opening"] else first)

    @invariant()
    def buckets(self) -> None:
        """Every entry is where its deadline and the horizon say, and its slot knows; bits and counts are true; a timer
        is in the heap or a bucket, once.
        """
        record = self.memory.record["far"]
        horizon, opening = int(record["horizon"]), int(record["opening"])
        assert horizon & buckets.GRAIN_MASK == buckets.GRAIN_MASK
        found = []
        words = rig.table(bucket_at(self.base, 0), layout.BUCKET_TOTAL * layout.BUCKET_BYTES // 8)
        records = words.view(layout.BUCKET.dtype)
        bits = [level << 6 | bit for level in range(8) for bit in range(64) if int(record[f"level{level}"]) >> bit & 1]
        assert bits == np.flatnonzero(records["count"]).tolist()
        assert not records["sweep"][records["next"] == 0].any()
        for number in np.flatnonzero(records["next"]).tolist():
            address, bucket = bucket_at(self.base, number), records[number]
            entries, stale = [], 0
            chunk, end = bucket_chunk(self.base, address), int(bucket["next"])
            while chunk:
                for at in range(chunk + 16, end, 16):
                    deadline, order = rig.table(at, 2).tolist()
                    slot = slot_at(self.timers, order & (SLOT_LIMIT - 1))
                    if load(slot + SLOT.ORDER) >> SLOT_BITS == order >> SLOT_BITS:
                        entries.append((deadline, order))
                        assert rig.table(slot + layout.SLOT.PLACE, 1)[0] == number + 1
                    else:
                        stale += 1
                    if number != opening - 1:
                        assert bucket_for(horizon, deadline) == number
                        assert deadline >= bucket_start(horizon, number) > horizon
                below = int(rig.table(chunk, 1)[0])
                chunk = buckets.pool_address(self.memory.pool, below - 1) if below else 0
                end = chunk + int(self.memory.record["pool"]["chunk_bytes"])
            assert stale == bucket["stale"]
            assert len(entries) + stale == bucket["count"]
            assert entries or number == opening - 1
            if entries:
                assert bucket["least"] <= min(entries)[0]
                assert bucket["loose"] or bucket["least"] == min(entries)[0]
            found += entries
        assert len(found) == record["count"]
        timers = self.memory.record["timers"]
        heap = rig.table(int(timers["heap"]), 2 * int(timers["size"])).reshape(-1, 2).tolist()
        live = [
            (d, o) for d, o in heap if load(slot_at(self.timers, o & (SLOT_LIMIT - 1)) + SLOT.ORDER) >> 22 == o >> 22
        ]
        assert len(heap) - len(live) == timers["stale"]
        expected = [(deadline, self.order(sequence) | slot) for deadline, sequence, slot in self.naive.entries]
        assert sorted(found + live) == sorted(expected)

    @invariant()
    def free_chunks_are_zero(self) -> None:
        if not self.naive.entries:
            pool = self.memory.record["pool"]
            for chunk in rig.stacked(self.memory.pool + layout.POOL.FREE, int(pool["next"])):
                words = rig.table(buckets.pool_address(self.memory.pool, chunk), int(pool["chunk_bytes"]) // 8)
                assert not words.any()


class NewNumbersMachine(AgendaMachine):
    """The same while the timers' numbers start over, and change sign."""

    FIRST = (1 << 41) - 20


class NewEpochMachine(AgendaMachine):
    """The same when all stale entries have to be taken out, and while orders become negative."""

    FIRST = (1 << 40) - 20


class PortionsMachine(AgendaMachine):
    """The same with sweeps that remove a few stale entries at each cancel."""

    FIRST = (1 << 40) - 200

    def __init__(self) -> None:
        super().__init__()
        self.patch.setattr(timer_queue, "SWEEP_MOST", 2)
        self.patch.setattr(timer_queue, "SWEEP_PART", 2)
        self.patch.setattr(timer_queue, "OPEN_MOST", 1)
        self.patch.setattr(buckets, "SWEEP_MOST", 2)

    def check_swept(self, stale: int, size: int) -> None:
        assert stale <= max(3, size), "more than there are"


TestAgenda = AgendaMachine.TestCase
TestNewNumbers = NewNumbersMachine.TestCase
TestNewEpoch = NewEpochMachine.TestCase
TestPortions = PortionsMachine.TestCase
for case in (TestAgenda, TestNewNumbers, TestNewEpoch, TestPortions):
    case.settings = rig.MACHINE


def bucket_of(memory: rig.Memory, deadline: int) -> np.void:
    """The record of the bucket for a deadline, as the horizon is now."""
    number = bucket_for(int(memory.record["far"]["horizon"]), deadline)
    found: np.void = rig.table(bucket_at(memory.base, number), 8).view(layout.BUCKET.dtype)[0]
    return found


def fired(memory: rig.Memory, now: int) -> list[int]:
    """The slots of the timers that are due, in the order in which they come out."""
    slots = []
    while (order := timer_queue_due(memory.base, now)) != 0:
        slots.append(order & (SLOT_LIMIT - 1))
        heap_pop(memory.timers)
        store(slot_at(memory.timers, slots[-1]) + SLOT.ORDER, 0)
    return slots


@pytest.mark.parametrize("order", ["first", "last", "mixed"])
@pytest.mark.parametrize("delay", [0, 86400 * 10**9], ids=["heap", "bucket"])
def test_no_cancel_sweeps_many(monkeypatch: pytest.MonkeyPatch, delay: int, order: str) -> None:
    """Of more than `SWEEP_MOST` entries a cancel removes a few, and what is left follows the number of timers."""
    most, part, count = 300, 4, 2000
    monkeypatch.setattr(timer_queue, "SWEEP_MOST", most)
    monkeypatch.setattr(timer_queue, "SWEEP_PART", part)
    monkeypatch.setattr(buckets, "SWEEP_MOST", most)
    memory = rig.Memory()
    base, timers = memory.base, memory.timers
    buckets.buckets_begin(base, 0)
    armed = [slot_take(timers) for _ in range(count)]
    for slot in armed:
        assert timer_queue_insert(base, slot, slot_at(timers, slot), delay, 0) == 0
    heap, chunk = memory.record["timers"], int(memory.record["pool"]["chunk_bytes"]) // layout.NODE_BYTES - 1
    bucket = bucket_of(memory, 86400 * 10**9)

    def entries() -> int:
        return int(bucket["count"] if delay else heap["size"])

    if order == "last":
        armed.reverse()
    elif order == "mixed":
        random.Random(1).shuffle(armed)
    assert entries() == count
    for left, slot in enumerate(reversed(armed), 1):
        before = entries()
        timer_queue_remove(base, slot_at(timers, slot))
        if before > most:
            assert before - entries() <= (chunk if delay else part)
        live = count - left
        assert live <= entries() <= max(3 * live + most, most)
    assert entries() <= buckets.SWEEP_LEAST
    while timer_queue_clear(base):
        pass


def test_a_sweep_ends_with_what_it_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heap that has become shorter meanwhile, and a bucket that has been emptied."""
    monkeypatch.setattr(timer_queue, "SWEEP_LEAST", 3)
    monkeypatch.setattr(timer_queue, "SWEEP_MOST", 8)
    monkeypatch.setattr(timer_queue, "SWEEP_PART", 2)
    monkeypatch.setattr(buckets, "SWEEP_MOST", 8)
    memory = rig.Memory()
    base, timers = memory.base, memory.timers
    buckets.buckets_begin(base, 0)
    armed = [slot_take(timers) for _ in range(40)]
    for deadline, slot in enumerate(armed):
        assert timer_queue_insert(base, slot, slot_at(timers, slot), deadline, 0) == 0
    for slot in armed[:21]:
        timer_queue_remove(base, slot_at(timers, slot))
    heap = memory.record["timers"]
    begun = int(heap["sweep"])
    assert timer_queue_next(base) == 21
    assert 0 < heap["size"] < begun
    for slot in armed[28:38]:
        timer_queue_remove(base, slot_at(timers, slot))
    assert fired(memory, 40) == [*armed[21:28], *armed[38:40]]
    day = 86400 * 10**9
    armed += [slot_take(timers) for _ in range(500)]
    for slot in armed:
        assert timer_queue_insert(base, slot, slot_at(timers, slot), day, 0) == 0
    for slot in armed[:280]:
        timer_queue_remove(base, slot_at(timers, slot))
    bucket = bucket_of(memory, day)
    assert bucket["sweep"] != 0
    while timer_queue_clear(base):
        pass
    assert bucket["sweep"] == 0


@pytest.mark.parametrize(("before", "after"), [(6500, 1), (4200, 300)])
def test_timers_that_are_armed_while_a_bucket_of_cancelled_ones_is_opened(before: int, after: int) -> None:
    """Nothing is far then, and a lap of the level later a timer would belong to that bucket again."""
    memory = rig.Memory()
    base, timers, far = memory.base, memory.timers, memory.record["far"]
    start, lap = 1 << 40, 64 << buckets.GRAIN_BITS
    buckets.buckets_begin(base, start)
    moment = start + (20 << buckets.GRAIN_BITS)
    armed = [slot_take(timers) for _ in range(before)]
    for slot in armed:
        assert timer_queue_insert(base, slot, slot_at(timers, slot), moment, 0) == 0
    assert timer_queue_due(base, moment) == 0
    assert far["opening"] != 0
    for slot in armed:
        timer_queue_remove(base, slot_at(timers, slot))
    assert far["count"] == 0
    buckets.buckets_begin(base, start + lap)
    armed = [slot_take(timers) for _ in range(after)]
    for number, slot in enumerate(armed):
        assert timer_queue_insert(base, slot, slot_at(timers, slot), moment + lap + number, 0) == 0
    while far["opening"] != 0:
        assert timer_queue_due(base, start + lap) == 0
    assert fired(memory, moment + lap + after) == armed
    assert far["count"] == memory.record["timers"]["size"] == 0


def test_a_bucket_that_is_being_opened_is_not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last timer is cancelled, and very many stale entries are left: they go as it is opened further."""
    monkeypatch.setattr(timer_queue, "OPEN_MOST", 1)
    monkeypatch.setattr(buckets, "SWEEP_MOST", 8)
    monkeypatch.setattr(buckets, "SWEEP_LEAST", 2000)
    memory = rig.Memory()
    base, timers = memory.base, memory.timers
    buckets.buckets_begin(base, 0)
    day = 86400 * 10**9
    armed = [slot_take(timers) for _ in range(1000)]
    for slot in armed:
        assert timer_queue_insert(base, slot, slot_at(timers, slot), day + slot, 0) == 0
    for slot in armed[:499]:
        timer_queue_remove(base, slot_at(timers, slot))
    number = bucket_for(int(memory.record["far"]["horizon"]), day)
    bucket = bucket_of(memory, day)
    while not memory.record["far"]["opening"] or bucket["count"] > 560:
        assert timer_queue_due(base, day - 1) == 0
    assert memory.record["far"]["opening"] == number + 1
    kept = [slot for slot in armed[499:] if rig.table(slot_at(timers, slot) + SLOT.PLACE, 1)[0] == number + 1]
    for slot in kept:
        timer_queue_remove(base, slot_at(timers, slot))
    assert len(kept) > 20
    assert bucket["stale"] == bucket["count"] > 400
    assert timer_queue_next(base) == 0  # the loop goes on opening it
    while memory.record["far"]["opening"]:
        assert timer_queue_due(base, day - 1) == 0
    assert bucket["count"] == bucket["stale"] == 0
    assert memory.record["far"]["count"] + memory.record["timers"]["size"] == 501 - len(kept)
    while timer_queue_clear(base):
        pass


def test_a_number_that_comes_again_finds_no_stale_entry() -> None:
    """A cancelled far timer leaves an entry; 2**41 armings later its slot's next timer has the same number."""
    memory = rig.Memory()
    base, timers = memory.base, memory.timers
    buckets.buckets_begin(base, 0)
    cancelled, kept, again = (slot_take(timers) for _ in range(3))
    day = 86400 * 10**9
    for slot in (cancelled, kept, again):
        assert timer_queue_insert(base, slot, slot_at(timers, slot), day + slot, 0) == 0
    timer_queue_remove(base, slot_at(timers, cancelled))
    bucket = bucket_of(memory, day)
    assert bucket["stale"] == 1
    sequence = memory.record["timers"]
    for now in range(layout.BUCKET_TOTAL + 1):
        sequence["sequence"] = 1 << 40  # some armings later, time has gone on
        assert timer_queue_due(base, (now + 1) << buckets.GRAIN_BITS) == 0
    assert bucket["stale"] == 0
    sequence["sequence"] = 1 << 41
    # The first number once more.
    assert timer_queue_insert(base, cancelled, slot_at(timers, cancelled), 2 * day, 0) == 0
    assert fired(memory, day + 10) == [kept, again]
    while timer_queue_clear(base):
        pass


@pytest.mark.parametrize("before", [5, 1 << 39, (1 << 40) - 5, (1 << 41) - 5, (1 << 63) - 100], ids=str)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_timers_go_on_when_their_numbers_begin_anew(before: int, elsewhere: bool) -> None:
    """Then: all fire, equal deadlines in the order of the calls, and those that callbacks arm wait."""
    loop = Loop()
    loop._state.record["timers"]["sequence"] = before
    fired: list[object] = []
    deadline = loop.now() + 0.002

    def arm() -> None:
        for number in range(12):
            loop.schedule_timer_at(deadline, fired.append, number)
        loop.schedule_timer_at(deadline, lambda: loop.schedule_timer_at(0, end))
        loop.schedule_timer_at(deadline, fired.append, "last")
        every.append(loop.schedule_interval(0, fired.append, "every"))

    def end() -> None:
        fired.append("end")
        assert loop.cancel_timer(every[0])
        loop.stop()

    every: list[int] = []
    arm() if elsewhere else loop.submit(arm)
    loop.run()
    assert [one for one in fired if one != "every"] == [*range(12), "last", "end"]
    assert "every" in fired
    assert not loop.alive()
    loop.close()


def test_a_timer_of_very_many_armings_ago_fires() -> None:
    """2**40 armings and more lie between: it seems to be armed later than all, and must not wait for ever."""
    fired: list[int] = []
    for between in ((1 << 40) + 1, (1 << 41) - 3):
        loop = Loop()
        loop.schedule_timer(0.001, fired.append, between)
        loop.schedule_timer(0.002, loop.stop)
        loop.submit(loop._state.record["timers"].__setitem__, "sequence", between)
        loop.run()
        loop.close()
    assert fired == [(1 << 40) + 1, (1 << 41) - 3]


def test_a_large_bucket_wakes_the_loop_no_later_than_needed() -> None:
    """Its least deadline was cancelled: the bound is in the bucket, and opening it makes it exact."""
    memory = rig.Memory()
    base, timers = memory.base, memory.timers
    buckets.buckets_begin(base, 0)
    start = 1 << 40
    for number in range(2 * buckets.SCAN_MOST):
        slot = slot_take(timers)
        assert timer_queue_insert(base, slot, slot_at(timers, slot), start + 100 + number, 0) == 0
        if number == 0:
            first = slot
    timer_queue_remove(base, slot_at(timers, first))
    assert timer_queue_next(base) == start + 100
    assert timer_queue_due(base, start + 100) == 0
    assert timer_queue_next(base) == start + 101
    assert timer_queue_due(base, start + 101) != 0
    while timer_queue_clear(base):
        pass
    assert memory.record["far"]["count"] == 0


def test_bits() -> None:
    for bit in range(64):
        assert first_bit(-1 << bit) == bit


@pytest.mark.parametrize("seed", range(4))
def test_random_schedules_fire_in_exact_order(seed: int) -> None:
    """Delays of 0 to 0.2 s over six orders of magnitude, a third of them cancelled, others armed by callbacks: by
    deadline to the nanosecond, and equal deadlines in scheduling order; none early.
    """
    loop, dice = Loop(), random.Random(seed)
    slots = loop._record["timers"]
    fired: list[tuple[int, int, float, float]] = []  # deadline ns, id's place in scheduling order, earliest time, time
    count = 300 if rig_is_slow() else 5000
    armed: list[int] = []
    cancelled: set[int] = set()
    deadlines: dict[int, int] = {}

    def fire(number: int, least: float) -> None:
        fired.append((deadlines[number], number, least, time.monotonic()))
        if dice.random() < 0.2 and len(armed) < 2 * count:
            arm()
        if dice.random() < 0.2:
            cancel()
        if len(fired) + len(cancelled) == len(armed):
            loop.stop()

    def arm() -> None:
        number = len(armed)
        delay = dice.choice([0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.1]) * dice.choice([1.0, 1.0, dice.random(), 2.0])
        identifier = loop.schedule_timer(delay, fire, number, time.monotonic() + delay)
        armed.append(identifier)
        slot = slot_at(loop._state.ctypes.data + layout.STATE.TIMERS, identifier & (SLOT_LIMIT - 1))
        deadlines[number] = int(rig.table(slot + layout.SLOT.DEADLINE, 1)[0])

    def cancel() -> None:
        number = dice.randrange(len(armed))
        if loop.cancel_timer(armed[number]):
            cancelled.add(number)

    def begin() -> None:
        for number in range(count):
            arm()
            if number % 3 == 0:
                cancel()

    loop.submit(begin)
    loop.run()
    assert sorted(number for _, number, _, _ in fired) == sorted(set(range(len(armed))) - cancelled)
    assert all(when >= least - 1e-9 for _, _, least, when in fired)
    order = [(deadline, number) for deadline, number, _, _ in fired]
    assert order == sorted(order)
    assert slots["size"] == slots["stale"] == loop._record["far"]["count"] == 0
    loop.close()


def rig_is_slow() -> bool:
    """Do kernels run as plain Python?"""
    from nbloop.kernels.build import object_cache

    return object_cache.status.mode == "interpreted"
