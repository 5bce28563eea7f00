"""A call from one worker of `nbloop.serve` to another: a coroutine that runs there and is awaited here.

Problem: the two ends live on two threads, and either may give up first: the caller is cancelled, or the other loop
ends. Idea: only one of the two loops writes each word of a call, and the loops send each other steps through the queues
of their cores, which keep the order. Only the caller's loop settles the outcome, once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import LoopTerminatedError

if TYPE_CHECKING:
    from .loop import EventLoop


class Outcome(asyncio.Future[Any]):
    """The future that the caller awaits. Cancelling it cancels the call, as it does with a task."""

    call: Call

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        self.call.ask_to_cancel(msg)
        return True


class Callee(Protocol):
    """A worker, as calls to it see it."""

    loop: EventLoop
    _leaving: bool
    _calls: dict[Call, None]


class Call:
    """A coroutine function that another loop is to run."""

    __slots__ = ("args", "asked", "context", "function", "message", "outcome", "reached", "task", "worker")

    def __init__(self, worker: Callee, here: EventLoop, function: Callable[..., Any], args: tuple[object, ...]) -> None:
        self.worker = worker  # runs it
        self.function = function
        self.args = args
        self.context: Context = copy_context()
        self.outcome = Outcome(loop=here)
        self.outcome.call = self
        self.task: asyncio.Task[Any] | None = None
        self.asked = False  # has the caller asked to cancel it?
        self.message: Any = None  # of its last `cancel`, by which anyio recognises its own
        self.reached = False  # did that reach a task that had not ended?

    def begin(self) -> None:
        """Start the task. On the other loop."""
        try:
            coroutine = self.context.run(self.function, *self.args)
            task = asyncio.Task(coroutine, loop=self.worker.loop, context=self.context, eager_start=True)
        except BaseException as error:
            self._deliver(None, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return
        if task.done():  # without having waited for anything
            self._ended(task)
        else:
            self.task = task
            task.add_done_callback(self._ended)

    def ask_to_cancel(self, message: Any) -> None:
        """On the caller's loop."""
        self.asked, self.message = True, message
        with contextlib.suppress(LoopTerminatedError):  # the other loop has ended, and `abandon` reports it
            self.worker.loop.core.submit(self._cancel, message)

    def _cancel(self, message: Any) -> None:
        if self.task is not None:
            self.reached = self.task.cancel(message)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        try:
            result = task.result()
        except asyncio.CancelledError as error:
            if self.worker._leaving and not self.asked:
                self.abandon()
            else:
                self._deliver(None, asyncio.CancelledError(*error.args))
        except BaseException as error:
            self._deliver(None, error)
        else:
            self._deliver(result, None)

    def abandon(self) -> None:
        """The other loop ends."""
        self._deliver(None, LoopTerminatedError(f"{self.worker!r} has ended"))

    def _deliver(self, result: Any, error: BaseException | None) -> None:
        self.worker._calls.pop(self, None)
        self.task = None
        here: Any = self.outcome.get_loop()
        with contextlib.suppress(LoopTerminatedError):  # nobody waits any more
            here.core.submit(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        """On the caller's loop."""
        outcome = self.outcome
        if outcome.done():
            return
        # The call was asked to cancel, but had already ended by itself: the caller's cancellation must not be lost.
        if isinstance(error, asyncio.CancelledError):
            asyncio.Future.cancel(outcome, error.args[0] if error.args else None)
        elif self.asked and not self.reached:
            asyncio.Future.cancel(outcome, self.message)
        elif error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)
        del result, error  # an exception's traceback may include this frame
