"""asyncio's handles, and the steps of its tasks, in the queues of a loop: how they run, and what kernels have to know.

Problem: asyncio's `call_soon` returns a handle, and the core's queue holds callbacks. A callback that runs the handle,
as a tuple of a kernel and the handle, takes an allocation and a call for each. Idea: the queue holds the handle itself.
It cannot be called, so the core of an asyncio loop knows it by its type (`STATE.HANDLES`). In a timer the same
reference means that the handle is to be queued, because asyncio runs what is due behind what is ready.

A task's step has no handle, and its context is its task's: so the queue holds the step itself, too. On free-threaded
builds a thread could replace the task's context while it is read: there a step is a callback with a context.

Any thread may cancel a handle while it runs: `cancel` sets its mark before it takes callback and arguments away, and a
run reads these two before the mark.
"""

from __future__ import annotations

import sys
import sysconfig

import numpy as np

from ..base.atomics import get, load, put
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyBool_FromLong,
    PyCallable_Check,
    PyContext_Enter,
    PyErr_Clear,
    PyErr_GetRaisedException,
    PyObject_CallNoArgs,
    PyObject_CallOneArg,
    PyObject_GetAttr,
    PyObject_Vectorcall,
    PyTuple_New,
    PyUnstable_Object_IsUniquelyReferenced,
)
from ..base.interpreter import OBJECT_TYPE, SEQUENCE_SIZE, TUPLE_ITEMS
from ..base.kernel import apart, helper, inlined
from ..base.layout import KIND_TIMER, STATE, Record
from ..base.refusal import refuse
from ..ingress.ticket_queue import queue_push
from .captured import context_left

LOCKED_HANDLES = sys.version_info >= (3, 14)  # asyncio's `call_soon_threadsafe` makes handles of a class of their own
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

# Of an asyncio loop. All but `state`, `tools`, `debug`, `tasks_slowly` and the places are addresses of objects, which
# the loop or a module keeps.
AIO = Record(
    "AIO",
    np.dtype(
        [
            (name, np.int64)
            for name in (
                "state",  # the address of the words of the core
                "tools",  # not 0: a tool wants to see each handle run
                *("none", "false", "empty", "tuple", "step", "builtin", "wakeup", "context_type", "future"),
                *("float", "int", "handle", "timer", "foreign_handle", "foreign_timer", "unseen"),
                "locked_handle",  # the class of those of `call_soon_threadsafe`
                "clock",  # the loop's `time` while it is the core's clock; 0 if a subclass has a `time` or a `call_at`
                *("soon_slowly", "threadsafe_slowly", "later_slowly", "at_slowly", "run_slowly", "failed"),
                *("context", "loop_names", "callback_name", "args_name", "context_name", "scheduled_name"),
                # where a handle has these
                *("callback_at", "args_at", "cancelled_at", "loop_at", "context_at", "repr_at", "traceback_at"),
                *("when_at", "scheduled_at"),
                "core_at",  # where a timer's has the array of the core
                "weak_at",  # where a handle has its weak references
                "error_at",  # where a task's step has the exception that it is to raise
                *("task_at", "task_context_at"),  # where a step has its task, and a task its context; 0: not known
                "core",  # the array of the core, of which `state` is the memory; 0 if a subclass wants to see a cancel
                "debug",  # how many loops are in debug mode, in the words that all loops share
                *("cancel_slowly", "core_type"),
                # asyncio's class of tasks, the dict of the module that has it, and its name there
                *("task", "tasks", "task_name", "name", "named", "in_context"),
                "tasks_slowly",  # not 0: a tool has replaced asyncio's `create_task`
                *("create_task_name", "super_class", "loop_class", "debug_name"),
            )
        ]
    ),
)


@inlined
def own(place: int, target: int) -> None:
    """Write a new reference of `target` where nobody reads yet."""
    Py_IncRef(target)
    put(place, target)


@helper
def call_alone(base: int, words: int, target: int, kind: int) -> int:
    """Call what a queue of an asyncio loop holds without arguments; run or queue it if it is a handle. A new reference,
    or 0 with an exception set. Loop thread.
    """
    of = get(target + OBJECT_TYPE)
    if of == get(words + AIO.STEP):
        return step_called(words, target)
    if (
        of != get(words + AIO.HANDLE)
        and of != get(words + AIO.LOCKED_HANDLE)
        and of != get(words + AIO.TIMER)
        and PyCallable_Check(target) != 0  # or it is a handle whose `__class__` other code has set
    ):
        return PyObject_CallNoArgs(target)
    return handle_due(base, target) if kind == KIND_TIMER else handle_called(words, target)


@inlined
def step_context(words: int, step: int) -> int:
    """The context of a step's task, a borrowed reference; 0 if it is not known."""
    if get(words + AIO.TASK_AT) == 0:
        return 0
    task = get(step + get(words + AIO.TASK_AT))
    return get(task + get(words + AIO.TASK_CONTEXT_AT)) if task != 0 else 0


@helper
def step_called(words: int, step: int) -> int:
    """Run a step in the context of its task. None, or 0 with an exception set."""
    context = step_context(words, step)
    if context == 0:
        return PyObject_CallNoArgs(step)
    Py_IncRef(context)  # `__init__` of the task may replace it meanwhile
    result = 0
    if PyContext_Enter(context) == 0:
        result = context_left(context, PyObject_CallNoArgs(step))
    Py_DecRef(context)
    return result


@helper
def handle_due(base: int, handle: int) -> int:
    """Queue the handle of a timer that is due. None, or 0 with an exception set. Loop thread, which is awake."""
    Py_IncRef(handle)
    while True:
        status = queue_push(base + STATE.EXTERNAL, handle)
        if status == 0:
            return get(base + STATE.NONE)
        if refuse(base, status, handle) != 0:
            Py_DecRef(handle)
            return 0


@inlined
def taken(handle: int, place: int, name: int) -> int:
    """A new reference to what a slot holds, although another thread may cancel the handle meanwhile. With the GIL none
    can; on a free-threaded build the slot has to be read as an attribute.
    """
    if FREE_THREADED:
        return PyObject_GetAttr(handle, name)
    held = get(handle + place)
    if held != 0:
        Py_IncRef(held)
    return held


@helper
def handle_called(words: int, handle: int) -> int:
    """Run a handle, unless it was cancelled. None, or 0 with an exception that leaves the loop: SystemExit or
    KeyboardInterrupt.
    """
    none = get(words + AIO.NONE)
    kind = get(handle + OBJECT_TYPE)
    if LOCKED_HANDLES and kind == get(words + AIO.LOCKED_HANDLE):
        # Its callback runs under its lock, but no other code can take the lock of a handle to which it has no
        # reference, not even a weak one.
        if PyUnstable_Object_IsUniquelyReferenced(handle) == 0 or get(handle + get(words + AIO.WEAK_AT)) != 0:
            return PyObject_CallOneArg(get(words + AIO.RUN_SLOWLY), handle)
    elif (
        kind != get(words + AIO.HANDLE)
        and kind != get(words + AIO.TIMER)
        and kind != get(words + AIO.FOREIGN_HANDLE)
        and kind != get(words + AIO.FOREIGN_TIMER)
    ):
        return PyObject_CallOneArg(get(words + AIO.RUN_SLOWLY), handle)
    callback = taken(handle, get(words + AIO.CALLBACK_AT), get(words + AIO.CALLBACK_NAME))
    args = taken(handle, get(words + AIO.ARGS_AT), get(words + AIO.ARGS_NAME))
    result = 0
    if callback != 0 and args != 0:
        result = none
        # Read after the two: `cancel` sets it before it takes them away.
        cancelled = load(handle + get(words + AIO.CANCELLED_AT))
        if cancelled == get(words + AIO.FALSE):
            context = taken(handle, get(words + AIO.CONTEXT_AT), get(words + AIO.CONTEXT_NAME))
            if context != 0 and get(args + OBJECT_TYPE) == get(words + AIO.TUPLE):
                result = handle_call(handle, words, context, callback, args)
            else:  # other code has written into it
                PyErr_Clear()
                result = PyObject_CallOneArg(get(words + AIO.RUN_SLOWLY), handle)
            if context != 0:
                Py_DecRef(context)
        elif cancelled != PyBool_FromLong(1):  # as well
            result = PyObject_CallOneArg(get(words + AIO.RUN_SLOWLY), handle)
    else:  # other code has deleted one of them: Python says so
        PyErr_Clear()
        result = PyObject_CallOneArg(get(words + AIO.RUN_SLOWLY), handle)
    if args != 0:
        Py_DecRef(args)
    if callback != 0:
        Py_DecRef(callback)
    return result


@helper
def handle_call(handle: int, words: int, context: int, callback: int, args: int) -> int:
    """Call in the handle's context. None, or 0 if its exception is to leave the loop.

    The result is dropped here, as in asyncio. The core would report a coroutine; in an asyncio program the interpreter
    warns.
    """
    result = 0
    if PyContext_Enter(context) == 0:
        result = context_left(context, PyObject_Vectorcall(callback, args + TUPLE_ITEMS, get(args + SEQUENCE_SIZE), 0))
    if result == 0:
        return handle_failed(handle, words, callback, args)
    Py_DecRef(result)
    return get(words + AIO.NONE)


@apart
def handle_failed(handle: int, words: int, callback: int, args: int) -> int:
    """Tell Python of the exception that is set: ``failed((handle, callback, args, error))``."""
    error = PyErr_GetRaisedException()
    four = PyTuple_New(4)
    if four == 0:
        Py_DecRef(error)
        return 0
    own(four + TUPLE_ITEMS, handle)
    own(four + TUPLE_ITEMS + 8, callback)
    own(four + TUPLE_ITEMS + 16, args)
    put(four + TUPLE_ITEMS + 24, error)
    result = PyObject_CallOneArg(get(words + AIO.FAILED), four)
    Py_DecRef(four)
    return result
