"""What the stress tests share: how much to do, threads that start together, waiting with a timeout, callables that
count.

``NBLOOP_STRESS`` scales every count: 1, the default, takes some seconds a test on two cores; an interpreter with the
GIL does a
tenth of it. ``NBLOOP_STRESS=20`` is for a night.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
SCALE = float(os.environ.get("NBLOOP_STRESS", "0.1" if GIL else "1"))
PATIENCE = 60.0  # seconds after which something that must happen is taken for lost


def scaled(full: int, least: int = 1) -> int:
    return max(least, int(full * SCALE))


class Crowd:
    """Threads that start at the same instant. Leaving the block waits for all of them, and raises what one of them
    raised.
    """

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        self.go = threading.Event()

    def add(self, function: Callable[..., object], *args: Any) -> None:
        def body() -> None:
            self.go.wait(PATIENCE)
            try:
                function(*args)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=body, daemon=True)
        self.threads.append(thread)
        thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a thread hangs"
        if self.errors:
            raise self.errors[0]


@contextmanager
def crowd() -> Iterator[Crowd]:
    made = Crowd()
    try:
        yield made
    finally:
        made.go.set()
    made.join()


def arrived(event: threading.Event, what: str) -> None:
    assert event.wait(PATIENCE), f"{what}: not within {PATIENCE:.0f} s"
