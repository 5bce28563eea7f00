"""Signals for a loop in any thread, and for several loops at once.

`signal.signal` can be called on the main thread only, its handlers run on the main thread only, and
`signal.set_wakeup_fd` serves one user per process. Here a signal's C handler is a kernel
(kernels/methods/signal_handler.py) that writes the number to a pipe; a daemon thread reads the pipe and submits
(internally, so that even a full loop gets it) to every loop that handles that signal. Pipe and thread exist only while
some loop handles some signal.

Python does not know of a C handler that it has not set. When a library saves ``signal.getsignal(n)`` and restores it
with ``signal.signal(n, saved)``, as uvicorn does, the signal must reach the loops again. So the handler that Python
reports meanwhile is a `_StandIn`: if Python calls it, it delivers to the loops itself and reinstalls the C handler.
Only the main thread can set it. What another thread adds or removes takes effect in C at once; Python's view of it
follows when the main thread next runs bytecode (``Py_AddPendingCall``).

A signal's previous handler is restored only while the signal is still ours. We ask the system and Python which handler
they have, so no state of our own can disagree with theirs: `_settle` brings both in line with what the loops want,
whatever an exception or another library left behind.

Un-jitted kernels cannot be C handlers, and Windows resets a C handler each time it calls one; there only the stand-in
is used, with the limits of `signal.signal`.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, starmap
from operator import call
from typing import Any, Protocol

from .errors import LoopTerminatedError
from .kernels.base.capi import WINDOWS, libc_sigaction
from .kernels.base.interpreter import keep_for_ever
from .kernels.base.kernel import NO_STATE
from .kernels.methods.signal_handler import (
    COUNT,
    DESCRIPTOR,
    DISPOSITION_BYTES_BITS,
    DISPOSITIONS,
    IGNORED,
    INSIDE,
    PROCESS,
    on_signal,
    signal_words_address,
)
from .lock import ModuleLock
from .parts import Part

logger = logging.getLogger("nbloop")


class Target(Protocol):
    """A receiver of signals."""

    @property
    def _children_ignore(self) -> bool:
        """Do forked children ignore its signals, as with asyncio?"""

    @property
    def submit_internal(self) -> Callable[..., None]:
        """Takes ``callback, *args`` from any thread."""


class LoopSignals(Part):
    """The signals of one loop: the target that stands for it here."""

    def __init__(self, loop: Target) -> None:
        self._loop = weakref.ref(loop)

    @property
    def _children_ignore(self) -> bool:
        loop = self._loop()
        return loop is not None and loop._children_ignore

    def submit_internal(self, callback: Callable[..., object], *args: object) -> None:
        loop = self._loop()
        if loop is not None:
            loop.submit_internal(callback, *args)

    def _loop_ended(self) -> None:
        forget(self)

    def __repr__(self) -> str:
        return repr(self._loop())


type _Handler = tuple[Callable[..., object], tuple[object, ...]]

_NATIVE = bool(on_signal.address) and not WINDOWS  # whether the kernel is the C handler
_UNCATCHABLE = {getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name)}
JOIN = 1.0  # seconds that the removal of the last handler waits for the thread to end
NAP = 50_000_000  # ns that a loop on the main thread sleeps before it dozes: half of the time that Ctrl-C may take

# Writers hold the lock. It is re-entrant, because a collection, a signal handler or a pending call may interrupt one of
# them. Readers take no lock: a value is a tuple that is replaced as a whole.
_lock = ModuleLock()
_asked: dict[int, tuple[tuple[weakref.ref[Target], _Handler], ...]] = {}
_held: dict[int, _StandIn] = {}  # signals that are ours, or were ours and have not been fully restored
_reader: _Reader | None = None
_python_handler = 0  # address of Python's own C handler, once known
# The previous ones: a struct sigaction per number.
_dispositions = keep_for_ever((ctypes.c_char * (COUNT << DISPOSITION_BYTES_BITS))())
_wakeup: tuple[_socket.socket, _socket.socket] | None = None  # Python's wake-up descriptor, while the main thread dozes


def _word(at: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(signal_words_address.bind(NO_STATE)() + at)


def add(target: Target, number: int, callback: Callable[..., object], args: tuple[object, ...]) -> None:
    """Submit ``callback(*args)`` to `target` at each arrival of a signal; replaces its earlier request. Any thread; if
    kernels are un-jitted, a call off the main thread takes effect when that next runs bytecode.

    ValueError for a number that is not a signal, or a signal that cannot be caught.
    """
    _check_number(number)
    if not callable(callback):
        raise TypeError(f"callback must be callable, not {callback!r}")
    if number not in signal.valid_signals():
        raise ValueError(f"sig must be one of signal.valid_signals(), not {number}")
    if number in _UNCATCHABLE:
        raise ValueError(f"sig {number} ({signal.Signals(number).name}) cannot be caught")
    with _lock:
        before = _asked.get(number, ())
        try:
            if _NATIVE:
                _start_reader()
            _asked[number] = (*_others(number, target), (weakref.ref(target), (callback, args)))
            _tell_children()
            if number not in _held or not _is_ours(number):
                _held[number] = _StandIn(number)
            _install(number)
        except BaseException:
            _asked[number] = before
            _settle(number)
            _end_reader()
            raise


def _check_number(number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"sig must be a signal number, not {number!r}")


def _others(number: int, target: Target) -> tuple[tuple[weakref.ref[Target], _Handler], ...]:
    """The other targets of a signal. If a target is in a dead cycle, the collector has cleared its weak reference."""
    return tuple(one for one in _asked.get(number, ()) if one[0]() is not None and one[0]() is not target)


def remove(target: Target, number: int) -> bool:
    """Undo `add`; False if there was nothing to undo. Any thread."""
    _check_number(number)
    with _lock:
        found = any(one() is target for one, _ in _asked.get(number, ()))
        if number in _asked:
            _asked[number] = _others(number, target)
        _tell_children()
        _settle(number)
    _rest_reader()
    return found


def _rest_reader() -> None:
    """If no loop asks for any signal, end the thread, and wait for it."""
    with _lock:
        ended = _end_reader()
    if ended is not None and not _lock._recursion_count():
        if ended.runs() and ended.thread.ident != threading.get_ident():
            ended.thread.join(JOIN)
        if not ended.runs():
            ended.close()


def forget(target: Target) -> None:
    """Undo every `add` of a target that has ended; again, if an exception has left this before its end."""
    for number in {*_asked, *_held}:
        remove(target, number)
    _rest_reader()


def _ignored_by_children() -> set[int]:
    """The signals of those loops whose children must ignore them."""
    targets = ((number, of()) for number, handlers in list(_asked.items()) for of, _ in handlers)
    return {number for number, target in targets if target is not None and target._children_ignore}


def _tell_children() -> None:
    """Store these signals for a child's first moments, in which Python cannot act. Under the lock."""
    bits = sum(1 << (number & 63) for number in _ignored_by_children())
    _word(IGNORED).value = bits - (1 << 64) if bits >> 63 else bits


def _deliver(number: int) -> None:
    """Deliver a signal to every loop that handles it. Any thread, also in Python's signal handlers; no lock."""
    for of, (callback, args) in _asked.get(number, ()):
        target = of()
        if target is not None:
            _hand(target, callback, *args)


def _hand(target: Target, callback: Callable[..., object], *args: object) -> None:
    """Submit to one loop. If it has ended or has no memory, it misses the signal, but the others get it."""
    try:
        target.submit_internal(callback, *args)  # it has no limit, so even a full loop gets its signal
    except LoopTerminatedError:
        pass
    except Exception as error:
        logger.error("a signal did not reach %r", target, exc_info=error)


# --- ownership of a signal --------------------------------------------------------------------------------------------


class _StandIn:
    """The handler that Python reports for a signal while the loops have it.

    Python calls it if the system has Python's own C handler: other code restored that, or the kernel cannot be a C
    handler. When no loop handles the signal any more, it behaves like its predecessor.
    """

    def __init__(self, number: int) -> None:
        """Remember the signal's present handler."""
        now = signal.getsignal(number)
        self.before: Any = now.before if isinstance(now, _StandIn) else now  # None: not a handler of Python
        self.overtaken = False  # whether the main thread set another handler while this was made
        self.owed = False  # whether the main thread must still set it
        if not WINDOWS:
            libc_sigaction(number, 0, _disposition(number))

    def __call__(self, number: int, frame: object) -> Any:
        if _asked.get(number):
            _deliver(number)
            with _lock:
                _settle(number)
        elif callable(before := self.meaning()):
            return before(number, frame)
        else:
            ignored = self.before is signal.SIG_IGN
            now = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
            if not ignored:
                signal.raise_signal(number)
            if now is not self:  # another handler had saved this one and called it
                signal.signal(number, now)
        return None

    def meaning(self) -> Any:
        """The handler for the signal when no loop asks for it any more; None: no handler of Python's.

        `asyncio.Runner` sets a handler of its own for SIGINT while it runs a task, and takes it back after that only if
        Python still names it. If that task has ended, this does what the Runner would have done.
        """
        task = self.before.keywords.get("main_task") if isinstance(self.before, partial) else None
        if task is not None and isinstance(getattr(self.before.func, "__self__", None), _runner()) and task.done():
            self.before = signal.default_int_handler
        return self.before

    def __repr__(self) -> str:
        return f"<nbloop's handler, in place of {self.before!r}>"


def _runner() -> tuple[type, ...]:
    """The class `asyncio.Runner`, in a tuple that is empty if the program has not imported asyncio."""
    found: type | None = getattr(sys.modules.get("asyncio"), "Runner", None)
    return () if found is None else (found,)


def _disposition(number: int) -> int:
    return ctypes.addressof(_dispositions) + (number << DISPOSITION_BYTES_BITS)


def _handler_at(disposition: int) -> int:
    return ctypes.c_int64.from_address(disposition).value  # the first member of the structure, on every system


def _handler(number: int) -> int:
    """The address of the C handler that the system has for a signal."""
    if WINDOWS:
        return 0
    now = ctypes.create_string_buffer(1 << DISPOSITION_BYTES_BITS)
    libc_sigaction(number, 0, ctypes.addressof(now))
    return _handler_at(ctypes.addressof(now))


def _is_ours(number: int) -> bool:
    """Whether a signal still comes to us; if not, other code has set another handler since."""
    handler = _handler(number)
    if _NATIVE and handler == on_signal.address:
        return True
    # Other code restored the stand-in, or a thread that cannot set Python's part gave the signal back; but no C library
    # has taken it.
    known = WINDOWS or handler in (_python_handler, _handler_at(_disposition(number)))
    return known and isinstance(signal.getsignal(number), _StandIn)


def _on_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _settle(number: int) -> None:
    """Bring the system and Python in line with what the loops want: at any time, on any thread, from any state. Under
    the lock.
    """
    if not _asked.get(number, ()):
        _give_back(number)
        _asked.pop(number, None)
    elif number in _held and (_is_ours(number) or (_held[number].owed and not _NATIVE)):
        _install(number)


def _install(number: int) -> None:
    """Direct a signal in `_held` to us. Under the lock; idempotent."""
    global _python_handler
    stand_in = _held[number]
    named = isinstance(signal.getsignal(number), _StandIn)
    # A C library's handler that Python does not know could not be restored through Python.
    if not named and (stand_in.before is not None or not _NATIVE):
        if _on_main_thread():
            before = signal.signal(number, stand_in)
            if before is not None and before is not stand_in.before and not isinstance(before, _StandIn):
                stand_in.before, stand_in.overtaken = before, True
            _python_handler = _handler(number)
            stand_in.owed = False
        else:
            stand_in.owed = True
            _ask_main_thread()
    if _NATIVE:
        ctypes.pythonapi.PyOS_setsig(number, ctypes.c_void_p(on_signal.address))
        signal.siginterrupt(number, False)  # as in asyncio: system calls of C libraries are restarted


def _give_back(number: int) -> None:
    """Restore a signal's previous handler, if the signal is still ours. Under the lock; idempotent."""
    stand_in = _held.get(number)
    if stand_in is None:
        return
    whole = True
    if _is_ours(number):
        if isinstance(signal.getsignal(number), _StandIn):
            whole = _on_main_thread()
            if whole:
                before = stand_in.meaning()
                signal.signal(number, signal.SIG_DFL if before is None else before)
            else:
                _ask_main_thread()
        if not WINDOWS and not (whole and stand_in.overtaken):
            libc_sigaction(number, _disposition(number), 0)  # with its flags; Python may not know it
    if whole:
        _held.pop(number, None)


class _Unsettled:
    """Completes Python's part of what other threads added or removed, as a side effect of its truth value.

    A pending call evaluates it. `PyObject_IsTrue` has the signature of a pending call, and lets an exception (Ctrl-C
    during the call) reach the program, whereas a ctypes callback would swallow it.
    """

    def __bool__(self) -> bool:
        with _lock:
            for number in list(_held):
                _settle(number)
        return False


_unsettled = _Unsettled()


def _asking_main_thread(asked: object) -> Callable[[], int]:
    """A call that makes the main thread evaluate an object's truth value when it next runs bytecode; it returns 0
    unless the queue (32 calls) is full.
    """
    is_true = ctypes.cast(ctypes.pythonapi.PyObject_IsTrue, ctypes.c_void_p)
    return partial(ctypes.pythonapi.Py_AddPendingCall, is_true, ctypes.c_void_p(id(asked)))


def _ask_main_thread() -> None:
    """Have the main thread settle all signals. If the queue is full, the next call does so."""
    _asking_main_thread(_unsettled)()


class _Interruption:
    """An exception that a handler has raised where nothing may be raised."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __bool__(self) -> bool:
        """On the main thread: raise it."""
        _interruptions.remove(self)
        raise self._error


_interruptions: list[_Interruption] = []  # which the main thread has still to raise


def raising_soon(error: BaseException) -> Callable[[], object] | None:
    """A call that makes this thread raise a signal handler's exception again, in the bytecode that it runs afterwards:
    so it must be the last call that a kernel makes. None on any other thread than the main one.
    """
    if not _on_main_thread():
        return None
    interruption = _Interruption(error)
    _interruptions.append(interruption)
    return _asking_main_thread(interruption)


# --- the thread -------------------------------------------------------------------------------------------------------


class _Reader:
    """The pipe that the C handler writes to, and the thread that reads it.

    Its ends are objects, so a reader abandoned by an exception closes itself, but not before the thread has ended. The
    thread is not a `threading.Thread`, because an exception in its `start` can leave locks taken for ever.
    """

    def __init__(self) -> None:
        # One call of C: an exception between two would leave numbers that nobody closes.
        numbers = chain.from_iterable(starmap(os.pipe, ((),)))
        self.ends = tuple(map(open, numbers, ("rb", "wb"), (0, 0)))
        self.stopping = False
        os.set_blocking(self.ends[1].fileno(), False)
        self.thread = _thread._ThreadHandle()

    def start(self) -> None:
        _thread.start_joinable_thread(self._read, handle=self.thread, daemon=True)

    def runs(self) -> bool:
        return bool(self.thread.ident) and not self.thread.is_done()

    def _read(self) -> None:
        threading.current_thread().name = "nbloop-signals"
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # handlers run on threads of the program
        while not self.stopping:
            for number in os.read(self.ends[0].fileno(), 4096):
                _deliver(number)
                if number and not _asked.get(number):
                    _pass_on(number)

    def stop(self) -> None:
        """Make the thread end, even if it has yet to begin. Idempotent. The C handler no longer uses this pipe."""
        self.stopping = True
        with contextlib.suppress(BlockingIOError):  # the pipe is full: the thread will check anyway
            os.write(self.ends[1].fileno(), b"\0")

    def close(self) -> None:
        for end in self.ends:
            end.close()


def _pass_on(number: int) -> None:
    """Pass on a signal that no loop handles. It still came to us because a C library had saved our handler."""
    with _lock:
        if not _asked.get(number) and _handler(number) == on_signal.address:
            libc_sigaction(number, _disposition(number), 0)
            os.kill(os.getpid(), number)


def _start_reader() -> None:
    """Make the pipe and the thread that reads it. Under the lock; idempotent, even after an exception in the middle of
    this, or of `_end_reader`.
    """
    global _reader
    if _reader is None or _reader.stopping or not _reader.runs():
        if _reader is not None:
            _reader.stop()
        _reader = _Reader()
        _reader.start()
    _word(DISPOSITIONS).value = ctypes.addressof(_dispositions)
    _word(PROCESS).value = os.getpid()
    _word(DESCRIPTOR).value = _reader.ends[1].fileno()


def _end_reader() -> _Reader | None:
    """If no loop handles any signal, stop the thread, which may not have ended on return. Under the lock."""
    global _reader
    reader = _reader
    if reader is None or any(_asked.values()):
        return None
    _word(DESCRIPTOR).value = -1
    while _word(INSIDE).value > 0:  # handlers on other threads may be using the descriptor
        time.sleep(0)
    reader.stop()
    _reader = None
    return reader


# --- the main thread asleep -------------------------------------------------------------------------------------------


def nap() -> int:
    """How many ns a loop on this thread may sleep before it dozes; 0 (no limit) except on the main thread."""
    return NAP if _on_main_thread() else 0


def watchful(sleep: Callable[[int], int]) -> int:
    """Call ``sleep(descriptor)``, a sleep on the main thread that ends when the descriptor is readable because a signal
    has arrived that Python handles, and return its result. 0 at once if other code uses the wake-up descriptor. OSError
    if no descriptors are free.

    We own Python's wake-up descriptor only during this call, so no callback ever sees it.
    """
    global _wakeup
    rest()
    # Objects, which close themselves if an exception comes before the store. `socket.socketpair` makes them in Python.
    _wakeup = ours = _socket.socketpair()
    before = None
    steps: tuple[Callable[[], Any], ...] = (
        partial(signal.set_wakeup_fd, -1),
        partial(globals().__setitem__, "_wakeup", None),
    )
    giving_back: Iterator[Any] = map(call, steps)
    try:
        for end in ours:
            end.setblocking(False)
        before = signal.set_wakeup_fd(ours[1].fileno(), warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)  # Python does not reveal the owner's choice
            return 0
        _look_at_signals()  # handle signals that arrived earlier
        return sleep(ours[0].fileno()) if _wakeup is ours else 0  # a handler may have run another loop
    finally:
        if before == -1 and _wakeup is ours:
            found, _ = giving_back  # no call: an exception can only come after it
            if found not in (-1, ours[1].fileno()):
                signal.set_wakeup_fd(found, warn_on_full_buffer=False)
            for end in ours:
                end.close()
        else:
            rest()


def rest() -> None:
    """Give back the wake-up descriptor, if it is ours, even if an exception left it behind. The main thread."""
    global _wakeup
    if _wakeup is not None:
        found = signal.set_wakeup_fd(-1)
        if found not in (-1, _wakeup[1].fileno()):
            signal.set_wakeup_fd(found, warn_on_full_buffer=False)
        for end in _wakeup:
            end.close()
        _wakeup = None


def _look_at_signals() -> None:
    """An empty Python function: entering it on the main thread makes the interpreter run Python's signal handlers."""


# --- fork -------------------------------------------------------------------------------------------------------------


def _ignore(_number: int, _frame: object) -> None:
    """asyncio's loops leave such a handler to their children, and not SIG_IGN, which a program that is executed would
    inherit.
    """


def _after_fork_in_child() -> None:
    """The loops stayed in the parent: restore the previous handlers here, or ignore the signal, and close the copy of
    the parent's pipe.
    """
    global _reader
    ignored = _ignored_by_children()
    _asked.clear()
    for number in list(_held):
        if number in ignored and _is_ours(number):
            signal.signal(number, _ignore)
            _held.pop(number)
        else:
            _give_back(number)
    _word(DESCRIPTOR).value = -1
    _word(INSIDE).value = 0
    reader, _reader = _reader, None
    if reader is not None:
        reader.close()
    rest()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
