"""The descriptors that a loop watches: registration, which is rare, is mostly Python under the loop's lock.

Events are handled by a kernel (kernels/turn/fd_watches.py) without a lock. A watch consists of three things that change
together here: an entry in the table below, a slot with the callback, and an entry in the platform's poller. The order
of changes decides what another thread can see in between: a slot is opened before the system can report its token, and
closed after the system has forgotten it; from that moment on no callback starts. With epoll one kernel call changes all
three. Elsewhere a signal handler may come in between, and change the same descriptor.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import FDAlreadyRegisteredError, FDNotRegisteredError, FDOutOfRangeError
from .kernels.base import layout
from .kernels.base.capi import EPOLL_EVENT_BYTES, WINDOWS
from .kernels.turn import fd_watches as kernels
from .lock import CountingLock
from .pollers import Poller, make_poller, refusal

FD_MOST = (1 << 32) - 1  # a Windows socket is an unsigned 32-bit number here; elsewhere the system refuses earlier


class IOEvents(enum.IntFlag):
    """What a descriptor is watched for, and what its callback receives.

    `READ` and `WRITE` are requested and reported; `ERROR` and `HANGUP` are always reported, `HANGUP` also when the peer
    of a socket watched for READ has closed its half. `EDGE` (report only changes) and `ONESHOT` (report once, then stay
    silent until `modify_fd`) can only be requested.

    >>> IOEvents.READ | IOEvents.ONESHOT
    <IOEvents.READ|ONESHOT: 33>
    """

    READ = layout.READ
    WRITE = layout.WRITE
    ERROR = layout.ERROR
    HANGUP = layout.HANGUP
    EDGE = layout.EDGE
    ONESHOT = layout.ONESHOT


# The callbacks' arguments, by number: made once, so that an event allocates nothing.
_MASKS = tuple(IOEvents(number) for number in range(16))
_MASK_ADDRESSES = np.array([id(mask) for mask in _MASKS], np.int64)

type ReadyCallback = Callable[[int, IOEvents], object]


def check_descriptor(fd: object) -> int:
    if not isinstance(fd, int) or isinstance(fd, bool):
        raise TypeError(f"fd must be a descriptor number (what fileno() returns), not {fd!r}")
    if not 0 <= fd <= FD_MOST:
        raise FDOutOfRangeError(f"fd must be from 0 to {FD_MOST}, not {fd}")
    return fd if type(fd) is int else int.__index__(fd)  # a subclass may have a hash of its own


def check_events(events: object) -> int:
    """The interest for `events`."""
    if not isinstance(events, int) or isinstance(events, bool):
        raise TypeError(f"events must be nbloop.IOEvents, not {events!r}")
    interest = int(events)
    if interest & ~0x3F:
        raise ValueError(f"events must be made of nbloop.IOEvents.READ, WRITE, EDGE and ONESHOT, not {interest:#x}")
    if interest and not interest & (layout.READ | layout.WRITE):
        raise ValueError(
            f"events must name READ, WRITE or both, not {events!r} alone; ERROR and HANGUP are always reported, 0 mutes"
        )
    return interest & ~(layout.ERROR | layout.HANGUP)


class FdTable:
    """The descriptors of one loop. All methods need the loop's lock, except `collect`, which needs its thread."""

    def __init__(self, state: Any, lock: CountingLock, captures: bool) -> None:
        self.poller: Poller | None = None
        self.tokens: dict[int, int] = {}  # by descriptor; its keys are the registered ones
        self._interests: dict[int, int] = {}  # by descriptor
        self._latest: dict[int, object] = {}  # by descriptor: what stands for its latest registration
        self._state = state
        self._record = state.record["io"]
        self._captures = captures
        self._begin: Callable[..., int] | None = None  # where kernels change the poller's entries, too
        # For the kernels that change the table in the loop's own thread, which a forked child does not have.
        self.shared = self.tokens, self._interests, self._latest, functools.partial(lock.acquire, False), lock.release

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, fd: int) -> bool:
        return fd in self.tokens

    def open_poller(self) -> Poller:
        """The poller, made at the first call and kept until the loop ends: it costs two descriptors, and a loop that
        watched one descriptor will watch another. OSError if it cannot be made; then nothing has changed.
        """
        if self.poller is not None:
            return self.poller
        poller, record, state = make_poller(), self._record, self._state.record
        self._open = (kernels.watch_open_captured if self._captures else kernels.watch_open).bind(self._state)
        self._change = kernels.watch_change.bind(self._state)
        self._close = kernels.watch_close.bind(self._state)
        ready = np.zeros(2 * layout.READY_MOST, np.int64)
        events, events_at, ns_timeouts = np.zeros(EPOLL_EVENT_BYTES * layout.READY_MOST, np.uint8), 0, False
        if poller.park_mode == layout.PARK_EPOLL:
            from .pollers.epoll import has_ns_timeouts

            events_at, ns_timeouts = events.ctypes.data, has_ns_timeouts()
            begin = kernels.watch_begin_captured if self._captures else kernels.watch_begin
            self._finish: Callable[..., int] = kernels.watch_finish.bind(self._state)
            self._begin = begin.bind(self._state)
        self._state.keep.extend((ready, events))  # before the kernels know of them
        addresses = ready.ctypes.data, _MASK_ADDRESSES.ctypes.data, events_at
        descriptor, wake_fd = poller.descriptor, poller.wake_fd
        made = self.poller  # by a signal handler, meanwhile; none comes between the next stores
        if made is not None:
            poller.close()
            return made
        record["ready"], record["masks"], record["events"] = addresses
        record["ns_timeouts"], record["poller"], state["wake_fd"] = ns_timeouts, descriptor, wake_fd
        self._ready, self.poller = ready, poller
        return poller

    def register(self, fd: int, interest: int, callback: ReadyCallback) -> bool:
        """Returns whether the loop has to sleep in another way from now on."""
        poller = self.poller
        if poller is None:
            if not WINDOWS:  # if `fd` is closed, the poller's descriptor must not get its number
                os.fstat(fd)
            poller = self.open_poller()
        if fd in self.tokens:  # perhaps by a signal handler that came just now
            raise FDAlreadyRegisteredError(f"descriptor {fd} is registered; use modify_fd(), or unregister_fd() first")
        self._interests[fd] = interest
        if self._begin is not None:
            mine: object = []  # no call: a signal handler may not register the descriptor between look and kernel
            self._latest[fd] = mine
            try:
                status = self._begin(fd, callback, interest, self.tokens)
            except BaseException:  # a signal handler's may come when it is registered
                if self._latest.get(fd) is mine:  # the handler has not registered it anew
                    self._finish(fd, self.tokens)
                raise
            if status > 0:
                raise refusal(fd, status)
            return status == kernels.CHANGES
        token = 0
        try:
            token = self._open(fd, callback, interest, self.tokens)
            poller.add(fd, interest, token)
            if fd not in self.tokens:  # a signal handler has unregistered it
                poller.remove(fd)
            elif self.tokens[fd] != token:  # and registered it anew
                self._agree(fd)
        except BaseException:
            if fd in self.tokens and token in (0, self.tokens[fd]):
                with contextlib.suppress(OSError):
                    poller.remove(fd)
                self._close(fd, self.tokens)
            raise
        return len(self.tokens) == 1

    def modify(self, fd: int, interest: int) -> None:
        token, before = self._known(fd), self._interests[fd]
        # Keep both interests while the system switches: an edge reported in between must find its interest.
        self._change(token, before | interest)
        self._interests[fd] = interest
        try:
            self._agree(fd)
        except BaseException:
            if fd in self.tokens and self.tokens[fd] == token and self._interests[fd] == interest:
                self._interests[fd] = before
            with contextlib.suppress(OSError):  # a signal handler may have raised after the change
                self._agree(fd)
            raise

    def _agree(self, fd: int) -> None:
        """Make the system and the slot agree with the tables, which a signal handler may change meanwhile: but not
        between a comparison and the call of a kernel, where the interpreter does not look for signals.
        """
        assert self.poller is not None
        while fd in self.tokens:
            token, interest = self.tokens[fd], self._interests[fd]
            self.poller.modify(fd, interest, token)
            if fd in self.tokens and self.tokens[fd] == token and self._interests[fd] == interest:
                self._change(token, interest)
                return

    def unregister(self, fd: int) -> bool:
        """Returns whether the loop has to sleep in another way from now on."""
        if self._begin is not None:
            status = self._finish(fd, self.tokens)
            if status > 0:
                raise refusal(fd, status)
            if status == kernels.UNKNOWN:
                raise self._unknown(fd)
            return False  # the kernels go back to the futex by themselves (kernels/turn/turn.py)
        token = self._known(fd)
        assert self.poller is not None
        known = False
        try:
            known = self.poller.remove(fd)
        finally:  # a signal handler may have raised after the system forgot the descriptor, or before
            if not known:
                self._record["suspect"] = 1
            if fd in self.tokens and self.tokens[fd] == token:  # else a signal handler has replaced it
                self._close(fd, self.tokens)
        if fd in self.tokens:  # a signal handler has unregistered it, and registered it anew
            with contextlib.suppress(FileExistsError):
                self.poller.add(fd, self._interests[fd], self.tokens[fd])
        return not self.tokens

    def _known(self, fd: int) -> int:
        token = self.tokens.get(fd)
        if token is None:
            raise self._unknown(fd)
        return token

    def _unknown(self, fd: int) -> FDNotRegisteredError:
        return FDNotRegisteredError(f"descriptor {fd} is not registered")

    def renew(self) -> None:
        """An entry that cannot be removed has fired: make the poller forget everything that is not registered."""
        assert self.poller is not None
        try:
            self.poller.renew((fd, self._interests[fd], token) for fd, token in self.tokens.items())
        finally:  # if a signal handler raises, the old set may already be gone
            self._record["poller"] = self.poller.descriptor

    def collect(self, found: Sequence[tuple[int, int]]) -> None:
        """Pass the poller's events to the kernels. The loop's thread."""
        if found:
            self._ready[: 2 * len(found)] = np.array(found, np.int64).ravel()
            kernels.collected.bind(self._state)(len(found))

    def close(self) -> None:
        """Forget all descriptors, whose callbacks the kernels have released. No thread may wake the loop any more. May
        be repeated if a signal handler raised before its end.
        """
        self.tokens.clear()
        self._interests.clear()
        self._latest.clear()
        if self.poller is not None:
            self._record["poller"] = -1
            self._state.record["wake_fd"] = -1
            self.poller.close()
            self.poller = None
