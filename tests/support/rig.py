"""Memory for tests that call the kernels' helpers directly, as plain Python, with made-up words in place of references.

Also what several tests share: settings of the state machines, memory that fails on demand, ways to read tables.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from nbloop.channel import Room
from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import get, load, put, store
from nbloop.kernels.base.capi import Py_DecRef
from nbloop.kernels.base.kernel import Kernel, TwinMethod, data
from nbloop.kernels.calls.remote import fetch_remote
from nbloop.kernels.channels.channel_methods import channel_deliver, channel_due
from nbloop.kernels.ingress.ticket_queue import chunks_reserve
from nbloop.kernels.memory import slot_slabs, slots, system
from nbloop.kernels.memory.pool import pool_address, pool_end, pool_give
from nbloop.kernels.memory.ring import ring_end, ring_length, ring_pop
from nbloop.kernels.memory.slot_slabs import GENERATION_SHIFT, slab_rests, slot_at, slots_end, slots_trim
from nbloop.kernels.memory.slots import (
    ARMED,
    STATE_MASK,
    slot_free,
    slot_free_here,
    slot_of,
    slot_open,
    slot_take,
    slot_take_here,
)
from nbloop.kernels.memory.stack import INDEX_BITS, INDEX_MASK
from nbloop.kernels.methods import batch
from nbloop.kernels.state import traverse
from nbloop.kernels.state.state import State, make_channel_state, make_loop_state
from nbloop.kernels.timers.timer_heap import heap_end
from tests.support import naive

# One machine's share of the suite: some seconds. A failure prints the blob that repeats it.
MACHINE = settings(
    max_examples=30,
    stateful_step_count=40,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


RINGS = ("next_ticks", "microtasks", "immediates", "closing", "internal", "checkpoint_ends")


class Source:
    """One of the places that system.py takes from: counts what lives of it, and has none while `failing`.

    It stands between the kernels as plain Python and the system, for all states of a process.
    """

    def __init__(self, take: str, give: str, size_at: int, nothing: int) -> None:
        self.failing = False
        self.living: dict[int, int] = {}  # sizes by address
        taken, given = getattr(system, take), getattr(system, give)

        def taking(*arguments: int) -> int:
            if self.failing:
                return nothing
            address: int = taken(*arguments)
            if address != nothing:
                self.living[address] = arguments[size_at]
            return address

        def giving(address: int, *size: int) -> int:
            known = self.living.pop(address, None)
            assert known is None or not size or known == size[0], "given back in another size than taken"
            return given(address, *size)

        setattr(system, take, taking)
        setattr(system, give, giving)


maps = Source("libc_mmap", "libc_munmap", 1, -1)  # slabs, and large blocks
blocks = Source("PyMem_RawMalloc", "PyMem_RawFree", 0, 0)  # small ones


class Memory:
    """The words of a loop that never runs: `base` is their address, `record` shows them by name.

    They are a copy in a plain array, because a real state shows its words to the cycle collector and releases what they
    refer to, and here they refer to nothing. The copy owns the memory that its words name; the state keeps the tables.
    """

    def __init__(self, *, chunk_size: int = 16, ingress_limit: int | None = None) -> None:
        maps.failing = blocks.failing = False
        names = ("report", "refuse", "overload", "warn", "check_interrupts", "waker")
        self.state: State = make_loop_state(
            chunk_size=chunk_size,
            initial_chunks=1,
            ingress_limit=ingress_limit,
            hooks={getattr(layout.STATE, name.upper()): (lambda *_: None) for name in names},
        )
        self.state.whole = False  # it is not to release anything: all that it owned is owned here
        size = len(self.state)
        raw = np.zeros(size + layout.WORDS, np.int64)
        start = -(raw.ctypes.data // 8) % layout.WORDS
        self.words = raw[start : start + size]
        self.words[:] = self.state.view(np.ndarray)
        for name in (*RINGS, "pool", "timers"):  # nor is the memory that these name
            self.state.record[name] = np.zeros((), layout.STATE.dtype[name])
        self.state.record["self"] = 0  # and the collector is not to follow its words
        self.record: Any = self.words.view(layout.STATE.dtype)[0]
        self.base = self.words.ctypes.data
        self.pool = self.base + layout.STATE.POOL
        self.external = self.base + layout.STATE.EXTERNAL
        self.remote = self.base + layout.STATE.REMOTE
        self.timers = self.base + layout.STATE.TIMERS
        self.record["external"]["pool"] = self.record["remote"]["pool"] = self.pool

    def method(self, kernel: Kernel) -> TwinMethod:
        """A kernel over these words, always as plain Python."""
        return TwinMethod(kernel, self.words, kernel.function)

    def __del__(self) -> None:
        if "timers" in self.__dict__:
            for name in RINGS:
                ring_end(self.base + layout.offset(layout.STATE.dtype, name))
            while heap_end(self.timers) or slots_end(self.timers) or pool_end(self.pool):
                pass


def chain(memory: Memory, words: list[int]) -> int:
    """A large batch as `send_large` leaves it: chunks that only the caller knows; -1 if there is no memory for them."""
    queue, table = memory.external, get(memory.pool + layout.POOL.NEXT)
    size = 1 << get(queue + layout.QUEUE.SHIFT)
    first = chunks_reserve(memory.pool, -(-len(words) // size))
    array = (ctypes.c_int64 * len(words))(*words)
    chunk, done = first, 0
    while chunk >= 0:
        count = min(size, len(words) - done)
        address = pool_address(memory.pool, chunk)
        batch.chunk_fill(queue, address, done, ctypes.addressof(array) + 8 * done, count)
        done += count
        if done == len(words):
            batch.chunk_ends(address, done, size.bit_length() - 1)
        chunk = get(table + 8 * chunk)
    assert first < 0 or not any(array), "moved"
    return first


def give_back(memory: Memory, chunk: int) -> None:
    """What nobody has published."""
    size = 1 << get(memory.external + layout.QUEUE.SHIFT)
    while chunk >= 0:
        below = get(get(memory.pool + layout.POOL.NEXT) + 8 * chunk)
        table(pool_address(memory.pool, chunk), size)[:] = 0
        pool_give(memory.pool, chunk)
        chunk = below


def table(address: int, count: int) -> np.ndarray:
    """The `count` words at `address`, as an array over the same memory."""
    if count == 0:
        return np.zeros(0, np.int64)
    return np.frombuffer((ctypes.c_int64 * count).from_address(address), np.int64)


def stacked(head: int, links: int) -> list[int]:
    """The indices in a stack (stack.py), top first; fails on a cycle."""
    found: list[int] = []
    index = get(head) & INDEX_MASK
    while index:
        assert index - 1 not in found[-1:], "a cycle"
        found.append(index - 1)
        assert len(found) <= layout.SLOT_LIMIT, "a cycle"
        index = get(links + ((index - 1) << 3))
    return found


def small_slabs(patch: pytest.MonkeyPatch, per_slab: int, most: int, *, keep: int, pages: bool = True) -> None:
    """Slabs of so few slots, at most so many; `keep` of them never rest. Mappings of several slabs if each is whole
    `pages`. Portions are small too.
    """
    values = {
        "PER_SLAB": per_slab,
        "SLOTS_PER_SLAB_BITS": per_slab.bit_length() - 1,
        "MANY": (4 if pages else most) * per_slab,
        "SLOT_LIMIT": most * per_slab,
        "KEEP_SLABS": keep,
        "SPARES_MOST": 8,
        "PORTION": 3 * per_slab,
        "REST_COST": per_slab // 2,
    }
    for module in (slot_slabs, slots, traverse):
        for name in values.keys() & vars(module).keys():
            patch.setattr(module, name, values[name])


class Slots:
    """The slots of a loop that never runs, and their twin. Slabs are small (`small_slabs`) for as long as it lives."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.timers = self.memory.timers
        self.record = self.memory.record["timers"]
        self.naive = naive.Slots()
        self.stale: list[int] = []

    def take(self, here: bool) -> int:
        """Take a slot; its id, or 0 if there is none."""
        slot = (slot_take_here if here else slot_take)(self.timers)
        if slot < 0:
            return 0
        self.naive.take(slot)
        identifier = slot_open(self.timers, slot, 16, ARMED)
        self.naive.name(slot, identifier)
        return identifier

    def give(self, identifier: int, here: bool) -> None:
        """Free a slot."""
        slot = identifier & (layout.SLOT_LIMIT - 1)
        word = slot_at(self.timers, slot) + layout.SLOT.WORD
        assert load(word) == (identifier >> layout.SLOT_BITS) << GENERATION_SHIFT | ARMED, "written by somebody else"
        store(word, load(word) & ~STATE_MASK)
        self.stale.append(identifier)
        self.naive.give(slot)
        (slot_free_here if here else slot_free)(self.timers, slot)

    def trim(self) -> bool:
        return slots_trim(self.timers, len(self.naive.taken))

    def trim_all(self) -> bool:
        """Until nothing is left to do; whether there was anything."""
        began = more = self.trim()
        for _ in range(1000):
            if not more:
                return began
            more = self.trim()
        raise AssertionError("something is always left to do")

    def slabs(self) -> range:
        return range(int(self.record["slot_count"]) // slot_slabs.PER_SLAB)

    def resting(self) -> set[int]:
        return {slab for slab in self.slabs() if slab_rests(self.timers, slab)}

    def spare(self) -> list[int]:
        found = []
        spare = int(self.record["spare"])
        while spare:
            found.append(spare - 1)
            spare = get(slot_at(self.timers, spare - 1) + layout.SLOT.PLACE)
        return found

    def gathered(self, slab: int) -> list[int]:
        chain = int(self.record["gathered"]) + 8 * slab
        found = stacked(chain, int(self.record["next"]))
        assert get(chain) >> INDEX_BITS == len(found)
        return found

    def free(self) -> list[int]:
        """All free slots, except those of slabs at rest."""
        found = stacked(self.timers + layout.TIMERS.FREE, int(self.record["next"]))
        return [*found, *self.spare(), *(slot for slab in self.slabs() for slot in self.gathered(slab))]

    def check(self) -> None:
        """Each slot is used, free, or of a slab at rest; what is counted is so; ids find their own slots only."""
        free, resting = self.free(), self.resting()
        assert len(free) == len(set(free)), "free twice"
        asleep = {slab * slot_slabs.PER_SLAB + n for slab in resting for n in range(slot_slabs.PER_SLAB)}
        assert sorted([*asleep, *free, *self.naive.taken]) == list(range(int(self.record["slot_count"])))
        assert len(resting) == self.record["rest_count"]
        numbers = stacked(self.timers + layout.TIMERS.RESTING, int(self.record["slab_next"]))
        assert len(numbers) == len(set(numbers))
        assert set(numbers) == resting
        for slab in self.slabs():
            assert all(slot // slot_slabs.PER_SLAB == slab for slot in self.gathered(slab))
        assert sum(len(self.gathered(slab)) for slab in self.slabs()) == self.record["gathered_count"]
        assert len(self.spare()) == self.record["spares"]
        for identifier in self.naive.taken.values():
            word = load(slot_of(self.timers, identifier) + layout.SLOT.WORD)
            assert word == (identifier >> layout.SLOT_BITS) << GENERATION_SHIFT | ARMED
        for identifier in self.stale[-50:]:
            word = load(slot_of(self.timers, identifier) + layout.SLOT.WORD)
            assert word >> GENERATION_SHIFT != identifier >> layout.SLOT_BITS or word & STATE_MASK == 0

    def end(self) -> None:
        """Release the mappings, while slabs are small."""
        while slots_end(self.timers):
            pass


class Ring:
    """A channel of one field, `n`, over made-up words of a loop: `at` is the address of its words, `batches` what its
    `on_batch` has seen, `asked` what it asked Python.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        capacity: int = 4,
        max_batch: int = 4,
        on_full: int = layout.ON_FULL_RAISE,
        max_delay: int = 0,
        on_batch: Callable[[Any], object] | None = None,
        ask: Callable[[int, int, int], int] | None = None,
    ) -> None:
        self.batches: list[list[int]] = []
        self.asked: list[int] = []
        self.memory = memory
        fields = np.zeros(1, layout.FIELD.dtype)
        fields["kind"], fields["least"], fields["most"] = layout.FIELD_INT64, -(1 << 62), 1 << 62
        self.state = make_channel_state(
            memory.state,
            np.dtype([("n", "i8")]),
            fields,
            capacity=capacity,
            max_batch=max_batch,
            max_delay=max_delay,
            on_full=on_full,
            on_batch=on_batch or (lambda records: self.batches.append(records["n"].tolist())),
            convert=lambda *_: None,
            ask=ask or self._ask,
            ends=Room(),
        )
        self.record = self.state.record
        self.record["handle"]["loop"] = memory.base
        # Plain Python, as all else here: a compiled delivery would hide its steps, and bugs that are planted into it.
        self.tasks = [(TwinMethod(kernel, self.state, kernel.function),) for kernel in (channel_deliver, channel_due)]
        self.record["task"], self.record["due"] = map(id, self.tasks)
        self.at = data(id(self.state))

    def _ask(self, code: int, _count: int, _until: int) -> int:
        self.asked.append(code)
        if code in (layout.ASK_FULL, layout.ASK_CLOSED, layout.ASK_KEPT):
            raise RuntimeError(code)
        return 0

    def turn(self) -> bool:
        """What the loop's thread does for internal tasks: run one, if there is any."""
        base = self.memory.base
        put(base + layout.STATE.OWNER, threading.get_ident())
        fetch_remote(base)
        if ring_length(base + layout.STATE.INTERNAL) == 0:
            return False
        word = ring_pop(base + layout.STATE.INTERNAL)
        assert self.record["handle"]["queued"] == layout.CHANNEL_BUSY, "a delivery that nobody has asked for"
        task = ctypes.cast(word & layout.POINTER_MASK, ctypes.py_object).value
        task[0]()
        Py_DecRef(word & layout.POINTER_MASK)
        return True

    def waiting(self) -> int:
        """How many records wait."""
        queue = self.record["handle"]["queue"]
        return (int(queue["tail"]) & ~layout.MINUS) - int(queue["head"])
