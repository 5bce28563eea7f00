"""The rows of a comparison as a table for a terminal, for a README, and for programs."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbloop

from .measure import Sample, gil_enabled
from .targets import TARGETS, Target

HEADER = ("what", "nbloop", "asyncio", "asyncio / nbloop", "judged", "target", "reached")


@dataclass(frozen=True)
class Row:
    """One figure. `judged` is what the target of `key` is about; `nbloop` and `asyncio` are what was measured, in
    `unit`.
    """

    key: str
    unit: str
    nbloop: Sample
    asyncio: Sample | None
    judged: Sample

    @property
    def target(self) -> Target:
        """What this is held to."""
        return TARGETS[self.key]

    @property
    def reached(self) -> bool | None:
        """None if there is nothing to reach."""
        return self.target.reached(self.judged.median)

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADER`."""
        ratio = "–"
        if self.asyncio is not None and self.nbloop.median > 0 and self.unit != "calls":
            ratio = f"{_digits(self.asyncio.median / self.nbloop.median)}x"
        judged = _spread(self.judged, self.target.unit)
        return (
            self.target.what,
            _spread(self.nbloop, self.unit),
            "–" if self.asyncio is None else _spread(self.asyncio, self.unit),
            ratio,
            judged,
            str(self.target),
            {True: "yes", False: "NO", None: "–"}[self.reached],
        )

    def facts(self) -> dict[str, Any]:
        """The row for programs."""
        return {
            "key": self.key,
            "what": self.target.what,
            "unit": self.unit,
            "nbloop": vars(self.nbloop),
            "asyncio": None if self.asyncio is None else vars(self.asyncio),
            "judged": vars(self.judged),
            "judged_unit": self.target.unit,
            "limit": self.target.limit,
            "at_least": self.target.at_least,
            "reached": self.reached,
        }


def _digits(value: float) -> str:
    """Three significant digits, and no exponent.

    >>> _digits(1234.5), _digits(35.68), _digits(1.5), _digits(0.0312), _digits(0)
    ('1,234', '35.7', '1.50', '0.031', '0')
    """
    if value == 0:
        return "0"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def _scaled(sample: Sample, unit: str) -> tuple[Sample, str]:
    if unit == "ns":
        for size, bigger in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
            if sample.median >= size:
                return Sample(sample.median / size, sample.low / size, sample.high / size, sample.rounds), bigger
    return sample, unit


def _spread(sample: Sample, unit: str) -> str:
    sample, unit = _scaled(sample, unit)
    text = f"{_digits(sample.median)} {unit}"
    if sample.rounds > 1:
        text += f" ({_digits(sample.low)}–{_digits(sample.high)})"
    return text


def machine() -> dict[str, Any]:
    """Where and when this was measured."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = next(iter(names), model)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "nbloop": nbloop.__version__,
        "python": platform.python_version(),
        "gil": gil_enabled(),
        "cpu": model,
        "cores": usable,
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def heading() -> str:
    """`machine` in a line."""
    facts = machine()
    kind = "with the GIL" if facts["gil"] else "free-threaded"
    return (
        f"nbloop {facts['nbloop']}, CPython {facts['python']} {kind}, {facts['cpu']} ({facts['cores']} cores), "
        f"{facts['system']}, {facts['date']}"
    )


LEGEND = (
    "Medians of interleaved rounds, in brackets the quartiles. E is an empty built-in call with one argument, measured "
    "in the same rounds. What is judged is the median of the rounds' own ratios."
)


def markdown(rows: Iterable[Row], yardstick: str) -> str:
    """A table for a README."""
    lines = [
        heading() + ".",
        "",
        f"{LEGEND} {yardstick}",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---" * len(HEADER) + "|",
    ]
    for row in rows:
        cells = row.cells()
        lines.append("| " + " | ".join((*cells[:-1], f"**{cells[-1]}**" if row.reached is False else cells[-1])) + " |")
    return "\n".join(lines) + "\n"


def show(rows: Sequence[Row], yardstick: str) -> None:
    """Print the table: with rich where it is installed, plain otherwise or where the output is no terminal."""
    print(heading(), LEGEND, yardstick, sep="\n", end="\n\n")
    if importlib.util.find_spec("rich") is not None and sys.stdout.isatty():
        _show_rich(rows)
    else:
        _show_plain(rows)
    judged = [row for row in rows if row.reached is not None]
    missed = [row for row in judged if not row.reached]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} targets reached")
    for row in missed:
        print(f"  not reached: {row.target.what}: {_spread(row.judged, row.target.unit)}, target {row.target}")


def _show_rich(rows: Iterable[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADER[:1])
    for name in HEADER[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row.cells(), style={True: None, False: "bold red", None: "dim"}[row.reached])
    Console().print(table)


def _show_plain(rows: Iterable[Row]) -> None:
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *others = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print(first, *others, sep="  ")
