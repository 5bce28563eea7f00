"""Every model holds in all its states, detects its planted bugs, and represents the present kernels."""

from __future__ import annotations

from pathlib import Path

import promela
import pytest
from promela import MODELS, Model


def variants(bugs: bool) -> list[object]:
    return [
        pytest.param(model, variant, id=f"{model.path.stem} {variant}".strip())
        for model in MODELS
        for variant in (model.bugs() if bugs else model.checks())
    ]


@pytest.fixture
def spin(tmp_path: Path) -> Path:
    """A folder for spin's files."""
    if missing := promela.missing_tools():
        pytest.skip(f"no {missing} on this machine (Debian: apt-get install spin gcc)")
    return tmp_path


@pytest.mark.parametrize(("model", "variant"), variants(bugs=False))
def test_holds(model: Model, variant: str, spin: Path) -> None:
    right, said = promela.check(model, variant, spin)
    print(said)
    assert right, said


@pytest.mark.parametrize(("model", "variant"), variants(bugs=True))
def test_planted_bug_is_found(model: Model, variant: str, spin: Path) -> None:
    right, said = promela.check(model, variant, spin)
    assert not right, f"the model holds in spite of {variant}:\n{said}"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.path.stem)
def test_stands_for_the_kernels_as_they_are(model: Model) -> None:
    assert model.stamps(), f"{model.path.name} does not say what it stands for"
    changed = [f"{m}.{n}" for m, n, recorded in model.stamps() if promela.stamp(m, n) != recorded]
    assert not changed, (
        f"changed since somebody looked whether {model.path.name} says the same: {', '.join(changed)}."
        " Look, correct the model, then: python models/promela.py"
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.path.stem)
def test_every_planted_bug_is_tried(model: Model) -> None:
    """A macro in the text that the head does not list would be a check that nobody runs."""
    text = model.path.read_text(encoding="utf-8")
    words = set(text.partition("*/")[2].replace("(", " ").replace(")", " ").split())
    planted = {word for word in words if word.startswith("BUG_")}
    assert planted == {word for bug in model.bugs() for word in bug.split() if word.startswith("BUG_")}
