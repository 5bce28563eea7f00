"""How costs grow with size: ``python -m asv_bench.scale`` (part of ``make figures``).

Four questions, each a plot: queued tasks, pending timers, watched descriptors, submitting threads. The measurements are
those of `compare`, at many sizes; nbloop and its peers are measured in turn at each. Plots need matplotlib, numbers
(``--json``) do not; ``--plot FILE`` draws numbers that another Python measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import crossing, descriptors, report, workloads
from .compare import beside
from .drive import Nbloop
from .measure import Probe, Rounds, Sample, interleave


@dataclass(frozen=True)
class Question:
    """A plot: what grows along its x axis, and what is measured there."""

    title: str
    growing: str
    sizes: Sequence[int]
    measure: Callable[[int, int], Rounds]  # (size, rounds) -> ns by series
    work: Callable[[int], float]  # seconds that a round takes, roughly


ROUNDS = 25
BUDGET = 6.0  # seconds for one size of one question


def _tasks(size: int, rounds: int) -> Rounds:
    """Submitted by a callback of the loop, run after it: ns for both, for one task."""
    with beside() as loops:
        # A peer needs some 200 bytes a task: at ten million, the machine would be measured instead.
        taking_part = loops if size <= 1_000_000 else loops[:1]
        values = interleave(rounds, [workloads.burst(of.name, of, of.soon, size) for of in taking_part], warm=1)
    return {name.removesuffix("+run"): times for name, times in values.items() if name.endswith("+run")}


def _timers(size: int, rounds: int) -> Rounds:
    """Scheduled, cancelled, fired among as many others with random deadlines."""
    with beside() as loops:
        taking_part = loops if size <= 100_000 else [of for of in loops if of.name != "asyncio"]
        return interleave(rounds, [workloads.Timers(of.name, of, size) for of in taking_part], warm=int(size < 100_000))


def _descriptors(size: int, rounds: int) -> Rounds:
    """One ready and the others idle; all of them ready: ns from an event to the end of its callback."""
    values: Rounds = {}
    for what, ready, idle in (("1 ready", 1, size - 1), ("all ready", size, 0)):
        with descriptors.eventfds(ready, idle) as fds, beside() as loops, contextlib.ExitStack() as watched:
            probes = [descriptors.Ready(f"{of.name}, {what}", of, fds, calls=max(2000, ready)) for of in loops]
            for probe in probes:
                watched.callback(probe.close)
            values |= interleave(rounds, probes, warm=1)
    return values


def _producers(size: int, rounds: int) -> Rounds:
    """Threads that share 50,000 tasks, until the last has run: ns a task."""
    with beside(started=True) as loops:
        ours = loops[0]
        assert isinstance(ours, Nbloop)

        def handle() -> Callable[..., Any]:
            return ours.loop.producer().submit

        probes: list[Probe] = [crossing.race("nbloop, producer() handles", handle, size, 50_000)]
        probes += [crossing.race(of.name, crossing.entrance(of), size, 50_000) for of in loops]
        values = interleave(rounds, probes, warm=1)
    return {name: times for name, times in values.items() if not name.endswith(" submit")}


QUESTIONS = {
    "tasks": Question(
        "A task: submit and run, by how many are queued",
        "queued tasks",
        [10**power for power in range(8)],
        _tasks,
        lambda size: 2e-3 + size * 2e-6,
    ),
    "timers": Question(
        "A timer: schedule, cancel, fire, by how many are pending",
        "pending timers",
        [10**power for power in range(7)],
        _timers,
        lambda size: 0.03 + size * 12e-6,
    ),
    "descriptors": Question(
        "An event: from ready to run, by how many are registered",
        "registered descriptors",
        [1, 10, 100, 1_000, 10_000],
        _descriptors,
        lambda size: 0.04 + size * 8e-6,
    ),
    "producers": Question(
        "A task: submit and run, by how many threads submit at once",
        "threads",
        [1, 2, 3, 4, 6, 8, 12, 16],
        _producers,
        lambda size: 0.3,
    ),
}

type Series = dict[str, list[tuple[int, float, float, float]]]  # size, median, quartiles


def measure(question: Question, budget: float) -> Series:
    """Measure every size, with as many rounds as `budget` seconds allow, at least one."""
    series: Series = {}
    for size in question.sizes:
        rounds = max(1, min(ROUNDS, int(budget / question.work(size))))
        try:
            values = question.measure(size, rounds)
        except OSError as limit:  # EMFILE: of descriptors
            print(f"{size:,} {question.growing}: {limit}", file=sys.stderr)
            continue
        for name, times in values.items():
            sample = Sample.of(times)
            series.setdefault(name, []).append((size, sample.median, sample.low, sample.high))
    return series


# One colour per loop, one stroke per kind, chosen by the beginning and the end of a series' name.
COLOURS = {"nbloop": "#c0392b", "asyncio": "#2c5f8a", "uvloop": "#3f8f4f"}
STROKES = {"cancel": "--", "fire": ":", "all ready": "--", "handles": "--"}


def plot(name: str, series: Mapping[str, Sequence[Sequence[float]]], folder: Path) -> Path:
    """Draw a question's numbers into ``folder/NAME.svg``."""
    question = QUESTIONS[name]

    def picture(axes: Any) -> None:
        for label, points in series.items():
            sizes, medians, lows, highs = zip(*points, strict=True)
            colour = next((of for start, of in COLOURS.items() if label.startswith(start)), "black")
            stroke = next((of for end, of in STROKES.items() if label.endswith(end)), "-")
            axes.plot(sizes, medians, stroke, color=colour, marker=".", label=label)
            axes.fill_between(sizes, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=question.title, xlabel=question.growing, ylabel="ns for one", xscale="log", yscale="log")
        if max(question.sizes) < 100:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")

    return draw(name, picture, folder)


def draw(name: str, picture: Callable[[Any], None], folder: Path) -> Path:
    """Make `picture` draw on axes, and save ``folder/NAME.svg``: the same file for the same numbers."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 10}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.6), layout="constrained")
    picture(axes)
    axes.grid(which="major", alpha=0.3)
    figure.legend(fontsize="small", frameon=False, ncols=4, loc="outside lower center")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.svg"
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    # matplotlib ends some lines with spaces, which no other file here has
    file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")
    return file


def markdown(answers: Mapping[str, Series]) -> str:
    """The numbers of the plots as tables."""
    lines = [report.prose(f"{report.heading()}."), ""]
    for name, series in answers.items():
        question = QUESTIONS[name]
        sizes = sorted({int(point[0]) for points in series.values() for point in points})
        lines += [f"| {question.growing} | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
        lines += ["|---" * (len(sizes) + 1) + "|"]
        for label, points in series.items():
            medians = {int(point[0]): report.brief_time(point[1]) for point in points}
            lines.append(f"| {label} | " + " | ".join(medians.get(size, "–") for size in sizes) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m asv_bench.scale", description="cost as things grow")
    parser.add_argument("--only", choices=QUESTIONS, action="append", help="only that question")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers for programs")
    parser.add_argument("--md", metavar="FILE", type=Path, help="write them as tables, between the marks of that file")
    parser.add_argument("--images", metavar="DIR", type=Path, help="draw them")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="measure nothing, take the numbers of --json")
    options = parser.parse_args()
    if options.plot is not None:
        answers = json.loads(options.plot.read_text())["answers"]
    else:
        answers = {}
        for name in options.only or QUESTIONS:
            started = time.monotonic()
            answers[name] = measure(QUESTIONS[name], BUDGET / 10 if options.quick else BUDGET)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": report.machine(), "answers": answers}, indent=1) + "\n")
    if options.images is not None:
        for name, series in answers.items():
            print(plot(name, series, options.images), file=sys.stderr)
    if options.md is not None:
        report.write(options.md, markdown(answers))
    elif options.json is None and options.images is None:
        print(markdown(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
