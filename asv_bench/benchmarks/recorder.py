"""What does it cost that a loop remembers what it did last?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from nbloop import Loop

TASKS = 20_000
ROUNDS = 60


def _round(loop: Loop, callback: Callable[[], object]) -> tuple[int, int]:
    """ns for submitting, and for running, `TASKS` tasks."""
    submit = loop.submit
    start = time.perf_counter_ns()
    for _ in range(TASKS):
        submit(callback)
    middle = time.perf_counter_ns()
    submit(loop.stop)
    loop.run()
    return middle - start, time.perf_counter_ns() - middle


class Recorder:
    """Loops with and without, in one process, round by round."""

    def setup(self) -> None:
        self.off = Loop(ingress_budget=1 << 20)
        self.on = Loop(ingress_budget=1 << 20, recorder=65536)
        self.pairs: list[tuple[tuple[int, int], tuple[int, int]]] = []
        callback = [].clear
        for turn in range(ROUNDS):
            both = (self.off, self.on) if turn & 1 else (self.on, self.off)
            took = {loop: _round(loop, callback) for loop in both}
            self.pairs.append((took[self.off], took[self.on]))

    def teardown(self) -> None:
        self.off.close()
        self.on.close()

    def track_submit_event(self) -> float:
        """Decides whether producers can afford it: 30 ns an event at most."""
        return statistics.median(on[0] - off[0] for off, on in self.pairs) / TASKS

    def track_run_event(self) -> float:
        """Decides whether the loop can: at most 30 ns per event, including the reading of the clock and the name."""
        return statistics.median(on[1] - off[1] for off, on in self.pairs) / TASKS

    def track_on_by_off(self) -> float:
        """How much longer an empty task takes from submit to done: two events in 60 ns."""
        return statistics.median(sum(on) / sum(off) for off, on in self.pairs)

    def time_trace(self) -> None:
        """Decides how long a dump of 65,536 events keeps a core busy."""
        assert self.on.recorder is not None
        self.on.recorder.trace()

    track_submit_event.unit = track_run_event.unit = "ns"  # type: ignore[attr-defined]
    track_on_by_off.unit = "x"  # type: ignore[attr-defined]
