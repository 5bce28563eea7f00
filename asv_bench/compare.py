"""nbloop beside asyncio, uvloop and others, in turn: ``python -m asv_bench.compare`` (``make compare``).

Every figure of `targets` is measured here, and shown whether reached or not. The functions below say what belongs to
a figure; how it is measured is in `workloads`, `crossing`, `descriptors`, `javascript` and `subprocesses`, which the
asv benchmarks use too. Some rows have the shape of others' benchmarks: 12,800 tasks from up to 64 threads are tokio's
`remote_spawn`, a call waited for is python-async-bench, submit + run and schedule + cancel zuvloop's, the million
ordered timers and the million tasks libuv's; those with Go's figure beside them the original's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nbloop
from nbloop.js import JS

from . import coroutines, crossing, descriptors, javascript, peers, report, subprocesses, workloads
from .drive import Asyncio, Driven, Nbloop, NbloopAio
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


@contextlib.contextmanager
def beside(started: bool = False) -> Iterator[list[Driven]]:
    """nbloop, asyncio, and uvloop if it is installed; `started`: each in a thread of its own. Closed at the end."""
    loops: list[Driven] = [Nbloop(), Asyncio(), *peers.uvloops()]
    try:
        for driven in loops:
            if started:
                driven.start()
        yield loops
    finally:
        for driven in loops:
            driven.close()


def samples(values: Rounds, **names: str) -> dict[str, Sample]:
    """What the peers with that name were measured to take: ``samples(values, uvloop="label")``; without those that
    took no part.
    """
    return {peer.replace("_", " "): Sample.of(values[name]) for peer, name in names.items() if name in values}


def in_e(values: Rounds, name: str, callee: bool = False) -> Sample:
    """A measured time in E, round by round; with `callee`, the callback's own time taken off."""
    times = values[name]
    if callee:
        times = [t - c for t, c in zip(times, values["callee"], strict=True)]
    return Sample.of(ratios(times, values["E"]))


def row_in_e(key: str, values: Rounds, name: str, other: str | None, callee: bool = False, **others: str) -> Row:
    """A row that is judged in E."""
    return Row(
        key,
        "ns",
        Sample.of(values[name]),
        Sample.of(values[other]) if other is not None and other in values else None,
        in_e(values, name, callee),
        samples(values, **others),
    )


def row_of_ratio(key: str, values: Rounds, name: str, other: str, faster: bool = False, **others: str) -> Row:
    """A row that is judged by nbloop / asyncio, or, with `faster`, the other way round."""
    pair = (values[other], values[name]) if faster else (values[name], values[other])
    judged = Sample.of(ratios(*pair))
    return Row(key, "ns", Sample.of(values[name]), Sample.of(values[other]), judged, samples(values, **others))


@group("submit.own", "submit.run", "submit.many", "submit.many.alone", "microtask", "tick", "immediate", "limit.call")
def own_thread(plan: Plan) -> Iterator[Row]:
    """What the loop's own thread schedules."""
    with beside() as (ours, *theirs):
        assert isinstance(ours, Nbloop)
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
                *(workloads.burst(their.name, their, their.soon) for their in theirs),
            ],
        )
    yield row_in_e("submit.own", values, "submit", "asyncio", uvloop="uvloop")
    yield row_of_ratio("submit.run", values, "submit+run", "asyncio+run", uvloop="uvloop+run")
    overhead = [run - callee for run, callee in zip(values["many+run"], values["callee"], strict=True)]
    asyncio = Sample.of(values["asyncio+run"])
    run = samples(values, uvloop="uvloop+run")
    yield Row("submit.many", "ns", Sample.of(values["many+run"]), asyncio, Sample.of(overhead), run)
    alone, scheduled = Sample.of(values["many"]), samples(values, uvloop="uvloop")
    yield Row("submit.many.alone", "ns", alone, Sample.of(values["asyncio"]), alone, scheduled)
    for key in ("microtask", "tick", "immediate"):
        yield row_in_e(key, values, f"{key}+run", "asyncio+run", callee=True, uvloop="uvloop+run")
    yield Row("limit.call", "ns", None, None, Sample.of(values["E"]))


@group("submit.elsewhere")
def other_thread(plan: Plan) -> Iterator[Row]:
    """Submitting to a loop that is busy."""
    with beside(started=True) as loops:
        values = interleave(
            plan.rounds, [yardstick, *(crossing.submit_elsewhere(driven.name, driven) for driven in loops)]
        )
    yield row_in_e("submit.elsewhere", values, "nbloop", "asyncio", uvloop="uvloop")


@contextlib.contextmanager
def everyone() -> Iterator[list[peers.Consumer]]:
    """All that take callbacks from other threads, started: nbloop first, then asyncio."""
    consumers: list[peers.Consumer] = [Nbloop(), Asyncio(), *peers.consumers()]
    for consumer in consumers:
        consumer.start()
    try:
        yield consumers
    finally:
        for consumer in consumers:
            consumer.close()


def beside_all(label: str = "{}") -> dict[str, str]:
    """The names under which `everyone` but the first two was measured, for a row."""
    return {name: label.format(name) for name in ("uvloop", "trio", "SimpleQueue", "deque")}


def _race(name: str, consumer: peers.Consumer, producers: int, tasks: int, functions: int = 1) -> Probe:
    label = f"{name} {producers}" if functions == 1 else f"{name} {producers} each"
    return crossing.race(label, crossing.entrance(consumer), producers, tasks, functions)


PRODUCERS = (1, 2, 4, 10)
FUNCTIONS = 1000


@group(
    *(f"race.{producers}" for producers in PRODUCERS),
    *(f"race.handles.{producers}" for producers in PRODUCERS[:3]),
    "race.scaling",
)
def races(plan: Plan) -> Iterator[Row]:
    """Producers against one another."""
    with everyone() as (ours, *theirs):
        assert isinstance(ours, Nbloop)
        handles = lambda: ours.loop.producer().submit  # noqa: E731 - as the others beside it
        probes: list[Probe] = []
        for producers in PRODUCERS:
            if producers < 10:
                probes.append(crossing.race(f"handle {producers}", handles, producers, plan.race_tasks))
            probes += [peers.probe(_race, consumer, producers, plan.race_tasks) for consumer in (ours, *theirs)]
        values = interleave(plan.race_rounds, probes, warm=1)
    for key, name in (("race", "nbloop"), ("race.handles", "handle")):
        for producers in PRODUCERS[: 4 if name == "nbloop" else 3]:
            yield row_of_ratio(
                f"{key}.{producers}",
                values,
                f"{name} {producers}",
                f"asyncio {producers}",
                faster=True,
                **beside_all("{} " + str(producers)),
            )
    two, one = values["handle 2"], values["handle 1"]
    yield Row("race.scaling", "ns", Sample.of(two), None, Sample.of(ratios(two, one)))


@group(*(f"race.each.{producers}" for producers in PRODUCERS[:3]), "race.each.handles", "race.each.uvloop")
def races_of_functions(plan: Plan) -> Iterator[Row]:
    """The same with a function of its own for each task, as far as one can tell."""
    with beside(started=True) as loops:
        ours = loops[0]
        assert isinstance(ours, Nbloop)
        handles = lambda: ours.loop.producer().submit  # noqa: E731 - as the others beside it
        probes = [crossing.race("handle 2 each", handles, 2, plan.race_tasks, FUNCTIONS)]
        for producers in PRODUCERS[:3]:
            probes += [_race(of.name, of, producers, plan.race_tasks, FUNCTIONS) for of in loops]
        values = interleave(plan.race_rounds, probes, warm=1)
    for producers in PRODUCERS[:3]:
        names = [f"{of} {producers} each" for of in ("nbloop", "asyncio", "uvloop")]
        yield row_of_ratio(f"race.each.{producers}", values, names[0], names[1], faster=True, uvloop=names[2])
    best = row_of_ratio("race.each.handles", values, "handle 2 each", "asyncio 2 each", True, uvloop="uvloop 2 each")
    yield best
    if "uvloop 2 each" in values:
        by_round = ratios(values["uvloop 2 each"], values["handle 2 each"])
        yield replace(best, key="race.each.uvloop", judged=Sample.of(by_round))


@group("spawn.1", "spawn.8", "spawn.64", "million")
def spawns(plan: Plan) -> Iterator[Row]:
    """A number of tasks, from however many threads."""
    shapes = {"spawn.1": (1, 12_800), "spawn.8": (8, 12_800), "spawn.64": (64, 12_800), "million": (1, 1_000_000)}
    with everyone() as consumers:
        for key, (producers, tasks) in shapes.items():
            rounds = plan.race_rounds if key != "million" else plan.million_asyncio
            if rounds:
                probes = [peers.probe(_race, of, producers, tasks) for of in consumers]
                values = interleave(rounds, probes, warm=1 if key != "million" else 0)
                label = f"{{}} {producers}"
                ours, theirs = label.format("nbloop"), label.format("asyncio")
                yield row_of_ratio(key, values, ours, theirs, faster=True, **beside_all(label))


@group("wait", "burst")
def calls(plan: Plan) -> Iterator[Row]:
    """One call at a time, and a thousand."""
    with everyone() as consumers:
        for key, probe in (("wait", crossing.call_and_wait), ("burst", crossing.burst_elsewhere)):
            values = interleave(plan.rounds // 3, [peers.probe(probe, of) for of in consumers])
            yield row_of_ratio(key, values, "nbloop", "asyncio", faster=True, **beside_all())


def _timer_rows(prefix: str, values: Rounds) -> Iterator[Row]:
    for what in ("schedule", "cancel", "fire"):
        names = {"uvloop": f"uvloop {what}"}
        yield row_in_e(f"{prefix}.{what}", values, f"nbloop {what}", f"asyncio {what}", callee=what == "fire", **names)


@group("timer.schedule", "timer.cancel", "timer.fire")
def timers(plan: Plan) -> Iterator[Row]:
    """Timers on the loop's thread, among a thousand."""
    with beside() as loops:
        probes = [workloads.Timers(driven.name, driven, 1000) for driven in loops]
        values = interleave(plan.rounds, [yardstick, *probes])
    yield from _timer_rows("timer", values)


@group("timer.pair", "timer.fired", "timer.ordered")
def other_timers(plan: Plan) -> Iterator[Row]:
    """Timers as others measure them."""
    with beside() as loops:
        values = interleave(plan.rounds, [workloads.timer_pairs(driven.name, driven) for driven in loops])
        yield row_of_ratio("timer.pair", values, "nbloop", "asyncio", faster=True, uvloop="uvloop")
        if plan.million_asyncio:
            values = interleave(
                plan.million_asyncio, [workloads.timers_in_order(driven.name, driven) for driven in loops], warm=0
            )
            yield row_of_ratio("timer.ordered", values, "nbloop", "asyncio", faster=True, uvloop="uvloop")
    with beside(started=True) as loops:
        values = interleave(plan.rounds // 3, [crossing.timers_fired(driven.name, driven) for driven in loops])
        yield row_of_ratio("timer.fired", values, "nbloop", "asyncio", faster=True, uvloop="uvloop")


@group("timer.million.schedule", "timer.million.cancel", "timer.million.fire")
def million_timers(plan: Plan) -> Iterator[Row]:
    """Timers among a million. asyncio needs seconds for each round of this, so it gets fewer."""
    ours = Nbloop()
    values = interleave(plan.million_rounds, [yardstick, workloads.Timers("nbloop", ours, 1_000_000)], warm=1)
    ours.close()
    for their in (Asyncio(), *peers.uvloops()) if plan.million_asyncio else ():
        values |= interleave(plan.million_asyncio, [workloads.Timers(their.name, their, 1_000_000)], warm=0)
        their.close()
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
            workloads.timer_pairs("call_later", theirs, javascript.PENDING),
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
            yield Row(f"js.{name}", "ns", Sample.of(times), asyncio, None, note=reference.missing)
        else:
            judged = Sample.of(ratios(times, values[f"node {name}"]))
            yield Row(f"js.{name}", "ns", Sample.of(times), asyncio, judged, samples(values, Node=f"node {name}"))


def _asyncios() -> list[Asyncio]:
    """asyncio's interface on nbloop, on asyncio, and on uvloop if it is installed."""
    return [NbloopAio(), Asyncio(), *peers.uvloops()]


@group("aio.soon", "aio.timer", "aio.switch", "aio.streams")
def aio(plan: Plan) -> Iterator[Row]:
    """What an asyncio program does on the loop's own thread."""
    loops = _asyncios()
    groups: dict[str, list[Probe]] = {
        "soon": [workloads.burst(of.name, of, of.soon) for of in loops],
        "timer": [workloads.timer_pairs(of.name, of) for of in loops],
        "switch": [coroutines.switches(of.name, of) for of in loops],
        "streams": [coroutines.Streams(of.name, of) for of in loops],
    }
    for what, probes in groups.items():
        values = interleave(plan.rounds // (5 if what == "streams" else 2), probes)
        run = "+run" if what == "soon" else ""
        names = {"uvloop": f"uvloop{run}"}
        yield row_of_ratio(f"aio.{what}", values, f"nbloop.aio{run}", f"asyncio{run}", faster=True, **names)
    for of in loops:
        of.close()


@group("aio.race.1", "aio.race.4", "aio.hop")
def aio_from_threads(plan: Plan) -> Iterator[Row]:
    """The same loops, and what other threads give them."""
    loops = _asyncios()
    for of in loops:
        of.start()
    for producers in (1, 4):
        values = interleave(plan.race_rounds, [_race(of.name, of, producers, plan.race_tasks) for of in loops], warm=1)
        label = f"{{}} {producers}"
        ours, theirs, others = (label.format(name) for name in ("nbloop.aio", "asyncio", "uvloop"))
        yield row_of_ratio(f"aio.race.{producers}", values, ours, theirs, faster=True, uvloop=others)
    values = interleave(plan.rounds // 2, [crossing.hop(of.name, of) for of in loops])
    yield row_of_ratio("aio.hop", values, "nbloop.aio", "asyncio", faster=True, uvloop="uvloop")
    for of in loops:
        of.close()


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


@group("fd.1", "fd.1000", "fd.uvloop.1", "fd.uvloop.1000", "fd.idle", "echo")
def readiness(plan: Plan) -> Iterator[Row]:
    """Descriptors that can be read, and connections that echo, on the loop's own thread."""
    for ready in (1, 1000):
        with beside() as loops, descriptors.eventfds(ready) as fds, contextlib.ExitStack() as watched:
            probes = [descriptors.Ready(driven.name, driven, fds) for driven in loops]
            for probe in probes:
                watched.callback(probe.close)
            values = interleave(plan.rounds // 3, probes)
        yield row_of_ratio(f"fd.{ready}", values, "nbloop", "asyncio", uvloop="uvloop")
        if "uvloop" in values:
            yield row_of_ratio(f"fd.uvloop.{ready}", values, "nbloop", "asyncio", uvloop="uvloop").judged_by(
                Sample.of(ratios(values["nbloop"], values["uvloop"]))
            )
    with contextlib.ExitStack() as resources:
        fds = resources.enter_context(descriptors.eventfds(1, 9_999))
        few, many = (resources.enter_context(contextlib.closing(Nbloop())) for _ in range(2))
        alone = resources.enter_context(contextlib.closing(descriptors.Ready("alone", few, fds[:1])))
        crowd = resources.enter_context(contextlib.closing(descriptors.Ready("crowd", many, fds, calls=5000)))
        values = interleave(plan.rounds // 3, [alone, crowd])
    times = Sample.of(values["crowd"])
    yield Row("fd.idle", "ns", times, None, Sample.of(ratios(values["crowd"], values["alone"])))
    with beside() as loops, contextlib.ExitStack() as connected:
        echoes = [descriptors.Echo(driven.name, driven) for driven in loops]
        for echo in echoes:
            connected.callback(echo.close)
        values = interleave(plan.rounds // 3, echoes)
    yield row_of_ratio("echo", values, "nbloop", "asyncio", faster=True, uvloop="uvloop")


@group("event", "event.row")
def event(plan: Plan) -> Iterator[Row]:
    """A descriptor that wakes a sleeping loop, and one that is signalled again as soon as the answer is there."""
    for key, settle in (("event", crossing.SETTLE), ("event.row", 0.0)):
        with beside(started=True) as loops, contextlib.ExitStack() as watched:
            probes = [descriptors.Signalled(driven.name, driven, settle) for driven in loops]
            for probe in probes:
                watched.callback(probe.close)
            values = interleave(plan.rounds // 2, probes)
        judged = Sample.of(values["nbloop"] if key == "event.row" else ratios(values["nbloop"], values["asyncio"]))
        ours, theirs = Sample.of(values["nbloop"]), Sample.of(values["asyncio"])
        yield Row(key, "ns", ours, theirs, judged, samples(values, uvloop="uvloop"))


@group("hop", "hop.locks", "hop.spinning", "hop.row", "limit.futex", "limit.copy")
def hops(plan: Plan) -> Iterator[Row]:
    """To the loop and back."""
    limits = subprocesses.Limits()
    with everyone() as consumers:
        ours, theirs = consumers[:2]
        values = interleave(
            plan.rounds,
            [
                *(crossing.hop(of.name, of) for of in consumers[:4]),
                limits,
                crossing.hop_locks("locks"),
                crossing.on_two_cores(ours, crossing.hops_in_a_row("spinning", ours)),
                crossing.on_two_cores(theirs, crossing.hops_in_a_row("asyncio spinning", theirs)),
                crossing.hops_in_a_row("row", ours),
                crossing.hops_in_a_row("asyncio row", theirs),
            ],
        )
    limits.close()
    others = {"uvloop": "uvloop", "trio": "trio", "raw_futex": "limit futex"}
    yield row_of_ratio("hop", values, "nbloop", "asyncio", **others)
    yield Row("hop.locks", "ns", Sample.of(values["locks"]), None, Sample.of(ratios(values["nbloop"], values["locks"])))
    yield row_of_ratio("hop.spinning", values, "spinning", "asyncio spinning")
    yield row_of_ratio("hop.row", values, "row", "asyncio row")
    for what in ("futex", "copy"):
        measured = values.get(f"limit {what}")
        judged = None if measured is None else Sample.of(measured)
        yield Row(f"limit.{what}", "ns", None, None, judged, note=limits.missing)


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
    makers = [Nbloop, Asyncio, *([peers.Uvloop] if peers.installed("uvloop") else [])]
    values = interleave(plan.rounds, [crossing.life(make.name, make) for make in makers])
    yield row_of_ratio("life", values, "nbloop", "asyncio", uvloop="uvloop")


@group("aio.life", "aio.run")
def aio_life(plan: Plan) -> Iterator[Row]:
    """A loop that does nothing, or as good as nothing."""
    makers: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "nbloop.aio": nbloop.new_event_loop,
        "asyncio": asyncio.new_event_loop,
    }
    if peers.installed("uvloop"):
        import uvloop

        makers["uvloop"] = uvloop.new_event_loop
    for row, probe in (("aio.life", coroutines.lives), ("aio.run", coroutines.runs)):
        values = interleave(plan.rounds, [probe(name, make) for name, make in makers.items()])
        yield row_of_ratio(row, values, "nbloop.aio", "asyncio", uvloop="uvloop")


@group("import.warm", "import.first")
def imports(plan: Plan) -> Iterator[Row]:
    """In a new process each time."""
    values: Rounds = {name: [] for name in ("nbloop", "asyncio", "uvloop") if peers.installed(name)}
    for _ in range(plan.imports):
        for module, seconds in values.items():
            seconds.append(subprocesses.import_seconds(module))
    warm = Sample.of(values["nbloop"])
    yield Row("import.warm", "s", warm, Sample.of(values["asyncio"]), warm, samples(values, uvloop="uvloop"))
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
    line = (
        f"After all rows E was {e.median:.1f} ns ({e.low:.1f}–{e.high:.1f}), and the callback's own time "
        f"{callee.median:.1f} ns; a row is judged by those of its own rounds. Only that column subtracts the "
        "callback's own time, where a row says so."
    )
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
