"""What does an asyncio program gain from `nbloop.aio`?"""

from asv_bench import coroutines, crossing, workloads
from asv_bench.drive import Asyncio, NbloopAio
from asv_bench.measure import Probe, Sample, interleave, ratios

from .common import ROUNDS


def _times_asyncio(ours: Probe, theirs: Probe, name: str = "") -> float:
    values = interleave(ROUNDS, [ours, theirs])
    return Sample.of(ratios(values[f"asyncio{name}"], values[f"nbloop.aio{name}"])).median


class OwnThread:
    """On the loop's own thread."""

    def setup(self) -> None:
        self.loops = NbloopAio(), Asyncio()

    def teardown(self) -> None:
        for of in self.loops:
            of.close()

    def track_call_soon(self) -> float:
        """Decides whether scheduling and running a handle, most of which is asyncio's own Python, is any faster."""
        return _times_asyncio(*(workloads.burst(of.name, of, of.soon) for of in self.loops), "+run")  # type: ignore[misc]

    def track_timers(self) -> float:
        """Decides the same for `call_later` and `cancel`, as around each operation with a timeout."""
        return _times_asyncio(*(workloads.timer_pairs(of.name, of) for of in self.loops))

    def track_switch(self) -> float:
        """Decides what of that is left where tasks take turns."""
        return _times_asyncio(*(coroutines.switches(of.name, of) for of in self.loops))

    def track_streams(self) -> float:
        """Decides whether descriptors are watched at no greater cost than by asyncio's selector: 1 is as fast."""
        return _times_asyncio(*(coroutines.Streams(of.name, of) for of in self.loops))

    track_call_soon.unit = track_timers.unit = track_switch.unit = track_streams.unit = "times as fast as asyncio"  # type: ignore[attr-defined]


class Threads:
    """From other threads."""

    params = (1, 4)
    param_names = ("producers",)

    def setup(self, _producers: int) -> None:
        self.loops = NbloopAio(), Asyncio()
        for of in self.loops:
            of.start()

    def teardown(self, _producers: int) -> None:
        for of in self.loops:
            of.close()

    def track_call_soon_threadsafe(self, producers: int) -> float:
        """Decides what the wake without a system call is worth, with one thread that calls and with several."""
        probes = (crossing.race(of.name, crossing.entrance(of), producers, 20_000) for of in self.loops)
        return _times_asyncio(*probes)

    track_call_soon_threadsafe.unit = "times as fast as asyncio"  # type: ignore[attr-defined]
