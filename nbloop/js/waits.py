"""What a coroutine waits for: a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kernels.promises.classes import Resolver
from .coroutines import coroutines_of, terminated

if TYPE_CHECKING:
    from .promise import Promise
    from .view import JS


class Sleep:
    """What settles a promise of `JS.sleep`: its timer, or the loop's end."""

    __slots__ = ("_js", "_resolver", "_sleeping")

    def __init__(self, js: JS, promise: Promise[None]) -> None:
        self._js = js
        self._resolver = Resolver(promise)
        self._sleeping = coroutines_of(js.loop).sleeping

    def begin(self, ms: float) -> None:
        """Any thread. Raises as `JS.set_timeout`."""
        self._sleeping[self] = None
        try:
            self._js.set_timeout(self._wake, ms)
        except BaseException:
            self._sleeping.pop(self, None)
            raise

    def _wake(self) -> None:
        self._sleeping.pop(self, None)
        self._resolver.resolve()

    def end(self) -> None:
        """The loop's end has come first."""
        self._sleeping.pop(self, None)
        self._resolver.reject(terminated(self._js.loop))
