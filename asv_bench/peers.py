"""What nbloop is compared with, apart from asyncio: other loops, and the least that could be called one.

A peer that is not installed is None in `PEERS`, and its rows say so. A peer has no method for what it cannot do (trio
has no timers outside its tasks).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.util
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .drive import Asyncio, Call
from .measure import Probe


def installed(package: str) -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec(package) is not None


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    return importlib.metadata.version(package) if installed(package) else None


class Packaged(Asyncio):
    """The loop of a package, which has its name."""

    def make(self) -> asyncio.AbstractEventLoop:
        return importlib.import_module(self.name).new_event_loop()  # type: ignore[no-any-return]

    def _cancel(self) -> Call:
        timer = self.loop.call_later(1000, print)  # not every package names the class
        timer.cancel()
        return type(timer).cancel


class Uvloop(Packaged):
    """asyncio over libuv, in Cython."""

    name = "uvloop"


class Zuvloop(Packaged):
    """asyncio over libuv, in Zig."""

    name = "zuvloop"


class Rloop(Packaged):
    """asyncio, in Rust."""

    name = "rloop"


class Consumer(Protocol):
    """Something that runs callbacks in its own thread."""

    name: str
    thread: threading.Thread | None
    soon_threadsafe: Call

    def start(self) -> None:
        """Run from now on."""

    def close(self) -> None:
        """End."""


class Trio:
    """trio's way in for other threads, `run_sync_soon`."""

    name = "trio"

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.soon_threadsafe: Call

    def start(self) -> None:
        import trio

        running = threading.Event()

        async def main() -> None:
            self.soon_threadsafe = trio.lowlevel.current_trio_token().run_sync_soon
            self._end = trio.Event()
            running.set()
            await self._end.wait()

        self.thread = threading.Thread(target=trio.run, args=(main,), name="trio", daemon=True)
        self.thread.start()
        running.wait()

    def close(self) -> None:
        assert self.thread is not None
        self.soon_threadsafe(self._end.set)
        self.thread.join()


class SimpleQueue:
    """Not a loop: a thread that takes callbacks from a `queue.SimpleQueue` and calls them."""

    name = "SimpleQueue"

    def __init__(self) -> None:
        waiting: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.soon_threadsafe: Call = waiting.put
        self.thread: threading.Thread | None = threading.Thread(target=self._run, args=(waiting,), daemon=True)

    @staticmethod
    def _run(waiting: queue.SimpleQueue[Callable[[], Any] | None]) -> None:
        take = waiting.get
        while (callback := take()) is not None:
            callback()

    def start(self) -> None:
        assert self.thread is not None
        self.thread.start()

    def close(self) -> None:
        assert self.thread is not None
        self.soon_threadsafe(None)
        self.thread.join()


class Deque:
    """Even less: a `collections.deque`, on which a thread cannot wait, so its thread polls all the time.

    That would take a core from all others that are measured in the same rounds: `around` runs it only for its own part
    of a round, and `start` and `close` do nothing.
    """

    name = "deque"

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], Any]] = deque()
        self._ended = False
        self.soon_threadsafe: Call = self._waiting.append
        self.thread: threading.Thread | None = None

    def _run(self) -> None:
        take = self._waiting.popleft
        while not self._ended:
            try:
                while True:
                    take()()
            except IndexError:
                time.sleep(0)

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def around(self, probe: Probe) -> Probe:
        """`probe`, with the thread at work from before it until after it."""

        def while_running() -> Mapping[str, float]:
            self._ended = False
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()
            try:
                return probe()
            finally:
                self._ended = True
                self.thread.join()

        return while_running


def probe(make: Callable[..., Probe], consumer: Consumer, *arguments: object) -> Probe:
    """``make(name, consumer, ...)``, if need be with the consumer started for it only."""
    made = make(consumer.name, consumer, *arguments)
    return consumer.around(made) if isinstance(consumer, Deque) else made


def uvloops() -> list[Uvloop]:
    """One uvloop if it is installed, else none."""
    return [Uvloop()] if installed("uvloop") else []


def consumers() -> list[Consumer]:
    """Every peer that takes callbacks from other threads, not started; asyncio is not among them."""
    return [*uvloops(), *([Trio()] if installed("trio") else []), SimpleQueue(), Deque()]


def missing() -> list[str]:
    """The peers that could be installed but are not."""
    return [package for package in ("uvloop", "trio") if not installed(package)]
