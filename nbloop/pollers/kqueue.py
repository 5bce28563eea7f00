"""kqueue (macOS, FreeBSD). Python waits, through ctypes.

A descriptor has up to two entries in a kqueue, one for reading and one for writing, which fire independently. `wait`
merges the events of one descriptor, so that a callback gets READ and WRITE in one call; a ONESHOT that fired through
one entry removes the other.

Each change of a watch gives its entries a new *key*, the word that comes back with their events. An event that was
fetched before a change but is processed after it carries an old key and is ignored. Nothing is lost, because the system
checks an entry again when it is added. An entry dies with its descriptor, so `remove` leaves nothing behind; but
`modify` of a closed descriptor whose number has been reused watches the new file.

Wakes use a user event. A kqueue accepts regular files and reports them for ever; they are refused, as on other systems.

The layouts, the constants and the flow are tested against a stand-in over epoll (tests/support/kevent_double.c) and
against libkqueue, if NBLOOP_LIBKQUEUE holds its path; not yet on a real kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

from ..kernels.base.layout import EDGE, ERROR, HANGUP, ONESHOT, READ, READY_MOST, WRITE
from .table import TablePoller

EVFILT_READ, EVFILT_WRITE = -1, -2
EV_ADD, EV_DELETE, EV_ONESHOT, EV_CLEAR, EV_RECEIPT = 0x1, 0x2, 0x10, 0x20, 0x40
EV_ERROR, EV_EOF = 0x4000, 0x8000
NOTE_TRIGGER = 0x01000000
FILTERS = ((READ, EVFILT_READ), (WRITE, EVFILT_WRITE))


class Darwin(ctypes.Structure):
    """``struct kevent`` of macOS, 64 bits."""

    user = -10
    _fields_ = (
        ("ident", ctypes.c_size_t),
        ("filter", ctypes.c_int16),
        ("flags", ctypes.c_uint16),
        ("fflags", ctypes.c_uint32),
        ("data", ctypes.c_ssize_t),
        ("udata", ctypes.c_uint64),
    )


class FreeBSD(ctypes.Structure):
    """``struct kevent`` of FreeBSD 12 and later, 64 bits."""

    user = -11
    _fields_ = (*Darwin._fields_, ("ext", ctypes.c_uint64 * 4))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_long))


def layout_here() -> Any:
    """This system's layout. OSError if it has no kqueue, or one that is not supported."""
    if sys.platform == "darwin":
        return Darwin
    if sys.platform.startswith("freebsd"):
        return FreeBSD
    raise OSError(errno.ENOSYS, f"nbloop has no poller for {sys.platform}")


class _Watch:
    __slots__ = ("fd", "interest", "key", "token")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.interest = self.token = self.key = 0


class KqueuePoller(TablePoller[_Watch]):
    """A kqueue. `library` provides its system calls, which take `event`, a ``struct kevent``."""

    def __init__(self, library: ctypes.CDLL | None = None, event: Any = None) -> None:
        super().__init__()
        self._event = event or layout_here()
        library = library or ctypes.CDLL(None, use_errno=True)
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._kevent = library.kevent
        self._kevent.argtypes = [number, pointer, number, pointer, number, pointer]
        self._keys: dict[int, _Watch] = {}  # by the key of their last change
        self._last = 0  # the last key given out; 0 is the wake event's
        self._found = (self._event * READY_MOST)()
        self.descriptor = self._checked(library.kqueue())
        try:
            os.set_inheritable(self.descriptor, False)
            self._control((self._event.user, EV_ADD | EV_CLEAR, 0, 0, 0))
        except BaseException:
            os.close(self.descriptor)
            raise

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"kqueue: {os.strerror(number)}")
        return result

    def _control(self, *changes: tuple[int, int, int, int, int]) -> None:
        """Apply changes (filter, flags, fflags, descriptor, key), as many as possible. Raises the OSError of the first
        one that fails, except for deleting an entry that is already gone.
        """
        made = (self._event * len(changes))()
        for entry, (which, flags, fflags, ident, key) in zip(made, changes, strict=True):
            entry.ident, entry.filter, entry.flags = ident, which, flags | EV_RECEIPT
            entry.fflags, entry.udata = fflags, key
        # With EV_RECEIPT each change returns its own errno, and no event takes its place.
        count = self._checked(self._kevent(self.descriptor, made, len(changes), made, len(changes), None))
        for entry, (_, flags, _, ident, _) in zip(made[:count], changes, strict=False):
            gone = flags & EV_DELETE and entry.data in (errno.ENOENT, errno.EBADF)
            if entry.flags & EV_ERROR and entry.data and not gone:
                raise OSError(entry.data, f"kevent of descriptor {ident}: {os.strerror(entry.data)}")

    def _new(self, fd: int) -> _Watch:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EPERM, f"descriptor {fd} is a regular file, which is always ready")
        return _Watch(fd)

    def _forget(self, watch: _Watch) -> None:
        self._keys.pop(watch.key, None)
        self._control(*self._changes(watch, 0, 0))
        watch.interest = 0  # `wait` may be about to disarm it: by then the number may have another watch

    def _change(self, watch: _Watch, interest: int, token: int) -> None:
        self._last += 1
        key, before = self._last, watch.key
        try:
            self._control(*self._changes(watch, interest, key))
            if watch.key != before:  # a signal handler has changed it meanwhile
                self._control(*self._changes(watch, interest, key))
            self._keys.pop(watch.key, None)
            self._keys[key] = watch
        except BaseException:
            # Undo the changes that succeeded; if the descriptor is closed there is nothing left to undo.
            undo = _Watch(watch.fd)
            undo.interest = interest
            with contextlib.suppress(OSError):
                self._control(*self._changes(undo, watch.interest, watch.key))
            if watch.interest:
                self._keys[watch.key] = watch
            raise
        watch.interest, watch.token, watch.key = interest, token, key

    @staticmethod
    def _changes(watch: _Watch, interest: int, key: int) -> list[tuple[int, int, int, int, int]]:
        """The changes that turn a watch's entries from its current interest to another."""
        how = EV_ADD | (EV_CLEAR if interest & EDGE else 0) | (EV_ONESHOT if interest & ONESHOT else 0)
        changes = []
        for bit, which in FILTERS:
            if watch.interest & bit:
                # Delete even before adding again: an entry keeps the flags it was created with, and libkqueue keeps
                # the first key of an entry that is added twice.
                changes.append((which, EV_DELETE, 0, watch.fd, 0))
            if interest & bit:
                changes.append((which, how, 0, watch.fd, key))
        return changes

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        limit = None if timeout_ns < 0 else ctypes.byref(_Timespec(*divmod(timeout_ns, 1_000_000_000)))
        count = self._kevent(self.descriptor, None, 0, self._found, READY_MOST, limit)
        if count < 0 and ctypes.get_errno() == errno.EINTR:
            return ()
        self._checked(count)
        together: dict[_Watch, int] = {}
        with self._lock:
            for entry in self._found[:count]:
                watch = self._keys.get(entry.udata)
                if watch is not None and entry.filter != self._event.user:
                    together[watch] = together.get(watch, 0) | _events(entry)
            for watch in together:
                if watch.interest & ONESHOT:
                    self._control(*self._changes(watch, 0, 0))
                    watch.interest = 0
            return [(watch.token, events) for watch, events in together.items()]

    def wake(self) -> None:
        self._control((self._event.user, 0, NOTE_TRIGGER, 0, 0))

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        with contextlib.suppress(OSError):  # fails in a forked child, which has no copy, and when called again
            os.close(descriptor)


def _events(entry: Any) -> int:
    if entry.flags & EV_ERROR:
        return ERROR
    events = READ if entry.filter == EVFILT_READ else WRITE
    if entry.flags & EV_EOF:
        events |= HANGUP
        if entry.fflags:  # the socket's error
            events |= ERROR
    return events
