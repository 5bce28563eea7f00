"""Channels: threads put records of numbers, and the loop gets them as numpy arrays.

Problem: at a million records a second, of a few numbers each, a callback for each record costs too much. Idea: the
numbers go into a ring of records (kernels/channels), and one callback gets many of them as an array that lies in that
ring. `put` is a built-in, as `submit` is. This file contains the checks, the messages of the refusals, the conversions
that only numpy can do, and the wait for room.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from queue import ShutDown
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from .awaiting import waiting
from .compiled import REFUSALS, NativeHandler, NativeRing
from .errors import LoopOverloadedError, LoopTerminatedError, ReentrantWaitError
from .hooks import finds_out
from .kernels.base import layout
from .kernels.base.kernel import bound
from .kernels.channels import channel_methods
from .kernels.state.state import ChannelWords, LoopWords, make_channel_state
from .lock import LOOK, CountingLock, check_finalizing
from .options import check_callable, check_int, check_name, check_timeout
from .unique import Unique

if TYPE_CHECKING:
    from .lifecycle import Lifecycle
    from .observe.metrics import Quantiles

type Records = npt.NDArray[Any]
type OnFull = Literal["raise", "wait", "drop_new", "drop_old"]

ON_FULL: dict[object, int] = {
    "raise": layout.ON_FULL_RAISE,
    "wait": layout.ON_FULL_WAIT,
    "drop_new": layout.ON_FULL_DROP_NEW,
    "drop_old": layout.ON_FULL_DROP_OLD,
}
CAPACITY_MOST = 1 << 28
BYTES_MOST = 1 << 40  # of a ring
DELAY_MOST = 4e9  # seconds, as of a timer

_numbers = itertools.count(1)  # of channels without a name
_EXACT = {8: (1 << 53, layout.FIELD_DOUBLE), 4: (1 << 24, layout.FIELD_SINGLE)}
_INTEGERS = {1: layout.FIELD_INT8, 2: layout.FIELD_INT16, 4: layout.FIELD_INT32, 8: layout.FIELD_INT64}
# What numpy itself raises for a value, as opposed to what the value's own code raises.
_CONVERSION = (TypeError, ValueError, OverflowError, FloatingPointError)


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """A structured dtype of fixed size, without objects."""
    checked: np.dtype[Any]
    try:
        checked = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype must be a structured numpy dtype, not {dtype!r}: {error}") from None
    if not checked.names:
        raise TypeError(f"dtype must be a structured numpy dtype with at least one field, not {dtype!r}")
    if checked.hasobject:
        raise TypeError(f"dtype must have no objects, whose references a record cannot own: {dtype!r}")
    if checked.shape != ():
        raise TypeError(f"dtype must be one record, not an array of them: {dtype!r}")
    if checked.itemsize == 0:
        raise TypeError(f"dtype must have a size: {dtype!r} has 0 bytes")
    return checked


def check_capacity(capacity: object, itemsize: int) -> None:
    check_int("capacity", capacity, 2, CAPACITY_MOST)
    assert isinstance(capacity, int)
    if capacity & (capacity - 1):
        raise ValueError(f"capacity must be a power of two from 2 to {CAPACITY_MOST}, not {capacity}")
    if capacity * itemsize > BYTES_MOST:
        raise ValueError(f"capacity must be at most {BYTES_MOST // itemsize} records of {itemsize} bytes")


def check_delay(max_delay: object) -> int:
    """In ns; 0 for none."""
    if max_delay is None:
        return 0
    if not isinstance(max_delay, (int, float)) or isinstance(max_delay, bool):
        raise TypeError(f"max_delay must be a number of seconds or None, not {max_delay!r}")
    if not 0 < max_delay <= DELAY_MOST:
        raise ValueError(f"max_delay must be more than 0 and at most {DELAY_MOST:.0f} seconds, not {max_delay!r}")
    return max(1, int(max_delay * 1e9))


def _fields(dtype: np.dtype[Any]) -> Records:
    """What kernels have to know about each field. numpy handles the kinds that they do not know."""
    fields = np.zeros(len(dtype.names or ()), layout.FIELD.dtype)
    fields["least"] = 1  # more than the most: no int fits
    for field, name in zip(fields, dtype.names or (), strict=True):
        assert dtype.fields is not None
        kind, field["at"] = dtype.fields[name][:2]
        if not kind.isnative:
            continue
        if kind.kind == "f" and kind.itemsize in _EXACT:
            field["most"], field["kind"] = _EXACT[kind.itemsize]
            field["least"] = -field["most"]
        elif kind.kind == "b":
            field["kind"] = layout.FIELD_BOOL
        elif kind.kind in "iu":
            field["kind"] = _INTEGERS[kind.itemsize]
            # numpy handles the values that fit no word, or that mean something else there: 2**63 and more, and -2**63.
            field["least"] = max(int(np.iinfo(kind).min), layout.MINUS + 1)
            field["most"] = min(int(np.iinfo(kind).max), (1 << 63) - 1)
    return fields


def _convert(dtype: np.dtype[Any], name: str, /, *values: Any, **named: Any) -> Records:
    """One record, as numpy would make it; an error names the field."""
    names = dtype.names or ()
    if len(values) > len(names):
        raise TypeError(f"{name}.put() takes {len(names)} values, for {', '.join(names)}: {len(values)} were given")
    given = dict(zip(names, values, strict=False))
    for field, value in named.items():
        if field not in names:
            raise TypeError(f"{name}.put() has no field {field!r}: its fields are {', '.join(names)}")
        if field in given:
            raise TypeError(f"{name}.put() got two values for the field {field!r}")
        given[field] = value
    missing = [repr(field) for field in names if field not in given]
    if missing:
        raise TypeError(f"{name}.put() has no value for the fields {', '.join(missing)}")
    record = np.zeros(1, dtype)
    with np.errstate(over="raise", invalid="raise"):
        for field in names:
            try:
                record[field][0] = given[field]
            except _CONVERSION as error:
                kind = OverflowError if isinstance(error, FloatingPointError) else type(error)
                if kind not in _CONVERSION:
                    raise
                raise kind(f"field {field!r} of {name}: {error}") from error
    return record


class Taker:
    """The coroutine that waits for the next batch of a channel, if one does. Loop thread."""

    def __init__(self) -> None:
        self.resume: Callable[[], object] | None = None

    def ready(self) -> None:
        """Resume the coroutine: there is a batch, or the channel has ended."""
        resume, self.resume = self.resume, None
        if resume is not None:
            resume()


class Room:
    """The producers that wait for room in one ring, first come, first served; and how the ring ends. Any thread."""

    def __init__(self, name: str = "", taker: Taker | None = None) -> None:
        self.name = name
        self.shut = False  # are producers to get `ShutDown`?
        self.closed = False  # has the ring been closed by a `shutdown`?
        self._taker = taker
        self._lock = CountingLock()
        self._gates: deque[tuple[int, _thread.LockType]] = deque()
        self.state: Callable[[], ChannelWords | None] = lambda: None

    @property
    def wanted(self) -> bool:
        """Whether the records that it holds will be delivered."""
        return self._taker is None or self._taker.resume is not None

    def wait(self, count: int, until: int) -> None:
        """Wait until there may be room for `count` records, the channel is closed, or the time is `until`."""
        state = self.state()
        if state is None:
            return
        room, sleeps = channel_methods.channel_room.bind(state), channel_methods.channel_sleeps.bind(state)
        gate = _thread.allocate_lock()
        gate.acquire()
        mine = (count, gate)
        served = False
        sleeps(1)
        try:
            with self._lock:
                self._gates.append(mine)
            while not served and (left := until - time.monotonic_ns()) > 0:
                check_finalizing()
                served = room() >= count or gate.acquire(timeout=min(LOOK, left / 1e9))
        finally:
            sleeps(-1)
            with self._lock:
                if mine in self._gates:
                    self._gates.remove(mine)
                if not served:
                    self.wake()  # wakes those behind it, for the room that it does not use

    def wake(self) -> None:
        """Wake the producers for which there is room, and no others."""
        state = self.state()
        if state is None or not self._gates:
            return
        with self._lock:
            room = channel_methods.channel_room.bind(state)()
            while self._gates and self._gates[0][0] <= room:
                count, gate = self._gates.popleft()
                room -= count
                gate.release()


def _ask(
    of: weakref.ref[Lifecycle], room: Room, what: str, timeout: float | None, code: int, count: int, until: int
) -> int:
    """Answer a question of the kernels (layout.ASK_x): raise, or return a number. `until` is the previous answer."""
    loop = of()
    if code == layout.ASK_WAKE:
        room.wake()
        return 0
    if code == layout.ASK_AGAIN:
        return int(loop is not None and finds_out(loop))
    if code == layout.ASK_CLOSED:
        if room.shut:
            raise ShutDown(f"{what} has been shut down")
        if loop is not None:
            loop._check_fork()
            if finds_out(loop):
                return 0
        why = loop._ended_by if loop is not None else None
        raise LoopTerminatedError(f"{what} takes no more records: its loop has terminated or is about to") from why
    if code == layout.ASK_KEPT:
        raise BufferError(
            f"on_batch of {what} has kept its records, or a view of them, which are overwritten from now on: copy them"
        )
    if code == layout.ASK_FULL:
        raise LoopOverloadedError(f"{what} is full: as many records wait as it holds; nothing was stored")
    if loop is not None and loop.is_loop_thread():
        raise ReentrantWaitError(f"{what} is full, and only the thread that was to wait for room can make some")
    now = time.monotonic_ns()
    if not until:
        until = (1 << 63) - 1 if timeout is None else min((1 << 63) - 1, now + int(timeout * 1e9))
    elif now >= until:
        raise TimeoutError(f"{what} has had no room for {count} records within {timeout} s; nothing was stored")
    room.wait(count, until)
    return until


def _answer(ask: Callable[[int, int, int], int], code: int, count: int, until: int) -> int:
    """`_ask`; for compiled code, which cannot take the exception itself, return the error's number."""
    if not code & layout.ASK_NATIVE:
        return ask(code, count, until)
    try:
        return ask(code & ~layout.ASK_NATIVE, count, until)
    except Exception as error:
        for number, (kind, _) in enumerate(REFUSALS):
            if type(error) is kind:
                return layout.NATIVE_ERROR - number
        raise


@dataclass(frozen=True)
class ChannelFigures:
    """What has gone through one ring of a channel: counts since it was made, a moment old.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     channel = loop.channel([("price", "f8")], lambda records: None, capacity=64, name="ticks")
    ...     [figures] = loop.channels()
    ...     figures.name, figures.capacity, figures.dropped
    ('ticks', 64, 0)
    """

    name: str
    """Of the channel. A producer has the name of its channel."""
    capacity: int
    waiting: int
    """Records that wait, or are claimed."""
    delivered: int
    """Records that `on_batch` was called with, or that coroutines have taken."""
    batches: int
    """How often that was."""
    dropped: int
    """Records that `on_full`, or the loop's end, has dropped."""
    delay: Quantiles | None = None
    """An upper bound on how long the oldest record of each batch waited for its delivery. It is too long by no more
    than the ring took to be emptied once. None if the loop does not measure (``metrics=``).
    """


def figures_of(state: LoopWords) -> list[ChannelFigures]:
    """The figures of each ring of the loop with this state, in the order of creation. Any thread. O(rings)."""
    found = []
    for words, room in list(state.channels.values()):
        record = np.ndarray((1,), layout.CHANNEL.dtype, buffer=words)[0]
        delays = None
        if record["delays"]:
            at = int(record["delays"]) - words.__array_interface__["data"][0]
            delays = np.ndarray(layout.HISTOGRAM.shape, np.int64, buffer=words, offset=at)
        found.append(ring_figures(room.name, record, delays))
    return found


def ring_figures(name: str, record: Any, delays: npt.NDArray[np.int64] | None) -> ChannelFigures:
    """The figures of one ring, of this process or another, from its CHANNEL record and, if it has one, its histogram of
    delays.
    """
    queue = record["handle"]["queue"]
    head = int(queue["head"])  # before the tail, which it never exceeds
    waiting = (int(queue["tail"]) & ~layout.MINUS) - head
    delivered, batches, dropped = (int(record[word]) for word in ("delivered", "batches", "dropped"))
    delay = None
    if delays is not None:
        from .observe.block import histogram_of
        from .observe.metrics import Quantiles

        delay = Quantiles.of(histogram_of(delays))
    return ChannelFigures(name, int(queue["limit"]), max(0, waiting), delivered, batches, dropped, delay)


class Entrance(Unique):
    """What `Channel` and `ChannelProducer` have in common: a ring of records, and the ways in."""

    _state: ChannelWords
    _room: Room
    loop: Lifecycle
    name: str
    dtype: np.dtype[Any]
    capacity: int

    @bound(channel_methods.channel_put)
    def put(self, *values: Any, **named: Any) -> bool:
        """Put one record: `values` for its fields, in the order of the dtype or by name. True; False if it was dropped.

        A stored record will be delivered before `run()` returns for good, unless `close()` drops and counts it. Records
        of all threads have one total order, and are delivered in it. Values are converted as numpy does when they are
        assigned to an array. Any thread, callbacks of the loop and signal handlers included (with ``on_full="wait"`` no
        signal handlers). O(1): one compare-and-swap; lock-free unless it waits or drops old records. Values that are
        not exactly `float`, `int` or `bool`, `named` values, and fields that are not plain numbers go through numpy,
        which takes some microseconds.

        Raises TypeError, ValueError or OverflowError, which name the field; `LoopTerminatedError` once the end of the
        loop has begun; when the channel is full, `LoopOverloadedError`, or with ``on_full="wait"`` TimeoutError, or on
        the loop's own thread `ReentrantWaitError`. In each case nothing was stored.
        """
        return False  # pragma: no cover

    def put_many(self, records: Records, /) -> int:
        """Put the records of an array of the channel's dtype, all or none, with nothing between them; return how many.

        One publication. 0 means that the array was empty, or that it was dropped. Otherwise as `put`. O(records), a
        copy. Raises TypeError for what is not such an array, ValueError for more records than the channel holds.
        """
        # The kernel trusts the size, and a subclass may report a wrong one. So pass on the plain array.
        array: Any = records
        if type(array) is not np.ndarray:
            array = np.asarray(array) if isinstance(array, np.ndarray) else None
        if array is None or (array.dtype is not self.dtype and array.dtype != self.dtype):
            shown = repr(records if array is None else array)[:200]
            raise TypeError(f"records must be an array of {self.name}'s dtype {self.dtype}, not {shown}")
        count = array.size
        if count > self.capacity:
            raise ValueError(f"records must be at most {self.capacity}, all that {self.name} holds, not {count}")
        if count == 0:
            return 0
        return self._put_array(array if array.flags.c_contiguous else np.ascontiguousarray(array), count)

    @bound(channel_methods.channel_put_array)
    def _put_array(self, records: Records, count: int, /) -> int:
        return 0  # pragma: no cover

    @property
    def native(self) -> NativeRing:
        """This ring, as an argument of a function that Numba compiles, which calls the ring's ``put(*values)`` and
        ``put_many(array)`` without the interpreter (`nbloop.NativeRing`). Needs the extra ``nbloop[jit]``.

        >>> import numba
        >>> @numba.njit(nogil=True)
        ... def produce(ring, count):
        ...     for i in range(count):
        ...         ring.put(i, 0.5 * i)
        >>> import nbloop
        >>> loop = nbloop.Loop(auto_exit=True)
        >>> produce(loop.channel([("n", "i8"), ("x", "f8")], lambda records: print(records["x"].sum())).native, 5)
        >>> loop.run()
        5.0

        Any thread. Raises ImportError without Numba, TypeError for a dtype that Numba does not know.
        """
        return NativeRing(self)

    @bound(channel_methods.channel_length)
    def waiting(self) -> int:
        """How many records wait, or are claimed; a moment old. Any thread. O(1)."""
        return 0  # pragma: no cover

    def shutdown(self) -> None:
        """Accept no more records here: `put` raises `queue.ShutDown`, also in producers that wait for room. Records
        that wait are delivered, and then ``async for`` ends. A second call does nothing. Any thread; not a signal
        handler. O(1).
        """
        self.loop._check_fork()
        with self.loop._lock:  # against the end of an auto-exit loop, which may reopen what it has closed
            self._room.shut = True
            channel_methods.channel_close.bind(self._state)()
            self._room.closed = True
        self._room.wake()

    @property
    def dropped(self) -> int:
        """How many records were dropped, by `on_full` or by `close()`. Any thread. O(1)."""
        return int(self._state.record["dropped"])

    @property
    def delivered(self) -> int:
        """How many records `on_batch` was called with, or coroutines took. Any thread. O(1)."""
        return int(self._state.record["delivered"])

    @property
    def batches(self) -> int:
        """How many batches `on_batch` was called with, or coroutines took. Any thread. O(1)."""
        return int(self._state.record["batches"])


class Channel(Entrance):
    """A ring of records into a loop: made by `Loop.channel`, which says what its options mean."""

    def __init__(
        self,
        loop: Lifecycle,
        dtype: Any,
        on_batch: Callable[[Records], object] | None,
        *,
        capacity: int,
        max_batch: int,
        max_delay: float | None,
        on_full: OnFull,
        timeout: float | None,
        name: str | None,
    ) -> None:
        self.loop = loop
        self.dtype = check_dtype(dtype)
        self._taker = Taker() if on_batch is None else None
        if on_batch is None:
            on_batch = methodcaller("copy")
        check_callable("on_batch", on_batch)
        check_capacity(capacity, self.dtype.itemsize)
        check_int("max_batch", max_batch, 1, CAPACITY_MOST)
        delay = check_delay(max_delay)
        if not isinstance(on_full, str):
            raise TypeError(f"on_full must be one of {', '.join(map(repr, ON_FULL))}, not {on_full!r}")
        if on_full not in ON_FULL:
            raise ValueError(f"on_full must be one of {', '.join(map(repr, ON_FULL))}, not {on_full!r}")
        if timeout is not None:
            check_timeout(timeout)
            if on_full != "wait":
                raise ValueError('timeout means something only with on_full="wait"')
        check_name(name)
        self.name = name if name is not None else f"{loop.name}-channel-{next(_numbers)}"
        self.capacity = capacity
        self._on_batch = on_batch
        self._context = copy_context() if loop._captures else None
        self._entry = on_batch._entry(self.dtype) if isinstance(on_batch, NativeHandler) else 0
        self._timeout = timeout
        self._options = {
            "capacity": capacity,
            "max_batch": min(max_batch, capacity),
            "max_delay": delay,
            "on_full": ON_FULL[on_full],
        }
        self._state, self._room = self._ring()

    def _ring(self) -> tuple[ChannelWords, Room]:
        """A ring of its own, with the options of this channel."""
        loop = self.loop
        room = Room(self.name, self._taker)
        with loop._lock:
            loop._check_fork()
            if loop._lifecycle() >= layout.TERMINATING:
                raise loop._terminated("takes no new channels: it has terminated or is about to") from loop._ended_by
            state = make_channel_state(
                loop._state,
                self.dtype,
                _fields(self.dtype),
                **self._options,
                on_batch=self._on_batch,
                context=self._context,
                entry=self._entry,
                convert=partial(_convert, self.dtype, self.name),
                ask=partial(_answer, partial(_ask, weakref.ref(loop), room, self.name, self._timeout)),
                ends=room,
                pulled=self._taker.ready if self._taker is not None else None,
            )
            room.state = weakref.ref(state)
            if loop._recorder is not None:
                loop._recorder.channels[state.number] = self.name
        return state, room

    def producer(self) -> ChannelProducer:
        """A private entrance for one producing thread at a time: a ring of its own, with the options of this channel
        and the same `on_batch`. The records of each producer stay in order; there is no order between rings.

        Any thread. Raises `LoopTerminatedError` once the end of the loop has begun, MemoryError.
        """
        if self._taker is not None:
            raise TypeError(
                f"{self.name} has no on_batch: coroutines take from its own ring, and a producer has another"
            )
        return ChannelProducer(self)

    def shutdown(self) -> None:
        super().shutdown()
        if self._taker is not None:
            with contextlib.suppress(LoopTerminatedError):
                self.loop.submit_internal(self._taker.ready)

    shutdown.__doc__ = Entrance.shutdown.__doc__

    def __aiter__(self) -> Self:
        """``async for records in channel:`` takes the batches of a channel without `on_batch`, in a coroutine of
        asyncio or `js.spawn` on its loop. Each batch is a new array of up to `max_batch` records, with `max_delay` as
        for `on_batch`. Other records wait in the ring, so `on_full` says what happens to records if the coroutine is
        slow. The iteration ends after `shutdown()`, when all records have been taken; the loop's end cancels it.
        """
        return self

    async def __anext__(self) -> Records:
        """The next batch. Raises RuntimeError if another coroutine waits for one, or in a coroutine of another loop;
        TypeError if the channel has an `on_batch`.
        """
        taker = self._taker
        if taker is None:
            raise TypeError(f"{self.name} has an on_batch, which gets its records")
        if taker.resume is not None:
            raise RuntimeError(f"another coroutine waits for the next batch of {self.name}")
        take = channel_methods.channel_take.bind(self._state)
        while True:
            wait, resume = waiting(self.loop, self.name)
            batch: Records | None = take()
            if batch is not None:
                return batch
            if self._room.closed and self.waiting() == 0:  # in this order: no record comes after the first
                raise StopAsyncIteration
            taker.resume = resume
            try:
                await wait
            finally:
                if taker.resume is resume:  # not that of a coroutine that has asked for the next batch meanwhile
                    taker.resume = None

    def __repr__(self) -> str:
        return f"<nbloop.Channel {self.name} of {self.loop.name}>"


class ChannelProducer(Entrance):
    """A handle for putting records from one thread at a time: made by `Channel.producer`."""

    def __init__(self, channel: Channel) -> None:
        if not isinstance(channel, Channel):
            raise TypeError(f"channel must be a nbloop.Channel, not {channel!r}")
        self.channel = channel
        self.loop, self.name, self.dtype, self.capacity = channel.loop, channel.name, channel.dtype, channel.capacity
        self._state, self._room = channel._ring()

    def __repr__(self) -> str:
        return f"<nbloop.ChannelProducer of {self.name}>"
