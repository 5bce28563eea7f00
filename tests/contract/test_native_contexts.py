"""Contexts of native calls (PEP 567): `Loop(contexts=True)` captures them, and without it nothing does."""

from __future__ import annotations

import contextvars
import functools
import gc
import os
import signal
import weakref

import pytest

import nbloop
from nbloop import IOEvents
from nbloop.kernels.methods import batch
from tests.support.contexts import two, who


def _watch(loop, call):
    reading, writing = os.pipe()

    def ready(fd, _events):
        loop.unregister_fd(fd)
        for end in (reading, writing):
            os.close(end)
        call()

    os.write(writing, b"x")
    loop.register_fd(reading, IOEvents.READ, ready)


SCHEDULE = {
    "submit": lambda loop, call: loop.submit(call),
    "submit with arguments": lambda loop, call: loop.submit(lambda *_: call(), 1, 2),
    "submit_many": lambda loop, call: loop.submit_many([call]),
    "submit_many of an iterator": lambda loop, call: loop.submit_many(iter([call])),
    "submit_internal": lambda loop, call: loop.submit_internal(call),
    "a handle's submit": lambda loop, call: loop.producer().submit(call),
    "a handle's submit_many": lambda loop, call: loop.producer().submit_many([call]),
    "schedule_microtask": lambda loop, call: loop.schedule_microtask(call),
    "schedule_next_tick": lambda loop, call: loop.schedule_next_tick(call),
    "schedule_checkpoint_end": lambda loop, call: loop.schedule_checkpoint_end(call),
    "schedule_immediate": lambda loop, call: loop.schedule_immediate(call),
    "schedule_close": lambda loop, call: loop.schedule_close(call),
    "schedule_timer": lambda loop, call: loop.schedule_timer(0, call),
    "schedule_timer_at": lambda loop, call: loop.schedule_timer_at(0, call),
    "register_fd": _watch,
    "the class's function": nbloop.Loop.submit,
}
each_call = pytest.mark.parametrize("schedule", SCHEDULE.values(), ids=SCHEDULE)
each_mode = pytest.mark.parametrize("options", [{}, {"debug": True}, {"metrics": True, "recorder": 64}], ids=str)


def _seen(loop, schedule, from_outside):
    """What two callbacks see."""
    main, seen = two(lambda call: schedule(loop, call))
    if from_outside:
        contextvars.copy_context().run(main)
    else:
        nbloop.Loop.submit(loop, contextvars.copy_context().run, main)
    contextvars.copy_context().run(loop.run)
    return seen


@each_mode
@each_call
@pytest.mark.parametrize("from_outside", [False, True])
def test_captured(make_loop, schedule, options, from_outside):
    loop = make_loop(contexts=True, auto_exit=True, **options)
    assert sorted(_seen(loop, schedule, from_outside)) == ["a", "b"]


@pytest.mark.parametrize("contexts", [False, True])
def test_a_group(contexts):
    """One loop, so that what is set stays where the next task sees it."""
    with nbloop.LoopGroup(1, contexts=contexts) as group:
        main, seen = two(group.submit)
        contextvars.copy_context().run(main)
    assert seen == (["a", "b"] if contexts else ["nobody", "dirty"])


@each_call
def test_not_captured_by_default(make_loop, schedule):
    """The loop thread's context is everybody's, and what is set there stays."""
    assert _seen(make_loop(auto_exit=True), schedule, True) == ["nobody", "dirty"]


@each_call
@pytest.mark.parametrize("run", [True, False])
def test_a_context_lives_no_longer_than_its_callback(make_loop, schedule, run):
    """One that has run, or was dropped by `close`."""
    loop = make_loop(contexts=True, auto_exit=True)
    held = contextvars.ContextVar("held")
    value = functools.partial(int)
    found = weakref.ref(value)

    def main(value):
        held.set(value)
        schedule(loop, int)

    contextvars.copy_context().run(main, value)
    del value
    assert found() is not None
    if run:
        loop.run()
    else:
        loop.close()
    assert found() is None


def test_an_interval_keeps_its_context(make_loop):
    loop, seen = make_loop(contexts=True, auto_exit=True), []

    def tick():
        seen.append(who.get())
        who.set(who.get() + "!")
        if len(seen) == 3:
            loop.cancel_timer(interval)

    context = contextvars.copy_context()
    context.run(who.set, "tick")
    interval = context.run(loop.schedule_interval, 0, tick)
    loop.run()
    assert seen == ["tick", "tick!", "tick!!"]


@pytest.mark.parametrize("contexts", [False, True])
def test_on_batch(make_loop, contexts):
    loop = make_loop(contexts=contexts, auto_exit=True)
    main, seen = two(lambda call: loop.channel([("a", "i8")], lambda _records: call()).put(1))
    contextvars.copy_context().run(main)
    contextvars.copy_context().run(loop.run)
    assert seen == (["a", "b"] if contexts else ["nobody", "dirty"])


def test_a_channel_keeps_its_context(make_loop):
    """Also for what its producers put."""
    loop, seen = make_loop(contexts=True), []

    def on_batch(_records):
        seen.append(who.get())
        who.set(who.get() + "!")

    context = contextvars.copy_context()
    context.run(who.set, "a")
    channel = context.run(loop.channel, [("a", "i8")], on_batch)
    context.run(who.set, "too late")
    for entrance in (channel, channel.producer(), channel):
        entrance.put(1)
        loop.stop()
        contextvars.copy_context().run(loop.run)
    assert seen == ["a", "a!", "a!!"]


def test_an_exception_of_on_batch_names_it(make_loop):
    told = []
    loop = make_loop(contexts=True, on_error=lambda error, context: told.append((error, context["callback"])))

    def on_batch(_records):
        raise LookupError

    loop.channel([("a", "i8")], on_batch).put(1)
    loop.stop()
    loop.run()
    ((error, callback),) = told
    assert (type(error), callback) == (LookupError, on_batch)


def test_a_signal_handler_runs_in_the_context_of_its_registration(make_loop):
    loop, seen = make_loop(contexts=True), []

    def handler(argument):
        seen.append((argument, who.get()))
        loop.shutdown()

    contextvars.copy_context().run(lambda: (who.set("registrar"), loop.add_signal_handler(signal.SIGTERM, handler, 7)))
    loop.submit(os.kill, os.getpid(), signal.SIGTERM)
    loop.run()
    assert seen == [(7, "registrar")]


@pytest.mark.parametrize("count", [0, 1, batch.SMALL + 1, 3 * batch.SMALL + 7])
@pytest.mark.parametrize("iterable", [list, tuple, iter])
def test_every_task_of_a_batch_has_a_context_of_its_own(make_loop, count, iterable):
    """Both for small batches and for large ones, which are filled first and published then."""
    loop, seen = make_loop(contexts=True, auto_exit=True), []

    def call(number):
        seen.append((number, who.get()))
        who.set("dirty")

    many = iterable([functools.partial(call, number) for number in range(count)])
    assert contextvars.copy_context().run(lambda: (who.set("a"), loop.submit_many(many))[1]) == count
    loop.run()
    assert seen == [(number, "a") for number in range(count)]


@pytest.mark.parametrize("count", [3, batch.SMALL + 3])
def test_a_batch_that_is_refused_leaves_nothing(make_loop, count):
    loop = make_loop(contexts=True, ingress_limit=2)
    tasks = [functools.partial(int) for _ in range(count)]
    held = [weakref.ref(task) for task in tasks]
    with pytest.raises(nbloop.LoopOverloadedError):
        loop.submit_many(tasks)
    with pytest.raises(TypeError):
        loop.submit_many([*tasks, None])
    del tasks
    gc.collect()  # of the twins' tracebacks
    assert [task() for task in held] == [None] * count


@pytest.mark.parametrize("refuse", [lambda loop: loop.submit(None), lambda loop: loop.schedule_timer(0, None)])
def test_what_is_not_callable_is_refused_by_its_own_name(make_loop, refuse):
    with pytest.raises(TypeError, match="callback must be callable, not None"):
        refuse(make_loop(contexts=True))


@each_mode
def test_on_error_is_told_of_the_callback_itself(make_loop, options):
    told = []
    loop = make_loop(contexts=True, auto_exit=True, on_error=lambda _, context: told.append(context), **options)
    reading, writing = os.pipe()

    def fails(*args):
        if args[:1] == (reading,):
            loop.unregister_fd(reading)
        raise ValueError

    os.write(writing, b"x")
    loop.register_fd(reading, IOEvents.READ, fails)
    loop.submit(fails, 1, 2)
    loop.schedule_timer(0, fails)
    loop.submit_many([fails])
    loop.run()
    os.close(reading)
    os.close(writing)
    assert [context["callback"] for context in told] == [fails] * 4
    assert {context["args"] for context in told} == {(1, 2), ()}
    if "recorder" in options:
        names = [event.name for event in loop.recorder.events() if event.duration and event.kind != "collection"]
        assert len([name for name in names if "fails" in name]) == 4, names


def test_a_call_of_Context_run_by_the_user_is_shown_as_what_it_runs(make_loop):
    """Also one with too few arguments, which fails."""
    told = []
    loop = make_loop(auto_exit=True, recorder=64, on_error=lambda _, context: told.append(context["callback"]))
    loop.submit(contextvars.Context.run)
    loop.submit(contextvars.Context.run, contextvars.copy_context())
    loop.submit(contextvars.Context.run, contextvars.copy_context(), int, "x")
    loop.run()
    assert told == [contextvars.Context.run, contextvars.Context.run, int]


def test_a_subclass_that_calls_its_parent(make_loop):
    class Counting(nbloop.Loop):
        count = 0

        def submit(self, callback, /, *args):
            self.count += 1
            super().submit(callback, *args)

    loop, seen = Counting(contexts=True, auto_exit=True), []
    contextvars.copy_context().run(lambda: (who.set("a"), loop.submit(lambda: seen.append(who.get()))))
    loop.run()
    assert (seen, loop.count) == (["a"], 1)


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_the_option_is_checked(value):
    with pytest.raises(TypeError, match="contexts must be True or False"):
        nbloop.Loop(contexts=value)
