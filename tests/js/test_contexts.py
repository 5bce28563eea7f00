"""Each coroutine of `spawn` has its own context, as a task of asyncio has, and so has each callback (PEP 567)."""

from __future__ import annotations

import contextvars
import decimal
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest

from nbloop import LoopTerminatedError
from nbloop.js import JS, AbortController, AbortSignal, CustomEvent, Event, EventTarget
from tests.support.contexts import two, who


def test_coroutines_do_not_see_each_other(page):
    js, seen = page.js, []

    async def request(name, ms):
        who.set(name)
        await js.sleep(ms)
        seen.append((name, who.get()))

    def main():
        for name in ("a", "b"):
            js.spawn(request(name, 1))
        seen.append(("the spawner", who.get()))

    page.on_loop(main)
    page.on_loop(lambda: seen.append(("later", who.get())))
    assert sorted(seen) == [("a", "a"), ("b", "b"), ("later", "nobody"), ("the spawner", "nobody")]


def test_a_coroutine_inherits_the_context_of_its_spawner(page):
    async def inherit():
        await page.js.resolve()
        return who.get()

    context = contextvars.copy_context()
    context.run(who.set, "the spawner")
    promise = context.run(page.js.spawn, inherit())
    assert page.value(promise) == "the spawner"


def test_a_local_context_of_decimal_stays_local(page):
    js = page.js

    async def precise():
        with decimal.localcontext() as context:
            context.prec = 3
            await js.sleep(2)
            return str(decimal.Decimal(1) / 3)

    async def other():
        await js.sleep(1)
        return str(decimal.Decimal(1) / 3)

    three, many = page.value(js.all([js.spawn(precise()), js.spawn(other())]))
    assert three == "0.333"
    assert len(many) > 10


# --- what is registered runs in the context of the call that registered it --------------------------------------------

REGISTER = {
    "then, fulfilled": lambda js, call: js.resolve(1).then(lambda _: call()),
    "then, with both handlers": lambda js, call: js.resolve(1).then(lambda _: call(), lambda _: None),
    "then, rejected": lambda js, call: js.reject(1).then(None, lambda _: call()),
    "then, rejected, with both handlers": lambda js, call: js.reject(1).then(lambda _: None, lambda _: call()),
    "then, passed on": lambda js, call: js.reject(1).then(lambda _: None).catch(lambda _: call()),
    "finally": lambda js, call: js.resolve(1).finally_(call),
    "set_timeout": lambda js, call: js.set_timeout(call),
    "set_timeout with arguments": lambda js, call: js.set_timeout(lambda *_: call(), 0, 1, 2),
    "set_immediate": lambda js, call: js.set_immediate(call),
    "queue_microtask": lambda js, call: js.queue_microtask(call),
    "next_tick": lambda js, call: js.next_tick(call),
    "promisify": lambda js, call: js.loop.promisify(call),
    "a thenable's then": lambda js, call: js.resolve(SimpleNamespace(then=lambda resolve, _: (call(), resolve(1)))),
}


@pytest.mark.parametrize("register", REGISTER.values(), ids=REGISTER)
@pytest.mark.parametrize("pending", [False, True], ids=["at once", "later"])
def test_in_the_context_of_the_registration(page, register, pending):
    """Each sees what was set before it was registered, nobody what it sets, and it not what others set meanwhile."""
    js = page.js
    main, seen = two(lambda call: register(js, call))
    if pending:  # from a handler, in whose context the callback's is made
        page.loop.submit(lambda: js.sleep(1).then(lambda _: main()))
    else:
        page.loop.submit(contextvars.copy_context().run, main)
    page.quiet()
    assert sorted(seen) == ["a", "b"]
    assert page.on_loop(who.get) == "nobody"


def test_handlers_added_before_the_promise_settles(page):
    """Reactions that wait, in order, each with its own context; the settling call's is nobody's."""
    promise, resolve, _ = page.js.with_resolvers()
    seen = []

    def handler(value):
        seen.append((value, who.get()))
        who.set("dirty")

    for name in ("a", "b", "c"):
        contextvars.copy_context().run(lambda name=name: (who.set(name), promise.then(handler)))
    contextvars.copy_context().run(lambda: (who.set("the settler"), resolve(7)))
    page.quiet()
    assert seen == [(7, "a"), (7, "b"), (7, "c")]


def test_an_interval_keeps_its_context(page):
    """From run to run, as asyncio's handle of a reader does."""
    js, seen = page.js, []

    def tick():
        seen.append(who.get())
        who.set(who.get() + "!")
        if len(seen) == 3:
            js.clear_interval(interval)

    context = contextvars.copy_context()
    context.run(who.set, "tick")
    interval = context.run(js.set_interval, tick, 0)
    page.quiet()
    assert seen == ["tick", "tick!", "tick!!"]
    assert context[who] == "tick"


def test_event_listeners_and_abort_callbacks(page):
    """Each call in a copy, so that a listener may dispatch to itself."""
    seen = []
    target, controller = EventTarget(), AbortController()

    def listener(event):
        seen.append(who.get())
        who.set("dirty")
        if isinstance(event, CustomEvent) and event.detail:
            target.dispatch_event(CustomEvent("e", detail=event.detail - 1))

    def aborted(_reason):
        seen.append(who.get())
        who.set("dirty")

    def register():
        who.set("registrar")
        target.add_event_listener("e", listener)
        controller.signal.on_abort(aborted)
        controller.signal.add_event_listener("abort", listener)
        who.set("too late")
        AbortSignal.abort().on_abort(aborted)  # is called at once

    contextvars.copy_context().run(register)

    def use():
        who.set("dispatcher")
        target.dispatch_event(CustomEvent("e", detail=2))
        controller.abort()
        return who.get()

    assert contextvars.copy_context().run(use) == "dispatcher"
    assert seen == ["too late", *["registrar"] * 5]


def test_listeners_on_many_threads_at_once(together):
    """One context cannot be entered twice."""
    target, seen = EventTarget(), []
    barrier = threading.Barrier(4)

    def listener(_event):
        barrier.wait(30)
        seen.append(who.get())

    contextvars.copy_context().run(lambda: (who.set("registrar"), target.add_event_listener("e", listener)))
    together(4, lambda _: target.dispatch_event(Event("e")))
    assert seen == ["registrar"] * 4


class Value:
    """Something that a context holds."""


def test_a_handler_holds_its_context_no_longer_than_it_can_be_called(page):
    """Whatever becomes of the reaction: it ran, had no handler for the outcome, was never to run."""
    held = contextvars.ContextVar("held")
    js = page.js

    def register(promise, *handlers):
        value = Value()
        made = contextvars.copy_context().run(lambda: (held.set(value), promise.then(*handlers))[1])
        return weakref.ref(value), made

    def nothing(_):
        return None

    resolved, rejected = js.resolve(1), js.reject(1)
    cases = [
        register(resolved, nothing),
        register(rejected, None, nothing),
        register(resolved, None, nothing),  # passed on
        register(rejected, nothing),
        register(resolved, nothing, nothing),
        register(rejected, nothing, nothing),
    ]
    for _, made in cases:
        made.catch(nothing)
    page.quiet()
    assert [value() for value, _ in cases] == [None] * len(cases)

    promise, resolve, _reject = js.with_resolvers()
    lost = register(promise, nothing)
    assert lost[0]() is not None
    page.loop.close()
    resolve(1)
    assert lost[0]() is None
    assert isinstance(lost[1].reason, LoopTerminatedError)


def test_a_cycle_through_a_context_is_collected(page):
    """A pending promise whose handler's context holds it."""
    held = contextvars.ContextVar("held")
    value = Value()
    found = weakref.ref(value)

    def register(value):
        held.set(value)
        value.promise = page.js.with_resolvers()[0]
        value.promise.then(print)

    contextvars.copy_context().run(register, value)
    del value
    gc.collect()
    assert found() is None


def test_a_handler_that_raises_leaves_no_context_entered(page):
    def fails(_):
        who.set("dirty")
        raise ValueError

    assert isinstance(page.reason(page.js.resolve().then(fails)), ValueError)
    assert page.on_loop(who.get) == "nobody"


def test_the_handler_of_unhandled_rejections_has_the_context_of_its_view(page):
    """A copy for each: it neither sees what a callback set, nor what it has set itself."""
    seen = []

    def report(reason, _promise):
        seen.append((reason, who.get()))
        who.set("dirty")

    context = contextvars.copy_context()
    context.run(who.set, "the view")
    js = context.run(lambda: JS(page.loop, on_unhandled_rejection=report))
    context.run(who.set, "too late")

    def rejects():
        who.set("a callback")
        js.reject(1)
        js.reject(2)

    thread = contextvars.copy_context()  # this one's, which runs the loop
    thread.run(page.on_loop, rejects)
    thread.run(page.on_loop, lambda: js.reject(3) and None)
    assert seen == [(1, "the view"), (2, "the view"), (3, "the view")]
    assert thread[who] == "a callback"
