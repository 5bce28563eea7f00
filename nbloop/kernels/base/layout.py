"""The memory of a loop: one numpy structured dtype that kernels, Python code, documents and tests share.

``STATE`` describes one loop, ``HANDLE`` one producer handle; both consist of the records below. A kernel addresses a
word by its byte offset (taken from the dtype, so the two cannot disagree); a test or a debugger reads the same word by
name: ``loop_state.record["external"]["tail"]``.

Two rules of placement. Words that different threads *write* are a `LINE` apart: 128 bytes, because both adjacent-line
prefetch on x86 and Apple's 128-byte lines couple neighbouring 64-byte lines. Words that are only read share lines that
nobody writes, so every core keeps its own copy.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from .interpreter import OBJECT_ALIGNMENT

LINE = 128
WORDS = LINE // 8


class Fields(ModuleType):
    """Byte offsets by name, as kernels use them: ``QUEUE.TAIL``.

    It is a module because Numba freezes a module's attributes into constants. An attribute of a class or an instance
    would be a look-up at run time, or would have no Numba type at all.
    """

    def __init__(self, name: str, offsets: Mapping[str, int]) -> None:
        super().__init__(name)
        vars(self).update(offsets)


class Record(Fields):
    """The words of a numpy record, described by `dtype`, which begins at offset `at`."""

    dtype: np.dtype[np.void]

    def __init__(self, name: str, dtype: np.dtype[np.void], at: int = 0) -> None:
        super().__init__(name, {field.upper(): at + offset(dtype, field) for field in dtype.names or ()})
        self.dtype = dtype


def offset(record: np.dtype[np.void], *path: str) -> int:
    """The byte offset of a word, by its path of names.

    >>> offset(QUEUE.dtype, "tail"), offset(STATE.dtype, "sleep_deadline") - offset(STATE.dtype, "sleep")
    (128, 8)
    """
    at = 0
    for name in path:
        assert record.fields is not None
        record, start = record.fields[name][:2]
        at += start
    return at


def _lines(*lines: dict[str, object]) -> np.dtype[np.void]:
    """A dtype in which each argument starts on a new line; values are `np.int64` or another record."""
    names: list[str] = []
    formats: list[object] = []
    offsets: list[int] = []
    at = 0
    for line in lines:
        for name, given in line.items():
            kind = given.dtype if isinstance(given, Record) else given
            names.append(name)
            formats.append(kind)
            offsets.append(at)
            at += np.dtype(kind).itemsize  # type: ignore[call-overload]
        at += -at % LINE
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": at})


def record(name: str, *lines: dict[str, object]) -> Record:
    """A record in which each argument starts on a new line."""
    return Record(name, _lines(*lines))


def _words(*names: str) -> dict[str, object]:
    return dict.fromkeys(names, np.int64)


# A ticket queue (ticket_queue.py): many producers, one consumer.
QUEUE = record(
    "QUEUE",
    # read by all, written at construction
    _words(
        *("gate", "limit", "directory", "directory_mask", "shift", "pool"),
        *("observed", "measured", "recorder", "number"),
    ),
    # shared: `tail`, to which every producer adds; retried swaps of this queue's words; fillers drawn
    _words("tail", "retries", "filled"),
    # owned by the consumer, `passed` counts fillers; `final` is written once, by the thread that closes
    _words("head", "chunk", "final", "stamp", "passed"),
)

# Chunks of cells and the stacks they wait in (pool.py).
POOL = record(
    "POOL",
    # read-mostly
    _words("slabs", "next", "slab_next", "chunk_bytes", "slab_limit"),
    _words("free", "free_retries"),  # shared: stack of chunk numbers
    _words("free_slabs", "free_slabs_retries", "slab_count"),  # shared: stack of slab numbers; first number never used
    _words("free_chunks"),  # shared: number of chunks in `free`, for the decision to give memory back
    # Of the loop thread, while it gives memory back: how many chunks are still to be taken out of `free`; the last one
    # that was, + 1; how many wholly free slabs it has kept.
    _words("taking", "taken", "kept"),
)

# A growable ring of callables with one owner (ring.py). 64 bytes, two to a line: both belong to the loop thread.
RING = Record(
    "RING",
    np.dtype(
        [(name, np.int64) for name in ("head_at", "head_end", "tail_at", "tail_end", "head", "tail", "spare", "_7")]
    ),
)

# Timers (timer_slots.py): slots that any thread may arm or cancel, and the heap (timer_heap.py) of timers due soon.
TIMERS = record(
    "TIMERS",
    _words("slabs", "next", "gathered", "floors", "slab_next", "page"),  # tables, and bytes of a page; read-mostly
    # shared: stack of slot numbers; retries of the stack and of the slots' own words; first slot number never used
    _words("free", "retries", "slot_count"),
    # shared: stack of slabs at rest; how many they are; where a chain of gathered slots was last found; how many slots
    # are in chains
    _words("resting", "resting_retries", "rest_count", "regained", "gathered_count"),
    # Shared: balance of other threads' arms and cancels; unreferenced timers; timer commands in the remote queue.
    _words("live_elsewhere", "unreferenced", "commands"),
    # Owned by the loop thread: the heap, its block and the block's size, how many of its entries belong to cancelled
    # timers, and below which entry a sweep in portions goes on.
    _words("heap", "heap_block", "heap_bytes", "size", "capacity", "stale", "sweep"),
    # spare slots: a private stack of the loop thread, and its size. Free slots to be sorted; see slots_trim. How many
    # slots the loop's end has released.
    _words("sequence", "live_here", "nesting", "spare", "spares", "unsorted", "last_used", "released"),
)
# One slot; 64 bytes, so two slots never share a 64-byte line. `order`: the number of a timer's entry in the heap or a
# bucket (timer_heap.order_of), 0 without an entry, and in the low bits its nesting level and clamp. `place`: its bucket
# + 1, 0 in the heap. A watched descriptor (fd_watches.py) uses `interest`, and `descriptor`, its callback's argument.
SLOT = Record(
    "SLOT",
    np.dtype(
        [
            (name, np.int64)
            for name in ("word", "callback", "deadline", "period", "order", "place", "interest", "descriptor")
        ]
    ),
)
# One entry of the heap, or of a bucket of far timers; four fill one 64-byte line.
NODE = Record("NODE", np.dtype([("deadline", np.int64), ("order", np.int64)]))

# Far timers (buckets.py), unsorted in buckets by range of deadlines. Owned by the loop thread.
FAR = record(
    "FAR",
    _words("horizon", "count", "opening", "buckets", "epoch", "unswept"),
    _words(*(f"level{level}" for level in range(8))),  # a bit for each non-empty bucket of the level
)
# One bucket, a 64-byte line: where its next entry goes; the end and the number of its last chunk; how many entries it
# has, and how many are stale; a lower bound of the deadlines, and whether the entry that set it is gone; the number + 1
# of the chunk at which a sweep in portions goes on, 0 if none is under way.
BUCKET = Record(
    "BUCKET",
    np.dtype([(name, np.int64) for name in ("next", "end", "chunk", "count", "stale", "least", "loose", "sweep")]),
)

# Readiness (fd_watches.py): events that the poller has reported and the loop has not dispatched yet.
IO = record(
    "IO",
    _words("watches", "suspect"),  # shared: registered descriptors; whether one was closed before it was unregistered
    # Owned by the loop thread: the poller's descriptor, or -1; whether it takes timeouts in ns; where the system writes
    # events; pairs (token, events), how many there are, and how many are done.
    _words(
        "poller",
        "ns_timeouts",
        "events",
        "ready",
        "ready_count",
        "ready_done",
        "error",
        "masks",
        "argument0",
        "argument1",
        "retires",  # whether the loop is to sleep on its futex when it watches nothing
    ),
    # For the thread that has the table's lock: the event of an epoll_ctl; whether the loop is forced to the fast path,
    # where nothing may be registered.
    _words("change0", "change1", "forced"),
)

STATE = record(
    "STATE",
    _words(
        "lifecycle",
        "interrupt",
        "owner",
        "self",
        "budget",
        "clamp",
        "auto_exit",
        "park_mode",
        "wake_fd",
        "spin_max",
        "one",
        "virtual",
        "autojump",
        "metrics",
        "recorder",
        "handles",  # under an asyncio loop: where the words of asyncio's classes are (calls/handles.py); else 0
    ),
    # Objects that the kernels call or return, kept alive by the state.
    _words(
        *("none", "report", "refuse", "check_interrupts", "overload", "warn", "waker", "renew", "pressure"),
        *("unawaited", "list_type", "tuple_type", "coroutine_type", "run_in_context"),
    ),
    # With metrics: what other threads have scheduled and the loop has not moved into its rings yet, by ring.
    _words("remote_microtasks", "remote_internals", "remote_immediates"),
    _words("stop", "holds"),  # shared: a request to end after this turn; holds that keep an auto-exit loop alive
    _words("sleep", "sleep_deadline"),  # shared: the sleep word (parking.py) and the sleep's deadline
    _words("ready", "ready_retries"),  # shared: stack of producer handles with work
    _words("virtual_now"),  # shared: the time of a loop with a virtual clock (clock.py)
    {"external": QUEUE},
    {"remote": QUEUE},
    {"pool": POOL},
    {"next_ticks": RING, "microtasks": RING},  # owned by the loop thread, as all that follows
    {"immediates": RING, "closing": RING},
    {"internal": RING, "checkpoint_ends": RING},
    {"timers": TIMERS},
    {"far": FAR},
    {"io": IO},
    _words(
        "polled",
        "due",
        "poll_timeout",
        "short",
        "spin_skip",
        "spin_rest",
        "callbacks",
        "stalls",
        "turns",
        "observed",
        "seconds",
        "nanoseconds",
        "pressure_high",
        "pressure_low",
        "pressed",
        "subject",
        "handled",
        "nap",
        "napped",
        "unsent",  # the first of the streams whose bytes leave before the next poll (stream.py), and the last
        "unsent_last",
        # How many turns with something to run may leave out the poll (0: none), how many have since the last poll, and
        # when that was, on the system's clock (turn.py).
        *("unpolled_most", "unpolled", "polled_at"),
    ),
    _words("arguments0", "arguments1", "arguments2", "arguments3"),  # scratch for vectorcall, loop thread only
    _words("wakes_sent"),  # shared: counted by the waking thread
    # counters of parking.py; claimed: wake calls that this loop knows were claimed; parked, stalled: ns
    _words("spins_won", "spins_lost", "parks", "claimed", "parked", "stalled"),
)

# The loop's figures (meter.py), if it measures; the histograms are those of histogram.py.
RATE_SLOTS = 128
ENTRANCES = 255
HISTOGRAM_BUCKETS = (36 << 6) + 64
HISTOGRAM = np.dtype((np.int64, (3 + HISTOGRAM_BUCKETS,)))  # sum, max, carry of the sum, counts
_LIVE = _lines(
    _words(
        "now",  # ticks of the last boundary: the end of a callback or of a sleep
        "mark",  # ticks up to which idle and busy time are accounted for
        "group",  # callbacks since `now`
        "stride",  # callbacks that share one reading of the clock
        "typical",  # ns of a short callback
        "bucket_end",  # ticks at which the rate's current bucket ends
        "running",  # kind of the callback in progress + 1; 0 if there is none
        "callbacks",
        "errors",
        "turns",
        "wakes_sent",
        "arrived",  # tasks and commands taken from outside
        "idle",
        "busy",
        "overloads",
    ),
    {"current": np.dtype((np.int64, (4,))), "max": np.dtype((np.int64, (4,))), "ema": np.dtype((np.int64, (4,)))}
    | _words("samples", "microtask_samples", "calm"),
    {"rate": np.dtype((np.int64, (RATE_SLOTS, 2)))},  # (bucket number, callbacks before the bucket)
    {"latency": HISTOGRAM},
    {"delay": HISTOGRAM},
)
LIVE_BYTES = _LIVE.itemsize
BLOCK = record(
    "BLOCK",
    # Written at construction. `tick_base` and `ns_base` are one moment on both clocks.
    _words("magic", "layout", "pid", "process_start", "cycles", "multiplier", "tick_base", "ns_base", "bucket_ticks")
    | {"name": np.dtype("S128"), "group": np.dtype("S128")},  # the group's name is written a moment later
    _words("pace"),  # 0 or 7: which tickets are stamped. Read by producers, written by the loop when it changes
    _words("wanted"),  # written by readers
    _words("sequence", "published", "published_at"),
    {"live": _LIVE},
    {"copy": _LIVE},
    # For readers that may read the memory of the loop's process: the address of the loop's words, 0 after its end;
    # those of its handles' words and, with the lowest bit set, of its channels'. Readers do not see those without a
    # place here.
    _words("state") | {"entrances": np.dtype((np.int64, (ENTRANCES,)))},
)
LIVE = Record("LIVE", _LIVE, BLOCK.LIVE)

# A flight recorder (event_ring.py): this record, followed by entries, whose number is a power of two.
KNOWN = 512  # recently called callables, whose names need no look-up in the dict of names
RECORDER = record(
    "RECORDER",
    # Written at construction. `tick_base` and `ns_base` are one moment on both clocks.
    _words(
        *("cycles", "mask", "names", "function_type", "method_type", "builtin_type", "run_in_context"),
        *("tick_base", "ns_base"),
        *("word_start", "word_generation", "word_collected"),  # strings that the interpreter tells collections with
    ),
    _words("head"),  # shared: every recording thread adds to it
    _words("lost", "collecting"),  # shared; collecting: ticks at which a collection of garbage began, or 0
    _words(
        "boundary",  # ticks of the last boundary: the end of a callback or of a sleep
        "rested",  # ticks at which the last turn ended
        "parks",  # sleeps that have been recorded
        "thread",  # identifier of the thread that runs the loop, or ran it last
        "running",  # callbacks before the one in progress, and its kind + 1 in the low byte; 0 if there is none
        "subject",
        "what",
        "value",
        "seen_callbacks",  # callbacks when a turn began last; those that only waited for a producer do not count
        "seen_stalls",  # stalls then
        "begun_stalls",  # stalls when a callback began last
        "stalling",  # 1: the loop waits for a producer, and that has been recorded
    ),
    {"known": np.dtype((np.int64, (KNOWN,)))},
)
# One entry; a 64-byte line.
ENTRY = Record(
    "ENTRY",
    np.dtype(
        [(name, np.int64) for name in ("sequence", "time", "duration", "thread", "kind", "subject", "what", "value")]
    ),
)

HANDLE = record(
    "HANDLE",
    # The address of the loop's state, and of this handle's state object; the loop's own count of waiting tasks.
    _words("loop", "self"),
    _words("waiting"),
    _words("queued", "next_ready"),  # shared with the loop: whether this handle is in the ready stack; the one below it
    {"queue": QUEUE},
)

# A channel (channels/): a ring of records that any thread adds to and the loop's thread takes from, in batches. It
# closes and sleeps as a handle does: `queued` is CHANNEL_x, and of the queue it has gate, limit, shift, number, tail,
# head, final and retries.
CHANNEL = record(
    "CHANNEL",
    {"handle": HANDLE},
    # Written at construction: addresses in this state's own memory, sizes, and objects that `keep` of the state owns.
    _words(
        *("sequences", "records", "record_bytes", "max_batch", "max_delay", "on_full", "field_count", "fields"),
        *("copy", "copies", "ring", "on_batch", "entry", "pulled", "task", "due", "convert", "ask", "references"),
        *("timed", "delays"),  # whether `since` is kept; the histogram of delays, 0 if the loop does not measure
    ),
    _words("float_type", "int_type", "true", "false") | {"name": np.dtype("S64")},
    _words("dropped"),  # shared: every thread that drops records adds to it
    _words("sleepers"),  # shared: producers that wait for room
    _words("taking"),  # shared, ON_FULL_DROP_OLD only: 1 while a thread takes from the front
    _words("since"),  # written by the thread that makes the channel busy, and then by the loop's
    # Owned by the taker: tickets up to this one are known to be published.
    _words("published", "batches", "delivered", "timer", "mark", "marked"),
)
# How a field of a record is written (fields.py): FIELD_x, where, and of an integer the least and the greatest.
FIELD = Record("FIELD", np.dtype([(name, np.int64) for name in ("kind", "at", "least", "most")]))
# A group (methods/group.py): how many loops, and from `loops` on the addresses of their states. Only read, once made.
GROUP = Record("GROUP", np.dtype([(name, np.int64) for name in ("count", "loops")]))
# A queue between loops (channels/permits.py): its word, which every put and get changes; and what is only read.
PERMITS = Record(
    "PERMITS",
    _lines(
        _words("word"),
        _words("limit", "append", "appendleft", "popleft", "due_type", "nothing", "none", "due", "refused"),
    ),
)


# --- sizes ----------------------------------------------------------------------------------------------------------
DIRECTORY_BITS = 18  # segments that a queue can use: 262,144 of 128 cells hold 33.5 million queued tasks
CHUNKS_PER_SLAB_BITS = 6  # 64 chunks of 1 KiB: a mapping of 64 KiB
SLOTS_PER_SLAB_BITS = 10  # 1,024 timer slots of 64 bytes: a mapping of 64 KiB
SLOT_BITS = 22  # 4.2 million timers; the other 41 bits of an id count the uses of its slot
CHUNK_LIMIT = 1 << DIRECTORY_BITS
SLAB_LIMIT = CHUNK_LIMIT >> CHUNKS_PER_SLAB_BITS
SLOT_LIMIT = 1 << SLOT_BITS
SLOT_SLAB_LIMIT = SLOT_LIMIT >> SLOTS_PER_SLAB_BITS
FAR_LEVELS = 8
DIGIT_BITS = 6  # 64 buckets per level
BUCKET_TOTAL = FAR_LEVELS << DIGIT_BITS
BUCKET_BYTES = BUCKET.dtype.itemsize
SLOT_BYTES = SLOT.dtype.itemsize
NODE_BYTES = NODE.dtype.itemsize


# Private, which is not Python's default: a forked child that releases its copy of a loop must not empty the parent's.
_PRIVATE: dict[str, Any] = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}


def table(words: int) -> npt.NDArray[np.int64]:
    """A zeroed table that costs address space, not memory, until its entries are used.

    An anonymous mapping, not `np.zeros`: after the first table is freed, glibc raises its mmap threshold, and from then
    on the same `np.zeros(2 MiB)` comes from the heap and is cleared by hand, which makes 2 MiB resident per loop.
    """
    return np.frombuffer(mmap.mmap(-1, words * 8, **_PRIVATE), np.int64)


K_ENTRIES = RECORDER.dtype.itemsize

# --- values ---------------------------------------------------------------------------------------------------------
AWAKE, RUNNING, TERMINATING, TERMINATED = 0, 1, 2, 3  # lifecycle
OPEN, EXACT, FULL = 0, 1, 2  # gate of a queue
MINUS = -(1 << 63)  # the sign bit; in a tail it means closed
# How the loop sleeps: in the kernels on a futex, in Python on a lock, in the kernels in epoll, in Python in a poller.
PARK_FUTEX, PARK_PYTHON, PARK_EPOLL, PARK_POLLER = 0, 1, 2, 3
READ, WRITE, ERROR, HANGUP, EDGE, ONESHOT = 1, 2, 4, 8, 16, 32  # readiness.IOEvents
READY_MOST = 1024  # events that one poll can report; the rest are reported by the next turn's poll

# Why a call was refused: the argument of the Python function that raises the exception.
REFUSED_CLOSED, REFUSED_FULL, REFUSED_MEMORY, REFUSED_CALLABLE, REFUSED_ARGUMENTS = 1, 2, 3, 4, 5
REFUSED_DELAY, REFUSED_SLOTS, REFUSED_IDENTIFIER, REFUSED_TIMER, REFUSED_MILLISECONDS = 6, 7, 8, 9, 10
REFUSED_DEADLINE = 11
# What a channel asks of Python (channel.py): to raise, to wait, to wake, or whether to try again.
ASK_FULL, ASK_CLOSED, ASK_WAIT, ASK_WAKE, ASK_KEPT, ASK_AGAIN = 1, 2, 3, 4, 5, 6
ASK_NATIVE = 8  # added to one of them: compiled code asks, so an error is a number, at most NATIVE_ERROR
NATIVE_ERROR = NATIVE_TOO_MANY = -3
ON_FULL_RAISE, ON_FULL_WAIT, ON_FULL_DROP_NEW, ON_FULL_DROP_OLD = 0, 1, 2, 3
# A channel's `queued`: no delivery is under way; a delivery is queued or runs; a timer waits for a batch to fill; a
# delivery was refused, and the word owns a reference of the state instead.
CHANNEL_IDLE, CHANNEL_BUSY, CHANNEL_FILLS, CHANNEL_LATE = 0, 1, 2, 3
IS_CHANNEL = 1  # in `entrances` of a block
# The word of a queue between loops: two flags, then how many items are available, then how many places are taken.
PERMITS_BUSY, PERMITS_SHUT, PERMITS_AVAILABLE, PERMITS_PLACE = 1, 2, 1 << 2, 1 << 33
PERMITS_MOST = (1 << 30) - 1  # places; as many items can be available
# What a field holds. numpy converts and stores the values of a FIELD_OTHER.
FIELD_OTHER, FIELD_DOUBLE, FIELD_SINGLE, FIELD_BOOL, FIELD_INT8, FIELD_INT16, FIELD_INT32, FIELD_INT64 = range(8)
GONE = 64  # added to a REFUSED_x: the reference to the refused object has already been released

# What a cell holds: an owned reference and, in its low bits, how to read it. Three bits, because C compilers align a
# PyObject to 8 bytes and no more (static types of extension modules lie at 8 mod 16), and no high bits, because nothing
# guarantees unused ones in an address. Each queue gives the three bits its own meaning:
TAGS = OBJECT_ALIGNMENT - 1
POINTER_MASK = ~TAGS
TAG_ARGUMENTS = 1  # in queues of tasks and in rings: the reference is a tuple (callable, *args)
STAMPED, STAMPED_EIGHTH = 2, 6  # in queues of tasks: the submit time lies beside the cell, and counts for 1 or for 8
CALLBACK_AT = 2  # index of the real callback in such a tuple, if it runs in its own context (captured.py)
FILLER = 4  # alone, in queues of tasks: not a task; the consumer steps over it
TAG_REACTION = 2  # in rings: a microtask that is a reaction (reactions.py)
# in the remote queue: remote_words.py

# Kinds of callbacks. KIND_ARM and KIND_CANCEL are commands of the remote queue, as KIND_IMMEDIATE can be.
KIND_TASK, KIND_MICROTASK, KIND_NEXT_TICK, KIND_INTERNAL, KIND_CLOSE = 0, 1, 2, 3, 4
KIND_ARM, KIND_CANCEL, KIND_IMMEDIATE, KIND_TIMER, KIND_CHECKPOINT_END, KIND_READINESS = 5, 6, 7, 8, 9, 10
# Names of the kinds, in `on_error`'s context, metrics and traces.
KIND_NAMES = {
    KIND_TASK: "task",
    KIND_MICROTASK: "microtask",
    KIND_NEXT_TICK: "next-tick",
    KIND_INTERNAL: "internal task",
    KIND_CLOSE: "close callback",
    KIND_IMMEDIATE: "immediate",
    KIND_TIMER: "timer",
    KIND_CHECKPOINT_END: "checkpoint end",
    KIND_READINESS: "readiness callback",
}
# Kinds of the recorder's entries; smaller numbers are the KIND_x of a callback that has run.
EVENT_SUBMIT, EVENT_MOVE, EVENT_ARM, EVENT_CANCEL, EVENT_SLEEP, EVENT_WAKE = 16, 17, 18, 19, 20, 21
EVENT_OVERLOAD, EVENT_TURN, EVENT_CHECKPOINT, EVENT_STALL, EVENT_COLLECTION, EVENT_BATCH = 22, 23, 24, 25, 26, 27
PLACE_BITS = 16  # a place is ``position << PLACE_BITS | number``, where `number` is that of a queue or ring
NUMBER_EXTERNAL, NUMBER_REMOTE, NUMBER_RINGS, NUMBER_HANDLES = 1, 2, 8, 32  # rings add their kind
