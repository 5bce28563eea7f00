"""The pollers that can run here, each behind the interface of `nbloop.pollers.Poller`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbloop import Loop
from nbloop.kernels import readiness
from nbloop.kernels.atomics import monotonic_ns
from nbloop.kernels.parking import FOREVER
from nbloop.pollers import Poller


class KernelWaits:
    """epoll, whose waiting is the kernels': this runs their code, as plain Python, on the memory of a loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.poller: Any = self.loop._watches.open_poller()
        self.base = self.loop._state.ctypes.data
        self.io = self.loop._record["io"]

    def wait(self, timeout_ns: int) -> list[tuple[int, int]]:
        if timeout_ns == 0:
            failed = readiness.epoll_look(self.base)
        else:
            failed = readiness.epoll_sleep(self.base, FOREVER if timeout_ns < 0 else monotonic_ns() + timeout_ns)
        if failed:
            raise OSError(int(self.io["error"]), "epoll")
        pairs = self.loop._watches._ready[: 2 * int(self.io["ready_count"])]
        self.io["ready_count"] = self.io["ready_done"] = 0
        return list(zip(pairs[::2].tolist(), pairs[1::2].tolist(), strict=True))

    def close(self) -> None:
        self.loop.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.poller, name)


def _iocp() -> Poller:
    from nbloop.pollers.iocp import IocpPoller

    return IocpPoller()


MAKERS: dict[str, Callable[[], Any]] = {"win32": {"iocp": _iocp}, "linux": {"epoll": KernelWaits}}.get(sys.platform, {})


@pytest.fixture(params=MAKERS)
def make_poller(request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    """`make_poller()`: a poller of the kind under test, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make() -> Any:
            made = MAKERS[request.param]()
            stack.callback(made.close)
            return made

        make.kind = request.param  # type: ignore[attr-defined]
        yield make


@pytest.fixture
def poller(make_poller: Callable[[], Any]) -> Any:
    return make_poller()
