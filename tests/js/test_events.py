"""`EventTarget`, `Event`, `CustomEvent`: DOM 2.2 to 2.9, and what WPT's dom/events tests that needs no tree."""

from __future__ import annotations

import gc
import json
import logging
import random
import shutil
import subprocess
import threading
import weakref

import pytest

from nbloop import Loop
from nbloop.js import AbortController, CustomEvent, Event, EventTarget, InvalidStateError
from tests.support.waiting import PATIENCE, together

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


class Meddles:
    """A callback whose comparison, the program's own code, uses the target."""

    def __init__(self, target, other, got):
        self.target = target
        self.other = other
        self.got = got

    def __call__(self, _event):
        self.got.append("meddles")

    def __eq__(self, other):
        if self.other is not None:
            meddled, self.other = self.other, None
            self.target.remove_event_listener("x", meddled)
            self.target.add_event_listener("y", meddled)
        return self is other

    __hash__ = None


def test_a_comparison_of_callbacks_may_use_the_target(target):
    """As a finaliser may, in the middle of any call."""
    got = []

    def other(_event):
        got.append("other")

    def uses():
        target.add_event_listener("x", other)
        meddles = Meddles(target, other, got)
        target.add_event_listener("x", meddles)
        target.add_event_listener("x", meddles)
        for kind in "xy":
            target.dispatch_event(Event(kind))
        target.remove_event_listener("x", meddles)
        got.append(len(target._listeners))

    thread = threading.Thread(target=uses, daemon=True)  # which would hang
    thread.start()
    thread.join(PATIENCE)
    assert got == ["meddles", "other", 1]


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


@pytest.mark.parametrize("stop", [Event.stop_propagation, Event.stop_immediate_propagation])
def test_stopped_before_a_dispatch(target, stop):
    """DOM 2.9, invoke, step 1: no listener is called. dispatch, step 11: the flags are unset after it."""
    heard = []
    target.add_event_listener("x", heard.append)
    event = Event("x")
    stop(event)
    target.dispatch_event(event)
    assert heard == []
    target.dispatch_event(event)
    assert heard == [event]


def test_stop_propagation_in_a_dispatch(target):
    """DOM 2.9: of one target the further listeners are called; the flag does not outlive the dispatch."""
    heard = []
    target.add_event_listener("x", lambda event: event.stop_propagation())
    target.add_event_listener("x", heard.append)
    event = Event("x")
    target.dispatch_event(event)
    target.dispatch_event(event)
    assert heard == [event, event]


def test_dispatched_within_its_dispatch(target):
    """DOM 2.7, dispatchEvent, step 1: InvalidStateError; target and flags stay those of the dispatch in progress."""
    other, heard = EventTarget(), []
    other.add_event_listener("x", heard.append)

    def again(event):
        event.stop_immediate_propagation()
        for one in (target, other):
            with pytest.raises(InvalidStateError):
                one.dispatch_event(event)

    target.add_event_listener("x", again)
    target.add_event_listener("x", heard.append)
    event = Event("x")
    target.dispatch_event(event)
    assert heard == []
    assert event.target is target
    other.dispatch_event(event)  # it is over
    assert heard == [event]


def test_one_dispatch_at_a_time_on_any_threads():
    """Of threads that dispatch one event at once, one does; the others get InvalidStateError."""
    inside, event, targets = [], Event("x"), [EventTarget() for _ in range(4)]

    def listen(_event):
        inside.append(1)
        assert len(inside) == 1
        inside.pop()

    def dispatch(i):
        done = 0
        for _ in range(200):
            try:
                targets[i].dispatch_event(event)
                done += 1
            except InvalidStateError:
                pass
        return done

    for one in targets:
        one.add_event_listener("x", listen)
    assert sum(together(4, dispatch)) > 0
    assert inside == []


def test_what_leaves_a_dispatch_ends_it(target):
    """A KeyboardInterrupt leaves the call, and the event can be dispatched again."""

    def interrupt(_event):
        raise KeyboardInterrupt

    target.add_event_listener("x", interrupt, once=True)
    event = Event("x")
    with pytest.raises(KeyboardInterrupt):
        target.dispatch_event(event)
    assert target.dispatch_event(event)


def test_exceptions_reach_the_loop(target):
    """contract: a listener's and an abort callback's exception goes to `on_error` of the loop whose callback it is in,
    the innermost one.
    """
    told = {}

    def fail(_event):
        raise ERROR

    def inner():
        target.dispatch_event(Event("x"))

    def outer():
        one = Loop(name="inner", auto_exit=True, on_error=lambda error, context: told.update(inner=(error, context)))
        one.submit(inner)
        one.run()
        controller = AbortController()
        controller.signal.on_abort(fail)
        controller.abort("enough")

    target.add_event_listener("x", fail)
    loop = Loop(name="outer", auto_exit=True, on_error=lambda error, context: told.update(outer=(error, context)))
    loop.submit(outer)
    loop.run()
    for name, kind in (("inner", "event listener"), ("outer", "abort callback")):
        error, context = told[name]
        assert error is ERROR
        assert (context["loop"].name, context["kind"], context["callback"]) == (name, kind, fail)
    assert told["outer"][1]["args"] == ("enough",)


def dispatch_program(seed):
    """Listeners of two targets, each with what it does; every event is dispatched once, since Node keeps the flags of a
    stopped one (DOM 2.9, dispatch, step 11, unsets them).
    """
    random_ = random.Random(seed)
    actions = ["stop", "halt", "prevent", "remove", "nothing"]
    listeners = [
        {"target": random_.randrange(2), "once": random_.random() < 0.3, "does": random_.choices(actions, k=2)}
        for _ in range(random_.randint(1, 6))
    ]
    return {"listeners": listeners, "events": [random_.randrange(2) for _ in range(3)]}


NODE = """
for (const program of JSON.parse(require('fs').readFileSync(0))) {
  const log = [], targets = [new EventTarget(), new EventTarget()], made = [];
  program.listeners.forEach((l, i) => made.push(event => {
    log.push(`${i} ${targets.indexOf(event.target)}`);
    for (const what of l.does) {
      if (what == 'stop') event.stopPropagation();
      if (what == 'halt') event.stopImmediatePropagation();
      if (what == 'prevent') event.preventDefault();
      if (what == 'remove') targets[l.target].removeEventListener('x', made[(i + 1) % made.length]);
    }
  }));
  program.listeners.forEach((l, i) => targets[l.target].addEventListener('x', made[i], {once: l.once}));
  for (const at of program.events) log.push(targets[at].dispatchEvent(new Event('x', {cancelable: true})));
  console.log(JSON.stringify(log));
}
"""


def dispatch_here(program):
    log, targets, made = [], [EventTarget(), EventTarget()], []

    def listener(i, here, does):
        def listen(event):
            log.append(f"{i} {targets.index(event.target)}")
            for what in does:
                {
                    "stop": event.stop_propagation,
                    "halt": event.stop_immediate_propagation,
                    "prevent": event.prevent_default,
                    "remove": lambda: targets[here].remove_event_listener("x", made[(i + 1) % len(made)]),
                    "nothing": int,
                }[what]()

        return listen

    made += [listener(i, one["target"], one["does"]) for i, one in enumerate(program["listeners"])]
    for one, listen in zip(program["listeners"], made, strict=True):
        targets[one["target"]].add_event_listener("x", listen, once=one["once"])
    for at in program["events"]:
        prevented = targets[at].dispatch_event(Event("x", cancelable=True))
        log.append(prevented)
    return log


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js, the reference, is not installed")
def test_dispatch_is_nodes():
    """Random listeners that stop, prevent and remove: the same log as in Node, of 500 programs."""
    programs = [dispatch_program(seed) for seed in range(500)]
    node = subprocess.run(
        ["node", "-e", NODE], input=json.dumps(programs), capture_output=True, text=True, timeout=60, check=False
    )
    assert node.returncode == 0, node.stderr
    theirs = [json.loads(line) for line in node.stdout.splitlines()]
    ours = [dispatch_here(program) for program in programs]
    for seed, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a == b, dispatch_program(seed)
