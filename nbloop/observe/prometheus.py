"""A loop's figures for Prometheus, through `prometheus_client` (``pip install nbloop[prometheus]``).

    prometheus_client.REGISTRY.register(LoopCollector(loop))

Durations become histograms with a bucket for each power of two in nanoseconds. These bounds are also bounds of the
loop's own histogram, so each count is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..errors import ForkedLoopError
from .contention import Contention, Measured, Retries, totals
from .metrics import Histogram, Metrics
from .together import by_channel

POWERS = range(10, 35)  # 1 µs to 17 s

_COUNTERS = {
    "callbacks": "Callbacks that have ended",
    "errors": "Callbacks that raised",
    "turns": "Turns of the loop",
    "wakes_sent": "System calls made to wake the loop",
    "wakes_elided": "Tasks and commands from outside that needed no wake-up of their own",
    "overloads": "Turns in which more than ingress_budget tasks waited",
}
_CONTENTION = {
    "parks": "How often the loop went to sleep",
    "stalls": "Waits of the loop for a producer between ticket and store",
    "lock_waits": "Waits for the loop's lock",
}
_WAITING = {
    "parked_time": ("parked", "Asleep"),
    "stalled_time": ("stalled", "The loop waiting for a producer between ticket and store"),
    "lock_time": ("lock", "Threads waiting for the loop's lock"),
}
_SECONDS = {"idle_time": "Sleeping, spinning before a sleep, or polling", "busy_time": "In turns, callbacks included"}


class LoopCollector(Collector):
    """Collects from loops that measure and skips those that do not, or that belong to a forked parent. Any thread.

    Nothing raises: `loops` that have ended keep their last figures. O(loops) a scrape, some 100 µs each.

    >>> import nbloop, prometheus_client
    >>> registry = prometheus_client.CollectorRegistry()
    >>> with nbloop.Loop(name="shop", metrics=True) as loop:
    ...     registry.register(LoopCollector(loop))
    ...     loop.submit(int)
    >>> registry.get_sample_value("nbloop_callbacks_total", {"loop": "shop"})
    1
    """

    def __init__(self, *loops: Measured) -> None:
        self._loops = loops

    def collect(self) -> Iterator[Metric]:
        """All families, each with one sample per loop, labelled with its name."""
        measuring = [(loop, figures) for loop in self._loops if (figures := _measured(loop)) is not None]
        taken = [(loop.name, figures) for loop, figures in measuring]
        for name, text in _COUNTERS.items():
            family = CounterMetricFamily(f"nbloop_{name}", text, labels=["loop"])
            for loop, figures in taken:
                family.add_metric([loop], getattr(figures, name))
            yield family
        for name, text in _SECONDS.items():
            family = CounterMetricFamily(f"nbloop_{name.removesuffix('_time')}_seconds", text, labels=["loop"])
            for loop, figures in taken:
                family.add_metric([loop], getattr(figures, name))
            yield family
        yield from _contention([(loop.name, totals(loop)) for loop, _ in measuring])
        for name, text in (("latency", "Run time of callbacks"), ("delay", "From submit to start of tasks")):
            histograms = HistogramMetricFamily(f"nbloop_{name}_seconds", text, labels=["loop"])
            for loop, figures in taken:
                histogram = getattr(figures, name).histogram
                histograms.add_metric([loop], buckets(histogram), sum_value=histogram.sum)
            yield histograms
        depths = GaugeMetricFamily("nbloop_queue_depth", "What waits now", labels=["loop", "queue"])
        most = GaugeMetricFamily("nbloop_queue_depth_max", "The largest depth so far", labels=["loop", "queue"])
        for loop, figures in taken:
            for queue in ("ingress", "internal", "microtask", "immediate"):
                depths.add_metric([loop, queue], getattr(figures.queue_current, queue))
                most.add_metric([loop, queue], getattr(figures.queue_max, queue))
        yield depths
        yield most
        yield from _channels([loop for loop, _ in measuring])
        running = GaugeMetricFamily(
            "nbloop_running_seconds", "How long the callback in progress has run, 0 for none", labels=["loop"]
        )
        for loop, figures in taken:
            running.add_metric([loop], figures.time - figures.running.since if figures.running else 0.0)
        yield running


def _measured(loop: Measured) -> Metrics | None:
    try:
        return loop.metrics()
    except ForkedLoopError:  # a forked child that serves its own figures from an inherited registry
        return None


def _channels(loops: Sequence[Measured]) -> Iterator[Metric]:
    """A channel and its producers are one."""
    depth = GaugeMetricFamily("nbloop_channel_depth", "Records that wait", labels=["loop", "channel"])
    records = CounterMetricFamily(
        "nbloop_channel_records", "Records that were delivered, or dropped", labels=["loop", "channel", "end"]
    )
    batches = CounterMetricFamily("nbloop_channel_batches", "Batches of records", labels=["loop", "channel"])
    delays = HistogramMetricFamily(
        "nbloop_channel_delay_seconds",
        "From put to delivery, of the oldest record of each batch",
        labels=["loop", "channel"],
    )
    for loop in loops:
        for one in by_channel(loop.channels()):
            depth.add_metric([loop.name, one.name], one.waiting)
            records.add_metric([loop.name, one.name, "delivered"], one.delivered)
            records.add_metric([loop.name, one.name, "dropped"], one.dropped)
            batches.add_metric([loop.name, one.name], one.batches)
            if one.delay is not None:
                histogram = one.delay.histogram
                delays.add_metric([loop.name, one.name], buckets(histogram), sum_value=histogram.sum)
    yield from (depth, records, batches, delays)


def _contention(loops: Sequence[tuple[str, Contention]]) -> Iterator[Metric]:
    for name, text in _CONTENTION.items():
        family = CounterMetricFamily(f"nbloop_{name}", text, labels=["loop"])
        for loop, seen in loops:
            family.add_metric([loop], getattr(seen, name))
        yield family
    for field, (name, text) in _WAITING.items():
        family = CounterMetricFamily(f"nbloop_{name}_seconds", text, labels=["loop"])
        for loop, seen in loops:
            family.add_metric([loop], getattr(seen, field))
        yield family
    retries = CounterMetricFamily(
        "nbloop_retries", "Compare-and-swaps that failed because of another thread", labels=["loop", "of"]
    )
    for loop, seen in loops:
        for one in dataclasses.fields(Retries):
            retries.add_metric([loop, one.name], getattr(seen.retries, one.name))
    yield retries


def buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """(upper bound in seconds, number of durations up to it), cumulative, as Prometheus wants them."""
    bounds = [((1 << power) - 1) / 1e9 for power in POWERS]
    found, total, rest = [], 0, histogram.buckets()
    at = 0
    for bound in bounds:
        while at < len(rest) and rest[at][0] <= bound:
            total += rest[at][1]
            at += 1
        found.append((repr(bound), float(total)))
    return [*found, ("+Inf", float(histogram.count))]
