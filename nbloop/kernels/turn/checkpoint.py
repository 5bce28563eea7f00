"""The microtask checkpoint that follows every callback: next-ticks, microtasks, and callbacks that wait for their end.

A cell of the microtask ring holds a callback or, marked, a reaction to something that has settled (reactions.py), which
runs without any Python except its handler.
"""

from __future__ import annotations

from ..base.atomics import get, load, put
from ..base.capi import Py_DecRef
from ..base.kernel import helper, inlined
from ..base.layout import (
    KIND_CHECKPOINT_END,
    KIND_MICROTASK,
    KIND_NEXT_TICK,
    POINTER_MASK,
    QUEUE,
    STATE,
    TAG_REACTION,
    TIMERS,
)
from ..calls.invoke import call_hook, invoke
from ..calls.remote import fetch_some
from ..memory.ring import ring_length, ring_pop
from ..observe.probes import checkpoint_begins
from ..promises.reactions import reaction_run

CHECKPOINT_WARNING = 100_000


@inlined
def invoke_owned(base: int, word: int, kind: int) -> int:
    """`invoke`, release the reference, then run the checkpoint that follows every callback. Returns 0 or LEAVE."""
    status = invoke(base, word, kind)
    Py_DecRef(word & POINTER_MASK)
    if status != 0:
        return status
    return checkpoint(base)


@inlined
def checkpoint(base: int) -> int:
    """Run all next-ticks, then all microtasks, repeatedly until both are empty; then what waits for that end. Returns 0
    or LEAVE. Loop thread.

    It follows every callback, so three loads suffice to see that nothing is due.
    """
    if get(base + STATE.DUE) == 0 and load(base + STATE.REMOTE + QUEUE.TAIL) == load(base + STATE.REMOTE + QUEUE.HEAD):
        return 0
    return checkpoint_run(base)


@helper
def checkpoint_run(base: int) -> int:
    """The checkpoint when there is something to do."""
    timers = base + STATE.TIMERS
    nesting = get(timers + TIMERS.NESTING)
    put(timers + TIMERS.NESTING, 0)  # HTML: nesting is not inherited through microtasks
    count = 0
    status = 0
    while status == 0 and load(base + STATE.INTERRUPT) == 0:
        while status == 0 and fetch_some(base):
            status = call_hook(get(base + STATE.CHECK_INTERRUPTS))
        if status != 0:
            break
        if get(base + STATE.OBSERVED) != 0:
            checkpoint_begins(base)
        ring = base + STATE.NEXT_TICKS
        kind = KIND_NEXT_TICK
        if ring_length(ring) == 0:
            ring = base + STATE.MICROTASKS
            kind = KIND_MICROTASK
            if ring_length(ring) == 0:
                ring = base + STATE.CHECKPOINT_ENDS
                kind = KIND_CHECKPOINT_END
                if ring_length(ring) == 0:
                    break
        # Next-ticks that arrive from other threads during the batch of next-ticks join it (fetch_some above); during
        # the batch of microtasks they wait for its end, which comes only when no microtask is left.
        while status == 0 and ring_length(ring) != 0 and load(base + STATE.INTERRUPT) == 0:
            word = ring_pop(ring)
            put(base + STATE.DUE, get(base + STATE.DUE) - 1)
            status = reaction_run(base, word) if word & TAG_REACTION else invoke(base, word, kind)
            Py_DecRef(word & POINTER_MASK)
            count += 1
            if count == CHECKPOINT_WARNING and status == 0:
                status = call_hook(get(base + STATE.WARN))
            if kind == KIND_CHECKPOINT_END:
                break  # it may have queued microtasks, which come first
    put(timers + TIMERS.NESTING, nesting)
    return status
