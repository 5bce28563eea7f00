"""`Loop.what_keeps_alive`: whatever `alive` is true for has a name, and nothing else has."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from nbloop import IOEvents
from nbloop.js import JS


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


KINDS = {
    "tasks": lambda loop, _: loop.submit(int),
    "producers with tasks": lambda loop, _: loop.producer().submit(int),
    "timers": lambda loop, _: loop.schedule_timer(3600, int),
    "descriptors": lambda loop, ends: loop.register_fd(ends[0], IOEvents.READ, print),
    # on the loop's thread, of which there is none yet: these come as commands
    "commands of other threads": lambda loop, _: loop.schedule_microtask(int),
}
RINGS = {
    "next-ticks": "schedule_next_tick",
    "microtasks": "schedule_microtask",
    "checkpoint ends": "schedule_checkpoint_end",
    "immediates": "schedule_immediate",
    "close callbacks": "schedule_close",
    "internal tasks": "submit_internal",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind(make_loop, pipe, kind):
    loop = make_loop()
    assert loop.what_keeps_alive() == {}
    KINDS[kind](loop, pipe)
    assert loop.what_keeps_alive() == {kind: 1}
    assert loop.alive()
    loop.close()
    assert loop.what_keeps_alive() == {}
    assert not loop.alive()


@pytest.mark.parametrize("kind", RINGS)
def test_each_ring(make_loop, kind, elsewhere):
    """From the callback that fills it, and from another thread meanwhile."""
    loop, seen = make_loop(auto_exit=True), []

    def callback():
        for _ in range(3):
            getattr(loop, RINGS[kind])(int)
        seen.append(loop.what_keeps_alive())
        seen.append(elsewhere(loop.what_keeps_alive))

    loop.submit(callback)
    loop.run()
    assert seen == [{kind: 3}] * 2


def test_counts_and_large_batches(make_loop):
    """Fillers of a batch are no tasks."""
    loop = make_loop()
    loop.submit(int)
    loop.submit_many([int] * 10_000)
    loop.schedule_interval(3600, int)
    loop.schedule_timer(3600, int)
    assert loop.what_keeps_alive() == {"tasks": 10_001, "timers": 2}


def test_a_function_of_promisify(make_loop, wait_for):
    loop, going_on = make_loop(), threading.Event()
    loop.promisify(going_on.wait)
    assert loop.what_keeps_alive() == {"functions of promisify": 1}
    loop.start()
    going_on.set()
    wait_for(lambda: loop.what_keeps_alive() == {})


def test_what_does_not(make_loop):
    """It is not named, and the loop ends."""
    loop = make_loop(auto_exit=True)
    js = JS(loop)
    pending = js.with_resolvers()[0]

    async def wait():
        await pending

    def callback():
        js.spawn(wait())
        loop.unref_timer(loop.schedule_timer(3600, int))
        loop.add_signal_handler(signal.SIGTERM, int)

    loop.submit(callback)
    loop.run()
    loop = make_loop()
    loop.unref_timer(loop.schedule_timer(3600, int))
    loop.add_signal_handler(signal.SIGTERM, int)
    assert loop.what_keeps_alive() == {}
    assert not loop.alive()


def test_while_a_callback_hangs(make_loop, wait_for):
    loop, going_on, begun = make_loop(), threading.Event(), threading.Event()
    loop.submit(lambda: (begun.set(), going_on.wait(30)))
    loop.submit_many([int] * 777)
    loop.start()
    begun.wait(30)
    assert loop.what_keeps_alive() == {"tasks": 777}
    going_on.set()
    wait_for(lambda: not loop.alive())
    assert loop.what_keeps_alive() == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_in_a_forked_child(run_script):
    code = """
        import os, nbloop
        loop = nbloop.Loop()
        loop.submit(print)
        if os.fork() == 0:
            try:
                loop.what_keeps_alive()
            except nbloop.ForkedLoopError:
                print("refused", flush=True)
            os._exit(0)
        os.wait()
        print(loop.what_keeps_alive())
    """
    assert run_script(code).split("\n")[:2] == ["refused", "{'tasks': 1}"]
