"""How a loop sleeps, and the descriptors it watches: the fast path's mode and the public side of readiness.

Problem: a loop that only waits for other threads sleeps cheapest on a futex, a loop that watches descriptors must sleep
in the platform's poller, and any thread may turn one into the other while the loop sleeps. Idea: only the owner changes
how a loop sleeps, between two sleeps. Other threads change the table (readiness.py) under the loop's lock and then ask
the owner to read it again, or become the owner for an instant if no thread runs the loop. The mode is decided under the
same lock, so a descriptor is never registered while it is FORCED.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from . import debug as _debug
from .errors import FastPathIncompatibleError, LoopTerminatedError
from .hooks import ErrorHandler
from .kernels.base import layout
from .lifecycle import Lifecycle
from .options import FastPathMode, check_mode
from .parkers import LockParker, futex_available
from .readiness import IOEvents, ReadyCallback, check_descriptor, check_events


class Descriptors(Lifecycle):
    """The part of a `Loop` that sleeps, and watches descriptors while it does."""

    def __init__(
        self,
        name: str,
        state: Any,
        mode: FastPathMode,
        *,
        debug: bool,
        captures: bool,
        on_error: ErrorHandler | None,
    ) -> None:
        super().__init__(name, state, debug=debug, captures=captures, on_error=on_error)
        self._mode = mode
        self._lock_parker = LockParker()
        if mode is FastPathMode.DISABLED:
            self._watches.open_poller()
        self._install_parker()

    @property
    def fast_path_mode(self) -> FastPathMode:
        """The mode that was set last. Any thread."""
        return self._mode

    def set_fast_path_mode(self, mode: FastPathMode) -> None:
        """Change how the loop sleeps, at run time. Any thread; the loop switches before its next sleep, and loses
        nothing.

        Raises TypeError if `mode` is not a `FastPathMode`, `FastPathIncompatibleError` for FORCED while descriptors are
        registered, `LoopTerminatedError` after the end, OSError if no descriptor is free for a poller; in each case the
        mode stays as it was.
        """
        check_mode("mode", mode)
        self._check_fork()

        def change() -> bool:
            if mode is FastPathMode.FORCED and len(self._watches):
                raise FastPathIncompatibleError(
                    f"{self.name} watches {len(self._watches)} descriptors: the fast path cannot be forced"
                )
            if self._lifecycle() >= layout.TERMINATING:
                raise LoopTerminatedError(f"{self.name} has terminated or is about to")
            if mode is FastPathMode.DISABLED:
                self._watches.open_poller()
            self._mode = mode
            return True

        self._change(change)

    def register_fd(self, fd: int, events: IOEvents | int, callback: ReadyCallback) -> None:
        """Run ``callback(fd, events)`` on the loop's thread whenever the descriptor is ready for any of `events`.

        Level-triggered: once per turn while it is ready; `IOEvents.EDGE` and `IOEvents.ONESHOT` change that. ERROR and
        HANGUP are always reported, unless `events` is 0, which mutes the watch. A microtask checkpoint follows each
        callback. An exception of the callback goes to `on_error`, and the watch stays. A registered descriptor keeps an
        `auto_exit` loop alive. Any thread; takes effect at once, even if the loop is asleep. O(1); one or two system
        calls.

        Raises `FDAlreadyRegisteredError`, `FDOutOfRangeError`, `FastPathIncompatibleError` while the fast path is
        forced, TypeError or ValueError for an invalid descriptor, events or callback, OSError from the system (EPERM
        for a regular file, EBADF, ENOSPC, EMFILE), `LoopTerminatedError`; in each case nothing is registered.

        Unregister a descriptor before you close it. If it is closed first, it goes silent (unless a duplicate is open),
        and its number stays taken in this loop until `unregister_fd`, which does not affect a new file of that number.
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
        """Change which events a registered descriptor is watched for; 0 mutes it, and a ONESHOT watch is re-armed.

        Events that were collected before but are no longer wanted are not delivered. Any thread. O(1), one system call.
        Raises `FDNotRegisteredError`, OSError from the system (and then nothing has changed), otherwise as
        `register_fd`.
        """
        fd, interest = check_descriptor(fd), check_events(events)
        with self._lock:
            self._check_descriptors_allowed()
            self._watches.modify(fd, interest)

    def unregister_fd(self, fd: int) -> None:
        """Stop watching a descriptor. After this returns, none of its callbacks starts, not even for an event that was
        already collected; one in progress on the loop's thread goes on.

        May be called in its own callback, in another one, and on any thread. O(1), one system call. Raises
        `FDNotRegisteredError`, also after the loop has ended.
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
        """Call `change` under the lock; if it returns True or raises, make the loop sleep as mode and descriptors now
        require. A signal handler may raise after the change and before the loop learns of it; without the second case,
        nothing would wait for the new watch.
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
        """Make the loop sleep as mode and descriptors now require: at once if no thread runs it, else before its next
        sleep.
        """
        while not self.is_loop_thread():
            try:
                if self._acquire() == 0:
                    self._install_parker()
                    return
            finally:
                self._give_up()  # first: it is one C call, so an exception can only come after it
                self._owe_end()
            if self._lifecycle() != layout.AWAKE:  # it runs: only its own thread may change how it sleeps
                with contextlib.suppress(LoopTerminatedError):  # it will not sleep again
                    self.submit_internal(self._install_parker)
                return
            time.sleep(0)
        self._install_parker()

    def _install_parker(self) -> None:
        """Choose how to sleep, as the mode and the descriptors require. Owner only, awake.

        A wake that was claimed earlier and arrives late goes to the old sleeper or the new one: the sleep it was meant
        for is over, and at worst another sleep ends early.
        """
        with self._lock:
            poller = self._watches.poller
            if poller is not None and (self._mode is FastPathMode.DISABLED or len(self._watches)):
                self._parker, self._record["park_mode"] = poller, poller.park_mode
            elif futex_available():
                self._parker, self._record["park_mode"] = None, layout.PARK_FUTEX
            else:
                self._parker, self._record["park_mode"] = self._lock_parker, layout.PARK_PYTHON
