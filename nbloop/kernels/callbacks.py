"""Running one callback, and the microtask checkpoint that follows it.

Between two callbacks there is no Python at all, which is where the speed comes from, and also a duty: callbacks that
are built-ins execute no bytecode, so nobody would handle signals, collect garbage or let another thread stop the
world. Hence `breathe`, a Python function that does nothing, called every `BREATH` callbacks and once a turn: 27 ns
that run the interpreter's own checks, whatever those are in this version.

Exceptions: a callback's is taken from the thread state and handed to the state's `report`; if that raises (it does so
for KeyboardInterrupt and SystemExit) everything up to `run` returns LEAVE, and `run()` raises, with every queue
consistent and nothing lost.
"""

from __future__ import annotations

from .atomics import fetch_add, get, load, put
from .capi import (
    Py_DecRef,
    PyErr_GetRaisedException,
    PyException_SetContext,
    PyLong_FromLongLong,
    PyObject_CallNoArgs,
    PyObject_Vectorcall,
)
from .ingress import queue_advance, queue_length, queue_peek
from .interpreter import SEQUENCE_SIZE, TUPLE_ITEMS
from .kernel import apart, inlined
from .layout import (
    ARGUMENTS,
    BREATHE,
    CALLBACKS,
    CHECKPOINT_ENDS,
    CLOSING,
    DUE,
    IMMEDIATES,
    INTERNAL,
    INTERRUPT,
    KIND_ARM,
    KIND_CANCEL,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_TICK,
    MICROTASKS,
    NONE,
    OBSERVED,
    POINTER_MASK,
    REMOTE,
    REPORT,
    T_COMMANDS,
    TAG_ARGUMENTS,
    TICKS,
    TIMERS_AT,
)
from .observed import callback_begins, callback_ended, command_moved, observe_boundary
from .remote import remote_kind, remote_value
from .ring import ring_push
from .safepoint import EVERY, safepoint
from .timers import (
    timer_armed,
    timer_removed,
)

BREATH = 64  # callbacks between two breaths
LEAVE = -1  # an exception is set and `run` has to return 0


@apart
def report(base: int, word: int, kind: int) -> int:
    """Hand the raised exception and its callback to the loop's reporter. 0, or LEAVE if that raised."""
    error = PyErr_GetRaisedException()
    number = PyLong_FromLongLong(kind)
    put(base + ARGUMENTS, error)
    put(base + ARGUMENTS + 8, number)
    put(base + ARGUMENTS + 16, word & POINTER_MASK)
    result = PyObject_Vectorcall(get(base + REPORT), base + ARGUMENTS, 3, 0)
    Py_DecRef(error)
    Py_DecRef(number)
    if result == 0:
        return LEAVE
    Py_DecRef(result)
    return 0


@apart
def call_hook(hook: int) -> int:
    """Call a Python function of the loop's own without arguments. 0, or LEAVE if it raised."""
    result = PyObject_CallNoArgs(hook)
    if result == 0:
        return LEAVE
    Py_DecRef(result)
    return 0


@apart
def breathe_on(base: int, error: int) -> int:
    """Breathe in the middle of what has to be finished. The exception to raise at its end, a reference, or 0: what a
    signal's handler has raised, or else `error`, which the caller had.
    """
    if call_hook(get(base + BREATHE)) == 0:
        return error
    raised = PyErr_GetRaisedException()
    if error == raised:
        Py_DecRef(error)
    elif error != 0:
        PyException_SetContext(raised, error)  # as in a `finally`; the reference goes with it
    return raised


@inlined
def call_word(word: int) -> int:
    """Call what a tagged reference means: a callable, or a tuple (callable, *args). A new reference, or 0."""
    target = word & POINTER_MASK
    if word & TAG_ARGUMENTS:
        items = target + TUPLE_ITEMS
        return PyObject_Vectorcall(get(items), items + 8, get(target + SEQUENCE_SIZE) - 1, 0)
    return PyObject_CallNoArgs(target)


@inlined
def invoke(base: int, word: int, kind: int) -> int:
    """Run one callback. The reference stays the caller's. 0, or LEAVE. Loop thread."""
    if get(base + OBSERVED) != 0:
        callback_begins(base, word, kind)
    return called(base, call_word(word), word, kind)


@inlined
def called(base: int, result: int, word: int, kind: int) -> int:
    """After the call of a callback that returned `result`, or 0 with an exception set. 0, or LEAVE."""
    status = 0
    if get(base + OBSERVED) != 0:
        callback_ended(base, result == 0)
    if result == 0:
        status = report(base, word, kind)
        observe_boundary(base)
    elif result != get(base + NONE):  # which is immortal: most callbacks return it
        Py_DecRef(result)
    count = get(base + CALLBACKS) + 1
    put(base + CALLBACKS, count)
    if count & (BREATH - 1) == 0 and status == 0:
        status = call_hook(get(base + BREATHE))
        observe_boundary(base)
    return status


@apart
def fetch_remote(base: int) -> None:
    """Move what other threads left in the remote queue to where it belongs. Loop thread; runs no Python.

    Every owner-side operation that must not overtake a foreign one that returned before it (a microtask, an
    immediate, a timer of the same deadline) comes here first; a look at two words when there is nothing. A word for
    which there is no room, and no memory to make room, stays where it is until the next look: accepted work is late
    then, not lost.
    """
    while fetch_some(base):
        safepoint()


@apart
def fetch_some(base: int) -> bool:
    """`fetch_remote` of some: True if there is more."""
    left = EVERY
    queue = base + REMOTE
    while queue_length(queue) != 0:
        word = queue_peek(queue)
        if word == 0:
            return False  # its producer is between ticket and store
        if left == 0:
            return True
        left -= 1
        kind = remote_kind(word)
        value = remote_value(word)
        status = 0
        if kind == KIND_ARM:
            status = timer_armed(base, value)
        elif kind == KIND_CANCEL:
            timer_removed(base, value)
        elif kind == KIND_IMMEDIATE:
            status = ring_push(base + IMMEDIATES, value)
        elif kind == KIND_MICROTASK:
            status = due_push(base, base + MICROTASKS, value)
        elif kind == KIND_TICK:
            status = due_push(base, base + TICKS, value)
        elif kind == KIND_INTERNAL:
            status = ring_push(base + INTERNAL, value)
        elif kind == KIND_CLOSE:
            status = ring_push(base + CLOSING, value)
        else:
            status = due_push(base, base + CHECKPOINT_ENDS, value)
        if status != 0:
            return False
        if kind == KIND_ARM or kind == KIND_CANCEL:
            fetch_add(base + TIMERS_AT + T_COMMANDS, -1)
        if get(base + OBSERVED) != 0:
            command_moved(base, kind)
        queue_advance(queue)
    return False


@inlined
def due_push(base: int, ring: int, word: int) -> int:
    """Append to a ring that checkpoints run; `due` counts what is in all of them. 0, -1 for no memory, or 1 if there
    will be no checkpoint: `close()` has begun, or what is left is being released. Loop thread.
    """
    if load(base + INTERRUPT) != 0:
        return 1
    status = ring_push(ring, word)
    put(base + DUE, get(base + DUE) + 1 + status)
    return status
