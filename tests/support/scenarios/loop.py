"""The core: life, descriptors, producers, worker threads, waiting."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import UserList
from collections.abc import Iterator
from typing import Any

from nbloop import FastPathMode, IOEvents, Loop, LoopExecutor, LoopGroup, LoopState, LoopTerminatedError
from tests.support.waiting import PATIENCE, wait_for
from tests.support.world import World

from .scenario import Count, Steps, scenario, until_quiet

# --- lifecycle


@scenario
def run_until_stopped(world: World) -> Steps:
    """Each task runs once, in this run or the next."""
    loop, count = world.loop(), Count()
    for _ in range(3):
        loop.submit(count.add)
    loop.submit_internal(loop.stop)
    yield loop.run
    until_quiet(loop)
    assert count.calls == 3


@scenario
def run_to_auto_exit(world: World) -> Steps:
    """It ends, or can be run to its end; a handle's work and the queue's are done by then."""
    loop, count = world.loop(auto_exit=True), Count()
    handle = loop.producer()
    handle.submit(count.add)
    loop.submit(count.add)
    loop.schedule_immediate(count.add)
    yield loop.run
    if loop.state is LoopState.AWAKE:
        handle.submit(count.add)
        loop.run()
    loop.shutdown(PATIENCE)
    assert count.calls in (3, 4)
    with contextlib.suppress(LoopTerminatedError):
        handle.submit(count.add)
        raise AssertionError("a handle of a loop that has ended takes work")


@scenario
def run_that_is_refused(world: World) -> Steps:
    """Another thread's loop goes on."""
    loop = world.running()

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            loop.run()

    yield call


@scenario
def run_while_it_shuts_down(world: World) -> Steps:
    """What was accepted runs, on this thread or a finisher's."""
    loop, count = world.loop(), Count()
    loop.submit(loop.shutdown)
    loop.submit(count.add)
    loop.submit(loop.shutdown)  # an exception in the first one is reported, and the loop goes on
    yield loop.run
    loop.shutdown(PATIENCE)
    assert count.calls == 1


@scenario
def start(world: World) -> Steps:
    """It runs in another thread, or it does not."""
    loop, count = world.loop(), Count()
    loop.submit(count.add)
    yield loop.start
    if loop.state is LoopState.AWAKE:
        until_quiet(loop)
    else:
        wait_for(lambda: count.calls == 1)


@scenario
def with_block(world: World) -> Steps:
    """Left, it has ended."""
    loop, count = world.loop(), Count()

    def call() -> None:
        with loop:
            loop.submit(count.add)

    yield call
    assert count.calls <= 1


def _shutdown(world: World, loop: Loop, *arguments: float) -> Steps:
    count = Count()
    loop.submit(count.add)
    yield lambda: loop.shutdown(*arguments)
    loop.shutdown(PATIENCE)
    assert count.calls == 1


@scenario
def shutdown_idle(world: World) -> Steps:
    """What was accepted runs."""
    return _shutdown(world, world.loop())


@scenario
def shutdown_elsewhere(world: World) -> Steps:
    """What was accepted runs."""
    return _shutdown(world, world.running())


@scenario
def shutdown_with_descriptors(world: World) -> Steps:
    """The poller's descriptors are closed."""
    return _shutdown(world, world.running(fast_path_mode=FastPathMode.DISABLED))


@scenario
def shutdown_with_timeout(world: World) -> Steps:
    """What was accepted runs."""
    return _shutdown(world, world.running(), PATIENCE)


@scenario
def close_idle(world: World) -> Steps:
    """What was accepted does not run; descriptors are closed."""
    loop, count = world.loop(fast_path_mode=FastPathMode.DISABLED), Count()
    loop.submit(count.add)
    handle = loop.producer()
    handle.submit(count.add)
    yield loop.close
    if loop.state is LoopState.AWAKE:
        until_quiet(loop)
    loop.close()
    assert count.calls in (0, 2)


@scenario
def close_elsewhere(world: World) -> Steps:
    """The loop's own thread ends it."""
    loop = world.running()
    yield loop.close
    loop.close()


@scenario
def construct(world: World) -> Steps:
    """What is half made leaves nothing."""
    yield lambda: Loop(name="made", fast_path_mode=FastPathMode.DISABLED, recorder=64, metrics=True)


# --- descriptors


@contextlib.contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair whose first socket is readable."""
    one, other = socket.socketpair()
    with one, other:
        other.send(b"x")
        yield one, other


def told(loop: Loop, count: Count) -> int:
    """How often a level-triggered watch is called in 2 turns, on whichever thread."""
    seen: list[int] = []
    if loop.state is LoopState.AWAKE:
        seen.append(count.calls)
        for _ in range(2):
            loop.stop()
            loop.run()
        return count.calls - seen[0]
    done = threading.Event()

    def look() -> None:
        seen.append(count.calls)
        if len(seen) == 4:
            done.set()
        else:
            loop.submit(look)

    loop.submit(look)
    assert done.wait(PATIENCE)
    return seen[-1] - seen[0]


def _registered(loop: Loop, fd: int, count: Count) -> None:
    """Registered and called, or neither; and the number is not taken for ever."""
    try:
        loop.register_fd(fd, IOEvents.READ, count)
    except ValueError:
        assert told(loop, count) > 0
    else:
        assert told(loop, count) > 0
    loop.unregister_fd(fd)
    assert told(loop, count) == 0
    loop.register_fd(fd, IOEvents.READ, count)
    assert told(loop, count) > 0
    loop.unregister_fd(fd)


def _register(loop: Loop) -> Steps:
    count = Count()
    with sockets() as (one, _other):
        yield lambda: loop.register_fd(one.fileno(), IOEvents.READ, count)
        _registered(loop, one.fileno(), count)


@scenario
def register_first(world: World) -> Steps:
    """Registered and called, or neither."""
    return _register(world.loop())


@scenario
def register_elsewhere(world: World) -> Steps:
    """Registered and called, or neither."""
    return _register(world.running())


def _modify(loop: Loop) -> Steps:
    count = Count()
    with sockets() as (one, _other):
        loop.register_fd(one.fileno(), 0, count)
        yield lambda: loop.modify_fd(one.fileno(), IOEvents.READ)
        if told(loop, count) == 0:
            loop.modify_fd(one.fileno(), IOEvents.READ)
            assert told(loop, count) > 0
        loop.modify_fd(one.fileno(), 0)
        assert told(loop, count) == 0
        loop.unregister_fd(one.fileno())


@scenario
def modify_idle(world: World) -> Steps:
    """Changed, or not."""
    return _modify(world.loop())


@scenario
def modify_elsewhere(world: World) -> Steps:
    """Changed, or not."""
    return _modify(world.running())


@scenario
def mute(world: World) -> Steps:
    """Muted, or not."""
    loop, count = world.loop(), Count()
    with sockets() as (one, _other):
        loop.register_fd(one.fileno(), IOEvents.READ, count)
        yield lambda: loop.modify_fd(one.fileno(), 0)
        if told(loop, count) == 0:
            loop.modify_fd(one.fileno(), IOEvents.READ)
            assert told(loop, count) > 0
        loop.unregister_fd(one.fileno())


def _unregister(loop: Loop) -> Steps:
    count = Count()
    with sockets() as (one, _other):
        loop.register_fd(one.fileno(), IOEvents.READ, count)
        yield lambda: loop.unregister_fd(one.fileno())
        _registered(loop, one.fileno(), count)


@scenario
def unregister_last(world: World) -> Steps:
    """Gone, or still called."""
    return _unregister(world.loop())


@scenario
def unregister_elsewhere(world: World) -> Steps:
    """Gone, or still called."""
    return _unregister(world.running())


def _mode(loop: Loop) -> Steps:
    yield lambda: loop.set_fast_path_mode(FastPathMode.DISABLED)
    count = Count()
    with sockets() as (one, _other):
        loop.register_fd(one.fileno(), IOEvents.READ, count)
        assert told(loop, count) > 0
        loop.unregister_fd(one.fileno())
    loop.set_fast_path_mode(FastPathMode.FORCED)
    loop.set_fast_path_mode(FastPathMode.DISABLED)


@scenario
def mode_idle(world: World) -> Steps:
    """The mode is the old one or the new one."""
    return _mode(world.loop())


@scenario
def mode_elsewhere(world: World) -> Steps:
    """The mode is the old one or the new one."""
    return _mode(world.running())


# --- producers, promisify


@scenario
def producer(world: World) -> Steps:
    """A handle, or none."""
    loop, made = world.loop(), []
    yield lambda: made.append(loop.producer())
    count = Count()
    for handle in made:
        handle.submit(count.add)
    until_quiet(loop)
    assert count.calls == len(made)


def _promisify(loop: Loop) -> Steps:
    ran, settled, promises = Count(), Count(), []
    loop.promisify(int)
    yield lambda: promises.append(loop.promisify(ran.add))
    for promise in promises:
        promise.then(settled)
    loop.promisify(ran.add).then(settled)
    if loop.state is LoopState.AWAKE:
        until_quiet(loop)
    loop.shutdown(PATIENCE)
    assert settled.calls == len(promises) + 1
    assert settled.calls <= ran.calls <= 2


@scenario
def promisify_idle(world: World) -> Steps:
    """The function runs or it does not, and the loop ends."""
    return _promisify(world.loop())


@scenario
def promisify_elsewhere(world: World) -> Steps:
    """The function runs or it does not, and the loop ends."""
    return _promisify(world.running())


@scenario
def promisify_first(world: World) -> Steps:
    """The first call makes the workers."""
    loop, ran = world.loop(auto_exit=True), Count()
    yield lambda: loop.promisify(ran.add)
    if loop.state is LoopState.AWAKE:
        loop.promisify(ran.add)
        loop.run()
    assert ran.calls in (1, 2)


@scenario
def promisify_in_a_callback(world: World) -> Steps:
    """Interrupted on the loop's own thread, where outcomes are settled too."""
    loop, ran, settled = world.loop(auto_exit=True), Count(), Count()
    made: list[Any] = []

    def begin() -> None:
        made.append(loop.promisify(ran.add))
        made[-1].then(settled)

    loop.submit(begin)
    loop.submit(begin)
    yield loop.run
    if loop.state is LoopState.AWAKE:
        loop.run()
    loop.shutdown(PATIENCE)
    assert all(promise.state == "fulfilled" for promise in made)
    assert settled.calls == len(made) or settled.calls == len(made) - 1
    assert len(made) <= ran.calls <= 2


@scenario
def shutdown_with_workers(world: World) -> Steps:
    """It waits for the workers."""
    loop, gate, settled = world.running(), threading.Event(), Count()
    promise = loop.promisify(gate.wait, PATIENCE)
    promise.then(settled)
    loop.submit(gate.set)
    yield loop.shutdown
    loop.shutdown(PATIENCE)
    assert settled.calls == 1


@scenario
def close_with_workers(world: World) -> Steps:
    """It rejects."""
    loop, gate = world.loop(), threading.Event()
    promise = loop.promisify(gate.wait, PATIENCE)
    yield loop.close
    loop.close()
    gate.set()
    assert promise.state == "rejected"


# --- groups of calls


@scenario
def submit_many(world: World) -> Steps:
    """All of them, or none."""
    loop, count = world.loop(), Count()
    yield lambda: loop.submit_many(UserList([count.add] * 3))
    until_quiet(loop)
    assert count.calls in (0, 3)


@scenario
def cancel_timers(world: World) -> Steps:
    """What was not cancelled runs, once."""
    loop, count = world.loop(), Count()
    ids = [loop.schedule_timer(0, count.add) for _ in range(3)]
    yield lambda: loop.cancel_timers(UserList(ids))
    left = 3 - sum(loop.cancel_timers(ids[:1]))
    until_quiet(loop)
    assert count.calls in (0, left, left - 1)


# --- waiting


@scenario
def call(world: World) -> Steps:
    """The function has run, or it never will, or it is queued."""
    loop, count = world.running(), Count()
    yield lambda: loop.call(count.add)
    loop.call(int)
    assert count.calls <= 1


@scenario
def wait(world: World) -> Steps:
    """The loop ends, and who no longer waits is forgotten with it."""
    loop = world.running()
    loop.schedule_timer(0.001, loop.shutdown)
    yield loop.wait
    loop.shutdown(PATIENCE)


@scenario
def executor(world: World) -> Steps:
    """It can be shut down."""
    loop, count = world.running(), Count()
    made = LoopExecutor(loop)
    yield lambda: made.submit(count.add)
    made.shutdown()
    assert count.calls <= 1


@scenario
def executor_shutdown(world: World) -> Steps:
    """It takes no more calls, or it does."""
    loop, count = world.running(), Count()
    made = LoopExecutor(loop)
    made.submit(count.add)
    yield made.shutdown
    made.shutdown()
    assert count.calls == 1


# --- groups of loops


@scenario
def group(world: World) -> Steps:
    """A whole one, or none of its loops."""
    made: list[LoopGroup] = []
    yield lambda: made.append(LoopGroup(2))
    for one in made:
        for loop in one.loops:
            world.to_go(loop)
        one.close()


@scenario
def group_start(world: World) -> Steps:
    """All run, or none."""
    group, count = LoopGroup(2), Count()
    for loop in group.loops:
        world.to_go(loop)
    yield group.start
    with contextlib.suppress(LoopTerminatedError):
        group.broadcast(count.add)
    group.shutdown(PATIENCE)
    assert count.calls in (0, 2)


@scenario
def group_shutdown(world: World) -> Steps:
    """All end."""
    group, count = LoopGroup(2), Count()
    for loop in group.loops:
        world.to_go(loop)
    group.start()
    group.broadcast(count.add)
    yield group.shutdown
    group.shutdown(PATIENCE)
    assert count.calls == 2


@scenario
def group_close(world: World) -> Steps:
    """All end, now or at the next call."""
    group = LoopGroup(2)
    for loop in group.loops:
        world.to_go(loop)
    group.start()
    yield group.close
    group.close()
    group.wait(PATIENCE)
