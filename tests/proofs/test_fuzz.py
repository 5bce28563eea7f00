"""Random byte strings as programs (program.py): whatever they say, the loop keeps its promises.

Some seconds of the suite, and the same programs each time. ``NBLOOP_FUZZ=30`` tries thirty times as many, others each
time; hypothesis keeps what fails in .hypothesis and begins with it the next time.
"""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.support import program, waiting

FACTOR = float(os.environ.get("NBLOOP_FUZZ", "1"))
EXAMPLES = 150


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.fixture(scope="module", autouse=True)
def _made_once() -> None:
    """Make what a process has only once (the thread that reads signals, and its pipe) before anything is counted."""
    program.World(bytes(2)).run()


@pytest.mark.slow
@settings(
    max_examples=int(EXAMPLES * FACTOR),
    derandomize=FACTOR <= 1,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.binary(min_size=100, max_size=500))
def test_any_bytes(code: bytes) -> None:
    """No byte string makes it lose work, run work twice, raise what is not documented, or keep what is not its own."""
    opened, threads = descriptors(), threading.active_count()
    world = program.World(code)
    try:
        world.run()
    except BaseException:
        note("\n".join(world.said))
        raise
    waiting.wait_for(lambda: threading.active_count() <= threads)
    assert descriptors() == opened
