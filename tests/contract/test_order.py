"""In which order callbacks run: the phases of a turn, what a phase takes, the checkpoint after every callback, the
budget.
"""

from __future__ import annotations

import logging

import pytest

from nbloop import LoopOverloadedError


@pytest.fixture
def loop(make_loop, mode):
    """A loop in each fast path mode: the order must be the same in all."""
    return make_loop(fast_path_mode=mode)


@pytest.fixture(params=["own thread", "other thread", "other thread while running"])
def arrange(request, loop, turns, elsewhere):
    """`arrange(function)`: let `function` schedule, from each place that can; what it scheduled runs in later turns."""

    def arrange(function):
        if request.param == "other thread":
            elsewhere(function)
            return
        # A task is the last thing in a turn, so that what it schedules waits for the next one (except microtasks).
        loop.submit(*(elsewhere, function) if request.param == "other thread while running" else (function,))
        turns(loop)

    return arrange


# How to schedule one callback of each kind.
KINDS = {
    "immediate": lambda loop: loop.schedule_immediate,
    "close": lambda loop: loop.schedule_close,
    "timer": lambda loop: lambda *what: loop.schedule_timer(0, *what),
    "internal": lambda loop: loop.submit_internal,
    "task": lambda loop: loop.submit,
    "producer": lambda loop: loop.producer().submit,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def test_phases(loop, turns, arrange):
    """design: a turn is checkpoint, immediates, close callbacks, timers, internal, external, whatever was scheduled
    first.

    Microtasks that were queued before `run` come before tasks that were.
    """
    ran = []

    def schedule():
        loop.submit(ran.append, "task")
        loop.submit_internal(ran.append, "internal")
        loop.schedule_timer(0, ran.append, "timer")
        loop.schedule_close(ran.append, "close")
        loop.schedule_immediate(ran.append, "immediate")
        loop.schedule_microtask(ran.append, "microtask")
        loop.schedule_next_tick(ran.append, "tick")

    arrange(schedule)
    turns(loop)
    assert ran == ["tick", "microtask", "immediate", "close", "timer", "internal", "task"]


@each_kind
def test_fifo(loop, turns, arrange, kind):
    """contract: one order for each queue, that of the calls."""
    ran = []

    def schedule():
        put = KINDS[kind](loop)
        for i in range(300):
            put(ran.append, i)

    arrange(schedule)
    turns(loop)
    assert ran == list(range(300))


@each_kind
def test_snapshot(loop, turns, kind):
    """What a callback adds to its own phase waits for the next turn."""
    ran = []
    put = KINDS[kind](loop)

    def again():
        ran.append(kind)
        put(again)

    put(again)
    for turn in range(1, 6):
        turns(loop)
        assert len(ran) == turn


def test_check_phase_schedules_the_rest(loop, turns):
    """An immediate's close callback and due timer run in its turn, its immediate in the next."""
    ran = []

    def immediate():
        ran.append("immediate")
        loop.schedule_immediate(ran.append, "next immediate")
        loop.schedule_close(ran.append, "close")
        loop.schedule_timer(0, ran.append, "timer")

    loop.schedule_immediate(immediate)
    turns(loop)
    assert ran == ["immediate", "close", "timer"]
    turns(loop)
    assert ran[3:] == ["next immediate"]


@each_kind
def test_checkpoint_after_every_callback(loop, turns, kind):
    """Between two callbacks of any phase, the next-ticks and then the microtasks that the first
    queued.
    """
    ran = []
    put = KINDS[kind](loop)

    def first():
        ran.append("first")
        loop.schedule_microtask(ran.append, "microtask 1")
        loop.schedule_microtask(ran.append, "microtask 2")
        loop.schedule_next_tick(ran.append, "tick")

    put(first)
    put(ran.append, "second")
    turns(loop)
    assert ran == ["first", "tick", "microtask 1", "microtask 2", "second"]


def test_next_ticks_do_not_overtake(loop, turns):
    """A microtask's next-tick waits for the microtasks that are queued; a next-tick's microtask for the
    next-ticks.
    """
    ran = []

    def microtask():
        ran.append("microtask 1")
        loop.schedule_next_tick(tick)
        loop.schedule_microtask(ran.append, "microtask 2")

    def tick():
        ran.append("tick 1")
        loop.schedule_microtask(ran.append, "microtask 3")
        loop.schedule_next_tick(ran.append, "tick 2")

    loop.schedule_microtask(microtask)
    turns(loop)
    assert ran == ["microtask 1", "microtask 2", "tick 1", "tick 2", "microtask 3"]


def test_internal_before_a_backlog(loop, turns):
    """contract: submit_internal runs before the external queue of its turn, however long that is."""
    ran = []
    for _ in range(2000):
        loop.submit(ran.append, "task")
    loop.submit_internal(ran.append, "internal")
    turns(loop)
    assert ran == ["internal"] + ["task"] * 1024


def test_microtasks_nested_deeply(loop, turns):
    """A thousand microtasks, each queued by the one before: one checkpoint, no recursion."""
    ran = []

    def nested(depth):
        ran.append(depth)
        if depth < 1000:
            loop.schedule_microtask(nested, depth + 1)

    loop.submit(nested, 1)
    loop.submit(ran.append, "task")
    turns(loop)
    assert ran == [*range(1, 1001), "task"]


@pytest.mark.parametrize("schedule", ["schedule_microtask", "schedule_next_tick"])
def test_endless_checkpoint_warns_once(loop, turns, caplog, schedule):
    """100,000 callbacks in one checkpoint are worth one warning, and the checkpoint goes on."""
    put, left = getattr(loop, schedule), iter(range(250_000))

    def again():
        if next(left, None) is not None:
            put(again)

    loop.submit(again)
    with caplog.at_level(logging.WARNING, "nbloop"):
        turns(loop)
    assert next(left, None) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "100,000" in caplog.text


def test_many_microtasks(loop, turns):
    """More microtasks than any budget all run in one checkpoint, the loop does not sleep over them."""
    ran = []

    def task():
        for i in range(5000):
            loop.schedule_microtask(ran.append, i)

    loop.submit(task)
    loop.submit(loop.stop)
    loop.run()
    assert ran == list(range(5000))


def test_foreign_next_tick_joins_its_batch(loop, turns, elsewhere):
    """One that another thread queued during the batch of next-ticks runs before the microtasks."""
    ran = []
    loop.schedule_microtask(ran.append, "microtask")
    loop.schedule_next_tick(elsewhere, loop.schedule_next_tick, ran.append, "foreign tick")
    loop.schedule_next_tick(ran.append, "tick")
    turns(loop)
    assert ran == ["tick", "foreign tick", "microtask"]


def test_foreign_next_tick_waits_for_the_microtasks(loop, turns, elsewhere):
    """One that another thread queued during the batch of microtasks waits for its end."""
    ran = []
    loop.schedule_microtask(elsewhere, loop.schedule_next_tick, ran.append, "foreign tick")
    loop.schedule_microtask(ran.append, "microtask")
    turns(loop)
    assert ran == ["microtask", "foreign tick"]


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind != "producer"), "microtask", "tick"])
def test_foreign_and_own_in_one_order(loop, turns, elsewhere, kind):
    """A foreign call that returned before the loop's own began comes first."""
    ran = []
    puts = KINDS | {"microtask": lambda loop: loop.schedule_microtask, "tick": lambda loop: loop.schedule_next_tick}
    put = puts[kind](loop)

    def mix():
        for i in range(0, 6, 2):
            elsewhere(put, ran.append, i)
            put(ran.append, i + 1)

    loop.submit(mix)
    turns(loop, 2)
    assert ran == list(range(6))


def overloaded_loop(make_loop, mode, **options):
    overloads, ran = [], []
    loop = make_loop(fast_path_mode=mode, ingress_budget=10, on_overload=overloads.append, **options)
    return loop, ran, overloads


def test_a_checkpoints_end_waits_for_microtasks(loop, turns):
    """One at a time: the microtasks and next-ticks that it queues come before the next."""
    log = []

    def end(name):
        log.append(name)
        loop.schedule_microtask(log.append, f"microtask of {name}")
        loop.schedule_next_tick(log.append, f"tick of {name}")

    loop.submit(lambda: [loop.schedule_checkpoint_end(end, name) for name in "ab"])
    turns(loop)
    assert log == ["a", "tick of a", "microtask of a", "b", "tick of b", "microtask of b"]


@pytest.mark.parametrize("put", ["task", "producer", "many"])
def test_budget(make_loop, mode, turns, put):
    """contract: Overload: what is over the budget waits, and on_overload is called once in each
    such turn.
    """
    loop, ran, overloads = overloaded_loop(make_loop, mode)
    if put == "many":
        loop.submit_many([lambda i=i: ran.append(i) for i in range(25)])
    else:
        submit = loop.submit if put == "task" else loop.producer().submit
        for i in range(25):
            submit(ran.append, i)
    for count, calls in ((10, 1), (20, 2), (25, 2), (25, 2)):
        turns(loop)
        assert (ran, len(overloads)) == (list(range(count)), calls)
    assert all(isinstance(error, LoopOverloadedError) and "10" in str(error) for error in overloads)


@pytest.mark.parametrize("put", ["task", "producer"])
def test_budget_reached_is_no_overload(make_loop, mode, turns, put):
    """On_overload is for work that remains, not for work that was done."""
    loop, ran, overloads = overloaded_loop(make_loop, mode)
    submit = KINDS[put](loop)
    for i in range(10):
        submit(ran.append, i)
    turns(loop, 2)
    assert (ran, overloads) == (list(range(10)), [])


def test_budget_is_shared_with_producers(make_loop, mode, turns):
    """contract: Overload: the budget counts both kinds of submit together, and neither starves the other."""
    loop, ran, overloads = overloaded_loop(make_loop, mode)
    submit, handle = loop.submit, loop.producer()
    for i in range(20):
        submit(ran.append, ("task", i))
        handle.submit(ran.append, ("handle", i))
    for turn in range(1, 5):
        before = len(ran)
        turns(loop)
        assert len(ran) - before <= 10
        assert {kind for kind, _ in ran[before:]} == {"task", "handle"}
        assert len(overloads) == min(turn, 3)
    assert [i for kind, i in ran if kind == "task"] == [i for kind, i in ran if kind == "handle"] == list(range(20))


def test_every_producer_gets_its_turn(make_loop, mode, turns):
    """contract: producer: a handle that is always full does not keep the others from being served."""
    loop, ran, _ = overloaded_loop(make_loop, mode)
    full, small = loop.producer(), loop.producer()
    full.submit_many([lambda: ran.append("full")] * 100)
    small.submit(ran.append, "small")
    turns(loop, 3)
    assert "small" in ran


def test_overload_callback_gets_its_checkpoint(make_loop, mode, turns):
    """contract: a checkpoint follows every callback, on_overload included."""
    ran = []
    loop = make_loop(
        fast_path_mode=mode, ingress_budget=1, on_overload=lambda _: loop.schedule_microtask(ran.append, "microtask")
    )
    loop.submit(ran.append, 1)
    loop.submit(ran.append, 2)
    turns(loop)
    assert ran == [1, "microtask"]


def test_raising_overload_callback(make_loop, mode, turns, caplog):
    """An on_overload that raises is logged, and nothing else changes."""

    def raises(error):
        raise ValueError("from on_overload")

    ran = []
    loop = make_loop(fast_path_mode=mode, ingress_budget=1, on_overload=raises)
    loop.submit(ran.append, 1)
    loop.submit(ran.append, 2)
    turns(loop, 2)
    assert ran == [1, 2]
    assert [record.exc_info[1].args for record in caplog.records] == [("from on_overload",)]


def test_a_budget_of_one_is_everybodys(make_loop, turns):
    """contract: under overload `submit` and producer handles get half of the budget each: of one, every second turn."""
    loop, log = make_loop(ingress_budget=1), []
    handle = loop.producer()
    for _ in range(8):
        loop.submit(log.append, "submit")
        handle.submit(log.append, "handle")
    turns(loop, 8)
    assert log.count("submit") == log.count("handle") == 4
