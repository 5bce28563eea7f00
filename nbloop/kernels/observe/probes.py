"""Probes: where the hot path reports to the loop's figures (meter.py) and to its flight recorder (event_ring.py).

An unobserved loop must not pay for each of them, so the hot path tests one word, `OBSERVED`, which is set if either is
on, and only then calls a probe. The probes of every callback are inlined, so that seven of eight short callbacks pay
for a store and a count (calls instead made up half of the cost of metrics). All probes are for the loop's thread.
"""

from __future__ import annotations

from ..base.atomics import get
from ..base.kernel import apart, inlined
from ..base.layout import KIND_ARM, KIND_CANCEL, LIVE, STATE
from .event_ring import (
    boundary_moved,
    move_recorded,
    record_checkpoint,
    record_enters,
    record_overload,
    record_rests,
    record_turn,
    run_begins,
    run_ends,
)
from .meter import (
    callback_measured,
    callback_shares,
    callback_timed,
    checkpoint_measured,
    count,
    measure_enters,
    measure_rests,
    measure_turn,
    remote_counted,
)


@inlined
def callback_begins(base: int, word: int, kind: int) -> None:
    """The callback behind the tagged reference `word` is about to be called."""
    block = get(base + STATE.METRICS)
    if block != 0:
        callback_measured(block, kind)
    if get(base + STATE.RECORDER) != 0:
        run_begins(base, word, kind)


@inlined
def callback_ended(base: int, failed: bool) -> None:
    """The callback has returned or raised."""
    block = get(base + STATE.METRICS)
    if block != 0 and not callback_shares(block, failed):
        callback_timed(block, failed)
    if get(base + STATE.RECORDER) != 0:
        run_ends(base, failed)


@apart
def observe_boundary(base: int) -> None:
    """The loop has called one of its own functions: what is observed next begins now."""
    if get(base + STATE.RECORDER) != 0:
        boundary_moved(base)


@apart
def command_moved(base: int, kind: int) -> None:
    """Something that another thread scheduled has been put into its ring."""
    if get(base + STATE.METRICS) != 0:
        remote_counted(base, kind, -1)
    if get(base + STATE.RECORDER) != 0 and kind != KIND_ARM and kind != KIND_CANCEL:
        move_recorded(base, kind)


@apart
def checkpoint_begins(base: int) -> None:
    """A checkpoint has something to do."""
    if get(base + STATE.METRICS) != 0:
        checkpoint_measured(base)
    if get(base + STATE.RECORDER) != 0:
        record_checkpoint(base)


@apart
def loop_enters(base: int, slept: bool) -> None:
    """`run` or `drain` begins."""
    if get(base + STATE.METRICS) != 0:
        measure_enters(base, slept)
    if get(base + STATE.RECORDER) != 0:
        record_enters(base, slept)


@apart
def loop_rests(base: int, ingress: int) -> None:
    """A turn has ended, and `ingress` tasks wait; the loop will sleep or return."""
    if get(base + STATE.METRICS) != 0:
        measure_rests(base, ingress)
    if get(base + STATE.RECORDER) != 0:
        record_rests(base)


@apart
def turn_begins(base: int, ingress: int) -> None:
    """A turn begins after a sleep, with `ingress` tasks waiting."""
    if get(base + STATE.METRICS) != 0:
        measure_turn(base, ingress)
    if get(base + STATE.RECORDER) != 0:
        record_turn(base, ingress)


@apart
def overload_begins(base: int) -> None:
    """More tasks wait than one turn takes."""
    if get(base + STATE.METRICS) != 0:
        count(base, LIVE.OVERLOADS, 1)
    if get(base + STATE.RECORDER) != 0:
        record_overload(base)
