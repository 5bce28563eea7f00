"""asyncio's table of readers and writers, where its transports expect it, over the core's descriptors.

asyncio waits in a selector; here the loop waits, and the selector is only the table. A ready handle is put at the end
of the loop's queue instead of being called at once, because that is asyncio's order: what was ready earlier runs
earlier.
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

# Whether the reader or the writer is called, by reported events: a table, because `&` of an enum.IntFlag is Python code
# and takes 2.7 µs.
READER = [bool(events & (READ | HANGUP | ERROR)) for events in range(16)]
WRITER = [bool(events & (WRITE | ERROR)) for events in range(16)]
WRITER_ALONE = [bool(events & (WRITE | ERROR | HANGUP)) for events in range(16)]  # without a reader it gets HANGUP, too


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
            except BaseException:  # closed, and its number reused: forget it, as asyncio's own selector does
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
            told = WRITER  # the end of the peer's data concerns the reader only
            if READER[events]:
                self._tell(reader)
        if writer is not None and told[events]:
            self._tell(writer)

    def _tell(self, handle: Any) -> None:
        """Queue a handle, unless it is already queued. asyncio polls again only after all ready handles have run. This
        loop may poll again while its queue is blocked by a producer that has a ticket but has not stored its task yet.
        """
        if handle not in self._queued:
            self._core.submit(self._told, handle)
            self._queued.add(handle)  # not before the submit, or a refused one would block all later ones

    def _told(self, handle: Any) -> None:
        self._queued.discard(handle)
        self._run(handle)

    def select(self, timeout: float | None = None) -> NoReturn:
        raise NotImplementedError("nbloop waits for descriptors itself: this selector is the table of them")
