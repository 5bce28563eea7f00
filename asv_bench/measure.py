"""How everything here is measured: interleaved rounds in one process, medians with quartiles, ratios within a round.

A machine that does other things is faster in one second than in the next. So things that are compared are measured in
turn, round by round, and a ratio is the median of the rounds' ratios, not the ratio of two medians. The yardstick for
nanoseconds is `E`, the cost of calling an empty built-in with one argument (``callable(f)``): no call from Python code
can cost less, and it scales with machine and build.

Conventions: times are ns for one operation; the cost of the measuring loop is measured in the same round and
subtracted; cyclic garbage collection is off meanwhile, as in `timeit`, which favours asyncio (it allocates a tracked
object for each callback, nbloop none).
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

clock = time.perf_counter_ns

type Probe = Callable[[], Mapping[str, float]]
type Rounds = dict[str, list[float]]


@dataclass(frozen=True)
class Sample:
    """The median of a number of measurements, and the two values between which half of them lie."""

    median: float
    low: float
    high: float
    rounds: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Median and quartiles of one or more values.

        >>> Sample.of([5, 1, 4, 2, 3])
        Sample(median=3, low=2.0, high=4.0, rounds=5)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high, len(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios round by round, except rounds whose divisor is not positive (measured as less than the empty loop)."""
    return [a / b for a, b in zip(above, below, strict=True) if b > 0]


def nothing() -> None:
    """The callback of every measurement that does not say otherwise: a Python function with an empty body."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No cyclic garbage collection meanwhile."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def interleave(rounds: int, probes: Sequence[Probe], warm: int = 2) -> Rounds:
    """Call every probe once in each round; each returns named values. The first `warm` rounds are thrown away."""
    values: Rounds = {}
    with quiet():
        for number in range(-warm, rounds):
            for probe in probes:
                for name, value in probe().items():
                    if number >= 0:
                        values.setdefault(name, []).append(value)
    return values


def loop_cost(count: int = 2000) -> float:
    """ns that one iteration of an empty `for` costs."""
    start = clock()
    for _ in repeat(None, count):
        pass
    return (clock() - start) / count


def each(function: Callable[..., Any], count: int, *args: Any) -> float:
    """ns that one ``function(*args)`` costs, with no argument or one, including the loop's own cost."""
    if args:
        (argument,) = args
        start = clock()
        for _ in repeat(None, count):
            function(argument)
        return (clock() - start) / count
    start = clock()
    for _ in repeat(None, count):
        function()
    return (clock() - start) / count


def yardstick() -> Mapping[str, float]:
    """`loop`: an iteration of an empty `for`. `E`: an empty built-in call with one argument. `callee`: a call of
    `nothing`.
    """
    base = loop_cost()
    return {"loop": base, "E": each(callable, 2000, nothing) - base, "callee": each(nothing, 2000) - base}


def gil_enabled() -> bool:
    """Whether this interpreter currently runs one thread at a time."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())
