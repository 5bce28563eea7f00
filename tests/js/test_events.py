"""`EventTarget`, `Event`, `CustomEvent`: DOM 2.2 to 2.9, and what WPT's dom/events looks at where there is no tree."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest

from nbloop.js import CustomEvent, Event, EventTarget
from tests.support.waiting import together

ERROR = ValueError("of a listener")


@pytest.fixture
def target():
    """A target without listeners."""
    return EventTarget()


def test_event_attributes():
    """WPT dom/events/Event-constructors.any.js: type and flags; not yet dispatched."""
    event = Event("x")
    assert (event.type, event.cancelable, event.bubbles, event.target, event.default_prevented) == (
        "x",
        False,
        False,
        None,
        False,
    )
    event = Event("y", cancelable=True, bubbles=True)
    assert (event.type, event.cancelable, event.bubbles) == ("y", True, True)


def test_custom_event():
    """WPT dom/events/CustomEvent.html: a detail of any kind, None if not given."""
    detail = object()
    assert CustomEvent("x", detail=detail).detail is detail
    assert CustomEvent("x").detail is None
    assert CustomEvent("x", cancelable=True).cancelable
    assert isinstance(CustomEvent("x"), Event)


def test_listeners_in_order(target):
    """DOM 2.7; WPT dom/events/Event-dispatch-order.html: synchronous, in order of addition, each with the event and
    its target.
    """
    heard = []
    for i in range(5):
        target.add_event_listener("x", lambda event, i=i: heard.append((i, event)))
    event = Event("x")
    assert target.dispatch_event(event) is True
    assert heard == [(i, event) for i in range(5)]
    assert event.target is target


def test_only_of_that_type(target):
    """DOM 2.9, inner invoke: types are compared exactly."""
    heard = []
    for kind in ("x", "X", "", "xy"):
        target.add_event_listener(kind, lambda event, kind=kind: heard.append(kind))
    target.dispatch_event(Event("x"))
    target.dispatch_event(Event(""))
    assert heard == ["x", ""]


def test_the_same_callback_is_added_once(target):
    """WPT dom/events/EventTarget-this-of-listener.html and DOM 2.7, add an event listener, step 4: per type; bound
    methods are equal.
    """
    heard = []
    target.add_event_listener("x", heard.append)
    target.add_event_listener("x", heard.append, once=True)
    target.add_event_listener("y", heard.append)
    target.dispatch_event(Event("x"))
    target.dispatch_event(Event("x"))
    assert len(heard) == 2
    target.dispatch_event(Event("y"))
    assert len(heard) == 3


def test_a_listener_is_callable(target):
    """contract: TypeError."""
    for thing in (None, 5, "f"):
        with pytest.raises(TypeError, match="callback must be callable"):
            target.add_event_listener("x", thing)


def test_what_is_no_event_and_no_type(target):
    """contract: TypeError that names the argument."""
    with pytest.raises(TypeError, match="type must be a str, not 5"):
        Event(5)
    with pytest.raises(TypeError, match="type must be a str, not 5"):
        target.add_event_listener(5, print)
    with pytest.raises(TypeError, match="event must be an Event, not 5"):
        target.dispatch_event(5)


def test_removal(target):
    """WPT dom/events/EventTarget-removeEventListener.any.js: by type and callback; unknown ones: nothing."""
    heard = []
    target.add_event_listener("x", heard.append)
    target.remove_event_listener("y", heard.append)
    target.remove_event_listener("x", print)
    target.dispatch_event(Event("x"))
    target.remove_event_listener("x", heard.append)
    target.remove_event_listener("x", heard.append)
    target.dispatch_event(Event("x"))
    assert len(heard) == 1
    target.add_event_listener("x", heard.append)
    target.dispatch_event(Event("x"))
    assert len(heard) == 2


def test_removal_during_dispatch(target):
    """WPT dom/events/Event-dispatch-handlers-changed.html: a listener removed by one before it is not called."""
    heard = []

    def last(_event):
        heard.append("last")

    target.add_event_listener("x", lambda event: target.remove_event_listener("x", last))
    target.add_event_listener("x", last)
    target.dispatch_event(Event("x"))
    assert heard == []


def test_addition_during_dispatch(target):
    """WPT dom/events/Event-dispatch-handlers-changed.html: one added meanwhile is called the next time, even if it
    replaces one removed.
    """
    heard = []

    def again(_event):
        heard.append("again")

    def first(_event):
        target.add_event_listener("x", lambda event: heard.append("added"))
        target.remove_event_listener("x", again)
        target.add_event_listener("x", again)

    target.add_event_listener("x", first, once=True)
    target.add_event_listener("x", again)
    target.dispatch_event(Event("x"))
    assert heard == []
    target.dispatch_event(Event("x"))
    assert heard == ["added", "again"]


def test_once(target):
    """WPT dom/events/AddEventListenerOptions-once.any.js: removed before it is called, so also when it dispatches or
    raises.
    """
    heard = []

    def listener(event):
        heard.append(event.type)
        target.dispatch_event(Event("x"))

    target.add_event_listener("x", listener, once=True)
    target.dispatch_event(Event("x"))
    target.dispatch_event(Event("x"))
    assert heard == ["x"]
    target.add_event_listener("x", heard.append, once=True)
    target.remove_event_listener("x", heard.append)
    target.dispatch_event(Event("x"))
    assert heard == ["x"]


def test_once_added_again_by_itself(target):
    """WPT dom/events/AddEventListenerOptions-once.any.js: it is gone by then, so it can be."""
    heard = []

    def listener(_event):
        heard.append(1)
        target.add_event_listener("x", listener, once=True)

    target.add_event_listener("x", listener, once=True)
    for _ in range(3):
        target.dispatch_event(Event("x"))
    assert heard == [1, 1, 1]


def test_prevent_default(target):
    """WPT dom/events/Event-defaultPrevented.html, Event-dispatch-reenter.html: only of a cancelable event; dispatch
    says so.
    """
    target.add_event_listener("x", lambda event: event.prevent_default())
    event = Event("x", cancelable=True)
    assert target.dispatch_event(event) is False
    assert event.default_prevented is True
    event = Event("x")
    assert target.dispatch_event(event) is True
    assert event.default_prevented is False


def test_stop_immediate_propagation(target):
    """WPT dom/events/Event-stopImmediatePropagation.html: no further listener; once-listeners not reached stay."""
    heard = []
    target.add_event_listener("x", lambda event: (heard.append(1), event.stop_immediate_propagation()), once=True)
    target.add_event_listener("x", lambda event: heard.append(2), once=True)
    target.dispatch_event(Event("x"))
    assert heard == [1]
    target.dispatch_event(Event("x"))
    assert heard == [1, 2]


def test_stop_propagation(target):
    """WPT dom/events/Event-propagation.html: the other listeners of the same target are called."""
    heard = []
    target.add_event_listener("x", lambda event: event.stop_propagation())
    target.add_event_listener("x", lambda event: heard.append(2))
    target.dispatch_event(Event("x"))
    assert heard == [2]


def test_an_event_dispatched_again(target):
    """WPT dom/events/Event-dispatch-redispatch.html: stopping counts for one dispatch, preventing for good; the
    target is the last one.
    """
    heard = []
    other = EventTarget()
    target.add_event_listener("x", lambda event: (event.stop_immediate_propagation(), event.prevent_default()))
    other.add_event_listener("x", lambda event: heard.append(event.target))
    event = Event("x", cancelable=True)
    target.dispatch_event(event)
    assert other.dispatch_event(event) is False
    assert heard == [other]


def test_a_listener_that_raises(target, caplog):
    """WPT dom/events/Event-dispatch-throwing.html: reported, here to the logger; the next is called and dispatch
    returns.
    """
    heard = []

    def raises(_event):
        raise ERROR

    target.add_event_listener("x", raises)
    target.add_event_listener("x", heard.append)
    with caplog.at_level(logging.ERROR, "nbloop"):
        assert target.dispatch_event(Event("x")) is True
    assert len(heard) == 1
    assert [record.exc_info[1] for record in caplog.records] == [ERROR]


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_what_must_leave_python_leaves_dispatch(target, leaving):
    """contract: KeyboardInterrupt and SystemExit are not reported."""

    def raises(_event):
        raise leaving

    target.add_event_listener("x", raises)
    with pytest.raises(leaving):
        target.dispatch_event(Event("x"))


def test_a_subclass():
    """WPT dom/events/EventTarget-constructible.any.js: a class of one's own, with events of one's own."""

    class Door(EventTarget):
        def open(self):
            return self.dispatch_event(CustomEvent("open", detail=self))

    door = Door()
    heard = []
    door.add_event_listener("open", lambda event: heard.append(event.detail))
    assert door.open()
    assert heard == [door]


def test_removed_listeners_are_released(target):
    """contract: neither removed nor `once` listeners are kept."""

    class Listener:
        def __call__(self, _event):
            pass

    listeners = [Listener(), Listener()]
    references = [weakref.ref(listener) for listener in listeners]
    target.add_event_listener("x", listeners[0])
    target.add_event_listener("x", listeners[1], once=True)
    target.dispatch_event(Event("x"))
    target.remove_event_listener("x", listeners[0])
    listeners.clear()
    gc.collect()
    assert [r() for r in references] == [None, None]


def test_threads(target):
    """contract: added, removed and dispatched on four threads: once-listeners are called once, nothing is lost."""
    heard, permanent = [], []
    target.add_event_listener("x", lambda event: permanent.append(1))

    def act(i):
        for n in range(100):
            target.add_event_listener("x", lambda event, key=(i, n): heard.append(key), once=True)
            target.dispatch_event(Event("x"))
            target.add_event_listener("y", act)
            target.remove_event_listener("y", act)

    assert together(4, act) == [None] * 4
    assert sorted(heard) == [(i, n) for i in range(4) for n in range(100)]
    assert len(permanent) == 400
