"""Scopes that may interrupt a coroutine: `JS.timeout` and `JS.group`, which are asyncio's `timeout` and `TaskGroup` for
coroutines of `JS.spawn`.

Problem: a scope that catches a `CancelledError` must know whether it is its own, or one from outside that must
propagate. Idea, as in asyncio: a coroutine counts the interruptions that have not been taken back. A scope remembers
the count when it is entered, and takes its own interruption back when it is left: if more remain than at the entry, the
coroutine is being cancelled from outside, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self

from ..errors import LoopTerminatedError
from ..unique import Unique
from .abort import check_limit
from .coroutines import Running, coroutines_of
from .promise import CancelledError, Owner, Promise, RejectedError


class Scope(Unique):
    """An ``async with`` block in a coroutine of `JS.spawn`, entered once. On the loop's thread."""

    def __init__(self, js: Owner) -> None:
        self._js = js
        self._running: Running | None = None
        self._before = 0
        self._interrupted = False
        self._used = False

    def _enter(self) -> None:
        name = f"js.{type(self).__name__.lower()}()"
        if self._used:
            raise RuntimeError(f"{name} has been entered already")
        loop = self._js.loop
        running = coroutines_of(loop).current if loop.is_loop_thread() else None
        if running is None:
            raise RuntimeError(f"{name} is for coroutines that js.spawn runs on {loop.name}")
        self._used = True
        self._running = running
        self._before = running.interruptions

    def _interrupt(self, error: CancelledError) -> None:
        """Raise `error` where the coroutine waits, unless the loop's end has cancelled it."""
        running = self._running
        if running is not None and not running.ending:
            self._interrupted = True
            try:
                running.interrupt(error)
            finally:
                del error, running  # as in `Running`

    def _leave(self) -> bool:
        """Take the interruption back; return whether there was one, and the coroutine is not cancelled from outside."""
        running, self._running = self._running, None
        if running is None or not self._interrupted:
            return False
        running.interruptions -= 1
        return running.interruptions <= self._before and not running.ending


class Timeout(Scope):
    """Made by `JS.timeout`: an asynchronous context manager that limits the time of its block.

    When the time is over, `CancelledError` is raised where the coroutine waits in the block, and leaves the block as
    TimeoutError. If the coroutine is cancelled from outside at the same time, `CancelledError` leaves it. Code that
    does not await is not interrupted. At the loop's end no timer runs, so a block that is entered then has no limit.

    On the loop's thread. RuntimeError if it is entered twice, or outside of a coroutine of `JS.spawn`. To enter and to
    leave takes a timer's O(log timers).

    >>> import nbloop
    >>> from nbloop.js import JS
    >>> async def slow(js):
    ...     try:
    ...         async with js.timeout(1):
    ...             await js.sleep(60_000)
    ...     except TimeoutError as error:
    ...         return str(error)
    >>> loop = nbloop.Loop(auto_exit=True)
    >>> promise = JS(loop).spawn(slow(JS(loop)))
    >>> loop.run()
    >>> promise.result()
    'not done within 1 ms'
    """

    def __init__(self, js: Owner, ms: float) -> None:
        super().__init__(js)
        self._ms = check_limit("ms", ms)
        self._timer: int | None = None

    @property
    def expired(self) -> bool:
        """Whether it has interrupted the block."""
        return self._interrupted

    async def __aenter__(self) -> Self:
        self._enter()
        with contextlib.suppress(LoopTerminatedError):
            self._timer = self._js.set_timeout(self._expire, self._ms)
        return self

    def _expire(self) -> None:
        self._interrupt(CancelledError(f"the time-out of {self._ms:g} ms is over"))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._js.clear_timeout(self._timer)
        if self._leave() and isinstance(error, CancelledError):
            raise TimeoutError(f"not done within {self._ms:g} ms") from error


class Group(Scope):
    """Made by `JS.group`: an asynchronous context manager that ends when all coroutines spawned in it have ended.

    The first that raises cancels the others, and the block if it still waits. When all have ended, what they and the
    block have raised, except for `CancelledError`, leaves the block as an `ExceptionGroup`. If the block raises, or the
    coroutine is cancelled from outside, all are cancelled. `asyncio.TaskGroup` is the model.

    On the loop's thread. Each coroutine costs O(1), and to cancel them O(coroutines).

    >>> import nbloop
    >>> from nbloop.js import JS
    >>> async def both(js):
    ...     async with js.group() as group:
    ...         one, two = group.spawn(one_of(js, 1)), group.spawn(one_of(js, 2))
    ...     return await one + await two
    >>> async def one_of(js, number):
    ...     await js.sleep(number)
    ...     return number
    >>> loop = nbloop.Loop(auto_exit=True)
    >>> promise = JS(loop).spawn(both(JS(loop)))
    >>> loop.run()
    >>> promise.result()
    3
    """

    def __init__(self, js: Owner) -> None:
        super().__init__(js)
        self._children: dict[Running, None] = {}
        self._errors: list[BaseException] = []
        self._leaving = False
        self._cancelling = False
        self._wake: Any = None

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    def spawn[T](self, coroutine: Coroutine[Any, Any, T]) -> Promise[T]:
        """`JS.spawn` in this group; returns a promise of the coroutine's result. The group handles its exceptions: they
        are not unhandled rejections. On the loop's thread, from the block or from coroutines of the group.

        Raises TypeError, and RuntimeError before the block, after it, and when the group has been cancelled: then the
        coroutine is closed.
        """
        if not isinstance(coroutine, Coroutine):
            raise TypeError(f"spawn takes a coroutine, not {coroutine!r}")
        problem = None
        if not self._js.loop.is_loop_thread():
            problem = "is for its loop's thread"
        elif self._running is None or (self._leaving and not self._children):
            problem = "has ended" if self._used else "has not been entered"
        elif self._cancelling:
            problem = "has been cancelled"
        if problem is not None:
            coroutine.close()
            raise RuntimeError(f"the group {problem}")
        promise: Promise[T] = Promise(self._js)
        child = Running(self._js, coroutine, promise, None)
        self._children[child] = None
        promise._react(partial(self._ended, child), partial(self._failed, child))
        try:
            child.launch()
            return promise
        except LoopTerminatedError:
            self._children.pop(child, None)
            raise
        finally:  # a traceback would keep the promise alive, and the promise the exception
            del promise

    def _ended(self, child: Running, _value: object) -> None:
        if child in self._children:
            del self._children[child]
            if self._wake is not None and not self._children:
                self._wake()

    def _failed(self, child: Running, reason: Any) -> None:
        by_the_end = child.ending and isinstance(reason, LoopTerminatedError)
        first = False
        if child in self._children and not by_the_end and not isinstance(reason, CancelledError):
            self._errors.append(reason if isinstance(reason, BaseException) else RejectedError(reason))
            first = not self._cancelling
        self._ended(child, None)
        del child, reason  # the traceback of what is raised below keeps this frame
        if first:
            self._cancel()
            if not self._leaving:
                self._interrupt(CancelledError("a coroutine of the group has failed"))

    def _cancel(self) -> None:
        """Cancel the coroutines that have not ended, each in a microtask, so an exception of one spares none."""
        self._cancelling = True
        with contextlib.suppress(LoopTerminatedError):  # the loop's end cancels them
            for child in self._children:
                self._js.loop.schedule_microtask(child.interrupt, CancelledError("the group is cancelled"))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            await self._wait(error)
        finally:  # the traceback of what is raised keeps this frame
            self._errors = []
            self._running = None
            del error

    async def _wait(self, error: BaseException | None) -> None:
        running = self._running
        assert running is not None
        self._leaving = True
        outside = error if isinstance(error, CancelledError) or error is running.interrupted_by else None
        if error is not None and not self._cancelling:
            self._cancel()
        while self._children:
            promise, self._wake, _reject = self._js.with_resolvers()
            try:
                await promise
            except GeneratorExit:
                raise
            except BaseException as interruption:  # from outside: nothing rejects the promise
                if outside is None:
                    outside = interruption
                if not self._cancelling:
                    self._cancel()
        try:
            if self._leave():
                outside = None
            leaving = [one for one in self._errors if isinstance(one, (KeyboardInterrupt, SystemExit))]
            if leaving:
                raise leaving[0]
            if outside is not None and not self._errors:
                raise outside
            if error is not None and error is not outside and not isinstance(error, CancelledError):
                self._errors.append(error)
            if self._errors:
                raise BaseExceptionGroup("unhandled errors in a group", self._errors) from None
        finally:
            del outside, error, running
