"""What settles once, and what waits for it: the protocol of a promise, without its policy.

Problem: a promise in plain Python spends ten times what its microtasks cost on frames, tuples and lists. Idea: the
``__slots__`` of a Python class are machine words at fixed offsets which the cycle collector already knows, so kernels
can work on the *instance*: a method is a descriptor whose ``self`` it is. What waits needs no record: a reaction is the
`Eventual` that follows, linked through `_link` into the stack of what it waits for (reactions.py).

Settling and reacting meet in one word, `_reactions`:

* NULL, or the top of a stack that ends in NULL: pending.
* BUSY (``True``), or a stack that ends in it: settled, and the settler is queueing.
* DRAINED (``None``): settled, and everything that waited is queued; who comes now queues for itself.

Whoever adds a reaction swaps it in on top, unless the word is DRAINED. Whoever settles writes value and outcome, swaps
in BUSY, queues what it took from the bottom up, and is done when it can swap BUSY for DRAINED: a reaction that was
added meanwhile makes that fail, and it goes round once more. So each reaction is queued once, and those of one thread
in its order, with no lock and no look at a second word. Pushing and taking *all* has no ABA. Only one thread may
settle: that is what the token of a `Resolver` decides.

What is policy is Python's, and is called through the words of a `View`: what is not plain, is nobody's rejection, has
raised, or can not be queued any more because the loop is gone.

It loses against a future with one callback in memory: every eventual has the slots of a reaction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...unique import Unique
from ..base.atomics import compare_and_swap, exchange, get, load, put, store
from ..base.capi import (
    Py_DecRef,
    Py_IncRef,
    PyErr_BadArgument,
    PyErr_GetRaisedException,
    PyErr_WriteUnraisable,
    PyObject_CallOneArg,
    PyObject_Vectorcall,
    PyTuple_New,
)
from ..base.interpreter import OBJECT_TYPE, TUPLE_ITEMS, slot_offsets
from ..base.kernel import MANY, ONE, data, helper, inlined, kernel
from ..base.layout import KIND_MICROTASK, REFUSED_CLOSED, REFUSED_MEMORY, STATE, TAG_REACTION, Fields, Record
from ..base.refusal import on_loop_thread, refuse
from ..calls.invoke import LEAVE
from ..calls.remote import due_push, fetch_remote
from ..ingress.parking import wake as wake_loop
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
                *("seen", "hidden", "places", "on_fulfilled", "on_rejected"),
                *("follow", "unhandled", "raised", "lost", "made", "misused", "spawning"),
                *("function_type", "method_type", "builtin_type"),
            )
        ]
        + [("plain", np.int64, (len(PLAIN_TYPES),))]
    ),
)
V_END = VIEW.dtype.itemsize


def _slots_of(name: str, kind: Any) -> Fields:
    """The ``__slots__`` of a class as a record: ``EVENTUAL.LINK`` is where an instance has its `_link`."""
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


class PlacesWords(Unique):
    """Of values that arrive in any order: ``[how many are to come, how many places there are]``, whom to call with
    all of them, and the list.
    """

    __slots__ = ("_counts", "_done", "_values", "_view")


PLACES = _slots_of("PLACES", PlacesWords)


class ResolverWords(Unique):
    """Of a pair of resolving functions: what the first call takes ([[AlreadyResolved]]), and the view."""

    __slots__ = ("_eventual", "_view")


RESOLVER = _slots_of("RESOLVER", ResolverWords)


@helper
def type_of(target: int) -> int:
    """The address of an object's type."""
    return get(target + OBJECT_TYPE)


@helper
def view_of(eventual: int) -> int:
    """The words of its view; 0 with an exception set if it has none: `__new__` alone made it, or the collector has
    taken it apart.
    """
    view_object = load(eventual + EVENTUAL.VIEW)
    if view_object == 0:
        PyErr_BadArgument()
        return 0
    return data(view_object)


@helper
def call_two(function: int, first: int, second: int) -> int:
    """Call a Python function with two arguments, whose references stay the caller's. 0, or LEAVE with an exception
    set.
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
    """After a call for its effect: release its `argument`, unless that is 0. 0, or LEAVE if it raised."""
    if argument != 0:
        Py_DecRef(argument)
    if result == 0:
        return LEAVE
    Py_DecRef(result)
    return 0


@helper
def plain(view: int, value: int) -> bool:
    """Is it of a type whose instances are never followed? Exactly of such a type, not of a subclass."""
    kind = type_of(value)
    at = view + VIEW.PLAIN
    while at < view + V_END:
        if get(at) == kind:
            return True
        at += 8
    return False


@helper
def queue_reaction(view: int, settled: int, reaction: int) -> None:
    """Put a reaction of what is settled into the microtask ring; its reference moves there. Any thread.

    From now on its `_link` is the outcome, and its `_value` what its handler is to be given.
    """
    put(reaction + EVENTUAL.LINK, load(settled + EVENTUAL.OUTCOME))
    value = load(settled + EVENTUAL.VALUE)  # written once, and `settled` is held by the caller
    Py_IncRef(value)
    put(reaction + EVENTUAL.VALUE, value)
    base = get(view + VIEW.LOOP)
    while True:
        if on_loop_thread(base):
            if queue_length(base + STATE.REMOTE) != 0:
                fetch_remote(base)  # what returned elsewhere before this call began comes first
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
        PyErr_WriteUnraisable(reaction)  # the others must be queued all the same
    Py_DecRef(error)
    Py_DecRef(reaction)


@inlined
def settle(view: int, eventual: int, outcome: int, value: int) -> None:
    """Write the outcome and queue all reactions, in order. The reference of `value` moves in. Only by who alone may
    settle it, and holds it; any thread. O(reactions).

    Value and outcome are published by the swap of `_reactions`, which whoever reads them has seen.
    """
    old = get(eventual + EVENTUAL.VALUE)
    put(eventual + EVENTUAL.VALUE, value)
    store(eventual + EVENTUAL.OUTCOME, outcome)
    busy, drained = get(view + VIEW.BUSY), get(view + VIEW.DRAINED)
    if not compare_and_swap(eventual + EVENTUAL.REACTIONS, 0, drained):
        while True:
            head = exchange(eventual + EVENTUAL.REACTIONS, busy)
            first = 0
            while head != 0 and head != busy:  # turn it round: the stack's top came last
                below = get(head + EVENTUAL.LINK)
                put(head + EVENTUAL.LINK, first)
                first = head
                head = below
            while first != 0:
                following = get(first + EVENTUAL.LINK)
                queue_reaction(view, eventual, first)
                first = following
            if compare_and_swap(eventual + EVENTUAL.REACTIONS, busy, drained):
                break
    if old != 0:
        Py_DecRef(old)


@helper
def attach(view: int, eventual: int, reaction: int) -> None:
    """Let a reaction wait for an eventual, or queue it at once; its reference moves there. Any thread; O(1)."""
    store(eventual + EVENTUAL.HANDLED, get(view + VIEW.FULFILLED))
    while True:
        head = load(eventual + EVENTUAL.REACTIONS)
        if head == get(view + VIEW.DRAINED):
            queue_reaction(view, eventual, reaction)
            return
        put(reaction + EVENTUAL.LINK, head)  # whose reference, the word's until now, moves with the swap
        if compare_and_swap(eventual + EVENTUAL.REACTIONS, head, reaction):
            return


@helper
def resolve_with(view: int, eventual: int, value: int) -> int:
    """Fulfil with what is plain, let Python see to the rest. The reference of `value` is consumed. 0, or LEAVE."""
    if plain(view, value):
        settle(view, eventual, get(view + VIEW.FULFILLED), value)
        return 0
    status = call_two(get(view + VIEW.FOLLOW), eventual, value)
    Py_DecRef(value)
    return status


@helper
def reject_with(view: int, eventual: int, reason: int) -> int:
    """Reject, and tell Python if nobody has reacted yet. The reference of `reason` is consumed. 0, or LEAVE."""
    settle(view, eventual, get(view + VIEW.REJECTED), reason)
    if load(eventual + EVENTUAL.HANDLED) != 0:
        return 0
    return ended(PyObject_CallOneArg(get(view + VIEW.UNHANDLED), eventual), 0)


@kernel(ONE)
def fulfill(self: int, value: int) -> int:
    """FulfillPromise. The caller alone may settle it; any thread."""
    view = view_of(self)
    if view == 0:
        return 0
    Py_IncRef(value)
    settle(view, self, get(view + VIEW.FULFILLED), value)
    return get(get(view + VIEW.LOOP) + STATE.NONE)


@kernel(ONE)
def resolve(self: int, value: int) -> int:
    """The body of a promise resolve function. The caller alone may settle it; any thread."""
    view = view_of(self)
    if view == 0:
        return 0
    Py_IncRef(value)
    if resolve_with(view, self, value) != 0:
        return 0
    return get(get(view + VIEW.LOOP) + STATE.NONE)


@kernel(ONE)
def reject(self: int, reason: int) -> int:
    """RejectPromise. The caller alone may settle it; any thread."""
    view = view_of(self)
    if view == 0:
        return 0
    Py_IncRef(reason)
    if reject_with(view, self, reason) != 0:
        return 0
    return get(get(view + VIEW.LOOP) + STATE.NONE)


@helper
def decide(self: int, arguments: int, count: int, fulfil: bool) -> int:
    """Settle what the resolver resolves, if this is the first call of its two methods. Any thread; one swap."""
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
    """Of a resolver: resolve with the argument, or None."""
    return decide(self, arguments, count, True)


@kernel(MANY)
def decide_reject(self: int, arguments: int, count: int) -> int:
    """Of a resolver: reject with the argument, or None."""
    return decide(self, arguments, count, False)
