"""What does it cost that a loop measures itself?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from asv_bench.measure import nothing
from nbloop import Loop

TASKS = 20_000


def _one(loop: Loop, callback: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    submit = loop.submit
    for _ in range(TASKS):
        submit(callback)
    submit(loop.stop)
    loop.run()
    return time.perf_counter_ns() - start


def _many(loop: Loop, callback: Callable[[], object]) -> int:
    batch = [callback] * TASKS
    start = time.perf_counter_ns()
    loop.submit_many(batch)
    loop.submit(loop.stop)
    loop.run()
    return time.perf_counter_ns() - start


WAYS = {"submit": _one, "submit_many": _many}


class Metrics:
    """Loops with and without, in one process, round by round."""

    params = tuple(WAYS)
    param_names = ("way",)

    def setup(self, way: str) -> None:
        self.off = Loop(ingress_budget=1 << 20)
        self.on = Loop(ingress_budget=1 << 20, metrics=True)

    def teardown(self, way: str) -> None:
        self.off.close()
        self.on.close()

    def track_on_by_off(self, way: str) -> float:
        """Decides whether measuring costs at most 15 % of submit-to-done, with Python functions that do nothing."""
        return self._on_by_off(way, nothing)

    def track_on_by_off_of_builtins(self, way: str) -> float:
        """Says how much it is where there is least to hide it: callbacks that are built-ins and do nothing."""
        return self._on_by_off(way, [].clear)

    def _on_by_off(self, way: str, callback: Callable[[], object]) -> float:
        measure = WAYS[way]
        ratios = []
        for turn in range(60):
            pair = (self.off, self.on) if turn & 1 else (self.on, self.off)
            took = {loop: measure(loop, callback) for loop in pair}
            ratios.append(took[self.on] / took[self.off])
        return statistics.median(ratios)

    track_on_by_off.unit = track_on_by_off_of_builtins.unit = "x"  # type: ignore[attr-defined]

    def time_snapshot(self, way: str) -> None:
        """Decides how often a dashboard may ask."""
        self.on.metrics()
