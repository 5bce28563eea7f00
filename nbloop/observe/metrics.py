"""What a loop tells of itself: frozen, detached figures, and the histogram they come from.

Problem: quantiles of everything that ever ran, in bounded memory, mergeable, and not wrong by more than one can see.
Idea: a log-linear histogram: exact below 128 ns, and 64 buckets to each doubling above, so a bucket's middle is within
1/128 = 0.8 % of every duration in it. Adding is one increment, merging is adding, and a quantile is a walk along the
sums. (Four P-square estimators, the usual alternative, are off by several per cent and can not be merged.)

It loses where a histogram must: 19 KB each, and two durations in one bucket are the same duration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..kernels.observe.histogram import BUCKETS, MOST_NS, bucket_of


def _bounds() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First duration of each bucket, and its middle, in ns."""
    at = np.arange(BUCKETS, dtype=np.int64)
    shift = np.maximum(0, (at >> 6) - 1)
    low = (at - (shift << 6)) << shift
    return low, low + ((np.int64(1) << shift) - 1 >> 1)


_LOW, _MIDDLE = _bounds()


class Histogram:
    """Durations in seconds, at most 1 % off in any quantile, from 0 to 73 minutes (longer ones count as that).

    Not for several threads at once; a snapshot's own is nobody else's. Memory: 19 KB.

    >>> h = Histogram()
    >>> for ms in range(1, 101):
    ...     h.add(ms / 1000)
    >>> h.count, round(h.quantile(0.5), 3), h.max
    (100, 0.05, 0.1)
    """

    def __init__(self, counts: npt.NDArray[np.int64] | None = None, total_ns: int = 0, max_ns: int = 0) -> None:
        self._counts = np.zeros(BUCKETS, np.int64) if counts is None else counts
        self._total = total_ns
        self._max = max_ns

    def add(self, seconds: float, weight: int = 1) -> None:
        """Count a duration, `weight` times. ValueError if it is negative or not finite. O(1)."""
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds must be a finite number, at least 0, not {seconds!r}")
        if weight < 1:
            raise ValueError(f"weight must be at least 1, not {weight!r}")
        ns = min(round(seconds * 1e9), MOST_NS)
        self._counts[bucket_of(ns)] += weight
        self._total += ns * weight
        self._max = max(self._max, ns)

    @property
    def count(self) -> int:
        """How many durations. O(buckets)."""
        return int(self._counts.sum())

    @property
    def sum(self) -> float:
        """All durations together, in seconds; exact."""
        return self._total / 1e9

    @property
    def max(self) -> float:
        """The longest, in seconds; exact."""
        return self._max / 1e9

    @property
    def mean(self) -> float:
        """Sum by count; 0 without any."""
        count = self.count
        return self._total / count / 1e9 if count else 0.0

    def quantile(self, q: float) -> float:
        """The duration, in seconds, that a part `q` of all do not exceed (nearest rank); 0 without any. O(buckets).

        At most 1 % from the exact one. ValueError unless 0 <= q <= 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be from 0 to 1, not {q!r}")
        sums = np.cumsum(self._counts)
        count = int(sums[-1])
        if count == 0:
            return 0.0
        rank = max(1, math.ceil(q * count))
        return min(int(_MIDDLE[int(np.searchsorted(sums, rank))]), self._max) / 1e9

    def merge(self, other: Histogram) -> None:
        """Add all of another's durations to this one. O(buckets)."""
        self._counts += other._counts
        self._total += other._total
        self._max = max(self._max, other._max)

    def reset(self) -> None:
        """Forget everything."""
        self._counts[:] = 0
        self._total = self._max = 0

    def copy(self) -> Histogram:
        """One of its own with the same content."""
        return Histogram(self._counts.copy(), self._total, self._max)

    def buckets(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, how many) of each bucket that has any, ascending. For exporters. O(buckets)."""
        used = np.flatnonzero(self._counts)
        ends = np.append(_LOW[1:], MOST_NS + 1)
        return [((int(ends[i]) - 1) / 1e9, int(self._counts[i])) for i in used]

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}, p50 {self.quantile(0.5):.3g} s, max {self.max:.3g} s>"


@dataclass(frozen=True)
class Quantiles:
    """A distribution of durations, all in seconds. Quantiles are at most 1 % off; `max`, `mean`, `count` as the
    histogram has them. All 0 without any.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float
    count: int
    histogram: Histogram
    """Everything, for other quantiles, for merging several loops' and for exporters. A copy: change it as you like."""

    @classmethod
    def of(cls, histogram: Histogram) -> Quantiles:
        """The usual ones of a histogram, which is kept."""
        p50, p90, p95, p99 = (histogram.quantile(q) for q in (0.5, 0.9, 0.95, 0.99))
        return cls(p50, p90, p95, p99, histogram.max, histogram.mean, histogram.count, histogram)


@dataclass(frozen=True)
class Queues[N: (int, float)]:
    """A figure of each kind of queue."""

    ingress: N
    """The submit queue and all producer handles' queues. Sampled at the start of a turn."""
    internal: N
    """`submit_internal`. Sampled at the start of a turn."""
    microtask: N
    """Next-ticks and microtasks. Sampled at the start of a checkpoint that has any."""
    immediate: N
    """The check phase's. Sampled at the start of a turn."""


@dataclass(frozen=True)
class Running:
    """The callback that a loop is in."""

    kind: str
    """As in `on_error`'s context: task, microtask, next-tick, timer, ..."""
    since: float
    """When it began, on the clock of `time.monotonic`. Up to eight callbacks early among callbacks so short that they
    are timed in groups.
    """


@dataclass(frozen=True)
class Metrics:
    """A loop's figures at one instant: nothing in it changes any more, and all of it is of the same instant.

    Times are seconds, counts are since the loop was made.
    """

    time: float
    """When it was taken, on the clock of `time.monotonic`."""
    tps: float
    """Callbacks that returned normally, per second, over the last 10 s in buckets of 100 ms (so it rises for 10 s)."""
    latency: Quantiles
    """How long callbacks ran, from the end of the one before, or of the sleep, to their own end. Callbacks under
    250 ns in a row are timed in groups of up to 8, see `nbloop.kernels.observe.meter`.
    """
    delay: Quantiles
    """From `submit` to start, of tasks of the submit queue and of producer handles, stamped at submit. With 64 or more
    waiting, each eighth is stamped and counts as 8.
    """
    queue_current: Queues[int]
    """What waits now, also while the loop is idle and while a callback hangs. Read from another process: what waited
    when the loop last came to a turn's start or end.
    """
    queue_max: Queues[int]
    """The most that was ever sampled, or waits now."""
    queue_ema: Queues[float]
    """Exponential moving average of the samples, alpha 0.1, started by the first."""
    turns: int
    wakes_sent: int
    """System calls made to wake the loop."""
    wakes_elided: int
    """Tasks and commands from outside that needed none of their own, because the loop was awake or another had sent
    it.
    """
    idle_time: float
    """Sleeping, looking around before it, or polling. Counted when it ends: a loop that sleeps just now has had more.
    """
    busy_time: float
    """Turning, callbacks included, also the one in progress."""
    overloads: int
    """Turns in which more waited than `ingress_budget`."""
    callbacks: int
    """That have ended, normally or not."""
    errors: int
    """That raised."""
    running: Running | None
    """What the loop is in just now."""
