"""The environment of a scenario, and what is checked after each interruption: counts, life, descriptors, threads,
references.

A scenario is a generator: it makes what it needs, yields the call that is to be interrupted, and then checks what only
it knows. `World` makes its loops, and afterwards runs each of them once more, ends it, and checks what is left.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any

from nbloop import Loop, LoopState
from tests.support.waiting import PATIENCE, wait_for

type Scenario = Callable[[World], Generator[Callable[[], object]]]


class World:
    """The loops of one attempt, and the threads that run them."""

    def __init__(self) -> None:
        self._loops: list[Loop] = []
        self._threads: list[threading.Thread] = []

    def loop(self, **options: Any) -> Loop:
        """A loop that nobody runs."""
        self._loops.append(Loop(**options))
        return self._loops[-1]

    def running(self, **options: Any) -> Loop:
        """A loop that another thread runs."""
        return self.run_elsewhere(self.loop(**options))

    def run_elsewhere(self, loop: Loop) -> Loop:
        """Have another thread run it."""
        self._threads.append(loop.start())
        return loop

    def end(self) -> list[weakref.ref[Any]]:
        """Run each loop once more, if it may be, and end it; what is to be gone when nobody refers to them."""
        for loop in self._loops:
            lively(loop)
            loop.shutdown(timeout=PATIENCE)
            ended(loop)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"{thread} goes on"
        held: list[weakref.ref[Any]] = [weakref.ref(loop) for loop in self._loops]
        held += [weakref.ref(loop._state) for loop in self._loops]
        self._loops.clear()
        return held


def lively(loop: Loop) -> None:
    """A loop that has not begun to end runs what it is given, and a loop that has refuses it."""
    if loop.state in (LoopState.TERMINATING, LoopState.TERMINATED):
        return
    ran: list[int] = []
    loop.submit(ran.append, 1)
    if loop.state is LoopState.AWAKE:
        while not ran and loop.state is LoopState.AWAKE:
            loop.stop()
            loop.run()
    else:
        wait_for(lambda: ran or loop.state is LoopState.AWAKE)
        if not ran:
            lively(loop)


def ended(loop: Loop) -> None:
    """What is true of every loop that has ended."""
    assert loop.state is LoopState.TERMINATED
    assert not loop.alive()
    record: Any = loop._record
    assert record["holds"] == 0
    assert record["io"]["watches"] == 0
    wait_for(lambda: record["owner"] == 0)  # the thread that ended it leaves an instant later
    assert loop._watches.poller is None
    assert len(loop._watches) == 0
    free: list[bool] = []
    thread = threading.Thread(target=lambda: free.append(loop._lock.acquire(timeout=PATIENCE)))
    thread.start()
    thread.join()
    assert free == [True], "the loop's lock is held"


def outside() -> tuple[list[str], list[str]]:
    """Descriptors of this process and threads, by name."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return sorted(found), sorted(thread.name for thread in list(threading._active.values()))  # type: ignore[attr-defined]


def unchanged(before: tuple[list[str], list[str]], held: list[tuple[str, str, weakref.ref[Any]]]) -> None:
    """Descriptors and threads are as they were, and nothing of `held` lives."""
    until = time.monotonic() + PATIENCE
    while True:
        gc.collect()
        left = [f"{kind}, arrived at {place}" for place, kind, ref in held if ref() is not None]
        now = outside()
        if now == before and not left:
            return
        assert time.monotonic() < until, f"left behind: {now} of {before}; {'; '.join(left)}"
        time.sleep(0.001)
