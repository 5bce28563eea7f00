"""The list of planted bugs is about the kernels as they are, and about tests that exist. ``make mutate`` runs it."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.support.mutants import MUTANTS, Mutant, planted

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_can_be_planted(mutant: Mutant) -> None:
    """Its text occurs once, what comes out is Python, and not the same."""
    source = mutant.path(ROOT / "nbloop").read_text(encoding="utf-8")
    broken = planted(source, (mutant.old, mutant.new), where=mutant.module)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_names_tests_that_exist(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        path, *names = test.split("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        bare = [name.partition("[")[0] for name in names]  # without a parameter's id
        assert all(f"def {name}(" in text or f"class {name}:" in text for name in bare), test


def test_names_are_unique() -> None:
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1


def test_what_has_changed_is_noticed() -> None:
    for source in ("nothing of the kind", "once, and once"):
        with pytest.raises(LookupError, match="stack has changed"):
            planted(source, ("once", "twice"), where="stack")
