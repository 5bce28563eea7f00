"""Two event loops behind one small interface, so that a workload is written once and runs on both; `peers` has more.

Each way of scheduling is the loop's own bound method, fetched once as a user would; nothing of this file is on a
measured path.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol

import nbloop

type Call = Callable[..., Any]


class Driven(Protocol):
    """A loop under measurement."""

    name: str
    thread: threading.Thread | None  # once started
    soon: Call  # schedule, on the loop's own thread
    soon_threadsafe: Call  # schedule, from any thread
    later: Call  # later(delay, callback) -> timer
    cancel: Call  # cancel(timer)

    def run(self, callback: Call) -> None:
        """Run `callback` and what it schedules for at once, on the calling thread, until `stop`."""

    def stop(self) -> None:
        """Make `run` return; on the loop's thread."""

    def watch(self, fd: int, callback: Call) -> None:
        """Call `callback` whenever the descriptor can be read."""

    def unwatch(self, fd: int) -> None:
        """Stop doing so."""

    def start(self) -> None:
        """Run in a separate thread from now on."""

    def close(self) -> None:
        """End the loop and the thread of `start`."""


class Nbloop:
    """nbloop with its defaults, or with `options`."""

    name = "nbloop"

    def __init__(self, **options: Any) -> None:
        self.loop = nbloop.Loop(**options)
        self.thread: threading.Thread | None = None
        self.soon: Call = self.loop.submit
        self.soon_threadsafe: Call = self.loop.submit
        self.later: Call = self.loop.schedule_timer
        self.cancel: Call = self.loop.cancel_timer

    def watch(self, fd: int, callback: Call) -> None:
        """The callback is given the descriptor and its events, which asyncio's callbacks have to know."""
        self.loop.register_fd(fd, nbloop.IOEvents.READ, callback)

    def unwatch(self, fd: int) -> None:
        self.loop.unregister_fd(fd)

    def run(self, callback: Call) -> None:
        self.loop.submit(callback)
        self.loop.run()

    def stop(self) -> None:
        self.loop.stop()

    def start(self) -> None:
        self.thread = self.loop.start()

    def close(self) -> None:
        self.loop.close()
        if self.thread is not None:
            self.thread.join()


class Asyncio:
    """asyncio's default loop, not in debug mode."""

    name = "asyncio"

    def __init__(self) -> None:
        self.loop = self.make()
        self.thread: threading.Thread | None = None
        self.soon: Call = self.loop.call_soon
        self.soon_threadsafe: Call = self.loop.call_soon_threadsafe
        self.later: Call = self.loop.call_later
        self.cancel: Call = self._cancel()

    def make(self) -> asyncio.AbstractEventLoop:
        """The loop itself."""
        return asyncio.new_event_loop()

    def watch(self, fd: int, callback: Call) -> None:
        self.loop.add_reader(fd, callback)

    def unwatch(self, fd: int) -> None:
        self.loop.remove_reader(fd)

    def _cancel(self) -> Call:
        return asyncio.TimerHandle.cancel

    def run(self, callback: Call) -> None:
        self.loop.call_soon(callback)
        self.loop.run_forever()

    def stop(self) -> None:
        self.loop.stop()

    def start(self) -> None:
        running = threading.Event()
        self.loop.call_soon(running.set)
        self.thread = threading.Thread(target=self.loop.run_forever, name=self.name, daemon=True)
        self.thread.start()
        running.wait()

    def close(self) -> None:
        if self.thread is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
        self.loop.close()


class NbloopAio(Asyncio):
    """asyncio's interface on nbloop's core (`nbloop.aio`)."""

    name = "nbloop.aio"

    def make(self) -> asyncio.AbstractEventLoop:
        return nbloop.new_event_loop()

    def _cancel(self) -> Call:
        return nbloop.aio.handles.TimerHandle.cancel
