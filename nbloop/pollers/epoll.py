"""epoll with an eventfd (Linux). The kernels wait (kernels/turn/fd_watches.py); this file makes the set and changes it.

Both descriptors are edge-triggered where it counts: the wake descriptor is registered with EPOLLET and never read, so
a wake costs one write and no read. A muted descriptor stays in the set with no events and EPOLLET: the system reports
errors and hang-ups of a descriptor unasked, and level-triggered ones of a muted socket would spin the loop.

A half-close of the peer (EPOLLRDHUP) is asked for together with READ only: it is news for whoever reads, while for one
that still writes what is left it would be true, and so reported, for ever.

What epoll watches is not the number but the open file behind it, and it forgets that only when the last duplicate is
closed. A user who closes a descriptor before unregistering it can therefore leave an entry that nothing can name any
more. `remove` notices, and when such an entry speaks up the set is made anew (`renew`).

Both descriptors are owned by objects that close them once, when they are asked to or when nobody refers to them. A
number alone is lost where an exception of a signal handler comes between the call that returns it and its store, and a
close that is made again after one would close what has the number by then.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
from collections.abc import Iterable, Sequence

from ..kernels.base.capi import EPOLL_DATA, SYS_EPOLL_PWAIT2
from ..kernels.base.layout import EDGE, ONESHOT, PARK_EPOLL, READ, WRITE

_libc = ctypes.CDLL(None, use_errno=True)
EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD = 1, 2, 3
EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLONESHOT, EPOLLET = 1, 4, 0x2000, 1 << 30, 1 << 31


class _Event(ctypes.Structure):
    _pack_ = 1 if EPOLL_DATA == 4 else 8
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


assert _Event.data.offset == EPOLL_DATA or sys.platform != "linux"


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _bits(interest: int) -> int:
    if interest & (READ | WRITE) == 0:
        return EPOLLET
    bits = 0
    if interest & READ:
        bits |= EPOLLIN | EPOLLRDHUP
    if interest & WRITE:
        bits |= EPOLLOUT
    if interest & EDGE:
        bits |= EPOLLET
    if interest & ONESHOT:
        bits |= EPOLLONESHOT
    return bits


class EpollPoller:
    """An epoll set with its wake descriptor."""

    park_mode = PARK_EPOLL

    def __init__(self) -> None:
        # Made and owned in one call of C. The owner is of a type that closes any descriptor, whatever its name says.
        self._wake = next(map(select.epoll.fromfd, map(os.eventfd, (0,), (os.EFD_CLOEXEC | os.EFD_NONBLOCK,))))
        self.wake_fd = self._wake.fileno()
        self._set = self._make()
        self.descriptor = self._set.fileno()

    def _make(self) -> select.epoll:
        made = select.epoll()
        self._control(made.fileno(), EPOLL_CTL_ADD, self.wake_fd, EPOLLIN | EPOLLET, 0)
        return made

    @staticmethod
    def _control(descriptor: int, operation: int, fd: int, bits: int, token: int) -> None:
        event = _Event(bits, token)
        _checked(_libc.epoll_ctl(descriptor, operation, fd, ctypes.byref(event)), f"epoll_ctl of descriptor {fd}")

    def add(self, fd: int, interest: int, token: int) -> None:
        try:
            self._control(self.descriptor, EPOLL_CTL_ADD, fd, _bits(interest), token)
        except FileExistsError:  # closed, unregistered, and come back by dup2() under its old number
            self.modify(fd, interest, token)

    def modify(self, fd: int, interest: int, token: int) -> None:
        self._control(self.descriptor, EPOLL_CTL_MOD, fd, _bits(interest), token)

    def remove(self, fd: int) -> bool:
        try:
            self._control(self.descriptor, EPOLL_CTL_DEL, fd, 0, 0)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOENT, errno.EPERM):  # closed; another file; and no pollable one
                raise
            return False
        return True

    def renew(self, watches: Iterable[tuple[int, int, int]]) -> None:
        made = self._make()
        descriptor = made.fileno()
        for fd, interest, token in watches:
            try:  # the old set tells whether the number still is the file that was registered
                self.modify(fd, interest, token)
            except OSError:
                continue
            self._control(descriptor, EPOLL_CTL_ADD, fd, _bits(interest), token)
        self.descriptor = descriptor
        self._set = made  # which closes the old one

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        raise RuntimeError("the kernels wait for epoll")  # pragma: no cover

    def wake(self) -> None:
        os.eventfd_write(self.wake_fd, 1)

    def close(self) -> None:
        self._set.close()
        self._wake.close()


def has_ns_timeouts() -> bool:
    """Does the system have epoll_pwait2, whose timeout is in ns (Linux 5.11)?"""
    ctypes.set_errno(0)
    _libc.syscall(*map(ctypes.c_long, (SYS_EPOLL_PWAIT2, -1, 0, 0, 0, 0, 0)))
    # What it says of such arguments. ENOSYS is an older kernel, EPERM a filter (seccomp) that does not know the number.
    return ctypes.get_errno() in (errno.EINVAL, errno.EBADF, errno.EFAULT)
