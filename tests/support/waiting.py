"""Shared by the tests: waiting for a thing instead of a time, and doing things on several threads."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 30.0  # seconds after which the tests give up


def together(count: int, function: Callable[[int], Any]) -> list[Any]:
    """What `function(i)` returns, or the exception it raises, on `count` threads that start at the same moment."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def body(i: int) -> None:
        barrier.wait(PATIENCE)
        try:
            results[i] = function(i)
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=body, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    return results


def elsewhere(function: Callable[..., Any], *args: Any) -> Any:
    """Call it on another thread, and return or raise what it did."""
    (result,) = together(1, lambda _: function(*args))
    if isinstance(result, Exception):
        raise result
    return result


@contextlib.contextmanager
def raises_elsewhere(kind: type[BaseException], function: Callable[..., Any], *args: Any) -> Iterator[None]:
    """A call that waits on another thread while the block runs, and which the block makes raise."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            function(*args)
        except kind as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert len(raised) == 1, f"{kind.__name__} was not raised"


def wait_for(what: threading.Event | Callable[[], object]) -> None:
    """Return when the event is set or the predicate is true; fail if it never is."""
    if isinstance(what, threading.Event):
        assert what.wait(PATIENCE), "the event was not set"
        return
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, f"{what} did not become true"
        time.sleep(0.0005)


def drain(one: socket.socket) -> bytes:
    """Read all there is from a socket that does not block."""
    got = []
    with contextlib.suppress(BlockingIOError):
        while chunk := one.recv(65536):
            got.append(chunk)
    return b"".join(got)
