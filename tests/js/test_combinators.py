"""`all`, `race`, `all_settled`, `any`: ECMAScript 27.2.4."""

from __future__ import annotations

import concurrent.futures
import random

import pytest

from nbloop.js import AggregateError, NoPromisesError, RejectedError
from tests.support.waiting import together

ERROR = ValueError("the reason")
NAMES = ["all", "race", "all_settled", "any"]


class Thenable:
    """Calls back at once."""

    def __init__(self, value, *, rejects=False):
        self.value = value
        self.rejects = rejects

    def then(self, resolve, reject):
        """Either."""
        (reject if self.rejects else resolve)(self.value)


def mixed(js):
    """The values 1 to 7 in all the forms that a combinator takes."""

    async def six():
        return await js.resolve(6)

    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.set_result(5)
    return [1, js.resolve(2), js.sleep(1).then(lambda _value: 3), Thenable(4), future, six(), js.resolve(Thenable(7))]


def fulfilled(value):
    """As `all_settled` tells."""
    return {"status": "fulfilled", "value": value}


def rejected(reason):
    """As `all_settled` tells."""
    return {"status": "rejected", "reason": reason}


def test_all_of_nothing(page, js):
    """27.2.4.1: fulfilled with an empty list, already when it returns."""
    promise = js.all([])
    assert promise.state == "fulfilled"
    assert page.value(promise) == []


def test_all_settled_of_nothing(page, js):
    """27.2.4.2: the same."""
    promise = js.all_settled(())
    assert promise.state == "fulfilled"
    assert page.value(promise) == []


def test_race_of_nothing(page, js):
    """27.2.4.5: pending for ever."""
    promise = js.race([])
    page.quiet()
    assert promise.state == "pending"


def test_any_of_nothing(page, js):
    """27.2.4.3: rejected with an AggregateError; a group cannot be empty, so it holds a NoPromisesError."""
    promise = js.any([])
    assert promise.state == "rejected"
    error = page.reason(promise)
    assert isinstance(error, AggregateError)
    assert [type(e) for e in error.exceptions] == [NoPromisesError]
    assert error.reasons == []


def test_mixed_values(page, js):
    """27.2.4.1.2, step 4.e: each item goes through PromiseResolve."""
    assert page.value(js.all(mixed(js))) == [1, 2, 3, 4, 5, 6, 7]
    assert page.value(js.all_settled(mixed(js))) == [fulfilled(i) for i in range(1, 8)]
    assert page.value(js.any(mixed(js))) in range(1, 8)
    assert page.value(js.race(mixed(js))) == 1


@pytest.mark.parametrize("make", [list, tuple, iter, lambda x: (i for i in x), dict.fromkeys], ids=str)
def test_any_iterable(page, js, make):
    """27.2.4.1: iterated once, at once."""
    assert page.value(js.all(make([1, 2, 3]))) == [1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_no_iterable(page, js, name):
    """27.2.4.1, step 5, IfAbruptRejectPromise: rejected, nothing raised."""
    assert isinstance(page.reason(getattr(js, name)(5)), TypeError)


@pytest.mark.parametrize("name", NAMES)
def test_an_iterable_that_raises(page, js, name):
    """27.2.4.1.2, step 4.a: rejected with it; what it had given is handled."""
    given = []

    def items():
        given.append(js.with_resolvers())
        yield given[0][0]
        yield js.reject("handled, as the first was")
        raise ERROR

    promise = getattr(js, name)(items())
    given[0][2]("nobody cares")
    assert page.reason(promise) is ERROR  # rejected before any job of an item has run
    assert page.unhandled == []


@pytest.mark.parametrize("name", NAMES)
def test_an_item_whose_then_can_not_be_looked_up(page, js, name):
    """27.2.1.3.2, step 9: that item is rejected."""

    class Bad:
        @property
        def then(self):
            raise ERROR

    state, outcome = page.outcome(getattr(js, name)([Bad()]))
    if name == "all_settled":
        assert (state, outcome) == ("fulfilled", [rejected(ERROR)])
    elif name == "any":
        assert outcome.reasons == [ERROR]
    else:
        assert (state, outcome) == ("rejected", ERROR)


def test_the_same_promise_twice(page, js):
    """27.2.4.1.2: each occurrence counts."""
    promise = js.sleep(1).then(lambda _value: 5)
    assert page.value(js.all([promise] * 3)) == [5, 5, 5]
    assert page.value(js.all_settled([promise] * 2)) == [fulfilled(5)] * 2
    failed = js.reject(6)
    assert page.reason(js.any([failed, failed])).reasons == [6, 6]


def test_a_combinator_keeps_no_iterable(page, js):
    """27.2.4.1: a change of the list afterwards changes nothing."""
    items = [js.sleep(1).then(lambda _value: 1), 2]
    promise = js.all(items)
    items.append(3)
    assert page.value(promise) == [1, 2]
    first = page.value(promise)
    assert page.value(promise) is first


def test_all_rejects_with_the_first(page, js):
    """27.2.4.1: at once, and the rest is handled but not heard."""
    first, _, reject_first = js.with_resolvers()
    second, _, reject_second = js.with_resolvers()
    pending, _, _ = js.with_resolvers()
    promise = js.all([pending, first, second, js.resolve(1)])
    reject_second("second")
    reject_first("first")
    assert page.reason(promise) == "second"
    page.quiet()
    assert page.unhandled == []


def test_all_settled_never_rejects(page, js):
    """27.2.4.2: reasons may be anything."""
    items = [js.resolve(1), js.reject(ERROR), js.reject(None), 4, Thenable(5, rejects=True)]
    expected = [fulfilled(1), rejected(ERROR), rejected(None), fulfilled(4), rejected(5)]
    assert page.value(js.all_settled(items)) == expected
    assert page.unhandled == []


def test_any_takes_the_first_value(page, js):
    """27.2.4.3: rejections before it do not count, and are handled."""
    assert page.value(js.any([js.reject(1), js.sleep(1).then(lambda _value: 2), js.reject(3)])) == 2
    assert page.unhandled == []


def test_any_of_rejections(page, js):
    """27.2.4.3.1, 27.2.4.3.2: all reasons in the order of the items, not of the rejections."""
    slow, _, reject_slow = js.with_resolvers()
    promise = js.any([slow, js.reject("text"), js.reject(ERROR)])
    page.quiet()
    reject_slow(KeyError("slow"))
    error = page.reason(promise)
    assert [type(e) for e in error.exceptions] == [KeyError, RejectedError, ValueError]
    assert error.exceptions[1].reason == "text"
    assert error.exceptions[2] is ERROR
    assert error.reasons[1:] == ["text", ERROR]


def test_an_aggregate_error_is_a_group(page, js):
    """contract: except* takes it apart, and the parts are of its kind."""

    async def body():
        caught = []
        try:
            await js.any([js.reject(ERROR), js.reject(KeyError(1)), js.reject("text")])
        except* ValueError as group:
            caught.append(group)
        except* RejectedError as group:
            caught.append(group)
        except* KeyError as group:
            caught.append(group)
        return caught

    caught = page.value(js.spawn(body()))
    assert {type(group) for group in caught} == {AggregateError}
    assert [[type(e) for e in group.exceptions] for group in caught] == [[ValueError], [RejectedError], [KeyError]]


def test_any_with_reasons_beyond_exception(page, js):
    """contract: a reason that an ExceptionGroup cannot hold is wrapped."""
    leaving = GeneratorExit()
    error = page.reason(js.any([js.reject(leaving), js.reject(None)]))
    assert [e.reason for e in error.exceptions] == [leaving, None]
    assert error.reasons == [leaving, None]


def test_race_takes_the_first(page, js):
    """27.2.4.5: of settled ones the first in order; otherwise the first to settle, whatever the outcome."""
    pending, _, _ = js.with_resolvers()
    assert page.value(js.race([pending, js.resolve(1), js.reject(2)])) == 1
    assert page.reason(js.race([pending, js.reject(2), js.resolve(1)])) == 2
    slow, resolve_slow, _ = js.with_resolvers()
    fast, _, reject_fast = js.with_resolvers()
    promise = js.race([slow, fast])
    reject_fast(3)
    resolve_slow(4)
    assert page.reason(promise) == 3
    assert page.unhandled == []


def test_jobs_are_queued_item_by_item(page, js):
    """27.2.4.5.1: each item is resolved and subscribed to before the next is taken, which the order of the jobs
    shows.
    """
    order = []

    class Queues:
        def then(self, _resolve, _reject):
            order.append("thenable")
            js.queue_microtask(order.append, "its microtask")

    js.race([js.resolve(1), Queues()]).then(lambda _value: order.append("race"))
    page.quiet()
    assert order == ["thenable", "race", "its microtask"]


@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_settled_from_threads(page, js, name, count):
    """100 to 1,000 inputs settled at once from threads in any order: order kept, one outcome."""
    for round in range(3):
        resolvers = [js.with_resolvers() for _ in range(count)]
        combined = getattr(js, name)([promise for promise, _, _ in resolvers])
        outcomes = []
        combined.then(lambda value, o=outcomes: o.append(value), lambda reason, o=outcomes: o.append(reason))
        order = list(range(count))
        random.Random(round).shuffle(order)

        def settle(i, order=order, resolvers=resolvers):
            for n in order[i::4]:
                if name == "any" or (name == "all_settled" and n % 2):
                    resolvers[n][2](n)
                else:
                    resolvers[n][1](n)

        together(4, settle)
        page.quiet()
        (outcome,) = outcomes
        if name == "all":
            assert outcome == list(range(count))
        elif name == "any":
            assert outcome.reasons == list(range(count))
        elif name == "race":
            assert outcome in range(count)
        else:
            assert outcome == [rejected(n) if n % 2 else fulfilled(n) for n in range(count)]


def test_all_made_while_its_inputs_settle(page, js):
    """Subscribing and settling at the same moment: nothing is lost."""
    for _ in range(50):
        resolvers = [js.with_resolvers() for _ in range(50)]

        def act(i, resolvers=resolvers):
            if i == 0:
                return js.all([promise for promise, _, _ in resolvers])
            for n in range(i - 1, 50, 2):
                resolvers[n][1](n)
            return None

        combined = together(3, act)[0]
        assert page.value(combined) == list(range(50))


@pytest.mark.parametrize("name", NAMES)
def test_after_the_end(make_page, name):
    """A combinator whose inputs can no longer report is rejected, not pending for ever."""
    page = make_page()
    settled = page.js.resolve(1)
    waiting, resolve, _ = page.js.with_resolvers()
    before = getattr(page.js, name)([waiting])
    page.loop.close()
    resolve(1)
    for promise in (before, getattr(page.js, name)([settled])):
        assert promise.state == ("fulfilled" if name == "all_settled" else "rejected")
        assert "LoopTerminatedError" in repr(promise)
