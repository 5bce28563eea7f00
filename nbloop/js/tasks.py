"""Promises and asyncio: `await promise` in a task, and a promise of an asyncio future.

Problem: a coroutine yields what it waits for to its runner, and the two possible runners, a view and an asyncio task,
each understand only their own futures. Idea: inside a task asyncio has a current task, and inside a coroutine of
`JS.spawn` it has none, because the coroutine's steps are microtasks. The one exception is its first step, which `spawn`
may run in the middle of a task's step; during that time the current task is suspended (`outside_task`).

A program that has not imported asyncio has no tasks, and pays for one look-up in `sys.modules`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures


class Promised(Protocol):
    """A promise, as a task that waits for it sees it."""

    def future(self) -> concurrent.futures.Future[Any]: ...


def _loop_of_task() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop of the task whose step the calling thread is running; None if there is none."""
    module = sys.modules.get("asyncio")
    if module is None:
        return None
    loop: asyncio.AbstractEventLoop | None = module._get_running_loop()
    return loop if loop is not None and module.current_task(loop) is not None else None


def wait_in_task(promise: Promised) -> Generator[Any, Any, Any] | None:
    """What a task must yield to wait for a promise; None outside of tasks."""
    loop = _loop_of_task()
    if loop is None:
        return None
    future = sys.modules["asyncio"].wrap_future(promise.future(), loop=loop)
    waiting: Generator[Any, Any, Any] = future.__await__()
    return waiting


@contextlib.contextmanager
def outside_task() -> Iterator[None]:
    """Suspend the current asyncio task during the block, which runs other code in the middle of its step."""
    loop = _loop_of_task()
    if loop is None:
        yield
        return
    module = sys.modules["asyncio"]
    task = module.current_task(loop)
    module._leave_task(loop, task)  # documented, under 'Extending', for libraries that have tasks of another kind
    try:
        yield
    finally:
        module._enter_task(loop, task)


def is_future(value: object) -> bool:
    """Whether it is an asyncio future, which includes tasks."""
    module = sys.modules.get("asyncio")
    return module is not None and module.isfuture(value)


def when_done(future: asyncio.Future[Any], callback: Callable[[asyncio.Future[Any]], object]) -> None:
    """Call ``callback(future)`` on its loop's thread when it is done. Any thread. Raises RuntimeError if its loop is
    closed.
    """
    loop = future.get_loop()
    if sys.modules["asyncio"]._get_running_loop() is loop:
        future.add_done_callback(callback)
    else:
        loop.call_soon_threadsafe(future.add_done_callback, callback)
