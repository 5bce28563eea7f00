"""A watch's word, between the loop that dispatches its events and a thread that closes it, in controlled schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

from test_interleavings_loop import Ledger, World, in_world  # noqa: E402

from nbloop.kernels.base import layout  # noqa: E402
from nbloop.kernels.base.atomics import get, put  # noqa: E402
from nbloop.kernels.base.clock import FOREVER  # noqa: E402
from nbloop.kernels.calls import invoke  # noqa: E402
from nbloop.kernels.ingress import parking  # noqa: E402
from nbloop.kernels.memory.slots import slot_of  # noqa: E402
from nbloop.kernels.turn import (  # noqa: E402
    fd_watches,
    phases,
    turn,
)
from tests.support import rig  # noqa: E402
from tests.support.explorer import Plant, find, mutant, replace, search, together  # noqa: E402


class WatchModel:
    """The loop makes two turns with an event of one watch in each; a thread closes the watch, and opens another in the
    slot that has become free, for which no event is reported.
    """

    ledger: Ledger

    def __call__(self) -> None:
        with it.no_interleave():
            world = World()
            ledger = WatchModel.ledger = Ledger()
            table = rig.np.zeros(8, rig.np.int64)
            masks = rig.np.array([id(number) for number in range(16)])
            io = world.record["io"]
            io["ready"], io["masks"] = table.ctypes.data, masks.ctypes.data
            started: list[str] = []
            closed: list[int] = []

            def old(fd: int, events: int) -> None:
                assert ledger.held[id(old)] == 1, "called without a reference"
                started.append("old")

            def new(fd: int, events: int) -> None:
                started.append("new")

            ledger.held = {id(old): 0, id(new): 0}
            watch = world.memory.method(fd_watches.watch_open)
            close = world.memory.method(fd_watches.watch_close)
            tokens: dict[int, int] = {}
            token = watch(1000, old, layout.READ, tokens)
            assert tokens == {1000: token}

        def closes() -> None:
            assert close(1000, tokens)
            closed.append(len(started))
            assert not close(1000, tokens), "closed twice"
            watch(1001, new, layout.READ, tokens)

        def loop() -> None:
            for _ in range(2):
                put(table.ctypes.data, token)
                put(table.ctypes.data + 8, layout.READ)
                io["ready_count"], io["ready_done"] = 1, 0
                world.stop()
                assert world.run() == turn.ENDED_STOP

        together(closes, loop)
        with it.no_interleave():
            assert "new" not in started, "an old event has reached a new watch"
            assert len(started) - closed[0] <= 1, "started again after it was closed"
            assert list(tokens) == [1001]
            assert close(1001, tokens)
            assert tokens == {}
            assert set(ledger.held.values()) == {0}, "a callback was not released"
            assert int(io["watches"]) == 0
            words = world.record["timers"]
            free = rig.stacked(world.memory.timers + layout.TIMERS.FREE, int(words["next"]))
            assert sorted(free) == list(range(int(words["slot_count"]))), "a slot was lost, or is free twice"


def take(address: int) -> None:
    WatchModel.ledger.take(address)


def release(address: int) -> None:
    WatchModel.ledger.release(address)


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    in_world(monkeypatch)
    for module in (fd_watches, phases, invoke):
        monkeypatch.setattr(module, "Py_IncRef", take, raising=False)
        monkeypatch.setattr(module, "Py_DecRef", release, raising=False)


def test_watch_word() -> None:
    """Closed means that no event starts it any more, and everything is released once."""
    search(WatchModel(), 40)


def bug(original: Callable[..., Any], *edits: tuple[str, str]) -> Plant:
    return lambda patch: replace(patch, original, mutant(original, *edits))


CLAIM = "not compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK | DISPATCHING)"


@pytest.mark.parametrize(
    ("plant", "first_seed"),
    [
        (bug(fd_watches.watch_ready, ("word >> GENERATION_SHIFT != token >> SLOT_BITS or ", "")), 0),
        (
            bug(
                fd_watches.watch_ready,
                (CLAIM, "(store(record + SLOT.WORD, word & ~STATE_MASK | DISPATCHING) is not None)"),
            ),
            5,
        ),
        (
            bug(
                fd_watches.watch_ready,
                (
                    "        if compare_and_swap(record + SLOT.WORD, word, word & ~STATE_MASK | WATCHED):",
                    "        if True:\n            store(record + SLOT.WORD, word & ~STATE_MASK | WATCHED)",
                ),
            ),
            1,
        ),
        (bug(fd_watches.watch_end, ("word & STATE_MASK == DISPATCHING", "False")), 6),
    ],
    ids=["no generation", "claim without swap", "given back without swap", "released while it is called"],
)
def test_broken_watch_is_caught(plant: Plant, first_seed: int) -> None:
    find(WatchModel(), plant, first_seed)


def test_generation_is_in_the_token() -> None:
    """A slot used again has another token."""
    world = World()
    watch, close = world.memory.method(fd_watches.watch_open), world.memory.method(fd_watches.watch_close)
    tokens: dict[int, int] = {}
    first = watch(0, len, layout.READ, tokens)
    assert close(0, tokens)
    second = watch(0, len, layout.READ, tokens)
    assert first != second
    assert first & (layout.SLOT_LIMIT - 1) == second & (layout.SLOT_LIMIT - 1)
    assert (second >> layout.SLOT_BITS) - (first >> layout.SLOT_BITS) == 1
    assert tokens == {0: second}
    assert close(0, tokens)


def test_a_token_of_no_slot_changes_nothing() -> None:
    """A token as in a descriptor's entry that an exception left without a slot."""
    WatchModel.ledger = Ledger()
    WatchModel.ledger.held = {id(len): 0, id(0): 0}
    world = World()
    watch, change = world.memory.method(fd_watches.watch_open), world.memory.method(fd_watches.watch_change)
    tokens: dict[int, int] = {}
    token = watch(0, len, layout.READ, tokens)
    for unknown in (0, -1, 5 | 1 << layout.SLOT_BITS):
        change(unknown, layout.WRITE)
    close, timers = world.memory.method(fd_watches.watch_close), world.memory.timers
    record = slot_of(timers, tokens[0])
    assert close(0, tokens)
    watch(0, len, layout.READ, tokens)  # in the slot that has become free
    assert slot_of(timers, tokens[0]) == record
    change(token, layout.WRITE)
    assert get(record + layout.SLOT.INTEREST) == layout.READ
    assert close(0, tokens)


@pytest.mark.parametrize("mode", [layout.PARK_FUTEX, layout.PARK_EPOLL])
@pytest.mark.parametrize("thread", ["the loop's", "another"])
def test_a_first_watch_changes_how_the_loop_sleeps(monkeypatch: pytest.MonkeyPatch, mode: int, thread: str) -> None:
    """Except on the loop's own thread, if it sleeps in its poller still: it may be going back to its futex just now, if
    another thread asks.
    """
    WatchModel.ledger = Ledger()
    WatchModel.ledger.held = {id(len): 0, id(0): 0}
    world = World()
    begin, finish = world.memory.method(fd_watches.watch_begin), world.memory.method(fd_watches.watch_finish)
    monkeypatch.setattr(fd_watches, "libc_syscall", lambda *_: 0)
    monkeypatch.setattr(fd_watches, "on_loop_thread", lambda _base: thread == "the loop's")
    world.record["park_mode"] = mode
    world.record["io"]["retires"] = mode == layout.PARK_EPOLL
    tokens: dict[int, int] = {}
    stays = mode == layout.PARK_EPOLL and thread == "the loop's"
    assert begin(0, len, layout.READ, tokens) == (0 if stays else fd_watches.CHANGES)
    assert begin(1, len, layout.READ, tokens) == 0
    assert finish(0, tokens) == 0
    assert finish(1, tokens) == 0
    assert finish(1, tokens) == fd_watches.UNKNOWN
    assert tokens == {}


@pytest.mark.parametrize(
    ("answers", "status", "won", "lost", "sleeps"),
    [
        ([1], 0, 1, 0, 0),
        ([0, 0, 1], 0, 1, 0, 0),
        ([-1], -1, 0, 0, 0),
        ([0, 0, 0, 0], 0, 0, 1, 1),
    ],
    ids=["an event is there", "an event comes", "the poller fails", "nothing comes"],
)
def test_spin_looks_at_descriptors(
    monkeypatch: pytest.MonkeyPatch, answers: list[int], status: int, won: int, lost: int, sleeps: int
) -> None:
    """A loop whose last sleep was short looks at its descriptors too before the next, and at them first; what a look
    reports is kept.
    """
    world = World()
    asked: list[int] = []
    table, buffer = rig.np.zeros(8, rig.np.int64), rig.np.zeros(64, rig.np.uint8)
    buffer[0] = fd_watches.EPOLLIN
    buffer[fd_watches.EPOLL_DATA] = 77  # the token

    def syscall(_number: int, _poller: int, _events: int, _most: int, timeout: int, _unused: int) -> int:
        asked.append(timeout)
        return answers[len(asked) - 1] if len(asked) <= len(answers) else 0

    monkeypatch.setattr(fd_watches, "libc_syscall", syscall)
    monkeypatch.setattr(fd_watches, "SPIN_LOOKS", 1)
    pauses: list[int] = []
    monkeypatch.setattr(fd_watches, "pause", lambda: pauses.append(1))
    clock = iter(range(0, 10**6, 20_000))
    for module in (fd_watches, parking):
        monkeypatch.setattr(module, "monotonic_ns", lambda: next(clock))
    io = world.record["io"]
    io["events"], io["ready"] = buffer.ctypes.data, table.ctypes.data
    world.record["spin_max"], world.record["short"] = 50_000, 1
    assert fd_watches.epoll_sleep(world.base, FOREVER) == status
    assert (int(world.record["spins_won"]), int(world.record["spins_lost"])) == (won, lost)
    assert int(world.record["parks"]) == sleeps == asked.count(-1)
    assert int(io["ready_count"]) == won
    if won:
        assert len(pauses) == len(asked) - 1
    assert table[: 2 * won].tolist() == [77, layout.READ][: 2 * won]
    if lost:
        assert int(world.record["spin_skip"]) == 1, "it sits out the next short sleep"


def test_spin_with_descriptors_sees_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arrival in a queue ends the spin, and the descriptors are polled once, for the next turn."""
    world = World()
    asked: list[int] = []

    def syscall(_number: int, _poller: int, _events: int, _most: int, timeout: int, _unused: int) -> int:
        asked.append(timeout)
        return 0

    monkeypatch.setattr(fd_watches, "libc_syscall", syscall)
    world.record["spin_max"], world.record["short"] = 50_000, 1
    world.submit(len, ())
    assert fd_watches.epoll_sleep(world.base, FOREVER) == 0
    assert asked == [0]
    assert int(world.record["spins_won"]) == 1
    assert int(world.record["sleep"]) == parking.IS_AWAKE


def test_whole_milliseconds_are_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no finer timeout a sleep ends after its deadline, never before."""
    asked: list[int] = []

    def syscall(_number: int, _poller: int, _events: int, _most: int, timeout: int, _unused: int) -> int:
        asked.append(timeout)
        return 0

    monkeypatch.setattr(fd_watches, "libc_syscall", syscall)
    monkeypatch.setattr(fd_watches, "sleep_ns", lambda base, deadline: deadline)
    world = World()
    for left in (0, 1, 999_999, 1_000_000, 1_000_001):
        assert fd_watches.epoll_sleep(world.base, left) == 0
    assert asked == [0, 1, 1, 1, 2]
