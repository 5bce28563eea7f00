"""Running, stopping and ending a loop, and what a fork does to it.

Problem: any thread may call `run`, `stop`, `shutdown` and `close` at any moment, even from callbacks; yet only one
thread runs the loop, it ends only once, and what was accepted before the end runs. Idea: three words in the kernels'
memory coordinate all of this. The *owner* word says which thread is inside `run`; the *lifecycle* word only moves
forward (except that `stop` takes RUNNING back to AWAKE)::

    AWAKE <--stop-- RUNNING       shutdown, close, auto-exit: --> TERMINATING --> TERMINATED
          --run-->

The thread that moves it to TERMINATING closes the queues in the same call. The loop's owner then finishes it: the
thread in `run()`, or, if there is none, a thread made for this. The third word is `interrupt`: the kernels read it
after each callback and return if it is set, by `close()` or in a forked child.

What happens once in a loop's life is plain Python, here; what happens for each callback is in the kernels.
"""

from __future__ import annotations

import _thread
import contextlib
import enum
import errno
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, Self

import numpy as np

from . import hooks
from . import signals as _signals
from .descriptors import Descriptors
from .errors import (
    ForkedLoopError,
    LoopAlreadyRunningError,
    LoopTerminatedError,
    NbloopError,
    PollerFailedError,
    ReentrantCloseError,
    ReentrantRunError,
)
from .kernels.base import layout
from .kernels.base.kernel import bound, faces
from .kernels.methods import lifetime
from .kernels.turn import turn
from .lock import LOOK, CountingLock, Latch
from .options import FastPathMode, check_timeout
from .parts import Part
from .scheduling import Scheduling
from .threads import begin
from .unique import Unique
from .waiting import Waiters


class LoopState(enum.Enum):
    """Where a loop is in its life. `AWAKE`: not running, either not yet or not since `stop()`, but accepting work.

    >>> import nbloop
    >>> loop = nbloop.Loop()
    >>> loop.state
    <LoopState.AWAKE: 'awake'>
    >>> loop.close()
    >>> loop.state
    <LoopState.TERMINATED: 'terminated'>
    """

    AWAKE = "awake"
    RUNNING = "running"
    SLEEPING = "sleeping"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}

_here = threading.local()  # `loop`: a weak reference to the loop that this thread began to run last


def running_here() -> Lifecycle | None:
    """The loop whose callback is running on the calling thread, the innermost one; None if there is none."""
    of: Callable[[], Any] | None = getattr(_here, "loop", None)
    loop = of() if of is not None else None
    return loop if loop is not None and loop.is_loop_thread() else None


class Lifecycle(Unique, Scheduling):
    """The core of a `Loop`: what schedules, runs and ends it, and all that its parts and views know of it."""

    _recorder: Any

    _closing = False  # was `close` called?
    _ended_by: BaseException | None = None  # why its group ended it: the cause of each refusal since then
    _forked = False  # has the loop stayed in the parent process?
    _runner = 0  # identifier of the thread that runs or finishes the loop, or did so last

    def __init__(
        self,
        name: str,
        state: Any,
        mode: FastPathMode,
        *,
        debug: bool,
        captures: bool,
        on_error: hooks.ErrorHandler | None,
    ) -> None:
        self.name = name
        self.debug = debug
        self._captures = captures
        self._on_error = on_error
        self._made = time.monotonic_ns()
        self._state = state
        self._record = state.record
        # Re-entrant because of signal handlers. For cold paths, such as making handles; never for running callbacks.
        self._lock = CountingLock()
        self._ended = Latch()
        self._finishing = _thread.allocate_lock()  # held by the thread made to end the loop
        self._descriptors = Descriptors(name, state, self._lock, mode, captures)
        # The parts that end with it, in this order. The key is the class, if the loop has one part of it, or the part
        # itself.
        self._parts: dict[Any, Any] = {Descriptors: self._descriptors}
        self._waiters = Waiters(name)
        self._acquire = lifetime.acquire.bind(state)
        self._give_up = lifetime.leave.bind(state)
        self._transition = lifetime.transition.bind(state)
        _live.add(self)
        if mode is FastPathMode.DISABLED:  # now that `__del__` closes what is open
            self._descriptors.table.open_poller()
        self._descriptors.install()

    @property
    def state(self) -> LoopState:
        """Where the loop is in its life, possibly already outdated. Any thread."""
        lifecycle = self._lifecycle()
        if lifecycle == layout.AWAKE:
            return LoopState.AWAKE
        if lifecycle == layout.TERMINATED:
            return LoopState.TERMINATED
        if lifecycle == layout.TERMINATING and self._record["remote"]["tail"] < 0:  # the queue that is closed last
            return LoopState.TERMINATING  # a thread that sees this will find its submits refused
        return LoopState.SLEEPING if self._record["sleep"] else LoopState.RUNNING

    @bound(lifetime.alive)
    def alive(self) -> bool:
        """Whether there is anything to run except unreferenced timers. Any thread; possibly outdated if others submit
        meanwhile. O(1).
        """
        return False  # pragma: no cover

    def what_keeps_alive(self) -> dict[str, int]:
        """What makes `alive` true, and so what an `auto_exit` loop waits for: how many there are of each kind.

        The kinds: ``tasks``, ``producers with tasks`` (1 for any number), ``commands of other threads`` (which the
        loop has not seen yet), ``next-ticks``, ``microtasks``, ``checkpoint ends``, ``immediates``, ``close
        callbacks``, ``internal tasks`` (one of them for each channel that hands over its records), ``timers``
        (referenced ones, intervals included), ``descriptors`` and ``functions of promisify``. Nothing else keeps a loop
        alive: not pending promises, coroutines that wait for them, signal handlers, or unreferenced timers.

        Any thread, also while a callback hangs; a moment old. O(1).

        >>> import nbloop
        >>> loop = nbloop.Loop(auto_exit=True)
        >>> timer = loop.schedule_timer(3600, print)
        >>> loop.what_keeps_alive()
        {'timers': 1}
        """
        self._check_fork()
        counts = np.zeros(len(lifetime.REASONS), np.int64)
        lifetime.reasons.bind(self._state)(counts)
        return {reason: count for reason, count in zip(lifetime.REASONS, counts.tolist(), strict=True) if count > 0}

    @bound(lifetime.is_loop_thread)
    def is_loop_thread(self) -> bool:
        """Whether the calling thread is the one inside `run()`. Any thread. O(1)."""
        return False  # pragma: no cover

    def run(self) -> None:
        """Run the loop on this thread until `stop()`, `shutdown()`, `close()` or, with `auto_exit`, until nothing
        keeps it alive.

        Raises `LoopAlreadyRunningError`, `ReentrantRunError` (from its own callback), `LoopTerminatedError`,
        `PollerFailedError`, and `ForkedLoopError` in a forked child.
        KeyboardInterrupt and SystemExit from a callback, and Ctrl-C on the main thread, leave it; what was accepted
        stays queued, and the loop can be run again.
        """
        if self.is_loop_thread():
            raise ReentrantRunError(f"{self.name}.run() was called from one of its own callbacks")
        try:
            self._enter()
            self._turn()
        finally:  # covers Ctrl-C between the two calls: an exception can come anywhere after `try` is entered
            self._give_up()
            self._owe_end()

    @bound(lifetime.stop)
    def stop(self) -> None:
        """Make `run()` return after the current turn, or, if the loop is not running, after the first turn of the next
        `run`, which will not sleep.

        What is queued stays queued, and the loop can be run again. Any thread, also in signal handlers. O(1).
        """

    @bound(lifetime.wake)
    def wake(self) -> bool:
        """Wake the loop if it sleeps; return whether this call did. Rarely needed, since every submit wakes the loop.
        Any thread. One load if awake.
        """
        return False  # pragma: no cover

    def _enter(self) -> None:
        """Become the owner of a loop that is AWAKE, or raise."""
        self._check_fork()
        while held := self._acquire():
            if held == 2:
                raise ReentrantRunError(f"{self.name}.run() was called from one of its own callbacks")
            if self._lifecycle() == layout.RUNNING:
                raise LoopAlreadyRunningError(f"{self.name} is run by another thread")
            if self._lifecycle() != layout.AWAKE:
                break  # the owner is finishing it
            time.sleep(0)  # owned only for a moment: another run() begins or ends, or the mode changes
        if held or not self._transition(layout.AWAKE, layout.RUNNING):
            if not held:
                self._give_up()
                self._owe_end()
            raise self._terminated("cannot be run: it has terminated or is about to")

    def _owe_end(self) -> None:
        """If the loop must end and has not, because of an exception or of our brief ownership, make a thread do it."""
        if self._lifecycle() == layout.TERMINATING:
            self._ensure_finisher()

    def _turn(self) -> None:
        outside = getattr(_here, "loop", None)  # the loop in whose callback this is called, if any
        try:
            _here.loop = weakref.ref(self)
            self._turn_until_end()
        except BaseException as error:
            self._waiters.abandon(f"an exception left {self.name}.run()", error)
            for part in self._all_parts():
                part._run_raised()
            raise
        finally:
            _here.loop = outside
            self._leave()

    def _turn_until_end(self) -> None:
        self._runner = threading.get_ident()
        self._record["nap"], self._record["napped"] = _signals.nap(), 0
        turns = turn.run.bind(self._state)
        while True:
            ended = turns()
            if ended == turn.ENDED_PARK:
                self._park()
            elif ended == turn.ENDED_LOOK:
                self._look()
            elif ended == turn.ENDED_NAP:
                self._doze()
            elif ended == turn.ENDED_BROKEN:
                self._end_broken(self._io_error())
            elif ended == turn.ENDED_STOP:
                if self._transition(layout.RUNNING, layout.AWAKE):
                    return
            elif ended == turn.ENDED_QUIET:
                if self._quiet_for_good():
                    self._finish()
                    return
            else:  # interrupted, or ending
                self._check_fork()
                self._finish()
                return

    def _park(self) -> None:
        """Sleep on behalf of the kernels, which have announced the sleep."""
        try:
            self._look()
        finally:
            lifetime.awaken.bind(self._state)()

    def _look(self) -> None:
        """Wait outside the kernels, for as long as they request."""
        try:
            found = self._descriptors.wait()
        except OSError as error:
            self._end_broken(error)
        else:
            self._descriptors.table.collect(found)

    def _doze(self) -> None:
        """After a nap on the main thread without arrivals, sleep on, but also wait for Python's wake-up descriptor.

        If no descriptors are free, or the kernels cannot wait in the poller, the loop goes on with naps: 20 a second.
        """
        ended = 0
        try:
            poller = self._descriptors.poller()
            if poller.park_mode == layout.PARK_EPOLL:
                ended = _signals.watchful(turn.doze.bind(self._state))
        except MemoryError:
            return
        except OSError as error:
            self._check_fork()  # a signal handler has forked in the middle
            if error.errno not in NO_DESCRIPTORS:  # raised by a signal handler
                raise
        if ended == turn.ENDED_BROKEN:
            self._end_broken(self._io_error())

    def _io_error(self) -> OSError:
        number = int(self._record["io"]["error"])
        return OSError(number, os.strerror(number))

    def _end_broken(self, error: OSError) -> NoReturn:
        """End the loop because its poller failed, since polling again would spin. What was accepted still runs.

        In a child that a signal's handler forked while the loop slept, the poller is closed: ForkedLoopError.
        """
        self._check_fork()
        hooks.log(error, "%s cannot poll any more and ends", self.name, loop=self.name, level=logging.CRITICAL)
        self._begin_end()
        self._finish()
        raise PollerFailedError(error.errno, f"{self.name} cannot poll any more and has ended: {error}") from error

    def _quiet_for_good(self) -> bool:
        """Auto-exit: the kernel found nothing left and closed the queues; end if the handles are empty too."""
        with self._lock:
            quiet: bool = lifetime.end_if_quiet.bind(self._state)(self._state.entrances())
        if not quiet:
            self._state.resume_channels()
        return quiet

    def start(self) -> threading.Thread:
        """Run the loop in a new thread; returns once it runs. Raises what `run` would.

        The thread is a daemon: the interpreter's exit does not wait for a loop that was not shut down. If a signal
        handler raises out of this call, the thread stops the loop, as `stop` does, and ends.
        """
        return self._start(None)

    def _start(self, left: Callable[[Lifecycle, BaseException | None], object] | None) -> threading.Thread:
        """`start`; the thread calls ``left(loop, error)`` when it has left `run`, with its exception or None."""
        handed = [self]  # the thread takes the loop, or this call takes it back
        entered = Latch()
        failure: list[NbloopError] = []

        def body() -> None:
            try:
                loop = handed.pop()
            except IndexError:
                return
            try:
                loop._enter()
            except NbloopError as error:
                failure.append(error)
                return
            finally:
                entered.set()
            failed: BaseException | None = None
            try:
                loop._turn()
            except BaseException as error:
                if left is None:
                    raise
                failed = error
            finally:
                loop._give_up()
                loop._owe_end()
            if left is not None:
                left(loop, failed)
                failed = None  # its traceback has this frame

        if self.is_loop_thread():
            raise ReentrantRunError(f"{self.name}.start() was called from one of its own callbacks")
        thread = threading.Thread(target=body, name=self.name, daemon=True)
        try:
            begin(thread)
            while not entered.wait(LOOK):
                pass
        except BaseException:
            if self._forked:  # the first 3.13 raises RuntimeError for a thread that was made before the fork
                self._check_fork()
            try:
                handed.pop()
            except IndexError:
                while not entered.wait(LOOK):
                    pass
                if not failure:
                    self.stop()
            raise
        if failure:
            thread.join()
            raise failure[0]
        return thread

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self._forked:  # a child that leaves the block ends nothing
            self.shutdown()

    def _change[*Arguments](self, change: Callable[[*Arguments], bool], *arguments: *Arguments) -> None:
        """Call ``change(*arguments)`` under the lock; if it returns True or raises, make the loop sleep as mode and
        descriptors now require. A signal handler may raise after the change and before the loop learns of it; without
        the second case, nothing would wait for the new watch.
        """
        try:
            with self._lock:
                changed = change(*arguments)
            if changed:
                self._change_over()
        except BaseException as error:
            if not self._forked:
                self._change_over()
            elif isinstance(error, Exception):  # a signal handler has forked in the middle, which ended the table
                self._check_fork()
            raise

    def _change_over(self) -> None:
        """Make the loop sleep as mode and descriptors now require: at once if no thread runs it, else before its next
        sleep.
        """
        while not self.is_loop_thread():
            try:
                if self._acquire() == 0:
                    self._descriptors.install()
                    return
            finally:
                self._give_up()  # first: it is one C call, so an exception can only come after it
                self._owe_end()
            if self._lifecycle() != layout.AWAKE:  # it runs: only its own thread may change how it sleeps
                with contextlib.suppress(LoopTerminatedError):  # it will not sleep again
                    self.submit_internal(self._descriptors.install)
                return
            time.sleep(0)
        self._descriptors.install()

    # --- ending
    # ----------------------------------------------------------------------------------------------------------

    def shutdown(self, timeout: float | None = None) -> None:
        """End gracefully: refuse new work, run what was accepted, then release the rest; returns when that is done.

        The accepted immediates, close callbacks, internal and external tasks run, with the microtasks they queue;
        timers do not. From a callback, and from a function that `promisify` runs, it only requests the end and returns.
        A loop that was never run is finished on a new thread. Any number of threads may call it, any number of times.
        Raises TimeoutError after `timeout` seconds; the shutdown goes on.
        """
        if timeout is not None:
            check_timeout(timeout)
        self._check_fork()
        self._begin_end()
        if self.is_loop_thread():
            return
        self._ensure_finisher()
        if self._waiters.at_work():  # the end waits for this worker
            return
        if not self._wait_for_end(timeout):
            raise TimeoutError(f"{self.name} has not ended within {timeout} s; the shutdown goes on")

    def close(self) -> None:
        """End at once: let the callback in progress finish, drop the rest and release its references; returns when
        that is done.

        Not from the loop's own callbacks (`ReentrantCloseError`). Any other thread; idempotent.
        """
        self._check_fork()
        if self.is_loop_thread():
            raise ReentrantCloseError(f"{self.name}.close() was called from one of its own callbacks; use shutdown()")
        self._begin_close()
        try:
            if self._acquire() == 0:
                self._finish_refusing()
        finally:
            self._give_up()
            self._owe_end()
        if not self._ended.is_set():
            self._wait_for_end(None)

    def _wait_for_end(self, timeout: float | None) -> bool:
        """Wait until the loop has ended; False after `timeout`. Checks now and then that some thread is still ending
        it: Ctrl-C may have made a `run` leave without a finisher.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK if until is None else min(LOOK, until - time.monotonic())
            if self._ended.wait(max(0.0, left)):
                return True
            if left < LOOK:
                return False
            self._ensure_finisher()

    def _begin_end(self) -> None:
        """Move to TERMINATING and refuse new work, from any state."""
        while self._lifecycle() < layout.TERMINATING:  # repeat if a run() or a stop() came between the two
            if not self._transition(layout.RUNNING, layout.TERMINATING):
                self._transition(layout.AWAKE, layout.TERMINATING)
        self._refuse_new()

    def _begin_close(self) -> None:
        """`_begin_end`, for an end that drops what was accepted: the loop leaves `run` after the current callback."""
        self._closing = True
        for part in self._all_parts():
            part._hurry()
        self._begin_end()
        lifetime.interrupt.bind(self._state)(1)

    def _refuse_new(self) -> None:
        lifetime.close_queues.bind(self._state)()
        with self._lock:
            self._state.close_handles()

    def _ensure_finisher(self) -> None:
        """If no thread runs a loop that must end, make a thread that ends it."""
        if not self._ended.is_set() and not self._finishing.locked() and not self._record["owner"]:
            # One C call, which an exception of a signal handler cannot split; `threading.Thread.start` is many.
            _thread.start_new_thread(self._finish_elsewhere, ())

    def _finish_elsewhere(self) -> None:
        if not self._finishing.acquire(blocking=False):
            return  # another finisher was made at the same instant
        threading.current_thread().name = f"{self.name}-finisher"
        # The owner may be a run() that is finding out that it came too late, or one that finishes the loop itself.
        while self._acquire() != 0:
            if self._ended.wait(0.001):
                return
        try:
            while not self._ended.is_set():
                try:
                    self._finish()
                # There is no run() for these to leave, and the remaining callbacks must still run.
                except (KeyboardInterrupt, SystemExit) as error:
                    message = "%s: a callback asked to leave run() while the loop ended without one"
                    hooks.log(error, message, self.name, loop=self.name)
        finally:
            self._finishing.release()
            lifetime.release.bind(self._state)()

    def _finish(self) -> None:
        """Drain, unless closing; then release everything. Owner only, lifecycle TERMINATING."""
        if not self._ended.is_set():
            self._refuse_new()
            self._finish_refusing()

    def _finish_refusing(self) -> None:
        """`_finish`, once new work is refused."""
        if self._ended.is_set():
            return
        self._runner = threading.get_ident()
        _here.loop = weakref.ref(self)
        try:
            self._drain()
        finally:
            self._leave()
        state = self._state
        lifetime.release_pending.bind(state)()
        state.drop_handles()
        while state.item(layout.STATE.WAKES_SENT >> 3) < state.item(layout.STATE.CLAIMED >> 3):
            time.sleep(0)  # a wake call is on its way to the descriptor that will be closed next
        for part in self._all_parts():
            part._loop_ended()
        _live.discard(self)
        try:
            self._waiters.abandon(f"{self.name} has terminated")
        finally:
            self._ended.set()

    def _drain(self) -> None:
        """Run what was accepted, and end what is still at work or waits."""
        drain = turn.drain.bind(self._state)
        while not self._closing and drain() == turn.ENDED_DRAINED:
            if self._state.close_handles():
                self._state.resume_channels()
                time.sleep(0)  # a producer is between its ticket and its announcement
            elif not (
                any(part._finish() for part in self._all_parts()) or any(part._cancel() for part in self._all_parts())
            ):
                break
        lifetime.interrupt.bind(self._state)(1)  # no microtask is taken from now on, as none would run
        for part in self._all_parts():
            part._drop()

    def _leave(self) -> None:
        for part in self._all_parts():
            part._left()

    def _part[P: Part](self, kind: Callable[[Self], P]) -> P:
        """The loop's only part of a class, made when it is first asked for. Any thread, signal handlers included."""
        found: P | None = self._parts.get(kind)
        if found is None:  # the first to come decides
            found = self._parts.setdefault(kind, kind(self))
        return found

    def _all_parts(self) -> list[Part]:
        """In the order in which they registered. Any thread: making the list is one step."""
        return list(self._parts.values())

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The loop was forgotten, but methods taken from it may live on and keep the state: drop what is queued here.
        if not finalizing() and "_transition" in self.__dict__ and not self._forked and not self._ended.is_set():
            self.close()

    def _lifecycle(self) -> int:
        return self._state.item(layout.STATE.LIFECYCLE >> 3)  # type: ignore[no-any-return]

    def _check_fork(self) -> None:
        if self._forked:
            raise ForkedLoopError(f"{self.name} belongs to the process that made it; make a new Loop after os.fork()")

    def _terminated(self, refusal: str) -> LoopTerminatedError:
        """The error for a call that the loop's end refuses. Raises ForkedLoopError if a signal handler has forked since
        the call began.
        """
        self._check_fork()
        return LoopTerminatedError(f"{self.name} {refusal}")

    def __repr__(self) -> str:
        return f"<nbloop.Loop {self.name} {'forked' if self._forked else self.state.value}>"


# --- fork -----------------------------------------------------------------------------------------------------------

_live: weakref.WeakSet[Lifecycle] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Make every inherited loop refuse: its thread stayed in the parent, and its descriptors are shared with it."""
    for loop in list(_live):
        loop._forked = True
        loop._lock = CountingLock()  # another thread of the parent may have held it
        for name in faces(type(loop)):
            loop.__dict__[name] = lambda *_args, _loop=loop: _loop._check_fork()
        loop._record["owner"] = 0  # no thread of this process runs it, whatever address a thread state gets
        # The sleeper is in the parent, and its wake descriptor is shared: nothing here may write to it.
        loop._record["sleep"] = 0
        lifetime.interrupt.bind(loop._state)(1)
        # A child forked in a callback returns into the kernel, and must not count in the parent's figures.
        for word in ("observed", "metrics", "recorder"):
            loop._record[word] = 0
        loop._refuse_new()
        loop._record["lifecycle"] = layout.TERMINATED  # timers, immediates and the loop's views check this
        for part in loop._all_parts():
            part._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
