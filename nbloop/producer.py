"""A producer handle: a queue into a loop for one thread at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .kernels.base.kernel import bound
from .kernels.methods import scheduling
from .kernels.state.state import HandleWords
from .lifecycle import Lifecycle
from .scheduling import Callback
from .unique import Unique


class Producer[L: Lifecycle = Any](Unique):
    """A handle for submitting from one thread at a time: made by `Loop.producer`. Its errors are those of
    `Loop.submit`.

    >>> import nbloop
    >>> ran = []
    >>> with nbloop.Loop() as loop:
    ...     handle = loop.producer()
    ...     handle.submit(ran.append, 1)
    ...     handle.submit_many([ran.clear, ran.clear])
    2
    >>> ran
    []
    """

    def __init__(self, loop: L, state: HandleWords) -> None:
        if not isinstance(state, HandleWords):  # kernels would misread anything else
            raise TypeError("a Producer is made by Loop.producer()")
        self.loop: L = loop
        self._captures = loop._captures
        self._state = state

    @bound(scheduling.producer_submit, scheduling.producer_submit_captured)
    def submit(self, callback: Callback, /, *args: object) -> None:
        """Run ``callback(*args)`` on the loop's thread, after everything submitted earlier through this handle.

        The promise and the errors are those of `Loop.submit`. It costs the same when uncontended, and no more when
        other handles are busy. One thread at a time; a signal handler that interrupts this thread counts as the same
        thread. O(1).
        """

    @bound(scheduling.producer_submit_many, scheduling.producer_submit_many_captured)
    def submit_many(self, callbacks: Iterable[Callback], /) -> int:
        """Submit every one of `callbacks`, in order, all or none; return how many. Like `Loop.submit_many`."""
        return 0  # pragma: no cover

    def __repr__(self) -> str:
        return f"<nbloop.Producer of {self.loop.name}>"
