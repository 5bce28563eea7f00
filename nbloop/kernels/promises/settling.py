"""Settling once, and waiting for it: the protocol of a promise, without its policy.

Problem: a promise in plain Python spends ten times as much on frames, tuples and lists as its microtasks cost. Idea:
the ``__slots__`` of a Python class are machine words at fixed offsets that the cycle collector already knows, so
kernels can work on the *instance*, which is the ``self`` of a method descriptor. Waiting needs no record: a reaction is
the `Eventual` that follows, linked through `_link` into the stack of the eventual it waits for (reactions.py).

Settling and reacting meet in one word, `_reactions`:

* NULL, or the top of a stack that ends in NULL: pending.
* BUSY (``True``), or a stack that ends in it: settled, and the settler is queueing.
* DRAINED (``None``): settled, and everything that waited is queued; a later reaction is queued by its own thread.

A thread that adds a reaction swaps it in on top, unless the word is DRAINED. The settler writes value and outcome,
swaps in BUSY, queues the stack that it took from the bottom up, and is done when it can swap BUSY for DRAINED; if a
reaction was added meanwhile, this fails, and it repeats. So each reaction is queued exactly once, and those of one
thread in their order, with no lock and no second word. There is no ABA, since the stack is taken only as a whole. Only
one thread may settle: the token of a `Resolver` decides which.

Policy is left to Python functions, called through the words of a `View`: for values that are not plain, unhandled
rejections, handlers that raised, and reactions that cannot be queued because the loop is gone.

In memory it loses against a future with a single callback: every eventual has the slots of a reaction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...unique import Unique
from ..base.atomics import compare_and_swap, exchange, fetch_add, get, load, put, store
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyErr_BadArgument,
    PyErr_GetRaisedException,
    PyErr_SetRaisedException,
    PyErr_WriteUnraisable,
    PyObject_CallOneArg,
    PyObject_Vectorcall,
    PyTuple_New,
)
from ..base.interpreter import OBJECT_TYPE, TUPLE_ITEMS, slot_offsets
from ..base.kernel import MANY, ONE, apart, data, helper, inlined, kernel
from ..base.layout import KIND_MICROTASK, REFUSED_CLOSED, REFUSED_MEMORY, STATE, TAG_REACTION, Fields, Record
from ..base.refusal import on_loop_thread, refuse
from ..base.safepoint import EVERY
from ..calls.invoke import LEAVE, breathe_on
from ..calls.remote import due_push, fetch_remote
from ..ingress.parking import wake as wake_loop
from ..ingress.parking import wake_to_exit
from ..ingress.ticket_queue import queue_length, queue_push
from ..observe.meter import remote_counted

# The words of a view: constants of the interpreter, types, names, and the Python functions that kernels call.
PLAIN_TYPES: tuple[type, ...] = (
    type(None), int, str, bool, float, list, dict, tuple, bytes, set, frozenset, complex, bytearray
)  # fmt: skip
VIEW = Record(
    "VIEW",
    np.dtype(
        [
            (name, np.int64)
            for name in (
                *("loop", "busy", "drained", "fulfilled", "rejected"),
                *("seen", "hidden", "result_slots", "on_fulfilled", "on_rejected"),
                *("follow", "unhandled", "raised", "lost", "made", "misused", "spawning"),
                *("function_type", "method_type", "builtin_type"),
            )
        ]
        + [("plain", np.int64, (len(PLAIN_TYPES),))]
    ),
)
V_END = VIEW.dtype.itemsize


def _slots_of(name: str, kind: Any) -> Fields:
    """The ``__slots__`` of a class as a record: ``EVENTUAL.LINK`` is the offset of an instance's `_link`."""
    offsets = zip(kind.__slots__, slot_offsets(kind), strict=True)
    return Fields(name, {slot.removeprefix("_").upper(): at for slot, at in offsets})


class EventualWords(Unique):
    """The words of an eventual; `classes.py` adds its methods."""

    __slots__ = (
        "_handled",
        "_link",
        "_on_fulfilled",
        "_on_rejected",
        "_outcome",
        "_reactions",
        "_value",
        "_view",
    )
    _handled: bool
    _on_rejected: Any
    _outcome: bool
    _reactions: Any
    _value: Any
    _view: Any


EVENTUAL = _slots_of("EVENTUAL", EventualWords)


class ResultSlotsWords(Unique):
    """The words of a `ResultSlots`: ``[values still to come, number of slots]``, the function to call with all values,
    and their list.
    """

    __slots__ = ("_counts", "_done", "_values", "_view")


RESULT_SLOTS = _slots_of("RESULT_SLOTS", ResultSlotsWords)


class ResolverWords(Unique):
    """The words of a pair of resolving functions: what the first call takes ([[AlreadyResolved]]), and the view."""

    __slots__ = ("_eventual", "_view")


RESOLVER = _slots_of("RESOLVER", ResolverWords)


@helper
def type_of(target: int) -> int:
    """The address of an object's type."""
    return get(target + OBJECT_TYPE)


@helper
def view_of(eventual: int) -> int:
    """The words of an eventual's view; 0 with an exception set if it has none, because only `__new__` was called or
    the collector has cleared it.
    """
    view_object = load(eventual + EVENTUAL.VIEW)
    if view_object == 0:
        PyErr_BadArgument()
        return 0
    return data(view_object)


@helper
def call_two(function: int, first: int, second: int) -> int:
    """Call a Python function with two arguments, whose references the caller keeps. Returns 0, or LEAVE with an
    exception set.
    """
    pair = PyTuple_New(2)
    if pair == 0:
        return LEAVE
    Py_IncRef(first)
    Py_IncRef(second)
    put(pair + TUPLE_ITEMS, first)
    put(pair + TUPLE_ITEMS + 8, second)
    return ended(PyObject_Vectorcall(function, pair + TUPLE_ITEMS, 2, 0), pair)


@helper
def ended(result: int, argument: int) -> int:
    """Finish a call made for its effect: release `argument`, unless that is 0. Returns 0, or LEAVE if it raised."""
    if argument != 0:
        Py_DecRef(argument)
    if result == 0:
        return LEAVE
    Py_DecRef(result)
    return 0


@helper
def plain(view: int, value: int) -> bool:
    """Whether a value has exactly one of the types, not a subclass, whose instances are never followed."""
    kind = type_of(value)
    at = view + VIEW.PLAIN
    while at < view + V_END:
        if get(at) == kind:
            return True
        at += 8
    return False


@helper
def queue_reaction(view: int, settled: int, reaction: int) -> None:
    """Put a reaction to a settled eventual into the microtask ring, which takes over its reference. Any thread.

    From now on its `_value` is the argument for its handler. Its `_link` is the outcome. If `then` has given it a
    handler for this outcome, its `_link` is instead the context, which has waited in `_value`, and the handler is
    `_on_fulfilled`.
    """
    link = load(settled + EVENTUAL.OUTCOME)
    context = get(reaction + EVENTUAL.VALUE)
    if context != 0:
        if link == get(view + VIEW.REJECTED):
            handler = get(reaction + EVENTUAL.ON_REJECTED)
            put(reaction + EVENTUAL.ON_REJECTED, get(reaction + EVENTUAL.ON_FULFILLED))
            put(reaction + EVENTUAL.ON_FULFILLED, handler)
        if get(reaction + EVENTUAL.ON_FULFILLED) != 0:
            link = context
        else:  # released when it runs: to release it here would run Python between two reactions
            put(reaction + EVENTUAL.ON_FULFILLED, context)
    put(reaction + EVENTUAL.LINK, link)
    value = load(settled + EVENTUAL.VALUE)  # written once, and the caller keeps `settled` alive
    Py_IncRef(value)
    put(reaction + EVENTUAL.VALUE, value)
    base = get(view + VIEW.LOOP)
    while True:
        if on_loop_thread(base):
            if queue_length(base + STATE.REMOTE) != 0:
                fetch_remote(base)  # calls that returned on other threads before this one began come first
            status = due_push(base, base + STATE.MICROTASKS, reaction | TAG_REACTION)
            if status == 0:
                return
            status = REFUSED_CLOSED if status > 0 else REFUSED_MEMORY
        else:
            status = queue_push(base + STATE.REMOTE, reaction | TAG_REACTION)  # the ring's word: remote_words.py
            if status == 0:
                wake_loop(base)
                if get(base + STATE.METRICS) != 0:
                    remote_counted(base, KIND_MICROTASK, 1)
                return
        if refuse(base, status, reaction) != 0:
            break
    error = PyErr_GetRaisedException()
    if call_two(get(view + VIEW.LOST), reaction, error) != 0:
        PyErr_WriteUnraisable(reaction)  # the other reactions must still be queued
    Py_DecRef(error)
    Py_DecRef(reaction)


@apart
def hold(base: int, held: int) -> int:
    """Keep an auto-exit loop alive while a promise queues what waits for it, with Python in between. Returns 1, or 0 if
    this call of `settle` does so already.
    """
    if held == 0:
        fetch_add(base + STATE.HOLDS, 1)
    return 1 - held


@inlined
def settle(view: int, eventual: int, outcome: int, value: int) -> int:
    """Write the outcome and queue all reactions, in order; takes over the reference of `value`. Any thread, which must
    have the sole right to settle the eventual, and keep it alive. O(reactions). Returns 0, or LEAVE, when all is done,
    with the exception of a signal handler that ran meanwhile.

    The swap of `_reactions` publishes value and outcome; readers must have seen it.
    """
    base = get(view + VIEW.LOOP)
    error = held = 0
    old = get(eventual + EVENTUAL.VALUE)
    put(eventual + EVENTUAL.VALUE, value)
    store(eventual + EVENTUAL.OUTCOME, outcome)
    busy, drained = get(view + VIEW.BUSY), get(view + VIEW.DRAINED)
    if not compare_and_swap(eventual + EVENTUAL.REACTIONS, 0, drained):
        while True:
            head = exchange(eventual + EVENTUAL.REACTIONS, busy)
            first = 0
            count = 0
            while head != 0 and head != busy:  # reverse it: the stack's top was added last
                below = get(head + EVENTUAL.LINK)
                put(head + EVENTUAL.LINK, first)
                first = head
                head = below
                count += 1
                if count & (EVERY - 1) == 0:
                    held += hold(base, held)
                    error = breathe_on(base, error)
            while first != 0:
                following = get(first + EVENTUAL.LINK)
                queue_reaction(view, eventual, first)
                first = following
                count -= 1
                if count & (EVERY - 1) == 0 and count != 0:
                    error = breathe_on(base, error)
            if compare_and_swap(eventual + EVENTUAL.REACTIONS, busy, drained):
                break
    if old != 0:
        Py_DecRef(old)
    if held != 0:
        fetch_add(base + STATE.HOLDS, -1)
        wake_to_exit(base)
    if error == 0:
        return 0
    PyErr_SetRaisedException(error)
    return LEAVE


@helper
def attach(view: int, eventual: int, reaction: int) -> None:
    """Make a reaction wait for an eventual, or queue it now; takes over its reference. Any thread; O(1)."""
    store(eventual + EVENTUAL.HANDLED, get(view + VIEW.FULFILLED))
    while True:
        head = load(eventual + EVENTUAL.REACTIONS)
        if head == get(view + VIEW.DRAINED):
            queue_reaction(view, eventual, reaction)
            return
        put(reaction + EVENTUAL.LINK, head)  # the swap moves head's reference from the word to the link
        if compare_and_swap(eventual + EVENTUAL.REACTIONS, head, reaction):
            return


@helper
def resolve_with(view: int, eventual: int, value: int) -> int:
    """Fulfil with a plain value, leave others to Python. Consumes the reference of `value`. Returns 0 or LEAVE."""
    if plain(view, value):
        return settle(view, eventual, get(view + VIEW.FULFILLED), value)
    status = call_two(get(view + VIEW.FOLLOW), eventual, value)
    Py_DecRef(value)
    return status


@helper
def reject_with(view: int, eventual: int, reason: int) -> int:
    """Reject, and notify Python if there is no reaction yet. Consumes the reference of `reason`. Returns 0 or LEAVE."""
    if settle(view, eventual, get(view + VIEW.REJECTED), reason) != 0:
        return LEAVE  # it has reactions, and is handled
    if load(eventual + EVENTUAL.HANDLED) != 0:
        return 0
    return ended(PyObject_CallOneArg(get(view + VIEW.UNHANDLED), eventual), 0)


@kernel(ONE)
def fulfill(self: int, value: int) -> int:
    """FulfillPromise. Any thread; the caller must have the sole right to settle it."""
    view = view_of(self)
    if view == 0:
        return 0
    Py_IncRef(value)
    if settle(view, self, get(view + VIEW.FULFILLED), value) != 0:
        return 0
    return get(get(view + VIEW.LOOP) + STATE.NONE)


@kernel(ONE)
def resolve(self: int, value: int) -> int:
    """The body of a promise resolve function. Any thread; the caller must have the sole right to settle it."""
    view = view_of(self)
    if view == 0:
        return 0
    Py_IncRef(value)
    if resolve_with(view, self, value) != 0:
        return 0
    return get(get(view + VIEW.LOOP) + STATE.NONE)


@kernel(ONE)
def reject(self: int, reason: int) -> int:
    """RejectPromise. Any thread; the caller must have the sole right to settle it."""
    view = view_of(self)
    if view == 0:
        return 0
    Py_IncRef(reason)
    if reject_with(view, self, reason) != 0:
        return 0
    return get(get(view + VIEW.LOOP) + STATE.NONE)


@helper
def decide(self: int, arguments: int, count: int, fulfil: bool) -> int:
    """Settle the resolver's eventual, if this is the first call of either method. Any thread; one swap."""
    view_object = load(self + RESOLVER.VIEW)
    if view_object == 0:
        PyErr_BadArgument()
        return 0
    view = data(view_object)
    none = get(get(view + VIEW.LOOP) + STATE.NONE)
    if count > 1:
        ended(PyObject_CallOneArg(get(view + VIEW.MISUSED), self), 0)
        return 0
    eventual = exchange(self + RESOLVER.EVENTUAL, 0)
    if eventual == 0:
        return none
    value = get(arguments) if count == 1 else none
    Py_IncRef(value)
    status = resolve_with(view, eventual, value) if fulfil else reject_with(view, eventual, value)
    Py_DecRef(eventual)
    return none if status == 0 else 0


@kernel(MANY)
def decide_resolve(self: int, arguments: int, count: int) -> int:
    """A resolver's `resolve`, with the argument or None."""
    return decide(self, arguments, count, True)


@kernel(MANY)
def decide_reject(self: int, arguments: int, count: int) -> int:
    """A resolver's `reject`, with the argument or None."""
    return decide(self, arguments, count, False)
