"""The ring of a channel: claim, fill, publish; take a batch, release it.

Problem: at a million records a second, of a few numbers each, a callback for each record costs too much. Idea:
producers write the numbers themselves into a ring of records, and the loop's thread gets an array that lies in it. A
producer claims consecutive places with one swap of the tail: they are its *tickets*. It fills the places, and publishes
them with one store, however many there are. (Places with a sequence word beside each: the Disruptor of LMAX, and
Vyukov's bounded queue.)

* The sequence word of the *first* ticket says how many were published with it: ``(lap + 1) << shift | count - 1``,
  where `lap` is how often the ring has come round. 2**shift places need `shift` bits for a count, so nothing overflows.
  A word of another lap means that nothing is published there yet, so no word is ever cleared.
* A swap and not an addition, because the ring is bounded: a ticket cannot be given back, so it is drawn only if its
  place is free. The head only grows, so reading it before the swap never promises too much room.
* The tail's sign bit means closed, as in `ticket_queue.py`, whose functions close a channel and tell its length.
* The thread that takes records owns the front: the head, and how far publications are known. This is the loop's
  thread. With ON_FULL_DROP_OLD a producer that finds the ring full may also take, in order to drop. There the word
  `taking` is a lock; the loop's thread holds it only while it copies its batch out of the ring.

Invariants: head <= published <= tail <= head + 2**shift; places of [head, published) are whole, and nobody writes
them; each place of [published, tail) has one producer that writes it.

It loses when a producer is descheduled between claim and publication: the loop cannot get past it (`stalls` counts
that). And two producers share the tail's line, and make each other's swaps fail; `producer()` gives one a ring of its
own.
"""

from __future__ import annotations

from ..base.atomics import compare_and_swap, fetch_add, get, load, put, store, store_sc
from ..base.kernel import apart, helper, inlined
from ..base.layout import CHANNEL, HANDLE, QUEUE, REFUSED_CLOSED, REFUSED_FULL

RING = HANDLE.QUEUE


@inlined
def records_claim(channel: int, count: int) -> int:
    """Draw `count` consecutive tickets whose places are free. The first, or -REFUSED_x. Any thread."""
    queue = channel + RING
    while True:
        ticket = load(queue + QUEUE.TAIL)
        if ticket < 0:
            return -REFUSED_CLOSED
        if ticket + count - load(queue + QUEUE.HEAD) > get(queue + QUEUE.LIMIT):
            return -REFUSED_FULL
        if compare_and_swap(queue + QUEUE.TAIL, ticket, ticket + count):
            return ticket
        fetch_add(queue + QUEUE.RETRIES, 1)


@inlined
def records_place(channel: int, ticket: int) -> int:
    """Address of a ticket's record."""
    at = ticket & (get(channel + RING + QUEUE.LIMIT) - 1)
    return get(channel + CHANNEL.RECORDS) + at * get(channel + CHANNEL.RECORD_BYTES)


@inlined
def records_sequence(channel: int, ticket: int) -> int:
    """Address of a ticket's sequence word."""
    return get(channel + CHANNEL.SEQUENCES) + ((ticket & (get(channel + RING + QUEUE.LIMIT) - 1)) << 3)


@inlined
def records_publish(channel: int, ticket: int, count: int) -> None:
    """Let the consumer have the records of `count` tickets from this one on, which their producer has filled."""
    shift = get(channel + RING + QUEUE.SHIFT)
    store(records_sequence(channel, ticket), ((ticket >> shift) + 1) << shift | count - 1)


@inlined
def records_published(channel: int, most: int) -> int:
    """How many records from the head on are published; it stops looking once there are `most`. The taker only."""
    queue = channel + RING
    shift = get(queue + QUEUE.SHIFT)
    head = get(queue + QUEUE.HEAD)
    ticket = get(channel + CHANNEL.PUBLISHED)
    while ticket - head < most:
        word = load(records_sequence(channel, ticket))
        if word >> shift != (ticket >> shift) + 1:
            break
        ticket += (word & ((1 << shift) - 1)) + 1
    put(channel + CHANNEL.PUBLISHED, ticket)
    return ticket - head


@inlined
def records_release(channel: int, count: int) -> None:
    """Free the places of the oldest `count` records, which are published. The taker only, and before it reads the word
    `sleepers`, because a producer that waits counts itself there and then reads the head.
    """
    head = channel + RING + QUEUE.HEAD
    store_sc(head, get(head) + count)


@helper
def records_take_begins(channel: int) -> bool:
    """Become the taker of a channel that drops its oldest records. False: another thread is. Any thread."""
    return compare_and_swap(channel + CHANNEL.TAKING, 0, 1)


@helper
def records_take_ends(channel: int) -> None:
    """Let others take."""
    store(channel + CHANNEL.TAKING, 0)


@apart
def records_drop_old(channel: int, count: int) -> bool:
    """Drop the oldest records, so that there is room for `count`, unless another thread is taking. Returns whether to
    retry the claim at once: False if the oldest record is not published yet, or another thread is taking. Any thread.
    """
    if not records_take_begins(channel):
        return False
    queue = channel + RING
    tail = load(queue + QUEUE.TAIL)
    missing = tail + count - get(queue + QUEUE.HEAD) - get(queue + QUEUE.LIMIT)
    dropped = 0
    if tail >= 0 and missing > 0:
        dropped = min(missing, records_published(channel, missing))
        fetch_add(channel + CHANNEL.DROPPED, dropped)
        records_release(channel, dropped)
    records_take_ends(channel)
    return dropped >= missing or tail < 0
