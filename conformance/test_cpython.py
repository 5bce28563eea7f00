"""CPython's own asyncio tests, each module in a separate process, on nbloop's loop (cpython.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cpython
import pytest

if not cpython.available():
    pytest.skip("this Python was installed without its own tests", allow_module_level=True)


def run(module):
    return subprocess.run(
        [sys.executable, cpython.__file__, module],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("module", cpython.MODULES)
def test_module(module):
    """Some of these tests depend on timing: failures are rerun, as CPython's own runner does on its machines."""
    done = run(module)
    if done.returncode != 0:
        print(done.stderr[-10_000:])
        done = run(module)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-10_000:]
