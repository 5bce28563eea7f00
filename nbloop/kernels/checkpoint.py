"""The microtask checkpoint that follows every callback: next-ticks, microtasks, and what waits for their end.

A cell of the microtask ring is a callback or, marked, a reaction of something that has settled (reactions.py), which
is run without a call of Python but that of its handler.
"""

from __future__ import annotations

from .atomics import get, load, put
from .callbacks import call_hook, fetch_some, invoke
from .capi import Py_DecRef
from .kernel import helper, inlined
from .layout import (
    BREATHE,
    CHECKPOINT_ENDS,
    DUE,
    INTERRUPT,
    KIND_CHECKPOINT_END,
    KIND_MICROTASK,
    KIND_TICK,
    MICROTASKS,
    OBSERVED,
    POINTER_MASK,
    Q_HEAD,
    Q_TAIL,
    REMOTE,
    T_NESTING,
    TAG_REACTION,
    TICKS,
    TIMERS_AT,
    WARN,
)
from .observed import checkpoint_begins
from .reactions import reaction_run
from .ring import ring_length, ring_pop

CHECKPOINT_WARNING = 100_000


@inlined
def invoke_owned(base: int, word: int, kind: int) -> int:
    """`invoke`, release the reference, then the microtask checkpoint that follows every callback. 0, or LEAVE."""
    status = invoke(base, word, kind)
    Py_DecRef(word & POINTER_MASK)
    if status != 0:
        return status
    return checkpoint(base)


@inlined
def checkpoint(base: int) -> int:
    """All next-ticks, then all microtasks, again until both are empty; then what waits for that end. 0, or LEAVE.
    Loop thread.

    It follows every callback, so that nothing is due is found out by three loads.
    """
    if get(base + DUE) == 0 and load(base + REMOTE + Q_TAIL) == load(base + REMOTE + Q_HEAD):
        return 0
    return checkpoint_run(base)


@helper
def checkpoint_run(base: int) -> int:
    """The checkpoint when there is something to do."""
    timers = base + TIMERS_AT
    nesting = get(timers + T_NESTING)
    put(timers + T_NESTING, 0)  # HTML: nesting is not inherited through microtasks
    count = 0
    status = 0
    while status == 0 and load(base + INTERRUPT) == 0:
        while status == 0 and fetch_some(base):
            status = call_hook(get(base + BREATHE))
        if status != 0:
            break
        if get(base + OBSERVED) != 0:
            checkpoint_begins(base)
        ring = base + TICKS
        kind = KIND_TICK
        if ring_length(ring) == 0:
            ring = base + MICROTASKS
            kind = KIND_MICROTASK
            if ring_length(ring) == 0:
                ring = base + CHECKPOINT_ENDS
                kind = KIND_CHECKPOINT_END
                if ring_length(ring) == 0:
                    break
        # Next-ticks that arrive from elsewhere during the batch of next-ticks join it (fetch_some above); during
        # the batch of microtasks they wait for its end, which comes only when no microtask is left.
        while status == 0 and ring_length(ring) != 0 and load(base + INTERRUPT) == 0:
            word = ring_pop(ring)
            put(base + DUE, get(base + DUE) - 1)
            status = reaction_run(base, word) if word & TAG_REACTION else invoke(base, word, kind)
            Py_DecRef(word & POINTER_MASK)
            count += 1
            if count == CHECKPOINT_WARNING and status == 0:
                status = call_hook(get(base + WARN))
            if kind == KIND_CHECKPOINT_END:
                break  # it may have queued microtasks, which come first
    put(timers + T_NESTING, nesting)
    return status
