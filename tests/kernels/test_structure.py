"""The house: imports between the kernels' folders point one way, and no module of nbloop imports in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nbloop
from tests.support.sources import KERNELS, files

PACKAGE = Path(nbloop.__file__).parent
# From the ground up: a folder imports from itself and from those before it.
FLOORS = (
    "base",
    "memory",
    "observe",
    "ingress",
    "timers",
    "calls",
    "promises",
    "turn",
    "channels",
    "methods",
    "state",
    "build",
)
BENEATH = {"nbloop.unique"}  # imports nothing of nbloop: what may be copied, of kernels' objects as of all others
MOST_FILES = 8


def imported(path: Path) -> set[str]:
    """The modules of nbloop that a source imports, by full name; also those for type checkers only."""
    package = ("nbloop", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = ".".join((*package[: len(package) - node.level + 1], *([node.module] if node.module else [])))
            for alias in node.names:
                found.add(f"{start}.{alias.name}" if is_module(f"{start}.{alias.name}") else start)
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def floor(name: str) -> str:
    """The folder of a kernel's module."""
    return name.split(".")[2]


@pytest.mark.parametrize("folder", FLOORS)
def test_a_folder_imports_from_those_below_it_only(folder: str) -> None:
    below = FLOORS[: FLOORS.index(folder) + 1]
    for path in (KERNELS / folder).glob("*.py"):
        for name in imported(path) - BENEATH:
            assert name.startswith("nbloop.kernels."), f"{path} imports {name}, which is not a kernel's"
            assert floor(name) in below, f"{path} imports {name}, a floor above"


def test_the_folders_are_those() -> None:
    assert {path.name for path in KERNELS.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(FLOORS)


@pytest.mark.parametrize("folder", FLOORS)
def test_a_folder_is_small_and_says_what_lives_in_it(folder: str) -> None:
    files = [path for path in (KERNELS / folder).glob("*.py") if path.name != "__init__.py"]
    assert 1 < len(files) <= MOST_FILES
    assert ast.get_docstring(ast.parse((KERNELS / folder / "__init__.py").read_text(encoding="utf-8")))


def test_each_file_has_a_name_of_its_own() -> None:
    """Models, litmus tests and planted bugs name a file by its base name."""
    assert len(files()) > 35
