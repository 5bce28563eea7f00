"""What the cycle collector sees of a state: the callables that its words own.

Problem: a loop's queued callbacks usually refer back to the loop, but references in integer words are invisible to the
collector, so a loop that is forgotten with work in it would never be freed. Idea: `tp_traverse` is just a C function
pointer, so a kernel can fill it. It runs while the world is stopped, and kernels stop only where they call Python,
wait, or pass a safepoint, so it walks consistent data. It may miss references that a stopped turn holds in its
variables; to the collector they look held from outside, which is safe.
"""

from __future__ import annotations

from ..base.atomics import get, load
from ..base.capi import PyObject_VisitManagedDict
from ..base.interpreter import OBJECT_TYPE
from ..base.kernel import TRAVERSE, data, helper, kernel
from ..base.layout import HANDLE, POINTER_MASK, QUEUE, RING, SLOT, SLOTS_PER_SLAB_BITS, STATE, TIMERS
from ..ingress.remote_words import remote_reference
from ..ingress.ticket_queue import queue_cell, queue_entry, queue_tail
from ..memory.pool import pool_address
from ..memory.slot_slabs import slab_rests, slot_at
from ..memory.slots import CANCELLED, SPENT, STATE_MASK


def visit_object(visit: int, target: int, argument: int) -> int:
    """Call the collector's ``visitproc``: compiled code calls the address; un-jitted states are not traversed."""
    raise RuntimeError(f"an un-jitted kernel cannot call {visit:#x}({target:#x}, {argument:#x})")


@helper
def visit_header(self: int, visit: int, argument: int) -> int:
    """The instance's ``__dict__`` and type, as every heap type's traverse must."""
    status = PyObject_VisitManagedDict(self, visit, argument)
    if status == 0:
        status = visit_object(visit, get(self + OBJECT_TYPE), argument)
    return status


@helper
def visit_queue(queue: int, visit: int, argument: int, remote: bool) -> int:
    """Every published reference in a task queue, or in the remote queue."""
    shift = get(queue + QUEUE.SHIFT)
    tail = queue_tail(queue)
    ticket = load(queue + QUEUE.HEAD)
    while ticket < tail:
        entry = load(queue_entry(queue, ticket))
        if entry <= 0:
            ticket = ((ticket >> shift) + 1) << shift
            continue
        word = load(queue_cell(pool_address(get(queue + QUEUE.POOL), entry - 1), ticket, shift))
        ticket += 1
        owned = remote_reference(word) if remote else word & POINTER_MASK
        if owned == 0:
            continue
        status = visit_object(visit, owned, argument)
        if status != 0:
            return status
    return 0


@helper
def visit_ring(ring: int, visit: int, argument: int) -> int:
    """Every reference in a ring."""
    at, end = get(ring + RING.HEAD_AT), get(ring + RING.HEAD_END)
    for _ in range(get(ring + RING.TAIL) - get(ring + RING.HEAD)):
        if at == end:
            end = get(end)
            at = get(end + 8)
        status = visit_object(visit, get(at) & POINTER_MASK, argument)
        if status != 0:
            return status
        at += 8
    return 0


@helper
def visit_slots(timers: int, visit: int, argument: int) -> int:
    """Every callback that a timer, an immediate or a watch owns. O(slots of the slabs that are not at rest)."""
    for slab in range(load(timers + TIMERS.SLOT_COUNT) >> SLOTS_PER_SLAB_BITS):
        if slab_rests(timers, slab):
            continue
        for slot in range(slab << SLOTS_PER_SLAB_BITS, (slab + 1) << SLOTS_PER_SLAB_BITS):
            record = slot_at(timers, slot)
            state = load(record + SLOT.WORD) & STATE_MASK
            if state != SPENT and state != CANCELLED:
                status = visit_object(visit, load(record + SLOT.CALLBACK) & POINTER_MASK, argument)
                if status != 0:
                    return status
    return 0


@kernel(TRAVERSE)
def traverse_loop(self: int, visit: int, argument: int) -> int:
    """``tp_traverse`` of a loop's state."""
    base = data(self)
    status = visit_header(self, visit, argument)
    if get(base + STATE.SELF) != self:  # not made by `make_state`, or the interpreter is ending: see State.__del__
        return status
    if status == 0:
        status = visit_queue(base + STATE.EXTERNAL, visit, argument, False)
    if status == 0:
        status = visit_queue(base + STATE.REMOTE, visit, argument, True)
    if status == 0:
        status = visit_ring(base + STATE.NEXT_TICKS, visit, argument)
    if status == 0:
        status = visit_ring(base + STATE.MICROTASKS, visit, argument)
    if status == 0:
        status = visit_ring(base + STATE.CLOSING, visit, argument)
    if status == 0:
        status = visit_ring(base + STATE.INTERNAL, visit, argument)
    if status == 0:
        status = visit_ring(base + STATE.CHECKPOINT_ENDS, visit, argument)
    if status == 0:
        status = visit_slots(base + STATE.TIMERS, visit, argument)
    handle = load(base + STATE.READY)
    while handle != 0 and status == 0:
        status = visit_object(visit, get(handle + HANDLE.SELF), argument)
        handle = get(handle + HANDLE.NEXT_READY)
    return status


@kernel(TRAVERSE)
def traverse_handle(self: int, visit: int, argument: int) -> int:
    """``tp_traverse`` of a producer handle's state."""
    status = visit_header(self, visit, argument)
    if status == 0 and get(data(self) + HANDLE.SELF) == self:
        status = visit_queue(data(self) + HANDLE.QUEUE, visit, argument, False)
    return status
