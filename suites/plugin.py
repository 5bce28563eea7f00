"""A pytest plugin for the suites of other libraries (test_suites.py). If `NBLOOP_SUITE_LOOP` is ``nbloop``, a test gets
an nbloop loop wherever it makes one of asyncio's, by name or through the policy. The name of each test goes to the file
`NBLOOP_SUITE_PASSED`, or if it has failed or was skipped to its neighbour ``.rest``, at once: after a crash, too, the
files say what ran before.
"""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

PASSED = Path(os.environ["NBLOOP_SUITE_PASSED"])
REST = PASSED.with_suffix(".rest")
PHASES = {"setup", "call", "teardown"}

NBLOOP = os.environ["NBLOOP_SUITE_LOOP"] == "nbloop"

if NBLOOP:
    from stand import Stand, stand_for_asyncio

    # uvloop's suite asks the class's module whether a loop is asyncio's, and uvicorn names a test after the class.
    Stand.__module__, Stand.__name__ = asyncio.SelectorEventLoop.__module__, asyncio.SelectorEventLoop.__name__
    stand_for_asyncio()
gc.freeze()  # aiohttp's suite collects after each test, which took 50 ms with all that numba imports

phases: dict[str, set[str]] = {}
failed: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test has passed if all of its phases have; its subtests are reported under its name, and one that fails fails
    it.
    """
    if report.passed:
        phases.setdefault(report.nodeid, set()).add(report.when or "")
    elif report.failed:
        failed.add(report.nodeid)
    if report.when == "teardown":
        passed = report.nodeid not in failed and phases.get(report.nodeid) == PHASES
        with (PASSED if passed else REST).open("a", encoding="utf-8") as file:
            file.write(report.nodeid + "\n")


def pytest_sessionfinish() -> None:
    """Say how many loops there were."""
    PASSED.with_suffix(".loops").write_text(str(Stand.made if NBLOOP else 0), encoding="utf-8")
