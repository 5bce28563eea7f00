"""The memory of a loop: one numpy structured dtype that kernels, Python code, documents and tests share.

``STATE`` describes one loop, ``HANDLE`` one producer handle; both are made of the records below. A kernel knows a word
by its byte offset (the constants at the end, taken from the dtype, so the two cannot disagree); a test or a debugger
reads the same word by name: ``loop_state.record["external"]["tail"]``.

Two rules of placement. Words that different threads *write* are a `LINE` apart: 128 bytes, because adjacent-line
prefetch on x86 and Apple's 128-byte lines both make neighbours of two 64-byte lines. Words that are only read stay
together on lines nobody writes, so every core keeps its own copy.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .interpreter import OBJECT_ALIGNMENT

LINE = 128
WORDS = LINE // 8


def _record(*lines: dict[str, object]) -> np.dtype[np.void]:
    """A dtype whose every argument starts on a line of its own; values are `np.int64` or another record."""
    names: list[str] = []
    formats: list[object] = []
    offsets: list[int] = []
    at = 0
    for line in lines:
        for name, kind in line.items():
            names.append(name)
            formats.append(kind)
            offsets.append(at)
            at += np.dtype(kind).itemsize  # type: ignore[call-overload]
        at += -at % LINE
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": at})


def _words(*names: str) -> dict[str, object]:
    return dict.fromkeys(names, np.int64)


# A ticket queue (ingress.py): many producers, one consumer.
QUEUE = _record(
    # read by all, written at construction
    _words(
        *("gate", "limit", "directory", "directory_mask", "shift", "pool"),
        *("observed", "measured", "recorder", "number"),
    ),
    # shared: every producer adds to it; swaps of this queue's words that had to be repeated; fillers that were drawn
    _words("tail", "retries", "filled"),
    # owned by the consumer, `passed` counts fillers; `final` is written once, by whoever closes
    _words("head", "chunk", "final", "stamp", "passed"),
)

# Chunks of cells and the stacks they wait in (pool.py).
POOL = _record(
    # read-mostly
    _words("slabs", "next", "slab_next", "chunk_bytes", "slab_limit"),
    _words("free", "free_retries"),  # shared: stack of chunk numbers
    _words("free_slabs", "free_slabs_retries", "slab_count"),  # shared: stack of slab numbers, the first never used
    _words("free_chunks"),  # shared: how many chunks wait in `free`, for the decision to give memory back
)

# A growable ring of callables with one owner (ring.py). 64 bytes, two to a line: both belong to the loop thread.
RING = np.dtype([(name, np.int64) for name in ("cells", "mask", "head", "tail", "_4", "_5", "_6", "_7")])

# Timers (timers.py): slots that any thread may arm or cancel, and the heap (heap.py) of those due soon.
TIMERS = _record(
    _words("slabs", "next"),  # read-mostly
    # shared: stack of slot numbers, and the first never used; its retries are also those of the slots' own words
    _words("free", "retries", "slot_count"),
    # Shared: balance of other threads' arms and cancels; slots that do not count; timer commands in the remote queue.
    _words("live_elsewhere", "unreferenced", "commands"),
    # Owned by the loop thread: the heap, and how many of its entries are of timers that were cancelled.
    _words("heap", "heap_block", "size", "capacity", "stale"),
    # spare slots: a stack of the loop thread's own, and its size
    _words("sequence", "live_here", "nesting", "spare", "spares"),
)
# One slot; 64 bytes, so two slots never share a line of 64. `order`: the number of a timer's entry in the heap or a
# bucket (heap.order_of), 0 if it has none, and below that its nesting level and clamp. `place`: where in the buckets. A
# watched descriptor (readiness.py) uses `interest`, and `descriptor`, the int object that its callback is given.
SLOT = np.dtype(
    [
        (name, np.int64)
        for name in ("word", "callback", "deadline", "period", "order", "place", "interest", "descriptor")
    ]
)
# One entry of the heap, or of a bucket of far timers; four fill one 64-byte line.
NODE = np.dtype([("deadline", np.int64), ("order", np.int64)])

# Far timers (far.py), unsorted in buckets by range of deadlines. All of it belongs to the loop thread.
FAR = _record(
    _words("horizon", "count", "opening", "buckets", "epoch", "unswept"),
    _words(*(f"level{level}" for level in range(8))),  # a bit for each bucket of the level that is not empty
)
# One bucket: where its next entry goes, where its last chunk ends and which that is; how many entries; a lower bound
# of their deadlines, and whether the entry that set it has gone. A 64-byte line.
BUCKET = np.dtype([(name, np.int64) for name in ("next", "end", "chunk", "count", "stale", "least", "loose", "_7")])

# Readiness (readiness.py): what the poller has reported and the loop has not dispatched yet.
IO = _record(
    _words("watches", "suspect"),  # shared: registered descriptors; has one been closed before it was unregistered?
    # Owned by the loop thread: the poller's descriptor, or -1; whether it knows timeouts in ns; where the system writes
    # events; pairs (token, events) and how many of them there are and are done.
    _words(
        "poller", "fine", "events", "ready", "ready_count", "ready_done", "error", "masks", "argument0", "argument1"
    ),
)

STATE = _record(
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
    ),
    # Objects the kernels call or return; owned references, released with the state.
    _words(
        *("none", "report", "refuse", "breathe", "overload", "warn", "waker", "renew", "pressure"),
        *("list_type", "tuple_type"),
    ),
    _words("stop", "holds"),  # shared: asks for the end after this turn
    _words("sleep", "sleep_deadline"),  # shared: the sleep word (parking.py) and until when
    _words("ready", "ready_retries"),  # shared: stack of producer handles with work
    _words("virtual_now"),  # shared: the time of a loop with a virtual clock (clock.py)
    {"external": QUEUE},
    {"remote": QUEUE},
    {"pool": POOL},
    {"ticks": RING, "microtasks": RING},  # owned by the loop thread, as all that follows
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
    ),
    _words("arguments0", "arguments1", "arguments2", "arguments3"),  # scratch for vectorcall, loop thread only
    _words("wakes_sent"),  # shared: counted by whoever wakes
    # counters of parking.py; claimed: wake calls this loop has seen claimed; parked, stalled: ns
    _words("spins_won", "spins_lost", "parks", "claimed", "parked", "stalled"),
)

# What a loop measures of itself (metrics.py), if it does; the histograms are those of histogram.py.
RATE_SLOTS = 128
HISTOGRAM_BUCKETS = (36 << 6) + 64
HISTOGRAM = np.dtype((np.int64, (3 + HISTOGRAM_BUCKETS,)))  # sum, max, sum of more than one word has, counts
LIVE = _record(
    _words(
        "now",  # ticks of the last boundary: the end of a callback or of a sleep
        "mark",  # ticks up to which idle and busy time are accounted for
        "group",  # callbacks since `now`
        "stride",  # callbacks that share a look
        "typical",  # ns of a short callback
        "bucket_end",  # ticks at which the bucket of the rate ends
        "running",  # kind of the callback in progress + 1, 0 for none
        "callbacks",
        "errors",
        "turns",
        "wakes_sent",
        "arrived",  # from outside, and taken
        "idle",
        "busy",
        "overloads",
    ),
    {"current": np.dtype((np.int64, (4,))), "max": np.dtype((np.int64, (4,))), "ema": np.dtype((np.int64, (4,)))}
    | _words("samples", "microtask_samples", "calm"),
    {"rate": np.dtype((np.int64, (RATE_SLOTS, 2)))},  # (number of a bucket, callbacks before it)
    {"latency": HISTOGRAM},
    {"delay": HISTOGRAM},
)
LIVE_BYTES = LIVE.itemsize
BLOCK = _record(
    # Written at construction. `tick_base` and `ns_base` are one moment on both clocks.
    _words("magic", "layout", "pid", "process_start", "cycles", "multiplier", "tick_base", "ns_base", "bucket_ticks")
    | {"name": np.dtype("S128")},
    _words("pace"),  # 0, or 7: which tickets are stamped. Read by producers, written by the loop when it changes
    _words("wanted"),  # written by readers
    _words("sequence", "published", "published_at"),
    {"live": LIVE},
    {"copy": LIVE},
)

# A flight recorder (recorder.py): this, and behind it a power of two of entries.
KNOWN = 512  # callables whose name needs no look at the table of names
RECORDER = _record(
    # Written at construction. `tick_base` and `ns_base` are one moment on both clocks.
    _words("cycles", "mask", "names", "function_type", "method_type", "builtin_type", "tick_base", "ns_base"),
    _words("head"),  # shared: everybody who records adds to it
    _words("lost"),  # shared
    _words(
        "boundary",  # ticks of the last boundary: the end of a callback or of a sleep
        "rested",  # ticks at which the last turn ended
        "parks",  # sleeps that have been recorded
        "thread",  # identifier of the thread that runs the loop, or did last
        "running",  # callbacks before the one in progress, and its kind + 1 in the low byte; 0 for none
        "subject",
        "what",
        "value",
    ),
    {"known": np.dtype((np.int64, (KNOWN,)))},
)
# One entry; a 64-byte line.
ENTRY = np.dtype(
    [(name, np.int64) for name in ("sequence", "time", "duration", "thread", "kind", "subject", "what", "value")]
)

HANDLE = _record(
    # The address of the loop's state, and of this handle's state object; the loop's own note of how much waits.
    _words("loop", "self"),
    _words("waiting"),
    _words("queued", "next_ready"),  # shared with the loop: is this handle in the ready stack, and what lies under it
    {"queue": QUEUE},
)


def offset(record: np.dtype[np.void], *path: str) -> int:
    """Byte offset of a word by its path of names.

    >>> offset(QUEUE, "tail"), offset(STATE, "sleep_deadline") - offset(STATE, "sleep")
    (128, 8)
    """
    at = 0
    for name in path:
        assert record.fields is not None
        record, start = record.fields[name][:2]
        at += start
    return at


# --- sizes ----------------------------------------------------------------------------------------------------------
DIRECTORY_BITS = 18  # segments a queue can have in use: 262,144 of 128 cells are 33.5 million queued tasks
CHUNKS_PER_SLAB_BITS = 6  # 64 chunks of 1 KiB: a map of 64 KiB
SLOTS_PER_SLAB_BITS = 10  # 1,024 timer slots of 64 bytes: a map of 64 KiB
SLOT_BITS = 22  # 4.2 million timers; the other 41 bits of an id count how often its slot was used
CHUNK_LIMIT = 1 << DIRECTORY_BITS
SLAB_LIMIT = CHUNK_LIMIT >> CHUNKS_PER_SLAB_BITS
SLOT_LIMIT = 1 << SLOT_BITS
SLOT_SLAB_LIMIT = SLOT_LIMIT >> SLOTS_PER_SLAB_BITS
FAR_LEVELS = 8
DIGIT_BITS = 6  # 64 buckets a level
BUCKET_COUNT = FAR_LEVELS << DIGIT_BITS
BUCKET_BYTES = BUCKET.itemsize
SLOT_BYTES = SLOT.itemsize
NODE_BYTES = NODE.itemsize


# Private, which is not Python's default: a forked child that lets go of its copy of a loop must not empty the parent's.
_PRIVATE: dict[str, Any] = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}


def table(words: int) -> npt.NDArray[np.int64]:
    """A zeroed table that costs address space, not memory, until its entries are used.

    An anonymous map and not `np.zeros`: after the first freed table glibc raises its mmap threshold, and from then on
    the same `np.zeros(2 MiB)` is carved from the heap and cleared by hand, 2 MiB resident a loop.
    """
    return np.frombuffer(mmap.mmap(-1, words * 8, **_PRIVATE), np.int64)


# --- the words, as kernels know them --------------------------------------------------------------------------------
Q_GATE, Q_LIMIT = offset(QUEUE, "gate"), offset(QUEUE, "limit")
Q_DIRECTORY, Q_DIRECTORY_MASK = offset(QUEUE, "directory"), offset(QUEUE, "directory_mask")
Q_MEASURED, Q_STAMP = offset(QUEUE, "measured"), offset(QUEUE, "stamp")  # metrics.py: its block, or 0; a stamp
# recorder.py: where to, or 0, and what the queue is called there; is there a block or a recorder?
Q_RECORDER, Q_NUMBER, Q_OBSERVED = (offset(QUEUE, n) for n in ("recorder", "number", "observed"))
Q_SHIFT, Q_POOL, Q_TAIL = offset(QUEUE, "shift"), offset(QUEUE, "pool"), offset(QUEUE, "tail")
Q_RETRIES = offset(QUEUE, "retries")
Q_FILLED, Q_PASSED = offset(QUEUE, "filled"), offset(QUEUE, "passed")
Q_HEAD, Q_CHUNK, Q_FINAL = offset(QUEUE, "head"), offset(QUEUE, "chunk"), offset(QUEUE, "final")

P_SLABS, P_CHUNK_BYTES = offset(POOL, "slabs"), offset(POOL, "chunk_bytes")
P_NEXT, P_SLAB_NEXT = offset(POOL, "next"), offset(POOL, "slab_next")
P_SLAB_LIMIT, P_FREE, P_FREE_CHUNKS = offset(POOL, "slab_limit"), offset(POOL, "free"), offset(POOL, "free_chunks")
S_INTEREST, S_DESCRIPTOR = offset(SLOT, "interest"), offset(SLOT, "descriptor")
IO_WATCHES, IO_SUSPECT, IO_POLLER = (offset(IO, n) for n in ("watches", "suspect", "poller"))
IO_FINE, IO_EVENTS, IO_READY, IO_READY_COUNT = (offset(IO, n) for n in ("fine", "events", "ready", "ready_count"))
IO_READY_DONE, IO_ERROR, IO_MASKS = (offset(IO, n) for n in ("ready_done", "error", "masks"))
IO_ARGUMENTS = offset(IO, "argument0")

P_FREE_SLABS, P_SLAB_COUNT = offset(POOL, "free_slabs"), offset(POOL, "slab_count")

R_CELLS, R_MASK, R_HEAD = offset(RING, "cells"), offset(RING, "mask"), offset(RING, "head")
R_TAIL = offset(RING, "tail")

T_SLABS, T_NEXT = offset(TIMERS, "slabs"), offset(TIMERS, "next")
T_FREE, T_SLOT_COUNT = offset(TIMERS, "free"), offset(TIMERS, "slot_count")
T_LIVE_ELSEWHERE, T_UNREFERENCED = offset(TIMERS, "live_elsewhere"), offset(TIMERS, "unreferenced")
T_HEAP, T_HEAP_BLOCK, T_SIZE = offset(TIMERS, "heap"), offset(TIMERS, "heap_block"), offset(TIMERS, "size")
T_CAPACITY, T_SEQUENCE = offset(TIMERS, "capacity"), offset(TIMERS, "sequence")
T_LIVE_HERE, T_NESTING = offset(TIMERS, "live_here"), offset(TIMERS, "nesting")
S_WORD, S_CALLBACK, S_DEADLINE = offset(SLOT, "word"), offset(SLOT, "callback"), offset(SLOT, "deadline")
S_PERIOD, S_ORDER, S_PLACE = offset(SLOT, "period"), offset(SLOT, "order"), offset(SLOT, "place")
T_COMMANDS = offset(TIMERS, "commands")
T_SPARE, T_SPARES = offset(TIMERS, "spare"), offset(TIMERS, "spares")
T_STALE, T_RETRIES = offset(TIMERS, "stale"), offset(TIMERS, "retries")

F_HORIZON, F_COUNT, F_OPENING = offset(FAR, "horizon"), offset(FAR, "count"), offset(FAR, "opening")
F_EPOCH, F_UNSWEPT = offset(FAR, "epoch"), offset(FAR, "unswept")
F_BUCKETS, F_LEVEL0 = offset(FAR, "buckets"), offset(FAR, "level0")
B_NEXT, B_END, B_CHUNK = offset(BUCKET, "next"), offset(BUCKET, "end"), offset(BUCKET, "chunk")
B_COUNT, B_STALE, B_LEAST, B_LOOSE = (offset(BUCKET, n) for n in ("count", "stale", "least", "loose"))

LIFECYCLE, INTERRUPT, OWNER = offset(STATE, "lifecycle"), offset(STATE, "interrupt"), offset(STATE, "owner")
SELF, BUDGET, CLAMP, AUTO_EXIT = (offset(STATE, n) for n in ("self", "budget", "clamp", "auto_exit"))
PARK_MODE, WAKE_FD, SPIN_MAX, ONE_WORD = (offset(STATE, n) for n in ("park_mode", "wake_fd", "spin_max", "one"))
NONE, REPORT, REFUSE = offset(STATE, "none"), offset(STATE, "report"), offset(STATE, "refuse")
BREATHE, OVERLOAD, WARN = offset(STATE, "breathe"), offset(STATE, "overload"), offset(STATE, "warn")
WAKER, RENEW = offset(STATE, "waker"), offset(STATE, "renew")
IO_AT = offset(STATE, "io")
VIRTUAL, AUTOJUMP, VIRTUAL_NOW = (offset(STATE, n) for n in ("virtual", "autojump", "virtual_now"))
STOP, HOLDS, SLEEP, SLEEP_DEADLINE, READY = (
    offset(STATE, n) for n in ("stop", "holds", "sleep", "sleep_deadline", "ready")
)
EXTERNAL, REMOTE, POOL_AT, TIMERS_AT = (offset(STATE, n) for n in ("external", "remote", "pool", "timers"))
TICKS, MICROTASKS, IMMEDIATES = offset(STATE, "ticks"), offset(STATE, "microtasks"), offset(STATE, "immediates")
CLOSING, INTERNAL = offset(STATE, "closing"), offset(STATE, "internal")
CHECKPOINT_ENDS, FAR_AT = offset(STATE, "checkpoint_ends"), offset(STATE, "far")
POLLED, DUE, POLL_TIMEOUT = (offset(STATE, n) for n in ("polled", "due", "poll_timeout"))
SHORT, SPIN_SKIP, SPIN_REST = (offset(STATE, n) for n in ("short", "spin_skip", "spin_rest"))
CALLBACKS, STALLS, TURNS = offset(STATE, "callbacks"), offset(STATE, "stalls"), offset(STATE, "turns")
# Backlogs at which `pressure` is called, and whether the last call was for the high one; 0: never
LIST_TYPE, TUPLE_TYPE = offset(STATE, "list_type"), offset(STATE, "tuple_type")
PRESSURE, PRESSED = offset(STATE, "pressure"), offset(STATE, "pressed")
PRESSURE_HIGH, PRESSURE_LOW = offset(STATE, "pressure_high"), offset(STATE, "pressure_low")
# Addresses of what metrics.py measures in and recorder.py writes to; 0: off. Not 0 if either is on.
METRICS, RECORDER_AT, OBSERVED = offset(STATE, "metrics"), offset(STATE, "recorder"), offset(STATE, "observed")
HANDLED = offset(STATE, "handled")  # tasks that came through handles, and were taken
SUBJECT = offset(STATE, "subject")  # where the next callback comes from: a queue, or the id of a timer or a watch
SECONDS, NANOSECONDS = offset(STATE, "seconds"), offset(STATE, "nanoseconds")
ARGUMENTS = offset(STATE, "arguments0")
# How many ns a sleep lasts at most on the thread that runs Python's signal handlers, 0: no such limit; and whether the
# last sleep was one of these, and nothing came
NAP, NAPPED = offset(STATE, "nap"), offset(STATE, "napped")
WAKES_SENT, SPINS_WON, SPINS_LOST = (offset(STATE, n) for n in ("wakes_sent", "spins_won", "spins_lost"))
PARKS, CLAIMED, PARKED, STALLED = (offset(STATE, n) for n in ("parks", "claimed", "parked", "stalled"))
READY_RETRIES = offset(STATE, "ready_retries")

H_LOOP, H_SELF, H_WAITING = (offset(HANDLE, n) for n in ("loop", "self", "waiting"))
H_QUEUED, H_NEXT_READY, H_QUEUE = offset(HANDLE, "queued"), offset(HANDLE, "next_ready"), offset(HANDLE, "queue")

M_CYCLES, M_MULTIPLIER, M_BUCKET_TICKS = (offset(BLOCK, n) for n in ("cycles", "multiplier", "bucket_ticks"))
M_PACE, M_WANTED, M_SEQUENCE = (offset(BLOCK, n) for n in ("pace", "wanted", "sequence"))
M_PUBLISHED, M_PUBLISHED_AT, M_LIVE, M_COPY = (offset(BLOCK, n) for n in ("published", "published_at", "live", "copy"))
M_NOW, M_MARK, M_GROUP, M_STRIDE, M_TYPICAL, M_BUCKET_END, M_RUNNING = (
    offset(BLOCK, "live", n) for n in ("now", "mark", "group", "stride", "typical", "bucket_end", "running")
)
M_CALLBACKS, M_ERRORS, M_TURNS, M_WAKES, M_ARRIVED, M_IDLE, M_BUSY, M_OVERLOADS = (
    offset(BLOCK, "live", n)
    for n in ("callbacks", "errors", "turns", "wakes_sent", "arrived", "idle", "busy", "overloads")
)
M_CURRENT, M_MAX, M_EMA = (offset(BLOCK, "live", n) for n in ("current", "max", "ema"))
M_SAMPLES, M_MICROTASK_SAMPLES, M_CALM = (offset(BLOCK, "live", n) for n in ("samples", "microtask_samples", "calm"))
M_RATE, M_LATENCY, M_DELAY = (offset(BLOCK, "live", n) for n in ("rate", "latency", "delay"))

K_CYCLES, K_MASK, K_NAMES, K_HEAD, K_LOST = (offset(RECORDER, n) for n in ("cycles", "mask", "names", "head", "lost"))
K_FUNCTION_TYPE, K_METHOD_TYPE, K_BUILTIN_TYPE = (
    offset(RECORDER, n) for n in ("function_type", "method_type", "builtin_type")
)
K_BOUNDARY, K_RESTED, K_PARKS, K_THREAD, K_RUNNING, K_SUBJECT, K_WHAT, K_VALUE, K_KNOWN = (
    offset(RECORDER, n)
    for n in ("boundary", "rested", "parks", "thread", "running", "subject", "what", "value", "known")
)
K_ENTRIES = RECORDER.itemsize
N_TIME, N_DURATION, N_THREAD, N_KIND, N_SUBJECT, N_WHAT, N_VALUE = (
    offset(ENTRY, n) for n in ("time", "duration", "thread", "kind", "subject", "what", "value")
)

# --- values ---------------------------------------------------------------------------------------------------------
AWAKE, RUNNING, TERMINATING, TERMINATED = 0, 1, 2, 3  # lifecycle
OPEN, EXACT, FULL = 0, 1, 2  # gate of a queue
MINUS = -(1 << 63)  # the sign bit: in a tail it means closed
# How the loop sleeps: in the kernels on a futex, in Python on a lock, in the kernels in epoll, in Python in a poller.
PARK_FUTEX, PARK_PYTHON, PARK_EPOLL, PARK_POLLER = 0, 1, 2, 3
READ, WRITE, ERROR, HANGUP, EDGE, ONESHOT = 1, 2, 4, 8, 16, 32  # readiness.IOEvents
READY_MOST = 1024  # events that one poll can report; more are there at the next turn's

# Why a call was refused: the argument of the Python function that raises the exception.
REFUSED_CLOSED, REFUSED_FULL, REFUSED_MEMORY, REFUSED_CALLABLE, REFUSED_ARGUMENTS = 1, 2, 3, 4, 5
REFUSED_DELAY, REFUSED_SLOTS, REFUSED_IDENTIFIER, REFUSED_TIMER, REFUSED_MILLISECONDS = 6, 7, 8, 9, 10
REFUSED_DEADLINE = 11
GONE = 64  # beside one of them: the reference of what was refused has been released already

# What a cell holds: an owned reference and, in its low bits, how to read it. Three bits, because a C compiler aligns a
# PyObject to 8 bytes and no further (static types of extension modules lie at 8 mod 16), and no high bit, because
# nobody promises that an address has an unused one. What the three mean is each queue's own:
TAGS = OBJECT_ALIGNMENT - 1
POINTER_MASK = ~TAGS
TAG_ARGUMENTS = 1  # in queues of tasks and in rings: the reference is a tuple (callable, *args)
STAMPED, STAMPED_EIGHTH = 2, 6  # in queues of tasks: its time lies beside the cell, and counts for 1 or for 8
FILLER = 4  # alone, in queues of tasks: no task, to be stepped over
TAG_REACTION = 2  # in rings: a microtask that is a reaction (reactions.py)
# in the remote queue: remote.py

# What is called. KIND_ARM and KIND_CANCEL are commands of the remote queue, as KIND_IMMEDIATE can be.
KIND_TASK, KIND_MICROTASK, KIND_TICK, KIND_INTERNAL, KIND_CLOSE = 0, 1, 2, 3, 4
KIND_ARM, KIND_CANCEL, KIND_IMMEDIATE, KIND_TIMER, KIND_CHECKPOINT_END, KIND_READINESS = 5, 6, 7, 8, 9, 10
# What callbacks are called: in `on_error`'s context, metrics and traces.
KIND_NAMES = {
    KIND_TASK: "task",
    KIND_MICROTASK: "microtask",
    KIND_TICK: "next-tick",
    KIND_INTERNAL: "internal task",
    KIND_CLOSE: "close callback",
    KIND_IMMEDIATE: "immediate",
    KIND_TIMER: "timer",
    KIND_CHECKPOINT_END: "checkpoint end",
    KIND_READINESS: "readiness callback",
}
# What an entry of the recorder tells of; smaller numbers are the KIND_x of a callback that has run.
EVENT_SUBMIT, EVENT_MOVE, EVENT_ARM, EVENT_CANCEL, EVENT_SLEEP, EVENT_WAKE = 16, 17, 18, 19, 20, 21
EVENT_OVERLOAD, EVENT_TURN, EVENT_CHECKPOINT = 22, 23, 24
PLACE_BITS = 16  # of a place, ``position << PLACE_BITS | number``: which queue or ring the position is in
NUMBER_EXTERNAL, NUMBER_REMOTE, NUMBER_RINGS, NUMBER_HANDLES = 1, 2, 8, 32  # a ring's: its kind added
