"""A kernel for each verb of atomics.py that has a memory order: what test_generated_code.py reads."""

from __future__ import annotations

from nbloop.kernels.base.atomics import (
    compare_and_swap,
    exchange,
    fetch_add,
    get,
    load,
    load_sc,
    put,
    store,
    store_sc,
)
from nbloop.kernels.base.kernel import ONE, Kernel


def verb_get(self: int, _argument: int) -> int:
    return get(self)


def verb_load(self: int, _argument: int) -> int:
    return load(self)


def verb_load_sc(self: int, _argument: int) -> int:
    return load_sc(self)


def verb_put(self: int, argument: int) -> int:
    put(self, argument)
    return 0


def verb_store(self: int, argument: int) -> int:
    store(self, argument)
    return 0


def verb_store_sc(self: int, argument: int) -> int:
    store_sc(self, argument)
    return 0


def verb_fetch_add(self: int, argument: int) -> int:
    return fetch_add(self, argument)


def verb_exchange(self: int, argument: int) -> int:
    return exchange(self, argument)


def verb_compare_and_swap(self: int, argument: int) -> int:
    return 1 if compare_and_swap(self, 5, argument) else 0


VERBS = [
    Kernel(function, ONE)
    for function in (
        *(verb_get, verb_load, verb_load_sc, verb_put, verb_store, verb_store_sc),
        *(verb_fetch_add, verb_exchange, verb_compare_and_swap),
    )
]
