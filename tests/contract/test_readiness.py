"""Descriptors, contract row `register_fd` and behaviours 26 to 41: what callbacks receive, and what is refused.

Real sockets, pipes and files; single turns look at descriptors and do not sleep. Waiting is test_readiness_wait.py.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import sys
import threading
import time
import weakref

import pytest

from nbloop import (
    FDAlreadyRegisteredError,
    FDNotRegisteredError,
    FDOutOfRangeError,
    IOEvents,
    LoopState,
    LoopTerminatedError,
    NbloopError,
    readiness,
)
from tests.support.waiting import drain

READ, WRITE, ERROR, HANGUP = IOEvents.READ, IOEvents.WRITE, IOEvents.ERROR, IOEvents.HANGUP
EDGE, ONESHOT = IOEvents.EDGE, IOEvents.ONESHOT


# --- what is reported


def test_level(loop, turns, pair, seen):
    """contract: as long as it is ready, once in each turn; with the number and an IOEvents."""
    a, b = pair()
    loop.register_fd(a.fileno(), READ, seen)
    turns(loop, 3)
    assert seen.calls == []
    b.send(b"x")
    turns(loop, 3)
    assert seen.calls == [(a.fileno(), READ)] * 3
    assert type(seen.calls[0][1]) is IOEvents
    a.recv(10)
    turns(loop, 3)
    assert len(seen.calls) == 3


def test_edge(loop, turns, pair, seen):
    """contract, EDGE: a change is reported once, whatever is left to read; the next change again."""
    a, b = pair()
    loop.register_fd(a.fileno(), READ | EDGE, seen)
    for count in (1, 2):
        b.send(b"x")
        turns(loop, 3)
        assert seen.calls == [(a.fileno(), READ)] * count


def test_oneshot(loop, turns, pair, seen):
    """contract, ONESHOT: reported once, then silent until modify_fd."""
    a, b = pair()
    loop.register_fd(a.fileno(), READ | ONESHOT, seen)
    b.send(b"x")
    turns(loop, 3)
    assert len(seen.calls) == 1
    loop.modify_fd(a.fileno(), READ | ONESHOT)
    turns(loop, 3)
    assert len(seen.calls) == 2
    loop.modify_fd(a.fileno(), READ)
    turns(loop, 3)
    assert len(seen.calls) == 5


def test_write(loop, turns, pair, seen):
    """contract: WRITE as long as there is room; both together come in one call."""
    a, b = pair()
    loop.register_fd(a.fileno(), WRITE, seen)
    turns(loop)
    assert seen.calls == [(a.fileno(), WRITE)]
    b.send(b"x")
    loop.modify_fd(a.fileno(), READ | WRITE)
    turns(loop)
    assert seen.calls[1:] == [(a.fileno(), READ | WRITE)]
    with contextlib.suppress(BlockingIOError):
        while True:
            a.send(bytes(65536))
    loop.modify_fd(a.fileno(), WRITE)
    turns(loop, 2)
    assert len(seen.calls) == 2
    while drain(b):
        pass
    turns(loop)
    assert seen.calls[2:] == [(a.fileno(), WRITE)]


def test_half_close(loop, turns, pair, seen):
    """behaviour 37: the peer closes its half: HANGUP, with the READ that finds the end of the stream."""
    a, b = pair()
    loop.register_fd(a.fileno(), READ, seen)
    b.shutdown(socket.SHUT_WR)
    turns(loop)
    assert seen.calls == [(a.fileno(), READ | HANGUP)]
    assert a.recv(1) == b""


def test_half_close_is_no_news_for_a_writer(loop, turns, pair, seen):
    """A half-close stays true for ever: a watch that only writes does not get it repeatedly, and can still write."""
    a, b = pair()
    b.shutdown(socket.SHUT_WR)
    loop.register_fd(a.fileno(), WRITE, seen)
    turns(loop)
    assert seen.calls == [(a.fileno(), WRITE)]


def test_hangup_unasked(loop, turns, pair, seen):
    """contract: HANGUP is always reported."""
    a, b = pair()
    loop.register_fd(a.fileno(), WRITE, seen)
    b.close()
    turns(loop)
    assert seen.calls[0][1] & HANGUP


def test_error_unasked(loop, turns, seen):
    """contract: ERROR is always reported: here of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    try:
        loop.register_fd(writer, WRITE, seen)
        os.close(reader)
        turns(loop)
        assert seen.calls == [(writer, WRITE | ERROR)]
        loop.unregister_fd(writer)
    finally:
        os.close(writer)


def test_refused_connection(loop, turns, seen, wait_for):
    """A connection that nobody accepts: the callback gets the error."""
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))  # not listening
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(listener.getsockname())
        loop.register_fd(client.fileno(), WRITE, seen)
        wait_for(lambda: turns(loop) or seen.calls)
        assert seen.calls[0][1] & ERROR
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_descriptor_zero(run_script):
    """contract: 0 is a descriptor like any other."""
    printed = run_script(
        """
        import os, nbloop
        os.close(0)
        reader, writer = os.pipe()
        assert reader == 0
        loop = nbloop.Loop()
        loop.register_fd(0, nbloop.IOEvents.READ, lambda fd, events: (print(fd, os.read(fd, 9)), loop.shutdown()))
        os.write(writer, b"zero")
        loop.run()
        """
    )
    assert printed == "0 b'zero'\n"


# --- refusals


@pytest.mark.parametrize(
    ("fd", "error"),
    [(-1, FDOutOfRangeError), (1 << 40, FDOutOfRangeError), ("3", TypeError), (True, TypeError), (None, TypeError)],
)
def test_bad_descriptors(loop, fd, error):
    """contract: FDOutOfRangeError, a ValueError; TypeError for what is not a number. Each names the argument."""
    for call in (
        lambda: loop.register_fd(fd, READ, print),
        lambda: loop.modify_fd(fd, READ),
        lambda: loop.unregister_fd(fd),
    ):
        with pytest.raises(error, match="fd must be"):
            call()
    assert issubclass(FDOutOfRangeError, (ValueError, NbloopError))


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ("r", TypeError),
        (True, TypeError),
        (64, ValueError),
        (-1, ValueError),
        (EDGE, ValueError),
        (HANGUP | ERROR, ValueError),
    ],
)
def test_bad_events(loop, pair, events, error):
    a, _b = pair()
    with pytest.raises(error, match="events must"):
        loop.register_fd(a.fileno(), events, print)
    loop.register_fd(a.fileno(), READ, print)
    with pytest.raises(error, match="events must"):
        loop.modify_fd(a.fileno(), events)


def test_bad_callback(loop, pair):
    a, _b = pair()
    with pytest.raises(TypeError, match="callback must be callable, not 3"):
        loop.register_fd(a.fileno(), READ, 3)
    loop.register_fd(a.fileno(), READ, print)  # nothing was left behind


def test_twice(loop, pair, turns, seen):
    """behaviour 39: FDAlreadyRegisteredError, and the first registration stays."""
    a, b = pair()
    loop.register_fd(a.fileno(), READ, seen)
    with pytest.raises(FDAlreadyRegisteredError, match=f"descriptor {a.fileno()} "):
        loop.register_fd(a.fileno(), WRITE, print)
    b.send(b"x")
    turns(loop)
    assert seen.calls == [(a.fileno(), READ)]


def test_unknown(loop, pair):
    """behaviour 39: FDNotRegisteredError, a LookupError; also after it was unregistered."""
    a, _b = pair()
    for _ in range(2):
        with pytest.raises(FDNotRegisteredError, match=f"descriptor {a.fileno()} "):
            loop.modify_fd(a.fileno(), READ)
        with pytest.raises(LookupError):
            loop.unregister_fd(a.fileno())
        loop.register_fd(a.fileno(), READ, print)
        loop.unregister_fd(a.fileno())


def test_regular_file(loop, tmp_path, turns):
    """behaviour 39: refused with the system's own error, and no state is left behind."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        callback = lambda fd, events: None  # noqa: E731
        before = sys.getrefcount(callback)
        for _ in range(3):
            with pytest.raises(PermissionError):
                loop.register_fd(file.fileno(), READ, callback)
        assert sys.getrefcount(callback) == before
        assert len(loop._descriptors.table) == 0
        assert not loop.alive()
        turns(loop)
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        loop.register_fd(99_999, READ, print)
    assert raised.value.errno == errno.EBADF


def test_failing_modify_changes_nothing(loop, pair, turns, seen):
    """OSError from the system leaves the interest as it was."""
    a, b = pair()
    number = a.fileno()
    spare = os.dup(number)
    loop.register_fd(number, READ, seen)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.modify_fd(number, WRITE)
    os.dup2(spare, number)
    os.close(spare)
    b.send(b"x")
    turns(loop)
    assert seen.calls == [(number, READ)]


def test_after_the_end(loop, pair):
    """contract: LoopTerminatedError; what was registered is not any more."""
    a, _b = pair()
    loop.register_fd(a.fileno(), READ, print)
    loop.close()
    with pytest.raises(LoopTerminatedError):
        loop.register_fd(a.fileno(), READ, print)
    with pytest.raises(LoopTerminatedError):
        loop.modify_fd(a.fileno(), READ)
    with pytest.raises(FDNotRegisteredError):
        loop.unregister_fd(a.fileno())


def test_after_fork(run_script):
    """contract: the child's copy refuses, and holds no descriptor; the parent is untouched."""
    printed = run_script(
        """
        import os, socket, nbloop
        from nbloop import IOEvents
        a, b = socket.socketpair()
        before = len(os.listdir("/proc/self/fd"))
        loop = nbloop.Loop()
        loop.register_fd(a.fileno(), IOEvents.READ, lambda fd, events: (print(a.recv(9)), loop.stop()))
        child = os.fork()
        if child == 0:
            for call in (
                lambda: loop.register_fd(b.fileno(), IOEvents.READ, print),
                lambda: loop.modify_fd(a.fileno(), IOEvents.WRITE),
                lambda: loop.unregister_fd(a.fileno()),
            ):
                try:
                    call()
                except nbloop.ForkedLoopError:
                    print("refused")
            print(len(os.listdir("/proc/self/fd")) - before, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        b.send(b"parent")
        loop.run()
        loop.unregister_fd(a.fileno())
        """
    )
    assert printed.split() == ["refused"] * 3 + ["0", "b'parent'"]


# --- muting, unregistering, stale events


def test_mute(loop, turns, pair, seen):
    """contract: modify_fd(fd, 0) mutes, hang-ups included, and does not keep the loop from sleeping."""
    a, b = pair()
    loop.register_fd(a.fileno(), READ, seen)
    loop.modify_fd(a.fileno(), 0)
    b.send(b"x")
    b.close()
    turns(loop, 3)
    assert seen.calls == []
    loop.modify_fd(a.fileno(), READ)
    turns(loop)
    assert len(seen.calls) == 1
    assert seen.calls[0][1] & (READ | HANGUP) == READ | HANGUP


def test_muted_hangup_does_not_spin(loop, pair, asleep, wait_for):
    """contract: no busy loop, also with a muted descriptor whose peer is gone."""
    a, b = pair()
    loop.register_fd(a.fileno(), 0, print)
    with loop:
        b.close()
        for _ in range(20):
            done = threading.Event()
            loop.submit(done.set)
            wait_for(done)
            asleep(loop)
        assert int(loop._record["parks"]) <= 25


def first_of_two(loop, pair, action):
    """Two descriptors ready in one poll; the callback that comes first does `action(its fd, the other fd)`."""
    order = []

    def callback(fd, events):
        order.append(fd)
        if len(order) == 1:
            action(fd, next(other for other in watched if other != fd))

    watched = []
    for _ in range(2):
        a, b = pair()
        watched.append(a.fileno())
        b.send(b"x")
        loop.register_fd(a.fileno(), READ, callback)
    return order


def test_unregister_the_other(loop, turns, pair):
    """contract: of two in one batch, the first unregisters the second: it never starts."""
    order = first_of_two(loop, pair, lambda fd, other: loop.unregister_fd(other))
    turns(loop)
    assert len(order) == 1
    turns(loop)
    assert order == [order[0]] * 2


def test_unregister_itself(loop, turns, pair):
    """behaviour 30: a callback unregisters its own descriptor, and is released."""
    order = first_of_two(loop, pair, lambda fd, other: loop.unregister_fd(fd))
    turns(loop, 2)
    assert order[1] == order[2] != order[0]


def test_stale_event_after_register(loop, turns, pair, seen):
    """behaviour 31: collected, unregistered, registered again: the old event reaches nobody."""
    a, _b = pair()

    def action(fd, other):
        loop.unregister_fd(other)
        os.dup2(a.fileno(), other)  # the number now belongs to another file, which has nothing to read
        loop.register_fd(other, READ, seen)

    first_of_two(loop, pair, action)
    turns(loop, 3)
    assert seen.calls == []


def test_mute_the_other(loop, turns, pair):
    """behaviour 33: muted after its readiness was collected: not delivered; unmuted, it is."""
    muted = []
    order = first_of_two(loop, pair, lambda fd, other: (muted.append(other), loop.modify_fd(other, 0)))
    turns(loop)
    assert len(order) == 1
    loop.modify_fd(muted[0], READ)
    turns(loop)
    assert muted[0] in order


def test_unregister_from_elsewhere(loop, pair, together):
    """contract: after unregister_fd returns no callback starts, whichever thread called it."""
    a, b = pair()
    b.send(b"x")
    starts = [0]

    def callback(fd, events):
        starts[0] += 1

    def body(_):
        for _ in range(300):
            loop.register_fd(a.fileno(), READ, callback)
            while starts[0] == 0:
                time.sleep(0)  # with the GIL on, the loop's thread would wait 5 ms for it
            loop.unregister_fd(a.fileno())
            token = threading.Event()
            loop.submit(token.set)  # a turn later the callback that was in progress is over
            assert token.wait(30)
            before = starts[0]
            loop.submit((token := threading.Event()).set)
            assert token.wait(30)
            assert starts[0] == before
            starts[0] = 0

    with loop:
        assert together(1, body) == [None]


def test_register_unregister_storm(loop, pair, together, wait_for):
    """Threads that register, modify and unregister their own descriptors, always ready, while the loop dispatches them:
    nothing is left, and every callback is released.
    """
    count = 300

    def body(_):
        a, b = pair()
        b.send(b"x")
        calls = []
        for i in range(count):

            def callback(fd, events, calls=calls):
                calls.append(events)

            loop.register_fd(a.fileno(), READ, callback)
            if i % 3 == 0:
                loop.modify_fd(a.fileno(), 0)
            elif i % 3 == 1:
                loop.modify_fd(a.fileno(), READ | WRITE)
            gone = weakref.ref(callback)
            loop.unregister_fd(a.fileno())
            del callback
            wait_for(lambda gone=gone: gone() is None)
        return all(events in (READ, WRITE, READ | WRITE) for events in calls)

    with loop:
        assert together(4, body) == [True] * 4
    assert int(loop._record["io"]["watches"]) == 0


# --- closed before it was unregistered


def test_closed_and_forgotten(loop, turns, pair, seen):
    """behaviour 34: closed without unregister, the number used again: the watch does not reach the stranger."""
    a, _b = pair()
    number = a.fileno()
    loop.register_fd(number, READ, seen)
    a.close()
    c, d = pair()
    assert number in (c.fileno(), d.fileno())
    for one in (c, d):
        one.send(b"x")
    turns(loop, 3)
    assert seen.calls == []
    with pytest.raises(FDAlreadyRegisteredError):
        loop.register_fd(number, READ, print)
    with pytest.raises(FileNotFoundError):
        loop.modify_fd(number, READ | WRITE)
    loop.unregister_fd(number)
    loop.register_fd(number, READ, seen)
    turns(loop)
    assert seen.calls == [(number, READ)]


def test_closed_with_a_duplicate(loop, turns, pair, seen, asleep, wait_for):
    """Closed while a duplicate of it lives, then unregistered: what the system goes on reporting reaches nobody, and
    the loop does not spin.
    """
    a, b = pair()
    c, d = pair()
    number = a.fileno()
    duplicate = os.dup(number)
    muted, _e = pair()
    try:
        loop.register_fd(number, READ, seen)
        loop.register_fd(c.fileno(), READ, seen)
        loop.register_fd(muted.fileno(), 0, seen)
        a.close()
        loop.unregister_fd(number)
        b.send(b"x")  # the duplicate is readable, and for ever
        with loop:
            for _ in range(20):
                done = threading.Event()
                loop.submit(done.set)
                wait_for(done)
                asleep(loop)
            assert int(loop._record["turns"]) < 100
            assert seen.calls == []
            d.send(b"x")  # the others are watched as before
            wait_for(lambda: seen.calls)
            assert seen.calls[0] == (c.fileno(), READ)
    finally:
        os.close(duplicate)


def test_dup2_back(loop, turns, pair, seen):
    """Closed, unregistered, and back under its old number: the system still has the entry, and registering works."""
    a, b = pair()
    number, spare = a.fileno(), os.dup(a.fileno())
    loop.register_fd(number, WRITE, print)
    os.close(number)
    loop.unregister_fd(number)
    os.dup2(spare, number)
    os.close(spare)
    loop.register_fd(number, READ, seen)
    b.send(b"x")
    turns(loop, 2)
    assert seen.calls == [(number, READ)] * 2


# --- around a callback


def test_checkpoint_after_each(loop, turns, pair):
    """behaviour 35: two ready in one poll, the first queues a microtask: it runs before the second."""
    order = []

    def callback(fd, events):
        order.append("callback")
        loop.schedule_microtask(order.append, "microtask")

    for _ in range(2):
        a, b = pair()
        b.send(b"x")
        loop.register_fd(a.fileno(), READ, callback)
    turns(loop)
    assert order == ["callback", "microtask"] * 2


def test_phase(loop, turns, pair):
    """contract, order of a turn: descriptors before immediates, close callbacks, timers, internal, external tasks."""
    order = []
    a, b = pair()
    b.send(b"x")
    loop.submit(order.append, "external")
    loop.submit_internal(order.append, "internal")
    loop.schedule_timer(0, order.append, "timer")
    loop.schedule_close(order.append, "close")
    loop.schedule_immediate(order.append, "immediate")
    loop.schedule_microtask(order.append, "microtask")
    loop.register_fd(a.fileno(), READ, lambda fd, events: order.append("readiness"))
    turns(loop)
    assert order == ["microtask", "readiness", "immediate", "close", "timer", "internal", "external"]


def test_state_inside(loop, pair, wait_for):
    """The state inside a callback is RUNNING, also if the loop slept before."""
    a, b = pair()
    states = []

    def callback(fd, events):
        states.append((loop.state, loop.is_loop_thread()))
        drain(a)

    loop.register_fd(a.fileno(), READ, callback)
    with loop:
        wait_for(lambda: loop.state is LoopState.SLEEPING)
        b.send(b"x")
        wait_for(lambda: states)
    assert states == [(LoopState.RUNNING, True)]


def test_raising_callback(make_loop, turns, pair, seen):
    """behaviour 36: logged through on_error, the watch stays, others are served."""
    errors = []
    loop = make_loop(on_error=lambda error, context: errors.append((error, context)))
    a, b = pair()
    c, d = pair()
    b.send(b"x")
    d.send(b"x")

    def callback(fd, events):
        raise ValueError(fd)

    loop.register_fd(a.fileno(), READ, callback)
    loop.register_fd(c.fileno(), READ, seen)
    turns(loop, 2)
    assert [error.args for error, _ in errors] == [(a.fileno(),)] * 2
    assert errors[0][1]["kind"] == "readiness callback"
    assert errors[0][1]["callback"] is callback
    assert len(seen.calls) == 2


@pytest.mark.parametrize("leave", [KeyboardInterrupt, SystemExit])
def test_leaving_keeps_the_batch(loop, turns, pair, leave):
    """contract: KeyboardInterrupt leaves run(); what the poll reported once, by EDGE, is not lost."""
    order = []

    def callback(fd, events):
        order.append(fd)
        if len(order) == 1:
            raise leave

    for _ in range(3):
        a, b = pair()
        b.send(b"x")
        loop.register_fd(a.fileno(), READ | EDGE, callback)
    with pytest.raises(leave):
        turns(loop)
    assert len(order) == 1
    turns(loop, 2)
    assert len(set(order)) == len(order) == 3


def test_end_before_readiness(loop, pair):
    """behaviour 38: the end wins over readiness that was collected already."""
    order = first_of_two(loop, pair, lambda fd, other: loop.shutdown())
    loop.run()
    assert len(order) == 1
    assert loop.state is LoopState.TERMINATED


def test_close_from_elsewhere(loop, pair, wait_for):
    """close() with descriptors ready all the time: the loop ends, callbacks are released, descriptors stay open."""
    a, _b = pair()
    calls = []

    class Callback:
        def __call__(self, fd, events):
            calls.append(events)

    callback = Callback()
    gone = weakref.ref(callback)
    loop.register_fd(a.fileno(), WRITE, callback)
    del callback
    loop.start()
    wait_for(lambda: calls)
    loop.close()
    assert gone() is None
    a.send(b"still open")


@pytest.mark.skipif(sys.platform == "win32", reason="a socket's number is no descriptor there")
def test_a_closed_descriptor_as_the_first_one(make_loop):
    """The poller, which is made then, must not take its number: EBADF, and nothing is registered."""
    loop = make_loop()
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.close(fd)
    for fd in (reader, writer):
        with pytest.raises(OSError, match="descriptor") as told:
            loop.register_fd(fd, IOEvents.READ, print)
        assert told.value.errno == errno.EBADF
    assert not loop.alive()


class Odd(int):
    """A number whose hash is Python code."""

    def __hash__(self):
        raise AssertionError("hashed")


def test_a_subclass_of_int_is_its_number(loop, turns, pair):
    """No Python code runs where a kernel changes the table of descriptors."""
    a, b = pair()
    seen = []
    loop.register_fd(Odd(a.fileno()), READ, lambda fd, events: seen.append((type(fd), fd, events)))
    with pytest.raises(FDAlreadyRegisteredError):
        loop.register_fd(a.fileno(), READ, print)
    b.send(b"x")
    turns(loop)
    assert seen == [(int, a.fileno(), READ)]
    loop.modify_fd(Odd(a.fileno()), 0)
    loop.unregister_fd(Odd(a.fileno()))
    with pytest.raises(FDNotRegisteredError):
        loop.unregister_fd(a.fileno())


@pytest.fixture
def interrupt(monkeypatch):
    """`interrupt(target, name, handler)`: a signal handler that runs once, at the end of the next call of that name."""

    def interrupt(target, name, handler):
        original = getattr(target, name)

        def interrupted(*arguments):
            result = original(*arguments)
            monkeypatch.setattr(target, name, original)
            handler()
            return result

        monkeypatch.setattr(target, name, interrupted)

    return interrupt


@pytest.mark.parametrize("same", [False, True], ids=["another descriptor", "the same one"])
def test_a_handler_registers_while_the_poller_is_made(loop, turns, pair, descriptors, interrupt, same):
    """Its watch stays, and there is one poller."""
    (a, b), (c, d) = pair(), pair()
    inner, outer = (a if same else c), a
    seen = []
    interrupt(readiness, "make_poller", lambda: loop.register_fd(inner.fileno(), READ, lambda *_: seen.append("inner")))
    before = len(descriptors())
    if same:
        with pytest.raises(FDAlreadyRegisteredError):
            loop.register_fd(outer.fileno(), READ, print)
    else:
        loop.register_fd(outer.fileno(), READ, lambda *_: seen.append("outer"))
    gc.collect()
    assert len(descriptors()) <= before + 2  # epoll and its eventfd
    b.send(b"x")
    d.send(b"x")
    turns(loop)
    assert sorted(seen) == (["inner"] if same else ["inner", "outer"])
    for one in {inner, outer}:
        loop.unregister_fd(one.fileno())


@pytest.mark.parametrize("again", [False, True], ids=["gone", "anew"])
def test_a_handler_replaces_a_watch_that_is_being_modified(loop, turns, pair, monkeypatch, again):
    """The new watch is as it was registered, and nothing is left of the old one."""
    a, b = pair()
    fd, seen = a.fileno(), []
    loop.register_fd(fd, READ, print)
    poller = loop._descriptors.table.poller
    modify = poller.modify

    def interrupted(*arguments):
        monkeypatch.setattr(poller, "modify", modify)
        loop.unregister_fd(fd)
        if again:
            loop.register_fd(fd, READ, lambda _, events: seen.append(events))
        modify(*arguments)

    monkeypatch.setattr(poller, "modify", interrupted)
    with contextlib.nullcontext() if again else pytest.raises(OSError, match=r"epoll_ctl|watched"):
        loop.modify_fd(fd, 0)
    b.send(b"x")
    turns(loop)
    assert seen == ([READ] if again else [])
    with contextlib.nullcontext() if again else pytest.raises(FDNotRegisteredError):
        loop.unregister_fd(fd)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("what", ["modifies", "replaces"])
def test_a_handler_comes_at_the_end_of_a_change(loop, turns, pair, interrupt, what, raises):
    """The system, the slot and the table agree afterwards: nothing is reported in vain, and readiness is not missed."""
    a, b = pair()
    fd, seen = a.fileno(), []

    def saw(_fd, events):
        seen.append(events)

    loop.register_fd(fd, READ, saw)

    def handler():
        if what == "modifies":
            loop.modify_fd(fd, WRITE)
        else:
            loop.unregister_fd(fd)
            loop.register_fd(fd, WRITE, saw)
        if raises:
            raise KeyboardInterrupt

    interrupt(loop._descriptors.table.poller, "modify", handler)
    with pytest.raises(KeyboardInterrupt) if raises else contextlib.nullcontext():
        loop.modify_fd(fd, READ)
    b.send(b"x")
    turns(loop, 3)
    assert seen == [WRITE] * 3
    loop.unregister_fd(fd)


@pytest.mark.parametrize("call", ["_begin", "add"])
def test_a_handler_registers_anew_and_raises(loop, turns, pair, monkeypatch, interrupt, call):
    """What it registered stays, and works."""
    (a, b), (c, _d) = pair(), pair()
    seen = []
    loop.register_fd(c.fileno(), READ, print)  # so that there is a poller
    table = loop._descriptors.table
    if call == "add":
        monkeypatch.setattr(table, "_begin", None)
    elif table._begin is None:
        pytest.skip("kernels cannot change this poller's entries")

    def handler():
        loop.unregister_fd(a.fileno())
        loop.register_fd(a.fileno(), READ, lambda *_: seen.append("anew"))
        raise KeyboardInterrupt

    interrupt(table if call == "_begin" else table.poller, call, handler)
    with pytest.raises(KeyboardInterrupt):
        loop.register_fd(a.fileno(), READ, print)
    b.send(b"x")
    turns(loop)
    assert seen == ["anew"]
    loop.unregister_fd(a.fileno())


@pytest.mark.parametrize("again", [False, True], ids=["gone", "anew"])
@pytest.mark.parametrize("call", ["_begin", "_finish", "_open", "add", "remove"])
def test_a_handler_unregisters_in_the_middle(loop, turns, pair, monkeypatch, interrupt, call, again):
    """Of a registration or of its end: what it registered anew works, and nothing else is left."""
    (a, b), (c, _d) = pair(), pair()
    fd, seen = a.fileno(), []
    loop.register_fd(c.fileno(), READ, print)  # so that there is a poller
    table = loop._descriptors.table
    if call not in ("_begin", "_finish"):
        monkeypatch.setattr(table, "_begin", None)  # as with a poller whose entries kernels cannot change
    elif table._begin is None:
        pytest.skip("kernels cannot change this poller's entries")

    def handler():
        if call == "_finish":  # it has ended: such a handler finds nothing to unregister
            with pytest.raises(FDNotRegisteredError):
                loop.unregister_fd(fd)
        else:
            loop.unregister_fd(fd)
        if again:
            loop.register_fd(fd, READ, lambda *_: seen.append("anew"))

    ends = call in ("_finish", "remove")
    if ends:
        loop.register_fd(fd, READ, print)
    interrupt(table if call.startswith("_") else table.poller, call, handler)
    if ends:
        loop.unregister_fd(fd)
    else:
        loop.register_fd(fd, READ, print)
    b.send(b"x")
    turns(loop, 2)
    assert seen == ["anew"] * 2 * again
    with contextlib.nullcontext() if again else pytest.raises(FDNotRegisteredError):
        loop.unregister_fd(fd)
    loop.register_fd(fd, READ, lambda *_: seen.append("last"))
    turns(loop)
    assert seen[-1] == "last"
