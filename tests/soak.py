"""`make soak SECONDS=60`: everything at once, one life of a loop after another, and then a look at what is left behind.
`make soak SECONDS=600` is the long one: ten minutes, and no fewer than 500 lives.

Each life: producers of all kinds, timers armed and cancelled on two threads, sockets, promises and worker threads,
changes of mode, signals, stop and run again; ended by shutdown() or close() while all of that goes on. Fails if what
was accepted is not what ran (after a shutdown), or if descriptors, threads, objects, states or mappings have grown
since the first lives, which make what is made once; or resident memory, which goes up and down with the longest queues
of late, in the median of the last third of all lives over that of the first.

Beside them one loop lives all the time, as a program's would, and is asked every few milliseconds how long a task takes
to its thread and how late a timer is. Fails if the p99 of either, in the median of ten-second windows, is more than
twice in the last third what it was in the first, and by more than 2 ms.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import random
import signal
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from typing import Any

from nbloop import (
    FastPathIncompatibleError,
    FastPathMode,
    FDNotRegisteredError,
    IOEvents,
    Loop,
    LoopOverloadedError,
    NbloopError,
)
from nbloop.js import JS
from nbloop.kernels.state.state import State

WARM = 8  # lives before the first look
RSS_MOST = 32 << 20  # bytes of growth between thirds
# At least, to judge memory; ten minutes have as many. 1,163 lives went from 205 to 210 MB, the allocators having found
# their high water, 196 from 180 to 280.
RSS_LIVES = 500
OBJECTS_MOST = 2000
MAPPINGS_MOST = 50  # arenas of threads; a life has some forty of its own
LIVES_A_SECOND = 500 / 600  # at least
WINDOW = 10.0  # seconds of the steady loop's figures that are one p99
DRIFT, DRIFT_SECONDS = 2.0, 0.002


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def thirds(values: list[Any]) -> tuple[list[Any], list[Any]]:
    """The first and the last, or all and all of what is too few."""
    third = len(values) // 3 or len(values)
    return values[:third], values[-third:]


def census() -> Counter[str]:
    gc.collect()
    with open("/proc/self/maps") as maps:
        mappings = sum(1 for _ in maps)
    return Counter(
        states=sum(isinstance(one, State) for one in gc.get_objects()),
        mappings=mappings,
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        objects=len(gc.get_objects()),
        resident=resident(),
    )


def life(seconds: float, chance: random.Random, totals: Counter[str]) -> None:
    sizes = {"chunk_size": chance.choice([16, 128]), "ingress_budget": chance.choice([4, 1024])}
    loop = Loop(**sizes, ingress_limit=100_000, on_error=lambda *_: None)
    js, ran, stop = JS(loop, on_unhandled_rejection=lambda *_: None), Counter[int](), threading.Event()
    accepted, errors = Counter[int](), []

    def mark(who: int) -> None:
        ran[who] += 1  # on the loop's thread alone

    def produce(who: int, door: Any) -> None:
        while not stop.is_set():
            try:
                if who % 3 == 0:
                    accepted[who] += door.submit_many([lambda: mark(who)] * 50)
                else:
                    door.submit(mark, who)
                    accepted[who] += 1
            except LoopOverloadedError:
                totals["refused by a full queue"] += 1
                time.sleep(0.001)
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
        b.setblocking(False)  # a loop that is kept from running for long does not read
        try:
            while not stop.is_set():
                try:
                    loop.register_fd(a.fileno(), IOEvents.READ, lambda fd, _: os.read(fd, 64))
                    with contextlib.suppress(BlockingIOError):
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
        if thread.is_alive():
            faulthandler.dump_traceback()
            sys.exit(f"soak: {thread} hangs; {loop}, {'shut down' if gracefully else 'closed'}")
    assert not errors, errors
    # A batch is counted by its producer after it was accepted; refused ones raise before they are.
    if gracefully:
        assert ran == accepted, f"accepted {accepted}, ran {ran}"
    else:
        assert all(ran[who] <= accepted[who] for who in ran), f"accepted {accepted}, ran {ran}"
    totals["lives"] += 1
    totals["tasks"] += ran.total()


class Steady:
    """A loop that lives as long as the soak, and how quick it is: p99s of the hop and of a timer's delay, by window."""

    def __init__(self) -> None:
        self.loop = Loop(metrics=True, recorder=1024)
        self.js = JS(self.loop)
        self.windows: list[tuple[float, float]] = []
        self._hops: list[float] = []
        self._lates: list[float] = []
        self._end = threading.Event()
        self._runner = self.loop.start()
        self._prober = threading.Thread(target=self._probe)
        self._prober.start()

    def _probe(self) -> None:
        closes = time.monotonic() + WINDOW
        while not self._end.wait(0.003):
            fired, hopped = threading.Event(), threading.Event()
            self.loop.schedule_timer(0.001, self._note, self._lates, self.loop.now() + 0.001, fired)
            self.loop.submit(self._note, self._hops, self.loop.now(), hopped)
            self.js.all([self.js.resolve(1), self.js.sleep(1)]).then(len)
            assert all(self.loop.cancel_timers([self.loop.schedule_timer(60, int) for _ in range(20)]))
            assert hopped.wait(30)
            assert fired.wait(30)
            if time.monotonic() >= closes:
                self.windows.append((p99(self._hops), p99(self._lates)))
                self._hops.clear()
                self._lates.clear()
                closes = time.monotonic() + WINDOW

    def _note(self, times: list[float], since: float, done: threading.Event) -> None:
        times.append(self.loop.now() - since)
        done.set()

    def finish(self) -> list[str]:
        """What has drifted."""
        self._end.set()
        self._prober.join()
        self.loop.shutdown()
        self._runner.join()
        drifted = []
        for at, name in enumerate(("hop", "timer") if self.windows else ()):
            early, late = (statistics.median(window[at] for window in some) for some in thirds(self.windows))
            print(f"p99 of {name:5} {early * 1e6:>10,.0f} us -> {late * 1e6:>10,.0f} us, {len(self.windows)} windows")
            if late > DRIFT * early and late - early > DRIFT_SECONDS:
                drifted.append(f"p99 of {name}")
        return drifted


def p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


def main(seconds: float, seed: int) -> None:
    print(f"soak: {seconds:.0f} s, seed {seed}", flush=True)
    chance, totals = random.Random(seed), Counter[str]()
    steady = Steady()
    until = time.monotonic() + seconds
    before = Counter[str]()
    sizes: list[int] = []
    while time.monotonic() < until or totals["lives"] <= max(WARM, seconds * LIVES_A_SECOND):
        if totals["lives"] == WARM:
            before = census()
        if totals["lives"] % 100 == 99:
            print(f"{totals['lives'] + 1} lives:", dict(census()), flush=True)
        life(min(0.3, seconds / 20), chance, totals)
        if totals["lives"] >= WARM:
            sizes.append(resident())
    after = census()
    drifted = steady.finish()
    print(", ".join(f"{name} {count:,}" for name, count in totals.items()))
    for name, count in after.items():
        print(f"{name:12} {before[name]:>13,} -> {count:>13,}")
    grown = {"states": 0, "mappings": MAPPINGS_MOST, "descriptors": 0, "threads": 0}
    grown |= {"objects": OBJECTS_MOST}
    leaks = [name for name, most in grown.items() if after[name] - before[name] > most]
    early, late = (int(statistics.median(some)) for some in thirds(sizes))
    few = "" if len(sizes) >= RSS_LIVES else ", too few to judge"
    print(f"resident, medians of thirds {early:,} -> {late:,}, {len(sizes)} lives{few}")
    if late - early > RSS_MOST and not few:
        leaks.append("resident memory")
    sys.exit(f"soak: grown: {', '.join(leaks + drifted)}" if leaks + drifted else 0)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 30))
