"""What the tests of the JavaScript view share: a view over a loop that is run turn by turn, and threads that start at
once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nbloop import Loop
from nbloop.js import JS, Promise
from tests.support.waiting import PATIENCE


class Page:
    """A view, its loop, and what went wrong in them: `unhandled` has the reasons reported, `errors` what callbacks
    raised.
    """

    def __init__(self, **options: Any) -> None:
        self.unhandled: list[Any] = []
        self.errors: list[BaseException] = []
        self.loop = Loop(on_error=lambda error, _context: self.errors.append(error), **options)
        self.js = JS(self.loop, on_unhandled_rejection=lambda reason, _promise: self.unhandled.append(reason))
        self._never: list[object] = []

    def turn(self, count: int = 1) -> None:
        """Run single turns on this thread, without waiting."""
        for _ in range(count):
            self.loop.stop()
            self.loop.run()

    def never(self) -> Promise[Any]:
        """A promise that nobody settles. It lives as long as the page: without a reference to it, a collection at any
        moment would end the coroutine that awaits it.
        """
        self._never.append(kept := self.js.with_resolvers())
        return kept[0]

    def quiet(self) -> None:
        """Run turns until nothing is left to run."""
        self.until(lambda: not self.loop.alive())

    def until(self, predicate: Callable[[], object]) -> None:
        """Run turns until the predicate is true."""
        deadline = time.monotonic() + PATIENCE
        self.turn()
        while not predicate():
            assert time.monotonic() < deadline, "it did not become true"
            self.turn()

    def outcome(self, promise: Promise[Any]) -> tuple[str, Any]:
        """Run until the promise is settled: its state, and its value or reason."""
        seen: list[tuple[str, Any]] = []
        promise.then(lambda value: seen.append(("fulfilled", value)), lambda reason: seen.append(("rejected", reason)))
        self.until(lambda: seen)
        return seen[0]

    def value(self, promise: Promise[Any]) -> Any:
        """Run until the promise is fulfilled: its value."""
        state, value = self.outcome(promise)
        assert state == "fulfilled", value
        return value

    def reason(self, promise: Promise[Any]) -> Any:
        """Run until the promise is rejected: its reason."""
        state, reason = self.outcome(promise)
        assert state == "rejected", reason
        return reason

    def on_loop(self, function: Callable[[], Any]) -> Any:
        """What the function returns when it runs as a callback; the loop is then run until nothing is left."""
        results: list[Any] = []
        self.loop.submit(lambda: results.append(function()))
        self.quiet()
        return results[0]
