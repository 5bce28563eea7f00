"""Sleeping and waking: no lost wake-up, no needless one, no cost when idle.

The sleep word is AWAKE or ASLEEP. A loop with nothing to do stores ASLEEP, *then* checks every queue once more, and
only then blocks. A submitter draws its ticket (a sequentially consistent addition), *then* reads the sleep word. In
the total order of these four operations either the ticket comes first, and the loop sees the work; or the store comes
first, and the submitter sees ASLEEP. The thread that swaps ASLEEP for AWAKE owes the wake call, so there is exactly one
per sleep; all others pay one load of a word that nobody writes. (Dekker's pattern; models/parking.pml.)

Spinning first: waking a thread from a futex takes 3-19 µs, noticing a moved tail 0.2 µs. So a loop whose last sleep was
short spins for up to `spin_max` before the next one. It learns whether that pays: a spin that saw nothing makes it skip
the spin of one short sleep, the next such spin of two, then four, up to `SPIN_REST_MOST`; a spin that saw something
resets this. So two loops that hand work to each other spin; two loops that share a core (where the other cannot even
run while one spins) waste a spin in 64 sleeps; an idle loop never spins. On one core `spin_max` is 0. A loop with
descriptors checks those too (fd_watches.py).

A signal with a Python handler (Ctrl-C) ends a sleep, because it interrupts the system call. A signal that arrives an
instant before the call does not: Python only records it. So on the thread that runs Python's handlers a sleep begins
with a *nap* of at most `nap` ns. If nothing has arrived by then, the loop *dozes* (turn.py): it also waits for Python's
wake-up descriptor, which costs two descriptors and 50 µs, and leaves no such gap.

A thread that waits is always detached (PyEval_SaveThread): an attached waiter would block stop-the-world collection.
"""

from __future__ import annotations

from ..base.atomics import (
    compare_and_swap,
    exchange,
    fetch_add,
    get,
    load,
    load_sc,
    monotonic_ns,
    pause,
    put,
    store,
    store_sc,
)
from ..base.capi import (
    FUTEX_WAIT_PRIVATE,
    FUTEX_WAKE_PRIVATE,
    SYS_FUTEX,
    WINDOWS,
    Py_DecRef,
    PyErr_Clear,
    PyErr_GetRaisedException,
    PyEval_RestoreThread,
    PyEval_SaveThread,
    PyObject_CallNoArgs,
    PyObject_CallOneArg,
    Sleep,
    WaitOnAddress,
    WakeByAddressSingle,
    libc_syscall,
    libc_usleep,
    libc_write,
)
from ..base.clock import FOREVER, clock_jump, sleep_ns
from ..base.kernel import apart, helper, inlined
from ..base.layout import EVENT_WAKE, PARK_EPOLL, PARK_FUTEX, STATE, TERMINATING
from ..memory.slots import timers_referenced
from ..observe.event_ring import event
from .ticket_queue import queue_length

IS_AWAKE, IS_ASLEEP = 0, 1
SPIN_LOOKS = 32  # checks of the queues between two readings of the clock
WAKE_TRIES = 16  # attempts to call a waker written in Python
SPIN_REST_MOST = 64  # short sleeps without a spin, at most, after spins that saw nothing


@inlined
def wake(base: int) -> bool:
    """Wake the loop if it sleeps; return whether this call did. Any thread; async-signal-safe except with PARK_PYTHON;
    one load if awake.
    """
    return load_sc(base + STATE.SLEEP) != IS_AWAKE and wake_sleeper(base)


@apart
def wake_sleeper(base: int) -> bool:
    """`wake` for a loop that was seen asleep: the thread that swaps the sleep word claims the one wake call."""
    if not compare_and_swap(base + STATE.SLEEP, IS_ASLEEP, IS_AWAKE):
        return False
    recorder = get(base + STATE.RECORDER)
    if recorder != 0:
        event(recorder, EVENT_WAKE, 0, 0)
    mode = load(base + STATE.PARK_MODE)
    if mode == PARK_FUTEX:
        if WINDOWS:
            WakeByAddressSingle(base + STATE.SLEEP)
        else:
            libc_syscall(SYS_FUTEX, base + STATE.SLEEP, FUTEX_WAKE_PRIVATE, 1, 0, 0)
    elif mode == PARK_EPOLL:
        # An eventfd: adding 1 fails only when it is full, after 2**64 wakes.
        libc_write(load(base + STATE.WAKE_FD), base + STATE.ONE, 8)
    else:
        result = PyObject_CallNoArgs(load(base + STATE.WAKER))
        for _ in range(WAKE_TRIES):
            if result != 0:
                break
            # A signal handler raised before the call began. This thread still owes the wake, and nobody else does.
            error = PyErr_GetRaisedException()
            result = PyObject_CallOneArg(load(base + STATE.WAKER), error)
            Py_DecRef(error)
        if result != 0 and result != get(base + STATE.NONE):  # the waker returned one last C call
            last = PyObject_CallNoArgs(result)
            Py_DecRef(result)
            result = last
        if result == 0:
            PyErr_Clear()
        else:
            Py_DecRef(result)
    # Counted after the call: the wake descriptor is closed only once all claimed wake calls are done.
    fetch_add(base + STATE.WAKES_SENT, 1)
    return True


@helper
def arrivals(base: int) -> bool:
    """Whether another thread left anything to do, as a loop about to sleep must check. Excludes what the loop owns."""
    return (
        queue_length(base + STATE.EXTERNAL) != 0
        or queue_length(base + STATE.REMOTE) != 0
        or load_sc(base + STATE.READY) != 0
        or load_sc(base + STATE.STOP) != 0
        or load_sc(base + STATE.INTERRUPT) != 0
        or load_sc(base + STATE.LIFECYCLE) >= TERMINATING
    )


@inlined
def nothing_awaited(base: int) -> bool:
    """Whether this is an auto-exit loop that nothing keeps alive. Any thread."""
    return get(base + STATE.AUTO_EXIT) != 0 and load_sc(base + STATE.HOLDS) <= 0 and timers_referenced(base) <= 0


@helper
def wake_to_exit(base: int) -> None:
    """Wake a sleeping auto-exit loop if nothing keeps it alive any more. Any thread, after it cancelled or unreferenced
    something.
    """
    if load_sc(base + STATE.SLEEP) == IS_ASLEEP and nothing_awaited(base):
        wake(base)


@helper
def fall_asleep(base: int, deadline: int) -> bool:
    """Announce the sleep. False, and the loop is awake again, if something arrived meanwhile or nothing keeps an
    auto-exit loop alive any more. Loop thread.
    """
    store(base + STATE.SLEEP_DEADLINE, deadline)
    store_sc(base + STATE.SLEEP, IS_ASLEEP)
    if arrivals(base) or nothing_awaited(base):
        wide_awake(base)
        return False
    # One word for past sleeps and the current one: its start is subtracted now, so the word is negative until its end.
    store(base + STATE.PARKED, get(base + STATE.PARKED) - monotonic_ns())
    return True


@helper
def wide_awake(base: int) -> None:
    """End a sleep from inside, account for its time, and count a wake call that was claimed for it. That call may still
    be on its way to a descriptor, which must stay open until `wakes_sent` shows that all claimed calls are done. Loop
    thread.
    """
    if exchange(base + STATE.SLEEP, IS_AWAKE) == IS_AWAKE:
        put(base + STATE.CLAIMED, get(base + STATE.CLAIMED) + 1)
    if get(base + STATE.PARKED) < 0:
        store(base + STATE.PARKED, get(base + STATE.PARKED) + monotonic_ns())


@helper
def spin_limit(base: int, deadline: int) -> int:
    """Until when (ns of monotonic_ns) to spin before a sleep; 0 if that does not pay. Loop thread."""
    most = get(base + STATE.SPIN_MAX)
    if most == 0 or get(base + STATE.SHORT) == 0:
        return 0
    if get(base + STATE.SPIN_SKIP) > 0:
        put(base + STATE.SPIN_SKIP, get(base + STATE.SPIN_SKIP) - 1)
        return 0
    return monotonic_ns() + min(most, sleep_ns(base, deadline))


@helper
def spin_ended(base: int, won: bool) -> bool:
    """Learn from a spin whether spinning pays; return `won`, whether it saw something. Loop thread."""
    if won:
        put(base + STATE.SPINS_WON, get(base + STATE.SPINS_WON) + 1)
        put(base + STATE.SPIN_REST, 0)
    else:
        rest = min(SPIN_REST_MOST, max(1, 2 * get(base + STATE.SPIN_REST)))
        put(base + STATE.SPIN_REST, rest)
        put(base + STATE.SPIN_SKIP, rest)
        put(base + STATE.SPINS_LOST, get(base + STATE.SPINS_LOST) + 1)
    return won


@helper
def spin(base: int, deadline: int) -> bool:
    """Spin for arrivals, if that pays; return whether some came. Loop thread, detached."""
    until = spin_limit(base, deadline)
    while until != 0:
        for _ in range(SPIN_LOOKS):
            if arrivals(base):
                return spin_ended(base, True)
            pause()
        if monotonic_ns() >= until:
            return spin_ended(base, False)
    return False


@helper
def slept_for(base: int, slept: int) -> None:
    """After a sleep of `slept` ns, note whether it was so short that spinning may spare the next one. Loop thread."""
    put(base + STATE.SHORT, 1 if slept < 4 * get(base + STATE.SPIN_MAX) else 0)


@helper
def nap_ns(base: int, left: int) -> int:
    """How many of the `left` ns to sleep may be slept at once. With a virtual clock, which counts idle time, there are
    no naps. Loop thread.
    """
    nap = get(base + STATE.NAP)
    return nap if nap != 0 and nap < left and get(base + STATE.VIRTUAL) == 0 else left


@helper
def nap_ended(base: int, left: int, slept: int) -> None:
    """After a sleep of `slept` of `left` ns without arrivals, note whether it was a whole nap. Loop thread."""
    nap = nap_ns(base, left)
    put(base + STATE.NAPPED, 1 if nap < left and nap <= slept else 0)


@helper
def park(base: int, deadline: int) -> None:
    """Wait for an arrival or the deadline (ns of monotonic_ns, FOREVER for none). Loop thread, attached; returns
    attached.

    May return early, after a signal or a stale wake; the caller checks again.
    """
    thread = PyEval_SaveThread()
    if not spin(base, deadline) and fall_asleep(base, deadline):
        start = monotonic_ns()
        left = sleep_ns(base, deadline)
        if left > 0:
            put(base + STATE.PARKS, get(base + STATE.PARKS) + 1)
            sleep_on_word(base, nap_ns(base, left))
        slept = monotonic_ns() - start
        if not arrivals(base):
            nap_ended(base, left, slept)
            clock_jump(base, deadline, slept)
        wide_awake(base)
        slept_for(base, slept)
    PyEval_RestoreThread(thread)


@helper
def sleep_on_word(base: int, left: int) -> None:
    """Sleep until a thread changes the sleep word from ASLEEP and wakes this one, or for `left` ns (FOREVER: no limit).
    Detached.

    Windows takes whole ms, rounded up so that no timer fires early.
    """
    if WINDOWS:
        milliseconds = -1 if left == FOREVER else min((left + 999999) // 1000000, 1 << 30)
        WaitOnAddress(base + STATE.SLEEP, base + STATE.ONE, 8, milliseconds)  # the word `one` holds IS_ASLEEP
        return
    timeout = 0
    if left != FOREVER:
        put(base + STATE.SECONDS, left // 1000000000)
        put(base + STATE.NANOSECONDS, left % 1000000000)
        timeout = base + STATE.SECONDS
    libc_syscall(SYS_FUTEX, base + STATE.SLEEP, FUTEX_WAIT_PRIVATE, IS_ASLEEP, timeout, 0)


@apart
def stall(base: int) -> None:
    """Let a producer run that has drawn a ticket but not stored yet. Loop thread, attached; detached while it waits."""
    put(base + STATE.STALLS, get(base + STATE.STALLS) + 1)
    start = monotonic_ns()
    step_aside()
    put(base + STATE.STALLED, get(base + STATE.STALLED) + monotonic_ns() - start)


@helper
def step_aside() -> None:
    """Let a producer run that is between ticket and store. Attached; detached for 50 µs (on Windows for 1 ms, its
    minimum): on a build with the GIL, a thread that releases it for less gets it back before the other has woken.
    """
    thread = PyEval_SaveThread()
    if WINDOWS:
        Sleep(1)
    else:
        libc_usleep(50)
    PyEval_RestoreThread(thread)
