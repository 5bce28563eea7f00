"""The rows of a comparison as a table for a terminal, for a README, and for programs."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbloop

from . import peers
from .measure import Sample, gil_enabled
from .targets import TARGETS, Target

HEADER = (
    "operation",
    "nbloop",
    "asyncio",
    "asyncio / nbloop",
    "uvloop",
    "others",
    "judged by",
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
    "Go is the Go library whose design nbloop took up. Its own benchmarks measured the same operation (Submit, "
    "BurstSubmit, MultiProducer of 10, MicroPingPong, TimerSchedule, TimerFire, MicrotaskExecution, SetImmediate; an "
    "eventfd from another thread to the callback and back) on 2 vCPUs of the same kind, with Go 1.27, medians of 3; "
    "not in these rounds."
)
BASELINES = ("deque", "SimpleQueue", "raw futex")  # not loops: a row that is slower than they are is not marked as lost


@dataclass(frozen=True)
class Row:
    """One figure. `judged` is the value for the target of `key`, or None if it could not be measured, and `note` says
    why; `nbloop` (None in a row about the machine), `asyncio` and `others`, by name, are the measurements, in `unit`.
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
        """The target of this row."""
        return TARGETS[self.key]

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None if there is no target or no measurement."""
        return None if self.judged is None else self.target.reached(self.judged.median)

    @property
    def slower_than(self) -> list[str]:
        """The other loops that were better in these rounds, by more than the spread of both: a lost row."""
        ours = self.nbloop
        if ours is None:
            return []
        return [name for name, of in self.loops().items() if of.median < ours.median and of.high < ours.low]

    def loops(self) -> dict[str, Sample]:
        """The event loops beside nbloop that were measured."""
        loops = {"asyncio": self.asyncio, **self.others}
        return {name: of for name, of in loops.items() if of is not None and name not in BASELINES}

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
        f"nbloop {facts['nbloop']}, CPython {facts['python']} {kind}, {facts['cpu']} ({facts['cores']} CPUs), "
        f"{facts['system']}, {facts['date']}; {others}"
    )


def prose(text: str) -> str:
    """A paragraph in lines that a Markdown source may have."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


LEGEND = (
    "Medians of interleaved rounds, with quartiles in parentheses. E is the time of an empty built-in call with one "
    "argument, `callable(f)`, measured in the same rounds. A target applies to the column *judged by*: the median of "
    "the ratios that the rounds gave one by one. Node.js and the C program on a raw futex took part in the rounds as "
    "processes of their own. SimpleQueue and deque are a bare thread that calls what it takes from the queue; the "
    "thread on the deque never sleeps. The last column names the event loops whose rounds were better by more than the "
    "spread of both; queues and Go are not named there."
)


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Header and rows as text, without empty columns."""
    lines = [HEADER, *(row.cells() for row in rows)]
    filled = [at for at in range(len(HEADER)) if at < 2 or any(line[at] != "–" for line in lines[1:])]
    return [tuple(line[at] for at in filled) for line in lines]


def notes(rows: Iterable[Row]) -> list[str]:
    """What the reader must know about some of the rows."""
    return [f"not judged: {row.target.what}: {row.note}" for row in rows if row.note]


def markdown(rows: Sequence[Row], yardstick: str) -> str:
    """A table for a README."""
    header, *body = table(rows)
    lines = [
        prose(heading() + "."),
        "",
        prose(f"{LEGEND} {yardstick}"),
        "",
        prose(GO_ORIGIN),
        "",
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
    ]
    for row, cells in zip(rows, body, strict=True):
        lost = {"NO", *([", ".join(row.slower_than)] if row.slower_than else [])}
        lines.append("| " + " | ".join(f"**{cell}**" if cell in lost else cell for cell in cells) + " |")
    for note in notes(rows):
        lines += ["", prose(f"{note[0].upper()}{note[1:]}.")]
    return "\n".join(lines) + "\n"


# The six rows of the README, in words that need no glossary. One of them is lost; the others that are follow by name.
BRIEF = {
    "race.4": "4 threads submit; a task, until it has run",
    "timer.pair": "schedule a timer and cancel it",
    "hop": "wake a sleeping loop from another thread, and be woken by it",
    "fd.1": "a descriptor becomes readable, until its callback runs",
    "echo": "echo 64 bytes over TCP, 100 connections",
    "aio.race.1": "in asyncio programs: `call_soon_threadsafe`, until it has run",
}
BEGIN, END = "<!-- figures: {} -->", "<!-- end of figures -->"


def brief(rows: Sequence[Row]) -> str:
    """The rows of `BRIEF`, medians only, beside asyncio's and uvloop's; then every row that was lost, by name."""
    header = ("operation", "nbloop", "asyncio", "times faster", "uvloop", "times faster")
    lines = [prose(f"{heading()}."), "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    by_key = {row.key: row for row in rows}
    for row in (by_key[key] for key in BRIEF if key in by_key):
        peers = [row.asyncio, row.others.get("uvloop")]
        cells = [BRIEF[row.key], "–" if row.nbloop is None else _brief(row.nbloop, row.unit)]
        for peer in peers:
            known = peer is not None and row.nbloop is not None
            cells += [_brief(peer, row.unit), _digits(peer.median / row.nbloop.median)] if known else ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    lost = [
        f"{row.target.what} ({_brief(row.nbloop, row.unit)}; "
        + ", ".join(f"{name} {_brief(row.loops()[name], row.unit)}" for name in row.slower_than)
        + ")"
        for row in rows
        if row.slower_than and row.nbloop is not None
    ]
    if lost:
        lines += [
            "",
            "nbloop loses these rows of the full table, by more than the spread of both:",
            "",
            *(f"* {each}" for each in lost),
        ]
    return "\n".join(lines) + "\n"


def write(file: Path, table: str, which: str = "written by make figures") -> None:
    """Put a table between the two marks of a file that has them; overwrite any other file with it."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    before, begin, rest = text.partition(BEGIN.format(which))
    _, end, after = rest.partition(END)
    file.write_text(f"{before}{begin}\n{table}{end}{after}" if begin and end else table, encoding="utf-8")


def show(rows: Sequence[Row], yardstick: str) -> None:
    """Print the table: with rich if it is installed and the output is a terminal, otherwise plain."""
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
