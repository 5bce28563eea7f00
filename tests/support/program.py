"""Byte strings as programs over the public API: each one means something, and each one ends.

A byte names an operation, and the operation takes its details from the bytes that follow; out of bytes, there is
nothing more to do. One cursor serves the whole program, from wherever it is read: between turns, in callbacks and the
loop's hooks, on another thread, in an iterator that `submit_many` exhausts, while a reference is released. So a
program is finite whatever it schedules, because an operation costs a byte.

What is known without a model of the loop is known afterwards (`World.check`): accepted work ran once, or was dropped
by `close()`; what was cancelled or refused did not run; nothing raised but what is documented; and callbacks,
descriptors and threads are gone. What ran in which order is test_model.py's subject.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import math
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from nbloop import (
    FastPathIncompatibleError,
    FastPathMode,
    FDAlreadyRegisteredError,
    FDNotRegisteredError,
    IOEvents,
    Loop,
    LoopAlreadyRunningError,
    LoopOverloadedError,
    LoopState,
    LoopTerminatedError,
    ReentrantCloseError,
    ReentrantRunError,
)
from nbloop.js import JS
from nbloop.testing import VirtualClock
from tests.support import waiting


class Number:
    """A delay that acts when it is converted."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __float__(self) -> float:
        self.world.act_one(QUIET)
        return 0.0


# In place of ids, delays, callbacks, descriptors, events, modes, iterables, timeouts and options.
GARBAGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 64, 1 << 22, (1 << 62) + 5, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 100),
    *(0.5, -0.0, 3.9e9, 4e9, 4.1e9, 1e300, math.nan, math.inf, -math.inf),
    *("x", b"", (), (int, 5), [int, int], {}, object(), int, IOEvents(63), FastPathMode.FORCED),
)
DELAYS = (0, 0.0, -1.0, 1e-9, 0.001, 0.004, 1, 3600.0, 1e6, 4e9)
MODES = tuple(FastPathMode)
EVENTS = tuple(IOEvents(bits) for bits in (1, 2, 3, 1 | 16, 3 | 16, 1 | 32, 2 | 32, 0))
QUEUES = (
    *("submit", "submit_internal", "schedule_microtask", "schedule_next_tick", "schedule_checkpoint_end"),
    *("schedule_close", "schedule_immediate"),
)
PAIRS = 3


class Planted(Exception):
    """What a callback raises."""


class Fate:
    """What is known of one callback."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.accepted = self.cancelled = self.dropped = False
        self.runs = 0
        self.most = 1  # how often it may run
        self.object: Callable[[], object] = lambda: None

    def __repr__(self) -> str:
        return f"<{self.kind}: {vars(self)}>"


class Task:
    """A callback that goes on with the program; so does its release, if it is `dying`."""

    def __init__(self, world: World, fate: Fate, dying: bool) -> None:
        self.world, self.fate, self.dying = world, fate, dying
        fate.object = weakref.ref(self)

    def __call__(self, *_args: object) -> None:
        world, fate = self.world, self.fate
        fate.runs += 1
        world.ran += 1
        if fate.runs > fate.most:
            world.problems.append(f"{fate} runs again")
        if not world.loop.is_loop_thread():
            world.problems.append(f"{fate} runs on another thread")
        for _ in range(world.byte() % 4):
            world.act_one(OPERATIONS)

    def __del__(self) -> None:
        if self.dying:
            self.world.act_one(QUIET)


class World:
    """One loop, and a program that is carried out on it."""

    def __init__(self, program: bytes) -> None:
        self.program, self.at = program, 0
        self.lock = threading.RLock()  # of the cursor; a release in the middle may read on
        self.said: list[str] = []
        self.problems: list[object] = []
        self.fates: list[Fate] = []
        self.timers: list[tuple[int, Fate | None]] = [(0, None), (1 << 60, None)]
        self.immediates: list[tuple[int, Fate | None]] = [(0, None), (1 << 60, None)]
        self.watched: dict[int, Fate] = {}
        self.ran = self.threads = 0
        self.closed = False
        self.main = threading.get_ident()
        flags = self.byte()
        self.own_thread = flags % 8 == 7
        virtual, jumps = flags & 8 == 0, flags & 16 != 0
        options = self.options()
        self.loop = Loop(**options)
        self.limited = options["ingress_limit"] is not None
        self.clock = VirtualClock(self.loop, autojump=0 if jumps else None) if virtual else None
        self.js = JS(self.loop, on_unhandled_rejection=lambda *_: None)
        self.promises: list[Any] = []
        self.producers: list[Any] = []
        self.pairs = [socket.socketpair() for _ in range(PAIRS)]
        for one in itertools.chain(*self.pairs):
            one.setblocking(False)
        self.numbers = [a.fileno() for a, _ in self.pairs]
        self.runner: threading.Thread | None = None

    def options(self) -> dict[str, Any]:
        def hook(*arguments: object) -> None:
            if (
                arguments
                and isinstance(arguments[0], BaseException)
                and not isinstance(arguments[0], (Planted, LoopOverloadedError))
            ):
                self.problems.append(arguments[0])
            self.act_one(OPERATIONS)

        mode, bits = self.pick(MODES), self.byte()
        return {
            "fast_path_mode": mode,
            "on_error": hook,
            "on_overload": hook if bits & 1 else None,
            "on_pressure": hook if bits & 2 else None,
            "chunk_size": 16 if bits & 4 else 128,
            "auto_exit": bits & 8 != 0,
            "clamp_nested_timers": bits & 16 != 0,
            "debug": bits & 96 == 96,
            "metrics": bits & 128 != 0,
            "recorder": self.pick((None, None, 64, 256)),
            "ingress_budget": self.pick((1024, 1, 2, 5)),
            "ingress_limit": self.pick((None, None, 3, 40)),
        }

    # --- reading

    def byte(self) -> int:
        with self.lock:
            if self.at >= len(self.program):
                return 0
            self.at += 1
            return self.program[self.at - 1]

    def pick(self, among: Any) -> Any:
        return among[self.byte() % len(among)]

    def task(self, kind: str, most: int = 1) -> Task:
        fate = Fate(kind)
        fate.most = most
        self.fates.append(fate)
        return Task(self, fate, dying=self.byte() % 16 == 15)

    def tasks(self, kind: str) -> Iterator[Task]:
        """For `submit_many`, which must have all of them or none: the program may go on between two."""
        for _ in range(self.byte() % 8):
            yield self.task(kind)
        if self.byte() % 8 == 7:
            self.act_one(QUIET)

    # --- acting

    def act_one(self, operations: tuple[Callable[[World], object], ...]) -> None:
        """One operation; only what is documented may come of it."""
        if self.at >= len(self.program):
            return
        operation = self.pick(operations)
        try:
            result = operation(self)
        except (Planted, SystemExit):
            raise
        except DOCUMENTED as error:
            result = error
            if isinstance(error, UNEXPECTED.get(operation, ())):
                self.problems.append((operation.__name__, error))
        except BaseException as error:
            result = error
            self.problems.append((operation.__name__, error))
        if operation is not World.nothing:
            self.said.append(f"{operation.__name__}: {result!r:.80}")

    def accept(self, task: Task, result: Any = None) -> Any:
        """It was taken; from here on the loop alone holds it."""
        task.fate.accepted = True
        return result

    def inside(self) -> bool:
        return self.loop.is_loop_thread()

    def outside(self) -> bool:
        """On the thread that carries out the program, and not in a callback."""
        return threading.get_ident() == self.main and not self.inside()

    def turn(self) -> None:
        """One turn, if the loop has no thread of its own; else that thread again, if it has left."""
        if self.own_thread and self.outside():
            if self.runner is None or not self.runner.is_alive():
                self.runner = self.loop.start()
            return
        if self.own_thread and not self.inside():
            return  # it might stay in `run()` with nobody to stop it
        self.loop.stop()
        try:
            self.loop.run()
        except SystemExit:
            if self.inside():
                raise

    # --- operations: those of QUIET are what releases and iterators may do too

    def nothing(self) -> None: ...

    def put(self) -> object:
        method = self.pick(QUEUES)
        task = self.task(method)
        identifier = getattr(self.loop, method)(task, *range(self.byte() % 3))
        self.accept(task)
        if method == "schedule_immediate":
            self.immediates.append((identifier, task.fate))
        return method

    def submit(self) -> None:
        task = self.task("submit")
        self.accept(task, self.loop.submit(task, *range(self.byte() % 3)))

    def many(self) -> object:
        door = self.pick([self.loop, *self.producers])
        held: list[Task] = []

        def kept() -> Iterator[Task]:
            for task in self.tasks("many"):
                held.append(task)
                yield task

        count = door.submit_many(list(kept()) if self.byte() % 2 else kept())
        if count != len(held):
            self.problems.append(f"submit_many of {len(held)} says {count}")
        for task in held:
            self.accept(task)
        return count

    def producer(self) -> None:
        if len(self.producers) < 4:
            self.producers.append(self.loop.producer())
        else:
            self.producers.pop(self.byte() % 4)

    def through(self) -> object:
        if not self.producers or threading.get_ident() != self.main or self.own_thread:
            return "a handle is for one thread at a time"
        task = self.task("producer")
        return self.accept(task, self.pick(self.producers).submit(task, 1))

    def cancel_immediate(self) -> bool:
        identifier, fate = self.pick(self.immediates)
        return self.cancelled(fate, self.loop.cancel_immediate(identifier))

    def timer(self) -> None:
        delay = Number(self) if self.byte() % 16 == 15 else self.pick(DELAYS)
        task = self.task("timer")
        self.timers.append((self.loop.schedule_timer(delay, task, 1), task.fate))
        self.accept(task)

    def interval(self) -> None:
        task = self.task("interval", most=1 << 60)
        self.timers.append((self.loop.schedule_interval(self.pick(DELAYS), task), task.fate))
        self.accept(task)

    def js_timer(self) -> None:
        task = self.task("timer")
        self.timers.append((self.js.set_timeout(task, self.pick(DELAYS[:-2])), task.fate))
        self.accept(task)

    def cancelled(self, fate: Fate | None, answer: bool) -> bool:
        """An answer of True is final, except for a run that another thread has just begun."""
        if answer and fate is not None:
            fate.cancelled = True
            fate.most = fate.runs + (fate.kind == "interval" and not self.inside() and self.own_thread)
        return answer

    def cancel_timer(self) -> bool:
        identifier, fate = self.pick(self.timers)
        return self.cancelled(fate, self.loop.cancel_timer(identifier))

    def cancel_timers(self) -> object:
        chosen = [self.pick(self.timers) for _ in range(self.byte() % 4)]
        answers = self.loop.cancel_timers([identifier for identifier, _ in chosen])
        for (_, fate), answer in zip(chosen, answers, strict=True):
            self.cancelled(fate, answer)
        return answers

    def clear_timeout(self) -> object:
        return self.js.clear_timeout(self.pick(self.timers)[0]) if self.byte() % 2 else None

    def reference(self) -> bool:
        method = self.loop.ref_timer if self.byte() % 2 else self.loop.unref_timer
        return method(self.pick(self.timers)[0])

    def register(self) -> None:
        pair, events = self.byte() % PAIRS, self.pick(EVENTS)
        task = self.task("readiness", most=1 << 60)
        self.loop.register_fd(self.numbers[pair], events, task)
        self.accept(task)
        self.watched[pair] = task.fate

    def modify(self) -> None:
        self.loop.modify_fd(self.numbers[self.byte() % PAIRS], self.pick(EVENTS))

    def unregister(self) -> None:
        pair = self.byte() % PAIRS
        fate = self.watched.get(pair)
        self.loop.unregister_fd(self.numbers[pair])
        if fate is not None and not self.own_thread and not self.threads:
            fate.most = fate.runs

    def write(self) -> object:
        with contextlib.suppress(OSError):
            return self.pairs[self.byte() % PAIRS][1].send(b"x")

    def drain(self) -> object:
        with contextlib.suppress(OSError):
            return waiting.drain(self.pairs[self.byte() % PAIRS][0])

    def hang_up(self) -> None:
        self.pairs[self.byte() % PAIRS][self.byte() % 8 == 7].close()  # seldom the watched one

    def advance(self) -> None:
        if self.clock is not None:
            self.clock.advance(self.pick(DELAYS[1:]))

    def look(self) -> object:
        loop = self.loop
        figures = loop.metrics()
        events = loop.recorder.events() if loop.recorder is not None else []
        return loop.state, repr(loop), loop.alive(), loop.wake(), loop.now() >= 0, figures is None, len(events)

    def promise(self) -> None:
        self.promises.append(self.js.with_resolvers())
        del self.promises[:-4]

    def then(self) -> None:
        if self.promises:
            promise = self.pick(self.promises)[0]
            made = promise.then(self.task("reaction"), self.task("reaction") if self.byte() % 2 else None)
            self.promises.append((made, None, None))

    def settle(self) -> None:
        if self.promises:
            _, resolve, reject = self.pick(self.promises)
            how, value = self.pick((resolve, reject)), self.pick([1, ValueError(), *(one for one, *_ in self.promises)])
            if how is not None:
                how(value)

    def together(self) -> None:
        how = self.pick((self.js.all, self.js.race, self.js.any, self.js.all_settled))
        self.promises.append((how([one for one, *_ in self.promises] + [5]), None, None))

    def microtask_by_js(self) -> None:
        task = self.task("schedule_microtask")
        self.accept(task, self.js.queue_microtask(task))

    def garbage(self) -> object:
        """Every argument may be anything."""
        loop, js, bad = self.loop, self.js, lambda: self.pick(GARBAGE)
        calls: list[Callable[[], object]] = [
            lambda: loop.cancel_timer(bad()),
            lambda: loop.cancel_timers(bad()),
            lambda: loop.cancel_timers([bad(), bad()]),
            lambda: loop.cancel_immediate(bad()),
            lambda: loop.ref_timer(bad()),
            lambda: loop.unref_timer(bad()),
            lambda: loop.schedule_timer(bad(), "not callable"),
            lambda: loop.schedule_timer(bad()),
            lambda: loop.schedule_interval(bad(), None),
            lambda: getattr(loop, self.pick(QUEUES))("not callable", bad()),
            getattr(loop, self.pick(QUEUES)),
            lambda: loop.submit_many([self.task("refused"), "not callable", bad()]),
            lambda: loop.submit_many(bad()) and None,
            lambda: loop.modify_fd(bad(), bad()),
            lambda: loop.unregister_fd(bad()),
            lambda: loop.register_fd(self.numbers[0], bad(), None),
            lambda: loop.register_fd(bad(), bad(), "not callable"),
            lambda: loop.set_fast_path_mode("auto" if bad() else None),
            lambda: loop.remove_signal_handler(bad()),
            lambda: loop.add_signal_handler(bad(), "not callable"),
            lambda: loop.watch(bad(), "not callable"),
            lambda: loop.promisify("not callable", bad()),
            lambda: loop.shutdown(timeout="soon"),
            lambda: js.clear_timeout(bad()),
            lambda: js.set_timeout("not callable", bad()),
            lambda: js.sleep("long"),
            lambda: js.all(bad()),
            lambda: js.promise("not callable"),
            lambda: self.clock.advance(-1.0) if self.clock is not None else None,
            lambda: VirtualClock(loop, autojump=bad()),
            lambda: Loop(**{self.pick(("chunk_size", "initial_chunks", "recorder", "name")): "many"}),  # type: ignore[arg-type]
        ]
        return self.pick(calls)()

    # --- operations that may not be in the middle of anything

    def fail(self) -> None:
        if self.inside():
            raise Planted

    def leave(self) -> None:
        if self.inside() and not self.own_thread:
            raise SystemExit

    def nested(self) -> None:
        for _ in range(self.byte() % 8):
            self.act_one(OPERATIONS)

    def elsewhere(self) -> None:
        """Another thread goes on, and this one waits for it."""
        self.threads += 1
        try:
            waiting.elsewhere(self.act_one, OPERATIONS)
        finally:
            self.threads -= 1

    def mode(self) -> None:
        self.loop.set_fast_path_mode(self.pick(MODES))

    def promisify(self) -> None:
        self.promises.append((self.loop.promisify(len, "abc"), None, None))

    def collect(self) -> None:
        if self.byte() % 16 == 15:
            gc.collect(0)

    def stop(self) -> None:
        self.loop.stop()

    def shutdown(self) -> None:
        if self.byte() % 8 == 7:  # or programs would be short
            self.loop.shutdown(None if self.outside() or self.inside() else 0)

    def close(self) -> None:
        if self.byte() % 8 == 7 and (self.outside() or self.inside()):  # else for a callback that waits for this thread
            self.closed |= not self.inside() and self.loop.state is not LoopState.TERMINATED
            self.loop.close()

    # --- the whole

    def run(self) -> None:
        """The program, the end, and what must be true then."""
        logging.getLogger("nbloop").disabled = True  # what leaves run() while the loop ends on a thread of its own
        try:
            with contextlib.suppress(LoopTerminatedError):
                self.turn()
            while self.at < len(self.program):
                self.act_one(OPERATIONS)
            self.end()
        finally:
            logging.getLogger("nbloop").disabled = False
            self.loop.close()
            for one in itertools.chain(*self.pairs):
                one.close()

    def end(self) -> None:
        gracefully = len(self.program) % 3 > 0
        if gracefully:
            self.loop.shutdown(waiting.PATIENCE)
        else:
            self.closed |= self.loop.state is not LoopState.TERMINATED
            self.loop.close()
        if self.runner is not None:
            self.runner.join(waiting.PATIENCE)
            assert not self.runner.is_alive(), "the loop's thread hangs"
        self.producers.clear()
        self.promises.clear()
        self.check()

    def check(self) -> None:
        assert not self.problems, self.problems
        assert self.loop.state is LoopState.TERMINATED
        assert not self.loop.alive()
        for fate in self.fates:
            assert fate.accepted or fate.kind == "reaction" or not fate.runs, f"refused, and ran: {fate}"
            assert fate.runs <= fate.most, f"cancelled, and ran: {fate}"
            if fate.accepted and not self.closed and fate.kind in (*QUEUES, "many", "producer"):
                assert fate.runs == (not fate.cancelled), f"accepted: {fate}"
        assert int(self.loop._record["callbacks"]) >= self.ran  # some are the loop's own, and its promises'
        self.pairs_close()
        if self.living():  # in a cycle; a collection takes longer than the whole program
            gc.collect()
            waiting.wait_for(lambda: not self.living())

    def pairs_close(self) -> None:
        for one in itertools.chain(*self.pairs):
            one.close()

    def living(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.object() is not None]


DOCUMENTED = (
    *(TypeError, ValueError, LoopTerminatedError, LoopOverloadedError, FastPathIncompatibleError, OSError),
    *(FDAlreadyRegisteredError, FDNotRegisteredError, LoopAlreadyRunningError, ReentrantRunError, ReentrantCloseError),
    TimeoutError,
)
QUIET: tuple[Callable[[World], object], ...] = (
    *(World.nothing, World.put, World.submit, World.many, World.producer, World.through, World.cancel_immediate),
    *(World.timer, World.interval, World.js_timer, World.cancel_timer, World.cancel_timers, World.clear_timeout),
    *(World.reference, World.look, World.promise, World.then, World.settle, World.together, World.microtask_by_js),
    *(World.garbage, World.write, World.advance, World.stop),
)
OPERATIONS: tuple[Callable[[World], object], ...] = (
    *QUIET,
    *(World.turn, World.turn, World.turn, World.turn, World.put, World.put, World.submit, World.many, World.timer),
    *(World.fail, World.leave, World.nested, World.elsewhere, World.mode, World.promisify, World.collect),
    *(World.register, World.register, World.modify, World.unregister, World.write, World.drain, World.hang_up),
    *(World.advance, World.shutdown, World.close),
)
# What an operation must never raise, though others may.
_ARGUMENTS = (TypeError, FDNotRegisteredError, FDAlreadyRegisteredError, FastPathIncompatibleError)
_LIFE = (LoopTerminatedError, LoopAlreadyRunningError, ReentrantRunError, ReentrantCloseError, TimeoutError)
UNEXPECTED: dict[Callable[[World], object], tuple[type[BaseException], ...]] = {
    **dict.fromkeys(QUIET, (*_ARGUMENTS, ValueError, OSError, ReentrantRunError, ReentrantCloseError)),
    **dict.fromkeys((World.promise, World.then, World.settle, World.together), (Exception,)),
    World.advance: (TypeError, *_LIFE),
    World.garbage: _LIFE[1:],
    World.look: (*_ARGUMENTS, ValueError, OSError, *_LIFE),
    World.turn: (*_ARGUMENTS, ValueError, OSError),
    World.mode: (TypeError, ValueError, OSError),
    World.stop: (Exception,),
    World.shutdown: (*_ARGUMENTS, *_LIFE[:-1]),
    World.close: (*_ARGUMENTS, ValueError, OSError, *_LIFE[:2], TimeoutError),
}
