"""asyncio's table of readers and writers, kept where its transports look for it, over the core's descriptors.

asyncio waits in a selector; here the loop waits, and the selector is only the table. What is ready is put at the end
of the loop's queue and not called at once, because that is asyncio's order: what became ready earlier runs earlier.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import FDAlreadyRegisteredError, FDNotRegisteredError
from ..loop import Loop
from ..readiness import IOEvents
from .transports import watched_by

READ, WRITE, ERROR, HANGUP = (int(one) for one in (IOEvents.READ, IOEvents.WRITE, IOEvents.ERROR, IOEvents.HANGUP))

# Who is told, by what was reported: a table, because `&` of an enum.IntFlag is Python, 2.7 us.
READER = [bool(events & (READ | HANGUP | ERROR)) for events in range(16)]
WRITER = [bool(events & (WRITE | ERROR)) for events in range(16)]
WRITER_ALONE = [bool(events & (WRITE | ERROR | HANGUP)) for events in range(16)]  # to whom else would a HANGUP be told


def _interest(events: int) -> int:
    return (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0)


class Selector(selectors._BaseSelectorImpl):
    """The descriptors of one loop; the data of each is its pair (reader, writer) of handles."""

    _fd_to_key: dict[int, selectors.SelectorKey]  # asyncio's stubs do not name it

    def __init__(self, core: Loop, run: Callable[[Any], None]) -> None:
        super().__init__()
        self._core = core
        self._run = run
        self._queued: set[Any] = set()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        try:
            self._core.register_fd(key.fd, _interest(events), watched_by(*data) or self._ready)
        except FDAlreadyRegisteredError:
            super().unregister(fileobj)
            raise
        except BaseException:  # a signal handler's may come when it is registered
            self.unregister(fileobj)
            raise
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self.get_key(fileobj)
        try:
            self._core.unregister_fd(key.fd)
        except FDNotRegisteredError:  # an exception of a signal handler came between the two
            pass
        except OSError:
            super().unregister(fileobj)
            raise
        return super().unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self.get_key(fileobj)
        if events != key.events:
            try:
                self._core.modify_fd(key.fd, _interest(events))
            except BaseException:  # closed, and its number given to another: as asyncio's own, it is forgotten
                self.unregister(fileobj)
                raise
        watched_by(*data)
        key = key._replace(events=events, data=data)
        self._fd_to_key[key.fd] = key
        return key

    def _ready(self, fd: int, events: int) -> None:
        key = self._fd_to_key.get(fd)
        if key is None:
            return
        reader, writer = key.data
        if reader is None:
            told = WRITER_ALONE
        else:
            told = WRITER  # the end of what the peer sends is the reader's
            if READER[events]:
                self._tell(reader)
        if writer is not None and told[events]:
            self._tell(writer)

    def _tell(self, handle: Any) -> None:
        """Queue a handle, unless it waits there already: asyncio looks again only when all that was ready has run, but
        this loop also while a producer is between its ticket and its task, and all behind that has to wait.
        """
        if handle not in self._queued:
            self._core.submit(self._told, handle)
            self._queued.add(handle)  # not before: a submit that is refused must not be the last

    def _told(self, handle: Any) -> None:
        self._queued.discard(handle)
        self._run(handle)

    def select(self, timeout: float | None = None) -> NoReturn:
        raise NotImplementedError("nbloop waits for descriptors itself: this selector is the table of them")
