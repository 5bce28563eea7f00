"""How long does one large call make others wait?

Three witnesses may have to wait: a thread that stops the world, as each collection of the free-threaded build does; a
Python signal handler on the very thread that is inside the call; a thread that just runs on, for which the call must
release the GIL on a build that has one. While the call runs, each keeps a diary of the processor time that the calling
thread has used so far. The longest gap between two entries is the pause.

Processor time, not wall time, because a shared machine takes the processor away for longer than what is measured here.
It also takes it from the witness, so the smallest of several rounds counts.
"""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat

import nbloop
from nbloop.js import JS
from nbloop.testing import VirtualClock

type Call = Callable[[], object]
type Diary = list[float]  # s that the calling thread has run

ROUNDS = 5
TICK = 0.0002  # s between two signals, and between two stops; the GIL's switch interval


def nothing() -> None:
    """A callback."""


def nothing_of(_value: object) -> None:
    """A handler."""


def submit_list(loop: nbloop.Loop, count: int) -> Call:
    callbacks = [nothing] * count
    return lambda: loop.submit_many(callbacks)


def submit_iterator(loop: nbloop.Loop, count: int) -> Call:
    callbacks = repeat(nothing, count)
    return lambda: loop.submit_many(callbacks)


def cancel(loop: nbloop.Loop, count: int) -> Call:
    timers = [loop.schedule_timer(3600.0 + n * 1e-6, nothing) for n in range(count)]
    kept: list[list[bool]] = []  # CPython frees a list in one piece, and the call is over by then
    return lambda: kept.append(loop.cancel_timers(timers))


def close(loop: nbloop.Loop, count: int) -> Call:
    for n in range(count):
        loop.schedule_timer(3600.0 + n * 1e-6, nothing)
    return loop.close


def open_bucket(loop: nbloop.Loop, count: int) -> Call:
    """Timers with a delay of a day; the clock reaches their bucket, whose entries move into finer ones."""
    clock = VirtualClock(loop)
    arm_far(loop, count)
    loop.submit(loop.stop)
    loop.run()
    clock.advance(86399.0)

    def run() -> None:
        loop.schedule_timer(0.5, loop.stop)
        clock.advance(0.5)
        loop.run()

    return run


def arm_far(loop: nbloop.Loop, count: int) -> None:
    for n in range(count):
        loop.schedule_timer(86400.0 + n * 1e-6, nothing)


def fetch(loop: nbloop.Loop, count: int) -> Call:
    """The commands of other threads, which the loop finds when it begins to run."""
    arm_far(loop, count)
    loop.submit(loop.stop)
    return loop.run


def in_a_callback(put: Callable[[nbloop.Loop], Callable[[Callable[[], None]], object]]) -> Callable[..., Call]:
    """What waits grows while one callback adds to it, item by item: only a growth in one piece is a long gap."""

    def grow(loop: nbloop.Loop, count: int) -> Call:
        add = put(loop)

        def fill() -> None:
            for _ in repeat(None, count):
                add(nothing)
            loop.stop()

        loop.submit(fill)
        return loop.run

    return grow


grow_ring = in_a_callback(lambda loop: loop.submit_internal)
grow_slots = in_a_callback(lambda loop: loop.schedule_immediate)
grow_heap = in_a_callback(lambda loop: lambda callback: loop.schedule_timer_at(0.0, callback))
grow_buckets = in_a_callback(lambda loop: lambda callback: loop.schedule_timer(3600.0, callback))


def sweeping(delay: float) -> Callable[[nbloop.Loop, int], Call]:
    """A callback cancels timers of one moment one by one, in random order: only a cancel that removes many entries of
    cancelled ones is a long gap.
    """

    def sweep(loop: nbloop.Loop, count: int) -> Call:
        dice = random.Random(count)

        def cancel_all() -> None:
            timers = [loop.schedule_timer(delay, nothing) for _ in range(count - 1)]
            dice.shuffle(timers)
            for timer in timers:
                loop.cancel_timer(timer)
            loop.stop()

        loop.submit(cancel_all)
        return loop.run

    return sweep


sweep_heap = sweeping(0.0)
sweep_bucket = sweeping(3600.0)


def trim(loop: nbloop.Loop, count: int) -> Call:
    """Before its first sleep after a backlog the loop gives the backlog's memory back."""
    loop.submit_many(repeat(nothing, count))
    loop.submit(loop.stop)
    loop.run()
    loop.schedule_timer(0.02, loop.stop)
    return loop.run


def arm_due(loop: nbloop.Loop, count: int, last: Call) -> None:
    """Run the loop for the callback that schedules so many timers, all for one moment that has come, and then calls
    `last`.
    """
    now = loop.now()

    def fill() -> None:
        for _ in repeat(None, count):
            loop.schedule_timer_at(now, nothing)
        last()

    loop.submit(fill)
    loop.run()


def trim_heap(loop: nbloop.Loop, count: int) -> Call:
    """The same after timers that were due at one moment."""
    arm_due(loop, count, lambda: loop.schedule_timer(0, loop.stop))
    loop.schedule_timer(0.3, loop.stop)
    return loop.run


def last_reference(loop: nbloop.Loop) -> Call:
    """Close the loop; the call lets go of it."""
    loop.close()
    last = [loop]
    return last.clear


def release(loop: nbloop.Loop, count: int) -> Call:
    """The last reference to a closed loop goes, and with it the memory of its timers."""
    arm_far(loop, count)
    loop.submit(loop.stop)
    loop.run()
    return last_reference(loop)


def release_heap(loop: nbloop.Loop, count: int) -> Call:
    """The same with timers that were due at one moment."""
    arm_due(loop, count, loop.stop)
    return last_reference(loop)


def settle(loop: nbloop.Loop, count: int) -> Call:
    """A promise is settled for which many wait."""
    promise, resolve, _reject = JS(loop).with_resolvers()
    for _ in range(count):
        promise.then(nothing_of)
    return resolve


MAKERS = submit_list, submit_iterator, cancel, close, open_bucket, fetch, trim, trim_heap, release, release_heap, settle
CALLS = {f.__name__: f for f in MAKERS} | {
    "grow_ring": grow_ring,
    "grow_slots": grow_slots,
    "grow_heap": grow_heap,
    "grow_buckets": grow_buckets,
    "sweep_heap": sweep_heap,
    "sweep_bucket": sweep_bucket,
}
SLOTS = (1 << 22) - 1  # a loop has no more timers and immediates at once, and one of these stops the run


@contextlib.contextmanager
def stopping() -> Iterator[Diary]:
    """A thread stops the world repeatedly (by `gc.freeze`, which visits no object: a collection's own time does not
    count). In between it lets the world run, for a fifth of what a pause may take: without that, a callback that
    schedules 10,000 timers took up to 12 s.
    """
    return beside(lambda: (gc.freeze(), gc.unfreeze(), time.sleep(TICK)))


@contextlib.contextmanager
def going_on() -> Iterator[Diary]:
    """A thread runs on, as far as the GIL lets it."""
    return beside(lambda: None)


def beside(step: Callable[[], object]) -> Iterator[Diary]:
    diary: Diary = []
    ready, done = threading.Event(), threading.Event()
    caller = time.pthread_getcpuclockid(threading.get_ident())

    def keep() -> None:
        while not done.is_set():
            step()
            diary.append(time.clock_gettime(caller))
            ready.set()
        step()
        diary.append(time.clock_gettime(caller))

    before = sys.getswitchinterval()
    sys.setswitchinterval(TICK)
    thread = threading.Thread(target=keep)
    thread.start()
    try:
        ready.wait(10)
        yield diary
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(before)


@contextlib.contextmanager
def signalled() -> Iterator[Diary]:
    """A system timer sends signals, whose handler runs on this thread."""
    diary: Diary = [time.thread_time()]
    before = signal.signal(signal.SIGALRM, lambda *_: diary.append(time.thread_time()))
    signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    try:
        yield diary
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        diary.append(time.thread_time())


IN_SLOTS = "cancel", "close", "open_bucket", "fetch", "trim_heap", "release", "release_heap"
IN_SLOTS += "grow_slots", "grow_heap", "grow_buckets", "sweep_heap", "sweep_bucket"
WITNESSES = {"stop_the_world": stopping, "thread": going_on, "signal": signalled}


def held_up(call: str, count: int, witness: str) -> float:
    """The longest gap, in ms."""
    rounds = []
    for _ in range(ROUNDS):
        loop = nbloop.Loop()
        act = CALLS[call](loop, count if call not in IN_SLOTS else min(count, SLOTS))
        del loop
        gc.collect()
        with WITNESSES[witness]() as diary:
            first = len(diary) - 1
            act()
        rounds.append(max(now - then for then, now in pairwise(diary[first:])))
        del act
    return 1e3 * min(rounds)


class HeldUp:
    """The longest gap in a witness's diary while one call works on very many tasks or timers."""

    params = (tuple(CALLS), (10_000, 1_000_000), tuple(WITNESSES))
    param_names = ("call", "items", "witness")
    timeout = 300

    def track_held_up(self, call: str, items: int, witness: str) -> float:
        """Decides whether a call with a million items makes others wait no longer than one with ten thousand: 1 ms."""
        return held_up(call, items, witness)

    track_held_up.unit = "ms"  # type: ignore[attr-defined]


if __name__ == "__main__":  # python -m asv_bench.benchmarks.pauses 10000000 submit_list ...
    for name in sys.argv[2:] or CALLS:
        print(name, *(f"{witness} {held_up(name, int(sys.argv[1]), witness):.2f} ms" for witness in WITNESSES))
