"""Reactions: `then` and its relatives, and the jobs that run when what they wait for has settled.

A reaction needs no record: it is the `Eventual` that follows the one it waits for, with its handlers in its own slots,
so `then` allocates one object. A queued reaction is one marked word in the microtask ring, and the checkpoint runs it
without any Python except its handler. A hidden reaction (of `all`, or of an adoption) is a plain `Eventual`, which is
never settled itself. A handler may also be a `ResultSlots`, as those of `all` are: the kernel then stores the value in
its slot of a list, counts, and calls Python only when the last one has arrived, so `all` of a hundred costs one call of
Python, not a hundred.

settling.py ensures that each reaction is queued exactly once, whichever thread settles at whatever moment. It loses
when a handler returns a promise: following it is done in Python, and takes 1 µs where a plain value takes 0.1.
"""

from __future__ import annotations

from ..base.atomics import fetch_add, get, put
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyCallable_Check,
    PyContext_CopyCurrent,
    PyContext_Enter,
    PyErr_GetRaisedException,
    PyList_Append,
    PyList_SetItem,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyObject_CallOneArg,
    PyType_GenericAlloc,
    PyUnicode_Compare,
)
from ..base.interpreter import SEQUENCE_SIZE, TUPLE_ITEMS
from ..base.kernel import KEYWORDS, MANY, NOARGS, data, helper, inlined, kernel
from ..base.layout import KIND_MICROTASK, POINTER_MASK, STATE
from ..calls.captured import context_left
from ..calls.invoke import called
from ..observe.probes import callback_begins
from .settling import EVENTUAL, RESULT_SLOTS, VIEW, attach, call_two, ended, reject_with, resolve_with, type_of, view_of


@helper
def make_reaction(view_object: int, kind: int, on_fulfilled: int, on_rejected: int) -> int:
    """A new eventual with these handlers (0: none); or 0 with an exception set."""
    reaction = PyType_GenericAlloc(kind, 0)
    if reaction == 0:
        return 0
    Py_IncRef(view_object)
    put(reaction + EVENTUAL.VIEW, view_object)
    if on_fulfilled != 0:
        Py_IncRef(on_fulfilled)
        put(reaction + EVENTUAL.ON_FULFILLED, on_fulfilled)
    if on_rejected != 0:
        Py_IncRef(on_rejected)
        put(reaction + EVENTUAL.ON_REJECTED, on_rejected)
    return reaction


@kernel(KEYWORDS)
def then(self: int, arguments: int, count: int, names: int) -> int:
    """Make an eventual of the view's type that follows this one. Any thread; one swap, or one push into a ring."""
    view = view_of(self)
    if view == 0:
        return 0
    on_fulfilled = get(arguments) if count > 0 else 0
    on_rejected = get(arguments + 8) if count > 1 else 0
    misused = count > 2
    if names != 0:
        for i in range(get(names + SEQUENCE_SIZE)):
            name = get(names + TUPLE_ITEMS + (i << 3))
            value = get(arguments + ((count + i) << 3))
            if count < 1 and PyUnicode_Compare(name, get(view + VIEW.ON_FULFILLED)) == 0:
                on_fulfilled = value
            elif count < 2 and PyUnicode_Compare(name, get(view + VIEW.ON_REJECTED)) == 0:
                on_rejected = value
            else:
                misused = True
    if misused:
        ended(PyObject_CallOneArg(get(view + VIEW.MISUSED), self), 0)
        return 0
    if on_fulfilled != 0 and PyCallable_Check(on_fulfilled) == 0:  # the standard ignores what is not callable
        on_fulfilled = 0
    if on_rejected != 0 and PyCallable_Check(on_rejected) == 0:
        on_rejected = 0
    child = make_reaction(get(self + EVENTUAL.VIEW), get(view + VIEW.SEEN), on_fulfilled, on_rejected)
    if child == 0:
        return 0
    if get(view + VIEW.MADE) != 0 and ended(PyObject_CallOneArg(get(view + VIEW.MADE), child), 0) != 0:
        Py_DecRef(child)
        return 0
    if on_fulfilled != 0 or on_rejected != 0:
        context = PyContext_CopyCurrent()
        if context == 0:
            Py_DecRef(child)
            return 0
        put(child + EVENTUAL.VALUE, context)  # where it waits until the value comes: settling.queue_reaction
    Py_IncRef(child)
    attach(view, self, child)
    return child


@kernel(MANY)
def subscribe(self: int, arguments: int, count: int) -> int:
    """Add a hidden reaction with two handlers, each a callable, a `ResultSlots` or None. Any thread."""
    view = view_of(self)
    if view == 0:
        return 0
    if count != 2:
        ended(PyObject_CallOneArg(get(view + VIEW.MISUSED), self), 0)
        return 0
    base = get(view + VIEW.LOOP)
    none = get(base + STATE.NONE)
    on_fulfilled, on_rejected = get(arguments), get(arguments + 8)
    results = 0
    if type_of(on_fulfilled) == get(view + VIEW.RESULT_SLOTS):
        results = on_fulfilled
    elif type_of(on_rejected) == get(view + VIEW.RESULT_SLOTS):
        results = on_rejected
    index = 0
    if results != 0:
        index = result_slot_new(base, results)
        if index == 0:
            return 0
    if on_fulfilled == none:
        on_fulfilled = 0
    if on_rejected == none:
        on_rejected = 0
    reaction = make_reaction(get(self + EVENTUAL.VIEW), get(view + VIEW.HIDDEN), on_fulfilled, on_rejected)
    if reaction == 0:
        if index != 0:
            Py_DecRef(index)
        return 0
    put(reaction + EVENTUAL.REACTIONS, index)  # nobody reacts to a hidden reaction, so this slot is free
    attach(view, self, reaction)
    return none


@helper
def reaction_run(base: int, word: int) -> int:
    """Run a reaction from the microtask ring (NewPromiseReactionJob). The caller keeps the reference of `word`. Returns
    0 or LEAVE. Loop thread.

    Its slots are emptied first, so that the handlers do not outlive this call, however long the eventual lives. A
    handler of `then` runs in the context of that call. A handler without a context is hidden: no user gave it.
    """
    reaction = word & POINTER_MASK
    view = data(get(reaction + EVENTUAL.VIEW))
    link = get(reaction + EVENTUAL.LINK)
    fulfilled = link == get(view + VIEW.FULFILLED)
    captured = not fulfilled and link != get(view + VIEW.REJECTED)
    seen = type_of(reaction) == get(view + VIEW.SEEN)
    argument = get(reaction + EVENTUAL.VALUE)
    on_fulfilled = get(reaction + EVENTUAL.ON_FULFILLED)
    on_rejected = get(reaction + EVENTUAL.ON_REJECTED)
    put(reaction + EVENTUAL.VALUE, 0)
    put(reaction + EVENTUAL.ON_FULFILLED, 0)
    put(reaction + EVENTUAL.ON_REJECTED, 0)
    handler = on_fulfilled if fulfilled or captured else on_rejected
    if captured:
        put(reaction + EVENTUAL.LINK, 0)
    elif seen:
        handler = 0  # has none for this outcome
    status = 0
    if get(base + STATE.OBSERVED) != 0:
        callback_begins(base, handler if handler != 0 else reaction, KIND_MICROTASK)
    if handler == 0:
        if seen:
            Py_IncRef(argument)
            status = resolve_with(view, reaction, argument) if fulfilled else reject_with(view, reaction, argument)
    else:
        if type_of(handler) == get(view + VIEW.RESULT_SLOTS):
            result = result_slot_put(base, handler, get(reaction + EVENTUAL.REACTIONS), argument)
        elif captured:
            result = call_in_context(link, handler, argument)
        else:
            result = PyObject_CallOneArg(handler, argument)
        if result == 0:
            error = PyErr_GetRaisedException()
            status = call_two(get(view + VIEW.RAISED), reaction if seen else handler, error)
            Py_DecRef(error)
        elif seen:
            status = resolve_with(view, reaction, result)
        else:
            Py_DecRef(result)
    status = called(base, get(base + STATE.NONE) if status == 0 else 0, word, KIND_MICROTASK)
    Py_DecRef(argument)
    if captured:
        Py_DecRef(link)
    if on_fulfilled != 0:
        Py_DecRef(on_fulfilled)
    if on_rejected != 0:
        Py_DecRef(on_rejected)
    return status


@inlined
def call_in_context(context: int, function: int, argument: int) -> int:
    """Call a function of one argument in a context. A new reference, or 0 with an exception set."""
    if PyContext_Enter(context) != 0:
        return 0
    return context_left(context, PyObject_CallOneArg(function, argument))


@helper
def result_slot_new(base: int, results: int) -> int:
    """Add a slot. Returns its index as a new int object, or 0 with an exception set. Only the subscribing thread."""
    counts = data(get(results + RESULT_SLOTS.COUNTS))
    count = get(counts + 8)
    if PyList_Append(get(results + RESULT_SLOTS.VALUES), get(base + STATE.NONE)) != 0:
        return 0
    index = PyLong_FromLongLong(count)
    if index != 0:
        put(counts + 8, count + 1)
        fetch_add(counts, 1)
    return index


@helper
def result_slot_filled(base: int, results: int) -> int:
    """Count a value that arrived; the thread with the last one calls `_done`. None, or 0 with an exception set. Any
    thread.
    """
    if fetch_add(data(get(results + RESULT_SLOTS.COUNTS)), -1) == 1:
        result = PyObject_CallOneArg(get(results + RESULT_SLOTS.DONE), get(results + RESULT_SLOTS.VALUES))
        if ended(result, 0) != 0:
            return 0
    return get(base + STATE.NONE)


@helper
def result_slot_put(base: int, results: int, index: int, value: int) -> int:
    """Store the value for the slot with index `index`, an int object; once. Returns as `result_slot_filled`."""
    Py_IncRef(value)
    if PyList_SetItem(get(results + RESULT_SLOTS.VALUES), PyLong_AsLongLong(index), value) != 0:
        return 0
    return result_slot_filled(base, results)


@kernel(NOARGS)
def result_slots_new(self: int, _unused: int) -> int:
    """`result_slot_new` as a method."""
    return result_slot_new(get(data(get(self + RESULT_SLOTS.VIEW)) + VIEW.LOOP), self)


@kernel(NOARGS)
def result_slots_subscribed(self: int, _unused: int) -> int:
    """Remove the extra count that kept the list from being complete too early."""
    return result_slot_filled(get(data(get(self + RESULT_SLOTS.VIEW)) + VIEW.LOOP), self)


@kernel(MANY)
def result_slots_put(self: int, arguments: int, _count: int) -> int:
    """`result_slot_put` as a method, ``(index, value)``."""
    return result_slot_put(
        get(data(get(self + RESULT_SLOTS.VIEW)) + VIEW.LOOP), self, get(arguments), get(arguments + 8)
    )
