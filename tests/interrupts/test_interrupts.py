"""contract, Interruptions: a signal at any instruction of any call leaves everything whole."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbloop import Loop, LoopTerminatedError
from nbloop.js import Promise
from tests.support.arrivals import Arrivals, Interruption, Place, described, handled, interrupt
from tests.support.scenarios import ONLY_CTRL_C, SCENARIOS, Steps
from tests.support.waiting import PATIENCE
from tests.support.world import Scenario, World, outside, unchanged

EVERY = int(os.environ.get("NBLOOP_EVERY", "1"))  # of so many places one is tried, each day another
BATCH = 16  # attempts between two collections
HANGS = 20  # s


arrivals = Arrivals()

# A file that an exception leaves open between two instructions closes itself; `outside` shows that it did.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),  # before its first step
    pytest.mark.filterwarnings("ignore:.* loops, but the GIL is on"),
]


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
    before, held, arrived = outside(), [], 0
    with arrivals.watching():
        attempt(scenario, None, number)  # imports what the first call imports
        attempt(scenario, None, number)
        places = arrivals.places()
        first = int(time.time() // 86400) % min(EVERY, len(places))
        for count, at in enumerate(places[first::EVERY], 1):
            held += [(described(at), type(ref()).__qualname__, ref) for ref in attempt(scenario, at, number)]
            arrived += arrivals.arrived
            if count % BATCH == 0:
                unchanged(before, held)
                held.clear()
        unchanged(before, held)
    return arrived


def ignored(unraisable: Any) -> None:
    """`sys.unraisablehook`. Finalisers are interrupted too."""
    if not caused(unraisable.exc_value):
        surprises.append(repr(unraisable.exc_value))
        sys.__unraisablehook__(unraisable)


surprises: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """pytest keeps log records and unraisable exceptions, and their tracebacks keep the loop."""
    monkeypatch.setattr(logging.Logger, "handle", lambda _logger, _record: None)
    monkeypatch.setattr(sys, "unraisablehook", ignored)
    surprises.clear()
    yield
    assert surprises == []


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    with (
        handled(signal.SIGALRM, hangs),
        handled(signal.SIGUSR1, interrupt),
        handled(signal.SIGINT, signal.default_int_handler),
    ):
        yield


KINDS = {"ctrl-c": signal.SIGINT, "handler": signal.SIGUSR1}


@pytest.mark.parametrize(
    ("scenario", "number"),
    [
        pytest.param(scenario, number, id=f"{scenario.__name__}-{kind}")
        for scenario in SCENARIOS
        for kind, number in KINDS.items()
        if number == signal.SIGINT or scenario not in ONLY_CTRL_C
    ],
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
