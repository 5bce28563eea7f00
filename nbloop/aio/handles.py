"""What `call_soon` and its like return: asyncio's own handles, which the core runs.

asyncio's constructor asks the loop for its debug mode and looks for a context; both are known here, and without these
two steps `call_soon` takes four fifths of its time. `cancel` of a timer, which nearly every timer meets, is a kernel;
that of other handles stays asyncio's. It sets its mark before it removes callback and arguments; a run reads these two,
and then checks the mark. So any thread may cancel a handle: it runs with the arguments that it was given, or not at
all.

A task needs no handle. asyncio's tasks are written in C, schedule each of their steps through `call_soon`, and drop the
handle that it returns. Where a task is recognised as the caller, its step goes to the core without a Python frame on
its way.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import weakref
from collections.abc import Callable, Generator
from contextlib import nullcontext
from contextvars import Context
from types import BuiltinFunctionType, MethodType
from typing import Any

import numpy as np

from ..kernels.base.atomics import get
from ..kernels.base.interpreter import (
    BUILTIN_DEFINITION,
    OBJECT_TYPE,
    hidden_slots,
    keep_for_ever,
    reference_offset,
    slot_offsets,
)
from ..kernels.base.kernel import NO_STATE, data, method
from ..kernels.calls.handles import AIO, FREE_THREADED
from ..kernels.methods.asyncio_methods import aio_shared_word_address, aio_timer_cancel
from ..kernels.state.state import LoopWords
from ..lock import CountingLock, ModuleLock
from ..threads import aside
from ..unique import Unique

_UNLOCKED = nullcontext()


def run(handle: asyncio.Handle) -> None:
    """Run a handle of any kind, unless it was cancelled. SystemExit and KeyboardInterrupt leave the loop."""
    with getattr(handle, "_lock", _UNLOCKED):
        _run(handle)
    del handle  # as in `_run`


def _run(handle: asyncio.Handle) -> None:
    of: Any = handle
    callback, args = of._callback, of._args
    if of._cancelled:
        return
    try:
        of._context.run(callback, *args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        of._loop._callback_raised(of, callback, args, error)
    del handle, of, callback, args  # the exception may be kept, and its traceback keeps this frame


_RUN: Any = asyncio.Handle._run
_CREATE_TASK: Any = asyncio.BaseEventLoop.create_task


def _code(function: Any, module: Any, known: str) -> Any:
    """The code of one of asyncio's functions, which works with the attribute `known`; None if a tool had replaced it
    before this import. Tracers may give their code the name of asyncio's file.
    """
    code = getattr(function, "__code__", None)
    return code if code is not None and code.co_filename == module.__file__ and known in code.co_names else None


_RUN_CODE = _code(_RUN, asyncio.events, "_context")
_CREATE_TASK_CODE = _code(_CREATE_TASK, asyncio.base_events, "_task_factory")


def tools_watch() -> bool:
    """Has a tool replaced asyncio's `Handle._run` with a function of its own, as profilers and tracers do?"""
    whole = asyncio.Handle._run is asyncio.TimerHandle._run is Handle._run is TimerHandle._run is _RUN
    return not (whole and _RUN_CODE is not None and _RUN.__code__ is _RUN_CODE)


def tools_make_tasks(inherited: Any) -> bool:
    """Is what a loop inherits as `create_task` not asyncio's, because a tracer has replaced that?"""
    whole = type(inherited) is MethodType and inherited.__func__ is _CREATE_TASK
    return not (whole and _CREATE_TASK_CODE is not None and _CREATE_TASK.__code__ is _CREATE_TASK_CODE)


def run_watched(handle: Any) -> None:
    """Run a handle by its own method."""
    handle._run()


def failed(told: tuple[Any, Callable[..., object], tuple[Any, ...], BaseException]) -> None:
    """The kernel that ran a handle reports that its callback has raised."""
    handle, callback, args, error = told
    try:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise error
        handle._loop._callback_raised(handle, callback, args, error)
    finally:
        del told, handle, callback, args, error  # as in `run`


class _Shows:
    """A loop and a future that record what a task gives them: a step to call soon, and a done callback."""

    _asyncio_future_blocking = True

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def get_debug(self) -> bool:
        return False

    def get_loop(self) -> _Shows:
        return self

    def call_soon(self, callback: object, *_args: object, **_context: object) -> None:
        self.shown.append(callback)

    add_done_callback = call_soon

    def __await__(self) -> Generator[_Shows]:
        yield self


def _kinds_of_steps() -> tuple[type | None, int, int, int, int]:
    """Find out what a C task schedules: the type of the object that is its next step, where that object has the
    exception to raise, and the address of the definition of the callback that the task adds to a future; then where a
    step has its task, and where the task has its context, or 0. Only a task can show them. None and 0 if asyncio's
    tasks are Python's: their steps are methods, and get handles.
    """
    found: list[Any] = []
    places: list[int | None] = []

    def look(shows: _Shows, awaited: _Shows) -> None:
        """Runs on a thread without a running loop or task: since 3.14 a step looks for its own loop there."""

        async def waits() -> None:
            await awaited

        coroutine = waits()
        task: Any = asyncio.Task(coroutine, loop=shows)  # type: ignore[arg-type]
        step = shows.shown.pop()
        found.append(step)
        if type(step).__module__ == "_asyncio":
            places.append(reference_offset(step, lambda held: held is task))
            places.append(reference_offset(task, lambda held: held is task.get_context()))
            asyncio._set_running_loop(shows)  # type: ignore[arg-type]
            step()
            asyncio._set_running_loop(None)
            found.append((awaited.shown or shows.shown).pop())
        task._log_destroy_pending = False
        coroutine.close()

    shows = _Shows()
    aside(lambda: look(shows, shows))
    if len(found) == 1:
        return None, 0, 0, 0, 0
    aside(lambda: look(shows, _Shows()))  # another loop's: the next step raises
    step, wakeup, _, raises = found
    known = type(wakeup) is BuiltinFunctionType and wakeup.__name__ == "TaskWakeup"
    error_at = reference_offset(raises, lambda held: isinstance(held, RuntimeError))
    # An unknown place becomes that of the type, where there is never 0: then Python sees all steps.
    return (
        type(step),
        OBJECT_TYPE if error_at is None else error_at,
        get(id(wakeup) + BUILTIN_DEFINITION) if known else 0,
        # On a free-threaded build another thread might replace the context, by the task's `__init__`, while it is read.
        *((0, 0) if None in places or FREE_THREADED else (places[0] or 0, places[1] or 0)),
    )


Step, ERROR_AT, WAKEUP, TASK_AT, TASK_CONTEXT_AT = _kinds_of_steps()


class Handle(Unique, asyncio.Handle):
    """A callback of `call_soon`. `cancel` from any thread."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: asyncio.AbstractEventLoop, context: Context
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = False
        self._repr = self._source_traceback = None


_asyncios: Any = getattr(asyncio.events, "_ThreadSafeHandle", None)
_one_at_a_time = ModuleLock()  # re-entrant: a signal handler may cancel a handle

if _asyncios is None:  # before Python 3.14
    LockedHandle = Handle
else:

    class LockedHandle(Handle, _asyncios):  # type: ignore[misc, no-redef]
        """A callback of `call_soon_threadsafe`: `cancel` and `cancelled` wait for a callback that another thread runs.

        asyncio makes a lock for each handle, which takes as long as everything else for it. Nearly all callers drop the
        handle, so here the lock is made when it is first asked for.
        """

        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            if name != "_lock":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            with _one_at_a_time:
                try:
                    return _asyncios._lock.__get__(self)
                except AttributeError:
                    lock = CountingLock()
                    _asyncios._lock.__set__(self, lock)
                    return lock


def _cancel(handle: Any) -> None:
    """Cancel a timer's handle as asyncio's two methods do, in the frame of one."""
    if not handle._cancelled:
        loop = handle._loop
        loop._timer_handle_cancelled(handle)
        handle._cancelled = True
        if loop._debug:
            handle._repr = repr(handle)
        handle._callback = handle._args = None


class TimerHandle(Handle, asyncio.TimerHandle):
    """A callback of `call_at`."""

    # The core's array, written by the kernel that makes a timer. A handle keeps its loop, but other code may write into
    # `_loop`.
    __slots__ = ("_core",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        Handle.__init__(self, callback, args, loop, context)
        self._when = when
        self._scheduled = 0  # the core's number of the timer; asyncio reads it as true

    @method(aio_timer_cancel)
    def cancel(self) -> None:
        """Do not call it. Any thread; it leaves nothing behind in the loop."""


(_CORE_AT,) = slot_offsets(TimerHandle)
hidden_slots(TimerHandle, "_core")


# --- what kernels have to know of them

_SLOTS = ("_callback", "_args", "_cancelled", "_loop", "_context", "_repr", "_source_traceback")
_TIMER_SLOTS = ("_when", "_scheduled")
_NAMES, _NAMED, _IN_CONTEXT = ("loop",), ("name", "loop"), ("context", "loop")
_OBJECTS = {
    "none": None,
    "false": False,
    "empty": (),
    "tuple": tuple,
    "float": float,
    "int": int,
    "builtin": BuiltinFunctionType,
    "context_type": Context,
    "future": asyncio.Future,
    "handle": Handle,
    "timer": TimerHandle,
    "locked_handle": LockedHandle,
    "foreign_handle": asyncio.Handle,
    "foreign_timer": asyncio.TimerHandle,
    "run_slowly": run,
    "failed": failed,
    "loop_names": _NAMES,
    "context": sys.intern("context"),
    "callback_name": sys.intern("_callback"),
    "args_name": sys.intern("_args"),
    "context_name": sys.intern("_context"),
    "soon_slowly": sys.intern("_call_soon"),
    "threadsafe_slowly": sys.intern("_call_soon_threadsafe"),
    "later_slowly": sys.intern("_call_later"),
    "at_slowly": sys.intern("_call_at"),
    "scheduled_name": sys.intern("_scheduled"),
    "cancel_slowly": _cancel,
    "core_type": LoopWords,
    "task": asyncio.Task,
    "tasks": vars(asyncio.tasks),
    "task_name": sys.intern("Task"),
    "name": sys.intern("name"),
    "named": _NAMED,
    "in_context": _IN_CONTEXT,
    "create_task_name": sys.intern("create_task"),
    "super_class": super,
    "debug_name": sys.intern("_debug"),
}
for _known in _OBJECTS.values():
    keep_for_ever(_known)  # a finaliser may cancel a timer when the interpreter has emptied this module


def _words() -> Any:
    words = np.zeros(1, AIO.dtype)
    for name, known in _OBJECTS.items():
        words[name] = id(known)
    words["step"] = id(Step) if Step is not None else 0
    words["wakeup"] = WAKEUP
    words["error_at"] = ERROR_AT
    words["task_at"], words["task_context_at"] = TASK_AT, TASK_CONTEXT_AT
    words["weak_at"] = LockedHandle.__weakrefoffset__
    for kind, slots in ((asyncio.Handle, _SLOTS), (asyncio.TimerHandle, _TIMER_SLOTS)):
        for name, at in zip(slots, slot_offsets(kind, slots), strict=True):
            words[name.removeprefix("_").replace("source_", "") + "_at"] = at
    words["core_at"] = _CORE_AT
    return words.view(np.int64)


_WORDS = keep_for_ever(_words())  # what is the same for all loops
WORDS_AT = data(id(_WORDS))
ctypes.c_int64.from_address(aio_shared_word_address.bind(NO_STATE)()).value = WORDS_AT
_in_debug: dict[int, weakref.ref[asyncio.AbstractEventLoop]] = {}  # by identity: a subclass may have an equality


def note_debug(loop: asyncio.AbstractEventLoop, enabled: bool) -> None:
    """While there is a loop in debug mode, timers of all loops are cancelled by Python, which asks theirs."""
    key = id(loop)
    with _one_at_a_time:
        if enabled:
            _in_debug[key] = weakref.ref(loop, lambda _: _leave_debug(key))
            _WORDS[AIO.DEBUG // 8] = len(_in_debug)
        else:
            _leave_debug(key)


def _leave_debug(key: int) -> None:
    """That loop is in debug mode no more, or has gone."""
    with _one_at_a_time:
        _in_debug.pop(key, None)
        _WORDS[AIO.DEBUG // 8] = len(_in_debug)


def new_words() -> Any:
    """A copy of the words for a loop, which writes its own into it."""
    return _WORDS.copy()
