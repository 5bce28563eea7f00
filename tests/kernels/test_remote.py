"""remote_words.py: a word of the remote queue says what it is for, and keeps each bit of an address that may vary."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import get, get_half, put, put_half
from nbloop.kernels.base.capi import Py_DecRef, Py_IncRef
from nbloop.kernels.base.interpreter import TUPLE_ITEMS
from nbloop.kernels.base.layout import (
    KIND_ARM,
    KIND_CANCEL,
    KIND_CHECKPOINT_END,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_NEXT_TICK,
    SLOT_LIMIT,
    TAG_ARGUMENTS,
    TAG_REACTION,
)
from nbloop.kernels.calls.remote import fetch_remote
from nbloop.kernels.ingress.remote_words import remote_kind, remote_reference, remote_slot, remote_value, remote_word
from nbloop.kernels.ingress.ticket_queue import queue_push, queue_take
from nbloop.kernels.memory.ring import ring_length, ring_pop
from nbloop.kernels.methods import lifetime
from tests.support import rig

RINGS = {
    KIND_MICROTASK: layout.STATE.MICROTASKS,
    KIND_NEXT_TICK: layout.STATE.NEXT_TICKS,
    KIND_INTERNAL: layout.STATE.INTERNAL,
    KIND_CLOSE: layout.STATE.CLOSING,
    KIND_CHECKPOINT_END: layout.STATE.CHECKPOINT_ENDS,
}
# A word is signed: an address with its highest bit set is a negative number.
addresses = st.integers(-(1 << 60), (1 << 60) - 1).filter(bool).map(lambda eighth: eighth << 3)


@given(address=addresses, kind=st.sampled_from([*RINGS]))
@example(address=8, kind=KIND_NEXT_TICK)
@example(address=1 << 62, kind=KIND_MICROTASK)
@example(address=-8, kind=KIND_CHECKPOINT_END)
def test_any_address(address: int, kind: int) -> None:
    """What comes out is what went in, for a tuple with arguments at any multiple of 8."""
    word = remote_word(address | TAG_ARGUMENTS, kind)
    assert remote_kind(word) == kind
    assert remote_value(word) == address | TAG_ARGUMENTS
    assert remote_reference(word) == address


@given(address=addresses, tag=st.sampled_from([0, TAG_REACTION]))
@example(address=1 << 62, tag=0)
def test_a_microtask_is_its_rings_word(address: int, tag: int) -> None:
    """Plain or a reaction, it needs no conversion on either side."""
    word = remote_word(address | tag, KIND_MICROTASK)
    assert word == remote_value(word) == address | tag
    assert remote_kind(word) == KIND_MICROTASK
    assert remote_reference(word) == address


@given(slot=st.integers(0, SLOT_LIMIT - 1), kind=st.sampled_from([KIND_ARM, KIND_CANCEL, KIND_IMMEDIATE]))
def test_slots(slot: int, kind: int) -> None:
    """A command on a slot owns nothing, and is no empty cell."""
    word = remote_slot(slot, kind)
    assert word > 0
    assert (remote_kind(word), remote_value(word), remote_reference(word)) == (kind, slot, 0)


@pytest.mark.parametrize("kind", [kind for kind in RINGS if kind != KIND_MICROTASK])
def test_alone_in_a_tuple(kind: int) -> None:
    """A callable without arguments moves into a tuple of one; the reference is neither lost nor doubled."""
    what = object()
    before = sys.getrefcount(what)
    Py_IncRef(id(what))
    word = remote_word(id(what), kind)
    assert remote_kind(word) == kind
    packed = remote_reference(word)
    assert remote_value(word) == packed | TAG_ARGUMENTS
    assert ctypes.cast(packed, ctypes.py_object).value == (what,)
    assert get(packed + TUPLE_ITEMS) == id(what)
    assert sys.getrefcount(what) == before + 1
    Py_DecRef(packed)
    assert sys.getrefcount(what) == before


def test_no_memory_for_the_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callable is released, as by every call that fails."""
    monkeypatch.setitem(remote_word.__globals__, "PyTuple_New", lambda _count: 0)
    what = object()
    before = sys.getrefcount(what)
    Py_IncRef(id(what))
    assert remote_word(id(what), KIND_NEXT_TICK) == 0
    assert sys.getrefcount(what) == before


@pytest.mark.parametrize("address", [8, 1 << 47, 1 << 56, 1 << 62, -8, 0x0123456789ABCDE8])
def test_through_the_queue(address: int) -> None:
    """Pushed on one thread, moved by the loop's: each ring holds the word that its own thread would have put."""
    memory = rig.Memory()
    words = [(address | TAG_ARGUMENTS, kind) for kind in RINGS] + [
        (address, KIND_MICROTASK),
        (address | TAG_REACTION, KIND_MICROTASK),
    ]
    for word, kind in words:
        assert queue_push(memory.remote, remote_word(word, kind)) == 0
    fetch_remote(memory.base)
    for kind, at in RINGS.items():
        ring = memory.base + at
        assert [ring_pop(ring) for _ in range(ring_length(ring))] == [word for word, of in words if of == kind]


def test_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end releases what each word owns, once, and nothing for a command on a slot."""
    released: list[int] = []
    monkeypatch.setitem(lifetime.queue_drop.__globals__, "Py_DecRef", released.append)
    memory = rig.Memory()
    addresses = [at << 3 for at in range(1, 1 + len(RINGS))]
    for address, kind in zip(addresses, RINGS, strict=True):
        assert queue_push(memory.remote, remote_word(address | TAG_ARGUMENTS, kind)) == 0
        assert queue_push(memory.remote, remote_slot(address, KIND_ARM)) == 0
    assert lifetime.queue_drop(memory.base, memory.remote, True, False, 0) == 0
    assert released == addresses
    assert queue_take(memory.remote) == 0


def test_half_of_a_word() -> None:
    """errno is 4 bytes at a multiple of 4: what lies beside it belongs to others."""
    words: Any = (ctypes.c_uint32 * 4)(1, 2, 3, 4)
    at = ctypes.addressof(words)
    put(at + 8, 5 | 6 << 32)
    for number in (1, 2):
        put_half(at + 4 * number, get_half(at + 4 * number) + 10)
    assert list(words) == [1, 12, 15, 6]
