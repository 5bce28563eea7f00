"""Waiting for descriptors, and what is kept while they are registered: `register_fd` and `set_fast_path_mode`.

The other half of test_readiness.py, with loops in threads that truly sleep.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
import weakref

import pytest

from nbloop import (
    FastPathIncompatibleError,
    FastPathMode,
    FDAlreadyRegisteredError,
    IOEvents,
    Loop,
    LoopState,
    PollerFailedError,
)
from nbloop.kernels.base import layout
from tests.support.arrivals import at_each_place, compiled_only, described, handled
from tests.support.waiting import drain

READ, WRITE, ERROR, HANGUP = IOEvents.READ, IOEvents.WRITE, IOEvents.ERROR, IOEvents.HANGUP
EDGE, ONESHOT = IOEvents.EDGE, IOEvents.ONESHOT


# --- waiting


def test_register_while_blocked(loop, pair, asleep, wait_for, seen):
    """behaviour 29: a loop asleep on the fast path, or in the poller, sees a new descriptor at once."""
    with loop:
        for _ in range(3):  # the first wakes it from the futex, the others change the set it waits for
            a, b = pair()
            asleep(loop)
            loop.register_fd(a.fileno(), READ | ONESHOT, seen)
            before = len(seen.calls)
            b.send(b"x")
            wait_for(lambda before=before: len(seen.calls) > before)
            assert seen.calls[-1] == (a.fileno(), READ)


def test_modify_while_blocked(loop, pair, asleep, wait_for, seen):
    """A waiting loop learns at once that it must also wait for another descriptor."""
    a, _b = pair()
    loop.register_fd(a.fileno(), READ, seen)
    with loop:
        asleep(loop)
        loop.modify_fd(a.fileno(), READ | WRITE | ONESHOT)
        wait_for(lambda: seen.calls)
        assert seen.calls == [(a.fileno(), WRITE)]


def test_tasks_reach_a_polling_loop(loop, pair, asleep, wait_for):
    """behaviour 28: with a descriptor registered, submits and timers from other threads wake the loop as before."""
    a, _b = pair()
    loop.register_fd(a.fileno(), READ, print)
    with loop:
        for _ in range(30):
            done = threading.Event()
            asleep(loop)
            assert int(loop._record["park_mode"]) == layout.PARK_EPOLL
            loop.submit(done.set)
            wait_for(done)
            done = threading.Event()
            loop.schedule_timer(0.0005, done.set)
            wait_for(done)


def test_timers_in_poll_mode_are_exact(loop, pair, turns):
    """contract: never early; with a timeout in ns also not late by the millisecond that epoll_wait rounds up to."""
    a, _b = pair()
    loop.register_fd(a.fileno(), READ, print)
    late = []
    exact = 0.0008 if loop._record["io"]["ns_timeouts"] else 1.0
    while not late or (min(late) >= exact and len(late) < 300):  # many on a busy machine
        due = loop.now() + 0.0102
        loop.schedule_timer(0.0102, lambda due=due: (late.append(loop.now() - due), loop.stop()))
        loop.run()
        assert late[-1] >= 0
    assert min(late) < exact


def test_busy_loop_polls(loop, pair, wait_for):
    """A loop that never sleeps polls its descriptors once per turn."""
    a, b = pair()
    busy = [True]

    def again():
        if busy[0]:
            loop.submit(again)

    def callback(fd, events):
        drain(a)
        busy[0] = False

    loop.register_fd(a.fileno(), READ, callback)
    loop.submit(again)
    with loop:
        b.send(b"x")
        wait_for(lambda: not busy[0])


def test_idle_with_descriptors(loop, pair, asleep, wait_for):
    """contract: an idle loop makes no system call: one sleep, however many descriptors wait."""
    for _ in range(50):
        a, _b = pair()
        loop.register_fd(a.fileno(), READ, print)
    with loop:
        asleep(loop)
        parks, used = int(loop._record["parks"]), resource.getrusage(resource.RUSAGE_SELF)
        threading.Event().wait(0.5)  # this is the measurement, not a wait for something
        assert int(loop._record["parks"]) == parks
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime < 0.1


def test_signal_interrupts_the_poll(loop, pair, wait_for):
    """EINTR: a signal during the wait is handled by Python at once, and the loop goes on waiting."""
    a, b = pair()
    got, handled = [], threading.Event()
    loop.register_fd(a.fileno(), READ, lambda fd, events: (got.append(drain(a)), loop.stop()))
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())

    def storm():
        for _ in range(50):
            handled.clear()
            wait_for(lambda: loop.state is LoopState.SLEEPING)
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(handled)
        b.send(b"x")

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        loop.run()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert got == [b"x"]


def test_broken_poller(loop, pair, caplog):
    """behaviour 67: a poller that fails ends the loop with a clear error, not a spin; what was accepted is run."""
    a, _b = pair()
    ran = []
    loop.register_fd(a.fileno(), READ, print)

    def break_it():
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, loop._descriptors.table.poller.descriptor)
        os.close(null)
        loop.submit(ran.append, 1)

    loop.submit(break_it)
    with pytest.raises(PollerFailedError, match="cannot poll any more") as raised:
        loop.run()
    assert raised.value.errno == errno.EINVAL
    assert loop.state is LoopState.TERMINATED
    assert ran == [1]
    assert "CRITICAL" in {record.levelname for record in caplog.records}


def test_broken_poller_of_a_thread(loop, pair, wait_for, caplog):
    """As above for a loop in its own thread: shutdown() returns."""
    a, _b = pair()
    loop.register_fd(a.fileno(), READ, print)
    reported = []
    hook, threading.excepthook = threading.excepthook, lambda args: reported.append(args.exc_value)
    try:
        thread = loop.start()
        null = os.open(os.devnull, os.O_RDONLY)
        loop.submit(os.dup2, null, loop._descriptors.table.poller.descriptor)
        wait_for(lambda: loop.state is LoopState.TERMINATED)
        loop.shutdown(30)
        thread.join(30)
        os.close(null)
    finally:
        threading.excepthook = hook
    assert [type(error) for error in reported] == [PollerFailedError]


# --- the fast path


def test_auto_changes_over(loop, pair):
    """contract: AUTO sleeps in the poller as long as there are descriptors. Where kernels wait in it, the loop changes
    back when it is about to sleep.
    """
    a, _b = pair()
    fast = int(loop._record["park_mode"])
    for _ in range(3):
        loop.register_fd(a.fileno(), READ, print)
        assert int(loop._record["park_mode"]) == layout.PARK_EPOLL
        loop.unregister_fd(a.fileno())
        loop.schedule_timer(0.001, loop.stop)
        loop.run()
        assert int(loop._record["park_mode"]) == fast


@compiled_only
@pytest.mark.parametrize("handler", ["registers", "registers the same", "disables"])
@pytest.mark.parametrize("call", ["registers", "unregisters", "allows"])
def test_a_handler_chooses_how_the_loop_sleeps(pair, call, handler):
    """At any moment of another choice: the loop sleeps where its descriptors and its mode require it."""
    (a, _b), (c, _d) = pair(), pair()

    def attempt(arrivals, at):
        loop = Loop()
        loop.register_fd(a.fileno(), READ, print)
        calls = {
            "registers": lambda: loop.register_fd(a.fileno(), READ, print),
            "unregisters": lambda: loop.unregister_fd(a.fileno()),
            "allows": lambda: loop.set_fast_path_mode(FastPathMode.AUTO),
        }
        if call != "unregisters":
            loop.unregister_fd(a.fileno())
        handlers = {
            "registers": lambda *_: loop.register_fd(c.fileno(), READ, print),
            "registers the same": lambda *_: loop.register_fd(a.fileno(), READ, print),
            "disables": lambda *_: loop.set_fast_path_mode(FastPathMode.DISABLED),
        }
        with handled(signal.SIGINT, handlers[handler]), contextlib.suppress(FDAlreadyRegisteredError):
            arrivals.during(calls[call], at, signal.SIGINT)
        poller = loop._descriptors.table.poller
        assert int(loop._record["io"]["watches"]) == len(loop._descriptors.table), described(at)
        if len(loop._descriptors.table) or loop.fast_path_mode is FastPathMode.DISABLED:
            assert int(loop._record["park_mode"]) == poller.park_mode, described(at)
        if loop.fast_path_mode is FastPathMode.DISABLED:
            assert not int(loop._record["io"]["retires"]), described(at)
        loop.close()

    at_each_place(attempt, least=10)


def test_a_watch_between_two_sleeps_changes_nothing(loop, pair, monkeypatch):
    """A loop that waits for one descriptor, time after time, goes on sleeping in its poller."""
    a, b = pair()
    installs = []
    install = loop._descriptors.install
    monkeypatch.setattr(loop._descriptors, "install", lambda: (installs.append(1), install()))
    left = [5]

    def ready(fd, _events):
        a.recv(10)
        loop.unregister_fd(fd)
        left[0] -= 1
        loop.submit(again if left[0] else loop.stop)

    def again():
        loop.register_fd(a.fileno(), READ, ready)
        b.send(b"x")

    loop.submit(again)
    loop.run()
    assert left == [0]
    assert len(installs) == (1 if int(loop._record["io"]["retires"]) else 10)
    loop.set_fast_path_mode(FastPathMode.DISABLED)
    assert not int(loop._record["io"]["retires"])
    loop.schedule_timer(0.001, loop.stop)
    loop.run()
    assert int(loop._record["park_mode"]) != layout.PARK_FUTEX


def test_auto_changes_over_while_running(loop, pair, asleep, wait_for, seen):
    """behaviour 28: with nothing lost when descriptors come and go while it runs."""
    a, b = pair()
    with loop:
        for i in range(20):
            loop.register_fd(a.fileno(), READ | ONESHOT, seen)
            b.send(b"x")
            wait_for(lambda i=i: len(seen.calls) == i + 1)
            loop.unregister_fd(a.fileno())
            done = threading.Event()
            loop.submit(done.set)
            wait_for(done)
            wait_for(lambda: int(loop._record["park_mode"]) != layout.PARK_EPOLL)
            asleep(loop)


def test_forced_refuses(loop, pair):
    """contract: FORCED and descriptors exclude each other, whichever comes first; the mode stays."""
    a, _b = pair()
    loop.register_fd(a.fileno(), READ, print)
    with pytest.raises(FastPathIncompatibleError, match="1 descriptors"):
        loop.set_fast_path_mode(FastPathMode.FORCED)
    assert loop.fast_path_mode is FastPathMode.AUTO
    loop.unregister_fd(a.fileno())
    loop.set_fast_path_mode(FastPathMode.FORCED)
    with pytest.raises(FastPathIncompatibleError):
        loop.register_fd(a.fileno(), READ, print)
    loop.set_fast_path_mode(FastPathMode.AUTO)
    loop.register_fd(a.fileno(), READ, print)


@pytest.mark.parametrize("running", [False, True], ids=["idle", "running"])
def test_forced_races_with_register(make_loop, pair, together, running):
    """behaviour 26: never FORCED with descriptors, whichever thread wins."""
    loop = make_loop()
    a, _b = pair()
    if running:
        loop.start()
    for _ in range(1000 if not running else 300):

        def body(i):
            try:
                if i:
                    loop.register_fd(a.fileno(), READ, print)
                else:
                    loop.set_fast_path_mode(FastPathMode.FORCED)
            except FastPathIncompatibleError:
                return False
            return True

        forced, registered = together(2, body)
        assert forced != registered
        assert (loop.fast_path_mode is FastPathMode.FORCED) == forced
        assert len(loop._descriptors.table) == registered
        loop.set_fast_path_mode(FastPathMode.AUTO)
        if registered:
            loop.unregister_fd(a.fileno())


def test_flips_and_submits(loop, pair, together):
    """behaviour 27: modes flip, descriptors come and go, threads submit: accepted is executed."""
    modes = (FastPathMode.AUTO, FastPathMode.DISABLED)
    ran = []

    def body(i):
        if i == 0:
            for number in range(200):
                loop.set_fast_path_mode(modes[number % 2])
        elif i == 1:
            for _ in range(100):
                a, b = pair()
                loop.register_fd(a.fileno(), READ, lambda fd, events, a=a: drain(a))
                b.send(b"x")
                loop.unregister_fd(a.fileno())
        else:
            for number in range(1500):
                loop.submit(ran.append, (i, number))

    with loop:
        assert together(5, body) == [None] * 5
    assert sorted(ran) == [(i, number) for i in (2, 3, 4) for number in range(1500)]


# --- what it keeps


def test_auto_exit(make_loop, pair):
    """contract: a registered descriptor keeps an auto_exit loop alive; without one it ends."""
    loop = make_loop(auto_exit=True)
    a, b = pair()
    loop.register_fd(a.fileno(), READ, lambda fd, events: loop.unregister_fd(fd))
    assert loop.alive()
    b.send(b"x")
    loop.run()
    assert loop.state is LoopState.TERMINATED
    assert not loop.alive()


def test_references(loop, pair, turns):
    """Callbacks and their numbers are released on every path: unregistered outside, inside, refused, closed."""
    a, b = pair()
    b.send(b"x")

    class Callback:
        def __call__(self, fd, events):
            loop.unregister_fd(fd)

    callback = Callback()
    before = sys.getrefcount(callback)
    for _ in range(10):
        loop.register_fd(a.fileno(), READ, callback)
        with pytest.raises(FDAlreadyRegisteredError):
            loop.register_fd(a.fileno(), READ, callback)
        turns(loop)
        loop.register_fd(a.fileno(), READ, callback)
        loop.unregister_fd(a.fileno())
    assert sys.getrefcount(callback) == before
    loop.register_fd(a.fileno(), READ, callback)
    loop.close()
    assert sys.getrefcount(callback) == before


def test_forgotten_loop_is_collected(pair, descriptors):
    """A loop in a cycle with its own callbacks is collected, and its descriptors closed."""
    before = len(descriptors())
    loop = Loop()
    a, _b = pair()

    class Callback:
        def __call__(self, fd, events):
            pass

    callback = Callback()
    callback.loop = loop
    loop.register_fd(a.fileno(), READ, callback)
    gone = weakref.ref(callback)
    del loop, callback
    gc.collect()
    gc.collect()
    assert gone() is None
    assert len(descriptors()) == before + 2  # the pair


def test_no_descriptor_leak(pair, descriptors, seen):
    """behaviour 40: loops made, used and closed leave no descriptor behind."""
    a, b = pair()
    b.send(b"x")
    before = descriptors()
    for _ in range(100):
        loop = Loop()
        loop.register_fd(a.fileno(), READ, seen)
        loop.stop()
        loop.run()
        loop.close()
    assert descriptors() == before
    assert len(seen.calls) == 100


def test_no_descriptors_left(loop, pair):
    """EMFILE when the poller is made: OSError, nothing changed, and it works once there are some again."""
    a, _b = pair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Room for a few above all that are open: where no number is free below, there would be none to give back.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 4, hard))
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(2):
            with pytest.raises(OSError, match="Too many open files"):
                loop.register_fd(a.fileno(), READ, print)
            with pytest.raises(OSError, match="Too many open files"):
                loop.set_fast_path_mode(FastPathMode.DISABLED)
            with pytest.raises(OSError, match="Too many open files"):
                Loop(fast_path_mode=FastPathMode.DISABLED)
            os.close(held.pop())  # enough for the one of the two, not for both
        assert loop.fast_path_mode is FastPathMode.AUTO
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    loop.register_fd(a.fileno(), READ, print)


def test_accept_without_descriptors(make_loop, turns):
    """EMFILE during accept in a callback: reported, the loop lives, and later the connection can be accepted."""
    errors, accepted = [], []
    loop = make_loop(on_error=lambda error, context: errors.append(error))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        server.setblocking(False)
        loop.register_fd(server.fileno(), READ, lambda fd, events: accepted.append(server.accept()[0]))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        client.connect(server.getsockname())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            turns(loop, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert {error.errno for error in errors} == {errno.EMFILE}
        turns(loop)
        assert len(accepted) == 1
        accepted[0].close()


def test_more_events_than_one_poll_takes(loop, turns, pair):
    """2,500 ready at once: all are served, those beyond one poll's table in the next turns."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 6000:
        pytest.skip(f"the hard limit of {hard} descriptors is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 6000), hard))
    try:
        served = set()
        for _ in range(2500):
            reader, _writer = pair()
            loop.register_fd(reader.fileno(), WRITE | ONESHOT, lambda fd, events: served.add(fd))
        turns(loop, 3)
        assert len(served) == 2500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_ten_thousand(run_script):
    """behaviour 41: 10,000 descriptors, numbers far beyond any table; each one's event reaches its own callback."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 10_100:
        pytest.skip(f"the hard limit of {hard} descriptors is too low")
    printed = run_script(
        """
        import os, resource, nbloop
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (10_100, hard))
        loop, got, counters = nbloop.Loop(), {}, [os.eventfd(0) for _ in range(10_000)]

        def callback(fd, events):
            got[fd] = os.eventfd_read(fd)
            if len(got) == len(counters):
                loop.shutdown()

        for number in counters:
            loop.register_fd(number, nbloop.IOEvents.READ, callback)
        thread = loop.start()
        for number in reversed(counters):
            os.eventfd_write(number, number)
        thread.join(50)
        assert got == {number: number for number in counters}, len(got)
        print(max(got) >= 10_000, loop.state.value)
        """
    )
    assert printed == "True terminated\n"


def test_poll_is_level_with_select(loop, pair, turns):
    """The same sockets, asked through select.poll: nbloop reports what the system's other call reports."""
    kinds = {}
    for kind in ("quiet", "data", "half", "gone"):
        a, b = pair()
        kinds[a.fileno()] = a
        if kind == "data":
            b.send(b"x")
        elif kind == "half":
            b.shutdown(socket.SHUT_WR)
        elif kind == "gone":
            b.close()
    told = {}
    expected = {}
    poll = select.poll()
    for number in kinds:
        loop.register_fd(number, READ | WRITE, told.__setitem__)
        poll.register(number, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    for number, bits in poll.poll(0):
        events = IOEvents(0)
        for bit, event in (
            (select.POLLIN, READ),
            (select.POLLOUT, WRITE),
            (select.POLLERR, ERROR),
            (select.POLLHUP | select.POLLRDHUP, HANGUP),
        ):
            if bits & bit:
                events |= event
        expected[number] = events
    turns(loop)
    assert told == expected
