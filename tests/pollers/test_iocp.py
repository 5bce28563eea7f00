"""Specific to the completion port: memory that belongs to the system until a packet comes, even if cancelled."""

from __future__ import annotations

import ctypes
import errno
import gc
import socket
import sys
import weakref

import pytest

from nbloop.kernels.base.layout import EDGE, ONESHOT, READ, WRITE
from tests.support.waiting import PATIENCE

if sys.platform != "win32":
    pytest.skip("completion ports are Windows'", allow_module_level=True)

from nbloop.pollers import iocp


@pytest.fixture
def poller():
    poller = iocp.IocpPoller()
    yield poller
    poller.close()
    assert not poller._operations, "memory is freed that the system may write to"


def settle(poller, expected):
    """Take packets until only that many operations are in progress."""
    for _ in range(100):
        if len(poller._operations) == expected:
            return
        poller.wait(int(PATIENCE * 1e7))
    pytest.fail(f"{len(poller._operations)} operations, not {expected}")


def test_sizes():
    """The structures have the sizes that the system's headers give them on x86-64."""
    sizes = {iocp._Packet: 32, iocp._Status: 16, iocp._Poll: 16 + 32, iocp._Object: 48, iocp._Name: 16}
    assert {kind: ctypes.sizeof(kind) for kind in sizes} == sizes
    assert (iocp._POLL_INFO, iocp._POLL_BYTES) == (16, 32)


def test_cancelled_memory_lives_until_its_packet_comes(poller, pair):
    """A change cancels the operation in progress and starts another; the old one's memory stays until it is dequeued,
    and what its packet says is dropped.
    """
    a, b = pair()
    poller.add(a.fileno(), READ, 1)
    (operation,) = poller._operations.values()
    memory = weakref.ref(operation.memory)
    del operation
    poller.modify(a.fileno(), READ, 2)
    gc.collect()
    assert memory() is not None
    assert len(poller._operations) == 2
    settle(poller, 1)
    assert memory() is None
    b.send(b"x")
    assert list(poller.wait(int(PATIENCE * 1e9))) == [(2, READ)]


def test_each_watch_has_one_operation(poller, pair):
    """However often it is changed or has reported; a muted one and a spent ONESHOT have none."""
    pairs = [pair() for _ in range(5)]
    for number, (a, _b) in enumerate(pairs):
        poller.add(a.fileno(), READ, number)
    for round in range(20):
        for number, (a, _b) in enumerate(pairs):
            poller.modify(a.fileno(), READ, 10 * round + number)
    settle(poller, 5)
    poller.modify(pairs[0][0].fileno(), 0, 0)
    settle(poller, 4)
    poller.modify(pairs[1][0].fileno(), WRITE | ONESHOT, 1)
    settle(poller, 3)
    for a, _b in pairs:
        poller.remove(a.fileno())
    settle(poller, 0)


def test_close_waits_for_what_it_cancels(pair):
    a, _b = pair()
    poller = iocp.IocpPoller()
    poller.add(a.fileno(), READ, 1)
    poller.modify(a.fileno(), READ, 2)
    assert len(poller._operations) == 2
    poller.close()
    assert not poller._operations


def test_refusals_start_nothing(poller, pair):
    a, _b = pair()
    with pytest.raises(OSError, match="EDGE") as refused:
        poller.add(a.fileno(), READ | EDGE, 1)
    assert refused.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError):  # noqa: PT011 # ENOTSOCK, or EBADF for what is no handle at all
        poller.add(3, READ, 1)
    with pytest.raises(FileNotFoundError):
        poller.modify(a.fileno(), READ, 1)
    poller.add(a.fileno(), READ, 1)
    with pytest.raises(FileExistsError):
        poller.add(a.fileno(), READ, 1)
    assert len(poller._operations) == 1


def test_socket_that_is_closed_first(poller):
    """Its poll ends with "closed here": nothing is reported, nothing polled again, and its number can be watched again
    once it is removed.
    """
    one, other = socket.socketpair()
    number = one.fileno()
    poller.add(number, READ, 1)
    one.close()
    settle(poller, 0)
    assert not poller._due
    assert poller.remove(number)
    other.close()
