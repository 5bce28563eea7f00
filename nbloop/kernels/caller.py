"""Who calls a method, and how a call is refused.

Every refusal goes through one Python function, the state's ``refuse(code, culprit)``, which raises the right
exception, naming the argument. It is called before anything is stored, or after what was stored has been taken back,
so a refused call changes nothing. If it returns instead, the call is tried again: that is how a submit meets a loop
that is just finding out whether it may exit (`quiet`).
"""

from __future__ import annotations

from .atomics import get, load, put
from .capi import (
    Py_DecRef,
    Py_IncRef,
    PyLong_FromLongLong,
    PyObject_Vectorcall,
    PyThreadState_GetUnchecked,
    PyTuple_New,
)
from .interpreter import TUPLE_ITEMS
from .kernel import apart, inlined
from .layout import OWNER, REFUSE


@inlined
def on_loop_thread(base: int) -> bool:
    """Is the caller the thread inside `run()`? Its thread state's address is the owner word; 2 ns."""
    return load(base + OWNER) == PyThreadState_GetUnchecked()


@apart
def refuse(base: int, code: int, culprit: int) -> int:
    """Raise for `code`: -1 with the exception set; 0 means that the call is to be tried again."""
    number = PyLong_FromLongLong(code)
    pair = PyTuple_New(2)
    if number == 0 or pair == 0:
        return -1
    Py_IncRef(culprit)
    put(pair + TUPLE_ITEMS, number)
    put(pair + TUPLE_ITEMS + 8, culprit)
    result = PyObject_Vectorcall(get(base + REFUSE), pair + TUPLE_ITEMS, 2, 0)
    Py_DecRef(pair)
    if result == 0:
        return -1
    Py_DecRef(result)
    return 0
