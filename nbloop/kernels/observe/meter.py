"""A loop's figures, in words that any thread, or another process, can read without stopping the loop.

Problem: a task costs 80 ns from submit to done, and reading the cheapest clock 17 ns (`rdtsc`; a clock call takes 50),
so timing each callback and each delay separately would cost half of what it measures. Idea: pay in proportion.

* *Latency.* The end of one callback is the start of the next: one reading of the clock serves both. Callbacks of 250 ns
  or more are timed individually; while they are shorter, two, four, then `GROUP_MOST` share a reading and count with
  their mean. Sum, mean and count stay exact. A group that took over `OUTLIER_NS` contains at least one slow callback,
  so it counts as one slow callback and others as short as those before: `max` is never too low. The callbacks after it
  are timed individually.
* *Delay.* A producer writes the time beside its cell and marks the word, so the loop reads a stamp only where there is
  one. While `CROWD` or more tasks wait, tickets divisible by 8 are stamped and each counts as 8; the mark says which of
  the two applies. A group ends where a stamped task begins: they share one reading of the clock.

Reading is a seqlock: `sequence` is odd while the loop's thread changes LIVE, which it does only between callbacks, so a
reader gets its copy while a callback runs, however long that hangs. If a loop runs callbacks faster than LIVE can be
copied (some 3 µs), the reader sets `wanted`, and the loop itself copies LIVE into PUBLISHED, at most once in
`PUBLISH_NS`, under a separate sequence. Nothing ever waits for a reader; one that dies costs one copy.

Invariants: only the loop's thread writes LIVE and PUBLISHED, each word by a release store between two changes of its
sequence, so a reader that saw the same even number before and after (by acquire loads) has words of one moment. Between
two callbacks all of LIVE belongs to one moment, except `group`, which counts callbacks not yet in the histogram.

It loses on short callbacks mixed with slow ones: two slow ones in one group of eight count as one with their sum.
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

GROUP_MOST = 8  # short callbacks that share one reading of the clock
SHORT_NS = 250  # a reading takes under 7 % of this
OUTLIER_NS = 8_000  # four times the most that eight short callbacks take
CROWD = 64  # waiting tasks from which on only every eighth is stamped
CALM = 16  # turns with fewer waiting tasks, after which every task is stamped again
PUBLISH_NS = 100_000
MULTIPLIER_BITS = 20  # ns = ticks * multiplier >> 20
MOST_TICKS = 1 << 42  # multiplied by any multiplier, less than 2**63
MOST_MULTIPLIER = 1 << 21
BUCKET_NS = 100_000_000  # width of the rate's buckets: 100 ms
WINDOW = 100  # buckets: 10 s
EMA_BITS = 20


@helper
def clock(block: int) -> int:
    """The current time in this block's ticks. Any thread."""
    if get(block + BLOCK.CYCLES) != 0:
        return ticks()
    return monotonic_ns()


@helper
def in_ns(block: int, duration: int) -> int:
    """Ticks as nanoseconds; negative ones become 0, and more than 2**42 (14 minutes at 5 GHz) become 2**42."""
    return (min(max(duration, 0), MOST_TICKS) * get(block + BLOCK.MULTIPLIER)) >> MULTIPLIER_BITS


@helper
def stamp(block: int, cell: int, shift: int, ticket: int) -> int:
    """If this ticket's delay is to be measured, write the time beside its cell. Returns the mark for its word. The
    ticket's owner, before it stores the word.
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
    """Note the kind of callback that runs. Loop thread."""
    store(block + LIVE.RUNNING, kind + 1)


@inlined
def callback_shares(block: int, failed: bool) -> bool:
    """Count the callback and return True, unless its group ends with it. Loop thread."""
    group = get(block + LIVE.GROUP) + 1
    if group >= get(block + LIVE.STRIDE) or failed:
        return False
    store(block + LIVE.GROUP, group)
    return True


@apart
def callback_timed(block: int, failed: bool) -> None:
    """Count the callback as the last of its group, and read the clock. Loop thread."""
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
    """Enter the callbacks since the last boundary into the figures; `now` is the new boundary. In a change."""
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
    """Begin a new bucket of the rate: note the number of callbacks before it. In a change."""
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
    """`run` or `drain` begins: the time spent outside is not counted, or counts as idle if Python slept for the loop.
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
    """A turn has ended, and `ingress` tasks wait; the loop will sleep or return. Loop thread, metrics on."""
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
    """Copy the counters that the loop keeps anyway. In a change."""
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
    """A turn begins after a sleep, with `ingress` tasks waiting. Loop thread, metrics on."""
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
    """Make a copy for a reader that could not get one, unless the last is too recent. Loop thread, not in a change."""
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
    """Copy LIVE word by word with acquire loads, so that what is loaded next is not older."""
    for at in range(0, LIVE_BYTES, 8):
        put(target + at, load(source + at))


@helper
def read_block(block: int, target: int, after: int) -> int:
    """Try to copy LIVE, or a PUBLISHED that was begun when its sequence was at least `after`.

    Any thread. Returns 1 if the copy at `target` belongs to one moment; else 0, after asking the loop for a copy.
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
    """The sequence that any PUBLISHED begun from now on will exceed; `self` is a block."""
    return PyLong_FromLongLong((load(data(self) + BLOCK.PUBLISHED) + 1) & ~1)


@kernel(MANY)
def metrics_read(self: int, arguments: int, _count: int) -> int:
    """`read_block` of the block `self`: the first argument is the target array, the second is `after`."""
    after = PyLong_AsLongLong(get(arguments + 8))
    return PyLong_FromLongLong(read_block(data(self), data(get(arguments)), after))


@kernel(MANY)
def metrics_clock(self: int, _arguments: int, _count: int) -> int:
    """The cycle counter, for calibration."""
    return PyLong_FromLongLong(ticks())
