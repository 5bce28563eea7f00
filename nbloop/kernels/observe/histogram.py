"""A log-linear histogram of nanoseconds: finding a value's bucket, and adding a value.

Below 128 each value has its own bucket; above, each doubling has 64 equal buckets, so the middle of a bucket is within
1/128 of everything in it. `bucket_of` is a leading-zero count, a shift and an addition; no table, no loop.

A histogram is an array of words: `sum`, `max`, `carry`, then `BUCKETS` counts. The sum has two words, of which `carry`
counts units of 2**62 ns: a million tasks per second that wait 0.1 s each add up to 2**63 ns within a day. There is one
writer; see meter.py for the readers.
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
    """The bucket number of a duration from 0 to `MOST_NS`."""
    shift = max(0, 57 - leading_zeros(ns | 1))
    return (shift << 6) + (ns >> shift)


@helper
def histogram_add(histogram: int, ns: int, weight: int, total: int) -> None:
    """Count a duration, clipped to 0..MOST_NS, `weight` times, and add `total` to the sum. Writer only; O(1)."""
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
