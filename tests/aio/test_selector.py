"""The loop's table of readers and writers, while signal handlers change it."""

from __future__ import annotations

import contextlib
import signal
import socket

import pytest

import nbloop
from tests.support.arrivals import Arrivals, Place, at_each_place, compiled_only, described, handled


@compiled_only
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("side", ["reader", "writer"])
def test_a_handler_removes_one_side_while_the_other_is_added(side: str, raises: bool) -> None:
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
                arrivals.during(lambda: add(here, print), at, signal.SIGINT)
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
def test_a_handler_removes_what_is_being_added(again: bool, raises: bool) -> None:
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
                arrivals.during(lambda: loop.add_reader(here, repr, 2), at, signal.SIGINT)
            known = here.fileno() in loop.core._descriptors.table
            assert (loop._selector.get_map().get(here) is not None) is known, described(at)
            assert known or arrivals.arrived, described(at)
            there.send(b"x")
            loop.add_reader(here, loop.stop)
            loop.run_forever()

    at_each_place(attempt)
