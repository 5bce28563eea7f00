"""A pytest plugin for the suites of other libraries (suites.py): wherever a test makes one of asyncio's loops, by name
or through the policy, it gets one of `NBLOOP_SUITE_LOOP`. It appends the name of each test that passed to the file
`NBLOOP_SUITE_PASSED`: after a crash, too, the file says what passed before.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import nbloop

PASSED = Path(os.environ["NBLOOP_SUITE_PASSED"])
PHASES = 3  # setup, call and teardown


class Stand(nbloop.EventLoop):
    """Replaces `asyncio.SelectorEventLoop`, which takes a selector as its argument."""

    def __init__(self, selector: Any = None) -> None:
        if selector is not None:
            selector.close()
        super().__init__()


if os.environ["NBLOOP_SUITE_LOOP"] == "nbloop":
    # uvloop's suite asks the class's module whether a loop is asyncio's, and uvicorn names a test after the class.
    Stand.__module__, Stand.__name__ = asyncio.SelectorEventLoop.__module__, asyncio.SelectorEventLoop.__name__
    asyncio.SelectorEventLoop = asyncio.EventLoop = Stand  # type: ignore[misc]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # since 3.14
        policy: Any = getattr(asyncio, "DefaultEventLoopPolicy", None)
    if policy is not None:  # before 3.16
        policy._loop_factory = Stand

passed: dict[str, int] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test has passed if all of its phases have."""
    passed[report.nodeid] = passed.get(report.nodeid, 0) + report.passed
    if passed[report.nodeid] == PHASES:
        with PASSED.open("a", encoding="utf-8") as file:
            file.write(report.nodeid + "\n")
