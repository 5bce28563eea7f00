"""`nbloop.serve`: one coroutine function on every core, N loops in N threads of one process.

Problem: N asyncio loops in one process need threads, a common start and end, signals, addresses on which all listen,
resources that belong to one loop, budgets to divide, and calls from one loop to another. People who wired that up by
hand removed it again, because the plumbing cost more than the cores gained. Idea: the plumbing is one structured call.
Like a task group, `serve` does not return while anything that it started lives; `main` reaches the rest of the group
through its argument, a `Worker`.

**Where threads wait.** The main thread runs no worker: it waits for their threads, and receives signals. So a loop that
hangs does not delay Ctrl-C, and all workers are alike. It waits in its own core loop, because a signal that arrives
just before a wait for a lock does not end that wait; a loop on the main thread handles that case (design.md, Signals).

**All loops run until every `main` has ended.** A worker that is done first goes on answering calls, because the others
may still need it to the last. Then each worker closes its resources, cancels its remaining tasks, and ends.

**Starting and cancelling** meet in two words: a worker stores its task and then reads `_cancelling`; a canceller sets
`_cancelling` and then reads the task. One of the two sees the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import operator
import signal
import socket
import threading
import time
from asyncio import runners as _runners
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from .. import hooks
from ..awaiting import set_done
from ..errors import LoopTerminatedError
from ..gil import check_parallel
from ..lock import Latch
from ..loop import Loop
from ..options import check_int, check_loops, check_name
from ..threads import begin, join
from ..unique import Unique
from .calls import Call
from .listening import Listeners, Placement
from .loop import EventLoop

if TYPE_CHECKING:
    from ..observe import Metrics

HURRY = 1.0  # seconds that Ctrl-C after a signal gives the callbacks in progress

_numbers = itertools.count(1)
# The handlers that `serve` replaces.
_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_cancel_all_tasks: Callable[[asyncio.AbstractEventLoop], None] = _runners._cancel_all_tasks  # type: ignore[attr-defined]

type Main[T] = Callable[[Worker], Coroutine[Any, Any, T]]


def serve[T](
    main: Main[T],
    *,
    loops: int | None = None,
    name: str | None = None,
    debug: bool | None = None,
    require_free_threading: bool = False,
    metrics: bool | Literal["shared"] | None = None,
    recorder: int | None = None,
) -> list[T]:
    """Run the coroutine ``main(worker)`` once on each of several asyncio loops, each in its own thread; return their
    results, in the order of the workers.

    `loops` is their number, by default one for each core that this process may use. `name` is the group's; loops and
    threads have it with a number. `debug` is asyncio's debug mode; `metrics` and `recorder` are those of `nbloop.Loop`.
    Several loops under the GIL cause a RuntimeWarning, once in a process, or with `require_free_threading` a
    RuntimeError.

    Structured: when it returns or raises, all loops are closed and all threads have ended. Every loop runs, and answers
    calls, until every `main` has ended. The first `main` that raises cancels all others, and their exceptions become an
    ExceptionGroup; KeyboardInterrupt and SystemExit of a worker are raised as they are.

    Ctrl-C and SIGTERM cancel all workers, and then `serve` raises KeyboardInterrupt, or SystemExit with the status that
    shells report (143), unless every `main` returned nevertheless, or one raised. Ctrl-C after either does not wait:
    loops stop after the callback in progress, tasks stay where they are, and a callback that does not return within a
    second stays behind, on a daemon thread, and is logged. A second SIGTERM does nothing. If the program has its own
    handler for a signal, that handler gets it.

    A forked child ends nothing of the parent's group: where it goes on in a worker's thread, or in a signal handler
    during `serve`, it ends with a ForkedLoopError. The child may call `serve` itself.

    Only on the main thread, and not in a running event loop: RuntimeError. Apart from `main`, O(loops): each takes a
    thread and a loop.

    >>> async def main(worker):
    ...     return await worker.call((worker.index + 1) % worker.count, asyncio.sleep, 0, worker.index)
    >>> serve(main, loops=2)
    [0, 1]
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("nbloop.serve() has to be called on the main thread, which gets the signals")
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("nbloop.serve() cannot be called from a running event loop")
    if not callable(main):
        raise TypeError(f"main must be a coroutine function, not {main!r}")
    loops = check_loops(loops)
    check_name(name)
    name = name if name is not None else f"nbloop-serve-{next(_numbers)}"
    check_parallel(name, loops, require_free_threading)
    group = WorkerGroup(name)
    made: list[EventLoop] = []
    makers = [partial(EventLoop, name=f"{name}-{n}", metrics=metrics, recorder=recorder) for n in range(loops)]
    try:
        made.extend(map(operator.call, makers))  # one C call: an exception that arrives at its end still finds them
        for loop in made:
            group._add(loop, debug)
        if metrics:
            from ..observe import together

            together.mark(name, [loop.core for loop in group.loops])
        return group._run(main)
    except BaseException:  # also one that a signal's handler raised before, or in the middle of, what `_run` does last
        if not group._waiting._forked:
            for loop in made[len(group.workers) :]:
                loop.close()
            group._close()
            group._release()
        raise


class WorkerGroup(Unique):
    """All workers of one `serve`. Any thread.

    Made by `serve`; a program gets it as `Worker.group`. `since` is a time of `time.monotonic`. Its methods raise
    nothing of their own, and take O(loops).

    >>> import nbloop
    >>> async def main(worker):
    ...     return worker.group.loops[worker.index] is asyncio.get_running_loop()
    >>> nbloop.serve(main, loops=2)
    [True, True]
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: tuple[Worker, ...] = ()
        self._cancelling = False
        self._hurry = False
        self._ended: set[int] = set()  # of the workers whose main has ended
        self._signal = 0
        self._waiting = Loop(name=f"{name}-main")
        self._listeners = Listeners(name)

    @property
    def loops(self) -> tuple[EventLoop, ...]:
        """The workers' loops, in their order."""
        return tuple(worker.loop for worker in self.workers)

    def metrics(self) -> Metrics | None:
        """The figures of all loops as one (`nbloop.observe.Metrics.merged`); None without ``metrics=``."""
        from ..observe import together

        return together.metrics(worker.loop.core for worker in self.workers)

    def trace(self, since: float = 0.0) -> dict[str, Any] | None:
        """What the flight recorders of all loops remember, as one trace with a track for each loop (`Recorder.trace`);
        None without ``recorder=``.
        """
        from ..observe import together

        return together.trace(self.name, [worker.loop.core for worker in self.workers], since)

    def _add(self, loop: EventLoop, debug: bool | None = None) -> None:
        self.workers = (*self.workers, Worker(self, len(self.workers), loop))
        if debug is not None:
            loop.set_debug(debug)

    def _close(self) -> None:
        """Close the loops that no thread has taken over."""
        for worker in self.workers:
            if worker._take():
                worker.loop.close()
                worker._end()

    def _main_ended(self, of: Worker) -> None:
        """Note that the `main` of a worker has ended. After the last one, all workers go on to their end."""
        if of.index in self._ended:
            return
        self._ended.add(of.index)
        if len(self._ended) >= len(self.workers):
            for worker in self.workers:
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    worker.loop.call_soon_threadsafe(set_done, worker._all_ended)

    def _run(self, main: Main[Any]) -> list[Any]:
        try:  # not a context manager: an exception between two steps of its Python would leave the handlers there
            self._take_signals()
            failure = self._run_workers(main)
        finally:
            try:
                self._give_signals_back()
            except BaseException:  # a signal's handler raised
                self._give_signals_back()
                raise
        for worker in self.workers:
            worker._join()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure
        return self._outcome()

    def _run_workers(self, main: Main[Any]) -> BaseException | None:
        """Run the workers until all are done; return the exception because of which some did not start."""
        failure: BaseException | None = None
        try:
            try:
                for worker in self.workers:
                    worker._start(main)
            except BaseException as error:  # no thread could be started, or Ctrl-C after a signal
                failure = error
                self._cancel()
                self._close()
                if self._hurry:
                    raise
            while not all(worker._done.is_set() for worker in self.workers):
                self._waiting.run()  # until a worker is done
        except BaseException:
            if not self._waiting._forked:
                if not self._hurry:
                    self._cancel()
                self._stop()
            raise
        finally:  # in a child that a signal's handler forked, all is the parent's
            if not self._waiting._forked:
                self._release()
        return failure

    def _release(self) -> None:
        """Release the group's own resources. Idempotent."""
        try:
            self._listeners.close()
        finally:
            self._waiting.close()

    def _outcome(self) -> list[Any]:
        errors = [worker._error for worker in self.workers if worker._error is not None]
        for error in errors:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise error
        if errors:
            failed = BaseExceptionGroup(f"{len(errors)} of {len(self.workers)} workers of {self.name} failed", errors)
            try:
                raise failed
            finally:
                del failed, errors, error
        if self._signal and any(worker._cancelled for worker in self.workers):
            self._raise_signal()
        return [worker._result for worker in self.workers]

    def _raise_signal(self) -> None:
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._signal)

    # --- cancelling

    def _take_signals(self) -> None:
        for sig, default in _DEFAULTS.items():
            if signal.getsignal(sig) is default:
                signal.signal(sig, self._arrived)

    def _give_signals_back(self) -> None:
        for sig, default in _DEFAULTS.items():
            if signal.getsignal(sig) == self._arrived:
                signal.signal(sig, default)

    def _arrived(self, sig: int, _frame: object) -> None:
        if self._waiting._forked:  # a child has the handlers of before
            signal.signal(sig, _DEFAULTS[sig])
            signal.raise_signal(sig)
        elif not self._signal:
            self._signal = sig
            self._cancel()
        elif sig == signal.SIGINT:
            self._hurry = True
            self._raise_signal()
        # Supervisors repeat SIGTERM; `timeout` sends it at once to the child and to its group. They also have SIGKILL.

    def _cancel(self) -> None:
        """Cancel every worker. Any thread, and a signal handler; only the first call does anything."""
        if self._cancelling:
            return
        self._cancelling = True
        for worker in self.workers:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                worker.loop.call_soon_threadsafe(worker._cancel)

    def _stop(self) -> None:
        """The end without waiting: Ctrl-C after a signal."""
        self._hurry = True
        until = time.monotonic() + HURRY
        for worker in self.workers:
            worker.loop.stop()
        for worker in self.workers:
            if worker._done.wait(max(0.0, until - time.monotonic())):
                worker._join()
            else:
                message = "%s is left behind, in a callback that has not returned within %g s of Ctrl-C"
                name = worker.loop.core.name
                hooks.log(None, message, name, HURRY, loop=name, level=logging.CRITICAL)


class Worker(Unique):
    """The argument of `main` in `nbloop.serve`: its place among the workers, and its access to the others.

    `index` from 0 on, `count`, the worker's `loop`, and the `group` of all. Methods are for the worker's own loop
    (RuntimeError elsewhere), except `share` and the properties.
    """

    def __init__(self, group: WorkerGroup, index: int, loop: EventLoop) -> None:
        self.group = group
        self.index = index
        self.loop = loop
        self._thread: threading.Thread | None = None
        self._untaken = [True]
        self._done = Latch()
        self._task: asyncio.Task[Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._all_ended: asyncio.Future[None] = loop.create_future()
        self._leaving = False  # all have ended, and its loop is about to
        self._calls: dict[Call, None] = {}  # of others, to this one
        self._locals: dict[Callable[[], Any], _Local] = {}

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self.group.workers)

    @property
    def primary(self) -> bool:
        """Whether this worker does the work that must happen once per process."""
        return self.index == 0

    def share(self, total: int) -> int:
        """This worker's part of a budget, such as the connections of a pool: the parts of all add up to `total`.

        ValueError if `total` is less than the number of workers. Any thread.

        >>> [whole // 4 + (index < whole % 4) for whole in [10] for index in range(4)]
        [3, 3, 2, 2]
        """
        check_int("total", total, self.count, 1 << 62)
        return total // self.count + (self.index < total % self.count)

    # --- its life

    def _start(self, main: Main[Any]) -> None:
        self._thread = threading.Thread(target=self._body, args=(main,), name=self.loop.core.name, daemon=True)
        begin(self._thread)

    def _take(self) -> bool:
        """Claim the loop, to run it or to close it. True once; an interrupted start may have made the thread."""
        try:
            self._untaken.pop()
        except IndexError:
            return False
        return True

    def _join(self) -> None:
        """After `_done`: the thread has nothing left to do."""
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):  # it was not started
                join(self._thread)

    def _body(self, main: Main[Any]) -> None:
        if not self._take():
            return
        try:
            try:
                self.loop.run_until_complete(self._main(main))
            except (
                BaseException
            ) as error:  # of a callback or a task: KeyboardInterrupt, SystemExit; or the loop was stopped
                if not self.group._hurry:
                    self._fail(error)
            finally:
                self._leaving = True
                self._finish()
        except BaseException as error:
            if not self.group._hurry:
                self._fail(error)
        finally:
            self.loop.core._check_fork()  # in a child that was forked on this thread, the rest is the parent's
            self._task = None
            self._end()

    def _end(self) -> None:
        """Its loop is closed, and takes no calls from now on."""
        self.group._main_ended(self)  # its loop may have been left before the task of `_main` began
        for call in list(self._calls):
            call.abandon()
        self._done.set()
        self.group._waiting.stop()

    def _finish(self) -> None:
        """Do what `asyncio.Runner` does at its end, but skip each part once the group hurries."""
        try:
            if not self.group._hurry:
                _cancel_all_tasks(self.loop)
            if not self.group._hurry:
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            if not self.group._hurry:
                self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            if self.group._hurry:
                for task in asyncio.all_tasks(self.loop):
                    _abandon(task)
            self.loop.close()

    def _fail(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):
            error.add_note(f"in {self.loop.core.name}, worker {self.index} of {self.count}")
        if self._error is None:
            self._error = error
        self.group._cancel()

    async def _main(self, main: Main[Any]) -> None:
        self._task = asyncio.current_task()
        try:
            if self.group._cancelling:
                raise asyncio.CancelledError
            self._result = await main(self)
        except asyncio.CancelledError as error:
            self._cancelled = True
            if not self.group._cancelling:
                self._fail(error)
        except BaseException as error:
            self._fail(error)
        self._task = None  # nothing cancels what follows
        self.group._main_ended(self)
        await self._all_ended
        await self._close_locals()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _check_here(self, method: str) -> None:
        running = asyncio._get_running_loop()
        if running is not self.loop:
            raise RuntimeError(f"{self!r}.{method}() belongs to the loop {self.loop!r}, and this is {running!r}")

    # --- addresses

    def listen(
        self, host: str, port: int, *, family: int = socket.AF_UNSPEC, placement: Placement | None = None
    ) -> socket.socket:
        """A socket for ``asyncio.create_server(sock=)``, bound to an address at which all workers listen.

        All workers call it with the same arguments, and get one address; with port 0 all get the same port. `family` is
        that of `socket.getaddrinfo`, any by default. `placement` decides which worker gets a connection: "system",
        where the system spreads them by their addresses (Linux: SO_REUSEPORT, the default there), or "least busy",
        where one thread accepts, and hands each to the loop that sleeps more and has fewer connections (the default
        elsewhere). A worker that stops listening while others go on loses the connections that the system has given it
        and it has not accepted yet.

        As in asyncio an empty `host` is every interface. OSError if the address is taken, also by another process of
        the same program; OverflowError for a port beyond 65535. Blocks for the look-up of a host name.
        """
        self._check_here("listen")
        return self.group._listeners.listen(self, host, port, family, placement)

    def listen_unix(self, path: str) -> socket.socket:
        """`listen` at a path, where connections are always handed to the least busy loop. The path is removed when all
        workers have ended; an abstract address of Linux, which begins with a zero byte, ends by itself.
        """
        self._check_here("listen_unix")
        return self.group._listeners.listen_unix(self, path)

    # --- resources

    async def local[R](self, factory: Callable[[], Any]) -> R:
        """The resource of ``factory()`` on this loop: made once per worker and factory, closed when `main` has ended.

        The factory returns a context manager, asynchronous or not (an asyncpg pool, a redis-py client); the result is
        the value that it returns on entry. One separate task enters and leaves it, so cancelling a caller meanwhile
        does no harm, and concurrent callers wait for one entry. If the entry fails, all of them get the exception, and
        the next call tries again. Resources are left in the reverse order of their making; an exception then is the
        worker's failure.

        TypeError if it is not a context manager.
        """
        self._check_here("local")
        if self._leaving:
            raise LoopTerminatedError(f"{self!r} ends, and makes no new resources")
        kept = self._locals.get(factory)
        if kept is None:
            kept = self._locals[factory] = _Local(self, factory)
        result: R = await asyncio.shield(kept.ready)
        return result

    async def _close_locals(self) -> None:
        self._leaving = True
        errors = []
        while self._locals:
            _, kept = self._locals.popitem()
            try:
                await kept.close()
            except Exception as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup(f"resources of {self!r} failed to close", errors)

    # --- calls

    async def call[R](self, to: int | Worker, function: Callable[..., Coroutine[Any, Any, R]], /, *args: object) -> R:
        """Run the coroutine ``function(*args)`` on another worker's loop, and wait for it here; its result.

        It works like awaiting a task: its exception is raised here, cancelling the caller cancels it and waits for its
        end, and it runs in a copy of the caller's context. Calls of one worker to another begin in their order.
        `LoopTerminatedError` if the other worker ends before it is done. O(1); it wakes the other loop only if that
        loop sleeps.

        IndexError, TypeError, ValueError if `to` is not a worker of this group.
        """
        self._check_here("call")
        other = self._find(to)
        call = Call(other, self.loop, function, args)
        other._calls[call] = None
        try:
            other.loop.core.submit(call.begin)
        except LoopTerminatedError:
            other._calls.pop(call, None)
            raise LoopTerminatedError(f"{other!r} has ended") from None
        result: R = await call.outcome
        return result

    async def broadcast[R](self, function: Callable[..., Coroutine[Any, Any, R]], /, *args: object) -> list[R]:
        """`call` ``function(*args)`` on every worker, this one included, at the same time; all results, in the order of
        the workers.

        Like a task group: the first that fails cancels the others, and their exceptions become an ExceptionGroup.
        """
        self._check_here("broadcast")
        async with asyncio.TaskGroup() as calls:
            tasks = [calls.create_task(self.call(worker, function, *args)) for worker in self.group.workers]
        return [task.result() for task in tasks]

    def _find(self, to: object) -> Worker:
        if isinstance(to, Worker):
            if to.group is not self.group:
                raise ValueError(f"{to!r} is of another group than {self!r}")
            return to
        if not isinstance(to, int) or isinstance(to, bool):
            raise TypeError(f"to must be a worker or its index, not {to!r}")
        if not 0 <= to < self.count:
            raise IndexError(f"to must be from 0 to {self.count - 1}, not {to}")
        return self.group.workers[to]

    def __repr__(self) -> str:
        return f"<nbloop.Worker {self.index} of {self.count} of {self.group.name}>"


class _Local:
    """A resource of one loop, in the task that enters and leaves it."""

    def __init__(self, worker: Worker, factory: Callable[[], Any]) -> None:
        self._worker = worker
        self._factory = factory
        self.ready: asyncio.Future[Any] = worker.loop.create_future()
        self._end: asyncio.Future[None] = worker.loop.create_future()
        self._task = worker.loop.create_task(self._keep(), name=f"local {factory!r}")

    async def _keep(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                resource = self._factory()
                if hasattr(type(resource), "__aenter__"):
                    value = await stack.enter_async_context(resource)
                elif hasattr(type(resource), "__enter__"):
                    value = stack.enter_context(resource)
                else:
                    raise TypeError(f"{self._factory!r} must return a context manager, not {resource!r}")
                self.ready.set_result(value)
                await self._end
        except BaseException as error:
            if self.ready.done():
                raise
            if self._worker._locals.get(self._factory) is self:
                del self._worker._locals[self._factory]
            if isinstance(error, asyncio.CancelledError):
                self.ready.cancel()
                raise
            self.ready.set_exception(error)
            if not isinstance(error, Exception):
                raise

    async def close(self) -> None:
        entered = self.ready.done()
        if not self._end.done():
            self._end.set_result(None)
        if not entered:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self.ready.done() or self.ready.cancelled() or self.ready.exception() is not None:
                return  # it was not entered; a resource may also ignore the cancellation, and is left then
        await self._task


def _abandon(task: asyncio.Task[Any]) -> None:
    """Abandon a task: its coroutine gets GeneratorExit, and nothing waits for its reaction."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine = task.get_coro()
    if coroutine is not None:
        with contextlib.suppress(Exception):
            coroutine.close()
