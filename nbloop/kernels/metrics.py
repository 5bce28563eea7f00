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

from .atomics import get, load, monotonic_ns, put, store, ticks
from .capi import PyLong_AsLongLong, PyLong_FromLongLong
from .histogram import histogram_add
from .kernel import MANY, apart, data, helper, inlined, kernel
from .layout import (
    DUE,
    EXTERNAL,
    HANDLED,
    IMMEDIATES,
    INTERNAL,
    LIVE_BYTES,
    M_ARRIVED,
    M_BUCKET_END,
    M_BUCKET_TICKS,
    M_BUSY,
    M_CALLBACKS,
    M_CALM,
    M_COPY,
    M_CURRENT,
    M_CYCLES,
    M_DELAY,
    M_EMA,
    M_ERRORS,
    M_GROUP,
    M_IDLE,
    M_LATENCY,
    M_LIVE,
    M_MARK,
    M_MAX,
    M_MICROTASK_SAMPLES,
    M_MULTIPLIER,
    M_NOW,
    M_PACE,
    M_PUBLISHED,
    M_PUBLISHED_AT,
    M_RATE,
    M_RUNNING,
    M_SAMPLES,
    M_SEQUENCE,
    M_STRIDE,
    M_TURNS,
    M_TYPICAL,
    M_WAKES,
    M_WANTED,
    METRICS,
    MICROTASKS,
    Q_HEAD,
    Q_PASSED,
    RATE_SLOTS,
    REMOTE,
    STAMPED,
    STAMPED_EIGHTH,
    TICKS,
    TURNS,
    WAKES_SENT,
)
from .ring import ring_length

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
    if get(block + M_CYCLES) != 0:
        return ticks()
    return monotonic_ns()


@helper
def in_ns(block: int, duration: int) -> int:
    """Ticks as nanoseconds; negative ones are 0, and those over 2**42, which are 14 minutes at 5 GHz, are that many."""
    return (min(max(duration, 0), MOST_TICKS) * get(block + M_MULTIPLIER)) >> MULTIPLIER_BITS


@helper
def stamp(block: int, cell: int, shift: int, ticket: int) -> int:
    """If this ticket's delay is to be measured, write the time beside its cell; the mark for its word. Its owner,
    before the word is stored.
    """
    pace = load(block + M_PACE)
    if ticket & pace != 0:
        return 0
    put(cell + (8 << shift), clock(block))
    return STAMPED_EIGHTH if pace != 0 else STAMPED


@helper
def change(block: int) -> None:
    """Begin or end a change of LIVE. Loop thread."""
    store(block + M_SEQUENCE, get(block + M_SEQUENCE) + 1)


@inlined
def callback_measured(block: int, kind: int) -> None:
    """Say what runs. Loop thread."""
    store(block + M_RUNNING, kind + 1)


@inlined
def callback_shares(block: int, failed: bool) -> bool:
    """Count the callback as one of a group that goes on, if it is. Loop thread."""
    group = get(block + M_GROUP) + 1
    if group >= get(block + M_STRIDE) or failed:
        return False
    store(block + M_GROUP, group)
    return True


@apart
def callback_timed(block: int, failed: bool) -> None:
    """Count the callback as the last of its group, and look at the clock. Loop thread."""
    change(block)
    store(block + M_GROUP, get(block + M_GROUP) + 1)
    group_ends(block, clock(block))
    if failed:
        store(block + M_ERRORS, get(block + M_ERRORS) + 1)
    change(block)
    if load(block + M_WANTED) != 0:
        publish(block)


@helper
def group_ends(block: int, now: int) -> None:
    """Put the callbacks since the last boundary into the figures; `now` is the new boundary. In a change."""
    group = get(block + M_GROUP)
    if now >= get(block + M_BUCKET_END):
        rate_turns(block, now)
    if group > 0:
        took = in_ns(block, now - get(block + M_NOW))
        latency = block + M_LATENCY
        mean = took
        if group == 1:
            histogram_add(latency, took, 1, took)
        elif took < OUTLIER_NS:
            mean = took // group
            histogram_add(latency, mean, group, took)
        else:
            others = (group - 1) * get(block + M_TYPICAL)
            histogram_add(latency, get(block + M_TYPICAL), group - 1, others)
            histogram_add(latency, took - others, 1, took - others)
        if mean >= SHORT_NS:
            store(block + M_STRIDE, 1)
        else:
            store(block + M_TYPICAL, mean)
            store(block + M_STRIDE, min(GROUP_MOST, 2 * get(block + M_STRIDE)))
        store(block + M_CALLBACKS, get(block + M_CALLBACKS) + group)
        store(block + M_GROUP, 0)
    store(block + M_BUSY, get(block + M_BUSY) + max(0, now - get(block + M_MARK)))
    store(block + M_NOW, now)
    store(block + M_MARK, now)


@helper
def rate_turns(block: int, now: int) -> None:
    """Begin a new bucket of the rate: note how many callbacks came before it. In a change."""
    period = get(block + M_BUCKET_TICKS)
    number = now // period
    at = block + M_RATE + ((number & (RATE_SLOTS - 1)) << 4)
    store(at, number)
    store(at + 8, get(block + M_CALLBACKS) - get(block + M_ERRORS))
    store(block + M_BUCKET_END, (number + 1) * period)


@apart
def task_begins(base: int, word: int, stamped: int) -> None:
    """A task whose delay is measured is about to run. Loop thread, metrics on."""
    block = get(base + METRICS)
    change(block)
    if get(block + M_GROUP) != 0:
        group_ends(block, clock(block))
    delay = in_ns(block, get(block + M_NOW) - stamped)
    weight = 8 if word & STAMPED_EIGHTH == STAMPED_EIGHTH else 1
    histogram_add(block + M_DELAY, delay, weight, delay * weight)
    change(block)


@helper
def depth(block: int, which: int, length: int, first: bool) -> None:
    """Take a sample of a queue's length. In a change."""
    at = which << 3
    store(block + M_CURRENT + at, length)
    if length > get(block + M_MAX + at):
        store(block + M_MAX + at, length)
    old = get(block + M_EMA + at)
    new = length << EMA_BITS
    store(block + M_EMA + at, new if first else old + (new - old) // 10)


@helper
def checkpoint_measured(base: int) -> None:
    """A checkpoint has something to do. Loop thread, metrics on."""
    block = get(base + METRICS)
    change(block)
    samples = get(block + M_MICROTASK_SAMPLES)
    depth(block, 2, ring_length(base + TICKS) + ring_length(base + MICROTASKS), samples == 0)
    store(block + M_MICROTASK_SAMPLES, samples + 1)
    change(block)


@helper
def measure_enters(base: int, slept: bool) -> None:
    """`run` or `drain` begins: what went by outside is nobody's time, or, if Python has slept for the loop, idle time.
    Loop thread, metrics on.
    """
    block = get(base + METRICS)
    now = clock(block)
    change(block)
    if slept:
        store(block + M_IDLE, get(block + M_IDLE) + max(0, now - get(block + M_MARK)))
    store(block + M_NOW, now)
    store(block + M_MARK, now)
    change(block)


@helper
def measure_rests(base: int) -> None:
    """A turn has ended; the loop sleeps or leaves. Loop thread, metrics on."""
    block = get(base + METRICS)
    change(block)
    group_ends(block, clock(block))
    totals(base, block)
    store(block + M_RUNNING, 0)
    change(block)
    if load(block + M_WANTED) != 0:
        publish(block)


@helper
def totals(base: int, block: int) -> None:
    """Copy what the loop counts anyway. In a change."""
    store(block + M_TURNS, get(base + TURNS))
    store(block + M_WAKES, load(base + WAKES_SENT))
    store(
        block + M_ARRIVED,
        get(base + EXTERNAL + Q_HEAD)
        - get(base + EXTERNAL + Q_PASSED)
        + get(base + REMOTE + Q_HEAD)
        + get(base + HANDLED),
    )


@helper
def measure_turn(base: int, ingress: int) -> None:
    """The loop is back from its sleep, with `ingress` tasks waiting. Loop thread, metrics on."""
    block = get(base + METRICS)
    now = clock(block)
    change(block)
    store(block + M_IDLE, get(block + M_IDLE) + max(0, now - get(block + M_MARK)))
    store(block + M_NOW, now)
    store(block + M_MARK, now)
    totals(base, block)
    samples = get(block + M_SAMPLES)
    depth(block, 0, ingress, samples == 0)
    depth(block, 1, ring_length(base + INTERNAL), samples == 0)
    depth(block, 3, ring_length(base + IMMEDIATES), samples == 0)
    if get(base + DUE) == 0:
        store(block + M_CURRENT + 16, 0)
    store(block + M_SAMPLES, samples + 1)
    if ingress >= CROWD:
        store(block + M_CALM, CALM)
        if load(block + M_PACE) == 0:
            store(block + M_PACE, 7)
    elif get(block + M_CALM) > 0:
        store(block + M_CALM, get(block + M_CALM) - 1)
        if get(block + M_CALM) == 0:
            store(block + M_PACE, 0)
    change(block)


@helper
def count(base: int, word: int, how_many: int) -> None:
    """Add to a counter of LIVE. Loop thread, metrics on."""
    block = get(base + METRICS)
    change(block)
    store(block + word, get(block + word) + how_many)
    change(block)


@helper
def publish(block: int) -> None:
    """A reader could not get its copy: make it one, unless the last is too young. Loop thread, outside of a change."""
    now = get(block + M_NOW)
    if in_ns(block, now - get(block + M_PUBLISHED_AT)) < PUBLISH_NS:
        return
    put(block + M_PUBLISHED_AT, now)
    store(block + M_WANTED, 0)
    store(block + M_PUBLISHED, get(block + M_PUBLISHED) + 1)
    for at in range(0, LIVE_BYTES, 8):
        store(block + M_COPY + at, get(block + M_LIVE + at))
    store(block + M_PUBLISHED, get(block + M_PUBLISHED) + 1)


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
    sequence = load(block + M_SEQUENCE)
    if sequence & 1 == 0:
        copywords_of(block + M_LIVE, target)
        if load(block + M_SEQUENCE) == sequence:
            return 1
    sequence = load(block + M_PUBLISHED)
    if sequence & 1 == 0 and sequence > after:
        copywords_of(block + M_COPY, target)
        if load(block + M_PUBLISHED) == sequence:
            return 1
    if load(block + M_WANTED) == 0:
        store(block + M_WANTED, 1)
    return 0


@kernel(MANY)
def metrics_published(self: int, _arguments: int, _count: int) -> int:
    """The sequence that a PUBLISHED begun from now on exceeds; `self` is a block."""
    return PyLong_FromLongLong((load(data(self) + M_PUBLISHED) + 1) & ~1)


@kernel(MANY)
def metrics_read(self: int, arguments: int, _count: int) -> int:
    """`read_block` of the block `self` into an array, the first argument, after a number, the second."""
    after = PyLong_AsLongLong(get(arguments + 8))
    return PyLong_FromLongLong(read_block(data(self), data(get(arguments)), after))


@kernel(MANY)
def metrics_clock(self: int, _arguments: int, _count: int) -> int:
    """The cycle counter, for its calibration."""
    return PyLong_FromLongLong(ticks())
