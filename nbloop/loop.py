"""The loop: its options, and what it is made of.

Problem: the hot path is compiled and knows nothing of Python's manners; users want clear errors, graceful ends,
signals that work. Idea: three layers of one object, each in a file of its own. Everything that a callback needs
(submit, cancel) is a built-in method made by the kernels and reached without a Python frame (`scheduling.py`); who may
run and end a loop is plain Python over three words of the kernels' memory (`lifecycle.py`); so is how it sleeps, and
what it watches meanwhile (`descriptors.py`). Here they get their memory, and what else hangs on a loop: handles,
signals, workers, figures.
"""

from __future__ import annotations

import functools
import itertools
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from . import debug as _debug
from . import hooks
from . import signals as _signals
from .channel import Channel, OnFull
from .descriptors import Descriptors
from .errors import LoopOverloadedError, LoopTerminatedError
from .kernels.base import layout
from .kernels.state.state import make_handle_state, make_loop_state
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
from .scheduling import Callback, Producer
from .waiting import refuse_own_thread, send, wait

if TYPE_CHECKING:
    from .js import Promise
    from .observe import Metrics
    from .observe.recorder import Recorder
    from .observe.watchdog import Blockage, Watchdog


type ErrorHandler = Callable[[BaseException, dict[str, Any]], object]

SPIN_MOST = 50_000  # ns; longer than the 3-19 µs a sleep costs, short enough that an idle loop's one spin is not felt

_numbers = itertools.count(1)  # of loops without a name


class Loop(Descriptors):
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
        if "_state" in self.__dict__:
            raise RuntimeError(f"{self.name} is initialised already")
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

        name = name if name is not None else f"nbloop-{next(_numbers)}"
        self.debug = debug
        self._made = time.monotonic_ns()
        self._on_overload = on_overload
        self._on_error = on_error
        self._on_pressure = on_pressure
        self._shared = None
        self._block = None if (measuring := check_metrics(metrics)) is False else self._make_block(name, measuring)
        self._recorder = None
        if recorder is not None:
            from .observe.recorder import Recorder

            self._recorder = Recorder(recorder, name)

        me = weakref.ref(self)  # the hooks live in the state, which the loop keeps: they must not keep the loop
        state = make_loop_state(
            chunk_size=chunk_size,
            initial_chunks=initial_chunks,
            ingress_limit=ingress_limit,
            metrics=self._block,
            recorder=None if self._recorder is None else self._recorder._words,
            hooks={
                "report": functools.partial(hooks.report, me),
                "refuse": functools.partial(hooks.refuse, me),
                "overload": functools.partial(hooks.overload, me),
                "warn": functools.partial(hooks.warn, me),
                "check_interrupts": hooks.check_interrupts,
                "waker": functools.partial(hooks.wake_parker, me),
                "renew": functools.partial(hooks.renew, me),
                "pressure": functools.partial(hooks.pressure, me),
            },
        )
        record = state.record
        record["budget"] = ingress_budget
        record["pressure_high"], record["pressure_low"] = marks
        record["auto_exit"] = auto_exit
        record["clamp"] = clamp_nested_timers
        record["spin_max"] = SPIN_MOST if usable_cores() > 1 else 0
        super().__init__(name, state, fast_path_mode)
        if debug:
            _debug.remember_sites(self)

    def _make_block(self, name: str, measuring: bool | Literal["shared"]) -> Any:
        if measuring == "shared":  # imported here: who does not measure does not pay for it
            from .observe.shared import SharedBlock

            self._shared = SharedBlock(name)
            return self._shared.words
        from .observe import block

        return block.make(name)

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

        Truly parallel on free-threaded builds, at most ``min(32, cores + 4)`` at once. `shutdown()` waits for what is
        running and runs the handlers (called by `function` itself it only requests the end); `close()` rejects with
        `LoopTerminatedError`, and so does a call after the end has begun. Any thread.
        """
        self._check_fork()
        if not callable(function):
            raise TypeError(f"function must be callable, not {function!r}")
        with self._lock:
            if self._workers is None:
                from .js.promisify import Workers  # the one place where the loop knows of the view above it

                self._workers = Workers(self)
        return self._workers.run(function, args)

    def call[T](self, fn: Callable[..., T], /, *args: object, timeout: float | None = None) -> T:
        """Run ``fn(*args)`` on the loop's thread and wait for it; what it returns, or its exception raised.

        Ordered as `submit`. Waits also while no thread runs the loop yet. Raises TimeoutError after `timeout` seconds:
        a function that has not begun by then never will, one that has goes on. Raises `ReentrantWaitError` on the
        loop's own thread; `LoopTerminatedError` when the loop ends, or an exception leaves `run()`, before `fn` has
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
            wait(future, timeout, f"the outcome of {fn!r}")
        except BaseException:  # also an exception of a signal handler: nobody waits any more
            if future.cancel() or not future.done():
                raise
        result: T = future.result()
        return result

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the loop has ended, which another thread has to see to. Returns at once if it has.

        A loop that `stop` has left has not ended. Raises TimeoutError after `timeout` seconds; `ReentrantWaitError` on
        the loop's own thread; `LoopTerminatedError`, with the exception as its cause, when an exception leaves `run()`
        meanwhile, after which the loop has not ended but can be run again. Any other thread; not a signal handler.

        >>> loop = Loop(auto_exit=True)
        >>> thread = loop.start()
        >>> loop.wait()
        >>> loop.state
        <LoopState.TERMINATED: 'terminated'>
        """
        refuse_own_thread(self, f"{self.name}.wait()")
        future = self._waiters.future(self)
        wait(future, timeout, f"the end of {self.name}", self._ended.is_set)
        error = future.exception() if future.done() else None
        if error is not None and error.__cause__ is not None:
            raise error
        self._wait_for_end(None)  # which comes in a moment: the loop has released its waiters

    def producer(self) -> Producer:
        """A private entrance for one producing thread at a time: same promise as `submit`, order kept per handle, no
        line shared with others.

        Raises `LoopTerminatedError` once the end of the loop has begun.
        """
        with self._lock:
            self._check_fork()
            if self._lifecycle() >= layout.TERMINATING:
                raise LoopTerminatedError(f"{self.name} takes no new producers: it has terminated or is about to")
            handle = Producer(self, make_handle_state(self._state))
        if self.debug:
            _debug.remember_sites(handle)
        return handle

    def channel(
        self,
        dtype: Any,
        on_batch: Callable[[Any], object],
        *,
        capacity: int = 65536,
        max_batch: int = 4096,
        max_delay: float | None = None,
        on_full: OnFull = "raise",
        timeout: float | None = None,
        name: str | None = None,
    ) -> Channel:
        """An entrance for records instead of callbacks: threads put numbers, and ``on_batch(records)`` gets them as a
        numpy array on the loop's thread (`nbloop.Channel`).

        `dtype` is a structured dtype without objects. `records` has at least 1 and at most `max_batch` of them, in the
        order in which they were put. It is read-only, and valid until `on_batch` returns: copy what you keep. A view
        that is kept is a BufferError, which goes where exceptions of callbacks go. `capacity`, a power of two from 2 to
        2**28, is how many records may wait; their memory is made here. With `max_delay`, in seconds, a batch that is
        not full waits for so long after its first record was put; else a batch is what there is. When the channel is
        full, `on_full` says what becomes of a record: "raise" `LoopOverloadedError`, "wait" for room (for `timeout`
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
        if self._lifecycle() == layout.TERMINATED:  # its end may have come before this, and has forgotten its signals
            _signals.forget(self)
            raise LoopTerminatedError(f"{self.name} takes no signals: it has terminated")

    def remove_signal_handler(self, sig: int, /) -> bool:
        """Undo `add_signal_handler`; the last loop to do so gives the signal back its old meaning. False: there was
        none. Any thread. Raises TypeError for what is no number.
        """
        self._check_fork()
        return _signals.remove(self, sig)
