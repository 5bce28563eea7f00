"""Where threads get in each other's way: the counterpart of block and mutex profiles elsewhere.

Problem: a mutex profile shows which threads wait for which lock, but nothing on a loop's hot path takes a lock. There,
contention costs a system call to wake a sleeper, a compare-and-swap that fails and is retried, or a loop that waits for
a producer descheduled between taking its ticket and storing its task. Idea: the thread that suffers the event counts
it, always: after a sleep, or a cache line lost to another core, one more addition does not matter, and the uncontended
path executes the same instructions as without counters. Reading takes some twenty loads; the loop does not notice.

It loses on stacks: it says that threads collide at the pool of chunks, but not which threads. And retries on a
promise's word are not counted: the word belongs to no loop, and a retry happens at most once for each reaction that is
added at the instant its promise settles.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from ..lock import CountingLock
from .metrics import Metrics


class Measured(Protocol):
    """A `nbloop.Loop`, as those who read its figures see it."""

    name: str
    _made: int
    _record: Any
    _lock: CountingLock

    def _check_fork(self) -> None: ...
    def channels(self) -> list[Any]: ...
    def metrics(self) -> Metrics | None: ...


@dataclass(frozen=True)
class Retries:
    """Compare-and-swaps that failed because another thread came first and were retried, by data structure.

    >>> one = Retries(submit=3, remote=0, producers=1, chunks=0, slots=0)
    >>> (one - Retries(1, 0, 0, 0, 0)).total
    3
    """

    submit: int
    """The submit queue: installing a chunk, closing, and each submit if there is an `ingress_limit`. Without a limit
    a submit is an atomic addition, which cannot fail.
    """
    remote: int
    """The queue of what other threads schedule, counted the same way."""
    producers: int
    """The stack of producer handles that have work."""
    chunks: int
    """The pool: stacks of free chunks and slabs."""
    slots: int
    """Slots of timers, immediates and descriptors: their stacks, and words that one thread cancels while another arms
    or fires them.
    """

    def __sub__(self, earlier: Retries) -> Retries:
        """The retries since `earlier`, which must come from the same loop."""
        return Retries(**{one.name: getattr(self, one.name) - getattr(earlier, one.name) for one in fields(self)})

    @property
    def total(self) -> int:
        """The sum of all."""
        return sum(getattr(self, one.name) for one in fields(self))


@dataclass(frozen=True)
class Contention:
    """What happened in a number of seconds. Detached: nothing in it changes any more.

    The figures are read one after the other while the loop runs: each is exact, but two may be some ns apart.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     seen = contention(loop, seconds=0.01)
    >>> seen.stalls, seen.per_second()["stalls"]
    (0, 0.0)
    """

    seconds: float
    wakes_sent: int
    """System calls made to wake the loop."""
    wakes_elided: int
    """Tasks and commands that came through a queue and needed no wake-up of their own, because the loop was awake or
    another thread had already sent one.
    """
    parks: int
    """How often the loop went to sleep, with a system call."""
    parked_time: float
    """Seconds it slept, including a sleep in progress."""
    spins_won: int
    """Spins before a sleep that found work, and so saved the sleep and its wake-up."""
    spins_lost: int
    """Spins that found none."""
    stalls: int
    """Waits of the loop for a producer that had taken its ticket but not stored its task yet."""
    stalled_time: float
    """Seconds spent in stalls."""
    lock_waits: int
    """Waits for the loop's lock, which is taken to register descriptors, make producer handles and end the loop."""
    lock_time: float
    """Seconds spent in lock waits, summed over all threads."""
    retries: Retries

    def per_second(self) -> dict[str, float]:
        """Each figure divided by `seconds`, with the total for `retries`. A time becomes a share (`lock_time`: the
        average number of waiting threads). Empty if no time has passed.
        """
        if self.seconds <= 0:
            return {}
        rates = {
            one.name: getattr(self, one.name) / self.seconds
            for one in fields(self)
            if one.name not in ("seconds", "retries")
        }
        return rates | {"retries": self.retries.total / self.seconds}

    @classmethod
    def merged(cls, seen: Sequence[Contention]) -> Contention:
        """Several loops' figures of the same time as one: all is summed, except the time. ValueError for none."""
        if not seen:
            raise ValueError("seen must be that of one loop at least")
        retries = Retries(**{one.name: sum(getattr(of.retries, one.name) for of in seen) for one in fields(Retries)})
        sums: dict[str, Any] = {one.name: sum(getattr(of, one.name) for of in seen) for one in fields(cls)[1:-1]}
        return cls(seconds=max(of.seconds for of in seen), retries=retries, **sums)

    def __sub__(self, earlier: Contention) -> Contention:
        """What happened since `earlier`, which must come from the same loop."""

        return Contention(**{one.name: getattr(self, one.name) - getattr(earlier, one.name) for one in fields(self)})


def totals(loop: Measured) -> Contention:
    """What has happened since the loop was made. Any thread, even while a callback hangs or after the loop's end; not
    a signal handler. Takes some 20 µs. ForkedLoopError in a forked child.
    """
    loop._check_fork()
    record = loop._record
    lock = loop._lock
    external, remote, pool = record["external"], record["remote"], record["pool"]
    parked = int(record["parked"])
    now = time.monotonic_ns()
    if parked < 0:  # a sleep is in progress: its start has been subtracted, its end not yet added
        parked += now
    sent = int(record["wakes_sent"])
    arrived = int(external["head"]) - int(external["passed"]) + int(remote["head"]) + int(record["handled"])
    return Contention(
        seconds=(now - loop._made) / 1e9,
        wakes_sent=sent,
        wakes_elided=max(0, arrived - sent),
        parks=int(record["parks"]),
        parked_time=parked / 1e9,
        spins_won=int(record["spins_won"]),
        spins_lost=int(record["spins_lost"]),
        stalls=int(record["stalls"]),
        stalled_time=int(record["stalled"]) / 1e9,
        lock_waits=lock.waits,
        lock_time=lock.waited_ns / 1e9,
        retries=Retries(
            submit=int(external["retries"]),
            remote=int(remote["retries"]),
            producers=int(record["ready_retries"]),
            chunks=int(pool["free_retries"]) + int(pool["free_slabs_retries"]),
            slots=int(record["timers"]["retries"]) + int(record["timers"]["resting_retries"]),
        ),
    )


def contention(loop: Measured, seconds: float) -> Contention:
    """What happens in the next `seconds`, while the calling thread waits. Any thread except the loop's own, where
    nothing would happen meanwhile; O(1). TypeError or ValueError for a time that is negative or not a number.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     seen = contention(loop, seconds=0.05)  # this loop has nothing to do: it sleeps
    >>> seen.retries.total, seen.wakes_sent, 0.5 < seen.parked_time / seen.seconds < 1.01
    (0, 0, True)
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds must be a number, not {seconds!r}")
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise ValueError(f"seconds must be at least 0 and finite, not {seconds!r}")
    before = totals(loop)
    time.sleep(seconds)
    return totals(loop) - before
