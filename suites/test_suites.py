"""Other libraries' own tests on nbloop's loop. Those that do not pass run on asyncio's loop: there they may not pass,
either. (To run all of them on both loops took twice the time.)

`NBLOOP_ECOSYSTEM` names the environment of `scripts/ecosystem --suites`, in which the tests run, with plugin.py. A
whole run writes its part of docs/compatibility.md.
"""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ecosystem import page
from ecosystem.conftest import BIN

HERE = Path(__file__).resolve().parent
ENVIRONMENT = BIN.parent
SECONDS = 600.0
ATTEMPTS = 2  # at tests that passed on asyncio alone: some depend on timing
PLAIN = ("-c", os.devnull, "--rootdir=.")  # of a library without settings for pytest, which would find nbloop's


@dataclass(frozen=True)
class Suite:
    """How to run a library's tests."""

    library: str
    tests: tuple[str, ...]
    options: tuple[str, ...] = ()
    least: int = 0  # tests that pass, or else it has not run
    differ: Mapping[str, str] = field(default_factory=dict)  # tests that pass on asyncio alone, and why


SIGNAL_TWICE = (
    "asyncio calls a loop's handler of a signal also while `signal.signal` has set another; nbloop calls it when that"
    " one is taken back, in the next turn, and the test does not wait for it"
)
DATA_FIRST = (
    "expects what was ready to run before data that arrived meanwhile is read; nbloop reads when it polls, like uvloop,"
    " which fails it too"
)

SUITES = (
    Suite(
        "aiohttp",
        tuple(
            f"tests/test_{name}.py"
            for name in (
                *("base_protocol", "client_connection", "client_functional", "client_proto", "client_session"),
                *("client_ws_functional", "connector", "flowcontrol_streams", "leaks", "loop", "proxy_functional"),
                *("pytest_plugin", "resolver", "run_app", "streams", "tcp_helpers", "test_utils", "web_functional"),
                *("web_protocol", "web_request_handler", "web_runner", "web_sendfile_functional", "web_server"),
                *("web_websocket_functional", "websocket_writer"),
            )
        ),
        ("-W", "ignore::DeprecationWarning"),  # it makes asyncio's policies, which 3.14 deprecates
        least=1400,
        differ={"tests/test_client_ws_functional.py::test_concurrent_close_multiple_tasks[pyloop]": DATA_FIRST},
    ),
    Suite("anyio", ("tests",), ("-k", "asyncio and not uvloop"), least=2000),
    Suite("tornado", ("tornado/test",), (*PLAIN, "--log-disable=tornado.access"), least=1300),
    Suite(
        "uvicorn",
        ("tests",),
        ("--ignore=tests/benchmarks",),
        least=1200,
        differ={
            f"tests/test_server.py::test_server_interrupt[capture_signal_async-{number}]": SIGNAL_TWICE
            for number in (2, 15)
        },
    ),
    # Some of its tests hang on both loops: each of them takes that long, twice.
    Suite("uvloop", ("tests",), (*PLAIN, "-k", "AIO", "--timeout=15"), least=180),
)


def run(suite: Suite, folder: Path, loop: str, only: Iterable[str] = ()) -> tuple[set[str], set[str]]:
    """The names of the tests that pass on a loop, and of the rest. The run must come to its end: no crash, no hang."""
    passed = folder / f"passed-{loop}"
    names = passed, passed.with_suffix(".rest")
    for each in names:
        each.write_text("", encoding="utf-8")
    command = [BIN / "python", "-P", "-m", "pytest", "-q", "-o", "addopts=", "--timeout=60"]
    command += ["-p", "plugin", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:run_parallel"]
    where = ENVIRONMENT / "suites" / suite.library
    if not where.exists():  # its tests are installed with it
        (where,) = ENVIRONMENT.glob("lib/python*/site-packages")
    answer = subprocess.run(
        [*command, *suite.options, *(only or suite.tests)],
        cwd=where,
        env=os.environ
        | {"NBLOOP_SUITE_LOOP": loop, "NBLOOP_SUITE_PASSED": str(passed), "PYTHONDONTWRITEBYTECODE": "1"}
        | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent / 'conformance'}"}
        | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(f"--- {suite.library} on {loop}", answer.stdout[-20_000:], answer.stderr[-5_000:], sep="\n")
    assert answer.returncode in (0, 1), f"pytest has not run all tests: {answer.returncode}"
    loops = int(passed.with_suffix(".loops").read_text(encoding="utf-8"))
    assert loops == 0 if loop == "asyncio" else loops or only, f"{loops} loops of nbloop"
    ran, rest = (set(each.read_text(encoding="utf-8").splitlines()) for each in names)
    return ran, rest


type Seen = dict[str, tuple[int, Mapping[str, str]]]  # by library: passed on nbloop, and what passes on asyncio alone


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    found: Seen = {}
    yield found
    if len(found) == len(SUITES):
        write(found)


def write(seen: Seen) -> None:
    """The part of this Python, between its two marks."""
    lines = ["| library | version | tests passed on nbloop | on asyncio alone |", "|---|---|---|---|"]
    lines += [f"| {one} | {page.version(one)} | {ran:,} | {len(differ)} |" for one, (ran, differ) in seen.items()]
    lines.append("")
    for library, (_, differ) in seen.items():
        for why in dict.fromkeys(differ.values()):
            names = ", ".join(f"`{name}`" for name, reason in differ.items() if reason == why)
            lines += textwrap.wrap(
                f"* {library}, {names}: {why}.",
                120,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    begin, end = f"<!-- {page.PYTHON}: written by make test-suites -->", f"<!-- end of the suites on {page.PYTHON} -->"
    page.write(begin, end, lines)


@pytest.mark.timeout((2 + ATTEMPTS + 2) * SECONDS)
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.library)
def test_suite(suite: Suite, tmp_path: Path, seen: Seen) -> None:
    """All tests that pass on asyncio's loop pass on nbloop's, but those whose difference is explained."""

    def passes(loop: str, names: set[str]) -> set[str]:
        return run(suite, tmp_path, loop, sorted(names))[0] if names else set()

    passed, rest = run(suite, tmp_path, "nbloop")
    assert len(passed) >= suite.least, "the suite has not run"
    lost = passes("asyncio", rest)
    for _ in range(ATTEMPTS):
        again = passes("nbloop", lost - set(suite.differ))
        passed |= again
        lost -= again
    if lost - set(suite.differ):  # those that asyncio does not always pass do not count
        lost &= passes("asyncio", lost) | set(suite.differ)
    if changed := set(suite.differ) - lost:  # it may have been luck
        lost |= changed - passes("nbloop", changed)
    assert lost - set(suite.differ) == set()
    assert set(suite.differ) <= lost, "what was explained is no longer so"
    seen[suite.library] = len(passed - lost), suite.differ
