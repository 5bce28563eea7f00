"""Where the time goes: the stacks of all threads, sampled by a separate thread.

Problem: tracing each call (cProfile, viztracer) costs several times what a callback of a loop does, and profilers that
read from outside do not know a free-threaded CPython 3.13. Idea: sample all stacks about a hundred times a second
(`stacks.py`), and weigh each by the time since the previous sample: wall time, and the thread's own CPU time, which
separates waiting from working. Cost: a sample of 7 threads takes 0.1 ms, so 1 % at 100 Hz. What a thread has allocated
since the previous sample is another weight, which a compiled allocator counts (`allocations.py`).

It loses on what is both rare and shorter than the period: a sampler sees proportions, not single calls. Time inside
kernels counts for the Python function that called them: `Loop.run`, or one that it called.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal, Self

from ..lock import LOOK, Latch
from ..threads import begin, join
from ..unique import Unique
from . import pprof, stacks
from .allocations import Allocated, allocated, counting
from .stacks import Stack


@dataclass
class Run:
    """Consecutive samples of a thread that found the same stack."""

    stack: Stack
    looks: int
    cpu_ns: int
    wall_ns: int
    blocks: int = 0
    """Blocks that were allocated, and in `bytes` their size; 0 without ``Profiler(allocations=True)``."""
    bytes: int = 0


_VALUES = (("samples", "count"), ("cpu", "nanoseconds"), ("wall", "nanoseconds"))
_ALLOCATED = (("alloc_objects", "count"), ("alloc_space", "bytes"))


@dataclass(frozen=True)
class Profile:
    """What a profiler saw. Each thread's runs are in chronological order.

    Detached: any thread may read it. To write it takes O(samples).

    >>> seen = profile(0.05)
    >>> "MainThread" in seen.threads, len(seen.pprof()) > 0
    (True, True)
    """

    started: float
    """On the clock of `time.time`."""
    duration: float
    """Seconds."""
    period: float
    """Seconds between two samples, as requested."""
    threads: dict[str, list[Run]]
    allocations: bool = False
    """Whether `Run.blocks` and `Run.bytes` were counted."""

    def pprof(self) -> bytes:
        """For ``go tool pprof`` and its kin: gzipped, with values samples, cpu (the default) and wall, with
        ``allocations=True`` also alloc_objects and alloc_space, and the label ``thread``.
        """
        types = (*_VALUES, *_ALLOCATED) if self.allocations else _VALUES
        totals: dict[tuple[str, Stack], list[int]] = {}
        for thread, runs in self.threads.items():
            for run in runs:
                values = totals.setdefault((thread, run.stack), [0] * len(types))
                every = (run.looks, run.cpu_ns, run.wall_ns, run.blocks, run.bytes)
                for i, value in enumerate(every[: len(types)]):
                    values[i] += value
        return pprof.encode(
            (([_place(call) for call in stack], values, {"thread": name}) for (name, stack), values in totals.items()),
            types=types,
            default="cpu",
            time_ns=int(self.started * 1e9),
            duration_ns=int(self.duration * 1e9),
            period=("cpu", "nanoseconds", int(self.period * 1e9)),
        )

    def speedscope(self, clock: Literal["cpu", "wall", "bytes"] = "cpu") -> str:
        """JSON for https://www.speedscope.app: one profile per thread, in chronological order, weighed by CPU time or,
        with ``clock="wall"``, by wall time, which includes waiting, or with ``clock="bytes"`` by what was allocated.
        ValueError for another clock.
        """
        if clock not in ("cpu", "wall", "bytes"):
            raise ValueError(f'clock must be "cpu", "wall" or "bytes", not {clock!r}')
        of = {"cpu": "cpu_ns", "wall": "wall_ns", "bytes": "bytes"}[clock]
        numbers: dict[pprof.Place, int] = {}
        frames: list[dict[str, Any]] = []
        profiles = []
        for thread, runs in self.threads.items():
            samples, weights = [], []
            for run in runs:
                if weight := getattr(run, of):
                    for place in map(_place, run.stack):
                        if place not in numbers:
                            numbers[place] = len(frames)
                            frames.append({"name": place.function, "file": place.file, "line": place.line})
                    samples.append([numbers[_place(call)] for call in reversed(run.stack)])
                    weights.append(weight)
            profiles.append(
                {
                    "type": "sampled",
                    "name": f"{thread} ({clock})",
                    "unit": "bytes" if clock == "bytes" else "nanoseconds",
                    "startValue": 0,
                    "endValue": sum(weights),
                    "samples": samples,
                    "weights": weights,
                }
            )
        return json.dumps(
            {
                "$schema": "https://www.speedscope.app/file-format-schema.json",
                "shared": {"frames": frames},
                "profiles": profiles,
                "name": f"{self.duration:.3g} s at {1 / self.period:.0f} Hz",
                "activeProfileIndex": 0,
                "exporter": "nbloop",
            }
        )


def _place(call: stacks.Call) -> pprof.Place:
    return pprof.Place(call.code.co_qualname, call.code.co_filename, call.code.co_firstlineno, call.line)


class Profiler(Unique):
    """Samples all threads except its own from `start` to `stop`, or while a ``with`` block runs.

    `hertz` is the number of samples per second, 1 to 1000. With `allocations` it also counts the blocks and bytes that
    each thread allocates, which costs some 10 ns a block (`allocations.py` says what is counted). A sample gets all
    that its thread has allocated since the previous one: with many samples the shares are right, those of single
    calls are not. A profiler can be used once; several may run at the same time. Memory: one entry each time a thread's
    stack differs from its last sample, so at most 100 per second and thread at 100 Hz. A sample takes O(threads).

    >>> with Profiler(hertz=500) as profiler:
    ...     deadline = time.thread_time() + 0.1
    ...     while time.thread_time() < deadline:
    ...         pass
    >>> seen = profiler.profile().threads["MainThread"]
    >>> 0.05 < sum(run.cpu_ns for run in seen) / 1e9 < 0.2
    True
    """

    def __init__(self, hertz: float = 100, *, allocations: bool = False) -> None:
        if isinstance(hertz, bool) or not isinstance(hertz, (int, float)):
            raise TypeError(f"hertz must be a number, not {hertz!r}")
        if not 1 <= hertz <= 1000:
            raise ValueError(f"hertz must be from 1 to 1000, not {hertz!r}")
        if not isinstance(allocations, bool):
            raise TypeError(f"allocations must be True or False, not {allocations!r}")
        self._allocations = allocations
        self._period = 1 / hertz
        self._stop = Latch()
        self._first = Latch()
        self._thread = threading.Thread(target=self._sample, name="nbloop-profiler", daemon=True)
        self._tracks: dict[int, _Track] = {}
        self._started = 0.0
        self._begun = self._end = self._looked = 0
        self._counted: dict[int, Allocated] = {}  # at the last sample

    def start(self) -> None:
        """Begin, and take the first sample now. RuntimeError if it was started before. If a signal handler raises out
        of this, it ends.
        """
        if self._thread.ident is not None:
            raise RuntimeError("a profiler can be started once")
        self._started, self._begun = time.time(), time.monotonic_ns()
        try:
            begin(self._thread)
            while not self._first.wait(LOOK):
                pass
        except BaseException:  # of a signal handler: the caller may not know that there is a thread to stop
            self._stop.set()
            raise

    def stop(self) -> None:
        """End. Idempotent. RuntimeError if it was never started."""
        self._stop.set()
        join(self._thread)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def profile(self) -> Profile:
        """What was seen. RuntimeError before `stop`."""
        if self._end == 0:
            raise RuntimeError("the profiler has not been stopped")
        threads: dict[str, list[Run]] = {}
        for track in self._tracks.values():
            if track.runs:
                name = track.name
                for number in itertools.count(2):  # threads may share a name
                    if name not in threads:
                        break
                    name = f"{track.name} #{number}"
                threads[name] = track.runs
        length = (self._end - self._begun) / 1e9
        return Profile(self._started, length, self._period, threads, self._allocations)

    def _sample(self) -> None:
        with counting() if self._allocations else contextlib.nullcontext():
            self._sample_all()

    def _sample_all(self) -> None:
        try:  # not on the caller's thread, where a signal handler's exception would lose references in the middle
            self._look()
        finally:
            self._first.set()
        due = time.monotonic()
        while True:
            due = max(due + self._period, time.monotonic())  # missed samples are not made up for: weights are times
            ended = self._stop.wait(max(0.0, due - time.monotonic()))
            self._look()
            if ended:
                self._end = time.monotonic_ns()
                return

    def _look(self) -> None:
        """Add the time since the last sample to the stacks of now."""
        seen = stacks.capture()
        now = time.monotonic_ns()
        counted = allocated() if self._allocations else {}
        known = {thread.ident: thread for thread in threading.enumerate()}
        for ident, (stack, _) in seen.items():
            thread = known.get(ident)
            if thread is self._thread:
                continue
            track = self._tracks.get(ident)
            if track is None or track.thread is not thread:  # identifiers are reused after a thread's end
                if track is not None:
                    self._tracks[-len(self._tracks) - 1] = track
                track = self._tracks[ident] = _Track(thread, ident)
                track.last_allocated = self._counted.get(ident, _NOTHING)  # of the thread that had the number before
                if self._looked == 0:
                    track.last_wall, track.last_cpu = now, track.cpu_clock()
                    track.last_allocated = counted.get(ident, _NOTHING)
                    continue
                track.last_wall, track.last_cpu = self._looked, 0  # it began after the last sample: all of it counts
            cpu = track.cpu_clock()
            worked = now - track.last_wall if cpu is None or track.last_cpu is None else cpu - track.last_cpu
            track.add(stack, worked, now - track.last_wall, counted.get(ident, _NOTHING))
            track.last_wall, track.last_cpu = now, cpu
        self._looked = now
        self._counted = counted


_NOTHING = Allocated(0, 0)


class _Track:
    """One thread as the profiler follows it."""

    def __init__(self, thread: threading.Thread | None, ident: int) -> None:
        self.thread = thread  # None: `threading` did not make it
        self.name = thread.name if thread is not None else f"thread {ident}"
        self.runs: list[Run] = []
        self.last_wall = 0
        self.last_cpu: int | None = None
        self.last_allocated = _NOTHING

    def add(self, stack: Stack, cpu_ns: int, wall_ns: int, allocated: Allocated) -> None:
        if not self.runs or self.runs[-1].stack != stack:
            self.runs.append(Run(stack, 0, 0, 0))
        run = self.runs[-1]
        run.looks += 1
        run.cpu_ns += cpu_ns
        run.wall_ns += wall_ns
        run.blocks += allocated.blocks - self.last_allocated.blocks
        run.bytes += allocated.bytes - self.last_allocated.bytes
        self.last_allocated = allocated

    def cpu_clock(self) -> int | None:
        """The thread's CPU time in ns; None where it is not available, and then waiting counts as working.

        Linux numbers the clocks of threads as `pthread_getcpuclockid` computes them. That function may crash for a
        thread that has just ended, while the number of a missing thread's clock is merely an error.
        """
        if sys.platform != "linux" or self.thread is None or self.thread.native_id is None:
            return None
        try:
            return time.clock_gettime_ns(~self.thread.native_id << 3 | 6)
        except OSError:
            return self.last_cpu


def profile(seconds: float, hertz: float = 100) -> Profile:
    """Sample all threads for `seconds`, including the calling one, which waits. Any thread. TypeError or ValueError
    as in `Profiler`, and for a time that is negative or not a number.

    `hertz` samples a second, each in O(threads and the depth of their stacks): 0.1 ms for seven.

    >>> seen = profile(0.05, hertz=200)
    >>> seen.period
    0.005
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds must be a number, not {seconds!r}")
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise ValueError(f"seconds must be at least 0 and finite, not {seconds!r}")
    profiler = Profiler(hertz)
    try:
        with profiler:
            profiler._stop.wait(seconds)
    finally:  # an exception of a signal handler may have come at the block's end
        profiler._stop.set()
    return profiler.profile()
