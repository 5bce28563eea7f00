"""event_ring.py beside its twin, and under threads that write faster than the ring comes round."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nbloop import Loop
from nbloop.kernels.base import layout
from nbloop.kernels.observe import event_ring
from tests.support import naive, rig

WORD = st.integers(-(1 << 63), (1 << 63) - 1)


def words_of(entries: int) -> np.ndarray:
    """A recorder's memory, with a clock that is `monotonic_ns`."""
    words = layout.table((layout.RECORDER.dtype.itemsize + entries * layout.ENTRY.dtype.itemsize) // 8)
    words[: layout.RECORDER.dtype.itemsize // 8].view(layout.RECORDER.dtype)[0]["mask"] = entries - 1
    return words


def read(words: np.ndarray) -> list[list[int]]:
    """The complete entries, read by the kernel."""
    head = event_ring.recorder_head.bind(words)(None)
    first = max(0, head - (len(words) - layout.RECORDER.dtype.itemsize // 8) // 8)
    target = np.zeros((max(1, head - first), 8), np.int64)
    return target[: event_ring.recorder_read.bind(words)(target, first, head - first)].tolist()


class Machine(RuleBasedStateMachine):
    """One thread records and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.words = words_of(8)
        self.twin = naive.Recorder(8)

    @rule(time=WORD, duration=WORD, kind=WORD, subject=WORD, what=WORD, value=WORD)
    def record(self, **given: int) -> None:
        words = tuple(given[name] for name in ("time", "duration", "kind", "subject", "what", "value"))
        event_ring.record(self.words.ctypes.data, *words)
        time, duration, *rest = words
        self.twin.record(time, duration, threading.get_ident(), *rest)

    @invariant()
    def same(self) -> None:
        assert [(row[0], tuple(row[1:])) for row in read(self.words)] == self.twin.remembered()


TestMachine = Machine.TestCase
TestMachine.settings = rig.MACHINE


def test_an_entry_that_is_being_written_is_skipped() -> None:
    words = words_of(8)
    for i in range(3):
        event_ring.record(words.ctypes.data, i, 0, 0, 0, 0, 0)
    words[layout.K_ENTRIES // 8 + 8] |= 1  # the second one's sequence: somebody is at it
    assert [row[0] for row in read(words)] == [0, 2]


def test_a_writer_that_was_overtaken_drops_its_event() -> None:
    """Its place belongs to a later number by now, or to a thread that is still writing."""
    words = words_of(8)
    for i in range(9):
        event_ring.record(words.ctypes.data, i, 0, 0, 0, 0, 0)
    record = words[: layout.RECORDER.dtype.itemsize // 8].view(layout.RECORDER.dtype)[0]
    record["head"] = 0  # as seen by a thread that drew number 0 and slept
    event_ring.record(words.ctypes.data, 1000, 0, 0, 0, 0, 0)
    record["head"] = 9
    assert record["lost"] == 1
    assert [row[1] for row in read(words)] == list(range(1, 9))


@pytest.mark.usefixtures("no_collections")
def test_threads_that_lap_each_other() -> None:
    """Four write all words of an entry alike into a ring of 64, one reads: nothing torn, nothing counted twice.

    Through `submit` of a loop that is not run, so that what writes is compiled, where the kernels are.
    """
    loop = Loop(recorder=64)
    handles = [loop.producer() for _ in range(4)]
    done = threading.Event()
    torn: list[str] = []
    seen: Counter[int] = Counter()

    def write(i: int) -> None:
        for _ in range(3000):
            handles[i].submit(int)

    def look() -> None:
        while not done.is_set():
            events = loop.recorder.events()
            numbers = [event.number for event in events]
            if numbers != sorted(set(numbers)):
                torn.append(f"out of order: {numbers}")
            by_queue: dict[int, int] = {}
            for event in events:
                seen[event.number] += 1
                if event.kind not in ("submit", "wake") or (event.kind == "submit" and event.value != 1):
                    torn.append(repr(event))
                if event.kind == "submit":
                    queue, ticket = event.subject & 0xFFFF, event.subject >> 16
                    if ticket <= by_queue.get(queue, -1):
                        torn.append(f"ticket {ticket} of {queue} after {by_queue[queue]}")
                    by_queue[queue] = ticket

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    reader = threading.Thread(target=look)
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    reader.join(60)
    head = event_ring.recorder_head.bind(loop.recorder._words)(None)
    lost = loop.recorder.lost
    loop.close()
    assert torn == []
    assert seen
    assert 4 * 3000 <= head <= 4 * 3000 + 4
    assert lost < head
