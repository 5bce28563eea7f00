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
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ..errors import LoopTerminatedError
from .promise import Promise, reason_as_exception, resolved

if TYPE_CHECKING:
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
