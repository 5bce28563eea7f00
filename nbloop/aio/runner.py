"""How a program gets the loop: `run` for a whole program, a factory for a runner."""

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
    """A new asyncio event loop over an `nbloop.Loop` of its own, for ``asyncio.Runner(loop_factory=...)`` and all else
    that takes a factory.

    Options as those of `nbloop.Loop`; all errors are its. Any thread.
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
    """`asyncio.run` over nbloop: run a coroutine in a new loop to its end, cancel what is left, close the loop.

    `debug` is asyncio's debug mode; the other options are those of `nbloop.Loop`. Raises what the coroutine raises,
    KeyboardInterrupt after Ctrl-C (which cancels it first), RuntimeError inside of a running loop.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("nbloop.run() cannot be called from a running event loop")
    factory = functools.partial(new_event_loop, name=name, metrics=metrics, recorder=recorder)
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)
