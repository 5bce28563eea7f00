"""The house: imports between the kernels' folders point one way, and no module of nbloop imports in a circle."""

from __future__ import annotations

import ast
import graphlib
import itertools
from pathlib import Path

import pytest

import nbloop
from nbloop.kernels.base.kernel import apart, helper, inlined, kernel
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
        assert not isinstance(node, ast.Import) or all(alias.name.split(".")[0] != "nbloop" for alias in node.names)
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


def test_no_module_imports_in_a_circle() -> None:
    """Neither at its import, nor in a function, nor for type checkers; the packages around an imported module count."""
    imports: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        imports[name] = {
            around
            for target in imported(path)
            for around in itertools.accumulate(target.split("."), "{}.{}".format)
            if around != name and not name.startswith(f"{around}.")  # the packages around itself are there already
        }
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules
    imports["nbloop.js.promise"].add("nbloop.js.view")
    with pytest.raises(graphlib.CycleError, match=r"nbloop\.js\.promise"):
        graphlib.TopologicalSorter(imports).prepare()


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


def test_kernels_index_no_arrays() -> None:
    """So numba has no index to check, and `make test-checked` and AddressSanitizer check their addresses instead."""
    compiled = {one.__name__ for one in (helper, inlined, apart, kernel)}
    found = 0
    for path in files().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            marks = {name.id for mark in node.decorator_list for name in ast.walk(mark) if isinstance(name, ast.Name)}
            if marks & compiled:
                found += 1
                indexed = [
                    ast.unparse(one) for line in node.body for one in ast.walk(line) if type(one) is ast.Subscript
                ]
                assert not indexed, f"{node.name} in {path.name} uses {indexed}"
    assert found > 500
