"""No call of the loop delays a stop of the world, or a signal handler, for long, however many items it gets."""

from __future__ import annotations

import functools
import gc
import itertools
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from nbloop import Loop, LoopState, LoopTerminatedError
from nbloop.js import JS
from nbloop.kernels.methods import batch
from nbloop.testing import VirtualClock

MANY = 1_000_000
LARGE = batch.SMALL + 3 * batch.PART + 5
FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()

needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")


def nothing() -> None:
    """A callback."""


def submit_list(loop: Loop) -> Callable[[], object]:
    callbacks = [nothing] * MANY
    return lambda: loop.submit_many(callbacks)


def submit_tuple(loop: Loop) -> Callable[[], object]:
    callbacks = (nothing,) * MANY
    return lambda: loop.submit_many(callbacks)


def submit_iterator(loop: Loop) -> Callable[[], object]:
    return lambda: loop.submit_many(itertools.repeat(nothing, MANY))


def submit_producer(loop: Loop) -> Callable[[], object]:
    producer = loop.producer()
    return lambda: producer.submit_many(itertools.repeat(nothing, MANY))


def refuse(loop: Loop) -> Callable[[], object]:
    def refused() -> None:
        with pytest.raises(TypeError, match="callable"):
            loop.submit_many(itertools.chain(itertools.repeat(nothing, MANY), [None]))  # type: ignore[list-item]

    return refused


def cancel(loop: Loop) -> Callable[[], object]:
    timers = [loop.schedule_timer(3600.0, nothing) for _ in range(MANY)]
    return lambda: loop.cancel_timers(timers)


def close_with_tasks(loop: Loop) -> Callable[[], object]:
    loop.submit_many([nothing] * (5 * MANY))
    return loop.close


def close_with_timers(loop: Loop) -> Callable[[], object]:
    for _ in range(MANY):
        loop.schedule_timer(3600.0, nothing)
    return loop.close


def open_bucket(loop: Loop) -> Callable[[], object]:
    clock = VirtualClock(loop)

    def arm() -> None:
        for n in range(MANY):
            loop.schedule_timer(86400.0 + n * 1e-6, nothing)
        loop.stop()

    loop.submit(arm)
    loop.run()
    clock.advance(86399.0)
    loop.schedule_timer(0, loop.stop)
    return loop.run


def fetch(loop: Loop) -> Callable[[], object]:
    for _ in range(MANY):
        loop.schedule_timer(3600.0, nothing)
    loop.submit(loop.stop)
    return loop.run


def cancelled_immediates(loop: Loop) -> Callable[[], object]:
    for identifier in [loop.schedule_immediate(nothing) for _ in range(MANY)]:
        loop.cancel_immediate(identifier)
    loop.submit(loop.stop)
    return loop.run


def settle(loop: Loop) -> Callable[[], object]:
    promise, resolve, _reject = JS(loop).with_resolvers()
    for _ in range(MANY):
        promise.then(repr)
    return resolve


CALLS = [
    *(submit_list, submit_tuple, submit_iterator, submit_producer, refuse, cancel, close_with_tasks, close_with_timers),
    *(open_bucket, fetch, cancelled_immediates, settle),
]


def tries() -> Iterator[int]:
    """1, 2, and so on, for half a minute: on a busy machine many tries are in vain."""
    until = time.monotonic() + 30
    for number in itertools.count(1):
        yield number
        if time.monotonic() > until:
            return


@needs_timers
@pytest.mark.parametrize("call", CALLS)
def test_signals_are_handled_in_the_middle(make_loop: Callable[..., Loop], call: Callable[..., Any]) -> None:
    """However often one comes meanwhile, a handler that had to wait for the end would run once before it, and once
    after.
    """
    for _ in tries():
        act = call(make_loop())
        handled: list[int] = []
        before = signal.signal(signal.SIGALRM, lambda *_, handled=handled: handled.append(1))
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        try:
            act()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if len(handled) > 6:
            return
    pytest.fail("a handler waits for the end")


@needs_timers
@pytest.mark.parametrize("outcome", ["fulfilled", "rejected"])
@pytest.mark.parametrize("raises", [False, True])
def test_a_handler_that_raises_while_a_promise_settles(loop: Loop, turns: Any, outcome: str, raises: bool) -> None:
    """All that waits for the promise runs nevertheless, in order; what the handler raised leaves the call."""
    many = 200_000
    for _ in tries():
        ran: list[int] = []
        promise, resolve, reject = JS(loop).with_resolvers()
        for number in range(many):
            add = functools.partial(lambda ran, number, _: ran.append(number), ran, number)
            promise.then(add, add)
        middle: list[int] = []

        def handler(*_: object, promise: Any = promise, ran: list[int] = ran, middle: list[int] = middle) -> None:
            middle.append(int(loop._record["holds"]))  # or an auto-exit loop could end meanwhile
            if len(middle) == 3:
                promise.then(lambda _: ran.append(many), lambda _: ran.append(many))
                if raises:
                    raise ZeroDivisionError

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        raised = False
        try:
            (resolve if outcome == "fulfilled" else reject)(1)
        except ZeroDivisionError:
            raised = True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        turns(loop)
        if len(middle) < 6:  # the third came perhaps at the end of the call
            continue
        assert max(middle) == 1
        assert int(loop._record["holds"]) == 0
        assert raised is raises
        assert ran == list(range(many + 1))
        return
    pytest.fail("no handler runs in the middle")


@pytest.mark.slow
@pytest.mark.skipif(not FREE_THREADED, reason="nothing stops the world")
@pytest.mark.parametrize("call", CALLS)
def test_the_world_is_stopped_in_the_middle(make_loop: Callable[..., Loop], call: Callable[..., Any]) -> None:
    """Another thread stops it all the time. A call that had to end first would be one long gap between two stops."""
    for _ in tries():
        loop = make_loop()
        act = call(loop)
        stops: list[float] = []
        over = threading.Event()
        ready = threading.Event()

        def stop(stops: list[float] = stops, over: threading.Event = over, ready: threading.Event = ready) -> None:
            while not over.is_set():
                sys._current_frames()  # stops the world, and visits no heap, as a collection would
                stops.append(time.monotonic())
                ready.set()

        thread = threading.Thread(target=stop)
        thread.start()
        assert ready.wait(60)
        begun = time.monotonic()
        act()
        ended = time.monotonic()
        over.set()
        thread.join(60)
        loop.close()
        times = [begun, *(at for at in stops if begun < at < ended), ended]
        if max(later - earlier for earlier, later in itertools.pairwise(times)) < (ended - begun) / 2:
            return
    pytest.fail("a stop of the world waits for the end")


# --- a large batch ----------------------------------------------------------------------------------------------------


def numbered(ran: list[int], count: int) -> list[Callable[[], None]]:
    return [lambda n=n: ran.append(n) for n in range(count)]  # type: ignore[misc]


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda items: (item for item in items)])
@pytest.mark.parametrize("options", [{}, {"metrics": True}, {"recorder": 64}, {"chunk_size": 16}, {"chunk_size": 4096}])
@pytest.mark.parametrize("count", [batch.SMALL, batch.SMALL + 1, LARGE, 40_000])
def test_a_large_batch_keeps_its_place(
    make_loop: Callable[..., Loop], turns: Any, kind: Callable[..., Iterable[Any]], options: Any, count: int
) -> None:
    """contract: submit_many: in order, with nothing between them; before and behind it what was submitted then."""
    loop = make_loop(ingress_budget=1 << 20, **options)
    ran: list[int] = []
    loop.submit(ran.append, -1)
    assert loop.submit_many(kind(numbered(ran, count))) == count
    loop.submit(ran.append, count)
    turns(loop)
    assert ran == list(range(-1, count + 1))
    assert not loop.alive()
    if options.get("metrics"):
        metrics = loop.metrics()
        assert metrics is not None
        assert metrics.callbacks == count + 2
        assert metrics.queue_current.ingress <= count + 2 + 2 * 128


def test_limits_do_not_count_fillers(make_loop: Callable[..., Loop], turns: Any) -> None:
    """contract: ingress_limit holds exactly."""
    loop = make_loop(ingress_limit=LARGE + 1, ingress_budget=1 << 20)
    loop.submit(nothing)
    with pytest.raises(Exception, match="full"):
        loop.submit_many([nothing] * (LARGE + 1))
    assert loop.submit_many([nothing] * LARGE) == LARGE
    with pytest.raises(Exception, match="full"):
        loop.submit(nothing)
    turns(loop)
    assert loop.submit_many([nothing] * LARGE) == LARGE
    loop.submit(nothing)
    with pytest.raises(Exception, match="full"):
        loop.submit(nothing)


def failing(items: Iterable[Any], error: BaseException) -> Iterator[Any]:
    yield from items
    raise error


@pytest.mark.parametrize("count", [10, LARGE])
@pytest.mark.parametrize("how", ["raises", "no callable"])
def test_a_batch_that_fails_at_its_end_stores_nothing(loop: Loop, turns: Any, count: int, how: str) -> None:
    def callback() -> None:
        ran.append(1)

    ran: list[int] = []
    references = sys.getrefcount(callback)
    error = KeyboardInterrupt if how == "raises" else TypeError
    for _ in range(3):
        items = [callback] * count
        given = failing(items, KeyboardInterrupt()) if how == "raises" else [*items, None]
        with pytest.raises(error):
            loop.submit_many(given)  # type: ignore[arg-type]
        del items, given
    gc.collect()
    assert sys.getrefcount(callback) == references
    assert not loop.alive()
    turns(loop)
    assert ran == []


def test_a_list_that_shrinks_and_grows_meanwhile(loop: Loop) -> None:
    """It is taken as it is found: no more than it ever had, and nothing crashes."""
    callbacks = [nothing] * LARGE
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            del callbacks[LARGE // 2 :]
            callbacks.extend([nothing] * (LARGE - LARGE // 2))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(30):
            assert 0 < loop.submit_many(callbacks) <= LARGE
    finally:
        done.set()
        thread.join(60)


class Meddling:
    """An iterator that yields callables, and in the middle of them acts as a signal's handler might."""

    def __init__(self, count: int, act: Callable[[], object]) -> None:
        self.left, self.at, self.act = count, count // 2, act

    def __iter__(self) -> Meddling:
        return self

    def __next__(self) -> Callable[[], None]:
        self.left -= 1
        if self.left == self.at:
            self.act()
        if self.left < 0:
            raise StopIteration
        return nothing


def test_what_closes_the_loop_in_the_middle_of_a_batch(make_loop: Callable[..., Loop]) -> None:
    """It waits for nothing that only this thread can do, and the batch is refused as a whole."""
    loop = make_loop()
    with pytest.raises(LoopTerminatedError):
        loop.submit_many(Meddling(LARGE, loop.close))


def test_what_runs_the_loop_in_the_middle_of_a_batch(loop: Loop, turns: Any) -> None:
    ran: list[int] = []

    def act() -> None:
        loop.submit(ran.append, 1)
        turns(loop)

    assert loop.submit_many(Meddling(LARGE, act)) == LARGE
    assert ran == [1]


def test_batches_of_many_threads(make_loop: Callable[..., Loop]) -> None:
    """Large and small ones and single tasks at once: each thread's in order, nothing inside a batch, nothing lost."""
    loop = make_loop()
    ran: list[tuple[int, int, int]] = []
    rounds, threads = 6, 4

    def produce(me: int) -> None:
        for n in range(rounds):
            count = LARGE if (me + n) % 2 else 30
            loop.submit(ran.append, (me, n, -1))
            loop.submit_many([lambda key=(me, n, i): ran.append(key) for i in range(count)])  # type: ignore[misc]

    makers = [threading.Thread(target=produce, args=(me,)) for me in range(threads)]
    runner = threading.Thread(target=loop.run)
    runner.start()
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(120)
    loop.shutdown(120)
    runner.join(60)
    for me in range(threads):
        expected = [(me, n, i) for n in range(rounds) for i in range(-1, LARGE if (me + n) % 2 else 30)]
        assert [key for key in ran if key[0] == me] == expected
    at = 0
    while at < len(ran):
        me, n, i = ran[at]
        at += 1
        while i >= 0 and at < len(ran) and ran[at][:2] == (me, n):
            i = ran[at][2]
            at += 1
        if i >= 0:
            assert i == (LARGE if (me + n) % 2 else 30) - 1, "something inside a batch"


# --- timers -----------------------------------------------------------------------------------------------------------


class Index:
    """An id that is converted once."""

    def __init__(self, value: int) -> None:
        self.value, self.asked = value, 0

    def __index__(self) -> int:
        self.asked += 1
        return self.value


def test_an_id_is_converted_once(loop: Loop) -> None:
    ids = [Index(loop.schedule_timer(3600, nothing)) for _ in range(3000)]
    assert loop.cancel_timers(ids) == [True] * 3000  # type: ignore[arg-type]
    assert {one.asked for one in ids} == {1}


@pytest.mark.parametrize("count", [3, 3000])
def test_none_is_cancelled_if_one_is_no_int(loop: Loop, count: int) -> None:
    ids: list[Any] = [loop.schedule_timer(3600, nothing) for _ in range(count)]
    with pytest.raises(TypeError):
        loop.cancel_timers(itertools.chain(ids, ["x"]))  # type: ignore[arg-type]
    assert loop.cancel_timers(iter(ids)) == [True] * count


@pytest.mark.parametrize("entrance", ["cancel_timers", "submit_many"])
def test_ids_that_other_code_adds(run_script: Callable[..., str], entrance: str) -> None:
    """What is read of an iterator lies in a list, which other code may find while the iterator runs, and make longer:
    no more is taken of it than there is room for.
    """
    run_script(
        f"""
        import gc, nbloop
        MARK = {"987654321" if entrance == "cancel_timers" else "print"}
        def items():
            yield MARK
            for one in gc.get_objects():
                if type(one) is list and len(one) == 1 and one[0] is MARK:
                    one.extend([MARK] * 20_000)
            for _ in range({batch.PART} - 1):
                yield MARK
        loop = nbloop.Loop()
        for _ in range(20):
            loop.{entrance}(items())
        loop.close()
        """,
        PYTHONMALLOC="debug",
    )


def test_answers_are_whole_for_whoever_finds_them(run_script: Callable[..., str]) -> None:
    """No list of answers has an empty place while callbacks are released, which runs Python."""
    run_script("""
        import gc, nbloop
        class Looks:
            def __call__(self): pass
            def __del__(self):
                for one in gc.get_objects():
                    if type(one) is list and len(one) == 777:
                        assert all(type(item) in (bool, int) for item in one)
        loop = nbloop.Loop()
        ids = [loop.schedule_timer(3600, Looks() if n % 200 == 5 else print) for n in range(777)]
        assert loop.cancel_timers(ids) == [True] * 777
        loop.close()
    """)


def interrupted(call: Callable[[], object], seconds: float, look: Callable[[], bool] = bool) -> bool:
    """`call()`, and after that time a signal's handler that raises, unless the call has ended. Nothing is raised here:
    the handler may come at any instruction, also behind the call. Returns what the handler's look has found.
    """
    armed = [1]
    found = False

    def handler(*_: object) -> None:
        nonlocal found
        if armed:
            found = look()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
        finally:
            armed.clear()
    except KeyboardInterrupt:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    return found


@pytest.mark.parametrize("allocator", ["default", "debug", "malloc"])
def test_the_answers_are_a_list_like_any_other(run_script: Callable[..., str], allocator: str) -> None:
    """They grow, shrink and go, in memory that CPython allocates and frees. Its debug allocator ends a process that
    frees what another allocator gave, or that wrote beyond the end.
    """
    if allocator == "malloc" and FREE_THREADED:
        pytest.skip("without the GIL, CPython has an allocator of its own only")
    run_script(
        """
        import random, sys, nbloop
        dice = random.Random(1)
        loop = nbloop.Loop()
        for count in (0, 1, 2, 7, 1023, 1024, 1025, 5000, 70_000):
            ids = [loop.schedule_timer(3600, print) for _ in range(count)]
            gone = [loop.cancel_timer(one) and number for number, one in enumerate(ids) if dice.random() < 0.3]
            expected = [True] * count
            for number in gone:
                expected[number] = False
            answers = loop.cancel_timers(ids)
            assert answers == expected
            assert sys.getsizeof(answers) == sys.getsizeof([]) + 8 * count
            for change in (
                lambda one: one.append(5), lambda one: one.pop(), lambda one: one.insert(0, 3),
                lambda one: one.extend(range(count)), lambda one: one.sort(), lambda one: one.reverse(),
                lambda one: one.__delitem__(slice(None, None, 2)), lambda one: one.clear(), lambda one: one.append(0),
            ):
                change(answers), change(expected)
                assert answers == expected
            answers = loop.cancel_timers(ids)
            answers += [1]
            assert answers == [False] * count + [1]
            answers = loop.cancel_timers(ids)
            answers.clear()
        loop.close()
        """,
        PYTHONMALLOC=allocator,
    )


@needs_timers
def test_a_handler_that_raises_stops_a_cancel(make_loop: Callable[..., Loop]) -> None:
    """What was cancelled stays cancelled, the rest is live, and each is one of the two."""
    delay = 4e-3
    for _ in tries():
        loop = make_loop()
        ids = [loop.schedule_timer(3600, nothing) for _ in range(MANY // 10)]  # many tries matter more than many ids
        tracemalloc.start()
        try:
            interrupted(lambda loop=loop, ids=ids: loop.cancel_timers(ids), delay)  # type: ignore[misc]
            assert all(trace.size < 8 * len(ids) for trace in tracemalloc.take_snapshot().traces), "answers leak"
        finally:
            tracemalloc.stop()
        left = loop.cancel_timers(ids)
        assert left == sorted(left)
        if any(left) and not all(left):
            assert not any(loop.cancel_timers(ids))
            return
        delay *= 1.4 if all(left) else 0.8  # the ids, which are read first, take long on a busy machine
    pytest.fail("no handler came in the middle")


@needs_timers
def test_a_handler_that_raises_in_close_comes_out_when_all_is_released(make_loop: Callable[..., Loop]) -> None:
    def callback() -> None:
        """Never called."""

    references = sys.getrefcount(callback)
    delay = 2e-3
    for _ in tries():
        loop = make_loop()
        for n in range(60_000):
            (loop.submit, loop.schedule_microtask, loop.schedule_immediate)[n % 3](callback)
            loop.schedule_timer(n * 1e-3, callback)

        def releases(loop: Loop = loop) -> bool:
            return loop.state is LoopState.TERMINATED and sys.getrefcount(callback) > references

        if interrupted(loop.close, delay, releases):
            assert loop.state is LoopState.TERMINATED
            assert sys.getrefcount(callback) == references
            return
        delay *= 0.8 if loop.state is LoopState.TERMINATED else 1.4
        loop.close()
    pytest.fail("no handler came while it released")


def test_a_bucket_is_opened_over_several_turns(make_loop: Callable[..., Loop]) -> None:
    """Whatever else the loop has to do goes on, and then the timers come in their order."""
    loop = make_loop()
    clock = VirtualClock(loop)
    count = 20_000
    ran: list[int] = []
    meanwhile: list[int] = []

    def arm() -> None:
        for n in range(count):
            # within one grain of the timer queue: all become due together, and the heap must sort them
            loop.schedule_timer(10.0 + (n * 7919 % count) * 1e-9, ran.append, n * 7919 % count)
        loop.schedule_timer(11.0, loop.stop)
        clock.advance(11.5)
        again()

    def again() -> None:
        if not ran:
            meanwhile.append(1)
            loop.schedule_immediate(again)

    loop.submit(arm)
    loop.run()
    assert ran == sorted(ran)
    assert len(ran) == count
    assert len(meanwhile) > 5
