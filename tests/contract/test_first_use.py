"""What a loop makes when it is first used, and that loops with different options get different words."""

from __future__ import annotations

import contextlib
import threading

import pytest

import nbloop
from nbloop import Loop
from nbloop.kernels.base.layout import CHUNKS_PER_SLAB_BITS
from nbloop.kernels.state.state import HandleWords, LoopWords, State

RINGS = ("next_ticks", "microtasks", "immediates", "closing", "internal", "checkpoint_ends")


def test_what_holds_work_is_made_at_the_first_use() -> None:
    loop = Loop(auto_exit=True)
    record = loop._record
    assert record["pool"]["slab_count"] == 0
    assert record["timers"]["capacity"] == 0
    assert [int(record[name]["tail_end"]) for name in RINGS] == [0] * 6
    ran: list[str] = []
    loop.submit(ran.append, "task")
    assert record["pool"]["slab_count"] == 1
    loop.schedule_timer(0, ran.append, "timer")
    loop.schedule_next_tick(ran.append, "tick")
    loop.schedule_microtask(ran.append, "microtask")
    loop.schedule_checkpoint_end(ran.append, "checkpoint end")
    loop.schedule_immediate(ran.append, "immediate")
    loop.schedule_close(ran.append, "close")
    loop.submit_internal(ran.append, "internal")
    loop.run()
    assert ran == ["tick", "microtask", "checkpoint end", "immediate", "close", "timer", "internal", "task"]


def test_chunks_that_were_asked_for_are_made_at_construction() -> None:
    with contextlib.closing(Loop(initial_chunks=(1 << CHUNKS_PER_SLAB_BITS) + 1)) as loop:
        assert loop._record["pool"]["slab_count"] == 2


def test_threads_may_use_a_loop_first_at_the_same_time() -> None:
    threads = 8
    for _ in range(20):
        loop = Loop(auto_exit=True)
        ran: list[int] = []
        meet = threading.Barrier(threads)

        def first(number: int, loop: Loop = loop, ran: list[int] = ran, meet: threading.Barrier = meet) -> None:
            meet.wait(30)
            loop.submit(ran.append, number)
            loop.schedule_timer(0, ran.append, number)
            loop.schedule_microtask(ran.append, number)

        users = [threading.Thread(target=first, args=(number,)) for number in range(threads)]
        for user in users:
            user.start()
        for user in users:
            user.join(30)
        loop.run()
        assert sorted(ran) == sorted([*range(threads)] * 3)


@pytest.mark.parametrize("kind", [LoopWords, HandleWords])
def test_tables_lie_apart(kind: type[State]) -> None:
    end = kind.kind.itemsize
    for at, start in kind.starts:
        assert start >= end
        assert start % 4096 == 0
        end = start + 8 * kind.tables[at]
    assert kind.extent == end


def test_words_are_those_of_the_options() -> None:
    def words(loop: Loop) -> tuple[int, ...]:
        with contextlib.closing(loop):
            external, pool = loop._record["external"], loop._record["pool"]
            return int(external["shift"]), int(external["limit"]), int(external["gate"]), int(pool["chunk_bytes"])

    plain = words(Loop())
    assert plain == (7, (262_144 - 512) * 128, 0, 1024)
    assert words(Loop(chunk_size=16)) == (4, (262_144 - 512) * 16, 0, 128)
    assert words(Loop(ingress_limit=5)) == (7, 5, 1, 1024)
    assert words(Loop(metrics=True)) == (7, (262_144 - 512) * 128, 0, 2048)
    assert words(Loop()) == plain
    loop = nbloop.new_event_loop()
    assert loop.core._record["unpolled_most"] > 0
    assert loop.core._record["spin_max"] == 0
    loop.close()
