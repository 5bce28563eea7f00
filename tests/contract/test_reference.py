"""The reference of the site (docs/site/reference): every public name is there, and says what it does."""

from __future__ import annotations

import importlib
import inspect
import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "site" / "reference"
ENTRY = re.compile(r"^\.\. auto(class|function):: ([\w.]+)\.(\w+)$", re.MULTILINE)
ENTRIES = [match for page in sorted(REFERENCE.glob("*.rst")) for match in ENTRY.findall(page.read_text("utf-8"))]


def found(module: str, name: str) -> Any:
    """The object of an entry."""
    return getattr(pytest.importorskip(module), name)


@pytest.mark.parametrize("module", ["nbloop", "nbloop.js", "nbloop.aio", "nbloop.observe"])
def test_every_public_name_is_in_the_reference(module: str) -> None:
    listed = {name for _, _, name in ENTRIES}
    assert set(importlib.import_module(module).__all__) <= listed


def test_every_name_is_there_once() -> None:
    names = [(module, name) for _, module, name in ENTRIES]
    assert len(names) == len(set(names)) > 60


@pytest.mark.parametrize(("kind", "module", "name"), ENTRIES)
def test_entries_are_documented(kind: str, module: str, name: str) -> None:
    """Also each public method and property, in the class or in a base of nbloop's own."""
    entry = found(module, name)
    assert inspect.isclass(entry) == (kind == "class")
    assert inspect.getdoc(entry)
    if kind == "function" or issubclass(entry, Enum):
        return
    undocumented = [
        f"{base.__name__}.{attribute}"
        for base in entry.__mro__
        if base.__module__.startswith("nbloop")
        for attribute, value in vars(base).items()
        if not attribute.startswith("_")
        and (callable(value) or isinstance(value, property))
        and not inspect.getdoc(value)
    ]
    assert undocumented == []
