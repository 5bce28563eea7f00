"""Two callbacks that each see and set a context variable: what tests of contexts schedule in every way there is."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

who: ContextVar[str] = ContextVar("who", default="nobody")


def two(schedule: Callable[[Callable[..., object]], object]) -> tuple[Callable[[], None], list[str]]:
    """Returns a function that schedules two callbacks, and the list of what they see.

    `who` is "a" when the first is scheduled, "b" for the second, and changes once more afterwards. Each callback sets
    it too, so one that has no context of its own shows in the next.
    """
    seen: list[str] = []

    def call() -> None:
        seen.append(who.get())
        who.set("dirty")

    def main() -> None:
        for name in ("a", "b"):
            who.set(name)
            schedule(call)
        who.set("too late")

    return main, seen
