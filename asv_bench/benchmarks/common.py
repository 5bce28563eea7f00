"""Shared by the benchmarks: a loop made before and closed after, and the median ratio of some interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable

from asv_bench.drive import Asyncio, Driven, Nbloop
from asv_bench.measure import Probe, Sample, interleave, ratios, yardstick

ROUNDS = 40


def times_e(probe: Probe, name: str, callee: bool = False, rounds: int = ROUNDS, warm: int = 2) -> float:
    """Median of a measured time in E; with `callee`, the callback's own time taken off."""
    values = interleave(rounds, [yardstick, probe], warm)
    times = values[name]
    if callee:
        times = [t - c for t, c in zip(times, values["callee"], strict=True)]
    return Sample.of(ratios(times, values["E"])).median


def times_asyncio(ours: Probe, theirs: Probe, rounds: int = ROUNDS, warm: int = 1) -> float:
    """How many times as long asyncio takes: the probes' labels must be ``nbloop`` and ``asyncio``."""
    values = interleave(rounds, [ours, theirs], warm)
    return Sample.of(ratios(values["asyncio"], values["nbloop"])).median


def drain(driven: Driven) -> None:
    """Run what is queued. The queue is FIFO, so a stop at its end stops when everything has run."""
    driven.run(driven.stop)


class OnThisThread:
    """A loop that the benchmark's own thread runs."""

    def setup(self, *_parameters: object) -> None:
        self.driven = Nbloop()

    def teardown(self, *_parameters: object) -> None:
        self.driven.close()


class BesideAsyncio:
    """Both loops, each in its own thread."""

    def setup(self, *_parameters: object) -> None:
        self.ours, self.theirs = Nbloop(), Asyncio()
        self.ours.start()
        self.theirs.start()

    def teardown(self, *_parameters: object) -> None:
        self.ours.close()
        self.theirs.close()


type Make = Callable[[], Driven]
LOOPS: dict[str, Make] = {"nbloop": Nbloop, "asyncio": Asyncio}
