"""How long does it take to the loop and back?"""

from asv_bench import crossing
from asv_bench.crossing import hop, hop_locks, hops_in_a_row, on_two_cores
from asv_bench.drive import Nbloop

from .common import BesideAsyncio, times_asyncio


class Hop(BesideAsyncio):
    """A callback that releases a lock which the submitter waits for."""

    def track_asleep(self) -> float:
        """Decides whether waking a sleeping loop is twice as fast as asyncio's way through a socket."""
        return times_asyncio(hop("nbloop", self.ours), hop("asyncio", self.theirs))

    def track_spinning(self) -> float:
        """Decides whether hops in a row are 20 times as fast as asyncio's, because the loop spins before it sleeps."""
        return times_asyncio(
            on_two_cores(self.ours, hops_in_a_row("nbloop", self.ours)),
            on_two_cores(self.theirs, hops_in_a_row("asyncio", self.theirs)),
        )

    def track_in_a_row(self) -> float:
        """Decides whether spinning does harm where the system puts both threads on one core: below 1, it does."""
        return times_asyncio(hops_in_a_row("nbloop", self.ours), hops_in_a_row("asyncio", self.theirs))

    track_asleep.unit = "times as fast as asyncio"  # type: ignore[attr-defined]
    track_spinning.unit = track_in_a_row.unit = track_asleep.unit  # type: ignore[attr-defined]


class Percentiles:
    """The hops that are slower than the others, one by one."""

    params = ((50, 99), ("asleep", "awake"))
    param_names = ("percentile", "loop")

    def setup(self, *_parameters: object) -> None:
        self.driven = Nbloop()
        self.driven.start()

    def teardown(self, *_parameters: object) -> None:
        self.driven.close()

    def track_submit_to_run(self, percentile: int, loop: str) -> float:
        """Decides how long a single submit may take until it runs: the 99th percentile near the 50th, if nothing in
        the loop makes some of them wait.
        """
        return crossing.delays(self.driven, 500, asleep=loop == "asleep")[percentile]

    track_submit_to_run.unit = "ns"  # type: ignore[attr-defined]


class Locks(BesideAsyncio):
    """What sleeping costs without any loop."""

    def track_two_locks(self) -> float:
        """Decides how much of a hop is the system's: 1 if the loop adds nothing to two threads with two locks."""
        return 1 / times_asyncio(hop("nbloop", self.ours), hop_locks("asyncio"))

    track_two_locks.unit = "times as long as without a loop"  # type: ignore[attr-defined]
