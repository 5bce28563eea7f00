"""The reference of the site (docs/site/reference): every public name is there, and says what it does."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
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
    """Under one of the modules that have it: two have a Queue."""
    whole = importlib.import_module(module)
    listed = [(name, getattr(sys.modules.get(of), name, None)) for _, of, name in ENTRIES]
    assert [name for name in whole.__all__ if (name, getattr(whole, name)) not in listed] == []


def test_every_name_is_there_once() -> None:
    names = [(module, name) for _, module, name in ENTRIES]
    assert len(names) == len(set(names)) > 60
    assert {("nbloop.asgi", "run"), ("nbloop.testing", "VirtualClock")} <= set(names)  # public without an `__all__`


def public(entry: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties, of the class or of a base of nbloop's own."""
    for base in entry.__mro__:
        if base.__module__.startswith("nbloop"):
            for attribute in vars(base):
                value = getattr(entry, attribute)
                if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                    yield attribute, value


@pytest.mark.parametrize(("kind", "module", "name"), ENTRIES)
def test_entries_are_documented(kind: str, module: str, name: str) -> None:
    """Also each public method and property, in the class or in a base of nbloop's own."""
    entry = found(module, name)
    assert inspect.isclass(entry) == (kind == "class")
    assert inspect.getdoc(entry)
    if kind == "function" or issubclass(entry, Enum):
        return
    assert [name for name, value in public(entry) if not inspect.getdoc(value)] == []


def all_text(entry: Any) -> str:
    """The docstring, and for a class those of its methods."""
    own = inspect.getdoc(entry) or ""
    return (
        "\n".join([own, *(inspect.getdoc(value) or "" for _, value in public(entry))])
        if inspect.isclass(entry)
        else own
    )


def is_record(entry: Any) -> bool:
    """Immutable, so that any thread may read it, and only what its own methods say can fail."""
    return is_dataclass(entry) and bool(vars(entry)["__dataclass_params__"].frozen)


SAYS = {
    "an example": re.compile(r"^ *>>> ", re.MULTILINE),
    "which threads": re.compile(r"thread", re.IGNORECASE),
    "which errors": re.compile(r"Error\b|\braise|\brefuse|\berrors\b"),
    "its complexity": re.compile(r"\bO\("),
}


@pytest.mark.parametrize(("kind", "module", "name"), ENTRIES)
def test_entries_say_what_a_caller_has_to_know(kind: str, module: str, name: str) -> None:
    """An example, which `make doctest` runs. Except for errors, constants and records: threads, errors, complexity."""
    entry = found(module, name)
    text = all_text(entry)
    plain = inspect.isclass(entry) and (issubclass(entry, BaseException | Enum) or is_record(entry))
    wanted = ["an example"] if plain else list(SAYS)
    assert [what for what in wanted if not SAYS[what].search(text)] == []


def parameters(function: Any) -> list[str]:
    try:
        return [one for one in inspect.signature(function).parameters if one != "self" and not one.startswith("_")]
    except (TypeError, ValueError):  # a class method's or property's, or of C
        return []


def of_asyncio(entry: Any, name: str) -> bool:
    return any(hasattr(base, name) for base in entry.__mro__ if base.__module__.startswith("asyncio"))


@pytest.mark.parametrize(("kind", "module", "name"), ENTRIES)
def test_every_parameter_is_named(kind: str, module: str, name: str) -> None:
    """In the docstring of its function, or of the class. Not where asyncio explains it, or another call makes it."""
    entry = found(module, name)
    own = inspect.getdoc(entry) or ""
    takers: list[tuple[str, Any]] = [(name, entry)]
    if inspect.isclass(entry):
        if issubclass(entry, BaseException | Enum):
            return
        takers = [(one, value) for one, value in public(entry) if not of_asyncio(entry, one)]
        if not is_record(entry) and not re.search(r"\b[Mm]ade by\b", own):
            takers.append(("__init__", entry.__init__))
    unnamed = [
        f"{one}({parameter})"
        for one, taker in takers
        for parameter in parameters(taker)
        if not re.search(rf"\b{parameter}\b", own + (inspect.getdoc(taker) or ""))
    ]
    assert unnamed == []
