"""The poller under test, in each of its kinds that can run here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.makers import MAKERS


@pytest.fixture(params=MAKERS)
def make_poller(request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    """`make_poller()`: a poller of the kind under test, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make() -> Any:
            made = MAKERS[request.param]()
            stack.callback(made.close)
            return made

        make.kind = request.param  # type: ignore[attr-defined]
        yield make


@pytest.fixture
def poller(make_poller: Callable[[], Any]) -> Any:
    return make_poller()
