"""How a program gets the loop: `run` for a whole program, a factory for runners, a policy for code that needs one."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Coroutine
from typing import Any, Literal

from ..unique import Unique
from .loop import EventLoop

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.14 deprecates policies
    _Policy: Any = asyncio.DefaultEventLoopPolicy


class EventLoopPolicy(Unique, _Policy):  # type: ignore[misc]
    """``asyncio.set_event_loop_policy(nbloop.EventLoopPolicy())`` makes each new asyncio loop an nbloop one, for
    programs that do not accept a loop factory. asyncio deprecates policies from Python 3.14 on.
    """

    _loop_factory = EventLoop


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
