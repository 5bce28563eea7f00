"""contract, Interruptions: a signal at any instruction of any call leaves everything whole."""

from __future__ import annotations

import contextlib
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbloop import Loop, LoopTerminatedError
from nbloop.js import Promise
from tests.support.arrivals import Arrivals, Interruption, Place, described, handled, interrupt
from tests.support.scenarios import SCENARIOS, Steps
from tests.support.waiting import PATIENCE
from tests.support.world import Scenario, World, outside, unchanged

# Scenarios that still fail at some place, and of which nothing is promised yet: docs/reliability.md names them.
OPEN = {
    *("start", "with_block", "run_while_it_shuts_down", "construct", "dump", "promisify_elsewhere"),
    *("promisify_in_a_callback", "register_first", "close_with_workers", "watch", "contention"),
}

BATCH = 16  # attempts between two collections
HANGS = 20  # s


arrivals = Arrivals()


def hangs(_number: int, _frame: object) -> None:
    """SIGALRM's handler: whatever the main thread waits in ends here."""
    raise AssertionError("hangs")


def attempt(scenario: Scenario, at: Place | None, number: int) -> list[weakref.ref[Any]]:
    """One run of a scenario with an interruption at one place."""
    world = World()
    steps = scenario(world)
    call = next(steps)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        try:
            arrivals.during(call, at, number)
        except BaseException as error:
            if not caused(error):
                raise
        for _ in steps:
            raise AssertionError("a scenario yields once")
        return world.end()
    except BaseException as error:
        error.add_note(f"the signal arrived at {described(at)}")
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def caused(error: BaseException | None) -> bool:
    """Is this the interruption, or what the standard library made of it?"""
    while error is not None:
        if isinstance(error, (Interruption, KeyboardInterrupt)):
            return True
        error = error.__cause__ or error.__context__
    return False


def everywhere(scenario: Scenario, number: int) -> int:
    """Interrupt at every place, one after the other; how many times."""
    with arrivals.watching():
        attempt(scenario, None, number)  # imports what the first call imports, and has all code instrumented
        attempt(scenario, None, number)
        before, held, arrived = outside(), [], 0
        for count, at in enumerate(arrivals.places(), 1):
            held += [(described(at), type(ref()).__qualname__, ref) for ref in attempt(scenario, at, number)]
            arrived += arrivals.arrived
            if count % BATCH == 0:
                unchanged(before, held)
                held.clear()
        unchanged(before, held)
    return arrived


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    with (
        handled(signal.SIGALRM, hangs),
        handled(signal.SIGUSR1, interrupt),
        handled(signal.SIGINT, signal.default_int_handler),
    ):
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1], ids=["ctrl-c", "handler"])
@pytest.mark.parametrize(
    "scenario",
    [one for one in SCENARIOS if one.__name__ not in OPEN],
    ids=lambda scenario: scenario.__name__,
)
def test_interrupted(scenario: Scenario, number: int) -> None:
    """Counts exact, the loop runs again and ends, nothing hangs, nothing is left."""
    assert everywhere(scenario, number) > 0


CALLS: dict[str, Callable[[Loop], object]] = {
    "promisify": lambda loop: loop.promisify(int),
    "shutdown": lambda loop: loop.shutdown(0),
    "producer": lambda loop: loop.producer(),
    "submit": lambda loop: loop.submit(int),
}


@pytest.mark.parametrize("inner", CALLS)
@pytest.mark.parametrize("outer", ["promisify", "shutdown", "producer"])
def test_called_in_a_handler(outer: str, inner: str) -> None:
    """contract: what may be called in a signal handler, in the middle of a call of the same loop."""
    promises: list[Any] = []

    def call(which: str, loop: Loop) -> None:
        with contextlib.suppress(LoopTerminatedError, TimeoutError):
            promises.append(CALLS[which](loop))

    def calls(world: World) -> Steps:
        loop = world.running()
        loop.promisify(int)  # the first one imports what it needs, which no handler may interrupt
        with handled(signal.SIGUSR2, lambda _number, _frame: call(inner, loop)):
            yield lambda: call(outer, loop)
        loop.shutdown(PATIENCE)
        assert [promise.state for promise in promises if isinstance(promise, Promise)].count("pending") == 0
        promises.clear()

    assert everywhere(calls, signal.SIGUSR2) > 0
