"""Counted allocations: exact where it is known what is allocated, and the interpreter's own allocators afterwards."""

from __future__ import annotations

import ctypes
import itertools
import threading
import tracemalloc
from collections.abc import Callable

import pytest

from nbloop.observe import allocations
from nbloop.observe.allocations import allocated, allocated_here, counting
from nbloop.observe.profile import Profiler

pytestmark = [
    pytest.mark.parallel_threads(1),  # allocators are the process's
    pytest.mark.skipif(not allocations.supported(), reason="kernels are not compiled"),
]
COUNT, SIZE = 2000, 5000


def allocate() -> None:
    for _ in itertools.repeat(None, COUNT):  # whose numbers would be allocated
        bytearray(SIZE)


def stands_there() -> dict[int, int]:
    """By domain: the address of its ``malloc``."""
    found = {}
    for domain in (1, 2):
        one = allocations._Allocator()
        allocations._get(domain, ctypes.byref(one))
        found[domain] = one.malloc
    return found


def grows(body: Callable[[], object]) -> tuple[int, int]:
    before = allocated_here()
    body()
    after = allocated_here()
    return after.blocks - before.blocks, after.bytes - before.bytes


def test_what_comes_and_goes_is_counted_and_afterwards_nothing_is() -> None:
    before = stands_there()
    with counting():
        assert stands_there() != before
        blocks, size = grows(allocate)
    assert COUNT * 2 <= blocks < COUNT * 2 + 500  # the object, and its buffer
    assert COUNT * SIZE < size < COUNT * (SIZE + 200) + 100_000
    assert stands_there() == before
    assert grows(allocate) == (0, 0)


def test_calloc_and_realloc_are_counted() -> None:
    def grow() -> None:
        block = bytearray(1000)
        for _ in range(10):
            block.extend(bytes(1000))  # bytes(n) comes from calloc, and extend reallocates

    with counting():
        assert 15_000 < grows(grow)[1] < 200_000


def test_each_thread_has_its_own_figures() -> None:
    seen: list[tuple[int, int]] = []
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(30)
        seen.append(grows(allocate))

    thread = threading.Thread(target=work)
    thread.start()
    with counting():
        assert begun.wait(30)

        def let_it() -> None:
            go.set()
            thread.join()

        assert grows(let_it)[1] < COUNT * SIZE / 2
    assert seen[0][1] > COUNT * SIZE


def test_several_count_at_the_same_time() -> None:
    before = stands_there()
    with counting():
        with counting():
            pass
        assert grows(allocate)[1] > COUNT * SIZE
    assert stands_there() == before


def test_an_allocator_that_came_later_stays() -> None:
    before = stands_there()
    with counting():
        tracemalloc.start()
    try:
        block = bytearray(100_000)
        assert tracemalloc.get_traced_memory()[0] >= len(block)
    finally:
        tracemalloc.stop()  # which puts ours back
    with counting():
        assert grows(allocate)[1] > COUNT * SIZE
    assert stands_there() == before


def test_threads_allocate_while_allocators_are_exchanged() -> None:
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            [bytearray(n) for n in range(0, 2000, 100)]

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        with counting():
            bytearray(10)
    over.set()
    for thread in threads:
        thread.join()


def test_more_threads_than_lines_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with counting():
        assert allocations._table is not None
        lines = allocations._table.reshape(-1, allocations.kernels.LINE)[1:]
        kept = lines.copy()
        lines[:, 0] = 1  # somebody else's
        assert grows(allocate) == (0, 0)
        lines[:] = kept


def test_a_profile_weighs_stacks_by_what_they_allocate() -> None:
    over = threading.Event()

    def allocates() -> None:
        while not over.is_set():
            bytearray(SIZE)

    def idles() -> None:
        over.wait(30)

    threads = [threading.Thread(target=body, name=body.__name__) for body in (allocates, idles)]
    with Profiler(hertz=500, allocations=True) as profiler:
        for thread in threads:
            thread.start()
        before = sum(one.bytes for one in allocated().values())
        while sum(one.bytes for one in allocated().values()) - before < 50_000_000:
            over.wait(0.01)
        over.set()
        for thread in threads:
            thread.join()
    seen = profiler.profile()
    by_thread = {name: sum(run.bytes for run in runs) for name, runs in seen.threads.items()}
    assert by_thread["allocates"] > 40_000_000
    assert by_thread.get("idles", 0) < 1_000_000
    assert sum(run.blocks for run in seen.threads["allocates"]) * SIZE > 40_000_000
    assert seen.allocations


def test_a_profile_does_not_count_unless_it_is_asked_to() -> None:
    before = stands_there()
    with Profiler(hertz=500) as profiler:
        assert stands_there() == before
        allocate()
    assert all(run.bytes == 0 for runs in profiler.profile().threads.values() for run in runs)
    with pytest.raises(TypeError, match="allocations must be True or False"):
        Profiler(allocations=1)  # type: ignore[arg-type]
