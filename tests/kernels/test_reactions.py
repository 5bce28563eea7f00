"""settling.py and reactions.py, through the faces of classes.py on a loop that makes one turn at a time: against a
naive twin, and what they release on every path.
"""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbloop import Loop
from nbloop.kernels.base.kernel import method
from nbloop.kernels.build import object_cache
from nbloop.kernels.promises import reactions
from nbloop.kernels.promises.classes import Eventual, Resolver, ResultSlots, View, make_view
from tests.support import naive, rig
from tests.support.waiting import elsewhere, together


class Seen(Eventual):
    """What `then` makes here."""

    __slots__ = ("__weakref__",)

    def __init__(self, view: View) -> None:
        self._view = view

    @method(reactions.then)
    def then(self, on_fulfilled: Any = None, on_rejected: Any = None) -> Seen:
        """A child."""
        raise NotImplementedError


class Raised(Exception):
    """By a handler; the reason is its argument."""


class World:
    """A loop, a view of it, and the calls of its hooks."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.told: list[tuple[Any, ...]] = []
        hooks = {name: getattr(self, name) for name in ("follow", "unhandled", "raised", "lost", "misused")}
        self.view = make_view(self.loop._state, self, Seen, hooks | {"made": None}, ("on_fulfilled", "on_rejected"))

    def follow(self, eventual: Eventual, value: Any) -> None:
        self.told.append(("follow", value))
        eventual._fulfill(value)

    def unhandled(self, eventual: Eventual) -> None:
        self.told.append(("unhandled", eventual._value))

    def raised(self, eventual: Eventual, error: BaseException) -> None:
        if isinstance(eventual, Seen):
            eventual._reject(error.args[0] if isinstance(error, Raised) else error)

    def lost(self, eventual: Eventual, error: BaseException) -> None:
        self.told.append(("lost", type(error).__name__))

    def misused(self, instance: object) -> None:
        raise TypeError(f"misused {type(instance).__name__}")

    def new(self) -> Seen:
        return Seen(self.view)

    def turn(self) -> None:
        self.loop.stop()
        self.loop.run()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.loop.close()


def state(eventual: Eventual) -> tuple[bool | None, Any]:
    return (eventual._outcome, eventual._value) if hasattr(eventual, "_outcome") else (None, 0)


# --- against the twin -------------------------------------------------------------------------------------------------

handlers = st.tuples(*[st.none() | st.integers(0, 9)] * 2)
places = st.integers(0, 1 << 30)


class ReactionMachine(RuleBasedStateMachine):
    """Reactions added to anything, settled through resolvers, on the loop's thread and on another."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.twin = naive.Reactions()
        self.log: list[tuple[int, int]] = []
        self.pairs: list[tuple[Seen, naive.Eventual]] = []
        self.resolvers: list[tuple[Resolver, naive.Eventual]] = []

    def handler(self, name: int | None) -> Callable[[int], int] | None:
        if name is None:
            return None

        def call(value: int) -> int:
            self.log.append((name, value))
            if name % 2:
                raise Raised(value + name)
            return value + name

        return call

    @rule()
    def create(self) -> None:
        eventual, twin = self.world.new(), naive.Eventual()
        self.pairs.append((eventual, twin))
        self.resolvers.append((Resolver(eventual), twin))

    @precondition(lambda self: self.pairs)
    @rule(at=places, names=handlers, away=st.booleans())
    def then(self, at: int, names: tuple[int | None, int | None], away: bool) -> None:
        eventual, twin = self.pairs[at % len(self.pairs)]
        functions = [self.handler(name) for name in names]
        child = elsewhere(eventual.then, *functions) if away else eventual.then(*functions)
        self.pairs.append((child, self.twin.then(twin, names)))

    @precondition(lambda self: self.resolvers)
    @rule(at=places, outcome=st.booleans(), value=st.integers(), away=st.booleans())
    def settle(self, at: int, outcome: bool, value: int, away: bool) -> None:
        resolver, twin = self.resolvers[at % len(self.resolvers)]
        call = resolver.resolve if outcome else resolver.reject
        assert (elsewhere(call, value) if away else call(value)) is None
        self.twin.settle(twin, outcome, value)

    @rule()
    def run(self) -> None:
        self.world.turn()
        self.twin.run()

    @invariant()
    def same(self) -> None:
        assert self.log == self.twin.log
        for eventual, twin in self.pairs:
            assert state(eventual) == (twin.outcome, twin.value)

    def teardown(self) -> None:
        self.run()
        self.same()
        self.world.loop.close()


ReactionMachine.TestCase.settings = rig.MACHINE
TestReactions = ReactionMachine.TestCase


# --- what is released -------------------------------------------------------------------------------------------------


class Thing:
    """Can be counted, is called as a handler, and is not plain."""

    def __call__(self, value: Any) -> Any:
        return value


def paths() -> dict[str, Callable[[World, Callable[[], Thing]], object]]:
    """Ways that a reaction with two tracked handlers and a tracked value can go."""

    def settled_first(world: World, thing: Callable[[], Thing]) -> object:
        promise = world.new()
        promise._fulfill(thing())
        return promise.then(thing(), thing())

    def settled_later(world: World, thing: Callable[[], Thing]) -> object:
        promise = world.new()
        child = promise.then(thing(), thing())
        promise._reject(thing())
        return child

    def no_handler(world: World, thing: Callable[[], Thing]) -> object:
        promise = world.new()
        child = promise.then(None, thing())
        promise._fulfill(thing())
        return child

    def raises(world: World, thing: Callable[[], Thing]) -> object:
        promise = world.new()
        kept = thing()

        def fails(_value: Any) -> None:
            raise Raised(id(kept))

        child = promise.then(fails, thing())
        promise._fulfill(thing())
        return child

    def elsewhere_(world: World, thing: Callable[[], Thing]) -> object:
        promise = world.new()
        child = elsewhere(promise.then, thing(), thing())
        elsewhere(promise._fulfill, thing())
        return child

    def dropped(world: World, thing: Callable[[], Thing]) -> object:
        return world.new().then(thing(), thing())

    def hidden(world: World, thing: Callable[[], Thing]) -> object:
        promise = world.new()
        promise._react(thing(), thing())
        promise._fulfill(thing())
        return None

    def placed(world: World, thing: Callable[[], Thing]) -> object:
        promise, into = world.new(), ResultSlots(world.view, thing())
        promise._react(into, thing())
        promise._fulfill(thing())
        into.subscribed()
        return None

    def unfilled(world: World, thing: Callable[[], Thing]) -> object:
        promise, into = world.new(), ResultSlots(world.view, thing())
        promise._react(into, thing())
        return promise

    def resolved_often(world: World, thing: Callable[[], Thing]) -> object:
        pair = Resolver(world.new())
        for _ in range(3):
            pair.resolve(thing())
            pair.reject(thing())
        return Resolver(world.new()).reject

    def cycle(world: World, thing: Callable[[], Thing]) -> object:
        promise = world.new()
        one = thing()
        one.me = promise.then(one, thing())  # type: ignore[attr-defined]
        one.it = promise  # type: ignore[attr-defined]
        return None

    def queued_cycle(world: World, thing: Callable[[], Thing]) -> object:
        one = thing()
        one.loop = world  # type: ignore[attr-defined]
        promise = world.new()
        promise._fulfill(1)
        promise.then(one, thing())
        return None

    return {name: path for name, path in locals().items() if callable(path)}


@pytest.mark.parametrize("name", paths())
def test_everything_is_let_go_of(name: str) -> None:
    """Handlers, values and eventuals are gone when the loop is, and the count of immortal and shared objects is what
    it was.
    """
    world = World()
    living: list[weakref.ref[Thing]] = []

    def thing() -> Thing:
        made = Thing()
        living.append(weakref.ref(made))
        return made

    view = world.view
    before = sys.getrefcount(view)
    for _ in range(20):
        kept = paths()[name](world, thing)
        world.turn()
        del kept
    world.told.clear()
    gc.collect()
    assert [ref for ref in living if ref() is not None] == []
    assert len(living) >= 20
    assert sys.getrefcount(view) == before
    world.loop.close()


def test_handlers_live_no_longer_than_their_call(world: World) -> None:
    """However long the promise does that they made; nor does the argument."""
    used, other, value = Thing(), Thing(), Thing()
    dead = [weakref.ref(thing) for thing in (used, other, value)]
    promise = world.new()
    child = promise.then(lambda _value, used=used: 5, other)
    promise._fulfill(value)
    del promise, used, other, value
    world.turn()
    assert state(child) == (True, 5)
    gc.collect()
    assert [ref() for ref in dead] == [None] * 3


def test_a_forgotten_loop_with_reactions_queued_is_collected() -> None:
    """The collector sees handlers in the ring, and those of other threads in the remote queue."""
    if object_cache.status.mode != "compiled":
        pytest.skip("un-jitted states are not traversed")
    for away in (False, True):
        world = World()
        gone = weakref.ref(world)

        def scene(world: World = world) -> None:
            promise = world.new()
            promise._fulfill(1)
            promise.then(lambda _value: world)

        elsewhere(scene) if away else scene()
        del world, scene
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("shape", ["stack", "chain"])
def test_very_many_that_wait_are_dropped(world: World, shape: str) -> None:
    """Without recursion: a long stack of one promise, and a long chain."""
    promise = first = world.new()
    for _ in range(300_000 if object_cache.status.mode == "compiled" else 3000):
        child = promise.then()
        promise = child if shape == "chain" else first
    gone = weakref.ref(first)
    del first, promise, child
    gc.collect()
    assert gone() is None


# --- the faces --------------------------------------------------------------------------------------------------------


def test_a_method_of_a_type(world: World) -> None:
    """A kernel that is a method: its name, its signature, and what it is called with."""
    assert Seen.then.__name__ == "then"
    parameters = inspect.signature(Seen.then).parameters.values()
    assert [(p.name, p.default) for p in parameters][1:] == [("on_fulfilled", None), ("on_rejected", None)]
    assert inspect.getdoc(Seen.then) == "A child."
    if object_cache.status.mode == "compiled":
        assert inspect.ismethoddescriptor(Seen.then)
        with pytest.raises(TypeError):
            Seen.then(object())
    promise = world.new()
    promise._fulfill(1)
    log: list[int] = []
    child = promise.then(on_rejected=None, on_fulfilled=log.append)
    promise.then(log.append, on_rejected=3)
    promise.then(**{"on_ful" + "filled": log.append})
    world.turn()
    assert (log, state(child)) == ([1, 1, 1], (True, None))


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.then(1, 2, 3),
        lambda p: p.then(1, on_fulfilled=2),
        lambda p: p.then(nonsense=2),
        lambda p: p._react(1),
        lambda p: p._react(1, 2, 3),
        lambda p: p._fulfill(),
        lambda p: p._reject(1, 2),
        lambda p: Resolver(p).resolve(1, 2),
        lambda p: Resolver(p).reject(reason=2),
    ],
)
def test_wrong_arguments(world: World, call: Callable[[Seen], object]) -> None:
    """TypeError, and nothing has happened."""
    promise = world.new()
    with pytest.raises(TypeError):
        call(promise)
    assert state(promise) == (None, 0)
    assert not hasattr(promise, "_reactions")


def test_made_by_new_alone() -> None:
    """It has no view: TypeError, and no crash."""
    bare = Seen.__new__(Seen)
    calls = (bare.then, lambda: bare._react(None, None), *(lambda f=f: f(1) for f in (bare._fulfill, bare._reject)))
    for call in (*calls, lambda: bare._resolve(1), Resolver.__new__(Resolver).resolve):
        with pytest.raises(TypeError):
            call()


def test_hooks(world: World) -> None:
    """Python resolves what is not plain, even of a subclass of a plain type; unhandled rejections are reported."""

    class Number(int):
        pass

    values = [1, "", b"", 0.5, True, None, (), [], {}, set(), frozenset(), 1j, bytearray(), Number(1), len]
    for value in values:
        world.new()._resolve(value)
    assert world.told == [("follow", 1), ("follow", len)]
    world.told.clear()
    world.new()._reject(1)
    handled = world.new()
    handled._react(None, None)
    handled._reject(2)
    assert world.told == [("unhandled", 1)]


def test_lost(world: World) -> None:
    """When the loop accepts no more, each reaction is reported once, in order, and everything is settled."""
    promise = world.new()
    children = [promise.then() for _ in range(5)]
    world.loop.close()
    promise._fulfill(1)
    promise.then()
    assert world.told == [("lost", "LoopTerminatedError")] * 6
    assert state(promise) == (True, 1)
    assert [state(child)[0] for child in children] == [None] * 5


def test_places_from_many_threads(world: World) -> None:
    """Each value is at its place, and the list is handed over once, by the thread that fills the last."""
    for _ in range(30):
        done: list[list[int]] = []
        into = ResultSlots(world.view, done.append)
        promises = [world.new() for _ in range(40)]
        for promise in promises[:-1]:
            promise._react(into, None)
        index = into.new()
        together(4, lambda i, promises=promises: [promises[n]._fulfill(n) for n in range(i, 39, 4)])
        together(2, lambda i, into=into, index=index: into.subscribed() if i else into.put(index, 39))
        assert done == []
        world.turn()
        assert done == [list(range(40))]
