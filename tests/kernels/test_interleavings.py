"""The protocols of stack, ingress and close under controlled schedules; each model also shows that it would notice a
bug.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

from nbloop.kernels.base import layout  # noqa: E402
from nbloop.kernels.base.atomics import get, put  # noqa: E402
from nbloop.kernels.base.capi import Py_DecRef, Py_IncRef  # noqa: E402
from nbloop.kernels.base.layout import POINTER_MASK, REFUSED_CLOSED  # noqa: E402
from nbloop.kernels.ingress import ticket_queue  # noqa: E402
from nbloop.kernels.memory import stack  # noqa: E402
from nbloop.kernels.promises import settling  # noqa: E402
from nbloop.kernels.promises.classes import Eventual, make_view  # noqa: E402
from tests.support import rig  # noqa: E402
from tests.support.explorer import find, mutant, replace, search, together  # noqa: E402

CHUNK = 16


def test_no_collection_amid_a_schedule() -> None:
    """It would run the end of an earlier model's memory as steps of this one."""

    def model() -> None:
        assert not gc.isenabled()
        together(lambda: None)

    search(model, 1)
    assert gc.isenabled()


# --- stack.py -------------------------------------------------------------------------------------


def stack_model() -> None:
    """Two threads pop and push back in different orders: an index has one owner, and none is lost."""
    with it.no_interleave():
        words = rig.np.zeros(5, rig.np.int64)  # the head, its count of retries, the links
        head, links = words.ctypes.data, words.ctypes.data + 16
        for index in range(3):
            stack.stack_push(head, links, index, index)
    owned: set[int] = set()

    def pop() -> int:
        index = stack.stack_pop(head, links)
        assert index not in owned, "an index with two owners"
        if index >= 0:
            owned.add(index)
        return index

    def push(index: int) -> None:
        if index >= 0:
            owned.remove(index)
            stack.stack_push(head, links, index, index)

    def one() -> None:
        push(pop())
        pop()

    def other() -> None:
        first = pop()
        pop()
        push(first)

    together(one, other)
    with it.no_interleave():
        assert sorted([*owned, *rig.stacked(head, links)]) == [0, 1, 2]


def test_stack() -> None:
    search(stack_model, 150)


def test_stack_without_its_counter_is_caught() -> None:
    """ABA: a head read before a pop matches after it."""
    bug = mutant(stack.stack_pop, ("((old + COUNTER_STEP) & COUNTER_MASK) | below", "below"))
    find(stack_model, lambda patch: replace(patch, stack.stack_pop, bug))


# --- ticket_queue.py -----------------------------------------------------------------------------------


class QueueModel:
    """Producers push `each` words of their own, a consumer takes meanwhile; the segment ends among the first tickets.

    With a `batch`, another thread publishes a batch of that size, filled before.

    Checked: accepted = taken, each producer's words in order, the batch's with nothing between them; all fillers are
    passed; head <= tail; all chunks are back in the pool and zero.
    """

    def __init__(self, producers: int = 2, each: int = 2, closing: bool = False, batch: int = 0) -> None:
        self.producers, self.each, self.closing, self.batch = producers, each, closing, batch

    def __call__(self) -> None:
        with it.no_interleave():
            memory = rig.Memory(chunk_size=CHUNK)
            queue = memory.external
            put(queue + layout.QUEUE.TAIL, CHUNK - 2)
            put(queue + layout.QUEUE.HEAD, CHUNK - 2)
            many = [16 * (n + 1000) for n in range(self.batch)]
            first = rig.chain(memory, many) if many else -1
        accepted: list[list[int]] = [[] for _ in range(self.producers)]
        taken: list[int] = []

        def produce(number: int) -> None:
            for i in range(self.each):
                word = 100 * (number + 1) + i
                status = ticket_queue.queue_push(queue, word)
                if status != 0:
                    assert self.closing
                    assert status == REFUSED_CLOSED
                    return
                accepted[number].append(word)

        def publish() -> None:
            if ticket_queue.queue_publish(queue, first, len(many)) == 0:
                accepted.append(many)
            else:
                assert self.closing
                with it.no_interleave():
                    rig.give_back(memory, first)

        def consume() -> None:
            for _ in range(self.producers * self.each + self.batch + 1):
                if word := ticket_queue.queue_take(queue):
                    taken.append(word)  # noqa: PERF401 - not all at once: others run between

        threads: list[Callable[[], object]] = [lambda n=n: produce(n) for n in range(self.producers)]
        threads.append(consume)
        if many:
            threads.append(publish)
        if self.closing:
            threads.append(lambda: ticket_queue.queue_close(queue))
        together(*threads)
        with it.no_interleave():
            while word := ticket_queue.queue_take(queue):
                taken.append(word)
            assert sorted(taken) == sorted(chain(*accepted)), "accepted and taken differ"
            for words in accepted:
                assert [word for word in taken if word in words] == words, "out of order"
            if many and many in accepted:
                at = taken.index(many[0])
                assert taken[at : at + len(many)] == many, "something between them"
            assert get(queue + layout.QUEUE.FILLED) == get(queue + layout.QUEUE.PASSED)
            assert ticket_queue.queue_length(queue) == 0
            ticket_queue.queue_close(queue)
            ticket_queue.queue_return_chunk(queue)
            assert len(rig.stacked(memory.pool + layout.POOL.FREE, int(memory.record["pool"]["next"]))) == 64
            assert not rig.table(int(rig.table(int(memory.record["pool"]["slabs"]), 1)[0]), 64 * CHUNK).any()


def test_ingress() -> None:
    search(QueueModel(), 70)


def test_ingress_three_producers() -> None:
    search(QueueModel(producers=3), 20)


@pytest.mark.parametrize("batch", [1, CHUNK, CHUNK + 1])
def test_large_batch(batch: int) -> None:
    search(QueueModel(producers=1, batch=batch), 25)


def test_large_batch_against_close() -> None:
    search(QueueModel(producers=1, each=1, batch=3, closing=True), 25)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if compare_and_swap(queue + QUEUE.TAIL, ticket, end):", "if store(queue + QUEUE.TAIL, end) is None:"),
        ("store(queue_cell(chunk, ticket, shift), FILLER)", "pass"),
        ("end - ticket - count)", "end - start - count)"),
        ("    if spare >= 0:\n        pool_give(pool, spare)\n", ""),
        ("and compare_and_swap(at, entry, spare + 1):", "and store(at, spare + 1) is None:"),
    ],
    ids=["tail without swap", "no filler", "fillers not counted", "lost spare", "install without swap"],
)
def test_broken_large_batch_is_caught(old: str, new: str) -> None:
    bug = mutant(ticket_queue.queue_publish, (old, new))
    find(QueueModel(producers=2, each=1, batch=2), lambda patch: replace(patch, ticket_queue.queue_publish, bug))


def publish_before_ticket(queue: int, word: int) -> int:
    """A `queue_push` that reads the tail, stores, and only then draws."""
    ticket = ticket_queue.load(queue + layout.QUEUE.TAIL)
    chunk = ticket_queue.queue_segment(queue, ticket)
    ticket_queue.store(ticket_queue.queue_cell(chunk, ticket, 4), word)
    ticket_queue.fetch_add(queue + layout.QUEUE.TAIL, 1)
    return 0


@pytest.mark.parametrize(
    ("original", "bug"),
    [
        (ticket_queue.queue_push, publish_before_ticket),
        # two producers install a chunk each, and one of them is forgotten with what it holds
        (
            ticket_queue.queue_install,
            mutant(ticket_queue.queue_install, ("compare_and_swap(at, entry, new)", "store(at, new) is None")),
        ),
        # the losing chunk is not given back
        (ticket_queue.queue_install, mutant(ticket_queue.queue_install, ("pool_give(pool, chunk)", "pass"))),
        # the chunk is given back one cell too early
        (ticket_queue.queue_advance, mutant(ticket_queue.queue_advance, ("if (head + 1) &", "if (head + 2) &"))),
        # a cell is taken and not cleared
        (
            ticket_queue.queue_advance,
            mutant(ticket_queue.queue_advance, ("put(queue_cell(get(queue + QUEUE.CHUNK), head, shift), 0)", "pass")),
        ),
    ],
    ids=["publish before ticket", "install without swap", "lost chunk", "early retirement", "dirty cell"],
)
def test_broken_ingress_is_caught(original: Callable[..., Any], bug: Callable[..., Any]) -> None:
    find(QueueModel(), lambda patch: replace(patch, original, bug))


def test_close_against_push() -> None:
    """*Refused* and *accepted* have one order: a ticket drawn before the close is owed, one drawn after it never
    was.
    """
    search(QueueModel(closing=True), 60)


def closes_in_two_steps(queue: int) -> None:
    """A `queue_close` that reads the tail, and sets the sign bit a moment later."""
    tail = ticket_queue.load(queue + layout.QUEUE.TAIL)
    ticket_queue.store(queue + layout.QUEUE.FINAL, tail)
    ticket_queue.fetch_add(queue + layout.QUEUE.TAIL, layout.MINUS)


def looks_at_the_sign_first(queue: int, count: int) -> int:
    """A `queue_draw` that checks whether the queue is open, and then draws even if that has changed."""
    if ticket_queue.load(queue + layout.QUEUE.TAIL) < 0:
        return -REFUSED_CLOSED
    return ticket_queue.fetch_add(queue + layout.QUEUE.TAIL, count) & ~layout.MINUS


@pytest.mark.parametrize(
    ("original", "bug"),
    [(ticket_queue.queue_close, closes_in_two_steps), (ticket_queue.queue_draw, looks_at_the_sign_first)],
    ids=["close in two steps", "draw after a look"],
)
def test_broken_close_is_caught(original: Callable[..., Any], bug: Callable[..., Any]) -> None:
    find(QueueModel(closing=True), lambda patch: replace(patch, original, bug))


# --- settling.py ---------------------------------------------------------------------------------


def reactions_model() -> None:
    """One thread settles what two others add reactions to: each is queued once, and those of one thread in order."""
    with it.no_interleave():
        memory = rig.Memory(chunk_size=CHUNK)
        view = make_view(memory.words, None, Eventual, {}, ("a", "b"))
        base = view.ctypes.data
        promise = Eventual()
        promise._view = view
        mine = [[Eventual() for _ in range(2)] for _ in range(2)]
        name = {id(reaction): (who, n) for who, added in enumerate(mine) for n, reaction in enumerate(added)}
        # A planted bug loses count of references, and the collector would follow what it leaves behind: none of these
        # is ever freed, and in the end they refer to nothing.
        words = [id(one) for one in (promise, *mine[0], *mine[1])]
        for one in words * 8:
            Py_IncRef(one)
    try:
        settle_and_add(memory, base, promise, mine, name)
    finally:
        for one in words:
            put(one + settling.EVENTUAL.LINK, 0)
            put(one + settling.EVENTUAL.REACTIONS, 0)


def settle_and_add(
    memory: rig.Memory, base: int, promise: Eventual, mine: list[list[Eventual]], name: dict[int, tuple[int, int]]
) -> None:
    def add(who: int) -> None:
        for reaction in mine[who]:
            Py_IncRef(id(reaction))
            settling.attach(base, id(promise), id(reaction))

    def settle() -> None:
        settling.settle(base, id(promise), id(True), id(None))

    together(lambda: add(0), settle, lambda: add(1))
    with it.no_interleave():
        queued = []
        while word := ticket_queue.queue_take(memory.remote):
            reaction = word & POINTER_MASK
            assert word & layout.TAG_REACTION
            queued.append(name[reaction])
            Py_DecRef(reaction)
        assert len(queued) == len(set(queued)), "a reaction was queued twice"
        assert len(queued) == len(name), "a reaction is lost"
        for who in range(2):
            assert [n for owner, n in queued if owner == who] == [0, 1], "out of order"
        assert promise._reactions is None
        assert all(reaction._link is True for added in mine for reaction in added)


def test_reactions() -> None:
    search(reactions_model, 60)


def test_a_settler_that_does_not_go_round_again_is_caught() -> None:
    """What was added while it queued is never queued."""
    bug = mutant(
        settling.settle,
        (
            "if compare_and_swap(eventual + EVENTUAL.REACTIONS, busy, drained):",
            "if exchange(eventual + EVENTUAL.REACTIONS, drained):",
        ),
    )
    find(reactions_model, lambda patch: replace(patch, settling.settle, bug))


def test_a_reaction_that_looks_at_the_outcome_is_caught() -> None:
    """It overtakes what the settler has still to queue."""
    bug = mutant(settling.attach, ("head == get(view + VIEW.DRAINED)", "load(eventual + EVENTUAL.OUTCOME) != 0"))
    find(reactions_model, lambda patch: replace(patch, settling.attach, bug))


def test_a_push_that_does_not_compare_is_caught() -> None:
    """Of two that add at once one is lost."""
    bug = mutant(
        settling.attach,
        (
            "if compare_and_swap(eventual + EVENTUAL.REACTIONS, head, reaction):",
            "if exchange(eventual + EVENTUAL.REACTIONS, reaction) >= 0:",
        ),
    )
    find(reactions_model, lambda patch: replace(patch, settling.attach, bug))
