"""Which thread calls a method, and how a call is refused.

Every refusal goes through one Python function, the state's ``refuse(code, culprit, error)``, which raises the right
exception and names the argument; `error` is the exception that the interpreter raised while converting that, or None.
It is called before anything is stored, or after what was stored has been undone, so a refused call changes nothing. If
it returns instead, the call is retried: this happens to a submit that meets a loop which is just deciding whether it
may exit (`quiet`).
"""

from __future__ import annotations

from .atomics import get, load, put
from .capi import (
    Py_DecRef,
    Py_IncRef,
    PyErr_GetRaisedException,
    PyLong_FromLongLong,
    PyObject_Vectorcall,
    PyThreadState_GetUnchecked,
    PyTuple_New,
)
from .interpreter import TUPLE_ITEMS
from .kernel import apart, inlined
from .layout import STATE


@inlined
def on_loop_thread(base: int) -> bool:
    """Whether the caller is the thread inside `run()`: the owner word is its thread state's address. 2 ns."""
    return load(base + STATE.OWNER) == PyThreadState_GetUnchecked()


@apart
def refuse(base: int, code: int, culprit: int) -> int:
    """Raise the exception for `code`, or the one that is already set, and return -1; 0 means: retry the call."""
    error = PyErr_GetRaisedException()
    if error == 0:
        error = get(base + STATE.NONE)
        Py_IncRef(error)
    number = PyLong_FromLongLong(code)
    three = PyTuple_New(3) if number != 0 else 0
    if three == 0:
        Py_DecRef(error)
        if number != 0:
            Py_DecRef(number)
        return -1
    Py_IncRef(culprit)
    put(three + TUPLE_ITEMS, number)
    put(three + TUPLE_ITEMS + 8, culprit)
    put(three + TUPLE_ITEMS + 16, error)
    result = PyObject_Vectorcall(get(base + STATE.REFUSE), three + TUPLE_ITEMS, 3, 0)
    Py_DecRef(three)
    if result == 0:
        return -1
    Py_DecRef(result)
    return 0
