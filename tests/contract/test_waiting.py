"""Waiting for a loop on other threads: results, calls, executors, ends. No thread waits for what never happens."""

from __future__ import annotations

import concurrent.futures
import gc
import importlib.util
import os
import signal
import threading
import unittest
import weakref

import pytest

import nbloop
from nbloop.js import JS, RejectedError
from tests.support.waiting import PATIENCE, wait_for

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


def begin(function):
    """Call it on another thread; a future of its outcome, and what is true once that thread waits in it."""
    future = concurrent.futures.Future()

    def body():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future


def waiting(loop):
    return lambda: len(loop._waiters._held) > 0


def test_result(make_loop):
    with make_loop() as loop:
        js = JS(loop)
        promise, resolve, _reject = js.with_resolvers()
        outcomes = [begin(lambda: promise.result(PATIENCE)) for _ in range(3)]
        wait_for(waiting(loop))
        loop.submit(resolve, 7)
        assert [outcome.result(PATIENCE) for outcome in outcomes] == [7, 7, 7]
        assert promise.result(0) == promise.value == 7
        assert promise.reason is None


def test_a_rejection_is_raised_and_handled(make_loop):
    told = []
    with make_loop() as loop:
        js = JS(loop, on_unhandled_rejection=lambda *args: told.append(args))
        error = KeyError("gone")
        promise = js.promise(lambda _resolve, reject: reject(error))
        with pytest.raises(KeyError) as caught:
            js.sleep(1).then(lambda _: promise).result(PATIENCE)
        assert caught.value is error
        pending, _resolve, reject = js.with_resolvers()
        outcome = begin(lambda: pending.result(PATIENCE))
        wait_for(waiting(loop))
        loop.submit(reject, "why")
        with pytest.raises(RejectedError) as rejected:
            outcome.result(PATIENCE)
        assert rejected.value.reason == pending.reason == "why"
        assert pending.value is None
    assert [reason for reason, promise in told if promise is pending] == []


def test_result_times_out_and_does_not_add_up(make_loop):
    loop = make_loop()
    promise, resolve, _reject = JS(loop).with_resolvers()
    assert (promise.value, promise.reason, promise.created_at) == (None, None, None)
    with pytest.raises(TimeoutError):
        promise.result(0)
    first = promise._reactions
    with pytest.raises(TimeoutError):
        promise.result(0.001)
    assert promise._reactions is first
    resolve(1)  # while nobody runs the loop
    assert promise.result(0) == 1
    with pytest.raises(ValueError, match="timeout must be"):
        promise.result(-1)


def test_a_waiter_sees_what_settles_while_nobody_runs_the_loop(make_loop):
    loop = make_loop()
    promise, resolve, _reject = JS(loop).with_resolvers()
    outcome = begin(promise.result)
    wait_for(waiting(loop))
    resolve("seen")
    assert outcome.result(PATIENCE) == "seen"


def test_the_loops_own_thread_does_not_wait(make_loop):
    loop = make_loop(auto_exit=True)
    promise, _resolve, _reject = JS(loop).with_resolvers()
    executor = nbloop.LoopExecutor(loop)
    raised = []

    def inside():
        executor.submit(print)
        for call in (promise.result, lambda: loop.call(print), loop.wait, executor.shutdown):
            with pytest.raises(nbloop.ReentrantWaitError) as caught:
                call()
            raised.append(isinstance(caught.value, RuntimeError))

    loop.submit(inside)
    loop.run()
    assert raised == [True] * 4


WAITS = {
    "result": lambda loop, promise: promise.result(),
    "future": lambda loop, promise: promise.future().result(),
    "call": lambda loop, promise: loop.call(print),
    "executor": lambda loop, promise: nbloop.LoopExecutor(loop).submit(print).result(),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_loop_that_is_closed_releases_whoever_waits(make_loop, name):
    loop = make_loop()
    promise, _resolve, _reject = JS(loop).with_resolvers()
    outcome = begin(lambda: WAITS[name](loop, promise))
    wait_for(waiting(loop))
    loop.close()
    with pytest.raises(nbloop.LoopTerminatedError):
        outcome.result(PATIENCE)
    with pytest.raises(nbloop.LoopTerminatedError):
        WAITS[name](loop, promise)


@pytest.mark.parametrize("name", [*WAITS, "wait"])
def test_an_exception_that_leaves_run_releases_whoever_waits(make_loop, name):
    loop = make_loop()
    promise, _resolve, _reject = JS(loop).with_resolvers()
    ready = threading.Event()
    ran = []

    def leave():
        ready.wait(PATIENCE)
        raise SystemExit(3)

    loop.submit(leave)
    wait = {**WAITS, "wait": lambda loop, _promise: loop.wait(), "call": lambda loop, _: loop.call(ran.append, 1)}[name]
    outcome = begin(lambda: wait(loop, promise))
    wait_for(waiting(loop))
    running = begin(loop.run)
    ready.set()
    with pytest.raises(nbloop.LoopTerminatedError) as caught:
        outcome.result(PATIENCE)
    assert isinstance(caught.value.__cause__, SystemExit)
    with pytest.raises(SystemExit):
        running.result(PATIENCE)
    loop.shutdown(PATIENCE)
    assert ran == []  # a caller that got an error can rely on it


def test_a_future_does_not_keep_the_loop():
    loop = nbloop.Loop()
    promise, resolve, _reject = JS(loop).with_resolvers()
    future = promise.future()
    gone = weakref.ref(loop)
    del loop, promise, resolve, _reject
    gc.collect()
    assert gone() is None
    with pytest.raises(nbloop.LoopTerminatedError):
        future.result(PATIENCE)


def test_a_worker_that_waits_does_not_hold_up_the_end(make_loop):
    loop = make_loop()
    promise, _resolve, _reject = JS(loop).with_resolvers()
    loop.start()
    outcome = loop.promisify(promise.result).future()
    wait_for(lambda: any(loop._waiters._held.values()))
    loop.shutdown(PATIENCE)
    with pytest.raises(nbloop.LoopTerminatedError):
        outcome.result(PATIENCE)


def test_futures(make_loop):
    with make_loop() as loop:
        js = JS(loop)
        assert js.sleep(1).then(lambda _: 5).future().result(PATIENCE) == 5
        assert isinstance(js.reject(1).future().exception(PATIENCE), RejectedError)
        promise, resolve, _reject = js.with_resolvers()
        cancelled, other = promise.future(), promise.future()
        assert cancelled.cancel()
        resolve(2)
        assert other.result(PATIENCE) == 2


def test_created_at(make_loop):
    promise, _resolve, _reject = JS(make_loop(debug=True)).with_resolvers()
    assert "test_created_at" in promise.created_at


def test_call(make_loop):
    with make_loop() as loop:
        assert loop.call(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            loop.call(divmod, 1, 0)
        with pytest.raises(TypeError, match="fn must be callable"):
            loop.call(1)


def test_a_call_that_times_out_never_begins(make_loop):
    loop = make_loop(auto_exit=True)
    ran = []
    with pytest.raises(TimeoutError):
        loop.call(ran.append, 1, timeout=0.01)
    loop.run()
    assert ran == []


def test_a_timeout_that_the_function_raises_is_its_own(make_loop):
    error = TimeoutError("mine")

    def fail():
        raise error

    with make_loop() as loop, pytest.raises(TimeoutError) as caught:
        loop.call(fail, timeout=PATIENCE)
    assert caught.value is error


def test_wait(make_loop):
    loop = make_loop()
    with pytest.raises(TimeoutError):
        loop.wait(0)
    loop.start()
    outcomes = [begin(loop.wait) for _ in range(3)]
    wait_for(waiting(loop))
    loop.shutdown()
    assert [outcome.result(PATIENCE) for outcome in outcomes] == [None] * 3
    loop.wait(0)
    assert loop.state is nbloop.LoopState.TERMINATED


def test_an_executor_that_is_shut_down(make_loop):
    loop = make_loop(auto_exit=True)
    executor = nbloop.LoopExecutor(loop)
    futures = [executor.submit(int) for _ in range(3)]
    assert futures[1].cancel()
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    loop.run()
    assert [future.cancelled() or future.result(PATIENCE) for future in futures] == [0, True, 0]
    assert executor._pending == {}

    other = nbloop.LoopExecutor(make_loop())
    future = other.submit(int)
    other.shutdown(cancel_futures=True)
    assert future.cancelled()
    with pytest.raises(TypeError, match="loop must be"):
        nbloop.LoopExecutor(None)


@pytest.mark.slow
def test_cpythons_own_tests_of_executors(make_loop):
    """Those of `ExecutorTest`, except the one that needs several workers, since a loop has one."""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_concurrent_futures") is None:
        pytest.skip("this Python was installed without its own tests")
    from test.test_concurrent_futures.executor import ExecutorTest

    class OnALoop(ExecutorTest, unittest.TestCase):
        worker_count = 1
        test_max_workers_negative = None

        def setUp(self):
            self.loop = make_loop()
            self.loop.start()
            self.executor = nbloop.LoopExecutor(self.loop)

        def tearDown(self):
            self.executor.shutdown()
            self.loop.shutdown()

    result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(OnALoop))
    assert result.testsRun >= 7
    assert result.failures == result.errors == []


@pytest.mark.skipif(not COMPILED, reason="an exception may come in the middle of a kernel that is plain Python")
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_what_a_handler_raises_leaves_a_call_whose_function_has_ended(make_loop, error):
    """contract, Interruptions: it is not lost."""
    goes_on, ended = threading.Event(), threading.Event()

    def handler(_number, _frame):
        goes_on.set()
        assert ended.wait(PATIENCE)
        raise error

    def function():
        loop.submit(ended.set)  # runs when the call has its outcome
        os.kill(os.getpid(), signal.SIGUSR1)
        assert goes_on.wait(PATIENCE)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with make_loop() as loop, pytest.raises(error):
            loop.call(function)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_a_handler_raises_while_a_wait_begins_is_not_logged(make_loop):
    """`Future.add_done_callback` of a future that is done logs it and goes on."""
    future = make_loop()._waiters.future(make_loop())
    future.set_result(None)

    class Latch:
        def set(self):
            raise TimeoutError("of a handler")

    with pytest.raises(TimeoutError, match="of a handler"):
        future.wake_when_done(Latch())


@pytest.mark.parametrize("of", ["loop", "group"])
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_worker_that_waits_for_the_end_does_not_hold_it_up(of, timeout):
    """contract, Waiting: it is released when the end begins."""
    with nbloop.LoopGroup(2) as group:
        loop = group.loops[1]
        promise = loop.promisify((loop if of == "loop" else group).wait, timeout)
        wait_for(waiting(loop))
        group.shutdown(PATIENCE)
    assert isinstance(promise.reason, nbloop.LoopTerminatedError)


def test_a_worker_and_others_wait_for_a_promise(make_loop):
    """The beginning of the end releases the worker, and not the others, though the worker came first."""
    loop = make_loop()
    loop.start()
    promise, resolve, _reject = JS(loop).with_resolvers()

    def work():
        with pytest.raises(TimeoutError):
            promise.result(0)
        with pytest.raises(nbloop.LoopTerminatedError):
            promise.result(PATIENCE)
        resolve("settled by the end")

    worker = loop.promisify(work)
    wait_for(lambda: True in getattr(promise, "_waited", {}))
    other = begin(lambda: promise.result(PATIENCE))
    wait_for(lambda: False in promise._waited)
    loop.shutdown(PATIENCE)
    assert worker.state == "fulfilled"
    assert other.result(PATIENCE) == "settled by the end"


def test_a_worker_is_released_after_another_thread_has_waited(make_loop):
    loop = make_loop()
    loop.start()
    promise, _resolve, _reject = JS(loop).with_resolvers()
    with pytest.raises(TimeoutError):
        promise.result(0)
    worker = loop.promisify(promise.result)
    wait_for(lambda: True in promise._waited)
    loop.shutdown(PATIENCE)
    assert isinstance(worker.reason, nbloop.LoopTerminatedError)


def test_the_loops_own_thread_does_not_wait_for_a_future(make_loop):
    """contract, Waiting; once it is done, anybody may ask."""
    with make_loop() as loop, nbloop.LoopExecutor(loop) as executor:

        def ask():
            for future in (executor.submit(int), JS(loop).sleep(1).future()):
                for call in (future.result, future.exception):
                    with pytest.raises(nbloop.ReentrantWaitError, match="of a future would wait"):
                        call()
            return executor.submit(int)

        done = loop.call(ask)
        assert done.result(PATIENCE) == 0
        assert loop.call(done.result) == 0
        assert loop.call(done.exception) is None
        assert loop.call(lambda: JS(loop).resolve(3).future().result()) == 3


def test_a_future_of_an_executor_leaves_nothing_for_the_collector(make_loop):
    gc.collect()
    gc.disable()
    try:
        with make_loop() as loop, nbloop.LoopExecutor(loop) as executor:
            goes_on = threading.Event()
            loop.submit(goes_on.wait, PATIENCE)  # the future is pending when it gets its callback
            future = executor.submit(int)
            held = weakref.ref(future)
            goes_on.set()
            assert future.result(PATIENCE) == 0
            del future
        assert held() is None
    finally:
        gc.enable()
