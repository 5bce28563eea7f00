"""The Promela models in this folder, and how spin checks one.

A model's first comment names the kernel functions that it represents, each with a stamp of its source, so that nobody
can change a kernel without examining its models; then the variants that are checked, and the bugs, planted by a macro,
that must be found. ``python models/promela.py`` rewrites the stamps, after you have examined the models.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

from nbloop import Loop
from nbloop.descriptors import Descriptors
from tests.support import sources

FOLDER = Path(__file__).parent
STANDS_FOR = re.compile(r"^     (\w+)\.(\w+) ([0-9a-f]{12})$", re.MULTILINE)
MEMORY_MIB = 1500  # of one check, at most; the largest needs a quarter
SECONDS = 100  # a quiet machine needs 20 for the longest


@dataclass(frozen=True)
class Model:
    """One file."""

    path: Path

    @property
    def head(self) -> str:
        return self.path.read_text(encoding="utf-8").partition("*/")[0]

    def stamps(self) -> list[tuple[str, str, str]]:
        """Module, name and stamp of each function that the model represents."""
        return STANDS_FOR.findall(self.head)

    def checks(self) -> list[str]:
        """The variants that must hold, each a string of macros."""
        return [variant.strip() for variant in re.findall(r"^   check\b(.*)$", self.head, re.MULTILINE)]

    def bugs(self) -> list[str]:
        """The variants that must fail."""
        return re.findall(r"^   bug ([A-Z_ ]+):", self.head, re.MULTILINE)


MODELS = [Model(path) for path in sorted(FOLDER.glob("*.pml"))]

CLASSES = {"loop": Loop, "descriptors": Descriptors}  # by the name that models give them


def stamp(module: str, name: str) -> str:
    """Twelve digits that change with the code of a kernel function, or of a method of one of `CLASSES`, but not with
    its layout, comments, docstring, or inlining.
    """
    if module in CLASSES:
        function = getattr(CLASSES[module], name)
    else:
        home = sources.module(module)
        found = getattr(home, name)
        function = getattr(found, "function", found)
        assert function.__module__ == home.__name__, f"{name} is defined in {function.__module__}"
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list.clear()
    if ast.get_docstring(node) is not None:
        del node.body[0]
    return hashlib.sha256(ast.unparse(node).encode()).hexdigest()[:12]


def missing_tools() -> str:
    """The tools that spin needs and this machine lacks; empty if none."""
    return " and ".join(tool for tool in ("spin", "cc") if shutil.which(tool) is None)


def check(model: Model, variant: str, folder: Path) -> tuple[bool, str]:
    """Search every state of a variant; return whether all are right, and spin's output. `folder` is for its files."""
    macros = [f"-D{macro}" for macro in variant.split()]
    subprocess.run(["spin", "-a", *macros, model.path], cwd=folder, check=True, capture_output=True, timeout=SECONDS)
    options = ["-O1", "-w", "-DSAFETY", f"-DMEMLIM={MEMORY_MIB}"]
    subprocess.run(["cc", *options, "-o", "pan", "pan.c"], cwd=folder, check=True, timeout=SECONDS)
    done = subprocess.run(
        [folder / "pan", "-m100000"], cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS
    )
    found = re.search(r"errors: (\d+)", done.stdout)
    # A search that ran out of depth or memory is incomplete, which must not pass for "no error".
    if found is None or "max search depth too small" in done.stdout or "out of memory" in done.stdout:
        raise RuntimeError(f"the search of {model.path.name} ({variant}) is not complete:\n{done.stdout}")
    return found[1] == "0", done.stdout


def write_stamps() -> None:
    """Put the stamps of the present kernels into every model."""
    for model in MODELS:
        text = model.path.read_text(encoding="utf-8")
        model.path.write_text(
            STANDS_FOR.sub(lambda found: f"     {found[1]}.{found[2]} {stamp(found[1], found[2])}", text),
            encoding="utf-8",
        )


if __name__ == "__main__":
    write_stamps()
