"""`nbloop.aio`: what CPython's own tests (conformance/) do not cover. They are the contract for everything else."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import decimal
import fractions
import gc
import itertools
import math
import os
import selectors
import signal
import socket
import sys
import sysconfig
import threading
import time
import unittest.mock
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import nbloop
from nbloop import LoopState
from nbloop.aio import handles
from nbloop.kernels.base import layout
from nbloop.kernels.base.atomics import fetch_add, get, store
from nbloop.kernels.base.capi import Py_IncRef
from nbloop.kernels.build import object_cache
from nbloop.kernels.ingress.ticket_queue import queue_cell, queue_segment
from nbloop.kernels.methods.asyncio_methods import AIO
from nbloop.kernels.turn import turn
from nbloop.testing import VirtualClock
from tests.support.waiting import PATIENCE

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


@pytest.fixture
def aio():
    """An asyncio event loop, closed at the end."""
    loop = nbloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def running(aio):
    """That loop, running in another thread, with the errors that were reported to it in `aio.errors`."""
    aio.errors = []
    aio.set_exception_handler(lambda _loop, context: aio.errors.append(context))
    thread = threading.Thread(target=aio.run_forever)
    thread.start()
    yield aio
    aio.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# --- the end


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_a_closed_loop_goes_without_a_collection(debug, used):
    """Once it is closed and forgotten, its memory is back: no cycle keeps it until the collector comes."""

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_debug(debug)
        loop.add_reader(ours.fileno(), int)
        loop.remove_reader(ours.fileno())
        loop.call_later(60, int)
        _reader, writer = await asyncio.open_connection(sock=theirs)
        await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    gc.collect()
    gc.disable()
    ours, theirs = socket.socketpair()
    try:
        loop = nbloop.new_event_loop()
        loop.set_debug(debug)
        if used:
            loop.run_until_complete(main())
        loop.close()
        gone = weakref.ref(loop), weakref.ref(loop.core), weakref.ref(loop.core._state)
        del loop
        assert [one() for one in gone] == [None, None, None]
    finally:
        gc.enable()
        ours.close()
        theirs.close()


# --- the ways in


def test_run():
    """`nbloop.run` is `asyncio.run` on a loop of ours, which is closed afterwards."""

    async def main():
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    loop = nbloop.run(main())
    assert isinstance(loop, nbloop.EventLoop)
    assert loop.is_closed()
    assert loop.core.state is LoopState.TERMINATED


def test_run_refuses():
    """Refuses what asyncio.run refuses; the core's options raise the core's errors."""

    async def main():
        coroutine = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="running event loop"):
            nbloop.run(coroutine)
        coroutine.close()

    nbloop.run(main())
    with pytest.raises(TypeError if sys.version_info >= (3, 14) else ValueError, match="coroutine"):
        nbloop.run(print)
    coroutine = asyncio.sleep(0)
    with pytest.raises(TypeError, match="metrics"):
        nbloop.run(coroutine, metrics=3)
    coroutine.close()


def test_policy():
    """The policy makes our loops for code that asks asyncio for one."""
    policy = nbloop.EventLoopPolicy()
    loop = policy.new_event_loop()
    assert isinstance(loop, nbloop.EventLoop)
    loop.close()


def test_names_are_imported_when_asked_for(run_script):
    """`import nbloop` alone does not import asyncio; the names are there."""
    code = """
        import sys, nbloop
        assert "asyncio" not in sys.modules
        nbloop.run, nbloop.new_event_loop, nbloop.EventLoop, nbloop.EventLoopPolicy
        assert "asyncio" in sys.modules
        assert not hasattr(nbloop, "nothing")
        if hasattr(sys, "_is_gil_enabled") and not __import__("sysconfig").get_config_var("Py_GIL_DISABLED"):
            sys.exit()
        assert not sys._is_gil_enabled()
    """
    run_script(code)


def test_core_is_measured():
    """The core of an asyncio program has the figures of any other."""

    async def main():
        for _ in range(100):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().core.metrics()

    figures = nbloop.run(main(), metrics=True)
    assert 100 <= figures.callbacks < 200
    assert figures.errors == 0


# --- order


def test_order(aio):
    """One queue: callbacks of both calls, of due timers and of ready descriptors run in the order in which they became
    ready.
    """
    a, b = socket.socketpair()
    ran = []
    aio.call_soon(ran.append, 1)
    aio.call_soon_threadsafe(ran.append, 2)
    aio.call_later(0, ran.append, 4)  # checked in the next turn
    aio.add_reader(a, lambda: (ran.append(5), aio.remove_reader(a), aio.stop()))
    b.send(b"x")
    aio.call_soon(ran.append, 3)
    aio.run_forever()
    assert ran[:3] == [1, 2, 3]
    assert sorted(ran[3:]) == [4, 5]
    a.close()
    b.close()


def test_equal_deadlines(aio):
    """Timers of one deadline run in the order in which they were made, earlier deadlines first."""
    ran = []
    when = aio.time() + 0.2  # all are made before: plain Python takes 20 ms on a busy machine
    for number in range(100):
        aio.call_at(when + (number % 2) * 0.001, ran.append, number)
    aio.call_at(when + 0.002, aio.stop)
    aio.run_forever()
    assert ran == [*range(0, 100, 2), *range(1, 100, 2)]


def test_stop_ends_the_turn(aio):
    """What was ready when the turn began runs; what this made ready is left for the next run."""
    ran = []

    def first():
        aio.stop()
        aio.call_soon(ran.append, "next run")

    aio.call_soon(first)
    for number in range(3000):
        aio.call_soon(ran.append, number)
    aio.run_forever()
    assert ran == list(range(3000))
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert ran[-1] == "next run"


def test_stop_overtaken_by_an_exception(aio):
    """A stop requested before an exception left the loop does not end the next run."""

    def leave():
        aio.stop()
        raise KeyboardInterrupt

    aio.call_soon(leave)
    with pytest.raises(KeyboardInterrupt):
        aio.run_forever()
    done = aio.create_future()
    aio.call_later(0.01, done.set_result, "waited")
    assert aio.run_until_complete(done) == "waited"


def test_nothing_is_lost_when_an_exception_leaves(aio):
    """SystemExit from a callback reaches the caller; what waits behind it runs in the next run."""
    ran = []
    aio.call_soon(sys.exit, 3)
    aio.call_soon(ran.append, 1)
    with pytest.raises(SystemExit):
        aio.run_forever()
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert ran == [1]


@pytest.mark.parametrize("debug", [False, True])
def test_tasks(aio, debug):
    """Tasks in turn, their steps and wake-ups in the order of asyncio's; each in its own context."""
    aio.set_debug(debug)
    of = contextvars.ContextVar("of")
    ran = []

    async def one(name, future):
        of.set(name)
        ran.append(name + "1")
        await asyncio.sleep(0)
        ran.append(of.get() + "2")
        ran.append(await future)
        ran.append(of.get() + "3")

    async def main():
        first, second = aio.create_future(), aio.create_future()
        tasks = [aio.create_task(one("a", first)), aio.create_task(one("b", second))]
        aio.call_soon(ran.append, "soon")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.set_result("second")
        first.set_result("first")
        await asyncio.gather(*tasks)

    aio.run_until_complete(main())
    assert ran == ["a1", "b1", "soon", "a2", "b2", "second", "b3", "first", "a3"]
    assert of.get("nothing") == "nothing"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exception_of_a_task_that_leaves(aio, error):
    """SystemExit and KeyboardInterrupt of a task leave the loop, which goes on where it was."""

    async def leave():
        await asyncio.sleep(0)
        raise error

    async def other():
        for _ in range(5):
            await asyncio.sleep(0)
        return "done"

    task, going_on = aio.create_task(leave()), aio.create_task(other())
    with pytest.raises(error):
        aio.run_forever()
    assert aio.run_until_complete(going_on) == "done"
    with pytest.raises(error):
        task.result()


def test_python_tasks(aio):
    """Tasks written in Python are scheduled like any other callback."""

    async def one():
        await asyncio.sleep(0)
        return 1

    assert aio.run_until_complete(asyncio.tasks._PyTask(one(), loop=aio)) == 1


# --- threads


def test_threadsafe_storm(running, together):
    """Many threads at once: every callback runs once, each thread's in its order; the loop sleeps and is woken."""
    threads, each = 8, 2_000
    ran = [[] for _ in range(threads)]

    def produce(number):
        for n in range(each):
            running.call_soon_threadsafe(ran[number].append, n)
            if n % 500 == 0:
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), running).result(PATIENCE)

    assert together(threads, produce) == [None] * threads
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), running).result(PATIENCE)
    assert ran == [list(range(each))] * threads
    assert running.errors == []


def test_cancel_from_any_thread(running, together):
    """A handle that other threads cancel while it runs is run with its arguments or not at all."""
    ran = []
    handles = []
    for _ in range(200):
        handles[:] = [running.call_soon_threadsafe(ran.append, n) for n in range(50)]
        together(2, lambda number: [handle.cancel() for handle in handles[number::2]])
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), running).result(PATIENCE)
    assert running.errors == []
    assert all(isinstance(n, int) for n in ran)


def test_a_handle_of_any_callback(aio):
    """`call_soon` returns a handle of its own, in every form of the call, with what asyncio's shows."""
    context = contextvars.copy_context()
    seen = []

    def note(*values):
        seen.append(values)

    handles = [
        aio.call_soon(note),
        aio.call_soon(note, 1, 2),
        aio.call_soon(note, 3, context=None),
        aio.call_soon(note, 4, context=context),
        aio.call_soon(seen.append, (5,), context=context),
        aio.call_soon(seen.append, (6,), **{"".join(("con", "text")): context}),
        aio.call_soon_threadsafe(note, 7),
        aio.call_soon_threadsafe(seen.append, (8,), context=context),
    ]
    assert len({id(handle) for handle in handles}) == len(handles)
    assert all(isinstance(handle, asyncio.Handle) for handle in handles)
    assert [handle.get_context() is context for handle in handles] == [
        False,
        False,
        False,
        True,
        True,
        True,
        False,
        True,
    ]
    assert handles[1]._args == (1, 2)
    assert handles[1]._callback is note
    assert "note" in repr(handles[0])
    assert not any(handle.cancelled() for handle in handles)
    handles[1].cancel()
    assert handles[1].cancelled()
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert seen == [(), (3,), (4,), (5,), (6,), (7,), (8,)]
    gone = weakref.ref(handles.pop(0))
    handles.clear()
    assert gone() is None


def test_call_soon_refuses(aio):
    """Odd arguments, as asyncio does, and a closed loop; a call that raised has scheduled nothing."""
    seen = []
    context = contextvars.copy_context()
    for call in (aio.call_soon, aio.call_soon_threadsafe):
        for arguments, keywords in (
            ((), {}),
            ((seen.append, 1), {"contexts": context}),
            ((seen.append, 1), {"context": context, "more": 1}),
        ):
            with pytest.raises(TypeError):
                call(*arguments, **keywords)
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert seen == []
    aio.close()
    for call in (aio.call_soon, aio.call_soon_threadsafe):
        with pytest.raises(RuntimeError, match="closed"):
            call(seen.append, 1)
    assert aio.create_future().get_loop() is aio


def test_a_loop_that_was_not_made_refuses():
    """What `__new__` alone made has no words."""
    loop = nbloop.EventLoop.__new__(nbloop.EventLoop)
    for call in (
        lambda: loop.call_soon(print),
        lambda: loop.call_soon_threadsafe(print),
        lambda: loop.call_later(1, print),
        lambda: loop.call_at(1, print),
        lambda: loop._timer_handle_cancelled(None),
        loop.create_future,
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError):
        loop.get_debug()
    with pytest.raises(TypeError):
        nbloop.EventLoop.call_soon(asyncio.new_event_loop, print)


def test_a_handle_cancelled_while_it_is_read(aio):
    """`cancel` sets its mark first: what is marked does not run, though callback and arguments are still there."""
    seen = []
    handle = aio.call_soon(seen.append, 1)
    handle._cancelled = True
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert seen == []


def test_what_others_write_into_a_handle(aio):
    """Tools do. It works, or is an error of that callback; it is not a crash."""
    seen, errors = [], []
    aio.set_exception_handler(lambda _loop, context: errors.append(type(context["exception"])))

    class Other(asyncio.Handle):
        __slots__ = ()

        def __init__(self):
            self._cancelled, self._callback, self._args, self._loop = False, seen.append, [5], aio
            self._context = contextvars.copy_context()

    class Duck:
        _cancelled, _callback, _args, _context = False, seen.append, (6,), contextvars.copy_context()

    Duck._callback = seen.append
    first, second, third = (aio.call_soon(seen.append, number) for number in range(3))
    first._args = [10]
    second._callback = lambda _number: seen.append(11)
    third._args = (1, 2, 3)
    aio._add_callback(Other())
    aio._add_callback(Duck())
    aio._add_callback(asyncio.Handle(seen.append, (7,), aio))
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert seen == [10, 11, 5, 6, 7]
    assert errors == [TypeError]


ASYNCIOS_LOCKED = getattr(asyncio.events, "_ThreadSafeHandle", None)
since_3_14 = pytest.mark.skipif(ASYNCIOS_LOCKED is None, reason="call_soon_threadsafe makes plain handles before 3.14")


@since_3_14
@pytest.mark.parametrize("how", ["compiled", "debug", "watched"])
def test_a_threadsafe_handle_is_locked_while_it_runs(aio, monkeypatch, how):
    """So that `cancel` of another thread waits for the callback, and one of the callback itself does not."""
    if how == "watched":
        known = asyncio.Handle._run

        def watched(handle):
            return known(handle)

        monkeypatch.setattr(asyncio.Handle, "_run", watched)
    aio.set_debug(how == "debug")
    seen = []

    def callback():
        handle.cancel()  # this thread has the lock
        other = threading.Thread(target=lambda: seen.append(handle._lock.acquire(blocking=False)))
        other.start()
        other.join(PATIENCE)
        aio.stop()

    handle = aio.call_soon_threadsafe(callback)
    assert type(handle) is type(aio.call_soon_threadsafe(seen.append, 1))
    assert isinstance(handle, ASYNCIOS_LOCKED)
    aio.run_forever()
    assert seen == [False, 1]
    assert handle.cancelled()
    assert handle._lock.acquire(blocking=False)


@since_3_14
def test_a_threadsafe_handle_that_is_cancelled_does_not_run(aio):
    seen = []
    handles = [aio.call_soon_threadsafe(seen.append, number) for number in range(4)]
    for handle in handles[::2]:
        handle.cancel()
    assert [handle.cancelled() for handle in handles] == [True, False, True, False]
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert seen == [1, 3]
    with pytest.raises(AttributeError, match="'LockedHandle' object has no attribute 'lock'"):
        handles[1].lock  # noqa: B018


@since_3_14
def test_a_threadsafe_handle_has_one_lock(aio, together):
    """Whichever of many threads asks for it first."""
    for _ in range(100):
        handle = aio.call_soon_threadsafe(int)
        locks = together(4, lambda _i, handle=handle: handle._lock)
        assert set(map(id, locks)) == {id(handle._lock)}


@since_3_14
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="whose loop it is counts there")
def test_a_threadsafe_handle_that_was_dropped_needs_no_lock(aio):
    made = []

    def callback():
        (handle,) = (one for one in gc.get_objects() if type(one) is handles.LockedHandle and one._callback is callback)
        with contextlib.suppress(AttributeError):
            made.append(ASYNCIOS_LOCKED._lock.__get__(handle))
        aio.stop()

    aio.call_soon_threadsafe(callback)
    aio.run_forever()
    assert made == []


def test_a_patched_call_soon_is_used(aio):
    """On the instance, and in a subclass; asyncio's C code finds both."""
    seen = []

    class Counts(nbloop.EventLoop):
        def call_soon(self, callback, *args, context=None):
            seen.append(type(callback).__name__)
            return super().call_soon(callback, *args, context=context)

        def create_future(self):
            seen.append("future")
            return super().create_future()

    async def main():
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        loop.call_soon(waiting.set_result, 1)
        return await waiting

    loop = Counts()
    assert loop.run_until_complete(main()) == 1
    assert "future" in seen
    assert len(seen) > 3
    loop.close()
    ours = aio.call_soon
    patched = []

    def call_soon(*arguments, **keywords):
        patched.append(arguments[0])
        return ours(*arguments, **keywords)

    aio.call_soon = call_soon
    assert aio.run_until_complete(main()) == 1
    assert len(patched) > 2


@pytest.mark.parametrize("debug", [False, True])
def test_a_patched_run_of_handles_is_used(aio, monkeypatch, debug):
    """For callbacks, timers, descriptors, and the steps of tasks; and no longer once it is gone."""
    seen = []
    original = asyncio.Handle._run

    def run(handle):
        seen.append(handle)
        original(handle)

    async def main():
        done = aio.create_future()
        aio.call_later(0, done.set_result, 1)
        await done
        await asyncio.sleep(0)
        receiver, sender = socket.socketpair()
        with receiver, sender:
            read = aio.create_future()
            aio.add_reader(receiver, read.set_result, 2)
            sender.send(b"x")
            await read
            aio.remove_reader(receiver)

    aio.set_debug(debug)
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", run)
        aio.run_until_complete(main())
    watched = [str(handle) for handle in seen]
    assert len([text for text in watched if "set_result" in text]) >= 1
    assert sum(isinstance(handle, asyncio.TimerHandle) for handle in seen) == 1
    assert len(seen) >= 6  # two of them, three steps and wake-ups of the task, and the callback of its end
    seen.clear()
    aio.run_until_complete(main())
    assert seen == []


@pytest.mark.parametrize("how", ["instance", "subclass"])
def test_a_replaced_clock_is_used(how):
    """`call_later` counts from it, and a timer waits as long as it says."""

    class Slow(nbloop.EventLoop):
        def time(self):
            return 1000.0 + super().time()

    loop = Slow() if how == "subclass" else nbloop.new_event_loop()
    if how == "instance":
        loop.time = lambda: 5.0
    now = loop.time()
    ran = []
    timer = loop.call_later(0.01, ran.append, 1)
    later = loop.call_at(loop.time() + 1000, ran.append, 2)
    assert timer.when() - now == pytest.approx(0.01, abs=0.01)
    start = time.monotonic()
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert ran == [1]
    assert time.monotonic() - start < PATIENCE
    later.cancel()
    loop.close()


class Clock:
    """One that a test moves; it counts how often it is read."""

    def __init__(self, now=1000.0):
        self.now = now
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return self.now


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_clock_is_put_back(aio: nbloop.EventLoop) -> None:
    """As `unittest.mock` does it: it reads the attribute, writes its own, and at the end deletes or writes it back."""
    own = aio.time
    with unittest.mock.patch.object(aio, "time", return_value=5.0):
        assert aio.time() == 5.0
        assert aio.call_later(1, int).when() == 6.0
    assert aio.time is own
    assert aio.call_later(1, int).when() > 6.0
    ran: list[int] = []
    aio.call_later(0, ran.append, 1)
    aio.call_later(0.01, aio.stop)
    aio.run_forever()
    assert ran == [1]


@pytest.mark.parametrize("debug", [False, True])
def test_a_replaced_clock_that_jumps_makes_timers_due(aio, debug):
    """As in aiohttp's tests: what its time has passed runs in the next turn, once each and in order."""
    aio.set_debug(debug)

    async def main():
        aio.time = clock = Clock()
        ran = []
        for delay in (300, 100, 200, 900):
            aio.call_later(delay, ran.append, delay)
        aio.call_later(150, ran.append, "cancelled").cancel()
        last = aio.call_at(clock.now + 5000, ran.append, "last")
        await turns(3)
        assert ran == []
        clock.now += 300
        await turns(2)
        assert ran == [100, 200, 300]
        clock.now += 600
        await turns(2)
        assert ran == [100, 200, 300, 900]
        last.cancel()
        clock.now += 9000
        await turns(3)
        assert ran == [100, 200, 300, 900]
        before = clock.reads
        await turns(3)
        assert debug or clock.reads == before  # nobody waits on it, so nobody asks it

    aio.run_until_complete(main())


@pytest.mark.parametrize("who", ["the task that armed", "a task that was ready before", "between runs"])
def test_a_jump_right_before_the_loop_sleeps_is_noticed(aio, who):
    """The loop wakes for a timer that is due by its clock, even if the last callback before the sleep moved it."""
    clock = Clock()
    fired = aio.create_future()

    async def move():
        clock.now += 3000

    async def main():
        if who == "between runs":
            return
        mover = asyncio.create_task(move())  # queued before the loop knows that its clock counts
        aio.time = clock
        aio.call_later(3000, fired.set_result, None)
        if who == "the task that armed":
            await move()
            mover.cancel()
        await fired

    start = time.monotonic()
    if who == "between runs":
        aio.time = clock
        aio.call_later(3000, fired.set_result, None)
        aio.run_until_complete(main())
        clock.now += 3000
        aio.run_until_complete(fired)
    else:
        aio.run_until_complete(main())
    assert time.monotonic() - start < PATIENCE


def test_a_clock_that_is_put_back_is_asked_no_more(aio):
    """Its timers wait on in the core, and the loop is as fast as before."""

    async def main():
        own, aio.time = aio.time, (clock := Clock(1e9))  # by the loop's own clock nothing is due
        ran = []
        timers = [aio.call_later(delay, ran.append, delay) for delay in (0.01, 1000)]
        await turns(3)
        aio.time = own
        await turns(3)
        before = clock.reads
        while not ran:
            await asyncio.sleep(0.001)
        assert clock.reads == before
        assert ran == [0.01]
        assert aio._run is aio._runner  # the kernel
        timers[1].cancel()

    aio.run_until_complete(asyncio.wait_for(main(), PATIENCE))


def test_a_thread_arms_timers_by_a_replaced_clock(aio):
    """The loop notices a jump all the same, once it has woken for the timer."""

    async def main():
        aio.time = clock = Clock()
        fired = [aio.create_future() for _ in range(20)]

        def arm():
            for one in fired:
                aio.call_later(3000, one.set_result, None)

        await asyncio.to_thread(arm)
        clock.now += 3000
        start = time.monotonic()
        await asyncio.gather(*fired)
        assert time.monotonic() - start < PATIENCE

    aio.run_until_complete(main())


def test_a_timer_of_a_replaced_clock_fires_once(aio):
    """Whether our clock or the other comes first."""

    async def main():
        aio.time = clock = Clock()
        ran = []
        kept = [aio.call_later(0.001, ran.append, "ours"), aio.call_later(0.002, ran.append, "cancelled")]
        kept[1].cancel()
        far = aio.create_future()
        aio.call_later(0.01, far.set_result, None)
        await far
        assert ran == ["ours"]
        clock.now += 1
        await turns(3)
        assert ran == ["ours"]

    aio.run_until_complete(main())


def test_a_replaced_clock_keeps_no_timer_that_is_over(aio):
    """A clock that stands still never finds its timers due."""
    count = 500
    aio.time = Clock()
    timers = [weakref.ref(aio.call_later(0, int)) for _ in range(count)]
    for _ in range(count):
        timer = aio.call_later(1000, int)
        timer.cancel()
        timers.append(weakref.ref(timer))
    del timer
    aio.run_until_complete(asyncio.wait_for(turns(10), PATIENCE))
    assert [one for one in timers if one() is not None] == []


def test_an_error_of_a_replaced_clock_loses_no_callback(aio):
    """The error is reported, and everything that was queued runs."""

    def broken():
        raise ZeroDivisionError

    aio.time = Clock()
    timer = aio.call_later(1000, int)
    ran = []
    aio.call_soon(ran.append, 1)
    aio.call_soon(aio.stop)
    aio.time = broken
    aio.set_exception_handler(lambda _loop, context: ran.append(type(context["exception"])))
    aio.run_forever()
    assert 1 in ran
    assert ZeroDivisionError in ran
    timer.cancel()


def test_idle_loop_has_no_descriptor(aio, descriptors):
    """Without descriptors to watch the loop has none: no pair of sockets, no epoll; it sleeps on a futex."""
    before = descriptors()
    other = nbloop.new_event_loop()
    assert descriptors() == before
    other.run_until_complete(asyncio.sleep(0.001))
    assert [one for one in descriptors() if "socket" in one] == [one for one in before if "socket" in one]
    other.close()


def test_closed(aio):
    """A closed loop refuses every call, as asyncio's does."""
    aio.close()
    for call in (
        lambda: aio.call_soon(print),
        lambda: aio.call_soon_threadsafe(print),
        lambda: aio.call_later(1, print),
        lambda: aio.call_at(1, print),
        lambda: aio.add_reader(0, print),
        lambda: aio.add_signal_handler(signal.SIGTERM, print),
        aio.run_forever,
    ):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call()
    aio.close()


@pytest.mark.slow
def test_close_races_with_call_soon_threadsafe(together):
    """A call made while the loop closes is either served or refused."""
    for _ in range(30):
        loop = nbloop.new_event_loop()
        started = threading.Barrier(2)

        def produce(_number, loop=loop, started=started):
            started.wait(PATIENCE)
            try:
                while True:
                    loop.call_soon_threadsafe(print)
            except RuntimeError as error:
                return str(error)

        def close(loop=loop, started=started):
            started.wait(PATIENCE)
            loop.close()

        told, _ = together(2, lambda number: produce(number) if number == 0 else close())
        assert told == "Event loop is closed"


# --- timers


def test_cancelled_timer_is_gone(aio):
    """Cancelling releases the callback at once, however far its deadline."""

    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    timer = aio.call_later(1e6, print, held)
    assert not timer.cancelled()
    del held
    timer.cancel()
    gc.collect()
    assert timer.cancelled()
    assert gone() is None
    assert not aio.core.alive()


def test_delays(aio):
    """Negative and infinite delays are what asyncio makes of them; NaN and None are refused, and nothing is stored."""
    far = [aio.call_later(math.inf, print), aio.call_at(math.inf, print), aio.call_later(1e300, print)]
    done = aio.create_future()
    aio.call_later(-5, done.set_result, 1)
    assert aio.run_until_complete(done) == 1
    done = aio.create_future()
    aio.call_later(-math.inf, int)
    aio.call_at(-math.inf, done.set_result, 2)
    assert aio.run_until_complete(done) == 2
    for timer in far:
        timer.cancel()
    with pytest.raises(ValueError, match="deadline"):
        aio.call_later(math.nan, print)
    with pytest.raises(TypeError, match="delay"):
        aio.call_later(None, print)
    with pytest.raises(TypeError, match="when"):
        aio.call_at(None, print)
    assert not aio.core.alive()


class Odd(float):
    """A number that is not exactly a float."""


@pytest.mark.parametrize("number", [0, 1, 0.25, -2.5, True, Odd(0.125), fractions.Fraction(1, 4), 10**400, 9.3e9])
def test_a_timer_of_any_number(aio, number):
    """`when` of a timer is what asyncio says: the sum with the clock, or what was given."""
    before = aio.time()
    later = None if number == 10**400 else aio.call_later(number, print)
    after = aio.time()
    assert later is None or (type(later.when()) is float and before + number <= later.when() <= after + number)
    at = aio.call_at(number, print)
    assert at.when() is number
    for timer in (later, at) if later is not None else (at,):
        assert isinstance(timer, asyncio.TimerHandle)
        assert timer.get_context() is not contextvars.copy_context()
        assert "print" in repr(timer)
        timer.cancel()
        assert "cancelled" in repr(timer)
    assert not aio.core.alive()


def test_a_timer_of_any_call(aio):
    """In every form of the call, with arguments, in its context."""
    color = contextvars.ContextVar("color", default="none")
    context = contextvars.copy_context()
    context.run(color.set, "given")
    seen = []

    def note(*values):
        seen.append((*values, color.get()))

    now = aio.time()
    timers = [
        aio.call_later(0, note),
        aio.call_later(0.0, note, 1, 2),
        aio.call_later(0, note, 3, context=None),
        aio.call_later(0, note, 4, context=context),
        aio.call_later(delay=0, callback=note),
        aio.call_at(now, note, 5, **{"".join(("con", "text")): context}),
        aio.call_at(when=now, callback=note, context=context),
    ]
    color.set("later")
    assert [timer.get_context() is context for timer in timers] == [False, False, False, True, False, True, True]
    assert len({id(timer) for timer in timers}) == len(timers)
    aio.call_later(0.001, aio.stop)
    aio.run_forever()
    wanted = [(), (1, 2), (3,), (4, "given"), (), (5, "given"), ("given",)]
    assert sorted(seen, key=str) == sorted((one if "given" in one else (*one, "none") for one in wanted), key=str)
    for call in (aio.call_later, aio.call_at):
        for arguments, keywords in (((), {}), ((0,), {}), ((0, note), {"contexts": context}), (("soon", note), {})):
            with pytest.raises(TypeError):
                call(*arguments, **keywords)
    with pytest.raises(TypeError):
        aio.call_later(decimal.Decimal(1), note)  # no sum with a float
    assert not aio.core.alive()


def test_a_call_at_of_a_subclass_is_used():
    """`call_later` goes through it, as in asyncio."""

    class Noting(nbloop.EventLoop):
        def call_at(self, when, callback, *args, context=None):
            self.noted.append(callback)
            return super().call_at(when, callback, *args, context=context)

    loop = Noting()
    loop.noted = []
    loop.call_later(0, loop.stop)
    loop.run_forever()
    loop.close()
    assert loop.noted == [loop.stop]


def test_what_others_write_into_a_timer(aio):
    """It is refused, and is not a crash."""
    timer = aio.call_later(1000, print)
    number = timer._scheduled
    for odd in ("1", None, object()):
        timer._scheduled = odd
        with pytest.raises(TypeError):
            timer.cancel()
    del timer._scheduled
    with pytest.raises(AttributeError):
        timer.cancel()
    timer._scheduled = 10**30
    with pytest.raises(AttributeError):
        aio._timer_handle_cancelled(print)
    aio._timer_handle_cancelled(timer)
    assert aio.core.alive()
    timer._scheduled = number
    timer.cancel()
    assert not aio.core.alive()


def test_a_cancelled_timer_is_asyncios(aio):
    """Its marks, its repr, what it has let go of, and when."""
    seen = []

    class Looks:
        def __call__(self, *_values):
            pass

        def __del__(self):
            seen.append((timer.cancelled(), timer._callback, timer.cancel()))

    for by in ("this thread", "another"):
        timer = aio.call_later(1000, Looks(), by)
        assert not timer.cancelled()
        with ThreadPoolExecutor(1) as pool:
            assert (timer.cancel() if by == "this thread" else pool.submit(timer.cancel).result()) is None
        assert timer.cancelled()
        assert timer.cancel() is None
        assert (timer._callback, timer._args) == (None, None)
        assert seen == [(True, None, None)]
        seen.clear()
        assert not aio.core.alive()
        assert repr(timer).startswith(f"<TimerHandle cancelled when={timer.when()}")


@pytest.mark.skipif(object_cache.status.mode != "compiled", reason="kernels run as plain Python")
def test_a_cancel_enters_no_python_code(aio):
    gc.collect()
    assert not handles._in_debug
    timer = aio.call_later(1000, print)
    entered = []
    sys.setprofile(lambda frame, event, _: entered.append(frame.f_code.co_name) if event == "call" else None)
    timer.cancel()
    sys.setprofile(None)
    assert entered == []


@pytest.mark.parametrize("before", [True, False])
def test_a_timer_that_is_cancelled_in_debug_mode_remembers_its_callback(aio, before):
    aio.set_debug(before)
    timer = aio.call_later(1000, sorted, "args")
    aio.set_debug(True)
    timer.cancel()
    assert "sorted" in repr(timer)
    aio.set_debug(False)
    timer = aio.call_later(1000, sorted, "args")
    timer.cancel()
    assert "sorted" not in repr(timer)
    assert not aio.core.alive()


def test_the_part_that_a_subclass_has_in_a_cancel_is_used():
    class Noting(nbloop.EventLoop):
        def _timer_handle_cancelled(self, handle):
            self.noted.append(handle)
            super()._timer_handle_cancelled(handle)

    loop = Noting()
    loop.noted = []
    timer = loop.call_later(1000, print)
    timer.cancel()
    timer.cancel()
    assert loop.noted == [timer]
    assert not loop.core.alive()
    loop.close()


def test_a_tool_that_replaces_a_part_of_cancel_before_a_loop_is_made(monkeypatch):
    seen = []
    monkeypatch.setattr(nbloop.EventLoop, "_timer_handle_cancelled", lambda _loop, handle: seen.append(handle))
    loop = nbloop.new_event_loop()
    timer = loop.call_later(1000, print)
    timer.cancel()
    assert seen == [timer]
    loop.close()


@pytest.mark.parametrize("closed", [True, False])
def test_a_timer_is_cancelled_after_its_loop_has_gone(run_script, closed):
    run_script(
        f"""
        import gc, nbloop, warnings, weakref
        warnings.simplefilter("ignore", ResourceWarning)
        loop = nbloop.new_event_loop()
        timer = loop.call_later(1000, print)
        if {closed}:
            loop.close()
        gone = weakref.ref(loop)
        timer._loop = None
        del loop
        gc.collect()
        assert gone() is None
        timer.cancel()
        assert timer.cancelled()
        """,
        PYTHONASYNCIODEBUG="",
    )


def test_loops_in_debug_mode_are_told_apart_by_identity():
    """A subclass may have an equality, or a hash that its own constructor makes possible."""

    class Equal(nbloop.EventLoop):
        def __init__(self):
            super().__init__()
            self.key = 1

        def __eq__(self, other):
            return self.key == other.key

        def __hash__(self):
            return hash(self.key)

    one, other = Equal(), Equal()
    timer = other.call_later(1000, sorted, "args")
    for loop in (one, other):
        loop.set_debug(True)
    one.set_debug(False)
    timer.cancel()
    assert "sorted" in repr(timer)
    for loop in (one, other):
        loop.close()


def test_a_loop_in_debug_mode_slows_others_for_as_long_as_it_lives(aio):
    gc.collect()
    before = len(handles._in_debug)
    loop = nbloop.new_event_loop()
    loop.set_debug(True)
    assert len(handles._in_debug) == before + 1
    loop.close()
    del loop
    gc.collect()
    assert len(handles._in_debug) == before == handles._WORDS[AIO.DEBUG // 8]


def test_timers_that_other_code_makes(aio):
    """They are cancelled as asyncio's, whatever they are made of."""
    made = aio.call_later(1000, print)
    kind = type(made)
    for name in kind.__slots__:
        with pytest.raises(AttributeError):
            setattr(made, name, 5)
        with pytest.raises(AttributeError):
            getattr(made, name)

    class Fake(asyncio.TimerHandle):
        __slots__ = ("_core",)

    timer = aio.call_later(1000, print)
    timer.__class__ = Fake  # its slots are in the same places
    timer._core = 5.5
    timer.__class__ = kind
    timer.cancel()
    assert timer.cancelled()

    class Mixin:
        __slots__ = ()

        def __init_subclass__(cls):
            pass

    class Sub(Mixin, kind):
        __slots__ = ("more",)

    forgets = []

    class Other:
        _debug = False

        def _timer_handle_cancelled(self, handle):
            forgets.append(handle)

    for timer in (kind(1.0, print, (), Other(), None), Sub(1.0, print, (), Other(), None)):
        if type(timer) is Sub:
            timer.more = 5
        timer.cancel()
        assert (forgets.pop(), timer.cancelled(), timer._callback) == (timer, True, None)
    with pytest.raises(AttributeError):
        kind.__new__(kind).cancel()
    with pytest.raises(TypeError):
        kind.cancel(asyncio.TimerHandle(0, print, (), aio))
    made.__init__(1.0, print, (), aio, None)
    made.cancel()
    assert made.cancelled()


def test_what_others_take_from_a_timer(aio):
    timer = aio.call_later(1000, print)
    for name in ("_callback", "_args"):
        delattr(timer, name)
    timer.cancel()
    assert (timer._callback, timer._args, aio.core.alive()) == (None, None, False)
    timer = aio.call_later(1000, print)
    del timer._cancelled
    with pytest.raises(AttributeError):
        timer.cancel()
    timer._cancelled = "yes"  # as asyncio has it: true
    assert timer.cancel() is None
    assert timer._callback is print
    timer._cancelled = False
    timer.cancel()
    assert not aio.core.alive()


def test_timers_leave_nothing(aio):
    """Fired, cancelled, refused, forgotten: all of it is gone at once, without a collection."""

    class Held:
        def __call__(self, *_values):
            pass

    def gone_after(use):
        held = Held()
        gone = weakref.ref(held)
        use(held)
        del held
        return gone() is None

    def cancelled(held):
        aio.call_later(1000, held, held).cancel()

    def fired(held):
        aio.call_later(0, held, held)
        aio.call_at(0, aio.stop)
        aio.run_forever()

    def refused(held):
        with pytest.raises(TypeError):
            aio.call_later("1", held, held)
        with pytest.raises(ValueError, match="deadline"):
            aio.call_at(math.nan, held, held)

    gc.disable()
    try:
        assert all(gone_after(use) for use in (cancelled, fired, *([refused] if COMPILED else ())))
        aio.close()
        with pytest.raises(RuntimeError, match="closed"):
            aio.call_later(1, print)
    finally:
        gc.enable()


def test_timers_are_cancelled_from_any_thread(running, together):
    """While others fire; each runs with its arguments or not at all, and none is left."""
    ran = []
    for _ in range(100):
        timers = [running.call_later(0.0001 * (n % 5), ran.append, n) for n in range(50)]
        together(3, lambda number, timers=timers: [timer.cancel() for timer in timers[number % 2 :: 2]])
        assert all(timer.cancelled() for timer in timers)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), running).result(PATIENCE)
    assert running.errors == []
    assert all(isinstance(n, int) for n in ran)
    assert not running.core.alive()


def test_timer_is_never_early(aio):
    """By an independent clock."""
    for delay in (0.0001, 0.001, 0.0123):
        start = time.monotonic()
        aio.run_until_complete(asyncio.sleep(delay))
        assert time.monotonic() - start >= delay


def test_virtual_clock(aio):
    """With a virtual clock that jumps, an hour's sleep takes no time, and timeouts come in their order."""
    VirtualClock(aio.core, autojump=0)

    async def main():
        start = aio.time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.sleep(7200)
        return aio.time() - start

    began = time.monotonic()
    assert aio.run_until_complete(main()) == pytest.approx(3600)
    assert time.monotonic() - began < PATIENCE


# --- descriptors


def test_both_directions_of_one_descriptor(aio):
    """Reader and writer of one descriptor come and go independently."""
    a, b = socket.socketpair()
    a.setblocking(False)
    ran = []

    def write():
        ran.append("w")
        aio.remove_writer(a)
        b.send(b"x")

    def read():
        ran.append(("r", a.recv(10)))
        assert aio.remove_reader(a)
        aio.stop()

    aio.add_reader(a, read)
    aio.add_writer(a, write)
    aio.run_forever()
    assert ran == ["w", ("r", b"x")]
    assert not aio.remove_reader(a)
    assert not aio.remove_writer(a)
    a.close()
    b.close()


def test_hang_up_reaches_a_writer(aio):
    """A writer without a reader learns of the end of the connection."""
    r, w = os.pipe()
    os.set_blocking(w, False)
    try:
        while True:
            os.write(w, bytes(65536))
    except BlockingIOError:
        pass
    aio.add_writer(w, aio.stop)
    aio.call_soon(os.close, r)
    aio.run_forever()
    aio.remove_writer(w)
    os.close(w)


def test_regular_file_is_refused(aio, tmp_path):
    """With the system's error, and nothing is left behind."""
    with (tmp_path / "file").open("wb") as file:
        for _ in range(2):
            with pytest.raises(PermissionError):
                aio.add_reader(file, print)
        assert not aio.remove_reader(file)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, nbloop.new_event_loop])
def test_a_number_that_no_descriptor_can_have(factory):
    """The system would take its lower bits: another descriptor."""
    loop = factory()
    a, b = socket.socketpair()
    with a, b:
        loop.add_reader(a, loop.stop)
        for number in ((1 << 32) + a.fileno(), 1 << 63, 1 << 70):
            with pytest.raises(OverflowError):
                loop.add_reader(number, pytest.fail)
            assert loop.remove_reader(number) is False
        b.send(b"x")
        loop.run_forever()
        loop.remove_reader(a)
        loop.close()


def test_closed_while_watched(aio):
    """A descriptor that was closed before it was removed: its number can be watched again, of another file."""
    a, b = socket.socketpair()
    number = a.fileno()
    aio.add_reader(number, pytest.fail, "of the closed one")
    a.close()
    aio.remove_reader(number)
    r, w = os.pipe()
    if r != number:
        os.dup2(r, number)
        os.close(r)
    aio.add_reader(number, aio.stop)
    os.write(w, b"x")
    aio.run_forever()
    aio.remove_reader(number)
    for one in (number, w):
        os.close(one)
    b.close()


def test_selector_is_only_a_table(aio):
    """asyncio's transports look descriptors up there; to wait there is refused."""
    r, w = os.pipe()
    aio.add_reader(r, print)
    assert aio._selector.get_key(r).events == selectors.EVENT_READ
    with pytest.raises(NotImplementedError):
        aio._selector.select(0)
    aio.remove_reader(r)
    os.close(r)
    os.close(w)


# --- signals, contexts, errors


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to oneself")
def test_signal_reaches_a_loop_in_another_thread(running, wait_for):
    """asyncio's needs the main thread; and the signal's old meaning comes back."""
    arrived = []
    before = signal.getsignal(signal.SIGUSR1)
    running.add_signal_handler(signal.SIGUSR1, arrived.append, 1)
    for count in range(1, 4):
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda count=count: len(arrived) == count)
    assert running.remove_signal_handler(signal.SIGUSR1)
    assert not running.remove_signal_handler(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_signals_refused(aio):
    with pytest.raises(RuntimeError, match="cannot be caught"):
        aio.add_signal_handler(signal.SIGKILL, print)
    with pytest.raises(ValueError, match="signal number"):
        aio.add_signal_handler(12345, print)
    with pytest.raises(TypeError, match="int"):
        aio.add_signal_handler("SIGTERM", print)
    with pytest.raises(TypeError, match="coroutines"):
        aio.add_signal_handler(signal.SIGTERM, asyncio.sleep)
    assert not aio.remove_signal_handler(signal.SIGTERM)


def test_ctrl_c(run_script):
    """Ctrl-C cancels the main task, which may clean up, and is KeyboardInterrupt for the caller."""
    code = """
        import asyncio, os, signal, threading, nbloop
        signal.signal(signal.SIGINT, signal.default_int_handler)
        seen = []
        async def main():
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
        try:
            nbloop.run(main())
        except KeyboardInterrupt:
            print(seen)
    """
    assert run_script(code) == "['cancelled']\n"


def test_context(aio):
    """A callback runs in the context that was given, or in a copy of the caller's."""
    of = contextvars.ContextVar("of", default="nobody")
    seen = []

    def look():
        seen.append(of.get())
        of.set("callback")

    of.set("caller")
    given = contextvars.copy_context()
    given.run(of.set, "given")
    aio.call_soon(look)
    aio.call_soon(look, context=given)
    aio.call_later(0, look, context=given)
    aio.call_later(0.001, aio.stop)
    aio.run_forever()
    assert seen == ["caller", "given", "callback"]
    assert of.get() == "caller"
    of.set("nobody")


def test_error_of_a_callback(aio):
    """The exception handler gets the handle; the loop goes on; errors of the core's own callbacks are reported, too."""
    told = []
    aio.set_exception_handler(lambda _loop, context: told.append(context))
    handle = aio.call_soon(divmod, 1, 0)
    aio.core.submit(divmod, 2, 0)
    aio.call_soon(aio.stop)
    aio.run_forever()
    first, second = told
    assert first["handle"] is handle
    assert "divmod" in first["message"]
    assert isinstance(first["exception"], ZeroDivisionError)
    assert "divmod" in second["message"]
    assert isinstance(second["exception"], ZeroDivisionError)


def test_debug(aio, caplog):
    """Debug mode logs the slow, checks the thread, refuses coroutine functions, and remembers where."""
    aio.set_debug(True)
    aio.slow_callback_duration = 0.01
    aio.call_soon(time.sleep, 0.02)
    aio.call_later(0, time.sleep, 0.02)
    for timer in (aio.call_later(0.05, aio.stop), aio.call_at(aio.time() + 0.05, int)):
        assert not COMPILED or timer._source_traceback[-1].name == "test_debug"  # or it is a frame of a kernel
    aio.run_forever()
    slow = [record.getMessage() for record in caplog.records if "Executing" in record.getMessage()]
    assert len(slow) == 2
    with pytest.raises(TypeError, match="coroutines"):
        aio.call_soon(asyncio.sleep)
    aio.set_debug(False)
    assert aio.call_soon(print)._source_traceback is None


def test_debug_wrong_thread(running, elsewhere):
    """Debug mode: `call_soon` from a thread that is not the loop's."""
    running.call_soon_threadsafe(running.set_debug, True)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), running).result(PATIENCE)
    with pytest.raises(RuntimeError, match="Non-thread-safe"):
        running.call_soon(print)


def test_collected():
    """A closed loop is collected, with its core."""
    loop = nbloop.new_event_loop()
    loop.call_later(100, print)
    loop.run_until_complete(asyncio.sleep(0))
    gone = weakref.ref(loop.core)
    loop.close()
    del loop
    gc.collect()
    assert gone() is None


def test_not_closed():
    """A loop that is forgotten without being closed causes a warning, as in asyncio, and is closed."""
    loop = nbloop.new_event_loop()
    core = loop.core
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        loop.__del__()
    assert core.state is LoopState.TERMINATED


@pytest.mark.parametrize("what", ["streams", "subprocess", "executor", "datagram"])
def test_what_asyncio_brings(what, tmp_path):
    """The rest of asyncio works on it, and leaves no descriptor behind."""

    async def streams():
        async def serve(reader, writer):
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]

            async def ask(number):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"line %d\n" % number)
                answer = await reader.readline()
                writer.close()
                await writer.wait_closed()
                return answer

            assert await asyncio.gather(*map(ask, range(20))) == [b"LINE %d\n" % n for n in range(20)]

    async def subprocess():
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "print(input()[::-1])",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert (await process.communicate(b"abc\n"))[0].strip() == b"cba"
        assert process.returncode == 0

    async def executor():
        loop = asyncio.get_running_loop()
        assert await asyncio.gather(*(loop.run_in_executor(None, pow, 2, n) for n in range(50))) == [
            2**n for n in range(50)
        ]

    async def datagram():
        loop = asyncio.get_running_loop()
        got = loop.create_future()

        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data, addr):
                got.set_result(data)

        transport, _ = await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
        transport.sendto(b"hello", transport.get_extra_info("sockname"))
        assert await got == b"hello"
        transport.close()

    nbloop.run({"streams": streams, "subprocess": subprocess, "executor": executor, "datagram": datagram}[what]())


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_runner_leaves_signal_handlers_alone(run_script):
    """asyncio.Runner gives SIGINT back when `main` has ended only if nobody has taken it meanwhile."""
    code = """
        import asyncio, os, signal, nbloop
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before, got = signal.getsignal(signal.SIGINT), []
        async def one():
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, got.append, 1)
        async def two():
            os.kill(os.getpid(), signal.SIGINT)
            while not got:
                await asyncio.sleep(0.001)
        async def three():
            assert asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        with asyncio.Runner(loop_factory=nbloop.new_event_loop) as runner:
            runner.run(one())
            runner.run(two())
            runner.run(three())
        try:
            os.kill(os.getpid(), signal.SIGINT)
            import time; time.sleep(5)
        except KeyboardInterrupt:
            print(got)
    """
    assert run_script(code) == "[1]\n"


def test_a_ready_handle_is_queued_once(aio):
    """While a producer is between its ticket and its store, the loop polls repeatedly, and nothing after that producer
    can run: a ready reader must not be queued each time.
    """
    a, b = socket.socketpair()
    with a, b:
        reads = []
        a.setblocking(False)

        def reader():
            reads.append(None)
            with contextlib.suppress(BlockingIOError):
                reads[-1] = a.recv(1)

        aio.add_reader(a, reader)
        b.send(b"x")
        aio.call_soon(int)  # makes the chunk of the first tickets
        core = aio.core._state.ctypes.data
        ticket = fetch_add(core + layout.STATE.EXTERNAL + layout.QUEUE.TAIL, 1)  # of a producer that is descheduled now
        cell = queue_cell(
            queue_segment(core + layout.STATE.EXTERNAL, ticket),
            ticket,
            get(core + layout.STATE.EXTERNAL + layout.QUEUE.SHIFT),
        )
        turns = int(aio.core._record["turns"])

        def fill():
            while int(aio.core._record["turns"]) < turns + 20:
                time.sleep(0.001)
            store(cell, id(stop))

        stop = aio.stop
        Py_IncRef(id(stop))
        thread = threading.Thread(target=fill)
        thread.start()
        aio.run_forever()
        thread.join()
        aio.run_until_complete(asyncio.sleep(0))
        assert reads == [b"x"]
        assert aio.core._record["turns"] > turns + 10
        aio.remove_reader(a)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("ask", ["asyncio.get_running_loop()", "native"])
def test_the_handler_of_a_runner_does_not_outlive_its_task(run_script, ask):
    """It is not given back when the loops let go of SIGINT after the Runner's end, and keeps no task. While the task
    runs it is.
    """
    code = f"""
        import asyncio, gc, signal, weakref, nbloop
        signal.signal(signal.SIGINT, signal.default_int_handler)
        native = nbloop.Loop()
        async def main():
            loop, runners = {ask}, signal.getsignal(signal.SIGINT)
            for _ in range(2):
                loop.add_signal_handler(signal.SIGINT, print)
                assert signal.getsignal(signal.SIGINT) is not runners
                loop.remove_signal_handler(signal.SIGINT)
                assert signal.getsignal(signal.SIGINT) is runners
            loop.add_signal_handler(signal.SIGINT, print)
            return weakref.ref(asyncio.current_task())
        task = nbloop.run(main())
        native.close()
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, (gc.collect(), task())[1])
    """
    assert run_script(code) == "True None\n"


def test_nest_asyncio_is_refused_at_once(aio):
    """Before it has replaced anything of the class: its own question is answered by why not."""
    before = dict(vars(type(aio)))
    with pytest.raises(RuntimeError, match="nest_asyncio cannot patch"):
        hasattr(aio, "_nest_patched")
    nest = pytest.importorskip("nest_asyncio")
    with pytest.raises(RuntimeError, match="nest_asyncio cannot patch"):
        nest._patch_loop(aio)
    assert dict(vars(type(aio))) == before


# --- how often the descriptors are polled


@pytest.fixture
def readable():
    """An eventfd that can always be read."""
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


async def chain(turns, callback):
    """A chain of callbacks that is always ready: one for each turn."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def step(left):
        callback()
        if left:
            loop.call_soon(step, left - 1)
        else:
            ended.set_result(None)

    loop.call_soon(step, turns)
    await ended


@pytest.fixture
def short_turns(monkeypatch):
    """A turn of kernels that are Python takes longer than the bound in time; it counts as a short one."""
    if not COMPILED:
        monkeypatch.setattr(turn, "UNPOLLED_NS", 1 << 60)


@pytest.mark.usefixtures("short_turns")
def test_descriptors_are_polled_in_one_turn_of_eight_while_callbacks_are_ready(readable):
    async def main():
        loop = asyncio.get_running_loop()
        calls = itertools.count()
        loop.add_reader(readable, calls.__next__)
        await chain(8000, lambda: None)
        loop.remove_reader(readable)
        return next(calls)

    assert 8000 // 8 <= nbloop.run(main()) <= 8000 // 4  # more only where the machine takes the processor away


@pytest.mark.usefixtures("short_turns")
def test_a_descriptor_waits_for_seven_turns_at_most():
    """Whatever the turn is in which it becomes readable."""

    async def main():
        loop = asyncio.get_running_loop()
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        waited, turns, written = [], itertools.count(), -1

        def came():
            nonlocal written
            os.eventfd_read(fd)
            waited.append(next(turns) - written - 1)  # behind this turn's step
            written = -1

        def each():
            nonlocal written
            now = next(turns)
            if written < 0 and now % 13 == 0:
                os.eventfd_write(fd, 1)
                written = now

        loop.add_reader(fd, came)
        await chain(5000, each)
        loop.remove_reader(fd)
        os.close(fd)
        return waited

    waited = nbloop.run(main())
    assert len(waited) > 100
    assert max(waited) <= 8


def test_a_turn_that_took_long_polls(readable):
    """So that no descriptor waits for several of them."""

    async def main():
        loop = asyncio.get_running_loop()
        calls = itertools.count()
        loop.add_reader(readable, calls.__next__)

        def takes_long():
            end = time.perf_counter() + 60e-6
            while time.perf_counter() < end:
                pass

        await chain(200, takes_long)
        loop.remove_reader(readable)
        return next(calls)

    assert nbloop.run(main()) >= 200


@pytest.mark.usefixtures("short_turns")
def test_the_first_turn_of_a_run_polls(readable):
    """As a program relies on that turns the loop step by step."""
    loop = nbloop.new_event_loop()
    calls = itertools.count()
    loop.add_reader(readable, calls.__next__)
    for _ in range(30):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert next(calls) == 30
    loop.close()
