"""The kernels' memory orders forbid each outcome, each order is needed, and the tests quote the present kernels."""

from __future__ import annotations

from pathlib import Path

import litmus
import pytest
from litmus import TESTS, Litmus

ACCESSES = [
    pytest.param(test, number, weaker, id=f"{test.path.stem}: {access.module}.{access.function} {access.verb} {weaker}")
    for test in TESTS
    for number, access in enumerate(test.accesses)
    for weaker in access.weaker()
]
files = pytest.mark.parametrize("test", TESTS, ids=lambda test: test.path.stem)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for herd7's input."""
    if litmus.herd() is None:
        pytest.skip("no herd7 on this machine (scripts/fetch-herd gets it, on Debian)")
    return tmp_path


@files
def test_quotes_the_kernels_as_they_are(test: Litmus) -> None:
    for access in test.quoted:
        assert f"{access.verb}(" in access.quote, f"{access.quote} is no {access.verb}"
        assert access.quote in access.source(), f"not in {access.module}.{access.function}: {access.quote}"


@files
def test_outcome_is_forbidden(test: Litmus, folder: Path) -> None:
    right, said = litmus.forbidden(test, test.as_written(), folder)
    assert right, said


@files
def test_what_is_said_to_be_enough_is(test: Litmus, folder: Path) -> None:
    """The test holds with all orders at once as weak as it says they may be."""
    right, said = litmus.forbidden(test, [access.enough for access in test.accesses], folder)
    assert right, said


@pytest.mark.parametrize(("test", "number", "weaker"), ACCESSES)
def test_weaker_order_is_not_enough(test: Litmus, number: int, weaker: str, folder: Path) -> None:
    orders = test.as_written()
    orders[number] = weaker
    right, said = litmus.forbidden(test, orders, folder)
    assert not right, f"forbidden all the same:\n{said}"
