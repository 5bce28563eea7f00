"""Callbacks that run in the context of the call that scheduled them (PEP 567).

What is stored for one is the tuple ``(Context.run, context, callback, *args)``, whose first item the interpreter has
already. So the queues hold it as any callback with arguments, and whatever runs callbacks runs it: a loop that does not
capture pays for nothing, not for a test and not for a word. The context is a copy of its own, so what a callback sets
there nobody else sees.

It costs a context, 40 ns, a tuple, and in the call 30 ns more than a mark in the word would. There is no bit left for
such a mark (layout.py).
"""

from __future__ import annotations

import contextvars

from ..base.atomics import get, put
from ..base.capi import Py_DecRef, Py_IncRef, PyContext_CopyCurrent, PyTuple_New
from ..base.interpreter import TUPLE_ITEMS
from ..base.kernel import helper
from ..base.layout import STATE, TAG_ARGUMENTS

RUN_IN_CONTEXT = contextvars.Context.run  # always this object: the descriptor in the type's dict


@helper
def pack_captured(base: int, callback: int, rest: int, count: int) -> int:
    """An owned tagged reference for `callback` with `count` arguments at `rest` in a copy of the current context, or 0
    with an exception set. Any thread.
    """
    context = PyContext_CopyCurrent()
    if context == 0:
        return 0
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
