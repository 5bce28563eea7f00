"""Fixtures of the JavaScript view's tests. Nothing here sleeps to wait for something: it waits for the thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.driver import Page


@pytest.fixture
def make_page() -> Iterator[Callable[..., Page]]:
    """`make_page(**options of the loop)`: a `Page` whose loop is closed at the end; no callback of it may have
    raised.
    """
    made: list[Page] = []

    def make(**options: Any) -> Page:
        made.append(Page(**options))
        return made[-1]

    yield make
    for page in made:
        page.loop.close()
    assert [error for page in made for error in page.errors] == []


@pytest.fixture
def page(make_page: Callable[..., Page]) -> Page:
    """A `Page` with default options."""
    return make_page()


@pytest.fixture
def js(page: Page) -> Any:
    """The view of `page`."""
    return page.js


@pytest.fixture(scope="module")
def shared() -> Iterator[Page]:
    """One `Page` for all tests of a module that leave nothing behind."""
    page = Page()
    yield page
    page.loop.close()
    assert page.errors == []
