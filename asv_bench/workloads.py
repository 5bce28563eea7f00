"""What one thread does: scheduling and running, on the loop's own thread. See `crossing` for what takes two.

Each function makes a probe for `measure.interleave`: a call of it is one round, and returns ns for one operation
under names that begin with `label`. The cost of the measuring loop is subtracted, that of the callback is not: the
reader can subtract it, with `callee` of the same round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any

import numpy as np

from .drive import Driven
from .measure import Probe, clock, each, loop_cost, nothing

BURST = 1000  # fits into one turn of a loop with the default budget


def until_end(driven: Driven, begin: Callable[[Callable[..., object]], object]) -> int:
    """ns from the call of ``begin(end)``, on the loop's thread, until ``end(...)`` is called there."""
    marks: list[int] = []

    def start() -> None:
        marks.append(clock())
        begin(end)

    def end(*_outcome: object) -> None:
        marks.append(clock())
        driven.stop()

    driven.run(start)
    return marks[1] - marks[0]


def burst(label: str, driven: Driven, schedule: Callable[..., Any], count: int = BURST) -> Probe:
    """Schedule `count` callbacks from a callback, then let them run: ``label`` is scheduling alone, ``label+run``
    both.
    """

    def probe() -> Mapping[str, float]:
        costs: list[float] = []

        def begin(end: Callable[..., object]) -> None:
            costs.append(each(schedule, count, nothing) - base)
            schedule(end)

        base = loop_cost()
        return {f"{label}+run": until_end(driven, begin) / count - base, label: costs[0]}

    return probe


def chain(label: str, driven: Driven, schedule: Callable[..., Any], count: int = 20 * BURST) -> Probe:
    """ns for a turn that runs one callback, which schedules the next one."""

    def probe() -> Mapping[str, float]:
        def begin(end: Callable[..., object]) -> None:
            def step(left: int) -> None:
                schedule(step, left - 1) if left else end()

            schedule(step, count)

        return {label: until_end(driven, begin) / count}

    return probe


def batch(label: str, driven: Driven, submit_many: Callable[..., Any], count: int = BURST) -> Probe:
    """`burst` with one call for all of them."""
    items = [nothing] * count

    def probe() -> Mapping[str, float]:
        costs: list[float] = []

        def begin(end: Callable[..., object]) -> None:
            start = clock()
            submit_many(items)
            costs.append((clock() - start) / count)
            driven.soon(end)

        return {f"{label}+run": until_end(driven, begin) / count, label: costs[0]}

    return probe


def arm_and_cancel(
    label: str, driven: Driven, arm: Callable[..., Any], cancel: Callable[[Any], Any], *wanted: Any, count: int = BURST
) -> Probe:
    """``cancel(arm(*wanted))`` of two arguments, repeatedly on the loop: ns for both, without the measuring loop's
    cost.

    Cancelled handles stay in asyncio's heap until the loop's next turn, whose time is not counted: to its advantage.
    """
    first, second = wanted

    def probe() -> Mapping[str, float]:
        costs: list[float] = []

        def begin() -> None:
            base = loop_cost()
            start = clock()
            for _ in repeat(None, count):
                cancel(arm(first, second))
            costs.append((clock() - start) / count - base)
            driven.stop()

        driven.run(begin)
        return {label: costs[0]}

    return probe


def timer_pairs(label: str, driven: Driven, pending: int = 0) -> Probe:
    """Schedule a timer and cancel it, while `pending` others are far from due."""
    for delay in np.random.default_rng(1).uniform(1000, 2000, pending).tolist():
        driven.later(delay, nothing)
    return arm_and_cancel(label, driven, driven.later, driven.cancel, 1.0, nothing)


def timers_in_order(label: str, driven: Driven, count: int = 1_000_000) -> Probe:
    """Arm many timers, a thousand for each microsecond of delay, until all have fired: ns for one."""

    def begin(end: Callable[..., object]) -> None:
        later = driven.later
        for number in range(count):
            later(number // 1000 * 1e-6, nothing)
        later(count // 1000 * 1e-6, end)

    return lambda: {label: until_end(driven, begin) / count}


class Timers:
    """Schedule, cancel and fire timers while `pending` others wait, all with random deadlines. A probe.

    Every round starts from scratch: `pending` timers that are far from due and, in between, at random, some that are
    due at once. So the ones that fire were armed as early and lie as scattered as the others. The time to fire includes
    the callback. Then, with only the far ones left, further batches are scheduled, and as many timers cancelled, drawn
    from all of them.
    """

    def __init__(self, label: str, driven: Driven, pending: int, seed: int = 1) -> None:
        self.label, self.driven, self.pending = label, driven, pending
        few = pending < 100_000
        self.due = pending if few else pending // 10
        self.batch, self.batches = (100, 31) if few else (1000, 21)
        self.random = np.random.default_rng(seed)

    def __call__(self) -> Mapping[str, float]:
        later, rng = self.driven.later, self.random
        delays = np.concatenate((rng.uniform(1000, 2000, self.pending), rng.uniform(0, 1e-5, self.due)))
        rng.shuffle(delays)
        plan = delays.tolist()
        far: list[Any] = []
        marks: list[int] = []

        def arm() -> None:
            for delay in plan:
                timer = later(delay, nothing)
                if delay >= 1:
                    far.append(timer)

        def begin() -> None:
            arm()
            later(2e-5, end)
            due_at = time.monotonic() + 5e-5
            while time.monotonic() < due_at:
                pass
            marks.append(clock())

        def end() -> None:
            marks.append(clock())
            self.driven.stop()

        changes: list[tuple[float, float]] = []

        def change() -> None:
            changes.extend(self._change(far) for _ in range(self.batches))
            for timer in far:
                self.driven.cancel(timer)
            self.driven.stop()

        self.driven.run(begin)
        self.driven.run(change)
        schedules, cancels = zip(*changes, strict=True)
        return {
            f"{self.label} schedule": statistics.median(schedules),
            f"{self.label} cancel": statistics.median(cancels),
            f"{self.label} fire": (marks[1] - marks[0]) / (self.due + 1),
        }

    def _change(self, far: list[Any]) -> tuple[float, float]:
        """Schedule a batch and cancel as many: ns for one of each, without the loops around the calls."""
        later, cancel = self.driven.later, self.driven.cancel
        delays = self.random.uniform(1000, 2000, self.batch).tolist()
        places = self.random.integers(len(far), size=self.batch).tolist()
        start = clock()
        _ = [delay for delay in delays]  # noqa: C416 - the loop without the call
        middle = clock()
        made = [later(delay, nothing) for delay in delays]
        end = clock()
        schedule = (end - middle - (middle - start)) / self.batch
        victims = []
        for timer, place in zip(made, places, strict=True):
            victims.append(far[place])
            far[place] = timer
        start = clock()
        for _timer in victims:
            pass
        middle = clock()
        for timer in victims:
            cancel(timer)
        end = clock()
        return schedule, (end - middle - (middle - start)) / self.batch
