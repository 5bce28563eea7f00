"""A producer that is faster than its loop, and slows down on request.

Without backpressure the queue grows for as long as the producer runs. `ingress_limit` would refuse tasks; here the loop
reports when its backlog crosses a mark, and the producer waits on an event meanwhile: nothing is refused, nothing is
lost, and memory stays bounded by the high mark plus what producers submit between two turns.

    python examples/slow_down.py [WAITS]

It ends when the producer has waited that often.
"""

from __future__ import annotations

import sys
import threading

import nbloop

WAITS = int(sys.argv[1]) if len(sys.argv) > 1 else 20

go_on = threading.Event()
go_on.set()
crossings: list[str] = []


def on_pressure(level: str) -> None:  # on the loop's thread
    crossings.append(level)
    if level == "high":
        go_on.clear()
    else:
        go_on.set()


done = 0


def work(n: int) -> None:
    global done
    done += n > 0 and sum(range(1_000)) > 0


n = waits = 0
with nbloop.Loop(on_pressure=on_pressure, pressure_high=4_000, pressure_low=500, metrics=True) as loop:
    while waits < WAITS:
        n += 1
        loop.submit(work, n)
        if not go_on.is_set():
            waits += 1
            go_on.wait()

figures = loop.metrics()
assert figures is not None  # the loop was made with metrics=True
assert done == n
assert crossings == ["high", "low"] * (len(crossings) // 2)
print(f"{done} tasks done, the producer waited {waits} times; at most {figures.queue_max.ingress} waited at once")
