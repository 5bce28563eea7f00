"""Every block of docs/recipes.md, run as its reader would run it, against real servers.

`NBLOOP_ECOSYSTEM` names the environment of scripts/ecosystem. The tests themselves do not run in it, as the plugins of
pytest that are among its libraries would then be theirs, too.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from ecosystem.conftest import SECONDS, SERVERS, free_port, installed
from tests.support.waiting import wait_for

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {"asyncpg", "distributed", "tornado"}  # libraries without a wheel for each Python


def sections() -> dict[str, list[tuple[str, str]]]:
    """The blocks, language and text, by the heading that they stand under."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: BLOCK.findall(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


SECTIONS = sections()


def write_files(name: str, folder: Path) -> dict[str, str]:
    """Write a section's files, each named by its first line."""
    files = {text.split("\n", 1)[0].removeprefix("# "): text for kind, text in SECTIONS[name] if kind != "console"}
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return files


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in SECTIONS if any(kind == "console" for kind, _ in SECTIONS[name])])
def test_recipe(name: str, tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest) -> None:
    """Its commands succeed and print what the page says."""
    text = "".join(block for _, block in SECTIONS[name])
    for library in NEEDS:
        if re.search(rf"^(import|from) {library}\b", text, re.MULTILINE) and not installed(library):
            pytest.skip(f"{library} has no wheel for this Python")
    if "curl" in text and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for variable, fixture in SERVERS.items():
        if variable in text:
            environment[variable] = request.getfixturevalue(fixture)
    write_files(name, tmp_path)
    consoles = "".join(block for kind, block in SECTIONS[name] if kind == "console").splitlines()
    commands = [line.removeprefix("$ ") for line in consoles if line.startswith("$ ")]
    expected = [line for line in consoles if not line.startswith("$ ")]
    script = subprocess.run(
        ["bash", "-c", "\n".join(["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", *commands])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout.splitlines() == expected, script.stderr


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def commands() -> dict[str, list[str]]:
    """What systemd and a container run."""
    unit = re.search(r"^ExecStart=(.*)$", dict(SECTIONS["systemd"])["ini"], re.MULTILINE)
    image = re.search(r"^CMD (.*)$", dict(SECTIONS["Containers"])["dockerfile"], re.MULTILINE)
    assert unit is not None
    assert image is not None
    return {"systemd": shlex.split(unit[1]), "container": json.loads(image[1])}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["systemd", "container"])
def test_what_a_service_runs(what: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """It serves, and SIGTERM ends it."""
    write_files("uvicorn", tmp_path)
    program, *arguments = commands()[what]
    assert Path(program).name == "nbloop"
    port = free_port()
    arguments[arguments.index("--port") + 1] = str(port)
    with subprocess.Popen(
        ["nbloop", *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "Application startup complete" in line:
                break
        wait_for(lambda: listens(port))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/world", timeout=SECONDS) as answer:
            assert json.load(answer) == {"hello": "world"}
        child.send_signal(signal.SIGTERM)
        _, log = child.communicate(timeout=SECONDS)
    assert "Application shutdown complete" in log
    assert child.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_one(tmp_path: Path) -> None:
    """systemd finds no fault with it, except that the program is not there."""
    write_files("systemd", tmp_path)
    command = ["systemd-analyze", "verify", str(tmp_path / "hello.service")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in answer.stderr.splitlines() if "hello.service" in line]
    assert [line for line in lines if "is not executable" not in line] == []
