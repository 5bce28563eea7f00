"""A flight recorder: the last things that a loop and its producers did, in a ring that is always being overwritten.

Problem: after a hang or a crash one wants to know what happened just before, and has not been asking. Idea: every
thread writes what it does into one ring of 64-byte entries, oldest first overwritten, cheap enough to leave on. A place
is drawn with one addition; then the entry is claimed, filled, and its *sequence* word published last. An entry a
callback, one look at the clock each: the end of one callback is the start of the next, as in metrics.py.

Invariants: the sequence word of an entry is ``2 * (number + 1)`` when entry `number` is whole, odd while somebody
writes it, and only ever grows. Whoever made it odd (a compare-and-swap) is alone with the other words until it makes
it even. So a reader that finds the same even value before and after has the words of that number; any other is torn,
overwritten or not written yet, and skipped. A writer that was descheduled for so long that the ring has come round to
its place finds a greater or an odd value, drops its event and counts it in `lost`: nobody ever waits.

What a callback is called: a callable's address may be somebody else's by the time anybody reads it. So its *code* (a
function's code, a built-in's definition, a class itself, else the type) is entered in a dict, which keeps it alive, at
its first call: before the call, so that one that hangs is known. 512 words remember which are in, so most callbacks
cost one compare.

It loses when many threads submit at once, since the ring's head is one line that they all pass around; and by naming
`functools.partial` only by that.
"""

from __future__ import annotations

from .atomics import compare_and_swap, fetch_add, get, load, monotonic_ns, prefetch, put, store, ticks
from .capi import (
    Py_DecRef,
    PyDict_SetItem,
    PyDict_Size,
    PyErr_Clear,
    PyFunction_GetCode,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyThread_get_thread_ident,
    PyType_GetFlags,
    PyUnicode_FromString,
)
from .interpreter import BUILTIN_DEFINITION, DEFINITION_NAME, METHOD_FUNCTION, OBJECT_TYPE, TUPLE_ITEMS, TYPE_SUBCLASS
from .kernel import MANY, ONE, apart, data, helper, kernel
from .layout import (
    CALLBACKS,
    CHECKPOINT_ENDS,
    CLOSING,
    EVENT_CHECKPOINT,
    EVENT_MOVE,
    EVENT_OVERLOAD,
    EVENT_SLEEP,
    EVENT_SUBMIT,
    EVENT_TURN,
    IMMEDIATES,
    INTERNAL,
    IO_ARGUMENTS,
    IO_AT,
    K_BOUNDARY,
    K_BUILTIN_TYPE,
    K_CYCLES,
    K_ENTRIES,
    K_FUNCTION_TYPE,
    K_HEAD,
    K_KNOWN,
    K_LOST,
    K_MASK,
    K_METHOD_TYPE,
    K_NAMES,
    K_PARKS,
    K_RESTED,
    K_RUNNING,
    K_SUBJECT,
    K_THREAD,
    K_VALUE,
    K_WHAT,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_READINESS,
    KIND_TASK,
    KIND_TICK,
    KIND_TIMER,
    KNOWN,
    MICROTASKS,
    N_DURATION,
    N_KIND,
    N_SUBJECT,
    N_THREAD,
    N_TIME,
    N_VALUE,
    N_WHAT,
    NUMBER_RINGS,
    PARKS,
    PLACE_BITS,
    POINTER_MASK,
    Q_HEAD,
    Q_NUMBER,
    Q_RECORDER,
    R_HEAD,
    R_TAIL,
    RECORDER_AT,
    REMOTE,
    SUBJECT,
    TAG_ARGUMENTS,
    TICKS,
)
from .ring import ring_length

ENTRY_BITS = 6
AHEAD = 4  # entries: a place that is claimed has been on its way for as long
NAMES_MOST = 4096


@helper
def recorder_now(recorder: int) -> int:
    """The recorder's clock. Any thread."""
    if get(recorder + K_CYCLES) != 0:
        return ticks()
    return monotonic_ns()


@helper
def record(recorder: int, time: int, duration: int, kind: int, subject: int, what: int, value: int) -> None:
    """Write one entry, unless the ring has come round meanwhile. Any thread, signal handlers included; O(1),
    wait-free.
    """
    number = fetch_add(recorder + K_HEAD, 1)
    mask = get(recorder + K_MASK)
    entry = recorder + K_ENTRIES + ((number & mask) << ENTRY_BITS)
    prefetch(recorder + K_ENTRIES + (((number + AHEAD) & mask) << ENTRY_BITS))
    whole = (number + 1) << 1
    old = load(entry)
    if old & 1 != 0 or old > whole or not compare_and_swap(entry, old, whole | 1):
        fetch_add(recorder + K_LOST, 1)
        return
    store(entry + N_TIME, time)
    store(entry + N_DURATION, duration)
    store(entry + N_THREAD, PyThread_get_thread_ident())
    store(entry + N_KIND, kind)
    store(entry + N_SUBJECT, subject)
    store(entry + N_WHAT, what)
    store(entry + N_VALUE, value)
    store(entry, whole)


@helper
def event(recorder: int, kind: int, subject: int, value: int) -> None:
    """Record what happens at this moment. Any thread, signal handlers included."""
    record(recorder, recorder_now(recorder), 0, kind, subject, 0, value)


@helper
def read_entry(recorder: int, number: int, target: int) -> bool:
    """Copy entry `number` to `target`, its number first; False if it is not whole (any more). Any thread."""
    entry = recorder + K_ENTRIES + ((number & get(recorder + K_MASK)) << ENTRY_BITS)
    whole = (number + 1) << 1
    if load(entry) != whole:
        return False
    put(target, number)
    for at in range(8, 1 << ENTRY_BITS, 8):
        put(target + at, load(entry + at))  # an acquire load: the look that follows is not older
    return load(entry) == whole


# --- where things are -------------------------------------------------------------------------------------------------


@helper
def ring_of(base: int, kind: int) -> int:
    """The ring in which callbacks of a kind wait."""
    if kind == KIND_MICROTASK:
        return base + MICROTASKS
    if kind == KIND_TICK:
        return base + TICKS
    if kind == KIND_INTERNAL:
        return base + INTERNAL
    if kind == KIND_CLOSE:
        return base + CLOSING
    if kind == KIND_IMMEDIATE:
        return base + IMMEDIATES
    return base + CHECKPOINT_ENDS


@helper
def ring_place(base: int, kind: int, word: int) -> int:
    """The place before a ring's head (what was just taken) or tail (what was just put)."""
    return (get(ring_of(base, kind) + word) - 1) << PLACE_BITS | (NUMBER_RINGS + kind)


@helper
def push_recorded(queue: int, ticket: int, count: int) -> None:
    """`count` tickets were drawn. Their owner, before anything is stored, so that it is in the ring before it runs."""
    recorder = get(queue + Q_RECORDER)
    if recorder != 0:
        event(recorder, EVENT_SUBMIT, ticket << PLACE_BITS | get(queue + Q_NUMBER), count)


@apart
def ring_recorded(base: int, kind: int) -> None:
    """The loop's thread has put something into a ring. Recorder on."""
    event(get(base + RECORDER_AT), EVENT_SUBMIT, ring_place(base, kind, R_TAIL), 1)


@helper
def move_recorded(base: int, kind: int) -> None:
    """The remote queue's first was put into a ring: both places, so that who submitted is found. Loop thread."""
    queue = base + REMOTE
    place = get(queue + Q_HEAD) << PLACE_BITS | get(queue + Q_NUMBER)
    event(get(base + RECORDER_AT), EVENT_MOVE, place, ring_place(base, kind, R_TAIL))


# --- names ------------------------------------------------------------------------------------------------------------


@helper
def name_of(recorder: int, word: int) -> int:
    """The key in the dict of names for what a tagged reference calls, which is entered if it is new. Loop thread.

    No bytecode runs: nothing can raise but for lack of memory, and then it has no name.
    """
    target = word & POINTER_MASK
    if word & TAG_ARGUMENTS != 0:
        target = get(target + TUPLE_ITEMS)
    kind = get(target + OBJECT_TYPE)
    if kind == get(recorder + K_METHOD_TYPE):
        target = get(target + METHOD_FUNCTION)
        kind = get(target + OBJECT_TYPE)
    key = kind
    if kind == get(recorder + K_FUNCTION_TYPE):
        key = PyFunction_GetCode(target)
    elif kind == get(recorder + K_BUILTIN_TYPE):
        key = get(target + BUILTIN_DEFINITION)
    elif PyType_GetFlags(kind) & TYPE_SUBCLASS != 0:
        key = target  # a class that is called: not its metaclass
    known = recorder + K_KNOWN + (((key >> 4) & (KNOWN - 1)) << 3)
    if get(known) != key:
        put(known, key)
        name_add(get(recorder + K_NAMES), key, kind == get(recorder + K_BUILTIN_TYPE))
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
    """Say what runs from now on, as a seqlock of which `running` is the sequence: it is 0, or of this call alone."""
    recorder = get(base + RECORDER_AT)
    what = name_of(recorder, word)
    subject = get(base + SUBJECT)
    value = 0
    if kind == KIND_TASK:
        subject = (get(subject + Q_HEAD) - 1) << PLACE_BITS | get(subject + Q_NUMBER)
    elif kind == KIND_READINESS:
        value = PyLong_AsLongLong(get(base + IO_AT + IO_ARGUMENTS)) << 1
    elif kind != KIND_TIMER:
        subject = ring_place(base, kind, R_HEAD)
    store(recorder + K_RUNNING, 0)
    store(recorder + K_SUBJECT, subject)
    store(recorder + K_WHAT, what)
    store(recorder + K_VALUE, value)
    store(recorder + K_RUNNING, get(base + CALLBACKS) << 8 | (kind + 1))


@apart
def run_ends(base: int, failed: bool) -> None:
    """Record the callback: from the last boundary to now. The low bit of its value: it has raised."""
    recorder = get(base + RECORDER_AT)
    kind = (get(recorder + K_RUNNING) & 255) - 1
    since = get(recorder + K_BOUNDARY)
    now = recorder_now(recorder)
    value = get(recorder + K_VALUE) | (1 if failed else 0)
    record(recorder, since, now - since, kind, get(recorder + K_SUBJECT), get(recorder + K_WHAT), value)
    store(recorder + K_RUNNING, 0)
    store(recorder + K_BOUNDARY, now)


@helper
def boundary_moved(base: int) -> None:
    """What came after the last callback, of the loop's own, is not to be counted as the next one's time."""
    recorder = get(base + RECORDER_AT)
    store(recorder + K_BOUNDARY, recorder_now(recorder))


@helper
def sleep_recorded(base: int, recorder: int, now: int) -> None:
    """If the loop has slept since its last turn: from when to when."""
    parks = get(base + PARKS)
    if parks != get(recorder + K_PARKS):
        put(recorder + K_PARKS, parks)
        rested = get(recorder + K_RESTED)
        record(recorder, rested, now - rested, EVENT_SLEEP, 0, 0, 0)


@helper
def record_enters(base: int, slept: bool) -> None:
    """`run` or `drain` begins; Python may have slept for the loop."""
    recorder = get(base + RECORDER_AT)
    now = recorder_now(recorder)
    store(recorder + K_THREAD, PyThread_get_thread_ident())
    if slept:
        sleep_recorded(base, recorder, now)
    store(recorder + K_BOUNDARY, now)


@helper
def record_rests(base: int) -> None:
    """A turn has ended; the loop sleeps or leaves."""
    recorder = get(base + RECORDER_AT)
    put(recorder + K_RESTED, recorder_now(recorder))


@helper
def record_turn(base: int, ingress: int) -> None:
    """The loop is back from its sleep: how much waits where."""
    recorder = get(base + RECORDER_AT)
    now = recorder_now(recorder)
    sleep_recorded(base, recorder, now)
    record(recorder, now, 0, EVENT_TURN, ingress, ring_length(base + IMMEDIATES), ring_length(base + INTERNAL))
    store(recorder + K_BOUNDARY, now)


@helper
def record_checkpoint(base: int) -> None:
    """How many next-ticks and microtasks wait, if any, at the last boundary."""
    depth = ring_length(base + TICKS) + ring_length(base + MICROTASKS)
    if depth != 0:
        recorder = get(base + RECORDER_AT)
        record(recorder, get(recorder + K_BOUNDARY), 0, EVENT_CHECKPOINT, depth, 0, 0)


@helper
def record_overload(base: int) -> None:
    """More waited than a turn takes."""
    event(get(base + RECORDER_AT), EVENT_OVERLOAD, 0, 0)


# --- reading ----------------------------------------------------------------------------------------------------------


@kernel(MANY)
def recorder_read(self: int, arguments: int, _count: int) -> int:
    """(array, first, count): how many of these entries were whole, and are now in the array. Any thread."""
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
    """Into an array: [kind + 1 and a count, boundary, subject, what, value] of the callback in progress; how many
    words, 0 if there is none, or just another. Any thread.
    """
    recorder = data(self)
    target = data(array)
    running = load(recorder + K_RUNNING)
    put(target, running)
    put(target + 8, load(recorder + K_BOUNDARY))
    put(target + 16, load(recorder + K_SUBJECT))
    put(target + 24, load(recorder + K_WHAT))
    put(target + 32, load(recorder + K_VALUE))
    return PyLong_FromLongLong(5 if running != 0 and load(recorder + K_RUNNING) == running else 0)


@kernel(ONE)
def recorder_head(self: int, _array: int) -> int:
    """How many entries have been begun. Any thread."""
    return PyLong_FromLongLong(load(data(self) + K_HEAD))
