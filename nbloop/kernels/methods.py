"""The built-in methods of a loop and of a producer handle: arguments in, one structure called, a status turned into a
result.

Every refusal goes through one Python function, the state's ``refuse(code, culprit)``, which raises the right
exception, naming the argument. It is called before anything is stored, or after what was stored has been taken back,
so a refused call changes nothing. If it returns instead, the call is tried again: that is how a submit meets a loop
that is just finding out whether it may exit (`quiet`).
"""

from __future__ import annotations

from .atomics import compare_and_swap, exchange, fetch_add, get, load, load_sc, monotonic_ns, put, store, store_sc
from .capi import (
    OBJECT_HEADER,
    TUPLE_ITEMS,
    Py_DecRef,
    Py_IncRef,
    PyBool_FromLong,
    PyCallable_Check,
    PyErr_Clear,
    PyErr_Occurred,
    PyFloat_AsDouble,
    PyFloat_FromDouble,
    PyList_New,
    PyLong_AsLongLong,
    PyLong_FromLongLong,
    PyObject_Vectorcall,
    PySequence_List,
    PySequence_Tuple,
    PyThreadState_GetUnchecked,
    PyTuple_New,
)
from .ingress import (
    chunks_reserve,
    chunks_return,
    queue_close,
    queue_closed,
    queue_length,
    queue_push,
    queue_push_many,
    queue_reopen,
    queue_return_chunk,
    queue_take,
)
from .kernel import MANY, ONE, data, helper, kernel
from .kernel import NONE as NO_ARGUMENTS
from .layout import (
    CHECKPOINT_ENDS,
    CLAMP,
    CLOSING,
    DUE,
    EXTERNAL,
    H_LOOP,
    H_NEXT_READY,
    H_QUEUE,
    H_QUEUED,
    H_SELF,
    HOLDS,
    IMMEDIATES,
    INTERNAL,
    INTERRUPT,
    KIND_ARM,
    KIND_CLOSE,
    KIND_IMMEDIATE,
    KIND_INTERNAL,
    KIND_MICROTASK,
    KIND_SHIFT,
    KIND_TICK,
    LIFECYCLE,
    MAKE_ARRAY,
    MICROTASKS,
    NONE,
    OWNER,
    P_FREE,
    P_FREE_SLABS,
    P_SLAB_COUNT,
    P_SLAB_OBJECTS,
    POINTER_MASK,
    POOL_AT,
    R_ARRAY,
    READY,
    REFUSE,
    REFUSED_ARGUMENTS,
    REFUSED_CALLABLE,
    REFUSED_CLOSED,
    REFUSED_DELAY,
    REFUSED_IDENTIFIER,
    REFUSED_MEMORY,
    REFUSED_SLOTS,
    REMOTE,
    S_CALLBACK,
    S_WORD,
    SLOT_BITS,
    SLOTS_PER_SLAB_BITS,
    STOP,
    T_COMMANDS,
    T_FREE,
    T_HEAP_ARRAY,
    T_LIVE_ELSEWHERE,
    T_LIVE_HERE,
    T_NESTING,
    T_POSITIONS_ARRAY,
    T_SIZE,
    T_SLAB_OBJECTS,
    T_SLOT_COUNT,
    T_SPARE,
    T_UNREFERENCED,
    TAG_ARGUMENTS,
    TERMINATED,
    TERMINATING,
    TICKS,
    TIMERS_AT,
)
from .parking import step_aside, wide_awake
from .parking import wake as wake_loop
from .ring import ring_length, ring_pop, ring_push
from .timers import (
    CANCELLED,
    QUEUED,
    SPENT,
    STATE_MASK,
    due_after,
    immediate_cancel,
    slot_at,
    slot_free,
    slot_of,
    slot_open,
    slot_take,
    slot_take_here,
    timer_arm_elsewhere,
    timer_arm_here,
    timer_cancel,
    timer_reference,
    timers_referenced,
)
from .turn import due_push, fetch_remote, handle_ready

MOST_NS = 4.0e18  # 126 years: a deadline stays far from the end of 64-bit nanoseconds


@helper
def on_loop_thread(base: int) -> bool:
    """Is the caller the thread inside `run()`? Its thread state's address is the owner word; 2 ns."""
    return load(base + OWNER) == PyThreadState_GetUnchecked()


@helper
def refuse(base: int, code: int, culprit: int) -> int:
    """Raise for `code`: -1 with the exception set; 0 means that the call is to be tried again."""
    number = PyLong_FromLongLong(code)
    pair = PyTuple_New(2)
    if number == 0 or pair == 0:
        return -1
    Py_IncRef(culprit)
    put(pair + TUPLE_ITEMS, number)
    put(pair + TUPLE_ITEMS + 8, culprit)
    result = PyObject_Vectorcall(get(base + REFUSE), pair + TUPLE_ITEMS, 2, 0)
    Py_DecRef(pair)
    if result == 0:
        return -1
    Py_DecRef(result)
    return 0


@helper
def pack(base: int, callback: int, rest: int, count: int) -> int:
    """An owned tagged reference for `callback` with `count` arguments at `rest`, or 0 with an exception set."""
    if PyCallable_Check(callback) == 0:
        refuse(base, REFUSED_CALLABLE, callback)
        return 0
    if count <= 0:
        Py_IncRef(callback)
        return callback
    packed = PyTuple_New(count + 1)
    if packed == 0:
        return 0
    Py_IncRef(callback)
    put(packed + TUPLE_ITEMS, callback)
    for i in range(count):
        item = get(rest + (i << 3))
        Py_IncRef(item)
        put(packed + TUPLE_ITEMS + ((i + 1) << 3), item)
    return packed | TAG_ARGUMENTS


@helper
def pack_all(base: int, arguments: int, count: int) -> int:
    """`pack` for ``callback, *args`` at `arguments`, where the callback may be missing."""
    if count == 0:
        refuse(base, REFUSED_ARGUMENTS, get(base + NONE))
        return 0
    return pack(base, get(arguments), arguments + 8, count - 1)


@helper
def send(base: int, queue: int, word: int, culprit: int) -> int:
    """Push an owned word and wake the loop: None, or 0 with an exception set and the reference released. Any thread."""
    while True:
        status = queue_push(queue, word)
        if status == 0:
            wake_loop(base)
            return get(base + NONE)
        if refuse(base, status, culprit) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@helper
def schedule(base: int, arguments: int, count: int, ring: int, kind: int, at_checkpoint: bool) -> int:
    """Into a ring on the loop thread, as a command from any other; what runs `at_checkpoint` also while the loop
    ends.
    """
    word = pack_all(base, arguments, count)
    if word == 0:
        return 0
    culprit = get(arguments)
    if not on_loop_thread(base):
        return send(base, base + REMOTE, word | (kind << KIND_SHIFT), culprit)
    if queue_length(base + REMOTE) != 0:
        fetch_remote(base)  # what returned elsewhere before this call began comes first
    if at_checkpoint:
        status = due_push(base, ring, word)
    elif load(base + LIFECYCLE) < TERMINATING:
        status = ring_push(ring, get(base + MAKE_ARRAY), word)
    else:
        status = 1
    if status == 0:
        return get(base + NONE)
    refuse(base, REFUSED_CLOSED if status > 0 else REFUSED_MEMORY, culprit)
    Py_DecRef(word & POINTER_MASK)
    return 0


@kernel(MANY)
def submit(self: int, arguments: int, count: int) -> int:
    """Any thread: one ticket, one release store, one look at the sleep word."""
    base = data(self)
    word = pack_all(base, arguments, count)
    if word == 0:
        return 0
    return send(base, base + EXTERNAL, word, get(arguments))


@helper
def send_many(base: int, queue: int, iterable: int) -> int:
    """Push every callable of an iterable under consecutive tickets: how many, or -1 with an exception set and nothing
    stored.
    """
    items = PySequence_List(iterable)  # always a new list, which nobody else has: its references can be moved out of it
    if items == 0:
        return -1
    count = get(items + OBJECT_HEADER)
    first = get(items + OBJECT_HEADER + 8)
    for i in range(count):
        item = get(first + (i << 3))
        if PyCallable_Check(item) == 0:
            refuse(base, REFUSED_CALLABLE, item)
            Py_DecRef(items)
            return -1
    while True:
        status = queue_push_many(queue, first, count) if count > 0 else queue_closed(queue)
        if status == 0 or refuse(base, status, iterable) != 0:
            break
    if status != 0:
        count = -1
    Py_DecRef(items)  # a list's end skips the places of references that have moved: they are NULL
    return count


@kernel(ONE)
def submit_many(self: int, iterable: int) -> int:
    """Any thread: one addition to the tail for the whole batch, at most one wake."""
    base = data(self)
    count = send_many(base, base + EXTERNAL, iterable)
    if count < 0:
        return 0
    if count > 0:
        wake_loop(base)
    return PyLong_FromLongLong(count)


@helper
def announce(handle: int) -> None:
    """After a handle's push: if the loop does not know of it yet, put it on the ready stack and wake the loop."""
    if load_sc(handle + H_QUEUED) == 0 and exchange(handle + H_QUEUED, 1) == 0:
        Py_IncRef(get(handle + H_SELF))  # the ready stack's reference: the handle outlives its user until it is drained
        base = get(handle + H_LOOP)
        handle_ready(base, handle)
        wake_loop(base)


@kernel(MANY)
def producer_submit(self: int, arguments: int, count: int) -> int:
    """As `submit`, on the handle's own queue: no line is shared with another producer."""
    handle = data(self)
    base = get(handle + H_LOOP)
    word = pack_all(base, arguments, count)
    if word == 0:
        return 0
    while True:
        status = queue_push(handle + H_QUEUE, word)
        if status == 0:
            announce(handle)
            return get(base + NONE)
        if refuse(base, status, get(arguments)) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@kernel(ONE)
def producer_submit_many(self: int, iterable: int) -> int:
    """As `submit_many`, on the handle's own queue."""
    handle = data(self)
    count = send_many(get(handle + H_LOOP), handle + H_QUEUE, iterable)
    if count < 0:
        return 0
    if count > 0:
        announce(handle)
    return PyLong_FromLongLong(count)


@kernel(MANY)
def submit_internal(self: int, arguments: int, count: int) -> int:
    """The internal ring, before the external queue of the same turn."""
    base = data(self)
    return schedule(base, arguments, count, base + INTERNAL, KIND_INTERNAL, False)


@kernel(MANY)
def schedule_microtask(self: int, arguments: int, count: int) -> int:
    """The microtask ring."""
    base = data(self)
    return schedule(base, arguments, count, base + MICROTASKS, KIND_MICROTASK, True)


@kernel(MANY)
def schedule_next_tick(self: int, arguments: int, count: int) -> int:
    """The next-tick ring."""
    base = data(self)
    return schedule(base, arguments, count, base + TICKS, KIND_TICK, True)


@kernel(MANY)
def schedule_close(self: int, arguments: int, count: int) -> int:
    """The close ring."""
    base = data(self)
    return schedule(base, arguments, count, base + CLOSING, KIND_CLOSE, False)


@kernel(MANY)
def schedule_immediate(self: int, arguments: int, count: int) -> int:
    """A slot whose number goes into the check ring, so that it can be cancelled; its id."""
    base = data(self)
    timers = base + TIMERS_AT
    word = pack_all(base, arguments, count)
    if word == 0:
        return 0
    here = on_loop_thread(base)
    while True:
        status = 0
        identifier = 0
        slot = -1
        if load(base + LIFECYCLE) >= TERMINATING:
            status = REFUSED_CLOSED
        else:
            slot = slot_take_here(timers) if here else slot_take(timers)
            if slot < 0:
                status = REFUSED_SLOTS
        if status == 0:
            identifier = slot_open(timers, slot, word, QUEUED)
            if here:
                if queue_length(base + REMOTE) != 0:
                    fetch_remote(base)
                if ring_push(base + IMMEDIATES, get(base + MAKE_ARRAY), slot) != 0:
                    status = REFUSED_MEMORY
            else:
                status = queue_push(base + REMOTE, (slot << 4) | (KIND_IMMEDIATE << KIND_SHIFT))
        if status == 0:
            if not here:
                wake_loop(base)
            return PyLong_FromLongLong(identifier)
        if slot >= 0:
            record = slot_at(timers, slot)
            store(record + S_WORD, load(record + S_WORD) & ~STATE_MASK)
            slot_free(timers, slot)
        if refuse(base, status, get(arguments)) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@helper
def nanoseconds(base: int, number: int, unit: float) -> int:
    """A Python number of units of so many ns as ns, rounded up so that nothing is early; at least 0. -1 with an
    exception set.
    """
    amount = PyFloat_AsDouble(number)
    if amount == -1.0 and PyErr_Occurred() != 0:
        PyErr_Clear()
        refuse(base, REFUSED_DELAY, number)
        return -1
    exact = amount * unit
    if not (-MOST_NS < exact < MOST_NS):  # also false for NaN
        refuse(base, REFUSED_DELAY, number)
        return -1
    if exact <= 0.0:
        return 0
    whole = int(exact)
    if whole < exact:
        whole += 1
    return whole


@helper
def arm(base: int, word: int, delay: int, period: int, clamp: int, culprit: int) -> int:
    """A timer or interval for an owned word: its id, or 0 with an exception set and the reference released. Any
    thread.
    """
    while True:
        if load(base + LIFECYCLE) >= TERMINATING:
            identifier = -REFUSED_CLOSED
        elif on_loop_thread(base):
            if queue_length(base + REMOTE) != 0:
                fetch_remote(base)
            deadline = due_after(monotonic_ns(), delay, get(base + TIMERS_AT + T_NESTING), clamp)
            identifier = timer_arm_here(base, word, deadline, period, clamp)
        else:
            identifier = timer_arm_elsewhere(base, word, monotonic_ns() + delay, period, clamp)
        if identifier > 0:
            return PyLong_FromLongLong(identifier)
        if refuse(base, -identifier, culprit) != 0:
            Py_DecRef(word & POINTER_MASK)
            return 0


@helper
def arm_seconds(base: int, arguments: int, count: int, repeat: bool) -> int:
    """A timer or interval from ``delay, callback, *args``."""
    if count < 2:
        refuse(base, REFUSED_ARGUMENTS, get(base + NONE))
        return 0
    delay = nanoseconds(base, get(arguments), 1e9)
    if delay < 0:
        return 0
    word = pack_all(base, arguments + 8, count - 1)
    if word == 0:
        return 0
    return arm(base, word, delay, delay if repeat else -1, get(base + CLAMP), get(arguments + 8))


@kernel(MANY)
def schedule_timer(self: int, arguments: int, count: int) -> int:
    """One shot."""
    return arm_seconds(data(self), arguments, count, False)


@kernel(MANY)
def schedule_interval(self: int, arguments: int, count: int) -> int:
    """Repeating, anchored to each callback's start."""
    return arm_seconds(data(self), arguments, count, True)


@kernel(MANY)
def schedule_checkpoint_end(self: int, arguments: int, count: int) -> int:
    """The ring that a checkpoint comes to last; from other threads as kind 0."""
    base = data(self)
    return schedule(base, arguments, count, base + CHECKPOINT_ENDS, 0, True)


@helper
def identifier_of(base: int, number: int) -> int:
    """The id as an integer; 0, which no timer has, for a number that can be none; -1 with TypeError set if it is not
    an int.
    """
    identifier = PyLong_AsLongLong(number)
    if identifier == -1 and PyErr_Occurred() != 0:
        PyErr_Clear()
        if refuse(base, REFUSED_IDENTIFIER, number) != 0:
            return -1
        return 0
    return max(0, identifier)


@kernel(ONE)
def cancel_timer(self: int, number: int) -> int:
    """Settled on the slot's word."""
    base = data(self)
    identifier = identifier_of(base, number)
    if identifier < 0:
        return 0
    return PyBool_FromLong(1 if timer_cancel(base, identifier, on_loop_thread(base)) else 0)


@kernel(ONE)
def cancel_timers(self: int, iterable: int) -> int:
    """`cancel_timer` for each; nothing is cancelled if one of them is not an int."""
    base = data(self)
    items = PySequence_Tuple(iterable)
    if items == 0:
        return 0
    count = get(items + OBJECT_HEADER)
    for i in range(count):
        if identifier_of(base, get(items + TUPLE_ITEMS + (i << 3))) < 0:
            Py_DecRef(items)
            return 0
    answers = PyList_New(count)
    if answers != 0:
        here = on_loop_thread(base)
        for i in range(count):
            identifier = identifier_of(base, get(items + TUPLE_ITEMS + (i << 3)))
            answer = PyBool_FromLong(1 if timer_cancel(base, identifier, here) else 0)
            put(get(answers + OBJECT_HEADER + 8) + (i << 3), answer)  # the new list's items: nobody else has it
    Py_DecRef(items)
    return answers


@kernel(ONE)
def cancel_immediate(self: int, number: int) -> int:
    """Settled on the slot's word."""
    base = data(self)
    identifier = identifier_of(base, number)
    if identifier < 0:
        return 0
    return PyBool_FromLong(1 if immediate_cancel(base, identifier) else 0)


@kernel(ONE)
def ref_timer(self: int, number: int) -> int:
    """One bit of the slot's word."""
    base = data(self)
    identifier = identifier_of(base, number)
    if identifier < 0:
        return 0
    return PyBool_FromLong(1 if timer_reference(base, identifier, True) else 0)


@kernel(ONE)
def unref_timer(self: int, number: int) -> int:
    """One bit of the slot's word."""
    base = data(self)
    identifier = identifier_of(base, number)
    if identifier < 0:
        return 0
    return PyBool_FromLong(1 if timer_reference(base, identifier, False) else 0)


@kernel(NO_ARGUMENTS)
def alive(self: int, _unused: int) -> int:
    """Anything to run, but for unreferenced timers? A look at each queue's two words."""
    base = data(self)
    some = (
        queue_length(base + EXTERNAL) != 0
        or queue_length(base + REMOTE) > load(base + TIMERS_AT + T_COMMANDS)
        or load(base + READY) != 0
        or ring_length(base + TICKS) != 0
        or ring_length(base + MICROTASKS) != 0
        or ring_length(base + IMMEDIATES) != 0
        or ring_length(base + CLOSING) != 0
        or ring_length(base + INTERNAL) != 0
        or ring_length(base + CHECKPOINT_ENDS) != 0
        or timers_referenced(base) > 0
        or load(base + HOLDS) > 0
    )
    return PyBool_FromLong(1 if some else 0)


@kernel(ONE)
def hold(self: int, change: int) -> int:
    """Add to the number of reasons to stay alive that are not the loop's own: worker threads at work. Any thread."""
    base = data(self)
    fetch_add(base + HOLDS, PyLong_AsLongLong(change))
    return get(base + NONE)


@kernel(NO_ARGUMENTS)
def stop(self: int, _unused: int) -> int:
    """A word that the loop looks at after each turn, and the wake that makes it look."""
    base = data(self)
    store_sc(base + STOP, 1)
    wake_loop(base)
    return get(base + NONE)


@kernel(NO_ARGUMENTS)
def wake(self: int, _unused: int) -> int:
    """The wake call alone."""
    base = data(self)
    return PyBool_FromLong(1 if wake_loop(base) else 0)


@kernel(NO_ARGUMENTS)
def now(self: int, _unused: int) -> int:
    """The loop's clock in seconds."""
    return PyFloat_FromDouble(monotonic_ns() / 1e9)


@kernel(NO_ARGUMENTS)
def is_loop_thread(self: int, _unused: int) -> int:
    """The owner word against the caller's thread state."""
    return PyBool_FromLong(1 if on_loop_thread(data(self)) else 0)


@kernel(ONE)
def warm(self: int, chunks: int) -> int:
    """Have that many chunks in the pool before the first submit needs one; False if there is no memory. At
    construction.
    """
    base = data(self)
    first = chunks_reserve(base + POOL_AT, PyLong_AsLongLong(chunks))
    chunks_return(base + POOL_AT, first)
    return PyBool_FromLong(1 if first >= 0 else 0)


@kernel(NO_ARGUMENTS)
def acquire(self: int, _unused: int) -> int:
    """Make the calling thread the owner: 0 done, 1 another thread is, 2 this thread already is."""
    base = data(self)
    me = PyThreadState_GetUnchecked()
    if compare_and_swap(base + OWNER, 0, me):
        return PyLong_FromLongLong(0)
    return PyLong_FromLongLong(2 if load(base + OWNER) == me else 1)


@kernel(NO_ARGUMENTS)
def release(self: int, _unused: int) -> int:
    """Give the loop up; the owner only."""
    base = data(self)
    store_sc(base + OWNER, 0)
    return get(base + NONE)


@kernel(NO_ARGUMENTS)
def awaken(self: int, _unused: int) -> int:
    """After Python has slept for the loop: end the announced sleep. Owner only."""
    base = data(self)
    wide_awake(base)
    return get(base + NONE)


@kernel(MANY)
def transition(self: int, arguments: int, _count: int) -> int:
    """Swap the lifecycle from the first int to the second; tell whether it was the first. Any thread."""
    base = data(self)
    old = PyLong_AsLongLong(get(arguments))
    new = PyLong_AsLongLong(get(arguments + 8))
    return PyBool_FromLong(1 if compare_and_swap(base + LIFECYCLE, old, new) else 0)


@kernel(ONE)
def interrupt(self: int, flag: int) -> int:
    """Set or clear the word that is looked at after each callback, and wake the loop. Any thread."""
    base = data(self)
    store_sc(base + INTERRUPT, PyLong_AsLongLong(flag))
    wake_loop(base)
    return get(base + NONE)


@kernel(NO_ARGUMENTS)
def close_queues(self: int, _unused: int) -> int:
    """Refuse new work from now on. Any thread; idempotent."""
    base = data(self)
    queue_close(base + EXTERNAL)
    queue_close(base + REMOTE)
    wake_loop(base)
    return get(base + NONE)


@kernel(NO_ARGUMENTS)
def reopen_queues(self: int, _unused: int) -> int:
    """Undo the close of a loop that found itself quiet and then was not. Owner only."""
    base = data(self)
    queue_reopen(base + REMOTE)
    queue_reopen(base + EXTERNAL)
    return get(base + NONE)


@kernel(NO_ARGUMENTS)
def producer_close(self: int, _unused: int) -> int:
    """Refuse new work from a handle; how much it still holds. Any thread; idempotent."""
    queue = data(self) + H_QUEUE
    queue_close(queue)
    return PyLong_FromLongLong(queue_length(queue))


@kernel(NO_ARGUMENTS)
def producer_reopen(self: int, _unused: int) -> int:
    """Undo `producer_close` of an empty handle. Loop thread."""
    handle = data(self)
    queue_reopen(handle + H_QUEUE)
    return get(get(handle + H_LOOP) + NONE)


@helper
def queue_drop(queue: int, slots: bool) -> int:
    """Release everything in a closed queue; in the remote one slot commands hold no reference. How many there were."""
    dropped = 0
    while queue_length(queue) != 0:
        word = queue_take(queue)
        if word == 0:
            step_aside()
            continue
        kind = (word >> KIND_SHIFT) & 7
        if not slots or kind < KIND_ARM:
            Py_DecRef(word & POINTER_MASK)
        dropped += 1
    return dropped


@helper
def ring_drop(ring: int) -> None:
    """Release everything in a ring of references."""
    while ring_length(ring) != 0:
        Py_DecRef(ring_pop(ring) & POINTER_MASK)


@kernel(NO_ARGUMENTS)
def drop(self: int, _unused: int) -> int:
    """`release_all` as a method. Owner only, queues closed."""
    base = data(self)
    release_all(base)
    return get(base + NONE)


@helper
def release_all(base: int) -> None:
    """Release everything that was accepted and will not run. Queues closed, nobody inside `run`. Releasing runs any
    Python code: what that code tries to schedule is refused, and what it cancels is answered truly.
    """
    timers = base + TIMERS_AT
    queue_drop(base + EXTERNAL, False)
    queue_drop(base + REMOTE, True)
    ring_drop(base + TICKS)
    ring_drop(base + MICROTASKS)
    ring_drop(base + CLOSING)
    ring_drop(base + INTERNAL)
    ring_drop(base + CHECKPOINT_ENDS)
    put(base + DUE, 0)
    while ring_length(base + IMMEDIATES) != 0:
        ring_pop(base + IMMEDIATES)  # a slot number; its reference goes below
    store(timers + T_SIZE, 0)
    store(timers + T_COMMANDS, 0)
    for slot in range(load(timers + T_SLOT_COUNT)):
        record = slot_of(timers, slot | 1 << SLOT_BITS)
        while record != 0:
            word = load(record + S_WORD)
            state = word & STATE_MASK
            callback = load(record + S_CALLBACK)
            if state == SPENT or state == CANCELLED:
                break
            if compare_and_swap(record + S_WORD, word, word & ~STATE_MASK):
                Py_DecRef(callback & POINTER_MASK)
                break
    store(timers + T_LIVE_HERE, 0)
    store(timers + T_LIVE_ELSEWHERE, 0)
    store(timers + T_UNREFERENCED, 0)
    handle = exchange(base + READY, 0)
    while handle != 0:
        below = get(handle + H_NEXT_READY)
        queue_drop(handle + H_QUEUE, False)
        Py_DecRef(get(handle + H_SELF))
        handle = below


@kernel(NO_ARGUMENTS)
def destroy(self: int, _unused: int) -> int:
    """The state's finaliser: end the loop for good and release everything that kernels own, arrays included.

    The collector runs finalisers of a cycle in any order, so others may still call methods of this state afterwards:
    everything is refused by then, and what does not refuse finds nothing.
    """
    base = data(self)
    timers = base + TIMERS_AT
    pool = base + POOL_AT
    store_sc(base + LIFECYCLE, TERMINATED)
    queue_close(base + EXTERNAL)
    queue_close(base + REMOTE)
    release_all(base)
    queue_return_chunk(base + EXTERNAL)
    queue_return_chunk(base + REMOTE)
    for ring in (
        base + TICKS,
        base + MICROTASKS,
        base + IMMEDIATES,
        base + CLOSING,
        base + INTERNAL,
        base + CHECKPOINT_ENDS,
    ):
        release_array(ring + R_ARRAY)
    release_array(timers + T_HEAP_ARRAY)
    release_array(timers + T_POSITIONS_ARRAY)
    slabs = exchange(timers + T_SLOT_COUNT, 0) >> SLOTS_PER_SLAB_BITS
    store(timers + T_FREE, 0)
    put(timers + T_SPARE, 0)
    for slab in range(slabs):
        release_array(get(timers + T_SLAB_OBJECTS) + (slab << 3))
    slabs = exchange(pool + P_SLAB_COUNT, 0)
    store(pool + P_FREE, 0)
    store(pool + P_FREE_SLABS, 0)
    for slab in range(slabs):
        release_array(get(pool + P_SLAB_OBJECTS) + (slab << 3))
    return get(base + NONE)


@helper
def release_array(word: int) -> None:
    """Release the array that a word owns, if any."""
    array = exchange(word, 0)
    if array != 0:
        Py_DecRef(array)


@kernel(NO_ARGUMENTS)
def producer_drop(self: int, _unused: int) -> int:
    """Release what a closed handle still holds. The loop's owner."""
    handle = data(self)
    queue_drop(handle + H_QUEUE, False)
    return get(get(handle + H_LOOP) + NONE)


@kernel(NO_ARGUMENTS)
def producer_destroy(self: int, _unused: int) -> int:
    """A handle's finaliser: release what it holds and put its chunk back into the loop's pool."""
    handle = data(self)
    queue = handle + H_QUEUE
    queue_close(queue)
    queue_drop(queue, False)
    queue_return_chunk(queue)
    return get(get(handle + H_LOOP) + NONE)


@kernel(NO_ARGUMENTS)
def empty(self: int, _unused: int) -> int:
    """Does nothing: what a built-in call costs, for benchmarks and `doctor`."""
    return get(data(self) + NONE)
