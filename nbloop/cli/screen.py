"""The commands' output: plain lines, or rich's bars and tables on a terminal if rich is installed.

Both screens have the same interface, and no command knows which one it has. Only `Bar.show` redraws a bar, on the
calling thread: no refresh thread competes with what is being measured.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Protocol, Self

NAME_WIDTH = 20


class Bar(Protocol):
    """The progress of one run; a context manager, so that the terminal is restored."""

    period: float  # seconds between two calls of `show`

    def __enter__(self) -> Self: ...

    def __exit__(self, *_exc: object) -> None: ...

    def show(self, done: int, text: str) -> None:
        """Show that `done` lines are done, with `text` for details."""

    def finish(self, text: str) -> None:
        """All are done."""


class Screen(Protocol):
    """Where a command's output goes."""

    def heading(self, text: str) -> None: ...

    def line(self, text: str = "") -> None: ...

    def bar(self, name: str, total: int) -> Bar: ...

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], emphasised: int = 0) -> None:
        """A table with its first column left-aligned and the others right-aligned; a row of one cell is a subtitle."""

    def verdict(self, good: bool, text: str) -> None: ...


def make_screen(plain: bool = False) -> Screen:
    """Rich's screen on a capable terminal, else the plain one."""
    if plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb" or importlib.util.find_spec("rich") is None:
        return PlainScreen()
    return RichScreen()


class PlainBar:
    period = 1.0

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def show(self, done: int, text: str) -> None:
        print(f"  {self._name:<{NAME_WIDTH}} {done / self._total:4.0%}  {text}", flush=True)

    def finish(self, text: str) -> None:
        self.show(self._total, text)


class PlainScreen:
    def heading(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def bar(self, name: str, total: int) -> PlainBar:
        return PlainBar(name, total)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], emphasised: int = 0) -> None:
        full = [row for row in rows if len(row) > 1]
        widths = [max(len(row[i]) for row in [columns, *full]) for i in range(len(columns))]

        def show(row: Sequence[str]) -> None:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            print(("  " + "  ".join(cells)).rstrip())

        show(columns)
        print("  " + "  ".join("-" * width for width in widths))
        for row in rows:
            if len(row) == 1:
                print(f"  {row[0]}")
            else:
                show(row)
        sys.stdout.flush()

    def verdict(self, good: bool, text: str) -> None:
        print(f"{'ok' if good else 'NOT OK'}: {text}", flush=True)


class RichBar:
    period = 0.2

    def __init__(self, name: str, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}", style="dim", markup=False),
            auto_refresh=False,
        )
        self._total = total
        self._task = self._progress.add_task(f"{name:<{NAME_WIDTH}}", total=total, text="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._progress.stop()

    def show(self, done: int, text: str) -> None:
        self._progress.update(self._task, completed=done, text=text, refresh=True)

    def finish(self, text: str) -> None:
        self.show(self._total, text)


class RichScreen:
    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)

    def heading(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold cyan", markup=False)

    def line(self, text: str = "") -> None:
        self._console.print(text, markup=False)

    def bar(self, name: str, total: int) -> RichBar:
        return RichBar(name, total)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], emphasised: int = 0) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=True, header_style="bold")
        for i, column in enumerate(columns):
            last = i == len(columns) - 1
            table.add_column(
                column, justify="right" if i else "left", no_wrap=i > 0, style="green" if last and i > 1 else ""
            )
        for row in rows:
            if len(row) == 1:
                table.add_row(Text(row[0], style="dim italic"))
            else:
                table.add_row(*map(Text, row))
        self._console.print(table)

    def verdict(self, good: bool, text: str) -> None:
        self._console.print(f"{'✓' if good else '✗'} {text}", style="bold green" if good else "bold red", markup=False)
