"""The JavaScript view's own built-in methods: timers in milliseconds, callback first, with HTML's clamp always on; and
versions of the loop's methods that spawn coroutine functions and run in the caller's context (captured.py).

These methods detect whether a callback is a coroutine function when it is scheduled, because only its view can spawn
it. They check its type and, for a function or a method, the flags of its code; a built-in never is one. For any other
callable (`functools.partial`, a callable object) they ask Python, which takes 1 µs.
"""

from __future__ import annotations

from ..base.atomics import get, get_half
from ..base.capi import Py_DecRef, PyObject_CallOneArg
from ..base.clock import loop_ns
from ..base.interpreter import CODE_COROUTINE, CODE_FLAGS, FUNCTION_CODE, METHOD_FUNCTION
from ..base.kernel import MANY, apart, data, inlined, kernel
from ..base.layout import KIND_MICROTASK, KIND_NEXT_TICK, REFUSED_ARGUMENTS, REFUSED_MILLISECONDS, STATE
from ..base.refusal import refuse
from ..promises.settling import VIEW, type_of
from .scheduling import immediate_word, pack, schedule_word
from .timer_methods import arm, nanoseconds


@inlined
def pack_spawning(view: int, arguments: int, rest: int, count: int) -> int:
    """`pack` for the callback at `arguments`; for a coroutine function, pack a callable that spawns its coroutines."""
    callback = get(arguments)
    kind = type_of(callback)
    function = callback
    if kind == get(view + VIEW.METHOD_TYPE):
        function = get(callback + METHOD_FUNCTION)
        kind = type_of(function)
    if kind == get(view + VIEW.FUNCTION_TYPE):
        spawns = get_half(get(function + FUNCTION_CODE) + CODE_FLAGS) & CODE_COROUTINE != 0
    else:
        spawns = kind != get(view + VIEW.BUILTIN_TYPE)
    if spawns:
        return pack_asked(view, callback, rest, count)
    return pack(get(view + VIEW.LOOP), callback, rest, count, True)


@apart
def pack_asked(view: int, callback: int, rest: int, count: int) -> int:
    """`pack_spawning` when Python must decide what to call."""
    found = PyObject_CallOneArg(get(view + VIEW.SPAWNING), callback)
    if found == 0:
        return 0
    word = pack(get(view + VIEW.LOOP), found, rest, count, True)
    Py_DecRef(found)
    return word


@inlined
def pack_all_spawning(view: int, arguments: int, count: int) -> int:
    """`pack_spawning` for ``callback, *args``, where the callback may be missing."""
    base = get(view + VIEW.LOOP)
    if count == 0:
        refuse(base, REFUSED_ARGUMENTS, get(base + STATE.NONE))
        return 0
    return pack_spawning(view, arguments, arguments + 8, count - 1)


@inlined
def arm_milliseconds(view: int, arguments: int, count: int, repeat: bool) -> int:
    """Arm a timer or interval from ``callback, ms=0, *args``."""
    base = get(view + VIEW.LOOP)
    if count == 0:
        refuse(base, REFUSED_ARGUMENTS, get(base + STATE.NONE))
        return 0
    delay = 0
    if count > 1:
        delay = nanoseconds(base, get(arguments + 8), 1e6, REFUSED_MILLISECONDS)
        if delay < 0:
            return 0
    word = pack_spawning(view, arguments, arguments + 16, max(0, count - 2))
    if word == 0:
        return 0
    return arm(base, word, loop_ns(base), delay, delay if repeat else -1, 1, get(arguments))


@kernel(MANY)
def set_timeout(self: int, arguments: int, count: int) -> int:
    """Arm a one-shot timer."""
    return arm_milliseconds(data(self), arguments, count, False)


@kernel(MANY)
def set_interval(self: int, arguments: int, count: int) -> int:
    """Arm an interval."""
    return arm_milliseconds(data(self), arguments, count, True)


@kernel(MANY)
def set_immediate(self: int, arguments: int, count: int) -> int:
    """Add an immediate, for the check phase."""
    view = data(self)
    word = pack_all_spawning(view, arguments, count)
    return immediate_word(get(view + VIEW.LOOP), word, get(arguments)) if word != 0 else 0


@kernel(MANY)
def queue_microtask(self: int, arguments: int, count: int) -> int:
    """Add to the microtask ring."""
    view = data(self)
    base = get(view + VIEW.LOOP)
    word = pack_all_spawning(view, arguments, count)
    if word == 0:
        return 0
    return schedule_word(base, word, get(arguments), base + STATE.MICROTASKS, KIND_MICROTASK, True)


@kernel(MANY)
def next_tick(self: int, arguments: int, count: int) -> int:
    """Add to the next-tick ring."""
    view = data(self)
    base = get(view + VIEW.LOOP)
    word = pack_all_spawning(view, arguments, count)
    if word == 0:
        return 0
    return schedule_word(base, word, get(arguments), base + STATE.NEXT_TICKS, KIND_NEXT_TICK, True)
