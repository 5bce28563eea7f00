"""`create_task`, and the steps of tasks in the core's queue, beside asyncio's."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import ctypes
import gc
import logging
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest

import nbloop
from tests.support.arrivals import compiled_only
from tests.support.waiting import PATIENCE

LOGGERS = logging.getLogger("nbloop"), logging.getLogger("asyncio")
var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")


@pytest.fixture
def aio() -> Iterator[nbloop.EventLoop]:
    loop = nbloop.new_event_loop()
    yield loop
    loop.close()


async def value() -> str:
    return var.get()


def test_a_task_of_any_call(aio: nbloop.EventLoop) -> None:
    """With a name, a context, both or neither, the task is what asyncio's method makes."""
    context = contextvars.copy_context()
    context.run(var.set, "its own")
    spelled = "".join(["na", "me"])  # not the string that a call in a source passes

    async def main() -> None:
        var.set("main's")
        first = aio.create_task(value())
        named = aio.create_task(value(), name="known")
        number = aio.create_task(value(), **{spelled: 17})
        within = aio.create_task(value(), context=context)
        both = aio.create_task(value(), name="both", context=context)
        by_keyword = aio.create_task(coro=value())
        assert [type(task) for task in (first, named, number, within, both, by_keyword)] == [asyncio.Task] * 6
        assert [named.get_name(), number.get_name(), both.get_name()] == ["known", "17", "both"]
        assert first.get_name().startswith("Task-")
        assert aio.create_task(value(), name=None).get_name().startswith("Task-")
        assert within.get_context() is both.get_context() is context
        assert first.get_loop() is aio
        assert await asyncio.gather(first, named, within, both) == ["main's", "main's", "its own", "its own"]

    aio.run_until_complete(main())


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {}),
        ((1,), {}),
        ((None,), {"name": "x"}),
        ((value, value), {}),
        ((value,), {"unknown": 1}),
        ((), {"name": 1}),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_create_task_refuses_what_asyncios_refuses(
    aio: nbloop.EventLoop, arguments: tuple[Any, ...], options: dict[str, Any], debug: bool
) -> None:
    aio.set_debug(debug)
    theirs = asyncio.new_event_loop()
    told = []
    for loop in (theirs, aio):
        with pytest.raises(TypeError) as raised:
            loop.create_task(*arguments, **options)
        told.append(str(raised.value).replace("EventLoop.", "BaseEventLoop.").replace("BaseBase", "Base"))
    theirs.close()
    assert told[0] == told[1]
    assert not asyncio.all_tasks(aio)


def test_create_task_asks_the_factory(aio: nbloop.EventLoop) -> None:
    """One that was set by the method, and one that a tool has written into the loop."""
    asked: list[str] = []

    def factory(loop: Any, coro: Any, **options: Any) -> Any:
        asked.append("factory")
        return asyncio.Task(coro, loop=loop, **options)

    async def main() -> None:
        aio.set_task_factory(factory)
        assert aio.get_task_factory() is factory
        await aio.create_task(value())
        assert asked == ["factory"]
        aio.set_task_factory(None)
        await aio.create_task(value())
        assert asked == ["factory"]
        aio._task_factory = factory
        await aio.create_task(value())
        assert asked == ["factory"] * 2

    aio.run_until_complete(main())
    with pytest.raises(TypeError, match="task factory"):
        aio.set_task_factory(1)  # type: ignore[arg-type]


def test_create_task_makes_what_a_tool_has_put_in_the_place_of_tasks(
    aio: nbloop.EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(asyncio.Task):  # type: ignore[type-arg]
        pass

    async def main() -> None:
        monkeypatch.setattr(asyncio.tasks, "Task", Watched)
        task = aio.create_task(value())
        assert type(task) is Watched
        assert await task == "none"
        monkeypatch.undo()
        assert type(aio.create_task(value())) is asyncio.Task

    aio.run_until_complete(main())


def test_create_task_of_a_closed_loop_starts_nothing(aio: nbloop.EventLoop) -> None:
    reported: list[Any] = []
    aio.set_exception_handler(lambda _loop, context: reported.append(context))
    aio.close()
    coro = value()
    with pytest.raises(RuntimeError, match="closed"):
        aio.create_task(coro)
    gc.collect()
    assert not reported  # a task was destroyed, say
    assert not asyncio.all_tasks(aio)
    coro.close()


def made(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """A task factory."""
    return asyncio.Task(coro, loop=loop, **options)


@compiled_only
@pytest.mark.parametrize("factory", [None, made, asyncio.eager_task_factory])
def test_create_task_in_debug_mode_shows_the_frames_of_asyncios(factory: Any) -> None:
    found = []
    for loop in (asyncio.new_event_loop(), nbloop.new_event_loop()):
        loop.set_debug(True)
        loop.set_task_factory(factory)

        async def main(loop: Any = loop) -> list[Any]:
            shown: list[Any] = [loop.create_task(value()), loop.create_task(coro=value(), name="named")]
            await asyncio.gather(*shown)
            names = [[frame.name for frame in task._source_traceback] for task in shown]
            return [one[one.index("main") :] for one in names]

        with contextlib.closing(loop):
            found.append(loop.run_until_complete(main()))
    theirs, ours = found
    assert theirs == ours


SEEN: list[list[str]] = []


def trace(how: str, patch: Callable[[object, str, Any], object]) -> None:
    """Replace asyncio's `create_task`, or its code, as tracers do."""
    inherited: Any = asyncio.BaseEventLoop.create_task

    def traced(self: Any, coro: Any, **options: Any) -> Any:
        SEEN.append(sorted(options))
        return inherited(self, coro, **options)

    class Wrapper:
        """As wrapt's: what it gives an instance has the attributes of the bound method."""

        def __init__(self, wrapped: Any, instance: Any = None) -> None:
            self.wrapped, self.instance = wrapped, instance

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            return Wrapper(self.wrapped.__get__(instance, owner), instance)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.wrapped, name)

        def __call__(self, coro: Any, **options: Any) -> Any:
            return traced(self.instance, coro, **options)

    class Bound:
        def __get__(self, instance: Any, owner: Any = None) -> Any:
            return self if instance is None else MethodType(traced, instance)

    if how == "code":
        sys.modules["the_tracer"] = SimpleNamespace(seen=SEEN, task=asyncio.Task)  # type: ignore[assignment]

        def create_task(self: Any, coro: Any, **options: Any) -> Any:
            import the_tracer  # type: ignore[import-not-found]  # the globals are asyncio's

            the_tracer.seen.append(sorted(options))
            return the_tracer.task(coro, loop=self, **options)

        code = create_task.__code__.replace(co_filename=inherited.__code__.co_filename)
        patch(inherited, "__code__", code)
    else:
        made = {"function": traced, "wrapper": Wrapper(inherited), "bound": Bound()}[how]
        patch(asyncio.BaseEventLoop, "create_task", made)


def traced_calls(loop: asyncio.AbstractEventLoop) -> list[list[str]]:
    """What a tracer has seen of a program, which begins with its main task."""

    async def main() -> None:
        await asyncio.create_task(value())
        await asyncio.create_task(value(), name="named")
        await asyncio.create_task(value(), context=contextvars.copy_context())
        async with asyncio.TaskGroup() as group:
            group.create_task(value())

    del SEEN[:]
    loop.run_until_complete(main())
    return SEEN[:]


@pytest.mark.parametrize("how", ["function", "code", "wrapper", "bound"])
def test_a_tracer_of_create_task_sees_each_call(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Also one that comes between the making of a loop and its run."""
    with contextlib.closing(asyncio.new_event_loop()) as theirs, contextlib.closing(nbloop.new_event_loop()) as ours:
        trace(how, monkeypatch.setattr)
        assert len(traced_calls(theirs)) == 5
        assert traced_calls(ours) == traced_calls(theirs)
        monkeypatch.undo()
        assert traced_calls(ours) == []


@pytest.mark.parametrize("how", ["function", "code", "wrapper", "bound"])
def test_a_tracer_that_comes_before_nbloop(how: str) -> None:
    code = f"""if True:
    import asyncio
    import tests.aio.test_create_task as here
    assert "nbloop.aio.handles" not in here.sys.modules
    here.trace({how!r}, setattr)
    theirs, ours = asyncio.new_event_loop(), here.nbloop.new_event_loop()
    assert here.traced_calls(ours) == here.traced_calls(theirs) != []
    theirs.close()
    ours.close()
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=PATIENCE, cwd=root
    )
    assert done.returncode == 0, done.stderr


def test_a_subclass_may_make_its_own_tasks() -> None:
    class Mine(nbloop.EventLoop):
        def create_task(self, coro: Any, **options: Any) -> Any:
            return super().create_task(coro, name="mine", **options)

    loop = Mine()
    task = loop.create_task(value())
    assert task.get_name() == "mine"
    assert loop.run_until_complete(task) == "none"
    loop.close()


def test_a_task_keeps_nothing_when_it_has_ended(aio: nbloop.EventLoop) -> None:
    class Token:
        pass

    async def ends(_token: Token) -> None:
        await asyncio.sleep(0)

    token = Token()
    seen = weakref.ref(token)
    task = aio.create_task(ends(token), name="its name")
    del token
    gc.disable()
    try:
        aio.run_until_complete(task)
        del task
        assert seen() is None
    finally:
        gc.enable()


def captured_step(aio: nbloop.EventLoop, coro: Any) -> tuple[Any, Any]:
    """A task, and its first step, which is not scheduled."""
    steps: list[Any] = []
    aio.call_soon = lambda step, *_args, **_options: steps.append(step)  # type: ignore[method-assign, assignment]
    task = aio.create_task(coro)
    del aio.call_soon
    return task, steps[0]


def test_a_step_in_another_context_than_its_tasks(aio: nbloop.EventLoop) -> None:
    """A step runs in the context that it is scheduled with, and in the task's if that is the one."""
    for its in (True, False):
        task, step = captured_step(aio, value())
        other = contextvars.copy_context()
        other.run(var.set, "other")
        aio.call_soon(step, context=task.get_context() if its else other)
        assert aio.run_until_complete(task) == ("none" if its else "other")
        assert var.get() == "none"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_step_that_leaves_the_loop_leaves_its_context(aio: nbloop.EventLoop, error: type[BaseException]) -> None:
    context = contextvars.copy_context()

    async def leaves() -> None:
        var.set("inside")
        raise error

    task = aio.create_task(leaves(), context=context)
    with pytest.raises(error):
        aio.run_until_complete(task)
    assert var.get() == "none"
    assert context.run(var.get) == "inside"  # so it is not entered any more
    with pytest.raises(error):
        task.result()


def test_a_step_whose_context_is_entered_already(aio: nbloop.EventLoop) -> None:
    """Is an error that the loop reports, and the loop goes on."""
    reported: list[str] = []
    aio.set_exception_handler(lambda _loop, context: reported.append(str(context.get("exception"))))
    context = contextvars.copy_context()
    coro = value()
    task: Any = aio.create_task(coro, context=context)
    aio.call_soon(aio.stop)
    context.run(aio.run_forever)
    assert len(reported) == 1
    assert "is already entered" in reported[0]
    assert not task.done()
    task._log_destroy_pending = False
    coro.close()


def test_a_step_of_a_task_that_is_made_anew(aio: nbloop.EventLoop) -> None:
    """`__init__` of a task gives it another context while its step waits. Only one of its two steps can run it."""
    reported: list[str] = []
    aio.set_exception_handler(lambda _loop, told: reported.append(str(told.get("exception"))))
    first = value()
    task: Any = aio.create_task(first)
    context = contextvars.copy_context()
    context.run(var.set, "later")
    again = value()
    try:
        task.__init__(again, loop=aio, context=context)
    except RuntimeError:  # since Python 3.15
        again.close()
        assert aio.run_until_complete(task) == "none"
        return
    assert aio.run_until_complete(task) in ("none", "later")  # the context of the first step, or of the task
    aio.run_until_complete(asyncio.sleep(0))
    assert len(reported) == 1
    assert "already done" in reported[0]
    first.close()


def test_a_handle_of_another_class_runs_all_the_same(aio: nbloop.EventLoop) -> None:
    """A tool may set `__class__`; a timer of such a class still waits behind what is ready."""
    seen: list[object] = []
    soon, threadsafe = aio.call_soon(seen.append, 1), aio.call_soon_threadsafe(seen.append, 2)
    timer = aio.call_later(0, seen.append, 4)
    for handle in (soon, threadsafe, timer):

        class Seen(type(handle)):  # type: ignore[misc]
            __slots__ = ()

        handle.__class__ = Seen
    aio.call_soon(seen.append, 3)
    aio.call_later(0.001, aio.stop)
    aio.run_forever()
    assert seen == [1, 2, 3, 4]


def test_what_is_due_waits_behind_what_is_ready(aio: nbloop.EventLoop) -> None:
    seen: list[int] = []

    def ready() -> None:
        aio.call_later(0, seen.append, 2)
        aio.call_soon(aio.call_soon, seen.append, 3)
        aio.call_soon(seen.append, 1)

    aio.call_soon(ready)
    aio.call_later(0.01, aio.stop)
    aio.run_forever()
    assert seen == [1, 2, 3]


def test_callables_of_the_core_are_called(aio: nbloop.EventLoop) -> None:
    """What the core's own methods schedule under an asyncio loop is no handle."""
    seen: list[str] = []

    class Called:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self) -> None:
            seen.append(self.name)

    aio.core.submit(Called("submit"))
    aio.core.submit_internal(Called("internal"))
    aio.core.schedule_microtask(Called("microtask"))
    aio.core.schedule_timer(0, Called("timer"))
    aio.call_later(0.01, aio.stop)
    aio.run_forever()
    assert sorted(seen) == ["internal", "microtask", "submit", "timer"]


def test_tasks_made_by_threads(aio: nbloop.EventLoop) -> None:
    """asyncio does not allow it, except through `run_coroutine_threadsafe`. Here all of them run."""
    ended: list[int] = []

    async def ends(number: int) -> None:
        await asyncio.sleep(0)
        ended.append(number)

    runs = threading.Thread(target=aio.run_forever)
    runs.start()

    def submits(first: int) -> None:
        found = [asyncio.run_coroutine_threadsafe(ends(number), aio) for number in range(first, first + 200)]
        for one in found:
            one.result(PATIENCE)

    threads = [threading.Thread(target=submits, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    aio.call_soon_threadsafe(aio.stop)
    runs.join()
    assert sorted(ended) == [1000 * thread + number for thread in range(4) for number in range(200)]


def references(function: Callable[[], object], times: int = 2000) -> list[int]:
    """How the references to what all handles and tasks share change, in calls of a function."""
    shared = [asyncio.Task, (), contextvars.Context, "name", "loop"]
    for _ in range(100):
        function()
    gc.collect()
    before = [sys.getrefcount(one) for one in shared]
    for _ in range(times):
        function()
    gc.collect()
    return [abs(sys.getrefcount(one) - count) for one, count in zip(shared, before, strict=True)]


def test_references_are_kept_in_balance(aio: nbloop.EventLoop) -> None:
    async def main() -> None:
        await aio.create_task(value())
        await aio.create_task(value(), name="one")
        await asyncio.sleep(0)

    def turn() -> None:
        aio.call_soon(int)
        aio.call_later(0, int)
        aio.call_later(1000, int).cancel()
        aio.run_until_complete(main())

    assert all(change < 200 for change in references(turn, 1000))


@pytest.mark.parametrize("slot", ["_callback", "_args", "_context", "_cancelled", "_loop", "_repr"])
@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later"])
def test_a_handle_whose_slots_are_deleted(aio: nbloop.EventLoop, method: str, slot: str) -> None:
    """Is an error of that handle at most, and the loop goes on."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(str(record.msg))  # type: ignore[method-assign]
    seen: list[int] = []
    delay = (0,) if method == "call_later" else ()
    handle = getattr(aio, method)(*delay, seen.append, 1)
    delattr(handle, slot)
    aio.call_later(0.01, seen.append, 2)
    aio.call_later(0.02, aio.stop)
    reported: list[Any] = []
    aio.set_exception_handler(lambda _loop, context: reported.append(context))
    for logger in LOGGERS:
        logger.addHandler(handler)
        logger.propagate = False  # the message has the handle, whose `repr` raises
    try:
        aio.run_forever()
    finally:
        for logger in LOGGERS:
            logger.propagate = True
            logger.removeHandler(handler)
    assert seen[-1] == 2
    # What its Python method does without the slot: run, or raise.
    assert seen == [1, 2] or reported or logged


@pytest.mark.parametrize("mark", [0, None, "", 1, "x"])
def test_a_handle_whose_mark_is_another_object(aio: nbloop.EventLoop, mark: Any) -> None:
    """It is cancelled if that is true, as asyncio's."""
    seen: list[Any] = []
    handle: Any = aio.call_soon(seen.append, mark)
    handle._cancelled = mark
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert seen == ([] if mark else [mark])


@compiled_only
def test_a_thread_writes_another_context(aio: nbloop.EventLoop) -> None:
    """While the handle runs. The one that it runs in lives as long as the call."""
    handles: list[Any] = []
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for handle in handles:
                handle._context = contextvars.copy_context()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(200):
            handles[:] = [aio.call_soon(int) for _ in range(200)]
            aio.call_soon(aio.stop)
            aio.run_forever()
    finally:
        done.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()


@compiled_only
def test_a_thread_writes_what_get_debug_returns(aio: nbloop.EventLoop) -> None:
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            aio._debug = [1]

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20_000):
            assert aio.get_debug() in (False, [1])
    finally:
        done.set()
        thread.join(PATIENCE)
    aio._debug = False
    assert aio.get_debug() is False


@compiled_only
@pytest.mark.parametrize("of_task", [False, True])
def test_a_callback_that_leaves_a_context_entered(
    aio: nbloop.EventLoop, of_task: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As C code can. The error is its own, and not the next callback's."""
    other = contextvars.copy_context()
    reported: list[Any] = []
    aio.set_exception_handler(lambda _loop, context: reported.append(context))
    enter = ctypes.PyDLL(None).PyContext_Enter
    enter.argtypes, enter.restype = [ctypes.py_object], ctypes.c_int
    seen: list[str] = []

    async def enters() -> None:
        enter(other)

    done = threading.Event()

    def in_a_thread() -> None:  # of `_thread`: since 3.14 those of `threading` have a context to leave
        if of_task:
            aio.create_task(enters())
        else:
            aio.call_soon(enter, other)
        aio.call_soon(seen.append, "next")
        aio.call_later(0.01, aio.stop)
        aio.run_forever()
        done.set()

    _thread.start_new_thread(in_a_thread, ())
    assert done.wait(PATIENCE)
    assert seen == ["next"]
    # The handler runs in the handle's context, which is entered still: asyncio logs that.
    assert reported or "cannot exit context" in caplog.text
    assert all("context" in str(one["exception"]) for one in reported)


def test_a_loop_is_initialised_once(aio: nbloop.EventLoop) -> None:
    """A kernel may be at work with its words."""
    with pytest.raises(RuntimeError, match="called before"):
        aio.__init__()  # type: ignore[misc]
    aio._words = 5  # type: ignore[attr-defined]
    assert aio.run_until_complete(value()) == "none"


@pytest.mark.parametrize("raises", [False, True])
def test_a_key_with_an_equality_among_asyncios_names(aio: nbloop.EventLoop, raises: bool) -> None:
    """It runs in the middle of `create_task`."""

    class Odd(str):
        __slots__ = ()
        armed = False

        def __hash__(self) -> int:
            return hash("Task")

        def __eq__(self, _other: object) -> bool:
            if Odd.armed:
                Odd.armed = False
                with pytest.raises(RuntimeError):
                    aio.__init__()  # type: ignore[misc]
                gc.collect()
                if raises:
                    raise ZeroDivisionError
            return False

    names: dict[str, Any] = vars(asyncio.tasks)
    task = names.pop("Task")
    names[Odd()] = 1
    names["Task"] = task
    coro = value()
    try:
        Odd.armed = True
        if raises:
            with pytest.raises(ZeroDivisionError):
                aio.create_task(coro)
            coro.close()
        else:
            assert aio.run_until_complete(aio.create_task(coro)) == "none"
    finally:
        for name in [name for name in names if type(name) is Odd]:
            del names[name]
    assert asyncio.tasks.Task is task


def test_a_callable_handle_of_the_core_is_called(aio: nbloop.EventLoop) -> None:
    seen: list[str] = []

    class Callable(asyncio.Handle):
        def __call__(self) -> None:
            seen.append("called")

    aio.core.submit(Callable(seen.append, ("run",), aio))
    aio.call_soon(aio.stop)
    aio.run_forever()
    assert seen == ["called"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call_soon_threadsafe makes plain handles before 3.14")
def test_a_weak_reference_waits_for_a_threadsafe_handle(aio: nbloop.EventLoop) -> None:
    """`cancel` through one waits while another thread runs the callback."""
    inside, tried, cancelled = threading.Event(), threading.Event(), threading.Event()
    early: list[bool] = []

    def slow() -> None:
        inside.set()
        tried.wait(PATIENCE)
        early.append(cancelled.wait(0.05))
        aio.stop()

    def other() -> None:
        inside.wait(PATIENCE)
        held = weak()
        assert held is not None
        tried.set()
        held.cancel()
        cancelled.set()

    handle = aio.call_soon_threadsafe(slow)
    weak = weakref.ref(handle)
    del handle
    thread = threading.Thread(target=other)
    thread.start()
    aio.run_forever()
    thread.join()
    assert early == [False]
    assert cancelled.is_set()


def test_a_transport_is_closed_after_its_loop(aio: nbloop.EventLoop) -> None:
    """The same RuntimeError as asyncio's, not one of a loop that has lost its parts."""
    theirs = asyncio.SelectorEventLoop()
    for loop in (theirs, aio):
        here, there = socket.socketpair()
        here.setblocking(False)
        transport, _ = loop.run_until_complete(loop.connect_accepted_socket(asyncio.Protocol, here))
        loop.close()
        with there, pytest.raises(RuntimeError, match="closed"):
            transport.close()
        here.close()
        transport._sock = None  # or it warns at its end


@pytest.mark.parametrize("eager", [False, True])
def test_the_exception_of_a_task_keeps_no_task(aio: nbloop.EventLoop, eager: bool) -> None:
    """Also not that of an eager one, in whose traceback are the frames that have made it. Early versions of 3.13 have
    one of asyncio's own there.
    """

    async def fails() -> None:
        raise ZeroDivisionError

    async def main() -> list[bool]:
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = [loop.create_task(coro=fails()), loop.create_task(fails(), name="x")]
        seen = [weakref.ref(task) for task in tasks]
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()
        await asyncio.sleep(0)
        assert [type(error) for error in errors] == [ZeroDivisionError] * 2
        return [task() is not None for task in seen]

    theirs = asyncio.new_event_loop()
    kept = []
    gc.disable()
    try:
        for loop in (theirs, aio):
            if eager:
                loop.set_task_factory(asyncio.eager_task_factory)
            kept.append(loop.run_until_complete(main()))
    finally:
        gc.enable()
        theirs.close()
    assert kept[1] == kept[0]
    assert kept[1] == [False, False] or (eager and sys.version_info < (3, 14))
