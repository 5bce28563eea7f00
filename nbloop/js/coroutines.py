"""``async def`` over promises: what `JS.spawn` runs.

An ECMAScript async function, step by step (27.7.5): the body starts at once, `await` takes one job for a promise of
the same view (27.7.5.3), and what it returns resolves the promise as any value would. A coroutine has no thread of
its own: each step runs on the loop's thread, as a microtask.

The traceback of an exception keeps the frames that it has passed through, and each of them its callers'. So when a step
ends none of the frames here has anything that leads to an exception: what a failed coroutine held would stay until a
collection.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from .. import hooks
from ..debug import Sited, StandIn
from ..errors import LoopTerminatedError
from ..lifecycle import running_here
from .promise import Promise, reason_as_exception, resolved
from .tasks import outside_task

if TYPE_CHECKING:
    from ..loop import Loop
    from .abort import AbortSignal
    from .view import JS


ENDED = -1  # the turn of a coroutine that will not run again


class Running:
    """A coroutine between two steps."""

    __slots__ = ("_context", "_coroutine", "_js", "_promise", "_signal", "_turn", "_unlink")

    def __init__(self, js: JS, coroutine: Coroutine[Any, Any, Any], promise: Promise[Any]) -> None:
        self._js = js
        self._coroutine = coroutine
        self._context = contextvars.copy_context()  # the spawning one, copied: nobody else sees what it sets there
        self._promise = promise
        # counts steps: a promise awaited before an abort interrupted it must not resume the coroutine again
        self._turn = 0
        self._signal: AbortSignal | None = None
        self._unlink: Any = None

    def follow(self, signal: AbortSignal) -> None:
        """Throw the signal's reason into the coroutine where it waits, if it is aborted before the end."""
        self._signal = signal
        self._unlink = signal.on_abort(self._aborted)

    def _aborted(self, reason: Any) -> None:
        with contextlib.suppress(LoopTerminatedError):  # nothing of it runs any more
            self._js.loop.schedule_microtask(self.interrupt, reason)

    def interrupt(self, reason: Any) -> None:
        """Resume with the reason raised at the current `await`. On the loop's thread."""
        if self._signal is None:  # it has ended
            return
        try:
            self._resume(self._turn, True, reason_as_exception(self._signal, reason))
        finally:
            del reason

    def start(self) -> None:
        """The first step, unless an abort came before it."""
        with outside_task():  # which may be spawning it
            self._resume(0, False, None)

    def _step(self, throw: bool, value: Any) -> None:
        self._turn += 1
        turn = self._turn
        try:
            awaited = self._context.run(self._coroutine.throw if throw else self._coroutine.send, value)
        except StopIteration as stop:
            self._end()._resolve(stop.value)
            return
        except (KeyboardInterrupt, SystemExit) as error:  # which leave the loop; whoever waits is told, too
            self._end()._reject(error)
            raise
        except BaseException as error:
            self._end()._reject(error)
            return
        finally:
            del value
        if not isinstance(awaited, Promise):
            self._js.loop.schedule_microtask(
                self._resume,
                turn,
                True,
                TypeError(f"a coroutine run by JS.spawn can await promises, futures and coroutines, not {awaited!r}"),
            )
            return
        promise = resolved(self._js, awaited)

        def rejected(reason: Any) -> None:
            nonlocal promise
            try:
                self._resume(turn, True, reason_as_exception(promise, reason))
            finally:
                del promise, reason

        promise._react(lambda outcome: self._resume(turn, False, outcome), rejected)

    def _resume(self, turn: int, throw: bool, value: Any) -> None:
        if turn != self._turn or turn == ENDED:
            return
        try:
            if self._js.loop.is_loop_thread():
                self._step(throw, value)
            else:  # the loop has ended: nothing of the coroutine may run on the thread that found out
                self._end()._reject(value)
        finally:
            del value

    def _end(self) -> Promise[Any]:
        """It will not run again. Its promise, which it forgets."""
        self._turn = ENDED
        if self._unlink is not None:
            self._unlink()
        promise = self._promise
        self._signal = None
        del self._promise
        return promise


class Coroutines:
    """What the coroutines of one loop share: a view of its own, for those that no view has spawned."""

    def __init__(self, loop: Loop) -> None:
        from .view import JS

        self.js = JS(loop)


def coroutines_of(loop: Loop) -> Coroutines:
    """Made with the first coroutine. Any thread."""
    found = loop._coroutines
    if found is None:
        with loop._lock:
            found = loop._coroutines = loop._coroutines or Coroutines(loop)
    return found


class Spawning(StandIn):
    """What a view schedules in the place of a coroutine function: each call spawns its coroutine."""

    __slots__ = ("_js",)
    callback: Callable[..., Coroutine[Any, Any, object]]

    def __init__(self, js: JS, callback: Callable[..., Any]) -> None:
        super().__init__(callback)
        self._js = js

    def __call__(self, *args: object) -> None:
        self._js.spawn(self.callback(*args))


def spawning(js: JS, callback: Callable[..., Any]) -> Callable[..., Any]:
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


def spawn(js: JS, coroutine: Coroutine[Any, Any, Any], signal: AbortSignal | None) -> Promise[Any]:
    """Start a coroutine: on the loop's thread its first step is made at once, from another thread as a microtask."""
    promise: Promise[Any] = Promise(js)
    running = Running(js, coroutine, promise)
    if signal is not None:
        if signal.aborted:
            coroutine.close()
            promise._reject(signal.reason)
            return promise
        running.follow(signal)
    if js.loop.is_loop_thread():
        running.start()
    else:
        try:
            js.loop.schedule_microtask(running.start)
        except BaseException:
            running._end()
            coroutine.close()
            raise
    try:
        return promise
    finally:
        del promise
