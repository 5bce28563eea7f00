"""The loop: its options and its parts.

Problem: the hot path is compiled and knows nothing of Python's conventions; users want clear errors, graceful ends,
signals that work. Idea: a core in two layers, and parts. Whatever callbacks need (submit, cancel) is a built-in method
made by the kernels and called without a Python frame (`scheduling.py`). Running and ending a loop is plain Python over
three words of the kernels' memory (`lifecycle.py`). This file gives the core its memory and adds the parts: descriptors
(`descriptors.py`), signals, workers, figures, the recorder, watchdogs. Each part registers for the loop's end
(`parts.py`).
"""

from __future__ import annotations

import contextvars
import itertools
import weakref
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from . import debug as _debug
from . import hooks
from . import signals as _signals
from .channel import Channel, ChannelFigures, OnFull, figures_of
from .errors import LoopOverloadedError
from .kernels.base import layout
from .kernels.base.layout import STATE
from .kernels.calls.captured import RUN_IN_CONTEXT
from .kernels.methods import lifetime
from .kernels.state.state import make_handle_state, make_loop_state
from .lifecycle import Lifecycle
from .options import (
    FastPathMode,
    check_callable,
    check_int,
    check_metrics,
    check_mode,
    check_name,
    check_pressure,
    check_recorder,
    check_timeout,
    usable_cores,
)
from .producer import Producer
from .readiness import IOEvents, ReadyCallback, check_descriptor, check_events
from .scheduling import Callback
from .signals import LoopSignals
from .waiting import late, refuse_own_thread, send, wait

if TYPE_CHECKING:
    from .js import AbortSignal, Promise
    from .js.promisify import Workers
    from .observe import Metrics
    from .observe.recorder import Recorder
    from .observe.shared import SharedBlock
    from .observe.watchdog import Blockage, Watchdog


SPIN_MOST = 50_000  # ns; longer than the 3-19 µs that a sleep costs, and too short to notice when a loop falls idle

_numbers = itertools.count(1)  # numbers for loops without a name


class Loop(Lifecycle):
    """An event loop that any number of threads submit to and one thread runs.

    Every method may be called from any thread unless it says otherwise; those that schedule are also safe in signal
    handlers and in callbacks of the loop. Times are seconds on the clock of `time.monotonic`.

    The options, all checked here:

    * `fast_path_mode`: how the loop sleeps (`FastPathMode`).
    * `on_error(exception, context)`: called when a callback raises; by default the ``nbloop`` logger gets it.
    * `on_overload(error)`: called on the loop once in each turn in which more than `ingress_budget` external tasks (the
      most that one turn runs, 1,024 by default) waited.
    * `on_pressure("high")`: called on the loop once when `pressure_high` tasks wait in the submit queue and ready
      producer handles together (default: 8 * `ingress_budget`, at most `ingress_limit`); `on_pressure("low")` once when
      no more than `pressure_low` do (default: half of that). So producers can slow down.
    * `ingress_limit`: the most tasks that may wait in the submit queue, and in each producer handle's (default:
      33,488,896 at the default size of chunks).
    * `chunk_size`: a power of two from 16 to 4,096, the number of tasks in a chunk of the submit queue (default: 128);
      `initial_chunks`: how many chunks are made at construction (default: 0).
    * `auto_exit`: end when nothing referenced is left.
    * `clamp_nested_timers`: HTML's 4 ms for deeply nested timers.
    * `debug`: remember where each callback was scheduled, at some 5 µs a call, and pass it to `on_error`.
    * `name`: for threads and messages.
    * `metrics`: True to measure (`Loop.metrics`); "shared" to let other processes of the same user read the figures
      (`nbloop.observe.shared`); by default the value of the environment variable NBLOOP_METRICS (``1`` or ``shared``),
      or else False.
    * `recorder`: a power of two from 64 to 16,777,216, how many of the last events are remembered (`Loop.recorder`); by
      default none.
    * `workers`: from 1 to 32,768, the most threads that `promisify` uses at once (default: ``min(32, cores + 4)``).
    * `contexts`: run each callback in a copy of the context of the call that scheduled it (PEP 567). By default all of
      them share the context of the loop's thread.

    >>> loop = Loop(auto_exit=True)
    >>> loop.submit(print, "hello from the loop")
    >>> loop.run()
    hello from the loop
    """

    _children_ignore = False  # whether forked children ignore its signals: see signals.Target
    _spin_most = SPIN_MOST
    _unpolled_most = 0

    def __init__(
        self,
        *,
        fast_path_mode: FastPathMode = FastPathMode.AUTO,
        on_overload: Callable[[LoopOverloadedError], object] | None = None,
        on_error: hooks.ErrorHandler | None = None,
        ingress_budget: int = 1024,
        chunk_size: int = 128,
        initial_chunks: int = 0,
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
        workers: int | None = None,
        contexts: bool = False,
    ) -> None:
        if "_state" in self.__dict__:
            raise RuntimeError(f"{self.name} is already initialised")
        check_mode("fast_path_mode", fast_path_mode)
        check_callable("on_overload", on_overload)
        check_callable("on_error", on_error)
        check_int("ingress_budget", ingress_budget, 1, 1 << 40)
        check_int("chunk_size", chunk_size, 16, 4096)
        if chunk_size & (chunk_size - 1):
            raise ValueError(f"chunk_size must be a power of two from 16 to 4096, not {chunk_size}")
        check_int("initial_chunks", initial_chunks, 0, layout.CHUNK_LIMIT // 2)
        if ingress_limit is not None:
            check_int("ingress_limit", ingress_limit, 1, (layout.CHUNK_LIMIT - 512) * chunk_size)
        marks = check_pressure(on_pressure, pressure_high, pressure_low, ingress_budget, ingress_limit)
        check_recorder(recorder)
        if workers is not None:
            check_int("workers", workers, 1, 1 << 15)
        for option, value in (
            ("auto_exit", auto_exit),
            ("clamp_nested_timers", clamp_nested_timers),
            ("debug", debug),
            ("contexts", contexts),
        ):
            if not isinstance(value, bool):
                raise TypeError(f"{option} must be True or False, not {value!r}")
        check_name(name)

        name = name if name is not None else f"nbloop-{next(_numbers)}"
        self._on_overload = on_overload
        self._on_pressure = on_pressure
        self._most_workers = workers
        self._workers: Workers | None = None
        self._shared: SharedBlock | None = None
        self._block = None if (measuring := check_metrics(metrics)) is False else self._make_block(name, measuring)
        self._recorder: Recorder | None = None
        if recorder is not None:
            from .observe.recorder import Recorder

            self._recorder = Recorder(recorder, name)

        # The loop keeps the state, which keeps the hooks: these must not keep the loop.
        me: weakref.ref[hooks.Hooked] = weakref.ref(self)
        state = make_loop_state(
            chunk_size=chunk_size,
            initial_chunks=initial_chunks,
            ingress_limit=ingress_limit,
            metrics=self._block,
            recorder=None if self._recorder is None else self._recorder._words,
            hooks={
                STATE.REPORT: MethodType(hooks.report, me),
                STATE.UNAWAITED: MethodType(hooks.unawaited, me),
                STATE.REFUSE: MethodType(hooks.refuse, me),
                STATE.OVERLOAD: MethodType(hooks.overload, me),
                STATE.WARN: MethodType(hooks.warn, me),
                STATE.CHECK_INTERRUPTS: hooks.check_interrupts,
                STATE.WAKER: MethodType(hooks.wake_parker, me),
                STATE.RENEW: MethodType(hooks.renew, me),
                STATE.PRESSURE: MethodType(hooks.pressure, me),
            },
        )
        state.fill(
            {
                STATE.BUDGET: ingress_budget,
                STATE.PRESSURE_HIGH: marks[0],
                STATE.PRESSURE_LOW: marks[1],
                STATE.AUTO_EXIT: auto_exit,
                STATE.CLAMP: clamp_nested_timers,
                STATE.SPIN_MAX: self._spin_most if self._spin_most and usable_cores() > 1 else 0,
                STATE.UNPOLLED_MOST: self._unpolled_most,
            }
        )
        super().__init__(name, state, fast_path_mode, debug=debug, captures=contexts, on_error=on_error)
        if self._recorder is not None:
            self._parts[self._recorder] = self._recorder
        if self._shared is not None:
            self._parts[self._shared] = self._shared
        if debug:
            _debug.remember_sites(self)

    def _make_block(self, name: str, measuring: bool | Literal["shared"]) -> Any:
        if measuring == "shared":  # imported here, so that a loop that does not measure does not pay for it
            from .observe.shared import SharedBlock

            self._shared = SharedBlock(name)
            return self._shared.words
        from .observe import block

        return block.make(name)

    @property
    def fast_path_mode(self) -> FastPathMode:
        """The mode that was set last. Any thread."""
        return self._descriptors.mode

    def set_fast_path_mode(self, mode: FastPathMode) -> None:
        """Change how the loop sleeps, at run time. Any thread; the loop switches before its next sleep, and loses
        nothing.

        Raises TypeError if `mode` is not a `FastPathMode`, `FastPathIncompatibleError` for FORCED while descriptors are
        registered, `LoopTerminatedError` after the end, OSError if no descriptor is free for a poller; in each case the
        mode stays as it was.
        """
        check_mode("mode", mode)
        self._check_fork()

        def change() -> bool:
            if self._lifecycle() >= layout.TERMINATING:
                raise self._terminated("has terminated or is about to")
            return self._descriptors.set_mode(mode)

        self._change(change)

    def register_fd(self, fd: int, events: IOEvents | int, callback: ReadyCallback) -> None:
        """Run ``callback(fd, events)`` on the loop's thread whenever the descriptor is ready for any of `events`.

        Level-triggered: once per turn while it is ready; `IOEvents.EDGE` and `IOEvents.ONESHOT` change that. ERROR and
        HANGUP are always reported, unless `events` is 0, which mutes the watch. A microtask checkpoint follows each
        callback. An exception of the callback goes to `on_error`, and the watch stays. A registered descriptor keeps an
        `auto_exit` loop alive. Any thread; takes effect at once, even if the loop is asleep. O(1); one or two system
        calls.

        Raises `FDAlreadyRegisteredError`, `FDOutOfRangeError`, `FastPathIncompatibleError` while the fast path is
        forced, TypeError or ValueError for an invalid descriptor, events or callback, OSError from the system (EPERM
        for a regular file, EBADF, ENOSPC, EMFILE), `LoopTerminatedError`; in each case nothing is registered.

        Unregister a descriptor before you close it. If it is closed first, it goes silent (unless a duplicate is open),
        and its number stays taken in this loop until `unregister_fd`, which does not affect a new file of that number.
        """
        fd, interest = check_descriptor(fd), check_events(events)
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        if self.debug:
            (callback,) = _debug.sited([callback])

        self._watch(fd, interest, callback)

    def _watch(self, fd: int, interest: int, callback: ReadyCallback) -> None:
        """`register_fd` with checked arguments."""
        self._change(self._register, fd, interest, callback)

    def _register(self, fd: int, interest: int, callback: ReadyCallback) -> bool:
        if self._forked or self._lifecycle() >= layout.TERMINATING:
            self._check_descriptors_allowed()
        return self._descriptors.register(fd, interest, callback)

    def modify_fd(self, fd: int, events: IOEvents | int) -> None:
        """Change which events the registered descriptor `fd` is watched for; 0 mutes it, and a ONESHOT watch is
        re-armed.

        Events that were collected before but are no longer wanted are not delivered. Any thread. O(1), one system call.
        Raises `FDNotRegisteredError`, OSError from the system (and then nothing has changed), otherwise as
        `register_fd`.
        """
        fd, interest = check_descriptor(fd), check_events(events)
        try:
            with self._lock:
                self._check_descriptors_allowed()
                self._descriptors.table.modify(fd, interest)
        except Exception:
            self._check_fork()  # a signal handler has forked in the middle, which ended the table
            raise

    def unregister_fd(self, fd: int) -> None:
        """Stop watching the descriptor `fd`. After this returns, none of its callbacks starts, not even for an event
        that was already collected; one in progress on the loop's thread goes on.

        May be called in its own callback, in another one, and on any thread. O(1), one system call. Raises
        `FDNotRegisteredError`, also after the loop has ended; OSError from the system, and then the watch has ended all
        the same.
        """
        self._unwatch(check_descriptor(fd))

    def _unwatch(self, fd: int) -> None:
        """`unregister_fd` with a checked argument."""
        if self._forked:
            self._check_fork()
        self._change(self._descriptors.unregister, fd)

    def _check_descriptors_allowed(self) -> None:
        self._check_fork()
        if self._lifecycle() >= layout.TERMINATING:
            raise self._terminated("watches no descriptors: it has terminated or is about to")

    def metrics(self) -> Metrics | None:
        """The loop's figures at one instant, detached from it (`nbloop.observe.Metrics`); None without ``metrics=``.

        Any thread, even while a callback hangs; not a signal handler. The loop neither stops nor waits. Some 100 µs.
        """
        self._check_fork()
        if self._block is None:
            return None
        from .observe import block

        return block.snapshot(self._block, self._waiting)

    def _waiting(self) -> list[int]:
        """How much waits now, as `Queues` has it."""
        lengths = np.zeros(4, np.int64)
        lifetime.waiting.bind(self._state)(lengths, list(self._state.handles.values()))
        return [int(length) for length in lengths]

    def watch(self, threshold: float, on_blocked: Callable[[Blockage], object] | None = None) -> Watchdog:
        """Report a callback that does not return within `threshold` seconds (0.001 to 1e6), while it still runs.

        ``on_blocked(blockage)`` (`nbloop.observe.watchdog.Blockage`) is called once for each blockage, on the
        watchdog's thread; by default it is logged to ``nbloop``. An exception of the handler is logged. This costs the
        loop nothing. It ends with the loop, or with the watchdog's `stop`. Any thread. Raises TypeError, ValueError.
        """
        self._check_fork()
        from .observe.watchdog import Watchdog

        watchdog = Watchdog(self, threshold, on_blocked)
        watchdog._begin(self)
        return watchdog

    @property
    def recorder(self) -> Recorder | None:
        """The loop's flight recorder (`nbloop.observe.recorder.Recorder`); None without ``recorder=``. Any thread."""
        return self._recorder

    def promisify(
        self,
        function: Callable[..., Any],
        /,
        *args: object,
        signal: AbortSignal | None = None,
        timeout: float | None = None,
    ) -> Promise[Any]:
        """Run ``function(*args)`` on a worker thread; returns a promise of its outcome, which always settles
        (`nbloop.js`).

        Truly parallel on free-threaded builds, at most ``Loop(workers=)`` at once. `shutdown()` waits for running
        functions and runs the handlers (if `function` itself calls it, it only requests the end); `close()` rejects
        with `LoopTerminatedError`, and so does a call after the end has begun. Any thread.

        If `signal` (`nbloop.js.AbortSignal`) is aborted first, the promise is rejected with its reason; after
        `timeout` seconds it is rejected with a TimeoutError. Nothing interrupts the function: it goes on, and its
        outcome is dropped. A function that has not begun by then never will. With either argument, do not call it in a
        signal handler. Raises TypeError, ValueError.
        """
        self._check_fork()
        if not callable(function):
            raise TypeError(f"function must be callable, not {function!r}")
        if timeout is not None:
            check_timeout(timeout)
        if self._workers is None:
            from .js.promisify import Workers  # imported here, so that a loop without workers does not pay for it

            workers = self._part(Workers)
            if self._most_workers is not None:
                workers.most = self._most_workers
            self._workers = workers
        return self._workers.run(function, args, signal, timeout)

    def call[T](self, fn: Callable[..., T], /, *args: object, timeout: float | None = None) -> T:
        """Run ``fn(*args)`` on the loop's thread and wait for it; returns its result, or raises its exception.

        Ordered as `submit`. Also waits while no thread runs the loop yet. Raises TimeoutError after `timeout` seconds:
        a function that has not begun by then never will, one that has begun goes on. Raises `ReentrantWaitError` on the
        loop's own thread; `LoopTerminatedError` if the loop ends, or an exception leaves `run()`, before `fn` has
        begun; otherwise as `submit`. Any other thread; not a signal handler. O(1).

        >>> with Loop() as loop:
        ...     loop.call(pow, 2, 8)
        256
        """
        refuse_own_thread(self, f"{self.name}.call()")
        if timeout is not None:
            check_timeout(timeout)
        future = send(self, fn, args, {})
        try:
            came = wait(self, future, timeout)
        except BaseException:  # of a signal handler: nobody waits any more
            future.cancel()
            raise
        if not came and (future.cancel() or not future.done()):
            raise late(f"the outcome of {fn!r}", timeout)
        result: T = future.result()
        return result

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the loop has ended, which another thread must bring about. Returns at once if it has.

        After `stop` a loop has not ended. Raises TimeoutError after `timeout` seconds; `ReentrantWaitError` on the
        loop's own thread; `LoopTerminatedError`, with the exception as its cause, if an exception leaves `run()`
        meanwhile: the loop has then not ended, and can be run again. Any other thread; not a signal handler.

        >>> loop = Loop(auto_exit=True)
        >>> thread = loop.start()
        >>> loop.wait()
        >>> loop.state
        <LoopState.TERMINATED: 'terminated'>
        """
        refuse_own_thread(self, f"{self.name}.wait()")
        future = self._waiters.future(self)
        if not wait(self, future, timeout, self._ended.is_set):
            raise late(f"the end of {self.name}", timeout)
        error = future.exception() if future.done() else None
        if error is not None:
            refused = self._waiters.at_work() and not self._ended.is_set()  # the end waits for its workers
            if refused or error.__cause__ is not None:
                raise error
        self._wait_for_end(None)  # a short wait: the loop has already released its waiters

    def producer(self) -> Producer[Self]:
        """A handle for submitting from one thread at a time: the promise of `submit`, in order per handle, without a
        cache line shared with other producers. Any thread. O(1), but it takes a lock and allocates: make one for a
        thread, not one for a task.

        Raises `LoopTerminatedError` once the end of the loop has begun.
        """
        with self._lock:
            self._check_fork()
            if self._lifecycle() >= layout.TERMINATING:
                raise self._terminated("takes no new producers: it has terminated or is about to")
            handle = Producer(self, make_handle_state(self._state))
        if self.debug:
            _debug.remember_sites(handle)
        return handle

    def channel(
        self,
        dtype: Any,
        on_batch: Callable[[Any], object] | None = None,
        *,
        capacity: int = 65536,
        max_batch: int = 4096,
        max_delay: float | None = None,
        on_full: OnFull = "raise",
        timeout: float | None = None,
        name: str | None = None,
    ) -> Channel:
        """An entrance for records instead of callbacks: threads put numbers, and ``on_batch(records)`` gets them as a
        numpy array on the loop's thread (`nbloop.Channel`). Without `on_batch` a coroutine of this loop gets them, by
        ``async for records in channel``.

        `dtype` is a structured dtype without objects. `records` has at least 1 and at most `max_batch` of them, in the
        order in which they were put. It is read-only, and valid until `on_batch` returns: copy what you keep. Keeping a
        view is a BufferError, which is reported like an exception of a callback. `capacity`, a power of two from 2 to
        2**28, is how many records may wait; their memory is made here. With `max_delay`, in seconds, a batch that is
        not full waits that long after its first record was put; without it, a batch is what there is. When the channel
        is full, `on_full` says what happens to a record: "raise" `LoopOverloadedError`, "wait" for room (for `timeout`
        seconds, then TimeoutError), "drop_new", or "drop_old", the oldest, to make room; dropped ones are counted.

        `shutdown()` delivers what was accepted, `close()` drops and counts it. Any thread; not a signal handler. Raises
        TypeError and ValueError, which name the argument, `LoopTerminatedError` once the end of the loop has begun, and
        MemoryError.

        >>> loop = Loop(auto_exit=True)
        >>> ticks = loop.channel([("price", "f8"), ("size", "i4")], lambda records: print(records["price"].sum()))
        >>> ticks.put(101.5, 300), ticks.put(size=200, price=102.0)
        (True, True)
        >>> loop.run()
        203.5
        """
        self._check_fork()
        return Channel(
            self,
            dtype,
            on_batch,
            capacity=capacity,
            max_batch=max_batch,
            max_delay=max_delay,
            on_full=on_full,
            timeout=timeout,
            name=name,
        )

    def channels(self) -> list[ChannelFigures]:
        """What has gone through each ring of records (`nbloop.ChannelFigures`): for the channels and producers that are
        alive, in the order in which they were made. Any thread, also while a callback hangs. O(rings).

        >>> loop = Loop(auto_exit=True)
        >>> ticks = loop.channel([("price", "f8")], print, capacity=4, name="ticks")
        >>> ticks.put(101.5)
        True
        >>> loop.channels()
        [ChannelFigures(name='ticks', capacity=4, waiting=1, delivered=0, batches=0, dropped=0, delay=None)]
        """
        self._check_fork()
        return figures_of(self._state)

    def add_signal_handler(self, sig: int, callback: Callback, /, *args: object) -> None:
        """Submit ``callback(*args)`` at each arrival of the signal `sig`, whichever thread this loop runs in; replaces
        an earlier handler.

        Several loops may handle the same signal, and each gets it. While any loop does, the signal has no other effect
        (SIGINT raises no KeyboardInterrupt). Any thread. Raises TypeError, ValueError for a number that is not a signal
        or a signal that cannot be caught, `LoopTerminatedError`.
        """
        self._check_fork()
        if self._lifecycle() >= layout.TERMINATING:
            raise self._terminated("takes no signals: it has terminated or is about to")
        if self._captures and callable(callback):
            callback, args = RUN_IN_CONTEXT, (contextvars.copy_context(), callback, *args)
        signals = self._part(LoopSignals)
        _signals.add(signals, sig, callback, args)
        if self._lifecycle() == layout.TERMINATED:  # the end may already have forgotten the loop's signals
            _signals.forget(signals)
            raise self._terminated("takes no signals: it has terminated")

    def remove_signal_handler(self, sig: int, /) -> bool:
        """Undo `add_signal_handler`; when the last loop does so, the signal gets its previous handler back. False if
        there was none. Any thread. Raises TypeError if `sig` is not a number.
        """
        self._check_fork()
        return _signals.remove(self._part(LoopSignals), sig)
