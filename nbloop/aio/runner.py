"""How a program gets the loop: `run` for a whole program, a factory for runners."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any, Literal

from .loop import EventLoop


def new_event_loop(
    *,
    name: str | None = None,
    metrics: bool | Literal["shared"] | None = None,
    recorder: int | None = None,
) -> EventLoop:
    """A new asyncio event loop over its own `nbloop.Loop`, for ``asyncio.Runner(loop_factory=...)`` and other users of
    a factory.

    The options `name`, `metrics` and `recorder`, and the errors, are those of `nbloop.Loop`. Any thread.

    O(1): it maps memory and opens descriptors.

    >>> with asyncio.Runner(loop_factory=new_event_loop) as runner:
    ...     runner.run(asyncio.sleep(0, "done"))
    'done'
    """
    return EventLoop(name=name, metrics=metrics, recorder=recorder)


def run[T](
    main: Coroutine[Any, Any, T],
    *,
    debug: bool | None = None,
    name: str | None = None,
    metrics: bool | Literal["shared"] | None = None,
    recorder: int | None = None,
) -> T:
    """`asyncio.run` over nbloop: run a coroutine to its end in a new loop, cancel remaining tasks, close the loop.

    `debug` is asyncio's debug mode; `name`, `metrics` and `recorder` are those of `nbloop.Loop`. Raises what the
    coroutine raises, KeyboardInterrupt after Ctrl-C (which first cancels it), RuntimeError inside a running loop.

    Any thread that runs no asyncio loop; Ctrl-C works on the main thread only. In addition to `main` it takes the time
    to make and end a loop, and O(tasks) for the tasks that it cancels.

    >>> import nbloop
    >>> async def main():
    ...     return await asyncio.sleep(0.001, "done")
    >>> nbloop.run(main())
    'done'
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("nbloop.run() cannot be called from a running event loop")
    factory = functools.partial(new_event_loop, name=name, metrics=metrics, recorder=recorder)
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)
