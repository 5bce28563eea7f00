"""Signals for a loop in any thread, and for several loops at once.

`signal.signal` can be called on the main thread only, its handlers run on the main thread only, and
`signal.set_wakeup_fd` has one taker a process. Here a signal's C handler is a kernel (kernels/signals.py) that writes
the number to a pipe; one daemon thread, started with the first handler, reads the pipe and submits (internally, so
that a full loop gets it too) to every loop that asked for that signal. The disposition that was there before comes
back when the last of them is removed. `signal.getsignal` does not know of it: it goes on naming the Python handler
that is out of use meanwhile.

Un-jitted kernels can not be C handlers, and Windows forgets a C handler each time it calls one; there `signal.signal`
is used, with its limits.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .errors import LoopTerminatedError
from .kernels.capi import WINDOWS
from .kernels.signals import on_signal, signal_words_address

logger = logging.getLogger("nbloop")


class Target(Protocol):
    """What a signal is delivered to."""

    @property
    def submit_internal(self) -> Callable[..., None]:
        """Takes ``callback, *args`` from any thread."""


type _Handler = tuple[Callable[..., object], tuple[object, ...]]

_NATIVE = bool(on_signal.address) and not WINDOWS  # is the kernel the C handler?
_lock = threading.RLock()  # re-entrant: a collection inside it may end a loop, which forgets its signals
_asked: dict[int, weakref.WeakKeyDictionary[Target, _Handler]] = {}
_before: dict[int, object] = {}  # the disposition to put back: an address, or a Python handler when un-jitted
_pipe: tuple[int, int] | None = None
_reader: threading.Thread | None = None
_interruptible: list[Target] = []  # the loops that the main thread is running, the innermost last


def add(target: Target, number: int, callback: Callable[..., object], args: tuple[object, ...]) -> None:
    """Submit ``callback(*args)`` to `target` for each arrival of a signal; replaces what it asked for before. Any
    thread.

    ValueError for what is no signal's number or can not be caught; un-jitted also off the main thread.
    """
    _check_number(number)
    if not callable(callback):
        raise TypeError(f"callback must be callable, not {callback!r}")
    if number not in signal.valid_signals():
        raise ValueError(f"sig must be one of signal.valid_signals(), not {number}")
    with _lock:
        if number not in _asked:
            _before[number] = _install(number)
            _asked[number] = weakref.WeakKeyDictionary()
        _asked[number][target] = (callback, args)


def _check_number(number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"sig must be a signal number, not {number!r}")


def remove(target: Target, number: int) -> bool:
    """Undo `add`; False if there was nothing to undo. Any thread (un-jitted: the main one)."""
    _check_number(number)
    with _lock:
        wanted = _asked.get(number)
        if wanted is None:
            return False
        found = wanted.pop(target, None) is not None
        if (
            not wanted
        ):  # also if nothing was found: of a target in a cycle the collector clears the weak reference first
            del _asked[number]
            _restore(number, _before.pop(number))
        return found


def forget(target: Target) -> None:
    """Undo every `add` of a target that has ended."""
    for number in list(_asked):
        with contextlib.suppress(ValueError):  # un-jitted, off the main thread: the handler stays, and finds nobody
            remove(target, number)


def _deliver(number: int) -> None:
    with _lock:
        wanted = list(_asked.get(number, {}).items())
    for target, (callback, args) in wanted:
        _hand(target, callback, *args)


def _hand(target: Target, callback: Callable[..., object], *args: object) -> None:
    """Submit to one loop, which may have ended. Without memory that loop does not get it; the reader is everybody's,
    and goes on.
    """
    try:
        target.submit_internal(callback, *args)  # which has no limit: a full loop gets its signal too
    except LoopTerminatedError:
        pass
    except MemoryError as error:
        logger.error("a signal did not reach %r", target, exc_info=error)


class _StandIn:
    """What Python calls SIGINT's handler while the system has nbloop's: asyncio's Runner looks, when `main` has ended,
    whether that still is the one it set, and if so sets another, which takes away the system's, too. Should it be
    reached, because it was left there by a thread that may not change it, it is as good as the one before it.
    """

    def __init__(self, before: Callable[..., Any]) -> None:
        self.before = before

    def __call__(self, number: int, frame: object) -> Any:
        return self.before(number, frame)


def _install(number: int) -> object:
    """Take over a signal; its disposition before."""
    if not _NATIVE:
        return signal.signal(number, lambda arrived, _frame: _deliver(arrived))
    _start_reader()
    if number == signal.SIGINT and threading.current_thread() is threading.main_thread():
        of_python = signal.getsignal(number)
        if callable(of_python) and not isinstance(of_python, _StandIn):
            signal.signal(number, _StandIn(of_python))
    set_handler = ctypes.pythonapi.PyOS_setsig
    set_handler.restype, set_handler.argtypes = ctypes.c_ssize_t, [ctypes.c_int, ctypes.c_void_p]
    before = set_handler(number, on_signal.address)
    if before == -1:  # SIG_ERR
        raise ValueError(f"sig {number} ({signal.Signals(number).name}) can not be caught")
    return int(before)


def _restore(number: int, before: object) -> None:
    if isinstance(before, int) and not isinstance(before, signal.Handlers):
        ctypes.pythonapi.PyOS_setsig(number, ctypes.c_void_p(before))
        stand_in = signal.getsignal(number)
        if isinstance(stand_in, _StandIn) and threading.current_thread() is threading.main_thread():
            signal.signal(number, stand_in.before)
    else:
        signal.signal(number, before)  # type: ignore[arg-type]


def _start_reader() -> int:
    """Have the pipe and the thread that reads it; the end to write to."""
    global _pipe, _reader
    if _pipe is None:
        pipe = os.pipe()
        os.set_blocking(pipe[1], False)
        if _NATIVE:
            ctypes.c_int64.from_address(signal_words_address.bind(None)()).value = pipe[1]
        _pipe = pipe
    # Looked at by itself: there may have been no thread to be had, or a Ctrl-C while it started. Two would do no harm.
    if _reader is None or not _reader.is_alive():
        _reader = threading.Thread(target=_read, args=(_pipe[0],), name="nbloop-signals", daemon=True)
        _reader.start()
    return _pipe[1]


def _read(descriptor: int) -> None:
    while arrived := os.read(descriptor, 256):
        for target in _interruptible:
            _hand(target, _look_at_signals)
        for number in arrived:
            _deliver(number)


def _look_at_signals() -> None:
    """Nothing, in bytecode: on the main thread its entry is where the interpreter runs Python's signal handlers."""


@contextlib.contextmanager
def interruptible(target: Target) -> Iterator[None]:
    """While a loop runs on the main thread: no signal that Python handles (Ctrl-C) goes unseen because the loop was
    just falling asleep.

    A signal that arrives inside the sleeping system call interrupts it; one that arrives an instant before does not,
    and Python's C handler only notes it. But it also writes to the wakeup descriptor, and the reader then gives the
    loop something to run. A wakeup descriptor of somebody else's is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _lock:
        ours = _start_reader()
    before = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
    if before not in (-1, ours):
        signal.set_wakeup_fd(before)
    _interruptible.append(target)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a forked child has cleared it
            _interruptible.remove(target)
        if before == -1:
            signal.set_wakeup_fd(-1)


def _after_fork_in_child() -> None:
    """The pipe is shared with the parent, whose thread reads it: give the signals back before one of ours arrives
    there.
    """
    global _lock, _pipe
    _lock = threading.RLock()
    for number, before in _before.items():
        _restore(number, before)
    _asked.clear()
    _before.clear()
    if _interruptible:
        _interruptible.clear()
        signal.set_wakeup_fd(-1)
    if _pipe is not None:
        for descriptor in _pipe:
            os.close(descriptor)
        _pipe = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
