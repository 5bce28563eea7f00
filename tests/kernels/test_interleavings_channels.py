"""The protocol of channels under controlled schedules: claim, fill, publish, take, release, rest, wait for room, drop
what is old, close. Each model also shows that it would notice a bug.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

from nbloop.kernels.base import layout  # noqa: E402
from nbloop.kernels.base.capi import PyErr_Clear  # noqa: E402
from nbloop.kernels.base.layout import CHANNEL, HANDLE  # noqa: E402
from nbloop.kernels.channels import channel_methods, delivery, records  # noqa: E402
from nbloop.kernels.ingress import ticket_queue  # noqa: E402
from tests.support import rig, steps  # noqa: E402
from tests.support.explorer import find, mutant, replace, search, together  # noqa: E402


class ChannelModel:
    """Producers put `each` records of their own, the first two at a time, and a loop takes meanwhile.

    Checked: what was accepted is delivered, once, in each producer's order, or dropped and counted; a record does not
    change while it is looked at; at the end nothing waits, and the channel is idle.
    """

    def __init__(
        self, on_full: int = layout.ON_FULL_DROP_NEW, producers: int = 2, each: int = 2, closing: bool = False
    ) -> None:
        self.on_full, self.producers, self.each, self.closing = on_full, producers, each, closing
        self.capacity = 4 if on_full == layout.ON_FULL_DROP_NEW else 2  # two producers at once, and yet full

    def __call__(self) -> None:
        accepted: list[list[int]] = [[] for _ in range(self.producers)]
        taken: list[int] = []

        def on_batch(batch: Any) -> None:
            assert steps.load(ring.at + HANDLE.QUEUED) == layout.CHANNEL_BUSY
            first = batch.__array_interface__["data"][0]
            before = [steps.load(first + 8 * i) for i in range(len(batch))]
            assert [steps.load(first + 8 * i) for i in range(len(batch))] == before, "overwritten while it is read"
            assert not {*before} & {*taken}, "delivered twice"  # at once: it might never end
            taken.extend(before)

        def ask(code: int, count: int, _until: int) -> int:
            if code == layout.ASK_CLOSED:
                raise RuntimeError
            if code == layout.ASK_WAKE:
                waiting, gates[:] = gates[:], []  # not those who begin to wait meanwhile: that might never end
                for gate in waiting:
                    gate.set()
            if code == layout.ASK_WAIT:
                gates.append(gate := it.Event())
                channel_methods.fetch_add(ring.at + CHANNEL.SLEEPERS, 1)
                if delivery.records_waiting(ring.at) + count > self.capacity:
                    gate.wait()
                channel_methods.fetch_add(ring.at + CHANNEL.SLEEPERS, -1)
            return 0

        with it.no_interleave():
            memory = rig.Memory()
            ring = rig.Ring(
                memory, capacity=self.capacity, max_batch=2, on_full=self.on_full, on_batch=on_batch, ask=ask
            )
        gates: list[Any] = []
        ended: list[int] = []  # producers
        arrived = it.Event()

        def put(number: int, first: int, count: int) -> None:
            ticket = records.records_claim(ring.at, count)
            if ticket < 0:
                ticket = channel_methods.claim_refused(ring.at, count, ticket, 0)
                if ticket < 0:
                    PyErr_Clear()
                    return
            fill(ring.at, ticket, first, count)
            assert channel_methods.announce(ring.at, ticket + count)
            arrived.set()
            accepted[number].extend(range(first, first + count))

        def produce(number: int) -> None:
            at = 100 * (number + 1)
            done = 0
            if self.each > 1 and number == 0:
                put(number, at, 2)
                done = 2
            for i in range(done, self.each):
                put(number, at + i, 1)
            ended.append(number)
            arrived.set()

        def take() -> None:
            for _ in range(self.producers * self.each):
                ring.turn()
            while self.on_full == layout.ON_FULL_WAIT and len(ended) < self.producers:
                before = len(taken)
                ring.turn()
                if len(taken) == before:  # it sleeps, as a loop does, until the next put; producers may be asleep, too
                    arrived.wait()
                    arrived.clear()

        threads: list[Callable[[], object]] = [lambda n=n: produce(n) for n in range(self.producers)]
        threads.append(take)
        if self.closing:
            threads.append(lambda: ticket_queue.queue_close(ring.at + records.RING))
        together(*threads)
        with it.no_interleave():
            for _ in range(20):
                ring.turn()
            assert ring.waiting() == 0, "records wait, and nobody comes for them"
            assert ring.record["handle"]["queued"] == layout.CHANNEL_IDLE
            assert ring.record["taking"] == 0
            assert ring.record["delivered"] == len(taken)
            dropped = int(ring.record["dropped"])
            puts = sum(len(each) for each in accepted)
            if self.on_full == layout.ON_FULL_DROP_OLD:
                assert len(taken) + dropped == puts, "neither delivered nor dropped"
                assert set(taken) <= {n for each in accepted for n in each}
            else:
                assert sorted(taken) == sorted(n for each in accepted for n in each), "accepted and taken differ"
            for each in accepted:
                mine = [n for n in taken if n in each]
                assert mine == sorted(mine), "out of order"


def fill(channel: int, ticket: int, first: int, count: int) -> None:
    """As `copy_in` does, a word at a time."""
    for i in range(count):
        steps.put(records.records_place(channel, ticket + i), first + i)
    records.records_publish(channel, ticket, count)


def fill_late(channel: int, ticket: int, first: int, count: int) -> None:
    """A `fill` that publishes first."""
    records.records_publish(channel, ticket, count)
    for i in range(count):
        steps.put(records.records_place(channel, ticket + i), first + i)


POLICIES = {
    "drop_new": layout.ON_FULL_DROP_NEW,
    "drop_old": layout.ON_FULL_DROP_OLD,
    "wait": layout.ON_FULL_WAIT,
}


@pytest.mark.parametrize("policy", POLICIES)
def test_puts_and_batches(policy: str) -> None:
    search(ChannelModel(POLICIES[policy]), 25)


def test_three_producers() -> None:
    search(ChannelModel(producers=3, each=1), 15)


@pytest.mark.parametrize("policy", ["drop_new", "drop_old"])
def test_close_against_put(policy: str) -> None:
    search(ChannelModel(POLICIES[policy], each=1, closing=True), 20)


def planted(module: Any, name: str, *edits: tuple[str, str]) -> Callable[[pytest.MonkeyPatch], None]:
    """A plant for `find`: the function with its bug, wherever kernels call it."""
    original = getattr(module, name)
    bug = mutant(original, *edits)
    return lambda patch: replace(patch, original, bug)


@pytest.mark.parametrize(
    ("policy", "plant"),
    [
        ("drop_new", lambda patch: patch.setitem(globals(), "fill", fill_late)),
        (
            "drop_new",
            planted(records, "records_claim", ("> get(queue + QUEUE.LIMIT)", "> get(queue + QUEUE.LIMIT) + 1")),
        ),
        (
            "drop_new",
            planted(
                records,
                "records_claim",
                (
                    "if compare_and_swap(queue + QUEUE.TAIL, ticket, ticket + count):",
                    "if store(queue + QUEUE.TAIL, ticket + count) is None:",
                ),
            ),
        ),
        (
            "drop_new",
            planted(
                delivery,
                "made_busy",
                (
                    "if compare_and_swap(channel + HANDLE.QUEUED, was, CHANNEL_BUSY):",
                    "if store(channel + HANDLE.QUEUED, CHANNEL_BUSY) is None:",
                ),
            ),
        ),
        (
            "drop_old",
            planted(records, "records_take_begins", ("return compare", "return True or compare")),
        ),
        (
            "drop_old",
            planted(records, "records_drop_old", ("min(missing, records_published(channel, missing))", "missing")),
        ),
        ("wait", planted(records, "records_release", ("    store_sc(head, get(head) + count)", "    pass"))),
        (
            "wait",
            planted(
                delivery,
                "deliver",
                ("if load_sc(channel + CHANNEL.SLEEPERS) != 0 and ask", "if sleepers != 0 and ask"),
                (
                    "    result = handed_over(",
                    "    sleepers = load_sc(channel + CHANNEL.SLEEPERS)\n    result = handed_over(",
                ),
            ),
        ),
    ],
    ids=[
        *("publish before fill", "one too many", "claim without swap"),
        *("wake without swap", "taking without a lock", "drops what is not published"),
        *("never released", "looks for sleepers too early"),
    ],
)
def test_broken_channels_are_caught(policy: str, plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    find(ChannelModel(POLICIES[policy], each=3 if policy == "drop_new" else 2), plant)
