"""What a loop measures of itself, in words that any thread, or another process, reads without stopping it.

Problem: a task costs 80 ns from submit to done, and looking at the cheapest clock 17 ns (`rdtsc`; a clock call is 50),
so timing each callback and each delay by itself would cost half of what it measures. Idea: pay in proportion.

* *Latency.* The end of one callback is the start of the next: one look at the clock between the two. Callbacks of
  250 ns or more are timed each; while they are shorter, two, four, then `GROUP_MOST` share a look and count as their
  mean. Sum, mean and count stay exact. A group that took over `OUTLIER_NS` holds at least one slow callback: it
  counts as one such and others as short as those before, so that `max` is never too low, and the next are timed each.
* *Delay.* A producer writes the time beside its cell, and marks the word, so the loop looks for a stamp only where
  there is one. While `CROWD` or more wait, tickets divisible by 8 are stamped and each counts as 8; which of the two
  it was is in the mark. A group ends where a stamped task begins: they share one look at the clock.

Reading is a seqlock: `sequence` is odd while the loop's thread changes LIVE, which it does between callbacks only, so
a reader gets its copy while a callback runs, however long it hangs. Against a loop that runs callbacks faster than
LIVE can be copied (some 3 µs) the reader sets `wanted`, and the loop copies LIVE into PUBLISHED itself, at most once
in `PUBLISH_NS`, under a sequence of its own. Nobody ever waits for a reader; one that dies costs one copy.

Invariants: only the loop's thread writes LIVE and PUBLISHED, each word by a release store between two changes of its
sequence; so who has read the same even number before and after (by acquire loads) has words of one moment. Between
two callbacks all of LIVE is of one moment but `group`, which counts callbacks that are not in the histogram yet.

It loses on short callbacks mixed with slow ones: two slow ones in one group of eight count as one of their sum.
"""

from __future__ import annotations

from ..base.atomics import fetch_add, get, load, monotonic_ns, put, store, ticks
from ..base.capi import PyLong_AsLongLong, PyLong_FromLongLong
from ..base.kernel import MANY, apart, data, helper, inlined, kernel
from ..base.layout import (
    BLOCK,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_NEXT_TICK,
    LIVE,
    LIVE_BYTES,
    QUEUE,
    RATE_SLOTS,
    STAMPED,
    STAMPED_EIGHTH,
    STATE,
)
from ..memory.ring import ring_length
from .histogram import histogram_add

GROUP_MOST = 8  # short callbacks that share one look at the clock
SHORT_NS = 250  # a look is under 7 % of this
OUTLIER_NS = 8_000  # four times what eight short ones take at most
CROWD = 64  # tasks that wait: from here on each eighth is stamped
CALM = 16  # turns with fewer, after which each is again
PUBLISH_NS = 100_000
MULTIPLIER_BITS = 20  # ns = ticks * multiplier >> 20
MOST_TICKS = 1 << 42  # times any multiplier is less than 2**63
MOST_MULTIPLIER = 1 << 21
BUCKET_NS = 100_000_000  # of the rate: 100 ms
WINDOW = 100  # buckets: 10 s
EMA_BITS = 20


@helper
def clock(block: int) -> int:
    """Now, in the ticks of this block. Any thread."""
    if get(block + BLOCK.CYCLES) != 0:
        return ticks()
    return monotonic_ns()


@helper
def in_ns(block: int, duration: int) -> int:
    """Ticks as nanoseconds; negative ones are 0, and those over 2**42, which are 14 minutes at 5 GHz, are that many."""
    return (min(max(duration, 0), MOST_TICKS) * get(block + BLOCK.MULTIPLIER)) >> MULTIPLIER_BITS


@helper
def stamp(block: int, cell: int, shift: int, ticket: int) -> int:
    """If this ticket's delay is to be measured, write the time beside its cell; the mark for its word. Its owner,
    before the word is stored.
    """
    pace = load(block + BLOCK.PACE)
    if ticket & pace != 0:
        return 0
    put(cell + (8 << shift), clock(block))
    return STAMPED_EIGHTH if pace != 0 else STAMPED


@helper
def change(block: int) -> None:
    """Begin or end a change of LIVE. Loop thread."""
    store(block + BLOCK.SEQUENCE, get(block + BLOCK.SEQUENCE) + 1)


@inlined
def callback_measured(block: int, kind: int) -> None:
    """Say what runs. Loop thread."""
    store(block + LIVE.RUNNING, kind + 1)


@inlined
def callback_shares(block: int, failed: bool) -> bool:
    """Count the callback as one of a group that goes on, if it is. Loop thread."""
    group = get(block + LIVE.GROUP) + 1
    if group >= get(block + LIVE.STRIDE) or failed:
        return False
    store(block + LIVE.GROUP, group)
    return True


@apart
def callback_timed(block: int, failed: bool) -> None:
    """Count the callback as the last of its group, and look at the clock. Loop thread."""
    change(block)
    store(block + LIVE.GROUP, get(block + LIVE.GROUP) + 1)
    group_ends(block, clock(block))
    if failed:
        store(block + LIVE.ERRORS, get(block + LIVE.ERRORS) + 1)
    change(block)
    if load(block + BLOCK.WANTED) != 0:
        publish(block)


@helper
def group_ends(block: int, now: int) -> None:
    """Put the callbacks since the last boundary into the figures; `now` is the new boundary. In a change."""
    group = get(block + LIVE.GROUP)
    if now >= get(block + LIVE.BUCKET_END):
        rate_turns(block, now)
    if group > 0:
        took = in_ns(block, now - get(block + LIVE.NOW))
        latency = block + LIVE.LATENCY
        mean = took
        if group == 1:
            histogram_add(latency, took, 1, took)
        elif took < OUTLIER_NS:
            mean = took // group
            histogram_add(latency, mean, group, took)
        else:
            others = (group - 1) * get(block + LIVE.TYPICAL)
            histogram_add(latency, get(block + LIVE.TYPICAL), group - 1, others)
            histogram_add(latency, took - others, 1, took - others)
        if mean >= SHORT_NS:
            store(block + LIVE.STRIDE, 1)
        else:
            store(block + LIVE.TYPICAL, mean)
            store(block + LIVE.STRIDE, min(GROUP_MOST, 2 * get(block + LIVE.STRIDE)))
        store(block + LIVE.CALLBACKS, get(block + LIVE.CALLBACKS) + group)
        store(block + LIVE.GROUP, 0)
    store(block + LIVE.BUSY, get(block + LIVE.BUSY) + max(0, now - get(block + LIVE.MARK)))
    store(block + LIVE.NOW, now)
    store(block + LIVE.MARK, now)


@helper
def rate_turns(block: int, now: int) -> None:
    """Begin a new bucket of the rate: note how many callbacks came before it. In a change."""
    period = get(block + BLOCK.BUCKET_TICKS)
    number = now // period
    at = block + LIVE.RATE + ((number & (RATE_SLOTS - 1)) << 4)
    store(at, number)
    store(at + 8, get(block + LIVE.CALLBACKS) - get(block + LIVE.ERRORS))
    store(block + LIVE.BUCKET_END, (number + 1) * period)


@apart
def task_begins(base: int, word: int, stamped: int) -> None:
    """A task whose delay is measured is about to run. Loop thread, metrics on."""
    block = get(base + STATE.METRICS)
    change(block)
    if get(block + LIVE.GROUP) != 0:
        group_ends(block, clock(block))
    delay = in_ns(block, get(block + LIVE.NOW) - stamped)
    weight = 8 if word & STAMPED_EIGHTH == STAMPED_EIGHTH else 1
    histogram_add(block + LIVE.DELAY, delay, weight, delay * weight)
    change(block)


@helper
def depth(block: int, which: int, length: int, first: bool) -> None:
    """Take a sample of a queue's length. In a change."""
    at = which << 3
    store(block + LIVE.CURRENT + at, length)
    if length > get(block + LIVE.MAX + at):
        store(block + LIVE.MAX + at, length)
    old = get(block + LIVE.EMA + at)
    new = length << EMA_BITS
    store(block + LIVE.EMA + at, new if first else old + (new - old) // 10)


@helper
def checkpoint_measured(base: int) -> None:
    """A checkpoint has something to do. Loop thread, metrics on."""
    block = get(base + STATE.METRICS)
    change(block)
    samples = get(block + LIVE.MICROTASK_SAMPLES)
    depth(block, 2, ring_length(base + STATE.NEXT_TICKS) + ring_length(base + STATE.MICROTASKS), samples == 0)
    store(block + LIVE.MICROTASK_SAMPLES, samples + 1)
    change(block)


@helper
def measure_enters(base: int, slept: bool) -> None:
    """`run` or `drain` begins: what went by outside is nobody's time, or, if Python has slept for the loop, idle time.
    Loop thread, metrics on.
    """
    block = get(base + STATE.METRICS)
    now = clock(block)
    change(block)
    if slept:
        store(block + LIVE.IDLE, get(block + LIVE.IDLE) + max(0, now - get(block + LIVE.MARK)))
    store(block + LIVE.NOW, now)
    store(block + LIVE.MARK, now)
    change(block)


@helper
def measure_rests(base: int, ingress: int) -> None:
    """A turn has ended; the loop sleeps or leaves, with `ingress` tasks waiting. Loop thread, metrics on."""
    block = get(base + STATE.METRICS)
    change(block)
    store(block + LIVE.CURRENT, ingress)
    store(block + LIVE.CURRENT + 8, ring_length(base + STATE.INTERNAL))
    store(block + LIVE.CURRENT + 16, ring_length(base + STATE.NEXT_TICKS) + ring_length(base + STATE.MICROTASKS))
    store(block + LIVE.CURRENT + 24, ring_length(base + STATE.IMMEDIATES))
    group_ends(block, clock(block))
    totals(base, block)
    store(block + LIVE.RUNNING, 0)
    change(block)
    if load(block + BLOCK.WANTED) != 0:
        publish(block)


@helper
def totals(base: int, block: int) -> None:
    """Copy what the loop counts anyway. In a change."""
    store(block + LIVE.TURNS, get(base + STATE.TURNS))
    store(block + LIVE.WAKES_SENT, load(base + STATE.WAKES_SENT))
    store(
        block + LIVE.ARRIVED,
        get(base + STATE.EXTERNAL + QUEUE.HEAD)
        - get(base + STATE.EXTERNAL + QUEUE.PASSED)
        + get(base + STATE.REMOTE + QUEUE.HEAD)
        + get(base + STATE.HANDLED),
    )


@helper
def measure_turn(base: int, ingress: int) -> None:
    """The loop is back from its sleep, with `ingress` tasks waiting. Loop thread, metrics on."""
    block = get(base + STATE.METRICS)
    now = clock(block)
    change(block)
    store(block + LIVE.IDLE, get(block + LIVE.IDLE) + max(0, now - get(block + LIVE.MARK)))
    store(block + LIVE.NOW, now)
    store(block + LIVE.MARK, now)
    totals(base, block)
    samples = get(block + LIVE.SAMPLES)
    depth(block, 0, ingress, samples == 0)
    depth(block, 1, ring_length(base + STATE.INTERNAL), samples == 0)
    depth(block, 3, ring_length(base + STATE.IMMEDIATES), samples == 0)
    if get(base + STATE.DUE) == 0:
        store(block + LIVE.CURRENT + 16, 0)
    store(block + LIVE.SAMPLES, samples + 1)
    if ingress >= CROWD:
        store(block + LIVE.CALM, CALM)
        if load(block + BLOCK.PACE) == 0:
            store(block + BLOCK.PACE, 7)
    elif get(block + LIVE.CALM) > 0:
        store(block + LIVE.CALM, get(block + LIVE.CALM) - 1)
        if get(block + LIVE.CALM) == 0:
            store(block + BLOCK.PACE, 0)
    change(block)


@helper
def count(base: int, word: int, how_many: int) -> None:
    """Add to a counter of LIVE. Loop thread, metrics on."""
    block = get(base + STATE.METRICS)
    change(block)
    store(block + word, get(block + word) + how_many)
    change(block)


@apart
def remote_counted(base: int, kind: int, change: int) -> None:
    """Add to the count of what is on its way from another thread to a ring. Metrics on. Any thread; after it was
    stored, or moved, so a reader may see -1.
    """
    if kind == KIND_MICROTASK or kind == KIND_NEXT_TICK:
        fetch_add(base + STATE.REMOTE_MICROTASKS, change)
    elif kind == KIND_INTERNAL:
        fetch_add(base + STATE.REMOTE_INTERNALS, change)
    elif kind == KIND_IMMEDIATE:
        fetch_add(base + STATE.REMOTE_IMMEDIATES, change)


@helper
def publish(block: int) -> None:
    """A reader could not get its copy: make it one, unless the last is too young. Loop thread, outside of a change."""
    now = get(block + LIVE.NOW)
    if in_ns(block, now - get(block + BLOCK.PUBLISHED_AT)) < PUBLISH_NS:
        return
    put(block + BLOCK.PUBLISHED_AT, now)
    store(block + BLOCK.WANTED, 0)
    store(block + BLOCK.PUBLISHED, get(block + BLOCK.PUBLISHED) + 1)
    for at in range(0, LIVE_BYTES, 8):
        store(block + BLOCK.COPY + at, get(block + BLOCK.LIVE + at))
    store(block + BLOCK.PUBLISHED, get(block + BLOCK.PUBLISHED) + 1)


@helper
def copywords_of(source: int, target: int) -> None:
    """LIVE, word by word, each by an acquire load: what is loaded next is not older."""
    for at in range(0, LIVE_BYTES, 8):
        put(target + at, load(source + at))


@helper
def read_block(block: int, target: int, after: int) -> int:
    """Copy LIVE, or a PUBLISHED that was begun when its sequence was `after` or more, if it can be had now.

    Any thread. 1 if the copy at `target` is of one moment, else 0, and then the loop has been asked for one.
    """
    sequence = load(block + BLOCK.SEQUENCE)
    if sequence & 1 == 0:
        copywords_of(block + BLOCK.LIVE, target)
        if load(block + BLOCK.SEQUENCE) == sequence:
            return 1
    sequence = load(block + BLOCK.PUBLISHED)
    if sequence & 1 == 0 and sequence > after:
        copywords_of(block + BLOCK.COPY, target)
        if load(block + BLOCK.PUBLISHED) == sequence:
            return 1
    if load(block + BLOCK.WANTED) == 0:
        store(block + BLOCK.WANTED, 1)
    return 0


@kernel(MANY)
def metrics_published(self: int, _arguments: int, _count: int) -> int:
    """The sequence that a PUBLISHED begun from now on exceeds; `self` is a block."""
    return PyLong_FromLongLong((load(data(self) + BLOCK.PUBLISHED) + 1) & ~1)


@kernel(MANY)
def metrics_read(self: int, arguments: int, _count: int) -> int:
    """`read_block` of the block `self` into an array, the first argument, after a number, the second."""
    after = PyLong_AsLongLong(get(arguments + 8))
    return PyLong_FromLongLong(read_block(data(self), data(get(arguments)), after))


@kernel(MANY)
def metrics_clock(self: int, _arguments: int, _count: int) -> int:
    """The cycle counter, for its calibration."""
    return PyLong_FromLongLong(ticks())
