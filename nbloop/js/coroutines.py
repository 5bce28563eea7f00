"""``async def`` over promises: what `JS.spawn` runs.

An ECMAScript async function, step by step (27.7.5): the body starts at once, `await` takes one job for a promise of
the same view (27.7.5.3), and what it returns resolves the promise as any value would. A coroutine has no thread of
its own: each step runs on the loop's thread, as a microtask.
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

    __slots__ = ("_context", "_coroutine", "_js", "_promise", "_turn", "_unlink")

    def __init__(self, js: JS, coroutine: Coroutine[Any, Any, Any], promise: Promise[Any]) -> None:
        self._js = js
        self._coroutine = coroutine
        self._context = contextvars.copy_context()  # of whoever spawns it; what it sets there nobody else sees
        self._promise = promise
        # counts steps: a promise awaited before an abort interrupted it must not resume the coroutine again
        self._turn = 0
        self._unlink: Any = None

    def follow(self, signal: AbortSignal) -> None:
        """Throw the signal's reason into the coroutine where it waits, if it is aborted before the end."""
        self._unlink = signal.on_abort(self._aborted)

    def _aborted(self, reason: Any) -> None:
        with contextlib.suppress(LoopTerminatedError):  # nothing of it runs any more
            self._js.loop.schedule_microtask(self.interrupt, reason)

    def interrupt(self, reason: Any) -> None:
        """Resume with the reason raised at the current `await`. On the loop's thread."""
        self._resume(self._turn, True, reason_as_exception(reason))

    def start(self) -> None:
        """The first step, unless an abort came before it."""
        self._resume(0, False, None)

    def _step(self, throw: bool, value: Any) -> None:
        self._turn += 1
        turn = self._turn
        try:
            awaited = self._context.run(self._coroutine.throw if throw else self._coroutine.send, value)
        except StopIteration as stop:
            self._end()
            self._promise._resolve(stop.value)
            return
        except (KeyboardInterrupt, SystemExit) as error:  # which leave the loop; whoever waits is told, too
            self._end()
            self._promise._reject(error)
            raise
        except BaseException as error:
            self._end()
            self._promise._reject(error)
            return
        if not isinstance(awaited, Promise):
            self._js.loop.schedule_microtask(
                self._resume,
                turn,
                True,
                TypeError(f"a coroutine run by JS.spawn can await promises, futures and coroutines, not {awaited!r}"),
            )
            return
        resolved(self._js, awaited)._react(
            lambda outcome: self._resume(turn, False, outcome),
            lambda reason: self._resume(turn, True, reason_as_exception(reason)),
        )

    def _resume(self, turn: int, throw: bool, value: Any) -> None:
        if turn != self._turn or turn == ENDED:
            return
        if self._js.loop.is_loop_thread():
            self._step(throw, value)
        else:  # the loop has ended: nothing of the coroutine may run on the thread that found out
            self._end()
            self._promise._reject(value)

    def _end(self) -> None:
        self._turn = ENDED
        if self._unlink is not None:
            self._unlink()


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
    return promise
