"""Promises beyond Promises/A+: ECMAScript 27.2, adoption, threads, unhandled rejections, memory."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import threading
import tracemalloc
import weakref
from typing import Any

import pytest

from nbloop import Loop, LoopState, LoopTerminatedError, hooks
from nbloop.js import JS, Promise
from tests.support.driver import Page
from tests.support.waiting import PATIENCE, elsewhere, together, wait_for

ERROR = ValueError("the reason")


def ticks(page: Page, promise: Promise[Any]) -> int:
    """How many jobs run before the handler of a promise does, counted by a chain of microtasks."""
    count = 0
    seen: list[int] = []

    def tick() -> None:
        nonlocal count
        if not seen:
            count += 1
            page.js.queue_microtask(tick)

    promise.then(lambda _value: seen.append(count), lambda _reason: seen.append(count))
    page.js.queue_microtask(tick)
    page.until(lambda: seen)
    return seen[0]


# --- making -----------------------------------------------------------------------------------------------------------


def test_the_executor_runs_at_once(page, js):
    """27.2.3.1, step 9: synchronously, with two functions."""
    calls = []
    promise = js.promise(lambda *functions: calls.append(functions))
    assert [callable(f) for f in calls[0]] == [True, True]
    assert len(calls) == 1
    assert promise.state == "pending"


@pytest.mark.parametrize("executor", [None, 1, "f", []], ids=repr)
def test_the_executor_is_callable(js, executor):
    """27.2.3.1, step 2: TypeError."""
    with pytest.raises(TypeError, match="executor must be callable"):
        js.promise(executor)


def test_an_executor_that_raises(page, js):
    """27.2.3.1, step 10: the promise is rejected with it, unless it was settled before."""

    def settles_first(resolve, _reject):
        resolve(1)
        raise ERROR

    def raises(_resolve, _reject):
        raise ERROR

    assert page.reason(js.promise(raises)) is ERROR
    assert page.value(js.promise(settles_first)) == 1
    assert page.reason(js.promise(lambda _resolve, reject: reject(7))) == 7


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_what_must_leave_python_leaves_the_executor(js, leaving):
    """contract: KeyboardInterrupt and SystemExit never become reasons."""

    def raises(_resolve, _reject):
        raise leaving

    with pytest.raises(leaving):
        js.promise(raises)


def test_resolving_functions_need_no_argument(page, js):
    """27.2.1.3: an argument that is not given is undefined, here None."""
    promise, resolve, _ = js.with_resolvers()
    assert resolve() is None
    assert page.outcome(promise) == ("fulfilled", None)
    promise, _, reject = js.with_resolvers()
    assert reject() is None
    assert page.outcome(promise) == ("rejected", None)
    assert page.value(js.resolve()) is None
    assert page.reason(js.reject()) is None


def test_resolve_gives_a_promise_itself_back(page, js):
    """27.2.4.7.1, PromiseResolve: of the same view, here; of another it is followed."""
    promise = js.resolve(1)
    assert js.resolve(promise) is promise
    other = JS(page.loop)
    assert other.resolve(promise) is not promise
    assert page.value(other.resolve(promise)) == 1


def test_reject_takes_anything(page, js):
    """27.2.4.6: a reason is not adopted, even if it is a promise."""
    inner = js.resolve(1)
    assert page.reason(js.reject(inner)) is inner


def test_try(page, js):
    """27.2.4.8, Promise.try: called at once with the arguments; what it returns or raises is the outcome."""
    calls = []
    promise = js.try_(lambda *args: calls.append(args) or 5, 1, 2)
    assert calls == [(1, 2)]
    assert page.value(promise) == 5
    assert isinstance(page.reason(js.try_(lambda: 1 // 0)), ZeroDivisionError)
    assert page.value(js.try_(lambda: js.resolve(6))) == 6
    assert page.reason(js.try_(lambda: js.reject(7))) == 7


def test_with_resolvers_resolves_with_itself(page, js):
    """27.2.1.3.2, step 7: TypeError."""
    promise, resolve, _ = js.with_resolvers()
    resolve(promise)
    assert isinstance(page.reason(promise), TypeError)


@pytest.mark.parametrize("loop", [None, object(), Loop], ids=["none", "object", "class"])
def test_a_view_is_of_a_loop(loop):
    """contract: JS(loop): TypeError for what is none."""
    with pytest.raises(TypeError, match=r"loop must be a nbloop\.Loop"):
        JS(loop)


def test_arguments_of_the_view(page, js):
    """contract: on_unhandled_rejection is callable or None; timers, microtasks, spawn and try_ say what they take."""
    with pytest.raises(TypeError, match="on_unhandled_rejection must be callable or None"):
        JS(page.loop, on_unhandled_rejection=5)
    with pytest.raises(TypeError, match="spawn takes a coroutine"):
        js.spawn(lambda: None)
    for schedule in (js.set_timeout, js.set_interval, js.set_immediate, js.queue_microtask, js.next_tick):
        with pytest.raises(TypeError, match="callback must be callable"):
            schedule(5)
        with pytest.raises(TypeError):
            schedule()
    for clear in (js.clear_timeout, js.clear_interval, js.clear_immediate):
        with pytest.raises(TypeError, match="id must be an int"):
            clear("1")
        assert clear(1 << 40) is False
    with pytest.raises(TypeError, match="ms must be a number of milliseconds, not 'soon'"):
        js.set_timeout(print, "soon")
    for wrong in (lambda: js.resolve(1).then(1, 2, 3), lambda: js.resolve(1).then(on_settled=print)):
        with pytest.raises(TypeError, match="then takes at most two arguments, on_fulfilled and on_rejected"):
            wrong()
    with pytest.raises(TypeError, match="a resolving function takes at most one argument"):
        js.with_resolvers()[1](1, 2)
    for delay in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            js.set_timeout(print, delay)
    assert isinstance(page.reason(js.try_(5)), TypeError)


def test_a_promise_says_where_it_stands(page, js):
    """contract: state, and a repr for people."""
    promise, resolve, _ = js.with_resolvers()
    assert (promise.state, repr(promise)) == ("pending", "<Promise pending>")
    resolve([1])
    assert (promise.state, repr(promise)) == ("fulfilled", "<Promise fulfilled [1]>")
    promise = js.reject(7)
    promise.catch(print)
    assert (promise.state, repr(promise)) == ("rejected", "<Promise rejected 7>")


# --- catch and finally -----------------------------------------------------------------------------------------------


def test_catch(page, js):
    """27.2.5.1: then(None, handler)."""
    assert page.value(js.reject(1).catch(lambda reason: reason + 1)) == 2
    assert page.value(js.resolve(1).catch(lambda reason: 99)) == 1
    assert page.reason(js.reject(1).catch()) == 1
    assert page.reason(js.reject(1).catch(5)) == 1


def test_finally_passes_the_outcome_on(page, js):
    """27.2.5.3: the handler gets nothing, and what it returns is dropped."""
    calls = []
    assert page.value(js.resolve(1).finally_(lambda *args: calls.append(args) or 5)) == 1
    assert page.reason(js.reject(ERROR).finally_(lambda *args: calls.append(args) or 5)) is ERROR
    assert calls == [(), ()]


@pytest.mark.parametrize("how", ["resolve", "reject"])
def test_finally_that_fails_changes_the_outcome(page, js, how):
    """27.2.5.3: an exception, or the rejection of a promise returned, is the new outcome."""

    def raises():
        raise ERROR

    start = getattr(js, how)
    assert page.reason(start(1).finally_(raises)) is ERROR
    assert page.reason(start(1).finally_(lambda: js.reject(ERROR))) is ERROR
    assert page.reason(start(1).finally_(lambda: js.sleep(1).then(lambda _value: raises()))) is ERROR


@pytest.mark.parametrize("how", ["resolve", "reject"])
def test_finally_waits_for_what_it_returned(page, js, how):
    """27.2.5.3: and then the outcome is the old one."""
    order = []
    inner, resolve, _ = js.with_resolvers()
    start = getattr(js, how)
    promise = start(1).finally_(lambda: inner)
    promise.then(order.append, order.append)
    page.quiet()
    assert order == []
    assert promise.state == "pending"
    order.append("resolve")
    resolve(2)
    page.quiet()
    assert order == ["resolve", 1]


@pytest.mark.parametrize("thing", [None, 5, "f"], ids=repr)
def test_finally_without_a_function(page, js, thing):
    """27.2.5.3, step 6: as then(thing, thing)."""
    assert page.value(js.resolve(1).finally_(thing)) == 1
    assert page.reason(js.reject(2).finally_(thing)) == 2


def test_finally_on_a_chain(page, js):
    """27.2.5.3: called once on each path."""
    calls = []
    promise = (
        js.resolve(1)
        .finally_(lambda: calls.append("a"))
        .then(lambda _value: js.reject(2))
        .finally_(lambda: calls.append("b"))
        .catch(lambda reason: reason)
        .finally_(lambda: calls.append("c"))
    )
    assert page.value(promise) == 2
    assert calls == ["a", "b", "c"]


def test_number_of_jobs(page, js):
    """27.2.1.3.2 and 27.2.2.2: two extra jobs for an adopted promise, one for a thenable; a `finally` takes three."""

    class Sync:
        def then(self, resolve, reject):
            resolve(1)

    assert ticks(page, js.resolve(1)) == 0
    assert ticks(page, js.resolve(1).then()) == 1
    assert ticks(page, js.resolve(1).then(js.resolve)) == 3
    assert ticks(page, js.resolve(Sync())) == 1
    assert ticks(page, js.promise(lambda resolve, _reject: resolve(js.resolve(1)))) == 2
    assert ticks(page, js.resolve(1).finally_(lambda: None)) == 3
    assert ticks(page, js.reject(1).finally_(lambda: None)) == 3
    assert ticks(page, js.race([js.resolve(1)])) == 1
    assert ticks(page, js.all([1, js.resolve(2)])) == 1
    assert ticks(page, js.any([js.reject(1), 2])) == 1


# --- adoption --------------------------------------------------------------------------------------------------------


def test_adoption_locks(page, js):
    """27.2.1.3.2, [[AlreadyResolved]]: resolved with a pending promise, later calls do nothing."""
    inner, resolve_inner, _ = js.with_resolvers()
    promise, resolve, reject = js.with_resolvers()
    resolve(inner)
    resolve(1)
    reject(2)
    page.quiet()
    assert promise.state == "pending"
    resolve_inner(3)
    assert page.value(promise) == 3


def test_adoption_chains(page, js):
    """27.2.1.3.2: through any number of promises, both outcomes."""
    for how in ("resolve", "reject"):
        promise = inner = js.with_resolvers()
        promise = inner[0]
        for _ in range(100):
            outer, resolve, _reject = js.with_resolvers()
            resolve(promise)
            promise = outer
        (inner[1] if how == "resolve" else inner[2])(ERROR)
        assert page.outcome(promise) == ("fulfilled" if how == "resolve" else "rejected", ERROR)


def test_a_cycle_of_two_stays_pending(page, js):
    """27.2.1.3.2: only a promise that is resolved with itself is an error."""
    first, resolve_first, _ = js.with_resolvers()
    second, resolve_second, _ = js.with_resolvers()
    resolve_first(second)
    resolve_second(first)
    page.quiet()
    assert (first.state, second.state) == ("pending", "pending")


@pytest.mark.parametrize("done", [True, False], ids=["done", "later"])
def test_a_future_is_adopted(page, js, done):
    """contract: what resolves a promise may be a concurrent.futures.Future: value, exception, cancellation."""
    outcomes = []
    for finish in (lambda f: f.set_result(5), lambda f: f.set_exception(ERROR), lambda f: f.cancel()):
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        if done:
            finish(future)
        promise = js.resolve(future)
        if not done:
            assert promise.state == "pending"
            elsewhere(finish, future)
        outcomes.append(page.outcome(promise))
    assert outcomes[:2] == [("fulfilled", 5), ("rejected", ERROR)]
    assert outcomes[2][0] == "rejected"
    assert isinstance(outcomes[2][1], concurrent.futures.CancelledError)


def test_a_future_of_a_pool_is_adopted_from_a_handler(page, js):
    """contract: a handler may return a future; the worker's thread settles the promise."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert page.value(js.resolve(20).then(lambda value: pool.submit(lambda: value + 1))) == 21


def test_an_awaitable_is_adopted(page, js):
    """contract: a coroutine and any object with __await__ is awaited on the loop."""

    async def answer(value):
        return await js.resolve(value) + 1

    class Waits:
        def __await__(self):
            return answer(5).__await__()

    async def fails():
        raise ERROR

    assert page.value(js.resolve(answer(1))) == 2
    assert page.value(js.resolve(0).then(lambda _value: answer(2))) == 3
    assert page.value(js.resolve(Waits())) == 6
    assert page.reason(js.resolve(fails())) is ERROR


def test_a_thenable_that_calls_from_a_thread(page, js):
    """27.2.2.2: its functions work anywhere."""

    class Threaded:
        def then(self, resolve, reject):
            threading.Thread(target=resolve, args=(5,)).start()

    assert page.value(js.resolve(Threaded())) == 5


def test_a_thenable_is_asked_in_a_job(page, js):
    """27.2.2.2: `then` is looked up at once, and called later."""
    order = []

    class Watched:
        @property
        def then(self):
            order.append("looked up")

            def then(resolve, _reject):
                order.append("called")
                resolve(1)

            return then

    def scene():
        promise = js.resolve(Watched())
        order.append("returned")
        return promise

    promise = page.on_loop(scene)
    assert order == ["looked up", "returned", "called"]
    assert page.value(promise) == 1


def test_promises_of_two_loops(make_page):
    """contract: a promise of another loop's view is followed, and handlers run on their own loops' threads."""
    with Loop() as loop:
        other = JS(loop)
        page = make_page()
        assert (
            page.value(page.js.resolve(other.sleep(1).then(lambda _value: threading.get_ident())))
            != threading.get_ident()
        )


# --- threads ---------------------------------------------------------------------------------------------------------


def test_settled_from_many_threads_once(page, js):
    """27.2.1.3: of resolve and reject on any threads one decides, and each handler runs once."""
    for _ in range(100):
        promise, resolve, reject = js.with_resolvers()
        calls = [[] for _ in range(8)]
        for seen in calls:
            promise.then(seen.append, seen.append)
        together(4, lambda i, resolve=resolve, reject=reject: (resolve if i % 2 else reject)(i))
        state = promise.state
        page.quiet()
        (winner,) = {tuple(seen) for seen in calls}
        assert len(winner) == 1
        assert state == promise.state == ("fulfilled" if winner[0] % 2 else "rejected")


def test_handlers_added_while_it_settles(page, js):
    """Handlers added by other threads at that very moment run once each, those of one thread in order."""
    each = 40
    for _ in range(60):
        promise, resolve, _ = js.with_resolvers()
        seen: list[tuple[int, int]] = []

        def add(i, promise=promise, resolve=resolve, seen=seen):
            for n in range(each):
                if i == 0 and n == each // 2:
                    resolve(n)
                promise.then(lambda _value, n=n: seen.append((i, n)))

        together(3, add)
        page.quiet()
        assert len(seen) == 3 * each
        for i in range(3):
            assert [n for who, n in seen if who == i] == list(range(each))


def test_chains_built_on_other_threads(page, js):
    """contract: every method from any thread; handlers on the loop's."""
    threads: set[int] = set()

    def chain(i):
        promise = js.resolve(0)
        for _ in range(100):
            promise = promise.then(lambda value: threads.add(threading.get_ident()) or value + 1)
        return promise

    promises = together(4, chain)
    assert page.value(js.all(promises)) == [100] * 4
    assert threads == {threading.get_ident()}


def test_settled_while_the_loop_sleeps(make_page):
    """contract: a settlement from outside wakes the loop."""
    page = make_page()
    with page.loop:
        for i in range(50):
            done = threading.Event()
            promise, resolve, _ = page.js.with_resolvers()
            promise.then(lambda _value, done=done: done.set())
            resolve(i)
            assert done.wait(PATIENCE)


def test_after_the_end(make_page):
    """Promises settle, but no handler runs: what would have followed is rejected with
    LoopTerminatedError.
    """
    page = make_page()
    promise, resolve, _ = page.js.with_resolvers()
    before = promise.then(print)
    page.loop.close()
    resolve(1)
    after = promise.then(print)
    assert promise.state == "fulfilled"
    for child in (before, after):
        assert repr(child).startswith("<Promise rejected LoopTerminatedError")
    assert page.unhandled == []
    with pytest.raises(LoopTerminatedError):
        page.js.queue_microtask(print)


def test_resolved_with_a_promise_after_the_end(make_page):
    """Finding its outcome takes a job that no loop will run: rejected, and nothing is left waiting."""
    page = make_page()
    other = page.js.resolve(1)
    promise, resolve, _ = page.js.with_resolvers()
    thenable, resolve_with_thenable, _ = page.js.with_resolvers()
    page.loop.close()
    resolve(other)
    resolve_with_thenable(type("Thenable", (), {"then": lambda *_: None})())
    for one in (promise, thenable):
        assert repr(one).startswith("<Promise rejected LoopTerminatedError")


def test_rejections_after_the_end_are_let_go_of(make_page, wait_for):
    """They are no longer reported, so the view does not keep them either."""
    page = make_page()
    page.loop.close()
    watch = weakref.ref(page.js.reject(ValueError()))
    gc.collect()
    wait_for(lambda: watch() is None)


def test_a_long_chain_after_the_end(make_page):
    """To the end of a chain of any length."""
    page = make_page()
    promise, resolve, _ = page.js.with_resolvers()
    chain = [promise]
    for _ in range(5000):
        chain.append(chain[-1].then())
    page.loop.close()
    resolve(1)
    assert {child.state for child in chain[1:]} == {"rejected"}


@pytest.mark.parametrize("timeout", ["1", True, -1, float("nan"), 1e300])
def test_a_bad_timeout_of_result_is_named(page, timeout):
    """contract: TypeError and ValueError come first, also for a settled promise, and on the loop's own thread."""

    def check():
        for promise in (page.js.with_resolvers()[0], page.js.resolve(1)):
            with pytest.raises((TypeError, ValueError), match=r"^timeout must be"):
                promise.result(timeout)

    check()
    page.on_loop(check)


# --- unhandled rejections --------------------------------------------------------------------------------------------


def test_reported_once(page, js):
    """HTML 8.1.5.4: after the checkpoint, once, with reason and promise."""
    reported = []
    view = JS(page.loop, on_unhandled_rejection=lambda reason, promise: reported.append((reason, promise)))
    promise = view.reject(ERROR)
    assert reported == []
    page.quiet()
    assert reported == [(ERROR, promise)]
    promise.catch(print)
    promise.then()
    page.quiet()
    assert [reason for reason, _ in reported] == [ERROR, ERROR]  # the second is that of the child of `then()`
    assert reported[1][1] is not promise


def test_a_handler_in_the_same_checkpoint_is_in_time(page, js):
    """At once, in a microtask, in the last microtask of many."""
    js.reject(1).catch(lambda reason: None)
    late = js.reject(2)
    js.queue_microtask(lambda: late.catch(lambda reason: None))
    later = js.reject(3)
    chain = js.resolve(0)
    for _ in range(200):
        chain = chain.then(lambda value: value)
    chain.then(lambda _value: later.catch(lambda reason: None))
    page.quiet()
    assert page.unhandled == []


def test_a_handler_after_the_checkpoint_is_late(page, js):
    """HTML 8.1.5.4: the report has been made, and is not made again."""
    promise = js.reject(1)
    js.set_timeout(lambda: promise.catch(lambda reason: None), 0)
    page.quiet()
    assert page.unhandled == [1]


def test_a_handler_on_the_child(page, js):
    """A chain without a rejection handler is reported at its end only; a catch there silences it."""
    js.reject(1).then(print).then(print).catch(lambda reason: None)
    page.quiet()
    assert page.unhandled == []
    js.reject(2).then(print).then(print)
    page.quiet()
    assert page.unhandled == [2]
    promise = js.reject(3)
    promise.catch(lambda reason: None)
    promise.then(print)  # a branch of its own
    page.quiet()
    assert page.unhandled == [2, 3]


def test_handled_from_another_thread(page, js):
    """contract: a handler added by another thread before the checkpoint ends counts."""
    promise, _, reject = js.with_resolvers()
    page.loop.submit(lambda: (reject(1), elsewhere(promise.catch, lambda reason: None)))
    page.quiet()
    assert page.unhandled == []


def test_rejected_on_other_threads(page, js):
    """Each reported exactly once."""
    together(4, lambda i: [js.reject((i, n)) for n in range(200)])
    page.quiet()
    assert sorted(page.unhandled) == [(i, n) for i in range(4) for n in range(200)]


def test_each_callback_has_its_checkpoint(page, js):
    """HTML 8.1.5.4: the report comes before the next callback of the loop."""
    order = []
    view = JS(page.loop, on_unhandled_rejection=lambda reason, _promise: order.append(reason))
    page.loop.submit(lambda: view.reject("first"))
    page.loop.submit(order.append, "second")
    page.quiet()
    assert order == ["first", "second"]


def test_a_report_may_reject_again(page):
    """HTML 8.1.5.4: what the report rejects is reported too; what it queues runs."""
    reported = []

    def report(reason, _promise):
        reported.append(reason)
        if reason < 5:
            view.resolve().then(lambda _value: view.reject(reason + 1))

    view = JS(page.loop, on_unhandled_rejection=report)
    view.reject(1)
    page.quiet()
    assert reported[:2] == [1, 2]
    assert len(set(reported)) == 5


def test_a_report_that_raises(page):
    """contract: on_error gets it, and the others are reported."""
    reported = []

    def report(reason, _promise):
        reported.append(reason)
        raise ValueError(reason)

    view = JS(page.loop, on_unhandled_rejection=report)
    for i in range(3):
        view.reject(i)
    page.quiet()
    assert reported == [0, 1, 2]
    assert [str(error) for error in page.errors] == ["0", "1", "2"]
    page.errors.clear()


def test_reported_at_the_end_too(make_page):
    """A rejection in the loop's last callbacks is reported once."""
    page = make_page()
    page.loop.submit(lambda: page.js.reject(1))
    page.loop.shutdown()
    assert page.unhandled == [1]


def at_the_end(page, body):
    """Call it on the loop's thread when the end has begun: the loop takes no more work from other threads then."""

    async def cleans_up():
        try:
            await page.never()
        finally:
            assert page.loop.state is LoopState.TERMINATING
            body()

    page.js.spawn(cleans_up())
    page.turn()
    page.loop.shutdown()


def logged(caplog):
    """The reasons that the logger was told, which must be words."""
    return [record.getMessage().split("'")[1] for record in caplog.records]


def test_a_rejection_that_the_end_refuses_leaves_others_their_checkpoint(make_page, caplog):
    """contract: it is logged; the rejections of the loop's own thread are reported if nothing handles them in time."""
    page = make_page()

    def body():
        handled = page.js.reject("handled")
        page.js.reject("reported")
        elsewhere(page.js.reject, "refused")
        handled.catch(str)

    at_the_end(page, body)
    assert page.unhandled == ["reported"]
    assert logged(caplog) == ["refused"]


def test_a_rejection_that_the_end_refuses_during_a_report(make_page, caplog):
    """contract: it is logged, and the report of the others goes on."""
    page = make_page()
    reported = []

    def report(reason, _promise):
        reported.append(reason)
        elsewhere(view.reject, f"refused after {reason}")

    view = JS(page.loop, on_unhandled_rejection=report)
    at_the_end(page, lambda: (view.reject("first"), view.reject("second")))
    assert reported == ["first", "second"]
    assert logged(caplog) == ["refused after first", "refused after second"]


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_rejected_on_other_threads_while_the_loop_ends(make_page, monkeypatch, end):
    """contract: an unhandled rejection is reported exactly once, or logged if the end overtakes it."""
    told = []
    # Not the logger itself, which ignores what a finaliser logs in the middle of another record of the same thread.
    monkeypatch.setattr(hooks, "log", lambda _error, _message, _loop, reason, _made, **_: told.append(reason))
    for _ in range(20):
        page = make_page()
        told.clear()

        def body(i, page=page):
            if i == 0:
                getattr(page.loop, end)()
                return
            for n in range(50):
                page.js.reject(f"{i}-{n}")

        together(3, body)
        every = sorted(f"{i}-{n}" for i in (1, 2) for n in range(50))
        # The interpreter may free what the loop has dropped only after the thread that made it has ended (PEP 703).
        wait_for(lambda page=page, every=every: sorted(page.unhandled + told) == every)


def test_the_logger_is_told(make_page, caplog):
    """contract: without on_unhandled_rejection the logger `nbloop` is, with the traceback; with debug it says where
    it was made.
    """
    for debug in (False, True):
        page = make_page(debug=debug, name="of-this-test")
        caplog.clear()
        JS(page.loop).reject(ERROR)
        with caplog.at_level(logging.ERROR, "nbloop"):
            page.turn()
        (record,) = caplog.records
        assert record.name == "nbloop"
        assert "unhandled rejection in of-this-test" in record.getMessage()
        assert "the reason" in record.getMessage()
        assert record.exc_info[1] is ERROR
        assert ("test_the_logger_is_told" in record.getMessage()) is debug


# --- memory ----------------------------------------------------------------------------------------------------------


def test_dropped_promises_are_collected(page, js):
    """Pending ones, chains of them, and those that another one would have settled; and handlers."""

    class Payload:
        pass

    def scene():
        payload = Payload()
        promise, resolve, _ = js.with_resolvers()
        child = promise.then(lambda _value: payload).finally_(lambda: None)
        outer = js.all([child, js.race([child]), js.resolve(child)])
        del resolve
        return [weakref.ref(thing) for thing in (promise, child, outer, payload)]

    references = scene()
    page.quiet()
    gc.collect()
    assert [r() for r in references] == [None] * 4


def test_settled_promises_leave_nothing(page, js):
    """200,000 promises, chained, settled and dropped, leave memory where it was."""

    def many(count):
        for start in range(0, count, 1000):
            for i in range(start, start + 1000):
                js.resolve(i).then(lambda value: value)
            page.turn()

    many(5000)
    gc.collect()
    tracemalloc.start()
    try:
        many(1000)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        many(200_000 - 2000)
        tracemalloc.start()
        many(1000)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after < before + 50_000


def test_an_unhandled_rejection_is_not_kept(page, js):
    """contract: once reported it is forgotten."""
    reference = weakref.ref(js.reject(1))
    assert reference() is not None
    page.quiet()
    gc.collect()
    assert reference() is None
    assert page.unhandled == [1]


def test_a_value_whose_class_raises_rejects(page, js):
    """ECMAScript 27.2.1.3.2: what examining a resolution raises rejects the promise, and nothing leaves `resolve`."""

    class Odd:
        @property
        def __class__(self):
            raise RuntimeError("unbound")

    promise, resolve, reject = js.with_resolvers()
    resolve(Odd())
    reject(ValueError(1))
    derived = js.resolve(1).then(lambda _: Odd())
    outcomes = [each.catch(str) for each in (promise, derived)]
    page.quiet()
    assert [each.value for each in outcomes] == ["unbound", "unbound"]
