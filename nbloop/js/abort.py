"""`AbortController` and `AbortSignal` (DOM, section 3).

A signal is aborted once, for a reason. Composite signals (`any`) follow the *sources* of their sources (DOM 3.2.1, dependent signals), hold them weakly and are held by them
weakly while nobody listens, and unlink from all of them when one wins, so a long-lived source does not collect dead composites.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .events import Event, EventTarget
from .promise import reason_as_exception

if TYPE_CHECKING:
    from .view import JS

logger = logging.getLogger("nbloop")


class AbortError(Exception):
    """The default reason of an abort (DOM's ``AbortError``)."""


class AbortSignal(EventTarget):
    """Tells of an abort: `aborted`, `reason`, `on_abort`, an ``abort`` event, `throw_if_aborted`. Every method from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._aborted = False
        self._reason: Any = None
        self._algorithms: dict[int, Callable[[Any], object]] = {}
        self._next = 0
        self._dependents: weakref.WeakSet[AbortSignal] = weakref.WeakSet()
        self._strong: set[AbortSignal] = set()  # dependents that somebody listens to
        self._sources: weakref.WeakSet[AbortSignal] = weakref.WeakSet()
        self._timer: tuple[JS, int] | None = None

    @property
    def aborted(self) -> bool:
        """Has it been aborted?"""
        return self._aborted

    @property
    def reason(self) -> Any:
        """Why it was aborted; None before."""
        return self._reason

    @classmethod
    def abort(cls, reason: Any = None) -> AbortSignal:
        """A signal that is aborted already (DOM, ``AbortSignal.abort``)."""
        signal = cls()
        signal._abort(AbortError("this operation was aborted") if reason is None else reason)
        return signal

    @classmethod
    def timeout(cls, js: JS, ms: float) -> AbortSignal:
        """A signal that is aborted with a TimeoutError after `ms` milliseconds, on the loop; its timer keeps no loop alive (DOM, ``AbortSignal.timeout``)."""
        signal = cls()
        held = weakref.ref(signal)

        def expire() -> None:
            target = held()
            if target is not None:
                target._abort(TimeoutError("the operation timed out"))

        identifier = js.set_timeout(expire, ms)
        js.loop.unref_timer(identifier)
        cleanup: Any = weakref.finalize(signal, js.loop.cancel_timer, identifier)
        cleanup.atexit = False
        return signal

    @classmethod
    def any(cls, signals: Iterable[AbortSignal]) -> AbortSignal:
        """A signal that is aborted as soon as one of `signals` is, with its reason (DOM, 'create a dependent abort signal')."""
        given = list(signals)
        signal = cls()
        for source in given:
            if source._aborted:
                signal._aborted, signal._reason = True, source._reason
                return signal
        for source in given:
            for root in list(source._sources) or [source]:
                signal._sources.add(root)
                root._dependents.add(signal)
        for root in list(signal._sources):
            if root._aborted:  # meanwhile, on another thread
                signal._abort(root._reason)
                break
        return signal

    def throw_if_aborted(self) -> None:
        """Raise the reason if it is aborted."""
        if self._aborted:
            raise reason_as_exception(self._reason)

    def on_abort(self, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``callback(reason)`` when it is aborted, on the aborting thread, at once if it is; the function returned undoes this."""
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        with self._lock:
            if not self._aborted:
                self._next += 1
                key = self._next
                self._algorithms[key] = callback
                self._listened()
                return lambda: self._forget(key)
        callback(self._reason)
        return lambda: None

    def add_event_listener(self, type: str, callback: Any, *, once: bool = False) -> None:
        """As `EventTarget.add_event_listener`; its one event is ``abort``."""
        super().add_event_listener(type, callback, once=once)
        if type == "abort":
            self._listened()

    def _listened(self) -> None:
        """A composite that somebody listens to must live as long as its sources do."""
        for source in list(self._sources):
            source._strong.add(self)

    def _forget(self, key: int) -> None:
        with self._lock:
            self._algorithms.pop(key, None)
            if not self._algorithms and not self._listeners:
                for source in list(self._sources):
                    source._strong.discard(self)

    def _abort(self, reason: Any) -> None:
        """Signal abort (DOM 3.1): once; first this signal's reason and its dependents', then the callbacks of each in that order."""
        with self._lock:
            if self._aborted:
                return
            self._aborted, self._reason = True, reason
            dependents = [d for d in list(self._dependents) if d._take(reason)]
            self._dependents.clear()
            self._strong.clear()
        self._unlink()
        for signal in (self, *dependents):
            signal._run_callbacks(reason)

    def _take(self, reason: Any) -> bool:
        with self._lock:
            if self._aborted:
                return False
            self._aborted, self._reason = True, reason
        self._unlink()
        return True

    def _unlink(self) -> None:
        for source in list(self._sources):
            source._dependents.discard(self)
            source._strong.discard(self)
        self._sources.clear()

    def _run_callbacks(self, reason: Any) -> None:
        with self._lock:
            callbacks = list(self._algorithms.values())
            self._algorithms.clear()
        for callback in callbacks:
            try:
                callback(reason)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                logger.exception("abort callback %r raised", callback)
        self.dispatch_event(Event("abort"))

    def __repr__(self) -> str:
        return f"<AbortSignal {f'aborted {self._reason!r}' if self._aborted else 'not aborted'}>"


class AbortController:
    """Something that can abort its `signal`."""

    def __init__(self) -> None:
        self.signal = AbortSignal()

    def abort(self, reason: Any = None) -> None:
        """Abort the signal, with an `AbortError` if no reason is given; a second call does nothing. Any thread."""
        self.signal._abort(AbortError("this operation was aborted") if reason is None else reason)
