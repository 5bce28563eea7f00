"""`nbloop top`: every measured loop of this user, live, even in a process that hangs.

Problem: a stuck process cannot answer. Idea: loops made with ``metrics="shared"`` measure in shared memory; this reads
it without involving their process. Rates cover the time between two looks; with only one look they are the loop's own,
over 10 s.

The loops of a group (`nbloop.LoopGroup`, `nbloop.serve`) stand together, below a row that sums them up. A loop's
channels stand below it: their figures count records, and their errors are the records that were dropped.

It shows only loops of this user and of this version of nbloop, and none on systems without file locks.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..observe import Metrics, shared
from ..observe.server import plain
from ..observe.together import by_channel

if TYPE_CHECKING:
    from ..channel import ChannelFigures

PERIOD = 1.0  # seconds between two looks
COLUMNS = (
    "loop",
    "pid",
    "state",
    "for",
    "callbacks/s",
    "waiting",
    "most",
    "delay p50",
    "delay p99",
    "run p99",
    "busy",
    "errors",
)
# Columns that a narrow terminal leaves out, first to last.
DISPENSABLE = (
    "most",
    "delay p50",
    "run p99",
    "errors",
    "delay p99",
    "busy",
    "waiting",
)
UNCERTAIN = 0.001  # a callback this short is not worth naming
TOO_LONG = 1.0  # a callback this long is highlighted


class Look:
    """One loop at one moment, compared with the previous look. `channels` is None if they cannot be seen."""

    def __init__(
        self, loop: shared.SharedLoop, now: Metrics, channels: list[ChannelFigures] | None, before: Look | None
    ) -> None:
        self.loop = loop
        self.now = now
        self.channels = channels
        passed = now.time - before.now.time if before is not None else 0.0
        self._delivered: dict[str, int] = {}
        if before is not None and passed > 0:
            self.rate = (now.callbacks - before.now.callbacks) / passed
            busy = now.busy_time - before.now.busy_time
            self._delivered = {one.name: one.delivered for one in before.channels or ()}
        else:
            self.rate = now.tps
            busy, passed = now.busy_time, now.time - loop.made
        self._passed = passed
        # Divided by the time that passed, not by busy plus idle time: a sleep counts when it ends, perhaps hours later.
        self.busy = min(1.0, busy / passed) if passed > 0 else 0.0

    def records_per_second(self, channel: ChannelFigures) -> float:
        """How many records of a channel of the loop have been delivered since the previous look; without one, or if
        the channel is new, since the loop was made.
        """
        return (channel.delivered - self._delivered.get(channel.name, 0)) / self._passed if self._passed > 0 else 0.0

    @property
    def running_for(self) -> float | None:
        """Seconds that the callback in progress has taken so far; None if there is none."""
        running = self.now.running
        return None if running is None else max(0.0, self.now.time - running.since)

    def facts(self) -> dict[str, Any]:
        """The figures for JSON."""
        return {
            "pid": self.loop.pid,
            "name": self.loop.name,
            "group": self.loop.group or None,
            "running_for": self.running_for,
            "callbacks_per_second": self.rate,
            "busy": self.busy,
            "metrics": plain(self.now) | {"running": plain(self.now.running)},
            "channels": None
            if self.channels is None
            else [plain(one) | {"records_per_second": self.records_per_second(one)} for one in self.channels],
        }

    def row(self) -> list[str]:
        """The table's row, in the order of `COLUMNS`."""
        running, took = self.now.running, self.running_for
        named = running is not None and took is not None and took >= UNCERTAIN
        return [
            f"  {self.loop.name}" if self.loop.group else self.loop.name,
            str(self.loop.pid),
            f"in a {running.kind}" if named and running else "turning" if running else "resting",
            duration(took) if named and took is not None else "",
            *_figures(self.now, self.rate, self.busy),
        ]

    def channel_rows(self) -> Iterator[list[str]]:
        """The rows of the loop's channels."""
        for one in self.channels or ():
            delays = ("", "") if one.delay is None else (duration(one.delay.p50), duration(one.delay.p99))
            rate, indent = f"{self.records_per_second(one):,.0f}", "    " if self.loop.group else "  "
            figures = rate, f"{one.waiting:,}", "", *delays, "", "", f"{one.dropped:,}"
            yield [indent + one.name, str(self.loop.pid), "channel", "", *figures]


def _figures(now: Metrics, rate: float, busy: float) -> list[str]:
    """The columns from the fifth on."""
    return [
        f"{rate:,.0f}",
        f"{now.queue_current.ingress:,}",
        f"{now.queue_max.ingress:,}",
        duration(now.delay.p50),
        duration(now.delay.p99),
        duration(now.latency.p99),
        f"{busy:.0%}",
        f"{now.errors:,}",
    ]


def rows(looks: Sequence[Look]) -> Iterator[tuple[list[str], bool]]:
    """The table's rows, each with whether its loop hangs. The rows of a group stand together, as its looks do, after a
    row of their sums: `busy` is more than 100 % if they take more than a core.
    """
    for (group, pid), together in itertools.groupby(looks, key=_group_of):
        of = list(together)
        if group:
            now = Metrics.merged([look.now for look in of])
            sums = _figures(now, sum(look.rate for look in of), sum(look.busy for look in of))
            yield [group, str(pid), f"{len(of)} loop{'s' if len(of) > 1 else ''}", "", *sums], False
        for look in of:
            yield look.row(), (look.running_for or 0.0) >= TOO_LONG
            for row in look.channel_rows():
                yield row, False


def _group_of(look: Look) -> tuple[str, int]:
    return look.loop.group, look.loop.pid


def duration(seconds: float) -> str:
    """A duration with three digits and a unit.

    >>> duration(0.0000123), duration(0.25), duration(75)
    ('12.3 µs', '250 ms', '75 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{seconds * 1e9:.0f} ns"


class Looker:
    """Takes looks, and remembers the last one of each loop."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._before: dict[str, Look] = {}

    def look(self) -> list[Look]:
        """All loops that exist now. A loop whose process dies meanwhile is left out."""
        looks = []
        for loop in shared.loops(self._pid):
            try:
                now = loop.snapshot()
            except RuntimeError:  # killed in the middle of a change
                continue
            try:
                channels = by_channel(loop.channels())
            except OSError:
                channels = None
            looks.append(Look(loop, now, channels, self._before.get(loop.path.name)))
        self._before = {look.loop.path.name: look for look in looks}
        return sorted(looks, key=lambda look: (look.loop.pid, look.loop.group, look.loop.made))


def main(pid: int | None, *, once: bool, as_json: bool) -> int:
    """Show the loops until Ctrl-C, or once if asked or without a terminal. Returns 1 if a single look finds none."""
    if importlib.util.find_spec("fcntl") is None:
        print("nbloop: top needs file locks, which this system does not have", file=sys.stderr)
        return 1
    looker = Looker(pid)
    if as_json:
        looks = looker.look()
        print(json.dumps([look.facts() for look in looks], indent=2))
        return 0 if looks else 1
    if once or not sys.stdout.isatty():
        from .screen import make_screen

        looks = looker.look()
        if looks:
            make_screen().table(COLUMNS, [row for row, _ in rows(looks)])
            if note := unseen(looks):
                print(note)
        else:
            print(_none(pid))
        return 0 if looks else 1
    return _live(looker, pid)


def unseen(looks: Sequence[Look]) -> str:
    """What the table does not show, if this process may not read the memory of another."""
    pids = sorted({look.loop.pid for look in looks if look.channels is None})
    if not pids:
        return ""
    whose = ", ".join(map(str, pids))
    return f"queue lengths are those of the last turn, and channels are not shown: this process may not trace {whose}"


def _none(pid: int | None) -> str:
    whose = "this user has" if pid is None else f"process {pid} has"
    return f'{whose} no readable loop: use Loop(metrics="shared"), or NBLOOP_METRICS=shared for a whole process'


def _live(looker: Looker, pid: int | None) -> int:
    try:
        from rich.console import Group
        from rich.live import Live
    except ImportError:
        print("nbloop: the live view needs rich (pip install nbloop[top]); --once does not", file=sys.stderr)
        return 1
    with Live(auto_refresh=False, screen=True) as live:
        while True:
            looks = looker.look()
            shown = Group(_table(looks, live.console.width), unseen(looks)) if looks else _none(pid)
            live.update(shown, refresh=True)
            time.sleep(PERIOD)


def fitting(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The indices of the `COLUMNS` that fit into `room` cells, with three cells of padding each. The `DISPENSABLE`
    ones are dropped first.
    """
    widths = [3 + max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    kept = list(range(len(COLUMNS)))
    for name in DISPENSABLE:
        if sum(widths[i] for i in kept) <= room:
            break
        kept.remove(COLUMNS.index(name))
    return kept


def _table(looks: Sequence[Look], width: int) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = list(rows(looks))
    kept = fitting([row for row, _ in shown], width)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for i in kept:
        table.add_column(COLUMNS[i], justify="left" if i in (0, 2) else "right", no_wrap=True)
    for row, stuck in shown:
        table.add_row(*(Text(row[i]) for i in kept), style="bold red" if stuck else "")
    return table
