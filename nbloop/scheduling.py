"""Scheduling, cancelling, and the clock: built-in methods made by the kernels. The functions here are their signatures
and documentation; on instances the built-ins replace them (kernels/base/kernel.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .kernels.base.kernel import bound
from .kernels.methods import lifetime, scheduling, timer_methods

type Callback = Callable[..., object]


class Scheduling:
    """The part of a `Loop` that schedules callbacks: no Python frame between the caller and the kernel."""

    _state: Any
    _captures = False  # does each call capture its context?

    @bound(scheduling.submit, scheduling.submit_captured)
    def submit(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` on the loop's thread.

        Once this has returned, the callback will run before `run()` returns for good, unless `close()` drops it. The
        submits of all threads have one total order, and run in it. Any thread, also in signal handlers. O(1): one
        atomic addition; lock-free.

        Raises `LoopTerminatedError` once the end of the loop has begun, `LoopOverloadedError` with `ingress_limit`
        tasks waiting, `MemoryError`, or TypeError if `callback` is not callable; in each case nothing was stored.
        """

    @bound(scheduling.submit_many, scheduling.submit_many_captured)
    def submit_many(self, callbacks: Iterable[Callback], /) -> int:
        """Submit every callable of an iterable, in order and with nothing between them, all or none; return how many.

        Like `submit`, but with one publication and at most one wake for the whole batch: to submit one of a thousand
        takes 3 ns instead of 24, to submit and run it some 30 instead of 55. Any thread. O(n). Errors as in `submit`.
        The iterable is exhausted, and each item checked, before anything is stored. From a few thousand items on it is
        read in parts, and signal handlers run in between; if one raises, nothing was stored.
        """
        return 0  # pragma: no cover

    @bound(scheduling.submit_internal, scheduling.submit_internal_captured)
    def submit_internal(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` before the external tasks of the same turn. FIFO; otherwise like `submit`, but
        without its limit.
        """

    @bound(scheduling.schedule_microtask, scheduling.schedule_microtask_captured)
    def schedule_microtask(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` at the next microtask checkpoint, which follows every callback (HTML, 'perform a
        microtask checkpoint').

        FIFO. A checkpoint runs all next-ticks, then all microtasks, repeatedly until both are empty; one that runs
        100,000 of them is logged once. Any thread. O(1). During a graceful end the loop's callbacks may still call
        this. Errors as in `submit`.
        """

    @bound(scheduling.schedule_next_tick, scheduling.schedule_next_tick_captured)
    def schedule_next_tick(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` at the next checkpoint, before its microtasks (Node's ``process.nextTick``).
        Otherwise like `schedule_microtask`.
        """

    @bound(scheduling.schedule_checkpoint_end, scheduling.schedule_checkpoint_end_captured)
    def schedule_checkpoint_end(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` at the end of the current checkpoint, or of the next, when no next-tick and no
        microtask is left.

        One at a time: microtasks that it queues run before the next of its kind. Otherwise like `schedule_microtask`.
        """

    @bound(scheduling.schedule_immediate, scheduling.schedule_immediate_captured)
    def schedule_immediate(self, callback: Callback, /, *args: object) -> int:
        """Run ``callback(*args)`` in the check phase, right after the loop has polled; returns an id for
        `cancel_immediate`.

        FIFO; one scheduled by an immediate waits for the next turn (Node's ``setImmediate``). Any thread. O(1).
        Errors as in `submit`.
        """
        return 0  # pragma: no cover

    @bound(timer_methods.cancel_immediate)
    def cancel_immediate(self, id: int, /) -> bool:
        """Cancel the immediate `id`. True: it will never run. False: unknown, started, or already cancelled. Any
        thread; the answer is final. O(1).
        """
        return False  # pragma: no cover

    @bound(scheduling.schedule_close, scheduling.schedule_close_captured)
    def schedule_close(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` in the close phase, after the immediates. FIFO. Any thread. O(1). Errors as in
        `submit`.
        """

    @bound(timer_methods.schedule_timer, timer_methods.schedule_timer_captured)
    def schedule_timer(self, delay: float, callback: Callback, /, *args: object) -> int:
        """Run ``callback(*args)`` once, no earlier than `delay` seconds from now; returns an id for `cancel_timer`.

        Earliest deadline first, equal deadlines in scheduling order. A delay of 0 or less means the next timer phase;
        a timer added in a timer phase waits for the next turn. The id is valid before the callback can start. Any
        thread. Amortised O(1) for a timer that is not due soon, else O(log n) in the number of those that are. A
        sleeping loop is woken only if this deadline is its earliest.

        Raises ValueError for NaN, infinities and more than 4e9 seconds, TypeError if `delay` is not a number, otherwise
        as `submit`.
        """
        return 0  # pragma: no cover

    @bound(timer_methods.schedule_timer_at, timer_methods.schedule_timer_at_captured)
    def schedule_timer_at(self, deadline: float, callback: Callback, /, *args: object) -> int:
        """Run ``callback(*args)`` once, no earlier than `deadline`, in seconds on the clock of `now`; returns an id for
        `cancel_timer`.

        For callbacks that belong to one moment, or to moments whose order matters: two calls of `schedule_timer` count
        from two readings of the clock. A deadline in the past means the next timer phase. Otherwise like
        `schedule_timer`.
        """
        return 0  # pragma: no cover

    @bound(timer_methods.schedule_interval, timer_methods.schedule_interval_captured)
    def schedule_interval(self, period: float, callback: Callback, /, *args: object) -> int:
        """Run ``callback(*args)`` every `period` seconds, each counted from the start of the previous call; returns an
        id for `cancel_timer`.

        The callback's run time causes no drift, and an exception does not end the interval. Otherwise like
        `schedule_timer`.
        """
        return 0  # pragma: no cover

    @bound(timer_methods.cancel_timer)
    def cancel_timer(self, id: int, /) -> bool:
        """Cancel a timer or interval. True: it will never run (again). False: unknown, started, or already cancelled.

        The answer is final, on any thread: before `run`, while running, in its own callback. The callback is released.
        Amortised O(1). TypeError if `id` is not an int.
        """
        return False  # pragma: no cover

    @bound(timer_methods.cancel_timers)
    def cancel_timers(self, ids: Iterable[int], /) -> list[bool]:
        """`cancel_timer` for each of `ids`; for an id given twice the second answer is False. If one is not an
        int, none is cancelled. Signal handlers run in between; if one raises, timers cancelled so far stay cancelled.
        """
        return []  # pragma: no cover

    @bound(timer_methods.ref_timer)
    def ref_timer(self, id: int, /) -> bool:
        """Make the live timer `id` keep an `auto_exit` loop alive (the default); False if it is not live. Any thread.
        O(1).
        """
        return False  # pragma: no cover

    @bound(timer_methods.unref_timer)
    def unref_timer(self, id: int, /) -> bool:
        """Make the live timer `id` not keep an `auto_exit` loop alive; False if it is not live. Any thread. O(1)."""
        return False  # pragma: no cover

    @bound(lifetime.now)
    def now(self) -> float:
        """Seconds on the loop's clock, by default that of `time.monotonic`. Any thread."""
        return 0.0  # pragma: no cover
