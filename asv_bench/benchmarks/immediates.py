"""What does an immediate cost, which unlike a microtask can be cancelled?"""

from asv_bench import workloads

from .common import OnThisThread, times_e


class Immediates(OnThisThread):
    """Scheduled in a callback, run in the next turn."""

    params = (10, 1_000, 100_000)
    param_names = ("immediates",)

    def track_immediate(self, immediates: int) -> float:
        """Decides how much more than a microtask a slot and an id cost: schedule and run, callback's time off."""
        probe = workloads.burst("immediate", self.driven, self.driven.loop.schedule_immediate, immediates)
        return times_e(probe, "immediate+run", callee=True, rounds=40 if immediates < 100_000 else 5)

    track_immediate.unit = "E"  # type: ignore[attr-defined]

    def time_schedule_and_cancel(self, immediates: int) -> None:
        """Decides whether cancelling stays O(1) however many wait."""
        schedule, cancel = self.driven.loop.schedule_immediate, self.driven.loop.cancel_immediate
        for identifier in [schedule(int) for _ in range(immediates)]:
            cancel(identifier)
        self.driven.run(self.driven.stop)
