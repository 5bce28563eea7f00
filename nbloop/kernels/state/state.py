"""State arrays: how a loop's memory is created, filled and released, and who owns it.

A `State` is a numpy array and the ``self`` of the loop's built-in methods, so it lives as long as the loop *or any
method taken from it*. Its words hold two kinds of addresses: those of objects that the array's attribute `keep` keeps
alive (hooks), and those of what kernels own: references to callables, and memory from system.py.

It ends in two steps, because the collector calls the finalisers of a cycle in any order, and finalisers may call
methods. A `State` can be part of such a cycle. Its finaliser closes every queue, including those of its handles, and
releases the callables. The memory stays, so a later call is refused or finds nothing. The `Memory` under the words is
in no cycle, as the collector does not see it. It goes with the last reference to the state, and releases the memory
that kernels took.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from types import CoroutineType
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ...unique import Unique
from ..base import layout
from ..base.atomics import put
from ..base.interpreter import TYPE_TRAVERSE
from ..base.kernel import Kernel, data
from ..base.layout import CHANNEL, FAR, FIELD, HANDLE, IO, LINE, PERMITS, POOL, QUEUE, RING, STATE, TIMERS, table
from ..calls.captured import RUN_IN_CONTEXT
from ..channels.channel_methods import channel_deliver, channel_destroy, channel_drop, channel_due, channel_resume
from ..channels.fields import FIELD_BITS
from ..methods.lifetime import destroy, dismantle, producer_close, producer_destroy, producer_drop, warm
from ..timers.buckets import GRAIN_MASK
from .traverse import traverse_handle, traverse_loop

_SEGMENTS = 1 << layout.DIRECTORY_BITS

_whole: set[int] = set()  # ids of complete `Memory` objects: the remains of a refused numpy copy have that type too


class Memory(Unique, np.ndarray):
    """The memory of a loop's state: its words, then its tables. It has no attributes, so the collector does not track
    it, and does not call its finaliser in the middle of a cycle.
    """

    __slots__ = ()

    def __array_finalize__(self, source: object) -> None:
        if isinstance(source, Memory):
            raise TypeError("a state's memory has no views or copies of its own type: use view(numpy.ndarray)")

    def __del__(
        self,
        finalizing: Callable[[], bool] = sys.is_finalizing,
        whole: set[int] = _whole,
        drain: Callable[[Iterator[bool], int], object] = deque,
    ) -> None:
        if not finalizing() and id(self) in whole:
            part = dismantle.bind(self)
            try:
                whole.remove(id(self))
                while part():  # between two, signals are handled, and the world may stop
                    pass
            except BaseException:  # a signal's handler raised
                drain(iter(part, False), 0)
                raise


class State(Unique, np.ndarray):
    """An aligned array of words that serves as the ``self`` of methods made from kernels."""

    keep: list[Any]
    record: Any
    """The words by name, as a numpy record over the same memory: ``state.record["external"]["tail"]``.

    It keeps the memory alive but not the state, because the collector would not see cycles through such a reference.
    """
    kind: np.dtype[np.void]
    memory: type[np.ndarray[Any, Any]] = np.ndarray  # the type of its memory
    tables: ClassVar[Mapping[int, int]] = {}  # each table's size in words, by the offset of the word with its address
    starts: ClassVar[tuple[tuple[int, int], ...]]  # the same offset and the table's own
    extent: ClassVar[int]  # bytes of all
    finaliser: Kernel
    self_at: int  # index of the word "self"; while that is 0, the collector ignores the words
    whole = False  # set once all words that the finaliser uses are valid; an exception may come before that

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.lay_out()

    @classmethod
    def lay_out(cls, gap: int = 0) -> None:
        """Decide where the tables are: each begins on a page, as parts of some are given back to the system."""
        starts = []
        cls.extent = cls.kind.itemsize
        for at, words in cls.tables.items():
            cls.extent += gap + -cls.extent % mmap.PAGESIZE
            starts.append((at, cls.extent))
            cls.extent += 8 * words
        cls.starts = tuple(starts)

    def __array_finalize__(self, source: object) -> None:
        if isinstance(source, State):  # a slice would be traversed and finalised as if it were a state
            raise TypeError("a state has no views or copies of its own type: use its record, or view(numpy.ndarray)")

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.whole and not finalizing():
            self.end()
        elif self.whole:  # the interpreter is shutting down: modules are half gone, but the collector still runs
            self[self.self_at] = 0  # it must not follow words whose tables it has already freed

    def end(self) -> None:
        """Refuse calls from now on, and release the callables. Called by the finaliser."""
        self.finaliser.bind(self)()

    def fill(self, words: Mapping[int, int]) -> None:
        """Store words by their byte offsets. A store through `record` takes 1.6 µs if it is nested, this one 0.1."""
        view = memoryview(self)
        for at, word in words.items():
            view[at >> 3] = word


class Places:
    """The places in a measuring loop's block that tell readers in other processes (`nbloop.observe.shared`) which words
    belong to the loop. Any thread, and finalisers: one C call takes a place, and one gives it back.
    """

    def __init__(self, block: npt.NDArray[np.int64], state: LoopWords) -> None:
        self._record = block.view(layout.BLOCK.dtype)[0]
        self._state = state.record  # not the state, which refers to this
        self._free = deque(range(layout.ENTRANCES))
        self._record["state"] = _address(state)

    def take(self, entry: int) -> int:
        """A place for a handle or a channel; -1 if none is free."""
        try:
            place = self._free.popleft()
        except IndexError:
            return -1
        self._record["entrances"][place] = entry
        return place

    def give(self, place: int) -> None:
        """Give a place back, before the words of its entry are freed."""
        if place >= 0 and self._state["metrics"]:  # a forked child must not touch what its parent shares
            self._record["entrances"][place] = 0
            self._free.append(place)

    def end(self) -> None:
        """Remove the loop's entry, before its words are freed."""
        if self._state["metrics"]:
            self._record["state"] = 0


class LoopWords(State):
    """The state of a loop.

    `handles` holds the words of its producers' states, by number. It does not hold the states, which would then live as
    long as the loop, nor weak references to them, which the collector clears before it calls the first finaliser, when
    a forgotten loop must close its handles. Each handle removes itself when it ends.
    """

    __qualname__ = "Loop"  # the name in Python's error messages: "Loop.submit() takes no keyword arguments"
    handles: dict[int, Any]
    handle_numbers: Iterator[int]
    channels: dict[int, tuple[Any, Ends]]  # the same of channels, and what ends them
    places: Places | None = None  # if the loop measures

    kind = STATE.dtype
    memory = Memory
    # The small ones come first: their touched pages then share a page of the system's page table.
    tables: ClassVar[Mapping[int, int]] = {
        STATE.POOL + POOL.SLABS: layout.SLAB_LIMIT,
        STATE.POOL + POOL.SLAB_NEXT: layout.SLAB_LIMIT,
        STATE.FAR + FAR.BUCKETS: layout.BUCKET_TOTAL * layout.BUCKET_BYTES // 8,
        STATE.TIMERS + TIMERS.SLABS: layout.SLOT_SLAB_LIMIT,
        STATE.TIMERS + TIMERS.GATHERED: layout.SLOT_SLAB_LIMIT,
        STATE.TIMERS + TIMERS.FLOORS: layout.SLOT_SLAB_LIMIT,
        STATE.TIMERS + TIMERS.SLAB_NEXT: layout.SLOT_SLAB_LIMIT,
        STATE.EXTERNAL + QUEUE.DIRECTORY: _SEGMENTS,
        STATE.REMOTE + QUEUE.DIRECTORY: _SEGMENTS,
        STATE.POOL + POOL.NEXT: layout.CHUNK_LIMIT,
        STATE.TIMERS + TIMERS.NEXT: layout.SLOT_LIMIT,
    }
    finaliser = destroy
    self_at = layout.STATE.SELF // 8

    def end(self) -> None:
        if self.places is not None:
            self.places.end()
        self.close_handles()
        super().end()

    def entrances(self) -> list[Any]:
        """The words of all handles and channels that an idle loop closes, and may reopen."""
        channels = list(self.channels.values())
        return [*self.handles.values(), *(words for words, ends in channels if ends.wanted and not ends.shut)]

    def close_handles(self) -> int:
        """Refuse new work from all handles and channels; return how much they still hold that is wanted. Any thread;
        idempotent.
        """
        held = 0
        for words in list(self.handles.values()):
            held += producer_close.bind(words)()
        for words, ends in list(self.channels.values()):
            waiting = producer_close.bind(words)()
            held += waiting if ends.wanted else 0
            ends.wake()
        return held

    def resume_channels(self) -> None:
        """Queue the deliveries that were refused while the loop's queues were closed. Loop thread."""
        for words, _ in list(self.channels.values()):
            channel_resume.bind(words)()

    def drop_handles(self) -> None:
        """Release what handles hold, except ready ones, which `release_all` releases, and drop what channels hold. All
        are closed, and the loop has ended.
        """
        for handle in list(self.handles.values()):
            producer_drop.bind(handle)()
        for words, _ in list(self.channels.values()):
            channel_drop.bind(words)()


class Ends(Protocol):
    """How a channel ends."""

    name: str
    shut: bool
    """Its user has closed it."""

    @property
    def wanted(self) -> bool:
        """Whether its records will be delivered: not if coroutines take them, and none waits for one."""

    def wake(self) -> None:
        """Wake the producers that wait for room, now that there is some, or none will be."""


class HandleWords(State):
    """The state of a producer handle."""

    __qualname__ = "Producer"
    loop: LoopWords
    number: int
    place = -1

    kind = HANDLE.dtype
    tables: ClassVar[Mapping[int, int]] = {HANDLE.QUEUE + QUEUE.DIRECTORY: _SEGMENTS}
    finaliser = producer_destroy
    self_at = layout.HANDLE.SELF // 8

    def end(self) -> None:
        super().end()
        self.loop.handles.pop(self.number, None)
        if self.loop.places is not None:
            self.loop.places.give(self.place)


class ChannelWords(State):
    """The state of a channel: its words, and behind them its fields, sequence words and records.

    All objects that it owns are in `keep`, so the collector sees them.
    """

    __qualname__ = "Channel"
    loop: LoopWords
    number: int
    place = -1
    on_batch: Callable[..., object]

    kind = CHANNEL.dtype
    finaliser = channel_destroy
    self_at = layout.HANDLE.SELF // 8

    def end(self) -> None:
        super().end()
        self.loop.channels.pop(self.number, None)
        if self.loop.places is not None:
            self.loop.places.give(self.place)


class _Naming(Unique, np.ndarray):
    """Words that are addresses of objects, which the array keeps alive."""

    keep: tuple[object, ...]

    def __array_finalize__(self, source: object) -> None:
        if isinstance(source, _Naming):  # it would name objects that it does not keep
            what = type(self).__qualname__
            raise TypeError(f"the state of a {what} has no views or copies of its own type: use view(numpy.ndarray)")


class GroupWords(_Naming):
    """The words of a group of loops, which keep the states that they name."""

    __qualname__ = "LoopGroup"
    keep: tuple[LoopWords, ...]


class Permits(_Naming):
    """The words of a queue between loops, which keep what they name."""

    __qualname__ = "Queue"


def _show_to_collector(kind: type[State], traverse: Kernel) -> None:
    """Make `traverse` the type's ``tp_traverse``, so that cycles through queued callables are found."""
    if traverse.address:
        put(id(kind) + TYPE_TRAVERSE, traverse.address)


_show_to_collector(LoopWords, traverse_loop)
_show_to_collector(HandleWords, traverse_handle)


def make_state[S: State](kind: type[S], first: npt.NDArray[np.int64] | None = None, more: int = 0) -> S:
    """A state with its tables, which are resident only as far as they are used; then come `more` bytes for the caller.
    Its words are those of `first`, or else zero, except the addresses of the tables. The memory begins on a page, as
    every mapping does. The caller sets `whole`.
    """
    memory = table((kind.extent + more) // 8).view(kind.memory)
    if isinstance(memory, Memory):
        _whole.add(id(memory))
    state = np.ndarray.__new__(kind, (kind.kind.itemsize // 8,), np.int64, buffer=memory)
    state.keep = []
    state.record = np.ndarray((1,), kind.kind, buffer=memory)[0]  # no view of a view: numpy takes 10 µs to check it
    if first is not None:
        memoryview(state)[:] = memoryview(first)
    begins = _address(state)
    state.fill({at: begins + start for at, start in kind.starts})
    return state


def _address(array: npt.NDArray[np.int64]) -> int:
    return data(id(array))  # read as kernels do: `array.ctypes.data` takes 4 µs, 18 times per loop


def _queue_words(at: int, chunk_size: int, limit: int | None, number: int) -> dict[int, int]:
    """The words of an open and empty queue at offset `at`, except addresses."""
    return {
        at + QUEUE.DIRECTORY_MASK: _SEGMENTS - 1,
        at + QUEUE.SHIFT: chunk_size.bit_length() - 1,
        at + QUEUE.NUMBER: number,
        at + QUEUE.FINAL: -1,
        at + QUEUE.GATE: layout.OPEN if limit is None else layout.EXACT,
        at + QUEUE.LIMIT: (_SEGMENTS - 512) * chunk_size if limit is None else limit,
    }


def _observed_words(at: int, measured: int, recorder: int) -> dict[int, int]:
    """The words of a queue at offset `at` whose tasks are measured or recorded."""
    return {
        at + QUEUE.MEASURED: measured,
        at + QUEUE.RECORDER: recorder,
        at + QUEUE.OBSERVED: measured != 0 or recorder != 0,
    }


def _hook(state: State, hook: object) -> int:
    state.keep.append(hook)
    return id(hook)


# What is the same in all loops.
_OBJECTS = {
    STATE.NONE: id(None),
    STATE.LIST_TYPE: id(list),
    STATE.TUPLE_TYPE: id(tuple),
    STATE.COROUTINE_TYPE: id(CoroutineType),
    STATE.RUN_IN_CONTEXT: id(RUN_IN_CONTEXT),
}


@functools.lru_cache(16)
def _first_words(chunk_size: int, limit: int | None) -> npt.NDArray[np.int64]:
    """The initial words of loops, except addresses of their own: storing them one by one takes 20 µs."""
    words = np.zeros(STATE.dtype.itemsize // 8, np.int64)
    for at, word in (
        _OBJECTS
        | _queue_words(STATE.EXTERNAL, chunk_size, limit, layout.NUMBER_EXTERNAL)
        | _queue_words(STATE.REMOTE, chunk_size, None, layout.NUMBER_REMOTE)
        | {
            STATE.ONE: 1,
            STATE.POOL + POOL.CHUNK_BYTES: chunk_size * 8,
            STATE.POOL + POOL.SLAB_LIMIT: layout.SLAB_LIMIT,
            STATE.FAR + FAR.HORIZON: GRAIN_MASK,  # always the last ns of a bucket; a virtual clock begins at 0
            STATE.IO + IO.POLLER: -1,
            # Not a constant of the kernels: a pack may have been compiled elsewhere.
            STATE.TIMERS + TIMERS.PAGE: mmap.PAGESIZE,
        }
    ).items():
        words[at >> 3] = word
    return words


def make_loop_state(
    *,
    chunk_size: int,
    initial_chunks: int,
    ingress_limit: int | None,
    hooks: Mapping[int, Callable[..., object]],
    metrics: npt.NDArray[np.int64] | None = None,
    recorder: npt.NDArray[np.int64] | None = None,
) -> LoopWords:
    """The state of a loop, with its queues open and empty. `hooks` are the Python functions that kernels call, by the
    offset of their word; `metrics` is the block for its figures (meter.py), `recorder` the ring for its events
    (event_ring.py).
    """
    state = make_state(LoopWords, first=_first_words(chunk_size, ingress_limit))
    state.handles = {}
    state.channels = {}
    state.handle_numbers = itertools.count()
    state.keep.extend(hooks.values())
    pool_at = _address(state) + STATE.POOL
    state.fill({at: id(hook) for at, hook in hooks.items()})
    state.fill({STATE.EXTERNAL + QUEUE.POOL: pool_at, STATE.REMOTE + QUEUE.POOL: pool_at})
    if metrics is not None or recorder is not None:
        measured = recorded = 0
        if metrics is not None:
            state.keep.append(metrics)
            measured = _address(metrics)
            state.fill({STATE.POOL + POOL.CHUNK_BYTES: chunk_size * 16})  # a stamp beside each cell
        if recorder is not None:
            state.keep.append(recorder)
            recorded = _address(recorder)
        state.fill({STATE.METRICS: measured, STATE.RECORDER: recorded, STATE.OBSERVED: 1})
        state.fill(_observed_words(STATE.EXTERNAL, measured, recorded) | _observed_words(STATE.REMOTE, 0, recorded))
    state.fill({STATE.SELF: id(state)})
    state.whole = True
    if metrics is not None:
        state.places = Places(metrics, state)
    if initial_chunks and not warm.bind(state)(initial_chunks):
        raise MemoryError(f"no memory for initial_chunks={initial_chunks}")
    return state


def make_handle_state(loop_state: LoopWords) -> HandleWords:
    """The state of a producer handle. It keeps alive the loop's state, whose pool it shares."""
    state = make_state(HandleWords)
    state.loop = loop_state
    state.number = next(loop_state.handle_numbers)
    record = state.record
    me = id(state)
    external = loop_state.record["external"]
    chunk_size = 1 << int(external["shift"])
    limit = int(external["limit"]) if external["gate"] == layout.EXACT else None
    number = layout.NUMBER_HANDLES + state.number % ((1 << layout.PLACE_BITS) - layout.NUMBER_HANDLES)
    measured, recorder = int(external["measured"]), int(external["recorder"])
    loop = _address(loop_state)
    pool = loop + STATE.POOL
    state.fill({HANDLE.LOOP: loop, HANDLE.QUEUE + QUEUE.POOL: pool})
    state.fill(_queue_words(HANDLE.QUEUE, chunk_size, limit, number))
    state.fill(_observed_words(HANDLE.QUEUE, measured, recorder))
    # These statements contain no call, so an exception from a signal handler cannot leave a handle half registered.
    record["self"] = me
    state.whole = True
    loop_state.handles[state.number] = state.base
    if loop_state.places is not None:
        state.place = loop_state.places.take(_address(state))
    return state


def _whole_lines(size: int) -> int:
    return size + -size % LINE


def make_channel_state(
    loop_state: LoopWords,
    dtype: np.dtype[Any],
    fields: npt.NDArray[np.void],
    *,
    capacity: int,
    max_batch: int,
    max_delay: int,
    on_full: int,
    on_batch: Callable[..., object],
    context: Context | None = None,
    entry: int = 0,
    convert: Callable[..., object],
    ask: Callable[..., int],
    ends: Ends,
    pulled: Callable[[], object] | None = None,
) -> ChannelWords:
    """The state of a channel of `capacity` records, a power of two; it keeps the loop's state alive. `fields` are FIELD
    records; `ask` and `convert` are the Python functions that kernels call; `on_batch` runs in `context`, if there is
    one; `entry` is the address of a compiled `on_batch`, which that object keeps. With `pulled`, batches wait until
    they are taken, and kernels call it for each.
    """
    measures = bool(loop_state.record["metrics"])
    sizes = [
        fields.nbytes,
        8 * capacity,
        dtype.itemsize * capacity,
        dtype.itemsize * (max_batch if on_full == layout.ON_FULL_DROP_OLD else 0),
        layout.HISTOGRAM.itemsize if measures else 0,
    ]
    state = make_state(ChannelWords, more=sum(map(_whole_lines, sizes)))
    state.loop, state.on_batch = loop_state, on_batch
    record = state.record
    at = [*itertools.accumulate(map(_whole_lines, sizes), initial=CHANNEL.dtype.itemsize)]
    assert state.base is not None
    whole = memoryview(state.base).cast("B")

    def records(start: int, size: int) -> npt.NDArray[Any]:
        """A read-only array. Its views have it as their base, so kernels can see that one is kept."""
        return np.frombuffer(whole[start : start + size].toreadonly(), dtype)

    np.ndarray(fields.shape, fields.dtype, buffer=state.base, offset=at[0])[:] = fields
    record["handle"]["loop"] = _address(loop_state)
    queue = record["handle"]["queue"]
    queue["limit"], queue["shift"] = capacity, capacity.bit_length() - 1
    queue["gate"], queue["final"] = layout.EXACT, -1
    record["fields"], record["sequences"], record["records"], record["copy"] = (_address(state) + a for a in at[:4])
    record["delays"] = _address(state) + at[4] if measures else 0
    record["timed"] = measures or max_delay != 0
    record["record_bytes"], record["field_count"] = dtype.itemsize, len(fields)
    record["max_batch"], record["max_delay"], record["on_full"] = max_batch, max_delay, on_full
    record["entry"] = entry
    record["name"] = ends.name.encode()[:63]
    record["float_type"], record["int_type"] = id(float), id(int)
    record["true"], record["false"] = id(True), id(False)
    owned = {
        "ring": records(at[2], sizes[2]),
        "copies": records(at[3], sizes[3]) if sizes[3] else None,
        "on_batch": on_batch if context is None else functools.partial(RUN_IN_CONTEXT, context, on_batch),
        "task": (channel_deliver.bind(state),),
        "due": (channel_due.bind(state),),
        "convert": convert,
        "ask": ask,
        "references": sys.getrefcount,
    }
    if pulled is not None:
        owned["pulled"] = pulled
    for name, value in owned.items():
        record[name] = _hook(state, value)
    state.number = queue["number"] = next(loop_state.handle_numbers)
    me = id(state)
    # As for a handle: the loop knows either a whole channel or none.
    record["handle"]["self"] = me
    state.whole = True
    loop_state.channels[state.number] = (state.base, ends)
    if loop_state.places is not None:
        state.place = loop_state.places.take(_address(state) | layout.IS_CHANNEL)
    return state


def make_group_state(states: Sequence[LoopWords]) -> GroupWords:
    """The words of a group of the loops with these states."""
    words = np.array([len(states), *map(_address, states)], np.int64).view(GroupWords)
    words.keep = tuple(states)
    return words


def make_permits(limit: int, items: deque[Any], due: type[BaseException], nothing: object) -> Permits:
    """The words of a queue between loops of these `items`, which no other code may change. Its `take` returns `nothing`
    or an instance of `due` instead of an item (permits.py).
    """
    words = np.zeros(PERMITS.dtype.itemsize // 8, np.int64).view(Permits)
    record: Any = words.view(np.ndarray).view(PERMITS.dtype)[0]
    words.keep = named = (items.append, items.appendleft, items.popleft, due, nothing)
    record["limit"] = limit
    for name, one in zip(("append", "appendleft", "popleft", "due_type", "nothing"), named, strict=True):
        record[name] = id(one)
    record["none"], record["due"], record["refused"] = id(None), id(True), id(False)  # immortal
    return words


assert all(
    kind.itemsize % LINE == 0
    for kind in (QUEUE.dtype, POOL.dtype, TIMERS.dtype, FAR.dtype, STATE.dtype, HANDLE.dtype, CHANNEL.dtype)
)
assert RING.dtype.itemsize == layout.SLOT_BYTES == 64
assert FIELD.dtype.itemsize == 1 << FIELD_BITS
