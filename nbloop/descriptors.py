"""How a loop sleeps, and the descriptors it watches.

Problem: a loop that only waits for other threads sleeps cheapest on a futex, a loop that watches descriptors must sleep
in the platform's poller, and any thread may turn one into the other while the loop sleeps. Idea: only the owner changes
how a loop sleeps, between two sleeps. Other threads change the table (readiness.py) under the loop's lock and then ask
the owner to read it again, or become the owner for an instant if no thread runs the loop (`Lifecycle._change`). The
mode is decided under the same lock, so a descriptor is never registered while it is FORCED.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import FastPathIncompatibleError
from .kernels.base import layout
from .lock import CountingLock
from .options import FastPathMode
from .parkers import LockParker, Parker, futex_available
from .parts import Part
from .pollers import Poller
from .readiness import FdTable, ReadyCallback

PARK_MODE_AT = layout.STATE.PARK_MODE >> 3


class Descriptors(Part):
    """The descriptors of one loop, and how it sleeps. Methods that change either need the loop's lock, and return
    whether the loop has to sleep in another way from now on: then its owner calls `install`.
    """

    def __init__(self, name: str, state: Any, lock: CountingLock, mode: FastPathMode, captures: bool) -> None:
        self._name = name
        self._state = state
        self._record = state.record["io"]
        self._lock = lock
        self.mode = mode
        self._record["forced"] = mode is FastPathMode.FORCED
        self.table = FdTable(state, lock, captures)
        self._futex = futex_available()
        self._lock_parker: LockParker | None = None  # made once, where there is no futex
        self.parker: Parker | None = None

    def set_mode(self, mode: FastPathMode) -> bool:
        if mode is FastPathMode.FORCED and len(self.table):
            raise FastPathIncompatibleError(
                f"{self._name} watches {len(self.table)} descriptors: the fast path cannot be forced"
            )
        if mode is FastPathMode.DISABLED:
            self.table.open_poller()
        self.mode = mode
        self._record["forced"] = mode is FastPathMode.FORCED
        return True

    def register(self, fd: int, interest: int, callback: ReadyCallback) -> bool:
        if self.mode is FastPathMode.FORCED:
            raise FastPathIncompatibleError(f"{self._name} is forced to the fast path, which sees no descriptors")
        return self.table.register(fd, interest, callback)

    def unregister(self, fd: int) -> bool:
        return self.table.unregister(fd)

    def install(self) -> None:
        """Choose how to sleep, as the mode and the descriptors require. Owner only, awake.

        A wake that was claimed earlier and arrives late goes to the old sleeper or the new one: the sleep it was meant
        for is over, and at worst another sleep ends early.
        """
        with self._lock:
            if not self._futex and self._lock_parker is None:
                self._lock_parker = LockParker()
            # No call from here on: in one, a signal handler might register a descriptor, or set the mode, and have its
            # own choice overwritten.
            poller, disabled = self.table.poller, self.mode is FastPathMode.DISABLED
            if poller is not None and (disabled or self.table.tokens):
                self.parker, mode = poller, poller.park_mode
            elif self._futex:
                self.parker, mode = None, layout.PARK_FUTEX
            else:
                self.parker, mode = self._lock_parker, layout.PARK_PYTHON
            self._state[PARK_MODE_AT] = mode
            self._record["retires"] = self._futex and not disabled

    def wait(self) -> Sequence[tuple[int, int]]:
        """Sleep outside the kernels, for as long as they request; what `table.collect` takes. The loop's thread.
        OSError if the poller fails.
        """
        assert self.parker is not None
        return self.parker.wait(self._state.item(layout.STATE.POLL_TIMEOUT >> 3))

    def poller(self) -> Poller:
        """The poller, which is made if there is none. OSError if that fails."""
        with self._lock:
            return self.table.open_poller()

    def _loop_ended(self) -> None:
        with self._lock:
            self.table.close()

    def _forked(self) -> None:
        self._lock = CountingLock()  # as the loop, which gets another one
        self.table.close()  # closes this process's copies; the parent's stay open
