"""Where a signal's handler can run: the places at which `Arrivals` makes signals arrive are all that there are."""

from __future__ import annotations

import signal
from typing import Any

from nbloop import Loop
from tests.support.arrivals import TESTS, Arrivals, Place, handled
from tests.support.waiting import PATIENCE


def test_the_places_are_all_that_there_are() -> None:
    """A signal before any instruction is handled where one before an instruction of `places` is."""
    arrivals = Arrivals()
    found: set[tuple[str, int]] = set()
    kept: list[Loop] = []  # finalisers run at any moment

    def note(_number: int, frame: Any) -> None:
        if not frame.f_code.co_filename.startswith(TESTS):
            found.add((frame.f_code.co_qualname, frame.f_lasti))

    def interrupted(place: Place | None) -> None:
        kept.append(Loop())
        arrivals.during(kept[-1].producer, place, signal.SIGUSR1)
        kept[-1].shutdown(PATIENCE)

    def handled_at(all_of_them: bool) -> set[tuple[str, int]]:
        found.clear()
        for place in arrivals.places(all_of_them):
            loop = Loop()
            arrivals.during(loop.producer, place, signal.SIGUSR1)
            loop.shutdown(PATIENCE)
        return set(found)

    with handled(signal.SIGUSR1, note), arrivals.watching():
        for _ in range(2):  # the first time all code is instrumented
            loop = Loop()
            arrivals.during(loop.producer, None, signal.SIGUSR1)
            loop.shutdown(PATIENCE)
        chosen = handled_at(False)
        assert len(chosen) > 20
        assert ("CountingLock.__enter__", 0) in chosen
        assert handled_at(True) - chosen == set()
