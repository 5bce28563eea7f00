"""The loop: public names over the kernels, and who may run, stop and end it.

Problem: the hot path is compiled and knows nothing of Python's manners; users want clear errors, graceful ends,
signals that work. Idea: everything a callback's life needs (submit, run, cancel) is a built-in method made by the
kernels and reached without a Python frame; what happens once in a loop's life (run, stop, shutdown, close) is the
plain Python of this file, and meets the kernels in two words. The *owner* word says which thread is inside `run`; the
*lifecycle* word only ever moves forward (but for `stop`, which takes RUNNING back to AWAKE)::

    AWAKE <--stop-- RUNNING       shutdown, close, auto-exit: --> TERMINATING --> TERMINATED
          --run-->

Whoever moves it to TERMINATING closes the queues in the same call; whoever owns the loop then finishes it: the thread
in `run()`, or, if there is none, a thread made for it. `interrupt` is the third word: looked at after each callback,
it makes the kernel leave for `close()` and in a forked child.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from . import debug as _debug
from . import hooks
from . import signals as _signals
from .errors import (
    FastPathIncompatibleError,
    ForkedLoopError,
    LoopAlreadyRunningError,
    LoopOverloadedError,
    LoopTerminatedError,
    NbloopError,
    PollerFailedError,
    ReentrantCloseError,
    ReentrantRunError,
)
from .kernels import layout, life, turn
from .kernels.kernel import bound
from .kernels.state import make_handle_state, make_loop_state
from .lock import CountingLock
from .options import (
    FastPathMode,
    check_callable,
    check_int,
    check_metrics,
    check_mode,
    check_pressure,
    check_recorder,
    check_timeout,
    usable_cores,
)
from .parkers import LockParker, Parker, futex_available
from .readiness import IOEvents, ReadyCallback, Watches, check_descriptor, check_events
from .scheduling import Callback, Producer, Scheduling

if TYPE_CHECKING:
    from .js import Promise
    from .js.promisify import Workers
    from .observe import Metrics
    from .observe.recorder import Recorder
    from .observe.shared import SharedBlock
    from .observe.watchdog import Blockage, Watchdog


type ErrorHandler = Callable[[BaseException, dict[str, Any]], object]

SPIN_MOST = 50_000  # ns; longer than the 3-19 µs a sleep costs, short enough that an idle loop's one spin is not felt

_numbers = itertools.count(1)  # of loops without a name


class LoopState(enum.Enum):
    """Where a loop is in its life. `AWAKE`: not running (yet, or any more after `stop()`), and taking work."""

    AWAKE = "awake"
    RUNNING = "running"
    SLEEPING = "sleeping"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class Loop(Scheduling):
    """An event loop that any number of threads submit to and one thread runs.

    Every method may be called from any thread unless it says otherwise; those that schedule are also safe in signal
    handlers and in callbacks of the loop. Times are seconds on the clock of `time.monotonic`.

    Options, all checked here: `fast_path_mode` (`FastPathMode`); `on_overload(error)`, called on the loop once in
    each turn in which more than `ingress_budget` external tasks waited; `on_error(exception, context)`, called for a
    callback that raised (default: the ``nbloop`` logger); `chunk_size`, a power of two from 16 to 4,096, tasks in a
    chunk of the submit queue, and `initial_chunks`, made at construction; `ingress_limit`, the most tasks that may
    wait in the submit queue, and in each producer handle's (default: 33,488,896 at the default chunk size);
    `auto_exit`, to end when nothing referenced is left; `clamp_nested_timers`, HTML's 4 ms for deeply nested timers;
    `debug`, to remember where each callback was scheduled and tell `on_error`; `name`, for threads and messages;
    `metrics`, True to measure (`Loop.metrics`), "shared" to let other processes of the same user read it
    (`nbloop.observe.shared`), by default what the environment variable NBLOOP_METRICS says (``1`` or ``shared``), or
    else False; `on_pressure("high")`, called on the loop once when `pressure_high` tasks wait in the submit queue and
    ready producer handles together (default: 8 * `ingress_budget`, at most `ingress_limit`), and `on_pressure("low")`
    once when no more than `pressure_low` do (default: half of that), so that producers can slow down; `recorder`, a
    power of two from 64 to 16,777,216, how many of the last events are remembered (`Loop.recorder`), by default none.

    >>> loop = Loop(auto_exit=True)
    >>> loop.submit(print, "hello from the loop")
    >>> loop.run()
    hello from the loop
    """

    def __init__(
        self,
        *,
        fast_path_mode: FastPathMode = FastPathMode.AUTO,
        on_overload: Callable[[LoopOverloadedError], object] | None = None,
        on_error: ErrorHandler | None = None,
        ingress_budget: int = 1024,
        chunk_size: int = 128,
        initial_chunks: int = 1,
        ingress_limit: int | None = None,
        auto_exit: bool = False,
        clamp_nested_timers: bool = False,
        debug: bool = False,
        name: str | None = None,
        metrics: bool | Literal["shared"] | None = None,
        on_pressure: Callable[[Literal["high", "low"]], object] | None = None,
        pressure_high: int | None = None,
        pressure_low: int | None = None,
        recorder: int | None = None,
    ) -> None:
        check_mode("fast_path_mode", fast_path_mode)
        check_callable("on_overload", on_overload)
        check_callable("on_error", on_error)
        check_int("ingress_budget", ingress_budget, 1, 1 << 40)
        check_int("chunk_size", chunk_size, 16, 4096)
        if chunk_size & (chunk_size - 1):
            raise ValueError(f"chunk_size must be a power of two from 16 to 4096, not {chunk_size}")
        check_int("initial_chunks", initial_chunks, 1, layout.CHUNK_LIMIT // 2)
        if ingress_limit is not None:
            check_int("ingress_limit", ingress_limit, 1, (layout.CHUNK_LIMIT - 512) * chunk_size)
        marks = check_pressure(on_pressure, pressure_high, pressure_low, ingress_budget, ingress_limit)
        check_recorder(recorder)
        for option, value in (("auto_exit", auto_exit), ("clamp_nested_timers", clamp_nested_timers), ("debug", debug)):
            if not isinstance(value, bool):
                raise TypeError(f"{option} must be True or False, not {value!r}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")

        self.name = name if name is not None else f"nbloop-{next(_numbers)}"
        self.debug = debug
        self._made = time.monotonic_ns()
        self._on_overload = on_overload
        self._on_error = on_error
        self._on_pressure = on_pressure
        self._mode = fast_path_mode
        self._parker: Parker | None = None
        self._lock_parker = LockParker()
        # re-entrant for signal handlers; construction of handles and finishers; nothing that a callback's life needs
        self._lock = CountingLock()
        self._ended = threading.Event()
        self._closing = False
        self._finisher: threading.Thread | None = None
        self._workers: Workers | None = None
        self._forked = False
        self._runner = 0  # identifier of the thread that runs or finishes the loop, or did last

        self._shared: SharedBlock | None = None
        self._block = None if (measuring := check_metrics(metrics)) is False else self._make_block(measuring)

        self._recorder: Recorder | None = None
        if recorder is not None:
            from .observe.recorder import Recorder

            self._recorder = Recorder(recorder, self.name)

        me = weakref.ref(self)  # the hooks live in the state, which the loop keeps: they must not keep the loop
        self._state = make_loop_state(
            chunk_size=chunk_size,
            initial_chunks=initial_chunks,
            ingress_limit=ingress_limit,
            metrics=self._block,
            recorder=None if self._recorder is None else self._recorder._words,
            hooks={
                "report": functools.partial(hooks.report, me),
                "refuse": functools.partial(hooks.refuse, me),
                "overload": functools.partial(hooks.overload, me),
                "warn": hooks.warn,
                "breathe": hooks.breathe,
                "waker": functools.partial(hooks.wake_parker, me),
                "renew": functools.partial(hooks.renew, me),
                "pressure": functools.partial(hooks.pressure, me),
            },
        )
        record = self._record = self._state.record
        record["budget"] = ingress_budget
        record["pressure_high"], record["pressure_low"] = marks
        record["auto_exit"] = auto_exit
        record["clamp"] = clamp_nested_timers
        record["spin_max"] = SPIN_MOST if usable_cores() > 1 else 0
        self._acquire = life.acquire.bind(self._state)
        self._release = life.release.bind(self._state)
        self._transition = life.transition.bind(self._state)
        self._watches = Watches(self._state)
        if fast_path_mode is FastPathMode.DISABLED:
            self._watches.open_poller()
        self._install_parker()
        if debug:
            _debug.remember_sites(self)
        _live.add(self)

    @bound(life.alive)
    def alive(self) -> bool:
        """Is there anything to run, but for unreferenced timers? Any thread; a moment old when others submit
        meanwhile. O(1).
        """
        return False  # pragma: no cover

    @bound(life.wake)
    def wake(self) -> bool:
        """Wake the loop if it sleeps; whether this call did. Nothing needs it: every submit does. Any thread. One
        load if awake.
        """
        return False  # pragma: no cover

    @bound(life.stop)
    def stop(self) -> None:
        """Ask `run()` to return after the turn in progress (without one: after the first turn of the next `run`,
        which will not wait).

        What is queued stays queued, and the loop can be run again. Any thread, signal handlers included. O(1).
        """

    @bound(life.now)
    def now(self) -> float:
        """Seconds on the loop's clock, which is `time.monotonic`'s. Any thread."""
        return 0.0  # pragma: no cover

    @bound(life.is_loop_thread)
    def is_loop_thread(self) -> bool:
        """Is the calling thread the one inside `run()`? Any thread. O(1)."""
        return False  # pragma: no cover

    def _make_block(self, measuring: bool | Literal["shared"]) -> Any:
        if measuring == "shared":  # imported here: who does not measure does not pay for it
            from .observe.shared import SharedBlock

            self._shared = SharedBlock(self.name)
            return self._shared.words
        from .observe import block

        return block.make(self.name)

    def metrics(self) -> Metrics | None:
        """The loop's figures at one instant, detached from it (`nbloop.observe.Metrics`); None without ``metrics=``.

        Any thread, also while a callback hangs; not a signal handler. The loop is not stopped and does not wait. Some
        100 µs.
        """
        self._check_fork()
        if self._block is None:
            return None
        from .observe import block

        return block.snapshot(self._block)

    def watch(self, threshold: float, on_blocked: Callable[[Blockage], object] | None = None) -> Watchdog:
        """Be told of a callback that does not return within `threshold` seconds (0.001 to 1e6), while it still runs.

        ``on_blocked(blockage)`` (`nbloop.observe.watchdog.Blockage`) is called once for each blockage, on a thread of
        the watchdog; by default the ``nbloop`` logger is told. A handler that raises is logged. The loop does nothing
        for it. Ends with the loop, or with the watchdog's `stop`. Any thread. Raises TypeError, ValueError.
        """
        self._check_fork()
        from .observe.watchdog import Watchdog

        return Watchdog(self, threshold, on_blocked)

    @property
    def recorder(self) -> Recorder | None:
        """The loop's flight recorder (`nbloop.observe.recorder.Recorder`); None without ``recorder=``. Any thread."""
        return self._recorder

    def promisify(self, function: Callable[..., Any], /, *args: object) -> Promise[Any]:
        """Run ``function(*args)`` on a worker thread; a promise for its outcome, which always settles (`nbloop.js`).

        Truly parallel on free-threaded builds. `shutdown()` waits for what is running and runs the handlers;
        `close()` rejects with `LoopTerminatedError`, and so does a call after the end has begun. Any thread.
        """
        self._check_fork()
        if not callable(function):
            raise TypeError(f"function must be callable, not {function!r}")
        with self._lock:
            if self._workers is None:
                from .js.promisify import (
                    Workers,  # the one place where the loop knows of the view above it: a name of its own
                )

                self._workers = Workers(self)
        return self._workers.run(function, args)

    def producer(self) -> Producer:
        """A private entrance for one producing thread at a time: same promise as `submit`, order kept per handle, no
        line shared with others.

        Raises `LoopTerminatedError` once the end of the loop has begun.
        """
        with self._lock:
            self._check_fork()
            if self._lifecycle() >= layout.TERMINATING:
                raise LoopTerminatedError(f"{self.name} takes no new producers: it has terminated or is about to")
            return Producer(self, make_handle_state(self._state))

    def add_signal_handler(self, sig: int, callback: Callback, /, *args: object) -> None:
        """Submit ``callback(*args)`` for each arrival of a signal, whichever thread this loop runs in; replaces an
        earlier one.

        Several loops may ask for the same signal, and each gets it. While one does, the signal does nothing else
        (SIGINT raises no KeyboardInterrupt). Any thread. Raises TypeError, ValueError for a number that is no
        signal's or can not be caught, `LoopTerminatedError`.
        """
        self._check_fork()
        if self._lifecycle() >= layout.TERMINATING:
            raise LoopTerminatedError(f"{self.name} takes no signals: it has terminated or is about to")
        _signals.add(self, sig, callback, args)

    def remove_signal_handler(self, sig: int, /) -> bool:
        """Undo `add_signal_handler`; the last loop to do so gives the signal back its old meaning. False: there was
        none. Any thread.
        """
        self._check_fork()
        return _signals.remove(self, sig)

    # --- running
    # ---------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> LoopState:
        """Where the loop is in its life, a moment old. Any thread."""
        lifecycle = self._lifecycle()
        if lifecycle == layout.AWAKE:
            return LoopState.AWAKE
        if lifecycle == layout.TERMINATED:
            return LoopState.TERMINATED
        if lifecycle == layout.TERMINATING and self._record["remote"]["tail"] < 0:  # the queue that is closed last
            return LoopState.TERMINATING  # whoever sees this is refused from then on
        return LoopState.SLEEPING if self._record["sleep"] else LoopState.RUNNING

    def run(self) -> None:
        """Run the loop on this thread until `stop()`, `shutdown()`, `close()` or, with `auto_exit`, until nothing
        referenced is left.

        Raises `LoopAlreadyRunningError`, `ReentrantRunError` (from its own callback), `LoopTerminatedError`.
        KeyboardInterrupt and SystemExit from a callback, and Ctrl-C on the main thread, leave it; what was accepted
        stays queued, and the loop can be run again.
        """
        self._enter()
        self._turn_and_leave()

    def _enter(self) -> None:
        """Become the owner of a loop that is AWAKE, or say why not."""
        self._check_fork()
        while held := self._acquire():
            if held == 2:
                raise ReentrantRunError(f"{self.name}.run() was called from one of its own callbacks")
            if self._lifecycle() == layout.RUNNING:
                raise LoopAlreadyRunningError(f"{self.name} is run by another thread")
            if self._lifecycle() != layout.AWAKE:
                break  # whoever holds it finishes it
            time.sleep(0)  # held for a moment only: another run() comes or goes, or the mode changes
        if held or not self._transition(layout.AWAKE, layout.RUNNING):
            if not held:
                self._leave()
            raise LoopTerminatedError(f"{self.name} can not be run: it has terminated or is about to")

    def _leave(self) -> None:
        """Give the loop up. If it is to end and has not, because an exception or this very visit was in the way,
        somebody must.
        """
        self._release()
        if self._lifecycle() == layout.TERMINATING:
            self._ensure_finisher()

    def _turn_and_leave(self) -> None:
        try:
            with _signals.interruptible(self):
                self._turn_until_end()
        except BaseException:
            if self._recorder is not None:
                self._recorder._run_raised()
            raise
        finally:
            self._transition(layout.RUNNING, layout.AWAKE)
            self._leave()

    def _turn_until_end(self) -> None:
        self._runner = threading.get_ident()
        turns = turn.run.bind(self._state)
        while True:
            ended = turns()
            if ended == turn.ENDED_PARK:
                self._park()
            elif ended == turn.ENDED_LOOK:
                self._look()
            elif ended == turn.ENDED_BROKEN:
                number = int(self._record["io"]["error"])
                self._end_broken(OSError(number, os.strerror(number)))
            elif ended == turn.ENDED_STOP:
                if self._transition(layout.RUNNING, layout.AWAKE):
                    return
            elif ended == turn.ENDED_QUIET:
                if self._quiet_for_good():
                    self._finish()
                    return
            else:  # interrupted, or asked to end
                self._check_fork()
                self._finish()
                return

    def _park(self) -> None:
        """Sleep for the kernels, which have announced it."""
        try:
            self._look()
        finally:
            life.awaken.bind(self._state)()

    def _look(self) -> None:
        """Wait outside the kernels, for as long as they say."""
        assert self._parker is not None
        try:
            found = self._parker.wait(int(self._record["poll_timeout"]))
        except OSError as error:
            self._end_broken(error)
        else:
            self._watches.collect(found)

    def _end_broken(self, error: OSError) -> NoReturn:
        """The poller fails: looking again would spin, so the loop ends, and says why. What was accepted is run."""
        hooks.log(error, "%s can not poll any more and ends", self.name, level=logging.CRITICAL)
        self._begin_end()
        self._finish()
        raise PollerFailedError(error.errno, f"{self.name} can not poll any more and has ended: {error}") from error

    def _quiet_for_good(self) -> bool:
        """Auto-exit: the kernel found nothing left and closed the queues; so do the handles, unless one has work
        after all.
        """
        with self._lock:
            handles = self._live_handles()
            waiting = sum(life.producer_close.bind(handle)() for handle in handles)
            if not waiting:
                self._transition(layout.RUNNING, layout.TERMINATING)
                return True
            for handle in handles:
                life.producer_reopen.bind(handle)()
            life.reopen_queues.bind(self._state)()
        if self._lifecycle() != layout.RUNNING:  # a shutdown() in the middle of this: its close may have been undone
            self._refuse_new()
        return False

    def start(self) -> threading.Thread:
        """Run the loop in a thread of its own, made here; returns once it runs. Raises what `run` would.

        The thread is a daemon: at the interpreter's exit a loop that nobody shut down is not waited for.
        """
        entered = threading.Event()
        failure: list[NbloopError] = []

        def body() -> None:
            try:
                self._enter()
            except NbloopError as error:
                failure.append(error)
                return
            finally:
                entered.set()
            self._turn_and_leave()

        if self.is_loop_thread():
            raise ReentrantRunError(f"{self.name}.start() was called from one of its own callbacks")
        thread = threading.Thread(target=body, name=self.name, daemon=True)
        thread.start()
        entered.wait()
        if failure:
            thread.join()
            raise failure[0]
        return thread

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()

    # --- ending
    # ----------------------------------------------------------------------------------------------------------

    def shutdown(self, timeout: float | None = None) -> None:
        """End gracefully: refuse new work, run what was accepted, then release the rest; returns when that is done.

        Run are the immediates, close callbacks, internal and external tasks that were accepted, with the microtasks
        they queue; timers are not. From a callback it only requests the end and returns. A loop that was never run is
        finished on a thread of its own. Any number of threads may call it, any number of times. Raises TimeoutError
        after `timeout` seconds; the end goes on.
        """
        if timeout is not None:
            check_timeout(timeout)
        self._check_fork()
        self._begin_end()
        if self.is_loop_thread():
            return
        self._ensure_finisher()
        if not self._ended.wait(timeout):
            raise TimeoutError(f"{self.name} has not ended within {timeout} s; the shutdown goes on")

    def close(self) -> None:
        """End at once: the callback in progress ends, the rest is dropped and its references released; returns when
        that is done.

        Not from the loop's own callbacks (`ReentrantCloseError`). Any other thread; idempotent.
        """
        self._check_fork()
        if self.is_loop_thread():
            raise ReentrantCloseError(f"{self.name}.close() was called from one of its own callbacks; use shutdown()")
        self._closing = True
        self._begin_end()
        life.interrupt.bind(self._state)(1)
        if self._acquire() == 0:
            try:
                self._finish()
            finally:
                self._release()
        else:
            self._ensure_finisher()
        self._ended.wait()

    def _begin_end(self) -> None:
        """Move to TERMINATING and refuse new work, from whichever stage this is."""
        while self._lifecycle() < layout.TERMINATING:  # again, if a run() or a stop() came between the two
            if not self._transition(layout.RUNNING, layout.TERMINATING):
                self._transition(layout.AWAKE, layout.TERMINATING)
        self._refuse_new()

    def _refuse_new(self) -> None:
        life.close_queues.bind(self._state)()
        with self._lock:
            for handle in self._live_handles():
                life.producer_close.bind(handle)()

    def _live_handles(self) -> list[Any]:
        return [handle for handle in (held() for held in list(self._state.handles.values())) if handle is not None]

    def _ensure_finisher(self) -> None:
        """If nobody runs a loop that is to end, make a thread that ends it."""
        with self._lock:
            finishing = self._finisher is not None and self._finisher.is_alive()
            if self._ended.is_set() or finishing or self._record["owner"]:
                return
            self._finisher = threading.Thread(target=self._finish_elsewhere, name=f"{self.name}-finisher", daemon=True)
            self._finisher.start()

    def _finish_elsewhere(self) -> None:
        # a run() that is just finding out that it came too late, or one that finishes itself
        while self._acquire() != 0:
            if self._ended.wait(0.001):
                return
        try:
            while not self._ended.is_set():
                try:
                    self._finish()
                # there is no run() that these could leave, and the rest is owed
                except (KeyboardInterrupt, SystemExit) as error:
                    hooks.log(error, "%s: a callback asked to leave run() while the loop ended without one", self.name)
        finally:
            self._release()

    def _finish(self) -> None:
        """Drain, unless closing; then release everything. The owner's thread, lifecycle TERMINATING."""
        if self._ended.is_set():
            return
        self._runner = threading.get_ident()
        self._refuse_new()
        drain = turn.drain.bind(self._state)
        while not self._closing and drain() == turn.ENDED_DRAINED:
            if any(life.producer_close.bind(handle)() for handle in self._live_handles()):
                time.sleep(0)  # a handle's producer is between its ticket and its announcement
            elif self._workers is None or not self._workers.finish(closing=False):
                break
        if self._closing and self._workers is not None:
            self._workers.finish(closing=True)
        life.drop.bind(self._state)()
        for handle in self._live_handles():
            life.producer_drop.bind(handle)()
        self._transition(layout.TERMINATING, layout.TERMINATED)
        while int(self._record["wakes_sent"]) < int(self._record["claimed"]):
            time.sleep(0)  # a wake call is on its way to the descriptor that is closed next
        with self._lock:
            self._watches.close()
        _signals.forget(self)
        if self._recorder is not None:
            self._recorder._loop_ended()
        if self._shared is not None:
            self._shared.close()
        _live.discard(self)
        self._ended.set()

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Forgotten while methods taken from it live on: they keep the state, so what is queued has to be dropped here.
        if not finalizing() and "_transition" in self.__dict__ and not self._forked and not self._ended.is_set():
            self.close()

    # --- the fast path
    # ---------------------------------------------------------------------------------------------------

    @property
    def fast_path_mode(self) -> FastPathMode:
        """The mode last set. Any thread."""
        return self._mode

    def set_fast_path_mode(self, mode: FastPathMode) -> None:
        """Change how the loop sleeps, at run time. Any thread; the loop changes over before its next sleep, and loses
        nothing.

        Raises TypeError for what is no `FastPathMode`, `FastPathIncompatibleError` for FORCED while descriptors are
        registered, `LoopTerminatedError` after the end, OSError if there is no descriptor left for a poller; in each
        case the mode stays.
        """
        check_mode("mode", mode)
        self._check_fork()
        with self._lock:
            if mode is FastPathMode.FORCED and len(self._watches):
                raise FastPathIncompatibleError(
                    f"{self.name} watches {len(self._watches)} descriptors: the fast path can not be forced"
                )
            if self._lifecycle() >= layout.TERMINATING:
                raise LoopTerminatedError(f"{self.name} has terminated or is about to")
            if mode is FastPathMode.DISABLED:
                self._watches.open_poller()
            self._mode = mode
        self._change_over()

    def _change_over(self) -> None:
        """Have the loop sleep as mode and descriptors ask from now on: at once if nobody runs it, else before its next
        sleep.
        """
        while not self.is_loop_thread():
            if self._acquire() == 0:
                try:
                    self._install_parker()
                finally:
                    self._leave()
                return
            if self._lifecycle() != layout.AWAKE:  # it runs: only its own thread may change how it sleeps
                with contextlib.suppress(LoopTerminatedError):  # it has slept for the last time
                    self.submit_internal(self._install_parker)
                return
            time.sleep(0)
        self._install_parker()

    def _install_parker(self) -> None:
        """Sleep as the mode and the descriptors ask. The owner only, awake.

        A wake that was claimed before and comes late goes to the old place or the new one: the sleep that it was for
        is over, and another is at most ended early.
        """
        with self._lock:
            poller = self._watches.poller
            if poller is not None and (self._mode is FastPathMode.DISABLED or len(self._watches)):
                self._parker, self._record["park_mode"] = poller, poller.park_mode
            elif futex_available():
                self._parker, self._record["park_mode"] = None, layout.PARK_FUTEX
            else:
                self._parker, self._record["park_mode"] = self._lock_parker, layout.PARK_PYTHON

    # --- descriptors

    def register_fd(self, fd: int, events: IOEvents | int, callback: ReadyCallback) -> None:
        """Run ``callback(fd, events)`` on the loop's thread whenever the descriptor is ready for what `events` asks.

        Level-triggered: as long as it is ready, once in each turn; `IOEvents.EDGE` and `IOEvents.ONESHOT` change that.
        ERROR and HANGUP are reported unasked, unless `events` is 0, which mutes. A microtask checkpoint follows each
        callback; one that raises goes to `on_error`, and the watch stays. A registered descriptor keeps an `auto_exit`
        loop alive. Any thread; a loop that is just waiting sees it at once. O(1); a system call or two.

        Raises `FDAlreadyRegisteredError`, `FDOutOfRangeError`, `FastPathIncompatibleError` while the fast path is
        forced, TypeError or ValueError for what is no descriptor, events or callback, OSError from the system (EPERM
        for a regular file, EBADF, ENOSPC, EMFILE), `LoopTerminatedError`; in each case nothing is registered.

        A descriptor is to be unregistered before it is closed. Closed first, it is silent, and its number stays taken
        here until `unregister_fd`; whoever has that number by then is not touched.
        """
        fd, interest = check_descriptor(fd), check_events(events)
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        with self._lock:
            self._check_descriptors_allowed()
            if self._mode is FastPathMode.FORCED:
                raise FastPathIncompatibleError(f"{self.name} is forced to the fast path, which sees no descriptors")
            self._watches.register(fd, interest, callback)
            first = len(self._watches) == 1
        if first:
            self._change_over()

    def modify_fd(self, fd: int, events: IOEvents | int) -> None:
        """Change what a registered descriptor is watched for; 0 mutes it, and a ONESHOT is armed anew.

        What was collected before and is not asked for any more is not delivered. Any thread. O(1), one system call.
        Raises `FDNotRegisteredError`, OSError from the system (and then nothing has changed), otherwise as
        `register_fd`.
        """
        fd, interest = check_descriptor(fd), check_events(events)
        with self._lock:
            self._check_descriptors_allowed()
            self._watches.modify(fd, interest)

    def unregister_fd(self, fd: int) -> None:
        """Watch a descriptor no longer. When this returns no callback of it starts any more, also none whose event was
        collected already; one in progress on the loop's thread goes on.

        From its own callback, another one, another thread. O(1), one system call. Raises `FDNotRegisteredError`,
        also after the loop has ended.
        """
        fd = check_descriptor(fd)
        with self._lock:
            self._check_fork()
            self._watches.unregister(fd)
            last = len(self._watches) == 0
        if last:
            self._change_over()

    def _check_descriptors_allowed(self) -> None:
        self._check_fork()
        if self._lifecycle() >= layout.TERMINATING:
            raise LoopTerminatedError(f"{self.name} watches no descriptors: it has terminated or is about to")

    # --- refusals
    # --------------------------------------------------------------------------------------------------------

    def _lifecycle(self) -> int:
        return int(self._record["lifecycle"])

    def _check_fork(self) -> None:
        if self._forked:
            raise ForkedLoopError(f"{self.name} belongs to the process that made it; make a new Loop after os.fork()")

    def __repr__(self) -> str:
        return f"<nbloop.Loop {self.name} {'forked' if self._forked else self.state.value}>"


# --- fork -----------------------------------------------------------------------------------------------------------

_live: weakref.WeakSet[Loop] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Make every inherited loop refuse: its thread stayed in the parent, and its descriptors are shared with it."""
    for loop in list(_live):
        loop._forked = True
        loop._lock = CountingLock()  # the parent's other threads may have held it
        for name, face in (vars(Scheduling) | vars(Loop)).items():
            if hasattr(face, "__wrapped__") and not isinstance(face, property):
                loop.__dict__[name] = lambda *_args, _loop=loop: _loop._check_fork()
        # the sleeper is in the parent, and its wake descriptor is shared: nobody here may write to it
        loop._record["sleep"] = 0
        life.interrupt.bind(loop._state)(1)
        loop._refuse_new()
        loop._watches.close()  # this process's copies: the parent's stay as they are


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
