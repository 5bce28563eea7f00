"""Running one callback.

Between two callbacks no Python runs at all, which makes the loop fast, but also creates a duty: callbacks that are
built-ins execute no bytecode, so nothing would handle signals, collect garbage or let another thread stop the world.
Hence `check_interrupts`, an empty Python function, is called every `CHECK_EVERY` callbacks and once per turn: entering
it takes 27 ns and makes the interpreter run its own checks, whatever those are in this version.

Exceptions: a callback's exception is taken from the thread state and passed to the state's `report`. If that raises, as
it does for KeyboardInterrupt and SystemExit, everything up to `run` returns LEAVE, and `run()` raises, with every queue
consistent and nothing lost.
"""

from __future__ import annotations

from ..base.atomics import get, put
from ..base.capi import (
    Py_DecRef,
    PyErr_GetRaisedException,
    PyException_SetContext,
    PyLong_FromLongLong,
    PyObject_CallNoArgs,
    PyObject_Vectorcall,
)
from ..base.interpreter import OBJECT_TYPE, SEQUENCE_SIZE, TUPLE_ITEMS
from ..base.kernel import apart, inlined
from ..base.layout import (
    POINTER_MASK,
    STATE,
    TAG_ARGUMENTS,
)
from ..observe.probes import callback_begins, callback_ended, observe_boundary
from .handles import call_alone

CHECK_EVERY = 64  # callbacks between two interrupt checks
LEAVE = -1  # an exception is set and `run` has to return 0


@apart
def report(base: int, hook: int, outcome: int, word: int, kind: int) -> int:
    """Pass what a callback has raised or returned, whose reference is consumed, and the callback to a hook of the loop.
    Returns 0, or LEAVE if the hook raised.
    """
    number = PyLong_FromLongLong(kind)
    put(base + STATE.ARGUMENTS0, outcome)
    put(base + STATE.ARGUMENTS0 + 8, number)
    put(base + STATE.ARGUMENTS0 + 16, word & POINTER_MASK)
    result = PyObject_Vectorcall(hook, base + STATE.ARGUMENTS0, 3, 0)
    Py_DecRef(outcome)
    Py_DecRef(number)
    if result == 0:
        return LEAVE
    Py_DecRef(result)
    return 0


@apart
def call_hook(hook: int) -> int:
    """Call one of the loop's own Python functions without arguments. Returns 0, or LEAVE if it raised."""
    result = PyObject_CallNoArgs(hook)
    if result == 0:
        return LEAVE
    Py_DecRef(result)
    return 0


@apart
def breathe_on(base: int, error: int) -> int:
    """Check for interrupts in the middle of an operation that must be finished. Returns the exception to raise at its
    end, a reference, or 0: the one that a signal handler raised, or else `error`, which the caller had.
    """
    if call_hook(get(base + STATE.CHECK_INTERRUPTS)) == 0:
        return error
    raised = PyErr_GetRaisedException()
    if error == raised:
        Py_DecRef(error)
    elif error != 0:
        PyException_SetContext(raised, error)  # as in a `finally`; it takes the reference
    return raised


@inlined
def call_word(base: int, word: int, kind: int) -> int:
    """Call what a tagged reference denotes: a callable, a handle, or a tuple (callable, *args). A new reference, or 0
    with an exception set.
    """
    target = word & POINTER_MASK
    if word & TAG_ARGUMENTS:
        items = target + TUPLE_ITEMS
        return PyObject_Vectorcall(get(items), items + 8, get(target + SEQUENCE_SIZE) - 1, 0)
    words = get(base + STATE.HANDLES)
    return PyObject_CallNoArgs(target) if words == 0 else call_alone(base, words, target, kind)


@inlined
def invoke(base: int, word: int, kind: int) -> int:
    """Run one callback. The caller keeps its reference. Returns 0 or LEAVE. Loop thread."""
    if get(base + STATE.OBSERVED) != 0:
        callback_begins(base, word, kind)
    return called(base, call_word(base, word, kind), word, kind)


@apart
def returned(base: int, result: int, word: int, kind: int) -> int:
    """Release what a callback has returned. A coroutine is reported, because nothing would run it. 0, or LEAVE."""
    if get(result + OBJECT_TYPE) != get(base + STATE.COROUTINE_TYPE):
        Py_DecRef(result)
        return 0
    status = report(base, get(base + STATE.UNAWAITED), result, word, kind)
    observe_boundary(base)
    return status


@inlined
def called(base: int, result: int, word: int, kind: int) -> int:
    """Finish a callback whose call returned `result`, or 0 with an exception set. Returns 0 or LEAVE."""
    status = 0
    if get(base + STATE.OBSERVED) != 0:
        callback_ended(base, result == 0)
    if result == 0:
        status = report(base, get(base + STATE.REPORT), PyErr_GetRaisedException(), word, kind)
        observe_boundary(base)
    elif result != get(base + STATE.NONE):  # None is immortal, and most callbacks return it
        status = returned(base, result, word, kind)
    count = get(base + STATE.CALLBACKS) + 1
    put(base + STATE.CALLBACKS, count)
    if count & (CHECK_EVERY - 1) == 0 and status == 0:
        status = call_hook(get(base + STATE.CHECK_INTERRUPTS))
        observe_boundary(base)
    return status
