"""The platforms' pollers, through ctypes: one file per family of system calls, behind one interface.

A poller is told of descriptors with an interest (bits of `nbloop.IOEvents`) and a *token*, which comes back with each
event; what a token means, and whether it still means anything, is not its business (kernels/turn/fd_watches.py). All of
them are level-triggered unless EDGE or ONESHOT is asked for, report errors and hang-ups unasked, and report nothing for
an interest of 0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Protocol


class Poller(Protocol):
    """What a loop needs of a platform to wait for descriptors. Calls that change it are serialised by the loop's lock;
    `wait` runs beside them, on the loop's thread.
    """

    park_mode: int  # PARK_EPOLL if the kernels wait, with `descriptor` and `wake_fd`; PARK_POLLER if `wait` does
    descriptor: int
    wake_fd: int

    def add(self, fd: int, interest: int, token: int) -> None:
        """Watch a descriptor, at once, also while the loop waits. OSError from the system."""

    def modify(self, fd: int, interest: int, token: int) -> None:
        """Change what is reported of it; a ONESHOT is armed anew. OSError from the system, and then nothing changed."""

    def remove(self, fd: int) -> bool:
        """Watch it no longer. False: the system does not know it any more, as its user closed it first, and may go on
        reporting it if a duplicate is open: `renew` is called then.
        """

    def renew(self, watches: Iterable[tuple[int, int, int]]) -> None:
        """Forget everything but these (descriptor, interest, token). The loop's thread."""

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        """At most READY_MOST pairs (token, events) that are ready, as soon as there are some; after `timeout_ns`, none
        (-1: no limit).
        """

    def wake(self) -> None:
        """Make the `wait` in progress, or the next one, return. Any thread."""

    def close(self) -> None:
        """Release what it holds; again does nothing. Nobody waits, and nobody wakes any more."""


def make_poller() -> Poller:
    """The poller of this platform. OSError if there is none, or no descriptor left for it."""
    if sys.platform == "linux":
        from .epoll import EpollPoller

        return EpollPoller()
    if sys.platform == "win32":
        from .iocp import IocpPoller

        return IocpPoller()
    from .kqueue import KqueuePoller

    return KqueuePoller()
