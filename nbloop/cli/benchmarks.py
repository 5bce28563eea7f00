"""The benchmarks that ``python -m nbloop bench`` runs if it gets no file. Each function is also an example of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..js import JS
from ..loop import Loop

if TYPE_CHECKING:
    from .bench import Bench


def nothing() -> None:
    """A Python function with an empty body."""


def bench_submit(b: Bench) -> None:
    """Submit a callback, and run it."""
    loop = Loop(auto_exit=True)
    b.reset_timer()
    for _ in b:
        loop.submit(nothing)
    loop.run()


def bench_submit_with_argument(b: Bench) -> None:
    """The same, with an argument."""
    loop = Loop(auto_exit=True)
    b.reset_timer()
    for _ in b:
        loop.submit(callable, b)
    loop.run()


def bench_submit_many(b: Bench) -> None:
    """All of them in one call."""
    loop = Loop(auto_exit=True)
    callbacks = [nothing] * b.n
    b.reset_timer()
    loop.submit_many(callbacks)
    loop.run()


def bench_call_from_another_thread(b: Bench) -> None:
    """To the loop and back, one at a time."""
    with Loop() as loop:
        b.reset_timer()
        for _ in b:
            loop.call(nothing)
        b.stop_timer()


def bench_microtask(b: Bench) -> None:
    """Queue a microtask from a callback, and run it."""
    loop = Loop(auto_exit=True)

    def queues() -> None:
        loop.schedule_microtask(nothing)

    loop.submit_many([queues] * b.n)
    b.reset_timer()
    loop.run()


def bench_timer_cancelled(b: Bench) -> None:
    """Arm a timer, and cancel it."""
    loop = Loop(auto_exit=True)

    def arm() -> None:
        b.reset_timer()
        for _ in b:
            loop.cancel_timer(loop.schedule_timer(10, nothing))
        b.stop_timer()

    loop.submit(arm)
    loop.run()


def bench_timer_fired(b: Bench) -> None:
    """Arm a timer that is due, and run it."""
    loop = Loop(auto_exit=True)
    b.reset_timer()
    for _ in b:
        loop.schedule_timer(0, nothing)
    loop.run()


def bench_promise(b: Bench) -> None:
    """A promise and one handler."""
    loop = Loop(auto_exit=True)
    js = JS(loop)

    def chain() -> None:
        b.reset_timer()
        for _ in b:
            js.resolve(1).then(callable)

    loop.submit(chain)
    loop.run()


def bench_spawn(b: Bench) -> None:
    """A coroutine that awaits a promise."""
    loop = Loop(auto_exit=True)
    js = JS(loop)

    async def waits() -> None:
        await js.resolve(1)

    async def spawns() -> None:
        b.reset_timer()
        for _ in b:
            await js.spawn(waits())
        b.stop_timer()

    loop.submit(js.spawn, spawns())
    loop.run()


async def bench_asyncio_task(b: Bench) -> None:
    """A task of asyncio on `nbloop.run`, which ends at once."""
    import asyncio

    async def ends() -> None: ...

    b.reset_timer()
    for _ in b:
        await asyncio.create_task(ends())
    b.stop_timer()
