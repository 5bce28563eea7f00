"""Measurements in a separate process: memory, import, an idle loop, Node.js, a C program.

Run as ``python -m asv_bench.subprocesses QUESTION ...``, this is that process, and prints its answer as JSON; the
functions without underscore start it and read the answer.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

from .drive import Asyncio, Driven, Nbloop
from .measure import nothing

ROOT = Path(__file__).resolve().parents[1]
# The root comes last, and the current folder not at all: nbloop is the one that is installed, which asv measures.
PYTHON = (sys.executable, "-P")
_START = f"""import runpy, sys
sys.path.append({str(ROOT)!r})
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)"""


def program(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of the suite, ``asv_bench.subprocesses`` say, wherever it is run."""
    return [*PYTHON, "-c", _START, module, *map(str, arguments)]


def _ask(*arguments: object) -> dict[str, Any]:
    command = program("asv_bench.subprocesses", *arguments)
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300, text=True)
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


# --- memory ----------------------------------------------------------------------------------------------


def memory(which: str, tasks: int) -> dict[str, float]:
    """Resident bytes per task with `tasks` queued: ``each``; ``again``: growth by a second burst; ``kept``: retained
    when all have run and the loop has been idle.
    """
    import_seconds(which)  # a process that had to compile first would have freed memory to give
    return _ask("memory", which, tasks)


def _resident() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process().memory_info().rss)


def make_driven(which: str) -> Driven:
    """The loop with that name."""
    return Nbloop() if which == "nbloop" else Asyncio()


def fill(driven: Driven, tasks: int) -> None:
    """Queue the same callback `tasks` times, on a loop that is not running, from the thread that will run it."""
    schedule = driven.soon
    for _ in repeat(None, tasks):
        schedule(nothing)


def _memory(which: str, tasks: int) -> dict[str, float]:
    driven = make_driven(which)
    fill(driven, 1000)
    driven.run(driven.stop)
    gc.collect()
    before = _resident()
    fill(driven, tasks)
    first = _resident()
    driven.run(driven.stop)  # FIFO: it stops when all have run, and has no time to tidy up
    fill(driven, tasks)
    second = _resident()
    driven.run(driven.stop)
    gc.collect()
    driven.start()
    time.sleep(0.3)
    after = _resident()
    driven.close()
    return {"each": (first - before) / tasks, "again": (second - first) / tasks, "kept": (after - before) / tasks}


def timers(count: int) -> dict[str, float]:
    """Resident bytes per timer with `count` armed: ``each``; ``kept``: retained when all have fired and the loop has
    been idle. ``collection``: ms by which a collection then takes longer than before the peak; ``at_peak``: at the
    peak.
    """
    import_seconds("nbloop")
    return _ask("timers", count)


def _collection() -> float:
    """ms of processor time that a collection takes: the shortest of some."""
    times = []
    for _ in range(7):
        start = time.thread_time()
        gc.collect()
        times.append(1e3 * (time.thread_time() - start))
    return min(times)


def _timers(count: int) -> dict[str, float]:
    import nbloop

    loop = nbloop.Loop()
    loop.schedule_timer(0.1, loop.stop)
    loop.run()
    gc.collect()
    before, quick = _resident(), _collection()
    for _ in repeat(None, count):
        loop.schedule_timer(0.0, nothing)
    peak, slow = _resident(), _collection()
    loop.submit(loop.schedule_timer, 1.0, loop.stop)  # once all have fired it is idle for a second
    loop.run()
    after, again = _resident(), _collection()
    loop.close()
    return {
        "each": (peak - before) / count,
        "kept": (after - before) / count,
        "at_peak": slow - quick,
        "collection": again - quick,
    }


# --- import ----------------------------------------------------------------------------------------------


def import_seconds(module: str, cold: bool = False) -> float:
    """Seconds that ``import module`` takes in a new process; `cold`: with an empty folder for what nbloop compiles."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as folder:
        answer = subprocess.run(
            [*PYTHON, "-c", code],
            env=os.environ | {"NBLOOP_CACHE_DIR": folder} if cold else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=300,
            text=True,
        )
    return float(answer.stdout)


def processor_seconds(code: str) -> float:
    """The processor time, user and system, of a new process that runs this code, its start and end included."""
    import resource

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([*PYTHON, "-c", code], check=True, timeout=300)
    return spent() - before


# --- companions ------------------------------------------------------------------------------------------


class Companion:
    """A program that waits between rounds. A probe: each call is one round, and returns the ns that it measured, as
    ``NAME what``; nothing if the program could not be started, and then `missing` says why.
    """

    name: str
    missing = ""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        command = self.command()
        if command:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def command(self) -> list[str]:
        """The command to start; empty if that is impossible, after setting `missing`."""
        raise NotImplementedError

    def __call__(self) -> Mapping[str, float]:
        if self._process is None:
            return {}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return {f"{self.name} {what}": time for what, time in json.loads(answer).items()}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate(timeout=60)


class Node(Companion):
    """Node.js: to schedule and run one callback, as ``node microtask`` and ``node immediate``."""

    name = "node"

    def command(self) -> list[str]:
        node = shutil.which("node")
        if node is None:
            self.missing = "Node.js is not installed"
            return []
        return [node, str(Path(__file__).with_name("node.mjs"))]


class Limits(Companion):
    """A small C program, compiled when it is needed: ``limit futex`` and ``limit copy``, see limits.c."""

    name = "limit"

    def command(self) -> list[str]:
        compiler = shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            self.missing = "there is no C compiler, or no futex"
            return []
        self._folder = tempfile.TemporaryDirectory()
        program = Path(self._folder.name, "limits")
        source = Path(__file__).with_name("limits.c")
        subprocess.run([compiler, "-O2", "-pthread", "-o", str(program), str(source)], check=True, timeout=60)
        return [str(program)]

    def close(self) -> None:
        super().close()
        if not self.missing:
            self._folder.cleanup()


# --- idle ------------------------------------------------------------------------------------------------


def idle(seconds: float, trace: bool = True) -> dict[str, dict[str, float | None]]:
    """What idle loops do in `seconds`, by name: ``cpu`` in ms, context ``switches``, ``syscalls`` (None without
    strace).

    The last is counted in a second period, because attaching a tracer interrupts the very call that the loop sleeps in.
    A system call that has not returned is the sleep itself, and does not count.
    """
    command = program("asv_bench.subprocesses", "idle", seconds)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        counts = _traced(process.pid, seconds) if trace else None
        process.stdin.close()  # lets it end
    for facts in answer.values():
        thread = facts.pop("thread")
        facts["syscalls"] = None if counts is None else counts[thread]
    return answer  # type: ignore[no-any-return]


def _traced(pid: int, seconds: float) -> Counter[int] | None:
    """System calls that each thread of a process began or ended within `seconds`; None if it cannot be traced here."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "trace")
        command = [strace, "-f", "-p", str(pid), "-o", str(record)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            if "attached" not in tracer.stderr.readline():
                return None
            time.sleep(0.5)  # what attaching interrupted resumes
            before = record.read_text()
            time.sleep(seconds)
            text = record.read_text()[len(before) :]
            tracer.send_signal(signal.SIGINT)
            tracer.communicate()
    return Counter(int(match[1]) for match in re.finditer(r"^(\d+) ", text, re.MULTILINE))


def _idle(seconds: float) -> dict[str, dict[str, Any]]:
    import nbloop

    loops: dict[str, Driven] = {
        mode.value: Nbloop(fast_path_mode=mode)
        for mode in (nbloop.FastPathMode.AUTO, nbloop.FastPathMode.FORCED, nbloop.FastPathMode.DISABLED)
    }
    loops["asyncio"] = Asyncio()
    threads: dict[str, threading.Thread] = {}
    for name, driven in loops.items():
        driven.start()
        done = threading.Event()
        driven.soon_threadsafe(done.set)
        done.wait()
        assert driven.thread is not None
        threads[name] = driven.thread
    time.sleep(0.5)
    before = {name: _spent(thread) for name, thread in threads.items()}
    time.sleep(seconds)
    answer: dict[str, dict[str, Any]] = {}
    for name, thread in threads.items():
        cpu, switches = (now - then for now, then in zip(_spent(thread), before[name], strict=True))
        answer[name] = {"cpu": cpu / 1e6, "switches": switches, "thread": thread.native_id}
    return answer


def _spent(thread: threading.Thread) -> tuple[int, int]:
    """ns of CPU time that a thread has used, and how often it left a CPU (0 if the system does not report it)."""
    assert thread.ident is not None
    cpu = time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
    switches = 0
    with contextlib.suppress(OSError):
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        switches = sum(int(count) for count in re.findall(r"ctxt_switches:\s+(\d+)", status))
    return cpu, switches


def main(arguments: list[str]) -> None:
    """Answer one question on the standard output."""
    match arguments:
        case ["memory", which, tasks]:
            print(json.dumps(_memory(which, int(tasks))))
        case ["timers", count]:
            print(json.dumps(_timers(int(count))))
        case ["idle", seconds]:
            print(json.dumps(_idle(float(seconds))), flush=True)
            sys.stdin.read()
        case _:
            raise SystemExit(f"no such question: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
