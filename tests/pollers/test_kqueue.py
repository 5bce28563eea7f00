"""Specific to kqueue: layouts and numbers of two systems, and a watch of two entries that behaves as one.

Over the stand-in of kevent_double.c, whose structures a C compiler has laid out.
"""

from __future__ import annotations

import errno
import os
import select
import sys

import pytest

from nbloop.kernels.base.layout import EDGE, ONESHOT, READ, WRITE
from nbloop.pollers import kqueue
from tests.support.makers import KqueueDouble, kevent_double

if sys.platform != "linux":
    pytest.skip("the stand-in for kqueue is made of Linux's epoll", allow_module_level=True)

TOKEN = 77


@pytest.fixture(params=["Darwin", "FreeBSD"])
def system(request):
    return request.param


@pytest.fixture
def poller(system):
    poller = KqueueDouble(system)
    yield poller
    poller.close()


@pytest.fixture
def changes(poller, monkeypatch):
    """What is asked of the system: (filter, flags) of each change."""
    asked = []
    control = poller._control

    def spy(*changes):
        asked.extend((which, flags) for which, flags, *_ in changes)
        control(*changes)

    monkeypatch.setattr(poller, "_control", spy)
    return asked


def test_layout(system):
    """The structure is the one that C makes of the system's declaration."""
    event = getattr(kqueue, system)
    library = kevent_double(system)
    names = ("ident", "filter", "flags", "fflags", "data", "udata")
    assert [getattr(event, name).offset for name in names] == [library.kevent_offset(i) for i in range(6)]
    assert kqueue.ctypes.sizeof(event) == library.kevent_offset(6) == {"Darwin": 32, "FreeBSD": 64}[system]


def test_numbers():
    """The constants are those of the system's own header, on a system that has them."""
    if not hasattr(select, "kqueue"):
        pytest.skip("Python knows the numbers of kqueue only where there is one")
    for name in ("EVFILT_READ", "EVFILT_WRITE", "EV_ADD", "EV_DELETE", "EV_ONESHOT", "EV_CLEAR", "EV_ERROR", "EV_EOF"):
        assert getattr(select, f"KQ_{name.replace('EVFILT', 'FILTER')}") == getattr(kqueue, name)


def test_one_change_for_each_entry(poller, changes, pair):
    """Only the entries that an interest needs are made, and only existing ones are removed."""
    add, delete = kqueue.EV_ADD, kqueue.EV_DELETE
    read, write = kqueue.EVFILT_READ, kqueue.EVFILT_WRITE
    a, _b = pair()
    steps = [
        (READ, [(read, add)]),
        (READ | WRITE, [(read, delete), (read, add), (write, add)]),
        (WRITE, [(read, delete), (write, delete), (write, add)]),
        (WRITE | EDGE, [(write, delete), (write, add | kqueue.EV_CLEAR)]),
        (READ | ONESHOT, [(read, add | kqueue.EV_ONESHOT), (write, delete)]),
        (0, [(read, delete)]),
    ]
    poller.add(a.fileno(), 0, TOKEN)
    assert changes == []
    for interest, expected in steps:
        poller.modify(a.fileno(), interest, TOKEN)
        assert changes == expected
        changes.clear()
    poller.remove(a.fileno())
    assert changes == []


def test_oneshot_of_two_entries(poller, changes, pair):
    """The entry that did not fire goes with the one that did."""
    a, b = pair()
    poller.add(a.fileno(), READ | WRITE | ONESHOT, TOKEN)
    assert list(poller.wait(0)) == [(TOKEN, WRITE)]
    assert (kqueue.EVFILT_READ, kqueue.EV_DELETE) in changes
    b.send(b"x")
    assert list(poller.wait(10_000_000)) == []


def slowly(poller, monkeypatch, meanwhile):
    """Let `meanwhile` happen between the system's answer to the next wait and its processing."""
    kevent = poller._kevent

    def slow(*arguments):
        count = kevent(*arguments)
        if arguments[2] == 0:
            monkeypatch.setattr(poller, "_kevent", kevent)
            meanwhile()
        return count

    monkeypatch.setattr(poller, "_kevent", slow)


def test_event_of_before_a_change(poller, pair, monkeypatch):
    """An event taken from the system before a change, and processed after it, is not reported, and does not disarm
    what is armed now.
    """
    a, b = pair()
    b.send(b"x")
    poller.add(a.fileno(), READ | ONESHOT, 1)
    slowly(poller, monkeypatch, lambda: poller.modify(a.fileno(), READ | ONESHOT, 2))
    assert list(poller.wait(0)) == []
    assert list(poller.wait(0)) == [(2, READ)]
    assert list(poller.wait(0)) == []


def test_event_of_before_a_removal(poller, pair, monkeypatch):
    """The same of a watch that is gone."""
    a, b = pair()
    b.send(b"x")
    poller.add(a.fileno(), READ, 1)
    slowly(poller, monkeypatch, lambda: poller.remove(a.fileno()))
    assert list(poller.wait(0)) == []
    poller.add(a.fileno(), READ, 2)
    assert list(poller.wait(0)) == [(2, READ)]


def test_failing_change_is_undone(poller, pair, monkeypatch):
    """One entry can be made, the other not: neither is there afterwards, and the watch reports what it did before."""
    a, b = pair()
    poller.add(a.fileno(), READ, TOKEN)
    control = poller._control

    def fails_to_write(*changes):
        control(*(change for change in changes if change[0] != kqueue.EVFILT_WRITE or change[1] & kqueue.EV_DELETE))
        if any(change[0] == kqueue.EVFILT_WRITE and change[1] & kqueue.EV_ADD for change in changes):
            raise OSError(errno.ENOMEM, "no entry left")

    monkeypatch.setattr(poller, "_control", fails_to_write)
    with pytest.raises(OSError, match="no entry left"):
        poller.modify(a.fileno(), READ | WRITE, 8)
    monkeypatch.undo()
    assert list(poller.wait(0)) == []
    b.send(b"x")
    assert list(poller.wait(1_000_000_000)) == [(TOKEN, READ)]


def test_unknown_descriptors(poller, pair):
    """modify of what was never added, and add of what is there: errors of the system's kind."""
    a, _b = pair()
    with pytest.raises(FileNotFoundError):
        poller.modify(a.fileno(), READ, TOKEN)
    poller.add(a.fileno(), READ, TOKEN)
    with pytest.raises(FileExistsError):
        poller.add(a.fileno(), READ, TOKEN)


def test_pipes(poller):
    """A pipe's ends, of which one is only read and one only written."""
    reader, writer = os.pipe()
    poller.add(reader, READ, 1)
    poller.add(writer, WRITE, 2)
    assert list(poller.wait(0)) == [(2, WRITE)]
    os.write(writer, b"x")
    assert sorted(poller.wait(0)) == [(1, READ), (2, WRITE)]
    poller.remove(writer)
    os.close(writer)
    os.read(reader, 1)
    ((token, events),) = poller.wait(1_000_000_000)
    assert (token, events & READ) == (1, READ)
    poller.remove(reader)
    os.close(reader)
