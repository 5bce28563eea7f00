"""ecosystem/libraries.py, on asyncio's loop and on nbloop's. A whole run writes its part of docs/compatibility.md."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecosystem import page
from ecosystem.conftest import BIN, SECONDS, SERVERS

CHECKS = Path(__file__).with_name("libraries.py")
LIBRARIES = sorted(set(re.findall(r'^@check\("(.*)"\)$', CHECKS.read_text(encoding="utf-8"), re.MULTILINE)))
SERVED = {"redis": "REDIS_URL", "asyncpg": "DATABASE_URL", "nats-py": "NATS_URL"}
LOOPS = ("asyncio", "nbloop")

type Seen = dict[tuple[str, str], tuple[str, str]]  # (library, loop): (version, what the page says)


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    found: Seen = {}
    yield found
    if len(found) == len(LIBRARIES) * len(LOOPS):
        write(found)


def write(seen: Seen) -> None:
    """The part of this Python, between its two marks."""
    rows = [
        "| " + " | ".join([library, seen[library, LOOPS[0]][0], *(seen[library, loop][1] for loop in LOOPS)]) + " |"
        for library in LIBRARIES
    ]
    lines = ["| library | version | passed on asyncio | passed on nbloop |", "|---|---|---|---|", *rows]
    page.write(f"<!-- {page.PYTHON}: written by make test-ecosystem -->", f"<!-- end of {page.PYTHON} -->", lines)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_library(library: str, loop: str, seen: Seen, request: pytest.FixtureRequest) -> None:
    """Each check passes."""
    found = page.version(library)
    if found is None:
        seen[library, loop] = "–", "no wheel"
        pytest.skip(f"{library} has no wheel for this Python")
    environment: dict[str, str] = request.getfixturevalue("environment")
    if variable := SERVED.get(library):
        environment[variable] = request.getfixturevalue(SERVERS[variable])
    answer = subprocess.run(
        [BIN / "python", CHECKS, loop, library],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    raised: dict[str, str | None] = json.loads(answer.stdout.splitlines()[-1])
    failed = {name: error for name, error in raised.items() if error is not None}
    seen[library, loop] = found, f"{len(raised) - len(failed)} of {len(raised)}"
    assert failed == {}, answer.stderr
