"""Errors in callbacks, in handlers and in options, and where they are reported."""

from __future__ import annotations

import gc
import logging
import socket
import traceback
import weakref

import pytest

import nbloop
from nbloop import FastPathMode, IOEvents, Loop, LoopState
from nbloop.js import JS

# How to schedule one callback of each kind, and what on_error calls it.
KINDS = {
    "task": lambda loop: loop.submit,
    "task of a batch": lambda loop: lambda what, *args: loop.submit_many([lambda: what(*args)]),
    "task of a producer": lambda loop: loop.producer().submit,
    "internal task": lambda loop: loop.submit_internal,
    "microtask": lambda loop: loop.schedule_microtask,
    "next-tick": lambda loop: loop.schedule_next_tick,
    "immediate": lambda loop: loop.schedule_immediate,
    "close callback": lambda loop: loop.schedule_close,
    "timer": lambda loop: lambda *what: loop.schedule_timer(0, *what),
    "timer of an interval": lambda loop: lambda *what: loop.schedule_interval(0, *what),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def fail(*args):
    raise ValueError("on purpose")


@each_kind
def test_isolation(make_loop, turns, kind):
    """contract: a callback that raises never stops the loop, and the next one runs."""
    errors, ran = [], []
    loop = make_loop(on_error=lambda error, context: errors.append((error, context)))
    put = KINDS[kind](loop)
    for i in range(100):
        put(fail if i % 10 == 0 else ran.append, i)
    turns(loop)
    assert ran == [i for i in range(100) if i % 10]
    assert len(errors) == 10
    for error, context in errors:
        assert type(error) is ValueError
        assert context["kind"] == kind.partition(" of ")[0]


def test_context(make_loop, turns):
    """contract: on_error(exception, context): the loop, the kind, the callback and its arguments, and the
    exception's own traceback.
    """
    calls = []
    loop = make_loop(on_error=lambda *call: calls.append(call))
    loop.submit(fail, 1, "two")
    loop.submit(fail)
    turns(loop)
    (error, context), (_, bare) = calls
    assert context == {"loop": loop, "kind": "task", "callback": fail, "args": (1, "two")}
    assert bare["args"] == ()
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"


def test_checkpoint_after_an_exception(make_loop, turns):
    """contract: the checkpoint follows every callback, one that raised as well; what on_error queues is part of it."""
    ran = []
    loop = make_loop(on_error=lambda *_: loop.schedule_microtask(ran.append, "from on_error"))

    def task():
        loop.schedule_microtask(ran.append, "from the task")
        fail()

    loop.submit(task)
    loop.submit(ran.append, "next")
    turns(loop)
    assert ran == ["from the task", "from on_error", "next"]


def test_default_logger(make_loop, turns, caplog):
    """contract: by default logger `nbloop` gets it, with traceback, and the context for handlers."""
    loop = make_loop(name="mine")
    loop.submit(fail)
    turns(loop)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("nbloop", logging.ERROR)
    assert "mine" in record.getMessage()
    assert "in fail" in caplog.text
    assert "ValueError: on purpose" in caplog.text
    assert record.nbloop["callback"] is fail


def test_raising_on_error(make_loop, turns, caplog):
    """contract: a raising on_error is logged, with what it was to handle; nested in the handler."""

    def on_error(error, context):
        raise KeyError("from on_error")

    ran = []
    loop = make_loop(on_error=on_error)
    loop.submit(fail)
    loop.submit(ran.append, 1)
    turns(loop)
    assert ran == [1]
    (record,) = caplog.records
    assert record.exc_info[0] is KeyError
    assert "on_error" in record.getMessage()
    assert "on purpose" in caplog.text


def test_raising_logger(loop, turns, capsys):
    """A logging handler that raises is shown on stderr, and does not stop the loop either."""

    class Handler(logging.Handler):
        def emit(self, record):
            raise KeyError("from the handler")

    ran, handler = [], Handler()
    logging.getLogger("nbloop").addHandler(handler)
    try:
        loop.submit(fail)
        loop.submit(ran.append, 1)
        turns(loop)
    finally:
        logging.getLogger("nbloop").removeHandler(handler)
    assert ran == [1]
    assert "from the handler" in capsys.readouterr().err


@each_kind
@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_leaves_run(make_loop, turns, kind, leaving):
    """contract: KeyboardInterrupt and SystemExit leave run() and reach the caller, with no accepted work lost."""
    ran, reported = [], []
    loop = make_loop(on_error=lambda *call: reported.append(call))
    raised = iter([leaving("on purpose")])

    def leave():
        for error in raised:
            raise error

    put = KINDS[kind](loop)
    put(ran.append, 1)
    put(leave)
    put(ran.append, 2)
    for other in KINDS.values():
        other(loop)(ran.append, 3)
    with pytest.raises(leaving, match="on purpose"):
        loop.run()
    assert loop.state is LoopState.AWAKE
    assert not loop.is_loop_thread()
    turns(loop)
    assert not reported
    if kind == "timer of an interval":  # has run again with all the others
        assert {ran.count(1), ran.count(2)} <= {1, 2}
    else:
        assert ran.count(1) == ran.count(2) == 1
    assert ran.count(3) >= len(KINDS)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("hook", ["on_error", "on_overload"])
def test_hooks_may_leave_run(make_loop, turns, hook, leaving):
    """contract: KeyboardInterrupt and SystemExit from a hook leave run() too."""
    ran = []

    def leave(*_):
        raise leaving

    loop = make_loop(ingress_budget=1, **{hook: leave})
    loop.submit(fail if hook == "on_error" else int)
    loop.submit(ran.append, 1)
    with pytest.raises(leaving):
        loop.run()
    turns(loop, 2)
    assert ran == [1]


def test_leaving_a_shutdown(make_loop, wait_for):
    """contract: leaving run() while it drains reaches its caller; the rest runs nevertheless, shutdown() returns."""
    ran = []
    loop = make_loop()

    def leave():
        loop.shutdown()
        loop.schedule_microtask(ran.append, "microtask")
        raise KeyboardInterrupt

    loop.submit(leave)
    loop.submit(ran.append, "task")
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    loop.shutdown(timeout=30)
    assert ran == ["microtask", "task"]
    assert loop.state is LoopState.TERMINATED


def test_base_exceptions(make_loop, turns):
    """contract: whatever else derives from BaseException is a callback that raised."""

    class Odd(BaseException):
        pass

    errors = []
    loop = make_loop(on_error=lambda error, _: errors.append(type(error)))
    for kind in (Odd, GeneratorExit, StopIteration, MemoryError):
        loop.submit(lambda kind=kind: (_ for _ in ()).throw(kind) if kind is not StopIteration else next(iter(())))
    turns(loop)
    assert errors == [Odd, GeneratorExit, StopIteration, MemoryError]


@each_kind
def test_debug(make_loop, turns, kind):
    """contract: debug: on_error gets the callback itself and where it was scheduled."""
    contexts = []
    loop = make_loop(debug=True, on_error=lambda _, context: contexts.append(context))

    def the_place():
        KINDS[kind](loop)(fail, 1)

    the_place()
    turns(loop)
    (context,) = contexts
    if kind != "task of a batch":
        assert (context["callback"], context["args"]) == (fail, (1,))
    assert "the_place" in {frame.name for frame in context["scheduled_at"]}


def test_debug_of_descriptors_and_of_the_javascript_view(make_loop):
    """contract: debug: the same for callbacks of descriptors, and for timers in milliseconds."""
    places = []
    loop = make_loop(
        debug=True, on_error=lambda _, context: places.append({frame.name for frame in context["scheduled_at"]})
    )
    js = JS(loop)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def the_place():
            js.set_timeout(fail)
            loop.register_fd(ours.fileno(), IOEvents.WRITE | IOEvents.ONESHOT, callback=fail)
            js.set_timeout(loop.stop, 1)

        the_place()
        loop.run()
        loop.unregister_fd(ours.fileno())
    assert len(places) == 2
    assert all("the_place" in names for names in places)


def test_debug_does_not_keep_a_loop():
    """contract: a forgotten loop is closed at once; what remembers is no cycle."""
    loop = Loop(debug=True)
    handle, gone = loop.producer(), weakref.ref(loop)
    gc.disable()
    try:
        del loop, handle
        assert gone() is None
    finally:
        gc.enable()


def test_debug_changes_nothing_else(make_loop, turns):
    """contract: debug: the same calls, results and errors."""
    loop = make_loop(debug=True)
    ran = []
    loop.submit(ran.append, 1)
    loop.submit_many([lambda: ran.append(2)])
    assert loop.cancel_timer(loop.schedule_timer(0, ran.append, 3)) is True
    for wrong in (
        lambda: loop.submit(None),
        loop.submit,
        lambda: loop.schedule_timer(1),
        lambda: loop.schedule_timer(1, 2),
    ):
        with pytest.raises(TypeError):
            wrong()
    turns(loop)
    assert ran == [1, 2]


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("fast_path_mode", "auto", TypeError),
        ("fast_path_mode", None, TypeError),
        ("on_overload", 1, TypeError),
        ("on_error", "log", TypeError),
        ("ingress_budget", 0, ValueError),
        ("ingress_budget", -1, ValueError),
        ("ingress_budget", 1.0, TypeError),
        ("ingress_budget", True, TypeError),
        ("chunk_size", 8, ValueError),
        ("chunk_size", 100, ValueError),
        ("chunk_size", 8192, ValueError),
        ("chunk_size", "128", TypeError),
        ("initial_chunks", -1, ValueError),
        ("initial_chunks", 1 << 40, ValueError),
        ("initial_chunks", None, TypeError),
        ("ingress_limit", 0, ValueError),
        ("ingress_limit", 1 << 60, ValueError),
        ("ingress_limit", 2.5, TypeError),
        ("auto_exit", 1, TypeError),
        ("auto_exit", None, TypeError),
        ("clamp_nested_timers", 0, TypeError),
        ("debug", "yes", TypeError),
        ("name", 1, TypeError),
    ],
)
def test_options(option, value, error):
    """contract: every option is checked at construction, by an error that names it and shows what it was."""
    with pytest.raises(error, match=option) as caught:
        Loop(**{option: value})
    assert str(value) in str(caught.value)


def test_options_at_their_ends(make_loop, turns):
    """contract: what is documented as accepted is, and works."""
    for options in (
        {"chunk_size": 16, "initial_chunks": 100},
        {"chunk_size": 4096},
        {"ingress_budget": 1},
        {"ingress_budget": 1 << 40},
        {"ingress_limit": 1},
        {"ingress_limit": 33_488_896 - 256 * 128},
        {"fast_path_mode": FastPathMode.FORCED, "name": "", "on_error": None, "on_overload": None},
    ):
        loop, ran = make_loop(**options), []
        loop.submit(ran.append, 1)
        turns(loop)
        assert ran == [1]


def test_unknown_and_positional_options():
    """contract: options are keywords only, and no others."""
    with pytest.raises(TypeError, match="unknown"):
        Loop(unknown=1)
    with pytest.raises(TypeError):
        Loop(FastPathMode.AUTO)


def test_set_fast_path_mode_checks(loop):
    """contract: set_fast_path_mode: TypeError for a wrong mode, LoopTerminatedError after the end; nothing changes."""
    with pytest.raises(TypeError, match="FastPathMode"):
        loop.set_fast_path_mode("forced")
    assert loop.fast_path_mode is FastPathMode.AUTO
    loop.close()
    with pytest.raises(nbloop.LoopTerminatedError):
        loop.set_fast_path_mode(FastPathMode.FORCED)


def test_error_classes():
    """contract: errors derive from NbloopError, and each is also the built-in that fits."""
    errors = [value for name, value in vars(nbloop).items() if name.endswith("Error") and name != "NbloopError"]
    assert len(errors) >= 7
    for error in errors:
        assert issubclass(error, nbloop.NbloopError)
        assert issubclass(error, (RuntimeError, LookupError, ValueError, OSError))
        assert error.__doc__
    assert not issubclass(nbloop.NbloopError, (RuntimeError, LookupError, ValueError))


class Raises:
    """A number whose conversion raises."""

    def __init__(self, error):
        self.error = error

    def __float__(self):
        raise self.error

    __index__ = __float__


CONVERT = {
    "schedule_timer": lambda loop, number, callback: loop.schedule_timer(number, callback),
    "schedule_timer_at": lambda loop, number, callback: loop.schedule_timer_at(number, callback),
    "schedule_interval": lambda loop, number, callback: loop.schedule_interval(number, callback),
    "cancel_timer": lambda loop, number, _callback: loop.cancel_timer(number),
    "cancel_timers": lambda loop, number, _callback: loop.cancel_timers([5, number]),
    "cancel_immediate": lambda loop, number, _callback: loop.cancel_immediate(number),
    "ref_timer": lambda loop, number, _callback: loop.ref_timer(number),
    "unref_timer": lambda loop, number, _callback: loop.unref_timer(number),
    "set_timeout": lambda loop, number, callback: JS(loop).set_timeout(callback, number),
    "set_interval": lambda loop, number, callback: JS(loop).set_interval(callback, number),
    "clear_timeout": lambda loop, number, _callback: JS(loop).clear_timeout(number),
    "sleep": lambda loop, number, _callback: JS(loop).sleep(number),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CONVERT)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError, LookupError, TypeError, OverflowError])
def test_what_a_conversion_raises_is_not_replaced(loop, call, kind):
    """An argument's own exception, or a signal's in its methods, is the caller's; nothing was stored or is kept."""

    def callback():
        pass

    error = kind("the argument's own")
    gone = weakref.ref(callback)
    with pytest.raises(kind) as caught:
        CONVERT[call](loop, Raises(error), callback)
    assert caught.value is error
    assert not loop.alive()
    del caught, callback
    error.__traceback__ = None  # its frames have the callback among their arguments
    gc.collect()
    assert gone() is None


class Index:
    """An int only by its ``__index__``."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def test_what_the_interpreter_raises_of_a_conversion_is_replaced(loop):
    """Ours names the argument."""
    for bad in ("1", None, [], type("Text", (), {"__float__": lambda _self: "1"})()):
        with pytest.raises((TypeError, ValueError), match="delay or period must be a"):
            loop.schedule_timer(bad, list)
    with pytest.raises(ValueError, match="at most 4e9"):
        loop.schedule_timer(10**400, list)
    for bad in ("1", 1.0, None, Index("1")):
        with pytest.raises(TypeError, match="id must be an int"):
            loop.cancel_timer(bad)
    for unknown in (2**70, -(2**70), Index(2**70)):
        assert loop.cancel_timer(unknown) is False
    one = loop.schedule_timer(1, list)
    assert loop.cancel_timer(Index(one)) is True


def test_the_log_names_the_loop_and_where_it_was_scheduled(make_loop, turns, caplog):
    """contract: a record has the loop's name as `loop`; in debug mode the default log says where it was scheduled."""
    loop = make_loop(name="named", debug=True)
    loop.submit(divmod, 1, 0)
    turns(loop)
    (record,) = caplog.records
    assert record.loop == "named"
    assert "scheduled at" in record.getMessage()
    assert "test_the_log_names_the_loop" in record.getMessage()
