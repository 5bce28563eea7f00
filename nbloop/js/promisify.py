"""`Loop.promisify`: a blocking function on a worker thread, and a promise of its outcome.

The worker passes its outcome to the loop, and the promise is settled on the loop's thread. When the loop ends
gracefully, and accepts no more work from other threads, it waits for the workers still running and settles their
promises itself, with their handlers run as microtasks of the end. When it is closed, promises that are still pending
are rejected at once, and nothing waits for user code that is still running.

A signal handler may call `promisify` in the middle of another call of it, and may raise there, which rules out
`concurrent.futures`: its executor takes locks that a handler's call cannot take again, and queues a function some steps
before it records that. Here the lock is re-entrant; a job is accepted by two instructions between which the interpreter
checks for no signals; workers are made before there is work for them; and on the loop's thread an outcome takes one C
call, of which only the first execution has an effect.
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
from contextvars import copy_context
from functools import partial
from operator import call
from typing import TYPE_CHECKING, Any

from ..errors import LoopTerminatedError
from ..kernels.methods import lifetime
from ..kernels.promises.classes import Resolver
from ..lifecycle import LoopState
from ..lock import CountingLock
from ..parts import Part
from ..threads import aside
from ..waiting import worker
from .abort import MOST_MS, limited
from .promise import Promise
from .view import JS
from .waits import unlinked

if TYPE_CHECKING:
    from ..lifecycle import Lifecycle
    from .abort import AbortSignal

# Seconds after which a worker that finds no job wakes, once. An object that it made and another thread released last is
# freed only when the worker runs again (PEP 703), for example an exception with all that its traceback holds.
SETTLED = 0.05
MOST = min(32, (os.process_cpu_count() or 1) + 4)  # threads, as many as `concurrent.futures` would make


class _Job:
    """A function to run, and the resolver of its promise."""

    __slots__ = ("arguments", "context", "function", "resolver", "signal", "unlink", "workers")

    def __init__(
        self,
        workers: Workers,
        resolver: Resolver,
        function: Callable[..., Any],
        arguments: tuple[object, ...],
        signal: AbortSignal | None,
    ) -> None:
        self.context = copy_context()  # the caller's, as of asyncio.to_thread
        self.workers = workers
        self.resolver = resolver
        self.function = function
        self.arguments = arguments
        self.signal = signal
        # An abort settles the promise. The function that runs goes on, one that has not begun never will.
        self.unlink = unlinked if signal is None else signal.on_abort(resolver.reject)

    def run(self) -> None:
        """Called on a worker's thread, where no signal handler runs."""
        if self not in self.workers.unsettled:  # the loop was closed and has rejected the promise
            return
        worker.of = self.workers.waiters
        try:
            if self.signal is not None:
                self.signal.throw_if_aborted()
            settle = partial(self.resolver.resolve, self.context.run(self.function, *self.arguments))
        except BaseException as error:
            settle = partial(self.resolver.reject, error)
        self.unlink()
        del self.function, self.arguments, self.context
        self.signal, self.unlink = None, unlinked
        self.workers.settle(self, settle)
        worker.of = None
        del self, settle  # the traceback of an exception keeps this frame, which would keep the promise


def _work(jobs: queue.SimpleQueue[_Job | None], name: str) -> None:
    """A worker's life. While it waits it refers to no loop, so it does not keep a forgotten loop from being closed."""
    threading.current_thread().name = name
    rested = True
    while True:
        try:
            job = jobs.get(timeout=None if rested else SETTLED)
        except queue.Empty:
            rested = True
            continue
        if job is None:
            break
        job.run()
        rested = False
        del job
    jobs.put(None)  # so that the next worker ends, too


class Workers(Part):
    """The worker threads of one loop, made at its first `promisify`."""

    def __init__(self, loop: Lifecycle) -> None:
        self._loop_name = loop.name
        self._loop = weakref.ref(loop)
        self.waiters = loop._waiters
        self._js = JS(loop)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.most = MOST  # threads
        self._threads = 0
        self.unsettled: dict[_Job, None] = {}
        self._outcomes: deque[Iterator[object]] = deque()  # outcomes that the ending loop refused
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()  # one item per such outcome, and per `_hurry`
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
        """Start a function. Any thread; without `signal` and `timeout` also in signal handlers."""
        if timeout is not None and timeout * 1e3 > MOST_MS:
            raise ValueError(f"timeout must be at most 4e9 seconds, not {timeout!r}")
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
                except RuntimeError as error:  # no thread can be started, or the interpreter is ending
                    refusal = error
                if self._threads:
                    self._accept(job)
                    return promise
        job.unlink()
        job.resolver.reject(refusal)
        return promise

    def _have_a_worker(self) -> None:
        """Start another thread, if all existing ones may be busy. This precedes the job: if a signal handler raised in
        between, a job without a thread would wait for ever.
        """
        if len(self.unsettled) >= self._threads < self.most:
            _thread.start_new_thread(_work, (self._jobs, f"{self._loop_name}-worker"))
            self._threads += 1

    def _accept(self, job: _Job) -> None:
        try:
            self._hold(1)
            self.unsettled[job] = None  # no signal is checked between this and the call on the next line
            self._jobs.put(job)
        except BaseException:
            if job not in self.unsettled:
                self._hold(-1)
            raise

    def settle(self, job: _Job, settle: Callable[[], object]) -> None:
        """Make the loop's thread complete a job, in one C call. On a worker's thread."""
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
            except LoopTerminatedError:  # `_finish` will take it
                self._outcomes.append(steps)
                self._news.put(None)

    def _hurry(self) -> None:
        self._news.put(None)

    def _finish(self) -> bool:
        """Settle one more job; False when none is left. Waits for a worker."""
        with self._lock:
            self._ended = self._ended or not self.unsettled
        if self._outcomes:
            deque(self._outcomes[0], 0)  # each step is taken only once, even if this is interrupted and repeated
            self._outcomes.popleft()
            return True
        if self.unsettled:
            # A function that waits for the loop would otherwise deadlock with the end.
            self.waiters.abandon(f"{self._loop_name} is about to terminate", workers=True)
            self._news.get()  # the next call checks what has arrived, and the caller checks for `close`
            return True
        return False

    def _drop(self) -> None:
        """Reject the jobs that are left, because the loop was closed. A new thread does it: the loop's own thread may
        still queue microtasks, which would then be dropped, whereas from another thread promises that follow are
        rejected, too. If a signal handler raises, the next call does the rest.
        """
        with self._lock:
            self._ended = True
        if self.unsettled:
            aside(self._reject_rest)
        self._jobs.put(None)

    def _reject_rest(self) -> None:
        with contextlib.suppress(KeyError):  # none is left
            while True:
                job, _ = self.unsettled.popitem()
                self._hold(-1)
                job.unlink()
                job.resolver.reject(LoopTerminatedError("the loop was closed"))
