"""Promises/A+ 1.1, clause by clause: each clause × how a promise is settled × reasons × thenables, as its test suite
is built.

A case is a generator function: it sets the scene, yields while the loop runs until nothing is left, and then checks
what was recorded. Clause 2.2.5 speaks of ``this``, which Python does not have; what is left of it is that a handler is
called with the value and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbloop.js import Promise
from tests.support.driver import Page

type Steps = Iterator[None]

DUMMY, SENTINEL, OTHER = object(), object(), object()
FORMS = ("already", "immediately", "eventually")
CASES: list[Any] = []


def case(identifier: str) -> Callable[[Callable[[Page], Steps]], Callable[[Page], Steps]]:
    """Add a case under that id."""

    def add(function: Callable[[Page], Steps]) -> Callable[[Page], Steps]:
        CASES.append(pytest.param(function, id=identifier))
        return function

    return add


# --- the vocabulary of the cases -------------------------------------------------------------------------------------


def later(page: Page, callback: Callable[..., object], *args: object) -> None:
    """In a later turn, in order of these calls."""
    page.js.set_timeout(callback, 0, *args)


@contextlib.contextmanager
def settling(page: Page, form: str, how: str, value: Any) -> Iterator[Promise[Any]]:
    """A promise that is settled before the body, right after it, or in a later turn."""
    promise, resolve, reject = page.js.with_resolvers()
    settle = functools.partial(resolve if how == "fulfilled" else reject, value)
    if form == "already":
        settle()
    yield promise
    if form == "immediately":
        settle()
    elif form == "eventually":
        later(page, settle)


def on(how: str, handler: Any) -> dict[str, Any]:
    """The argument of `then` that gets that outcome."""
    return {"on_fulfilled" if how == "fulfilled" else "on_rejected": handler}


def other_than(how: str) -> str:
    """The other outcome."""
    return "rejected" if how == "fulfilled" else "fulfilled"


def throw(error: BaseException) -> Any:
    """Raise it."""
    raise error


class Seen(list[Any]):
    """What handlers were called with."""

    def of(self, promise: Promise[Any]) -> Seen:
        """Record the promise's outcome."""
        promise.then(lambda value: self.append(("fulfilled", value)), lambda reason: self.append(("rejected", reason)))
        return self


def only(seen: Seen, state: str, value: Any) -> bool:
    """Whether there is one outcome, and it is this one."""
    return len(seen) == 1 and seen[0][0] == state and seen[0][1] is value


class Thenable:
    """Its `then` is the function given."""

    def __init__(self, then: Callable[..., object]) -> None:
        self._then = then

    def then(self, resolve: Callable[[Any], object], reject: Callable[[Any], object]) -> None:
        """As given."""
        self._then(resolve, reject)


class Getter:
    """Its `then` is looked up by calling a function."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    @property
    def then(self) -> Any:
        """What the function says."""
        return self._get()


class CallableGetter(Getter):
    """A function with a `then`."""

    def __call__(self) -> None:
        """Not to be called."""
        raise AssertionError


class DynamicGetter:
    """Its `then` exists in no class."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    def __getattr__(self, name: str) -> Any:
        if name == "then":
            return self._get()
        raise AttributeError(name)


class ErrorWithThen(Exception):
    """An exception that looks like a thenable."""

    def then(self, resolve: Callable[[Any], object], _reject: Callable[[Any], object]) -> None:
        """Never called for a reason."""
        resolve(OTHER)


class Unfriendly(Exception):
    """Equal to everything, true for nothing."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return False


class BeyondException(BaseException):
    """No `Exception`."""


REASONS: dict[str, Callable[[Page], Any]] = {
    "none": lambda page: None,
    "false": lambda page: False,
    "zero": lambda page: 0,
    "empty-string": lambda page: "",
    "error": lambda page: ValueError("a reason"),
    "error-class": lambda page: ValueError,
    "date": lambda page: datetime.date(2024, 2, 29),
    "object": lambda page: object(),
    "pending-thenable": lambda page: Thenable(lambda resolve, reject: None),
    "fulfilled-promise": lambda page: page.js.resolve(DUMMY),
    "rejected-promise": lambda page: page.js.reject(DUMMY),
}


def chained() -> BaseException:
    """An exception with a cause."""
    error = RuntimeError("outer")
    error.__cause__ = ValueError("inner")
    return error


ERRORS: dict[str, Callable[[], BaseException]] = {
    "Exception": Exception,
    "ValueError": lambda: ValueError("a reason"),
    "AttributeError": lambda: AttributeError("then"),
    "TypeError": lambda: TypeError("a reason"),
    "StopIteration": lambda: StopIteration(1),
    "GeneratorExit": GeneratorExit,
    "ExceptionGroup": lambda: ExceptionGroup("two", [ValueError(1), ValueError(2)]),
    "chained": chained,
    "with-then": ErrorWithThen,
    "unfriendly": Unfriendly,
    "BaseException": BeyondException,
}


def one_time(then: Callable[..., object]) -> Getter:
    """A thenable whose `then` exists only at the first access."""
    answers = [None, then]
    return Getter(lambda: answers.pop() if len(answers) > 1 else answers[0])


def eventually(page: Page, how: str, value: Any) -> Promise[Any]:
    """A promise that is settled in a later turn."""
    with settling(page, "eventually", how, value) as promise:
        return promise


def _twice(resolve: Callable[[Any], object], value: Any) -> None:
    resolve(value)
    resolve(OTHER)


def _then_throw(resolve: Callable[[Any], object], value: Any) -> None:
    resolve(value)
    raise ValueError("too late")


type MakeThenable = Callable[[Page, Any], Any]

FULFILLED: dict[str, MakeThenable] = {
    "sync": lambda page, value: Thenable(lambda resolve, reject: resolve(value)),
    "async": lambda page, value: Thenable(lambda resolve, reject: later(page, resolve, value)),
    "one-time": lambda page, value: one_time(lambda resolve, reject: resolve(value)),
    "twice": lambda page, value: Thenable(lambda resolve, reject: _twice(resolve, value)),
    "then-throws": lambda page, value: Thenable(lambda resolve, reject: _then_throw(resolve, value)),
    "promise-already": lambda page, value: page.js.resolve(value),
    "promise-eventually": lambda page, value: eventually(page, "fulfilled", value),
}

REJECTED: dict[str, MakeThenable] = {
    "rejects-sync": lambda page, reason: Thenable(lambda resolve, reject: reject(reason)),
    "rejects-async": lambda page, reason: Thenable(lambda resolve, reject: later(page, reject, reason)),
    "rejects-one-time": lambda page, reason: one_time(lambda resolve, reject: reject(reason)),
    "throws": lambda page, reason: Thenable(lambda resolve, reject: throw(reason)),
    "throwing-getter": lambda page, reason: Getter(lambda: throw(reason)),
    "rejected-promise-already": lambda page, reason: page.js.reject(reason),
    "rejected-promise-eventually": lambda page, reason: eventually(page, "rejected", reason),
}

VIAS = ("from-fulfilled", "from-rejected")


def returned(page: Page, via: str, make: Callable[[], Any]) -> Promise[Any]:
    """A promise resolved with what `make` returns, because a handler returned it."""
    if via == "from-fulfilled":
        return page.js.resolve(DUMMY).then(lambda _value: make())
    return page.js.reject(DUMMY).then(None, lambda _reason: make())


# --- 2.1 states ------------------------------------------------------------------------------------------------------


def _states() -> None:
    for clause, how in (("2.1.2.1", "fulfilled"), ("2.1.3.1", "rejected")):
        for form in FORMS:

            @case(f"{clause}-{how}-{form}-stays")
            def stays(page: Page, form: str = form, how: str = how) -> Steps:
                seen = Seen()
                with settling(page, form, how, SENTINEL) as promise:
                    seen.of(promise)
                yield
                later(page, seen.of, promise)
                yield
                assert seen == [(how, SENTINEL)] * 2
                assert promise.state == how

        for first, second in (("now", "now"), ("later", "later"), ("now", "later")):

            @case(f"{clause}-{how}-{first}-then-the-other-{second}")
            def once(page: Page, how: str = how, first: str = first, second: str = second) -> Steps:
                promise, resolve, reject = page.js.with_resolvers()
                settle, contradict = (resolve, reject) if how == "fulfilled" else (reject, resolve)
                seen = Seen().of(promise)
                for when, call, value in ((first, settle, SENTINEL), (second, contradict, OTHER)):
                    if when == "now":
                        call(value)
                    else:
                        later(page, call, value)
                yield
                assert only(seen, how, SENTINEL)
                assert promise.state == how


# --- 2.2 then --------------------------------------------------------------------------------------------------------

NO_FUNCTIONS = {"none": None, "false": False, "five": 5, "object": object(), "string": "then"}


def _ignored_arguments() -> None:
    for clause, ignored in (("2.2.1.1", "fulfilled"), ("2.2.1.2", "rejected")):
        how = other_than(ignored)
        for (name, thing), chained in itertools.product(NO_FUNCTIONS.items(), (False, True)):

            @case(f"{clause}-{ignored}-handler-is-{name}{'-chained' * chained}")
            def ignores(
                page: Page, how: str = how, ignored: str = ignored, thing: Any = thing, chained: bool = chained
            ) -> Steps:
                promise = page.js.resolve(SENTINEL) if how == "fulfilled" else page.js.reject(SENTINEL)
                if chained:
                    promise = promise.then(**on(ignored, lambda _value: None))
                seen: list[Any] = []
                promise.then(**on(ignored, thing), **on(how, seen.append))
                yield
                assert seen == [SENTINEL]


def _called_once() -> None:
    for number, how in (("2.2.2", "fulfilled"), ("2.2.3", "rejected")):
        for form in FORMS:

            @case(f"{number}.1-{how}-{form}-value-is-first-argument")
            def argument(page: Page, form: str = form, how: str = how) -> Steps:
                seen: list[tuple[Any, ...]] = []
                with settling(page, form, how, SENTINEL) as promise:
                    promise.then(**on(how, lambda *args: seen.append(args)))
                yield
                assert seen == [(SENTINEL,)]

        @case(f"{number}.2-{how}-not-before")
        def not_before(page: Page, how: str = how) -> Steps:
            order: list[str] = []

            def settle() -> None:
                order.append("settled")
                (resolve if how == "fulfilled" else reject)(DUMMY)

            promise, resolve, reject = page.js.with_resolvers()
            promise.then(**on(how, lambda _value: order.append("handler")))
            later(page, settle)
            yield
            assert order == ["settled", "handler"]

        @case(f"{number}.2-never-{how}")
        def never(page: Page, how: str = how) -> Steps:
            seen: list[Any] = []
            promise, _resolve, _reject = page.js.with_resolvers()
            promise.then(seen.append, seen.append)
            yield
            assert seen == []
            assert promise.state == "pending"

        @case(f"{number}.3-already-{how}-once")
        def already(page: Page, how: str = how) -> Steps:
            seen: list[Any] = []
            with settling(page, "already", how, DUMMY) as promise:
                promise.then(**on(how, seen.append))
            yield
            assert seen == [DUMMY]

        for first, second in (("now", "now"), ("later", "later"), ("now", "later")):

            @case(f"{number}.3-{how}-{first}-and-{second}")
            def twice(page: Page, how: str = how, first: str = first, second: str = second) -> Steps:
                seen: list[Any] = []
                promise, resolve, reject = page.js.with_resolvers()
                settle = resolve if how == "fulfilled" else reject
                promise.then(**on(how, seen.append))
                for when, value in ((first, SENTINEL), (second, OTHER)):
                    if when == "now":
                        settle(value)
                    else:
                        later(page, settle, value)
                yield
                assert seen == [SENTINEL]

        @case(f"{number}.3-{how}-several-thens-apart")
        def apart(page: Page, how: str = how) -> Steps:
            calls = [0, 0, 0]
            promise, resolve, reject = page.js.with_resolvers()

            def listen(i: int) -> None:
                def called(_value: Any) -> None:
                    calls[i] += 1

                promise.then(**on(how, called))

            listen(0)
            later(page, listen, 1)
            later(page, listen, 2)
            later(page, resolve if how == "fulfilled" else reject, DUMMY)
            yield
            assert calls == [1, 1, 1]

        @case(f"{number}.3-{how}-then-before-and-after")
        def interleaved(page: Page, how: str = how) -> Steps:
            calls: list[int] = []
            with settling(page, "immediately", how, DUMMY) as promise:
                promise.then(**on(how, lambda _value: calls.append(0)))
            promise.then(**on(how, lambda _value: calls.append(1)))
            yield
            assert calls == [0, 1]


def _clean_stack() -> None:
    for clause, how in (("2.2.4", "fulfilled"), ("2.2.4", "rejected")):
        for form in FORMS:

            @case(f"{clause}-{how}-{form}-then-returns-first")
            def returns_first(page: Page, form: str = form, how: str = how) -> Steps:
                order: list[str] = []

                def scene() -> None:
                    with settling(page, form, how, DUMMY) as promise:
                        promise.then(**on(how, lambda _value: order.append("handler")))
                        order.append("returned")

                page.loop.submit(scene)  # a callback of the loop: microtasks could run inside it, if they were wrong
                yield
                assert order == ["returned", "handler"]

        for when in ("before", "after"):

            @case(f"{clause}-{how}-added-right-{when}")
            def added(page: Page, how: str = how, when: str = when) -> Steps:
                depth: list[bool] = []
                inside = [False]

                def scene() -> None:
                    inside[0] = True
                    with settling(page, "immediately" if when == "before" else "already", how, DUMMY) as promise:
                        promise.then(**on(how, lambda _value: depth.append(inside[0])))
                    inside[0] = False

                page.loop.submit(scene)
                yield
                assert depth == [False]

        for outer in ("fulfilled", "rejected"):

            @case(f"{clause}-{how}-added-inside-{outer}-handler")
            def nested(page: Page, how: str = how, outer: str = outer) -> Steps:
                order: list[str] = []
                with settling(page, "already", how, DUMMY) as inner:
                    pass

                def handler(_value: Any) -> None:
                    inner.then(**on(how, lambda _value: order.append("inner")))
                    order.append("outer")

                with settling(page, "already", outer, DUMMY) as promise:
                    promise.then(**on(outer, handler))
                yield
                assert order == ["outer", "inner"]

        @case(f"{clause}-{how}-settled-in-a-later-callback")
        def asynchronous(page: Page, how: str = how) -> Steps:
            order: list[str] = []
            promise, resolve, reject = page.js.with_resolvers()

            def settle() -> None:
                (resolve if how == "fulfilled" else reject)(DUMMY)
                order.append("settled")

            promise.then(**on(how, lambda _value: order.append("handler")))
            later(page, settle)
            yield
            assert order == ["settled", "handler"]


def _called_as_functions() -> None:
    for how in ("fulfilled", "rejected"):

        @case(f"2.2.5-{how}-plain-call")
        def plain(page: Page, how: str = how) -> Steps:
            calls: list[Any] = []
            with settling(page, "already", how, DUMMY) as promise:
                promise.then(**on(how, lambda *args, **named: calls.append((args, named))))
            yield
            assert calls == [((DUMMY,), {})]


def _several_handlers() -> None:
    for clause, how in (("2.2.6.1", "fulfilled"), ("2.2.6.2", "rejected")):
        for form in FORMS:

            @case(f"{clause}-{form}-each-called")
            def boring(page: Page, form: str = form, how: str = how) -> Steps:
                seen: list[tuple[int, Any]] = []
                wrong: list[Any] = []
                with settling(page, form, how, SENTINEL) as promise:
                    for i in range(3):
                        promise.then(
                            **on(how, lambda value, i=i: seen.append((i, value))), **on(other_than(how), wrong.append)
                        )
                yield
                assert seen == [(0, SENTINEL), (1, SENTINEL), (2, SENTINEL)]
                assert wrong == []

            @case(f"{clause}-{form}-one-raises")
            def raises(page: Page, form: str = form, how: str = how) -> Steps:
                seen: list[int] = []
                error = ValueError("of the second")
                outcome = Seen()
                with settling(page, form, how, SENTINEL) as promise:
                    promise.then(**on(how, lambda _value: seen.append(0)))
                    outcome.of(promise.then(**on(how, lambda _value: throw(error))))
                    promise.then(**on(how, lambda _value: seen.append(2)))
                yield
                assert seen == [0, 2]
                assert only(outcome, "rejected", error)

            @case(f"{clause}-{form}-branches")
            def branches(page: Page, form: str = form, how: str = how) -> Steps:
                error = ValueError("a branch of its own")
                outcomes = [Seen(), Seen(), Seen()]
                with settling(page, form, how, DUMMY) as promise:
                    outcomes[0].of(promise.then(**on(how, lambda _value: SENTINEL)))
                    outcomes[1].of(promise.then(**on(how, lambda _value: throw(error))))
                    outcomes[2].of(promise.then(**on(how, lambda _value: OTHER)))
                yield
                assert outcomes == [[("fulfilled", SENTINEL)], [("rejected", error)], [("fulfilled", OTHER)]]

            @case(f"{clause}-{form}-in-order")
            def ordered(page: Page, form: str = form, how: str = how) -> Steps:
                seen: list[int] = []
                with settling(page, form, how, DUMMY) as promise:
                    for i in range(10):
                        promise.then(**on(how, lambda _value, i=i: seen.append(i)))
                yield
                assert seen == list(range(10))

            @case(f"{clause}-{form}-in-order-one-inside-another")
            def inside(page: Page, form: str = form, how: str = how) -> Steps:
                seen: list[str] = []
                with settling(page, form, how, DUMMY) as promise:

                    def first(_value: Any, promise: Promise[Any] = promise) -> None:
                        seen.append("first")
                        promise.then(**on(how, lambda _value: seen.append("inside")))

                    promise.then(**on(how, first))
                    promise.then(**on(how, lambda _value: seen.append("second")))
                yield
                assert seen == ["first", "second", "inside"]


def _returns_a_promise() -> None:
    @case("2.2.7-is-a-promise")
    def is_promise(page: Page) -> Steps:
        promise, _resolve, _reject = page.js.with_resolvers()
        child = promise.then()
        assert isinstance(child, Promise)
        assert child is not promise
        yield

    for how, form in itertools.product(("fulfilled", "rejected"), FORMS):

        @case(f"2.2.7.1-{how}-{form}-return-value")
        def returns(page: Page, how: str = how, form: str = form) -> Steps:
            with settling(page, form, how, DUMMY) as promise:
                seen = Seen().of(promise.then(**on(how, lambda _value: SENTINEL)))
            yield
            assert only(seen, "fulfilled", SENTINEL)

    for name, make in ERRORS.items():
        for how, form in itertools.product(("fulfilled", "rejected"), FORMS):

            @case(f"2.2.7.2-{name}-raised-when-{how}-{form}")
            def raised(page: Page, how: str = how, form: str = form, make: Callable[[], BaseException] = make) -> Steps:
                error = make()
                with settling(page, form, how, DUMMY) as promise:
                    seen = Seen().of(promise.then(**on(how, lambda _value: throw(error))))
                yield
                assert only(seen, "rejected", error)

    things = NO_FUNCTIONS | {"list-of-a-function": [lambda _value: OTHER]}
    for clause, how in (("2.2.7.3", "fulfilled"), ("2.2.7.4", "rejected")):
        for (name, thing), form in itertools.product(things.items(), FORMS):

            @case(f"{clause}-handler-is-{name}-{how}-{form}")
            def passes(page: Page, how: str = how, form: str = form, thing: Any = thing) -> Steps:
                with settling(page, form, how, SENTINEL) as promise:
                    seen = Seen().of(promise.then(**on(how, thing)))
                yield
                assert only(seen, how, SENTINEL)


# --- 2.3 the resolution procedure ------------------------------------------------------------------------------------


def _itself_and_promises() -> None:
    for via in VIAS:

        @case(f"2.3.1-itself-{via}")
        def itself(page: Page, via: str = via) -> Steps:
            promise: Any = returned(page, via, lambda: promise)
            seen = Seen().of(promise)
            yield
            assert [state for state, _ in seen] == ["rejected"]
            assert isinstance(seen[0][1], TypeError)

        @case(f"2.3.2.1-pending-{via}")
        def pending(page: Page, via: str = via) -> Steps:
            inner, _resolve, _reject = page.js.with_resolvers()
            promise = returned(page, via, lambda: inner)
            seen = Seen().of(promise)
            yield
            assert seen == []
            assert promise.state == "pending"

        for clause, how in (("2.3.2.2", "fulfilled"), ("2.3.2.3", "rejected")):
            for form in ("already", "eventually"):

                @case(f"{clause}-{form}-{how}-{via}")
                def adopts(page: Page, via: str = via, how: str = how, form: str = form) -> Steps:
                    with settling(page, form, how, SENTINEL) as inner:
                        seen = Seen().of(returned(page, via, lambda: inner))
                    yield
                    assert only(seen, how, SENTINEL)


def _looking_up_then() -> None:
    for (name, make), via in itertools.product(
        {"property": Getter, "dynamic": DynamicGetter, "function": CallableGetter}.items(), VIAS
    ):

        @case(f"2.3.3.1-{name}-{via}")
        def once(page: Page, make: Callable[..., Any] = make, via: str = via) -> Steps:
            looks: list[None] = []

            def get() -> Any:
                looks.append(None)
                return lambda resolve, reject: resolve(SENTINEL)

            seen = Seen().of(returned(page, via, lambda: make(get)))
            yield
            assert only(seen, "fulfilled", SENTINEL)
            assert len(looks) == 1

    for (name, make), via in itertools.product(ERRORS.items(), VIAS):
        if name == "AttributeError":  # raised by a property, Python's way to say that there is no such attribute

            @case(f"2.3.3.2-{name}-{via}-no-thenable")
            def absent(page: Page, make: Callable[[], BaseException] = make, via: str = via) -> Steps:
                getter = Getter(lambda: throw(make()))
                seen = Seen().of(returned(page, via, lambda: getter))
                yield
                assert only(seen, "fulfilled", getter)

            continue

        @case(f"2.3.3.2-{name}-{via}")
        def raising(page: Page, make: Callable[[], BaseException] = make, via: str = via) -> Steps:
            error = make()
            seen = Seen().of(returned(page, via, lambda: Getter(lambda: throw(error))))
            yield
            assert only(seen, "rejected", error)

    for via in VIAS:

        @case(f"2.3.3.3-called-as-method-with-two-functions-{via}")
        def method(page: Page, via: str = via) -> Steps:
            calls: list[Any] = []

            class Watched:
                def then(self, *args: Any) -> None:
                    calls.append((self, [callable(a) for a in args]))
                    args[0](SENTINEL)

            watched = Watched()
            seen = Seen().of(returned(page, via, lambda: watched))
            yield
            assert only(seen, "fulfilled", SENTINEL)
            assert calls == [(watched, [True, True])]

        @case(f"2.3.3.3-first-look-counts-{via}")
        def first_look(page: Page, via: str = via) -> Steps:
            seen = Seen().of(returned(page, via, lambda: one_time(lambda resolve, reject: resolve(SENTINEL))))
            yield
            assert only(seen, "fulfilled", SENTINEL)


def _calling_resolve(clause: str, name: str, make: Callable[[Page], Any], state: str, expected: Any, call: str) -> None:
    """`then` calls its `call` argument with what `make` makes, at once and later, returned from both kinds of
    handler.
    """
    for when, via in itertools.product(("sync", "async"), VIAS):

        @case(f"{clause}-{name}-called-{when}-{via}")
        def calls(page: Page, when: str = when, via: str = via) -> Steps:
            made: list[Any] = []

            def then(resolve: Callable[[Any], None], reject: Callable[[Any], None]) -> None:
                def now() -> None:
                    made.append(make(page))
                    (resolve if call == "resolve" else reject)(made[0])

                if when == "sync":
                    now()
                else:
                    later(page, now)

            seen = Seen().of(returned(page, via, lambda: Thenable(then)))
            yield
            assert only(seen, state, made[0] if expected is OTHER else expected)


def _resolving_functions() -> None:
    values = {"none": None, "false": False, "five": 5, "object": SENTINEL, "list": [SENTINEL], "string": "then"}
    for name, value in values.items():
        _calling_resolve("2.3.3.3.1", f"y-is-{name}", lambda _page, value=value: value, "fulfilled", value, "resolve")
    reason = ValueError("the reason")
    for state, thenables, final in (("fulfilled", FULFILLED, SENTINEL), ("rejected", REJECTED, reason)):
        for name, make in thenables.items():
            _calling_resolve(
                "2.3.3.3.1",
                f"y-is-thenable-{name}",
                lambda page, make=make, final=final: make(page, final),
                state,
                final,
                "resolve",
            )
            for outer_name, outer in FULFILLED.items():
                _calling_resolve(
                    "2.3.3.3.1",
                    f"y-is-{outer_name}-for-{name}",
                    lambda page, make=make, final=final, outer=outer: outer(page, make(page, final)),
                    state,
                    final,
                    "resolve",
                )
    for name, make in REASONS.items():
        _calling_resolve("2.3.3.3.2", f"r-is-{name}", make, "rejected", OTHER, "reject")


# What `then` does with its two functions, and the outcome, which is of SENTINEL. A step is (function, when, with what).
FIRST_CALLS: dict[str, tuple[list[tuple[str, str, str]], str]] = {
    "resolve-reject-sync": ([("resolve", "sync", "sentinel"), ("reject", "sync", "other")], "fulfilled"),
    "resolve-sync-reject-async": ([("resolve", "sync", "sentinel"), ("reject", "async", "other")], "fulfilled"),
    "resolve-reject-async": ([("resolve", "async", "sentinel"), ("reject", "async", "other")], "fulfilled"),
    "resolve-slow-promise-reject": ([("resolve", "sync", "slow"), ("reject", "sync", "other")], "fulfilled"),
    "resolve-slow-rejection-reject": ([("resolve", "sync", "slow-rejection"), ("reject", "sync", "other")], "rejected"),
    "reject-resolve-sync": ([("reject", "sync", "sentinel"), ("resolve", "sync", "other")], "rejected"),
    "reject-sync-resolve-async": ([("reject", "sync", "sentinel"), ("resolve", "async", "other")], "rejected"),
    "reject-resolve-async": ([("reject", "async", "sentinel"), ("resolve", "async", "other")], "rejected"),
    "resolve-twice-sync": ([("resolve", "sync", "sentinel"), ("resolve", "sync", "other")], "fulfilled"),
    "resolve-sync-and-async": ([("resolve", "sync", "sentinel"), ("resolve", "async", "other")], "fulfilled"),
    "resolve-twice-async": ([("resolve", "async", "sentinel"), ("resolve", "async", "other")], "fulfilled"),
    "resolve-slow-promise-resolve": ([("resolve", "sync", "slow"), ("resolve", "sync", "other")], "fulfilled"),
    "resolve-slow-rejection-resolve": (
        [("resolve", "sync", "slow-rejection"), ("resolve", "sync", "other")],
        "rejected",
    ),
    "reject-twice-sync": ([("reject", "sync", "sentinel"), ("reject", "sync", "other")], "rejected"),
    "reject-sync-and-async": ([("reject", "sync", "sentinel"), ("reject", "async", "other")], "rejected"),
    "reject-twice-async": ([("reject", "async", "sentinel"), ("reject", "async", "other")], "rejected"),
}

# The same, and then `then` raises.
THEN_RAISES: dict[str, tuple[list[tuple[str, str, str]], str]] = {
    "after-resolve": ([("resolve", "sync", "sentinel")], "fulfilled"),
    "after-resolve-slow-promise": ([("resolve", "sync", "slow")], "fulfilled"),
    "after-resolve-slow-rejection": ([("resolve", "sync", "slow-rejection")], "rejected"),
    "after-reject": ([("reject", "sync", "sentinel")], "rejected"),
    "after-resolve-and-reject": ([("resolve", "sync", "sentinel"), ("reject", "sync", "other")], "fulfilled"),
    "after-reject-and-resolve": ([("reject", "sync", "sentinel"), ("resolve", "sync", "other")], "rejected"),
}

THEN_RAISES_FIRST: dict[str, list[tuple[str, str, str]]] = {
    "at-once": [],
    "before-async-resolve": [("resolve", "async", "other")],
    "before-async-reject": [("reject", "async", "other")],
}


def _perform(
    page: Page, script: list[tuple[str, str, str]], resolve: Callable[[Any], None], reject: Callable[[Any], None]
) -> None:
    for function, when, what in script:
        if what == "slow":
            value: Any = eventually(page, "fulfilled", SENTINEL)
        elif what == "slow-rejection":
            value = eventually(page, "rejected", SENTINEL)
        else:
            value = SENTINEL if what == "sentinel" else OTHER
        call = resolve if function == "resolve" else reject
        if when == "sync":
            call(value)
        else:
            later(page, call, value)


def _first_call_decides() -> None:
    for (name, (script, state)), via in itertools.product(FIRST_CALLS.items(), VIAS):

        @case(f"2.3.3.3.3-{name}-{via}")
        def decides(
            page: Page, script: list[tuple[str, str, str]] = script, state: str = state, via: str = via
        ) -> Steps:
            seen = Seen().of(returned(page, via, lambda: Thenable(lambda a, b: _perform(page, script, a, b))))
            yield
            assert only(seen, state, SENTINEL)

    for via in VIAS:

        @case(f"2.3.3.3.3-kept-functions-do-nothing-{via}")
        def kept(page: Page, via: str = via) -> Steps:
            functions: list[Callable[[Any], None]] = []

            def then(resolve: Callable[[Any], None], reject: Callable[[Any], None]) -> None:
                functions.extend((resolve, reject))
                resolve(SENTINEL)

            promise = returned(page, via, lambda: Thenable(then))
            seen = Seen().of(promise)
            yield
            for function in (*functions, *functions):
                function(OTHER)
                later(page, function, OTHER)
            yield
            seen.of(promise)
            yield
            assert seen == [("fulfilled", SENTINEL)] * 2

    for (name, (script, state)), via in itertools.product(THEN_RAISES.items(), VIAS):

        @case(f"2.3.3.3.4.1-raises-{name}-{via}")
        def ignored(
            page: Page, script: list[tuple[str, str, str]] = script, state: str = state, via: str = via
        ) -> Steps:
            def then(resolve: Callable[[Any], None], reject: Callable[[Any], None]) -> None:
                _perform(page, script, resolve, reject)
                raise ValueError("ignored")

            seen = Seen().of(returned(page, via, lambda: Thenable(then)))
            yield
            assert only(seen, state, SENTINEL)

    for (name, steps), via in itertools.product(THEN_RAISES_FIRST.items(), VIAS):

        @case(f"2.3.3.3.4.2-raises-{name}-{via}")
        def raises(page: Page, script: list[tuple[str, str, str]] = steps, via: str = via) -> Steps:
            error = ValueError("the reason")

            def then(resolve: Callable[[Any], None], reject: Callable[[Any], None]) -> None:
                _perform(page, script, resolve, reject)
                raise error

            seen = Seen().of(returned(page, via, lambda: Thenable(then)))
            yield
            assert only(seen, "rejected", error)


def _plain_values() -> None:
    for (name, thing), via in itertools.product((NO_FUNCTIONS | {"list-of-a-function": [throw]}).items(), VIAS):

        @case(f"2.3.3.4-then-is-{name}-{via}")
        def no_function(page: Page, thing: Any = thing, via: str = via) -> Steps:
            x = Getter(lambda: thing)
            seen = Seen().of(returned(page, via, lambda: x))
            yield
            assert only(seen, "fulfilled", x)

    class Integer(int):
        """A number whose `then` is none."""

        then = None

    values = {
        "none": None,
        "false": False,
        "true": True,
        "zero": 0,
        "text": "x",
        "nan": float("nan"),
        "subclass": Integer(1),
    }
    for (name, value), how, form in itertools.product(values.items(), ("fulfilled", "rejected"), FORMS):

        @case(f"2.3.4-{name}-from-{how}-{form}")
        def plain(page: Page, value: Any = value, how: str = how, form: str = form) -> Steps:
            with settling(page, form, how, DUMMY) as promise:
                seen = Seen().of(promise.then(**on(how, lambda _value: value)))
            yield
            assert only(seen, "fulfilled", value)


for section in (
    _states,
    _ignored_arguments,
    _called_once,
    _clean_stack,
    _called_as_functions,
    _several_handlers,
    _returns_a_promise,
    _itself_and_promises,
    _looking_up_then,
    _resolving_functions,
    _first_call_decides,
    _plain_values,
):
    section()


@pytest.mark.parametrize("steps", CASES)
def test_clause(shared, steps):
    """Promises/A+, the clause that the id begins with."""
    for _ in steps(shared):
        shared.quiet()
