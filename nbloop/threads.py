"""Operations that a signal handler's exception must not interrupt: they run on another thread.

Problem: `threading.Thread.start` and the locks of the standard library are many steps of Python. An exception between
two of them leaves a lock taken, and the thread that needs it next hangs for ever. Idea: signal handlers run on the main
thread only. So a second thread, which one C call starts, does the work. That costs 50 µs, so only rare operations are
done this way.
"""

from __future__ import annotations

import _thread
import contextvars
import sys
import threading
from collections.abc import Callable

from .lock import LOOK, Latch


def aside(call: Callable[[], object]) -> None:
    """Run ``call()`` on a thread of its own, in a copy of the caller's context; return when it has returned, and raise
    what it raises.

    If a signal handler's exception leaves this, the call has ended, or never began; only a second exception, which
    arrives during that wait, leaves while the call goes on. Any thread, also a signal handler. Raises RuntimeError if
    no thread can be started.
    """
    context = contextvars.copy_context()
    done = Latch()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            context.run(call)
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    begun: list[int] = []
    try:
        # One C call: an exception that arrives at its end still finds whether there is a thread to wait for.
        begun.extend(map(_thread.start_new_thread, (run,), ((),)))
        _until(done)
    except BaseException:
        if begun:
            _until(done)
        raise
    if failure:
        raise failure.pop()


def _until(done: Latch) -> None:
    while not done.wait(LOOK):
        pass


def begin(thread: threading.Thread) -> None:
    """``thread.start()``, as `aside` does it."""
    aside(thread.start)


def join(thread: threading.Thread) -> None:
    """``thread.join()`` of a thread that was asked to end. At the interpreter's end it does nothing: the thread stands
    still for ever then.
    """
    if not sys.is_finalizing():
        thread.join()
