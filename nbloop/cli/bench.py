"""`nbloop bench`: Go-style benchmarks on this machine: time, allocations and bytes of one operation.

A benchmark is a function ``bench_NAME(b)`` that does something ``b.n`` times; it may be an ``async def``, which
`nbloop.run` runs. ``b.n`` grows until a round takes long enough; then rounds are repeated, and each gives one figure of
each kind. Allocations are those of all threads of the process (`nbloop.observe.allocations`).

Two saved runs are compared as benchstat does: by their medians, and by whether Mann-Whitney's test tells their rounds
apart. If the machine is busy with something else, one whole run becomes slower, which no test can detect.
"""

from __future__ import annotations

import errno
import fnmatch
import gc
import inspect
import itertools
import json
import platform
import runpy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .. import __version__
from ..observe.allocations import allocated, counting, supported
from .screen import make_screen

PREFIX = "bench_"
MOST = 1_000_000_000  # operations of a round
DIFFERENT = 0.05  # the probability below which benchstat, too, calls two runs different
KINDS = {"ns": "ns/op", "bytes": "B/op", "allocs": "allocs/op"}

type Figures = dict[str, list[float]]
"""One figure a round, by kind."""


class Bench:
    """The argument of a benchmark. Its thread only."""

    def __init__(self, n: int) -> None:
        self.n = n
        """How often to do it."""
        self._spent = [0, 0, 0]  # ns, blocks, bytes
        self._since: tuple[int, int, int] | None = None

    def __iter__(self) -> Iterator[None]:
        """Iterate `n` times, without numbers, each of which would be an allocation."""
        return itertools.repeat(None, self.n)

    def reset_timer(self) -> None:
        """Forget what was measured so far, such as preparations, and measure from now on."""
        self._spent = [0, 0, 0]
        self._since = None
        self.start_timer()

    def start_timer(self) -> None:
        """Measure from now on, if it does not yet."""
        if self._since is None:
            blocks, size = _allocated()
            self._since = time.perf_counter_ns(), blocks, size

    def stop_timer(self) -> None:
        """What follows is not measured."""
        if self._since is not None:
            now = time.perf_counter_ns(), *_allocated()
            self._spent = [spent + b - a for spent, a, b in zip(self._spent, self._since, now, strict=True)]
            self._since = None

    def measured(self) -> tuple[int, int, int]:
        """ns, blocks and bytes of all operations."""
        ns, blocks, size = self._spent
        return ns, blocks, size


def _allocated() -> tuple[int, int]:
    every = allocated().values()
    return sum(one.blocks for one in every), sum(one.bytes for one in every)


def _round(function: Callable[[Bench], Any], n: int) -> tuple[int, int, int]:
    b = Bench(n)
    gc.collect()
    b.start_timer()
    if inspect.iscoroutinefunction(function):
        from ..aio import run

        run(function(b))
    else:
        function(b)
    b.stop_timer()
    return b.measured()


def measure(function: Callable[[Bench], Any], count: int, seconds: float) -> tuple[int, Figures]:
    """The operations of a round that takes `seconds`, and the figures of `count` rounds."""
    n = 1
    with counting() if supported() else nullcontext():
        _round(function, n)  # which imports what it needs
        while (ns := _round(function, n)[0]) < seconds * 1e9 and n < MOST:
            n = min(max(n + 1, min(100 * n, int(1.2 * n * seconds * 1e9 / max(1, ns)))), MOST)
        figures: Figures = {kind: [] for kind in (KINDS if supported() else ("ns",))}
        for _ in range(count):
            ns, blocks, size = _round(function, n)
            for kind, total in (("ns", ns), ("allocs", blocks), ("bytes", size)):
                if kind in figures:
                    figures[kind].append(total / n)
    return n, figures


def found(files: Sequence[str], pattern: str) -> dict[str, Callable[[Bench], Any]]:
    """The benchmarks of these files, or nbloop's own without one, whose names match. Raises what the files raise."""
    everything: dict[str, Callable[[Bench], Any]] = {}
    for file in files:
        sys.path.insert(0, str(Path(file).resolve().parent))
        everything |= runpy.run_path(file, run_name=Path(file).stem)
    if not files:
        everything = runpy.run_module("nbloop.cli.benchmarks")
    chosen = {name.removeprefix(PREFIX): one for name, one in everything.items() if name.startswith(PREFIX)}
    return {name: one for name, one in chosen.items() if fnmatch.fnmatch(name, pattern)}


def main(files: Sequence[str], *, pattern: str, count: int, seconds: float, save: str | None) -> int:
    """Measure and print; 2 if there is nothing to measure, or a file cannot be read or written."""
    try:
        for file in files:
            if Path(file).is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder, not a file with benchmarks", file)
        chosen = found(files, pattern)
    except OSError as error:
        print(f"nbloop: {error}", file=sys.stderr)
        return 2
    if not chosen:
        print(f"nbloop: no function {PREFIX}NAME whose NAME matches {pattern!r}", file=sys.stderr)
        return 2
    results: dict[str, Figures] = {}
    width = max(map(len, chosen))
    print(f"nbloop {__version__}, Python {platform.python_version()}, {platform.machine()}")
    for name, function in chosen.items():
        n, results[name] = measure(function, count, seconds)
        print(f"{name:<{width}}  {n:>11,}  {_line(results[name])}", flush=True)
    if save is not None:
        try:
            Path(save).write_text(json.dumps({"version": 1, "benchmarks": results}, indent=1))
        except OSError as error:
            print(f"nbloop: {error}", file=sys.stderr)
            return 2
    return 0


def _line(figures: Mapping[str, Sequence[float]]) -> str:
    shown = []
    for kind, unit in KINDS.items():
        if kind in figures:
            middle = statistics.median(figures[kind])
            spread = f" ±{_spread(figures[kind]):3.0%}" if kind == "ns" else ""
            shown.append(f"{_number(middle):>9} {unit}{spread}")
    return "  ".join(shown)


def _number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(values: Sequence[float]) -> float:
    """The distance from the median to the farther end of the middle half, as a share of the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return max(high - middle, middle - low) / middle if middle else 0.0


def compare(old: str, new: str) -> int:
    """Print what differs between two saved runs; 2 if one cannot be read, or the library for the test is missing."""
    try:
        from scipy.stats import mannwhitneyu
    except ImportError:
        print("nbloop: --compare needs scipy: pip install nbloop[compare]", file=sys.stderr)
        return 2
    try:
        before, after = (_saved(path) for path in (old, new))
    except (OSError, ValueError) as error:
        print(f"nbloop: {error}", file=sys.stderr)
        return 2
    rows: list[list[str]] = []
    for kind, unit in KINDS.items():
        both = [name for name in before if kind in before[name] and kind in after.get(name, {})]
        if both:
            rows.append([unit])
        for name in both:
            a, b = before[name][kind], after[name][kind]
            rows.append([name, *_compared(a, b, mannwhitneyu)])
    make_screen().table(("benchmark", "old", "new", "change", "p"), rows)
    for path, one, other in ((old, before, after), (new, after, before)):
        if alone := sorted(set(one) - set(other)):
            print(f"only in {path}: {', '.join(alone)}")
    return 0


def _compared(a: Sequence[float], b: Sequence[float], test: Callable[..., Any]) -> list[str]:
    middle, other = statistics.median(a), statistics.median(b)
    p = 1.0 if len({*a, *b}) == 1 else float(test(a, b).pvalue)
    shown = _number(middle), _number(other)
    change = "~" if p >= DIFFERENT or shown[0] == shown[1] or not middle else f"{other / middle - 1:+.1%}"
    return [*shown, change, f"{p:.3f}"]


def _saved(path: str) -> dict[str, Figures]:
    """ValueError for a file that is not a saved run."""
    try:
        benchmarks: dict[str, Figures] = json.loads(Path(path).read_text())["benchmarks"]
        for figures in benchmarks.values():
            for kind in figures:
                statistics.median(figures[kind])
    except (ValueError, TypeError, KeyError, AttributeError, statistics.StatisticsError) as error:
        raise ValueError(f"{path} is not a run that bench --save has written: {error!r}") from None
    return benchmarks
