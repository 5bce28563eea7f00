"""The remote queue: what other threads scheduled moves to its place before anything that must not overtake it."""

from __future__ import annotations

from ..base.atomics import fetch_add, get, load, put
from ..base.kernel import apart, inlined
from ..base.layout import (
    KIND_ARM,
    KIND_CANCEL,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_NEXT_TICK,
    STATE,
    TIMERS,
)
from ..base.safepoint import EVERY, safepoint
from ..ingress.remote_words import remote_kind, remote_value
from ..ingress.ticket_queue import queue_advance, queue_length, queue_peek
from ..memory.ring import ring_push
from ..observe.probes import command_moved
from ..timers.timer_slots import timer_armed, timer_removed


@inlined
def due_push(base: int, ring: int, word: int) -> int:
    """Append to a ring that checkpoints run; `due` counts the words in all of them. Returns 0; -1 if there is no
    memory; or 1 if there will be no checkpoint, because `close()` has begun or leftovers are being released. Loop
    thread.
    """
    if load(base + STATE.INTERRUPT) != 0:
        return 1
    status = ring_push(ring, word)
    put(base + STATE.DUE, get(base + STATE.DUE) + 1 + status)
    return status


@apart
def fetch_some(base: int) -> bool:
    """Move some words of the remote queue; True if there are more."""
    left = EVERY
    queue = base + STATE.REMOTE
    while queue_length(queue) != 0:
        word = queue_peek(queue)
        if word == 0:
            return False  # its producer is between ticket and store
        if left == 0:
            return True
        left -= 1
        kind = remote_kind(word)
        value = remote_value(word)
        status = 0
        if kind == KIND_ARM:
            status = timer_armed(base, value)
        elif kind == KIND_CANCEL:
            timer_removed(base, value)
        elif kind == KIND_IMMEDIATE:
            status = ring_push(base + STATE.IMMEDIATES, value)
        elif kind == KIND_MICROTASK:
            status = due_push(base, base + STATE.MICROTASKS, value)
        elif kind == KIND_NEXT_TICK:
            status = due_push(base, base + STATE.NEXT_TICKS, value)
        elif kind == KIND_INTERNAL:
            status = ring_push(base + STATE.INTERNAL, value)
        elif kind == KIND_CLOSE:
            status = ring_push(base + STATE.CLOSING, value)
        else:
            status = due_push(base, base + STATE.CHECKPOINT_ENDS, value)
        if status != 0:
            return False
        if kind == KIND_ARM or kind == KIND_CANCEL:
            fetch_add(base + STATE.TIMERS + TIMERS.COMMANDS, -1)
        if get(base + STATE.OBSERVED) != 0:
            command_moved(base, kind)
        queue_advance(queue)
    return False


@apart
def fetch_remote(base: int) -> None:
    """Move what other threads left in the remote queue to where it belongs. Loop thread; runs no Python.

    Every operation of the loop thread that must not overtake another thread's operation that returned earlier (a
    microtask, an immediate, a timer of the same deadline) calls this first; it reads two words if there is nothing to
    do. A word for which there is neither room nor memory stays until the next call: accepted work is then late, but not
    lost.
    """
    while fetch_some(base):
        safepoint()
