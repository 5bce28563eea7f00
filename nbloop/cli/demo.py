"""`nbloop demo`: producer threads parse a real text, a loop merges the counts; nbloop and asyncio side by side.

Problem: one figure says little about a loop. When parsing dominates, even the best loop gains little end to end; when
producers outrun the loop, a cheap submit makes the queue longer and the delay worse. Idea: measure the whole work
(`_count_words`), and its parts separately: the producers' time in submit, the loop thread's CPU time, the hand-over
alone (`_hand_over`), a hop between threads (`_hop_between`, `_hop_to_sleeper`), the delay at a rate that both loops
can keep up with, and what a server costs (`servers`). Clocks are read once per batch, not once per call, and one line
of each batch carries a time stamp.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, perf_counter_ns

from ..kernels.build import object_cache
from . import servers
from .corpus import Corpus, Tally, count_directly, fingerprint, read, words
from .engines import Asyncio, Engine, Entrance, Nbloop, NbloopProducers
from .screen import Bar, Screen, make_screen

BATCH = 64  # lines that a producer parses before it submits their counts
PACED_RATE = 20_000  # lines a second, all producers together
PACED_BATCH = 16
PACED_SECONDS = 1.5
HAND_OVERS = 400_000
HOPS_BETWEEN = 4_000
HOPS_TO_SLEEPER = 250
REST = 0.002  # seconds after which a loop is surely asleep

ENGINES: tuple[type[Nbloop] | type[Asyncio], ...] = (Nbloop, NbloopProducers, Asyncio)


@dataclass
class Run:
    """The results of one pass over the text."""

    totals: Mapping[str, int]
    lines: int
    seconds: float
    loop_cpu: int = 0  # ns
    delays: list[int] = field(default_factory=list)  # ns
    submits: list[float] = field(default_factory=list)  # ns per call, one for each batch
    parses: list[float] = field(default_factory=list)  # ns per line, one for each batch
    submitting: int = 0  # ns, summed over all producers


@dataclass
class Figures:
    """One engine's column of the table."""

    run: Run
    hand_over: float = 0.0  # per second
    hop_between: float = 0.0  # ns
    hop_to_sleeper: float = 0.0  # ns
    paced: Run | None = None


type Body = Callable[[int, Entrance], None]  # the work of a producer, given its number


class _Producers:
    """Threads that work and submit, and report to the loop when they have finished."""

    def __init__(self, body: Body, entrances: Sequence[Entrance], finished: Callable[[], object]) -> None:
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(body, i, entrance, finished), name=f"producer-{i}", daemon=True)
            for i, entrance in enumerate(entrances)
        ]

    def _work(self, body: Body, number: int, entrance: Entrance, finished: Callable[[], object]) -> None:
        try:
            body(number, entrance)
        except BaseException as failure:
            self.failures.append(failure)
        finally:
            entrance(finished)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()


def _drive(engine: Engine, count: int, make_body: Callable[[_Stop], Body]) -> tuple[float, int]:
    """Run `engine` here, fed by `count` producers, until they are done. Returns seconds, and this thread's CPU ns."""
    missing = count

    def finished() -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            engine.stop()

    stop = _Stop()
    producers = _Producers(make_body(stop), [engine.entrance() for _ in range(count)], finished)
    gc.collect()
    start, cpu = perf_counter(), time.thread_time_ns()
    try:
        producers.start()
        engine.run()
    finally:
        seconds, cpu = perf_counter() - start, time.thread_time_ns() - cpu
        stop.now = True
        producers.join()
        engine.close()
    if producers.failures:
        raise producers.failures[0]
    return seconds, cpu


class _Stop:
    """A flag that producers check between batches."""

    now = False


def _count_words(engine: Engine, lines: list[str], count: int, *, rate: float = 0.0, bar: Bar | None = None) -> Run:
    """Count the words of `lines` with `count` producers, as fast as they can or at `rate` lines a second."""
    tally = Tally(engine.later)
    run = Run(tally.totals, 0, 0.0, delays=tally.delays)
    batch = PACED_BATCH if rate else BATCH
    if bar is not None:
        picture = _Picture(bar, tally, engine)
        engine.every(bar.period, picture.draw)

    def make_body(stop: _Stop) -> Body:
        def body(number: int, submit: Entrance) -> None:
            mine = lines[number::count]
            merge, merge_stamped = tally.merge, tally.merge_stamped
            due = perf_counter()
            submits: list[float] = []
            parses: list[float] = []
            submitting = 0
            for i, first in enumerate(range(0, len(mine), batch)):
                if stop.now:
                    break
                if rate:
                    due += batch * count / rate
                    time.sleep(max(0.0, due - perf_counter()))
                begun = perf_counter_ns()
                parsed = [words(line) for line in mine[first : first + batch]]
                stamped = i % len(parsed)
                parsed_at = perf_counter_ns()
                for counts in parsed[:stamped]:
                    submit(merge, counts)
                submit(merge_stamped, parsed[stamped], perf_counter_ns())
                for counts in parsed[stamped + 1 :]:
                    submit(merge, counts)
                spent = perf_counter_ns() - parsed_at
                submitting += spent
                submits.append(spent / len(parsed))
                parses.append((parsed_at - begun) / len(parsed))
            with gathering:
                run.submits += submits
                run.parses += parses
                run.submitting += submitting

        return body

    gathering = threading.Lock()
    run.seconds, run.loop_cpu = _drive(engine, count, make_body)
    if bar is not None and picture.failure is not None:
        raise picture.failure
    tally.flush()
    run.lines = tally.lines
    return run


class _Picture:
    """The live progress, drawn on the loop by an interval."""

    def __init__(self, bar: Bar, tally: Tally, engine: Engine) -> None:
        self.failure: OSError | None = None
        self._bar = bar
        self._tally = tally
        self._engine = engine
        self._start = perf_counter()

    def draw(self) -> None:
        tally = self._tally
        rate = tally.lines / (perf_counter() - self._start)
        try:
            self._bar.show(
                tally.lines, f"{tally.lines:>9,} lines  {rate:>9,.0f}/s  {len(tally.totals):,} different words"
            )
        except OSError as failure:  # the reader of our output has closed it
            self.failure = failure
            self._engine.stop()


def _count_alone(lines: list[str]) -> Run:
    """The same parsing and merging on this one thread, without any loop."""
    tally = Tally(lambda _delay, _callback: None)
    gc.collect()
    start = perf_counter()
    for line in lines:
        tally.merge(words(line))
    tally.flush()
    return Run(tally.totals, tally.lines, perf_counter() - start)


def _nothing() -> None:
    pass


def _hand_over(engine: Engine, tasks: int, count: int) -> float:
    """Tasks a second from `count` producers when the callbacks do nothing."""
    each = -(-tasks // count)

    def make_body(stop: _Stop) -> Body:
        def body(_number: int, submit: Entrance) -> None:
            for _ in range(0, each, 1000):
                if stop.now:
                    break
                for _ in itertools.repeat(None, 1000):
                    submit(_nothing)

        return body

    seconds, _cpu = _drive(engine, count, make_body)
    return -(-each // 1000) * 1000 * count / seconds


def _hop_between(make: Callable[[], Engine], hops: int) -> float:
    """ns from submit to callback (p50) when two loops, each on its own thread, answer each other immediately."""
    one, two = make(), make()
    stamps: list[int] = []
    over = threading.Event()
    stop = _Stop()

    def ping() -> None:
        stamps.append(perf_counter_ns())
        if len(stamps) > hops or stop.now:
            over.set()
        else:
            to_two(pong)

    def pong() -> None:
        to_one(ping)

    try:
        one.start()
        two.start()
        to_one, to_two = one.entrance(), two.entrance()
        one.entrance()(ping)  # not through `to_one`, which belongs to the other thread
        over.wait()
    finally:
        stop.now = True
        over.wait(1)  # after Ctrl-C a hop is still under way, and a closed loop would refuse it
        one.close()
        two.close()
    return statistics.median(after - before for before, after in itertools.pairwise(stamps)) / 2


def _hop_to_sleeper(make: Callable[[], Engine], hops: int) -> float:
    """ns from submit to callback (p50) when the loop has been idle for a while."""
    engine = make()
    ran = threading.Semaphore(0)
    stamp = 0

    def answer() -> None:
        nonlocal stamp
        stamp = perf_counter_ns()
        ran.release()

    delays: list[int] = []
    try:
        engine.start()
        submit = engine.entrance()
        for _ in range(hops):
            time.sleep(REST)
            submitted = perf_counter_ns()
            submit(answer)
            ran.acquire()
            delays.append(stamp - submitted)
    finally:
        engine.close()
    return statistics.median(delays)


# --- output ---------------------------------------------------------------------------------------------------------


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _time(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns / size:,.0f} {unit}"
    return f"{ns:.0f} ns"


def _rate(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}"


def _ratio(better: float, worse: float) -> str:
    """How many times better nbloop is: `better` divided by `worse`."""
    value = better / worse if worse else float("inf")
    return f"{value:.1f}×" if value < 10 else f"{value:,.0f}×"


def _rows(columns: Sequence[Figures], served: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """The closing table. Columns: nbloop's submit, nbloop's handles, asyncio, uvloop if `served` has it, and nbloop's
    submit against asyncio. Only servers run on uvloop, and none has a use for handles.
    """
    uvloop = any("uvloop" in times for times in served.values())
    absent = [""] * uvloop

    def higher(name: str, of: Callable[[Figures], float]) -> list[str]:
        values = [of(column) for column in columns]
        return [name, *map(_rate, values), *absent, _ratio(values[0], values[-1])]

    def lower(name: str, of: Callable[[Figures], float]) -> list[str]:
        values = [of(column) for column in columns]
        return [name, *map(_time, values), *absent, _ratio(values[-1], values[0])]

    def server(kind: str) -> list[str]:
        times = served[kind]
        cells = [_time(times["nbloop"]), "", _time(times["asyncio"]), *([_time(times["uvloop"])] if uvloop else [])]
        return [f"{kind}, CPU time a request", *cells, _ratio(times["asyncio"], times["nbloop"])]

    def paced(column: Figures) -> float:
        assert column.paced is not None
        return _quantile(column.paced.delays, 0.99)

    return [
        ["The text, at full speed"],
        higher("lines/s, end to end", lambda c: c.run.lines / c.run.seconds),
        lower("submit, per call (p50)", lambda c: statistics.median(c.run.submits)),
        lower("submitting, all producers", lambda c: c.run.submitting),
        lower("loop's CPU time, per line", lambda c: c.run.loop_cpu / c.run.lines),
        lower("submit to run (p99)", lambda c: _quantile(c.run.delays, 0.99)),
        [f"The text, at {PACED_RATE:,} lines/s"],
        lower("submit to run (p99)", paced),
        ["The loop alone"],
        higher("empty callbacks/s", lambda c: c.hand_over),
        lower("hop, two busy loops (p50)", lambda c: c.hop_between),
        lower("hop, loop asleep (p50)", lambda c: c.hop_to_sleeper),
        ["A server on the loop, 20 connections"],
        *map(server, served),
    ]


def main(path: str | None = None, *, lines: int = 200_000, producers: int = 4, plain: bool = False) -> int:
    """Run the demo; return 0 if all totals are equal, 1 if they are not, 2 if the text cannot be read."""
    try:
        text = read(path, lines)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        print(f"nbloop demo: cannot read {path or 'the standard library'}: {reason}", file=sys.stderr)
        return 2
    screen = make_screen(plain)
    _introduce(screen, text, producers)
    return _compare(screen, text.lines, producers)


def _introduce(screen: Screen, text: Corpus, producers: int) -> None:
    gil = "GIL on" if sys._is_gil_enabled() else "no GIL"
    cores = os.process_cpu_count() or 1
    python = ".".join(map(str, sys.version_info[:3]))
    threads = f"{producers} producer threads" if producers > 1 else "1 producer thread"
    screen.heading("nbloop demo: count words with threads and a loop")
    screen.line(f"  {len(text.lines):,} lines of {text.name}")
    screen.line(f"  {threads} parse, a loop merges. Python {python}, {gil}, {cores} core{'s' * (cores != 1)}")
    if object_cache.status.mode != "compiled":
        screen.line("  The kernels run un-jitted, some hundred times slower: see `nbloop doctor`")


def _compare(screen: Screen, lines: list[str], producers: int) -> int:
    screen.heading("Counting")
    truth = count_directly(lines)
    alone = _count_alone(lines)
    with screen.bar("one thread, no loop", len(lines)) as bar:
        bar.finish(_summary(alone))
    columns: list[Figures] = []
    for make in ENGINES:
        with screen.bar("nbloop, producer()" if make is NbloopProducers else make.name, len(lines)) as bar:
            run = _count_words(make(), lines, producers, bar=bar)
            bar.finish(_summary(run))
        columns.append(Figures(run))

    screen.heading("Measuring the loops alone, and the delay at a steady rate (some 10 s)")
    some = lines[: int(PACED_RATE * PACED_SECONDS)]
    some_truth = count_directly(some)
    for make, column in zip(ENGINES, columns, strict=True):
        column.hand_over = _hand_over(make(), min(HAND_OVERS, 20 * len(lines)), producers)
        column.hop_between = _hop_between(make, min(HOPS_BETWEEN, 10 * len(lines)))
        column.hop_to_sleeper = _hop_to_sleeper(make, min(HOPS_TO_SLEEPER, len(lines)))
        column.paced = _count_words(make(), some, producers, rate=PACED_RATE)

    served = servers.measure()

    names = ["nbloop", "producer()", "asyncio", *(["uvloop"] if "uvloop" in served["echo"] else [])]
    screen.table(["", *names, "nbloop better by"], _rows(columns, served), emphasised=len(names) + 1)
    parse = statistics.median(columns[0].run.parses)
    screen.line(
        f"  Parsing a line takes {_time(parse)} (p50) with any loop, which limits what a loop can gain end to end."
    )
    screen.line("  At full speed the delay grows as producers outrun the loop: compare delays at the steady rate.")

    screen.heading("Totals")
    results = [("counted directly", truth), ("one thread, no loop", alone.totals)]
    results += [(make.name, column.run.totals) for make, column in zip(ENGINES, columns, strict=True)]
    screen.table(
        ["", "words", "different", "fingerprint"],
        [[name, f"{sum(totals.values()):,}", f"{len(totals):,}", fingerprint(totals)] for name, totals in results],
    )
    top = ", ".join(f"{word} {count:,}" for word, count in Counter(truth).most_common(6))
    if top:
        screen.line(f"  Most frequent: {top}")
    equal = all(totals == truth for _name, totals in results)
    equal = equal and all(column.run.lines == len(lines) for column in columns)
    equal = equal and all(column.paced is not None and column.paced.totals == some_truth for column in columns)
    screen.verdict(equal, "all totals are equal" if equal else "the totals are NOT equal: please report this")
    return 0 if equal else 1


def _summary(run: Run) -> str:
    return f"{run.lines:>9,} lines  {_rate(run.lines / run.seconds):>9}/s  in {run.seconds:.2f} s"
