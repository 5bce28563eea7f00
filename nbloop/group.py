"""Loops in threads of their own that start, work and end as one.

Problem: N loops in N threads have N starts that may fail halfway, and N ends that may wait for each other; a loop may
die silently while the others wait for it; and something must decide which loop gets which task. Idea: a group is a
tuple of ordinary loops and one word about its end. The path of every task is a kernel (`submit`,
kernels/methods/group.py); what happens once is here.

**The end.** The first thread that learns that the group must end (a caller of `shutdown` or `close`, or the thread of a
loop that left `run` unexpectedly) makes *every* loop refuse new work before it waits for any. So no loop waits for one
that still accepts work, and all ends proceed in parallel.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Self

from . import debug as _debug
from . import hooks
from .errors import LoopAlreadyRunningError, LoopTerminatedError, ReentrantCloseError, ReentrantWaitError
from .gil import check_parallel
from .kernels.base.kernel import bound
from .kernels.methods import group as kernels
from .kernels.state.state import make_group_state
from .loop import Loop
from .options import check_loops, check_name, check_timeout
from .scheduling import Callback
from .unique import Unique

if TYPE_CHECKING:
    from .lifecycle import Lifecycle
    from .observe import Metrics

_numbers = itertools.count(1)  # numbers for groups without a name


class LoopGroup(Unique):
    """Several loops in threads of their own, which start and end as one.

    `loops` is the number of loops, by default one for each core that this process may use. `name` is the group's name;
    its loops and threads get this name with a number. `pin` keeps each thread on a core of its own, in turn (Linux
    only: NotImplementedError elsewhere). With `require_free_threading`, several loops under the GIL are a RuntimeError;
    without it, they are a RuntimeWarning, once in a process. `loop_options` are those of `Loop`, for each; `auto_exit`
    is refused with ValueError, because loops would end one by one.

    A group is new, then started once, then ended once. Its methods may be called from any thread, and those that
    schedule also from signal handlers. If a loop's thread leaves `run` for any reason that is not the group's end (an
    exception, `stop`, its own `shutdown`), the group ends as by `shutdown()`. From then on each refused call has as its
    cause a `LoopTerminatedError` that names the loop, and whose own cause is what that loop raised.

    >>> import queue
    >>> done = queue.SimpleQueue()
    >>> with LoopGroup(2) as group:
    ...     for number in range(4):
    ...         group.submit(done.put, number)
    ...     sorted(done.get() for _ in range(4))
    [0, 1, 2, 3]
    """

    def __init__(
        self,
        loops: int | None = None,
        *,
        name: str | None = None,
        pin: bool = False,
        require_free_threading: bool = False,
        **loop_options: Any,
    ) -> None:
        if "loops" in self.__dict__:
            raise RuntimeError(f"{self!r} is initialised already")
        loops = check_loops(loops)
        check_name(name)
        if not isinstance(pin, bool):
            raise TypeError(f"pin must be True or False, not {pin!r}")
        if pin and not hasattr(os, "sched_setaffinity"):
            raise NotImplementedError("pin=True needs a system that pins threads to cores: Linux")
        if loop_options.get("auto_exit"):
            raise ValueError("auto_exit must be False: the loops of a group end together")
        self.name = name if name is not None else f"nbloop-group-{next(_numbers)}"
        check_parallel(self.name, loops, require_free_threading)
        self._pin = pin
        self._ending = False
        self._failures: list[LoopTerminatedError] = []  # the first is the group's
        self._turn = itertools.count()
        self._unstarted = [True]  # taken by the call that starts it
        made: list[Loop] = []
        try:
            for number in range(loops):
                made.append(Loop(name=f"{self.name}-{number}", **loop_options))  # noqa: PERF401 - closed if one fails
            self._state = make_group_state([loop._state for loop in made])
        except BaseException:
            for loop in made:
                loop.close()
            raise
        if made[0]._block is not None:
            from .observe import together

            together.mark(self.name, made)
        self._captures = made[0]._captures
        self.loops: tuple[Loop, ...] = tuple(made)
        """The loops, in the order of their numbers."""
        if made[0].debug:
            _debug.remember_sites(self)

    # --- work

    @bound(kernels.group_submit, kernels.group_submit_captured)
    def submit(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` on one of the loops: of two picked at random, the one where less waits.

        The words of the two loops say at that moment which one is less busy: how many tasks wait in the submit queue,
        and whether the loop sleeps. There is no order between two calls, because they may go to two loops; otherwise
        the promise and the errors are those of `Loop.submit`. Any thread, signal handlers included. O(1) in tasks and
        loops; lock-free; writes only the chosen loop's words.
        """

    def submit_to(self, key: Hashable, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` on the loop of `key`, which is always the same one for equal keys.

        So calls with one key run in the order of the calls, one after the other: what only they touch needs no lock.
        Otherwise as `Loop.submit`. TypeError if `key` has no hash.
        """
        # A tuple's hash mixes what an int's does not: neighbouring numbers, and addresses, which end in zeros.
        self.loops[hash((key,)) % len(self.loops)].submit(callback, *args)

    def broadcast(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` once on each loop, in order of its other submits; does not wait for them.

        Errors as `Loop.submit`: loops before the one that refused have got the call. O(loops).
        """
        for loop in self.loops:
            loop.submit(callback, *args)

    def next(self) -> Loop:
        """The loops in turn, for work that must stay on one of them. Any thread. O(1)."""
        return self.loops[next(self._turn) % len(self.loops)]

    # --- life

    def start(self) -> None:
        """Run each loop in a thread of its own; returns once all run. Errors as those of `Loop.start`.

        All or none: if one cannot be started, or a signal handler's exception leaves this call, the group is closed.
        Once: `LoopAlreadyRunningError`.
        """
        try:
            self._unstarted.pop()
        except IndexError:
            raise LoopAlreadyRunningError(f"{self.name} has been started already") from None
        try:
            cores = sorted(os.sched_getaffinity(0)) if self._pin else []
            for number, loop in enumerate(self.loops):
                thread = loop._start(self._left)
                if cores and thread.native_id is not None:
                    os.sched_setaffinity(thread.native_id, {cores[number % len(cores)]})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """`shutdown()`, and raise what ended the group, unless the block raised already."""
        if self.loops[0]._forked:  # a child that leaves the block ends nothing
            return
        self.shutdown()
        if exc[0] is None:
            self._raise_failure()

    def shutdown(self, timeout: float | None = None) -> None:
        """End gracefully: no loop takes new work from now on, each runs what it accepted; returns when all have ended.

        From a callback of one of the loops, and from a function that their `promisify` runs, it only requests the end
        and returns. Otherwise as `Loop.shutdown`, with one `timeout` for all of them. A callback that hands work to
        another loop of the group is refused from the beginning of the end on.
        """
        if timeout is not None:
            check_timeout(timeout)
        self._begin_end()
        if not self._own_thread() and not self._at_work():
            self._wait(timeout, "the shutdown goes on")

    def close(self) -> None:
        """End at once: the callbacks in progress end, all else is dropped; returns when that is done.

        Not from the loops' own callbacks (`ReentrantCloseError`). Any other thread; idempotent.
        """
        if self._own_thread():
            raise ReentrantCloseError(f"{self.name}.close() was called from a callback of its own; use shutdown()")
        self._ending = True
        for loop in self.loops:
            loop._check_fork()
            loop._begin_close()
        for loop in self.loops:
            loop.close()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all loops have ended, which another thread, or a loop that dies, must bring about.

        If a loop has died, it then raises `LoopTerminatedError`, which names the loop, and whose cause is what that
        loop raised. TimeoutError after `timeout` seconds. `ReentrantWaitError` on the loops' own threads. Any other
        thread; not a signal handler.
        """
        if timeout is not None:
            check_timeout(timeout)
        if self._own_thread():
            raise ReentrantWaitError(f"{self.name}.wait() would wait for the loop that it was called on, for ever")
        for loop in self.loops:
            if loop._waiters.at_work():  # its end waits for this thread
                loop.wait(timeout)
        self._wait(timeout, "its loops run on")
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failures:  # a new one, because each raise adds to a traceback
            raise LoopTerminatedError(*self._failures[0].args) from self._failures[0].__cause__

    def _own_thread(self) -> bool:
        return any(loop.is_loop_thread() for loop in self.loops)

    def _at_work(self) -> bool:
        """Whether the calling thread is a worker of one of the loops: their graceful end waits for it."""
        return any(loop._waiters.at_work() for loop in self.loops)

    def _wait(self, timeout: float | None, meanwhile: str) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        for loop in self.loops:
            if not loop._wait_for_end(None if until is None else max(0.0, until - time.monotonic())):
                raise TimeoutError(f"{loop.name} has not ended within {timeout} s; {meanwhile}")

    def _begin_end(self) -> None:
        self._ending = True
        for loop in self.loops:
            loop._check_fork()
            loop._begin_end()
        for loop in self.loops:
            loop._ensure_finisher()

    def _left(self, of: Lifecycle, error: BaseException | None) -> None:
        """Called on a loop's thread when it has left `run`: end the group, if that was unexpected."""
        if error is None and self._ending:
            return
        why = "has been stopped or ended by itself" if error is None else f"has raised {error!r}"
        failure = LoopTerminatedError(f"{self.name} ends because {of.name} {why}")
        failure.__cause__ = error
        self._failures.append(failure)
        failure = self._failures[0]
        for loop in self.loops:
            loop._ended_by = failure
        if failure.__cause__ is error:
            hooks.log(error, str(failure), loop=of.name, level=logging.CRITICAL)
        self._begin_end()

    # --- figures

    def metrics(self) -> Metrics | None:
        """The figures of all loops as one (`nbloop.observe.Metrics.merged`); None without ``metrics=``.

        Those of each are ``loop.metrics()``, and for Prometheus ``LoopCollector(*group.loops)``. Any thread; not a
        signal handler. Some 100 µs a loop.
        """
        from .observe import together

        return together.metrics(self.loops)

    def trace(self, since: float = 0.0) -> dict[str, Any] | None:
        """What the flight recorders of all loops remember, as one trace with a track for each loop (`Recorder.trace`);
        None without ``recorder=``. `since` is a time of `time.monotonic`. Arrows lead from loop to loop. Any thread;
        not a signal handler. 2 µs an event.
        """
        from .observe import together

        return together.trace(self.name, self.loops, since)

    def __repr__(self) -> str:
        return f"<nbloop.LoopGroup {self.name} of {len(self.loops)} loops>"
