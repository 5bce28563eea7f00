"""A coroutine function as a callback: a view spawns it, a listener too, and what the loop calls itself is reported."""

from __future__ import annotations

import functools
import gc
import inspect
import socket
import sys
import weakref

import pytest

import nbloop
from nbloop.js import JS, AbortController, Event, EventTarget
from tests.contract.test_errors import KINDS
from tests.support.waiting import elsewhere

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # "was never awaited"


class Told:
    """An `on_error` that remembers."""

    def __init__(self):
        self.calls = []

    def __call__(self, error, context):
        self.calls.append((error, context))


@pytest.fixture
def told():
    return Told()


class Work:
    """Coroutine functions of every sort; `ran` has what they were called with."""

    def __init__(self):
        self.ran = []

    async def method(self, *args):
        self.ran.append(args)

    async def __call__(self, *args):
        self.ran.append(args)


def function_of(work):
    async def function(*args):
        work.ran.append(args)

    return function


SORTS = {
    "function": function_of,
    "method": lambda work: work.method,
    "object": lambda work: work,
    "partial": lambda work: functools.partial(work.method),
    "partial of a function": lambda work: functools.partial(function_of(work)),
}
VIEW_CALLS = {
    "set_timeout": lambda js, f, *args: js.set_timeout(f, 0, *args),
    "set_interval": lambda js, f, *args: js.set_interval(f, 0, *args),
    "set_immediate": lambda js, f, *args: js.set_immediate(f, *args),
    "queue_microtask": lambda js, f, *args: js.queue_microtask(f, *args),
    "next_tick": lambda js, f, *args: js.next_tick(f, *args),
}


async def nothing(*_args):
    """A coroutine function."""


# --- native calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("args", [(), (1, "two")])
def test_a_native_call_reports(make_loop, turns, told, kind, args):
    """contract: a coroutine that a callback has returned is closed, and on_error gets a RuntimeError with the
    callback's name.
    """
    loop = make_loop(on_error=told)
    made = []

    async def body(*_args):
        raise AssertionError("it must not run")

    def callback(*given):
        assert given == args
        made.append(body(*given))
        return made[-1]

    KINDS[kind](loop)(callback, *args)
    turns(loop)
    assert [inspect.getcoroutinestate(coroutine) for coroutine in made] == [inspect.CORO_CLOSED]
    ((error, context),) = told.calls
    assert type(error) is RuntimeError
    assert "was never awaited: use js.spawn" in str(error)
    assert context["kind"] == kind.partition(" of ")[0]
    if kind != "task of a batch":  # whose callback is a lambda of the test
        assert "callback" in str(error)
        assert (context["callback"], context["args"]) == (callback, args)


@pytest.mark.skipif(sys.platform == "win32", reason="the poller takes sockets only")
def test_a_readiness_callback_reports(make_loop, turns, told):
    """contract: also one of register_fd."""
    loop = make_loop(on_error=told)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        loop.register_fd(ours.fileno(), nbloop.IOEvents.READ, nothing)
        turns(loop)
        loop.unregister_fd(ours.fileno())
    ((error, context),) = told.calls
    assert "nothing" in str(error)
    assert context["kind"] == "readiness callback"


def test_it_goes_on(make_loop, turns, told):
    """contract: reporting it never stops the loop, also when on_error raises."""
    ran = []
    loop = make_loop(on_error=lambda *_call: 1 / 0)
    loop.schedule_microtask(nothing)
    loop.submit(nothing)
    loop.submit(ran.append, 1)
    turns(loop)
    assert ran == [1]


def test_an_interval_goes_on(make_loop, turns, told):
    """contract: a coroutine that an interval's callback has returned does not end the interval."""
    loop = make_loop(on_error=told)
    loop.schedule_interval(0, nothing)
    turns(loop, 3)
    assert len(told.calls) == 3


def test_a_coroutine_that_somebody_runs(make_loop, turns, told):
    """contract: one that has begun, or ended, is somebody else's."""
    loop = make_loop(on_error=told)
    js = JS(loop)
    promise, resolve, _reject = js.with_resolvers()
    ended = []

    async def wait():
        ended.append(await promise)

    waiting, over = wait(), nothing()
    js.spawn(over)

    def begin():
        js.spawn(waiting)
        return waiting

    loop.submit(begin)
    loop.submit(lambda: over)
    turns(loop)
    assert told.calls == []
    resolve(7)
    turns(loop)
    assert ended == [7]


def test_it_says_where_it_was_scheduled(make_loop, turns, told):
    """contract: with debug=True, scheduled_at, and the callback itself."""
    loop = make_loop(on_error=told, debug=True)
    loop.submit(nothing)
    turns(loop)
    ((error, context),) = told.calls
    assert context["callback"] is nothing
    assert "test_it_says_where_it_was_scheduled" in str(context["scheduled_at"])
    assert "nothing" in str(error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_leaves(make_loop, turns, error):
    """contract: KeyboardInterrupt and SystemExit of on_error leave run()."""

    def leave(*_call):
        raise error

    loop = make_loop(on_error=leave)
    loop.submit(nothing)
    with pytest.raises(error):
        turns(loop)


def test_metrics_count_it_as_a_callback_that_returned(make_loop, turns, told):
    """contract: errors counts what raised."""
    loop = make_loop(on_error=told, metrics=True, recorder=64)
    loop.submit(nothing)
    turns(loop)
    assert (loop.metrics().callbacks, loop.metrics().errors) == (1, 0)


def test_asyncio_reports_as_it_does():
    """contract: in nbloop.aio a callback means what asyncio says: the interpreter warns, and nobody else."""
    told = []

    async def main():
        loop = __import__("asyncio").get_running_loop()
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        done = loop.create_future()
        loop.call_soon(nothing)
        loop.call_soon(done.set_result, None)
        await done

    with pytest.warns(RuntimeWarning, match="never awaited"):
        nbloop.run(main())
    assert told == []


# --- the view ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True], ids=["plain", "debug"])
@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("call", VIEW_CALLS)
def test_the_view_spawns(make_loop, turns, told, call, sort, debug):
    """contract: a coroutine function given to the view is spawned by each call, with the arguments."""
    work = Work()
    loop = make_loop(on_error=told, debug=debug)
    js = JS(loop)
    VIEW_CALLS[call](js, SORTS[sort](work), 1, "two")
    elsewhere(lambda: VIEW_CALLS[call](js, SORTS[sort](work), 3))
    turns(loop, 2)
    assert work.ran[:2] == [(1, "two"), (3,)]
    assert told.calls == []


def test_the_order_is_that_of_functions(make_loop, turns):
    """contract: it begins where a function would run."""
    loop = make_loop()
    js = JS(loop)
    seen = []

    async def body(number):
        seen.append(number)
        await js.resolve()
        seen.append(-number)

    js.queue_microtask(seen.append, 1)
    js.queue_microtask(body, 2)
    js.queue_microtask(seen.append, 3)
    js.next_tick(body, 4)
    turns(loop)
    assert seen == [4, 1, 2, 3, -4, -2]


def test_what_it_raises(make_loop, turns, told):
    """contract: an exception of the coroutine is an unhandled rejection of the view that scheduled it."""
    loop = make_loop(on_error=told)
    unhandled = []
    js = JS(loop, on_unhandled_rejection=lambda reason, _promise: unhandled.append(reason))
    JS(loop, on_unhandled_rejection=lambda *_call: pytest.fail("another view"))
    error = ValueError("on purpose")

    async def fail():
        raise error

    for call in VIEW_CALLS.values():
        call(js, fail)
    turns(loop)
    assert unhandled == [error] * len(VIEW_CALLS)
    assert told.calls == []


def test_what_cannot_be_called_is_refused(make_loop):
    """contract: TypeError if the callback is not callable; nothing was stored."""
    loop = make_loop()
    js = JS(loop)
    for name in ("set_timeout", "set_interval", "set_immediate", "queue_microtask", "next_tick"):
        for wrong in (None, 7, nothing()):
            with pytest.raises(TypeError, match="callable"):
                getattr(js, name)(wrong)
            if inspect.iscoroutine(wrong):
                wrong.close()
        with pytest.raises(TypeError, match="missing"):
            getattr(js, name)()
    assert not loop.alive()


def test_wrong_arguments_are_reported_of_the_function(make_loop, turns, told):
    """contract: a callback that raises: on_error gets the callback, whatever stands in for it."""

    async def one(_argument):
        """Takes one argument."""

    loop = make_loop(on_error=told)
    JS(loop).set_timeout(one, 0)
    turns(loop)
    ((error, context),) = told.calls
    assert type(error) is TypeError
    assert context["callback"] is one


def test_functions_that_are_no_coroutine_functions(make_loop, turns, told):
    """contract: any other callable is called as it is."""
    loop = make_loop(on_error=told)
    js = JS(loop)
    ran = []

    class Callable:
        def __call__(self, *args):
            ran.append(args)

    for callback in (ran.append, lambda x: ran.append(x) or 1, functools.partial(ran.append), Callable(), Callable):
        js.queue_microtask(callback, *(() if callback is Callable else (1,)))
    turns(loop)
    assert ran == [1, 1, 1, (1,)]
    js.set_timeout(lambda: nothing() or 1)  # which is not a coroutine function, but returns a coroutine
    turns(loop)
    ((error, _context),) = told.calls
    assert "<lambda>" in str(error)


def test_nothing_is_kept(make_loop, turns):
    """contract: the callback is released when it was run or cancelled, its arguments too."""
    loop = make_loop()
    js = JS(loop)

    class Argument:
        """Can be referred to weakly."""

    work = Work()
    argument = Argument()
    refs = [weakref.ref(work), weakref.ref(argument)]
    js.set_timeout(work.method, 0, argument)
    js.queue_microtask(functools.partial(work.method, argument))
    assert js.clear_timeout(js.set_timeout(work, 1e6, argument))
    turns(loop)
    work.ran.clear()
    del work, argument
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


# --- listeners --------------------------------------------------------------------------------------------------------


def test_listeners_are_spawned(make_loop, turns, told):
    """contract: a coroutine function as a listener is spawned on the loop whose callback dispatches; what it raises is
    reported as any listener's.
    """
    loop = make_loop(on_error=told)
    js = JS(loop)
    target, seen = EventTarget(), []
    error = ValueError("on purpose")

    async def listener(event):
        seen.append(event.type)
        await js.resolve()
        seen.append("after")
        raise error

    target.add_event_listener("x", listener)
    target.add_event_listener("x", lambda event: seen.append("next"))
    loop.submit(lambda: target.dispatch_event(Event("x")) and None)
    turns(loop)
    assert seen == ["x", "next", "after"]
    ((raised, context),) = told.calls
    assert raised is error
    assert (context["kind"], context["callback"]) == ("event listener", listener)
    assert context["args"][0].type == "x"


def test_abort_callbacks_are_spawned(make_loop, turns, told):
    """contract: so is one given to on_abort."""
    loop = make_loop(on_error=told)
    controller, seen = AbortController(), []

    async def callback(reason):
        seen.append(reason)

    controller.signal.on_abort(callback)
    loop.submit(controller.abort, "why")
    turns(loop)
    assert seen == ["why"]
    assert told.calls == []


def test_a_listener_without_a_loop(caplog):
    """contract: on a thread that runs no loop the coroutine is closed, and that is logged."""
    target = EventTarget()
    target.add_event_listener("x", nothing)
    target.dispatch_event(Event("x"))
    assert "was never awaited" in caplog.text
    assert len(caplog.records) == 1
