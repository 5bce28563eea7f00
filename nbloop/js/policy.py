"""What the kernels leave to Python: the policy of promises, as functions that a view's words name.

Problem: the kernels settle a promise with a plain value, and run its reactions, without knowing JavaScript. The rest
needs Python: what a promise may be resolved with besides a plain value, what a handler has raised, and what becomes of
handlers when the loop has ended. Idea: the kernels call these functions only in such cases, so a chain of plain values
never reaches them.

A caller of `_follow`, `adopt_future` or `settle_by` has the sole right to settle the promise, or a `Resolver` that
checks it. A resolution's own code (its ``__class__`` and its `then`) runs before anything is scheduled, and once. The
number of jobs is the standard's: one before a thenable's `then` is called, and those that this `then` takes.

It loses where every handler returns an object that Python must test for being a thenable.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import LoopTerminatedError
from ..kernels.promises.classes import Eventual, Resolver, ResultSlots, View, make_view
from .promise import Owner, Promise, made
from .tasks import is_future, when_done

if TYPE_CHECKING:
    import asyncio


type AnyFuture = concurrent.futures.Future[Any] | asyncio.Future[Any]


def _follow(promise: Promise[Any], resolution: Any) -> None:
    """The body of a promise resolve function (27.2.1.3.2) for a value that is not plain. The caller must have the sole
    right to settle the promise. If a job is needed but the loop has ended, the promise is rejected.
    """
    try:
        _look_into(promise, resolution)
    except LoopTerminatedError as error:
        promise._reject(error)
    finally:  # as in `settle_by`
        del promise, resolution


def _look_into(promise: Promise[Any], resolution: Any) -> None:
    if resolution is promise:
        promise._reject(TypeError("a promise cannot be resolved with itself"))
        return
    js: Owner = promise._view.owner
    # First all that calls the value's own code, so that nothing has been scheduled if that raises.
    try:
        kind, then = _examined(resolution)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        promise._reject(error)
        del promise, resolution  # as in `settle_by`
        return
    if kind is Promise:
        # Its `then` is ours: the job does what calling it with two resolving functions would, without making them.
        js.loop.schedule_microtask(resolution._react, promise._resolve, promise._reject)
    elif kind is concurrent.futures.Future:
        try:
            adopt_future(promise, resolution)
        except RuntimeError as error:  # the loop of an asyncio future is closed
            promise._reject(error)
            del promise, resolution  # as in `settle_by`
    elif kind is Awaitable:
        js.queue_microtask(_follow_awaitable, promise, resolution)
    elif callable(then):
        js.queue_microtask(_thenable_job, promise, then)
    else:
        promise._fulfill(resolution)


def _examined(value: Any) -> tuple[Any, Any]:
    """What a resolution is, and its `then` if it is none of ours. Raises what its ``__class__`` or `then` raises."""
    try:
        if isinstance(value, Promise):
            return Promise, None
        if isinstance(value, concurrent.futures.Future) or is_future(value):
            return concurrent.futures.Future, None
        if isinstance(value, Awaitable):
            return Awaitable, None
        return object, getattr(value, "then", None)  # read only once
    finally:
        del value  # as in `settle_by`


def _thenable_job(promise: Promise[Any], then: Callable[..., Any]) -> None:
    """NewPromiseResolveThenableJob (27.2.2.2)."""
    resolver = Resolver(promise)
    del promise
    settle_by(resolver, then)


def settle_by(resolver: Resolver, executor: Callable[..., Any]) -> None:
    """Call ``executor(resolve, reject)``; an exception rejects. Its traceback keeps this frame and its callers' alive:
    they must not refer to the promise, or what the executor held would stay until a collection.
    """
    try:
        executor(resolver.resolve, resolver.reject)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        resolver.reject(error)  # this forgets the promise


def _follow_awaitable(promise: Promise[Any], awaitable: Awaitable[Any]) -> None:
    async def wait() -> Any:
        return await awaitable

    promise._view.owner.spawn(wait())._react(promise._resolve, promise._reject)


def adopt_future(promise: Promise[Any], future: AnyFuture) -> None:
    """Settle as a future does. Any thread."""

    def done(future: AnyFuture) -> None:
        """In whichever thread completes the future, or on its loop's."""
        if future.cancelled():
            promise._reject(concurrent.futures.CancelledError())
            return
        error = future.exception()
        if error is not None:
            promise._reject(error)
        else:
            promise._resolve(future.result())

    if isinstance(future, concurrent.futures.Future):
        future.add_done_callback(done)
    elif future.done():  # its loop may run no more
        done(future)
    else:
        when_done(future, done)


def _unhandled(promise: Promise[Any]) -> None:
    promise._view.owner.rejections.note(promise)


class Resumed:
    """What a hidden reaction resumes: the first argument of its handlers, which are `partial`."""

    __slots__ = ()

    def give_up(self, error: BaseException) -> None:
        """An exception, such as a signal handler's, came between the reaction and what it was to resume."""


def _raised(reaction: Any, error: BaseException) -> None:
    """A handler raised: reject its promise. A hidden reaction passes its handler here. Its exception is dropped, but
    the object that the handler was to resume gives up, so that nothing waits for it for ever.
    """
    if isinstance(reaction, Promise):
        if not isinstance(error, (KeyboardInterrupt, SystemExit)):
            reaction._reject(error)
            return
    elif isinstance(reaction, partial) and reaction.args and isinstance(reaction.args[0], Resumed):
        reaction.args[0].give_up(error)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


class _Losing(threading.local):
    waiting: list[Eventual] | None = None


_losing = _Losing()


def _lost(reaction: Eventual, error: BaseException) -> None:
    """Reject a reaction that will never run because the loop is gone, and what waits for it, to the end of the chain.
    Rejecting one calls this again for the next, so a loop replaces recursion, for which a chain may be too long.
    """
    if _losing.waiting is not None:
        _losing.waiting.append(reaction)
        return
    waiting = _losing.waiting = [reaction]
    try:
        while waiting:
            reaction = waiting.pop()
            if isinstance(reaction, Promise):
                # a context and handlers, which live no longer than they can be called
                for slot in ("_link", "_on_fulfilled", "_on_rejected"):
                    with contextlib.suppress(AttributeError):
                        delattr(reaction, slot)
                reaction._handled = True  # no handler could do anything about this rejection
                reaction._reject(error)
                continue
            handler = getattr(reaction, "_on_rejected", None)  # the handler of a combinator, an adoption or a coroutine
            if isinstance(handler, ResultSlots):
                handler.put(reaction._reactions, error)
            elif handler is not None:
                handler(error)
    finally:
        _losing.waiting = None


def _misused(instance: object) -> None:
    if isinstance(instance, Resolver):
        raise TypeError("a resolving function takes at most one argument")
    raise TypeError("then takes at most two arguments, on_fulfilled and on_rejected")


def view_of(js: Owner, spawning: Callable[[Callable[..., Any]], Callable[..., Any]]) -> View:
    """What kernels know of a view. `spawning` says what to schedule for a callback."""
    hooks = {
        "follow": _follow,
        "unhandled": _unhandled,
        "raised": _raised,
        "lost": _lost,
        "made": made if js.debug else None,
        "misused": _misused,
        "spawning": spawning,
    }
    return make_view(js.loop._state, js, Promise, hooks, ("on_fulfilled", "on_rejected"))
