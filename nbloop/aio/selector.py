"""asyncio's table of readers and writers, where its transports expect it, over the core's descriptors.

asyncio waits in a selector; here the loop waits, and the selector is only the table. A ready handle is put at the end
of the loop's queue instead of being called at once, because that is asyncio's order: what was ready earlier runs
earlier.
"""

from __future__ import annotations

import functools
import selectors
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import FDAlreadyRegisteredError, FDNotRegisteredError
from ..kernels.turn import fd_watches as kernels
from ..loop import Loop
from ..pollers import refusal
from ..readiness import IOEvents
from .transports import watched_by

READ, WRITE, ERROR, HANGUP = (int(one) for one in (IOEvents.READ, IOEvents.WRITE, IOEvents.ERROR, IOEvents.HANGUP))

# Whether the reader or the writer is called, by reported events: a table, because `&` of an enum.IntFlag is Python code
# and takes 2.7 µs.
READER = [bool(events & (READ | HANGUP | ERROR)) for events in range(16)]
WRITER = [bool(events & (WRITE | ERROR)) for events in range(16)]
WRITER_ALONE = [bool(events & (WRITE | ERROR | HANGUP)) for events in range(16)]  # without a reader it gets HANGUP, too


FD_MOST = (1 << 31) - 1  # a C int

assert (READ, WRITE) == (selectors.EVENT_READ, selectors.EVENT_WRITE)  # one number has both meanings
_new_key = functools.partial(tuple.__new__, selectors.SelectorKey)  # its own constructor is a Python function


class Selector(selectors._BaseSelectorImpl):
    """The descriptors of one loop; the data of each is its pair (reader, writer) of handles."""

    if TYPE_CHECKING:  # asyncio's stubs do not name them
        _fd_to_key: dict[int, selectors.SelectorKey]

        def _fileobj_lookup(self, fileobj: Any) -> int: ...

    def __init__(self, core: Loop, run: Callable[[Any], None]) -> None:
        super().__init__()
        self._core = core
        table = core._descriptors.table.shared
        self._tokens = core._descriptors.table.tokens
        # Kernels do not check the table, so it is no attribute of its own that other code might replace.
        self._begin_here = functools.partial(kernels.watch_begin_here.bind(core._state), table)
        self._finish_here = functools.partial(kernels.watch_finish_here.bind(core._state), table)
        self._run = run
        self._queued: set[Any] = set()

    def put(self, fileobj: Any, side: int, handle: Any) -> Any:
        """Make a handle the descriptor's reader (READ) or writer (WRITE), or leave it without (None). Returns what was
        there before. Loop thread; O(1), with at most one system call.
        """
        # A subclass of int may have a hash of its own, which must not run in the middle of a kernel.
        fd = fileobj if type(fileobj) is int and fileobj >= 0 else int.__index__(self._fileobj_lookup(fileobj))
        keys = self._fd_to_key
        key = keys.get(fd)
        if key is None:
            if handle is not None:
                if fd > FD_MOST:  # the system would take the lower bits
                    raise OverflowError(f"a descriptor must be at most {FD_MOST}, not {fd}")
                data = (handle, None) if side == READ else (None, handle)
                made = _new_key((fileobj, fd, side, data))
                if fd in keys:  # a signal handler has added it meanwhile
                    return self.put(fileobj, side, handle)
                keys[fd] = made
                try:
                    callback = watched_by(*data) or self._ready
                    if self._begin_here(fd, callback, side) != 0:
                        self._core._watch(fd, side, callback)
                except FDAlreadyRegisteredError:
                    if fd not in keys or keys[fd] is not made:  # by a signal handler, meanwhile
                        return self.put(fileobj, side, handle)
                    del keys[fd]
                    raise
                except BaseException:  # a signal handler's may come when it is registered
                    if fd in keys and keys[fd] is made:
                        self._end(fd)
                    raise
                if fd not in keys:  # a signal handler has removed it again, before the core had it
                    self._end(fd)
            return None
        reader, writer = data = key.data
        before = data[side == WRITE]
        if before is handle:  # None
            return None
        data = (handle, writer) if side == READ else (reader, handle)
        events = key.events & ~side if handle is None else key.events | side
        if events == 0:
            self._end(fd)
            return before
        # Before the system is asked: an exception of a signal handler after that would leave the table behind it.
        watched_by(*data)
        made = _new_key((key.fileobj, fd, events, data))
        if events != key.events:
            try:
                self._core.modify_fd(fd, events)
            except BaseException as error:
                if fd in keys and keys[fd] is key:
                    self._undo(key, error)
                    raise
                if not isinstance(error, (FDNotRegisteredError, FileNotFoundError)):  # a signal handler has removed it
                    raise
        if fd not in keys or keys[fd] is not key:  # a signal handler has changed it meanwhile
            return self.put(fileobj, side, handle)
        keys[fd] = made
        return before

    def _undo(self, key: selectors.SelectorKey, error: BaseException) -> None:
        """After a change that has failed. What the system refuses is closed, and its number reused: forget it, as
        asyncio's own selector does. If a signal handler raised, perhaps after the change, the other side stays.
        """
        if isinstance(error, OSError):
            self._end(key.fd)
            return
        try:
            self._core.modify_fd(key.fd, key.events)
        except BaseException:
            self._end(key.fd)
            raise

    def _end(self, fd: int) -> None:
        keys, tokens = self._fd_to_key, self._tokens
        key, token = keys.get(fd), tokens.get(fd)
        try:
            status = self._finish_here(fd)
            if status > 0:
                raise refusal(fd, status)
            if status != 0:
                self._core._unwatch(fd)
        except FDNotRegisteredError:  # an exception of a signal handler came between the two
            pass
        finally:
            # Before the core's end a signal handler may have raised: then the core still has our token. After it, the
            # handler may have watched the descriptor again, with another key; and another thread may have registered it
            # with the core, without a key. There is no call below, because a handler might run in it.
            try:
                ended = tokens[fd] != token
            except KeyError:
                ended = True
            if ended and fd in keys and (keys[fd] is key or fd not in tokens):
                del keys[fd]

    def register(self, fileobj: Any, events: int, data: Any = None) -> NoReturn:
        raise NotImplementedError("this selector is a table that only its loop changes")

    unregister = modify = register  # type: ignore[assignment]

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
