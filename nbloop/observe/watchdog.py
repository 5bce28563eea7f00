"""Reporting a blocked loop while it is still blocked.

Problem: one callback that does not return stops everything the loop does, and the loop itself cannot say so. Idea: a
separate thread checks the loop's heartbeat, its counts of callbacks and turns, a few times per `threshold`. If they
stand still for a whole threshold while the loop is running and awake, and is neither spinning for work nor waiting in
a poller, one callback is to blame; the stack of the loop's thread says which. A check is a few loads; the loop does
nothing for it.

It loses on a callback that is in C code without detaching its thread state: the report comes, but the stack has to
wait (`stacks.py`), and every thread with it, so it is captured only after the first message is out. With the GIL such a
callback also holds up the watchdog.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import debug, hooks, lifecycle
from ..kernels.base import layout
from ..lifecycle import Lifecycle
from ..lock import Latch
from ..parts import Part
from ..threads import begin, join
from ..unique import Unique
from . import stacks
from .stacks import Call, Stack

LOOKS = 4  # checks per threshold: a blockage is reported at most a quarter late


@dataclass(frozen=True)
class Blockage:
    """A loop has been in one callback for longer than the watchdog's threshold.

    >>> import nbloop, threading
    >>> seen, goes_on = [], threading.Event()
    >>> def blocked(blockage):
    ...     seen.append(blockage)
    ...     goes_on.set()
    >>> with nbloop.Loop(name="mine") as loop:
    ...     watchdog = loop.watch(0.02, on_blocked=blocked)
    ...     loop.call(goes_on.wait, 30)
    True
    >>> seen[0].loop, seen[0].blocked_for >= 0.02
    ('mine', True)
    """

    loop: str
    """Its name."""
    thread: int
    """Identifier of the thread that runs it."""
    blocked_for: float
    """Seconds; up to a quarter of the threshold too few."""
    _look: Callable[[], tuple[Stack, list[object]]] = field(repr=False, compare=False)
    _seen: list[BlockedIn] = field(default_factory=list, repr=False, compare=False)

    def look(self) -> BlockedIn:
        """Where the loop is, captured at the first call and kept. Waits for a thread that is in C code without
        detaching, and so do all other threads meanwhile; see the module's docstring.
        """
        if not self._seen:
            stack, scheduled = self._look()
            self._seen.append(BlockedIn.of(stack, scheduled))
        return self._seen[0]


@dataclass(frozen=True)
class BlockedIn:
    """What a blocked loop was found in.

    >>> import nbloop, threading
    >>> seen, goes_on = [], threading.Event()
    >>> def blocked(blockage):
    ...     seen.append(blockage.look())
    ...     goes_on.set()
    >>> def hang():
    ...     goes_on.wait(30)
    >>> with nbloop.Loop() as loop:
    ...     watchdog = loop.watch(0.02, on_blocked=blocked)
    ...     loop.call(hang)
    >>> any(call.code is hang.__code__ for call in seen[0].stack)
    True
    """

    stack: Stack
    """The stack of the loop's thread, innermost call first."""
    callback: Call | None
    """The callback's own call; None if it is not a Python function or has just returned."""
    scheduled: Any
    """With ``debug=True`` the callback itself, else None."""
    scheduled_at: traceback.StackSummary | None
    """With ``debug=True`` where the callback was scheduled, else None."""

    @classmethod
    def of(cls, stack: Stack, scheduled: list[object]) -> BlockedIn:
        """From the stack of the loop's thread and the `scheduled` callbacks on it (`debug.Sited`), innermost first."""
        mine = [i for i, call in enumerate(stack) if call.code.co_filename in (lifecycle.__file__, debug.__file__)]
        callback = stack[mine[0] - 1] if mine and mine[0] > 0 else None
        site = debug.described(scheduled[0]) if scheduled else {}
        return cls(stack, callback, site.get("callback"), site.get("scheduled_at"))


class Watchdog(Unique, Part):
    """Watches one loop from a daemon thread, until `stop` or the loop's end; made by `Loop.watch`.

    `threshold` is in seconds. What `on_blocked` raises is logged. Its thread wakes four times a threshold, for O(1).

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     watchdog = loop.watch(5)
    ...     watchdog.stop()
    """

    def __init__(self, loop: Lifecycle, threshold: float, on_blocked: Callable[[Blockage], object] | None) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
            raise TypeError(f"threshold must be a number of seconds, not {threshold!r}")
        if not 0.001 <= threshold <= 1e6:
            raise ValueError(f"threshold must be from 0.001 to 1e6 seconds, not {threshold!r}")
        if on_blocked is not None and not callable(on_blocked):
            raise TypeError(f"on_blocked must be callable or None, not {on_blocked!r}")
        self._on_blocked = on_blocked or log
        self._stop = Latch()
        self._loop = weakref.ref(loop)
        # The thread must not keep the loop alive, which ends when it is collected, nor the handler, which may refer to
        # the loop. The loop keeps its watchdogs.
        self._thread = threading.Thread(
            target=_watch, args=(weakref.ref(self), self._loop, self._stop, threshold), name=f"{loop.name}-watchdog"
        )
        self._thread.daemon = True

    def _begin(self, loop: Lifecycle) -> None:
        """Start watching. This is a separate step: if a signal handler raised between a constructor and the store of
        what it returns, a watchdog would be left that no code can stop.
        """
        loop._parts[self] = self
        try:
            begin(self._thread)
            if loop._lifecycle() == layout.TERMINATED:  # its end may not have seen this one
                self._loop_ended()
        except BaseException:
            self._loop_ended()
            raise

    def stop(self) -> None:
        """Stop watching. When this returns, no handler runs any more, except one that called this. Any thread."""
        self._loop_ended()
        if threading.current_thread() is not self._thread:
            join(self._thread)

    def _loop_ended(self) -> None:
        """Make the thread end, without waiting for it. Idempotent."""
        self._stop.set()
        loop = self._loop()
        if loop is not None:
            loop._parts.pop(self, None)

    def _tell(self, blockage: Blockage) -> None:
        try:
            self._on_blocked(blockage)
        except Exception as error:
            hooks.log(error, "on_blocked of %s raised", blockage.loop, loop=blockage.loop)


def _watch(me: weakref.ref[Watchdog], of: weakref.ref[Lifecycle], stop: Latch, threshold: float) -> None:
    """A watchdog's thread. Between two checks it keeps nothing alive."""
    last, since, told = None, time.monotonic(), False
    while not stop.wait(threshold / LOOKS):
        watchdog, loop = me(), of()
        if watchdog is None or loop is None:
            return
        now = time.monotonic()
        beat = heartbeat(loop)
        if beat is None or beat != last:
            last, since, told = beat, now, False
        elif now - since >= threshold and not told:
            told = True
            watchdog._tell(Blockage(loop.name, beat[0], now - since, functools.partial(_look, beat[0])))
        del watchdog, loop


def heartbeat(loop: Lifecycle) -> tuple[int, int, int] | None:
    """(thread, callbacks, turns) of a loop that may be in a callback; None if it certainly is not.

    Any thread; raises nothing; O(1), a few loads.

    >>> import nbloop
    >>> heartbeat(nbloop.Loop()) is None  # it does not run
    True
    """
    record = loop._record
    if int(record["lifecycle"]) not in (layout.RUNNING, layout.TERMINATING) or record["sleep"]:
        return None
    if not record["owner"]:
        return None
    return loop._runner, int(record["callbacks"]), int(record["turns"])


def _look(thread: int) -> tuple[Stack, list[object]]:
    return stacks.capture(ask=(debug.Sited.__call__.__code__, "self")).get(thread, ((), []))


def log(blockage: Blockage) -> None:
    """Log two messages to the logger ``nbloop``: that the loop is blocked, and then where, which may have to wait."""
    say = functools.partial(hooks.log, None, level=logging.WARNING, loop=blockage.loop)
    say("%s has been in one callback for %.3g s", blockage.loop, blockage.blocked_for)
    seen = blockage.look()
    lines = [f"{blockage.loop} is blocked in {seen.scheduled or seen.callback or 'a callback that is not Python code'}"]
    lines += [f"  {call}" for call in reversed(seen.stack)]
    if seen.scheduled_at is not None:
        lines += ["scheduled at", *(line.rstrip() for line in seen.scheduled_at.format())]
    say("%s", "\n".join(lines))
