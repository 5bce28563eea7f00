"""nbloop and asyncio behind one small interface, so that both run the same demo code.

Each engine is a loop with its natural cross-thread call and its natural timers; nothing is wrapped in the hot path:
`entrance()` returns the bound method itself (``Loop.submit``, ``Producer.submit``, ``call_soon_threadsafe``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol

from .. import Loop

type Entrance = Callable[..., object]
type Thunk = Callable[[], object]


class Engine(Protocol):
    """A loop that the demo can drive."""

    name: str

    def entrance(self) -> Entrance:
        """The function that one producer thread calls with ``callback, *args``."""

    def later(self, delay: float, callback: Thunk) -> object:
        """Call `callback` once, `delay` seconds from now. The loop's thread."""

    def every(self, period: float, callback: Thunk) -> object:
        """Call `callback` every `period` seconds until the loop ends. Before the loop runs, or on its thread."""

    def run(self) -> None:
        """Run on this thread until `stop`."""

    def start(self) -> None:
        """Run on a separate thread until `close`."""

    def stop(self) -> None:
        """Make `run` return. The loop's thread."""

    def close(self) -> None:
        """End the loop and release its resources. From another thread, or after `run`."""


class Nbloop:
    """`nbloop.Loop` through `submit`."""

    name = "nbloop"

    def __init__(self) -> None:
        self.loop = Loop()

    def entrance(self) -> Entrance:
        return self.loop.submit

    def later(self, delay: float, callback: Thunk) -> object:
        return self.loop.schedule_timer(delay, callback)

    def every(self, period: float, callback: Thunk) -> object:
        return self.loop.schedule_interval(period, callback)

    def run(self) -> None:
        self.loop.run()

    def start(self) -> None:
        self.loop.start()

    def stop(self) -> None:
        self.loop.stop()

    def close(self) -> None:
        self.loop.close()


class NbloopProducers(Nbloop):
    """`nbloop.Loop` through one handle per producer thread."""

    name = "producer()"

    def entrance(self) -> Entrance:
        return self.loop.producer().submit


class Asyncio:
    """asyncio's default loop through `call_soon_threadsafe`."""

    name = "asyncio"

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    def entrance(self) -> Entrance:
        return self.loop.call_soon_threadsafe

    def later(self, delay: float, callback: Thunk) -> object:
        return self.loop.call_later(delay, callback)

    def every(self, period: float, callback: Thunk) -> object:
        def again(due: float) -> None:
            self.loop.call_at(due + period, again, due + period)
            callback()

        first = self.loop.time() + period
        return self.loop.call_at(first, again, first)

    def run(self) -> None:
        self.loop.run_forever()

    def start(self) -> None:
        self._thread = threading.Thread(target=self.loop.run_forever, name="asyncio", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.loop.stop()

    def close(self) -> None:
        if self._thread is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        self.loop.close()
