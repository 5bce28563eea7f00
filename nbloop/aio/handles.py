"""What `call_soon` and its like return: asyncio's own handles, which the core can call.

asyncio's constructor asks the loop for its debug mode and looks for a context; both are known here, and without them
`call_soon` takes four fifths of its time. Cancelling stays asyncio's. As the mark is set before callback and arguments
are taken away, and looked at after they were read, a handle may be cancelled from any thread: it runs with what it was
given, or not at all.

A task needs no handle. asyncio's tasks are C, schedule each of their steps through `call_soon`, and drop what it
returns; where that is seen to be the caller, its step goes to the core as it is, without a Python frame on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

from ..unique import Unique

if TYPE_CHECKING:
    from .loop import EventLoop


def run(handle: asyncio.Handle) -> None:
    """Run a handle of any kind, unless it was cancelled. SystemExit and KeyboardInterrupt leave the loop."""
    of: Any = handle
    callback, args = of._callback, of._args
    if of._cancelled:
        return
    try:
        of._context.run(callback, *args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        of._loop._callback_raised(of, callback, args, error)
    del handle, of, callback, args  # the exception may be kept, and its traceback keeps this frame


def _type_of_steps() -> type | None:
    """Of the object that is a C task's next step, which only its call of `call_soon` can show. None if asyncio's tasks
    are Python's: their steps are methods, and get handles.
    """
    seen: list[Any] = []

    class Loop:
        def get_debug(self) -> bool:
            return False

        def call_soon(self, callback: object, *_args: object, **_context: object) -> None:
            seen.append(callback)

    async def nothing() -> None: ...

    coroutine = nothing()
    task: Any = asyncio.Task(coroutine, loop=Loop())  # type: ignore[arg-type]
    task._log_destroy_pending = False
    coroutine.close()
    kind = type(seen.pop())
    return kind if kind.__module__ == "_asyncio" else None


Step = _type_of_steps()


def is_wakeup(callback: object) -> bool:
    """Is this what a C task has a future call when that is done?"""
    return type(callback) is BuiltinFunctionType and callback.__name__ == "TaskWakeup"


class Handle(Unique, asyncio.Handle):
    """A callback of `call_soon`. `cancel` from any thread."""

    __slots__ = ()
    __call__ = run

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: EventLoop, context: Context
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = False
        self._repr = self._source_traceback = None


class TimerHandle(Handle, asyncio.TimerHandle):
    """A callback of `call_at`. `cancel` from any thread; it leaves nothing behind in the loop."""

    __slots__ = ()

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: EventLoop, context: Context
    ) -> None:
        Handle.__init__(self, callback, args, loop, context)
        self._when = when
        self._scheduled = 0  # the core's number of the timer, which is true for asyncio too
