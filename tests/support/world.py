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

from nbloop import Loop, LoopState, LoopTerminatedError
from tests.support.waiting import PATIENCE, wait_for

ENDING = (LoopState.TERMINATING, LoopState.TERMINATED)

type Scenario = Callable[[World], Generator[Callable[[], object]]]


class World:
    """The loops of one attempt, and the threads that run them."""

    def __init__(self) -> None:
        self._loops: list[Loop] = []
        self._threads: list[threading.Thread] = []
        self._held: list[weakref.ref[Any]] = []

    def to_go[T](self, thing: T) -> T:
        """It is to be gone when nobody refers to it any more."""
        self._held.append(weakref.ref(thing))
        return thing

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
        for loop in self._loops:
            self.to_go(loop)
            self.to_go(loop._state)
        self._loops.clear()
        return self._held


def lively(loop: Loop) -> None:
    """A loop that has not begun to end runs what it is given, and a loop that has refuses it."""
    ran: list[int] = []
    while not ran and loop.state not in ENDING:
        try:
            loop.submit(ran.append, 1)
        except LoopTerminatedError:  # an end has begun that the loop's own thread completes
            wait_for(lambda: loop.state in ENDING)
            return
        while not ran and loop.state is LoopState.AWAKE:
            loop.stop()
            loop.run()
        wait_for(lambda: ran or loop.state in (LoopState.AWAKE, *ENDING))


def ended(loop: Loop) -> None:
    """What is true of every loop that has ended."""
    assert loop.state is LoopState.TERMINATED
    assert not loop.alive()
    record: Any = loop._record
    assert record["holds"] == 0
    assert record["io"]["watches"] == 0
    wait_for(lambda: record["owner"] == 0)  # the thread that ended it leaves an instant later
    assert loop._descriptors.table.poller is None
    assert len(loop._descriptors.table) == 0
    free: list[bool] = []
    thread = threading.Thread(target=lambda: free.append(loop._lock.acquire(timeout=PATIENCE)))
    thread.start()
    thread.join()
    assert free == [True], "the loop's lock is held"


def outside() -> tuple[list[str], int]:
    """Descriptors of this process by name, and how many threads it has."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return sorted(found), len(os.listdir("/proc/self/task"))


def unchanged(before: tuple[list[str], int], held: list[tuple[str, str, weakref.ref[Any]]]) -> None:
    """Descriptors are as they were, there are no more threads, and nothing of `held` lives."""
    until = time.monotonic() + PATIENCE
    while True:
        gc.collect()
        left = [f"{kind}, arrived at {place}" for place, kind, ref in held if ref() is not None]
        descriptors, threads = outside()
        if descriptors == before[0] and threads <= before[1] and not left:
            return
        if time.monotonic() > until:
            opened = set(descriptors) - set(before[0])
            closed = set(before[0]) - set(descriptors)
            threads = [thread.name for thread in threading.enumerate()]
            raise AssertionError(f"left behind: {opened=}, {closed=}, {threads=}, {left=}")
        time.sleep(0.001)
