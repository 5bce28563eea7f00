"""Callables at every address that C allows: a multiple of 8, and nothing else is promised (addresses.c)."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import subprocess
import sysconfig
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbloop
from nbloop import IOEvents, Loop, LoopTerminatedError
from nbloop.js import JS
from nbloop.kernels.build import object_cache
from tests.support import waiting

SOURCE = Path(__file__).with_name("addresses.c")
RESIDUES = range(0, 64, 8)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The extension module; compiled here, with the system's compiler."""
    compiler = shutil.which("cc")
    include = sysconfig.get_path("include")
    if compiler is None or not Path(include, "Python.h").exists():
        pytest.skip("no C compiler, or no Python.h, to make callables at addresses of our choice with")
    library = tmp_path_factory.mktemp("addresses") / f"addresses{sysconfig.get_config_var('EXT_SUFFIX')}"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-I{include}"]
    subprocess.run([compiler, *options, "-o", library, SOURCE], check=True, timeout=120)
    spec = importlib.util.spec_from_file_location("addresses", library)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def addresses(module: Any) -> Any:
    """The module, with no call written down; no instance is left at the end."""
    module.calls.clear()
    yield module
    module.calls.clear()
    if module.living():
        gc.collect()
    waiting.wait_for(lambda: module.living() == 0)


def all_of(addresses: Any, raises: bool = False) -> list[Any]:
    """A callable of each kind at each address that is unlike the others."""
    fixed = [] if raises else [addresses.Even, addresses.Odd, addresses.even_built_in, addresses.odd_built_in]
    made = [addresses.make(residue, vector, raises) for residue in RESIDUES for vector in (False, True)]
    assert [id(one) % 16 for one in fixed] == [0, 8, 0, 8][: len(fixed)]
    assert {id(one) % 64 for one in made} == set(RESIDUES)
    return fixed + made


# What takes a callback and arguments, and calls it with them: `enter(loop, callback, *arguments)`.
ENTRANCES: dict[str, Callable[..., Any]] = {
    "submit": lambda loop, *what: loop.submit(*what),
    "submit_many": lambda loop, what, *_: loop.submit_many([what]),
    "producer": lambda loop, *what: loop.producer().submit(*what),
    "producer submit_many": lambda loop, what, *_: loop.producer().submit_many([what]),
    "internal": lambda loop, *what: loop.submit_internal(*what),
    "microtask": lambda loop, *what: loop.schedule_microtask(*what),
    "next-tick": lambda loop, *what: loop.schedule_next_tick(*what),
    "close": lambda loop, *what: loop.schedule_close(*what),
    "checkpoint end": lambda loop, *what: loop.schedule_checkpoint_end(*what),
    "immediate": lambda loop, *what: loop.schedule_immediate(*what),
    "timer": lambda loop, *what: loop.schedule_timer(0, *what),
    "timer, far": lambda loop, *what: loop.schedule_timer(0.02, *what),
    "timer at": lambda loop, *what: loop.schedule_timer_at(loop.now(), *what),
    "setTimeout": lambda loop, what, *rest: JS(loop).set_timeout(what, 1, *rest),
    "setImmediate": lambda loop, *what: JS(loop).set_immediate(*what),
    "queueMicrotask": lambda loop, *what: JS(loop).queue_microtask(*what),
    "nextTick": lambda loop, *what: JS(loop).next_tick(*what),
}
# What gives the callback one argument, `None`; of the js view it is called with.
HANDLERS: dict[str, Callable[..., Any]] = {
    "then": lambda js, what: js.resolve().then(what),
    "then, rejected": lambda js, what: js.reject().then(None, what),
    "catch": lambda js, what: js.reject().catch(what),
    "then of a promise that is settled later": lambda js, what: js.sleep(1).then(what),
}
BATCHES = ("submit_many", "producer submit_many")  # which take no arguments
DROPPED = [name for name in ENTRANCES if name != "timer, far"] + ["interval"]


def enter(name: str, loop: Loop, *what: Any) -> Any:
    if name == "interval":
        return loop.schedule_interval(1000, *what)
    if name in HANDLERS:
        return HANDLERS[name](JS(loop), *what)
    return ENTRANCES[name](loop, *what)


@pytest.fixture(params=["here", "away", "before"])
def where(request: pytest.FixtureRequest) -> str:
    """On the loop's thread; on another, while the loop runs; on a thread that has not entered `run` yet."""
    return request.param


def run_with(loop: Loop, where: str, what: Callable[[], object]) -> None:
    """Call `what` on that thread, and run the loop until nothing is left."""
    failed: list[Exception] = []

    def careful() -> None:
        try:
            what()
        except Exception as error:
            failed.append(error)

    if where == "before":
        what()
    else:
        loop.submit(careful if where == "here" else lambda: waiting.elsewhere(careful))
    loop.run()
    assert not failed, failed


def leave_with_queued(loop: Loop, where: str, what: Callable[[], object]) -> None:
    """Call `what` on that thread, and come back with all that it has queued in the queues: no checkpoint follows what
    leaves `run`.
    """

    def leave() -> None:
        waiting.elsewhere(what) if where == "away" else what()
        raise SystemExit

    if where == "before":
        what()
        return
    loop.submit(leave)
    with pytest.raises(SystemExit):
        loop.run()


@pytest.mark.parametrize("options", [{}, {"metrics": True, "recorder": 4096}, {"debug": True}], ids=str)
@pytest.mark.parametrize("name", [*ENTRANCES, *HANDLERS])
def test_every_entrance(addresses: Any, name: str, where: str, options: dict[str, Any]) -> None:
    """Each callable is called once for each time that it was given, in order, with what it was given."""
    loop = Loop(auto_exit=True, **options)
    expected: list[tuple[Any, tuple[object, ...]]] = []
    kinds = all_of(addresses)

    def give() -> None:
        for what in kinds:
            if name in HANDLERS:
                enter(name, loop, what)
                expected.append((what, (None,)))
                continue
            for arguments in ((), (1,), (what, "two", 3.0)):
                enter(name, loop, what, *arguments)
                expected.append((what, () if name in BATCHES else arguments))

    run_with(loop, where, give)
    if "producer" in name:  # each call has a handle of its own, and handles have no order among them
        assert sorted(map(repr, addresses.calls)) == sorted(map(repr, expected))
    else:
        assert addresses.calls == expected
    loop.close()


@pytest.mark.parametrize("name", DROPPED)
def test_dropped_by_close(addresses: Any, name: str, where: str) -> None:
    """What is queued when the loop is closed is released, and never called."""
    loop = Loop()

    def give() -> None:
        for what in all_of(addresses):
            enter(name, loop, what)
            enter(name, loop, what, what)

    leave_with_queued(loop, where, give)
    loop.close()
    assert addresses.calls == []
    with pytest.raises(LoopTerminatedError):
        enter(name, loop, addresses.make(8, False, False))


@pytest.mark.parametrize("name", ["timer", "interval", "immediate"])
def test_cancelled(addresses: Any, name: str, where: str) -> None:
    """A callable is released by its cancel, from whichever thread."""
    loop = Loop(auto_exit=True, recorder=4096)
    living: list[int] = []

    def give_and_take() -> None:
        cancel = loop.cancel_immediate if name == "immediate" else loop.cancel_timer
        for take in (cancel, lambda one: waiting.elsewhere(cancel, one)):
            for arguments in ((), (1,)):
                given = [enter(name, loop, what, *arguments) for what in all_of(addresses)]
                assert all(take(one) for one in given)
                living.append(addresses.living())
        if name != "immediate":
            given = [enter(name, loop, what) for what in all_of(addresses)]
            assert loop.cancel_timers(given) == [True] * len(given)
            living.append(addresses.living())

    run_with(loop, where, give_and_take)
    assert addresses.calls == []
    assert set(living) == {0}
    loop.close()


def test_interval_that_cancels_itself(addresses: Any) -> None:
    """It runs until then, and is released."""
    loop = Loop(auto_exit=True)
    intervals = [loop.schedule_interval(0, what, 1) for what in all_of(addresses)]

    def look() -> None:
        if len(addresses.calls) >= 3 * len(intervals):
            loop.cancel_timers([*intervals, watcher])

    watcher = loop.schedule_interval(0, look)
    loop.run()
    assert {id(what) for what, arguments in addresses.calls if arguments == (1,)} >= {id(addresses.Odd)}
    loop.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DROPPED, *HANDLERS])
def test_collected_with_its_loop(addresses: Any, name: str, where: str) -> None:
    """The collector finds them where they are queued, and follows them: a loop that is forgotten with them goes."""
    if object_cache.status.mode != "compiled":
        pytest.skip("un-jitted states are not traversed")
    loop = Loop(auto_exit=True)
    gone = weakref.ref(loop)

    def give(loop: Loop = loop) -> None:
        for what in all_of(addresses):
            enter(name, loop, what, *(() if name in HANDLERS else (loop,)))
        if name in (*BATCHES, *HANDLERS):  # their callables know nothing of the loop
            loop.submit(lambda: loop)

    leave_with_queued(loop, where, give)
    gc.collect()
    assert gone() is not None
    del loop, give
    gc.collect()
    assert gone() is None
    assert addresses.calls == []


@pytest.mark.parametrize("name", ENTRANCES)
def test_raising(addresses: Any, name: str, where: str) -> None:
    """The report names the callable and its arguments, and all else goes on."""
    told: list[tuple[Any, tuple[object, ...]]] = []
    loop = Loop(auto_exit=True, on_error=lambda _error, about: told.append((about["callback"], about["args"])))

    def give() -> None:
        for what in all_of(addresses, raises=True):
            for arguments in ((), (what, 2)):
                enter(name, loop, what, *arguments)

    run_with(loop, where, give)
    expected = [(what, arguments) for what, arguments in addresses.calls]
    assert len(expected) == 2 * 2 * len(RESIDUES)
    assert told == expected
    told.clear()
    loop.close()


class TupleThatIsCalled(tuple):
    """A callable that is a tuple: not the one that carries a callable and its arguments."""

    def __call__(self, *arguments: object) -> None:
        raise ValueError(arguments)


@pytest.mark.parametrize("name", ENTRANCES)
def test_a_callable_that_is_a_tuple(name: str, where: str) -> None:
    """Nothing takes it for a callable with arguments."""
    told: list[tuple[Any, tuple[object, ...]]] = []
    loop = Loop(
        auto_exit=True,
        recorder=4096,
        on_error=lambda error, about: told.append((about["callback"], about["args"], error.args)),
    )
    one, two = TupleThatIsCalled(), TupleThatIsCalled([print, 1])

    def give() -> None:
        for what in (one, two):
            enter(name, loop, what)
            enter(name, loop, what, 5)

    run_with(loop, where, give)
    some = () if name in BATCHES else (5,)
    assert [(type(what), args, given) for what, args, given in told] == [
        (TupleThatIsCalled, args, (args,)) for args in ((), some, (), some)
    ]
    assert [what for what, *_ in told] == [one, one, two, two]
    loop.close()


def test_recorded(addresses: Any, where: str) -> None:
    """The flight recorder names each by its type, its class or its method."""
    loop = Loop(auto_exit=True, recorder=4096)

    def give() -> None:
        for what in all_of(addresses):
            for put in (loop.submit, loop.schedule_next_tick, loop.schedule_immediate):
                put(what)
                put(what, 1)

    run_with(loop, where, give)
    names = [event.name for event in loop.recorder.events() if event.kind in ("task", "next-tick", "immediate")]
    assert {name: names.count(name) for name in names if name is not None and "<" not in name} == {
        "Even": 6,
        "Odd": 6,
        "even_built_in": 6,
        "odd_built_in": 6,
        "ByCall": 6 * len(RESIDUES),
        "ByVectorcall": 6 * len(RESIDUES),
    }
    loop.close()


@pytest.mark.parametrize("crowd", [1, 200])
def test_measured(addresses: Any, crowd: int) -> None:
    """A stamp beside a task, alone or one of eight, changes nothing of the task."""
    loop = Loop(auto_exit=True, metrics=True)
    handle = loop.producer()
    kinds = all_of(addresses)
    for _ in range(crowd):
        for what in kinds:
            loop.submit(what)
            handle.submit(what, 1)
        loop.submit_many(kinds)
    loop.run()
    assert len(addresses.calls) == 3 * crowd * len(kinds)
    assert {(id(what), arguments) for what, arguments in addresses.calls} == {
        (id(what), arguments) for what in kinds for arguments in ((), (1,))
    }
    assert loop.metrics().callbacks == len(addresses.calls)
    assert loop.metrics().delay.count > 0
    loop.close()


def test_descriptors(addresses: Any, pair: Callable[[], Any]) -> None:
    """A readiness callback at any address, called, then unregistered."""
    loop = Loop()
    kinds = all_of(addresses)
    pairs = [pair() for _ in kinds]
    for what, (one, other) in zip(kinds, pairs, strict=True):
        loop.register_fd(one.fileno(), IOEvents.READ, what)
        other.send(b"x")
    gc.collect()

    def look() -> None:
        if len({id(what) for what, _ in addresses.calls}) == len(kinds):
            loop.stop()

    loop.schedule_interval(0.001, look)
    loop.run()
    expected = {(id(what), (one.fileno(), IOEvents.READ)) for what, (one, _) in zip(kinds, pairs, strict=True)}
    assert {(id(what), arguments) for what, arguments in addresses.calls} == expected
    for one, _ in pairs[::2]:
        loop.unregister_fd(one.fileno())
    loop.close()


def test_asyncio(addresses: Any, pair: Callable[[], Any]) -> None:
    """The entrances of the asyncio face."""
    loop = nbloop.new_event_loop()
    kinds = all_of(addresses)
    one, other = pair()

    def look() -> None:
        if len(addresses.calls) >= 4 * len(kinds) + 1:
            loop.stop()
        else:
            loop.call_later(0.001, look)

    def away() -> None:
        for what in kinds:
            loop.call_soon_threadsafe(what, "away")

    def here() -> None:
        for what in kinds:
            loop.call_soon(what, "soon")
            loop.call_later(0, what, "later")
            loop.create_future().add_done_callback(what)
            done = loop.create_future()
            done.add_done_callback(what)
            done.set_result(None)
        waiting.elsewhere(away)
        look()

    loop.add_reader(one.fileno(), lambda: loop.remove_reader(one.fileno()) and addresses.Odd("reader"))
    other.send(b"x")
    loop.call_soon(here)
    loop.run_forever()
    loop.close()
    for how in ("soon", "later", "away"):
        assert [what for what, arguments in addresses.calls if arguments == (how,)] == kinds
    assert (addresses.Odd, ("reader",)) in addresses.calls
    addresses.calls.clear()
