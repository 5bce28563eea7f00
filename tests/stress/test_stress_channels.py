"""Many producers at once on compiled channels: nothing lost, nothing twice, nothing torn, everybody's order kept."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import nbloop
from tests.support.crowd import PATIENCE, crowd, scaled

PRODUCERS = 4
DTYPE = np.dtype([("who", "i4"), ("n", "i8"), ("twice", "f8"), ("check", "u4")])


def batch_of(who: int, first: int, count: int) -> np.ndarray:
    n = np.arange(first, first + count)
    made = np.zeros(count, DTYPE)
    made["who"], made["n"], made["twice"], made["check"] = who, n, 2.0 * n, n % 2**31
    return made


@pytest.mark.parametrize("on_full", ["wait", "drop_new", "drop_old"])
@pytest.mark.parametrize("handles", [False, True])
def test_producers(on_full: str, handles: bool) -> None:
    """Single records and arrays of up to 100, in a ring of 256, while the loop now and then sleeps or is slow."""
    each = scaled(20_000)
    last = [-1] * PRODUCERS
    counts = [0] * PRODUCERS
    stored = [0] * PRODUCERS
    bad: list[str] = []

    def on_batch(records: np.ndarray) -> None:
        before = records.copy()
        if not (records["twice"] == 2.0 * records["n"]).all() or not (records["check"] == records["n"]).all():
            bad.append("torn")
        for who in range(PRODUCERS):
            mine = records["n"][records["who"] == who]
            if len(mine):
                if mine[0] <= last[who] or (np.diff(mine) <= 0).any():
                    bad.append("out of order, or twice")
                last[who] = int(mine[-1])
                counts[who] += len(mine)
        if counts[0] % 17 == 0:
            time.sleep(0)
        if (before != records).any():
            bad.append("overwritten")

    loop = nbloop.Loop(on_error=lambda error, _context: bad.append(repr(error)))
    channel = loop.channel(DTYPE, on_batch, capacity=256, max_batch=64, on_full=on_full)
    rings = [channel.producer() if handles else channel for _ in range(PRODUCERS)]

    def produce(who: int) -> None:
        put, put_many = rings[who].put, rings[who].put_many
        n = 0
        while n < each:
            if n % 7:
                stored[who] += put(who, n, 2.0 * n, n % 2**31)
                n += 1
            else:
                count = min(each - n, 1 + n % 100)
                stored[who] += put_many(batch_of(who, n, count))
                n += count
            if n % 1000 == 0:
                time.sleep(0)

    with loop, crowd() as many:
        for who in range(PRODUCERS):
            many.add(produce, who)
    assert bad == []
    dropped = sum(ring.dropped for ring in {id(ring): ring for ring in rings}.values())
    if on_full == "drop_old":
        assert stored == [each] * PRODUCERS
        assert sum(counts) + dropped == sum(stored)
    else:
        assert counts == stored
        assert sum(stored) + dropped == each * PRODUCERS
    if on_full == "wait":
        assert dropped == 0


def test_bursts_to_a_loop_that_sleeps() -> None:
    """One record at a time, each to a loop that has gone to sleep: no wake-up is lost."""
    loop = nbloop.Loop()
    arrived = threading.Semaphore(0)
    channel = loop.channel([("n", "i8")], lambda records: [arrived.release() for _ in records])
    with loop:
        for n in range(scaled(3000)):
            channel.put(n)
            assert arrived.acquire(timeout=PATIENCE), f"record {n} was never delivered"
