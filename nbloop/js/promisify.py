"""`Loop.promisify`: a blocking function on a worker thread, a promise for its outcome.

The worker hands its outcome to the loop, and the promise is settled on the loop's thread. When the loop ends
gracefully, and takes no more work from other threads, it waits for the workers still running and settles their
promises itself, with their handlers run as microtasks of the end. When it is closed, promises that are still pending
are rejected at once, and nobody waits for what runs inside user code.

A signal handler may call `promisify` in the middle of another call of it, and may raise there, so
`concurrent.futures` does not serve: its executor takes locks that a handler's call cannot take again, and queues a
function some steps before it says so. Here the lock is re-entrant, a job is accepted by two instructions between
which the interpreter looks for no signal, workers are made before there is work for them, and what happens on the
loop's thread for an outcome is one call of C, and only the first thread to make it has any effect.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from operator import call
from typing import TYPE_CHECKING, Any

from ..errors import LoopTerminatedError
from ..kernels.methods import lifetime
from ..kernels.promises.classes import Resolver
from ..lifecycle import LOOK, LoopState
from ..lock import CountingLock, Latch
from .abort import limited
from .promise import Promise
from .view import JS
from .waits import unlinked

if TYPE_CHECKING:
    from ..loop import Loop
    from .abort import AbortSignal

MOST = min(
    32, (os.process_cpu_count() or 1) + 4
)  # threads, unless the loop says so: as `concurrent.futures` would make

_at_work = threading.local()  # `of`: the `Workers` whose function the thread is in


class _Job:
    """A function to be run, and what settles its promise."""

    __slots__ = ("arguments", "function", "resolver", "signal", "unlink", "workers")

    def __init__(
        self,
        workers: Workers,
        resolver: Resolver,
        function: Callable[..., Any],
        arguments: tuple[object, ...],
        signal: AbortSignal | None,
    ) -> None:
        self.workers = workers
        self.resolver = resolver
        self.function = function
        self.arguments = arguments
        self.signal = signal
        # An abort settles the promise. The function that runs goes on, one that has not begun never will.
        self.unlink = unlinked if signal is None else signal.on_abort(resolver.reject)

    def run(self) -> None:
        """On a worker's thread, where no signal handler runs."""
        if self not in self.workers.unsettled:  # the loop was closed, and has rejected it
            return
        _at_work.of = self.workers
        try:
            if self.signal is not None:
                self.signal.throw_if_aborted()
            settle = partial(self.resolver.resolve, self.function(*self.arguments))
        except BaseException as error:
            settle = partial(self.resolver.reject, error)
        self.unlink()
        del self.function, self.arguments
        self.signal, self.unlink = None, unlinked
        self.workers.settle(self, settle)
        _at_work.of = None
        del self, settle  # the traceback of an exception keeps this frame, which would keep the promise


def _work(jobs: queue.SimpleQueue[_Job | None], name: str) -> None:
    """A worker's life. It knows of no loop while it waits: a loop that nobody refers to is closed, workers or not."""
    threading.current_thread().name = name
    while (job := jobs.get()) is not None:
        job.run()
        del job
    jobs.put(None)  # the next one ends, too


class Workers:
    """The worker threads of one loop, made with its first `promisify`."""

    def __init__(self, loop: Loop) -> None:
        self._name = f"{loop.name}-worker"
        self._loop = weakref.ref(loop)
        self._js = JS(loop)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._most = MOST if loop._most_workers is None else loop._most_workers
        self._threads = 0
        self.unsettled: dict[_Job, None] = {}
        self._outcomes: deque[Iterator[object]] = deque()  # which the loop would not take: of the end's
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each outcome, and for `hurry`
        self._lock = CountingLock()
        self._ended = False
        self._hold = lifetime.hold.bind(loop._state)  # a worker at work keeps an auto-exit loop alive

    def run(
        self,
        function: Callable[..., Any],
        args: tuple[object, ...],
        signal: AbortSignal | None,
        timeout: float | None,
    ) -> Promise[Any]:
        """Start one. Any thread; without a signal and a time-out signal handlers included."""
        if signal is not None or timeout is not None:
            signal = limited(self._js, signal, None if timeout is None else timeout * 1e3)
        promise: Promise[Any] = Promise(self._js)
        job = _Job(self, Resolver(promise), function, args, signal)
        refusal: Exception = LoopTerminatedError("the loop has terminated or is about to")
        with self._lock:
            loop = self._loop()
            ending = loop is None or loop.state in (LoopState.TERMINATING, LoopState.TERMINATED)
            if not self._ended and not ending:
                try:
                    self._have_a_worker()
                except RuntimeError as error:  # no thread to be had, or the interpreter ends
                    refusal = error
                if self._threads:
                    self._accept(job)
                    return promise
        job.unlink()
        job.resolver.reject(refusal)
        return promise

    def _have_a_worker(self) -> None:
        """One more thread, if all there are may be at work. Before there is a job for it: one that an exception of a
        signal handler has left without a thread would wait for ever.
        """
        if len(self.unsettled) >= self._threads < self._most:
            _thread.start_new_thread(_work, (self._jobs, self._name))
            self._threads += 1

    def _accept(self, job: _Job) -> None:
        try:
            self._hold(1)
            self.unsettled[job] = None  # with the next line's call it is one step
            self._jobs.put(job)
        except BaseException:
            if job not in self.unsettled:
                self._hold(-1)
            raise

    def at_work(self) -> bool:
        """Is the calling thread one of these, with a function that has not returned?"""
        return getattr(_at_work, "of", None) is self

    def settle(self, job: _Job, settle: Callable[[], object]) -> None:
        """Have the loop's thread do what remains of a job, in one call of C. On a worker's thread."""
        todo: tuple[Callable[[], object], ...] = (
            partial(self.unsettled.pop, job, None),
            partial(self._hold, -1),
            settle,
        )
        steps: Iterator[object] = map(call, todo)
        loop = self._loop()
        if loop is not None:
            try:
                loop.submit_internal(deque, steps, 0)
            except LoopTerminatedError:  # then `finish` takes it
                self._outcomes.append(steps)
                self._news.put(None)

    def hurry(self) -> None:
        """The loop is being closed: an end that waits for a worker waits no longer. Any thread."""
        self._news.put(None)

    def finish(self, closing: bool) -> bool:
        """At the loop's end, on its thread: settle one more; False when none is left. Waits for a worker, unless
        closing.
        """
        with self._lock:
            self._ended = self._ended or closing or not self.unsettled
        if closing:
            self._reject_all()
        elif self._outcomes:
            deque(self._outcomes[0], 0)  # its steps are made once: should this be interrupted, the next one finds none
            self._outcomes.popleft()
            return True
        elif self.unsettled:
            loop = self._loop()
            if loop is not None:  # a function that waits for the loop would wait for an end that waits for it
                loop._waiters.abandon(f"{loop.name} is about to terminate", workers=True)
            del loop
            self._news.get()  # the next call looks at what has come, and the caller at `close`
            return True
        self._jobs.put(None)
        return False

    def _reject_all(self) -> None:
        """On the loop's own thread microtasks are still taken, and then dropped: elsewhere what follows is rejected,
        too. If an exception of a signal handler comes, what is left is left to the next call.
        """
        if self.unsettled:
            done = Latch()
            _thread.start_new_thread(self._reject_rest, (done,))
            while not done.wait(LOOK):
                pass

    def _reject_rest(self, done: Latch) -> None:
        try:
            with contextlib.suppress(KeyError):  # none is left
                while True:
                    job, _ = self.unsettled.popitem()
                    self._hold(-1)
                    job.unlink()
                    job.resolver.reject(LoopTerminatedError("the loop was closed"))
        finally:
            done.set()
