"""nbloop beside asyncio, some of it beside Node.js, in turn: ``python -m asv_bench.compare`` (``make compare``).

Every figure of `targets` is measured here, and shown whether reached or not. The functions below say what belongs to
a figure; how it is measured is in `workloads`, `crossing`, `javascript` and `subprocesses`, which the asv benchmarks
use too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nbloop.js import JS

from . import crossing, javascript, report, subprocesses, workloads
from .drive import Asyncio, Nbloop
from .measure import Probe, Rounds, Sample, interleave, ratios, yardstick
from .report import Row
from .targets import TARGETS


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 150
    race_rounds: int = 7
    race_tasks: int = 100_000
    million_rounds: int = 5
    million_asyncio: int = 1
    idle_seconds: float = 10.0
    imports: int = 5
    first_import: bool = False


DEFAULT = Plan()
QUICK = Plan(
    rounds=30, race_rounds=3, race_tasks=30_000, million_rounds=1, million_asyncio=0, idle_seconds=1.0, imports=2
)
FULL = Plan(
    rounds=500, race_rounds=15, race_tasks=200_000, million_rounds=10, million_asyncio=3, imports=9, first_import=True
)

type Group = Callable[[Plan], Iterator[Row]]
GROUPS: dict[Group, tuple[str, ...]] = {}


def group(*keys: str) -> Callable[[Group], Group]:
    """Register what measures the figures `keys`, which share their rounds."""

    def register(function: Group) -> Group:
        GROUPS[function] = keys
        return function

    return register


def in_e(values: Rounds, name: str, callee: bool = False) -> Sample:
    """A measured time in E, round by round; with `callee`, the callback's own time taken off."""
    times = values[name]
    if callee:
        times = [t - c for t, c in zip(times, values["callee"], strict=True)]
    return Sample.of(ratios(times, values["E"]))


def row_in_e(key: str, values: Rounds, name: str, other: str | None, callee: bool = False) -> Row:
    """A row that is judged in E."""
    return Row(
        key,
        "ns",
        Sample.of(values[name]),
        Sample.of(values[other]) if other is not None and other in values else None,
        in_e(values, name, callee),
    )


def row_of_ratio(key: str, values: Rounds, name: str, other: str, faster: bool = False) -> Row:
    """A row that is judged by nbloop / asyncio, or, with `faster`, the other way round."""
    pair = (values[other], values[name]) if faster else (values[name], values[other])
    return Row(key, "ns", Sample.of(values[name]), Sample.of(values[other]), Sample.of(ratios(*pair)))


@group("submit.own", "submit.many", "submit.many.alone", "microtask", "tick", "immediate")
def own_thread(plan: Plan) -> Iterator[Row]:
    """What the loop's own thread schedules."""
    ours, theirs = Nbloop(), Asyncio()
    loop = ours.loop
    values = interleave(
        plan.rounds,
        [
            yardstick,
            workloads.burst("submit", ours, loop.submit),
            workloads.burst("microtask", ours, loop.schedule_microtask),
            workloads.burst("tick", ours, loop.schedule_next_tick),
            workloads.burst("immediate", ours, loop.schedule_immediate),
            workloads.batch("many", ours, loop.submit_many),
            workloads.burst("call_soon", theirs, theirs.soon),
        ],
    )
    ours.close()
    theirs.close()
    yield row_in_e("submit.own", values, "submit", "call_soon")
    overhead = [run - callee for run, callee in zip(values["many+run"], values["callee"], strict=True)]
    asyncio = Sample.of(values["call_soon+run"])
    yield Row("submit.many", "ns", Sample.of(values["many+run"]), asyncio, Sample.of(overhead))
    alone = Sample.of(values["many"])
    yield Row("submit.many.alone", "ns", alone, Sample.of(values["call_soon"]), alone)
    for key in ("microtask", "tick", "immediate"):
        yield row_in_e(key, values, f"{key}+run", "call_soon+run", callee=True)


@group("submit.elsewhere")
def other_thread(plan: Plan) -> Iterator[Row]:
    """Submitting to a loop that is busy."""
    ours, theirs = Nbloop(), Asyncio()
    ours.start()
    theirs.start()
    values = interleave(
        plan.rounds,
        [
            yardstick,
            crossing.submit_elsewhere("submit", ours),
            crossing.submit_elsewhere("call_soon_threadsafe", theirs),
        ],
    )
    ours.close()
    theirs.close()
    yield row_in_e("submit.elsewhere", values, "submit", "call_soon_threadsafe")


@group(
    *(f"race.{producers}" for producers in (1, 2, 4)),
    *(f"race.handles.{producers}" for producers in (1, 2, 4)),
    "race.scaling",
)
def races(plan: Plan) -> Iterator[Row]:
    """Producers against one another."""
    ours, theirs = Nbloop(), Asyncio()
    ours.start()
    theirs.start()
    probes: list[Probe] = []
    for producers in (1, 2, 4):
        for name, entrance in (
            ("submit", lambda: ours.loop.submit),
            ("handle", lambda: ours.loop.producer().submit),
            ("asyncio", lambda: theirs.loop.call_soon_threadsafe),
        ):
            probes.append(crossing.race(f"{name} {producers}", entrance, producers, plan.race_tasks))
    values = interleave(plan.race_rounds, probes, warm=1)
    ours.close()
    theirs.close()
    for key, name in (("race", "submit"), ("race.handles", "handle")):
        for producers in (1, 2, 4):
            yield row_of_ratio(f"{key}.{producers}", values, f"{name} {producers}", f"asyncio {producers}", faster=True)
    two, one = values["handle 2"], values["handle 1"]
    yield Row("race.scaling", "ns", Sample.of(two), None, Sample.of(ratios(two, one)))


def _timer_rows(prefix: str, values: Rounds) -> Iterator[Row]:
    for what in ("schedule", "cancel", "fire"):
        yield row_in_e(f"{prefix}.{what}", values, f"nbloop {what}", f"asyncio {what}", callee=what == "fire")


@group("timer.schedule", "timer.cancel", "timer.fire")
def timers(plan: Plan) -> Iterator[Row]:
    """Timers on the loop's thread, among a thousand."""
    ours, theirs = Nbloop(), Asyncio()
    probes: list[Probe] = [yardstick, workloads.Timers("nbloop", ours, 1000), workloads.Timers("asyncio", theirs, 1000)]
    values = interleave(plan.rounds, probes)
    ours.close()
    theirs.close()
    yield from _timer_rows("timer", values)


@group("timer.million.schedule", "timer.million.cancel", "timer.million.fire")
def million_timers(plan: Plan) -> Iterator[Row]:
    """Timers among a million. asyncio needs seconds for each round of this, so it gets fewer."""
    ours = Nbloop()
    values = interleave(plan.million_rounds, [yardstick, workloads.Timers("nbloop", ours, 1_000_000)], warm=1)
    ours.close()
    if plan.million_asyncio:
        theirs = Asyncio()
        values |= interleave(plan.million_asyncio, [workloads.Timers("asyncio", theirs, 1_000_000)], warm=0)
        theirs.close()
    yield from _timer_rows("timer.million", values)


def _row_in_its_unit(key: str, values: Rounds, name: str, other: str | None) -> Row:
    """A row that is judged by its time, in ns or µs."""
    times = values[name]
    asyncio = None if other is None else Sample.of(values[other])
    size = {"ns": 1, "µs": 1000}[TARGETS[key].unit]
    return Row(key, "ns", Sample.of(times), asyncio, Sample.of([time / size for time in times]))


@group("js.promise", "js.resolvers", "js.chain", "js.chain.asyncio", "js.all", "js.timeout", "js.timeout.asyncio")
def promises(plan: Plan) -> Iterator[Row]:
    """Promises, combinators and timeouts of the JavaScript view."""
    ours, theirs = Nbloop(), Asyncio()
    js = JS(ours.loop)
    values = interleave(
        plan.rounds,
        [
            javascript.create("promise", js),
            javascript.create_future("future", theirs),
            javascript.chain("chain", ours, js),
            javascript.await_chain("await", theirs),
            javascript.all_resolved("all", ours, js),
            javascript.gather_done("gather", theirs),
            javascript.timeouts("timeout", ours, js),
            javascript.call_laters("call_later", theirs),
        ],
    )
    ours.close()
    theirs.close()
    yield _row_in_its_unit("js.promise", values, "promise", "future")
    yield _row_in_its_unit("js.resolvers", values, "promise+resolvers", None)
    yield _row_in_its_unit("js.chain", values, "chain", "await")
    yield row_of_ratio("js.chain.asyncio", values, "chain", "await", faster=True)
    yield _row_in_its_unit("js.all", values, "all", "gather")
    yield _row_in_its_unit("js.timeout", values, "timeout", "call_later")
    yield row_of_ratio("js.timeout.asyncio", values, "timeout", "call_later", faster=True)


@group("js.microtask", "js.immediate")
def node(plan: Plan) -> Iterator[Row]:
    """The JavaScript view beside Node, which takes part in the rounds as a process of its own. The callbacks' own
    time is in both.
    """
    ours, theirs, reference = Nbloop(), Asyncio(), subprocesses.Node()
    js = JS(ours.loop)
    values = interleave(
        plan.rounds,
        [
            workloads.burst("microtask", ours, js.queue_microtask),
            workloads.burst("immediate", ours, js.set_immediate),
            workloads.burst("call_soon", theirs, theirs.soon),
            reference,
        ],
    )
    ours.close()
    theirs.close()
    reference.close()
    asyncio = Sample.of(values["call_soon+run"])
    for name in ("microtask", "immediate"):
        times = values[f"{name}+run"]
        if reference.missing:
            yield Row(f"js.{name}", "ns", Sample.of(times), asyncio, None, note=reference.NOTE)
        else:
            nodes = values[f"node {name}"]
            judged = Sample.of(ratios(times, nodes))
            yield Row(f"js.{name}", "ns", Sample.of(times), asyncio, judged, Sample.of(nodes))


@group("timer.elsewhere", "timer.elsewhere.waking")
def timers_elsewhere(plan: Plan) -> Iterator[Row]:
    """Timers armed and cancelled from outside a loop that sleeps."""
    calm, woken, theirs = Nbloop(), Nbloop(), Asyncio()
    for driven in (calm, woken, theirs):
        driven.start()
    values = interleave(
        plan.rounds,
        [
            crossing.timer_elsewhere("calm", calm),
            crossing.timer_elsewhere_waking("waking", woken),
            crossing.timer_elsewhere_asyncio("asyncio", theirs),
        ],
    )
    for driven in (calm, woken, theirs):
        driven.close()
    asyncio = Sample.of(values["asyncio"])
    for key, name in (("timer.elsewhere", "calm"), ("timer.elsewhere.waking", "waking")):
        measured = Sample.of(values[name])
        yield Row(key, "ns", measured, asyncio, measured)


@group("hop", "hop.locks", "hop.spinning", "hop.row")
def hops(plan: Plan) -> Iterator[Row]:
    """To the loop and back."""
    ours, theirs = Nbloop(), Asyncio()
    ours.start()
    theirs.start()
    values = interleave(
        plan.rounds,
        [
            crossing.hop("nbloop", ours),
            crossing.hop("asyncio", theirs),
            crossing.hop_locks("locks"),
            crossing.on_two_cores(ours, crossing.hops_in_a_row("spinning", ours)),
            crossing.on_two_cores(theirs, crossing.hops_in_a_row("asyncio spinning", theirs)),
            crossing.hops_in_a_row("row", ours),
            crossing.hops_in_a_row("asyncio row", theirs),
        ],
    )
    ours.close()
    theirs.close()
    yield row_of_ratio("hop", values, "nbloop", "asyncio")
    yield Row("hop.locks", "ns", Sample.of(values["locks"]), None, Sample.of(ratios(values["nbloop"], values["locks"])))
    yield row_of_ratio("hop.spinning", values, "spinning", "asyncio spinning")
    yield row_of_ratio("hop.row", values, "row", "asyncio row")


@group(*(f"idle.{mode}.{what}" for mode in ("auto", "forced", "disabled") for what in ("cpu", "calls")))
def idle(plan: Plan) -> Iterator[Row]:
    """Loops with nothing to do. Where nothing can trace, the times that the thread left a CPU stand in for its system
    calls.
    """
    facts = subprocesses.idle(plan.idle_seconds)
    scale = 10 / plan.idle_seconds

    def calls(name: str) -> Sample:
        traced = facts[name]["syscalls"]
        return Sample.of([(facts[name]["switches"] or 0) + (traced or 0)])

    def cpu(name: str) -> Sample:
        return Sample.of([(facts[name]["cpu"] or 0) * scale])

    for mode in ("auto", "forced", "disabled"):
        yield Row(f"idle.{mode}.cpu", "ms", cpu(mode), cpu("asyncio"), cpu(mode))
        yield Row(f"idle.{mode}.calls", "calls", calls(mode), calls("asyncio"), calls(mode))


@group("memory.each", "memory.again", "memory.kept")
def memory(_plan: Plan) -> Iterator[Row]:
    """What a million queued tasks take."""
    ours, theirs = (subprocesses.memory(which, 1_000_000) for which in ("nbloop", "asyncio"))
    for what in ("each", "again"):
        value = Sample.of([ours[what]])
        yield Row(f"memory.{what}", "B", value, Sample.of([theirs[what]]), value)
    kept = Sample.of([ours["kept"] / ours["each"] * 100])
    yield Row("memory.kept", "B", Sample.of([ours["kept"]]), Sample.of([theirs["kept"]]), kept)


@group("life")
def life(plan: Plan) -> Iterator[Row]:
    """From nothing to a running loop, and back to nothing."""
    probes = [crossing.life("nbloop", Nbloop), crossing.life("asyncio", Asyncio)]
    yield row_of_ratio("life", interleave(plan.rounds, probes), "nbloop", "asyncio")


@group("import.warm", "import.first")
def imports(plan: Plan) -> Iterator[Row]:
    """In a new process each time."""
    values: Rounds = {"nbloop": [], "asyncio": []}
    for _ in range(plan.imports):
        for module, seconds in values.items():
            seconds.append(subprocesses.import_seconds(module))
    warm = Sample.of(values["nbloop"])
    yield Row("import.warm", "s", warm, Sample.of(values["asyncio"]), warm)
    if plan.first_import:
        first = Sample.of([subprocesses.import_seconds("nbloop", cold=True)])
        yield Row("import.first", "s", first, None, first)


def compare(plan: Plan, only: str = "") -> Iterator[Row]:
    """Measure, and give each row as soon as it is known; `only` those with that text in their key or title."""
    wanted = {key for key, target in TARGETS.items() if only.lower() in f"{key} {target.what}".lower()}
    for measure, keys in GROUPS.items():
        if not wanted.isdisjoint(keys):
            for row in measure(plan):
                if row.key in wanted:
                    yield row


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m asv_bench.compare", description="nbloop beside asyncio")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="in under 30 seconds, less exactly")
    size.add_argument("--full", action="store_true", help="more rounds, more of asyncio, and the very first import")
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="only figures with this in their name or title")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures for programs")
    parser.add_argument("--readme", metavar="FILE", type=Path, help="put a brief table between the marks of that file")
    parser.add_argument(
        "--md", metavar="FILE", type=Path, help="write the table in Markdown, between its marks if it has them"
    )
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL if options.full else DEFAULT
    started = time.monotonic()
    rows = []
    for row in compare(plan, options.only):
        rows.append(row)
        if sys.stderr.isatty():
            print(
                f"\r{time.monotonic() - started:4.0f} s, {len(rows)} of {len(TARGETS)}",
                end="",
                file=sys.stderr,
                flush=True,
            )
    if sys.stderr.isatty():
        print("\r" + " " * 40, end="\r", file=sys.stderr)
    if not rows:
        parser.error(f"no figure has {options.only!r} in its name or title")
    unit = interleave(50, [yardstick])
    e, callee = Sample.of(unit["E"]), Sample.of(unit["callee"])
    line = f"E = {e.median:.1f} ns ({e.low:.1f}–{e.high:.1f}), the callee's own time {callee.median:.1f} ns."
    report.show(rows, line)
    if options.json is not None:
        facts = {
            "machine": report.machine(),
            "E": vars(e),
            "callee": vars(callee),
            "rows": [row.facts() for row in rows],
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    if options.readme is not None:
        report.write(options.readme, report.brief(rows))
    if options.md is not None:
        report.write(options.md, report.markdown(rows, line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
