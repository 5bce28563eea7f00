"""What the kernels call in Python: to report, to refuse, to raise an overload, to check_interrupts.

Each hook gets a weak reference to the loop, because the state that holds the hooks may outlive it. A hook that raises
leaves `run()`: `report` does so for KeyboardInterrupt and SystemExit. `refuse` is where every refused call's exception
is made, so that the messages are in one place.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

from . import debug
from .errors import LoopOverloadedError, LoopTerminatedError
from .kernels.base import layout
from .kernels.state.state import ChannelWords

if TYPE_CHECKING:
    from .loop import Loop

logger = logging.getLogger("nbloop")


def check_interrupts() -> None:
    """Nothing, in bytecode: signals, garbage collection, stop-the-world and the GIL's switch are looked at on entry."""


def report(of: weakref.ref[Loop], error: BaseException, kind: int, what: Any) -> None:
    """A callback has raised. Raises on what must leave the loop.

    There is no other Python frame between this one and the kernel: one that held the error would be in its traceback.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        try:
            raise error
        finally:  # its traceback keeps this frame, which would keep it, and the callback, until a collection
            del error, what
    tell(of(), error, layout.KIND_NAMES[kind], what)


def tell(loop: Loop | None, error: BaseException, kind: str, what: Any) -> None:
    """What a callback, or the first of a tuple with its arguments, has raised: to `on_error`, or to the logger. Raises
    KeyboardInterrupt and SystemExit only.
    """
    try:
        _tell(loop, error, kind, what)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # no memory to report with, say: a callback that raises never stops the loop
        with contextlib.suppress(Exception):
            sys.excepthook(*sys.exc_info())


def _tell(loop: Loop | None, error: BaseException, kind: str, what: Any) -> None:
    # A tuple of the kernels' is of exactly that type, which cannot be called; a callable may be of one derived from it.
    callback, args = (what[0], what[1:]) if type(what) is tuple else (what, ())
    of = getattr(callback, "__self__", None)
    if isinstance(of, ChannelWords):  # of whose delivery the user has written this
        callback = of.on_batch
    context: dict[str, Any] = {"loop": loop, "kind": kind, "callback": callback, "args": args}
    context |= debug.site_of(callback)
    message = "%s %r of %s raised"
    name = loop.name if loop is not None else "no loop that is known"
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
    """To the ``nbloop`` logger, with the loop's name as the record's `loop`. One of its handlers that raises is shown
    as the interpreter would, and does not stop the loop.
    """
    try:
        logger.log(level, message, *args, exc_info=error, extra={"loop": loop} | (extra or {}))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())


def overload(of: weakref.ref[Loop]) -> None:
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


def pressure(of: weakref.ref[Loop]) -> None:
    loop = of()
    if loop is None or loop._on_pressure is None:
        return
    try:
        loop._on_pressure("high" if loop._record["pressed"] else "low")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as raised:
        log(raised, "on_pressure of %s raised", loop.name, loop=loop.name)


def warn(of: weakref.ref[Loop]) -> None:
    loop = of()
    name = loop.name if loop is not None else "a forgotten loop"
    log(
        None,
        "100,000 microtasks and next-ticks in one checkpoint of %s: is one scheduling itself for ever?",
        name,
        loop=name,
        level=logging.WARNING,
    )


def wake_parker(of: weakref.ref[Loop], interruption: BaseException | None = None) -> None:
    """Wake a loop that sleeps in Python. `interruption` was raised when this was called before."""
    loop = of()
    if loop is not None and loop._parker is not None:
        loop._parker.wake()
    if isinstance(interruption, KeyboardInterrupt):
        _thread.interrupt_main()  # once more, where it may be raised
    elif interruption is not None:
        name = loop.name if loop is not None else "a forgotten loop"
        log(interruption, "an exception came in the way of a wake-up of %s", name, loop=name)


def renew(of: weakref.ref[Loop]) -> None:
    """The poller reports a descriptor that was closed before it was unregistered, and that nobody can name any more."""
    loop = of()
    if loop is None:
        return
    with loop._lock:
        try:
            loop._watches.renew()
        except OSError as error:  # no descriptor left for a new set: again when it speaks again
            loop._record["io"]["suspect"] = 1
            log(error, "%s cannot renew its poller", loop.name, loop=loop.name)


def finds_out(loop: Loop) -> bool:
    """After a refusal because a queue is closed: may it be open again, so that the call is to be tried once more? So it
    is while the loop finds out whether it may exit. On its own thread that goes on only when this call has ended, and
    it needs the lock.
    """
    if loop._lifecycle() >= layout.TERMINATING or loop.is_loop_thread() or loop._lock._recursion_count() > 0:
        return False
    time.sleep(0)
    return True


def refuse(of: weakref.ref[Loop], code: int, culprit: object, error: BaseException | None = None) -> None:
    """Raise for a refusal; returning means that the call is tried again.

    `error` is what the conversion of `culprit` to a number has raised. Only the interpreter's own is replaced: that it
    is no number, or too large. What its ``__float__`` or ``__index__`` has raised, or a signal's handler in them, has a
    frame of Python in its traceback, and is the caller's to see.
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
        raise LoopTerminatedError(f"{name} takes no new work: it has terminated or is about to")
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
            return  # an int that no id can be: unknown
        raise TypeError(f"id must be an int, as the scheduling call returned it, not {culprit!r}")
    if code == layout.REFUSED_SLOTS:
        raise MemoryError(
            f"{name} has no memory for one more timer, immediate or descriptor, or {layout.SLOT_LIMIT:,} of them"
            " already; nothing was stored"
        )
    raise MemoryError(f"{name} has no memory for one more callback; nothing was stored")
