"""The pollers that can run here, each behind the interface of `nbloop.pollers.Poller`."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbloop import Loop
from nbloop.kernels.base.atomics import monotonic_ns
from nbloop.kernels.ingress.parking import FOREVER
from nbloop.kernels.turn import fd_watches
from nbloop.pollers import Poller, kqueue


class KernelWaits:
    """epoll, whose waiting is the kernels': this runs their code, as plain Python, on the memory of a loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.poller: Any = self.loop._descriptors.table.open_poller()
        self.base = self.loop._state.ctypes.data
        self.io = self.loop._record["io"]

    def wait(self, timeout_ns: int) -> list[tuple[int, int]]:
        if timeout_ns == 0:
            failed = fd_watches.epoll_look(self.base)
        else:
            failed = fd_watches.epoll_sleep(self.base, FOREVER if timeout_ns < 0 else monotonic_ns() + timeout_ns)
        if failed:
            raise OSError(int(self.io["error"]), "epoll")
        pairs = self.loop._descriptors.table._ready[: 2 * int(self.io["ready_count"])]
        self.io["ready_count"] = self.io["ready_done"] = 0
        return list(zip(pairs[::2].tolist(), pairs[1::2].tolist(), strict=True))

    def close(self) -> None:
        self.loop.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.poller, name)


def _iocp() -> Poller:
    from nbloop.pollers.iocp import IocpPoller

    return IocpPoller()


@functools.cache
def kevent_double(name: str) -> ctypes.CDLL:
    """kevent_double.c as that system's; kept for the process, as threads of a failed test may still be in it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of kqueue")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kevent_double.so"
        source = Path(__file__).with_name("kevent_double.c")
        define = {"FreeBSD": "-DFREEBSD", "Darwin": "-DDARWIN"}[name]
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", define, "-pthread", "-o", library, source],
            check=True,
            timeout=60,
        )
        return ctypes.CDLL(str(library), use_errno=True)


class KqueueDouble(kqueue.KqueuePoller):
    """The poller for kqueue over the stand-in, in that system's terms."""

    def __init__(self, name: str) -> None:
        self.library = kevent_double(name)
        super().__init__(self.library, getattr(kqueue, name))

    def close(self) -> None:
        self.library.kqueue_gone(self.descriptor)
        super().close()


class Libkqueue(kqueue.Darwin):
    """``struct kevent`` of libkqueue, which has macOS's layout and FreeBSD's numbers."""

    user = kqueue.FreeBSD.user


def libkqueue() -> str | None:
    """Where libkqueue is, an implementation of kqueue over Linux's own calls that others have written and use. Hardly
    a distribution has it still: NBLOOP_LIBKQUEUE names one that was built from its source.
    """
    return os.environ.get("NBLOOP_LIBKQUEUE") or ctypes.util.find_library("kqueue")


MAKERS: dict[str, Callable[[], Any]] = {}
if sys.platform == "win32":
    MAKERS["iocp"] = _iocp
elif sys.platform == "linux":
    MAKERS["epoll"] = KernelWaits
    MAKERS["kqueue double Darwin"] = lambda: KqueueDouble("Darwin")
    MAKERS["kqueue double FreeBSD"] = lambda: KqueueDouble("FreeBSD")
    if found := libkqueue():
        MAKERS["libkqueue"] = lambda: kqueue.KqueuePoller(ctypes.CDLL(found, use_errno=True), Libkqueue)
else:
    MAKERS["kqueue"] = kqueue.KqueuePoller
