"""The loop's table of readers and writers, while signal handlers change it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import pytest

import nbloop
from nbloop.kernels.turn.fd_watches import DECLINED, UNKNOWN
from tests.support.arrivals import Arrivals, Place, at_each_place, compiled_only, described, handled

epoll_only = pytest.mark.skipif(sys.platform != "linux", reason="kernels change epoll's entries, and no other poller's")


def stopped(_loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call a function while the loop does not run: it changes the core's table in Python."""
    function()


def running(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call a function in the loop, which watches another descriptor: a kernel changes the core's table."""

    async def main() -> None:
        other, end = socket.socketpair()
        with other, end:
            loop.add_reader(other, print)
            try:
                function()
            finally:
                loop.remove_reader(other)

    loop.run_until_complete(main())


where = pytest.mark.parametrize("where", [stopped, running])


@compiled_only
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("side", ["reader", "writer"])
@where
def test_a_handler_removes_one_side_while_the_other_is_added(
    where: Callable[..., None], side: str, raises: bool
) -> None:
    """What the loop's table says is what the core watches, and what the handler removed stays removed."""

    def attempt(arrivals: Arrivals, at: Place | None) -> None:
        loop = nbloop.new_event_loop()
        here, there = socket.socketpair()
        with here, there, contextlib.closing(loop):
            add, remove = (getattr(loop, f"{name}_{side}") for name in ("add", "remove"))
            other = "writer" if side == "reader" else "reader"
            getattr(loop, f"add_{other}")(here, print)

            def handler(*_: object) -> None:
                getattr(loop, f"remove_{other}")(here)
                if raises:
                    raise ZeroDivisionError

            with handled(signal.SIGINT, handler), contextlib.suppress(ZeroDivisionError):
                where(loop, lambda: arrivals.during(lambda: add(here, print), at, signal.SIGINT))
            key = loop._selector.get_map().get(here)
            table = loop.core._descriptors.table
            assert (key is not None) is (here.fileno() in table), described(at)
            if key is not None:
                assert key.events == table._interests[here.fileno()], described(at)
            if arrivals.arrived:
                assert key is None or key.data[side == "reader"] is None, described(at)
            if not raises:
                assert remove(here), described(at)

    at_each_place(attempt)


@compiled_only
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("again", [False, True])
@where
def test_a_handler_removes_what_is_being_added(where: Callable[..., None], again: bool, raises: bool) -> None:
    """And adds another one in its place, with `again`: the descriptor can be watched afterwards."""

    def attempt(arrivals: Arrivals, at: Place | None) -> None:
        loop = nbloop.new_event_loop()
        here, there = socket.socketpair()
        with here, there, contextlib.closing(loop):

            def handler(*_: object) -> None:
                loop.remove_reader(here)
                if again:
                    loop.add_reader(here, repr, 1)
                if raises:
                    raise ZeroDivisionError

            with handled(signal.SIGINT, handler), contextlib.suppress(ZeroDivisionError):
                where(loop, lambda: arrivals.during(lambda: loop.add_reader(here, repr, 2), at, signal.SIGINT))
            known = here.fileno() in loop.core._descriptors.table
            assert (loop._selector.get_map().get(here) is not None) is known, described(at)
            assert known or arrivals.arrived, described(at)
            there.send(b"x")
            loop.add_reader(here, loop.stop)
            loop.run_forever()

    at_each_place(attempt)


@compiled_only
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("again", [False, True])
@where
def test_a_handler_adds_while_a_reader_is_removed(where: Callable[..., None], again: bool, raises: bool) -> None:
    """And removes it first, with `again`: the table and the core agree."""

    def attempt(arrivals: Arrivals, at: Place | None) -> None:
        loop = nbloop.new_event_loop()
        here, there = socket.socketpair()
        with here, there, contextlib.closing(loop):
            loop.add_reader(here, repr, 1)

            def handler(*_: object) -> None:
                if again:
                    loop.remove_reader(here)
                loop.add_reader(here, repr, 2)
                if raises:
                    raise ZeroDivisionError

            with handled(signal.SIGINT, handler), contextlib.suppress(ZeroDivisionError):
                where(loop, lambda: arrivals.during(lambda: loop.remove_reader(here), at, signal.SIGINT))
            known = here.fileno() in loop.core._descriptors.table
            assert (loop._selector.get_map().get(here) is not None) is known, described(at)
            there.send(b"x")
            loop.add_reader(here, loop.stop)
            loop.run_forever()

    at_each_place(attempt)


@epoll_only
def test_kernels_change_the_table_only_where_they_may() -> None:
    """In the loop's own thread, while nobody has the lock, and the loop is not forced to its fast path."""
    loop = nbloop.new_event_loop()
    here, there = socket.socketpair()
    with here, there, contextlib.closing(loop):
        fd, selector = here.fileno(), loop._selector
        core = loop.core

        def begin() -> int:
            return selector._begin_here(fd, print, 1)

        def finish() -> int:
            return selector._finish_here(fd)

        def elsewhere(function: Callable[[], int]) -> int:
            found: list[int] = []
            thread = threading.Thread(target=lambda: found.append(function()))
            thread.start()
            thread.join()
            return found[0]

        async def main() -> None:
            other, end = socket.socketpair()
            with other, end:
                assert begin() == finish() == DECLINED, "the loop does not sleep in epoll"
                loop.add_reader(other, print)
                assert elsewhere(begin) == elsewhere(finish) == DECLINED
                held, done = threading.Event(), threading.Event()

                def hold() -> None:
                    with core._lock:
                        held.set()
                        done.wait(60)

                thread = threading.Thread(target=hold)
                thread.start()
                held.wait(60)
                assert begin() == finish() == DECLINED, "another thread has the lock"
                done.set()
                thread.join()
                assert fd not in core._descriptors.table
                assert finish() == UNKNOWN
                assert begin() == 0
                assert core._descriptors.table.tokens[fd] > 0
                assert core._descriptors.table._interests[fd] == 1
                assert begin() == DECLINED, "it is registered"
                assert not core._lock._is_owned()
                assert finish() == 0
                assert finish() == UNKNOWN
                assert not core._lock._is_owned()
                loop.remove_reader(other)
                # It still sleeps in epoll; nobody may register now.
                core.set_fast_path_mode(nbloop.FastPathMode.FORCED)
                core._state.record["park_mode"] = core._descriptors.table.poller.park_mode
                assert begin() == DECLINED
                core._descriptors.install()
                core.set_fast_path_mode(nbloop.FastPathMode.AUTO)

        assert begin() == finish() == DECLINED, "the loop does not run"
        loop.run_until_complete(main())
        assert begin() == finish() == DECLINED
    assert begin() == finish() == DECLINED, "the loop is closed"


@epoll_only
def test_what_the_system_refuses_is_an_error_as_before() -> None:
    loop = nbloop.new_event_loop()
    here, there = socket.socketpair()
    with here, there, contextlib.closing(loop), open(os.devnull, "rb") as null, open(__file__, "rb") as file:

        async def main() -> None:
            loop.add_reader(here, print)
            for refused, error in ((file, PermissionError), (null, PermissionError), (1000, OSError)):
                with pytest.raises(error):
                    loop.add_reader(refused, print)
                assert loop._selector.get_map().get(refused) is None
                assert not loop.remove_reader(refused)
            loop.add_reader(there, print)
            there.close()
            assert loop.remove_reader(there)
            assert loop.remove_reader(here)

        loop.run_until_complete(main())


@epoll_only
def test_another_thread_registers_what_a_reader_is_removed_from() -> None:
    """With the core, in the instant of the removal. The removed reader is in no table."""
    loop = nbloop.new_event_loop()
    here, there = socket.socketpair()
    with here, there, contextlib.closing(loop):
        fd, selector, core = here.fileno(), loop._selector, loop.core
        finish = selector._finish_here

        def finish_and_lose_the_number(number: int) -> int:
            status = finish(number)
            thread = threading.Thread(target=core.register_fd, args=(fd, nbloop.IOEvents.READ, print))
            thread.start()
            thread.join()
            return status  # type: ignore[no-any-return]

        async def main() -> None:
            loop.add_reader(there, print)  # so that the loop sleeps in epoll
            loop.add_reader(fd, print)
            selector._finish_here = finish_and_lose_the_number
            assert loop.remove_reader(fd)
            assert fd not in selector._fd_to_key
            assert not loop.remove_reader(fd)
            assert fd in core._descriptors.table, "the other thread's"
            core.unregister_fd(fd)
            selector._finish_here = finish
            loop.remove_reader(there)

        loop.run_until_complete(main())
