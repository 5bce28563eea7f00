"""The rows of a comparison as a table for a terminal, for a README, and for programs."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbloop

from . import peers
from .measure import Sample, gil_enabled
from .targets import TARGETS, Target

HEADER = (
    "what",
    "nbloop",
    "asyncio",
    "asyncio / nbloop",
    "uvloop",
    "also",
    "judged",
    "target",
    "reached",
    "slower than",
)

# The event loop whose design this one took up, in Go: its own benchmarks, ns for one operation. Not measured in these
# rounds, and not on this very machine.
GO = {
    "submit.elsewhere": 45,
    "burst": 101,
    "race.10": 94,
    "wait": 689,
    "timer.elsewhere": 48_564,
    "timer.fired": 1_425,
    "microtask": 117,
    "immediate": 245,
    "event.row": 50_464,
}
GO_ORIGIN = (
    "Go: the loop that this one's design comes from, the same operation in its own benchmarks (Submit, BurstSubmit, "
    "MultiProducer of 10, MicroPingPong, TimerSchedule, TimerFire, MicrotaskExecution, SetImmediate; an eventfd from "
    "another thread to the callback and back), measured on 2 vCPUs of the same kind, Go 1.27, medians of 3; not in "
    "these rounds."
)
BASELINES = ("deque", "SimpleQueue", "raw futex")  # no loops: what is slower than they are is not marked so


@dataclass(frozen=True)
class Row:
    """One figure. `judged` is what the target of `key` is about, None if that could not be measured, and `note` says
    why; `nbloop` (None in a row about the machine), `asyncio` and `others`, by name, are what was measured, in `unit`.
    """

    key: str
    unit: str
    nbloop: Sample | None
    asyncio: Sample | None
    judged: Sample | None
    others: Mapping[str, Sample] = field(default_factory=dict)
    note: str = ""

    @property
    def target(self) -> Target:
        """What this is held to."""
        return TARGETS[self.key]

    @property
    def reached(self) -> bool | None:
        """None if there is nothing to reach, or nothing to judge by."""
        return None if self.judged is None else self.target.reached(self.judged.median)

    @property
    def slower_than(self) -> list[str]:
        """The other loops that did better in these rounds, by more than the spread of both: a lost row."""
        ours = self.nbloop
        if ours is None:
            return []
        loops = {"asyncio": self.asyncio} | {name: of for name, of in self.others.items() if name not in BASELINES}
        return [name for name, of in loops.items() if of is not None and of.median < ours.median and of.high < ours.low]

    def judged_by(self, judged: Sample) -> Row:
        """The same, judged by something else."""
        return replace(self, judged=judged)

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADER`."""
        ratio = "–"
        if self.asyncio is not None and self.nbloop is not None and self.nbloop.median > 0 and self.unit != "calls":
            ratio = f"{_digits(self.asyncio.median / self.nbloop.median)}x"
        also = [f"{name} {_brief(of, self.unit)}" for name, of in self.others.items() if name != "uvloop"]
        if self.key in GO:
            also.append(f"Go {_brief(Sample.of([GO[self.key]]), 'ns')}")
        return (
            self.target.what,
            _spread(self.nbloop, self.unit),
            _spread(self.asyncio, self.unit),
            ratio,
            _spread(self.others.get("uvloop"), self.unit),
            ", ".join(also) or "–",
            _spread(self.judged, self.target.unit),
            str(self.target),
            {True: "yes", False: "NO", None: "–"}[self.reached],
            ", ".join(self.slower_than) or "–",
        )

    def facts(self) -> dict[str, Any]:
        """The row for programs."""
        return {
            "key": self.key,
            "what": self.target.what,
            "unit": self.unit,
            "nbloop": None if self.nbloop is None else vars(self.nbloop),
            "asyncio": None if self.asyncio is None else vars(self.asyncio),
            "others": {name: vars(of) for name, of in self.others.items()},
            "go": GO.get(self.key),
            "judged": None if self.judged is None else vars(self.judged),
            "judged_unit": self.target.unit,
            "limit": self.target.limit,
            "at_least": self.target.at_least,
            "reached": self.reached,
            "slower_than": self.slower_than,
            "note": self.note,
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


def _spread(sample: Sample | None, unit: str) -> str:
    if sample is None:
        return "–"
    sample, unit = _scaled(sample, unit)
    text = f"{_digits(sample.median)} {unit}"
    if sample.rounds > 1:
        text += f" ({_digits(sample.low)}–{_digits(sample.high)})"
    return text


def _brief(sample: Sample, unit: str) -> str:
    sample, unit = _scaled(sample, unit)
    return f"{_digits(sample.median)} {unit}"


def brief_time(ns: float) -> str:
    """A time for one operation, without its spread.

    >>> brief_time(31.66), brief_time(18_300)
    ('31.7 ns', '18.3 µs')
    """
    return _brief(Sample.of([ns]), "ns")


def _node_version() -> str | None:
    command = shutil.which("node")
    if command is None:
        return None
    return subprocess.run([command, "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


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
        "node": _node_version(),
        "uvloop": peers.version("uvloop"),
        "trio": peers.version("trio"),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def heading() -> str:
    """`machine` in a line."""
    facts = machine()
    names = {"uvloop": "uvloop", "trio": "trio", "node": "Node.js"}
    others = ", ".join(f"{title} {facts[name] or 'not installed'}" for name, title in names.items())
    kind = "with the GIL" if facts["gil"] else "free-threaded"
    return (
        f"nbloop {facts['nbloop']}, CPython {facts['python']} {kind}, {facts['cpu']} ({facts['cores']} cores), "
        f"{facts['system']}, {facts['date']}; {others}"
    )


LEGEND = (
    "Medians of interleaved rounds, in brackets the quartiles. E is an empty built-in call with one argument, measured "
    "in the same rounds. What is judged is the median of the rounds' own ratios. Node.js and the C program with the "
    "raw futex took part in the rounds as processes of their own; SimpleQueue and deque are a bare thread that calls "
    "what it takes out of them, the latter without ever sleeping. The last column names the loops that did better."
)


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Header and rows as text, without the columns that would have nothing in them."""
    lines = [HEADER, *(row.cells() for row in rows)]
    filled = [at for at in range(len(HEADER)) if at < 2 or any(line[at] != "–" for line in lines[1:])]
    return [tuple(line[at] for at in filled) for line in lines]


def notes(rows: Iterable[Row]) -> list[str]:
    """What the reader has to know of some of the rows."""
    return [f"not judged: {row.target.what}: {row.note}" for row in rows if row.note]


def markdown(rows: Sequence[Row], yardstick: str) -> str:
    """A table for a README."""
    header, *body = table(rows)
    lines = [
        heading() + ".",
        "",
        f"{LEGEND} {yardstick}",
        "",
        GO_ORIGIN,
        "",
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
    ]
    for row, cells in zip(rows, body, strict=True):
        lost = {"NO", *([", ".join(row.slower_than)] if row.slower_than else [])}
        lines.append("| " + " | ".join(f"**{cell}**" if cell in lost else cell for cell in cells) + " |")
    for note in notes(rows):
        lines += ["", f"{note[0].upper()}{note[1:]}."]
    return "\n".join(lines) + "\n"


# What a reader wants to know first, rows that are lost included.
BRIEF = (
    "submit.own",
    "submit.run",
    "submit.many.alone",
    "race.1",
    "race.4",
    "race.handles.4",
    "wait",
    "microtask",
    "timer.schedule",
    "timer.cancel",
    "timer.fire",
    "timer.million.cancel",
    "fd.1",
    "fd.1000",
    "echo",
    "hop",
    "hop.spinning",
    "js.chain.asyncio",
    "js.all",
    "aio.switch",
    "aio.race.1",
    "memory.each",
    "life",
    "import.warm",
)
BEGIN, END = "<!-- figures: {} -->", "<!-- end of figures -->"


def brief(rows: Sequence[Row]) -> str:
    """The rows of `BRIEF`, medians only, beside asyncio's."""
    lines = [f"{heading()}.", "", "| | nbloop | asyncio | | uvloop | |", "|---|---|---|---|---|---|"]
    by_key = {row.key: row for row in rows}
    for row in (by_key[key] for key in BRIEF if key in by_key):
        cells = row.cells()
        what, ours, theirs, ratio, uvloop = (cell.partition(" (")[0] for cell in cells[:5])
        lost = f"slower than {', '.join(row.slower_than)}" if row.slower_than else ""
        lines.append(f"| {what} | {ours} | {theirs} | {ratio} | {uvloop} | {lost} |")
    return "\n".join(lines) + "\n"


def write(file: Path, table: str, which: str = "written by make figures") -> None:
    """Put a table between the two marks of a file that has them; any other file is (over)written with it."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    before, begin, rest = text.partition(BEGIN.format(which))
    _, end, after = rest.partition(END)
    file.write_text(f"{before}{begin}\n{table}{end}{after}" if begin and end else table, encoding="utf-8")


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
    for row in rows:
        if row.slower_than:
            print(f"  slower than {', '.join(row.slower_than)}: {row.target.what}")
    print(f"\n{GO_ORIGIN}")
    for note in notes(rows):
        print(f"  {note}")


def _show_rich(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    header, *lines = table(rows)
    shown = Table(*header[:1])
    for name in header[1:]:
        shown.add_column(name, justify="right", overflow="fold")
    for row, cells in zip(rows, lines, strict=True):
        shown.add_row(*cells, style={True: None, False: "bold red", None: "dim"}[row.reached])
    Console().print(shown)


def _show_plain(rows: Sequence[Row]) -> None:
    lines = table(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *others = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print(first, *others, sep="  ")
