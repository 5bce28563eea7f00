"""layout.py: who writes what, and that kernels and numpy mean the same words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import get, put
from nbloop.kernels.base.layout import BUCKET, FAR, HANDLE, LINE, POOL, QUEUE, RING, SLOT, STATE, TIMERS, offset
from tests.support import rig

# Each group has one kind of writer: everybody, only the loop thread, or nobody once the state is made.
SHARED_IN_QUEUE = [("tail",), ("head",), ("gate",)]
SHARED_IN_POOL = [("free",), ("free_slabs",), ("free_chunks",), ("slabs",)]
SHARED_IN_TIMERS = [("free",), ("live_elsewhere",), ("size",), ("slabs",)]
GROUPS = (
    [
        ("lifecycle",),
        ("none",),
        ("stop",),
        ("sleep",),
        ("ready",),
        ("next_ticks",),
        ("polled",),
        ("wakes_sent",),
        ("spins_won",),
    ]
    + [(queue, *path) for queue in ("external", "remote") for path in SHARED_IN_QUEUE]
    + [("pool", *path) for path in SHARED_IN_POOL]
    + [("timers", *path) for path in SHARED_IN_TIMERS]
)


def test_writers_are_lines_apart() -> None:
    """Words that different threads write are at least a line of 128 bytes apart."""
    lines = {path: offset(STATE.dtype, *path) // LINE for path in GROUPS}
    for one, other in itertools.combinations(GROUPS, 2):
        assert lines[one] != lines[other], f"{one} and {other} share a line"


@pytest.mark.parametrize(
    ("kind", "together"),
    [
        (QUEUE.dtype, ["gate", "limit", "directory", "directory_mask", "shift", "pool"]),
        (QUEUE.dtype, ["head", "chunk", "final"]),
        (STATE.dtype, ["sleep", "sleep_deadline"]),
        (HANDLE.dtype, ["loop", "self"]),
        (HANDLE.dtype, ["queued", "next_ready"]),
    ],
)
def test_what_is_used_together_lies_together(kind: np.dtype[np.void], together: list[str]) -> None:
    assert len({offset(kind, name) // LINE for name in together}) == 1


def test_handle_shares_no_line_with_its_loop_or_another_handle() -> None:
    """Each handle is an array of whole lines; its queue is separate from what the loop writes of it."""
    assert offset(HANDLE.dtype, "queued") // LINE != offset(HANDLE.dtype, "queue", "tail") // LINE
    assert offset(HANDLE.dtype, "queued") // LINE != offset(HANDLE.dtype, "loop") // LINE
    for kind in (QUEUE.dtype, POOL.dtype, TIMERS.dtype, STATE.dtype, HANDLE.dtype):
        assert kind.itemsize % LINE == 0


def words(kind: np.dtype[np.void], path: tuple[str, ...] = (), start: int = 0) -> list[tuple[int, tuple[str, ...]]]:
    """Every word of a record with its offset."""
    found = []
    for name in kind.names or ():
        of, at = kind.fields[name][:2]  # type: ignore[index]
        if of.names:
            found += words(of, (*path, name), start + at)
        else:
            assert of.itemsize == 8
            found.append((start + at, (*path, name)))
    return found


@pytest.mark.parametrize(
    "kind",
    [QUEUE.dtype, POOL.dtype, RING.dtype, TIMERS.dtype, SLOT.dtype, FAR.dtype, BUCKET.dtype, STATE.dtype, HANDLE.dtype],
)
def test_words_do_not_overlap(kind: np.dtype[np.void]) -> None:
    offsets = [at for at, _ in words(kind)]
    assert len(offsets) == len(set(offsets))
    assert all(at % 8 == 0 and 0 <= at < kind.itemsize for at in offsets)


RECORDS = {name: record for name, record in vars(layout).items() if isinstance(record, layout.Record)}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_names_every_word_where_numpy_has_it(name: str) -> None:
    record = RECORDS[name]
    start = offset(layout.BLOCK.dtype, "live") if name == "LIVE" else 0
    words = {
        field.upper(): start + offset(record.dtype, field) for field in record.dtype.names or () if field[0] != "_"
    }
    assert {word: at for word, at in vars(record).items() if word[0].isupper()} == words


def test_all_records_are_checked() -> None:
    assert len(RECORDS) >= 15


def test_record_and_address_are_the_same_memory() -> None:
    memory = rig.Memory()
    assert memory.base % LINE == 0
    assert memory.state.ctypes.data % LINE == 0
    for at, path in words(STATE.dtype):
        if path[0] not in ("external", "stop"):
            continue
        old = get(memory.base + at)
        put(memory.base + at, 12345)
        here = memory.record
        for name in path:
            here = here[name]
        assert here == 12345
        put(memory.base + at, old)


def test_slots_and_chunks_are_aligned() -> None:
    """Two slots never share a line of 64 bytes, four heap entries fill one, and so do eight cells."""
    assert SLOT.dtype.itemsize == 64
    assert layout.NODE_BYTES * 4 == 64
    assert layout.SLAB_LIMIT << layout.CHUNKS_PER_SLAB_BITS == layout.CHUNK_LIMIT
    assert layout.SLOT_SLAB_LIMIT << layout.SLOTS_PER_SLAB_BITS == layout.SLOT_LIMIT


def test_table_is_zero_and_writable() -> None:
    made = layout.table(1 << 20)
    assert made[[0, 1000, -1]].tolist() == [0, 0, 0]
    made[-1] = 7
    assert made[-1] == 7
