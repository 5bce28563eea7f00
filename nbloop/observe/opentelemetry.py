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
from ..lock import ModuleLock
from ..loop import Loop
from .contention import Contention, Retries, totals
from .metrics import Metrics
from .together import by_channel

type _Loops = dict[weakref.ref[Loop], None]

_making = ModuleLock()  # never taken while a reader collects: it holds locks of the provider, which the making needs
# Of each provider, the loops, and the names of the instruments that it has.
_instrumented: weakref.WeakKeyDictionary[MeterProvider, tuple[_Loops, set[str]]] = weakref.WeakKeyDictionary()

# The global provider may be replaced: what was made through its stand-in is then made anew in the new one.
_of_global: tuple[_Loops, set[str]] = ({}, set())

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
    with _making:
        loops, names = _instrumented.setdefault(
            provider, _of_global if provider is get_meter_provider() else ({}, set())
        )
        _make_instruments(provider, loops, names)
    loops[weakref.ref(loop, functools.partial(_forget, loops))] = None


def _forget(loops: _Loops, of: weakref.ref[Loop]) -> None:
    loops.pop(of, None)


def _make_instruments(provider: MeterProvider, loops: _Loops, names: set[str]) -> None:
    """One set for all loops of a provider: it would not call the callback of a second instrument of the same name.
    Makes what is missing: an exception may have ended an earlier call.
    """
    meter = provider.get_meter("nbloop")
    counter, gauge = meter.create_observable_counter, meter.create_observable_gauge

    def make(create: Callable[..., object], name: str, observe: Callable[..., object], **unit: str) -> None:
        if name not in names:
            create(f"nbloop.{name}", [observe], **unit)
            names.add(name)

    look = functools.partial(_observe, loops, Loop.metrics)
    look_at_contention = functools.partial(_observe, loops, totals)
    look_at_channels = functools.partial(_observe, loops, Loop.channels)
    for name in _COUNTERS:
        make(counter, name, look(_one(name)))
    for name in ("idle_time", "busy_time"):
        make(counter, name, look(_one(name)), unit="s")
    for name in ("latency", "delay"):
        make(counter, f"{name}.count", look(_count(name)))
        make(counter, f"{name}.sum", look(_sum(name)), unit="s")
        make(gauge, name, look(_quantiles(name)), unit="s")
    make(gauge, "queue.depth", look(_depths))
    make(gauge, "channel.depth", look_at_channels(_channels("waiting")))
    for name in ("delivered", "dropped", "batches"):
        make(counter, f"channel.{name}", look_at_channels(_channels(name)))
    make(gauge, "channel.delay", look_at_channels(_channel_delays), unit="s")
    for name in ("parks", "stalls", "lock_waits"):
        make(counter, name, look_at_contention(_one(name)))
    for name in ("parked_time", "stalled_time", "lock_time"):
        make(counter, name, look_at_contention(_one(name)), unit="s")
    make(counter, "retries", look_at_contention(_retries))


def _observe[Figures](
    loops: _Loops, read: Callable[[Loop], Figures | None], take: Take[Figures]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        for of in list(loops):
            loop = of()
            if loop is None or loop.state is LoopState.TERMINATED:
                continue
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
