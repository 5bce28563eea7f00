"""The targets of nbloop's figures: one row of `compare` each. `compare` says what is measured for a row, the workloads
say how.

`limit` is in `unit`: "E" is the cost of an empty built-in call, "x" a ratio to asyncio's value of the same rounds (or,
where `what` says so, to something else). A row without a limit is for information only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What a row is about, and its target."""

    what: str
    unit: str
    limit: float | None = None
    at_least: bool = False

    def reached(self, value: float) -> bool | None:
        """Whether the value reaches the target; None if there is none."""
        if self.limit is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        if self.limit is None:
            return "–"
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"


TARGETS = {
    "submit.own": Target("submit on the loop's own thread", "E", 1.8),
    "submit.run": Target("submit + run on the loop's own thread, callback's own time included", "x"),
    "submit.elsewhere": Target("submit from another thread, loop awake", "E", 1.8),
    "submit.many": Target("submit_many of 1,000: submit + run of each, callback's own time subtracted", "ns", 12),
    "submit.many.alone": Target("submit_many of 1,000: submit alone", "ns"),
    "race.1": Target("submit → run, 1 producer", "x", 30, at_least=True),
    "race.2": Target("submit → run, 2 producers", "x", 30, at_least=True),
    "race.4": Target("submit → run, 4 producers", "x", 30, at_least=True),
    "race.10": Target("submit → run, 10 producers", "x"),
    "spawn.1": Target("12,800 tasks from 1 thread, until all have run", "x"),
    "spawn.8": Target("12,800 tasks from 8 threads, until all have run", "x"),
    "spawn.64": Target("12,800 tasks from 64 threads, until all have run", "x"),
    "million": Target("1,000,000 tasks from 1 thread, until all have run", "x"),
    "burst": Target("bursts of 1,000 tasks from another thread, each burst awaited", "x"),
    "wait": Target("call from another thread and wait for the answer, one at a time", "x"),
    "race.handles.1": Target("submit → run, 1 producer() handle", "x", 30, at_least=True),
    "race.handles.2": Target("submit → run, 2 producer() handles", "x", 30, at_least=True),
    "race.handles.4": Target("submit → run, 4 producer() handles", "x", 30, at_least=True),
    "race.each.1": Target("submit → run, 1 producer, 1,000 different functions", "x"),
    "race.each.2": Target("submit → run, 2 producers, 1,000 different functions", "x"),
    "race.each.4": Target("submit → run, 4 producers, 1,000 different functions", "x"),
    "race.each.handles": Target(
        "submit → run, 2 producer() handles, 1,000 different functions", "x", 50, at_least=True
    ),
    "race.each.uvloop": Target(
        "submit → run, 2 producer() handles, 1,000 different functions, relative to uvloop", "x", 8, at_least=True
    ),
    "race.scaling": Target("the same tasks through 2 producer() handles, relative to 1 handle", "x", 1),
    "microtask": Target("microtask: schedule + run, callback's own time subtracted", "E", 2),
    "tick": Target("next-tick: schedule + run, callback's own time subtracted", "E", 2),
    "immediate": Target("immediate: schedule + run, callback's own time subtracted", "E"),
    "timer.schedule": Target("timer schedule, 1,000 pending", "E", 5),
    "timer.cancel": Target("timer cancel, 1,000 pending", "E", 4),
    "timer.fire": Target("timer fire, 1,000 pending, callback's own time subtracted", "E", 3),
    "timer.pair": Target("timer schedule + cancel, nothing else pending", "x"),
    "timer.fired": Target("1,000 timers of 0 ms armed by another thread, until all have fired", "x"),
    "timer.ordered": Target("1,000,000 timers armed in order of their deadlines, until all have fired", "x"),
    "timer.million.schedule": Target("timer schedule, 1,000,000 pending", "E", 20),
    "timer.million.cancel": Target("timer cancel, 1,000,000 pending", "E", 16),
    "timer.million.fire": Target("timer fire, 1,000,000 pending, callback's own time subtracted", "E", 12),
    "js.promise": Target("js: make a pending promise", "ns", 300),
    "js.resolvers": Target("js: with_resolvers", "ns"),
    "js.chain": Target("js: chain of 10 thens, from resolve to the last handler", "µs", 10),
    "js.chain.asyncio": Target(
        "js: chain of 10 thens; asyncio: 10 futures awaited, each completed through call_soon", "x", 5, at_least=True
    ),
    "js.all": Target("js: all of 100 resolved promises; asyncio: gather of 100 done futures", "µs", 60),
    "js.timeout": Target("js: set_timeout + clear_timeout, 1,000 pending", "ns", 500),
    "js.timeout.asyncio": Target(
        "js: set_timeout + clear_timeout, 1,000 pending; asyncio: call_later + cancel", "x", 5, at_least=True
    ),
    "js.microtask": Target("js: queue_microtask, schedule + run, relative to Node", "x", 1),
    "js.immediate": Target("js: set_immediate, schedule + run, relative to Node", "x", 1),
    "aio.soon": Target("nbloop.aio: call_soon + run", "x"),
    "aio.timer": Target("nbloop.aio: call_later + cancel", "x"),
    "aio.switch": Target("nbloop.aio: a task yields and resumes, 100 tasks in turn", "x"),
    "aio.streams": Target("nbloop.aio: a line over TCP streams and back, 20 connections", "x"),
    "aio.race.1": Target("nbloop.aio: call_soon_threadsafe → run, 1 producer", "x"),
    "aio.race.4": Target("nbloop.aio: call_soon_threadsafe → run, 4 producers", "x"),
    "aio.hop": Target("nbloop.aio: hop to a sleeping loop and back", "x"),
    "timer.elsewhere": Target(
        "timer schedule + cancel from another thread, loop asleep until an earlier one", "ns", 1100
    ),
    "timer.elsewhere.waking": Target("timer schedule + cancel from another thread, each waking the loop", "ns", 1100),
    "fd.1": Target("descriptor: event → callback, 1 ready", "x", 0.5),
    "fd.1000": Target("descriptor: event → callback, 1,000 ready", "x", 0.5),
    "fd.uvloop.1": Target("descriptor: event → callback, 1 ready, relative to uvloop", "x", 1),
    "fd.uvloop.1000": Target("descriptor: event → callback, 1,000 ready, relative to uvloop", "x", 1),
    "fd.idle": Target("descriptor: 1 ready beside 9,999 idle ones, relative to 1 alone", "x", 1.05),
    "echo": Target("echo of 64 bytes over 100 TCP connections, both ends on the loop", "x", 1.5, at_least=True),
    "event": Target("eventfd written by another thread → callback → back, loop asleep", "x", 1),
    "event.row": Target("eventfd written by another thread → callback → back, one at a time", "ns", 16_800),
    "hop": Target("hop to a sleeping loop and back", "x", 0.5),
    "hop.locks": Target("hop to a sleeping loop and back, relative to two threads with two locks", "x"),
    "hop.spinning": Target("hop to a spinning loop and back, on two cores", "x", 0.05),
    "hop.row": Target("hop to a spinning loop and back, threads not pinned", "x"),
    "limit.futex": Target("limit: two C threads that wake each other through a futex, round trip", "ns"),
    "limit.copy": Target("limit: copy 64 bytes between uncached places in memory", "ns"),
    "limit.call": Target("limit: an empty built-in call with one argument, E", "ns"),
    "idle.auto.cpu": Target("idle, fast_path_mode AUTO: CPU in 10 s", "ms", 1),
    "idle.auto.calls": Target("idle, fast_path_mode AUTO: system calls", "calls", 0),
    "idle.forced.cpu": Target("idle, fast_path_mode FORCED: CPU in 10 s", "ms", 1),
    "idle.forced.calls": Target("idle, fast_path_mode FORCED: system calls", "calls", 0),
    "idle.disabled.cpu": Target("idle, fast_path_mode DISABLED: CPU in 10 s", "ms", 1),
    "idle.disabled.calls": Target("idle, fast_path_mode DISABLED: system calls", "calls", 0),
    "memory.each": Target("1,000,000 queued tasks: resident memory per task", "B", 32),
    "memory.again": Target("1,000,000 queued tasks: growth on a second run, per task", "B", 1),
    "memory.kept": Target("1,000,000 queued tasks: retained when idle, per task", "%", 90),
    "life": Target("make, start and end a loop", "x"),
    "aio.life": Target("nbloop.aio: make and close a loop", "x"),
    "aio.run": Target("nbloop.aio: asyncio.Runner with a coroutine that awaits nothing", "x"),
    "import.warm": Target("import, cache warm", "s", 1),
    "import.first": Target("import, first on a machine", "s", 30),
}
