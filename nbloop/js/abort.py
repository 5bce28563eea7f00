"""`AbortController` and `AbortSignal` (DOM, section 3).

A signal is aborted once, for a reason. Composite signals (`any`) follow the *sources* of their sources (DOM 3.2.1,
dependent signals). They hold sources weakly (except time-outs, which nothing else may refer to), sources hold them
weakly while nothing listens, and they unlink from all sources when one aborts, so a long-lived source does not
accumulate dead composites.
Links are dicts: their operations are atomic, and they keep the order in which composites were made, which is the order
of their callbacks.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from functools import partial
from types import CoroutineType, TracebackType
from typing import Any, SupportsFloat, SupportsIndex

from .. import hooks
from ..lifecycle import Lifecycle, running_here
from ..lock import CountingLock
from ..options import check_milliseconds
from ..unique import Unique
from .coroutines import run_here
from .events import Event, EventTarget
from .promise import Owner, reason_as_exception

MOST_MS = 4e12  # 126 years: the longest delay of a timer


class AbortError(Exception):
    """The default reason of an abort (DOM's ``AbortError``).

    >>> AbortSignal.abort().reason
    AbortError('this operation was aborted')
    """


def _call_here(callback: Callable[[Any], object], reason: Any) -> None:
    result = callback(reason)
    if isinstance(result, CoroutineType):
        run_here(result, "abort callback", (callback, reason))


def _call(context: Context, callback: Callable[[Any], object], reason: Any) -> None:
    try:
        context.run(_call_here, callback, reason)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        hooks.tell(running_here(), error, "abort callback", (callback, reason))


def _call_all(calls: deque[Callable[[], object]]) -> None:
    """Call all of them, although KeyboardInterrupt or SystemExit leaves one. No frame of its traceback refers to it."""
    try:
        while calls:
            calls.popleft()()
    finally:
        if calls:
            _call_all(calls)


class AbortSignal(EventTarget):
    """Reports an abort: `aborted`, `reason`, `on_abort`, an ``abort`` event, `throw_if_aborted`. Any thread may call
    any method.

    `on_abort` and the listeners take O(1), an abort O(signals and callbacks that follow it), and `any` O(sources).

    >>> controller = AbortController()
    >>> either = AbortSignal.any([controller.signal, AbortSignal()])
    >>> undo = either.on_abort(print)
    >>> controller.abort("enough")
    enough
    >>> either.aborted, either.reason
    (True, 'enough')
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = CountingLock()
        self._aborted = False
        self._reason: Any = None
        self._traceback: TracebackType | None  # of the reason, when it was raised first
        self._algorithms: dict[int, tuple[Context, Callable[[Any], object]]] = {}
        self._next = 0
        self._dependents: dict[int, weakref.ref[AbortSignal]] = {}  # by id, in the order in which they were made
        self._strong: dict[int, AbortSignal] = {}  # dependents that somebody listens to
        self._sources: dict[int, weakref.ref[AbortSignal]] = {}
        # Sources that perhaps only their timers refer to, so this signal keeps them.
        self._timeouts: list[AbortSignal] = []
        self._anchor: list[AbortSignal] | None = None  # for a time-out: what its timer keeps while it has listeners

    @property
    def aborted(self) -> bool:
        """Whether it has been aborted."""
        return self._aborted

    @property
    def reason(self) -> Any:
        """Why it was aborted; None before."""
        return self._reason

    @classmethod
    def abort(cls, reason: Any = None) -> AbortSignal:
        """A signal that is already aborted (DOM, ``AbortSignal.abort``)."""
        signal = cls()
        signal._abort(AbortError("this operation was aborted") if reason is None else reason)
        return signal

    @classmethod
    def timeout(cls, js: Owner, ms: float) -> AbortSignal:
        """A signal that is aborted with a TimeoutError after `ms` milliseconds, on the loop of `js`; its timer does not
        keep the loop alive (DOM, ``AbortSignal.timeout``). ValueError for a negative `ms`, and for more than 4e12.
        """
        check_limit("ms", ms)
        if not callable(getattr(js, "set_timeout", None)):
            raise TypeError(f"js must be a nbloop.js.JS, not {js!r}")
        signal = cls()
        held = weakref.ref(signal)
        anchor: list[AbortSignal] = []

        def expire() -> None:
            target = held()
            anchor.clear()
            if target is not None:
                target._abort(TimeoutError("the operation timed out"))

        identifier = js.set_timeout(expire, ms)
        js.loop.unref_timer(identifier)
        signal._anchor = anchor
        cleanup: Any = weakref.finalize(signal, _cancel, weakref.ref(js.loop), identifier)
        cleanup.atexit = False
        return signal

    @classmethod
    def any(cls, signals: Iterable[AbortSignal]) -> AbortSignal:
        """A signal that is aborted as soon as one of `signals` is, with its reason (DOM, 'create a dependent abort
        signal').
        """
        if not isinstance(signals, Iterable):
            raise TypeError(f"signals must be an iterable of AbortSignals, not {signals!r}")
        given = list(signals)
        for source in given:
            if not isinstance(source, AbortSignal):
                raise TypeError(f"signals must contain only AbortSignals, not {source!r}")
        signal = cls()
        for source in given:
            if source._aborted:
                signal._reason = source._reason
                signal._aborted = True
                return signal
        roots = {id(root): root for source in given for root in (source._living_sources() or [source])}
        for key, root in roots.items():
            signal._sources[key] = weakref.ref(root)
            if root._anchor is not None:
                signal._timeouts.append(root)
            root._dependents[id(signal)] = weakref.ref(signal)
        cleanup: Any = weakref.finalize(signal, _unlink, id(signal), list(signal._sources.values()))
        cleanup.atexit = False
        for root in roots.values():
            if root._aborted:  # another thread has just aborted it
                signal._abort(root._reason)
                break
        return signal

    def _living_sources(self) -> list[AbortSignal]:
        return [source for source in (held() for held in list(self._sources.values())) if source is not None]

    def throw_if_aborted(self) -> None:
        """Raise the reason if the signal is aborted."""
        if self._aborted:
            raise reason_as_exception(self, self._reason)

    def on_abort(self, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``callback(reason)`` when the signal is aborted, on the aborting thread, or now if it already is.
        Returns a function that undoes this.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        key = self._follow(callback)
        return lambda: self._forget(key)

    def _follow(self, callback: Callable[[Any], object]) -> int:
        """`on_abort`; returns what `_forget` takes."""
        context = copy_context()
        with self._lock:
            if not self._aborted:
                self._next += 1
                key = self._next
                self._algorithms[key] = context, callback
                self._listened()
                return key
        _call(context, callback, self._reason)
        return 0

    def add_event_listener(self, type: str, callback: Any, *, once: bool = False) -> None:
        """`EventTarget.add_event_listener`, with its `type`, `callback` and `once`; the only event is ``abort``."""
        with self._lock:
            super().add_event_listener(type, callback, once=once)
            if type == "abort" and not self._aborted:
                self._listened()

    def remove_event_listener(self, type: str, callback: Any) -> None:
        """`EventTarget.remove_event_listener`, with its `type` and `callback`."""
        with self._lock:
            super().remove_event_listener(type, callback)
            self._unlistened()

    def _listened(self) -> None:
        """A signal with listeners must live as long as what can abort it: its sources, its timer, or their timers."""
        for signal in (self, *self._living_sources()):
            if signal is not self:
                signal._strong[id(self)] = self
            if signal._anchor is not None and not signal._anchor:
                signal._anchor.append(signal)

    def _unlistened(self) -> None:
        if not self._algorithms and not self._listeners:
            for signal in (self, *self._living_sources()):
                signal._strong.pop(id(self), None)
                signal._let_go()

    def _let_go(self) -> None:
        """Stop the timer of a time-out from keeping it alive, unless it has listeners."""
        if self._anchor and not self._wanted():
            self._anchor.clear()
            if self._wanted():  # another thread has just begun to listen
                self._anchor.append(self)

    def _wanted(self) -> bool:
        return bool(self._algorithms or self._listeners or self._strong)

    def _forget(self, key: int) -> None:
        with self._lock:
            self._algorithms.pop(key, None)
            self._unlistened()

    def _abort(self, reason: Any) -> None:
        """Signal abort (DOM 3.1), once: first set the reason of this signal and its dependents, then run the callbacks
        of each in that order.
        """
        if not self._take(reason):
            return
        living = [held() for held in list(self._dependents.values())]
        dependents = [signal for signal in living if signal is not None and signal._take(reason)]
        self._dependents.clear()
        self._strong.clear()
        _call_all(deque(partial(signal._run_callbacks, reason) for signal in (self, *dependents)))

    def _take(self, reason: Any) -> bool:
        with self._lock:
            if self._aborted:
                return False
            self._reason = reason
            self._aborted = True
        _unlink(id(self), list(self._sources.values()))
        self._sources.clear()
        self._timeouts.clear()
        if self._anchor:
            self._anchor.clear()
        return True

    def _run_callbacks(self, reason: Any) -> None:
        with self._lock:
            callbacks = list(self._algorithms.values())
            self._algorithms.clear()
        calls: deque[Callable[[], object]] = deque(partial(_call, *each, reason) for each in callbacks)
        calls.append(partial(self.dispatch_event, Event("abort")))
        _call_all(calls)

    def __repr__(self) -> str:
        return f"<AbortSignal {f'aborted {self._reason!r}' if self._aborted else 'not aborted'}>"


def check_delay(name: str, value: object) -> float:
    """Check a delay as `JS.set_timeout` does, which takes a negative one for 0. Returns it as a number, since an object
    is asked for its value once.
    """
    if isinstance(value, (int, float)):
        number = value
    elif isinstance(value, (SupportsFloat, SupportsIndex)):
        number = float(value)
    else:
        raise TypeError(f"{name} must be a number of milliseconds, not {value!r}")
    if not number <= MOST_MS:
        raise ValueError(f"{name} must be a finite number of milliseconds, at most 4e12, not {value!r}")
    return number


def check_limit(name: str, value: object) -> float:
    """Check a period or a time-out, which cannot be negative."""
    return check_milliseconds(name, check_delay(name, value))


def limited(js: Owner, signal: AbortSignal | None, ms: float | None) -> AbortSignal | None:
    """The signal of the arguments ``signal=`` and ``timeout=``: aborted with the first of them. None for neither."""
    if signal is not None and not isinstance(signal, AbortSignal):
        raise TypeError(f"signal must be an AbortSignal or None, not {signal!r}")
    if ms is None:
        return signal
    expires = AbortSignal.timeout(js, check_limit("timeout", ms))
    return expires if signal is None else AbortSignal.any([signal, expires])


def _cancel(held: weakref.ref[Lifecycle], identifier: int) -> None:
    """Cancel a time-out's timer. `weakref.finalize` keeps its arguments until then: a strong reference would prevent
    the collection of a loop whose timer keeps the signal.
    """
    loop = held()
    if loop is not None:
        loop.cancel_timer(identifier)


def _unlink(identifier: int, sources: list[weakref.ref[AbortSignal]]) -> None:
    """Make the sources forget a dependent that was aborted or collected."""
    for held in sources:
        source = held()
        if source is not None:
            source._dependents.pop(identifier, None)
            source._strong.pop(identifier, None)
            source._let_go()


class AbortController(Unique):
    """Can abort its `signal`.

    `abort` raises nothing, except KeyboardInterrupt and SystemExit of a callback. It takes O(what follows the signal).

    >>> controller = AbortController()
    >>> controller.abort()
    >>> controller.signal.throw_if_aborted()
    Traceback (most recent call last):
    nbloop.js.abort.AbortError: this operation was aborted
    """

    def __init__(self) -> None:
        self.signal = AbortSignal()

    def abort(self, reason: Any = None) -> None:
        """Abort the signal, with an `AbortError` if no reason is given. A second call does nothing. Any thread."""
        self.signal._abort(AbortError("this operation was aborted") if reason is None else reason)
