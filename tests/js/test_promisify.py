"""`Loop.promisify`: blocking functions on worker threads, promises that always settle."""

from __future__ import annotations

import _thread
import gc
import threading
import weakref

import pytest

from nbloop import Loop, LoopState, LoopTerminatedError
from tests.support.waiting import PATIENCE, elsewhere, together, wait_for

ERROR = ValueError("of the function")


def fails(error):
    """Raise it."""
    raise error


def test_success(page):
    """What the function returns, computed on another thread, settled on the loop's."""
    threads = []
    promise = page.loop.promisify(lambda *args: (threading.get_ident(), args), 1, 2)
    promise = promise.then(lambda value: threads.append(threading.get_ident()) or value)
    worker, args = page.value(promise)
    assert args == (1, 2)
    assert worker != threading.get_ident()
    assert threads == [threading.get_ident()]


def test_a_returned_promise_is_followed(page, js):
    """contract: as what a handler returns."""
    assert page.value(page.loop.promisify(lambda: js.sleep(1).then(lambda _value: 5))) == 5


class BeyondException(BaseException):
    """No `Exception`."""


@pytest.mark.parametrize(
    "error",
    [ERROR, BeyondException(), StopIteration(1), GeneratorExit(), SystemExit(3), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_exceptions(page, error):
    """Any exception at all is the reason; the worker's exit is not the loop's."""
    assert page.reason(page.loop.promisify(fails, error)) is error


def test_an_unhandled_one_is_reported(page, caplog):
    """contract: an unhandled rejection is logged."""
    promise = page.loop.promisify(fails, ERROR)
    page.until(lambda: promise.state == "rejected")
    page.turn()
    (record,) = caplog.records
    assert record.exc_info[1] is ERROR


@pytest.mark.parametrize("function", [None, 5, "f"], ids=repr)
def test_no_function(page, function):
    """contract: TypeError, at once."""
    with pytest.raises(TypeError, match="function must be callable"):
        page.loop.promisify(function)


def test_workers_run_side_by_side(page, js):
    """contract: two workers are inside their functions at once, while the loop runs."""
    barrier = threading.Barrier(2)
    promises = [page.loop.promisify(barrier.wait, PATIENCE) for _ in range(2)]
    assert sorted(page.value(js.all(promises))) == [0, 1]


def test_from_many_threads(page, js):
    """contract: any thread, and many more than there are workers."""
    promises = together(4, lambda i: [page.loop.promisify(lambda n: (i, n), n) for n in range(100)])
    values = page.value(js.all([promise for some in promises for promise in some]))
    assert values == [(i, n) for i in range(4) for n in range(100)]


def test_a_sleeping_loop_is_woken(make_page):
    """contract: an outcome wakes the loop."""
    page = make_page()
    with page.loop:
        for _ in range(20):
            done = threading.Event()
            page.loop.promisify(int).then(lambda _value, done=done: done.set())
            assert done.wait(PATIENCE)


def test_an_auto_exit_loop_waits(make_page):
    """contract: run() does not return for good while a worker runs, and handlers run before it does."""
    page = make_page(auto_exit=True)
    gate, ran = threading.Event(), []
    page.loop.promisify(gate.wait, PATIENCE).then(ran.append).then(lambda _value: ran.append("second"))
    opener = threading.Thread(target=lambda: (wait_for(lambda: page.loop.state is not LoopState.AWAKE), gate.set()))
    opener.start()
    page.loop.run()
    opener.join()
    assert ran == [True, "second"]


def test_shutdown_waits_and_handlers_run(make_page):
    """contract: shutdown() waits for what is running; the handlers, and theirs, run on the loop."""
    page = make_page()
    gate, inside, ran = threading.Event(), threading.Event(), []
    thread = page.loop.start()

    def work():
        inside.set()
        gate.wait(PATIENCE)
        return 5

    promise = page.loop.promisify(work)
    promise.then(lambda value: ran.append((value, threading.current_thread()))).then(
        lambda _value: ran.append("second")
    )
    failing = page.loop.promisify(lambda: (gate.wait(PATIENCE), fails(ERROR)))
    failing.catch(ran.append)
    assert inside.wait(PATIENCE)
    ending = threading.Thread(target=page.loop.shutdown)
    ending.start()
    wait_for(lambda: page.loop.state is LoopState.TERMINATING)
    assert (promise.state, ran) == ("pending", [])
    with pytest.raises(TimeoutError):
        page.loop.shutdown(timeout=0.01)
    gate.set()
    ending.join(PATIENCE)
    assert not ending.is_alive()
    assert (5, thread) in ran
    assert ERROR in ran
    assert "second" in ran


def test_shutdown_of_a_loop_that_was_never_run(page):
    """contract: its promises settle, and their handlers run, on the thread that ends it."""
    ran = []
    page.loop.promisify(lambda: 5).then(ran.append)
    page.loop.shutdown()
    assert ran == [5]


def test_close_rejects(make_page):
    """contract: close() waits for no worker: pending promises, and what follows from them, are rejected at once."""
    page = make_page()
    gate, inside = threading.Event(), threading.Event()
    page.loop.start()
    promise = page.loop.promisify(lambda: (inside.set(), gate.wait(PATIENCE)))
    ran = []
    child = promise.then(ran.append, ran.append)
    combined = page.js.all([promise])
    assert inside.wait(PATIENCE)
    subscribed = threading.Event()  # that takes a job, and close() drops what is queued
    page.js.queue_microtask(subscribed.set)
    assert subscribed.wait(PATIENCE)
    page.loop.close()
    for rejected in (promise, child, combined):
        assert repr(rejected).startswith("<Promise rejected LoopTerminatedError")
    gate.set()
    assert ran == []
    assert promise.state == "rejected"
    assert not page.loop.alive()


@pytest.mark.parametrize("end", ["close", "shutdown"])
@pytest.mark.parametrize("used", [True, False], ids=["with-workers", "without-workers"])
def test_a_call_after_the_end(make_page, end, used):
    """contract: rejected with LoopTerminatedError; the function is not called."""
    page = make_page()
    if used:
        page.value(page.loop.promisify(int))
    getattr(page.loop, end)()
    ran = []
    promise = page.loop.promisify(ran.append, 1)
    assert repr(promise).startswith("<Promise rejected LoopTerminatedError")
    assert ran == []


def test_a_call_while_it_ends(make_page):
    """contract: refused once the end has begun, as submit is, even while an earlier one is waited for."""
    page = make_page()
    gate = threading.Event()
    page.loop.start()
    first = page.loop.promisify(gate.wait, PATIENCE)
    ending = threading.Thread(target=page.loop.shutdown)
    ending.start()
    wait_for(lambda: page.loop.state is LoopState.TERMINATING)
    with pytest.raises(LoopTerminatedError):
        page.loop.submit(int)
    late = page.loop.promisify(int)
    assert late.state == "rejected"
    gate.set()
    ending.join(PATIENCE)
    assert first.state == "fulfilled"


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_calls_racing_with_the_end(make_page, end):
    """Of 300 calls, before, while and after the loop ends, all settle, with a value or
    LoopTerminatedError.
    """
    for _ in range(3):
        page = make_page()
        page.loop.start()

        def act(i, page=page):
            if i == 3:
                getattr(page.loop, end)()
                return []
            return [page.loop.promisify(lambda n: n, n) for n in range(100)]

        results = together(4, act)
        wait_for(lambda page=page: page.loop.state is LoopState.TERMINATED)
        for i in range(3):
            for n, promise in enumerate(results[i]):
                if promise.state == "fulfilled":
                    assert repr(promise) == f"<Promise fulfilled {n}>"
                else:
                    assert repr(promise).startswith("<Promise rejected LoopTerminatedError")


def test_a_dropped_outcome_is_released(page, js):
    """contract: neither function, arguments nor outcome are kept once settled."""

    class Payload:
        pass

    payload = Payload()
    reference = weakref.ref(payload)
    page.value(page.loop.promisify(lambda thing: thing, payload).then(lambda _value: None))
    del payload
    page.turn(2)
    wait_for(lambda: gc.collect() is not None and reference() is None)


def test_what_a_function_that_raises_held_goes_without_a_collection(page):
    """contract: also where only the thread that made an exception can free it (free-threaded builds)."""

    class Payload:
        pass

    def fails(_payload):
        raise LookupError

    held = []

    def begin():
        payload = Payload()
        held.append(weakref.ref(payload))
        page.loop.promisify(fails, payload).catch(lambda _reason: None)

    gc.disable()
    try:
        with page.loop as loop:
            for _ in range(20):
                loop.call(begin)
            wait_for(lambda: all(reference() is None for reference in held))
    finally:
        gc.enable()


def test_without_a_thread_to_be_had(monkeypatch):
    """contract: promisify always settles; a call without a worker neither keeps the loop alive nor holds up its end."""
    loop = Loop(auto_exit=True)

    def exhausted(*_arguments):
        raise RuntimeError("can't start new thread")

    def begin():
        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", exhausted)
            reasons.append(loop.promisify(int))
        loop.promisify(int).then(reasons.append)

    reasons = []
    loop.submit(begin)
    loop.run()
    assert [repr(reason) for reason in reasons] == ['<Promise rejected RuntimeError("can\'t start new thread")>', "0"]


def test_called_from_a_handler_and_elsewhere(page):
    """contract: any thread, callbacks and workers included."""
    first = page.loop.promisify(lambda: page.loop.promisify(lambda: 5))
    assert page.value(first.then(lambda value: page.loop.promisify(lambda: value + 1))) == 6
    assert page.value(elsewhere(page.loop.promisify, int)) == 0


def test_a_worker_keeps_an_auto_exit_loop_alive():
    """contract: promisify, auto_exit: what a handler schedules afterwards runs too, as in Node."""
    loop = Loop(auto_exit=True)
    ran: list[str] = []
    gate = threading.Event()

    def after(_value: object) -> None:
        loop.schedule_timer(0.001, ran.append, "timer")

    def begin() -> None:
        loop.promisify(gate.wait, 10).then(after)
        loop.submit(gate.set)

    loop.submit(begin)
    loop.run()
    assert ran == ["timer"]


def test_a_worker_asks_for_the_end(make_loop):
    """contract: `shutdown()` by a function on a worker thread only requests the end, which waits for that function."""
    loop, outcomes = make_loop(), []
    thread = loop.start()
    loop.promisify(lambda: (loop.shutdown(), loop.state)[1]).then(outcomes.append)
    thread.join(PATIENCE)
    assert outcomes == [LoopState.TERMINATING]
    assert loop.state is LoopState.TERMINATED


def test_close_hurries_a_shutdown(make_loop):
    """contract: `close()` does not wait for what a worker runs, also if a `shutdown()` does already."""
    loop, reasons, entered, leave = make_loop(), [], threading.Event(), threading.Event()
    loop.promisify(lambda: (entered.set(), leave.wait(PATIENCE))).catch(reasons.append)
    loop.start()
    assert entered.wait(PATIENCE)
    with pytest.raises(TimeoutError):
        loop.shutdown(timeout=0.01)
    loop.close()
    assert not leave.is_set()
    leave.set()
    assert loop.state is LoopState.TERMINATED
