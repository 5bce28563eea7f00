"""Words of shared memory: the only way a kernel reads or writes anything.

Problem: kernels share 64-bit words with other threads, and LLVM assumes that nobody else writes a word that is read
plainly (it hoists the read out of a spin loop). Idea: an address is an integer, and *every* access uses one of the
verbs below, so that the verb, not the reader's care, says who else may touch the word:

* ``get`` / ``put``: the word belongs to the thread that runs this code. Plain machine loads and stores. ``get_half`` /
  ``put_half``: 32-bit words of the operating system.
* ``load`` / ``store``: acquire / release. ``load_sc`` / ``store_sc``: in the one total order of sequentially consistent
  operations, for protocols that store one word and then read another (Dekker), where acquire and release are too weak.
* ``fetch_add``, ``exchange``, ``compare_and_swap``: read-modify-write, sequentially consistent.

* ``write_8`` to ``write_64``: that many bits of a field of a record, which may lie at any address. Plain stores.

This file holds the *twins*: the same verbs in plain Python, over the same memory, so that every kernel also runs
un-jitted (for debuggers, coverage, deterministic interleaving). ``compiler.py`` lowers each name to one instruction.
Six more verbs touch no memory: ``first_bit`` and ``last_bit`` of a word of flags, ``before`` for two counters that may
have wrapped, ``prefetch``, a hint, and ``double_bits`` and ``single_bits``, which convert numbers.

The twins lose where it does not matter: about 1 µs each, and read-modify-write is atomic only among twins (one lock).
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time

__all__ = [
    "before",
    "compare_and_swap",
    "double_bits",
    "exchange",
    "fetch_add",
    "first_bit",
    "get",
    "get_half",
    "last_bit",
    "load",
    "load_sc",
    "monotonic_ns",
    "pause",
    "prefetch",
    "put",
    "put_half",
    "single_bits",
    "store",
    "store_sc",
    "ticks",
    "write_8",
    "write_16",
    "write_32",
    "write_64",
]

_word = ctypes.c_int64.from_address
_one_at_a_time = threading.RLock()  # re-entrant: a signal handler may run a twin inside a twin


def _after_fork_in_child() -> None:
    """Another thread, which the child does not have, may hold the lock."""
    if not _one_at_a_time._recursion_count():  # type: ignore[attr-defined]
        _one_at_a_time._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def get(address: int) -> int:
    """Read the word at `address`, which only the calling thread writes. Plain load."""
    return _word(address).value


def get_half(address: int) -> int:
    """Read the unsigned 32-bit word at `address`, a multiple of 4: a system structure's field, or errno. Plain load."""
    return ctypes.c_uint32.from_address(address).value


def put(address: int, value: int) -> None:
    """Write a word that nobody else reads or writes without synchronising first. Plain store."""
    _word(address).value = value


def put_half(address: int, value: int) -> None:
    """Write the low 32 bits of `value` to `address`, a multiple of 4: errno. Plain store."""
    ctypes.c_uint32.from_address(address).value = value


def write_8(address: int, value: int) -> None:
    """Write the low 8 bits of `value` to a field of a record. Plain store."""
    ctypes.c_uint8.from_address(address).value = value


def write_16(address: int, value: int) -> None:
    """Write the low 16 bits of `value` to a field of a record, aligned or not. Plain store."""
    ctypes.c_uint16.from_address(address).value = value


def write_32(address: int, value: int) -> None:
    """Write the low 32 bits of `value` to a field of a record, aligned or not. Plain store."""
    ctypes.c_uint32.from_address(address).value = value


def write_64(address: int, value: int) -> None:
    """Write `value` to a field of a record, aligned or not. Plain store."""
    ctypes.c_int64.from_address(address).value = value


def double_bits(number: int) -> int:
    """The word of the double that is nearest to an integer.

    >>> hex(double_bits(1))
    '0x3ff0000000000000'
    """
    return int(struct.unpack("=q", struct.pack("=d", number))[0])


def single_bits(word: int) -> int:
    """The 32 bits of the single that is nearest to the double of this word; infinity if none is.

    >>> hex(single_bits(double_bits(1)))
    '0x3f800000'
    """
    return ctypes.c_uint32.from_buffer(ctypes.c_float(struct.unpack("=d", struct.pack("=q", word))[0])).value


def load(address: int) -> int:
    """Acquire load: everything that the writer did before the matching `store` is visible after this."""
    return _word(address).value


def store(address: int, value: int) -> None:
    """Release store: everything that this thread did before is visible to a thread that `load`s the value."""
    _word(address).value = value


def load_sc(address: int) -> int:
    """A load in the single total order of all sequentially consistent operations."""
    return _word(address).value


def store_sc(address: int, value: int) -> None:
    """A store in the same total order: no later `load_sc` of this thread overtakes it (x86: xchg)."""
    _word(address).value = value


def fetch_add(address: int, value: int) -> int:
    """Add, wrapping at 64 bits; return the old value."""
    with _one_at_a_time:
        word = _word(address)
        old = word.value
        word.value = old + value
    return old


def exchange(address: int, value: int) -> int:
    """Write `value`; return the old value."""
    with _one_at_a_time:
        word = _word(address)
        old = word.value
        word.value = value
    return old


def compare_and_swap(address: int, expected: int, value: int) -> bool:
    """Write `value` if the word is still `expected`; return whether it was. Never fails spuriously."""
    with _one_at_a_time:
        word = _word(address)
        if word.value != expected:
            return False
        word.value = value
    return True


def first_bit(word: int) -> int:
    """The index of the lowest set bit; the word must not be 0.

    >>> first_bit(0b101000), first_bit(-(1 << 63))
    (3, 63)
    """
    return (word & -word).bit_length() - 1


def last_bit(word: int) -> int:
    """The index of the highest set bit of a positive word.

    >>> last_bit(0b101000)
    5
    """
    return word.bit_length() - 1


def before(one: int, other: int) -> bool:
    """Whether `one` is before `other`, for two 64-bit counters that may wrap: the sign of their difference. They must
    be less than 2**63 apart. The compiler would treat a comparison, or the sign of a plain difference, as one of
    numbers that never wrap.

    >>> before(1, 2), before((1 << 63) - 1, -(1 << 63)), before(2, 2)
    (True, True, False)
    """
    return (one - other) >> 63 & 1 != 0


def prefetch(address: int) -> None:
    """Start fetching the cache line of `address` for writing; the caller will need it some tens of ns later. Any
    address is allowed; no memory effect.
    """


def pause() -> None:
    """Tell the core that this is a spin loop (x86 ``pause``, Arm ``isb``-class hint); no memory effect."""
    time.sleep(0)


def monotonic_ns() -> int:
    """Nanoseconds of `time.monotonic`'s clock (C-API ``PyTime_MonotonicRaw``): attached or not, never fails."""
    return time.monotonic_ns()


def leading_zeros(value: int) -> int:
    """The number of bits above the highest set one, of 64; the value must not be 0."""
    return 64 - value.bit_length()


def ticks() -> int:
    """The processor's cycle counter on x86-64, which costs a fifth of a clock call; elsewhere, and in plain Python,
    `monotonic_ns`. Callers must find out whether it counts at the same rate on all cores (`observe/block.py` does).
    """
    return time.monotonic_ns()
