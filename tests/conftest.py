"""Shared by the contract tests. Nothing here sleeps to wait for something: it waits for the thing, and fails after a
while.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from nbloop import FastPathMode, IOEvents, Loop, LoopState
from tests.support import waiting

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell without job control has it for what runs behind it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Neither an example nor the making of examples fails for its time: on a busy machine one takes whatever it takes.
settings.register_profile("nbloop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nbloop")


@pytest.fixture
def make_loop() -> Iterator[Callable[..., Loop]]:
    """`make_loop(**options)`: a loop that is closed at the end of the test."""
    made: list[Loop] = []

    def make(**options: Any) -> Loop:
        made.append(Loop(**options))
        return made[-1]

    yield make
    for loop in made:
        loop.close()


@pytest.fixture
def no_collections() -> Iterator[None]:
    """The interpreter does not collect by itself: each collection is an event of every recorder."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def loop(make_loop: Callable[..., Loop]) -> Loop:
    """A loop with default options, closed at the end of the test."""
    return make_loop()


@pytest.fixture(params=list(FastPathMode), ids=lambda mode: mode.value)
def mode(request: pytest.FixtureRequest) -> FastPathMode:
    """Each fast path mode."""
    return request.param


@pytest.fixture
def turns() -> Callable[..., None]:
    """`turns(loop, n=1)`: run n single turns on this thread, without waiting."""

    def turns(loop: Loop, n: int = 1) -> None:
        for _ in range(n):
            loop.stop()
            loop.run()

    return turns


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """`wait_for(event)` or `wait_for(predicate)`: return when it is set or true, fail if it never is."""

    return waiting.wait_for


@pytest.fixture
def asleep(wait_for: Callable[..., None]) -> Callable[[Loop], None]:
    """`asleep(loop)`: return when the loop, which runs in another thread, sleeps."""
    return lambda loop: wait_for(lambda: loop.state is LoopState.SLEEPING)


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """`together(count, function)`: call `function(i)` on that many threads at once; results and exceptions in order."""
    return waiting.together


@pytest.fixture
def elsewhere() -> Callable[..., Any]:
    """`elsewhere(function, *args)`: call it on another thread, and return or raise what it did."""

    return waiting.elsewhere


@pytest.fixture
def descriptors() -> Callable[[], list[str]]:
    """`descriptors()`: the numbers of this process's open descriptors, and what they refer to."""
    if sys.platform != "linux":
        pytest.skip("only Linux lists a process's descriptors")

    def descriptors() -> list[str]:
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the one that listed the directory
                found.append(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        return sorted(found)

    return descriptors


@pytest.fixture
def run_script() -> Callable[..., str]:
    """`run_script(code, **env)`: what a fresh interpreter prints that runs `code`; it must end well."""

    def run_script(code: str, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_script


@pytest.fixture
def pair() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """`pair()`: two connected stream sockets that do not block, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make() -> tuple[socket.socket, socket.socket]:
            made = socket.socketpair()
            for one in made:
                stack.enter_context(one)
                one.setblocking(False)
            return made

        yield make


@pytest.fixture
def seen() -> Any:
    """A callback that remembers its calls, and the list it remembers them in: `seen(fd, events)`, `seen.calls`."""

    def seen(fd: int, events: IOEvents) -> None:
        seen.calls.append((fd, events))

    seen.calls = []
    return seen
