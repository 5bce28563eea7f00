"""The platforms' pollers, through ctypes: one file per family of system calls, behind one interface.

A poller watches descriptors. Each has an interest (bits of `nbloop.IOEvents`) and a *token*, which comes back with each
event. What a token means, and whether it is still valid, is not the poller's concern (kernels/turn/fd_watches.py). All
pollers are level-triggered unless EDGE or ONESHOT is requested, report errors and hang-ups unconditionally, and report
nothing for an interest of 0.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Protocol


class Poller(Protocol):
    """What a loop needs from a platform to wait for descriptors. The loop's lock serialises the calls that change it;
    `wait` runs concurrently with them, on the loop's thread.
    """

    park_mode: int  # PARK_EPOLL if the kernels wait, with `descriptor` and `wake_fd`; PARK_POLLER if `wait` does
    descriptor: int
    wake_fd: int

    def add(self, fd: int, interest: int, token: int) -> None:
        """Watch a descriptor, with immediate effect even while the loop waits. OSError from the system."""

    def modify(self, fd: int, interest: int, token: int) -> None:
        """Change what is reported, and re-arm a ONESHOT watch. OSError from the system, and then nothing changed."""

    def remove(self, fd: int) -> bool:
        """Stop watching. False if the system no longer knows the descriptor, because its user closed it first; the
        system may then go on reporting it while a duplicate is open, until the loop calls `renew`.
        """

    def renew(self, watches: Iterable[tuple[int, int, int]]) -> None:
        """Forget everything except these (descriptor, interest, token). The loop's thread."""

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        """Wait until descriptors are ready, and return at most READY_MOST pairs (token, events); none after
        `timeout_ns` (-1: no limit).
        """

    def wake(self) -> None:
        """Make the current `wait`, or the next one, return. Any thread."""

    def close(self) -> None:
        """Release its descriptors. Idempotent. No `wait` or `wake` may be in progress or follow."""


def refusal(fd: int, error: int) -> OSError:
    """What to raise if epoll refuses to watch a descriptor, or to forget it."""
    return OSError(error, f"epoll_ctl of descriptor {fd}: {os.strerror(error)}")


# With nbloop, and not when a loop first sleeps in a poller: if a signal handler forked in the middle of the import, the
# child and its parent would read the module's file through one offset, and the later one would get an empty module.
if sys.platform == "linux":
    from .epoll import EpollPoller as SystemPoller
elif sys.platform == "win32":
    from .iocp import IocpPoller as SystemPoller
else:
    from .kqueue import KqueuePoller as SystemPoller


def make_poller() -> Poller:
    """This platform's poller. OSError if there is none, or if no descriptor is free."""
    return SystemPoller()
