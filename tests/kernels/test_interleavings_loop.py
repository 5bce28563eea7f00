"""The protocols between a running loop and other threads, under controlled schedules: sleep and wake, handles,
timers, the end.

The kernels' `run` itself runs here, with a futex that the scheduler knows: a wake-up that is lost is a deadlock,
which it reports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

from nbloop.kernels.base import (  # noqa: E402
    atomics,
    layout,
)
from nbloop.kernels.base.capi import FUTEX_WAIT_PRIVATE, Py_DecRef, Py_IncRef  # noqa: E402
from nbloop.kernels.base.kernel import TwinMethod, kernels  # noqa: E402
from nbloop.kernels.calls import invoke, remote  # noqa: E402
from nbloop.kernels.ingress import parking  # noqa: E402
from nbloop.kernels.memory import slot_slabs, slots  # noqa: E402
from nbloop.kernels.methods import (  # noqa: E402
    lifetime,
    scheduling,
    timer_methods,
)
from nbloop.kernels.state.state import make_handle_state  # noqa: E402
from nbloop.kernels.timers import timer_slots  # noqa: E402
from nbloop.kernels.turn import (  # noqa: E402
    external,
    phases,
    turn,
)
from tests.support import rig  # noqa: E402
from tests.support.explorer import Plant, find, mutant, replace, search, together  # noqa: E402


class Futex:
    """`syscall(SYS_futex, …)` for one word: a wait that the scheduler sees."""

    def __init__(self) -> None:
        self.woken = it.Condition()
        self.wakes = 0

    def __call__(self, _number: int, address: int, operation: int, value: int, _timeout: int, _unused: int) -> int:
        with self.woken:
            if operation != FUTEX_WAIT_PRIVATE:
                self.wakes += 1
                self.woken.notify_all()
            elif atomics.get(address) == value:
                self.woken.wait()
        return 0


class World:
    """A loop's words, its methods as plain Python, and the futex under it. `refused` decides what a refusal does."""

    now: World

    def __init__(self, *, auto_exit: bool = False) -> None:
        World.now = self
        self.memory = rig.Memory()
        self.futex = Futex()
        self.announced = 0
        self.done: list[Any] = []
        self.refused = 0
        record = self.memory.record
        record["lifecycle"] = layout.RUNNING
        record["auto_exit"] = auto_exit
        record["budget"] = 1024
        record["refuse"] = id(self.refuse_hook)
        self.record, self.base = record, self.memory.base
        for name in ("submit", "stop", "acquire", "release", "schedule_timer", "cancel_timer", "close_queues"):
            setattr(self, name, self.memory.method(kernels[name]))
        self.turns = self.memory.method(turn.run)

    @property
    def refuse_hook(self) -> Callable[[int, object, object], None]:
        return _refuse

    def run(self) -> int:
        """The kernel's `run`, on the thread that owns the loop meanwhile; why it returned."""
        assert self.acquire() == 0
        try:
            return self.turns()
        finally:
            self.release()

    def check_sleeps(self) -> None:
        """At most one claim a sleep, one wake call a claim, and the loop has seen every claim."""
        sent = int(self.record["wakes_sent"])
        assert int(self.record["sleep"]) == parking.IS_AWAKE
        assert sent <= self.announced, "two claims of one sleep"
        assert self.futex.wakes == sent == int(self.record["claimed"])


def _refuse(_code: int, _culprit: object, _raised: object) -> None:
    """As the loop's own: a refusal while it is RUNNING is tried again, any other raises."""
    if atomics.get(World.now.base + layout.STATE.LIFECYCLE) == layout.RUNNING:
        it.Event().wait(0.001)
        return
    raise RuntimeError("refused")


def in_world(patch: pytest.MonkeyPatch) -> None:
    """Let the kernels call the futex of the world of the schedule in progress, and count the sleeps it announces."""

    def syscall(*arguments: int) -> int:
        return World.now.futex(*arguments)

    def announce(base: int, deadline: int) -> bool:
        World.now.announced += 1
        return FALL_ASLEEP(base, deadline)

    replace(patch, parking.libc_syscall, syscall)
    replace(patch, FALL_ASLEEP, announce)


FALL_ASLEEP = parking.fall_asleep


@pytest.fixture(autouse=True)
def _futex(monkeypatch: pytest.MonkeyPatch) -> None:
    in_world(monkeypatch)


def looks_before_it_announces(base: int, deadline: int) -> bool:
    """A `fall_asleep` with its two halves swapped."""
    World.now.announced += 1
    parking.store(base + layout.STATE.SLEEP_DEADLINE, deadline)
    if parking.arrivals(base):
        return False
    parking.store_sc(base + layout.STATE.SLEEP, parking.IS_ASLEEP)
    return True


def bug(original: Callable[..., Any], function: Callable[..., Any]) -> Plant:
    return lambda patch: replace(patch, original, function)


# --- sleep and wake -------------------------------------------------------------------------------


class SleepModel:
    """Threads submit one task each; the last task stops the loop, which sleeps between them or does not."""

    def __init__(self, submits: int) -> None:
        self.submits = submits

    def __call__(self) -> None:
        with it.no_interleave():
            world = World()

        def task() -> None:
            world.done.append(None)
            if len(world.done) == self.submits:
                world.record["stop"] = 1

        together(*[lambda: world.submit(task)] * self.submits, world.run)
        with it.no_interleave():
            assert len(world.done) == self.submits
            world.check_sleeps()


@pytest.mark.parametrize("submits", [1, 2])
def test_sleep_and_wake(submits: int) -> None:
    """Never asleep with work queued and no wake-up on its way; at most one wake-up a sleep."""
    search(SleepModel(submits), 40)


SWAP = "not compare_and_swap(base + STATE.SLEEP, IS_ASLEEP, IS_AWAKE)"


@pytest.mark.parametrize(
    ("submits", "plant", "first_seed"),
    [
        (1, bug(FALL_ASLEEP, looks_before_it_announces), 1),
        (2, bug(parking.wake_sleeper, mutant(parking.wake_sleeper, (SWAP, "store(base + STATE.SLEEP, 0)"))), 7),
        (1, bug(parking.arrivals, mutant(parking.arrivals, ("queue_length(base + STATE.EXTERNAL) != 0", "False"))), 0),
    ],
    ids=["look before the announcement", "claim without swap", "forgotten queue"],
)
def test_broken_sleep_is_caught(submits: int, plant: Plant, first_seed: int) -> None:
    find(SleepModel(submits), plant, first_seed)


@pytest.mark.parametrize(
    "arrives",
    [
        lambda world: world.submit(len, ()),
        lambda world: world.memory.method(kernels["schedule_microtask"])(len, ()),
        lambda world: world.memory.method(kernels["interrupt"])(1),
        lambda world: world.memory.method(lifetime.transition)(layout.RUNNING, layout.TERMINATING),
        lambda world: world.stop(),
        lambda world: world.record.__setitem__("ready", 1),
    ],
    ids=["external", "remote", "interrupt", "lifecycle", "stop", "handle"],
)
def test_whatever_has_come_prevents_the_sleep(arrives: Callable[[World], object]) -> None:
    """The look between announcing a sleep and sleeping is at everything that another thread can leave."""
    world = World()
    assert parking.fall_asleep(world.base, parking.FOREVER)
    parking.wide_awake(world.base)
    arrives(world)
    assert not parking.fall_asleep(world.base, parking.FOREVER)
    assert int(world.record["sleep"]) == parking.IS_AWAKE


def stop_a_sleeper() -> None:
    """`stop()` from another thread ends a loop that has nothing else to do."""
    with it.no_interleave():
        world = World()
    together(world.stop, lambda: world.done.append(world.run()))
    with it.no_interleave():
        assert world.done == [turn.ENDED_STOP]
        world.check_sleeps()


def test_stop_a_sleeper() -> None:
    search(stop_a_sleeper, 40)


def test_stop_that_does_not_wake_is_caught() -> None:
    def plant(patch: pytest.MonkeyPatch) -> None:
        replace(patch, parking.wake, lambda base: False)

    find(stop_a_sleeper, plant)


def shut_a_sleeper_down() -> None:
    """What `shutdown()` does on another thread: the lifecycle, then the queues."""
    with it.no_interleave():
        world = World()
        end = world.memory.method(lifetime.transition)

    def shutdown() -> None:
        assert end(layout.RUNNING, layout.TERMINATING)
        world.close_queues()

    together(shutdown, lambda: world.done.append(world.run()))
    with it.no_interleave():
        assert world.done == [turn.ENDED_TERMINATING]
        world.check_sleeps()


def test_shut_a_sleeper_down() -> None:
    """A loop that read its lifecycle before the change must not fall asleep after the queues were closed."""
    search(shut_a_sleeper_down, 40)


# --- auto-exit ------------------------------------------------------------------------------------


def quiet_against_submit() -> None:
    """A loop that ends when nothing is left, against one submit: it runs, or it was refused."""
    with it.no_interleave():
        world = World(auto_exit=True)
        end = world.memory.method(lifetime.transition)

    def produce() -> None:
        try:
            world.submit(world.done.append, None)
        except RuntimeError:
            world.refused += 1

    def loop() -> None:
        assert world.run() == turn.ENDED_QUIET
        assert end(layout.RUNNING, layout.TERMINATING)

    together(produce, loop)
    with it.no_interleave():
        assert len(world.done) + world.refused == 1
        assert atomics.get(world.base + layout.STATE.EXTERNAL + layout.QUEUE.TAIL) < 0


def test_quiet_against_submit() -> None:
    search(quiet_against_submit, 40)


def closes_after_a_look(queue: int) -> bool:
    """A `queue_close_if_empty` in two steps."""
    if parking.queue_length(queue) != 0:
        return False
    lifetime.queue_close(queue)
    return True


def test_broken_quiet_is_caught() -> None:
    find(quiet_against_submit, bug(turn.queue_close_if_empty, closes_after_a_look))


def quiet_against_remote_work() -> None:
    """As `quiet_against_submit`, for an immediate from another thread: the submit queue is closed first, and has to be
    open again if the loop goes on for the immediate's sake.
    """
    with it.no_interleave():
        world = World(auto_exit=True)
        end = world.memory.method(lifetime.transition)
        schedule = world.memory.method(kernels["schedule_immediate"])

    def task() -> None:
        assert atomics.get(world.base + layout.STATE.EXTERNAL + layout.QUEUE.TAIL) >= 0, "closed, and the loop goes on"
        world.done.append(None)

    def produce() -> None:
        try:
            schedule(task)
        except RuntimeError:
            world.refused += 1

    def loop() -> None:
        assert world.run() == turn.ENDED_QUIET
        assert end(layout.RUNNING, layout.TERMINATING)

    together(produce, loop)
    with it.no_interleave():
        assert len(world.done) + world.refused == 1


def test_quiet_against_remote_work() -> None:
    search(quiet_against_remote_work, 60)


# --- producer handles -----------------------------------------------------------------------------


class Handle:
    """The words of a producer handle over a world's."""

    def __init__(self, world: World) -> None:
        self.state = make_handle_state(world.memory.state)
        self.state.whole = False
        self.words = self.state.view(rig.np.ndarray).copy()
        record = self.words.view(layout.HANDLE.dtype)[0]
        record["loop"] = world.base
        record["self"] = id(self.words)
        record["queue"]["pool"] = world.memory.pool
        self.submit = TwinMethod(scheduling.producer_submit, self.words, scheduling.producer_submit.function)


def handle_rests_and_works() -> None:
    """A handle's second submit meets the loop that has just drained its first."""
    with it.no_interleave():
        world = World()
        handle = Handle(world)

    def task() -> None:
        world.done.append(None)
        if len(world.done) == 2:
            world.record["stop"] = 1

    def produce() -> None:
        handle.submit(task)
        handle.submit(task)

    together(produce, world.run)
    with it.no_interleave():
        assert len(world.done) == 2
        world.check_sleeps()


def test_handle_rests_and_works() -> None:
    """A handle with work is announced, or its producer is about to announce it."""
    search(handle_rests_and_works, 40)


def rests_without_another_look(base: int, handle: int) -> None:
    """A `handle_rest` that forgets the submit which saw the handle still announced."""
    external.store_sc(handle + layout.HANDLE.QUEUED, 0)
    Py_DecRef(atomics.get(handle + layout.HANDLE.SELF))


def test_broken_handle_rest_is_caught() -> None:
    find(handle_rests_and_works, bug(external.handle_rest, rests_without_another_look), first_seed=23)


# --- timers ---------------------------------------------------------------------------------------


class Ledger:
    """Counts references to the callbacks of a model, instead of the interpreter, which would not survive a bug."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}

    def take(self, address: int) -> None:
        if address in self.held:
            self.held[address] += 1
        else:
            Py_IncRef(address)

    def release(self, address: int) -> None:
        if address in self.held:
            self.held[address] -= 1
            assert self.held[address] >= 0, "released twice"
        else:
            Py_DecRef(address)


class TimerModel:
    """One thread arms timers that are due at once, one cancels what it knows of, one makes turns of the loop.

    A slot of a timer that has fired, whose stale id is cancelled meanwhile, can be reused.
    """

    ledger: Ledger

    def __call__(self) -> None:
        with it.no_interleave():
            world = World()
            ledger = TimerModel.ledger = Ledger()
            fired: list[int] = []
            callbacks = [lambda n=n: fired.append(n) for n in range(2)]
            ledger.held = {id(callback): 0 for callback in callbacks}
            ids: dict[int, int] = {}
            cancelled: list[int] = []
            stale = world.schedule_timer(0, len, ())
            world.stop()
            world.run()

        def arm(number: int) -> None:
            ids[number] = world.schedule_timer(0, callbacks[number])

        def cancel() -> None:
            assert not world.cancel_timer(stale), "somebody else's timer was cancelled"
            for number in (0, 1, 0):
                if number in ids and world.cancel_timer(ids[number]):
                    cancelled.append(number)  # noqa: PERF401 - not all at once: others run between

        def turn_once() -> None:
            world.stop()
            assert world.run() == turn.ENDED_STOP

        def loop() -> None:
            turn_once()
            arm(1)  # not inside `run`: as any other thread; in the slot of the first, if that has become free
            turn_once()

        together(lambda: arm(0), cancel, loop)
        with it.no_interleave():
            turn_once()
            turn_once()
            assert sorted(fired + cancelled) == [0, 1], f"fired {fired}, cancelled {cancelled}"
            assert set(ledger.held.values()) == {0}, "a callback was not released"
            words = world.record["timers"]
            assert words["live_here"] + words["live_elsewhere"] == words["unreferenced"] == words["commands"] == 0
            free = rig.stacked(world.memory.timers + layout.TIMERS.FREE, int(words["next"]))
            spare = int(words["spare"])
            while spare:
                free.append(spare - 1)
                spare = atomics.get(slot_slabs.slot_at(world.memory.timers, spare - 1) + layout.SLOT.PLACE)
            assert sorted(free) == list(range(int(words["slot_count"]))), "a slot was lost, or is free twice"


def counted(patch: pytest.MonkeyPatch) -> None:
    def take(address: int) -> None:
        TimerModel.ledger.take(address)

    def release(address: int) -> None:
        TimerModel.ledger.release(address)

    for module in (timer_slots, phases, remote, invoke, external, scheduling, timer_methods, lifetime):
        patch.setattr(module, "Py_IncRef", take, raising=False)
        patch.setattr(module, "Py_DecRef", release, raising=False)


def test_timer_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """cancelled + fired = armed, and every callback is released exactly once."""
    counted(monkeypatch)
    search(TimerModel(), 20)
    monkeypatch.setattr(slots, "SPARES_MOST", 0)  # a freed slot is every thread's at once
    search(TimerModel(), 20)


READ = "        callback = load(record + SLOT.CALLBACK)\n"
AFTER = "    if word & UNREFERENCED:\n"
NO_GENERATION = mutant(timer_slots.timer_cancel, ("word >> GENERATION_SHIFT != identifier >> SLOT_BITS or ", ""))
HINT = "        prefetch(callback & POINTER_MASK)  # to be released at the end\n"
READ_AFTER_SWAP = mutant(timer_slots.timer_cancel, (READ, ""), (HINT, ""), (AFTER, READ[4:] + AFTER))
FIRE_WITHOUT_SWAP = mutant(
    phases.timer_fire,
    ("if compare_and_swap(record + SLOT.WORD, word, new):", "if store(record + SLOT.WORD, new) is None:"),
)
NO_NEW_GENERATION = mutant(timer_slots.slot_open, ("GENERATION_SHIFT) + 1) &", "GENERATION_SHIFT)) &"))
CANCEL_KEEPS = mutant(timer_slots.timer_cancel, ("    Py_DecRef(callback & POINTER_MASK)\n", ""))
FIRE_KEEPS = mutant(phases.timer_fire, ("        Py_DecRef(callback & POINTER_MASK)\n", "        pass\n"))
CANCEL_UNCOUNTED = mutant(timer_slots.timer_cancel, ("fetch_add(timers + TIMERS.LIVE_ELSEWHERE, -1)", "pass"))


@pytest.mark.parametrize(
    ("original", "broken", "first_seed"),
    [
        (timer_slots.slot_open, NO_NEW_GENERATION, 0),
        (timer_slots.timer_cancel, CANCEL_KEEPS, 0),
        (phases.timer_fire, FIRE_KEEPS, 0),
        (timer_slots.timer_cancel, CANCEL_UNCOUNTED, 0),
        (timer_slots.timer_cancel, NO_GENERATION, 0),
        (phases.timer_fire, FIRE_WITHOUT_SWAP, 139),
        (timer_slots.timer_cancel, READ_AFTER_SWAP, 63),
    ],
    ids=[
        "no new generation",
        "cancel keeps the callback",
        "fire keeps the callback",
        "cancel not counted",
        "no look at the generation",
        "fire without swap",
        "callback read after the swap",
    ],
)
def test_broken_timer_is_caught(
    monkeypatch: pytest.MonkeyPatch, original: Callable[..., Any], broken: Callable[..., Any], first_seed: int
) -> None:
    counted(monkeypatch)
    # a freed slot is every thread's at once: that is where these bugs bite
    monkeypatch.setattr(slots, "SPARES_MOST", 0)
    find(TimerModel(), bug(original, broken), first_seed)


def test_interval_cancelled_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own callback: True, and the loop releases callback and slot once, afterwards."""
    counted(monkeypatch)
    world, ledger, answers = World(), Ledger(), []
    TimerModel.ledger = ledger

    def callback() -> None:
        assert ledger.held[id(callback)] == 1
        answers.extend([world.cancel_timer(interval), world.cancel_timer(interval)])
        assert ledger.held[id(callback)] == 1, "released while it runs"

    ledger.held = {id(callback): 0}
    interval = world.memory.method(kernels["schedule_interval"])(0, callback)
    for _ in range(2):
        world.stop()
        world.run()
    assert answers == [True, False]
    assert ledger.held == {id(callback): 0}


# --- the instant between two steps, made by hand: few schedules of a search come there -------------


def test_a_sleep_is_claimed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that saw the loop asleep, but finds that another has claimed the wake call, makes none."""
    world = World()
    monkeypatch.setattr(parking, "load_sc", lambda _address: parking.IS_ASLEEP)
    assert not parking.wake(world.base)
    assert world.futex.wakes == world.record["wakes_sent"] == 0


def test_a_handle_with_a_late_submit_does_not_rest() -> None:
    """A submit that saw the handle still announced is seen by the loop, which announces it itself."""
    world = World()
    handle = Handle(world)
    address = handle.words.ctypes.data
    record = handle.words.view(layout.HANDLE.dtype)[0]
    record["queued"] = 1
    assert external.queue_length(address + layout.HANDLE.QUEUE) == 0
    handle.submit(len, ())
    assert world.record["ready"] == 0
    external.handle_rest(world.base, address)
    assert world.record["ready"] == address
    assert record["queued"] == 1
