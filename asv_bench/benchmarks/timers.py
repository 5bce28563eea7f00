"""What do timers cost while many others wait?"""

import random

from asv_bench import crossing, workloads
from asv_bench.drive import Nbloop
from asv_bench.measure import Probe, nothing

from .common import BesideAsyncio, OnThisThread, times_asyncio, times_e


class Timers(OnThisThread):
    """On the loop's own thread, random deadlines."""

    params = (1, 1_000, 100_000, 1_000_000)
    param_names = ("pending",)
    timeout = 120

    def _measure(self, what: str, pending: int) -> float:
        rounds, warm = (40, 2) if pending < 100_000 else (3, 1) if pending < 1_000_000 else (1, 0)
        probe = workloads.Timers("timer", self.driven, pending)
        return times_e(probe, f"timer {what}", callee=what == "fire", rounds=rounds, warm=warm)

    def track_schedule(self, pending: int) -> float:
        """Decides whether scheduling costs at most 5 empty built-in calls, and at a million at most 4 times as much."""
        return self._measure("schedule", pending)

    def track_cancel(self, pending: int) -> float:
        """Decides whether a removal stays at 4 empty built-in calls, and at a million at 16."""
        return self._measure("cancel", pending)

    def track_fire(self, pending: int) -> float:
        """Decides whether firing costs at most 3 empty built-in calls above the callback, and at a million 12."""
        return self._measure("fire", pending)

    track_schedule.unit = track_cancel.unit = track_fire.unit = "E"  # type: ignore[attr-defined]


class TimersTimed:
    """The three together, through a loop that runs."""

    params = (1_000, 100_000)
    param_names = ("pending",)
    timeout = 120

    def setup(self, pending: int) -> None:
        self.driven = Nbloop()
        self.random = random.Random(1)
        for _ in range(pending):
            self.driven.later(1000 + self.random.random() * 1000, nothing)
        self.delays = [1000 + self.random.random() * 1000 for _ in range(1000)]

    def teardown(self, _pending: int) -> None:
        self.driven.close()

    def time_schedule_and_cancel_1000(self, _pending: int) -> None:
        """Decides whether a timer that never fires costs the same however many wait."""
        later, cancel = self.driven.later, self.driven.cancel
        for timer in [later(delay, nothing) for delay in self.delays]:
            cancel(timer)
        self.driven.run(self.driven.stop)

    def time_fire_1000(self, _pending: int) -> None:
        """Decides the same for one that is due at once: schedule and run."""
        later = self.driven.later

        def begin() -> None:
            for _ in range(999):
                later(0, nothing)
            later(0, self.driven.stop)

        self.driven.run(begin)


class TimersElsewhere(BesideAsyncio):
    """From another thread, the loop asleep."""

    def track_calm(self) -> float:
        """Decides whether schedule + cancel need no round trip when an earlier timer lets the loop sleep on."""
        return self._measure(crossing.timer_elsewhere("nbloop", self.ours))

    def track_waking(self) -> float:
        """Decides what is left of that when each timer is the earliest and has to wake the loop."""
        return self._measure(crossing.timer_elsewhere_waking("nbloop", self.ours))

    def _measure(self, ours: Probe) -> float:
        return times_asyncio(ours, crossing.timer_elsewhere_asyncio("asyncio", self.theirs))

    track_calm.unit = track_waking.unit = "times as fast as asyncio"  # type: ignore[attr-defined]
