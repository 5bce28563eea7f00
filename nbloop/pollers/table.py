"""Shared code of the pollers whose system does not store the token: a table of watches, and its lock."""

from __future__ import annotations

import contextlib
import errno
from abc import ABC, abstractmethod
from collections.abc import Iterable

from ..kernels.base.layout import PARK_POLLER
from ..lock import CountingLock


class TablePoller[Watch](ABC):
    """Changes one watch at a time, under a lock that `wait` holds only while it collects events, not while it waits."""

    park_mode = PARK_POLLER
    descriptor = wake_fd = -1

    def __init__(self) -> None:
        self._lock = CountingLock()
        self._watches: dict[int, Watch] = {}

    @abstractmethod
    def _new(self, fd: int) -> Watch:
        """A new watch of a descriptor, without interest yet. OSError if the descriptor cannot be watched."""

    @abstractmethod
    def _change(self, watch: Watch, interest: int, token: int) -> None:
        """Change what a watch reports, with immediate effect even while the loop waits. On failure nothing changes."""

    @abstractmethod
    def _forget(self, watch: Watch) -> None:
        """Make a watch report nothing any more, whether its descriptor is open or not."""

    def add(self, fd: int, interest: int, token: int) -> None:
        with self._lock:
            if fd in self._watches:
                raise FileExistsError(errno.EEXIST, f"descriptor {fd} is watched already")
            watch = self._watches[fd] = self._new(fd)
            try:
                self._change(watch, interest, token)
            except BaseException:
                if self._watches.get(fd) is watch:
                    del self._watches[fd]
                with contextlib.suppress(OSError):
                    self._forget(watch)
                raise
            self._still_there(fd, watch)

    def modify(self, fd: int, interest: int, token: int) -> None:
        with self._lock:
            watch = self._watches.get(fd)
            if watch is None:
                raise FileNotFoundError(errno.ENOENT, f"descriptor {fd} is not watched")
            self._change(watch, interest, token)
            self._still_there(fd, watch)

    def _still_there(self, fd: int, watch: Watch) -> None:
        """A signal handler may have removed the watch while it was changed."""
        if self._watches.get(fd) is not watch:
            self._forget(watch)

    def remove(self, fd: int) -> bool:
        """Always True: a forgotten watch cannot fire again, even if its descriptor was closed first."""
        with self._lock:
            watch = self._watches.pop(fd, None)
            if watch is not None:
                self._forget(watch)
        return True

    def renew(self, watches: Iterable[tuple[int, int, int]]) -> None:  # noqa: B027 - the same for all of them
        """Nothing to do: `remove` leaves nothing behind."""
