"""Where threads get in each other's way: what profiles of blocking and of mutexes are elsewhere.

Problem: such a profile shows who waits for which lock, and nothing on a loop's hot path takes one. What contention
costs there is a system call to wake a sleeper, a compare-and-swap that another thread has spoiled and that is made
again, a loop that waits for a producer which was descheduled between its ticket and its store. Idea: each is counted
where it happens, always, by whoever it happens to: who has just slept, or lost a line to another core, does not feel
one more addition, and the path without contention executes the same instructions as without counters. Reading is some
twenty loads; the loop does not notice.

It loses on stacks: it says that threads meet at the pool of chunks, and not which of them. And a swap of a promise's
word that has to be repeated is not counted: that word is of no loop, and it happens at most once for each reaction that
is added in the instant in which its promise settles.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..loop import Loop


@dataclass(frozen=True)
class Retries:
    """Compare-and-swaps that failed because another thread came first, and were made again, by what they were of."""

    submit: int
    """The submit queue: installing a chunk, closing, and each submit if there is an `ingress_limit`; a submit without
    one is an addition, which can not fail.
    """
    remote: int
    """The queue of what other threads schedule: the same."""
    producers: int
    """The stack of producer handles that have work."""
    chunks: int
    """The pool: stacks of free chunks and slabs."""
    slots: int
    """Slots of timers, immediates and descriptors: their stack, and words that one thread cancels while another arms
    or fires them.
    """

    def __sub__(self, earlier: Retries) -> Retries:
        """Those since `earlier`, of the same loop."""
        return Retries(**{one.name: getattr(self, one.name) - getattr(earlier, one.name) for one in fields(self)})

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, one.name) for one in fields(self))


@dataclass(frozen=True)
class Contention:
    """What has happened in so many seconds. Detached: nothing in it changes any more.

    Its figures are read one after the other while the loop runs: each is exact, and two may be some ns apart.
    """

    seconds: float
    wakes_sent: int
    """System calls made to wake the loop."""
    wakes_elided: int
    """Tasks and commands that came through a queue and needed none of their own, because the loop was awake or another
    had sent it.
    """
    parks: int
    """How often the loop went to sleep, with a system call."""
    parked_time: float
    """Seconds that it slept, a sleep in progress included."""
    spins_won: int
    """Looks around before a sleep that found something, and so spared the sleep and its wake."""
    spins_lost: int
    """Those that did not."""
    stalls: int
    """Waits of the loop for a producer that had drawn its ticket and not stored yet."""
    stalled_time: float
    """Seconds of that."""
    lock_waits: int
    """Waits for the loop's lock, which registering descriptors, making producer handles and ending take."""
    lock_time: float
    """Seconds of that, of all threads together."""
    retries: Retries

    def per_second(self) -> dict[str, float]:
        """Each figure by `seconds`, of `retries` the total; of a time it is the share (of `lock_time` the threads that
        waited on average). Empty if no time has passed.
        """
        if self.seconds <= 0:
            return {}
        rates = {
            one.name: getattr(self, one.name) / self.seconds
            for one in fields(self)
            if one.name not in ("seconds", "retries")
        }
        return rates | {"retries": self.retries.total / self.seconds}

    def __sub__(self, earlier: Contention) -> Contention:
        """What has happened since `earlier`, of the same loop."""

        return Contention(**{one.name: getattr(self, one.name) - getattr(earlier, one.name) for one in fields(self)})


def totals(loop: Loop) -> Contention:
    """What has happened since the loop was made. Any thread, also while a callback hangs or after the loop's end; not
    a signal handler. Some 20 µs. ForkedLoopError in a forked child.
    """
    loop._check_fork()
    record: Any = loop._record
    lock = loop._lock
    external, remote, pool = record["external"], record["remote"], record["pool"]
    parked = int(record["parked"])
    now = time.monotonic_ns()
    if parked < 0:  # less the beginning of a sleep that has no end yet
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
            slots=int(record["timers"]["retries"]),
        ),
    )


def contention(loop: Loop, seconds: float) -> Contention:
    """What happens in the next so many seconds, for which the calling thread waits. Any thread but the loop's own, on
    which nothing would happen meanwhile. TypeError or ValueError for a time that is negative or no number.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     seen = contention(loop, seconds=0.05)  # of a loop that has nothing to do: it sleeps
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
