"""epoll with an eventfd (Linux). The kernels wait (kernels/turn/fd_watches.py); this file makes and changes the set.

The wake descriptor is registered with EPOLLET and never read, so a wake costs one write and no read. A muted descriptor
stays in the set with no events and EPOLLET: the system always reports errors and hang-ups, and level-triggered reports
for a muted socket would spin the loop.

epoll watches the open file, not the descriptor number, and forgets the file only when its last duplicate is closed. A
user who closes a descriptor before unregistering it can therefore leave an entry that nothing can name any more.
Removing detects this, and when such an entry fires, the set is rebuilt (`renew`).

A loop adds and removes by `watch_begin` and `watch_finish` (kernels/turn/fd_watches.py), which change its own table in
the same call. `add` and `remove` complete the contract of a poller; the tests of all pollers use them.

Each of the two descriptors is owned by an object that closes it exactly once, on request or when collected. A bare
number would leak if a signal handler raised between the call that returns it and its store, and a close retried after
such an exception could close an unrelated descriptor that has the number by then.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Iterable, Sequence

import numpy as np

from ..kernels.base.capi import SYS_EPOLL_PWAIT2
from ..kernels.base.layout import EDGE, PARK_EPOLL, READ
from ..kernels.turn.fd_watches import EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, epoll_change
from . import refusal

_libc = ctypes.CDLL(None, use_errno=True)


class EpollPoller:
    """An epoll set with its wake descriptor."""

    park_mode = PARK_EPOLL

    def __init__(self) -> None:
        # Created and owned within one C call. select.epoll serves as the owner because it closes any descriptor.
        self._wake = next(map(select.epoll.fromfd, map(os.eventfd, (0,), (os.EFD_CLOEXEC | os.EFD_NONBLOCK,))))
        self.wake_fd = self._wake.fileno()
        self._change = epoll_change.bind(np.zeros(2, np.int64))
        self._set = self._make()
        self.descriptor = self._set.fileno()

    def _make(self) -> select.epoll:
        made = select.epoll()
        self._control(made.fileno(), EPOLL_CTL_ADD, self.wake_fd, READ | EDGE, 0)
        return made

    def _control(self, descriptor: int, operation: int, fd: int, interest: int, token: int) -> None:
        error = self._change(descriptor, operation, fd, interest, token)
        if error:
            raise refusal(fd, error)

    def add(self, fd: int, interest: int, token: int) -> None:
        error = self._change(self.descriptor, EPOLL_CTL_ADD, fd, interest, token)
        if error == errno.EEXIST:  # closed, unregistered, and restored under its old number by dup2()
            self.modify(fd, interest, token)
        elif error:
            raise refusal(fd, error)

    def modify(self, fd: int, interest: int, token: int) -> None:
        self._control(self.descriptor, EPOLL_CTL_MOD, fd, interest, token)

    def remove(self, fd: int) -> bool:
        error = self._change(self.descriptor, EPOLL_CTL_DEL, fd, 0, 0)
        if error in (errno.EBADF, errno.ENOENT, errno.EPERM):  # closed; another file; not pollable
            return False
        if error:
            raise refusal(fd, error)
        return True

    def renew(self, watches: Iterable[tuple[int, int, int]]) -> None:
        made = self._make()
        descriptor = made.fileno()
        for fd, interest, token in watches:
            try:  # the old set knows whether the number still denotes the file that was registered
                self.modify(fd, interest, token)
            except OSError:
                continue
            self._control(descriptor, EPOLL_CTL_ADD, fd, interest, token)
        self.descriptor = descriptor
        self._set = made  # this closes the old one

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        raise RuntimeError("the kernels wait for epoll")  # pragma: no cover

    def wake(self) -> None:
        os.eventfd_write(self.wake_fd, 1)

    def close(self) -> None:
        self._set.close()
        self._wake.close()


def has_ns_timeouts() -> bool:
    """Whether the system has epoll_pwait2, whose timeout is in ns (Linux 5.11)."""
    ctypes.set_errno(0)
    _libc.syscall(*map(ctypes.c_long, (SYS_EPOLL_PWAIT2, -1, 0, 0, 0, 0, 0)))
    # A kernel that has it rejects these arguments so. ENOSYS: an older kernel; EPERM: a seccomp filter that lacks it.
    return ctypes.get_errno() in (errno.EINVAL, errno.EBADF, errno.EFAULT)
