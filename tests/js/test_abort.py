"""`AbortController` and `AbortSignal`: DOM section 3, and what WPT's dom/abort tests."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import weakref

import pytest

from nbloop import Loop
from nbloop.js import JS, AbortController, AbortError, AbortSignal, Event, EventTarget, RejectedError
from tests.support.waiting import together, wait_for

ERROR = ValueError("the reason")


def aborted(reason=None):
    """A signal that its controller has aborted."""
    controller = AbortController()
    controller.abort(reason)
    return controller.signal


def test_a_controller_has_one_signal():
    """WPT dom/abort/event.any.js: the same each time, not aborted, and an event target."""
    controller = AbortController()
    assert controller.signal is controller.signal
    assert isinstance(controller.signal, EventTarget)
    assert controller.signal.aborted is False
    assert controller.signal.reason is None
    controller.signal.throw_if_aborted()


def test_aborted_once():
    """WPT dom/abort/event.any.js: the first reason stays; one event; controller keeps working."""
    controller = AbortController()
    events, reasons = [], []
    controller.signal.add_event_listener("abort", events.append)
    controller.signal.on_abort(reasons.append)
    controller.abort(ERROR)
    controller.abort("second")
    assert controller.signal.aborted is True
    assert controller.signal.reason is ERROR
    assert reasons == [ERROR]
    (event,) = events
    assert (event.type, event.target, event.bubbles, event.cancelable) == ("abort", controller.signal, False, False)


@pytest.mark.parametrize("make", [aborted, AbortSignal.abort], ids=["controller", "abort()"])
def test_the_default_reason(make):
    """WPT dom/abort/reason-constructor.html: an AbortError."""
    signal = make()
    assert isinstance(signal.reason, AbortError)
    with pytest.raises(AbortError) as raised:
        signal.throw_if_aborted()
    assert raised.value is signal.reason


@pytest.mark.parametrize("reason", [0, "", False, "text", object()], ids=["zero", "empty", "false", "text", "object"])
def test_any_reason(reason):
    """WPT dom/abort/event.any.js, throwIfAborted: any value; what is not an exception comes in a RejectedError."""
    for signal in (aborted(reason), AbortSignal.abort(reason)):
        assert signal.reason is reason
        with pytest.raises(RejectedError) as raised:
            signal.throw_if_aborted()
        assert raised.value.reason is reason
    with pytest.raises(ValueError, match="the reason"):
        AbortSignal.abort(ERROR).throw_if_aborted()


def test_it_is_aborted_when_callbacks_hear_of_it():
    """DOM 3.2, signal abort: the state first; algorithms before the event, each in order of addition."""
    controller = AbortController()
    signal = controller.signal
    heard = []
    signal.add_event_listener("abort", lambda event: heard.append(("event 1", signal.aborted)))
    signal.on_abort(lambda reason: heard.append(("algorithm 1", signal.aborted)))
    signal.add_event_listener("abort", lambda event: heard.append(("event 2", signal.aborted)))
    signal.on_abort(lambda reason: heard.append(("algorithm 2", signal.aborted)))
    controller.abort()
    assert heard == [(name, True) for name in ("algorithm 1", "algorithm 2", "event 1", "event 2")]


def test_on_abort_undone():
    """DOM 3.2, remove an algorithm."""
    controller = AbortController()
    heard = []
    undo = controller.signal.on_abort(heard.append)
    controller.signal.on_abort(heard.append)
    undo()
    undo()
    controller.abort(1)
    assert heard == [1]


def test_on_abort_of_an_aborted_signal():
    """contract: called at once, and not again."""
    heard = []
    AbortSignal.abort(5).on_abort(heard.append)()
    assert heard == [5]


def test_on_abort_takes_a_function():
    """contract: TypeError."""
    for signal in (AbortController().signal, AbortSignal.abort()):
        with pytest.raises(TypeError, match="callback must be callable"):
            signal.on_abort(5)


def test_a_callback_that_raises(caplog):
    """contract: logged; the next is called, and abort() returns."""
    controller = AbortController()
    heard = []

    def raises(_reason):
        raise ERROR

    controller.signal.on_abort(raises)
    controller.signal.on_abort(heard.append)
    controller.signal.add_event_listener("abort", raises)
    controller.signal.add_event_listener("abort", lambda event: heard.append(event.type))
    with caplog.at_level(logging.ERROR, "nbloop"):
        controller.abort(1)
    assert heard == [1, "abort"]
    assert [record.exc_info[1] for record in caplog.records] == [ERROR, ERROR]


def test_abort_inside_a_callback():
    """DOM 3.2: an abort of the same signal by a callback does nothing; of another it works."""
    first, second = AbortController(), AbortController()
    heard = []
    first.signal.on_abort(lambda reason: (first.abort("again"), second.abort(reason)))
    second.signal.on_abort(lambda reason: heard.append(("second", reason)))
    first.signal.on_abort(lambda reason: heard.append(("first", reason)))
    first.abort(1)
    assert heard == [("second", 1), ("first", 1)]


def test_a_listener_that_was_removed():
    """DOM 2.7: not called."""
    controller = AbortController()
    heard = []
    controller.signal.add_event_listener("abort", heard.append)
    controller.signal.remove_event_listener("abort", heard.append)
    controller.abort()
    assert heard == []


def test_a_synthetic_event_aborts_nothing():
    """WPT dom/abort/event.any.js: an abort event that somebody dispatches changes no state."""
    signal = AbortController().signal
    heard = []
    signal.add_event_listener("abort", heard.append)
    signal.dispatch_event(Event("abort"))
    assert len(heard) == 1
    assert not signal.aborted


def test_timeout(page, js):
    """WPT dom/abort/timeout.any.js: aborted by a timer, with a TimeoutError, on the loop's thread."""
    signal = AbortSignal.timeout(js, 2)
    threads = []
    signal.on_abort(lambda reason: threads.append(threading.get_ident()))
    assert not signal.aborted
    page.until(lambda: signal.aborted)
    assert isinstance(signal.reason, TimeoutError)
    assert threads == [threading.get_ident()]


def test_timeouts_in_order(page, js):
    """WPT dom/abort/timeout.any.js: equal time-outs in order of creation."""
    heard = []
    signals = [AbortSignal.timeout(js, 1) for _ in range(3)]
    for i, signal in enumerate(signals):
        signal.on_abort(lambda reason, i=i: heard.append(i))
    page.until(lambda: len(heard) == 3)
    assert heard == [0, 1, 2]


def test_a_timeout_keeps_no_loop_alive(make_page):
    """contract: its timer is unreferenced: an auto_exit loop ends."""
    page = make_page(auto_exit=True)
    signal = AbortSignal.timeout(page.js, 3_600_000)
    signal.on_abort(lambda reason: None)
    assert not page.loop.alive()
    page.loop.run()
    assert not signal.aborted


def test_a_dropped_timeout_is_collected(page, js):
    """contract: nobody listens, nobody refers to it: signal and timer are gone."""
    reference = weakref.ref(AbortSignal.timeout(js, 3_600_000))
    gc.collect()
    assert reference() is None


def test_a_timeout_that_somebody_listens_to_is_collected_with_its_loop():
    """contract: a callback refers to the loop, and the loop's timer to its signal; no registry keeps the pair."""
    loop = Loop()
    AbortSignal.timeout(JS(loop), 3_600_000).on_abort(lambda reason, loop=loop: None)
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None


def test_a_timeout_that_somebody_listens_to_is_kept(page, js):
    """DOM 3.2, garbage collection: a callback is called although the signal was dropped, and then nothing is kept."""
    heard = []
    AbortSignal.timeout(js, 1).on_abort(lambda reason: heard.append("algorithm"))
    AbortSignal.timeout(js, 1).add_event_listener("abort", lambda event: heard.append("event"))
    signal = AbortSignal.timeout(js, 3_600_000)
    undo = signal.on_abort(heard.append)
    reference = weakref.ref(signal)
    gc.collect()
    page.until(lambda: len(heard) == 2)
    assert heard == ["algorithm", "event"]
    del signal
    gc.collect()
    assert reference() is not None
    undo()
    del undo
    gc.collect()
    assert reference() is None


# --- AbortSignal.any: WPT dom/abort/resources/abort-signal-any-tests.js ----------------------------------------------


def test_any_of_nothing():
    """abort-signal-any: never aborted."""
    signal = AbortSignal.any([])
    assert not signal.aborted


def test_any_follows_one():
    """abort-signal-any: a signal of its own, with the source's reason."""
    controller = AbortController()
    signal = AbortSignal.any([controller.signal])
    assert signal is not controller.signal
    controller.abort(ERROR)
    assert signal.aborted
    assert signal.reason is ERROR


def test_any_of_aborted_signals():
    """abort-signal-any: aborted from the start, for the first one's reason in order of the list; no event."""
    signal = AbortSignal.any([AbortController().signal, AbortSignal.abort(1), AbortSignal.abort(2)])
    assert signal.reason == 1
    heard = []
    signal.add_event_listener("abort", heard.append)
    assert heard == []


@pytest.mark.parametrize("winner", range(3))
def test_any_the_first_reason_wins(winner):
    """abort-signal-any: whichever source it is; the others change nothing any more."""
    controllers = [AbortController() for _ in range(3)]
    signal = AbortSignal.any([c.signal for c in controllers])
    heard = []
    signal.on_abort(heard.append)
    controllers[winner].abort(winner)
    for i, controller in enumerate(controllers):
        controller.abort(("late", i))
    assert signal.reason == winner
    assert heard == [winner]


def test_any_of_the_same_twice():
    """abort-signal-any: one event."""
    controller = AbortController()
    signal = AbortSignal.any([controller.signal, controller.signal])
    heard = []
    signal.on_abort(heard.append)
    controller.abort(1)
    assert heard == [1]


def test_any_of_any():
    """abort-signal-any: composites of composites follow the roots, whatever is in between."""
    a, b, c = AbortController(), AbortController(), AbortController()
    inner = AbortSignal.any([a.signal, b.signal])
    outer = AbortSignal.any([inner, c.signal])
    reference = weakref.ref(inner)
    del inner
    gc.collect()
    assert reference() is None
    b.abort(2)
    assert outer.reason == 2


def test_any_order_of_events():
    """abort-signal-any: the source's first, then those of its dependents in the order in which they were made."""
    controller = AbortController()
    heard = []
    signals = [controller.signal]
    signals.append(AbortSignal.any([controller.signal]))
    signals.append(AbortSignal.any([controller.signal]))
    signals.append(AbortSignal.any([signals[1]]))
    signals.append(AbortSignal.any([signals[3], signals[2]]))
    for i, signal in reversed(list(enumerate(signals))):
        signal.add_event_listener("abort", lambda event, i=i: heard.append(i))
    controller.abort()
    assert heard == [0, 1, 2, 3, 4]


def test_any_many_dependents_in_order():
    """abort-signal-any: the order of creation, for any number of them."""
    controller = AbortController()
    heard = []
    signals = [AbortSignal.any([controller.signal]) for _ in range(200)]
    for i, signal in enumerate(signals):
        signal.on_abort(lambda reason, i=i: heard.append(i))
    controller.abort()
    assert heard == list(range(200))


def test_any_all_are_aborted_before_any_event():
    """abort-signal-any: a callback of the first sees all dependents aborted."""
    controller = AbortController()
    signals = [AbortSignal.any([controller.signal]) for _ in range(3)]
    seen = []
    for signal in (controller.signal, *signals):
        signal.on_abort(lambda reason: seen.append([s.aborted for s in signals]))
    controller.abort()
    assert seen == [[True] * 3] * 4


def test_any_made_in_a_callback_of_its_source():
    """abort-signal-any: the source is aborted by then, and so is the composite."""
    controller = AbortController()
    made = []
    controller.signal.on_abort(lambda reason: made.append(AbortSignal.any([controller.signal])))
    controller.abort(1)
    assert made[0].reason == 1


def test_any_another_source_aborted_by_a_callback():
    """abort-signal-any: the first reason is the one that counts, as all are marked before callbacks run."""
    a, b = AbortController(), AbortController()
    composite = AbortSignal.any([a.signal, b.signal])
    heard = []
    a.signal.on_abort(lambda reason: b.abort("b"))
    composite.on_abort(heard.append)
    a.abort("a")
    assert heard == ["a"]
    assert b.signal.reason == "b"


def test_any_with_a_timeout(page, js):
    """abort-signal-any: time-outs that only the composite refers to, and composites that only a listener keeps."""
    controller = AbortController()
    signal = AbortSignal.any([controller.signal, AbortSignal.timeout(js, 1)])
    gc.collect()
    page.until(lambda: signal.aborted)
    assert isinstance(signal.reason, TimeoutError)
    heard = []
    AbortSignal.any([AbortSignal.any([AbortSignal.timeout(js, 1)]), controller.signal]).on_abort(heard.append)
    gc.collect()
    page.until(lambda: heard)
    assert isinstance(heard[0], TimeoutError)


def test_any_that_nobody_holds_is_heard():
    """DOM 3.2, garbage collection: a composite with a listener lives as long as its sources."""
    controller = AbortController()
    heard = []
    AbortSignal.any([controller.signal]).add_event_listener("abort", lambda event: heard.append(event.type))
    AbortSignal.any([controller.signal]).on_abort(heard.append)
    gc.collect()
    controller.abort(1)
    assert heard == ["abort", 1]


def test_any_leaves_nothing_with_a_source():
    """WPT dom/abort/crashtests: a long-lived source forgets composites that are dropped, that were aborted, whose
    listener is gone.
    """
    source = AbortController()
    references = []
    for _ in range(100):
        references.append(weakref.ref(AbortSignal.any([source.signal])))
        other = AbortController()
        aborted = AbortSignal.any([source.signal, other.signal])
        aborted.on_abort(lambda reason: None)
        other.abort()
        references.append(weakref.ref(aborted))
        undone = AbortSignal.any([source.signal])
        undone.on_abort(lambda reason: None)()
        undone.add_event_listener("abort", print)
        undone.remove_event_listener("abort", print)
        references.append(weakref.ref(undone))
    del other, aborted, undone
    gc.collect()
    assert [r() for r in references] == [None] * 300
    assert not source.signal._dependents
    assert not source.signal._strong


def test_any_takes_signals_only():
    """contract: an error, not a signal that never aborts."""
    with pytest.raises(TypeError, match="signals must contain only AbortSignals, not 5"):
        AbortSignal.any([5])
    with pytest.raises(TypeError):
        AbortSignal.any(5)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_aborted_from_many_threads_once():
    """contract: every method from any thread; one reason, each callback once."""
    for _ in range(200):
        controller = AbortController()
        heard = []
        for _ in range(3):
            controller.signal.on_abort(heard.append)
        together(4, controller.abort)
        assert heard == [controller.signal.reason] * 3


def test_listening_while_it_is_aborted():
    """contract: a callback added at that very moment is called exactly once."""
    for _ in range(200):
        controller = AbortController()
        heard: list[list[object]] = [[], [], []]

        def act(i, controller=controller, heard=heard):
            if i == 3:
                controller.abort("x")
            else:
                controller.signal.on_abort(heard[i].append)

        together(4, act)
        wait_for(lambda heard=heard: all(heard))
        assert heard == [["x"]] * 3


def test_composites_made_and_aborted_on_threads():
    """contract: composites made and dropped while their sources abort: all that are alive are aborted, for one
    reason.
    """
    for _ in range(100):
        a, b = AbortController(), AbortController()
        made: list[list[AbortSignal]] = [[], []]
        heard: list[object] = []

        def act(i, a=a, b=b, made=made, heard=heard):
            if i == 2:
                return a.abort("a")
            if i == 3:
                return b.abort("b")
            for n in range(30):
                signal = AbortSignal.any([a.signal, b.signal])
                signal.on_abort(lambda reason, key=(i, n): heard.append(key))
                AbortSignal.any([signal, a.signal])
                made[i].append(signal)
            return None

        assert together(4, act) == [None] * 4
        for signal in made[0] + made[1]:
            assert signal.reason in ("a", "b")
        assert sorted(heard) == [(i, n) for i in range(2) for n in range(30)]


def test_a_late_callback_that_raises(caplog):
    """contract: logged also if the signal was aborted already, so that the callback is called at once."""

    def raises(_reason):
        raise ERROR

    with caplog.at_level(logging.ERROR, "nbloop"):
        AbortSignal.abort(1).on_abort(raises)
    assert [record.exc_info[1] for record in caplog.records] == [ERROR]


def test_any_keeps_no_timeout_when_another_source_aborts(page):
    """A composite that was aborted by one source keeps neither its time-outs nor their timers, listened to or not."""
    timers = page.loop._record["timers"]
    for listen in (lambda signal: None, lambda signal: signal.on_abort(lambda reason: None)):
        controller, timeout = AbortController(), AbortSignal.timeout(page.js, 3_600_000)
        gone = weakref.ref(timeout)
        signal = AbortSignal.any([timeout, controller.signal])
        del timeout
        listen(signal)
        signal.add_event_listener("abort", lambda event: None)
        assert gone() is not None
        controller.abort()
        assert gone() is None
        assert int(timers["live_here"] + timers["live_elsewhere"]) == 0


def test_any_keeps_a_timeout_that_others_listen_to(page):
    """Only the composite's own share in it ends."""
    heard, controller, timeout = [], AbortController(), AbortSignal.timeout(page.js, 3_600_000)
    timeout.on_abort(heard.append)
    signal = AbortSignal.any([timeout, controller.signal])
    signal.on_abort(lambda reason: None)
    gone = weakref.ref(timeout)
    del timeout
    controller.abort()
    assert gone() is not None


def test_no_timeout_is_that_long(page):
    """contract: ValueError."""
    with pytest.raises(ValueError, match=r"^ms must be a finite number of milliseconds, at most 4e12, not"):
        AbortSignal.timeout(page.js, 5e12)


@pytest.mark.parametrize("ms", [-1, -0.001, float("nan"), float("inf"), 10**400])
def test_no_timeout_of_that_length(page, ms):
    """DOM: AbortSignal.timeout takes an unsigned number."""
    with pytest.raises(ValueError, match="ms"):
        AbortSignal.timeout(page.js, ms)
    with pytest.raises(ValueError, match="start_time"):
        page.js.performance.mark("x", start_time=ms)


def test_throw_if_aborted_again_and_again():
    """The reason's traceback does not grow, and keeps the frames of the last raise only."""
    controller, held = AbortController(), []
    controller.abort(RuntimeError("stop"))

    class Local:
        pass

    def poll():
        local = Local()
        held.append(weakref.ref(local))
        with pytest.raises(RuntimeError):
            controller.signal.throw_if_aborted()

    for _ in range(20):
        poll()
    gc.collect()
    assert sum(one() is not None for one in held) <= 1


def test_an_exit_in_one_callback_does_not_keep_the_others_from_theirs():
    controller, called = AbortController(), []

    def leaves(_reason):
        raise SystemExit(3)

    controller.signal.on_abort(leaves)
    controller.signal.on_abort(called.append)
    AbortSignal.any([controller.signal]).on_abort(called.append)
    controller.signal.add_event_listener("abort", lambda event: called.append(event.type))
    with pytest.raises(SystemExit) as caught:
        controller.abort("enough")
    assert caught.value.code == 3
    assert called[:2] == ["enough", "abort"]


def test_arguments_of_the_wrong_kind_are_named(make_loop):
    with pytest.raises(TypeError, match=r"js must be a nbloop\.js\.JS"):
        AbortSignal.timeout(make_loop(), 5)
    with pytest.raises(TypeError, match="signals must be an iterable"):
        AbortSignal.any(5)


def test_an_exit_in_a_callback_leaves_nothing_for_the_collector():
    class Leaves:
        def __call__(self, _reason):
            raise SystemExit

    gc.collect()
    gc.disable()
    try:
        controller, callback = AbortController(), Leaves()
        held = [weakref.ref(callback), weakref.ref(controller.signal)]
        controller.signal.on_abort(callback)
        with contextlib.suppress(SystemExit):
            controller.abort()
        del controller, callback
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
