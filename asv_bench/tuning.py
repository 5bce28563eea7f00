"""The figures of the tuning guide: ``python -m asv_bench.tuning`` (part of ``make figures``).

Each section of docs/performance-tuning.md asks one question; this file measures it on the reader's machine: ``--only
modes`` prints that section's table. Figures that stand side by side are measured in turn, in one process, and delays
are those that the loop itself reports. Pictures need matplotlib, tables do not.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import nbloop
from nbloop import FastPathMode, LoopState
from nbloop.observe import Histogram
from nbloop.observe.contention import totals
from nbloop.observe.profile import Profiler

from . import crossing, report, workloads
from .drive import Nbloop
from .measure import Probe, Sample, clock, interleave, nothing
from .scale import draw

type Table = list[list[str]]  # the first row is the header
type Answer = dict[str, Any]  # what JSON can hold: "table", and what a picture needs


def _ns(values: Sequence[float]) -> str:
    return report.brief_time(Sample.of(values).median)


def _seconds(value: float) -> str:
    return report.brief_time(value * 1e9)


# --- sections ---------------------------------------------------------------------------------------------------------


def modes(rounds: int) -> Answer:
    """A single task by another thread, to a loop that sleeps: where it sleeps, and what the task costs."""
    table = [["loop", "sleeps", "delay p50", "p99", "wake-up system calls per task"]]
    shapes: dict[str, list[list[float]]] = {}
    kinds: list[tuple[str, str, FastPathMode]] = [
        ("`AUTO`, `FORCED`", "on a futex", FastPathMode.FORCED),
        ("`DISABLED`, or with descriptors", "in epoll", FastPathMode.DISABLED),
    ]
    for name, where, mode in kinds:
        with nbloop.Loop(fast_path_mode=mode, metrics=True) as loop:
            for _ in range(25 * rounds):
                _until(lambda loop=loop: loop.state is LoopState.SLEEPING)
                loop.submit(nothing)
            _until(lambda loop=loop: loop.state is LoopState.SLEEPING)
            delay, met = loop.metrics().delay, totals(loop)
        table.append([name, where, _seconds(delay.p50), _seconds(delay.p99), f"{met.wakes_sent / delay.count:.2f}"])
        shapes[f"asleep {where}"] = [list(bucket) for bucket in delay.histogram.buckets()]
    ours = Nbloop(metrics=True)
    ours.start()
    hops = crossing.on_two_cores(ours, crossing.hops_in_a_row("hop", ours, 100))
    hops()  # the first of them to a loop that sleeps
    hops()
    before, already = totals(ours.loop), ours.loop.metrics().delay.histogram
    for _ in range(rounds):
        hops()
    delay, met = _since(ours.loop.metrics().delay.histogram, already), totals(ours.loop) - before
    ours.close()
    p50, p99 = (_seconds(delay.quantile(q)) for q in (0.5, 0.99))
    table.append(
        [
            "`AUTO`, the next task follows at once",
            "not at all: it spins",
            p50,
            p99,
            f"{met.wakes_sent / delay.count:.2f}",
        ]
    )
    shapes["looking around"] = [list(bucket) for bucket in delay.buckets()]
    return {"table": table, "shapes": shapes}


def _since(now: Histogram, before: Histogram) -> Histogram:
    """What was added to a histogram since an earlier copy."""
    return Histogram(now._counts - before._counts, now._total - before._total, now._max)


def _until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0)


def chunks(rounds: int) -> Answer:
    """Submit and run, by the size of a chunk."""
    sizes = (16, 64, 128, 512, 2048, 4096)
    loops = {size: Nbloop(chunk_size=size) for size in sizes}
    probes = [workloads.burst(str(size), of, of.soon, 50_000) for size, of in loops.items()]
    values = interleave(rounds, probes, warm=1)
    for of in loops.values():
        of.close()
    table = [["`chunk_size`", *(f"{size:,}" for size in sizes)]]
    table.append(["submit and run, per task", *(_ns(values[f"{size}+run"]) for size in sizes)])
    return {"table": table}


def budget(rounds: int) -> Answer:
    """How late a timer is while more tasks wait than the loop can run: it gets what each turn leaves it."""
    table = [["`ingress_budget`", "submit and run, per task", "a 1 ms timer is late by, median", "worst"]]
    for size in (64, 1024, 16_384):
        costs, late = [], []
        for _ in range(max(3, rounds // 5)):
            cost, lates = _backlog(size, 60_000)
            costs.append(cost)
            late += lates
        table.append([f"{size:,}", _ns(costs), _ns(late), report.brief_time(max(late))])
    return {"table": table}


def _backlog(size: int, count: int) -> tuple[float, list[float]]:
    """ns a task of a backlog of `count` short ones, and by how many ns timers of 1 ms were late meanwhile."""
    loop = nbloop.Loop(ingress_budget=size)
    late: list[float] = []

    def timer(due: int) -> None:
        late.append(clock() - due)
        loop.schedule_timer(0.001, timer, clock() + 1_000_000)

    def work() -> None:
        for _ in repeat(None, 20):
            pass

    loop.submit_many([work] * count)
    loop.submit(loop.stop)
    loop.schedule_timer(0.001, timer, clock() + 1_000_000)
    start = clock()
    loop.run()
    cost = (clock() - start) / count
    loop.close()
    return cost, late or [0.0]


THREADS = (1, 2, 4, 8)


def producers(rounds: int) -> Answer:
    """Tasks a second that threads get through a loop, by what they submit with."""
    ours = Nbloop()
    ours.start()
    total = 40_000
    ways: dict[str, Callable[[], Callable[..., Any]]] = {
        "`submit`": lambda: ours.loop.submit,
        "`producer().submit`": lambda: ours.loop.producer().submit,
    }
    rates: dict[str, list[float]] = {name: [] for name in (*ways, "`submit_many` of 1,000")}
    for threads in THREADS:
        probes: list[Probe] = [crossing.race(name, way, threads, total) for name, way in ways.items()]
        probes.append(_batches("`submit_many` of 1,000", ours.loop, threads, total))
        for name, times in interleave(max(5, rounds // 3), probes, warm=1).items():
            if name in rates:
                rates[name].append(1e9 / Sample.of(times).median)
    ours.close()
    table = [["tasks per second, by threads", *map(str, THREADS)]]
    table += [[name, *(f"{rate / 1e6:.1f} million" for rate in row)] for name, row in rates.items()]
    return {"table": table, "rates": rates}


def _batches(label: str, loop: nbloop.Loop, threads: int, total: int) -> Probe:
    each = total // threads // 1000

    def probe() -> Mapping[str, float]:
        left = threading.Semaphore(0)
        barrier = threading.Barrier(threads + 1)

        def produce() -> None:
            barrier.wait()
            for _ in range(each):
                loop.submit_many([nothing] * 1000)
            loop.submit(left.release)

        made = [threading.Thread(target=produce) for _ in range(threads)]
        for thread in made:
            thread.start()
        barrier.wait()
        start = clock()
        for _ in made:
            left.acquire()
        took = clock() - start
        for thread in made:
            thread.join()
        return {label: took / (each * 1000 * threads)}

    return probe


def timers(rounds: int) -> Answer:
    """Schedule and cancel, by who does it."""
    here, elsewhere = Nbloop(), Nbloop()
    elsewhere.start()
    values = interleave(
        rounds,
        [
            workloads.timer_pairs("here", here),
            crossing.timer_elsewhere("elsewhere", elsewhere),
            crossing.timer_elsewhere_waking("waking", elsewhere),
        ],
    )
    here.close()
    elsewhere.close()
    table = [["who schedules and cancels", "time for both"]]
    table.append(["the loop's own thread", _ns(values["here"])])
    table.append(["another thread; the loop sleeps until an earlier timer", _ns(values["elsewhere"])])
    table.append(["another thread; each timer is the earliest and wakes the loop", _ns(values["waking"])])
    return {"table": table}


def kinds(rounds: int) -> Answer:
    """Scheduled by a callback and run: ns for both, an empty Python function's own call taken off."""
    ours = Nbloop()
    loop = ours.loop
    ways: dict[str, Callable[..., Any]] = {
        "`schedule_next_tick`": loop.schedule_next_tick,
        "`schedule_microtask`": loop.schedule_microtask,
        "`submit_internal`": loop.submit_internal,
        "`submit`": loop.submit,
        "`schedule_immediate`": loop.schedule_immediate,
        "`schedule_timer(0, ...)`": lambda callback: loop.schedule_timer(0, callback),
    }
    values = interleave(rounds, [workloads.burst(name, ours, way) for name, way in ways.items()])
    ours.close()
    table = [["from a callback", "schedule", "schedule and run"]]
    table += [[name, _ns(values[name]), _ns(values[f"{name}+run"])] for name in ways]
    return {"table": table}


def watching(rounds: int) -> Answer:
    """The cost of observing: submit and run of 1,000 tasks, relative to an unobserved loop."""
    loops = {
        "nothing": Nbloop(),
        "`metrics=True`": Nbloop(metrics=True),
        "`recorder=65536`": Nbloop(recorder=65536),
        "both": Nbloop(metrics=True, recorder=65536),
    }
    probes: list[Probe] = [workloads.burst(name, of, of.soon) for name, of in loops.items()]
    plain = workloads.burst("`Profiler(hertz=100)`", loops["nothing"], loops["nothing"].soon)

    def profiled() -> Mapping[str, float]:
        with Profiler(hertz=100):
            return plain()

    values = interleave(rounds, [*probes, profiled], warm=100)  # until the recorder's ring has come round, and is there
    for of in loops.values():
        of.close()
    base = values["nothing+run"]
    table = [["observed by", "submit and run, per task", "relative to nothing"]]
    for name in [*loops, "`Profiler(hertz=100)`"]:
        times = values[f"{name}+run"]
        ratio = Sample.of([a / b for a, b in zip(times, base, strict=True)]).median
        table.append([name, _ns(times), f"{ratio:.2f}x"])
    return {"table": table}


def contended(rounds: int) -> Answer:
    """Four threads hand 200,000 tasks to a loop: the figures of `nbloop.observe.contention`, per thousand tasks."""
    total, threads = 200_000, 4
    ways: dict[str, tuple[dict[str, Any], Callable[[nbloop.Loop], Callable[[], object]]]] = {
        "`submit`": ({}, lambda loop: lambda: _repeat(loop.submit, total // threads)),
        "`submit` with `ingress_limit`": (
            {"ingress_limit": total},
            lambda loop: lambda: _repeat(loop.submit, total // threads),
        ),
        "`producer().submit`": ({}, lambda loop: lambda: _repeat(loop.producer().submit, total // threads)),
        "`submit_many` of 1,000": (
            {},
            lambda loop: lambda: [loop.submit_many([nothing] * 1000) for _ in range(total // threads // 1000)],
        ),
    }
    table = [["per 1,000 tasks", "time", "wake-ups sent", "swaps repeated", "stalls", "share of time asleep"]]
    for name, (options, way) in ways.items():
        with nbloop.Loop(**options) as loop:
            before = totals(loop)
            work = way(loop)
            made = [threading.Thread(target=work) for _ in range(threads)]
            for thread in made:
                thread.start()
            for thread in made:
                thread.join()
            done = threading.Event()
            loop.submit(done.set)
            done.wait()
            seen = totals(loop) - before
        per = 1000 / total
        table.append(
            [
                name,
                _seconds(seen.seconds * per),
                f"{seen.wakes_sent * per:.2f}",
                f"{seen.retries.total * per:.2f}",
                f"{seen.stalls * per:.2f}",
                f"{seen.per_second()['parked_time']:.0%}",
            ]
        )
    return {"table": table}


def _repeat(submit: Callable[..., Any], count: int) -> None:
    for _ in repeat(None, count):
        submit(nothing)


def memory(rounds: int) -> Answer:
    """What a waiting callback takes according to tracemalloc, in bytes and blocks, without the loop's own arrays."""
    count = 1000
    loop = nbloop.Loop(initial_chunks=64)

    def double(value: int) -> int:
        return 2 * value

    for _ in range(3):
        loop.submit_many([nothing] * 4000)
        for _ in range(count):
            loop.schedule_timer(3600, nothing)
            loop.schedule_microtask(nothing)
        loop.stop()
        loop.run()
    ways: dict[str, Callable[[], object]] = {
        "`submit(f)`": lambda: loop.submit(nothing),
        "`submit(f, x)`": lambda: loop.submit(double, 7),
        "`submit(lambda: f(x))`, a new function each": lambda: loop.submit(lambda: double(7)),
        "`submit(partial(f, x))`": lambda: loop.submit(_partial(double, 7)),
        "`schedule_microtask(f)`": lambda: loop.schedule_microtask(nothing),
        "`schedule_timer(1, f)`, its id kept": lambda: kept.append(loop.schedule_timer(3600, nothing)),
    }
    kept: list[int] = []
    table = [["waiting callback", "bytes", "blocks"]]
    for name, way in ways.items():
        kept = [0] * count
        kept.clear()
        tracemalloc.start()
        way()
        before = tracemalloc.take_snapshot()
        for _ in repeat(None, count):
            way()
        after = tracemalloc.take_snapshot()
        tracemalloc.stop()
        changes = [one for one in after.compare_to(before, "filename") if "tracemalloc" not in str(one.traceback)]
        size, blocks = (sum(getattr(one, of) for one in changes) for of in ("size_diff", "count_diff"))
        table.append([name, f"{max(0, size) / count:.0f}", f"{max(0, blocks) / count:.1f}"])
        loop.stop()
        loop.run()
    loop.close()
    return {"table": table}


def _partial(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    import functools

    return functools.partial(function, *args)


def traced(_rounds: int) -> Answer:
    """About the last 300 µs in a flight recorder while two threads submit to a loop, as `Recorder.trace` returns it."""
    loop = nbloop.Loop(name="traced", recorder=4096)

    def work() -> None:
        for _ in repeat(None, 150):
            pass

    def parent() -> None:
        work()
        loop.schedule_microtask(work)

    barrier = threading.Barrier(2)

    def produce(number: int) -> None:
        barrier.wait()
        for _ in range(5):
            loop.submit(parent if number else work)
            for _ in repeat(None, 300):
                pass
        over.wait()  # a thread that has ended has no name any more

    with loop:
        for _ in range(3):  # the last one is drawn, when everything is warm
            _until(lambda: loop.state is LoopState.SLEEPING)
            since = time.monotonic()
            before = loop._record["external"]["tail"] + 10
            over = threading.Event()
            made = [threading.Thread(target=produce, args=(i,), name=f"producer {i + 1}") for i in range(2)]
            for thread in made:
                thread.start()
            _until(
                lambda before=before: loop.state is LoopState.SLEEPING and loop._record["external"]["head"] >= before
            )
            events = loop.recorder.trace(since)["traceEvents"]  # type: ignore[union-attr]
            over.set()
            for thread in made:
                thread.join()
    return {"table": [], "events": events}


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw_latency(answer: Answer, axes: Any) -> None:
    """Delays from submit to start, as the loop's own histogram has them."""
    import numpy as np

    bins = np.geomspace(0.01, 1000, 76)  # µs
    for label, buckets in answer["shapes"].items():
        ends, counts = np.array(buckets).T
        shares = counts / counts.sum() * 100
        axes.hist(np.clip(ends * 1e6, bins[0], bins[-1]), bins=bins, weights=shares, histtype="step", label=label)
    axes.set(title="Delay from submit to start, loop otherwise idle", xlabel="µs", ylabel="% of tasks", xscale="log")


def draw_throughput(answer: Answer, axes: Any) -> None:
    """Tasks a second by threads."""
    for label, rates in answer["rates"].items():
        axes.plot(THREADS, [rate / 1e6 for rate in rates], marker=".", label=label.replace("`", ""))
    axes.set(title="Throughput by producer threads", xlabel="threads", ylabel="million tasks a second", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")


def draw_trace(answer: Answer, axes: Any) -> None:
    """Tracks with their slices, and the arrows between them."""
    colours = {"submit": "#999999", "sleep": "#dfe3e8", "task": "#1667b7", "microtask": "#3f8f4f"}
    events = answer["events"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X" and e["cat"] in colours]
    begin = min((e["ts"] for e in slices if e["cat"] == "submit"), default=0.0) - 10
    tids = [tid for tid in sorted(names) if any(e["tid"] == tid for e in slices)]
    for kind, colour in colours.items():
        for tid in tids:
            spans = [
                (max(e["ts"], begin) - begin, max(0.4, e["ts"] + e["dur"] - max(e["ts"], begin)))
                for e in slices
                if e["cat"] == kind and e["tid"] == tid and e["ts"] + e["dur"] > begin
            ]
            axes.broken_barh(spans, (-tids.index(tid) - 0.3, 0.6), facecolors=colour, linewidth=0)
        axes.plot([], [], color=colour, linewidth=6, label=kind)
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    for end in (e for e in events if e["ph"] == "f" and e["id"] in starts):
        start = starts[end["id"]]
        if start["tid"] != end["tid"] and start["ts"] >= begin:
            axes.annotate(
                "",
                (end["ts"] - begin, -tids.index(end["tid"]) - 0.3),
                (start["ts"] - begin, -tids.index(start["tid"]) + 0.3),
                arrowprops={"arrowstyle": "->", "color": "#c0392b", "linewidth": 0.7},
            )
    axes.set(title="A loop, woken by two producers: what its recorder has written", xlabel="µs")
    axes.set_yticks([-i for i in range(len(tids))], [names[tid] for tid in tids])


SECTIONS: dict[str, Callable[[int], Answer]] = {
    "modes": modes,
    "chunks": chunks,
    "budget": budget,
    "producers": producers,
    "timers": timers,
    "kinds": kinds,
    "watching": watching,
    "contended": contended,
    "memory": memory,
    "traced": traced,
}
PICTURES: dict[str, tuple[str, Callable[[Answer, Any], None]]] = {
    "modes": ("latency", draw_latency),
    "producers": ("throughput", draw_throughput),
    "traced": ("trace", draw_trace),
}


def markdown(table: Table) -> str:
    """A section's table."""
    header, *rows = table
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m asv_bench.tuning", description="the tuning guide's figures")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="only that section's")
    parser.add_argument("--rounds", type=int, default=41, help="how often each is measured (41)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers for programs")
    parser.add_argument("--md", metavar="FILE", type=Path, help="write the tables between the marks of that file")
    parser.add_argument("--images", metavar="DIR", type=Path, help="draw the pictures")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="measure nothing, take the numbers of --json")
    options = parser.parse_args()
    answers: dict[str, Answer] = {}
    if options.plot is not None:
        answers = json.loads(options.plot.read_text())["answers"]
    else:
        for name in options.only or SECTIONS:
            started = time.monotonic()
            answers[name] = SECTIONS[name](options.rounds)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": report.machine(), "answers": answers}, indent=1) + "\n")
    if options.images is not None:
        for name in answers.keys() & PICTURES.keys():
            file, picture = PICTURES[name]
            print(draw(file, lambda axes, of=name, by=picture: by(answers[of], axes), options.images), file=sys.stderr)
    if options.md is not None:
        report.write(options.md, report.prose(f"{report.heading()}.") + "\n", "machine")
    for name, answer in answers.items():
        if answer["table"] and options.md is not None:
            report.write(options.md, markdown(answer["table"]), name)
        elif answer["table"] and options.json is None and options.images is None:
            print(f"{(SECTIONS[name].__doc__ or '').strip()}\n\n{markdown(answer['table'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
