"""The built-in methods of timers: each converts numbers, calls `timer_slots.py`, and returns ids and answers. Here
times are in seconds, in `javascript.py` in milliseconds.
"""

from __future__ import annotations

from ..base.atomics import get, load, prefetch, put
from ..base.capi import (
    Py_DecRef,
    PyBool_FromLong,
    PyErr_Occurred,
    PyFloat_AsDouble,
    PyList_GetItemRef,
    PyList_New,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyMem_Free,
    PyMem_Malloc,
)
from ..base.clock import FOREVER, loop_ns
from ..base.interpreter import LIST_CAPACITY, LIST_HEADER, LIST_ITEMS, SEQUENCE_SIZE
from ..base.kernel import MANY, ONE, data, helper, inlined, kernel
from ..base.layout import (
    FAR,
    GONE,
    POINTER_MASK,
    REFUSED_CLOSED,
    REFUSED_DEADLINE,
    REFUSED_DELAY,
    REFUSED_IDENTIFIER,
    REFUSED_MEMORY,
    REFUSED_TIMER,
    STATE,
    TERMINATING,
    TIMERS,
)
from ..base.refusal import on_loop_thread, refuse
from ..calls.invoke import call_hook
from ..calls.remote import fetch_remote
from ..ingress.ticket_queue import queue_length
from ..memory.slots import slot_of
from ..memory.system import block_give, block_take
from ..timers.buckets import buckets_begin
from ..timers.timer_slots import (
    due_after,
    immediate_cancel,
    timer_arm_elsewhere,
    timer_arm_here,
    timer_cancel,
    timer_reference,
)
from .batch import PART, items_next, items_source
from .scheduling import pack_all

MOST_NS = 4.0e18  # 126 years: the longest delay
END_NS = 9223372036854774784.0  # the last float before the clock's end: a deadline from it on is never due
AHEAD = 8  # when many timers are cancelled, slots are prefetched this far ahead: a cold one is 300 ns away
BLOCK_BYTES = (2 + PART) << 3  # a block of ids to cancel: the next block, how many ids, the ids


@helper
def nanoseconds(base: int, number: int, unit: float, refused: int) -> int:
    """Convert a Python number of units of `unit` ns to ns, rounded up so that nothing is early; at least 0. -1 with an
    exception set: the one for `refused`, or one that its ``__float__`` or ``__index__`` raised.
    """
    amount = PyFloat_AsDouble(number)
    if amount == -1.0 and PyErr_Occurred() != 0:
        refuse(base, refused, number)
        return -1
    exact = amount * unit
    if exact <= 0.0:  # negative infinity, too
        return 0
    if not exact <= MOST_NS:  # infinite, not a number, or too far
        if exact > 0.0 and refused == REFUSED_DEADLINE:
            return int(exact) if exact < END_NS else FOREVER
        refuse(base, refused, number)
        return -1
    return nanoseconds_up(exact)


@inlined
def nanoseconds_up(exact: float) -> int:
    """Whole ns, at least 0, rounded up so that nothing is early; `exact` is less than the clock's end."""
    if exact <= 0.0:  # negative infinity, too
        return 0
    whole = int(exact)
    if whole < exact:
        whole += 1
    return whole


@helper
def arm(base: int, word: int, now: int, delay: int, period: int, clamp: int, culprit: int) -> int:
    """Arm a timer or interval for an owned word, due `delay` after `now`. Returns its id, or 0 with an exception set
    and the reference released. Any thread.
    """
    while True:
        if load(base + STATE.LIFECYCLE) >= TERMINATING:
            identifier = -REFUSED_CLOSED
        elif on_loop_thread(base):
            if queue_length(base + STATE.REMOTE) != 0:
                fetch_remote(base)
            if get(base + STATE.FAR + FAR.COUNT) == 0:
                buckets_begin(base, now)
            deadline = due_after(now, delay, get(base + STATE.TIMERS + TIMERS.NESTING), clamp)
            identifier = timer_arm_here(base, word, deadline, period, clamp)
        else:
            identifier = timer_arm_elsewhere(base, word, due_after(now, delay, 0, 0), period, clamp)
        if identifier > 0:
            number = PyLong_FromLongLong(identifier)
            if number == 0:  # no memory for the id: nobody could name this timer, so it is withdrawn
                timer_cancel(base, identifier, on_loop_thread(base))
            return number
        if -identifier & GONE != 0:  # the callback has been released, so there can be no retry
            if refuse(base, -identifier & ~GONE, culprit) == 0:
                refuse(base, REFUSED_MEMORY, culprit)
            return 0
        if refuse(base, -identifier, culprit) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@inlined
def arm_seconds(base: int, arguments: int, count: int, absolute: bool, repeat: bool, captured: bool) -> int:
    """Arm a timer or interval from ``delay, callback, *args``, or from ``deadline, callback, *args``."""
    if count < 2:
        refuse(base, REFUSED_TIMER, get(base + STATE.NONE))
        return 0
    delay = nanoseconds(base, get(arguments), 1e9, REFUSED_DEADLINE if absolute else REFUSED_DELAY)
    if delay < 0:
        return 0
    word = pack_all(base, arguments + 8, count - 1, captured)
    if word == 0:
        return 0
    now = loop_ns(base)
    if absolute:
        delay = max(0, delay - now) if delay != FOREVER else FOREVER
    return arm(base, word, now, delay, delay if repeat else -1, get(base + STATE.CLAMP), get(arguments + 8))


@kernel(MANY)
def schedule_timer(self: int, arguments: int, count: int) -> int:
    """Arm a one-shot timer."""
    return arm_seconds(data(self), arguments, count, False, False, False)


@kernel(MANY)
def schedule_timer_at(self: int, arguments: int, count: int) -> int:
    """Arm a one-shot timer from ``deadline, callback, *args``. Equal deadlines stay equal; converted to delays by two
    readings of the clock, they would not.
    """
    return arm_seconds(data(self), arguments, count, True, False, False)


@kernel(MANY)
def schedule_interval(self: int, arguments: int, count: int) -> int:
    """Arm an interval; each period is counted from the start of the callback."""
    return arm_seconds(data(self), arguments, count, False, True, False)


@kernel(MANY)
def schedule_timer_captured(self: int, arguments: int, count: int) -> int:
    """`schedule_timer`, captured (scheduling.py)."""
    return arm_seconds(data(self), arguments, count, False, False, True)


@kernel(MANY)
def schedule_timer_at_captured(self: int, arguments: int, count: int) -> int:
    """`schedule_timer_at`, captured."""
    return arm_seconds(data(self), arguments, count, True, False, True)


@kernel(MANY)
def schedule_interval_captured(self: int, arguments: int, count: int) -> int:
    """`schedule_interval`, captured: one context for all of its calls."""
    return arm_seconds(data(self), arguments, count, False, True, True)


@inlined
def identifier_of(base: int, number: int) -> int:
    """The id as an integer; 0, which no timer has, for a number that cannot be an id; -1 with TypeError set if it is
    not an int, or with the exception that its ``__index__`` raised.
    """
    identifier = PyLong_AsLongLong(number)
    if identifier == -1 and PyErr_Occurred() != 0:
        if refuse(base, REFUSED_IDENTIFIER, number) != 0:
            return -1
        return 0
    return max(0, identifier)


@kernel(ONE)
def cancel_timer(self: int, number: int) -> int:
    """Cancel by a swap of the slot's word."""
    base = data(self)
    identifier = identifier_of(base, number)
    if identifier < 0:
        return 0
    return PyBool_FromLong(1 if timer_cancel(base, identifier, on_loop_thread(base)) else 0)


@kernel(ONE)
def cancel_timers(self: int, iterable: int) -> int:
    """`cancel_timer` for each id; nothing is cancelled if one of them is not an int."""
    base = data(self)
    source = items_source(base, iterable)
    if source == 0:
        return 0
    first = identifiers_read(base, source, iterable)
    Py_DecRef(source)
    if first == 0:
        return 0
    return answers_given(base, first, iterable)


@helper
def identifiers_read(base: int, source: int, culprit: int) -> int:
    """The ids in an iterable, each converted once, as a chain of blocks; a block holds the next block or 0, the number
    of ids, the ids. 0 with an exception set.
    """
    first = last = 0
    count = 0
    while True:
        items = items_next(base, source, count, PART)
        if items == 0:
            break
        length = get(items + SEQUENCE_SIZE)
        block = block_take(BLOCK_BYTES)
        if block == 0:
            Py_DecRef(items)
            refuse(base, REFUSED_MEMORY, culprit)
            break
        put(block, 0)
        put(block + 8, length)
        if first == 0:
            first = block
        else:
            put(last, block)
        last = block
        good = True
        for i in range(length):
            item = PyList_GetItemRef(items, i)  # an ``__index__`` may find the list and change it
            identifier = identifier_of(base, item) if item != 0 else -1
            if item != 0:
                Py_DecRef(item)
            if identifier < 0:
                good = False
                break
            put(block + ((2 + i) << 3), identifier)
        Py_DecRef(items)
        if not good or call_hook(get(base + STATE.CHECK_INTERRUPTS)) != 0:
            break
        if length < PART:
            return first
        count += length
    blocks_give(first)
    return 0


@helper
def blocks_give(first: int) -> None:
    """Give back what is left of a chain of ids."""
    while first != 0:
        block = first
        first = get(block)
        block_give(block, BLOCK_BYTES)


@helper
def answers_given(base: int, first: int, culprit: int) -> int:
    """Cancel the timers of a chain of ids, and give the chain back. A list that says which were live, or 0 with an
    exception set; if a signal handler has raised it, the rest are not cancelled.

    The answers are written into memory that becomes the list's at the end. CPython makes a list of a million in one
    piece, which takes 3 ms because the system has to provide 2,000 pages. Here each is provided when the first answer
    is written to it, between two interrupt checks. No other code sees the list before it is whole.
    """
    count = 0
    block = first
    while block != 0:
        count += get(block + 8)
        block = get(block)
    if count == 0:
        blocks_give(first)
        return PyList_New(0)
    spare = PyList_New(0)
    if spare == 0:
        blocks_give(first)
        return 0
    memory = PyMem_Malloc(LIST_HEADER + (count << 3))
    if memory == 0:
        blocks_give(first)
        Py_DecRef(spare)
        refuse(base, REFUSED_MEMORY, culprit)
        return 0
    yes, no = PyBool_FromLong(1), PyBool_FromLong(0)  # immortal: nothing counts their references
    answer = memory + LIST_HEADER
    while first != 0:
        last = first + ((2 + get(first + 8)) << 3)
        for place in range(first + 16, last, 8):
            if place + (AHEAD << 3) < last:
                prefetch(slot_of(base + STATE.TIMERS, get(place + (AHEAD << 3))))
            # Releasing a callback can run any Python code.
            put(answer, yes if timer_cancel(base, get(place), on_loop_thread(base)) else no)
            answer += 8
        block = first
        first = get(block)
        block_give(block, BLOCK_BYTES)
        if call_hook(get(base + STATE.CHECK_INTERRUPTS)) != 0:
            blocks_give(first)
            PyMem_Free(memory)
            Py_DecRef(spare)
            return 0
    # Now that timers are cancelled it is too late for a MemoryError, so the spare list gives its memory to another one.
    # Itself it will not do, because other code may have found it (and then it gives nothing back).
    Py_DecRef(spare)
    answers = PyList_New(0)
    if answers == 0:
        PyMem_Free(memory)
        return 0
    if LIST_HEADER != 0:
        put(memory, count)
    put(answers + LIST_ITEMS, memory + LIST_HEADER)
    put(answers + LIST_CAPACITY, count)
    put(answers + SEQUENCE_SIZE, count)
    return answers


@kernel(ONE)
def cancel_immediate(self: int, number: int) -> int:
    """Cancel by a swap of the slot's word."""
    base = data(self)
    identifier = identifier_of(base, number)
    if identifier < 0:
        return 0
    return PyBool_FromLong(1 if immediate_cancel(base, identifier) else 0)


@kernel(ONE)
def ref_timer(self: int, number: int) -> int:
    """Change one bit of the slot's word."""
    base = data(self)
    identifier = identifier_of(base, number)
    if identifier < 0:
        return 0
    return PyBool_FromLong(1 if timer_reference(base, identifier, True) else 0)


@kernel(ONE)
def unref_timer(self: int, number: int) -> int:
    """Change one bit of the slot's word."""
    base = data(self)
    identifier = identifier_of(base, number)
    if identifier < 0:
        return 0
    return PyBool_FromLong(1 if timer_reference(base, identifier, False) else 0)
