"""Four threads parse a file of ticks, and a loop keeps a rolling aggregate of each symbol: records, not callbacks.

Each thread parses lines of the CSV, which this program makes, and puts a record for each. The loop gets them as arrays
and sums them up with numpy. With Numba the same is done by compiled threads, which parse the bytes themselves. Then
again with one callback for each record (`submit`), and with a `multiprocessing.Queue`, from which a thread takes the
records one by one.

    python examples/ticks.py [LINES]

While it runs it shows a table: the volume of each symbol, and the mean price of its last trades among the last 5,000.
In the end it says how many records each way got through in a second. The volumes have to be the same for all of them.
"""

from __future__ import annotations

import csv
import importlib.util
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import nbloop

LINES = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
THREADS = 4
SYMBOLS = ("AAA", "BBB", "CCC", "DDD", "EEE")
WINDOW = 5000  # ticks of the rolling mean
REFRESH = 0.25  # seconds between two looks at the table
TICK = np.dtype([("symbol", "u1"), ("price", "f8"), ("size", "i4")])

type Put = Callable[[int, float, int], object]


class Table:
    """Volume and turnover of each symbol, and the last ticks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last = np.zeros(0, TICK)
        self.seen: deque[tuple[int, float, int]] = deque(maxlen=WINDOW)  # the same, one by one
        self.volume = np.zeros(len(SYMBOLS), np.int64)
        self.turnover = np.zeros(len(SYMBOLS))
        self.ticks = 0
        self.done = threading.Event()

    def add_batch(self, ticks: Any) -> None:
        """Many at once: what a channel calls."""
        symbol, size = ticks["symbol"], ticks["size"]
        self.volume += np.bincount(symbol, size, len(SYMBOLS)).astype(np.int64)
        self.turnover += np.bincount(symbol, ticks["price"] * size, len(SYMBOLS))
        self.last = np.concatenate([self.last, ticks])[-WINDOW:]  # a copy: the view ends with this call
        self.count(len(ticks))

    def add(self, symbol: int, price: float, size: int) -> None:
        """One: what the others call."""
        self.volume[symbol] += size
        self.turnover[symbol] += price * size
        self.seen.append((symbol, price, size))
        self.count(1)

    def count(self, ticks: int) -> None:
        self.ticks += ticks
        if self.ticks == LINES:
            self.done.set()

    def rows(self) -> list[str]:
        last = np.array(list(self.seen), TICK) if self.seen else self.last
        shown = [f"{self.name}: {self.ticks:,} of {LINES:,}", f"{'symbol':>8} {'volume':>14} {'mean price':>12}"]
        for number, symbol in enumerate(SYMBOLS):
            of = last[last["symbol"] == number]
            mean = float((of["price"] * of["size"]).sum() / of["size"].sum()) if len(of) else float("nan")
            shown.append(f"{symbol:>8} {self.volume[number]:>14,} {mean:>12.4f}")
        return shown

    def show(self) -> None:
        """On a terminal, over what was shown before."""
        if sys.stdout.isatty():
            rows = self.rows()
            print("\n".join(f"{row}\033[K" for row in rows), end=f"\033[{len(rows) - 1}A\r", flush=True)


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


def parse_bytes(text: Any, ring: Any) -> None:
    """The same of an array of bytes, compiled. The symbols are AAA to EEE."""
    i = 0
    while i < len(text):
        symbol = int(text[i]) - 65
        i += 4
        digits, scale, fraction = 0, 1.0, False
        while text[i] != 44:
            if text[i] == 46:
                fraction = True
            else:
                digits = 10 * digits + int(text[i]) - 48
                scale *= 10.0 if fraction else 1.0
            i += 1
        i += 1
        size = 0
        while text[i] >= 48:
            size = 10 * size + int(text[i]) - 48
            i += 1
        while i < len(text) and text[i] < 48:
            i += 1
        ring.put(symbol, digits / scale, size)


def timed(table: Table, threads: list[threading.Thread]) -> float:
    """Records a second, from the start of the threads until the table has the last one."""
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    assert table.done.wait(300)
    return LINES / (time.perf_counter() - start)


def python(lines: list[str], puts: list[Put]) -> list[threading.Thread]:
    return [threading.Thread(target=parse, args=(lines[i::THREADS], put)) for i, put in enumerate(puts)]


def by_channel(lines: list[str]) -> tuple[float, Table]:
    table = Table("channel")
    with nbloop.Loop() as loop:
        loop.schedule_interval(REFRESH, table.show)
        channel = loop.channel(TICK, table.add_batch, on_full="wait")
        return timed(table, python(lines, [channel.producer().put for _ in range(THREADS)])), table


def by_compiled(lines: list[str]) -> tuple[float, Table]:
    import numba

    table = Table("channel, compiled")
    parts = [np.frombuffer("".join(f"{line}\n" for line in lines[i::THREADS]).encode(), "u1") for i in range(THREADS)]
    compiled = numba.njit(nogil=True)(parse_bytes)
    with nbloop.Loop() as loop:
        loop.schedule_interval(REFRESH, table.show)
        channel = loop.channel(TICK, table.add_batch, on_full="wait")
        rings = [channel.producer().native for _ in parts]
        compiled(parts[0][:0], rings[0])  # compiles it
        threads = [threading.Thread(target=compiled, args=pair) for pair in zip(parts, rings, strict=True)]
        return timed(table, threads), table


def by_submit(lines: list[str]) -> tuple[float, Table]:
    table = Table("submit")
    with nbloop.Loop() as loop:
        loop.schedule_interval(REFRESH, table.show)

        def put(symbol: int, price: float, size: int) -> None:
            loop.submit(table.add, symbol, price, size)

        return timed(table, python(lines, [put] * THREADS)), table


def by_queue(lines: list[str]) -> tuple[float, Table]:
    table = Table("multiprocessing.Queue")
    queue: multiprocessing.Queue[tuple[int, float, int]] = multiprocessing.Queue()

    def take() -> None:
        shown = time.monotonic()
        for _ in range(LINES):
            table.add(*queue.get())
            if time.monotonic() - shown >= REFRESH:
                table.show()
                shown = time.monotonic()

    threading.Thread(target=take, daemon=True).start()
    return timed(table, python(lines, [lambda *tick: queue.put(tick)] * THREADS)), table


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ticks.csv")
        make_csv(path)
        lines = path.read_text().splitlines()
    tables = []
    ways = [by_channel, by_compiled, by_submit, by_queue]
    if importlib.util.find_spec("numba") is None:
        ways.remove(by_compiled)
    for way in ways:
        rate, table = way(lines)
        tables.append(table)
        clear = "\033[J" if sys.stdout.isatty() else ""
        print(f"{clear}{table.name:>22}: {rate:12,.0f} records a second")
    print("\n".join(tables[0].rows()))
    for table in tables:
        assert (table.volume == tables[0].volume).all()
        assert np.allclose(table.turnover, tables[0].turnover)
