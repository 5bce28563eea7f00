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

    The options and errors are those of `nbloop.Loop`. Any thread.
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

    `debug` is asyncio's debug mode; the other options are those of `nbloop.Loop`. Raises what the coroutine raises,
    KeyboardInterrupt after Ctrl-C (which first cancels it), RuntimeError inside a running loop.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("nbloop.run() cannot be called from a running event loop")
    factory = functools.partial(new_event_loop, name=name, metrics=metrics, recorder=recorder)
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)
