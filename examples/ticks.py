"""Four threads parse a file of ticks, and a loop keeps a rolling aggregate of each symbol: records, not callbacks.

Each thread parses lines of the CSV, which this program makes, and puts a record for each. The loop gets them as arrays
and sums them up with numpy. The same is done with one callback for each record (`submit`), and with a
`multiprocessing.Queue`, a thread of which takes the records one by one.

    python examples/ticks.py [LINES]

It prints the aggregate, which has to be the same for all of them, and how many records each got through in a second.
"""

from __future__ import annotations

import csv
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import nbloop

LINES = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
THREADS = 4
SYMBOLS = ("AAA", "BBB", "CCC", "DDD", "EEE")
TICK = np.dtype([("symbol", "u1"), ("price", "f8"), ("size", "i4")])

type Put = Callable[[int, float, int], object]


class Table:
    """Volume, turnover and last price of each symbol."""

    def __init__(self) -> None:
        self.volume = np.zeros(len(SYMBOLS), np.int64)
        self.turnover = np.zeros(len(SYMBOLS))
        self.ticks = 0
        self.done = threading.Event()

    def add_batch(self, ticks: Any) -> None:
        """Many at once: what a channel calls."""
        symbol, size = ticks["symbol"], ticks["size"]
        self.volume += np.bincount(symbol, size, len(SYMBOLS)).astype(np.int64)
        self.turnover += np.bincount(symbol, ticks["price"] * size, len(SYMBOLS))
        self.count(len(ticks))

    def add(self, symbol: int, price: float, size: int) -> None:
        """One: what the others call."""
        self.volume[symbol] += size
        self.turnover[symbol] += price * size
        self.count(1)

    def count(self, ticks: int) -> None:
        self.ticks += ticks
        if self.ticks == LINES:
            self.done.set()


def make_csv(path: Path) -> None:
    dice = random.Random(1)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        for _ in range(LINES):
            rows.writerow([dice.choice(SYMBOLS), round(dice.uniform(90, 110), 2), dice.randrange(1, 1000)])


def parse(lines: Iterable[str], put: Put) -> None:
    """What each thread does."""
    numbers = {symbol: number for number, symbol in enumerate(SYMBOLS)}
    for symbol, price, size in csv.reader(lines):
        put(numbers[symbol], float(price), int(size))


def timed(lines: list[str], table: Table, puts: list[Put]) -> float:
    """Records a second, from the start of the threads until the table has the last one."""
    start = time.perf_counter()
    threads = [threading.Thread(target=parse, args=(lines[i::THREADS], put)) for i, put in enumerate(puts)]
    for thread in threads:
        thread.start()
    assert table.done.wait(300)
    return LINES / (time.perf_counter() - start)


def by_channel(lines: list[str]) -> tuple[float, Table]:
    table = Table()
    with nbloop.Loop() as loop:
        channel = loop.channel(TICK, table.add_batch, on_full="wait")
        return timed(lines, table, [channel.producer().put for _ in range(THREADS)]), table


def by_submit(lines: list[str]) -> tuple[float, Table]:
    table = Table()
    with nbloop.Loop() as loop:

        def put(symbol: int, price: float, size: int) -> None:
            loop.submit(table.add, symbol, price, size)

        return timed(lines, table, [put] * THREADS), table


def by_queue(lines: list[str]) -> tuple[float, Table]:
    table = Table()
    queue: multiprocessing.Queue[tuple[int, float, int]] = multiprocessing.Queue()

    def take() -> None:
        for _ in range(LINES):
            table.add(*queue.get())

    threading.Thread(target=take, daemon=True).start()
    return timed(lines, table, [lambda *tick: queue.put(tick)] * THREADS), table


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ticks.csv")
        make_csv(path)
        lines = path.read_text().splitlines()
    tables = []
    for name, way in (("channel", by_channel), ("submit", by_submit), ("multiprocessing.Queue", by_queue)):
        rate, table = way(lines)
        tables.append(table)
        print(f"{name:>22}: {rate:12,.0f} records a second")
    print(f"{'symbol':>8} {'volume':>14} {'mean price':>12}")
    for symbol, volume, turnover in zip(SYMBOLS, tables[0].volume, tables[0].turnover, strict=True):
        print(f"{symbol:>8} {volume:>14,} {turnover / volume:>12.4f}")
    for table in tables:
        assert (table.volume == tables[0].volume).all()
        assert np.allclose(table.turnover, tables[0].turnover)
