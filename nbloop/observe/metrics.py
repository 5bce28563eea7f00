"""A loop's metrics: frozen, detached figures, and the histogram they come from.

Problem: quantiles of everything that ever ran, in bounded memory, mergeable, and with an error too small to see. Idea:
a log-linear histogram: exact below 128 ns, and 64 buckets to each doubling above, so a bucket's middle is within
1/128 = 0.8 % of every duration in it. Adding is one increment, merging is adding, and a quantile is a walk along the
sums. (Four P-square estimators, the usual alternative, are off by several per cent and cannot be merged.)

It loses where a histogram must: 19 KB each, and two durations in one bucket are the same duration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

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
    """Durations in seconds from 0 to 73 minutes (longer ones count as 73 minutes), at most 1 % off in any quantile.

    Not thread-safe; a snapshot's histogram is the caller's own. Memory: 19 KB. `counts`, `total_ns` and `max_ns` are
    for copies.

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
        """The number of durations. O(buckets)."""
        return int(self._counts.sum())

    @property
    def sum(self) -> float:
        """The sum of all durations, in seconds; exact."""
        return self._total / 1e9

    @property
    def max(self) -> float:
        """The longest, in seconds; exact."""
        return self._max / 1e9

    @property
    def mean(self) -> float:
        """Sum divided by count; 0 if empty."""
        count = self.count
        return self._total / count / 1e9 if count else 0.0

    def quantile(self, q: float) -> float:
        """The duration, in seconds, that a share `q` of all do not exceed (nearest rank); 0 if empty. O(buckets).

        At most 1 % from the exact value. ValueError unless 0 <= q <= 1.
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
        """Add all durations of the histogram `other` to this one. O(buckets)."""
        self._counts += other._counts
        self._total += other._total
        self._max = max(self._max, other._max)

    def reset(self) -> None:
        """Forget everything."""
        self._counts[:] = 0
        self._total = self._max = 0

    def copy(self) -> Histogram:
        """An independent histogram with the same content."""
        return Histogram(self._counts.copy(), self._total, self._max)

    def buckets(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, count) of each non-empty bucket, ascending. For exporters. O(buckets)."""
        used = np.flatnonzero(self._counts)
        ends = np.append(_LOW[1:], MOST_NS + 1)
        return [((int(ends[i]) - 1) / 1e9, int(self._counts[i])) for i in used]

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}, p50 {self.quantile(0.5):.3g} s, max {self.max:.3g} s>"


@dataclass(frozen=True)
class Quantiles:
    """A distribution of durations, in seconds. Quantiles are at most 1 % off; `max`, `mean` and `count` are exact. All
    are 0 for an empty histogram.

    >>> histogram = Histogram()
    >>> for ms in range(1, 101):
    ...     histogram.add(ms / 1000)
    >>> figures = Quantiles.of(histogram)
    >>> round(figures.p50, 2), figures.max, figures.count
    (0.05, 0.1, 100)
    """

    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float
    count: int
    histogram: Histogram
    """The whole distribution, for other quantiles, for merging several loops, and for exporters. A copy of your own."""

    @classmethod
    def of(cls, histogram: Histogram) -> Quantiles:
        """The usual quantiles of a histogram, which is kept by reference."""
        p50, p90, p95, p99 = (histogram.quantile(q) for q in (0.5, 0.9, 0.95, 0.99))
        return cls(p50, p90, p95, p99, histogram.max, histogram.mean, histogram.count, histogram)


@dataclass(frozen=True)
class Queues[N: (int, float)]:
    """One figure per kind of queue.

    >>> Queues(ingress=3, internal=0, microtask=0, immediate=1).ingress
    3
    """

    ingress: N
    """The submit queue plus the queues of all producer handles. Sampled at the start of a turn."""
    internal: N
    """`submit_internal`. Sampled at the start of a turn."""
    microtask: N
    """Next-ticks and microtasks. Sampled at the start of a checkpoint that has any."""
    immediate: N
    """Immediates (the check phase's queue). Sampled at the start of a turn."""


@dataclass(frozen=True)
class Running:
    """The callback that a loop is running.

    >>> import nbloop
    >>> with nbloop.Loop(metrics=True) as loop:
    ...     loop.call(lambda: loop.metrics().running.kind)
    'task'
    """

    kind: str
    """As in `on_error`'s context: task, microtask, next-tick, timer, ..."""
    since: float
    """When it began, on the clock of `time.monotonic`. Among callbacks so short that they are timed in groups it may be
    up to eight callbacks too early.
    """


@dataclass(frozen=True)
class Metrics:
    """A loop's figures at one instant: nothing in it changes any more, and all of it belongs to the same instant.

    Times are seconds, counts are since the loop was made.

    >>> import nbloop
    >>> with nbloop.Loop(metrics=True) as loop:
    ...     for number in range(10):
    ...         loop.submit(abs, number)
    >>> figures = loop.metrics()
    >>> figures.callbacks, figures.errors, figures.delay.count
    (10, 0, 10)
    """

    time: float
    """When it was taken, on the clock of `time.monotonic`."""
    tps: float
    """Callbacks that returned normally, per second, over the last 10 s in buckets of 100 ms (so it rises for 10 s)."""
    latency: Quantiles
    """How long callbacks ran, from the end of the previous callback or sleep to their own end. Consecutive callbacks
    under 250 ns are timed in groups of up to 8; see `nbloop.kernels.observe.meter`.
    """
    delay: Quantiles
    """From `submit` to start, for tasks of the submit queue and of producer handles, stamped at submit. When 64 or more
    wait, every eighth is stamped and counts as 8.
    """
    queue_current: Queues[int]
    """What waits now, also while the loop is idle or a callback hangs. Read from another process: what waited when the
    loop last began or ended a turn.
    """
    queue_max: Queues[int]
    """The largest sample ever, or what waits now if that is more."""
    queue_ema: Queues[float]
    """Exponential moving average of the samples, alpha 0.1, starting at the first sample."""
    turns: int
    wakes_sent: int
    """System calls made to wake the loop."""
    wakes_elided: int
    """Tasks and commands from outside that needed no wake-up of their own, because the loop was awake or another thread
    had already sent one.
    """
    idle_time: float
    """Time spent sleeping, spinning before a sleep, or polling. A sleep counts when it ends, so a sleeping loop has
    been idle for longer than this says.
    """
    busy_time: float
    """Time spent in turns, callbacks included, even the one in progress."""
    overloads: int
    """Turns in which more than `ingress_budget` tasks waited."""
    callbacks: int
    """Callbacks that have ended, normally or not."""
    errors: int
    """Callbacks that raised."""
    running: Running | None
    """The callback in progress; None if there is none."""

    @classmethod
    def merged(cls, figures: Sequence[Metrics]) -> Metrics:
        """The figures of several loops as if they were one: counts, rates, depths and times are summed, distributions
        merged, and `running` is what has run longest. `time` is that of the latest. ValueError for none.

        Each loop's figures belong to one instant; those of two loops are as far apart as the times when they were
        taken. `queue_max` is the sum of each loop's maximum, which may have been at different moments. O(loops).
        """
        if not figures:
            raise ValueError("figures must be those of one loop at least")

        def queues(name: str) -> Queues[Any]:
            depths = [getattr(one, name) for one in figures]
            return Queues(*(sum(getattr(one, queue.name) for one in depths) for queue in fields(Queues)))

        def quantiles(name: str) -> Quantiles:
            histogram = Histogram()
            for one in figures:
                histogram.merge(getattr(one, name).histogram)
            return Quantiles.of(histogram)

        found: dict[str, Any] = {name: sum(getattr(one, name) for one in figures) for name in _SUMS}
        found |= {name: queues(name) for name in ("queue_current", "queue_max", "queue_ema")}
        found |= {name: quantiles(name) for name in ("latency", "delay")}
        found["time"] = max(one.time for one in figures)
        found["running"] = min((one.running for one in figures if one.running), key=_since, default=None)
        return cls(**found)


def _since(running: Running) -> float:
    return running.since


_SUMS = ("tps", "turns", "wakes_sent", "wakes_elided", "idle_time", "busy_time", "overloads", "callbacks", "errors")
