"""A loop's block of figures (`kernels/observe/meter.py`): creating it, calibrating it, and reading it into a `Metrics`.

A reader takes a coherent copy of the words with a kernel and does the arithmetic here, on its copy. It never waits for
the loop: while a callback hangs, the block does not change; a busy loop makes a copy on request.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.base import layout
from ..kernels.build import object_cache
from ..kernels.observe import meter
from ..kernels.observe.histogram import CARRY_BITS
from .metrics import Histogram, Metrics, Quantiles, Queues, Running

PATIENCE = 1.0  # seconds; a copy takes at most 0.2 ms of CPU time
_ALPHA_BITS = 1 << meter.EMA_BITS

type Words = npt.NDArray[np.int64]


def cycles_count_time() -> bool:
    """Does the processor's cycle counter run at one rate on all cores, and does the system itself trust it?"""
    if object_cache.status.mode != "compiled":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
        clocks = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource").read_text().split()
    except OSError:
        return False
    return {"constant_tsc", "nonstop_tsc"} <= set(flags) and "tsc" in clocks  # a system that distrusts it removes it


class Clock:
    """The clock that loops measure with, against `time.monotonic_ns`."""

    def __init__(self) -> None:
        self.cycles = cycles_count_time()
        self._ticks: Any = meter.metrics_clock.bind(np.zeros(1, np.int64)) if self.cycles else time.monotonic_ns
        self.multiplier = 1 << meter.MULTIPLIER_BITS
        if self.cycles:
            first = self.pair()
            time.sleep(0.01)
            last = self.pair()
            ticks = max(1, last[0] - first[0])
            self.multiplier = ((last[1] - first[1]) << meter.MULTIPLIER_BITS) // ticks
            if self.multiplier >= meter.MOST_MULTIPLIER:  # slower than 500 MHz
                self.cycles, self._ticks, self.multiplier = False, time.monotonic_ns, 1 << meter.MULTIPLIER_BITS

    def pair(self) -> tuple[int, int]:
        """(ticks, ns) of one moment: the closest of several readings of both clocks."""
        best = (0, 0, 1 << 62)
        for _ in range(10):
            before, ns, after = self._ticks(), time.monotonic_ns(), self._ticks()
            if after - before < best[2]:
                best = ((before + after) >> 1, ns, after - before)
        return best[:2]


the_clock = functools.cache(Clock)  # 10 ms, once per process


def fill(block: Words, name: str) -> None:
    """Prepare a zeroed block, before a loop uses it."""
    clock = the_clock()
    record = block.view(layout.BLOCK.dtype)[0]
    record["cycles"] = clock.cycles
    record["multiplier"] = clock.multiplier
    record["tick_base"], record["ns_base"] = clock.pair()
    record["bucket_ticks"] = (meter.BUCKET_NS << meter.MULTIPLIER_BITS) // clock.multiplier
    record["name"] = name.encode()[:127]
    live = record["live"]
    live["stride"] = 1
    live["now"] = live["mark"] = record["tick_base"]


def make(name: str) -> Words:
    """A block in this process's memory. A page is used only once one of its buckets is."""
    block = layout.table(layout.BLOCK.dtype.itemsize // 8)
    fill(block, name)
    return block


def copy(block: Words) -> Any:
    """LIVE at one instant, as a separate record. Any thread. RuntimeError if no coherent copy can be taken, which
    happens only if the writing process died in the middle of a change.
    """
    target = np.zeros(layout.LIVE.dtype.itemsize // 8, np.int64)
    read = meter.metrics_read.bind(block)
    after = meter.metrics_published.bind(block)()
    deadline = time.monotonic() + PATIENCE
    while not read(target, after):
        if time.monotonic() > deadline:
            raise RuntimeError("no coherent copy of the figures: their writer has stopped in the middle of a change")
        time.sleep(0)
    return target.view(layout.LIVE.dtype)[0]


def snapshot(block: Words, waiting: Callable[[], Sequence[int] | None]) -> Metrics:
    """The figures of a block. `waiting` says what waits in each queue now; if it cannot, `queue_current` is what the
    loop last wrote there. Any thread, any process. Some 100 µs.
    """
    record = block.view(layout.BLOCK.dtype)[0]
    multiplier = int(record["multiplier"])
    ticks, ns = _now(record)  # before the copy, so that the busy time of a callback in progress never shrinks
    live = copy(block)
    if (current := waiting()) is None:
        current = live["current"]

    def seconds(duration: int) -> float:
        return (int(duration) * multiplier >> meter.MULTIPLIER_BITS) / 1e9

    running = None
    busy = int(live["busy"])
    if live["running"]:
        busy += max(0, ticks - int(live["mark"]))
        since = ns / 1e9 - seconds(max(0, ticks - int(live["now"])))
        running = Running(layout.KIND_NAMES[int(live["running"]) - 1], since)
    return Metrics(
        time=ns / 1e9,
        tps=_rate(live, ticks // int(record["bucket_ticks"])),
        latency=Quantiles.of(histogram_of(live["latency"])),
        delay=Quantiles.of(histogram_of(live["delay"])),
        queue_current=Queues(*(int(length) for length in current)),
        queue_max=Queues(*(max(int(most), int(length)) for most, length in zip(live["max"], current, strict=True))),
        queue_ema=Queues(*(float(v) / _ALPHA_BITS for v in live["ema"])),
        turns=int(live["turns"]),
        wakes_sent=int(live["wakes_sent"]),
        wakes_elided=max(0, int(live["arrived"]) - int(live["wakes_sent"])),
        idle_time=seconds(live["idle"]),
        busy_time=seconds(busy),
        overloads=int(live["overloads"]),
        callbacks=int(live["callbacks"]) + int(live["group"]),
        errors=int(live["errors"]),
        running=running,
    )


def _now(record: Any) -> tuple[int, int]:
    """(ticks, ns) of one moment, on the block's clock."""
    if not record["cycles"]:
        ns = time.monotonic_ns()
        return ns, ns
    if the_clock().cycles:
        return the_clock().pair()
    ns = time.monotonic_ns()  # un-jitted kernels cannot read the counter; the writer's calibration has to do
    gone = ((ns - int(record["ns_base"])) << meter.MULTIPLIER_BITS) // int(record["multiplier"])
    return int(record["tick_base"]) + gone, ns


def histogram_of(words: Words) -> Histogram:
    """A copy of the histogram that lies there, which may be a moment old."""
    total, longest, carry = (int(word) for word in words[:3])
    return Histogram(words[3:].copy(), (carry << CARRY_BITS) + total, longest)


def _rate(live: Any, now: int) -> float:
    """Callbacks per second over the buckets (now - 100, now]: those that returned since the first non-empty one."""
    done = int(live["callbacks"]) - int(live["errors"])
    numbers, before = live["rate"][:, 0], live["rate"][:, 1]
    inside = before[(numbers > now - meter.WINDOW) & (numbers <= now) & (numbers > 0)]
    return (done - int(inside.min())) / (meter.WINDOW * meter.BUCKET_NS / 1e9) if len(inside) else 0.0
