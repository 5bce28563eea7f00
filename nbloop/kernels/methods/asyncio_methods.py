"""What asyncio asks of a loop for each callback, future and step of a task, as built-in methods of `aio.EventLoop`.

Problem: `call_soon`, `create_future` and `get_debug` are called for each message that a stream brings, and `call_at`
for each timeout. As Python functions each is a frame or more, and a handle's run is another. Idea: kernels whose
``self`` is the asyncio loop. They make asyncio's own handle, word by word, and put it into the queue or into a timer; a
timer's `cancel` is one whose ``self`` is the handle, which has the core's array in a hidden slot. A task needs no
handle: what its C code schedules is known by its type (`STEP`) or by its definition (`WAKEUP`), and no code sees what
`call_soon` returns for it. The rare rest goes to Python: debug mode, tools that watch handles or replace the clock, odd
arguments, a step that raises an error of asyncio's, a loop that is closed.

The places of the slots of asyncio's handles are found when `aio/loop.py` is imported, and not before: a program without
asyncio must not wait for its import. So these places are words (`AIO`) and not constants.
"""

from __future__ import annotations

import ctypes
from typing import Any

from ...unique import Unique
from ..base.atomics import get, load, put, store
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyBool_FromLong,
    PyContext_CopyCurrent,
    PyDict_GetItemWithError,
    PyErr_BadArgument,
    PyErr_Clear,
    PyErr_Occurred,
    PyFloat_AsDouble,
    PyFloat_FromDouble,
    PyLong_FromLongLong,
    PyObject_CallOneArg,
    PyObject_GetAttr,
    PyObject_SetAttr,
    PyObject_Vectorcall,
    PyTuple_New,
    PyType_GenericAlloc,
    PyUnicode_Compare,
)
from ..base.clock import loop_ns
from ..base.interpreter import BUILTIN_DEFINITION, OBJECT_TYPE, SEQUENCE_SIZE, TUPLE_ITEMS, hidden_slots, slot_offsets
from ..base.kernel import KEYWORDS, NOARGS, ONE, apart, data, inlined, kernel
from ..base.layout import STATE, Fields
from ..base.refusal import on_loop_thread
from ..calls.captured import pack_in_context
from ..calls.handles import AIO, FREE_THREADED, handle_called, own, step_context, taken
from ..timers.timer_slots import timer_cancel
from .scheduling import send
from .timer_methods import END_NS, arm, identifier_of, nanoseconds_up

FAR = 1e10  # s on the clock: later than its end, so never, as is what no float can be


class AioWords(Unique):
    """The words of an asyncio loop; `aio/loop.py` adds its methods. `_words` is an array of `AIO`, and `_kept` a tuple
    of the loop's own objects whose addresses are in it: the handle that stands for steps, the core's array, the clock.
    `_received` and `_share` are what its transports share, made for the first of them.
    """

    # asyncio's attributes, its method `time`, and ours
    __slots__ = ("_closed", "_debug", "_kept", "_received", "_share", "_task_factory", "_words", "time")
    _closed: bool
    _debug: bool
    _task_factory: Any
    time: Any


LOOP_WORDS = Fields(
    "LOOP_WORDS",
    {slot.removeprefix("_").upper(): at for slot, at in zip(AioWords.__slots__, slot_offsets(AioWords), strict=True)},
)
KEPT_SLOT, RECEIVED_SLOT, SHARE_SLOT, WORDS_SLOT = hidden_slots(AioWords, "_kept", "_received", "_share", "_words")


@inlined
def aio_words(self: int) -> int:
    """The words of a loop; 0 with an exception set if only `__new__` was called, or the collector has cleared it."""
    words = load(self + LOOP_WORDS.WORDS)
    if words == 0:
        PyErr_BadArgument()
        return 0
    return data(words)


@inlined
def aio_plain(self: int, words: int) -> bool:
    """Whether neither debug mode nor a tool needs to see what is scheduled."""
    return load(self + LOOP_WORDS.DEBUG) == get(words + AIO.FALSE) and load(words + AIO.TOOLS) == 0


@inlined
def aio_context(words: int, names: int, values: int) -> int:
    """The context among the keyword arguments; 0 if it is None or absent; -1 if Python has to decide."""
    if names == 0:
        return 0
    if get(names + SEQUENCE_SIZE) != 1:
        return -1
    name = get(names + TUPLE_ITEMS)  # asyncio's C code has a string of its own
    known = get(words + AIO.CONTEXT)
    if name != known and PyUnicode_Compare(name, known) != 0:
        return -1
    context = get(values)
    if context == get(words + AIO.NONE):
        return 0
    return context if get(context + OBJECT_TYPE) == get(words + AIO.CONTEXT_TYPE) else -1


@inlined
def aio_soon(self: int, arguments: int, count: int, names: int, kind: int, slowly: int) -> int:
    """Schedule ``callback, *args, context=None``. Returns its handle, of the class in the word `kind`, or 0 with an
    exception set. `slowly` names the Python method for rare cases, which also repeats whatever failed here.
    """
    words = aio_words(self)
    if words == 0:
        return 0
    context = aio_context(words, names, arguments + (count << 3))
    if count > 0 and context >= 0 and aio_plain(self, words):
        callback = get(arguments)
        called = get(callback + OBJECT_TYPE)
        result = 0
        if context != 0 and called == get(words + AIO.STEP):
            if get(callback + get(words + AIO.ERROR_AT)) == 0:
                if count == 1 and context == step_context(words, callback):
                    result = aio_step_alone(words, callback)
                else:
                    result = aio_step(words, context, arguments, count)
        elif (
            context != 0
            and called == get(words + AIO.BUILTIN)
            and get(callback + BUILTIN_DEFINITION) == get(words + AIO.WAKEUP)
        ):
            result = aio_step(words, context, arguments, count)
        else:
            result = aio_handle(self, words, kind, context, arguments, count)
        if result != 0:
            return result
        PyErr_Clear()
    return aio_slowly(self, get(words + slowly), arguments, count, names)


@apart
def aio_slowly(self: int, name: int, arguments: int, count: int, names: int) -> int:
    """Call the Python method of that name with the arguments."""
    method = PyObject_GetAttr(self, name)
    if method == 0:
        return 0
    result = PyObject_Vectorcall(method, arguments, count, names)
    Py_DecRef(method)
    return result


@inlined
def aio_step(words: int, context: int, arguments: int, count: int) -> int:
    """Queue a step of a C task. Returns the handle that stands for all steps, or 0 with an exception set."""
    base = get(words + AIO.STATE)
    Py_IncRef(context)
    word = pack_in_context(base, context, get(arguments), arguments + 8, count - 1)
    return aio_unseen(words, base, word, get(arguments)) if word != 0 else 0


@inlined
def aio_step_alone(words: int, step: int) -> int:
    """`aio_step` of a step whose task has its context: the queue holds it as it is."""
    Py_IncRef(step)
    return aio_unseen(words, get(words + AIO.STATE), step, step)


@inlined
def aio_unseen(words: int, base: int, word: int, culprit: int) -> int:
    """Queue an owned word, and return the handle that stands for all steps; 0 with an exception set."""
    if send(base, base + STATE.EXTERNAL, word, culprit) == 0:
        return 0
    unseen = get(words + AIO.UNSEEN)
    Py_IncRef(unseen)
    return unseen


@inlined
def aio_handle(self: int, words: int, kind: int, context: int, arguments: int, count: int) -> int:
    """Queue a new handle, and return it; 0 with an exception set."""
    handle = aio_made(self, words, kind, context, arguments, count)
    if handle == 0:
        return 0
    Py_IncRef(handle)  # the queue's
    base = get(words + AIO.STATE)
    if send(base, base + STATE.EXTERNAL, handle, get(arguments)) == 0:
        Py_DecRef(handle)
        return 0
    return handle


@inlined
def aio_made(self: int, words: int, kind: int, context: int, arguments: int, count: int) -> int:
    """A new handle for ``callback, *args``, of the class in the word `kind`; 0 with an exception set if there is no
    memory.
    """
    if context != 0:
        Py_IncRef(context)
    else:
        context = PyContext_CopyCurrent()
    args = PyTuple_New(count - 1) if count > 1 else get(words + AIO.EMPTY)  # which is immortal
    handle = PyType_GenericAlloc(get(words + kind), 0)
    if context == 0 or args == 0 or handle == 0:
        aio_unmade(context, args, handle)
        return 0
    none = get(words + AIO.NONE)
    for i in range(1, count):
        own(args + TUPLE_ITEMS + ((i - 1) << 3), get(arguments + (i << 3)))
    own(handle + get(words + AIO.CALLBACK_AT), get(arguments))
    put(handle + get(words + AIO.ARGS_AT), args)
    own(handle + get(words + AIO.LOOP_AT), self)
    put(handle + get(words + AIO.CONTEXT_AT), context)
    put(handle + get(words + AIO.CANCELLED_AT), get(words + AIO.FALSE))
    put(handle + get(words + AIO.REPR_AT), none)
    put(handle + get(words + AIO.TRACEBACK_AT), none)
    return handle


@apart
def aio_unmade(context: int, args: int, handle: int) -> None:
    """There was no memory for one of them: release the others."""
    if context != 0:
        Py_DecRef(context)
    if args != 0:
        Py_DecRef(args)
    if handle != 0:
        Py_DecRef(handle)


@inlined
def aio_seconds(words: int, number: int) -> float:
    """The seconds in a number of exactly the type float or int; FAR if Python has to handle it."""
    kind = get(number + OBJECT_TYPE)
    if kind != get(words + AIO.FLOAT) and kind != get(words + AIO.INT):
        return FAR
    seconds = PyFloat_AsDouble(number)
    if seconds == -1.0 and PyErr_Occurred() != 0:  # an int beyond all floats
        PyErr_Clear()
        return FAR
    return seconds


@inlined
def aio_later(self: int, arguments: int, count: int, names: int, absolute: bool, slowly: int) -> int:
    """Schedule ``when, callback, *args, context=None``, or with a delay in place of `when`. Returns its timer's handle,
    or 0 with an exception set. `slowly` as for `aio_soon`.
    """
    words = aio_words(self)
    if words == 0:
        return 0
    context = aio_context(words, names, arguments + (count << 3))
    own_clock = load(self + LOOP_WORDS.TIME) == get(words + AIO.CLOCK)  # and not a tool's
    if count > 1 and context >= 0 and aio_plain(self, words) and own_clock:
        now = loop_ns(get(words + AIO.STATE))
        when = aio_seconds(words, get(arguments))
        if not absolute:
            when += now / 1e9
        exact = when * 1e9
        if exact < END_NS:  # nor is it NaN
            if absolute:
                number = get(arguments)
                Py_IncRef(number)
            else:
                number = PyFloat_FromDouble(when)
            result = aio_timer(self, words, context, number, exact, now, arguments + 8, count - 1)
            if result != 0:
                return result
            PyErr_Clear()
    return aio_slowly(self, get(words + slowly), arguments, count, names)


@inlined
def aio_timer(
    self: int, words: int, context: int, number: int, exact: float, now: int, arguments: int, count: int
) -> int:
    """Arm a timer that queues its handle at `exact` ns, and return the handle; 0 with an exception set. `number` is the
    time as an object, whose reference this consumes, or 0.
    """
    handle = aio_made(self, words, AIO.TIMER, context, arguments, count) if number != 0 else 0
    if handle == 0:
        if number != 0:
            Py_DecRef(number)
        return 0
    core = get(words + AIO.CORE)
    if core != 0:
        own(handle + get(words + AIO.CORE_AT), core)
    put(handle + get(words + AIO.WHEN_AT), number)
    scheduled = handle + get(words + AIO.SCHEDULED_AT)
    put(scheduled, get(words + AIO.FALSE))
    Py_IncRef(handle)  # the timer's
    base = get(words + AIO.STATE)
    delay = max(0, nanoseconds_up(exact) - now)
    timer = arm(base, handle, now, delay, -1, get(base + STATE.CLAMP), get(arguments))
    if timer == 0:
        Py_DecRef(handle)
        return 0
    store(scheduled, timer)  # after the False, which is immortal: on another thread the timer may have fired already
    return handle


@kernel(KEYWORDS)
def aio_call_soon(self: int, arguments: int, count: int, names: int) -> int:
    """`aio_soon`; in debug mode Python checks the thread."""
    return aio_soon(self, arguments, count, names, AIO.HANDLE, AIO.SOON_SLOWLY)


@kernel(KEYWORDS)
def aio_call_soon_threadsafe(self: int, arguments: int, count: int, names: int) -> int:
    """`aio_soon`; in debug mode Python does not check the thread."""
    return aio_soon(self, arguments, count, names, AIO.LOCKED_HANDLE, AIO.THREADSAFE_SLOWLY)


@kernel(KEYWORDS)
def aio_call_later(self: int, arguments: int, count: int, names: int) -> int:
    """`aio_later` with a delay."""
    return aio_later(self, arguments, count, names, False, AIO.LATER_SLOWLY)


@kernel(KEYWORDS)
def aio_call_at(self: int, arguments: int, count: int, names: int) -> int:
    """`aio_later` with a time of the loop's clock."""
    return aio_later(self, arguments, count, names, True, AIO.AT_SLOWLY)


@kernel(ONE)
def aio_timer_cancelled(self: int, handle: int) -> int:
    """Take the timer of a handle out of the core, which forgets it at once. Any thread."""
    words = aio_words(self)
    if words == 0:
        return 0
    base = get(words + AIO.STATE)
    number = PyObject_GetAttr(handle, get(words + AIO.SCHEDULED_NAME))
    if number == 0:
        return 0
    identifier = identifier_of(base, number)
    Py_DecRef(number)
    if identifier < 0:
        return 0
    timer_cancel(base, identifier, on_loop_thread(base))
    return get(words + AIO.NONE)


@inlined
def let_go(handle: int, words: int) -> bool:
    """Replace callback and arguments of a handle by None, on a free-threaded build as attributes: as in `taken`. False
    with an exception set.
    """
    none = get(words + AIO.NONE)
    if FREE_THREADED:
        return (
            PyObject_SetAttr(handle, get(words + AIO.CALLBACK_NAME), none) == 0
            and PyObject_SetAttr(handle, get(words + AIO.ARGS_NAME), none) == 0
        )
    callback = get(handle + get(words + AIO.CALLBACK_AT))
    args = get(handle + get(words + AIO.ARGS_AT))
    put(handle + get(words + AIO.CALLBACK_AT), none)
    put(handle + get(words + AIO.ARGS_AT), none)
    if callback != 0:
        Py_DecRef(callback)
    if args != 0:
        Py_DecRef(args)
    return True


@inlined
def aio_number(base: int, words: int, handle: int) -> int:
    """The core's number of a handle's timer; -1 if there is another object, whose conversion might run Python code."""
    number = taken(handle, get(words + AIO.SCHEDULED_AT), get(words + AIO.SCHEDULED_NAME))
    if number == 0:
        PyErr_Clear()
        return -1
    identifier = identifier_of(base, number) if get(number + OBJECT_TYPE) == get(words + AIO.INT) else -1
    Py_DecRef(number)
    return identifier


_twin = ctypes.c_int64()


def aio_shared_word() -> int:
    """The address of a word of the compiled object, or of this module (twin): it is the address of the words of `AIO`
    that all loops share, for a kernel whose ``self`` is no loop.
    """
    return ctypes.addressof(_twin)


@kernel(NOARGS)
def aio_shared_word_address(_self: int, _unused: int) -> int:
    """The address of the word that `nbloop.aio.handles` fills."""
    return PyLong_FromLongLong(aio_shared_word())


@kernel(NOARGS)
def aio_timer_cancel(self: int, _unused: int) -> int:
    """Cancel a timer by its handle. Python cancels a handle that Python has made, one of a subclass, one into which
    other code has written other types of objects, and any while there is a loop in debug mode.
    """
    words = load(aio_shared_word())
    if words == 0:
        PyErr_BadArgument()
        return 0
    none = get(words + AIO.NONE)
    if get(self + OBJECT_TYPE) == get(words + AIO.TIMER) and get(words + AIO.DEBUG) == 0:
        cancelled = load(self + get(words + AIO.CANCELLED_AT))
        yes = PyBool_FromLong(1)  # immortal
        if cancelled == yes:
            return none
        core = get(self + get(words + AIO.CORE_AT))
        if core != 0 and cancelled == get(words + AIO.FALSE) and get(core + OBJECT_TYPE) == get(words + AIO.CORE_TYPE):
            base = data(core)
            identifier = aio_number(base, words, self)
            if identifier >= 0:
                timer_cancel(base, identifier, on_loop_thread(base))
                store(self + get(words + AIO.CANCELLED_AT), yes)
                return none if let_go(self, words) else 0
    return PyObject_CallOneArg(get(words + AIO.CANCEL_SLOWLY), self)


@kernel(NOARGS)
def aio_get_debug(self: int, _unused: int) -> int:
    """The word that `set_debug` has set: a bool, unless other code has written another object into it."""
    enabled = load(self + LOOP_WORDS.DEBUG)
    if enabled == PyBool_FromLong(0) or enabled == PyBool_FromLong(1):
        return enabled
    words = aio_words(self)
    return PyObject_GetAttr(self, get(words + AIO.DEBUG_NAME)) if words != 0 else 0


@kernel(NOARGS)
def aio_create_future(self: int, _unused: int) -> int:
    """``asyncio.Future(loop=self)``."""
    words = aio_words(self)
    if words == 0:
        return 0
    arguments = PyTuple_New(1)
    if arguments == 0:
        return 0
    own(arguments + TUPLE_ITEMS, self)
    future = PyObject_Vectorcall(get(words + AIO.FUTURE), arguments + TUPLE_ITEMS, 0, get(words + AIO.LOOP_NAMES))
    Py_DecRef(arguments)
    return future


@kernel(ONE)
def handle_run(self: int, handle: int) -> int:
    """`handle_called`. ``self`` is the array of `AIO`."""
    return handle_called(data(self), handle)


@inlined
def aio_task_names(words: int, names: int) -> int:
    """The names of a task's keyword arguments, "loop" behind those of `create_task`; 0 if Python has to decide."""
    if names == 0:
        return get(words + AIO.LOOP_NAMES)
    if get(names + SEQUENCE_SIZE) != 1:
        return 0
    name = get(names + TUPLE_ITEMS)
    if name == get(words + AIO.NAME):
        return get(words + AIO.NAMED)
    return get(words + AIO.IN_CONTEXT) if name == get(words + AIO.CONTEXT) else 0


@apart
def aio_inherited(self: int, words: int, name: int, arguments: int, count: int, names: int) -> int:
    """Call asyncio's method of that name: ``super(EventLoop, self)``. No frame of ours shows in tracebacks."""
    pair = PyTuple_New(2)
    if pair == 0:
        return 0
    own(pair + TUPLE_ITEMS, get(words + AIO.LOOP_CLASS))
    own(pair + TUPLE_ITEMS + 8, self)
    inherited = PyObject_Vectorcall(get(words + AIO.SUPER_CLASS), pair + TUPLE_ITEMS, 2, 0)
    Py_DecRef(pair)
    if inherited == 0:
        return 0
    result = aio_slowly(inherited, name, arguments, count, names)
    Py_DecRef(inherited)
    return result


@kernel(KEYWORDS)
def aio_create_task(self: int, arguments: int, count: int, names: int) -> int:
    """``asyncio.Task(coro, loop=self)``, with a name or a context. asyncio's method makes it for a loop that is closed
    or has a task factory, and if other code has replaced `asyncio.tasks.Task` or that method; also outside of a run,
    before which nobody has looked whether a tool has replaced it.
    """
    words = aio_words(self)
    if words == 0:
        return 0
    all_names, kind = aio_task_names(words, names), get(words + AIO.TASK)
    plain = (
        count == 1
        and all_names != 0
        and load(words + AIO.TASKS_SLOWLY) == 0
        and on_loop_thread(get(words + AIO.STATE))
        and load(self + LOOP_WORDS.CLOSED) == get(words + AIO.FALSE)
        and load(self + LOOP_WORDS.TASK_FACTORY) == get(words + AIO.NONE)
    )
    # A key of that dict may have an equality in Python, which may raise.
    if not plain or PyDict_GetItemWithError(get(words + AIO.TASKS), get(words + AIO.TASK_NAME)) != kind:
        if PyErr_Occurred() != 0:
            return 0
        return aio_inherited(self, words, get(words + AIO.CREATE_TASK_NAME), arguments, count, names)
    keywords = get(all_names + SEQUENCE_SIZE)
    values = PyTuple_New(1 + keywords)
    if values == 0:
        return 0
    for i in range(keywords):
        own(values + TUPLE_ITEMS + (i << 3), get(arguments + (i << 3)))
    own(values + TUPLE_ITEMS + (keywords << 3), self)
    task = PyObject_Vectorcall(kind, values + TUPLE_ITEMS, 1, all_names)
    Py_DecRef(values)
    return task
