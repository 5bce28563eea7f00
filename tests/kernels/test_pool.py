"""pool.py against a set of numbers."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop.kernels.memory import pool as module
from nbloop.kernels.memory.pool import KEEP_CHUNKS, PER_SLAB, PORTION, pool_address, pool_give, pool_take, pool_trim
from tests.support import naive, rig

CELLS = 16
KEEP = 2  # slabs


class PoolMachine(RuleBasedStateMachine):
    """Chunks are taken, written to, zeroed, given back; now and then the pool is trimmed, wholly or in part, and memory
    runs out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = rig.Memory(chunk_size=CELLS)
        self.pool = self.memory.pool
        self.record = self.memory.record["pool"]
        self.naive = naive.Pool()
        self.others = set(rig.maps.living)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "KEEP_CHUNKS", KEEP * PER_SLAB)
        self.patch.setattr(module, "PORTION", 50)

    def teardown(self) -> None:
        self.patch.undo()

    def chain(self) -> list[int]:
        """What a trim that is not over has taken out of the stack."""
        found = []
        at = int(self.record["taken"])
        while at:
            found.append(at - 1)
            at = int(rig.table(int(self.record["next"]) + 8 * (at - 1), 1)[0])
        return found

    def free(self) -> list[int]:
        return rig.stacked(self.pool + rig.layout.POOL.FREE, int(self.record["next"]))

    def slabs(self) -> list[int]:
        """Addresses of the slabs by number, 0 for one that was given back."""
        return rig.table(int(self.record["slabs"]), int(self.record["slab_count"])).tolist()

    def take_one(self) -> int:
        slabs, free = self.slabs(), self.free()
        chunk = pool_take(self.pool)
        if chunk >= 0:
            self.naive.take(chunk)
            rig.table(pool_address(self.pool, chunk), CELLS)[:] = chunk + 1
        if free:
            assert chunk == free[0]
        elif rig.maps.failing:
            assert chunk == -1
            assert self.slabs() == slabs
        elif {s for s, at in enumerate(slabs) if at == 0} - {c // PER_SLAB for c in self.chain()}:
            assert slabs[chunk // PER_SLAB] == 0, "a number was left unused, and a new one taken"
        else:
            assert len(self.slabs()) == len(slabs) + 1
        return chunk

    def give_one(self, chunk: int) -> None:
        cells = rig.table(pool_address(self.pool, chunk), CELLS)
        assert (cells == chunk + 1).all(), "somebody else wrote to a chunk that was taken"
        cells[:] = 0
        self.naive.give(chunk)
        pool_give(self.pool, chunk)

    @rule(count=st.sampled_from([1, 2, 70, 200, 400]))
    def take(self, count: int) -> None:
        for _ in range(count):
            if self.take_one() < 0:
                break

    @precondition(lambda self: self.naive.taken)
    @rule(choice=st.integers(0, 1 << 20), share=st.sampled_from([0, 1, 2, 16]))
    def give(self, choice: int, share: int) -> None:
        """One, all, every second, or all but every sixteenth."""
        taken = sorted(self.naive.taken)
        if share == 0:
            taken = [taken[choice % len(taken)]]
        elif share == 16:
            taken = [chunk for chunk in taken if chunk % share]
        for chunk in taken[::2] if share == 2 else taken:
            self.give_one(chunk)

    @rule()
    def trim(self) -> None:
        """Given back is every slab that was wholly free, all but `KEEP`, once there are twice as many; nothing else
        changes. It ends.
        """
        while pool_trim(self.pool):  # one that had begun
            self.in_one_place()
        free = self.free()
        whole = [s for s, at in enumerate(self.slabs()) if at and not any(c // PER_SLAB == s for c in self.naive.taken)]
        expected = max(0, len(whole) - KEEP) if len(free) > 2 * KEEP * PER_SLAB else 0
        while pool_trim(self.pool):
            self.in_one_place()
        gone = {s for s in whole if self.slabs()[s] == 0}
        assert len(gone) == expected
        assert set(self.free()) == {chunk for chunk in free if chunk // PER_SLAB not in gone}

    @rule()
    def trim_a_little(self) -> None:
        """What comes between has another moment each time."""
        before = int(self.record["taking"]), len(self.chain()), len(self.free())
        more = pool_trim(self.pool)
        assert more == (self.record["taking"] != 0 or self.record["taken"] != 0)
        assert abs(len(self.free()) - before[2]) <= 50
        if before[0] == 0 and before[1]:
            assert before[1] - 50 <= len(self.chain()) < before[1]

    @rule(failing=st.booleans())
    def allocations(self, failing: bool) -> None:
        rig.maps.failing = failing

    @invariant()
    def in_one_place(self) -> None:
        """A chunk is in the stack, in the chain or with its owner, in one only; together they are all of every slab."""
        free, chain = self.free(), self.chain()
        assert len(chain) == len(set(chain))
        assert not set(chain) & (self.naive.taken | set(free))
        assert len(free) == len(set(free)) == int(self.record["free_chunks"])
        assert not self.naive.taken & set(free)
        whole = {s * PER_SLAB + i for s, at in enumerate(self.slabs()) if at for i in range(PER_SLAB)}
        assert self.naive.taken | set(free) | {c for c in chain if self.slabs()[c // PER_SLAB]} == whole

    @invariant()
    def free_is_zero(self) -> None:
        for slab, at in enumerate(self.slabs()):
            if at:
                assert at % 64 == 0
                chunks = rig.table(at, PER_SLAB * CELLS).reshape(PER_SLAB, CELLS)
                used = [c - slab * PER_SLAB for c in self.naive.taken if c // PER_SLAB == slab]
                assert chunks.any(axis=1).sum() == len(used)

    @invariant()
    def named_once(self) -> None:
        """A slab's map is named by its entry alone, and what was given back is gone."""
        slabs = [at for at in self.slabs() if at]
        assert len(set(slabs)) == len(slabs)
        living = set(rig.maps.living)  # what others gave back meanwhile, this pool may have got
        assert living - self.others <= set(slabs)
        assert len(set(slabs) - living) <= 1  # the one made at construction


TestPool = PoolMachine.TestCase
TestPool.settings = rig.settings(rig.MACHINE, max_examples=15, stateful_step_count=25)


def test_trim_keeps_so_many_and_their_numbers_are_used_again() -> None:
    """After a burst just `KEEP_CHUNKS` stay; the next burst takes the numbers of the slabs that were released."""
    memory = rig.Memory(chunk_size=CELLS)
    slabs = 2 * KEEP_CHUNKS // PER_SLAB + 3
    others = set(rig.maps.living)
    for _ in range(3):
        taken = [pool_take(memory.pool) for _ in range(slabs * PER_SLAB)]
        assert sorted(taken) == list(range(slabs * PER_SLAB))
        for chunk in taken:
            pool_give(memory.pool, chunk)
        while pool_trim(memory.pool):
            pass
        assert memory.record["pool"]["free_chunks"] == KEEP_CHUNKS
        addresses = rig.table(int(memory.record["pool"]["slabs"]), slabs)
        assert (addresses != 0).sum() == KEEP_CHUNKS // PER_SLAB
        assert set(rig.maps.living) - others <= set(addresses)  # the memory of the others is given back


def test_a_slab_without_a_number_is_let_go_of() -> None:
    """At the limit of slabs a take is refused, and its map is given back."""
    memory = rig.Memory(chunk_size=CELLS)
    memory.record["pool"]["slab_limit"] = 2
    taken = [pool_take(memory.pool) for _ in range(2 * PER_SLAB)]
    assert min(taken) >= 0
    living = set(rig.maps.living)
    assert pool_take(memory.pool) == -1
    assert set(rig.maps.living) == living
    assert memory.record["pool"]["slab_count"] == 2
    pool_give(memory.pool, taken[0])
    assert pool_take(memory.pool) == taken[0]


def test_a_large_pool_is_trimmed_in_portions() -> None:
    """No call takes out, puts back or releases more than its portion, and the last one says so."""
    memory = rig.Memory(chunk_size=CELLS)
    taken = [pool_take(memory.pool) for _ in range(6 * PORTION)]
    for chunk in taken:
        pool_give(memory.pool, chunk)
    free, maps = 6 * PORTION, len(rig.maps.living)
    calls = 1
    while pool_trim(memory.pool):
        now = int(memory.record["pool"]["free_chunks"])
        assert abs(now - free) <= PORTION
        assert maps - len(rig.maps.living) <= PORTION // PER_SLAB
        free, maps = now, len(rig.maps.living)
        calls += 1
    assert calls >= 12
    assert memory.record["pool"]["free_chunks"] == KEEP_CHUNKS
