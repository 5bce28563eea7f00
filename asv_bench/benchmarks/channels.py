"""What does a record cost, and how many get through?"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

import nbloop
from asv_bench.measure import Probe, Sample, clock, interleave, loop_cost, ratios
from nbloop.kernels.methods import scheduling

THREE = np.dtype([("price", "f8"), ("size", "i8"), ("venue", "i4")])
WIDE = np.dtype([("price", "f8"), ("size", "i8"), ("time", "i8"), ("venue", "i4"), ("side", "i4")])
MANY = 1000
RECORDS = 200_000
RECORDS_IN_ARRAYS = 20_000_000


def each_of_three(function: Callable[..., Any], count: int) -> float:
    """ns of one call with three numbers, the `for` around it taken off."""
    start = clock()
    for _ in repeat(None, count):
        function(101.5, 300, 7)
    return (clock() - start) / count - loop_cost()


def puts(count: int = 2000) -> Probe:
    """`put` of three numbers on the loop's own thread, beside an empty built-in that takes them, and `submit` of a
    callback with them.
    """
    loop = nbloop.Loop(ingress_budget=1 << 20)
    channel = loop.channel(THREE, lambda _records: None)
    empty = scheduling.empty_many.bind(loop._state)

    def three(_price: float, _size: int, _venue: int) -> None:
        pass

    def probe() -> Mapping[str, float]:
        values = {"empty": each_of_three(empty, count), "put": each_of_three(channel.put, count)}
        start = clock()
        send = loop.submit
        for _ in repeat(None, count):
            send(three, 101.5, 300, 7)
        values["submit"] = (clock() - start) / count - loop_cost()
        loop.stop()
        loop.run()
        return values

    return probe


def arrays(count: int = 50) -> Probe:
    """`put_many` of a thousand records of 32 bytes beside `memmove` of as much between the same memory."""
    loop = nbloop.Loop()
    channel = loop.channel(WIDE, lambda _records: None)
    array = np.zeros(MANY, WIDE)
    ring = np.zeros(1 << 16, WIDE)
    source, size = array.ctypes.data, array.nbytes

    def probe() -> Mapping[str, float]:
        start = clock()
        for _ in repeat(None, count):
            channel.put_many(array)
        many = (clock() - start) / count
        while channel.waiting():
            loop.stop()
            loop.run()
        move, to = ctypes.memmove, ring.ctypes.data
        start = clock()
        for at in range(count):
            move(to + at * size, source, size)
        return {"put_many": many, "memmove": (clock() - start) / count}

    return probe


def threads(producers: int, produce: Callable[[int], object], done: threading.Event, records: int) -> float:
    """ns a record, from the start of the producers, which share them, until all have arrived."""
    made = [threading.Thread(target=produce, args=(records // producers,)) for _ in range(producers)]
    start = clock()
    for thread in made:
        thread.start()
    assert done.wait(120)
    took = clock() - start
    for thread in made:
        thread.join()
    return took / records


def through_channel(label: str, producers: int = 1, handles: bool = False, many: bool = False) -> Probe:
    """ns a record through a channel whose on_batch sums a column with numpy."""
    records_in_all = RECORDS_IN_ARRAYS if many else RECORDS

    def probe() -> Mapping[str, float]:
        done = threading.Event()
        total = [0, 0.0]

        def on_batch(records: Any) -> None:
            total[0] += len(records)
            total[1] += records["price"].sum()
            if total[0] >= records_in_all // producers * producers:
                done.set()

        with nbloop.Loop() as loop:
            channel = loop.channel(THREE, on_batch, on_full="wait")

            def produce(count: int) -> None:
                ring: Any = channel.producer() if handles else channel
                if many:
                    array, put_many = np.ones(MANY, THREE), ring.put_many
                    for _ in repeat(None, count // MANY):
                        put_many(array)
                    return
                put = ring.put
                for _ in repeat(None, count):
                    put(101.5, 300, 7)

            return {label: threads(producers, produce, done, records_in_all)}

    return probe


def through_submit(label: str) -> Probe:
    """The same with one callback a record."""

    def probe() -> Mapping[str, float]:
        done = threading.Event()
        total = [0, 0.0]

        def arrived(price: float, _size: int, _venue: int) -> None:
            total[0] += 1
            total[1] += price
            if total[0] == RECORDS:
                done.set()

        with nbloop.Loop() as loop:

            def produce(count: int) -> None:
                submit = loop.submit
                for _ in repeat(None, count):
                    submit(arrived, 101.5, 300, 7)

            return {label: threads(1, produce, done, RECORDS)}

    return probe


def through_queue(label: str, count: int = 20_000) -> Probe:
    """The same through an `asyncio.Queue`, from a coroutine to another on one loop: its quickest way."""

    def probe() -> Mapping[str, float]:
        async def main() -> float:
            queue: asyncio.Queue[tuple[float, int, int]] = asyncio.Queue()
            start = clock()

            async def consume() -> None:
                total = 0.0
                for _ in repeat(None, count):
                    price, _size, _venue = await queue.get()
                    total += price

            consumer = asyncio.ensure_future(consume())
            for i in range(count):
                queue.put_nowait((101.5, 300, 7))
                if i % 1000 == 0:
                    await asyncio.sleep(0)
            await consumer
            return (clock() - start) / count

        return {label: asyncio.run(main())}

    return probe


def put_range(ring: Any, count: int) -> None:
    """Compiled by the probes that use it: Numba is an extra."""
    for i in range(count):
        ring.put(101.5, i, 7)


def add_sizes(records: Any, total: Any) -> None:
    """The handler, as Python or compiled."""
    for record in records:
        total[0] += record["size"]
    total[1] += len(records)


def compiled_puts(count: int = 4000) -> Probe:
    """ns of a put from compiled code, with nobody else there, in a ring whose memory has been used."""
    import numba

    loop = nbloop.Loop()
    channel = loop.channel(THREE, nbloop.native(numba.njit(add_sizes), np.zeros(2, np.int64)), capacity=4096)
    produce, ring = numba.njit(put_range), channel.native

    def probe() -> Mapping[str, float]:
        produce(ring, 1)
        start = clock()
        produce(ring, count)
        value = (clock() - start) / count
        while channel.waiting():
            loop.stop()
            loop.run()
        return {"compiled put": value}

    return probe


def through_compiled(label: str, producers: int = 1, handles: bool = False) -> Probe:
    """ns a record from compiled producers, on threads of their own and detached, to a compiled handler."""
    import numba

    produce, add = numba.njit(nogil=True)(put_range), numba.njit(add_sizes)
    count = RECORDS_IN_ARRAYS // 4

    def probe() -> Mapping[str, float]:
        total = np.zeros(2, np.int64)
        with nbloop.Loop() as loop:
            channel = loop.channel(THREE, nbloop.native(add, total), on_full="wait")
            rings = [(channel.producer() if handles else channel).native for _ in range(producers)]
            produce(rings[0], 0)
            threads = [threading.Thread(target=produce, args=(ring, count // producers)) for ring in rings]
            start = clock()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            loop.shutdown()
            value = (clock() - start) / count
        assert total[1] == count // producers * producers
        return {label: value}

    return probe


def delays(rate: int = 100_000, records: int = 20_000) -> Probe:
    """p99 of the ns from a put, or a submit, of one number to its delivery, at so many a second from a thread that
    spins until the next is due. The number is when it was sent, and the callback notes it beside when it arrived.
    """

    def sent(send: Callable[[int], object]) -> None:
        begin = clock() + 1_000_000
        for due in range(begin, begin + records * 1_000_000_000 // rate, 1_000_000_000 // rate):
            while clock() < due:
                pass
            send(clock())

    def through(loop: nbloop.Loop, send: Callable[[int], object]) -> None:
        producer = threading.Thread(target=sent, args=(send,))
        producer.start()
        producer.join()
        loop.call(int)

    def probe() -> Mapping[str, float]:
        put, submitted = [], []

        def on_batch(batch: Any) -> None:
            now = clock()
            put.extend((now - batch["sent"]).tolist())

        def arrived(when: int) -> None:
            submitted.append(clock() - when)

        with nbloop.Loop() as loop:
            channel = loop.channel([("sent", "i8")], on_batch, capacity=1 << 15)
            through(loop, channel.put)
        with nbloop.Loop() as loop:
            through(loop, lambda when: loop.submit(arrived, when))
        assert len(put) == len(submitted) == records
        return {"put p99": percentile(put), "submit p99": percentile(submitted)}

    return probe


def percentile(values: Sequence[int]) -> float:
    """The 99th."""
    return float(np.quantile(np.array(values), 0.99))


def median_ratio(above: str, below: str, *probes: Probe, rounds: int) -> float:
    """Of rounds in which all take part."""
    values = interleave(rounds, probes, 1)
    return Sample.of(ratios(values[above], values[below])).median


class Put:
    """One record, and a thousand."""

    def track_put(self) -> float:
        """Decides whether a put of three numbers costs no more than 2.5 empty built-ins that take them."""
        return median_ratio("put", "empty", puts(), rounds=40)

    def track_put_many(self) -> float:
        """Decides whether an array of 32,000 bytes costs no more than twice its memmove."""
        return median_ratio("put_many", "memmove", arrays(), rounds=40)

    track_put.unit = track_put_many.unit = "x"  # type: ignore[attr-defined]


class Throughput:
    """From another thread, until the last record has been summed."""

    timeout = 300

    def track_beside_submit(self) -> float:
        """Decides whether three times as many records get through as callbacks with three arguments."""
        return median_ratio("submit", "put", through_channel("put"), through_submit("submit"), rounds=5)

    def track_beside_asyncio_queue(self) -> float:
        """Decides whether ten times as many do as through an asyncio.Queue."""
        return median_ratio("queue", "put", through_channel("put"), through_queue("queue"), rounds=5)

    def track_two_handles(self) -> float:
        """Decides whether two producers with rings of their own get more through than one: over 1 if they do."""
        two = through_channel("two", producers=2, handles=True)
        return median_ratio("one", "two", through_channel("one"), two, rounds=5)

    track_beside_submit.unit = "x"  # type: ignore[attr-defined]
    track_beside_asyncio_queue.unit = track_two_handles.unit = "x"  # type: ignore[attr-defined]


class Delays:
    """From put to delivery, at 100,000 a second."""

    timeout = 300

    def track_p99(self) -> float:
        """Decides whether the 99th percentile of a record's delay is no longer than that of a task's."""
        return median_ratio("put p99", "submit p99", delays(), rounds=10)

    track_p99.unit = "x"  # type: ignore[attr-defined]


class Arrays:
    """As many records as possible."""

    def track_put_many(self) -> float:
        """Decides whether 100 million records a second get through in arrays of a thousand: ns a record, under 10."""
        values = interleave(5, [through_channel("many", many=True)], 1)
        return Sample.of(values["many"]).median

    track_put_many.unit = "ns"  # type: ignore[attr-defined]


class Compiled:
    """Numba-compiled functions put, and get, the records."""

    timeout = 300

    def track_put(self) -> float:
        """Decides whether a put from compiled code costs no more than 15 ns."""
        return Sample.of(interleave(40, [compiled_puts()], 1)["compiled put"]).median

    def track_through(self) -> float:
        """Decides whether 30 million records a second get through from one producer: ns a record, under 33."""
        return Sample.of(interleave(5, [through_compiled("one")], 1)["one"]).median

    track_put.unit = track_through.unit = "ns"  # type: ignore[attr-defined]


if __name__ == "__main__":
    rounds = interleave(20, [puts(), arrays(), compiled_puts()], 1)
    rounds |= interleave(
        5,
        [
            through_channel("put: a record"),
            through_channel("put: a record, 2 handles", 2, handles=True),
            through_channel("put: a record, 2 producers", 2),
            through_channel("put_many: a record", many=True),
            through_compiled("compiled put: a record"),
            through_compiled("compiled put: a record, 2 handles", 2, handles=True),
            through_compiled("compiled put: a record, 2 producers", 2),
            through_submit("submit: a record"),
            through_queue("asyncio.Queue: a record"),
            delays(),
        ],
        1,
    )
    for name, values in rounds.items():
        sample = Sample.of(values)
        print(f"{sample.median:12.1f} ns ({sample.low:.1f} to {sample.high:.1f})  {name}")
