"""Which descriptors a loop watches: registration, which is rare, in plain Python under the loop's lock.

What happens for every event is a kernel (kernels/readiness.py) and takes no lock. A watch is three things that change
together here: an entry of the table below, a slot with the callback, and an entry of the platform's poller. The order
decides what a thread in between can see: a slot is open before the system can report its token, and a slot is closed
after the system was told to forget it, which is the moment from which on no callback starts.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import FDAlreadyRegisteredError, FDNotRegisteredError, FDOutOfRangeError
from .kernels import layout, life
from .kernels import readiness as kernels
from .kernels.capi import EPOLL_EVENT_BYTES
from .pollers import Poller, make_poller

FD_MOST = (1 << 32) - 1  # a Windows socket is an unsigned 32-bit number here; elsewhere the system refuses earlier


class IOEvents(enum.IntFlag):
    """What a descriptor is watched for, and what its callback is told.

    `READ` and `WRITE` are asked for and reported; `ERROR` and `HANGUP` are reported unasked, `HANGUP` also when the
    peer of a socket watched for READ has closed its half. `EDGE` (report changes only) and `ONESHOT` (report once,
    then be silent until `modify_fd`) are only asked for.
    """

    READ = layout.READ
    WRITE = layout.WRITE
    ERROR = layout.ERROR
    HANGUP = layout.HANGUP
    EDGE = layout.EDGE
    ONESHOT = layout.ONESHOT


# What callbacks are given, by number: made once, so an event allocates nothing.
_MASKS = tuple(IOEvents(number) for number in range(16))
_MASK_ADDRESSES = np.array([id(mask) for mask in _MASKS], np.int64)

type ReadyCallback = Callable[[int, IOEvents], object]


def check_descriptor(fd: object) -> int:
    if not isinstance(fd, int) or isinstance(fd, bool):
        raise TypeError(f"fd must be a descriptor number (what fileno() returns), not {fd!r}")
    if not 0 <= fd <= FD_MOST:
        raise FDOutOfRangeError(f"fd must be from 0 to {FD_MOST}, not {fd}")
    return fd


def check_events(events: object) -> int:
    """The interest that `events` asks for."""
    if not isinstance(events, int) or isinstance(events, bool):
        raise TypeError(f"events must be nbloop.IOEvents, not {events!r}")
    interest = int(events)
    if interest & ~0x3F:
        raise ValueError(f"events must be made of nbloop.IOEvents.READ, WRITE, EDGE and ONESHOT, not {interest:#x}")
    if interest and not interest & (layout.READ | layout.WRITE):
        raise ValueError(
            f"events must name READ, WRITE or both, not {events!r} alone; ERROR and HANGUP are told of unasked, 0 mutes"
        )
    return interest & ~(layout.ERROR | layout.HANGUP)


class Watches:
    """The descriptors of one loop. Every method under the loop's lock, but `collect`, which is its thread's."""

    def __init__(self, state: Any) -> None:
        self.poller: Poller | None = None
        self._table: dict[int, tuple[int, int]] = {}  # descriptor -> (token, interest)
        self._state = state
        self._record = state.record["io"]
        self._record["masks"] = _MASK_ADDRESSES.ctypes.data
        self._record["poller"] = -1
        self._open = kernels.watch_open.bind(state)
        self._change = kernels.watch_change.bind(state)
        self._close = kernels.watch_close.bind(state)
        self._hold = life.hold.bind(state)

    def __len__(self) -> int:
        return len(self._table)

    def open_poller(self) -> Poller:
        """The poller, made at the first call and kept until the loop ends: making one costs two descriptors, and a loop
        that had one descriptor to watch will have another. OSError if that fails, and nothing has changed.
        """
        if self.poller is None:
            poller = make_poller()
            ready = np.zeros(2 * layout.READY_MOST, np.int64)
            self._state.keep.append(ready)  # before the kernels know of it
            self._ready = ready
            self._record["ready"] = ready.ctypes.data
            if poller.park_mode == layout.PARK_EPOLL:
                from .pollers.epoll import has_fine_timeouts

                events = np.zeros(EPOLL_EVENT_BYTES * layout.READY_MOST, np.uint8)
                self._state.keep.append(events)
                self._record["events"] = events.ctypes.data
                self._record["fine"] = has_fine_timeouts()
            self._record["poller"] = poller.descriptor
            self._state.record["wake_fd"] = poller.wake_fd
            self.poller = poller
        return self.poller

    def register(self, fd: int, interest: int, callback: ReadyCallback) -> None:
        if fd in self._table:
            raise FDAlreadyRegisteredError(f"descriptor {fd} is registered; use modify_fd(), or unregister_fd() first")
        poller = self.open_poller()
        token = self._open(fd, callback, interest)
        try:
            poller.add(fd, interest, token)
            self._table[fd] = (token, interest)
        except BaseException:
            self._close(token)
            raise
        self._hold(1)

    def modify(self, fd: int, interest: int) -> None:
        token, before = self._known(fd)
        assert self.poller is not None
        # Both, while the system changes over: an edge that is reported in between must find its interest.
        self._change(token, before | interest)
        try:
            self.poller.modify(fd, interest, token)
            before = interest
        finally:
            self._change(token, before)
            self._table[fd] = (token, before)

    def unregister(self, fd: int) -> None:
        token, _interest = self._known(fd)
        assert self.poller is not None
        if not self.poller.remove(fd):
            self._record["suspect"] = 1
        del self._table[fd]
        self._hold(-1)
        self._close(token)

    def _known(self, fd: int) -> tuple[int, int]:
        found = self._table.get(fd)
        if found is None:
            raise FDNotRegisteredError(f"descriptor {fd} is not registered")
        return found

    def renew(self) -> None:
        """An entry that cannot be removed has spoken: make the poller forget all but what is registered."""
        assert self.poller is not None
        self.poller.renew((fd, interest, token) for fd, (token, interest) in self._table.items())
        self._record["poller"] = self.poller.descriptor

    def collect(self, found: Sequence[tuple[int, int]]) -> None:
        """Hand the kernels what the poller has reported. The loop's thread."""
        if found:
            self._ready[: 2 * len(found)] = np.array(found, np.int64).ravel()
            kernels.collected.bind(self._state)(len(found))

    def close(self) -> None:
        """Forget all of them; the kernels have released their callbacks. Nobody wakes the loop any more."""
        self._hold(-len(self._table))
        self._table.clear()
        if self.poller is not None:
            poller, self.poller = self.poller, None
            self._record["poller"] = -1
            self._state.record["wake_fd"] = -1
            poller.close()
