"""The words of the remote queue: one queue carries callbacks for the loop's rings and commands on slots, from other
threads.

Problem: a word must say which ring it is for, and C leaves only three bits for that: an object is aligned to 8 bytes,
and no high bit of an address is guaranteed to be free (Arm's top-byte-ignore, x86's LAM and 57-bit addresses all use
some). One of the three already marks arguments. Idea: three bits make eight codes. Microtasks and reactions, which are
frequent, travel as the words that their ring holds. Callables for other rings travel in a tuple, alone if they have no
arguments; this implies the mark, so the code can name the ring. Commands on slots need no address: they share the last
code, and the bits above it hold the command and the slot's number.

::

    0  a microtask             3  a next-tick            6  the end of a checkpoint
    1  one with arguments      4  an internal task       7  KIND_ARM, KIND_CANCEL or KIND_IMMEDIATE, with a slot
    2  a reaction              5  a close callback

It loses where another thread schedules a next-tick without arguments: a tuple of one costs it 30 ns.
"""

from __future__ import annotations

from ..base.atomics import put
from ..base.capi import Py_DecRef, PyTuple_New
from ..base.interpreter import TUPLE_ITEMS
from ..base.kernel import apart, helper
from ..base.layout import KIND_CHECKPOINT_END, KIND_MICROTASK, POINTER_MASK, TAG_ARGUMENTS, TAG_REACTION, TAGS

CODE_CHECKPOINT_END, CODE_SLOT = 6, 7  # between TAG_REACTION and these, a code is a KIND_x + 1
CODE_BITS, SLOT_SHIFT = 3, 6


@apart
def remote_word(word: int, kind: int) -> int:
    """The remote queue's word for an owned word of the ring of `kind`; it takes over the reference. 0 with an exception
    set, and the reference released, if there is no memory for a tuple.
    """
    if kind == KIND_MICROTASK:
        return word
    packed = word & POINTER_MASK
    if word & TAG_ARGUMENTS == 0:
        packed = PyTuple_New(1)
        if packed == 0:
            Py_DecRef(word)
            return 0
        put(packed + TUPLE_ITEMS, word)
    return packed | (CODE_CHECKPOINT_END if kind == KIND_CHECKPOINT_END else kind + 1)


@helper
def remote_slot(slot: int, kind: int) -> int:
    """The remote queue's word for a command on a slot: KIND_ARM, KIND_CANCEL or KIND_IMMEDIATE."""
    return slot << SLOT_SHIFT | kind << CODE_BITS | CODE_SLOT


@helper
def remote_kind(word: int) -> int:
    """The KIND_x of a word of the remote queue."""
    code = word & TAGS
    if code == CODE_SLOT:
        return (word >> CODE_BITS) & ((1 << (SLOT_SHIFT - CODE_BITS)) - 1)
    if code == CODE_CHECKPOINT_END:
        return KIND_CHECKPOINT_END
    return KIND_MICROTASK if code <= TAG_REACTION else code - 1


@helper
def remote_value(word: int) -> int:
    """The word for the ring, which owns the same reference; for a command on a slot, the slot's number."""
    code = word & TAGS
    if code == CODE_SLOT:
        return word >> SLOT_SHIFT
    return word if code <= TAG_REACTION else word & POINTER_MASK | TAG_ARGUMENTS


@helper
def remote_reference(word: int) -> int:
    """The object that a word of the remote queue owns; 0 for a command on a slot."""
    return 0 if word & TAGS == CODE_SLOT else word & POINTER_MASK
