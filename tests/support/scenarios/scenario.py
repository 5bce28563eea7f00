"""What a scenario is, and what several share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator

from nbloop import Loop
from tests.support.world import Scenario

type Steps = Generator[Callable[[], object]]

SCENARIOS: list[Scenario] = []
ONLY_CTRL_C: set[Scenario] = set()


def scenario(function: Scenario) -> Scenario:
    """Declare one."""
    SCENARIOS.append(function)
    return function


def of_ctrl_c(function: Scenario) -> Scenario:
    """Of one that only Ctrl-C may interrupt."""
    ONLY_CTRL_C.add(function)
    return function


class Count:
    """A callback that counts its calls. `add` is one without arguments that no signal can interrupt."""

    def __init__(self) -> None:
        self._calls: list[None] = []
        self.add = functools.partial(self._calls.append, None)

    @property
    def calls(self) -> int:
        """How many there were."""
        return len(self._calls)

    def __call__(self, *_arguments: object) -> None:
        self.add()


def until_quiet(loop: Loop) -> None:
    """Run turns on this thread until nothing is left to run."""
    while loop.alive():
        loop.stop()
        loop.run()
