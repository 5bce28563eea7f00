"""What every poller promises (`nbloop.pollers.Poller`), of each that can run here, with real sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time

import pytest

from nbloop import IOEvents
from nbloop.kernels.base.layout import READY_MOST
from tests.support.waiting import PATIENCE, drain

READ, WRITE, ERROR, HANGUP = (int(one) for one in (IOEvents.READ, IOEvents.WRITE, IOEvents.ERROR, IOEvents.HANGUP))
EDGE, ONESHOT = int(IOEvents.EDGE), int(IOEvents.ONESHOT)  # a poller takes numbers; the loop's users give the enum
SOON = 20_000_000  # ns in which nothing is to happen
TOKEN = (1 << 62) + 5  # all bits of a token come back


@pytest.fixture
def tcp():
    """`tcp()`: two ends of a connection over the network stack, which, unlike a socket pair, can be reset."""
    with contextlib.ExitStack() as stack:

        def make():
            with socket.create_server(("127.0.0.1", 0)) as listener:
                client = stack.enter_context(socket.create_connection(listener.getsockname()))
                server = stack.enter_context(listener.accept()[0])
            client.setblocking(False)
            server.setblocking(False)
            return client, server

        yield make


def wait(poller, *, quiet=False):
    """What the poller reports next, or, `quiet`, what it reports within a moment in which it should not."""
    deadline = time.monotonic() + (0.02 if quiet else PATIENCE)
    while True:
        found = poller.wait(SOON)
        if found or time.monotonic() >= deadline:
            return list(found)


def fill(one):
    """Send until there is no room."""
    with contextlib.suppress(BlockingIOError):
        while True:
            one.send(bytes(65536))


# --- readiness


def test_nothing(poller, pair):
    """Nothing to report: an empty result, at once or after the timeout."""
    assert not poller.wait(0)
    a, _b = pair()
    poller.add(a.fileno(), READ, TOKEN)
    start = time.monotonic()
    assert not poller.wait(50_000_000)
    assert time.monotonic() - start > 0.03


def test_read_is_level(poller, pair):
    """Reported by every wait until the socket is drained, and then no more."""
    a, b = pair()
    poller.add(a.fileno(), READ, TOKEN)
    b.send(b"xyz")
    for _ in range(3):
        assert wait(poller) == [(TOKEN, READ)]
    assert a.recv(1) == b"x"
    assert wait(poller) == [(TOKEN, READ)]
    assert drain(a) == b"yz"
    assert wait(poller, quiet=True) == []
    b.send(b"x")
    assert wait(poller) == [(TOKEN, READ)]


def test_write_is_level(poller, pair):
    """Reported as long as there is room."""
    a, b = pair()
    poller.add(a.fileno(), WRITE, TOKEN)
    for _ in range(3):
        assert wait(poller) == [(TOKEN, WRITE)]
    fill(a)
    assert wait(poller, quiet=True) == []
    while drain(b):
        pass
    assert wait(poller) == [(TOKEN, WRITE)]


def test_both_in_one(poller, pair):
    """READ and WRITE of one descriptor come as one pair."""
    a, b = pair()
    poller.add(a.fileno(), READ | WRITE, TOKEN)
    assert wait(poller) == [(TOKEN, WRITE)]
    b.send(b"x")
    deadline = time.monotonic() + PATIENCE
    while (found := wait(poller)) == [(TOKEN, WRITE)]:  # the byte is on its way
        assert time.monotonic() < deadline
    assert found == [(TOKEN, READ | WRITE)]


def test_oneshot(poller, pair):
    """Once, then silent until modify, also if it is ready all the time."""
    a, b = pair()
    poller.add(a.fileno(), READ | ONESHOT, TOKEN)
    b.send(b"x")
    assert wait(poller) == [(TOKEN, READ)]
    assert wait(poller, quiet=True) == []
    poller.modify(a.fileno(), READ | WRITE | ONESHOT, TOKEN)
    assert wait(poller) == [(TOKEN, READ | WRITE)]
    assert wait(poller, quiet=True) == []
    poller.modify(a.fileno(), READ, TOKEN)
    assert [wait(poller) for _ in range(2)] == [[(TOKEN, READ)]] * 2


def test_edge(poller, make_poller, pair):
    """Once for each arrival; or a refusal that leaves nothing behind, where the system cannot do it."""
    a, b = pair()
    if make_poller.kind == "iocp":
        with pytest.raises(OSError, match="EDGE") as refused:
            poller.add(a.fileno(), READ | EDGE, TOKEN)
        assert refused.value.errno == errno.EOPNOTSUPP
        poller.add(a.fileno(), READ, TOKEN)
        with pytest.raises(OSError, match="EDGE"):
            poller.modify(a.fileno(), WRITE | EDGE, TOKEN)
        assert wait(poller, quiet=True) == []
        return
    poller.add(a.fileno(), READ | EDGE, TOKEN)
    for _ in range(2):
        b.send(b"x")
        assert wait(poller) == [(TOKEN, READ)]
        assert wait(poller, quiet=True) == []


def test_modify(poller, pair):
    """From then on the new interest and the new token are reported, and nothing of the old ones."""
    a, b = pair()
    b.send(b"x")
    poller.add(a.fileno(), WRITE, TOKEN)
    assert wait(poller) == [(TOKEN, WRITE)]
    poller.modify(a.fileno(), READ, 7)
    assert wait(poller) == [(7, READ)]
    poller.modify(a.fileno(), READ | WRITE, 8)
    assert wait(poller) == [(8, READ | WRITE)]


def test_mute(poller, pair):
    """An interest of 0 reports nothing, not even a hang-up; modify brings it back."""
    a, b = pair()
    poller.add(a.fileno(), READ, TOKEN)
    poller.modify(a.fileno(), 0, TOKEN)
    b.send(b"x")
    b.close()
    poller.wait(SOON)  # an end that came is reported once at most
    assert wait(poller, quiet=True) == []
    poller.modify(a.fileno(), READ, TOKEN)
    ((token, events),) = wait(poller)
    assert (token, events & READ) == (TOKEN, READ)


def test_muted_from_the_start(poller, pair):
    a, b = pair()
    poller.add(a.fileno(), 0, TOKEN)
    b.send(b"x")
    assert wait(poller, quiet=True) == []
    poller.modify(a.fileno(), READ, TOKEN)
    assert wait(poller) == [(TOKEN, READ)]


def test_remove(poller, pair):
    """Silent at once; the descriptor can be added again, and then only the new token is reported."""
    a, b = pair()
    poller.add(a.fileno(), READ, TOKEN)
    b.send(b"x")
    assert wait(poller) == [(TOKEN, READ)]
    assert poller.remove(a.fileno())
    assert wait(poller, quiet=True) == []
    poller.add(a.fileno(), READ, 7)
    assert wait(poller) == [(7, READ)]


def test_removed_while_ready(poller, pair):
    """Ready, not yet collected, and removed: nothing is reported of it."""
    a, b = pair()
    poller.add(a.fileno(), READ, TOKEN)
    b.send(b"x")
    assert poller.remove(a.fileno())
    assert wait(poller, quiet=True) == []


def test_many(poller, pair):
    """Each that is ready once in one wait, no more than READY_MOST."""
    assert READY_MOST >= 100
    pairs = [pair() for _ in range(60)]
    for number, (a, b) in enumerate(pairs):
        poller.add(a.fileno(), READ, 100 + number)
        if number % 3:
            b.send(b"x")
    expected = [(100 + number, READ) for number in range(60) if number % 3]
    deadline = time.monotonic() + PATIENCE
    while sorted(found := wait(poller)) != expected:
        assert len(found) == len(set(found))
        assert time.monotonic() < deadline


# --- errors and ends


def test_half_close(poller, tcp):
    """The peer ends its half: READ, which finds the end, and HANGUP; a writer gets nothing."""
    a, b = tcp()
    poller.add(a.fileno(), READ, TOKEN)
    b.shutdown(socket.SHUT_WR)
    assert wait(poller) == [(TOKEN, READ | HANGUP)]
    assert a.recv(1) == b""
    poller.modify(a.fileno(), WRITE, TOKEN)
    assert wait(poller) == [(TOKEN, WRITE)]


def test_reset(poller, tcp):
    """The peer resets: ERROR and HANGUP, unasked."""
    a, b = tcp()
    fill(a)
    poller.add(a.fileno(), WRITE, TOKEN)
    assert wait(poller, quiet=True) == []
    b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("HH" if os.name == "nt" else "ii", 1, 0))
    b.close()
    ((token, events),) = wait(poller)
    assert (token, events & (ERROR | HANGUP)) == (TOKEN, ERROR | HANGUP)


def test_refused_connection(poller, make_poller):
    """A connection that nobody accepts: ERROR; SO_ERROR says which."""
    with socket.socket() as nobody, socket.socket() as client:
        nobody.bind(("127.0.0.1", 0))  # not listening
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(nobody.getsockname())
        poller.add(client.fileno(), WRITE, TOKEN)
        ((token, events),) = wait(poller)
        assert (token, events & (WRITE | ERROR)) == (TOKEN, WRITE | ERROR)
        if make_poller.kind != "libkqueue":  # which has already read it, and reading clears it
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        poller.remove(client.fileno())


def test_connecting_and_accepting(poller):
    """A listener is READ when somebody connects; a connection in progress is WRITE when it stands."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        client.setblocking(False)
        poller.add(listener.fileno(), READ, 1)
        assert wait(poller, quiet=True) == []
        with contextlib.suppress(BlockingIOError):
            client.connect(listener.getsockname())
        assert wait(poller) == [(1, READ)]
        poller.add(client.fileno(), WRITE, 2)
        poller.modify(listener.fileno(), 0, 1)
        assert wait(poller) == [(2, WRITE)]
        listener.accept()[0].close()
        poller.remove(client.fileno())
        poller.remove(listener.fileno())


def test_datagram(poller):
    """READ when a datagram is there, which stays there; the same for an empty one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.bind(("127.0.0.1", 0))
        poller.add(one.fileno(), READ, TOKEN)
        for text in (b"text", b""):
            one.sendto(text, one.getsockname())
            assert [wait(poller) for _ in range(2)] == [[(TOKEN, READ)]] * 2
            assert one.recv(10) == text
            assert wait(poller, quiet=True) == []
        poller.remove(one.fileno())


def test_no_pollable_descriptor(poller, tmp_path):
    """A regular file, and a number that is not a descriptor: the system's error, and nothing is watched."""
    # Windows has numbers of its own for sockets, and for what is none.
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError) as refused:  # noqa: PT011 # of its number below
        poller.add(file.fileno(), READ, TOKEN)
    assert refused.value.errno in (errno.EPERM, errno.ENOTSOCK, errno.EBADF)
    with pytest.raises(OSError):  # noqa: PT011 # which number is the system's affair
        poller.add(54_321, READ, TOKEN)
    assert wait(poller, quiet=True) == []


def test_closed_first(poller, pair):
    """Closed before it was removed: silent, and remove does not mind."""
    a, _b = pair()
    number = a.fileno()
    poller.add(number, READ, TOKEN)
    a.close()
    assert wait(poller, quiet=True) == []
    poller.remove(number)


# --- waking, and other threads


def test_wake(poller):
    """A wake ends the wait in progress; one that came before ends the next; neither is an event."""
    poller.wake()
    start = time.monotonic()
    assert not poller.wait(int(PATIENCE * 1e9))
    timer = threading.Timer(0.01, poller.wake)
    timer.start()
    assert not poller.wait(-1)
    timer.join()
    assert time.monotonic() - start < PATIENCE / 2
    start = time.monotonic()
    assert not poller.wait(50_000_000)
    assert time.monotonic() - start > 0.03, "a wake is left over"


def _while_waiting(poller, action):
    """What a `wait` without limit reports that was in progress, or about to be, when `action` was called."""
    found = []

    def body():
        while not found:
            found.extend(poller.wait(-1))

    thread = threading.Thread(target=body)
    thread.start()
    time.sleep(0.01)  # so that it probably waits; if it does not yet the result is the same
    action()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the wait does not see the change"
    return found


def test_add_while_waiting(poller, pair):
    a, b = pair()
    b.send(b"x")
    assert _while_waiting(poller, lambda: poller.add(a.fileno(), READ, TOKEN)) == [(TOKEN, READ)]


def test_modify_while_waiting(poller, pair):
    a, _b = pair()
    poller.add(a.fileno(), READ, TOKEN)
    assert _while_waiting(poller, lambda: poller.modify(a.fileno(), READ | WRITE, 7)) == [(7, WRITE)]


def test_added_by_a_thread_that_ends(poller, pair, elsewhere):
    """A watch outlives the thread that made it."""
    a, b = pair()
    elsewhere(poller.add, a.fileno(), READ, TOKEN)
    elsewhere(poller.modify, a.fileno(), READ, 7)
    assert wait(poller, quiet=True) == []
    b.send(b"x")
    assert wait(poller) == [(7, READ)]


def test_two_pollers(make_poller, pair):
    """A descriptor can be watched by two at once: each reports it, and one that ends leaves the other be."""
    one, two = make_poller(), make_poller()
    a, b = pair()
    one.add(a.fileno(), READ, 1)
    two.add(a.fileno(), READ, 2)
    b.send(b"x")
    assert (wait(one), wait(two)) == ([(1, READ)], [(2, READ)])
    one.remove(a.fileno())
    assert (wait(one, quiet=True), wait(two)) == ([], [(2, READ)])


def test_storm(poller, pair, together):
    """Changes from another thread at every moment of a wait: what is reported is one of the tokens that it had, and
    after the last change only that.
    """
    a, b = pair()
    b.send(b"x")
    poller.add(a.fileno(), READ, 1)
    lock = threading.Lock()  # as the loop's: changes are serialised, the wait is not
    done = threading.Event()

    def change():
        for token in range(2, 200):
            with lock:
                if token % 5:
                    poller.modify(a.fileno(), READ if token % 2 else READ | ONESHOT, token)
                else:
                    poller.remove(a.fileno())
                    poller.add(a.fileno(), READ | WRITE, token)
        done.set()

    def look():
        seen = set()
        while not done.is_set():
            seen.update(poller.wait(1_000_000))
        return seen

    (_, seen) = together(2, lambda number: look() if number else change())
    assert isinstance(seen, set), seen
    assert {token for token, _ in seen} <= set(range(1, 200))
    assert all(events in (READ, READ | WRITE) for _, events in seen)
    assert [wait(poller) for _ in range(2)] == [[(199, READ)]] * 2
