"""nbloop's loop in the place of asyncio's, for tests that make loops of asyncio's: CPython's, and other libraries' own
(suites/).
"""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import nbloop


class Stand(nbloop.EventLoop):
    """Replaces `asyncio.SelectorEventLoop`, which takes a selector as its argument."""

    made = 0  # how many there were

    def __init__(self, selector: Any = None) -> None:
        Stand.made += 1
        if selector is not None:
            selector.close()
        super().__init__()


def stand_for_asyncio() -> None:
    """From now on, asyncio makes these loops, by name and through the policy."""
    asyncio.SelectorEventLoop = asyncio.EventLoop = Stand  # type: ignore[misc]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # since 3.14
        policy: Any = getattr(asyncio, "DefaultEventLoopPolicy", None)
    if policy is not None:  # before 3.16
        policy._loop_factory = Stand
