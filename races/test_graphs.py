"""Random object graphs (tests/support/graphs.py) with AddressSanitizer's allocator under every object.

What is freed stays in quarantine, filled with a byte that no pointer has, so a kernel that follows a reference after
its release crashes, every time; memory freed twice is reported. Memory that is read out of bounds is not: neither the
interpreter nor the kernels are instrumented here (test_races.py instruments the kernels, under a driver in C).

On a build with the GIL only, because a free-threaded interpreter accepts no allocator but its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = "detect_leaks=0:max_free_fill_size=65536:free_fill_byte=221:quarantine_size_mb=256"
SECONDS = 300

ONE_RELEASE_TOO_MANY = """
import ctypes, nbloop
class Callback:
    def __call__(self):
        print("called")
loop, callback = nbloop.Loop(), Callback()
loop.submit(callback)
ctypes.pythonapi.Py_DecRef(ctypes.py_object(callback))
del callback
loop.submit(loop.stop)
loop.run()
print("nobody noticed")
"""


def python_with_gil() -> str:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return sys.executable
    other = ROOT / ".venv-gil" / "bin" / "python"
    if not other.exists():
        pytest.skip("needs a Python with the GIL, as `make test-gil` makes")
    return str(other)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("needs gcc, for its libasan")
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    library = Path(found.strip()).resolve()
    if not library.is_absolute() or not library.exists():
        pytest.skip("needs libasan, which comes with gcc")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    plain = {**os.environ, "PYTHONPATH": path}
    subprocess.run([python_with_gil(), "-c", "import nbloop"], env=plain, check=True, timeout=SECONDS)  # to compile
    return {**plain, "PYTHONMALLOC": "malloc", "LD_PRELOAD": str(library), "ASAN_OPTIONS": OPTIONS}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [python_with_gil(), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_nothing_is_used_after_its_release(environment: dict[str, str]) -> None:
    done = run(environment, "-m", "tests.support.graphs", "0", "60")
    assert done.returncode == 0, done.stderr
    assert "60 graphs" in done.stdout


def test_a_release_too_many_is_found(environment: dict[str, str]) -> None:
    done = run(environment, "-c", ONE_RELEASE_TOO_MANY)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr
    assert not done.stdout
