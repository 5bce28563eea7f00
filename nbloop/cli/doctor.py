"""`nbloop doctor`: what the loop can use on this machine and Python, and what would make it slow.

Problem: the loop works nearly everywhere, but is fast only where a dozen conditions hold; a user with a slow loop
should not have to know them all. Idea: `examine` gathers the facts as plain data, `complaints` compares them with what
the loop needs, and both are shown as text or JSON. numba's version comes from its metadata: importing numba takes a
second, and the loop itself does not need to.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import Loop, __version__
from ..kernels.base import layout
from ..kernels.base.capi import WINDOWS
from ..kernels.build import object_cache
from ..options import usable_cores
from ..parkers import futex_available
from ..pollers import make_poller
from .screen import Screen, make_screen

MEASURING = 0.1  # seconds spent on each figure
SLOW_CLOCKS = {"acpi_pm", "hpet", "jiffies", "refined-jiffies", "xen"}
SLOW_CLOCK_NS = 300


def examine() -> dict[str, Any]:
    """All facts, ready for JSON."""
    facts: dict[str, Any] = {
        "python": _python(),
        "versions": {"nbloop": __version__, **{name: _version(name) for name in ("numba", "numpy", "llvmlite")}},
        "kernels": _kernels(),
        "sleeping": _sleeping(),
        "cores": {"usable": usable_cores(), "machine": os.cpu_count(), "quota": _quota()},
        "clock": {"source": _clock_source(), "read_ns": round(_cost(time.monotonic_ns), 1)},
        "costs": {"empty_builtin_ns": round(_cost(callable, None), 1), "submit_ns": round(_submit_cost(), 1)},
        "watchers": _watchers(),
    }
    facts["slow"] = [{"what": what, "advice": advice} for what, advice in complaints(facts)]
    return facts


def _python() -> dict[str, Any]:
    return {
        "implementation": platform.python_implementation(),
        "version": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "free_threaded_build": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "gil_enabled": sys._is_gil_enabled(),
        "debug_build": hasattr(sys, "gettotalrefcount") or "d" in getattr(sys, "abiflags", ""),
        "dev_mode": sys.flags.dev_mode,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernels() -> dict[str, Any]:
    status = object_cache.status
    folder: Path | None = None
    with contextlib.suppress(RuntimeError):  # no home folder
        folder = object_cache.cache_folder()
    size: int | None = None
    if status.file is not None:
        with contextlib.suppress(OSError):
            size = status.file.stat().st_size
    return {
        "mode": status.mode,
        "source": status.source,
        "target": status.target or None,
        "why": status.why or None,
        "seconds": round(status.seconds, 4),
        "folder": str(folder) if folder is not None else None,
        "file": str(status.file) if status.file is not None else None,
        "file_bytes": size,
        "problem": status.problem or None,
    }


def _sleeping() -> dict[str, Any]:
    """How a loop sleeps, as `make_parker` decides, and why."""
    found: dict[str, Any] = {}
    if futex_available():
        how = "WaitOnAddress" if WINDOWS else "futex"
        found["fast_path"] = {"how": how, "why": "the kernels call it themselves, without Python"}
    elif os.environ.get("NBLOOP_PARK") == "lock":
        found["fast_path"] = {"how": "lock", "why": "NBLOOP_PARK=lock is set"}
    else:
        found["fast_path"] = {"how": "lock", "why": f"nbloop has no futex for {sys.platform}"}
    try:
        poller = make_poller()
    except OSError as error:
        found["poll_mode"] = {"how": "none", "why": str(error)}
    else:
        kernels = poller.park_mode == layout.PARK_EPOLL
        why = f"{platform.system()}'s; {'the kernels wait in it' if kernels else 'Python waits in it, through ctypes'}"
        found["poll_mode"] = {"how": type(poller).__name__.removesuffix("Poller").lower(), "why": why}
        poller.close()
    loop = Loop(name="doctor")
    found["spin_ns"] = int(loop._record["spin_max"])
    loop.close()
    return found


def _quota() -> float | None:
    """The number of cores that the container's CPU quota allows; None without a quota."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return round(int(quota) / int(period), 2)
    return None


def _clock_source() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text().strip()
    return None


def _watchers() -> list[str]:
    """Tools that intercept every call or line of this process."""
    found = []
    if sys.gettrace() is not None or threading.gettrace() is not None:
        found.append("a trace function (a debugger, or coverage)")
    if sys.getprofile() is not None or threading.getprofile() is not None:
        found.append("a profile function")
    for tool in range(6):
        name = sys.monitoring.get_tool(tool)
        if name is not None:
            found.append(f"the sys.monitoring tool {name!r}")
    return found


def _cost(call: Callable[..., object], *args: object) -> float:
    """ns per call, without the surrounding loop: the median of some rounds."""
    rounds: list[float] = []
    over = time.perf_counter() + MEASURING
    while time.perf_counter() < over:
        start = time.perf_counter_ns()
        for _ in itertools.repeat(None, 1000):
            call(*args)
        middle = time.perf_counter_ns()
        for _ in itertools.repeat(None, 1000):
            pass
        rounds.append((2 * middle - start - time.perf_counter_ns()) / 1000)
    return max(0.0, statistics.median(rounds))


def _nothing() -> None:
    pass


def _submit_cost() -> float:
    """ns per submit, to a loop that is awake, in memory that it has used before."""
    loop = Loop(name="doctor")
    submit, callback = loop.submit, _nothing
    rounds: list[float] = []
    over = time.perf_counter() + 2 * MEASURING
    while time.perf_counter() < over or len(rounds) < 3:
        start = time.perf_counter_ns()
        for _ in itertools.repeat(None, 1000):
            submit(callback)
        middle = time.perf_counter_ns()
        for _ in itertools.repeat(None, 1000):
            pass
        rounds.append((2 * middle - start - time.perf_counter_ns()) / 1000)
        loop.stop()
        loop.run()  # one turn, which runs all thousand
    loop.close()
    return max(0.0, statistics.median(rounds))


def complaints(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What makes the loop slow here, each problem with its remedy."""
    found: list[tuple[str, str]] = []
    python, kernels, cores, clock = facts["python"], facts["kernels"], facts["cores"], facts["clock"]
    if not python["free_threaded_build"]:
        found.append(
            (
                "This Python has the GIL: threads take turns, and a hop between threads may wait 5 ms for it",
                "Use a free-threaded build (python3.13t, python3.14t)",
            )
        )
    elif python["gil_enabled"]:
        found.append(
            (
                "This Python can run without the GIL, but the GIL is on",
                "Unset PYTHON_GIL and -X gil, or find the module that enables it: Python warns when it is imported",
            )
        )
    if python["debug_build"]:
        found.append(("This is a debug build of Python", "Use a release build"))
    if python["dev_mode"]:
        found.append(("Python's development mode is on", "Unset PYTHONDEVMODE and -X dev"))
    if cores["usable"] == 1:
        found.append(
            (
                "Only one core is usable: producers and the loop take turns, and the loop sleeps without spinning",
                "Give the process two cores or more (taskset, cpuset)",
            )
        )
    elif cores["quota"] is not None and cores["quota"] < 2:
        found.append(
            (
                f"The container's CPU quota is {cores['quota']} cores: threads are stopped when it is used up",
                "Raise its CPU quota to two cores or more",
            )
        )
    if kernels["mode"] != "compiled":
        found.append(
            ("The kernels run un-jitted, some hundred times slower", "Unset NUMBA_DISABLE_JIT, which is for testing")
        )
    elif kernels["file_bytes"] is None:
        found.append(
            (
                f"Every process compiles the kernels, {kernels['seconds']:.0f} s: {kernels['problem'] or 'no cache'}",
                "Set NBLOOP_CACHE_DIR to a writable folder",
            )
        )
    if facts["sleeping"]["fast_path"]["how"] == "lock":
        if futex_available() or os.environ.get("NBLOOP_PARK") == "lock":
            found.append(("The loop sleeps on a Python lock", "Unset NBLOOP_PARK, which is for testing"))
        else:
            found.append(
                ("The loop sleeps on a Python lock", "No remedy yet: only Linux and Windows have a faster way")
            )
    if clock["source"] in SLOW_CLOCKS or clock["read_ns"] > SLOW_CLOCK_NS:
        found.append(
            (
                f"Reading the clock ({clock['source'] or 'unknown source'}) takes {clock['read_ns']:.0f} ns",
                "Ask the machine's administrator to select the clock source tsc, if it is stable there",
            )
        )
    watched = [(f"Every call is intercepted by {name}", "Turn it off when speed counts") for name in facts["watchers"]]
    return found + watched


def main(*, as_json: bool = False) -> int:
    """Print the report; return 0."""
    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _show(make_screen(), facts)
    return 0


def _show(screen: Screen, facts: dict[str, Any]) -> None:
    def section(title: str, lines: list[tuple[str, str]]) -> None:
        screen.heading(title)
        for name, text in lines:
            screen.line(f"  {name:<18}{text}")

    python, kernels, sleeping, cores = facts["python"], facts["kernels"], facts["sleeping"], facts["cores"]
    build = "free-threaded" if python["free_threaded_build"] else "ordinary"
    section(
        "Python",
        [
            ("interpreter", f"{python['implementation']} {python['version']}, {python['executable']}"),
            ("build", f"{build}{', debug' if python['debug_build'] else ''}"),
            ("GIL now", "on" if python["gil_enabled"] else "off"),
            ("platform", python["platform"]),
            ("packages", ", ".join(f"{name} {text or 'missing'}" for name, text in facts["versions"].items())),
        ],
    )
    how = {
        "wheel": "loaded as they were installed",
        "cache": "loaded from the cache",
        "compiler": "compiled by this process",
    }.get(kernels["source"], "not compiled")
    size = f" ({kernels['file_bytes'] / 1024:,.0f} KiB)" if kernels["file_bytes"] is not None else ""
    section(
        "Kernels",
        [
            ("mode", f"{kernels['mode']}, {how}" + (f" in {kernels['seconds'] * 1000:,.0f} ms" if size else "")),
            *([("for", f"{kernels['target']}: {kernels['why']}")] if kernels["target"] else []),
            ("cache folder", kernels["folder"] or "none"),
            ("file", f"{Path(kernels['file']).name}{size}" if kernels["file"] else "none"),
            *([("problem", kernels["problem"])] if kernels["problem"] else []),
        ],
    )
    spin = f"up to {sleeping['spin_ns'] / 1000:.0f} µs, then sleeps" if sleeping["spin_ns"] else "no, sleeps at once"
    quota = f", quota {cores['quota']}" if cores["quota"] is not None else ""
    section(
        "Machine",
        [
            ("cores", f"{cores['usable']} usable of {cores['machine']}{quota}"),
            ("idle loop spins", spin),
            *((name, f"{sleeping[key]['how']}: {sleeping[key]['why']}") for name, key in SLEEPERS),
            ("clock", f"{facts['clock']['source'] or 'unknown'}, {facts['clock']['read_ns']:.0f} ns per reading"),
        ],
    )
    section(
        "Measured now",
        [
            ("empty built-in", f"{facts['costs']['empty_builtin_ns']:.0f} ns per call"),
            ("submit", f"{facts['costs']['submit_ns']:.0f} ns per call"),
        ],
    )
    screen.heading("What makes it slow here")
    for trouble in facts["slow"]:
        screen.verdict(False, trouble["what"])
        screen.line(f"    {trouble['advice']}.")
    if not facts["slow"]:
        screen.verdict(True, "nothing found")


SLEEPERS = (("sleep, fast path", "fast_path"), ("sleep, poll mode", "poll_mode"))
