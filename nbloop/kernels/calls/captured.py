"""Callbacks that run in the context of the call that scheduled them (PEP 567).

Such a callback is stored as the tuple ``(Context.run, context, callback, *args)``, whose first item the interpreter
provides. So queues and callers treat it like any callback with arguments, and a loop that does not capture pays
nothing, neither a test nor a word. Each callback gets its own copy of the context, so nothing else sees what it sets
there.

It costs a context, 40 ns, a tuple, and, in the call, 30 ns more than with a mark in the word. No bit is left for such a
mark (layout.py).
"""

from __future__ import annotations

import contextvars

from ..base.atomics import get, put
from ..base.capi import Py_DecRef, Py_IncRef, PyContext_CopyCurrent, PyContext_Exit, PyTuple_New
from ..base.interpreter import TUPLE_ITEMS
from ..base.kernel import helper, inlined
from ..base.layout import STATE, TAG_ARGUMENTS

RUN_IN_CONTEXT = contextvars.Context.run  # always this object: the descriptor in the type's dict


@inlined
def pack_in_context(base: int, context: int, callback: int, rest: int, count: int) -> int:
    """An owned tagged reference for `callback` with `count` arguments at `rest`, in a context whose reference it takes;
    or 0 with an exception set. Any thread.
    """
    packed = PyTuple_New(count + 3)
    if packed == 0:
        Py_DecRef(context)
        return 0
    run = get(base + STATE.RUN_IN_CONTEXT)
    Py_IncRef(run)
    Py_IncRef(callback)
    put(packed + TUPLE_ITEMS, run)
    put(packed + TUPLE_ITEMS + 8, context)
    put(packed + TUPLE_ITEMS + 16, callback)
    for i in range(count):
        item = get(rest + (i << 3))
        Py_IncRef(item)
        put(packed + TUPLE_ITEMS + ((i + 3) << 3), item)
    return packed | TAG_ARGUMENTS


@helper
def pack_captured(base: int, callback: int, rest: int, count: int) -> int:
    """`pack_in_context` in a copy of the current context."""
    context = PyContext_CopyCurrent()
    if context == 0:
        return 0
    return pack_in_context(base, context, callback, rest, count)


@inlined
def context_left(context: int, result: int) -> int:
    """Leave a context after a call with this result. The result; 0 with an exception set if the call has raised, or has
    not left a context that it entered.
    """
    if PyContext_Exit(context) != 0 and result != 0:
        Py_DecRef(result)
        return 0
    return result
