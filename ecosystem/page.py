"""docs/compatibility.md, the parts of which tests write, each for the Python that runs them."""

from __future__ import annotations

import platform
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from ecosystem.conftest import BIN

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
THREADED = "t" * bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
PYTHON = ".".join(platform.python_version_tuple()[:2]) + THREADED


def version(library: str) -> str | None:
    """None if it is not in the environment, because it has no wheel for this Python."""
    ask = "import importlib.metadata as m, sys; print(*{one.version for one in m.distributions(name=sys.argv[1])})"
    said = subprocess.check_output([BIN / "python", "-c", ask, library], text=True)
    return said.strip() or None


def write(begin: str, end: str, lines: Sequence[str]) -> None:
    """Put lines between two marks of the page, after one that names the Python."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(begin) == text.count(end) == 1, f"{PAGE} has no place for Python {PYTHON}"
    part = "\n".join([begin, f"CPython {platform.python_version()}{THREADED}:", "", *lines, end])
    PAGE.write_text("".join([text.partition(begin)[0], part, text.partition(end)[2]]), encoding="utf-8")
