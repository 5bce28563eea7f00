"""The thread-safe API, each test by eight threads at once on one running loop (pytest-run-parallel).

A fixture is made once and shared by the threads of its test: the loop, a barrier to meet at, and the books, which are
closed after the last thread has left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from nbloop import FastPathIncompatibleError, FastPathMode, IOEvents, Loop, LoopState, LoopTerminatedError
from nbloop.js import JS
from tests.support import waiting

THREADS = 8
EACH = 200  # of whatever a thread does
PATIENCE = waiting.PATIENCE

pytestmark = [pytest.mark.force_parallel_threads(THREADS)]


class Books(dict[object, list[Any]]):
    """Lists by key. Of a defaultdict two threads that ask for a key at once may get a list each, and one is lost."""

    def __missing__(self, key: object) -> list[Any]:
        return self.setdefault(key, [])


class Shared:
    """A loop that runs, and what was sent to it by each thread and by all; `ran` belongs to the loop's thread."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.js = JS(loop, on_unhandled_rejection=lambda *_: None)
        self.ran, self.sent = Books(), Books()
        self.errors: list[BaseException] = []
        self.ids: list[int] = []
        self.cancelled: list[int] = []
        self.one = self.js.with_resolvers()
        self._met = threading.Barrier(THREADS)

    def meet(self) -> int:
        """Wait for the others; a number for each."""
        return self._met.wait(PATIENCE)

    def send(self, through: Callable[..., Any], key: object, what: Any) -> Any:
        """Something that, when it runs, says so."""
        result = through(self.note, key, what)
        self.sent[key].append(what)
        return result

    def note(self, key: object, what: Any) -> None:
        self.ran[key].append(what)


@pytest.fixture
def shared() -> Iterator[Shared]:
    loop = Loop(metrics=True, recorder=1024, chunk_size=16, on_error=lambda error, _: made.errors.append(error))
    made = Shared(loop)
    thread = loop.start()
    yield made
    loop.shutdown(PATIENCE)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert made.errors == []
    assert made.ran == made.sent  # each once, and each thread's in its order
    assert not loop.alive()
    assert loop.state is LoopState.TERMINATED


QUEUES = ["submit", "submit_internal", "schedule_microtask", "schedule_next_tick", "schedule_close"]


@pytest.mark.parametrize("queue", QUEUES)
def test_queues(shared: Shared, queue: str) -> None:
    """contract: any thread; FIFO."""
    me = threading.get_ident()
    for i in range(EACH):
        shared.send(getattr(shared.loop, queue), me, i)


def test_submit_many(shared: Shared) -> None:
    """contract: all of a batch, with nothing in between."""
    for size in (1, 3, 17, 100):
        me = threading.get_ident(), size
        assert shared.loop.submit_many([partial(shared.note, me, i) for i in range(size)]) == size
        shared.sent[me] += range(size)
        assert shared.loop.submit_many(partial(shared.note, "all", me) for _ in range(size)) == size
    waiting.wait_for(lambda: len(shared.ran["all"]) == THREADS * (1 + 3 + 17 + 100))
    shared.meet()
    order = shared.ran["all"]
    blocks = [one for at, one in enumerate(order) if at == 0 or order[at - 1] != one]
    assert len(blocks) == len(set(blocks))
    if shared.meet() == 0:
        shared.sent["all"] = list(order)
    shared.meet()


def test_producers(shared: Shared) -> None:
    """contract: a handle is one thread's; order per handle; handles come and go meanwhile."""
    me = threading.get_ident()
    for i in range(0, EACH, 20):
        handle = shared.loop.producer()
        for j in range(i, i + 20):
            shared.send(handle.submit, (me, i), j)
        assert handle.submit_many([partial(shared.note, (me, i), "last")] * 3) == 3
        shared.sent[me, i] += ["last"] * 3


def test_timers_are_cancelled_once(shared: Shared) -> None:
    """contract: definite at once. All cancel everybody's timers: for each id one thread gets True."""
    mine = [shared.loop.schedule_timer(60, shared.note, "timer", i) for i in range(EACH)]
    shared.ids.extend(mine)
    shared.meet()
    ids = list(shared.ids)
    assert len(set(ids)) == THREADS * EACH
    if threading.get_ident() % 2:
        ids.reverse()
    answers = shared.loop.cancel_timers(ids[: EACH * 4]) + [shared.loop.cancel_timer(one) for one in ids[EACH * 4 :]]
    shared.cancelled.extend(one for one, answer in zip(ids, answers, strict=True) if answer)
    shared.meet()
    assert sorted(shared.cancelled) == sorted(shared.ids)


def test_timers_fire_or_are_cancelled(shared: Shared) -> None:
    """contract: never both, and never neither."""
    me = threading.get_ident()
    for i in range(EACH):
        delay = (0, 0.0005, 0.002)[i % 3]
        identifier = shared.loop.schedule_timer(delay, shared.note, me, i)
        if i % 2 and shared.loop.cancel_timer(identifier):
            continue
        shared.sent[me].append(i)
    waiting.wait_for(lambda: len(shared.ran[me]) >= len(shared.sent[me]))
    shared.ran[me].sort()  # delays differ


def test_intervals(shared: Shared) -> None:
    """contract: True: it will never run again."""
    runs, three = [], threading.Event()

    def tick() -> None:
        runs.append(1)
        if len(runs) == 3:
            three.set()

    identifier = shared.loop.schedule_interval(0.001, tick)
    assert three.wait(PATIENCE)
    assert shared.loop.cancel_timer(identifier)
    assert not shared.loop.cancel_timer(identifier)
    behind = threading.Event()  # one run may have begun in that instant
    shared.loop.submit(behind.set)
    assert behind.wait(PATIENCE)
    before = len(runs)
    behind.clear()
    shared.loop.schedule_timer(0.005, behind.set)
    assert behind.wait(PATIENCE)
    assert len(runs) == before


def test_references_of_timers(shared: Shared) -> None:
    """contract: only referenced work keeps a loop alive; whichever thread sets what, the last call counts."""
    mine = [shared.loop.schedule_timer(60, int) for _ in range(20)]
    shared.ids.extend(mine)
    shared.meet()
    for identifier in list(shared.ids):
        assert shared.loop.unref_timer(identifier)
        assert shared.loop.ref_timer(identifier)
        assert shared.loop.unref_timer(identifier)
    shared.meet()
    for identifier in list(shared.ids):
        assert shared.loop.unref_timer(identifier)
    shared.meet()
    waiting.wait_for(lambda: not shared.loop.alive())
    shared.meet()
    assert all(shared.loop.cancel_timers(mine))
    assert not shared.loop.unref_timer(mine[0])


def test_immediates(shared: Shared) -> None:
    """contract: cancelling answers as `cancel_timer`."""
    me = threading.get_ident()
    for i in range(EACH):
        identifier = shared.loop.schedule_immediate(shared.note, me, i)
        if not (i % 2 and shared.loop.cancel_immediate(identifier)):
            shared.sent[me].append(i)


def test_metrics(shared: Shared) -> None:
    """contract: a coherent snapshot, while others submit: no figure ever goes back."""
    me, before = threading.get_ident(), shared.loop.metrics()
    assert before is not None
    for i in range(50):
        shared.send(shared.loop.submit, me, i)
        now = shared.loop.metrics()
        assert now is not None
        assert now.callbacks >= before.callbacks
        assert now.turns >= before.turns
        assert now.latency.count >= before.latency.count
        assert now.latency.count <= now.callbacks
        before = now


def test_recorder(shared: Shared) -> None:
    """contract: whole entries only, while everybody writes."""
    me, recorder = threading.get_ident(), shared.loop.recorder
    assert recorder is not None
    for i in range(10):
        for j in range(20):
            shared.send(shared.loop.submit, me, 20 * i + j)
        numbers = [event.number for event in recorder.events() if event.number >= 0]
        assert numbers == sorted(set(numbers))


def test_one_promise_for_all(shared: Shared) -> None:
    """contract: the first settling call decides, from whichever thread; each handler runs once, for that outcome."""
    promise, resolve, reject = shared.one
    me, seen, done = threading.get_ident(), [], threading.Event()
    for _ in range(20):
        promise.then(seen.append, seen.append)
    shared.meet()
    resolve(me) if me % 2 else reject(me)
    promise.then(lambda _: done.set(), lambda _: done.set())
    assert done.wait(PATIENCE)
    waiting.wait_for(lambda: len(seen) == 20)
    shared.sent[me].append(seen[0])
    assert len(set(seen)) == 1
    shared.meet()
    assert len({values[0] for key, values in list(shared.sent.items()) if isinstance(key, int)}) == 1
    shared.meet()
    shared.sent.clear()


def test_promises_of_their_own(shared: Shared) -> None:
    """Chains, combinators and sleeps of all threads at once."""
    js = shared.js
    done = threading.Event()
    result: list[Any] = []
    chain = js.resolve(0)
    for _ in range(50):
        chain = chain.then(lambda value: value + 1)
    made = [js.promise(lambda resolve, _: resolve(1)), js.sleep(1), chain, js.all_settled([js.reject(1), 2])]
    js.all(made).then(result.append).then(lambda _: done.set())
    assert done.wait(PATIENCE)
    assert result[0][0::2] == [1, 50]
    assert len(result[0][3]) == 2


def test_promisify(shared: Shared) -> None:
    """contract: always settles."""
    me = threading.get_ident()
    done = threading.Event()
    made = [shared.loop.promisify(pow, me, 2) for _ in range(10)]
    values: list[Any] = []
    shared.js.all(made).then(values.extend).then(lambda _: done.set())
    assert done.wait(PATIENCE)
    assert values == [me**2] * 10


def test_modes_and_descriptors(shared: Shared) -> None:
    """contract: nothing is lost; under any race never FORCED with descriptors."""
    me, loop = threading.get_ident(), shared.loop
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        for i in range(30):
            with contextlib.suppress(FastPathIncompatibleError):
                loop.set_fast_path_mode(list(FastPathMode)[(i + me) % 3])
            shared.send(loop.submit, me, i)
            arrived = threading.Event()

            def ready(fd: int, _: IOEvents, arrived: threading.Event = arrived) -> None:
                os.read(fd, 16)
                arrived.set()

            try:
                loop.register_fd(near.fileno(), IOEvents.READ, ready)
            except FastPathIncompatibleError:
                continue
            assert loop.fast_path_mode is not FastPathMode.FORCED
            far.send(b"x")
            assert arrived.wait(PATIENCE)
            loop.unregister_fd(near.fileno())


def test_signal_handlers(shared: Shared) -> None:
    """contract: any thread; each has a loop of its own, and each gets the signal."""
    with Loop() as mine:
        for _ in range(10):
            got = threading.Event()
            mine.add_signal_handler(signal.SIGUSR2, got.set)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert got.wait(PATIENCE)
        shared.meet()
        assert mine.remove_signal_handler(signal.SIGUSR2)
        assert not mine.remove_signal_handler(signal.SIGUSR2)


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_all_end_it(shared: Shared, end: str) -> None:
    """contract: any number of threads may; what was accepted before is run by a shutdown, and dropped by a close."""
    me = threading.get_ident()
    accepted = 0
    shared.meet()
    with contextlib.suppress(LoopTerminatedError):
        for i in range(EACH):
            shared.loop.submit(shared.note, me, i)
            accepted += 1
            if i == me % EACH:
                getattr(shared.loop, end)()
    getattr(shared.loop, end)()
    assert shared.loop.state is LoopState.TERMINATED
    if end == "shutdown":
        assert shared.ran[me] == list(range(accepted))
    else:
        assert shared.ran[me] == list(range(len(shared.ran[me])))
        assert len(shared.ran[me]) <= accepted
    shared.sent[me] = shared.ran[me]
