"""The public API against a loop made of lists (reference.py): the same programs on both, and everything compared.

A program is what users write: callbacks that schedule, cancel, watch, raise and leave, from outside, from inside and
from other threads. Each callback carries the script of what it does, so that hypothesis can shrink the whole. Compared
are the log (what ran, in which order, with which arguments; what each call returned or raised; what `on_error` and
`on_overload` heard), `alive()`, and which callbacks are still referenced.
"""

from __future__ import annotations

import gc
import itertools
import logging
import socket
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nbloop import FastPathMode, IOEvents, Loop
from tests.support import waiting
from tests.support.reference import Reference

type Operation = tuple[Any, ...]

PAIRS = 3
FAR = 3600.0
EVENTS = (
    IOEvents.READ,
    IOEvents.WRITE,
    IOEvents.READ | IOEvents.WRITE,
    IOEvents.READ | IOEvents.ONESHOT,
    IOEvents(0),
)


class Callback:
    """Notes its call, and acts out its script."""

    def __init__(self, world: World, name: int, script: list[Operation]) -> None:
        self.world, self.name, self.script = world, name, script

    def __call__(self, *args: Any) -> None:
        self.world.log.append(("called", self.name, *args))
        self.world.perform(self.script)


class Ready(Callback):
    """The same for a descriptor, which has another number in each world."""

    def __call__(self, fd: int, events: IOEvents) -> None:
        assert isinstance(events, IOEvents)
        self.world.log.append(("ready", self.name, self.world.numbers.index(fd), int(events)))
        self.world.perform(self.script)


class World:
    """One loop with its sockets, and the log of what happened to it."""

    def __init__(self, make: Callable[..., Any], **options: Any) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.loop = make(
            on_error=lambda error, context: self.log.append(("error", type(error).__name__, context["kind"])),
            on_overload=lambda error: self.log.append(("overload",)),
            **options,
        )
        self.names = itertools.count()
        self.callbacks: dict[int, weakref.ref[Callback]] = {}
        self.timers: list[int] = [0, 1 << 60]
        self.immediates: list[int] = [0, 1 << 60]
        self.producers: list[Any] = []
        self.pairs = [socket.socketpair() for _ in range(PAIRS)]
        for one in itertools.chain(*self.pairs):
            one.setblocking(False)
        self.numbers = [a.fileno() for a, _ in self.pairs]

    def callback(self, script: list[Operation], kind: type[Callback] = Callback) -> Callback:
        name = next(self.names)
        made = kind(self, name, script)
        self.callbacks[name] = weakref.ref(made)
        return made

    def referenced(self) -> list[int]:
        return [name for name, callback in self.callbacks.items() if callback() is not None]

    def perform(self, script: list[Operation]) -> None:
        for operation, *details in script:
            if operation == "raise":
                raise ValueError
            if operation == "leave":
                raise SystemExit
            try:
                result = getattr(self, operation)(*details)
            except Exception as error:
                result = type(error).__name__
            self.log.append((operation, result))

    # --- operations: each returns what both worlds must agree on

    def put(self, method: str, script: list[Operation], args: list[int]) -> object:
        return getattr(self.loop, method)(self.callback(script), *args)

    def many(self, script: list[Operation], count: int) -> object:
        return self.loop.submit_many(self.callback(script if i == 0 else []) for i in range(count))

    def producer(self) -> object:
        self.producers.append(self.loop.producer())
        return len(self.producers)

    def through(self, choice: int, script: list[Operation], count: int) -> object:
        if not self.producers:
            return "no producer"
        producer = self.producers[-1 - choice % len(self.producers)]
        if count == 1:
            return producer.submit(self.callback(script), "through")
        return producer.submit_many([self.callback(script if i == 0 else []) for i in range(count)])

    def immediate(self, script: list[Operation]) -> object:
        self.immediates.append(self.loop.schedule_immediate(self.callback(script)))
        return len(self.immediates)

    def cancel_immediate(self, choice: int) -> object:
        return self.loop.cancel_immediate(self.immediates[-1 - choice % len(self.immediates)])

    def timer(self, method: str, delay: float, script: list[Operation]) -> object:
        self.timers.append(getattr(self.loop, method)(delay, self.callback(script)))
        return len(self.timers)

    def on_timer(self, method: str, choice: int) -> object:
        return getattr(self.loop, method)(self.timers[-1 - choice % len(self.timers)])

    def cancel_timers(self, choices: list[int]) -> object:
        return self.loop.cancel_timers([self.timers[-1 - choice % len(self.timers)] for choice in choices])

    def register(self, pair: int, events: IOEvents, script: list[Operation]) -> object:
        return self.loop.register_fd(self.numbers[pair], events, self.callback(script, Ready))

    def modify(self, pair: int, events: IOEvents) -> object:
        return self.loop.modify_fd(self.numbers[pair], events)

    def unregister(self, pair: int) -> object:
        return self.loop.unregister_fd(self.numbers[pair])

    def drain(self, pair: int) -> object:
        return len(waiting.drain(self.pairs[pair][0]))

    def mode(self, mode: FastPathMode) -> object:
        return self.loop.set_fast_path_mode(mode)

    def elsewhere(self, script: list[Operation]) -> object:
        return waiting.elsewhere(self.perform, script)

    def life(self, method: str) -> object:
        return getattr(self.loop, method)()

    def shutdown(self) -> object:
        return self.loop.shutdown(timeout=None if self.loop.is_loop_thread() else 0)

    # --- from outside

    def write(self, pair: int) -> object:
        try:
            return self.pairs[pair][1].send(b"x")
        except OSError as error:
            return type(error).__name__

    def hang_up(self, pair: int) -> None:
        self.pairs[pair][1].close()

    def turn(self, stop: bool = True) -> None:
        """One turn; of a loop that a callback has left while it ends, the rest too."""
        try:
            if stop:
                self.loop.stop()
            self.loop.run()
        except Exception as error:
            self.log.append(("run", type(error).__name__))
        except SystemExit:
            self.log.append(("run", "left"))
            if self.ending():
                self.loop.shutdown()

    def ending(self) -> bool:
        return self.loop.ending if isinstance(self.loop, Reference) else self.loop._lifecycle() >= 2

    def close(self) -> None:
        self.loop.close()
        for one in itertools.chain(*self.pairs):
            one.close()


QUEUES = [
    "submit",
    "submit_internal",
    "schedule_microtask",
    "schedule_next_tick",
    "schedule_checkpoint_end",
    "schedule_close",
]
choices = st.integers(0, 9)  # 0 is the newest
pairs = st.integers(0, PAIRS - 1)


@st.composite
def scripts_of(draw: st.DrawFn, depth: int, elsewhere: bool = False, least: int = 0) -> list[Operation]:
    """Operations whose callbacks act out scripts of their own, `depth` levels down.

    With `elsewhere` only what any thread may call while a callback waits for it.
    """
    return [draw(operation(depth, elsewhere)) for _ in range(draw(st.integers(least, 4)))]


@st.composite
def operation(draw: st.DrawFn, depth: int, elsewhere: bool) -> Operation:
    inner = scripts_of(depth - 1) if depth else st.just([])

    def of(name: str, *details: st.SearchStrategy[Any]) -> Operation:
        return (name, *(draw(detail) for detail in details))

    kinds = "put put put many producer through through immediate cancel_immediate timer on_timer cancel_timers life"
    if not elsewhere:
        kinds += " register modify unregister drain mode raise elsewhere"
    kind = draw(st.sampled_from(kinds.split()))
    match kind:
        case "put":
            return of(kind, st.sampled_from(QUEUES), inner, st.lists(st.integers(0, 9), max_size=2))
        case "many":
            return of(kind, inner, st.sampled_from([0, 1, 3, 20]))
        case "through":
            return of(kind, choices, inner, st.sampled_from([1, 1, 2, 20]))
        case "immediate":
            return of(kind, inner)
        case "cancel_immediate":
            return of(kind, choices)
        case "timer":
            methods = ["schedule_timer", "schedule_timer", "schedule_interval"]
            return of(kind, st.sampled_from(methods), st.sampled_from([0, -1.0, FAR]), inner)
        case "on_timer":
            return of(kind, st.sampled_from(["cancel_timer", "cancel_timer", "ref_timer", "unref_timer"]), choices)
        case "cancel_timers":
            return of(kind, st.lists(choices, max_size=3))
        case "life":
            return of(kind, st.sampled_from(["alive", "is_loop_thread", "stop"]))
        case "register":
            return of(kind, pairs, st.sampled_from(EVENTS), inner)
        case "modify":
            return of(kind, pairs, st.sampled_from(EVENTS))
        case "unregister" | "drain":
            return of(kind, pairs)
        case "mode":
            return of(kind, st.sampled_from(list(FastPathMode)))
        case "elsewhere":
            return of(kind, scripts_of(depth, elsewhere=True, least=1))
        case _:
            return of(kind)


scripts = scripts_of(2, least=1)
ENDS = ["shutdown", "close", "inside", "elsewhere", "run out"]
AFTER: list[Operation] = [
    *(("put", method, [], []) for method in QUEUES),
    ("many", [], 2),
    ("producer",),
    ("through", 0, [], 1),
    ("through", 0, [], 2),
    ("immediate", []),
    ("cancel_immediate", 0),
    ("timer", "schedule_timer", 0, []),
    ("timer", "schedule_interval", 0, []),
    *(("on_timer", method, 0) for method in ("cancel_timer", "ref_timer", "unref_timer")),
    ("cancel_timers", [0, 1]),
    ("register", 0, IOEvents.READ, []),
    ("modify", 0, IOEvents.READ),
    ("unregister", 0),
    ("mode", FastPathMode.AUTO),
    *(("life", method) for method in ("alive", "is_loop_thread", "stop", "run", "shutdown", "close")),
]


class ModelMachine(RuleBasedStateMachine):
    """Both worlds, one turn at a time, and at the end one of the ways to end."""

    @initialize(
        budget=st.sampled_from([2, 4, 1024]),
        limit=st.sampled_from([None, None, 5, 40]),
        end=st.sampled_from(ENDS),
        last=scripts,
        queue=st.sampled_from(QUEUES),
    )
    def begin(self, budget: int, limit: int | None, end: str, last: list[Operation], queue: str) -> None:
        logging.getLogger("nbloop").disabled = True  # what leaves run() while the loop ends on a thread of its own
        self.end, self.last, self.queue = end, last, queue
        options: dict[str, Any] = {"ingress_budget": budget, "ingress_limit": limit, "auto_exit": end == "run out"}
        self.real = World(Loop, chunk_size=16, **options)
        self.naive = World(Reference, clock=lambda: 0.0, **options)

    def both(self, method: str, *details: Any) -> Any:
        answers = [getattr(world, method)(*details) for world in (self.real, self.naive)]
        assert answers[0] == answers[1]
        return answers[0]

    @rule(script=scripts)
    def outside(self, script: list[Operation]) -> None:
        """Between turns, on the thread that makes them."""
        self.both("perform", [operation for operation in script if operation[0] != "raise"])

    @rule(before=scripts, after=scripts, queue=st.sampled_from(QUEUES))
    def leave(self, before: list[Operation], after: list[Operation], queue: str) -> None:
        """A callback that raises what leaves `run()`, with others behind it; and calls that no callback may make."""
        inside = [("life", "run"), ("life", "close")]
        self.both("perform", [("put", queue, [*before, *inside, ("leave",)], []), ("put", queue, after, [])])

    @rule(pair=pairs)
    def write(self, pair: int) -> None:
        self.both("write", pair)

    @rule(pair=pairs)
    def hang_up(self, pair: int) -> None:
        self.both("hang_up", pair)

    @rule(times=st.integers(1, 3))
    def turn(self, times: int) -> None:
        for _ in range(times):
            self.turn_once()

    def turn_once(self, stop: bool = True) -> None:
        before = len(self.real.log)
        self.real.turn(stop)
        served = [entry[2] for entry in self.real.log[before:] if entry[0] == "ready"]
        self.naive.loop.order = [self.naive.numbers[pair] for pair in served]
        self.naive.turn(stop)

    @invariant()
    def same(self) -> None:
        self.agree()
        assert self.real.referenced() == self.naive.referenced()

    def agree(self) -> None:
        for at, (real, naive) in enumerate(itertools.zip_longest(self.real.log, self.naive.log)):
            assert real == naive, f"entry {at}: {real}, should be {naive}, after {self.naive.log[:at]}"
        assert self.real.loop.alive() == self.naive.loop.alive()

    def teardown(self) -> None:
        if hasattr(self, "real"):
            try:
                self.finish()
            finally:
                logging.getLogger("nbloop").disabled = False
                self.real.close()
                self.naive.close()

    def finish(self) -> None:
        """The end; what it has run; and that afterwards everything is refused, and nothing referenced."""
        if self.end == "run out":
            for _ in range(6):  # some programs never run out, and double what is left in each turn
                if not self.naive.loop.alive():
                    break
                # descriptors, timers that are far off, and intervals would keep it for ever
                self.both("perform", [("unregister", pair) for pair in range(PAIRS)])
                self.both("perform", [("on_timer", "cancel_timer", choice) for choice in range(len(self.naive.timers))])
                self.turn_once()
            self.turn_once(stop=self.naive.loop.alive())
        elif self.end in ("inside", "elsewhere"):
            shutdown: Operation = ("shutdown",) if self.end == "inside" else ("elsewhere", [("shutdown",)])
            self.both("perform", [("put", self.queue, [*self.last, shutdown, *self.last], [])])
            self.turn_once()
        for world in (self.real, self.naive):
            world.loop.close() if self.end == "close" else world.loop.shutdown()
        self.both("perform", AFTER)
        self.naive.producers.clear()
        self.agree()
        gc.collect()
        waiting.wait_for(lambda: not self.real.referenced())


TestModel = pytest.mark.slow(ModelMachine.TestCase)
TestModel.settings = settings(
    max_examples=60,
    derandomize=True,  # some programs grow without end, and would take the time limit of a run that met one
    stateful_step_count=20,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
