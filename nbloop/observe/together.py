"""Several loops seen as one: the loops of a `nbloop.LoopGroup`, or of `nbloop.serve`.

Other modules define what is seen of one loop; this one combines several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..kernels.base import layout
from .metrics import Histogram, Metrics, Quantiles
from .recorder import Recorder
from .trace import trace as trace_of

_COUNTS = ("capacity", "waiting", "delivered", "batches", "dropped")


class Core(Protocol):
    """A `nbloop.Loop`, as groups of them see it."""

    @property
    def recorder(self) -> Recorder | None: ...
    def metrics(self) -> Metrics | None: ...


def mark(name: str, loops: Iterable[Any]) -> None:
    """Write the name of their group into the figures of loops that measure, for readers in other processes."""
    for loop in loops:
        if loop._block is not None:
            loop._block.view(layout.BLOCK.dtype)[0]["group"] = name.encode()[:127]


def metrics(loops: Iterable[Core]) -> Metrics | None:
    """The figures of all as one (`Metrics.merged`); None if none of them measures."""
    figures = [one for loop in loops if (one := loop.metrics()) is not None]
    return Metrics.merged(figures) if figures else None


def by_channel(rings: Iterable[Any]) -> list[Any]:
    """One `nbloop.ChannelFigures` for each name: a channel and its producers. All is summed, delays are merged."""
    channels: dict[str, Any] = {}
    for ring in rings:
        one = channels.get(ring.name)
        channels[ring.name] = ring if one is None else _both(one, ring)
    return list(channels.values())


def _both(one: Any, other: Any) -> Any:
    sums = {name: getattr(one, name) + getattr(other, name) for name in _COUNTS}
    histograms = [of.delay.histogram for of in (one, other) if of.delay is not None]
    delay = None
    if histograms:
        merged = Histogram()
        for histogram in histograms:
            merged.merge(histogram)
        delay = Quantiles.of(merged)
    return replace(one, delay=delay, **sums)


def trace(name: str, loops: Iterable[Core], since: float) -> dict[str, Any] | None:
    """What the recorders of all remember, as one trace with a track for each loop; None if there are none."""
    recorders: Sequence[Recorder] = [loop.recorder for loop in loops if loop.recorder is not None]
    return trace_of(name, [recorder.recorded(since) for recorder in recorders]) if recorders else None
