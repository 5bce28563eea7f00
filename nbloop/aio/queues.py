"""`nbloop.aio.Queue`: between any asyncio loops and any threads.

Problem: `asyncio.Queue` is for one loop, `queue.Queue` for threads, which it blocks, and CPython's advice for the way
from a thread to a loop is to poll the second from the first. Idea: one deque, and two lines of waiters, each of which
knows how to be woken: a future on its loop, or a lock. An awake loop is woken without a system call.

**Fair, and first in first out.** A getter that is woken gets the right to an item, not the item: items leave the deque
in their order only, and `_reserved` of them belong to getters that were woken and have not resumed yet. A newcomer
takes none of these. A getter that is cancelled in between gives its right to the next in line. The same holds for room
(`_granted`).

**One lock**, of the kind that takes one atomic operation when nobody else holds it. It is held for some appends and
pops, never while waking: room, items, both lines and the end are decided at one moment.

A `put` happens when the item is there, a `get` when it is taken. So an item that is reserved still takes room, and
while room is granted the queue may have neither an item for one caller nor room for another: `QueueEmpty` and
`QueueFull` mean that everything is promised to earlier callers.

Invariants, while nobody holds the lock: a getter waits only if every item is reserved; a putter waits only if all room
is granted; ``len(items) + granted <= maxsize`` if there is one.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from ..options import check_int, check_timeout
from ..threads import LOOK
from ..unique import Unique
from .futures import set_done


class _Waiter:
    """Somebody in one of the lines. `granted` is written under the queue's lock."""

    __slots__ = ("granted",)

    def __init__(self) -> None:
        self.granted = False

    def wake(self) -> bool:
        """Once. False if nobody is left to wake."""
        raise NotImplementedError


class _Task(_Waiter):
    __slots__ = ("future", "loop")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()

    def wake(self) -> bool:
        if asyncio._get_running_loop() is self.loop:
            set_done(self.future)
            return True
        core = getattr(self.loop, "core", None)
        try:
            if core is not None:
                core.submit(set_done, self.future)
            else:
                self.loop.call_soon_threadsafe(set_done, self.future)
        except RuntimeError:  # the loop is closed
            return False
        return True


class _Thread(_Waiter):
    __slots__ = ("gate",)

    def __init__(self) -> None:
        super().__init__()
        self.gate = _thread.allocate_lock()
        self.gate.acquire()

    def wake(self) -> bool:
        self.gate.release()
        return True

    def wait(self, timeout: float | None) -> bool:
        until = None if timeout is None else time.monotonic() + timeout
        while True:  # a lock's wait may miss a signal that comes just before it
            left = LOOK if until is None else min(LOOK, max(0.0, until - time.monotonic()))
            if self.gate.acquire(timeout=left):
                return True
            if until is not None and time.monotonic() >= until:
                return False


class Queue[T](Unique):
    """A queue that any number of asyncio loops, of any kind, and of threads put into and get from.

    `maxsize` is how many items it holds, 0 for any number. Items of one producer come out in the order in which it put
    them. Waiters are served in the order in which they began to wait; nobody overtakes them. Each item wakes at most
    one getter, and each free place at most one putter.

    `put` and `get` are for coroutines; `put_wait` and `get_wait` for threads that run no loop; the other methods for
    both. Not for signal handlers and finalisers, which may interrupt a call on the same thread that holds the lock. All
    calls are O(1), except that giving up waiting (cancellation, time-out) is O(waiting), and `shutdown` O(n).

    >>> import nbloop, threading
    >>> async def main():
    ...     queue = nbloop.aio.Queue(maxsize=2)
    ...     threading.Thread(target=lambda: [queue.put_wait(n) for n in range(5)]).start()
    ...     return [await queue.get() for _ in range(5)]
    >>> nbloop.run(main())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, maxsize: int = 0) -> None:
        check_int("maxsize", maxsize, 0, 1 << 62)
        self._maxsize = maxsize
        self._lock = _thread.allocate_lock()
        self._items: deque[T] = deque()
        self._reserved = 0  # items that belong to getters who have been woken
        self._granted = 0  # rooms that belong to putters who have been woken
        self._getters: deque[_Waiter] = deque()
        self._putters: deque[_Waiter] = deque()
        self._shut = False
        self._dropped = False

    @property
    def maxsize(self) -> int:
        """How many items it holds; 0 for any number."""
        return self._maxsize

    def qsize(self) -> int:
        """How many items there are, including those reserved for others. A moment old. Any thread."""
        return len(self._items)

    def empty(self) -> bool:
        """Whether `get_nowait` would raise `asyncio.QueueEmpty`. A moment old. Any thread."""
        return len(self._items) <= self._reserved

    def full(self) -> bool:
        """Whether `put_nowait` would raise `asyncio.QueueFull`. A moment old. Any thread."""
        return not self._room()

    # --- without waiting

    def put_nowait(self, item: T) -> None:
        """Put an item. Raises `asyncio.QueueFull` if there is no room, or all of it is granted to waiters, and
        `asyncio.QueueShutDown` after `shutdown`.
        """
        with self._lock:
            if self._shut:
                raise asyncio.QueueShutDown
            if not self._room():
                raise asyncio.QueueFull
            self._items.append(item)
            waiter = self._next_getter()
        self._wake(waiter, self._ungranted_get)

    def get_nowait(self) -> T:
        """Get an item. Raises `asyncio.QueueEmpty` if there is none, or all are reserved for waiters, and
        `asyncio.QueueShutDown` if there is none after `shutdown`.
        """
        with self._lock:
            if len(self._items) <= self._reserved:
                raise asyncio.QueueShutDown if self._shut else asyncio.QueueEmpty
            item = self._items.popleft()
            waiter = self._next_putter()
        self._wake(waiter, self._ungranted_put)
        return item

    # --- waiting

    async def put(self, item: T) -> None:
        """Put an item, and wait for room. `asyncio.QueueShutDown` after `shutdown`, also while it waits: it is not put.

        Cancelled, it has not put the item.
        """
        waiter = self._try_put(item, _Task)
        if waiter is not None:
            assert isinstance(waiter, _Task)
            try:
                await waiter.future
            except BaseException as error:
                self._give_up(waiter, self._ungranted_put, error)
                raise
            self._finish_put(waiter, item)

    def put_wait(self, item: T, timeout: float | None = None) -> None:
        """`put` for a thread. TimeoutError after `timeout` seconds: the item is not put. RuntimeError in a running
        event loop, which it would block.
        """
        _refuse_loop("put")
        if timeout is not None:
            check_timeout(timeout)
        waiter = self._try_put(item, _Thread)
        if waiter is not None:
            self._await_thread(waiter, timeout, self._ungranted_put, "room for an item")
            self._finish_put(waiter, item)

    async def get(self) -> T:
        """Get an item, and wait for one. `asyncio.QueueShutDown` after `shutdown` if there is none.

        Cancelled, it has taken none.
        """
        waiter, item = self._try_get(_Task)
        if waiter is None:
            return item  # type: ignore[return-value]
        assert isinstance(waiter, _Task)
        try:
            await waiter.future
        except BaseException as error:
            self._give_up(waiter, self._ungranted_get, error)
            raise
        return self._finish_get(waiter)

    def get_wait(self, timeout: float | None = None) -> T:
        """`get` for a thread. TimeoutError after `timeout` seconds. RuntimeError in a running event loop."""
        _refuse_loop("get")
        if timeout is not None:
            check_timeout(timeout)
        waiter, item = self._try_get(_Thread)
        if waiter is None:
            return item  # type: ignore[return-value]
        self._await_thread(waiter, timeout, self._ungranted_get, "an item")
        return self._finish_get(waiter)

    def shutdown(self, immediate: bool = False) -> None:
        """Take no more items. Those in the queue can still be taken, unless `immediate` drops them.

        Putters that wait, and getters that wait for an item that will not come, get `asyncio.QueueShutDown`.
        Idempotent. Any thread.
        """
        with self._lock:
            self._shut = True
            if immediate:
                dropped = self._items
                self._items, self._reserved, self._dropped = deque(), 0, True
            else:
                dropped = deque()
            waiters = [*self._getters, *self._putters]
            self._getters.clear()
            self._putters.clear()
        dropped.clear()  # without the lock: items may have finalisers
        for waiter in waiters:
            waiter.wake()

    # --- under the lock

    def _room(self) -> bool:
        return self._maxsize == 0 or len(self._items) + self._granted < self._maxsize

    def _next_getter(self) -> _Waiter | None:
        """The getter to wake, if an item is not reserved."""
        if not self._getters or len(self._items) <= self._reserved:
            return None
        waiter = self._getters.popleft()
        waiter.granted = True
        self._reserved += 1
        return waiter

    def _next_putter(self) -> _Waiter | None:
        if not self._putters or not self._room():
            return None
        waiter = self._putters.popleft()
        waiter.granted = True
        self._granted += 1
        return waiter

    # --- waiting, in steps

    def _try_put(self, item: T, kind: Callable[[], _Waiter]) -> _Waiter | None:
        with self._lock:
            if self._shut:
                raise asyncio.QueueShutDown
            if self._room():
                self._items.append(item)
                waiting, waiter = None, self._next_getter()
            else:
                waiting, waiter = kind(), None
                self._putters.append(waiting)
        self._wake(waiter, self._ungranted_get)
        return waiting

    def _finish_put(self, waiter: _Waiter, item: T) -> None:
        with self._lock:
            if waiter.granted:
                self._granted -= 1
            if self._shut:
                raise asyncio.QueueShutDown
            self._items.append(item)
            getter = self._next_getter()
        self._wake(getter, self._ungranted_get)

    def _try_get(self, kind: Callable[[], _Waiter]) -> tuple[_Waiter | None, T | None]:
        with self._lock:
            if len(self._items) <= self._reserved:
                if self._shut:
                    raise asyncio.QueueShutDown
                waiting = kind()
                self._getters.append(waiting)
                return waiting, None
            item = self._items.popleft()
            waiter = self._next_putter()
        self._wake(waiter, self._ungranted_put)
        return None, item

    def _finish_get(self, waiter: _Waiter) -> T:
        with self._lock:
            if not waiter.granted or self._dropped:
                raise asyncio.QueueShutDown
            self._reserved -= 1
            item = self._items.popleft()
            putter = self._next_putter()
        self._wake(putter, self._ungranted_put)
        return item

    def _await_thread(
        self, waiter: _Waiter, timeout: float | None, ungranted: Callable[[_Waiter], _Waiter | None], what: str
    ) -> None:
        assert isinstance(waiter, _Thread)
        came = False
        try:
            came = waiter.wait(timeout)
        finally:
            if not came:
                self._wake(ungranted(waiter), ungranted)
        if not came:
            raise TimeoutError(f"{what} has not come within {timeout} s")

    def _give_up(self, waiter: _Waiter, ungranted: Callable[[_Waiter], _Waiter | None], error: BaseException) -> None:
        """A coroutine stops waiting because of that exception.

        GeneratorExit may come from the collector, which runs anywhere: also in a call on this thread that holds the
        lock. To wait for the lock would then be for ever. A thread of its own can wait for it.
        """

        def gives_up() -> None:
            self._wake(ungranted(waiter), ungranted)

        if isinstance(error, GeneratorExit) and self._lock.locked():
            _thread.start_new_thread(gives_up, ())
        else:
            gives_up()

    def _ungranted_get(self, waiter: _Waiter) -> _Waiter | None:
        """A getter gives up, perhaps again: its loop was closed, and later its coroutine is. Returns the
        getter to wake in its place.
        """
        with self._lock:
            if not waiter.granted:
                with contextlib.suppress(ValueError):  # a shutdown has emptied the line
                    self._getters.remove(waiter)
            elif not self._dropped:
                self._reserved -= 1
            waiter.granted = False
            return self._next_getter()

    def _ungranted_put(self, waiter: _Waiter) -> _Waiter | None:
        with self._lock:
            if not waiter.granted:
                with contextlib.suppress(ValueError):
                    self._putters.remove(waiter)
            else:
                self._granted -= 1
            waiter.granted = False
            return self._next_putter()

    def _wake(self, waiter: _Waiter | None, ungranted: Callable[[_Waiter], _Waiter | None]) -> None:
        while waiter is not None and not waiter.wake():
            waiter = ungranted(waiter)

    def __repr__(self) -> str:
        ended = ", shut down" if self._shut else ""
        return f"<nbloop.aio.Queue of {len(self._items)}, maxsize {self._maxsize}{ended}>"


def _refuse_loop(name: str) -> None:
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(f"{name}_wait() would block the running event loop; use await {name}()")
