"""Slow, obvious twins of the lock-free structures: what each of them is *for*, without saying how.

The state machines in this folder run a structure and its twin side by side. A twin knows nothing of words, chunks or
slots.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field

FULL, CLOSED = "full", "closed"


class Stack:
    """A list."""

    def __init__(self) -> None:
        self.items: list[int] = []

    def push(self, *items: int) -> None:
        """The first of a chain ends up on top."""
        self.items.extend(reversed(items))

    def pop(self) -> int:
        return self.items.pop() if self.items else -1


class Pool:
    """The set of numbers that are out; everything else that exists is free."""

    def __init__(self) -> None:
        self.taken: set[int] = set()

    def take(self, number: int) -> None:
        assert number not in self.taken
        self.taken.add(number)

    def give(self, number: int) -> None:
        self.taken.remove(number)


class Slots:
    """Numbers that are out, each under an id that nobody ever had before."""

    def __init__(self) -> None:
        self.taken: dict[int, int] = {}  # ids by number
        self.ids: set[int] = set()

    def take(self, number: int) -> None:
        assert number not in self.taken, "a number with two owners"
        self.taken[number] = 0

    def name(self, number: int, identifier: int) -> None:
        assert identifier not in self.ids, "an id that somebody had before"
        self.taken[number] = identifier
        self.ids.add(identifier)

    def give(self, number: int) -> None:
        del self.taken[number]


class Queue:
    """A deque that can be closed, and hold no more than `limit`."""

    def __init__(self, limit: int | None = None) -> None:
        self.items: deque[int] = deque()
        self.limit = limit
        self.closed = False

    def push(self, *items: int) -> str | None:
        """All or none; why not, if none."""
        if self.closed:
            return CLOSED
        if self.limit is not None and len(self.items) + len(items) > self.limit:
            return FULL
        self.items.extend(items)
        return None

    def take(self) -> int:
        return self.items.popleft() if self.items else 0


class Heap:
    """A sorted list of (deadline, order, slot)."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, int]] = []

    def insert(self, deadline: int, order: int, slot: int) -> None:
        insort(self.entries, (deadline, order, slot))

    def remove(self, slot: int) -> None:
        self.entries = [entry for entry in self.entries if entry[2] != slot]

    def slots(self) -> set[int]:
        return {slot for _, _, slot in self.entries}


@dataclass
class Timer:
    """A timer that has been armed: due in every turn, or never."""

    name: int
    due: bool
    period: bool
    referenced: bool = True
    left: int = -1  # an interval that cancels itself: after how many calls


@dataclass
class Timers:
    """A dict of what is live, in the order in which it will fire, and a list of what has fired."""

    live: dict[int, Timer] = field(default_factory=dict)  # by id
    fired: list[int] = field(default_factory=list)  # names

    def cancel(self, identifier: int) -> bool:
        return self.live.pop(identifier, None) is not None

    def reference(self, identifier: int, referenced: bool) -> bool:
        if identifier in self.live:
            self.live[identifier].referenced = referenced
        return identifier in self.live

    def alive(self) -> bool:
        return any(timer.referenced for timer in self.live.values())

    def turn(self) -> None:
        for identifier, timer in list(self.live.items()):
            if not timer.due:
                continue
            self.fired.append(timer.name)
            del self.live[identifier]
            timer.left -= 1
            if timer.period and timer.left != 0:
                self.live[identifier] = timer  # re-armed: after all others


@dataclass
class Eventual:
    """What settles once: a list of reactions, which become jobs when it does."""

    outcome: bool | None = None
    value: int = 0
    reactions: list[Reaction] = field(default_factory=list)


@dataclass
class Reaction:
    """Two names of handlers, None for none, and what follows."""

    handlers: tuple[int | None, int | None]
    child: Eventual


class Reactions:
    """Eventuals of one loop, their jobs, and the log of the handlers: ``(name, argument)``. A handler's name says what
    it does: an odd one raises its argument plus its name, an even one returns that.
    """

    def __init__(self) -> None:
        self.jobs: deque[tuple[Reaction, bool, int]] = deque()
        self.log: list[tuple[int, int]] = []

    def then(self, eventual: Eventual, handlers: tuple[int | None, int | None]) -> Eventual:
        reaction = Reaction(handlers, Eventual())
        if eventual.outcome is None:
            eventual.reactions.append(reaction)
        else:
            self.jobs.append((reaction, eventual.outcome, eventual.value))
        return reaction.child

    def settle(self, eventual: Eventual, outcome: bool, value: int) -> None:
        if eventual.outcome is not None:
            return
        eventual.outcome, eventual.value = outcome, value
        self.jobs.extend((reaction, outcome, value) for reaction in eventual.reactions)
        eventual.reactions.clear()

    def run(self) -> None:
        while self.jobs:
            reaction, outcome, value = self.jobs.popleft()
            handler = reaction.handlers[0 if outcome else 1]
            if handler is not None:
                self.log.append((handler, value))
                outcome, value = handler % 2 == 0, value + handler
            self.settle(reaction.child, outcome, value)


class Recorder:
    """Everything that was ever recorded, of which the last `entries` are remembered."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.all: list[tuple[int, ...]] = []

    def record(self, *words: int) -> None:
        self.all.append(words)

    def remembered(self) -> list[tuple[int, tuple[int, ...]]]:
        """(number, words), oldest first."""
        first = max(0, len(self.all) - self.entries)
        return list(enumerate(self.all))[first:]


class Records:
    """A deque that holds no more than `capacity`, and what becomes of more (`on_full`, as the channel's). It delivers
    at most `most` at a time.
    """

    def __init__(self, capacity: int, most: int, on_full: str) -> None:
        self.items: deque[int] = deque()
        self.capacity, self.most, self.on_full = capacity, most, on_full
        self.dropped = 0
        self.closed = False

    def put(self, *items: int) -> str | None:
        """All or none; why not, if none."""
        if self.closed:
            return CLOSED
        if len(self.items) + len(items) > self.capacity:
            if self.on_full == "drop_old":
                while len(self.items) + len(items) > self.capacity:
                    self.items.popleft()
                    self.dropped += 1
            else:
                self.dropped += len(items) if self.on_full == "drop_new" else 0
                return FULL
        self.items.extend(items)
        return None

    def take(self, count: int) -> list[int]:
        """The oldest, at most `most`."""
        return [self.items.popleft() for _ in range(min(count, self.most, len(self.items)))]
