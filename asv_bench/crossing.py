"""What two or more threads do together: submitting, racing, hopping over and back, arming timers from outside.

As in `workloads`, each function makes a probe or is one. The loop given to it runs in a thread of its own
(`Driven.start`).
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any

from .drive import Asyncio, Call, Driven, Nbloop
from .measure import Probe, clock, each, loop_cost, nothing
from .peers import Consumer

SETTLE = 3e-4  # seconds after which an idle loop sleeps: well over nbloop's longest spin of 50 µs


def taken() -> threading.Lock:
    """A lock that is held, to wait for another thread's release."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def submit_elsewhere(label: str, driven: Consumer, count: int = 1000) -> Probe:
    """Submit from a thread that is not the loop's, while a callback keeps the loop awake (and off the CPU: it waits
    for a lock).
    """

    def probe() -> Mapping[str, float]:
        entered, gate, done = taken(), taken(), taken()

        def hold() -> None:
            entered.release()
            gate.acquire()

        submit = driven.soon_threadsafe
        submit(hold)
        entered.acquire()
        cost = each(submit, count, nothing) - loop_cost()
        submit(done.release)
        gate.release()
        done.acquire()
        return {label: cost}

    return probe


type Entrance = Callable[[], Call]


def entrance(consumer: Consumer) -> Entrance:
    """What a producer of `race` uses: the method that anyone would."""
    return lambda: consumer.soon_threadsafe


def race(label: str, entrance: Entrance, producers: int, total: int, functions: int = 1) -> Probe:
    """`producers` threads share `total` tasks and start at a barrier: ns a task until the last one has run, and ns a
    submit.

    Fair by construction. Both loops get the same number of the same callbacks: for each producer its own closure with
    an empty body, made in that producer's thread, as code that submits work would do (one function shared by all would
    add its reference count as a bottleneck); or `functions` such closures in turn, because the cache line of a single
    one's reference count still bounces between the producer and the loop. Each producer calls `entrance`, before the
    barrier, to get the method that it submits with. Submission is in order per producer, so all tasks have run when
    each producer's last one has; that one takes the time.
    """
    share = total // producers

    def probe() -> Mapping[str, float]:
        barrier = threading.Barrier(producers)
        starts: list[int] = []
        submitted: list[int] = []
        ends: list[int] = []
        done = threading.Semaphore(0)

        def produce() -> None:
            submit = entrance()

            def closure() -> Callable[[], None]:
                def callee() -> None:
                    pass

                return callee

            def last() -> None:
                ends.append(clock())
                done.release()

            callees = [closure() for _ in range(functions)] * (share // functions + 1)
            del callees[share - 1 :]
            barrier.wait()
            start = clock()
            for callee in callees:
                submit(callee)
            submit(last)
            submitted.append(clock() - start)
            starts.append(start)

        threads = [threading.Thread(target=produce) for _ in range(producers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in threads:
            done.acquire()
        return {
            label: (max(ends) - min(starts)) / (share * producers),
            f"{label} submit": sum(submitted) / (share * producers),
        }

    return probe


def hop(label: str, driven: Consumer, hops: int = 10) -> Probe:
    """Submit to a sleeping loop a callback that releases the lock the submitter then waits for: ns over and back."""

    def probe() -> Mapping[str, float]:
        submit, lock = driven.soon_threadsafe, taken()
        times = []
        for _ in range(hops):
            time.sleep(SETTLE)
            start = clock()
            submit(lock.release)
            lock.acquire()
            times.append(clock() - start)
        return {label: statistics.median(times)}

    return probe


def delays(driven: Consumer, count: int, asleep: bool) -> dict[int, float]:
    """ns from a submit by another thread to the start of its callback, by percentile, of `count` single ones."""
    submit, lock, times = driven.soon_threadsafe, taken(), []
    started = 0

    def callback() -> None:
        times.append(clock() - started)
        lock.release()

    for _ in repeat(None, count):
        if asleep:
            time.sleep(SETTLE)
        started = clock()
        submit(callback)
        lock.acquire()
    return dict(enumerate(statistics.quantiles(times, n=100, method="inclusive"), start=1))


def call_and_wait(label: str, driven: Consumer, calls: int = 100) -> Probe:
    """`hop` repeatedly, both sides waiting in their natural way: ns for one. The "ping-pong" of other benchmarks."""

    def probe() -> Mapping[str, float]:
        submit, lock = driven.soon_threadsafe, taken()
        start = clock()
        for _ in repeat(None, calls):
            submit(lock.release)
            lock.acquire()
        return {label: (clock() - start) / calls}

    return probe


def burst_elsewhere(label: str, driven: Consumer, count: int = 1000) -> Probe:
    """Submit a burst from outside, wait until all have run: ns a task."""

    def probe() -> Mapping[str, float]:
        submit, lock = driven.soon_threadsafe, taken()

        def callee() -> None:
            pass

        start = clock()
        for _ in repeat(None, count - 1):
            submit(callee)
        submit(lock.release)
        lock.acquire()
        return {label: (clock() - start) / count}

    return probe


def timers_fired(label: str, driven: Driven, count: int = 1000) -> Probe:
    """Arm timers of 0 ms from outside until all have fired: ns for one. asyncio's have to be armed by its thread."""
    own = isinstance(driven, Nbloop)

    def probe() -> Mapping[str, float]:
        submit, later, done = driven.soon_threadsafe, driven.later, taken()
        left = count

        def fired() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.release()

        start = clock()
        if own:
            for _ in repeat(None, count):
                later(0, fired)
        else:
            for _ in repeat(None, count):
                submit(later, 0, fired)
        done.acquire()
        return {label: (clock() - start) / count}

    return probe


def hops_in_a_row(label: str, driven: Consumer, hops: int = 200) -> Probe:
    """`hop` repeatedly, with the submitter polling the lock instead of waiting for it.

    A loop that spins before it sleeps need not sleep in between, if the submitter runs meanwhile: see `on_two_cores`.
    """

    def probe() -> Mapping[str, float]:
        submit, lock = driven.soon_threadsafe, taken()
        release = lock.release  # the loop's thread counts references to it
        _apart = [lock.locked for _ in range(8)]  # so that it shares no cache line with the word that is polled
        locked = lock.locked
        times = []
        for _ in range(hops):
            start = clock()
            submit(release)
            while locked():
                pass
            times.append(clock() - start)
            lock.acquire()
        return {label: statistics.median(times)}

    return probe


def on_two_cores(driven: Consumer, probe: Probe) -> Probe:
    """`probe` with the calling thread on one core and the loop's on another, where the system supports that.

    Otherwise the scheduler of a busy machine may put both on one core, and then neither runs while the other spins.
    """
    if not hasattr(os, "sched_setaffinity"):
        return probe
    usable = os.sched_getaffinity(0)
    if len(usable) == 1:
        return probe

    def pinned() -> Mapping[str, float]:
        assert driven.thread is not None
        assert driven.thread.native_id is not None
        here, there, *_ = sorted(usable)
        threads = {0: {here}, driven.thread.native_id: {there}}  # 0: the calling one
        try:
            for thread, cores in threads.items():
                os.sched_setaffinity(thread, cores)
            return probe()
        finally:
            for thread in threads:
                os.sched_setaffinity(thread, usable)

    return pinned


def timer_elsewhere(label: str, driven: Nbloop, pairs: int = 100) -> Probe:
    """Schedule and cancel a timer from outside, ns for both, while the loop sleeps until an earlier timer: no wake is
    needed.
    """
    driven.loop.schedule_timer(900.0, nothing)
    rng = random.Random(1)

    def probe() -> Mapping[str, float]:
        schedule, cancel = driven.later, driven.cancel
        delays = [1000 + rng.random() for _ in range(pairs)]
        driven.loop.wake()  # it processes what the previous round left
        time.sleep(SETTLE * 4)
        base = loop_cost()
        start = clock()
        for delay in delays:
            cancel(schedule(delay, nothing))
        return {label: (clock() - start) / pairs - base}

    return probe


def timer_elsewhere_waking(label: str, driven: Nbloop, pairs: int = 10) -> Probe:
    """The same with a timer that is the loop's earliest, so that each one wakes it."""

    def probe() -> Mapping[str, float]:
        schedule, cancel = driven.later, driven.cancel
        times = []
        for _ in range(pairs):
            time.sleep(SETTLE)
            start = clock()
            cancel(schedule(100.0, nothing))
            times.append(clock() - start)
        return {label: statistics.median(times)}

    return probe


def timer_elsewhere_asyncio(label: str, driven: Asyncio, pairs: int = 10) -> Probe:
    """The same with asyncio: its timers belong to the loop's thread, so the handle and the answer must be fetched from
    there.
    """

    def probe() -> Mapping[str, float]:
        submit, lock = driven.soon_threadsafe, taken()
        made: list[Any] = []

        def schedule() -> None:
            made.append(driven.later(100.0, nothing))
            lock.release()

        def cancel() -> None:
            made.pop().cancel()
            lock.release()

        times = []
        for _ in range(pairs):
            time.sleep(SETTLE)
            start = clock()
            submit(schedule)
            lock.acquire()
            submit(cancel)
            lock.acquire()
            times.append(clock() - start)
        return {label: statistics.median(times)}

    return probe


def hop_locks(label: str, hops: int = 10) -> Probe:
    """`hop` without a loop: a Python thread that waits for one lock and releases another."""
    there, back = taken(), taken()

    def answer() -> None:
        while True:
            there.acquire()
            back.release()

    threading.Thread(target=answer, daemon=True).start()

    def probe() -> Mapping[str, float]:
        times = []
        for _ in range(hops):
            time.sleep(SETTLE)
            start = clock()
            there.release()
            back.acquire()
            times.append(clock() - start)
        return {label: statistics.median(times)}

    return probe


def life(label: str, make: Callable[[], Driven]) -> Probe:
    """Make a loop, run it in a thread, end it: ns for all of that."""

    def probe() -> Mapping[str, float]:
        start = clock()
        driven = make()
        driven.start()
        driven.close()
        return {label: clock() - start}

    return probe
