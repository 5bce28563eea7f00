"""The Python functions that kernels call: to report an exception, refuse a call, signal an overload, check interrupts.

Each hook gets a weak reference to the loop, because the state that holds the hooks may outlive it. An exception of a
hook leaves `run()`: `report` raises KeyboardInterrupt and SystemExit. `refuse` raises the exception of every refused
call, so all messages are in one place.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import weakref
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Literal, Protocol

from . import debug, signals
from .descriptors import Descriptors
from .errors import LoopOverloadedError, LoopTerminatedError
from .kernels.base import layout
from .kernels.calls.captured import RUN_IN_CONTEXT
from .kernels.state.state import ChannelWords
from .lock import CountingLock

logger = logging.getLogger("nbloop")

type ErrorHandler = Callable[[BaseException, dict[str, Any]], object]


class Reporting(Protocol):
    """A loop, as reports see it."""

    name: str
    _on_error: ErrorHandler | None


class Refusing(Protocol):
    """A loop, as refusals of calls see it."""

    _lock: CountingLock

    def _lifecycle(self) -> int: ...
    def is_loop_thread(self) -> bool: ...


class Hooked(Reporting, Refusing, Protocol):
    """A loop, as kernels' hooks see it."""

    _record: Any
    _descriptors: Descriptors
    _on_overload: Callable[[LoopOverloadedError], object] | None
    _on_pressure: Callable[[Literal["high", "low"]], object] | None
    _ended_by: BaseException | None

    def _check_fork(self) -> None: ...


def check_interrupts() -> None:
    """An empty Python function: entering it makes the interpreter check for signals, garbage collection, stop-the-world
    and the GIL's switch.
    """


def report(of: weakref.ref[Hooked], error: BaseException, kind: int, what: Any) -> None:
    """Report the exception of a callback; re-raise it if it must leave the loop.

    There must be no other Python frame between this one and the kernel: a frame that held the error would be in its
    traceback.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        try:
            raise error
        finally:  # its traceback keeps this frame, which would keep error and callback alive until a collection
            del error, what
    tell(of(), error, layout.KIND_NAMES[kind], what)


def unawaited(of: weakref.ref[Hooked], coroutine: CoroutineType[Any, Any, Any], kind: int, what: Any) -> None:
    """A callback has returned a coroutine, which the loop does not run: close it, and report that. A coroutine that has
    begun, or has ended, belongs to other code.
    """
    frame: object = coroutine.cr_frame  # None if it has ended, which typeshed does not know
    if frame is None or coroutine.cr_running or coroutine.cr_suspended:
        return
    coroutine.close()
    never_awaited(of(), coroutine, layout.KIND_NAMES[kind], what)


def never_awaited(loop: Reporting | None, coroutine: CoroutineType[Any, Any, Any], kind: str, what: Any) -> None:
    """Report a coroutine that a callback has returned and that was never run."""
    callback = debug.described(_callback_of(what)[0])["callback"]
    name = getattr(callback, "__qualname__", None) or repr(callback)
    error = RuntimeError(f"the coroutine {coroutine.__qualname__!r} of {name} was never awaited: use js.spawn")
    tell(loop, error, kind, what)


def _callback_of(what: Any) -> tuple[Any, tuple[Any, ...]]:
    """The callback and the arguments of what kernels have called, whatever context it ran in."""
    # The kernels' tuples have exactly that type, which cannot be called; a callable may have a type derived from it.
    callback, args = (what[0], what[1:]) if type(what) is tuple else (what, ())
    while callback is RUN_IN_CONTEXT and len(args) >= layout.CALLBACK_AT:
        callback, args = args[layout.CALLBACK_AT - 1], args[layout.CALLBACK_AT :]
    of = getattr(callback, "__self__", None)
    if isinstance(of, ChannelWords):  # the task is a delivery, and the user's callback is what it calls
        callback = of.on_batch
    return callback, args


def tell(loop: Reporting | None, error: BaseException, kind: str, what: Any) -> None:
    """Pass the exception of a callback, or of a tuple of callback and arguments, to `on_error` or to the logger. Raises
    only KeyboardInterrupt and SystemExit.
    """
    try:
        _tell(loop, error, kind, what)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # such as no memory for a report: an exception of a callback never stops the loop
        with contextlib.suppress(Exception):
            sys.excepthook(*sys.exc_info())


def _tell(loop: Reporting | None, error: BaseException, kind: str, what: Any) -> None:
    callback, args = _callback_of(what)
    context: dict[str, Any] = {"loop": loop, "kind": kind, "args": args} | debug.described(callback)
    callback = context["callback"]
    message = "%s %r of %s raised"
    name = loop.name if loop is not None else "an unknown loop"
    if loop is None or loop._on_error is None:
        values: list[object] = [kind, callback, name]
        if "scheduled_at" in context:
            message += "\nscheduled at:\n%s"
            values.append("".join(context["scheduled_at"].format()).rstrip())
        log(error, message, *values, loop=name, extra={"nbloop": context})
        return
    try:
        loop._on_error(error, context)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as raised:
        if raised is not error and raised.__context__ is None:
            raised.__context__ = error  # the log shows both
        log(raised, "on_error of %s raised while handling: " + message, name, kind, callback, name, loop=name)


def log(
    error: BaseException | None,
    message: str,
    *args: object,
    loop: str,
    level: int = logging.ERROR,
    extra: dict[str, Any] | None = None,
) -> None:
    """Log to the ``nbloop`` logger, with the loop's name as the record's `loop`. An exception of a logging handler goes
    to `sys.excepthook`, and does not stop the loop.
    """
    try:
        logger.log(level, message, *args, exc_info=error, extra={"loop": loop} | (extra or {}))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())


def overload(of: weakref.ref[Hooked]) -> None:
    loop = of()
    if loop is None or loop._on_overload is None:
        return
    budget = int(loop._record["budget"])
    try:
        loop._on_overload(
            LoopOverloadedError(f"more than ingress_budget={budget} tasks waited for one turn of {loop.name}")
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as raised:
        log(raised, "on_overload of %s raised", loop.name, loop=loop.name)


def pressure(of: weakref.ref[Hooked]) -> None:
    loop = of()
    if loop is None or loop._on_pressure is None:
        return
    try:
        loop._on_pressure("high" if loop._record["pressed"] else "low")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as raised:
        log(raised, "on_pressure of %s raised", loop.name, loop=loop.name)


def warn(of: weakref.ref[Hooked]) -> None:
    loop = of()
    name = loop.name if loop is not None else "a forgotten loop"
    log(
        None,
        "100,000 microtasks and next-ticks in one checkpoint of %s: is one scheduling itself for ever?",
        name,
        loop=name,
        level=logging.WARNING,
    )


def wake_parker(of: weakref.ref[Hooked], interruption: BaseException | None = None) -> Callable[[], object] | None:
    """Wake a loop that sleeps in Python. `interruption` was raised in an earlier attempt to call this. Unless this
    returns None, the kernel calls the result when it is done.
    """
    loop = of()
    if loop is not None and (parker := loop._descriptors.parker) is not None:
        parker.wake()
    if interruption is None:
        return None
    again = None
    # An errno means that the poller failed. A signal handler raised anything else: raise it again, where that is
    # allowed.
    if not isinstance(interruption, OSError) or interruption.errno is None:
        again = signals.raising_soon(interruption)
    if again is None:
        name = loop.name if loop is not None else "a forgotten loop"
        log(interruption, "an exception interrupted a wake-up of %s", name, loop=name)
    return again


def renew(of: weakref.ref[Hooked]) -> None:
    """Rebuild the poller: it reports a descriptor that was closed before it was unregistered, and cannot be removed."""
    loop = of()
    if loop is None:
        return
    with loop._lock:
        try:
            loop._descriptors.table.renew()
        except OSError as error:  # no descriptor free for a new set: try again at its next event
            loop._record["io"]["suspect"] = 1
            log(error, "%s cannot renew its poller", loop.name, loop=loop.name)


def finds_out(loop: Refusing) -> bool:
    """After a refusal because a queue is closed: may the queue open again, so that the call must be retried? Yes, while
    the loop finds out whether it may exit. Not on the loop's own thread, where that goes on only when this call has
    ended, and not under the lock, which it needs.
    """
    if loop._lifecycle() >= layout.TERMINATING or loop.is_loop_thread() or loop._lock._recursion_count() > 0:
        return False
    time.sleep(0)
    return True


def refuse(of: weakref.ref[Hooked], code: int, culprit: object, error: BaseException | None = None) -> None:
    """Raise the exception for a refusal; if this returns, the call is retried.

    `error` is the exception of converting `culprit` to a number. Only the interpreter's own errors are replaced: not a
    number, or too large. An exception of its ``__float__`` or ``__index__``, or of a signal handler in them, has a
    Python frame in its traceback, and is passed on to the caller.
    """
    if error is not None and (not isinstance(error, (TypeError, OverflowError)) or error.__traceback__ is not None):
        try:
            raise error
        finally:
            del error  # as in `report`
    loop = of()
    name = loop.name if loop is not None else "the loop"
    if code == layout.REFUSED_CLOSED:
        if loop is not None:
            loop._check_fork()
            if finds_out(loop):
                return
        why = loop._ended_by if loop is not None else None
        raise LoopTerminatedError(f"{name} takes no new work: it has terminated or is about to") from why
    if code == layout.REFUSED_FULL:
        limit = int(loop._record["external"]["limit"]) if loop is not None else 0
        raise LoopOverloadedError(f"{name} is full: ingress_limit={limit} tasks are waiting; nothing was stored")
    if code == layout.REFUSED_CALLABLE:
        raise TypeError(f"callback must be callable, not {culprit!r}")
    if code == layout.REFUSED_ARGUMENTS:
        raise TypeError("the argument callback is missing")
    if code == layout.REFUSED_TIMER:
        raise TypeError("an argument is missing: first a delay, period or deadline in seconds, then a callback")
    if code in (layout.REFUSED_DELAY, layout.REFUSED_DEADLINE, layout.REFUSED_MILLISECONDS):
        which = "delay or period must be a{} number of seconds{}, not {!r}"
        if code == layout.REFUSED_DEADLINE:
            which = "deadline must be a{} number of seconds{}, not {!r}"
        elif code == layout.REFUSED_MILLISECONDS:
            which = "ms must be a{} number of milliseconds{}, not {!r}"
        if isinstance(culprit, (int, float)) or hasattr(culprit, "__float__"):
            most = "4e12" if code == layout.REFUSED_MILLISECONDS else "4e9"
            raise ValueError(which.format(" finite", f", at most {most}", culprit))
        raise TypeError(which.format("", "", culprit))
    if code == layout.REFUSED_IDENTIFIER:
        if isinstance(error, OverflowError):
            return  # an int too large for an id: unknown
        raise TypeError(f"id must be an int, as the scheduling call returned it, not {culprit!r}")
    if code == layout.REFUSED_SLOTS:
        raise MemoryError(
            f"{name} has no memory for another timer, immediate or descriptor, or already has {layout.SLOT_LIMIT:,} of"
            " them; nothing was stored"
        )
    raise MemoryError(f"{name} has no memory for another callback; nothing was stored")
