"""How much memory do queued tasks and timers take, and where does it go?"""

from asv_bench import subprocesses

from .common import LOOPS

type Answers = dict[int, dict[str, float]]
TASKS = (10_000, 1_000_000)


class Memory:
    """Resident memory of a process of its own."""

    params = TASKS
    param_names = ("tasks",)
    timeout = 120

    def setup_cache(self) -> Answers:
        """One process a size answers all three."""
        return {tasks: subprocesses.memory("nbloop", tasks) for tasks in TASKS}

    def track_each(self, answers: Answers, tasks: int) -> float:
        """Decides whether a queued task takes at most 32 bytes above its callable, few waiting or many."""
        return answers[tasks]["each"]

    def track_kept(self, answers: Answers, tasks: int) -> float:
        """Decides whether memory comes back: what an idle loop still holds for each task that was queued."""
        return answers[tasks]["kept"]

    def track_again(self, answers: Answers, tasks: int) -> float:
        """Decides whether memory is used again: what a second burst adds, for each task; nothing, if all is."""
        return answers[tasks]["again"]

    track_each.unit = track_kept.unit = track_again.unit = "bytes"  # type: ignore[attr-defined]


class Timers:
    """A process of its own arms timers, all of which fire."""

    params = TASKS
    param_names = ("timers",)
    timeout = 120

    def setup_cache(self) -> Answers:
        """One process a size answers all four."""
        return {timers: subprocesses.timers(timers) for timers in TASKS}

    def track_each(self, answers: Answers, timers: int) -> float:
        """Decides whether a timer takes less than 100 bytes above its callable and id, few waiting or many."""
        return answers[timers]["each"]

    def track_kept(self, answers: Answers, timers: int) -> float:
        """Decides whether memory comes back: what an idle loop still holds for each timer of the peak."""
        return answers[timers]["kept"]

    def track_at_peak(self, answers: Answers, timers: int) -> float:
        """Decides how much longer a collection takes while all of them wait."""
        return answers[timers]["at_peak"]

    def track_collection(self, answers: Answers, timers: int) -> float:
        """Decides whether a collection after the peak costs what it cost before: the difference."""
        return answers[timers]["collection"]

    track_each.unit = track_kept.unit = "bytes"  # type: ignore[attr-defined]
    track_at_peak.unit = track_collection.unit = "ms"  # type: ignore[attr-defined]


class Peak:
    """The largest that the benchmark's process gets, interpreter and all."""

    params = (tuple(LOOPS), (1_000, 1_000_000))
    param_names = ("loop", "tasks")

    def peakmem_queued(self, loop: str, tasks: int) -> None:
        """Decides how much smaller a machine can be for the same backlog: the growth with `tasks` is what counts."""
        driven = LOOPS[loop]()
        subprocesses.fill(driven, tasks)
        driven.close()
