"""``async def`` over promises: what `JS.spawn` runs.

An ECMAScript async function, step by step (27.7.5): the body starts at once, `await` takes one job for a promise of
the same view (27.7.5.3), and what it returns resolves the promise as any value would. A coroutine has no thread of
its own: each step runs on the loop's thread, as a microtask.

There is one way to cancel a coroutine: `Running.interrupt` raises an exception where it waits. An aborted signal, a
time-out, a group and the loop's end all use it.

A loop holds its coroutines weakly. One that waits for what nobody can bring any more is collected, as in JavaScript; a
strong reference would keep it until the loop's end. Those that are left then are cancelled on the thread that ends the
loop. A graceful end runs the microtasks that this makes until nothing is left to run. What still waits then waits for
what never comes, and is closed (`GeneratorExit`). `Loop.close` runs no microtasks, so it closes at once what awaits
again.

The traceback of an exception keeps the frames that it has passed through, and each of them its callers'. So when a step
ends none of the frames here has anything that leads to an exception: what a failed coroutine held would stay until a
collection.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, ClassVar, Protocol

from .. import hooks
from ..awaiting import Wait, ways
from ..debug import Sited, StandIn
from ..errors import LoopTerminatedError
from ..lifecycle import Lifecycle, running_here
from ..parts import Part
from ..waiting import terminated
from .promise import CancelledError, Owed, Owner, Promise, Resumed, Signal, abandoned, reason_as_exception, resolved
from .tasks import outside_task

ENDED = -1  # the turn of a coroutine that will not run again


class Running(Resumed):
    """A coroutine between two steps. Every method on the loop's thread, unless it says otherwise."""

    __slots__ = (
        "__weakref__",
        "_all",
        "_context",
        "_coroutine",
        "_js",
        "_promise",
        "_signal",
        "_turn",
        "_unlink",
        "ending",
        "interrupted_by",
        "interruptions",
    )

    def __init__(
        self, js: Owner, coroutine: Coroutine[Any, Any, Any], promise: Promise[Any], signal: Signal | None
    ) -> None:
        self._js = js
        self._all = coroutines_of(js.loop)
        self._coroutine = coroutine
        self._context = contextvars.copy_context()  # the spawning one, copied: nobody else sees what it sets there
        self._promise = promise
        self._signal = signal
        self._unlink: Any = None
        self.interruptions = 0  # without those that a time-out or a group has taken back
        self.interrupted_by: BaseException | None = None  # the last of them
        self.ending = False  # has the loop's end cancelled it?
        # counts steps: a promise awaited before an abort interrupted it must not resume the coroutine again
        self._turn = 0

    def launch(self) -> None:
        """Make the first step: at once on the loop's thread, from another one as a microtask. Any thread. Raises
        `LoopTerminatedError`, and then the coroutine is closed.
        """
        loop = self._js.loop
        if self._all.refusing:
            self._drop()
            raise terminated(loop)
        if loop.is_loop_thread():
            self.start()
        else:
            first = _First(self.start, self._drop)
            try:
                loop.schedule_microtask(first)
            except LoopTerminatedError:
                first.drop()
                raise

    def _drop(self) -> None:
        """The end has come before the first step, or an exception of a signal's handler. Any thread: nothing of the
        coroutine runs.
        """
        if self._turn == 0 and hasattr(self, "_promise"):
            self._coroutine.close()
            self._end(False, abandoned(self._js.loop, "it was interrupted before its first step"))

    def start(self) -> None:
        """The first step, unless an abort came before it."""
        try:
            if self._signal is not None:
                if self._signal.aborted:
                    self._coroutine.close()
                    self._end(False, self._signal.reason)
                    return
                self._unlink = self._signal.on_abort(self._aborted)
            with outside_task():  # which may be spawning it
                self._step(False, None)
        except BaseException as error:  # of a signal's handler, unless the coroutine has ended
            self.give_up(error)
            raise

    def _aborted(self, reason: Any) -> None:
        """Any thread."""
        with contextlib.suppress(LoopTerminatedError):  # the end cancels it
            self._js.loop.schedule_microtask(self._abort, reason)

    def _abort(self, reason: Any) -> None:
        if self._signal is None:  # it has ended
            return
        try:
            self.interrupt(reason_as_exception(self._signal, reason))
        finally:
            del reason

    def interrupt(self, error: BaseException) -> None:
        """Raise an exception where it waits. Not from within its own steps. Nothing happens if it has ended, or if the
        loop's end has cancelled it.
        """
        try:
            if self._turn != ENDED and not self.ending:
                self.interruptions += 1
                self.interrupted_by = error
                self._step(True, error)
        finally:
            del error

    def cancel(self) -> None:
        """The loop ends: raise `CancelledError` where it waits, once."""
        if self._turn != ENDED and not self.ending:
            self.ending = True
            self._step(True, CancelledError(f"{self._js.loop.name} ends"))

    def give_up(self, error: BaseException) -> None:
        """An exception of a signal's handler came before or after a step of it, which then will not be resumed."""
        try:
            if hasattr(self, "_promise"):
                if self._turn == ENDED:
                    self._end(False, error)
                else:
                    self.close(error)
        finally:
            del error

    def close(self, reason: BaseException | None = None) -> None:
        """It was cancelled, and waits for what never comes. Its promise is rejected with `reason`, by default because
        the loop ends.
        """
        if self._turn == ENDED:
            return
        together = self._all
        outer, together.current = together.current, self
        theirs = None
        try:
            theirs = None if together.hooked else together.hook()
            self._context.run(self._coroutine.close)
        except BaseException as error:
            self._end(False, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        else:
            self._end(False, terminated(self._js.loop) if reason is None else reason)
        finally:
            del reason
            together.current = outer
            if theirs is not None:
                sys.set_asyncgen_hooks(*theirs)
            del outer

    def _step(self, throw: bool, value: Any) -> None:
        self._turn += 1
        turn = self._turn
        together = self._all
        outer, together.current = together.current, self
        theirs = None
        try:
            theirs = None if together.hooked else together.hook()
            awaited = self._context.run(self._coroutine.throw if throw else self._coroutine.send, value)
        except StopIteration as stop:
            self._end(True, stop.value)
            return
        except (KeyboardInterrupt, SystemExit) as error:  # which leave the loop, and reject the promise too
            self._end(False, error)
            raise
        except CancelledError as error:
            # every promise that the end leaves open is rejected with the same error
            self._end(False, terminated(self._js.loop) if self.ending else error)
            return
        except BaseException as error:
            self._end(False, error)
            return
        finally:
            together.current = outer
            if theirs is not None:
                sys.set_asyncgen_hooks(*theirs)
            del outer, value
        if turn == 1:
            together.running.add(self)
        if together.over:  # no microtask would resume it: `Coroutines._drop` closes it
            return
        if not isinstance(awaited, Promise):
            self._js.loop.schedule_microtask(
                _resume,
                self,
                turn,
                True,
                TypeError(f"a coroutine run by JS.spawn can await promises, futures and coroutines, not {awaited!r}"),
            )
            return
        promise = resolved(self._js, awaited)
        promise._react(partial(_resume, self, turn, False), partial(_fail, self, turn, promise))

    def _end(self, fulfilled: bool, outcome: Any) -> None:
        """It will not run again. Settle its promise, and forget it."""
        self._turn = ENDED
        try:
            self._all.running.discard(self)
            if self._unlink is not None:
                self._unlink()
            self._signal = self._unlink = self.interrupted_by = None
            promise = self._promise
            del self._promise  # no signal is checked between this and the calls below
            if fulfilled:
                promise._resolve(outcome)
            else:
                promise._reject(outcome)
        finally:
            del outcome


def _resume(running: Running, turn: int, throw: bool, value: Any) -> None:
    """What it waits for has come. Any thread: elsewhere, and when all is over, only because the loop takes no more
    microtasks. Then the end cancels it, on the loop's thread.
    """
    try:
        if turn == running._turn and not running._all.over and running._js.loop.is_loop_thread():
            running._step(throw, value)
    finally:
        del value


def _fail(running: Running, turn: int, promise: Promise[Any], reason: Any) -> None:
    """As `_resume`, with the reason of the promise that it waits for."""
    try:
        _resume(running, turn, True, reason_as_exception(promise, reason))
    finally:
        del promise, reason


class _First(Owed):
    """The first step, which is owed until it has begun."""

    __slots__ = ()

    def __call__(self) -> None:
        self._run()
        self._dropped = None


class Living[T]:
    """Weak references to objects, in the order in which they came. Any thread: each operation of a dict is one step. A
    `weakref.WeakSet` would not do, because a collection on another thread may change it while somebody iterates.
    """

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[T]] = {}

    def add(self, one: T) -> None:
        """Until it is discarded or collected."""
        key = id(one)
        self._references[key] = weakref.ref(one, partial(self._references.pop, key))

    def discard(self, one: T) -> None:
        """If it is there."""
        self._references.pop(id(one), None)

    def all(self) -> list[T]:
        """Those that live. O(n)."""
        return [one for one in (reference() for reference in list(self._references.values())) if one is not None]


class Sleeping(Protocol):
    """What the loop's end rejects: `JS.sleep`."""

    def end(self) -> None: ...


class Coroutines(Part):
    """The coroutines of one loop, and what has to end with them."""

    def __init__(self, loop: Lifecycle) -> None:
        self._loop = weakref.ref(loop)
        self._schedule = loop.schedule_microtask  # which does not keep the loop
        self.current: Running | None = None  # whose step the loop's thread is in
        self.running: Living[Running] = Living()  # those that wait
        self.sleeping: dict[Sleeping, None] = {}
        self.generators: Living[AsyncGenerator[Any, Any]] = Living()  # asynchronous, and begun in one of the coroutines
        self.forgotten: dict[AsyncGenerator[Any, Any], None] = {}  # to which nobody refers, and which have not ended
        self._hooks = (self.generators.add, self._forget)  # as `sys.set_asyncgen_hooks` takes them
        self.hooked = False
        self._ending = False  # has the end cancelled those that it found first?
        self.refusing = False  # of new coroutines
        self.over = False  # no microtask will run any more

    make_view: ClassVar[Callable[[Lifecycle], Owner]]  # `JS`, which view.py sets

    @functools.cached_property
    def js(self) -> Owner:
        """A view for coroutines that no view has spawned."""
        loop = self._loop()
        assert loop is not None
        return Coroutines.make_view(loop)

    def hook(self) -> tuple[Any, Any] | None:
        """Have the interpreter report the asynchronous generators that this thread begins, until `_left`: setting the
        hooks once saves each step 0.3 of 1.5 µs. If hooks are set already (asyncio's, on the thread of one of its
        loops), ours are set for one step only, and theirs are returned for the caller to put back.
        """
        theirs = sys.get_asyncgen_hooks()
        self.hooked = theirs == (None, None)  # first: an exception of a signal's handler may come after the hooks
        sys.set_asyncgen_hooks(*self._hooks)
        return None if self.hooked else (theirs.firstiter, theirs.finalizer)

    def _left(self) -> None:
        """The thread leaves the loop."""
        if self.hooked:
            self.hooked = False
            sys.set_asyncgen_hooks(None, None)

    def _forget(self, generator: AsyncGenerator[Any, Any]) -> None:
        """The interpreter's hook: a generator that has not ended is about to be collected. Any thread."""
        loop = self._loop()
        if loop is None:
            return
        self.forgotten[generator] = None
        try:
            loop.schedule_microtask(self._finalise_forgotten)
        except LoopTerminatedError:
            if loop._ended.is_set():
                self.forgotten.pop(generator, None)

    def _finalise_forgotten(self) -> None:
        with contextlib.suppress(KeyError):  # none is left
            while True:
                generator, _ = self.forgotten.popitem()
                self._finalise(generator)

    def _finalise(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Run its end, as a coroutine."""
        self.generators.discard(generator)
        promise: Promise[Any] = Promise(self.js)
        promise._react(None, partial(self._raised, generator))
        Running(self.js, _close(generator), promise, None).start()

    def _raised(self, generator: AsyncGenerator[Any, Any], error: Any) -> None:
        """Its end has raised."""
        if not isinstance(error, (KeyboardInterrupt, SystemExit, LoopTerminatedError)):  # who have left `run()` already
            hooks.tell(self._loop(), error, "asynchronous generator", (generator,))

    def _cancel(self) -> bool:
        """The first step cancels. What is spawned meanwhile is cancelled by the next one, from which on nothing is
        spawned: a coroutine that spawns another one when it is cancelled would keep the loop from its end.
        """
        self.refusing = self._ending
        self._ending = True
        todo: list[Callable[[], object]] = [
            running.close if running.ending else running.cancel for running in self.running.all()
        ]
        if not todo and not self.sleeping:
            generators = [*self.forgotten, *self.generators.all()]
            self.forgotten.clear()
            todo = [partial(self._finalise, generator) for generator in generators]
        try:
            for one in todo:
                self._schedule(one)
        except LoopTerminatedError:  # `Loop.close` has come, and `_drop` ends them
            return False
        return self._wake_all() or bool(todo)

    def _drop(self) -> None:
        """If an exception leaves it, the next call goes on."""
        self.refusing = self.over = True
        for running in self.running.all():
            running.cancel()
            running.close()
        self._wake_all()
        for generator in [*self.forgotten, *self.generators.all()]:
            self.forgotten.pop(generator, None)
            self.generators.discard(generator)
            try:
                generator.aclose().send(None)  # up to the first `await` that waits
            except StopIteration:
                pass
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self._raised(generator, error)

    def _wake_all(self) -> bool:
        """Reject what sleeps; was there any?"""
        sleeping = list(self.sleeping)
        for sleep in sleeping:
            sleep.end()
        return bool(sleeping)


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


def coroutines_of(loop: Lifecycle) -> Coroutines:
    """Made with the first coroutine. Any thread."""
    return loop._part(Coroutines)


def _promise(loop: Lifecycle) -> Wait | None:
    """How the coroutine of a loop waits that runs on this thread."""
    current = coroutines_of(loop).current
    if current is None:
        return None
    promise, resolve, _reject = current._js.with_resolvers()
    return promise, resolve


ways.append(_promise)


class Spawning(StandIn):
    """What a view schedules in the place of a coroutine function: each call spawns its coroutine."""

    __slots__ = ("_js",)
    callback: Callable[..., Coroutine[Any, Any, object]]

    def __init__(self, js: Owner, callback: Callable[..., Any]) -> None:
        super().__init__(callback)
        self._js = js

    def __call__(self, *args: object) -> None:
        self._js.spawn(self.callback(*args))


def spawning(js: Owner, callback: Callable[..., Any]) -> Callable[..., Any]:
    """What to schedule for a callback: itself, or of a coroutine function what spawns."""
    if isinstance(callback, Sited):
        inner = spawning(js, callback.callback)
        return callback if inner is callback.callback else Sited(inner, callback.site)
    call: object = type(callback).__call__
    if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(call):
        return Spawning(js, callback)
    return callback


def run_here(coroutine: CoroutineType[Any, Any, Any], kind: str, what: tuple[Any, ...]) -> None:
    """Spawn what a callback, the first of `what`, has returned: on the loop that runs on this thread. What the
    coroutine raises is reported as an exception of the callback; and so is that no loop runs here.
    """
    loop = running_here()
    if loop is None:
        coroutine.close()
        hooks.never_awaited(None, coroutine, kind, what)
        return

    def raised(reason: Any) -> None:
        if not isinstance(reason, (KeyboardInterrupt, SystemExit)):  # which have left `run()` already
            hooks.tell(loop, reason, kind, what)

    coroutines_of(loop).js.spawn(coroutine)._react(None, raised)


def spawn(js: Owner, coroutine: Coroutine[Any, Any, Any], signal: Signal | None) -> Promise[Any]:
    """A promise for what the coroutine returns, which is launched."""
    promise: Promise[Any] = Promise(js)
    Running(js, coroutine, promise, signal).launch()
    try:
        return promise
    finally:
        del promise
