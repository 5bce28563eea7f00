"""What the loop holds, and when it releases it: callables and arguments go on every path, and not before."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest

from nbloop import Loop, LoopOverloadedError, LoopTerminatedError
from nbloop.kernels.build import object_cache
from tests.support import waiting


class Tracked:
    """Callables and arguments that are counted while they live."""

    def __init__(self):
        self.alive = 0

    def make(self, raises=False):
        class Thing:
            def __call__(self, *args):
                if raises:
                    raise ValueError

        thing = Thing()
        self.alive += 1
        weakref.finalize(thing, self._gone).atexit = False
        return thing

    def _gone(self):
        self.alive -= 1


@pytest.fixture
def tracked():
    return Tracked()


@pytest.fixture
def released(tracked, wait_for):
    """`released()`: wait until every tracked object is gone. What other threads released may need a moment, or a
    collection.
    """

    def released():
        if tracked.alive:
            gc.collect()
        wait_for(lambda: not tracked.alive)

    return released


PUTS = {
    "submit": lambda loop, *what: loop.submit(*what),
    "submit_internal": lambda loop, *what: loop.submit_internal(*what),
    "schedule_microtask": lambda loop, *what: loop.schedule_microtask(*what),
    "schedule_next_tick": lambda loop, *what: loop.schedule_next_tick(*what),
    "schedule_immediate": lambda loop, *what: loop.schedule_immediate(*what),
    "schedule_close": lambda loop, *what: loop.schedule_close(*what),
    "schedule_timer": lambda loop, *what: loop.schedule_timer(0, *what),
    "schedule_timer_at": lambda loop, *what: loop.schedule_timer_at(0, *what),
    "producer": lambda loop, *what: loop.producer().submit(*what),
    "submit_many": lambda loop, what, *_: loop.submit_many([what, what]),
    "producer submit_many": lambda loop, what, *_: loop.producer().submit_many([what, what]),
}
REPEATING = {"schedule_interval": lambda loop, *what: loop.schedule_interval(0, *what)}
each_put = pytest.mark.parametrize("put", PUTS)
each_put_and_interval = pytest.mark.parametrize("put", [*PUTS, *REPEATING])


def put_one(loop, put, tracked, **options):
    """Schedule a tracked callable with tracked arguments; nothing else refers to them."""
    return (PUTS | REPEATING)[put](loop, tracked.make(**options), tracked.make(), tracked.make())


@each_put
def test_run(loop, turns, tracked, released, put):
    """contract: what is queued is held, what has run is released."""
    for _ in range(3):
        put_one(loop, put, tracked)
        gc.collect()
        assert tracked.alive in (1, 3)  # a batch has no arguments
        turns(loop)
        released()


def test_results_are_let_go_of(loop, turns):
    """What a callback returns is released."""
    made = []

    def callback():
        result = type("Result", (), {})()
        made.append(weakref.ref(result))
        return result

    for schedule in (loop.submit, loop.schedule_microtask, loop.schedule_immediate, partial(loop.schedule_timer, 0)):
        schedule(callback)
    turns(loop, 2)
    assert len(made) == 4
    waiting.wait_for(lambda: gc.collect() >= 0 and all(result() is None for result in made))


@each_put
def test_run_on_another_thread(loop, elsewhere, turns, tracked, released, put):
    """contract: the same when one thread schedules and another runs."""
    for _ in range(10):
        put_one(loop, put, tracked)
    elsewhere(turns, loop)
    released()


@each_put
def test_exception(make_loop, turns, tracked, released, put):
    """contract: a callback that raised is released, and so is its exception."""
    loop = make_loop(on_error=lambda error, context: None)
    put_one(loop, put, tracked, raises=True)
    turns(loop)
    released()


@each_put_and_interval
def test_close(loop, tracked, released, put):
    """contract: close(): the rest is dropped and its references released."""
    for _ in range(10):
        put_one(loop, put, tracked)
    loop.close()
    released()


@each_put_and_interval
def test_close_of_a_stopped_loop(loop, turns, tracked, released, put):
    """contract: close(), when callbacks of a run left work in the loop's own queues."""
    loop.submit(put_one, loop, put, tracked)
    loop.submit(put_one, loop, put, tracked)
    turns(loop)
    loop.close()
    released()


@each_put_and_interval
def test_forgotten(tracked, released, put):
    """contract: a loop that is only forgotten releases what was queued."""
    loop = Loop()
    put_one(loop, put, tracked)
    del loop
    released()


@each_put_and_interval
def test_forgotten_in_a_cycle(tracked, released, put):
    """contract: also when the queued callable refers to the loop, so that only the collector can tell."""
    loop = Loop()
    thing = tracked.make()
    thing.loop = loop
    (PUTS | REPEATING)[put](loop, thing)
    del loop, thing
    released()


@each_put_and_interval
def test_closed_refusal(loop, tracked, put):
    """contract: LoopTerminatedError: nothing is stored, so nothing is held."""
    handle = loop.producer()
    loop.close()
    with pytest.raises(LoopTerminatedError):
        put_one(loop, put, tracked)
    for call in (handle.submit, lambda what: handle.submit_many([what])):
        with pytest.raises(LoopTerminatedError):
            call(tracked.make())
    gc.collect()
    assert tracked.alive == 0


def test_refusals_on_the_loop_thread(make_loop, tracked, released):
    """contract: LoopTerminatedError in a callback of the drain: nothing is held."""
    loop = make_loop(on_error=lambda *_: None)
    for put in [*PUTS, *REPEATING]:
        loop.submit(put_one, loop, put, tracked)
    loop.shutdown()
    released()


def test_overload_refusal(make_loop, turns, tracked, released):
    """contract: LoopOverloadedError: nothing stored, nothing held."""
    loop = make_loop(ingress_limit=1)
    loop.submit(int)
    for put in ("submit", "submit_many"):
        with pytest.raises(LoopOverloadedError):
            put_one(loop, put, tracked)
    released()


@pytest.mark.parametrize("delay", [float("nan"), None])
def test_delay_refusal(loop, tracked, released, delay):
    """contract: ValueError, TypeError for a delay: nothing held."""
    with pytest.raises((ValueError, TypeError)):
        loop.schedule_timer(delay, tracked.make(), tracked.make())
    with pytest.raises((ValueError, TypeError)):
        loop.schedule_timer_at(delay, tracked.make(), tracked.make())
    released()


def test_submit_many_refused(loop, tracked, released):
    """contract: submit_many: one item that is not callable, and none is held; nor what a broken generator yielded."""
    handle = loop.producer()

    def broken():
        yield tracked.make()
        raise KeyError

    for submit_many in (loop.submit_many, handle.submit_many):
        with pytest.raises(TypeError):
            submit_many([tracked.make(), tracked.make(), None])
        with pytest.raises(KeyError):
            submit_many(broken())
    released()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("put", ["schedule_timer", "schedule_timer_at", "schedule_interval", "schedule_immediate"])
def test_cancel(loop, elsewhere, turns, tracked, where, put):
    """contract: cancel_timer, cancel_immediate: the callback is released at once, not when its time would have come."""
    cancel = loop.cancel_immediate if put == "schedule_immediate" else loop.cancel_timer
    for armed_by in ("another thread", "the loop"):
        seen = []

        def task(ids, seen=seen):
            identifier = ids.pop() if ids else put_one(loop, put, tracked)
            assert tracked.alive == 3
            seen.append(cancel(identifier) if where == "here" else elsewhere(cancel, identifier))
            gc.collect()
            seen.append(tracked.alive)

        ids = [put_one(loop, put, tracked)] if armed_by == "another thread" else []
        loop.schedule_microtask(task, ids)
        turns(loop)
        assert seen[0] is True
        assert tracked.alive == 0


def test_interval_cancelled_in_its_own_callback(loop, turns, tracked, released):
    """contract: an interval's callback lives while it runs, and is released when it has ended."""
    thing, ran = tracked.make(), []

    def callback(_argument):
        ran.append((loop.cancel_timer(interval), tracked.alive))

    interval = loop.schedule_interval(0, callback, thing)
    del thing
    turns(loop, 3)
    assert ran == [(True, 1)]
    released()


def test_interval_keeps_its_callback(loop, turns, tracked, released):
    """contract: an interval holds its callback and arguments until it is cancelled."""
    interval = loop.schedule_interval(0, tracked.make(), tracked.make())
    turns(loop, 10)
    assert tracked.alive == 2
    loop.cancel_timer(interval)
    released()


def test_forgotten_loop_with_a_living_method(tracked, released):
    """contract: submit taken from a loop outlives it: what was queued is released, and submitting raises
    LoopTerminatedError.
    """
    loop = Loop()
    submit, schedule_timer, cancel_timer = loop.submit, loop.schedule_timer, loop.cancel_timer
    submit(tracked.make(), tracked.make())
    timer = schedule_timer(10, tracked.make())
    del loop
    released()
    with pytest.raises(LoopTerminatedError):
        submit(tracked.make())
    with pytest.raises(LoopTerminatedError):
        schedule_timer(1, tracked.make())
    assert cancel_timer(timer) is False
    released()


def test_method_does_not_keep_the_loop():
    """contract: a method taken from a loop keeps its memory, not the loop."""
    loop = Loop()
    submit, gone = loop.submit, weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None
    with pytest.raises(LoopTerminatedError):
        submit(int)


def test_dropped_producer(loop, turns, tracked, released):
    """contract: producer: a handle that is dropped with work queued: returned means it will run."""
    ran = []
    handle = loop.producer()
    for i in range(1000):
        handle.submit(ran.append, i)
    handle.submit(tracked.make())
    del handle
    gc.collect()
    turns(loop)
    assert ran == list(range(1000))
    released()


def test_many_producers_come_and_go(loop, turns, tracked, released):
    """contract: producer: handles are released with their work done, and their memory is used again."""
    for _ in range(300):
        loop.producer().submit(tracked.make(), tracked.make())
        loop.producer()
        turns(loop)
    gc.collect()
    released()
    assert len(loop._state.handles) <= 1


def test_arguments_are_the_same_objects(loop, turns):
    """contract: *args: the objects themselves, in a tuple of the loop's own."""
    seen, arguments = [], ([], {}, object())
    loop.submit(lambda *args: seen.append(args), *arguments)
    turns(loop)
    assert all(a is b for a, b in zip(seen[0], arguments, strict=True))


def test_hooks_do_not_keep_the_loop():
    """contract: on_error and on_overload that refer to their loop are a cycle for the collector, not a leak."""

    class Owner:
        def __init__(self):
            self.loop = Loop(on_error=self.on_error, on_overload=self.on_error)

        def on_error(self, *_):
            pass

    owner = Owner()
    owner.loop.submit(int)
    owner.loop.stop()
    owner.loop.run()
    gone = weakref.ref(owner.loop)
    del owner
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(object_cache.status.mode != "compiled", reason="kernels as plain Python show the collector nothing")
@pytest.mark.parametrize("put", ["schedule_microtask", "schedule_next_tick", "submit_internal", "schedule_close"])
def test_the_collector_finds_what_waits_in_each_block_of_a_ring(make_loop, turns, put):
    """Once each, from the oldest on, however many blocks they fill, and nothing that has run."""
    loop = make_loop()
    many = 20_000
    callbacks = [partial(int, n) for n in range(many)]
    seen = []

    def some():
        for callback in callbacks[: many // 3]:  # so that the rest begin in the middle of a block
            getattr(loop, put)(callback)

    def rest():
        for callback in callbacks[many // 3 :]:
            getattr(loop, put)(callback)
        seen.extend(id(one) for one in gc.get_referents(loop._state) if type(one) is partial)

    loop.submit(some)
    turns(loop, 2)
    loop.submit(rest)
    turns(loop, 2)
    mine = set(map(id, callbacks))
    assert [one for one in seen if one in mine] == [id(one) for one in callbacks[many // 3 :]]
    assert not loop.alive()
