"""What does a microtask, or a next-tick, cost from being scheduled to having run?"""

from asv_bench import workloads
from asv_bench.drive import Call
from asv_bench.measure import each, nothing

from .common import OnThisThread, times_e


class Microtasks(OnThisThread):
    """Scheduled in a callback, run at the checkpoint that follows."""

    params = (10, 1_000, 50_000)  # the loop warns at 100,000
    param_names = ("microtasks",)

    def track_microtask(self, microtasks: int) -> float:
        """Decides whether schedule and run cost no more than 2 empty built-in calls, the callback's time off."""
        return self._measure(self.driven.loop.schedule_microtask, microtasks)

    def track_next_tick(self, microtasks: int) -> float:
        """Decides the same for next-ticks, which have a ring of their own."""
        return self._measure(self.driven.loop.schedule_next_tick, microtasks)

    def time_microtasks(self, microtasks: int) -> None:
        """Decides whether a microtask's time grows with how many wait: 10 and 50,000, the loop's run in it."""
        self._run(self.driven.loop.schedule_microtask, microtasks)

    def time_next_ticks(self, microtasks: int) -> None:
        """Decides the same for next-ticks."""
        self._run(self.driven.loop.schedule_next_tick, microtasks)

    def _run(self, schedule: Call, count: int) -> None:
        def begin() -> None:
            each(schedule, count, nothing)
            self.driven.stop()

        self.driven.run(begin)

    def _measure(self, schedule: object, count: int) -> float:
        assert callable(schedule)
        probe = workloads.burst("task", self.driven, schedule, count)
        return times_e(probe, "task+run", callee=True, rounds=40 if count < 50_000 else 5)

    track_microtask.unit = track_next_tick.unit = "E"  # type: ignore[attr-defined]
