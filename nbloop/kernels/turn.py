"""A turn of the loop: which callbacks run, in which order, and what happens around each.

The order is the contract's and the same in every mode: microtask checkpoint, poll and I/O callbacks, immediates,
close callbacks, due timers, internal queue, external queue up to the budget. Each phase takes its queue's length at
entry; what is added meanwhile waits for the next turn, so no phase can starve the others. A checkpoint follows
*every* callback.

`run` is one kernel call that turns until Python is needed: to poll, to report that the loop must stop, or to raise.
Between two callbacks there is no Python at all, which is where the speed comes from, and also a duty: callbacks that
are built-ins execute no bytecode, so nobody would handle signals, collect garbage or let another thread stop the
world. Hence `breathe`, a Python function that does nothing, called every `BREATH` callbacks and once a turn: 27 ns
that run the interpreter's own checks, whatever those are in this version.

Exceptions: a callback's is taken from the thread state and handed to the state's `report`; if that raises (it does so
for KeyboardInterrupt and SystemExit) the kernel returns 0 and `run()` raises, with every queue consistent and nothing
lost.
"""

from __future__ import annotations

from .atomics import compare_and_swap, exchange, fetch_add, get, load, load_sc, monotonic_ns, put, store, store_sc
from .capi import (
    OBJECT_HEADER,
    TUPLE_ITEMS,
    Py_DecRef,
    PyErr_GetRaisedException,
    PyLong_FromLongLong,
    PyObject_CallNoArgs,
    PyObject_Vectorcall,
)
from .heap import heap_insert, heap_remove
from .ingress import queue_advance, queue_close_if_empty, queue_length, queue_peek, queue_reopen, queue_take
from .kernel import NONE as NO_ARGUMENTS
from .kernel import data, helper, kernel
from .layout import (
    ARGUMENTS,
    AUTO_EXIT,
    BREATHE,
    BUDGET,
    CALLBACKS,
    CHECKPOINT_ENDS,
    CLOSING,
    DUE,
    EXTERNAL,
    H_NEXT_READY,
    H_QUEUE,
    H_QUEUED,
    H_SELF,
    HOLDS,
    IMMEDIATES,
    INTERNAL,
    INTERRUPT,
    KIND_ARM,
    KIND_CANCEL,
    KIND_CHECKPOINT_END,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_SHIFT,
    KIND_TASK,
    KIND_TICK,
    KIND_TIMER,
    LIFECYCLE,
    MAKE_ARRAY,
    MICROTASKS,
    NONE,
    OVERLOAD,
    P_FREE_CHUNKS,
    PARK_FUTEX,
    PARK_MODE,
    PARKS,
    POINTER_MASK,
    POLL_TIMEOUT,
    POLLED,
    POOL_AT,
    Q_HEAD,
    Q_TAIL,
    READY,
    REMOTE,
    REPORT,
    S_CALLBACK,
    S_CLAMP,
    S_NESTING,
    S_PERIOD,
    S_WORD,
    SLOT_BITS,
    SLOT_LIMIT,
    STOP,
    T_COMMANDS,
    T_HEAP,
    T_LIVE_HERE,
    T_NESTING,
    T_SEQUENCE,
    T_SIZE,
    T_UNREFERENCED,
    TAG_ARGUMENTS,
    TICKS,
    TIMERS_AT,
    TURNS,
    WARN,
)
from .layout import RUNNING as LOOP_RUNNING
from .parking import FOREVER, arrivals, fall_asleep, park, stall
from .pool import KEEP_CHUNKS, pool_trim
from .ring import ring_length, ring_pop, ring_push, ring_trim
from .timers import (
    ARMED,
    CANCELLED,
    QUEUED,
    RUNNING,
    STATE_MASK,
    UNREFERENCED,
    due_after,
    next_order,
    slot_at,
    slot_free_here,
    timer_armed,
    timer_removed,
    timers_referenced,
)

BREATH = 64
CHECKPOINT_WARNING = 100_000
# Why `run` returned.
ENDED_STOP, ENDED_PARK, ENDED_INTERRUPT, ENDED_TERMINATING, ENDED_QUIET, ENDED_DRAINED = 1, 2, 3, 4, 5, 6
LEAVE = -1  # an exception is set and `run` has to return 0


@helper
def report(base: int, word: int, kind: int) -> int:
    """Hand the raised exception and its callback to the loop's reporter. 0, or LEAVE if that raised."""
    error = PyErr_GetRaisedException()
    number = PyLong_FromLongLong(kind)
    put(base + ARGUMENTS, error)
    put(base + ARGUMENTS + 8, number)
    put(base + ARGUMENTS + 16, word & POINTER_MASK)
    result = PyObject_Vectorcall(get(base + REPORT), base + ARGUMENTS, 3, 0)
    Py_DecRef(error)
    Py_DecRef(number)
    if result == 0:
        return LEAVE
    Py_DecRef(result)
    return 0


@helper
def call_hook(hook: int) -> int:
    """Call a Python function of the loop's own without arguments. 0, or LEAVE if it raised."""
    result = PyObject_CallNoArgs(hook)
    if result == 0:
        return LEAVE
    Py_DecRef(result)
    return 0


@helper
def call_word(word: int) -> int:
    """Call what a tagged reference means: a callable, or a tuple (callable, *args). A new reference, or 0."""
    target = word & POINTER_MASK
    if word & TAG_ARGUMENTS:
        items = target + TUPLE_ITEMS
        # ob_size follows the header
        return PyObject_Vectorcall(get(items), items + 8, get(target + OBJECT_HEADER) - 1, 0)
    return PyObject_CallNoArgs(target)


@helper
def invoke(base: int, word: int, kind: int) -> int:
    """Run one callback. The reference stays the caller's. 0, or LEAVE. Loop thread."""
    result = call_word(word)
    status = 0
    if result == 0:
        status = report(base, word, kind)
    elif result != get(base + NONE):  # which is immortal: most callbacks return it
        Py_DecRef(result)
    count = get(base + CALLBACKS) + 1
    put(base + CALLBACKS, count)
    if count & (BREATH - 1) == 0 and status == 0:
        status = call_hook(get(base + BREATHE))
    return status


@helper
def invoke_owned(base: int, word: int, kind: int) -> int:
    """`invoke`, release the reference, then the microtask checkpoint that follows every callback. 0, or LEAVE."""
    status = invoke(base, word, kind)
    Py_DecRef(word & POINTER_MASK)
    if status != 0:
        return status
    return checkpoint(base)


@helper
def fetch_remote(base: int) -> None:
    """Move what other threads left in the remote queue to where it belongs. Loop thread.

    Every owner-side operation that must not overtake a foreign one that returned before it (a microtask, an
    immediate, a timer of the same deadline) comes here first; a look at two words when there is nothing. A word for
    which there is no room, and no memory to make room, stays where it is until the next look: accepted work is late
    then, not lost.
    """
    queue = base + REMOTE
    make_array = get(base + MAKE_ARRAY)
    while queue_length(queue) != 0:
        word = queue_peek(queue)
        if word == 0:
            return  # its producer is between ticket and store
        kind = (word >> KIND_SHIFT) & 7
        value = word & ~(7 << KIND_SHIFT)
        status = 0
        if kind == KIND_ARM:
            status = timer_armed(base, word >> 4)
        elif kind == KIND_CANCEL:
            timer_removed(base, word >> 4)
        elif kind == KIND_IMMEDIATE:
            status = ring_push(base + IMMEDIATES, make_array, word >> 4)
        elif kind == KIND_MICROTASK:
            status = due_push(base, base + MICROTASKS, value)
        elif kind == KIND_TICK:
            status = due_push(base, base + TICKS, value)
        elif kind == KIND_INTERNAL:
            status = ring_push(base + INTERNAL, make_array, value)
        elif kind == KIND_CLOSE:
            status = ring_push(base + CLOSING, make_array, value)
        else:
            status = due_push(base, base + CHECKPOINT_ENDS, value)
        if status != 0:
            return
        if kind == KIND_ARM or kind == KIND_CANCEL:
            fetch_add(base + TIMERS_AT + T_COMMANDS, -1)
        queue_advance(queue)


@helper
def due_push(base: int, ring: int, word: int) -> int:
    """Append to a ring that checkpoints run; `due` counts what is in all of them. 0, or -1 for no memory. Loop
    thread.
    """
    status = ring_push(ring, get(base + MAKE_ARRAY), word)
    put(base + DUE, get(base + DUE) + 1 + status)
    return status


@helper
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
        fetch_remote(base)
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
        # Next-ticks that arrive from elsewhere during the batch of next-ticks join it (fetch_remote above); during
        # the batch of microtasks they wait for its end, which comes only when no microtask is left.
        while status == 0 and ring_length(ring) != 0 and load(base + INTERRUPT) == 0:
            word = ring_pop(ring)
            put(base + DUE, get(base + DUE) - 1)
            status = invoke(base, word, kind)
            Py_DecRef(word & POINTER_MASK)
            count += 1
            if count == CHECKPOINT_WARNING and status == 0:
                status = call_hook(get(base + WARN))
            if kind == KIND_CHECKPOINT_END:
                break  # it may have queued microtasks, which come first
    put(timers + T_NESTING, nesting)
    return status


@helper
def phase(base: int, ring: int, kind: int) -> int:
    """Run what a ring held at entry. 0, or LEAVE."""
    count = ring_length(ring)
    while count > 0 and load(base + INTERRUPT) == 0:
        count -= 1
        if invoke_owned(base, ring_pop(ring), kind) != 0:
            return LEAVE
    return 0


@helper
def phase_immediates(base: int) -> int:
    """The check phase: immediates queued at entry, but for those cancelled meanwhile. 0, or LEAVE."""
    ring = base + IMMEDIATES
    timers = base + TIMERS_AT
    count = ring_length(ring)
    while count > 0 and load(base + INTERRUPT) == 0:
        count -= 1
        slot = ring_pop(ring)
        record = slot_at(timers, slot)
        word = load(record + S_WORD)
        callback = load(record + S_CALLBACK)
        mine = word & STATE_MASK == QUEUED and compare_and_swap(record + S_WORD, word, word & ~STATE_MASK)
        if not mine:  # cancelled: its reference is gone already
            store(record + S_WORD, load(record + S_WORD) & ~STATE_MASK)
        slot_free_here(timers, slot)
        if mine and invoke_owned(base, callback, KIND_IMMEDIATE) != 0:
            return LEAVE
    return 0


@helper
def phase_timers(base: int) -> int:
    """Run the timers that are due now and were armed before this phase. 0, or LEAVE."""
    timers = base + TIMERS_AT
    if get(timers + T_SIZE) == 0:
        return 0
    now = monotonic_ns()
    newest = (get(timers + T_SEQUENCE) + 1) << SLOT_BITS
    while get(timers + T_SIZE) != 0 and load(base + INTERRUPT) == 0:
        heap = get(timers + T_HEAP)
        order = get(heap + 8)
        if get(heap) > now or order >= newest:
            break
        if timer_fire(base, order & (SLOT_LIMIT - 1)) != 0:
            return LEAVE
    return 0


@helper
def timer_fire(base: int, slot: int) -> int:
    """Run the heap's first timer, of `slot`, unless somebody cancelled it. 0, or LEAVE.

    An interval is armed anew *before* its callback, anchored to the callback's start, so it never leaves the heap:
    nothing can fail afterwards, and a callback that raises changes nothing. RUNNING tells a canceller that the loop
    holds the callback just now.
    """
    timers = base + TIMERS_AT
    record = slot_at(timers, slot)
    callback = load(record + S_CALLBACK)
    period = get(record + S_PERIOD)
    nesting = get(record + S_NESTING)
    while True:
        word = load(record + S_WORD)
        if word & STATE_MASK == CANCELLED:  # elsewhere; the command that frees the slot is on its way
            heap_remove(timers, 0)
            return 0
        new = word & ~STATE_MASK | RUNNING if period >= 0 else word & ~STATE_MASK & ~UNREFERENCED
        if compare_and_swap(record + S_WORD, word, new):
            break
    heap_remove(timers, 0)
    if period < 0:
        if word & UNREFERENCED:
            fetch_add(timers + T_UNREFERENCED, -1)
        store(timers + T_LIVE_HERE, get(timers + T_LIVE_HERE) - 1)
        slot_free_here(timers, slot)
    else:
        put(record + S_NESTING, nesting + 1)
        heap_insert(timers, slot, due_after(monotonic_ns(), period, nesting, get(record + S_CLAMP)), next_order(timers))
    put(timers + T_NESTING, nesting)
    status = invoke(base, callback, KIND_TIMER)
    put(timers + T_NESTING, 0)
    if period < 0:
        Py_DecRef(callback & POINTER_MASK)
    else:
        interval_ran(base, slot)
    if status != 0:
        return status
    return checkpoint(base)


@helper
def interval_ran(base: int, slot: int) -> None:
    """After an interval's callback: RUNNING -> ARMED, or, if it was cancelled meanwhile, let go of all of it."""
    record = slot_at(base + TIMERS_AT, slot)
    while True:
        word = load(record + S_WORD)
        if word & STATE_MASK == CANCELLED:
            callback = get(record + S_CALLBACK)
            timer_removed(base, slot)
            Py_DecRef(callback & POINTER_MASK)
            return
        if compare_and_swap(record + S_WORD, word, word & ~STATE_MASK | ARMED):
            return


@helper
def phase_external(base: int) -> int:
    """Up to `budget` tasks that waited at entry, of the submit queue and of producer handles; one overload call if
    more did. 0, or LEAVE.
    """
    queue = base + EXTERNAL
    budget = get(base + BUDGET)
    waiting = queue_length(queue)
    handles = exchange(base + READY, 0) if load(base + READY) != 0 else 0
    share = min(waiting, budget)
    if handles != 0 and waiting >= budget:  # neither kind starves the other; a budget of 1 goes to each in its turn
        share = (budget + (get(base + TURNS) & 1)) >> 1
    left = budget
    overloaded = waiting > share
    while share > 0 and load(base + INTERRUPT) == 0:
        word = queue_take(queue)
        if word == 0:
            if queue_length(queue) == 0:
                break  # the tickets were refused ones
            if left == budget:
                stall(base)  # nothing ran: a producer is between ticket and store
            break
        share -= 1
        left -= 1
        if invoke_owned(base, word, KIND_TASK) != 0:
            handles_put_back(base, handles)
            return LEAVE
    # The stack is last in, first out: reversed once, so that handles are served in the order in which they became
    # ready.
    order = 0
    while handles != 0:
        below = get(handles + H_NEXT_READY)
        put(handles + H_NEXT_READY, order)
        order = handles
        handles = below
    again = 0  # handles that ran and have more: next turn, behind those that this turn does not come to
    while order != 0:
        below = get(order + H_NEXT_READY)
        status = 0
        taken = left
        if load(base + INTERRUPT) == 0:
            taken = handle_drain(base, order, left)
            if taken < 0:
                status = LEAVE
                taken = 0
        left -= taken
        if queue_length(order + H_QUEUE) != 0:
            if status == 0 and left <= 0:
                overloaded = True
            if taken > 0:
                put(order + H_NEXT_READY, again)
                again = order
            else:
                handle_ready(base, order)  # still in `queued` state: it goes back with its reference
        else:
            handle_rest(base, order)
        order = below
        if status != 0:
            handles_put_back(base, order)
            handles_put_back(base, again)
            return LEAVE
    handles_put_back(base, again)
    if overloaded and load(base + INTERRUPT) == 0:
        if call_hook(get(base + OVERLOAD)) != 0:
            return LEAVE
        return checkpoint(base)
    return 0


@helper
def handle_drain(base: int, handle: int, budget: int) -> int:
    """Run what waited in a handle's queue at entry, up to `budget`. How many ran, or LEAVE. Loop thread."""
    queue = handle + H_QUEUE
    count = min(queue_length(queue), budget)
    ran = 0
    while ran < count:
        word = queue_take(queue)
        if word == 0:
            if ran == 0 and queue_length(queue) != 0:
                stall(base)
            break
        ran += 1
        if invoke_owned(base, word, KIND_TASK) != 0:
            return LEAVE
        if load(base + INTERRUPT) != 0:
            break
    return ran


@helper
def handle_ready(base: int, handle: int) -> None:
    """Put a handle, whose reference the stack then owns, on the ready stack. Any thread; pushed anywhere, emptied as
    a whole: no ABA.
    """
    while True:
        top = load(base + READY)
        put(handle + H_NEXT_READY, top)
        if compare_and_swap(base + READY, top, handle):
            return


@helper
def handle_rest(base: int, handle: int) -> None:
    """A handle has been drained: from now on its next submit announces it again. Releases the stack's reference. Loop
    thread.
    """
    store_sc(handle + H_QUEUED, 0)
    if queue_length(handle + H_QUEUE) != 0 and exchange(handle + H_QUEUED, 1) == 0:
        handle_ready(base, handle)  # a submit came between, and saw the handle still announced
        return
    Py_DecRef(get(handle + H_SELF))


@helper
def handles_put_back(base: int, handle: int) -> None:
    """Return a chain of ready handles that this turn did not come to."""
    while handle != 0:
        below = get(handle + H_NEXT_READY)
        handle_ready(base, handle)
        handle = below


@helper
def idle(base: int) -> bool:
    """Nothing to run but timers, as far as the loop thread's own queues go."""
    return (
        ring_length(base + IMMEDIATES) == 0
        and ring_length(base + CLOSING) == 0
        and ring_length(base + INTERNAL) == 0
        and get(base + DUE) == 0
    )


@helper
def next_deadline(base: int) -> int:
    """When the first timer is due, FOREVER if there is none."""
    timers = base + TIMERS_AT
    if get(timers + T_SIZE) == 0:
        return FOREVER
    return get(get(timers + T_HEAP))


@helper
def tidy(base: int) -> None:
    """Before a sleep: give back memory that a burst has left."""
    if load(base + POOL_AT + P_FREE_CHUNKS) > 2 * KEEP_CHUNKS:
        pool_trim(base + POOL_AT)
    make_array = get(base + MAKE_ARRAY)
    ring_trim(base + MICROTASKS, make_array)
    ring_trim(base + TICKS, make_array)
    ring_trim(base + IMMEDIATES, make_array)
    ring_trim(base + INTERNAL, make_array)


@helper
def quiet(base: int) -> bool:
    """For auto-exit: nothing referenced is left. Closes both queues if so, which makes it final: who is refused now
    was not promised.
    """
    if load(base + HOLDS) > 0 or timers_referenced(base) > 0 or arrivals(base) or not idle(base):
        return False
    if not queue_close_if_empty(base + EXTERNAL):
        return False
    if not queue_close_if_empty(base + REMOTE):
        queue_reopen(base + EXTERNAL)
        return False
    if load_sc(base + READY) != 0 or load_sc(base + HOLDS) > 0 or timers_referenced(base) > 0:
        queue_reopen(base + REMOTE)
        queue_reopen(base + EXTERNAL)
        return False
    return True


@helper
def wait(base: int) -> int:
    """Phase 1: if nothing is to be run, sleep. 0 to go on with the turn; ENDED_PARK: the sleep is announced, and
    Python sleeps.
    """
    if not idle(base) or arrivals(base):
        return 0
    deadline = next_deadline(base)
    if deadline != FOREVER and deadline <= monotonic_ns():
        return 0
    tidy(base)
    if load(base + PARK_MODE) == PARK_FUTEX:
        park(base, deadline)
        return 0
    if not fall_asleep(base, deadline):
        return 0
    put(base + PARKS, get(base + PARKS) + 1)
    put(base + POLL_TIMEOUT, -1 if deadline == FOREVER else max(0, deadline - monotonic_ns()))
    put(base + POLLED, 1)
    return ENDED_PARK


@helper
def phases(base: int) -> int:
    """Phases 2 to 6 of a turn. 0, or LEAVE."""
    if ring_length(base + IMMEDIATES) != 0 and phase_immediates(base) != 0:
        return LEAVE
    if ring_length(base + CLOSING) != 0 and phase(base, base + CLOSING, KIND_CLOSE) != 0:
        return LEAVE
    if phase_timers(base) != 0:
        return LEAVE
    if ring_length(base + INTERNAL) != 0 and phase(base, base + INTERNAL, KIND_INTERNAL) != 0:
        return LEAVE
    return phase_external(base)


@kernel(NO_ARGUMENTS)
def run(self: int, _unused: int) -> int:
    """Turn until Python is needed: ENDED_x as an int, or the exception of a callback that must leave the loop. Owner
    only.
    """
    base = data(self)
    while True:
        if checkpoint(base) != 0:
            return 0
        ended = 0
        if load(base + INTERRUPT) != 0:
            ended = ENDED_INTERRUPT
        elif load(base + LIFECYCLE) != LOOP_RUNNING:
            ended = ENDED_TERMINATING
        elif get(base + POLLED) != 0:
            put(base + POLLED, 0)
        elif get(base + AUTO_EXIT) != 0 and quiet(base):
            ended = ENDED_QUIET
        elif load(base + STOP) == 0:  # a turn that was asked to be the last one does not wait
            ended = wait(base)
        if ended != 0:
            return PyLong_FromLongLong(ended)
        if checkpoint(base) != 0 or phases(base) != 0 or call_hook(get(base + BREATHE)) != 0:
            return 0
        put(base + TURNS, get(base + TURNS) + 1)
        if exchange(base + STOP, 0) != 0:
            return PyLong_FromLongLong(ENDED_STOP)


@kernel(NO_ARGUMENTS)
def drain(self: int, _unused: int) -> int:
    """Graceful end: run what was accepted (immediates, close, internal, external; no timers) until nothing is left,
    checkpoints included. ENDED_DRAINED or ENDED_INTERRUPT as an int, or an exception as in `run`. Owner only,
    queues closed.
    """
    base = data(self)
    put(base + BUDGET, 1 << 62)
    while True:
        if checkpoint(base) != 0:
            return 0
        if load(base + INTERRUPT) != 0:
            return PyLong_FromLongLong(ENDED_INTERRUPT)
        if (
            idle(base)
            and queue_length(base + EXTERNAL) == 0
            and queue_length(base + REMOTE) == 0
            and load(base + READY) == 0
        ):
            return PyLong_FromLongLong(ENDED_DRAINED)
        if (
            phase_immediates(base) != 0
            or phase(base, base + CLOSING, KIND_CLOSE) != 0
            or phase(base, base + INTERNAL, KIND_INTERNAL) != 0
            or phase_external(base) != 0
            or call_hook(get(base + BREATHE)) != 0
        ):
            return 0
