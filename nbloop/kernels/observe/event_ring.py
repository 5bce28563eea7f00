"""A flight recorder: the last events of a loop and its producers, in a ring that is continually overwritten.

Problem: after a hang or a crash, users want to know what happened just before, but nothing was switched on. Idea: every
thread records its actions in one ring of 64-byte entries, which overwrites the oldest and is cheap enough to leave on.
One addition draws a place; then the entry is claimed, filled, and its *sequence* word published last. There is one
entry per callback, with one reading of the clock: the end of one callback is the start of the next, as in meter.py.

Invariants: the sequence word of an entry is ``2 * (number + 1)`` when entry `number` is complete, odd while a thread
writes it, and only ever grows. The thread that makes it odd (by compare-and-swap) owns the other words until it makes
it even. So a reader that finds the expected even value before and after has the words of that number; with any other
value the entry is torn, overwritten or not written yet, and is skipped. A writer that was descheduled until the ring
has wrapped around to its place finds a greater or an odd value, drops its event and counts it in `lost`: no thread ever
waits.

Names of callbacks: by the time anybody reads it, a callable's address may denote another object. So its *code* (a
function's code, a built-in's definition, a class itself, else the type) is entered in a dict, which keeps it alive,
before its first call, so that a call that hangs is known. 512 words remember what has been entered, so most callbacks
cost one comparison.

It loses when many threads submit at once, since they all pass around the line of the ring's head; and it can name a
`functools.partial` only as such.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, exchange, fetch_add, get, load, monotonic_ns, prefetch, put, store, ticks
from ..base.capi import (
    Py_DecRef,
    PyDict_SetItem,
    PyDict_Size,
    PyErr_Clear,
    PyFunction_GetCode,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyObject_GetItem,
    PyThread_get_thread_ident,
    PyType_GetFlags,
    PyUnicode_Compare,
    PyUnicode_FromString,
)
from ..base.interpreter import (
    BUILTIN_DEFINITION,
    DEFINITION_NAME,
    METHOD_FUNCTION,
    OBJECT_TYPE,
    SEQUENCE_SIZE,
    TUPLE_ITEMS,
    TYPE_SUBCLASS,
)
from ..base.kernel import MANY, ONE, apart, data, helper, kernel
from ..base.layout import (
    CALLBACK_AT,
    ENTRY,
    EVENT_BATCH,
    EVENT_CHECKPOINT,
    EVENT_COLLECTION,
    EVENT_MOVE,
    EVENT_OVERLOAD,
    EVENT_SLEEP,
    EVENT_STALL,
    EVENT_SUBMIT,
    EVENT_TURN,
    IO,
    K_ENTRIES,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_NEXT_TICK,
    KIND_READINESS,
    KIND_TASK,
    KIND_TIMER,
    KNOWN,
    NUMBER_RINGS,
    PLACE_BITS,
    POINTER_MASK,
    QUEUE,
    RECORDER,
    RING,
    STATE,
    TAG_ARGUMENTS,
)
from ..memory.ring import ring_length

ENTRY_BITS = 6
AHEAD = 4  # entries: a line is prefetched this many entries before it is claimed
NAMES_MOST = 4096


@helper
def recorder_now(recorder: int) -> int:
    """The current time on the recorder's clock. Any thread."""
    if get(recorder + RECORDER.CYCLES) != 0:
        return ticks()
    return monotonic_ns()


@helper
def record(recorder: int, time: int, duration: int, kind: int, subject: int, what: int, value: int) -> None:
    """Write one entry, unless the ring has wrapped around meanwhile. Any thread, also in signal handlers; O(1),
    wait-free.
    """
    number = fetch_add(recorder + RECORDER.HEAD, 1)
    mask = get(recorder + RECORDER.MASK)
    entry = recorder + K_ENTRIES + ((number & mask) << ENTRY_BITS)
    prefetch(recorder + K_ENTRIES + (((number + AHEAD) & mask) << ENTRY_BITS))
    whole = (number + 1) << 1
    old = load(entry)
    if old & 1 != 0 or old > whole or not compare_and_swap(entry, old, whole | 1):
        fetch_add(recorder + RECORDER.LOST, 1)
        return
    store(entry + ENTRY.TIME, time)
    store(entry + ENTRY.DURATION, duration)
    store(entry + ENTRY.THREAD, PyThread_get_thread_ident())
    store(entry + ENTRY.KIND, kind)
    store(entry + ENTRY.SUBJECT, subject)
    store(entry + ENTRY.WHAT, what)
    store(entry + ENTRY.VALUE, value)
    store(entry, whole)


@helper
def event(recorder: int, kind: int, subject: int, value: int) -> None:
    """Record an event that happens now. Any thread, also in signal handlers."""
    record(recorder, recorder_now(recorder), 0, kind, subject, 0, value)


@helper
def read_entry(recorder: int, number: int, target: int) -> bool:
    """Copy entry `number` to `target`, its number first; False if it is not complete, or overwritten. Any thread."""
    entry = recorder + K_ENTRIES + ((number & get(recorder + RECORDER.MASK)) << ENTRY_BITS)
    whole = (number + 1) << 1
    if load(entry) != whole:
        return False
    put(target, number)
    for at in range(8, 1 << ENTRY_BITS, 8):
        put(target + at, load(entry + at))  # an acquire load: the check of the sequence below is not older
    return load(entry) == whole


# --- where things are -------------------------------------------------------------------------------------------------


@helper
def ring_of(base: int, kind: int) -> int:
    """The ring in which callbacks of `kind` wait."""
    if kind == KIND_MICROTASK:
        return base + STATE.MICROTASKS
    if kind == KIND_NEXT_TICK:
        return base + STATE.NEXT_TICKS
    if kind == KIND_INTERNAL:
        return base + STATE.INTERNAL
    if kind == KIND_CLOSE:
        return base + STATE.CLOSING
    if kind == KIND_IMMEDIATE:
        return base + STATE.IMMEDIATES
    return base + STATE.CHECKPOINT_ENDS


@helper
def ring_place(base: int, kind: int, word: int) -> int:
    """The place before a ring's head (the word just taken) or tail (the word just added)."""
    return (get(ring_of(base, kind) + word) - 1) << PLACE_BITS | (NUMBER_RINGS + kind)


@helper
def push_recorded(queue: int, ticket: int, count: int) -> None:
    """Record that `count` tickets were drawn. Their owner, before it stores anything, so that submits precede runs."""
    recorder = get(queue + QUEUE.RECORDER)
    if recorder != 0:
        event(recorder, EVENT_SUBMIT, ticket << PLACE_BITS | get(queue + QUEUE.NUMBER), count)


@helper
def only_waits(base: int) -> bool:
    """Whether the callback in progress is a channel's delivery that has found a producer between claim and publication.
    It queues itself again and again, so neither the delivery nor its queueing is recorded (`record_turn`). Loop thread.
    """
    return get(base + STATE.STALLS) != get(get(base + STATE.RECORDER) + RECORDER.BEGUN_STALLS)


@apart
def ring_recorded(base: int, kind: int) -> None:
    """Record that the loop's thread added something to a ring. Recorder on."""
    if not only_waits(base):
        event(get(base + STATE.RECORDER), EVENT_SUBMIT, ring_place(base, kind, RING.TAIL), 1)


@helper
def move_recorded(base: int, kind: int) -> None:
    """Record both places of a word that moved from the remote queue to a ring, so that its submit can be found. Loop
    thread.
    """
    queue = base + STATE.REMOTE
    place = get(queue + QUEUE.HEAD) << PLACE_BITS | get(queue + QUEUE.NUMBER)
    event(get(base + STATE.RECORDER), EVENT_MOVE, place, ring_place(base, kind, RING.TAIL))


# --- names ------------------------------------------------------------------------------------------------------------


@helper
def name_of(recorder: int, word: int) -> int:
    """The key, in the dict of names, for what a tagged reference calls; a new key is entered. Loop thread.

    No bytecode runs, so it can fail only for lack of memory; the callback then has no name.
    """
    target = word & POINTER_MASK
    if word & TAG_ARGUMENTS != 0:
        items = target
        target = get(items + TUPLE_ITEMS)
        if target == get(recorder + RECORDER.RUN_IN_CONTEXT) and get(items + SEQUENCE_SIZE) > CALLBACK_AT:
            target = get(items + TUPLE_ITEMS + (CALLBACK_AT << 3))
    kind = get(target + OBJECT_TYPE)
    if kind == get(recorder + RECORDER.METHOD_TYPE):
        target = get(target + METHOD_FUNCTION)
        kind = get(target + OBJECT_TYPE)
    key = kind
    if kind == get(recorder + RECORDER.FUNCTION_TYPE):
        key = PyFunction_GetCode(target)
    elif kind == get(recorder + RECORDER.BUILTIN_TYPE):
        key = get(target + BUILTIN_DEFINITION)
    elif PyType_GetFlags(kind) & TYPE_SUBCLASS != 0:
        key = target  # the class that is called, not its metaclass
    known = recorder + RECORDER.KNOWN + (((key >> 4) & (KNOWN - 1)) << 3)
    if get(known) != key:
        put(known, key)
        name_add(get(recorder + RECORDER.NAMES), key, kind == get(recorder + RECORDER.BUILTIN_TYPE))
    return key


@helper
def name_add(names: int, key: int, builtin: bool) -> None:
    """Enter a code, a type, or a built-in's name. Loop thread."""
    if PyDict_Size(names) >= NAMES_MOST:
        return
    number = PyLong_FromLongLong(key)
    text = PyUnicode_FromString(get(key + DEFINITION_NAME)) if builtin else 0
    value = text if builtin else key
    if number == 0 or value == 0 or PyDict_SetItem(names, number, value) != 0:
        PyErr_Clear()
    if number != 0:
        Py_DecRef(number)
    if text != 0:
        Py_DecRef(text)


# --- the loop's thread ------------------------------------------------------------------------------------------------


@apart
def run_begins(base: int, word: int, kind: int) -> None:
    """Note what runs from now on, under a seqlock whose sequence is `running`: 0, or unique to this call."""
    recorder = get(base + STATE.RECORDER)
    what = name_of(recorder, word)
    subject = get(base + STATE.SUBJECT)
    value = 0
    if kind == KIND_TASK:
        subject = (get(subject + QUEUE.HEAD) - 1) << PLACE_BITS | get(subject + QUEUE.NUMBER)
    elif kind == KIND_READINESS:
        value = PyLong_AsLongLong(get(base + STATE.IO + IO.ARGUMENT0)) << 1
    elif kind != KIND_TIMER:
        subject = ring_place(base, kind, RING.HEAD)
    put(recorder + RECORDER.BEGUN_STALLS, get(base + STATE.STALLS))
    store(recorder + RECORDER.RUNNING, 0)
    store(recorder + RECORDER.SUBJECT, subject)
    store(recorder + RECORDER.WHAT, what)
    store(recorder + RECORDER.VALUE, value)
    store(recorder + RECORDER.RUNNING, get(base + STATE.CALLBACKS) << 8 | (kind + 1))


@apart
def run_ends(base: int, failed: bool) -> None:
    """Record the callback, from the last boundary to now. The low bit of its value says whether it raised."""
    recorder = get(base + STATE.RECORDER)
    kind = (get(recorder + RECORDER.RUNNING) & 255) - 1
    since = get(recorder + RECORDER.BOUNDARY)
    now = recorder_now(recorder)
    value = get(recorder + RECORDER.VALUE) | (1 if failed else 0)
    subject = get(recorder + RECORDER.SUBJECT)
    if only_waits(base):
        put(recorder + RECORDER.SEEN_CALLBACKS, get(recorder + RECORDER.SEEN_CALLBACKS) + 1)
        put(recorder + RECORDER.BEGUN_STALLS, get(base + STATE.STALLS))
    else:
        record(recorder, since, now - since, kind, subject, get(recorder + RECORDER.WHAT), value)
    store(recorder + RECORDER.RUNNING, 0)
    store(recorder + RECORDER.BOUNDARY, now)


@helper
def boundary_moved(base: int) -> None:
    """Move the boundary to now, so that the loop's own work after a callback does not count towards the next one."""
    recorder = get(base + STATE.RECORDER)
    store(recorder + RECORDER.BOUNDARY, recorder_now(recorder))


@helper
def sleep_recorded(base: int, recorder: int, now: int) -> None:
    """If the loop has slept since its last turn, record the sleep."""
    parks = get(base + STATE.PARKS)
    if parks != get(recorder + RECORDER.PARKS):
        put(recorder + RECORDER.PARKS, parks)
        rested = get(recorder + RECORDER.RESTED)
        record(recorder, rested, now - rested, EVENT_SLEEP, 0, 0, 0)


@helper
def record_enters(base: int, slept: bool) -> None:
    """`run` or `drain` begins; `slept`: Python slept for the loop."""
    recorder = get(base + STATE.RECORDER)
    now = recorder_now(recorder)
    store(recorder + RECORDER.THREAD, PyThread_get_thread_ident())
    if slept:
        sleep_recorded(base, recorder, now)
    store(recorder + RECORDER.BOUNDARY, now)


@helper
def record_rests(base: int) -> None:
    """A turn has ended; the loop will sleep or return."""
    recorder = get(base + STATE.RECORDER)
    put(recorder + RECORDER.RESTED, recorder_now(recorder))


@helper
def record_turn(base: int, ingress: int) -> None:
    """A turn begins after a sleep: record how much waits where.

    A loop that waits for a producer between ticket and store makes a turn at each look, some 100,000 a second, which
    would overwrite all that the ring remembers. So the wait is recorded once, until a callback has run.
    """
    recorder = get(base + STATE.RECORDER)
    now = recorder_now(recorder)
    sleep_recorded(base, recorder, now)
    callbacks = get(base + STATE.CALLBACKS)
    stalls = get(base + STATE.STALLS)
    stalled = stalls != get(recorder + RECORDER.SEEN_STALLS) and callbacks == get(recorder + RECORDER.SEEN_CALLBACKS)
    put(recorder + RECORDER.SEEN_STALLS, stalls)
    put(recorder + RECORDER.SEEN_CALLBACKS, callbacks)
    internal = ring_length(base + STATE.INTERNAL)
    if not stalled:
        put(recorder + RECORDER.STALLING, 0)
        record(recorder, now, 0, EVENT_TURN, ingress, ring_length(base + STATE.IMMEDIATES), internal)
    elif get(recorder + RECORDER.STALLING) == 0:
        put(recorder + RECORDER.STALLING, 1)
        record(recorder, now, 0, EVENT_STALL, ingress, 0, internal)
    store(recorder + RECORDER.BOUNDARY, now)


@helper
def record_checkpoint(base: int) -> None:
    """Record how many next-ticks and microtasks wait, if any, at the last boundary."""
    depth = ring_length(base + STATE.NEXT_TICKS) + ring_length(base + STATE.MICROTASKS)
    if depth != 0:
        recorder = get(base + STATE.RECORDER)
        record(recorder, get(recorder + RECORDER.BOUNDARY), 0, EVENT_CHECKPOINT, depth, 0, 0)


@helper
def record_overload(base: int) -> None:
    """Record that more tasks wait than one turn takes."""
    event(get(base + STATE.RECORDER), EVENT_OVERLOAD, 0, 0)


@helper
def record_batch(base: int, number: int, count: int) -> None:
    """Record that the channel of this number hands over a batch of `count` records."""
    recorder = get(base + STATE.RECORDER)
    if recorder != 0:
        event(recorder, EVENT_BATCH, number, count)


# --- collections of garbage -------------------------------------------------------------------------------------------


@helper
def number_in(mapping: int, key: int) -> int:
    """The number that a dict has for a key; 0 if there is none."""
    found = PyObject_GetItem(mapping, key)
    if found == 0:
        PyErr_Clear()
        return 0
    number = PyLong_AsLongLong(found)
    Py_DecRef(found)
    if number < 0:
        PyErr_Clear()
        return 0
    return number


@kernel(MANY)
def record_collection(self: int, arguments: int, _count: int) -> int:
    """(phase, facts), as `gc.callbacks` are called: record a collection when it ends. Any thread, and no bytecode: an
    exception of a signal handler would be lost here. The interpreter makes one collection at a time.
    """
    recorder = data(self)
    now = recorder_now(recorder)
    if PyUnicode_Compare(get(arguments), get(recorder + RECORDER.WORD_START)) == 0:
        store(recorder + RECORDER.COLLECTING, now)
        return PyLong_FromLongLong(0)
    since = exchange(recorder + RECORDER.COLLECTING, 0)
    if since != 0:  # else the recorder was made in the middle of it
        facts = get(arguments + 8)
        generation = number_in(facts, get(recorder + RECORDER.WORD_GENERATION))
        collected = number_in(facts, get(recorder + RECORDER.WORD_COLLECTED))
        record(recorder, since, now - since, EVENT_COLLECTION, generation, 0, collected)
    return PyLong_FromLongLong(0)


# --- reading ----------------------------------------------------------------------------------------------------------


@kernel(MANY)
def recorder_read(self: int, arguments: int, _count: int) -> int:
    """(array, first, count): copy the complete ones of these entries to the array; return how many. Any thread."""
    recorder = data(self)
    target = data(get(arguments))
    first = PyLong_AsLongLong(get(arguments + 8))
    found = 0
    for number in range(first, first + PyLong_AsLongLong(get(arguments + 16))):
        if read_entry(recorder, number, target + (found << ENTRY_BITS)):
            found += 1
    return PyLong_FromLongLong(found)


@kernel(ONE)
def recorder_running(self: int, array: int) -> int:
    """Write to an array [kind + 1 and a count, boundary, subject, what, value] of the callback in progress. Returns the
    number of words; 0 if there is none, or if another has just begun. Any thread.
    """
    recorder = data(self)
    target = data(array)
    running = load(recorder + RECORDER.RUNNING)
    put(target, running)
    put(target + 8, load(recorder + RECORDER.BOUNDARY))
    put(target + 16, load(recorder + RECORDER.SUBJECT))
    put(target + 24, load(recorder + RECORDER.WHAT))
    put(target + 32, load(recorder + RECORDER.VALUE))
    return PyLong_FromLongLong(5 if running != 0 and load(recorder + RECORDER.RUNNING) == running else 0)


@kernel(ONE)
def recorder_head(self: int, _array: int) -> int:
    """The number of entries begun. Any thread."""
    return PyLong_FromLongLong(load(data(self) + RECORDER.HEAD))
