"""A loop's figures for OpenTelemetry (``pip install nbloop[opentelemetry]``).

    instrument(loop)                 # the global meter provider; or instrument(loop, provider)

Instruments are observable: they are read when a reader collects, never by the loop. The API has no observable
histogram, so durations become quantiles, a gauge with the attribute ``quantile``, plus counters of their number and
sum.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider

from ..channel import ChannelFigures
from ..errors import ForkedLoopError
from ..lifecycle import LoopState
from ..lock import CountingLock
from ..loop import Loop
from .contention import Contention, Retries, totals
from .metrics import Metrics
from .together import by_channel

_lock = CountingLock()
_instrumented: weakref.WeakKeyDictionary[MeterProvider, weakref.WeakSet[Loop]] = weakref.WeakKeyDictionary()

type Take[Figures] = Callable[[Figures], Iterable[tuple[float, dict[str, str | float]]]]

_COUNTERS = ("callbacks", "errors", "turns", "wakes_sent", "wakes_elided", "overloads")
_QUEUES = ("ingress", "internal", "microtask", "immediate")
_QUANTILES = (0.5, 0.9, 0.95, 0.99)


def instrument(loop: Loop, provider: MeterProvider | None = None) -> None:
    """Report a loop's figures through a provider's instruments. ValueError if the loop does not measure.

    A loop that has ended is no longer reported, and no loop is kept alive. Idempotent. Any thread.

    O(1); a collection takes O(loops). `provider` is the global one by default.

    >>> import nbloop
    >>> with nbloop.Loop(metrics=True) as loop:
    ...     instrument(loop)
    """
    if loop.metrics() is None:
        raise ValueError(f"{loop.name} does not measure: make it with metrics=True")
    provider = provider or get_meter_provider()
    with _lock:
        loops = _instrumented.get(provider)
        if loops is None:
            loops = _instrumented[provider] = weakref.WeakSet()
            _make_instruments(provider, loops)
        loops.add(loop)


def _make_instruments(provider: MeterProvider, loops: weakref.WeakSet[Loop]) -> None:
    """One set for all loops of a provider: it would not call the callback of a second instrument of the same name."""
    meter = provider.get_meter("nbloop")
    look = functools.partial(_observe, loops, Loop.metrics)
    look_at_contention = functools.partial(_observe, loops, totals)
    for name in _COUNTERS:
        meter.create_observable_counter(f"nbloop.{name}", [look(_one(name))])
    for name in ("idle_time", "busy_time"):
        meter.create_observable_counter(f"nbloop.{name}", [look(_one(name))], unit="s")
    for name in ("latency", "delay"):
        meter.create_observable_counter(f"nbloop.{name}.count", [look(_count(name))])
        meter.create_observable_counter(f"nbloop.{name}.sum", [look(_sum(name))], unit="s")
        meter.create_observable_gauge(f"nbloop.{name}", [look(_quantiles(name))], unit="s")
    meter.create_observable_gauge("nbloop.queue.depth", [look(_depths)])
    look_at_channels = functools.partial(_observe, loops, Loop.channels)
    meter.create_observable_gauge("nbloop.channel.depth", [look_at_channels(_channels("waiting"))])
    for name in ("delivered", "dropped", "batches"):
        meter.create_observable_counter(f"nbloop.channel.{name}", [look_at_channels(_channels(name))])
    meter.create_observable_gauge("nbloop.channel.delay", [look_at_channels(_channel_delays)], unit="s")
    for name in ("parks", "stalls", "lock_waits"):
        meter.create_observable_counter(f"nbloop.{name}", [look_at_contention(_one(name))])
    for name in ("parked_time", "stalled_time", "lock_time"):
        meter.create_observable_counter(f"nbloop.{name}", [look_at_contention(_one(name))], unit="s")
    meter.create_observable_counter("nbloop.retries", [look_at_contention(_retries)])


def _observe[Figures](
    loops: weakref.WeakSet[Loop], read: Callable[[Loop], Figures | None], take: Take[Figures]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        with _lock:
            living = [loop for loop in loops if loop.state is not LoopState.TERMINATED]
        for loop in living:
            try:
                figures = read(loop)
            except ForkedLoopError:  # a forked child that has a reader of its own
                continue
            if figures is not None:
                for value, attributes in take(figures):
                    yield Observation(value, {"loop": loop.name, **attributes})

    return observe


def _one(name: str) -> Take[Any]:
    return lambda figures: [(getattr(figures, name), {})]


def _count(name: str) -> Take[Metrics]:
    return lambda figures: [(getattr(figures, name).count, {})]


def _sum(name: str) -> Take[Metrics]:
    return lambda figures: [(getattr(figures, name).histogram.sum, {})]


def _quantiles(name: str) -> Take[Metrics]:
    return lambda figures: [(getattr(figures, name).histogram.quantile(q), {"quantile": q}) for q in _QUANTILES]


def _depths(figures: Metrics) -> Iterable[tuple[float, dict[str, str | float]]]:
    return [(getattr(figures.queue_current, queue), {"queue": queue}) for queue in _QUEUES]


def _channels(name: str) -> Take[list[ChannelFigures]]:
    return lambda rings: [(getattr(one, name), {"channel": one.name}) for one in by_channel(rings)]


def _channel_delays(rings: list[ChannelFigures]) -> Iterable[tuple[float, dict[str, str | float]]]:
    for one in by_channel(rings):
        if one.delay is not None:
            for q in _QUANTILES:
                yield one.delay.histogram.quantile(q), {"channel": one.name, "quantile": q}


def _retries(seen: Contention) -> Iterable[tuple[float, dict[str, str | float]]]:
    return [(getattr(seen.retries, one.name), {"of": one.name}) for one in dataclasses.fields(Retries)]
