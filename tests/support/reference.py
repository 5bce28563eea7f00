"""A loop as docs/contract.md describes it and nothing more: lists, a sort, one thread. test_model.py compares with it.

It has the public methods of `nbloop.Loop`, so the same program can be run on both. It knows no kernel, no ticket and
no slot; where the contract leaves an order open (descriptors of one poll) it is given the loop's choice.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nbloop import (
    FastPathIncompatibleError,
    FastPathMode,
    FDAlreadyRegisteredError,
    FDNotRegisteredError,
    IOEvents,
    LoopOverloadedError,
    LoopTerminatedError,
    ReentrantCloseError,
    ReentrantRunError,
)

type Call = tuple[Callable[..., object], tuple[Any, ...]]

READ, WRITE, ERROR, HANGUP = IOEvents.READ, IOEvents.WRITE, IOEvents.ERROR, IOEvents.HANGUP
POLLRDHUP = getattr(select, "POLLRDHUP", 0)


@dataclass
class Timer:
    """What is due at a time; an interval has a period."""

    id: int
    deadline: float
    order: int
    period: float | None
    call: Call
    referenced: bool = True


@dataclass
class Watch:
    """A registered descriptor; `spent` is a ONESHOT that has fired."""

    fd: int
    interest: int
    callback: Callable[..., object]
    spent: bool = False


@dataclass
class Handle:
    """A producer: a queue of its own, which the loop learns of when it stops being empty."""

    loop: Reference
    queue: list[Call] = field(default_factory=list)
    announced: bool = False
    waiting: int = 0

    def submit(self, callback: Callable[..., object], *args: Any) -> None:
        self.loop._put(self.queue, [(callback, args)])
        self._announce()

    def submit_many(self, callbacks: Iterable[Callable[..., object]]) -> int:
        calls: list[Call] = [(callback, ()) for callback in callbacks]
        self.loop._put(self.queue, calls)
        if calls:
            self._announce()
        return len(calls)

    def _announce(self) -> None:
        if not self.announced:
            self.announced = True
            self.loop.ready.append(self)


class Reference:
    """The loop. `clock` is its time; `order` the descriptors' numbers in the order in which one poll served them."""

    def __init__(
        self,
        *,
        on_error: Callable[[BaseException, dict[str, Any]], object],
        on_overload: Callable[[object], object],
        clock: Callable[[], float],
        ingress_budget: int = 1024,
        ingress_limit: int | None = None,
        auto_exit: bool = False,
    ) -> None:
        self.on_error, self.on_overload, self.clock = on_error, on_overload, clock
        self.budget, self.limit, self.auto_exit = ingress_budget, ingress_limit, auto_exit
        self.external: list[Call] = []
        self.internal: list[Call] = []
        self.ticks: list[Call] = []
        self.microtasks: list[Call] = []
        self.checkpoint_ends: list[Call] = []
        self.closing: list[Call] = []
        self.immediates: list[tuple[int, Call | None]] = []  # None: cancelled; it keeps its place until its phase
        self.timers: dict[int, Timer] = {}
        self.watches: dict[int, Watch] = {}
        self.collected: list[tuple[Watch, int]] = []
        self.ready: list[Handle] = []
        self.mode = FastPathMode.AUTO
        self.ids = self.orders = 0
        self.thread = 0
        self.stopping = self.ending = self.ended = False
        self.order: list[int] = []

    # --- scheduling

    def _put(self, queue: list[Call], calls: list[Call]) -> None:
        if self.ending:
            raise LoopTerminatedError
        if calls and self.limit is not None and len(queue) + len(calls) > self.limit:
            raise LoopOverloadedError
        queue.extend(calls)

    def _add(self, queue: list[Call], call: Call, at_checkpoint: bool = False) -> None:
        """While the loop ends its own callbacks may still queue what a checkpoint runs."""
        if self.ended or (self.ending and not (at_checkpoint and self.is_loop_thread())):
            raise LoopTerminatedError
        queue.append(call)

    def submit(self, callback: Callable[..., object], *args: Any) -> None:
        self._put(self.external, [(callback, args)])

    def submit_many(self, callbacks: Iterable[Callable[..., object]]) -> int:
        calls: list[Call] = [(callback, ()) for callback in callbacks]
        self._put(self.external, calls)
        return len(calls)

    def producer(self) -> Handle:
        if self.ending:
            raise LoopTerminatedError
        return Handle(self)

    def submit_internal(self, callback: Callable[..., object], *args: Any) -> None:
        self._add(self.internal, (callback, args))

    def schedule_close(self, callback: Callable[..., object], *args: Any) -> None:
        self._add(self.closing, (callback, args))

    def schedule_microtask(self, callback: Callable[..., object], *args: Any) -> None:
        self._add(self.microtasks, (callback, args), at_checkpoint=True)

    def schedule_next_tick(self, callback: Callable[..., object], *args: Any) -> None:
        self._add(self.ticks, (callback, args), at_checkpoint=True)

    def schedule_checkpoint_end(self, callback: Callable[..., object], *args: Any) -> None:
        self._add(self.checkpoint_ends, (callback, args), at_checkpoint=True)

    def _next_id(self) -> int:
        if self.ending:
            raise LoopTerminatedError
        self.ids += 1
        return self.ids

    def schedule_immediate(self, callback: Callable[..., object], *args: Any) -> int:
        identifier = self._next_id()
        self.immediates.append((identifier, (callback, args)))
        return identifier

    def cancel_immediate(self, identifier: int) -> bool:
        for at, (one, call) in enumerate(self.immediates):
            if one == identifier and call is not None:
                self.immediates[at] = (one, None)
                return True
        return False

    def _arm(self, delay: float, period: float | None, call: Call) -> int:
        identifier = self._next_id()
        self.orders += 1
        self.timers[identifier] = Timer(identifier, self.clock() + max(0.0, delay), self.orders, period, call)
        return identifier

    def schedule_timer(self, delay: float, callback: Callable[..., object], *args: Any) -> int:
        return self._arm(delay, None, (callback, args))

    def schedule_interval(self, period: float, callback: Callable[..., object], *args: Any) -> int:
        return self._arm(period, max(0.0, period), (callback, args))

    def cancel_timer(self, identifier: int) -> bool:
        return self.timers.pop(identifier, None) is not None

    def cancel_timers(self, identifiers: Iterable[int]) -> list[bool]:
        return [self.cancel_timer(identifier) for identifier in identifiers]

    def ref_timer(self, identifier: int, referenced: bool = True) -> bool:
        if identifier in self.timers:
            self.timers[identifier].referenced = referenced
        return identifier in self.timers

    def unref_timer(self, identifier: int) -> bool:
        return self.ref_timer(identifier, False)

    # --- descriptors

    def register_fd(self, fd: int, events: int, callback: Callable[..., object]) -> None:
        if self.ending:
            raise LoopTerminatedError
        if self.mode is FastPathMode.FORCED:
            raise FastPathIncompatibleError
        if fd in self.watches:
            raise FDAlreadyRegisteredError
        self.watches[fd] = Watch(fd, int(events), callback)

    def modify_fd(self, fd: int, events: int) -> None:
        if self.ending:
            raise LoopTerminatedError
        if fd not in self.watches:
            raise FDNotRegisteredError
        self.watches[fd].interest, self.watches[fd].spent = int(events), False

    def unregister_fd(self, fd: int) -> None:
        if fd not in self.watches:
            raise FDNotRegisteredError
        del self.watches[fd]

    def set_fast_path_mode(self, mode: FastPathMode) -> None:
        if self.ending:
            raise LoopTerminatedError
        if mode is FastPathMode.FORCED and self.watches:
            raise FastPathIncompatibleError
        self.mode = mode

    # --- life

    def is_loop_thread(self) -> bool:
        return self.thread == threading.get_ident()

    def alive(self) -> bool:
        return bool(
            self.external
            or self.internal
            or self.ticks
            or self.microtasks
            or self.checkpoint_ends
            or self.closing
            or self.immediates
            or self.ready
            or self.watches
            or any(timer.referenced for timer in self.timers.values())
        )

    def stop(self) -> None:
        self.stopping = True

    def run(self) -> None:
        if self.is_loop_thread():
            raise ReentrantRunError
        if self.ending:
            raise LoopTerminatedError
        self.thread = threading.get_ident()
        try:
            while True:
                self._checkpoint()
                if self.ending or (self.auto_exit and not self.stopping and not self.alive()):
                    self.ending = True
                    self._finish()
                    return
                self._turn()
                stopping, self.stopping = self.stopping, False
                if stopping and not self.ending:
                    return
        finally:
            self.thread = 0

    def shutdown(self, timeout: float | None = None) -> None:
        self.ending = True
        if self.is_loop_thread() or self.ended:
            return
        if self.thread:
            assert timeout is not None, "it would wait for ever"
            raise TimeoutError
        self.thread = threading.get_ident()
        while not self.ended:
            try:
                self._finish()
            except SystemExit:
                continue
        self.thread = 0

    def close(self) -> None:
        if self.is_loop_thread():
            raise ReentrantCloseError
        self.ending = True
        self._drop()

    def _finish(self) -> None:
        self.budget = 1 << 62
        while True:
            self._checkpoint()
            if not (self.immediates or self.closing or self.internal or self.external or self.ready):
                break
            self._check()
            self._phase(self.closing, "close callback")
            self._phase(self.internal, "internal task")
            self._external()
        self._drop()

    def _drop(self) -> None:
        self.ended = True
        for queue in (self.external, self.internal, self.ticks, self.microtasks, self.checkpoint_ends, self.closing):
            queue.clear()
        for handle in self.ready:
            handle.queue.clear()
        for more in (self.immediates, self.timers, self.watches, self.collected, self.ready):
            more.clear()

    # --- a turn

    def _turn(self) -> None:
        self._poll()
        self._checkpoint()
        self._readiness()
        self._check()
        self._phase(self.closing, "close callback")
        self._due_timers()
        self._phase(self.internal, "internal task")
        self._external()

    def _call(self, call: Call, kind: str) -> None:
        callback, args = call
        try:
            callback(*args)
        except SystemExit:
            raise
        except BaseException as error:
            self.on_error(error, {"kind": kind})

    def _call_and_check(self, call: Call, kind: str) -> None:
        self._call(call, kind)
        self._checkpoint()

    def _checkpoint(self) -> None:
        while True:
            if self.ticks:
                while self.ticks:
                    self._call(self.ticks.pop(0), "next-tick")
            elif self.microtasks:
                while self.microtasks:
                    self._call(self.microtasks.pop(0), "microtask")
            elif self.checkpoint_ends:
                self._call(self.checkpoint_ends.pop(0), "checkpoint end")
            else:
                return

    def _phase(self, queue: list[Call], kind: str) -> None:
        for _ in range(len(queue)):
            self._call_and_check(queue.pop(0), kind)

    def _check(self) -> None:
        for _ in range(len(self.immediates)):
            _, call = self.immediates.pop(0)
            if call is not None:
                self._call_and_check(call, "immediate")

    def _due_timers(self) -> None:
        now, newest = self.clock(), self.orders
        while not self.ending:
            due = [timer for timer in self.timers.values() if timer.deadline <= now and timer.order <= newest]
            if not due:
                return
            first = min(due, key=lambda timer: (timer.deadline, timer.order))
            if first.period is None:
                del self.timers[first.id]
            else:
                self.orders += 1
                first.deadline, first.order = self.clock() + first.period, self.orders
            self._call_and_check(first.call, "timer")

    def _poll(self) -> None:
        if self.collected:
            return
        poll = select.poll()
        for fd, watch in self.watches.items():
            if watch.interest & (READ | WRITE) and not watch.spent:
                asked = (select.POLLIN | POLLRDHUP) * bool(watch.interest & READ)
                poll.register(fd, asked | select.POLLOUT * bool(watch.interest & WRITE))
        for fd, bits in poll.poll(0) if self.watches else []:
            events = READ * bool(bits & select.POLLIN) | WRITE * bool(bits & select.POLLOUT)
            events |= ERROR * bool(bits & select.POLLERR)
            events |= HANGUP * bool(bits & (select.POLLHUP | POLLRDHUP))
            watch = self.watches[fd]
            watch.spent = bool(watch.interest & IOEvents.ONESHOT)
            self.collected.append((watch, events))
        places = {fd: place for place, fd in enumerate(self.order)}
        self.collected.sort(key=lambda one: places.get(one[0].fd, len(places)))

    def _readiness(self) -> None:
        while self.collected and not self.ending:
            watch, events = self.collected.pop(0)
            interest = watch.interest & (READ | WRITE)
            events &= interest | ERROR | HANGUP
            if self.watches.get(watch.fd) is watch and interest and events:
                self._call_and_check((watch.callback, (watch.fd, IOEvents(events))), "readiness callback")

    def _external(self) -> None:
        """The submit queue, then the handles in the order in which they became ready: what waits now, and no more."""
        handles, self.ready = self.ready, []
        for handle in handles:
            handle.waiting = len(handle.queue)
        waiting = len(self.external)
        overloaded = waiting + sum(handle.waiting for handle in handles) > self.budget
        share = self.budget // 2 if handles and waiting >= self.budget else min(waiting, self.budget)
        left = self.budget
        again: list[Handle] = []
        try:
            for _ in range(share):
                left -= 1
                self._call_and_check(self.external.pop(0), "task")
            while handles:
                handle = handles[0]
                taken = min(handle.waiting, left)
                left -= taken
                for _ in range(taken):
                    self._call_and_check(handle.queue.pop(0), "task")
                handles.pop(0)
                if not handle.queue:
                    handle.announced = False
                else:  # behind those that this turn did not come to, if it ran anything
                    (again if taken else self.ready).append(handle)
        except SystemExit:
            for handle in [*handles, *again]:
                if handle.queue:
                    self.ready.append(handle)
                else:
                    handle.announced = False
            raise
        self.ready += again
        if overloaded:
            self.on_overload(None)
            self._checkpoint()
