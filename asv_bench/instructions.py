"""Instructions for each operation, counted by valgrind: the figure that no neighbour on the machine can change.

Times on a shared machine vary by half from one minute to the next, so they do not show that a kernel has become 5 %
slower. Instruction counts do: the same program on the same interpreter executes the same instructions, to within a few
in ten thousand. Kernels are compiled for a generic processor, so that counts are the same on every machine of an
architecture. A count leaves out the other parts of the time: cache misses, locked instructions, the system's work. So
it shows that a path has grown, not that it has become slow, and ratios of counts are not ratios of times.

How: valgrind runs a program (`play`) that calls `getppid` between its parts; at each call callgrind dumps what it has
counted since the last. The `for` around the calls is counted separately and subtracted; callbacks are Python functions
that do nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import peers
from .drive import Asyncio, Driven, Nbloop, NbloopAio
from .measure import nothing
from .report import write
from .subprocesses import program

COUNT = 4000  # operations in a part, within the budget of a loop made for it
SPARE = 1000  # ints in memory at the second count
GROWN = 1.03  # how many times the instructions that were written down are too many
WRITTEN = Path(__file__).with_suffix(".json")
MARK = "getppid"  # of libc; nothing else calls it
LOOPS: dict[str, Callable[[], Driven]] = {
    "nbloop": lambda: Nbloop(ingress_budget=2 * COUNT),
    "nbloop.aio": NbloopAio,
    "asyncio": Asyncio,
    "uvloop": peers.Uvloop,
}

RUNS = "callback included"  # how the names of what the loop does end: no `for` of Python is in that
WHOLE = (  # nor in this
    "submit_many: each task",
    "contexts=True: submit_many: each task",
    "channel: a record in put_many, a hundred at once",
)

THREE = np.dtype([("price", "f8"), ("size", "i8"), ("venue", "i4")])

type Counts = dict[str, float]
type Part = Iterator[tuple[str, str]]  # what was done since, and what runs before it goes on; empty: not counted


def limits(_driven: Driven) -> Part:
    """What the interpreter needs by itself."""
    calls, callable_ = [nothing] * COUNT, callable
    for _call in calls:
        pass
    yield "for", ""
    for call in calls:
        callable_(call)
    yield "limit: an empty built-in call with one argument", ""
    for call in calls:
        call()
    yield "limit: a call of the empty callback", ""


def tasks(driven: Driven) -> Part:
    """Submitting on the loop's own thread, and running; what wakes a loop is not in it."""
    calls, soon = [nothing] * COUNT, driven.soon
    for call in calls:
        soon(call)
    yield "submit", "run of a task, callback included"


def from_threads(driven: Driven) -> Part:
    """The way in for other threads; here, too, from the loop's own."""
    calls, soon = [nothing] * COUNT, driven.soon_threadsafe
    for call in calls:
        soon(call)
    yield "submit, thread-safe (asyncio: call_soon_threadsafe)", ""


def arguments(driven: Driven) -> Part:
    """With a callback that takes one argument."""
    items, soon, callback = [0] * COUNT, driven.soon, [].append
    for item in items:
        soon(callback, item)
    yield "submit with an argument", ""


def timers(driven: Driven) -> Part:
    """Schedule and cancel, with none other pending; then schedule and fire."""
    calls, later, cancel = [nothing] * COUNT, driven.later, driven.cancel
    made = [later(1000.0, call) for call in calls]
    yield "timer: schedule, far from due", ""
    for timer in made:
        cancel(timer)
    yield "timer: cancel", ""
    for call in calls:
        later(0.0, call)
    yield "timer: schedule, due at once", "timer: fire, callback included"


def rings(driven: Nbloop) -> Part:
    """The queues that only nbloop has."""
    loop, calls = driven.loop, [nothing] * COUNT
    handle = loop.producer().submit
    rings = {
        "microtask": loop.schedule_microtask,
        "next-tick": loop.schedule_next_tick,
        "immediate": loop.schedule_immediate,
    }
    yield "", ""  # the methods are bound at their first use, which is not to be counted
    for what, schedule in rings.items():
        for call in calls:
            schedule(call)
        yield f"{what}: schedule", f"{what}: run, callback included"
    for call in calls:
        handle(call)
    yield "submit through a producer() handle", ""  # handles come after the queue that this part goes on from
    yield "", "run of a task from a handle, callback included"


def batches(driven: Nbloop) -> Part:
    """All in one call."""
    calls, many = [nothing] * COUNT, driven.loop.submit_many
    yield "", ""
    many(calls)
    yield "submit_many: each task", ""


def promises(driven: Nbloop) -> Part:
    """Of the JavaScript view."""
    from nbloop.js import JS

    js, calls = JS(driven.loop), [nothing] * COUNT
    resolvers, then = js.with_resolvers, js.resolve().then
    yield "", ""
    for _call in calls:
        resolvers()
    yield "js: with_resolvers", ""
    for call in calls:
        then(lambda _value, call=call: call())
    yield "js: then on a resolved promise, making its lambda included", "js: reaction, callback included"


def js_timers(driven: Nbloop) -> Part:
    """Of the JavaScript view, which captures contexts."""
    from nbloop.js import JS

    js, calls = JS(driven.loop), [nothing] * COUNT
    later, soon = js.set_timeout, js.queue_microtask
    yield "", ""
    for call in calls:
        later(call, 0)
    yield "js: set_timeout, due at once", "js: timer: fire, callback included"
    for call in calls:
        soon(call)
    yield "js: queue_microtask", "js: microtask: run, callback included"


def contexts(driven: Nbloop) -> Part:
    """What `Loop(contexts=True)` binds in the place of these methods."""
    from nbloop.kernels.methods import scheduling

    calls, soon = [nothing] * COUNT, scheduling.submit_captured.bind(driven.loop._state)
    many = scheduling.submit_many_captured.bind(driven.loop._state)
    yield "", ""
    for call in calls:
        soon(call)
    yield "contexts=True: submit", "contexts=True: run of a task, callback included"
    many(calls)
    yield "contexts=True: submit_many: each task", ""


def records(driven: Nbloop) -> Part:
    """Through a channel. Compiled code is not counted here: Numba's import changes what an allocation costs."""
    channel = driven.loop.channel(THREE, lambda _records: None)
    put, prices = channel.put, [101.5] * COUNT
    yield "", ""
    for price in prices:
        put(price, 300, 7)
    yield "channel: put of three numbers", ""
    many, hundred = channel.put_many, np.zeros(100, THREE)
    yield "", ""
    for _ in range(COUNT // 100):
        many(hundred)
    yield "channel: a record in put_many, a hundred at once", ""


PARTS: tuple[Callable[[Any], Part], ...] = (limits, tasks, from_threads, arguments, timers)
ONLY_NBLOOP: tuple[Callable[[Any], Part], ...] = (rings, batches, promises, js_timers, contexts, records)


def play(name: str, names: Path | None, spare: int) -> None:
    """The program that is counted: run all parts on a loop of this name, twice, because the first time differs; then
    report which part each mark ended. `spare` ints lie in memory meanwhile.
    """
    # A program with a second thread, as nbloop's are: from its start on, free-threaded 3.13 counts no references of
    # functions and code, which is 21 instructions of a call.
    thread = threading.Thread(target=nothing)
    thread.start()
    thread.join()
    held = [(1 << 40) + n for n in range(spare)]
    told: list[str] = []
    failed: list[BaseException] = []
    mark = getattr(os, MARK)
    for _ in range(2):
        told.clear()
        for part in (*PARTS, *(ONLY_NBLOOP if name == "nbloop" else ())):
            driven = LOOPS[name]()
            parts, runs = part(driven), ""

            def go_on(driven: Driven = driven, parts: Part = parts) -> None:
                nonlocal runs
                mark()
                told.append(runs)
                try:
                    done, runs = next(parts)
                except StopIteration:
                    driven.stop()
                except Exception as error:
                    failed.append(error)
                    driven.stop()
                else:
                    mark()
                    told.append(done)
                    driven.soon(go_on)

            gc.disable()
            driven.run(go_on)
            gc.enable()
            driven.close()
            if failed:
                raise failed.pop()
    if names is not None:
        names.write_text(json.dumps(told))
    del held


def missing() -> str:
    """The reason why nothing can be counted here; empty if it can."""
    return "" if shutil.which("valgrind") else "valgrind is not installed"


def count(name: str, spare: int = 0) -> Counts:
    """Instructions of each operation on the loop of this name, without the surrounding `for`."""
    environment = dict(os.environ, PYTHONHASHSEED="0", NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    command = program("asv_bench.instructions", "--play", name, "--spare", str(spare))
    subprocess.run(command, env=environment, check=True)  # kernels compiled by now
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "names")
        valgrind = ["valgrind", "--quiet", "--tool=callgrind", f"--dump-before={MARK}"]
        out = f"--callgrind-out-file={folder}/out"
        subprocess.run([*valgrind, out, *command, "--names", str(names)], env=environment, check=True, timeout=900)
        told = json.loads(names.read_text())
        files = sorted(Path(folder).glob("out.*"), key=lambda file: int(file.suffix[1:]))[-len(told) :]
        totals = [int(re.findall(r"^(?:summary|totals): (\d+)", file.read_text(), re.M)[0]) for file in files]
    counts = {name: total / COUNT for name, total in zip(told, totals, strict=True) if name}
    around = counts.pop("for")
    runs = {name for name in counts if name.endswith(RUNS)}
    return {name: counted - (0 if name in runs or name in WHOLE else around) for name, counted in counts.items()}


def ours(of_core: Counts, of_aio: Counts) -> Counts:
    """What is written down: the counts of the loop, and those of `nbloop.aio` under names of their own.

    >>> ours({"limit: a call": 400, "submit": 300}, {"limit: a call": 400, "submit": 700})
    {'limit: a call': 400, 'submit': 300, 'nbloop.aio: submit': 700}
    """
    through = {f"nbloop.aio: {name}": value for name, value in of_aio.items() if not name.startswith("limit: ")}
    return {**of_core, **through}


def count_ours(spare: int = 0) -> Counts:
    """Instructions of each operation of nbloop's two loops."""
    return ours(count("nbloop", spare), count("nbloop.aio", spare))


def interpreter() -> str:
    """What the figures depend on besides the code."""
    return f"{platform.machine()}, Python {platform.python_version()}{sys.abiflags}, {platform.python_compiler()}"


def grown(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """The operations whose count exceeds the recorded one by more than GROWN and by more than five.

    >>> grown({"submit": 320, "run": 101}, {"submit": 300, "run": 97, "gone": 1})
    ['submit: 320 instructions, 300 are written down']
    """
    return [
        f"{name}: {now[name]:.0f} instructions, {before[name]:.0f} are written down"
        for name in before
        if name in now and now[name] > max(before[name] * GROWN, before[name] + 5)
    ]


def markdown(counted: Mapping[str, Counts]) -> str:
    """A table: a row for each operation, a column for each loop."""
    lines = ["| operation | " + " | ".join(counted) + " |", "|---|" + "---|" * len(counted)]
    for name in counted["nbloop"]:
        cells = [f"{counts[name]:,.0f}" if name in counts else "–" for counts in counted.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_down(file: Path) -> None:
    """Count on every available loop; the table goes into `file`, nbloop's counts into a file beside this program."""
    counted = {name: count(name) for name in LOOPS if name != "uvloop" or peers.installed("uvloop")}
    write(file, f"{interpreter()}.\n\n{markdown(counted)}", "instructions, written by make instructions")
    rounded = {name: round(value, 1) for name, value in ours(counted["nbloop"], counted["nbloop.aio"]).items()}
    WRITTEN.write_text(json.dumps({"interpreter": interpreter(), "instructions": rounded}, indent=1) + "\n")


def written_down() -> tuple[str, Counts]:
    """The interpreter and the counts of the last `write_down`."""
    written = json.loads(WRITTEN.read_text())
    return written["interpreter"], written["instructions"]


def compare() -> int:
    """Count nbloop's instructions, show them beside the recorded ones; return 1 if something has grown."""
    counts = count_ours()
    counted_on, before = written_down()
    if counted_on == interpreter() and grown(counts, before):
        # The least of two counts is the path's: on a busy machine a part took long enough once that the loop did what
        # it owes to time (1,235 instructions more for each of 4,000 cancels, which the next run did not have).
        # And where a page of CPython's allocator was all but full, each int that a part makes and drops took 125
        # instructions more; which page that is changes with anything that was imported.
        again = count_ours(SPARE)
        counts = {name: min(value, again[name]) for name, value in counts.items()}
    print("     now   before")
    for name, value in counts.items():
        print(f"{value:8,.0f} {before.get(name, float('nan')):8,.0f}  {name}")
    if counted_on != interpreter():
        print(f"Those before were counted on {counted_on}; this is {interpreter()}: nothing is judged.")
        return 0
    problems = grown(counts, before)
    print(*problems, sep="\n")
    return 1 if problems else 0


def main() -> int:
    """Compare with the recorded counts, or record them."""
    parser = argparse.ArgumentParser(prog="python -m asv_bench.instructions", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the counts down, and a table into FILE")
    parser.add_argument("--play", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--names", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--spare", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(options.play, options.names, options.spare)
    elif missing():
        print(f"SKIPPED: instructions are not counted: {missing()}")
    elif options.write:
        write_down(options.write)
    else:
        return compare()
    return 0


if __name__ == "__main__":
    sys.exit(main())
