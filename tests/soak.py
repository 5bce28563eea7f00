"""`make soak SECONDS=60`: everything at once, one life of a loop after another, and then a look at what is left behind.

Each life: producers of all kinds, timers armed and cancelled on two threads, sockets, promises and worker threads,
changes of mode, signals, stop and run again; ended by shutdown() or close() while all of that goes on. Fails if what
was accepted is not what ran (after a shutdown), or if descriptors, threads, objects or memory have grown since the
first lives, which make what is made once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from typing import Any

from nbloop import FastPathIncompatibleError, FastPathMode, FDNotRegisteredError, IOEvents, Loop, NbloopError
from nbloop.js import JS

WARM = 8  # lives before the first look
RSS_MOST = 32 << 20  # growth that allocators may keep
OBJECTS_MOST = 2000


def census() -> Counter[str]:
    gc.collect()
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Counter(
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        objects=len(gc.get_objects()),
        resident=resident,
    )


def life(seconds: float, chance: random.Random, totals: Counter[str]) -> None:
    loop = Loop(chunk_size=chance.choice([16, 128]), ingress_budget=chance.choice([4, 1024]), on_error=lambda *_: None)
    js, ran, stop = JS(loop, on_unhandled_rejection=lambda *_: None), Counter[int](), threading.Event()
    accepted, errors = Counter[int](), []

    def mark(who: int) -> None:
        ran[who] += 1  # on the loop's thread alone

    def produce(who: int, door: Any) -> None:
        while not stop.is_set():
            if who % 3 == 0:
                accepted[who] += door.submit_many([lambda: mark(who)] * 50)
            else:
                door.submit(mark, who)
                accepted[who] += 1
            if who % 2:
                time.sleep(0)

    def arm() -> None:
        mine = random.Random(chance.random())
        while not stop.is_set():
            ids = [loop.schedule_timer(mine.choice([0, 0.001, 0.05, 60]), int) for _ in range(50)]
            ids.append(loop.schedule_interval(0.001, int))
            totals["cancelled"] += sum(loop.cancel_timers(ids))
            loop.schedule_microtask(loop.schedule_immediate, int)

    def settle() -> None:
        while not stop.is_set():
            js.all([js.promise(lambda resolve, _: resolve(1)), loop.promisify(len, "abc"), js.sleep(1)]).then(int)
            js.reject(ValueError())
            time.sleep(0.001)

    def watch() -> None:
        pair = socket.socketpair()
        a, b = pair
        try:
            while not stop.is_set():
                try:
                    loop.register_fd(a.fileno(), IOEvents.READ, lambda fd, _: os.read(fd, 64))
                    b.send(b"x")
                    time.sleep(0.001)
                    loop.unregister_fd(a.fileno())
                except FastPathIncompatibleError:
                    continue
        finally:
            with contextlib.suppress(FDNotRegisteredError):
                loop.unregister_fd(a.fileno())
            for one in pair:
                one.close()

    def flip() -> None:
        while not stop.is_set():
            try:
                loop.set_fast_path_mode(chance.choice(list(FastPathMode)))
            except FastPathIncompatibleError:
                totals["refused modes"] += 1
            time.sleep(0.002)

    def guarded(function: Any, *args: Any) -> None:
        try:
            with contextlib.suppress(NbloopError):  # the end has come meanwhile
                function(*args)
        except BaseException as error:
            errors.append(error)

    loop.add_signal_handler(signal.SIGUSR1, int)
    doors = [loop, loop, loop.producer(), loop.producer()]
    threads = [threading.Thread(target=guarded, args=(produce, i, door)) for i, door in enumerate(doors)]
    threads += [threading.Thread(target=guarded, args=(job,)) for job in (arm, settle, watch, flip)]
    runner = loop.start()
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
        if chance.random() < 0.1:
            loop.stop()
            runner.join()
            runner = loop.start()
    gracefully = chance.random() < 0.7
    loop.shutdown() if gracefully else loop.close()
    stop.set()
    for thread in [*threads, runner]:
        thread.join(30)
        assert not thread.is_alive(), f"{thread} hangs"
    assert not errors, errors
    # A batch is counted by its producer after it was accepted; refused ones raise before they are.
    if gracefully:
        assert ran == accepted, f"accepted {accepted}, ran {ran}"
    else:
        assert all(ran[who] <= accepted[who] for who in ran), f"accepted {accepted}, ran {ran}"
    totals["lives"] += 1
    totals["tasks"] += ran.total()


def main(seconds: float, seed: int) -> None:
    print(f"soak: {seconds:.0f} s, seed {seed}", flush=True)
    chance, totals = random.Random(seed), Counter[str]()
    until = time.monotonic() + seconds
    before = Counter[str]()
    while time.monotonic() < until or totals["lives"] <= WARM:
        if totals["lives"] == WARM:
            before = census()
        life(min(0.3, seconds / 20), chance, totals)
    after = census()
    print(", ".join(f"{name} {count:,}" for name, count in totals.items()))
    for name, count in after.items():
        print(f"{name:12} {before[name]:>13,} -> {count:>13,}")
    grown = {"descriptors": 0, "threads": 0, "objects": OBJECTS_MOST, "resident": RSS_MOST}
    leaks = [name for name, most in grown.items() if after[name] - before[name] > most]
    sys.exit(f"soak: grown: {', '.join(leaks)}" if leaks else 0)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 30))
