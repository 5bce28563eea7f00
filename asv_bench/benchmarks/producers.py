"""How much gets through when several threads submit at once?"""

from contextlib import ExitStack, closing

from asv_bench import crossing, peers
from asv_bench.drive import Call, Driven, Nbloop

from .common import BesideAsyncio, times_asyncio

TASKS = 20_000


class Producers(BesideAsyncio):
    """Threads that start together and share a number of tasks, until the last task has run."""

    params = (1, 2, 4)
    param_names = ("producers",)
    timeout = 120

    def track_submit(self, producers: int) -> float:
        """Decides whether `submit` gets 30 times as much through as `call_soon_threadsafe` does."""
        return times_asyncio(
            crossing.race("nbloop", lambda: self.ours.loop.submit, producers, TASKS),
            crossing.race("asyncio", lambda: self.theirs.loop.call_soon_threadsafe, producers, TASKS),
            rounds=5,
        )

    def track_handles(self, producers: int) -> float:
        """Decides the same for `producer()` handles, which are there to scale."""
        return times_asyncio(
            crossing.race("nbloop", lambda: self.ours.loop.producer().submit, producers, TASKS),
            crossing.race("asyncio", lambda: self.theirs.loop.call_soon_threadsafe, producers, TASKS),
            rounds=5,
        )

    track_submit.unit = track_handles.unit = "times asyncio's throughput"  # type: ignore[attr-defined]


class ProducersTimed:
    """The same, loops as they are: what asv compares between commits."""

    params = (("nbloop", "nbloop handles", "uvloop"), (1, 4, 16))
    param_names = ("loop", "producers")
    timeout = 120

    def setup(self, loop: str, producers: int) -> None:
        self.resources = ExitStack()  # asv tears down even what could not be set up
        if loop == "uvloop" and not peers.installed("uvloop"):
            raise NotImplementedError  # asv: not applicable
        self.driven: Driven = self.resources.enter_context(closing(peers.Uvloop() if loop == "uvloop" else Nbloop()))
        self.driven.start()
        entrance = crossing.entrance(self.driven)
        if loop == "nbloop handles":
            assert isinstance(self.driven, Nbloop)
            entrance = self._handle
        self.race = crossing.race("race", entrance, producers, TASKS)

    def teardown(self, _loop: str, _producers: int) -> None:
        self.resources.close()

    def _handle(self) -> Call:
        assert isinstance(self.driven, Nbloop)
        submit: Call = self.driven.loop.producer().submit
        return submit

    def time_20000_tasks(self, _loop: str, _producers: int) -> None:
        """Decides whether throughput falls as producers are added; their threads' start is in it."""
        self.race()


class Scaling(BesideAsyncio):
    """The same number of tasks through more handles."""

    def track_two_handles(self) -> float:
        """Decides whether a second producer slows the whole down: at least 1 if it does not."""
        one, two = (
            crossing.race(name, lambda: self.ours.loop.producer().submit, producers, 10 * TASKS)
            for name, producers in (("asyncio", 1), ("nbloop", 2))
        )
        return times_asyncio(two, one, rounds=9)

    track_two_handles.unit = "times the throughput of one"  # type: ignore[attr-defined]
