"""How the coroutine that runs now waits for a callback: in asyncio by a future, in `nbloop.js` by a promise.

Problem: what a coroutine of either kind may await belongs to modules that import the loop, so the loop's own parts
cannot name it. Idea: each kind registers here a function that makes one of its coroutines wait.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

type Wait = tuple[Awaitable[None], Callable[[], object]]

ways: list[Callable[[Any], Wait | None]] = []  # by loop; None if no coroutine of that kind runs


def set_done(future: Any) -> None:
    """Complete an asyncio future that only signals an event, unless it is done: its waiter may have been cancelled. The
    loop's thread.
    """
    try:
        future.set_result(None)
    except sys.modules["asyncio"].InvalidStateError:  # a signal handler could cancel it even after a check
        pass


def waiting(loop: Any, what: str) -> Wait:
    """An awaitable for the running coroutine, and the function that resumes it: call that once, on the loop's thread.
    RuntimeError unless a coroutine of this loop runs.
    """
    asyncio = sys.modules.get("asyncio")
    running = asyncio._get_running_loop() if asyncio is not None else None
    if running is not None and getattr(running, "core", None) is loop:
        future = running.create_future()
        return future, partial(set_done, future)
    if running is None and loop.is_loop_thread():
        for way in ways:
            found = way(loop)
            if found is not None:
                return found
    raise RuntimeError(f"{what} is taken from by coroutines of {loop.name} only, of asyncio or of js.spawn")
