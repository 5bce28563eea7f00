"""What does it cost to hand a callback to the loop?"""

from asv_bench import crossing, subprocesses, workloads

from .common import LOOPS, BesideAsyncio, OnThisThread, drain, times_e


class Submit(OnThisThread):
    """One callback at a time, on the loop's own thread."""

    params = (10, 1_000, 100_000)
    param_names = ("tasks",)

    def time_submit_and_run(self, tasks: int) -> None:
        """Decides whether a task's cost stays the same however many wait: it should grow as `tasks` does."""
        subprocesses.fill(self.driven, tasks)
        drain(self.driven)

    def track_submit(self, tasks: int) -> float:
        """Decides whether submitting costs no more than 1.8 empty built-in calls, in small bursts and large ones."""
        probe = workloads.burst("submit", self.driven, self.driven.soon, tasks)
        return times_e(probe, "submit", rounds=40 if tasks < 100_000 else 5)

    track_submit.unit = "E"  # type: ignore[attr-defined]


class SubmitMany(OnThisThread):
    """Many callbacks in one call."""

    params = (10, 1_000, 100_000)
    param_names = ("tasks",)

    def track_submit_many(self, tasks: int) -> float:
        """Decides whether a batch is cheaper than single submits: submit and run, the callback's time off."""
        probe = workloads.batch("many", self.driven, self.driven.loop.submit_many, tasks)
        return times_e(probe, "many+run", callee=True, rounds=40 if tasks < 100_000 else 5)

    track_submit_many.unit = "E"  # type: ignore[attr-defined]


class SubmitElsewhere(BesideAsyncio):
    """From a thread that is not the loop's."""

    def track_submit(self) -> float:
        """Decides whether another thread pays no more for a submit: at most 1.8 empty built-in calls."""
        return times_e(crossing.submit_elsewhere("submit", self.ours), "submit")

    track_submit.unit = "E"  # type: ignore[attr-defined]


class SubmitBoth:
    """asyncio's way beside nbloop's."""

    params = tuple(LOOPS)
    param_names = ("loop",)

    def setup(self, loop: str) -> None:
        self.driven = LOOPS[loop]()

    def teardown(self, loop: str) -> None:
        self.driven.close()

    def time_submit_and_run_10000(self, loop: str) -> None:
        """Decides how far apart the two are on a single thread, where asyncio needs no wake-up."""
        subprocesses.fill(self.driven, 10_000)
        drain(self.driven)
