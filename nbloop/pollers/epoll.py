"""epoll with an eventfd (Linux): how a loop sleeps in poll mode.

The kernels' wake call adds 1 to the eventfd, exactly once for each announced sleep that a producer claims. So the
descriptors may be closed only when as many additions have arrived as were claimed: a producer that was descheduled
between its claim and its write would otherwise write to a closed descriptor, or to whoever has its number by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select

_libc = ctypes.CDLL(None, use_errno=True)
EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN = 0o2000000, 1, 1


class _Event(ctypes.Structure):
    # The kernel's struct is packed on x86-64 only, an accident kept for compatibility with 32-bit programs.
    _pack_ = 1 if os.uname().machine == "x86_64" else 8
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class EpollPoller:
    """An epoll set with its wake descriptor."""

    def __init__(self) -> None:
        self._received = 0
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._epoll = _checked(_libc.epoll_create1(EPOLL_CLOEXEC))
            event = _Event(EPOLLIN, self.wake_fd)
            _checked(_libc.epoll_ctl(self._epoll, EPOLL_CTL_ADD, self.wake_fd, ctypes.byref(event)))
        except BaseException:
            os.close(self.wake_fd)
            raise
        self._events = (_Event * 64)()

    def wait(self, timeout_ns: int) -> None:
        """Sleep until woken, for at most `timeout_ns`, rounded up to whole milliseconds so that no timer is early;
        -1: no limit.
        """
        timeout = -1 if timeout_ns < 0 else min(-(-timeout_ns // 1_000_000), 2**31 - 1)
        count = _libc.epoll_wait(self._epoll, self._events, len(self._events), timeout)
        if count < 0 and ctypes.get_errno() == 4:  # EINTR: the caller looks again
            return
        _checked(count)
        if count:
            self._receive()

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._received += os.eventfd_read(self.wake_fd)

    def wake(self) -> None:
        """As the kernels do it."""
        os.eventfd_write(self.wake_fd, 1)

    def close(self, claimed: int) -> None:
        """Wait for the wake calls that are on their way, then close both descriptors."""
        while self._received < claimed:
            select.select([self.wake_fd], [], [])
            self._receive()
        os.close(self._epoll)
        os.close(self.wake_fd)
