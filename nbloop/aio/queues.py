"""`nbloop.aio.Queue`: between any asyncio loops and any threads.

Problem: `asyncio.Queue` is for one loop, `queue.Queue` for threads, which it blocks, and CPython's advice for the way
from a thread to a loop is to poll the second from the first. Idea: one deque; one word, in kernels, that counts its
items and its room (`kernels/channels/permits.py`); and two lines of waiters, each of which knows how to be woken: a
future on its loop, or a lock. An awake loop is woken without a system call.

**No lock while nobody waits.** A `put` takes a place in the word, appends, and gives a permit. A `get` takes a permit,
pops, and gives the place back. A call that finds neither takes the lock, marks the word busy, and waits in a line. All
calls take the lock then, until the lines are empty. A call that had begun before finds the mark when it ends, and
serves the waiters (`_settle`).

**Fair, and first in first out.** A getter that is woken gets a permit, not an item: items leave the deque in their
order only, and newcomers find no permit. A getter that is cancelled in between gives its permit to the next in line.
The same holds for room, with a place.

A `put` happens when the item is in the queue, a `get` when it is taken out. So an item for which a getter was woken
still takes room, and the queue may have neither an item for one caller nor room for another: `QueueEmpty` and
`QueueFull` mean that everything is promised to earlier callers.

Invariants, while nobody holds the lock and no call is under way: a getter waits only if no item is available; a putter
waits only if all places are taken; ``items == available + reserved``, ``places == items + granted``.

**A signal handler may raise** in a call on the main thread, at the end of each call that this one makes. So a step
writes its own words before the one call that changes the queue's word. Serving the waiters can be begun again, and a
second wake has no effect. A call that ends with an exception gives up its turn and serves the others (`_ended_by`).
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..awaiting import set_done
from ..errors import LoopTerminatedError
from ..kernels import permits
from ..kernels.base import layout
from ..kernels.channels.permits import available_of
from ..kernels.state.state import make_permits
from ..lock import LOOK, check_finalizing
from ..options import check_int, check_timeout
from ..unique import Unique

_BUSY, _SHUT = layout.PERMITS_BUSY, layout.PERMITS_SHUT
_AVAILABLE, _PLACE = layout.PERMITS_AVAILABLE, layout.PERMITS_PLACE
_ALL_AVAILABLE = layout.PERMITS_MOST * _AVAILABLE  # the bits of a word that hold that number


class _Due(BaseException):
    """The kernel returns this in place of an item: with the item, if waiters are to be served now; without one, if it
    took none. It is an exception, because C code can make one from a single argument; it is never raised.
    """


_NOTHING = _Due()


class _Waiter:
    """A caller that may have to join one of the lines. `granted` is written under the queue's lock."""

    __slots__ = ("granted", "line")

    def __init__(self, line: deque[_Waiter]) -> None:
        self.line = line
        self.granted = False

    def prepare(self) -> None:
        """Called before it joins the line."""
        raise NotImplementedError

    def wake(self) -> bool:
        """Wake the caller, once or more. False if its loop has ended."""
        raise NotImplementedError


class _Task(_Waiter):
    __slots__ = ("future", "loop")

    def prepare(self) -> None:
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
        except LoopTerminatedError:
            return False
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            return False
        return True


class _Thread(_Waiter):
    __slots__ = ("gate",)

    def prepare(self) -> None:
        self.gate = _thread.allocate_lock()
        self.gate.acquire()

    def wake(self) -> bool:
        with contextlib.suppress(RuntimeError):  # it was released before
            self.gate.release()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is woken; return whether it was."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:  # a lock's wait may miss a signal that comes just before it
            check_finalizing()
            left = LOOK if until is None else min(LOOK, max(0.0, until - time.monotonic()))
            if self.gate.acquire(timeout=left):
                return True
            if until is not None and time.monotonic() >= until:
                return False


class Queue[T](Unique):
    """A queue for any number of asyncio loops, of any kind, and of threads: all may put and get.

    `maxsize` is the number of items that it holds, at most 1,073,741,823; 0 stands for that maximum. Items of one
    producer come out in the order in which it put them. Waiters are served in the order in which they began to wait; no
    call overtakes them. Each item wakes at most one getter, and each free place at most one putter.

    `put` and `get` are for coroutines; `put_wait` and `get_wait` for threads that run no loop; the other methods for
    both. Not for signal handlers and finalisers, which may interrupt a call on the same thread that holds the lock of
    the waiters. All calls are O(1), except that giving up waiting (cancellation, time-out) is O(waiting), and
    `shutdown` O(n). While no caller waits, calls take no lock except the one inside CPython's `deque`.

    >>> import nbloop, threading
    >>> async def main():
    ...     queue = nbloop.aio.Queue(maxsize=2)
    ...     threading.Thread(target=lambda: [queue.put_wait(n) for n in range(5)]).start()
    ...     return [await queue.get() for _ in range(5)]
    >>> nbloop.run(main())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, maxsize: int = 0) -> None:
        check_int("maxsize", maxsize, 0, layout.PERMITS_MOST)
        self._maxsize = maxsize
        self._items: deque[T] = deque()
        words = make_permits(maxsize or layout.PERMITS_MOST, self._items, _Due, _NOTHING)
        self._put, self._put_held = permits.permits_put.bind(words), permits.permits_put_held.bind(words)
        self._take, self._take_held = permits.permits_take.bind(words), permits.permits_take_held.bind(words)
        self._hold, self._change = permits.permits_hold.bind(words), permits.permits_change.bind(words)
        self._full = (maxsize or layout.PERMITS_MOST) * _PLACE  # from this value of the word on there is no room
        # The lock guards the rest.
        self._lock = _thread.allocate_lock()
        self._reserved = 0  # permits of getters that have been woken
        self._granted = 0  # places of putters that have been woken
        self._getters: deque[_Waiter] = deque()
        self._putters: deque[_Waiter] = deque()
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
        return not self._change(0) & _ALL_AVAILABLE

    def full(self) -> bool:
        """Whether `put_nowait` would raise `asyncio.QueueFull`. A moment old. Any thread."""
        return bool(self._change(0) >= self._full)

    # --- without waiting

    def put_nowait(self, item: T) -> None:
        """Put an item. Raises `asyncio.QueueFull` if there is no room, or all of it is granted to waiters, and
        `asyncio.QueueShutDown` after `shutdown`.
        """
        try:
            done = self._put(item)
            if done is not None:
                while not self._end_put(done, item, None):
                    time.sleep(0)  # a call under way has not given back its place; the next verdict may be another one
        except BaseException as error:
            self._ended_by(error, None)
            raise

    def get_nowait(self) -> T:
        """Get an item. Raises `asyncio.QueueEmpty` if there is none, or all are reserved for waiters, and
        `asyncio.QueueShutDown` if there is none after `shutdown`.
        """
        try:
            item = self._take()
            while type(item) is _Due:
                item = self._end_get(item, None)
                if item is _NOTHING:
                    time.sleep(0)  # as in `put_nowait`
            return item  # type: ignore[no-any-return]
        except BaseException as error:
            self._ended_by(error, None)
            raise

    # --- waiting

    async def put(self, item: T) -> None:
        """Put an item; wait for room first if there is none. `asyncio.QueueShutDown` after `shutdown`, also while it
        waits: the item is not put.

        A call that is cancelled has not put the item.
        """
        waiter = None
        try:
            done = self._put(item)
            if done is not None:
                waiter = _Task(self._putters)
                if not self._end_put(done, item, waiter):
                    await waiter.future
                    self._locked(self._finish_put, waiter, item)
        except BaseException as error:
            try:
                self._ended_by(error, waiter)
            except BaseException:  # a signal's handler raised after a cancellation
                self._ended_by(error, waiter)
                raise
            raise

    def put_wait(self, item: T, timeout: float | None = None) -> None:
        """`put` for a thread. TimeoutError after `timeout` seconds: the item is not put. RuntimeError in a running
        event loop, which it would block.
        """
        _refuse_loop("put")
        if timeout is not None:
            check_timeout(timeout)
        waiter = None
        try:
            done = self._put(item)
            if done is not None:
                waiter = _Thread(self._putters)
                if not self._end_put(done, item, waiter):
                    self._wait(waiter, timeout, "room for an item")
                    self._locked(self._finish_put, waiter, item)
        except BaseException as error:
            self._ended_by(error, waiter)
            raise

    async def get(self) -> T:
        """Get an item; wait for one if there is none. `asyncio.QueueShutDown` after `shutdown` if no item is left.

        A call that is cancelled has taken none.
        """
        waiter = None
        try:
            item = self._take()
            if type(item) is _Due:
                waiter = _Task(self._getters)
                item = self._end_get(item, waiter)
                if item is _NOTHING:
                    await waiter.future
                    item = self._locked(self._finish_get, waiter)
            return item  # type: ignore[no-any-return]
        except BaseException as error:
            try:
                self._ended_by(error, waiter)
            except BaseException:  # a signal's handler raised after a cancellation
                self._ended_by(error, waiter)
                raise
            raise

    def get_wait(self, timeout: float | None = None) -> T:
        """`get` for a thread. TimeoutError after `timeout` seconds. RuntimeError in a running event loop."""
        _refuse_loop("get")
        if timeout is not None:
            check_timeout(timeout)
        waiter = None
        try:
            item = self._take()
            if type(item) is _Due:
                waiter = _Thread(self._getters)
                item = self._end_get(item, waiter)
                if item is _NOTHING:
                    self._wait(waiter, timeout, "an item")
                    item = self._locked(self._finish_get, waiter)
            return item  # type: ignore[no-any-return]
        except BaseException as error:
            self._ended_by(error, waiter)
            raise

    def shutdown(self, immediate: bool = False) -> None:
        """Take no more items. Those in the queue can still be taken, unless `immediate` drops them.

        Putters that wait, and getters that wait for an item that will not come, get `asyncio.QueueShutDown`.
        Idempotent. Any thread.
        """
        self._locked(self._shut, None, immediate)

    # --- in steps

    def _end_put(self, done: bool, item: T, waiter: _Waiter | None) -> bool:
        """Finish a `put`: serve the callers that wait for the item, or, if it put nothing, run `_put_or_wait`."""
        if done:
            self._locked(_serve)
            return True
        return self._locked(self._put_or_wait, waiter, item)  # type: ignore[no-any-return]

    def _end_get(self, due: _Due, waiter: _Waiter | None) -> Any:
        """Finish a `get`: serve the callers that wait for the place, or, if it took nothing, run `_get_or_wait`."""
        if due.args:
            self._locked(_serve)
            return due.args[0]
        return self._locked(self._get_or_wait, waiter)

    def _wait(self, waiter: _Thread, timeout: float | None, what: str) -> None:
        if not waiter.wait(timeout):
            self._locked(self._give_up, waiter)  # here, so that it is done again if a signal handler raises
            raise TimeoutError(f"{what} has not come within {timeout} s")

    def _ended_by(self, error: BaseException, waiter: _Waiter | None) -> None:
        """A call that an exception ends gives up its turn, and serves the others, as it may have been about to do.

        GeneratorExit may come from the collector, which runs anywhere, even in a call on this thread that holds the
        lock. A wait for the lock would then never end. A separate thread can wait for it.
        """
        if isinstance(error, GeneratorExit) and self._lock.locked():
            _thread.start_new_thread(self._locked, (self._give_up, waiter))
        else:
            self._locked(self._give_up, waiter)

    def _locked(self, step: Callable[[int, Any, Any], Any], waiter: _Waiter | None = None, item: Any = None) -> Any:
        """Run a step under the lock, with the word as it is once the lock is taken; then serve the waiters, and wake
        them without the lock.
        """
        woken: list[_Waiter] = []
        dropped: list[T] = []  # released without the lock: items may have finalisers
        try:
            return self._hold_and(step, waiter, item, woken, dropped)
        finally:
            try:
                self._wake(woken, dropped)
            except BaseException:
                self._wake(woken, dropped)
                raise
            finally:
                del dropped

    def _hold_and(
        self,
        step: Callable[[int, Any, Any], Any],
        waiter: _Waiter | None,
        item: Any,
        woken: list[_Waiter],
        dropped: list[T],
    ) -> Any:
        """Run a step under the lock, and `_settle`."""
        held: list[bool] = []
        try:
            # One C call. In `with`, CPython 3.14 lets a handler raise between the lock and the block.
            held.extend(map(self._lock.acquire, (True,)))
            try:
                return step(self._hold(), waiter, item)
            finally:
                try:
                    self._settle(woken, dropped)
                except BaseException:
                    self._hold()
                    self._settle(woken, dropped)
                    raise
        finally:
            if held:
                self._lock.release()

    def _wake(self, woken: list[_Waiter], dropped: list[T]) -> None:
        for waiter in woken:  # a loop may be closed; then the list grows by the next in line
            if not waiter.wake():
                self._hold_and(self._give_up, waiter, None, woken, dropped)

    # --- under the lock, where the word is busy: no call begins without the lock

    def _under_way(self, word: int) -> bool:
        """Whether a call has changed the word and is not done. If none is, none will be."""
        return word // _PLACE > available_of(word) + self._reserved + self._granted

    def _put_or_wait(self, word: int, waiter: _Waiter | None, item: T) -> bool:
        """Put the item: True. False if the waiter is now in line, or, without one, if the call has to be repeated."""
        if word & _SHUT:
            raise asyncio.QueueShutDown
        if word < self._full and not self._putters:
            self._put_held(item)
            return True
        if waiter is not None:
            waiter.prepare()
            self._putters.append(waiter)
        elif not self._under_way(word):
            raise asyncio.QueueFull
        return False

    def _get_or_wait(self, word: int, waiter: _Waiter | None, _item: object) -> Any:
        """The item, or `_NOTHING` where `_put_or_wait` returns False."""
        if word & _ALL_AVAILABLE and not self._getters:
            return self._take_held()
        if self._none_will_come(word):
            raise asyncio.QueueShutDown
        if waiter is not None:
            waiter.prepare()
            self._getters.append(waiter)
        elif not self._under_way(word):
            raise asyncio.QueueEmpty
        return _NOTHING

    def _finish_put(self, word: int, waiter: _Waiter, item: T) -> None:
        self._give_up(word, waiter)  # its place is free for the item now, and for no other while the lock is held
        if word & _SHUT:
            raise asyncio.QueueShutDown
        self._put_held(item)

    def _finish_get(self, word: int, waiter: _Waiter, _item: object) -> T:
        if not waiter.granted or self._dropped:
            raise asyncio.QueueShutDown
        self._give_up(word, waiter)  # its permit is for this getter, because the lock is held
        return self._take_held()  # type: ignore[no-any-return]

    def _give_up(self, _word: int, waiter: _Waiter | None, _item: object = None) -> None:
        """Leave the line, or give back what was granted to the waiter. It has an effect only once: a loop may be
        closed, and later its coroutine.
        """
        if waiter is None:
            return
        if not waiter.granted:
            with contextlib.suppress(ValueError):  # it has left the line, or has not joined it yet
                waiter.line.remove(waiter)
            return
        waiter.granted = False
        if waiter.line is self._putters:
            self._granted -= 1
            self._change(-_PLACE)
        elif not self._dropped:
            self._reserved -= 1
            self._change(_AVAILABLE)

    def _shut(self, word: int, _waiter: None, immediate: bool) -> None:
        self._dropped = self._dropped or immediate
        if not word & _SHUT:
            self._change(_SHUT)

    def _none_will_come(self, word: int) -> bool:
        """Whether the queue is shut, and holds no item but reserved ones. A call under way may bring one."""
        return bool(word & _SHUT) and word // _PLACE == self._reserved + self._granted

    def _settle(self, woken: list[_Waiter], dropped: list[T]) -> None:
        """Grant waiters what is available, in the order of their lines, and add them to `woken`; also waiters for which
        nothing will come. If no waiter is left, the word is no longer busy. Adds the dropped items to `dropped`.
        """
        if self._dropped:
            self._drop(dropped)
        getters, putters = self._getters, self._putters
        if getters or putters:
            word = self._change(0)
            while getters:
                waiter = getters[0]
                if not waiter.granted:
                    if not word & _ALL_AVAILABLE:
                        break
                    waiter.granted = True
                    self._reserved += 1
                    word = self._change(-_AVAILABLE)
                woken.append(waiter)
                getters.popleft()
            while putters:
                waiter = putters[0]
                if not waiter.granted:
                    if word >= self._full or word & _SHUT:
                        break
                    waiter.granted = True
                    self._granted += 1
                    word = self._change(_PLACE)
                woken.append(waiter)
                putters.popleft()
            if word & _SHUT:
                woken += putters
                putters.clear()
                if self._none_will_come(word):
                    woken += getters
                    getters.clear()
        if not getters and not putters:
            self._change(-_BUSY)

    def _drop(self, dropped: list[T]) -> None:
        """Take all items, including those reserved for woken getters."""
        reserved, self._reserved = self._reserved, 0
        self._change(reserved * _AVAILABLE)
        while (item := self._take_held()) is not _NOTHING:
            dropped.append(item)

    def __repr__(self) -> str:
        ended = ", shut down" if self._change(0) & _SHUT else ""
        return f"<nbloop.aio.Queue of {len(self._items)}, maxsize {self._maxsize}{ended}>"


def _serve(_word: int, _what: object, _item: object) -> None:
    """A step that does nothing: `_locked` serves the waiters after it."""


def _refuse_loop(name: str) -> None:
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(f"{name}_wait() would block the running event loop; use await {name}()")
