"""What a wheel installs: run by scripts/test-wheel, in an environment that has numpy and nothing that compiles."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbloop.kernels.build import object_cache

pytestmark = pytest.mark.skipif(
    object_cache.status.source != "wheel" and "NBLOOP_TEST_WHEEL" not in os.environ,
    reason="nbloop is not installed from a wheel; `make test-wheel` has it so",
)

FIRST = """
import sys
import nbloop
loop = nbloop.Loop(auto_exit=True)
loop.submit(print, "a callback")
loop.run()
assert not {"numba", "llvmlite"} & set(sys.modules)
"""


def run(program: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a home of its own, whose cache may not be."""
    home = {"HOME": str(tmp_path), "NBLOOP_CACHE_DIR": str(tmp_path / "cache")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | home | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_kernels_are_the_wheels() -> None:
    assert object_cache.status.source == "wheel"
    assert object_cache.status.problem == ""
    assert object_cache.status.target in ("generic", "x86-64-v3")


def test_nothing_that_compiles_is_here() -> None:
    """Else the other tests would show nothing."""
    assert importlib.util.find_spec("numba") is None
    assert importlib.util.find_spec("llvmlite") is None


def test_numpy_alone_is_required() -> None:
    required = [line for line in importlib.metadata.requires("nbloop") or () if "extra ==" not in line]
    assert [re.split(r"[^a-z]", line)[0] for line in required] == ["numpy"]
    extras = [line for line in importlib.metadata.requires("nbloop") or () if re.search("extra == .jit.", line)]
    assert [re.split(r"[^a-z]", line)[0] for line in extras] == ["numba"]


def test_the_wheel_is_for_this_interpreter_only() -> None:
    """So pip installs it on no other."""
    tags = re.findall("^Tag: (.*)$", importlib.metadata.distribution("nbloop").read_text("WHEEL") or "", re.MULTILINE)
    assert tags
    python = "cp{}{}".format(*sys.version_info[:2])
    assert all(tag.startswith(f"{python}-{python}{getattr(sys, 'abiflags', '')}-") for tag in tags), tags
    assert not [tag for tag in tags if tag.endswith("any")]


@pytest.mark.parametrize("name", ["", "generic"])
def test_importing_compiles_writes_and_prints_nothing(tmp_path: Path, name: str) -> None:
    """By the best kernels for this processor, and by those for any."""
    ended = run(FIRST, tmp_path, NUMBA_CPU_NAME=name, PYTHONDONTWRITEBYTECODE="1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "a callback\n", "")
    assert list(tmp_path.iterdir()) == []


def test_kernels_run_as_plain_python_too(tmp_path: Path) -> None:
    ended = run(FIRST, tmp_path, NUMBA_DISABLE_JIT="1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "a callback\n", "")


def test_on_another_interpreter_the_import_says_how_to_go_on(tmp_path: Path) -> None:
    """One whose extension modules have another name, as each version and build has."""
    other = "import importlib.machinery as m\nm.EXTENSION_SUFFIXES.insert(0, '.cpython-399t-other.so')\nimport numpy\n"
    ended = run(other + FIRST, tmp_path)
    assert ended.returncode == 1
    reason = ended.stderr.splitlines()[-1]
    assert reason.startswith("ImportError: nbloop has no kernels for this interpreter")
    assert ".cpython-399t-other.so" in reason
    assert "pip install 'nbloop[jit]'" in reason


def test_doctor_says_which_kernels_and_why(tmp_path: Path) -> None:
    ended = run("from nbloop.__main__ import main; main(['doctor', '--json'])", tmp_path)
    facts = json.loads(ended.stdout)["kernels"]
    assert facts["source"] == "wheel"
    assert facts["target"] in Path(facts["file"]).name
    assert facts["why"]
    assert facts["problem"] is None
    ended = run("from nbloop.__main__ import main; main(['doctor'])", tmp_path, NUMBA_CPU_NAME="generic")
    assert "generic: NUMBA_CPU_NAME asks for it" in ended.stdout
    assert "loaded as they were installed" in ended.stdout
