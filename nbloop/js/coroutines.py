"""``async def`` over promises: what `JS.spawn` runs.

A coroutine takes the steps of an ECMAScript async function (27.7.5). Its body starts at once. An `await` of a promise
of the same view takes one job (27.7.5.3). Its result resolves its promise as any value would. A coroutine has no thread
of its own: each step runs on the loop's thread, as a microtask.

There is one way to cancel a coroutine: `Running.interrupt` raises an exception where it waits. An aborted signal, a
time-out, a group and the loop's end all use it.

A loop refers to its coroutines weakly. If nothing can settle what a coroutine waits for, the collector takes both, as
in JavaScript; a strong reference would keep them until the loop's end. At its end the loop cancels the coroutines that
are left, on the thread that ends it. A graceful end then runs microtasks until there are none. A coroutine that still
waits will never be resumed, and is closed (`GeneratorExit`). `Loop.close` runs no microtasks, so it closes a coroutine
that awaits again as soon as it does.

The traceback of an exception keeps the frames that the exception has passed through, and each frame keeps its caller's.
So the frames here refer to no exception when a step ends: otherwise what a failed coroutine held would stay until a
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
from .policy import Resumed
from .promise import CancelledError, Owed, Owner, Promise, Signal, abandoned, reason_as_exception, resolved
from .tasks import outside_task

ENDED = -1  # the turn of a coroutine that will not run again


class Running(Resumed):
    """A coroutine between two steps. Methods are for the loop's thread, unless they say otherwise."""

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
        self._context = contextvars.copy_context()  # the spawner's; others do not see what is set in the copy
        self._promise = promise
        self._signal = signal
        self._unlink: Any = None
        self.interruptions = 0  # those that a time-out or a group has taken back do not count
        self.interrupted_by: BaseException | None = None  # the last of them
        self.ending = False  # has the loop's end cancelled it?
        # Counts steps. A promise that was awaited when an abort interrupted the wait must not resume the coroutine.
        self._turn = 0

    def launch(self) -> None:
        """Take the first step: at once on the loop's thread, as a microtask from any other. Any thread. Raises
        `LoopTerminatedError` after closing the coroutine.
        """
        loop = self._js.loop
        if self._all.refusing:
            self._drop()
            raise terminated(loop)
        if loop.is_loop_thread():
            self.start()
        else:
            first = Owed(self.start, self._drop)
            try:
                loop.schedule_microtask(first)
            except LoopTerminatedError:
                first.drop()
                raise

    def _drop(self) -> None:
        """The loop's end, or an exception from a signal handler, came before the first step. Any thread, because
        nothing of the coroutine runs.
        """
        if self._turn == 0 and hasattr(self, "_promise"):
            self._coroutine.close()
            self._end(False, abandoned(self._js.loop, "it was interrupted before its first step"))

    def start(self) -> None:
        """Take the first step, unless an abort came before it."""
        try:
            if self._signal is not None:
                if self._signal.aborted:
                    self._coroutine.close()
                    self._end(False, self._signal.reason)
                    return
                self._unlink = self._signal.on_abort(self._aborted)
            with outside_task():  # an asyncio task may be spawning it
                self._step(False, None)
        except BaseException as error:  # from a signal handler, unless the coroutine has ended
            self.give_up(error)
            raise

    def _aborted(self, reason: Any) -> None:
        """The signal was aborted. Any thread."""
        with contextlib.suppress(LoopTerminatedError):  # then the loop's end cancels the coroutine
            self._js.loop.schedule_microtask(self._abort, reason)

    def _abort(self, reason: Any) -> None:
        if self._signal is None:  # it has ended
            return
        try:
            self.interrupt(reason_as_exception(self._signal, reason))
        finally:
            del reason

    def interrupt(self, error: BaseException) -> None:
        """Raise an exception where the coroutine waits. Do not call this from its own steps. It does nothing if the
        coroutine has ended or the loop's end has cancelled it.
        """
        try:
            if self._turn != ENDED and not self.ending:
                self.interruptions += 1
                self.interrupted_by = error
                self._step(True, error)
        finally:
            del error

    def cancel(self) -> None:
        """The loop ends: raise `CancelledError` where the coroutine waits, once."""
        if self._turn != ENDED and not self.ending:
            self.ending = True
            self._step(True, CancelledError(f"{self._js.loop.name} ends"))

    def give_up(self, error: BaseException) -> None:
        """An exception from a signal handler came before or after a step, so nothing will resume the coroutine."""
        try:
            if hasattr(self, "_promise"):
                if self._turn == ENDED:
                    self._end(False, error)
                else:
                    self.close(error)
        finally:
            del error

    def close(self, reason: BaseException | None = None) -> None:
        """End a coroutine that waits and will not be resumed. Its promise is rejected with `reason`; without one,
        because the loop ends.
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
        except (KeyboardInterrupt, SystemExit) as error:  # these leave the loop, and also reject the promise
            self._end(False, error)
            raise
        except CancelledError as error:
            # the loop's end rejects all promises that are still pending with this error
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
        if together.over:  # no microtask will resume it, and `Coroutines._drop` closes it
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
        """The coroutine will not run again: settle its promise and forget it."""
        self._turn = ENDED
        try:
            self._all.running.discard(self)
            if self._unlink is not None:
                self._unlink()
            self._signal = self._unlink = self.interrupted_by = None
            promise = self._promise
            del self._promise  # Python checks for no signal between here and the calls below
            if fulfilled:
                promise._resolve(outcome)
            else:
                promise._reject(outcome)
        finally:
            del outcome


def _resume(running: Running, turn: int, throw: bool, value: Any) -> None:
    """The promise that a coroutine awaits has been fulfilled. On the loop's thread this takes the next step. Other
    threads, and calls after `over`, come here only because the loop takes no more microtasks; its end then cancels the
    coroutine on the loop's thread.
    """
    try:
        if turn == running._turn and not running._all.over and running._js.loop.is_loop_thread():
            running._step(throw, value)
    finally:
        del value


def _fail(running: Running, turn: int, promise: Promise[Any], reason: Any) -> None:
    """The promise that a coroutine awaits has been rejected: as `_resume`, with an exception."""
    try:
        _resume(running, turn, True, reason_as_exception(promise, reason))
    finally:
        del promise, reason


class Living[T]:
    """Weak references to objects, in the order in which they were added. Any thread, because each operation is one
    step of a dict. A collection on another thread may change a `weakref.WeakSet` while somebody iterates over it.
    """

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[T]] = {}

    def add(self, one: T) -> None:
        """Keep a weak reference until the object is discarded or collected. O(1)."""
        key = id(one)
        self._references[key] = weakref.ref(one, partial(self._references.pop, key))

    def discard(self, one: T) -> None:
        """Forget an object, if it is there. O(1)."""
        self._references.pop(id(one), None)

    def all(self) -> list[T]:
        """The objects that are alive. O(n)."""
        return [one for one in (reference() for reference in list(self._references.values())) if one is not None]


class Sleeping(Protocol):
    """A `JS.sleep`, which the loop's end rejects."""

    def end(self) -> None: ...


class Coroutines(Part):
    """The coroutines of one loop, and what ends with them: sleeps and asynchronous generators."""

    def __init__(self, loop: Lifecycle) -> None:
        self._loop = weakref.ref(loop)
        self._schedule = loop.schedule_microtask  # the method does not keep the loop alive
        self.current: Running | None = None  # the coroutine whose step the loop's thread is in
        self.running: Living[Running] = Living()  # those that wait
        self.sleeping: dict[Sleeping, None] = {}
        self.generators: Living[AsyncGenerator[Any, Any]] = Living()  # begun in one of the coroutines
        self.forgotten: dict[AsyncGenerator[Any, Any], None] = {}  # not ended, although nobody else refers to them
        self._hooks = (self.generators.add, self._forget)  # as `sys.set_asyncgen_hooks` takes them
        self.hooked = False
        self._ending = False  # has the end cancelled those that it found first?
        self.refusing = False  # are new coroutines refused?
        self.over = False  # no microtask will run any more

    make_view: ClassVar[Callable[[Lifecycle], Owner]]  # `JS`, which view.py sets

    @functools.cached_property
    def js(self) -> Owner:
        """The view for coroutines that were not spawned through one."""
        loop = self._loop()
        assert loop is not None
        return Coroutines.make_view(loop)

    def hook(self) -> tuple[Any, Any] | None:
        """Have the interpreter report the asynchronous generators that this thread begins. The hooks stay until
        `_left`: setting them for each step would cost 0.3 µs of its 1.5. Where other hooks are set already (asyncio's,
        on the thread of one of its loops), ours stay for one step only, and the caller restores the hooks that this
        returns.
        """
        theirs = sys.get_asyncgen_hooks()
        self.hooked = theirs == (None, None)  # first, because a signal handler may raise once the hooks are set
        sys.set_asyncgen_hooks(*self._hooks)
        return None if self.hooked else (theirs.firstiter, theirs.finalizer)

    def _left(self) -> None:
        """The thread leaves the loop."""
        if self.hooked:
            self.hooked = False
            sys.set_asyncgen_hooks(None, None)

    def _forget(self, generator: AsyncGenerator[Any, Any]) -> None:
        """The interpreter is about to collect a generator that has not ended. Any thread."""
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
        """Run a generator's `aclose` as a coroutine."""
        self.generators.discard(generator)
        promise: Promise[Any] = Promise(self.js)
        promise._react(None, partial(self._raised, generator))
        Running(self.js, _close(generator), promise, None).start()

    def _raised(self, generator: AsyncGenerator[Any, Any], error: Any) -> None:
        """A generator's `aclose` has raised."""
        if not isinstance(error, (KeyboardInterrupt, SystemExit, LoopTerminatedError)):  # they have left `run()`
            hooks.tell(self._loop(), error, "asynchronous generator", (generator,))

    def _cancel(self) -> bool:
        """The first call cancels the coroutines that there are. The second cancels those that were spawned meanwhile,
        and refuses new ones from then on: otherwise coroutines that spawn others when they are cancelled would keep the
        loop from ending.
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
        except LoopTerminatedError:  # `Loop.close` was called, and `_drop` ends them
            return False
        return self._wake_all() or bool(todo)

    def _drop(self) -> None:
        """End all that is left. If an exception leaves this, the next call goes on with the others."""
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
        """Reject all sleeps. True if there were any."""
        sleeping = list(self.sleeping)
        for sleep in sleeping:
            sleep.end()
        return bool(sleeping)


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


def coroutines_of(loop: Lifecycle) -> Coroutines:
    """The coroutines of a loop, made when they are first asked for. Any thread."""
    return loop._part(Coroutines)


def _promise(loop: Lifecycle) -> Wait | None:
    """A way to wait for the coroutine whose step this thread is in; None if it is in none."""
    current = coroutines_of(loop).current
    if current is None:
        return None
    promise, resolve, _reject = current._js.with_resolvers()
    return promise, resolve


ways.append(_promise)


class Spawning(StandIn):
    """What a view schedules instead of a coroutine function: each call spawns the function's coroutine."""

    __slots__ = ("_js",)
    callback: Callable[..., Coroutine[Any, Any, object]]

    def __init__(self, js: Owner, callback: Callable[..., Any]) -> None:
        super().__init__(callback)
        self._js = js

    def __call__(self, *args: object) -> None:
        self._js.spawn(self.callback(*args))


def spawning(js: Owner, callback: Callable[..., Any]) -> Callable[..., Any]:
    """What to schedule for a callback: a `Spawning` for a coroutine function, else the callback itself."""
    if isinstance(callback, Sited):
        inner = spawning(js, callback.callback)
        return callback if inner is callback.callback else Sited(inner, callback.site)
    call: object = type(callback).__call__
    if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(call):
        return Spawning(js, callback)
    return callback


def run_here(coroutine: CoroutineType[Any, Any, Any], kind: str, what: tuple[Any, ...]) -> None:
    """Spawn the coroutine that a callback, the first of `what`, has returned, on the loop that runs on this thread. An
    exception of the coroutine is reported as one of the callback. Without a loop on this thread, the coroutine is
    closed and reported as never awaited.
    """
    loop = running_here()
    if loop is None:
        coroutine.close()
        hooks.never_awaited(None, coroutine, kind, what)
        return

    def raised(reason: Any) -> None:
        if not isinstance(reason, (KeyboardInterrupt, SystemExit)):  # they have left `run()` already
            hooks.tell(loop, reason, kind, what)

    coroutines_of(loop).js.spawn(coroutine)._react(None, raised)


def spawn(js: Owner, coroutine: Coroutine[Any, Any, Any], signal: Signal | None) -> Promise[Any]:
    """Launch a coroutine. Returns the promise for its result."""
    promise: Promise[Any] = Promise(js)
    Running(js, coroutine, promise, signal).launch()
    try:
        return promise
    finally:
        del promise
