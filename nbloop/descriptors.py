"""How a loop sleeps, and the descriptors it watches: the fast path's mode and the public side of readiness.

Problem: whoever only waits for other threads sleeps cheapest on a futex, whoever watches descriptors has to sleep in
the platform's poller, and which of the two a loop is may change while it sleeps, from any thread. Idea: only its
owner changes how a loop sleeps, between two sleeps; everybody else changes the table (readiness.py) under the loop's
lock, and then asks the owner to look at it again, or is the owner for that instant if nobody runs the loop. The mode
is decided under the same lock, so a descriptor is never registered while it is FORCED.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from . import debug as _debug
from .errors import FastPathIncompatibleError, LoopTerminatedError
from .kernels.base import layout
from .lifecycle import Lifecycle
from .options import FastPathMode, check_mode
from .parkers import LockParker, futex_available
from .readiness import IOEvents, ReadyCallback, check_descriptor, check_events


class Descriptors(Lifecycle):
    """The part of a `Loop` that sleeps, and watches descriptors meanwhile."""

    def __init__(self, name: str, state: Any, mode: FastPathMode) -> None:
        super().__init__(name, state)
        self._mode = mode
        self._lock_parker = LockParker()
        if mode is FastPathMode.DISABLED:
            self._watches.open_poller()
        self._install_parker()

    @property
    def fast_path_mode(self) -> FastPathMode:
        """The mode last set. Any thread."""
        return self._mode

    def set_fast_path_mode(self, mode: FastPathMode) -> None:
        """Change how the loop sleeps, at run time. Any thread; the loop changes over before its next sleep, and loses
        nothing.

        Raises TypeError for what is no `FastPathMode`, `FastPathIncompatibleError` for FORCED while descriptors are
        registered, `LoopTerminatedError` after the end, OSError if there is no descriptor left for a poller; in each
        case the mode stays.
        """
        check_mode("mode", mode)
        self._check_fork()

        def change() -> bool:
            if mode is FastPathMode.FORCED and len(self._watches):
                raise FastPathIncompatibleError(
                    f"{self.name} watches {len(self._watches)} descriptors: the fast path can not be forced"
                )
            if self._lifecycle() >= layout.TERMINATING:
                raise LoopTerminatedError(f"{self.name} has terminated or is about to")
            if mode is FastPathMode.DISABLED:
                self._watches.open_poller()
            self._mode = mode
            return True

        self._change(change)

    def register_fd(self, fd: int, events: IOEvents | int, callback: ReadyCallback) -> None:
        """Run ``callback(fd, events)`` on the loop's thread whenever the descriptor is ready for what `events` asks.

        Level-triggered: as long as it is ready, once in each turn; `IOEvents.EDGE` and `IOEvents.ONESHOT` change that.
        ERROR and HANGUP are reported unasked, unless `events` is 0, which mutes. A microtask checkpoint follows each
        callback; one that raises goes to `on_error`, and the watch stays. A registered descriptor keeps an `auto_exit`
        loop alive. Any thread; a loop that is just waiting sees it at once. O(1); a system call or two.

        Raises `FDAlreadyRegisteredError`, `FDOutOfRangeError`, `FastPathIncompatibleError` while the fast path is
        forced, TypeError or ValueError for what is no descriptor, events or callback, OSError from the system (EPERM
        for a regular file, EBADF, ENOSPC, EMFILE), `LoopTerminatedError`; in each case nothing is registered.

        A descriptor is to be unregistered before it is closed. Closed first, it is silent (unless a duplicate of it is
        open), and its number stays taken here until `unregister_fd`; whoever has that number by then is not touched.
        """
        fd, interest = check_descriptor(fd), check_events(events)
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        if self.debug:
            (callback,) = _debug.sited([callback])

        def change() -> bool:
            self._check_descriptors_allowed()
            if self._mode is FastPathMode.FORCED:
                raise FastPathIncompatibleError(f"{self.name} is forced to the fast path, which sees no descriptors")
            self._watches.register(fd, interest, callback)
            return len(self._watches) == 1

        self._change(change)

    def modify_fd(self, fd: int, events: IOEvents | int) -> None:
        """Change what a registered descriptor is watched for; 0 mutes it, and a ONESHOT is armed anew.

        What was collected before and is not asked for any more is not delivered. Any thread. O(1), one system call.
        Raises `FDNotRegisteredError`, OSError from the system (and then nothing has changed), otherwise as
        `register_fd`.
        """
        fd, interest = check_descriptor(fd), check_events(events)
        with self._lock:
            self._check_descriptors_allowed()
            self._watches.modify(fd, interest)

    def unregister_fd(self, fd: int) -> None:
        """Watch a descriptor no longer. When this returns no callback of it starts any more, also none whose event was
        collected already; one in progress on the loop's thread goes on.

        From its own callback, another one, another thread. O(1), one system call. Raises `FDNotRegisteredError`,
        also after the loop has ended.
        """
        fd = check_descriptor(fd)
        self._check_fork()

        def change() -> bool:
            self._watches.unregister(fd)
            return len(self._watches) == 0

        self._change(change)

    def _check_descriptors_allowed(self) -> None:
        self._check_fork()
        if self._lifecycle() >= layout.TERMINATING:
            raise LoopTerminatedError(f"{self.name} watches no descriptors: it has terminated or is about to")

    def _change(self, change: Callable[[], bool]) -> None:
        """Call it under the lock; if it says so, or if it raises, have the loop sleep as mode and descriptors ask from
        now on. An exception of a signal handler may come after the change and before the loop has heard of it: a watch
        that is there would be seen by nobody.
        """
        try:
            with self._lock:
                changed = change()
            if changed:
                self._change_over()
        except BaseException:
            if not self._forked:
                self._change_over()
            raise

    def _change_over(self) -> None:
        """Have the loop sleep as mode and descriptors ask from now on: at once if nobody runs it, else before its next
        sleep.
        """
        while not self.is_loop_thread():
            try:
                if self._acquire() == 0:
                    self._install_parker()
                    return
            finally:
                self._give_up()  # first: one call of C, of which an exception can only come after
                self._owe_end()
            if self._lifecycle() != layout.AWAKE:  # it runs: only its own thread may change how it sleeps
                with contextlib.suppress(LoopTerminatedError):  # it has slept for the last time
                    self.submit_internal(self._install_parker)
                return
            time.sleep(0)
        self._install_parker()

    def _install_parker(self) -> None:
        """Sleep as the mode and the descriptors ask. The owner only, awake.

        A wake that was claimed before and comes late goes to the old place or the new one: the sleep that it was for
        is over, and another is at most ended early.
        """
        with self._lock:
            poller = self._watches.poller
            if poller is not None and (self._mode is FastPathMode.DISABLED or len(self._watches)):
                self._parker, self._record["park_mode"] = poller, poller.park_mode
            elif futex_available():
                self._parker, self._record["park_mode"] = None, layout.PARK_FUTEX
            else:
                self._parker, self._record["park_mode"] = self._lock_parker, layout.PARK_PYTHON
