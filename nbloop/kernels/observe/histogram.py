"""A log-linear histogram of nanoseconds: which bucket, and the addition.

Below 128 each value has a bucket of its own; above, 64 equal buckets to each doubling: the middle of a bucket is at
most 1/128 from anything in it. `bucket_of` is a leading-zero count, a shift and an addition; no table, no loop.

A histogram is an array of words: `sum`, `max`, `carry`, then `BUCKETS` counts. The sum has two words, of which `carry`
counts 2**62 ns: a million tasks a second that wait for 0.1 s each are 2**63 ns within a day. One writer; see meter.py
for its readers.
"""

from __future__ import annotations

from ..base.atomics import get, leading_zeros, store
from ..base.kernel import helper
from ..base.layout import HISTOGRAM_BUCKETS as BUCKETS

MOST_NS = (1 << 42) - 1  # 73 minutes
HG_SUM, HG_MAX, HG_CARRY, HG_COUNTS = 0, 8, 16, 24  # byte offsets
CARRY_BITS = 62
__all__ = ["BUCKETS", "CARRY_BITS", "MOST_NS", "bucket_of", "histogram_add"]


@helper
def bucket_of(ns: int) -> int:
    """Number of the bucket of a duration from 0 to `MOST_NS`."""
    shift = max(0, 57 - leading_zeros(ns | 1))
    return (shift << 6) + (ns >> shift)


@helper
def histogram_add(histogram: int, ns: int, weight: int, total: int) -> None:
    """Count a duration, clipped to 0..MOST_NS, `weight` times, together `total`. The writer only; O(1)."""
    ns = min(max(ns, 0), MOST_NS)
    at = histogram + HG_COUNTS + (bucket_of(ns) << 3)
    store(at, get(at) + weight)
    total += get(histogram + HG_SUM)
    if total >> CARRY_BITS != 0:
        total -= 1 << CARRY_BITS
        store(histogram + HG_CARRY, get(histogram + HG_CARRY) + 1)
    store(histogram + HG_SUM, total)
    if ns > get(histogram + HG_MAX):
        store(histogram + HG_MAX, ns)
