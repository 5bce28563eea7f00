"""os.fork: the child's copy of a loop refuses, the parent's does not notice. In processes of their own: pytest has
threads.
"""

from __future__ import annotations

import os
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PRELUDE = """
import os, sys, threading, time, traceback, warnings
warnings.simplefilter("ignore")  # that forking with threads is dangerous is what this is about
from nbloop import FastPathMode, ForkedLoopError, IOEvents, Loop, LoopState

def in_child(check):
    "Run check() in a forked child; its end must be a good one."
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 30
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.001)
    assert os.waitstatus_to_exitcode(status) == 0, status

def refused(call, *args):
    try:
        call(*args)
    except ForkedLoopError:
        return
    raise AssertionError(f"{call} was not refused")

def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)

def wakes():
    "Writes into event descriptors, which loops never read. Not turns: the system may end a sleep for no reason."
    found = []
    for number in os.listdir("/proc/self/fdinfo") if sys.platform == "linux" else []:
        try:
            with open(f"/proc/self/fdinfo/{number}") as file:
                found += [(number, line) for line in file if line.startswith("eventfd-count")]
        except FileNotFoundError:  # the list's own
            pass
    return found

def every_call(loop, handle):
    for name, args in {
        "submit": (int,), "submit_many": ([int],), "submit_internal": (int,), "schedule_microtask": (int,),
        "schedule_next_tick": (int,), "schedule_immediate": (int,), "schedule_close": (int,),
        "schedule_timer": (0, int), "schedule_timer_at": (0, int),
        "schedule_interval": (1, int), "cancel_timer": (1,), "cancel_timers": ([1],),
        "cancel_immediate": (1,), "ref_timer": (1,), "unref_timer": (1,), "alive": (), "wake": (), "stop": (),
        "now": (), "is_loop_thread": (), "producer": (), "run": (), "start": (), "__enter__": (), "shutdown": (),
        "close": (), "set_fast_path_mode": (FastPathMode.FORCED,), "add_signal_handler": (10, int),
        "remove_signal_handler": (10,),
    }.items():
        refused(getattr(loop, name), *args)
    refused(handle.submit, int)
    refused(handle.submit_many, [int])
    assert "forked" in repr(loop)
"""


@pytest.mark.parametrize("where", ["never run", "stopped", "asleep"])
@pytest.mark.parametrize("mode", ["AUTO", "DISABLED"])
def test_child_is_refused(run_script, mode, where):
    """contract: fork: every call of the child's copy raises ForkedLoopError; the parent's loop goes on, and is not
    even woken.
    """
    run_script(
        PRELUDE
        + f"""
loop = Loop(fast_path_mode=FastPathMode.{mode})
handle, ran, submit = loop.producer(), [], loop.submit
loop.submit(ran.append, 1)
handle.submit(ran.append, 2)
if {where!r} == "stopped":
    loop.stop()
    loop.run()
elif {where!r} == "asleep":
    loop.start()
    until(lambda: len(ran) == 2 and loop.state is LoopState.SLEEPING)
before = wakes()
for _ in range(3):
    in_child(lambda: (every_call(loop, handle), refused(submit, int)))
assert wakes() == before
handle.submit(ran.append, 3)
loop.submit(ran.append, 4)
loop.shutdown()
assert sorted(ran) == [1, 2, 3, 4], ran
"""
    )


def test_a_loop_that_had_ended_is_the_same_in_a_child(run_script):
    """contract: fork: it refuses as in the parent, its figures are there, and ending it again does nothing."""
    run_script(
        PRELUDE
        + """
from nbloop import LoopTerminatedError

loop = Loop()
handle, submit = loop.producer(), loop.submit
with loop:
    pass

def check():
    for call in (submit, loop.submit, handle.submit, lambda f: loop.schedule_timer(0, f), lambda f: loop.run()):
        try:
            call(int)
        except LoopTerminatedError:
            continue
        raise AssertionError(f"{call} was not refused")
    loop.shutdown()
    loop.close()
    loop.stop()
    assert not loop.cancel_timer(1)
    assert loop.state is LoopState.TERMINATED

check()
in_child(check)
"""
    )


def test_child_can_make_its_own(run_script):
    """contract: fork: a loop made in the child works there, and dropping the inherited one is harmless."""
    run_script(
        PRELUDE
        + """
import gc
loop = Loop()
loop.start()

def check():
    global loop
    with Loop() as mine:
        ran = []
        mine.submit(ran.append, 1)
    assert ran == [1]
    del loop
    gc.collect()

in_child(check)
loop.shutdown()
"""
    )


@pytest.mark.parametrize("debug", [False, True])
def test_fork_in_a_callback(run_script, debug):
    """contract: fork in a callback of the loop: the child's run() raises ForkedLoopError, the parent's goes on."""
    run_script(
        PRELUDE
        + f"""
loop = Loop(debug={debug})
ran, child = [], []

def task():
    child.append(os.fork())
    if child[0] == 0:
        every_call(loop, handle)

handle = loop.producer()
loop.submit(task)
loop.submit(ran.append, "next")
loop.submit(loop.stop)
try:
    loop.run()
except ForkedLoopError:
    os._exit(7 if child == [0] and not ran else 8)
except BaseException:
    traceback.print_exc()
    os._exit(9)
assert child[0] != 0 and ran == ["next"]
assert os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]) == 7
loop.close()
"""
    )


def test_fork_while_others_submit(run_script):
    """contract: fork: with other threads in the middle of submits and of the loop's own locks, the child is refused
    and does not hang.
    """
    run_script(
        PRELUDE
        + """
loop = Loop()
loop.start()
ends = threading.Event()

def work():
    while not ends.is_set():
        loop.submit(int)
        loop.producer().submit(int)

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(10):
    in_child(lambda: (refused(loop.submit, int), refused(loop.producer), refused(loop.close)))
ends.set()
for thread in threads:
    thread.join()
loop.shutdown()
"""
    )


def test_child_exits(run_script):
    """contract: fork: a child that ends in the ordinary way, with the inherited loop never touched, ends well."""
    run_script(
        PRELUDE
        + """
loop = Loop(fast_path_mode=FastPathMode.DISABLED)
loop.start()
loop.submit(int)
pid = os.fork()
if pid:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    loop.shutdown()
"""
    )


def test_what_the_child_lets_go_of_stays_with_the_parent(run_script):
    """contract: fork: the memory of a loop is private to its process: a child that releases its copy, or stores
    something of its own where that was, empties nothing in the parent.
    """
    run_script(
        PRELUDE
        + """
import gc
loop = Loop()
handle = loop.producer()
ran = []
for i in range(1000):
    loop.submit(ran.append, i)
    handle.submit(ran.append, i)
loop.schedule_timer(0, ran.append, "timer")

def check():
    global loop, handle
    del loop, handle
    gc.collect()
    mine = Loop()
    for i in range(2000):
        mine.submit(print, "never")
    mine.close()

in_child(check)
loop.submit(loop.stop)
loop.run()
loop.run() if len(ran) < 2001 and not loop.stop() else None
assert len(ran) == 2001 and sorted(ran[1:]) == sorted([*range(1000)] * 2), len(ran)
"""
    )


def test_views_and_timers_are_refused_too(run_script):
    """contract: fork: what was taken from the loop before, and what is built on it, refuses as the loop itself."""
    run_script(
        PRELUDE
        + """
from nbloop.js import JS
loop = Loop()
js, later, soon = JS(loop), loop.schedule_timer, loop.schedule_immediate

def check():
    for call in (later, js.set_timeout, js.set_interval):
        refused(call, *((0, int) if call is later else (int, 0)))
    refused(soon, int)
    refused(js.set_immediate, int)
    refused(js.sleep, 1)
    refused(Loop.submit, loop, int)

for run in (False, True):
    if run:
        loop.submit(lambda: (in_child(check), loop.stop()))
        loop.run()
    else:
        in_child(check)
ran = []
loop.submit(ran.append, 1)
loop.shutdown()
assert ran == [1]
"""
    )


def test_a_child_leaves_what_it_inherited(run_script):
    """contract: fork: the end of a `with` block, and the close of an asyncio loop, do nothing in the child."""
    run_script(
        PRELUDE
        + """
import nbloop
aio = nbloop.new_event_loop()
with Loop() as loop:
    pid = os.fork()
    if pid == 0:
        aio.close()
        assert aio.is_closed()
        sys.exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status
aio.close()
"""
    )


@pytest.mark.parametrize("metrics", ["True", '"shared"'])
def test_children_leave_the_figures_alone(run_script, metrics, tmp_path):
    """contract: fork: a child that returns into the kernel counts nothing in the parent's figures, which are exact."""
    run_script(
        PRELUDE
        + f"""
loop = Loop(metrics={metrics}, recorder=4096, auto_exit=True)
parent, pids, ran = os.getpid(), [], []

def forks():
    pid = os.fork()
    if pid:
        pids.append(pid)
    # the child simply returns

def fails():
    if not os.fork():
        raise ValueError("in the child")

for i in range(20):
    loop.submit(forks)
    loop.producer().submit(forks)
    loop.schedule_timer(0, forks)
    loop.schedule_microtask(forks)
loop.submit(fails)
loop.submit(ran.append, 1)
try:
    loop.run()
except ForkedLoopError:
    os._exit(0)
finally:
    if os.getpid() != parent:
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
figures = loop.metrics()
events = [event for event in loop.recorder.events() if event.duration and event.kind != "sleep"]
assert len(pids) == 80 and ran == [1]
assert (figures.callbacks, figures.latency.count, figures.errors) == (82, 82, 0), figures
assert figures.running is None
assert sum(event.failed for event in events) == 0
""",
        XDG_RUNTIME_DIR=str(tmp_path),
    )


def test_a_group_in_a_child_is_refused(run_script):
    """contract: fork: as its loops are, started or not; the parent's group goes on."""
    run_script(
        PRELUDE
        + """
from nbloop import LoopGroup
idle, group, ran = LoopGroup(2), LoopGroup(2), []
group.start()

def check():
    for each in (group, idle):
        for name, args in {
            "submit": (int,), "broadcast": (int,), "shutdown": (), "close": (), "wait": (1,),
        }.items():
            refused(getattr(each, name), *args)
    refused(idle.start)

for n in range(3):
    in_child(check)
    group.broadcast(ran.append, n)
    until(lambda: len(ran) == 2 * n + 2)
group.shutdown()
idle.start()
idle.submit(ran.append, "idle")
idle.shutdown()
assert ran[-1] == "idle"
"""
    )


SERVE = """
import asyncio, signal
import nbloop

parent = os.getpid()

def fork():
    "In the parent, wait for the child's end, and return its exit code; None in the child."
    pid = os.fork()
    if pid == 0:
        return None
    found = [(0, 0)]
    until(lambda: found.append(os.waitpid(pid, os.WNOHANG)) or found[-1][0])
    return os.waitstatus_to_exitcode(found[-1][1])
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("os._exit(7)", 7),
        ("return", 0),
        ("raise ValueError", 0),
        ("await asyncio.sleep(0)", 0),
        ("server.close()", 0),
        ("worker.group._listeners.close(); os._exit(7)", 7),
        ("os._exit(nbloop.serve(inner, loops=2)[1])", 1),
    ],
)
def test_a_group_of_serve_in_a_child(run_script, tmp_path, then, code):
    """contract: fork: the child's copy ends nothing of the parent's group, whatever becomes of the worker that forked;
    the child may make a group of its own. (A process whose first thread's function ends has the exit code 0.)
    """
    run_script(
        PRELUDE
        + SERVE
        + f"""
path = {str(tmp_path / "socket")!r}
listening = []

async def inner(worker):
    return worker.index

async def echo(reader, writer):
    writer.write(await reader.read(1))
    writer.close()

async def main(worker):
    server = await asyncio.start_server(echo, sock=worker.listen_unix(path))
    listening.append(1)
    if worker.primary:
        while len(listening) < 2:  # a child of a fork meanwhile would have the lock of addresses taken for ever
            await asyncio.sleep(0.001)
        code = fork()
        if code is None:
            {then}
        assert code == {code}, code
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()
    return await worker.call((worker.index + 1) % worker.count, asyncio.sleep, 0, worker.index)

assert nbloop.serve(main, loops=2) == [0, 1]
assert os.getpid() == parent
assert not os.path.exists(path)
"""
    )


@pytest.mark.parametrize("sleeps", ["at first", "watching", "with Python's wake-up descriptor", "in Python"])
def test_a_signals_handler_that_forks_while_the_loop_sleeps(run_script, sleeps):
    """contract: fork: in the child, `run` raises ForkedLoopError; the parent's loop goes on."""
    mode = "DISABLED" if sleeps == "in Python" else "AUTO"
    run_script(
        PRELUDE
        + SERVE
        + f"""
codes, ran = [], []

def handler(*_):
    code = fork()
    if code is not None:
        codes.append(code)

def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

def send():
    until(lambda: loop.state is LoopState.SLEEPING)
    if {sleeps!r} == "with Python's wake-up descriptor":
        until(lambda: descriptors() > before or not before)
    os.kill(parent, signal.SIGUSR1)
    until(lambda: codes)
    loop.submit(ran.append, 1)
    loop.submit(loop.stop)

signal.signal(signal.SIGUSR1, handler)
loop = Loop(fast_path_mode=FastPathMode.{mode})
if {sleeps!r} == "watching":
    reader, writer = os.pipe()
    loop.register_fd(reader, IOEvents.READ, print)
before = descriptors()
threading.Thread(target=send, daemon=True).start()
try:
    loop.run()
except ForkedLoopError:
    assert os.getpid() != parent
    os._exit(7)
assert os.getpid() == parent
assert (codes, ran) == ([7], [1])
loop.close()
"""
    )


def test_a_signals_handler_that_forks_during_serve(run_script, tmp_path):
    """contract: fork: in the child, `serve` raises ForkedLoopError, and the parent's group goes on."""
    run_script(
        PRELUDE
        + SERVE
        + f"""
path = {str(tmp_path / "socket")!r}
codes = []

def handler(*_):
    code = fork()
    if code is not None:
        codes.append(code)

async def main(worker):
    if worker.primary:
        worker.listen_unix(path)
        os.kill(parent, signal.SIGUSR1)
        while not codes:
            await asyncio.sleep(0.001)
        assert os.path.exists(path)
    return worker.index

signal.signal(signal.SIGUSR1, handler)
try:
    results = nbloop.serve(main, loops=2)
except ForkedLoopError:
    assert os.getpid() != parent
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    os._exit(7)
assert results == [0, 1]
assert codes == [7]
"""
    )


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_signals_of_a_workers_child(run_script, number):
    """contract: fork: they belong to the child, with the handlers from before `serve`."""
    run_script(
        PRELUDE
        + SERVE
        + f"""
async def main(worker):
    if worker.primary:
        code = fork()
        if code is None:
            try:
                os.kill(os.getpid(), signal.{number})
                for _ in range(1000):
                    time.sleep(0.001)
            except KeyboardInterrupt:
                os._exit(7)
            os._exit(8)
        assert code == (7 if {number!r} == "SIGINT" else -signal.SIGTERM), code
    return worker.index

assert nbloop.serve(main, loops=2) == [0, 1]
"""
    )


def test_a_child_of_a_process_without_compiled_kernels(run_script):
    """Kernels as plain Python share one lock, which another thread may hold at the fork."""
    run_script(
        PRELUDE
        + """
import numpy as np
from nbloop.kernels.base import atomics

word, held, over = np.zeros(1, np.int64), threading.Event(), threading.Event()

def hold():
    with atomics._one_at_a_time:
        held.set()
        assert over.wait(60)

threading.Thread(target=hold).start()
assert held.wait(60)
in_child(lambda: atomics.fetch_add(word.ctypes.data, 1))
over.set()
"""
    )


@pytest.mark.parametrize("where", ["elsewhere", "in on_batch"])
def test_a_channel_in_a_child_is_refused(run_script, where):
    """contract: fork: so are its producers; the parent's records are delivered once, and its counts are exact."""
    run_script(
        PRELUDE
        + f"""
import numpy as np
loop, got, children = Loop(), [], []

def on_batch(records):
    got.extend(records["a"].tolist())
    if {where!r} == "in on_batch":
        in_child(check)
        children.append(1)

def check():
    for each in (channel, producer):
        refused(each.put, 1)
        refused(each.put_many, np.zeros(2, dtype))
        refused(each.shutdown)
    refused(channel.producer)
    refused(loop.channels)
    refused(lambda: loop.channel(dtype, on_batch=print))

dtype = np.dtype([("a", "i8")])
channel = loop.channel(dtype, on_batch=on_batch, capacity=64)
producer = channel.producer()
loop.start()
for n in range(6):
    if {where!r} == "elsewhere":
        in_child(check)
    (channel, producer)[n % 2].put(n)
    until(lambda: len(got) == n + 1)
assert got == list(range(6)), got
until(lambda: (channel.delivered, producer.delivered) == (3, 3))  # counted when on_batch has returned
producer.shutdown()
channel.shutdown()
loop.shutdown()
assert len(children) == (6 if {where!r} == "in on_batch" else 0)
"""
    )


@pytest.mark.parametrize("state", ["idle", "stopped", "asleep", "running", "ended"])
def test_shared_figures_are_exact_whatever_the_loop_does_when_it_forks(run_script, tmp_path, state):
    """contract: fork: a child neither counts in its parent's figures nor removes their file, and what it makes is its
    own; the parent's recorder goes on.
    """
    run_script(
        PRELUDE
        + f"""
import gc
from nbloop.observe import shared
gc.disable()  # each collection is an event of the recorder, wherever it happens
loop = Loop(metrics="shared", recorder=4096, name="parent")
inside, goes_on, ran = threading.Event(), threading.Event(), []

def hang():
    inside.set()
    assert goes_on.wait(30)

for n in range(10):
    loop.submit(ran.append, n)
if {state!r} == "stopped":
    loop.submit(loop.stop)
    loop.run()
elif {state!r} != "idle":
    loop.start()
    until(lambda: len(ran) == 10 and loop.state is LoopState.SLEEPING)
if {state!r} == "running":
    loop.submit(hang)
    assert inside.wait(30)
elif {state!r} == "ended":
    loop.shutdown()

def files():
    return sorted(path.name for path in shared.folder().iterdir())

def check():
    if {state!r} != "ended":  # a loop that has ended refuses as it does in the parent
        refused(loop.submit, int)
        refused(loop.metrics)
    with Loop(metrics="shared", name="child") as mine:
        mine.call(int)
        until(lambda: mine.metrics().callbacks == 1)  # counted when the callback has returned
        names = sorted(one.name for one in shared.loops())
        assert names == (["child"] if {state!r} == "ended" else ["child", "parent"]), names

def figures():
    return files(), loop.metrics().callbacks, [event.kind for event in loop.recorder.events()]

before = figures()
for _ in range(3):
    in_child(check)
after = figures()
assert after == before, (before, after)
goes_on.set()
if {state!r} != "ended":
    loop.submit(ran.append, "last")
    loop.shutdown()
    assert ran[-1] == "last"
assert loop.metrics().callbacks == len(ran) + ({state!r} in ("stopped", "running"))
assert files() == []
""",
        XDG_RUNTIME_DIR=str(tmp_path),
    )


WAITS = {
    "wait": "loop.wait()",
    "wait for a time": "loop.wait(30)",
    "call": "loop.call(hang)",
    "result": "js.JS(loop).with_resolvers()[0].result()",
    "close": "loop.submit(hang); began.wait(30); loop.close()",
    "shutdown": "loop.submit(hang); began.wait(30); loop.shutdown()",
    "a group's wait": "group.wait()",
}


@pytest.mark.parametrize("call", WAITS)
def test_a_handler_that_forks_while_its_thread_waits(run_script, call):
    """contract: fork: what the child waited for stayed in the parent: ForkedLoopError. The parent goes on waiting."""
    run_script(
        PRELUDE
        + f"""
import _thread, signal, types
import nbloop
from nbloop import js, lock
loop, group = Loop(), nbloop.LoopGroup(1)
loop.start()
group.start()
parent, armed, codes, began, goes_on = os.getpid(), [1], [], threading.Event(), threading.Event()

def hang():
    began.set()
    assert goes_on.wait(30)

def handler(*_):
    pid = os.fork()
    if pid:
        found = [(0, 0)]
        until(lambda: found.append(os.waitpid(pid, os.WNOHANG)) or found[-1][0])
        codes.append(os.waitstatus_to_exitcode(found[-1][1]))
        goes_on.set()
        for one in (loop, *group.loops):
            one.submit(one.stop)  # which does not end it
        threading.Thread(target=lambda: (group.close(), loop.close()), daemon=True).start()

def allocate_lock():
    "In the middle of a wait."
    if armed and threading.current_thread() is threading.main_thread():
        armed.clear()  # also in the child
        signal.raise_signal(signal.SIGUSR1)
    return _thread.allocate_lock()

signal.signal(signal.SIGUSR1, handler)
lock._thread = types.SimpleNamespace(**vars(_thread) | {{"allocate_lock": allocate_lock}})
try:
    {WAITS[call]}
except ForkedLoopError:
    assert os.getpid() != parent
    os._exit(7)
except nbloop.LoopTerminatedError:
    pass
assert os.getpid() == parent
assert codes == [7], codes
"""
    )


def test_what_a_thread_holds_that_stayed_in_the_parent(run_script):
    """A lock that another thread held would be taken for ever: waiting for it is refused. One that a module keeps is
    free, unless the thread that forked holds it.
    """
    run_script(
        PRELUDE
        + """
from nbloop.lock import CountingLock, ModuleLock
locks = lock, modules = CountingLock(), ModuleLock()
inside, over, entered = threading.Event(), threading.Event(), []

def hold():
    with lock, modules:
        inside.set()
        assert over.wait(60)

def enter(lock):
    with lock:
        assert lock._recursion_count() == 1
    assert lock._recursion_count() == 0

def check():
    assert not CountingLock()._orphaned()  # a free lock has no holder, either
    refused(enter, lock)
    assert lock._recursion_count() == 0
    enter(modules)
    with modules:  # a child has threads of its own that wait
        waiter = threading.Thread(target=lambda: enter(modules) or entered.append(1))
        waiter.start()
        time.sleep(1)  # longer than between two checks
        assert waiter.is_alive()
    waiter.join(10)
    assert entered == [1]

thread = threading.Thread(target=hold)
thread.start()
assert inside.wait(60)
in_child(check)
over.set()
thread.join()
for each in locks:
    with each:
        in_child(lambda: each._recursion_count() == 1 or os._exit(3))
        assert each._recursion_count() == 1
    enter(each)
with modules:
    pid = os.fork()
if pid == 0:
    os._exit(modules._recursion_count())
assert os.waitpid(pid, 0)[1] == 0
"""
    )


def test_a_handler_that_forks_while_the_loop_has_the_future_of_its_call(run_script):
    """contract: fork: the future's lock, which the loop's thread holds, is taken for ever in the child."""
    run_script(
        PRELUDE
        + """
import signal
from nbloop import waiting
loop = Loop()
loop.start()
inside, goes_on, children = threading.Event(), threading.Event(), []

class Held(waiting.LoopFuture):
    def set_running_or_notify_cancel(self):
        with self._condition:
            inside.set()
            assert goes_on.wait(30)
        return super().set_running_or_notify_cancel()

def handler(*_):
    pid = os.fork()
    if pid:
        children.append(pid)
        goes_on.set()

def until_inside(loop, *args):
    assert inside.wait(30)
    signal.raise_signal(signal.SIGUSR1)
    return wait(loop, *args)

from nbloop import loop as module
wait, module.wait = module.wait, until_inside
waiting.LoopFuture = Held
signal.signal(signal.SIGUSR1, handler)
parent = os.getpid()
try:
    got = loop.call(int)
except ForkedLoopError:
    assert os.getpid() != parent
    os._exit(7)
assert os.getpid() == parent and got == 0
done = [(0, 0)]
until(lambda: done.append(os.waitpid(children[0], os.WNOHANG)) or done[-1][0])
assert os.waitstatus_to_exitcode(done[-1][1]) == 7
loop.shutdown()
"""
    )


# A call has 100 to 1,500 places where a handler may run. Each run tries some 60 of them, another run others, and
# NBLOOP_FORKS=2000 all: 15 calls with 250 places each took a minute on each Python.
CALLS = {  # `ending` is at work when its end is waited for. It must not end before: an ended loop refuses no child.
    "call": "loop.call(int)",
    "wait": "ending.schedule_timer(0.01, ending.shutdown); ending.wait()",
    "result": "js.JS(loop).resolve(1).then(int).result()",
    "an executor": "executor.submit(int); executor.shutdown()",
    "shutdown": "ending.submit(time.sleep, 0.01); ending.shutdown()",
    "close": "ending.submit(time.sleep, 0.01); ending.close()",
    "start": "Loop().start()",
    "a group": "group = nbloop.LoopGroup(1); group.start(); group.shutdown()",
    "promisify": "loop.promisify(int).result()",
    "run": "Loop(auto_exit=True).run()",
    "asyncio": "nbloop.aio.run(asyncio.sleep(0))",
    "serve": "nbloop.serve(serving, loops=2)",
    "a channel": "loop.channel(dtype, print).put(3)",
    "a first descriptor": "w = Loop(); w.register_fd(pipe[0], 1, print); w.close()",
    "the last descriptor": "w.modify_fd(pipe[0], 0); w.unregister_fd(pipe[0]); w.register_fd(pipe[0], 1, print)",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_handler_that_forks_anywhere_in_a_wait(run_script, call):
    """contract: fork: wherever the handler runs, the child gets ForkedLoopError or the result, and does not hang."""
    run_script(
        PRELUDE
        + f"""
MOST = {os.environ.get("NBLOOP_FORKS", "60")}
import asyncio, faulthandler, gc, signal
import nbloop, nbloop.aio
from nbloop import js
from tests.support.arrivals import Arrivals, described
RETURNED, REFUSED = 7, 8
arrivals, children, ends, parent = Arrivals(), {{}}, set(), os.getpid()

dtype = [("a", "i8")]
pipe = os.pipe()
w = Loop()
w.register_fd(pipe[0], 1, print)

async def serving(worker):
    return worker.index

def call(loop, ending, executor):
    {CALLS[call]}

def handler(*_):
    pid = os.fork()
    if pid:
        children[pid] = at
    else:
        faulthandler.dump_traceback_later(20, exit=True)  # it hangs

def reap(most):
    "Until so many are left."
    while len(children) > most:
        pid, status = os.wait()
        place = described(children.pop(pid))
        ends.add(os.waitstatus_to_exitcode(status))
        assert ends <= {{RETURNED, REFUSED}}, (ends, place)

signal.signal(signal.SIGUSR1, handler)
with arrivals.watching():
    places = [None, None]
    while places:
        at = places.pop()
        loop, ending = Loop(), Loop()
        with loop:
            ending.start()
            executor = nbloop.LoopExecutor(loop)
            try:
                arrivals.during(lambda: call(loop, ending, executor), at, signal.SIGUSR1)
            except ForkedLoopError:
                assert os.getpid() != parent
                os._exit(REFUSED)
            except BaseException:
                if os.getpid() == parent:
                    raise
                traceback.print_exc()
                os._exit(1)
            if os.getpid() != parent:
                os._exit(RETURNED)
        if at is None and not places:
            places = arrivals.places()
            step = 1 + len(places) // MOST
            places = places[os.getpid() % step :: step]
        reap(16)
        gc.collect()
    reap(0)
assert REFUSED in ends, ends
""",
        PYTHONPATH=os.pathsep.join(sys.path),
    )


SIGNALS = """
import signal
number, seen = signal.SIGTERM, []

def ends(pid):
    until(lambda: done.append(os.waitpid(pid, os.WNOHANG)) or done[-1][0])
    return os.waitstatus_to_exitcode(done[-1][1])

done = []
"""


# A thread that has waited for the GIL for 5 ms asks for it. The holder then releases it, and waits until another thread
# has taken it. In the child of a C library's fork there is no other thread, so the child would wait for ever.
KEEP_THE_GIL = """
sys.setswitchinterval(1000)
"""


def test_a_signal_before_the_child_has_given_it_back(run_script):
    """contract: fork: a signal that reaches a child at its first moment is its own: not written into its parent's pipe,
    and not swallowed.
    """
    run_script(
        """
import os, signal
early = []
os.register_at_fork(after_in_child=lambda: early and os.kill(os.getpid(), signal.SIGTERM))
"""
        + PRELUDE
        + SIGNALS
        + """
with Loop() as loop:
    loop.add_signal_handler(number, seen.append, "parent")
    early.append(1)
    pid = os.fork()
    if not pid:
        os._exit(7)
    assert ends(pid) == -number
    os.kill(os.getpid(), number)
    until(lambda: seen)
    assert seen == ["parent"], seen
"""
    )


def test_a_child_that_python_does_not_know_of(run_script):
    """fork() of a C library calls no hooks: signals are the child's all the same."""
    run_script(
        PRELUDE
        + SIGNALS
        + KEEP_THE_GIL
        + """
import ctypes
libc = ctypes.PyDLL(None)
with Loop() as loop:
    loop.add_signal_handler(number, seen.append, "parent")
    pid = libc.fork()
    if not pid:
        libc.raise_ = libc["raise"]
        libc.raise_(number)
        libc._exit(7)
    assert ends(pid) == -number
    os.kill(os.getpid(), number)
    until(lambda: seen)
    assert seen == ["parent"], seen
"""
    )


def test_a_child_of_another_thread_can_ask_for_signals(run_script):
    """The thread that forks is the child's main thread: loops of its own get signals, and nap and doze there."""
    run_script(
        PRELUDE
        + SIGNALS
        + """
from nbloop import signals

def forks():
    in_child(check)

def check():
    assert signal.getsignal(number) is signal.SIG_DFL
    assert threading.main_thread() is threading.current_thread()
    mine, got = Loop(), []
    mine.add_signal_handler(number, got.append, 1)
    os.kill(os.getpid(), number)
    mine.schedule_timer(0.2, mine.stop)
    mine.run()
    assert got == [1] and int(mine._record["nap"]) > 0
    mine.remove_signal_handler(number)
    assert [thread.name for thread in threading.enumerate()] == [threading.main_thread().name]
    mine.close()

with Loop() as loop:
    loop.add_signal_handler(number, seen.append, "parent")
    thread = threading.Thread(target=forks)
    thread.start()
    thread.join()
    assert not seen
"""
    )


@pytest.mark.parametrize(
    ("kind", "how"),
    [("nbloop", "fork"), ("nbloop", "early"), ("nbloop", "a C library's fork"), ("asyncio", "fork")],
)
def test_a_child_of_an_asyncio_loop_ignores_its_signals(run_script, kind, how):
    """As with asyncio, also in the child's first moment; what it executes does not inherit that, and the parent goes on
    to get its own.
    """
    run_script(
        """
import os, signal
early = []
os.register_at_fork(after_in_child=lambda: early and os.kill(os.getpid(), signal.SIGTERM))
"""
        + PRELUDE
        + SIGNALS
        + KEEP_THE_GIL
        + f"""
import asyncio, ctypes, sys
import nbloop
libc = ctypes.PyDLL(None)
libc.raise_ = libc["raise"]

async def main(loop):
    loop.add_signal_handler(number, seen.append, "parent")
    if {how!r} == "early":
        early.append(1)
    pid = libc.fork() if "library" in {how!r} else os.fork()
    if not pid:
        libc.raise_(number)
        if {how!r} == "fork":
            os.execv(sys.executable, [sys.executable, "-c", f"import os; os.kill(os.getpid(), {{int(number)}})"])
        libc._exit(7)
    assert ends(pid) == (-number if {how!r} == "fork" else 7)
    early.clear()
    assert seen == []
    os.kill(os.getpid(), number)
    while not seen:
        await asyncio.sleep(0.001)
    loop.remove_signal_handler(number)
    signal.signal(number, signal.SIG_DFL)  # asyncio does so itself
    pid = os.fork()
    if not pid:
        os.kill(os.getpid(), number)
        os._exit(7)
    assert ends(pid) == -number

loop = nbloop.new_event_loop() if {kind!r} == "nbloop" else asyncio.SelectorEventLoop()
loop.run_until_complete(main(loop))
loop.close()
"""
    )


@pytest.mark.parametrize(
    "then",
    [
        "os._exit(0)",
        "transport.close()",
        "transport.abort()",
        "transport.write(b'3')",
        "transport.writelines([b'3'])",
        "transport.get_write_buffer_size()",
        "transport.get_extra_info('socket').getpeername()",
        "transport.pause_reading()",
        "self.transport = None; loop._transports.clear(); del transport; gc.collect()",
        "return",
    ],
)
def test_what_a_child_does_to_a_connection_stays_there(run_script, then):
    """contract: fork: bytes that wait for the end of the turn leave once, from the parent; the child's copy of the
    transport adds nothing to them, and stops nothing.
    """
    run_script(
        PRELUDE
        + f"""
import asyncio, gc, socket
import nbloop

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        transport = self.transport
        transport.write(b"1")
        transport.write(b"2")
        pid = os.fork()
        if pid == 0:
            global is_child
            is_child = True
            try:
                {then}
            except ForkedLoopError:
                pass
            os._exit(0)
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            time.sleep(0.001)

def visit(address):
    with socket.create_connection(address) as client:
        client.settimeout(30)
        for _ in range(3):
            client.sendall(b"x")
            assert client.recv(2, socket.MSG_WAITALL) == b"12"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(10) == b""

async def main():
    global loop
    loop = asyncio.get_running_loop()
    async with await loop.create_server(Echo, "127.0.0.1", 0) as server:
        await asyncio.to_thread(visit, server.sockets[0].getsockname())

is_child = False
try:
    nbloop.run(main())
except ForkedLoopError:
    assert is_child
"""
    )


def test_a_child_receives_no_datagram_of_the_parents(run_script):
    """contract: fork: of what one poll brings, the parent gets each datagram, and a child sends none."""
    run_script(
        PRELUDE
        + """
import asyncio, socket
import nbloop

class Protocol(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        got.append(data)
        pid = os.fork()
        if pid == 0:
            global is_child
            is_child = True
            try:
                self.transport.sendto(b"child", addr)
            except ForkedLoopError:
                return
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        self.transport.sendto(data, addr)
        if len(got) == 3:
            done.set_result(None)

async def main(peer):
    global done
    done = asyncio.get_running_loop().create_future()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Protocol, ("127.0.0.1", 0))
    transport.pause_reading()
    for number in b"012":
        peer.sendto(bytes([number]), transport.get_extra_info("sockname"))
    transport.resume_reading()
    await asyncio.wait_for(done, 30)
    transport.close()

got, is_child = [], False
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
    peer.settimeout(30)
    try:
        nbloop.run(main(peer))
    except ForkedLoopError:
        assert is_child
    if is_child:  # it has begun with what the parent had, and received no more
        os._exit(0)
    assert got == [b"0", b"1", b"2"], got
    assert [peer.recv(10) for _ in range(3)] == got
"""
    )
