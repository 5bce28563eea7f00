"""The atomics as scheduling points: one line each, so that a scheduler which stops before every line of *this file*
stops before
every access to a word that others may see, and nowhere else. `get` is no step: what it reads has one owner.

Sequentially consistent interleavings are what this explores. That acquire and release suffice where the kernels use
them is the textbooks' argument (each module cites its own), not this suite's.
"""

from __future__ import annotations

import interleave_test as it

from nbloop.kernels.base import atomics


def load(address: int) -> int:
    return atomics.load(address)


def store(address: int, value: int) -> None:
    atomics.store(address, value)


def load_sc(address: int) -> int:
    return atomics.load_sc(address)


def store_sc(address: int, value: int) -> None:
    atomics.store_sc(address, value)


def put(address: int, value: int) -> None:
    atomics.put(address, value)


def fetch_add(address: int, value: int) -> int:
    return atomics.fetch_add(address, value)


def exchange(address: int, value: int) -> int:
    return atomics.exchange(address, value)


def compare_and_swap(address: int, expected: int, value: int) -> bool:
    return atomics.compare_and_swap(address, expected, value)


def pause() -> None:
    """A spinning thread runs only when no other can (the wait is logical): a scheduler that preferred it would never
    end.
    """
    it.Event().wait(0.001)


def monotonic_ns() -> int:
    """Time stands still: a model must not depend on the clock."""
    return 1_000_000_000


def libc_usleep(_microseconds: int) -> int:
    """So does one that steps aside."""
    pause()
    return 0
