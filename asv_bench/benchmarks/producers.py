"""How much gets through when several threads submit at once?"""

from asv_bench import crossing

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
