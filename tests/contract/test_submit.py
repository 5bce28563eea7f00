"""Submitting from any thread: what is accepted runs, once, in order; what is refused leaves nothing behind."""

from __future__ import annotations

import signal
import threading
import time
import weakref

import pytest

from nbloop import LoopOverloadedError, LoopTerminatedError, Producer, hooks
from nbloop.kernels.base import layout


class Entrances:
    """The four ways in, with the same face: `put(loop)` gives a function that takes callables."""

    @staticmethod
    def submit(loop):
        return loop.submit

    @staticmethod
    def submit_many(loop):
        return lambda *callbacks: loop.submit_many(callbacks)

    @staticmethod
    def producer_submit(loop):
        return loop.producer().submit

    @staticmethod
    def producer_submit_many(loop):
        handle = loop.producer()
        return lambda *callbacks: handle.submit_many(callbacks)


each_entrance = pytest.mark.parametrize(
    "entrance", ["submit", "submit_many", "producer_submit", "producer_submit_many"]
)


def test_arguments(loop, turns):
    """contract: submit(fn, *args): none, one or many positional arguments, passed as they are; None is returned."""
    ran = []
    assert loop.submit(lambda *args: ran.append(args)) is None
    for count in (1, 2, 3, 100):
        assert loop.submit(lambda *args: ran.append(args), *range(count)) is None
    turns(loop)
    assert ran == [(), *(tuple(range(count)) for count in (1, 2, 3, 100))]


def test_any_callable(loop, turns):
    """contract: submit: functions, built-ins, classes, bound methods and instances with __call__ are all callables."""
    ran = []

    class Thing:
        def __init__(self):
            ran.append("class")

        def __call__(self):
            ran.append("instance")

        def method(self):
            ran.append("method")

    thing = Thing()
    loop.submit_many([Thing, thing, thing.method, ran.copy])
    turns(loop)
    assert ran == ["class", "class", "instance", "method"]


@each_entrance
@pytest.mark.parametrize("wrong", [None, 1, "text", ()], ids=repr)
def test_not_callable(loop, turns, entrance, wrong):
    """contract: not callable: TypeError, which shows what it was given; nothing is stored."""
    with pytest.raises(TypeError, match="callable") as caught:
        getattr(Entrances, entrance)(loop)(wrong)
    assert repr(wrong) in str(caught.value)
    assert not loop.alive()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("submit", ()),
        ("submit_internal", ()),
        ("schedule_microtask", ()),
        ("schedule_next_tick", ()),
        ("schedule_immediate", ()),
        ("schedule_close", ()),
        ("schedule_timer", (1,)),
        ("schedule_interval", (1,)),
        ("schedule_timer_at", (1,)),
    ],
)
def test_every_scheduling_call_checks_its_callback(loop, name, arguments):
    """contract: not callable: TypeError; without a callback at all too."""
    call = getattr(loop, name)
    with pytest.raises(TypeError, match="argument"):
        call(*arguments)
    with pytest.raises(TypeError, match="callable"):
        call(*arguments, "not callable")
    with pytest.raises(TypeError, match=rf"{name}\(\) takes"):
        call(*arguments, callback=int)
    assert not loop.alive()


def test_submit_many(loop, turns):
    """contract: submit_many: lists, tuples and generators; how many there were; in order."""
    ran = []
    appends = [lambda i=i: ran.append(i) for i in range(1000)]
    assert loop.submit_many(appends[:10]) == 10
    assert loop.submit_many(tuple(appends[10:300])) == 290
    assert loop.submit_many(append for append in appends[300:]) == 700
    assert loop.submit_many([]) == 0
    turns(loop)
    assert ran == list(range(1000))


@pytest.mark.parametrize("entrance", ["submit_many", "producer_submit_many"])
def test_submit_many_is_all_or_none(loop, turns, entrance):
    """contract: submit_many is one publication: one item that is not callable, or a generator that raises, and none
    is stored.
    """
    put = loop.submit_many if entrance == "submit_many" else loop.producer().submit_many
    ran = []

    def raises():
        yield ran.append
        raise KeyError("from the generator")

    with pytest.raises(TypeError, match="callable"):
        put([ran.clear, ran.clear, 3, ran.clear])
    with pytest.raises(KeyError, match="from the generator"):
        put(raises())
    with pytest.raises(TypeError):
        put(ran.clear)
    assert not loop.alive()
    assert put([lambda: ran.append("later")]) == 1
    turns(loop)
    assert ran == ["later"]


def test_submit_many_is_not_mixed(loop, together, turns):
    """contract: submit_many: nothing of other threads comes between the items of a batch."""
    ran = []
    batches = [[lambda i=i: ran.append(i)] * 50 for i in range(4)]
    together(4, lambda i: [loop.submit_many(batches[i]) for _ in range(20)])
    turns(loop, 5)
    assert len(ran) == 4 * 20 * 50
    assert all(len(set(ran[at : at + 50])) == 1 for at in range(0, len(ran), 50))


def test_submit_many_wakes_once(loop, asleep, wait_for):
    """contract: submit_many: at most one wake for the whole batch."""
    with loop:
        asleep(loop)
        before = int(loop._record["wakes_sent"])
        done = threading.Event()
        loop.submit_many([int] * 1000 + [done.set])
        wait_for(done)
        assert int(loop._record["wakes_sent"]) == before + 1


def test_total_order(loop, together, turns):
    """contract: one total order over all threads: a submit that began after another returned runs after it."""
    ran, lock, number = [], threading.Lock(), iter(range(4000))

    def body(_):
        for _ in range(1000):
            with lock:
                loop.submit(ran.append, next(number))

    together(4, body)
    turns(loop, 5)
    assert ran == list(range(4000))


@each_entrance
def test_many_threads(loop, together, asleep, entrance):
    """A hundred threads on a sleeping loop: everything runs once, in each thread's order."""
    ran = []

    def body(thread):
        put = getattr(Entrances, entrance)(loop)
        for what in [lambda i=i: ran.append((thread, i)) for i in range(100)]:
            put(what)

    with loop:
        asleep(loop)
        together(100, body)
    assert len(ran) == 100 * 100
    for thread in range(100):
        assert [i for t, i in ran if t == thread] == list(range(100))


def test_internal_before_external(loop, turns, together):
    """contract: submit_internal runs before the external queue of the same turn, from any thread, FIFO."""
    ran = []
    loop.submit(ran.append, "task")
    together(2, lambda i: [loop.submit_internal(ran.append, i) for _ in range(100)])
    turns(loop)
    assert ran[-1] == "task"
    assert sorted(ran[:-1]) == [0] * 100 + [1] * 100


def test_producer(loop, turns):
    """contract: producer: a handle submits, alone and in batches, in its own order."""
    ran = []
    handle = loop.producer()
    assert isinstance(handle, Producer)
    handle.submit(ran.append, 0)
    assert handle.submit_many([lambda: ran.append(1), lambda: ran.append(2)]) == 2
    handle.submit(ran.append, 3)
    assert loop.alive()
    turns(loop)
    assert ran == [0, 1, 2, 3]


def test_producer_outlives_a_run(loop, turns):
    """contract: producer, stop: a handle goes on working when the loop is run again."""
    ran = []
    handle = loop.producer()
    for i in range(3):
        handle.submit(ran.append, i)
        turns(loop)
    assert ran == [0, 1, 2]


def test_ingress_limit(make_loop, turns):
    """contract: with ingress_limit reached: LoopOverloadedError, and nothing is stored; what has run makes room."""
    loop = make_loop(ingress_limit=3)
    ran = []
    for i in range(3):
        loop.submit(ran.append, i)
    with pytest.raises(LoopOverloadedError, match="ingress_limit=3"):
        loop.submit(ran.append, "refused")
    with pytest.raises(LoopOverloadedError):
        loop.submit_many([ran.clear])
    turns(loop)
    assert ran == [0, 1, 2]
    with pytest.raises(LoopOverloadedError):  # all or none
        loop.submit_many([ran.clear] * 4)
    assert loop.submit_many([int] * 3) == 3


def test_ingress_limit_of_producers(make_loop, turns):
    """contract: ingress_limit holds for each producer handle, in batches too."""
    loop = make_loop(ingress_limit=3)
    ran = []
    handle, other = loop.producer(), loop.producer()
    assert handle.submit_many([lambda: ran.append(1)] * 2) == 2
    with pytest.raises(LoopOverloadedError):
        handle.submit_many([ran.clear] * 2)
    handle.submit(ran.append, 2)
    with pytest.raises(LoopOverloadedError):
        handle.submit(ran.clear)
    other.submit(ran.append, 3)
    turns(loop)
    assert ran == [1, 1, 2, 3]
    handle.submit(ran.append, 4)


def test_ingress_limit_is_for_external_work(make_loop, turns):
    """contract: submit_internal is as submit, without its limit; so are microtasks and timers."""
    loop = make_loop(ingress_limit=1)
    ran = []
    loop.submit(ran.append, "task")
    for i in range(10):
        loop.submit_internal(ran.append, i)
        loop.schedule_microtask(ran.append, i)
        loop.schedule_timer(0, ran.append, i)
    turns(loop)
    assert len(ran) == 31


def test_ingress_limit_is_exact(make_loop, together, turns):
    """contract: ingress_limit, under contention: exactly as many are accepted as there is room for, and exactly
    those run.
    """
    loop = make_loop(ingress_limit=1000, ingress_budget=400)
    ran = []
    for _ in range(3):
        ran.clear()
        accepted = sum(together(4, lambda _: sum(_accepted(loop, ran.append, 1) for _ in range(500))))
        assert accepted == 1000
        turns(loop, 3)
        assert len(ran) == 1000


def _accepted(loop, *what):
    try:
        loop.submit(*what)
    except LoopOverloadedError:
        return False
    return True


def test_ingress_limit_while_running(make_loop, together):
    """contract: ingress_limit, with the loop taking work out at the same time: accepted and run are the same number."""
    ran = []
    with make_loop(ingress_limit=50) as loop:
        accepted = sum(together(4, lambda _: sum(_accepted(loop, ran.append, 1) for _ in range(2000))))
    assert len(ran) == accepted > 0


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_after_the_end(loop, end):
    """contract: after termination begins every scheduling call raises LoopTerminatedError, producer handles' too."""
    handle = loop.producer()
    getattr(loop, end)()
    for call in (
        lambda: loop.submit(int),
        lambda: loop.submit_many([int]),
        lambda: loop.submit_internal(int),
        lambda: loop.schedule_microtask(int),
        lambda: loop.schedule_next_tick(int),
        lambda: loop.schedule_immediate(int),
        lambda: loop.schedule_close(int),
        lambda: loop.schedule_timer(0, int),
        lambda: loop.schedule_interval(1, int),
        lambda: handle.submit(int),
        lambda: handle.submit_many([int]),
        loop.producer,
    ):
        with pytest.raises(LoopTerminatedError, match="terminated"):
            call()
    assert not loop.alive()


@pytest.fixture
def alarm():
    """`alarm(handler)`: the main thread is interrupted by `handler` every 0.3 ms until the end of the test."""
    assert threading.current_thread() is threading.main_thread()
    old = signal.getsignal(signal.SIGALRM)

    def alarm(handler):
        signal.signal(signal.SIGALRM, lambda *_: handler())
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)

    yield alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


@each_entrance
def test_from_a_signal_handler(loop, alarm, entrance):
    """contract: submit from a signal handler, which interrupts a submit of the same thread and, for a handle, of the
    same handle.
    """
    ran, sent = [], []

    def handler():
        if len(sent) < 200:
            sent.append(None)
            put(lambda: ran.append("signal"))

    submitted = 0
    with loop:
        put = getattr(Entrances, entrance)(loop)
        alarm(handler)
        deadline = time.monotonic() + 10
        while len(sent) < 200 and time.monotonic() < deadline:
            for _ in range(100):
                put(lambda: ran.append("main"))
            submitted += 100
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(sent) > 10
    assert ran.count("signal") == len(sent)
    assert ran.count("main") == submitted


def test_signal_handler_on_the_loop_thread(loop, alarm):
    """contract: a signal handler that interrupts the loop's own thread may schedule anything, and stop the loop."""
    ran, expected = [], []

    def handler():
        if len(expected) < 50:
            expected.append(None)
            loop.submit(ran.append, "task")
            loop.schedule_microtask(ran.append, "microtask")
            loop.schedule_timer(0, ran.append, "timer")
            loop.schedule_immediate(ran.append, "immediate")
        else:
            loop.stop()

    alarm(handler)
    loop.schedule_interval(0, int)  # the loop is busy, with built-ins only
    loop.run()
    signal.setitimer(signal.ITIMER_REAL, 0)
    loop.submit(loop.stop)
    loop.run()
    # Handlers interrupt handlers, so there can be more than 50.
    kinds = ("task", "microtask", "timer", "immediate")
    assert {kind: ran.count(kind) for kind in kinds} == dict.fromkeys(kinds, len(expected))


def test_signal_handler_wakes_an_idle_loop(loop, mode, alarm):
    """contract: submit from a signal handler while its own thread sleeps in `run`, in each mode."""
    loop.set_fast_path_mode(mode)
    alarm(lambda: loop.submit(loop.stop))
    loop.run()


def test_a_refusal_while_the_loop_goes_on(loop):
    """Auto-exit closes the queues for a moment. If an exception leaves `run()` in that moment, they reopen before
    the refusal is examined, and the loop can be run again. So the call must be tried again.
    """
    assert hooks.refuse(weakref.ref(loop), layout.REFUSED_CLOSED, print) is None
    loop.shutdown()
    with pytest.raises(LoopTerminatedError):
        hooks.refuse(weakref.ref(loop), layout.REFUSED_CLOSED, print)
