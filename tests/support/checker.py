"""Whether a history is linearizable: some order of its operations respects real time, and a sequential twin could have
produced it. Wing and Gong's search (JPDC 1993), with Lowe's memory of what was tried before.

Exponential in the number of operations that overlap, so histories are short and many.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """What was called, what it answered, and when (any clock that all threads share)."""

    name: str
    argument: Hashable
    result: Hashable
    start: int
    end: int


# From a state and an operation to the next state, or None if the twin would have answered otherwise.
type Twin = Callable[[Hashable, Operation], Hashable | None]


def linearizable(history: list[Operation], twin: Twin, state: Hashable) -> bool:
    """Whether some order explains the history."""
    tried: set[tuple[frozenset[int], Hashable]] = set()

    def explain(left: frozenset[int], state: Hashable) -> bool:
        if not left:
            return True
        if (left, state) in tried:
            return False
        tried.add((left, state))
        first_end = min(history[i].end for i in left)
        for i in left:
            if history[i].start <= first_end:  # nothing that is left had ended before it began
                following = twin(state, history[i])
                if following is not None and explain(left - {i}, following):
                    return True
        return False

    return explain(frozenset(range(len(history))), state)


def queue(state: Hashable, operation: Operation) -> Hashable | None:
    """A FIFO queue that can be closed: (items, open)."""
    items, is_open = state  # type: ignore[misc]
    if operation.name == "put":
        if operation.result != is_open:
            return None
        return ((*items, operation.argument), True) if is_open else state
    if operation.name == "close":
        return items, False
    return (items[1:], is_open) if items and items[0] == operation.result else None


def timer(state: Hashable, operation: Operation) -> Hashable | None:
    """One timer that is armed: it fires, or a cancel of it is the one that is answered with True."""
    if operation.name == "fire":
        return "gone" if state == "armed" else None
    if (state == "armed") != operation.result:
        return None
    return "gone"
