"""`nbloop profile`: run a script or a module, and write where its time and memory went.

The profiler samples all of its threads, and counts what they allocate. Every loop that the program makes is followed:
its contention always, because that is counted anyway, and with ``--trace`` its last events, by a flight recorder.

A loop's figures and events outlive it, so those of loops that end, or are forgotten, in the middle are written, too.
Nothing here keeps a loop alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..loop import Loop
from ..observe import allocations, contention
from ..observe.profile import Profile, Profiler, Run
from .screen import make_screen
from .top import duration

EVENTS = 1 << 16  # the events that each loop's recorder remembers
# The frames that tracemalloc keeps of each block: with 25, a script that only allocated took 100 times as long.
FRAMES = 8
FUNCTIONS = 12  # in the summary
_OURS = {__file__, runpy.__file__, "<frozen runpy>", str(Path(__file__).parents[1] / "__main__.py")}


class _Followed:
    """The parts of a loop that `contention.totals` reads, and its recorder, without the loop."""

    def __init__(self, loop: Loop) -> None:
        self.name = loop.name
        self.recorder = loop.recorder
        self._record = loop._record
        self._lock = loop._lock
        self._made = loop._made

    def _check_fork(self) -> None:
        """A child that was forked writes nothing."""


@contextlib.contextmanager
def _following(trace: bool) -> Iterator[list[_Followed]]:
    """Collect the loops that are made while the block runs."""
    followed: list[_Followed] = []
    original = Loop.__init__

    @functools.wraps(original)
    def init(loop: Loop, **options: Any) -> None:
        if trace and options.get("recorder") is None:
            options["recorder"] = EVENTS
        original(loop, **options)
        followed.append(_Followed(loop))

    patched: Any = Loop
    patched.__init__ = init
    try:
        yield followed
    finally:
        patched.__init__ = original


def _run(program: str, arguments: Sequence[str], as_module: bool) -> BaseException | None:
    """Run the program as ``python`` would; return what it raises."""
    sys.argv = [program, *arguments]
    try:
        if as_module:
            sys.path.insert(0, "")
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(program).resolve().parent))
            runpy.run_path(program, run_name="__main__")
    except BaseException as error:
        return error
    return None


def _status(raised: BaseException | None) -> int:
    """The exit status that ``python`` would have, after it has shown what was raised."""
    if isinstance(raised, KeyboardInterrupt):
        raise raised
    if raised is None or (isinstance(raised, SystemExit) and raised.code is None):
        return 0
    if isinstance(raised, SystemExit):
        if isinstance(raised.code, int):
            return raised.code
        print(raised.code, file=sys.stderr)
        return 1
    frames = raised.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in _OURS:
        frames = frames.tb_next
    traceback.print_exception(raised.with_traceback(frames))
    return 1


def main(
    program: str, arguments: Sequence[str], *, as_module: bool, folder: str, hertz: int, memory: bool, trace: bool
) -> int:
    """Run and write; return the program's exit status, or 2 if it cannot be read or the folder cannot be made."""
    into = Path(folder)
    try:
        into.mkdir(parents=True, exist_ok=True)
        if not as_module:
            Path(program).open("rb").close()
    except OSError as error:
        print(f"nbloop: {error}", file=sys.stderr)
        return 2
    if memory:
        import tracemalloc

        tracemalloc.start(FRAMES)
    profiler = Profiler(hertz, allocations=allocations.supported())
    with _following(trace) as loops:
        with profiler:
            raised = _run(program, arguments, as_module)
        with contextlib.redirect_stdout(sys.stderr):
            _write(into, profiler.profile(), loops, memory)
    return _status(raised)


def _write(into: Path, profile: Profile, loops: list[_Followed], memory: bool) -> None:
    profile = _without_us(profile)
    content: dict[str, bytes | str] = {
        "profile.pb.gz": profile.pprof(),
        "cpu.speedscope.json": profile.speedscope(),
        "wall.speedscope.json": profile.speedscope("wall"),
    }
    if profile.allocations:
        content["allocated.speedscope.json"] = profile.speedscope("bytes")
    if memory:
        from ..observe.heap import heap

        content["heap.pb.gz"] = heap()
    if loops:
        content["contention.json"] = json.dumps(
            {loop.name: dataclasses.asdict(contention.totals(loop)) for loop in loops},  # type: ignore[arg-type]
            indent=2,
        )
    for loop in loops:
        if loop.recorder is not None:
            name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in loop.name)
            content[f"trace-{name}.json"] = json.dumps(loop.recorder.trace(), separators=(",", ":"))
    for file, data in content.items():
        into.joinpath(file).write_bytes(data if isinstance(data, bytes) else data.encode())
    screen = make_screen()
    screen.heading(f"{profile.duration:.3g} s, {len(profile.threads)} threads, {len(loops)} loops")
    screen.table(("function", "cpu", "with callees", "allocated"), _functions(profile))
    screen.line()
    screen.line(f"{into}: {', '.join(sorted(content))}")
    screen.line(f"go tool pprof -top {into / 'profile.pb.gz'}   (-sample_index=wall, alloc_space, alloc_objects)")
    screen.line("https://www.speedscope.app opens the speedscope files, https://ui.perfetto.dev traces")


def _without_us(profile: Profile) -> Profile:
    """The profile without the calls that lead to the program, and without ours."""

    def trimmed(run: Run) -> Run:
        stack = run.stack
        while stack and stack[-1].code.co_filename in _OURS:
            stack = stack[:-1]
        return dataclasses.replace(run, stack=tuple(call for call in stack if call.code.co_filename != __file__))

    threads = {name: [run for run in map(trimmed, runs) if run.stack] for name, runs in profile.threads.items()}
    return dataclasses.replace(profile, threads={name: runs for name, runs in threads.items() if runs})


def _functions(profile: Profile) -> list[list[str]]:
    """Rows for the functions that took most CPU time."""
    totals: dict[str, list[int]] = {}
    for runs in profile.threads.values():
        for run in runs:
            names = [f"{call.code.co_qualname} ({Path(call.code.co_filename).name})" for call in run.stack]
            for name in dict.fromkeys(names):
                totals.setdefault(name, [0, 0, 0])[1] += run.cpu_ns
            totals[names[0]][0] += run.cpu_ns
            totals[names[0]][2] += run.bytes
    most = sorted(totals.items(), key=lambda one: one[1][:2], reverse=True)[:FUNCTIONS]
    return [
        [name, duration(cpu / 1e9), duration(whole / 1e9), f"{size / 1e6:,.1f} MB" if profile.allocations else ""]
        for name, (cpu, whole, size) in most
    ]
