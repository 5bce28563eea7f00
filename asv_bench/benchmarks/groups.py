"""What does it cost to have several loops instead of one?"""

from __future__ import annotations

import itertools

import nbloop

TASKS = 10_000


class GroupSubmit:
    """A task for the less busy of two loops, beside a task for a loop that the caller names; no loop runs."""

    params = ("loop", "group", "group, by key")
    param_names = ("entrance",)

    def setup(self, entrance: str) -> None:
        self.group = nbloop.LoopGroup(2)
        numbers = itertools.cycle(range(64))
        self.submit = {
            "loop": self.group.loops[0].submit,
            "group": self.group.submit,
            "group, by key": lambda callback: self.group.submit_to(next(numbers), callback),
        }[entrance]

    def teardown(self, _entrance: str) -> None:
        self.group.close()

    def time_submit(self, _entrance: str) -> None:
        """Decides whether reading the words of two loops may be the way that a group takes for every task."""
        submit = self.submit
        for _ in range(TASKS):
            submit(int)


class GroupLife:
    """A group of two made, started and ended."""

    def time_make_start_and_end(self) -> None:
        """Decides whether a test or a job may have a group of its own."""
        with nbloop.LoopGroup(2):
            pass
