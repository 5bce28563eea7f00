"""What ends with a loop: the interface between a loop and what is built on it.

Problem: workers, coroutines, signals, figures and watchdogs each have something to do at the end of their loop, and not
all at the same moment of it. A loop that named them would depend on everything above it. Idea: each is a `Part`, which
registers with its loop (`Lifecycle._part`), and the loop calls its parts, one stage of the end after the other.
"""

from __future__ import annotations


class Part:
    """Something that ends with its loop. The loop calls these methods, in the order in which they stand here.

    A loop keeps its parts, so a part must not keep its loop: the loop could then not be collected. If an exception
    leaves a stage, the next attempt to end the loop repeats it: every method may be called again. Unless it says
    otherwise, a method is called on the thread that runs or ends the loop.
    """

    __slots__ = ()

    def _run_raised(self) -> None:
        """An exception leaves `run()`."""

    def _left(self) -> None:
        """The thread leaves the loop, at the end of `run()` and at the end of the loop."""

    def _hurry(self) -> None:
        """`close()` was called: if `_finish` is waiting, it returns soon. Any thread."""

    def _finish(self) -> bool:
        """A step of a graceful end, when nothing is left to run: wait for something that is still at work elsewhere.
        False if nothing is.
        """
        return False

    def _cancel(self) -> bool:
        """A step of a graceful end, when no part has anything to finish: cancel what waits. False if nothing does."""
        return False

    def _drop(self) -> None:
        """No microtask runs any more: end what is left without one."""

    def _loop_ended(self) -> None:
        """The loop has terminated and released everything. What registers later finds it terminated."""

    def _forked(self) -> None:
        """This process is a child that was forked: the loop has stayed in the parent."""
