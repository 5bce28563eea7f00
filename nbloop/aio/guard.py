"""Using an object of one asyncio loop on another raises at once, and the message names the object and both loops.

Problem: a future, a lock and a transport belong to one loop. With a loop on each core, programs often use one on the
wrong core, and find the mistake late. asyncio refuses to wait for it, but its message names neither loop, and its
transports check nothing. Idea: the check costs nothing until the mistake is made.

* If a task may not wait for a future, its next step raises the error. `call_soon` receives that step, and this module
  adds the names to the error.
* Locks, events, conditions, semaphores and queues ask `_LoopBoundMixin._get_loop` for their loop before they wait.
  Importing this module replaces that one method of asyncio's for all loops. The new method returns and raises the same.
* A transport's kernel knows its loop's thread. On any other thread it asks `check_here`.
"""

from __future__ import annotations

import asyncio
import gc
from asyncio import mixins as _mixins
from typing import Any

_FOREIGN = "attached to a different loop"  # how asyncio's message of a future ends
_LINKS = "cr_await", "gi_yieldfrom", "ag_await"  # where a suspended frame says what it waits for


def _name(loop: object) -> str:
    """A loop as a message shows it: nbloop's loops have names; other loops look alike without their addresses."""
    return repr(loop) if hasattr(loop, "core") else object.__repr__(loop)


def _both(owner: object, here: object) -> str:
    return f"it belongs to {_name(owner)}, and this is {_name(here)}"


def _may_wait(held: object) -> bool:
    return not isinstance(held, type) and (asyncio.isfuture(held) or hasattr(held, "send") or hasattr(held, "ag_await"))


def _awaited(coroutine: Any) -> asyncio.Future[Any] | None:
    """The future that a suspended coroutine waits for, at the end of the chain of awaits; None if it hides that."""
    at = coroutine
    while at is not None and not asyncio.isfuture(at):
        following = next((inner for link in _LINKS if (inner := getattr(at, link, None)) is not None), None)
        if following is None:  # an iterator, which refers to what it works for
            following = next((held for held in gc.get_referents(at) if _may_wait(held)), None)
        at = following
    found: asyncio.Future[Any] | None = at
    return found


def name_loops(step: Any) -> None:
    """If a task's next step will raise because a future belongs to another loop, make the message name both loops."""
    for error in gc.get_referents(step):
        if type(error) is RuntimeError and str(error).endswith(_FOREIGN):
            task = step.__self__
            future = _awaited(task.get_coro())
            if future is not None:
                future._asyncio_future_blocking = False  # asyncio leaves it set, and the next await would fail
                error.args = (f"{error}: {_both(future.get_loop(), task.get_loop())}",)


_get_loop: Any = _mixins._LoopBoundMixin._get_loop  # type: ignore[attr-defined]


def _get_loop_named(self: Any) -> Any:
    """asyncio's, with both loops in its message."""
    here = asyncio._get_running_loop()
    if here is self._loop:
        return here
    try:
        return _get_loop(self)
    except RuntimeError as error:
        error.args = (f"{error}: {_both(self._loop, here)}",)
        raise


_mixins._LoopBoundMixin._get_loop = _get_loop_named  # type: ignore[attr-defined]


def check_here(transport: Any) -> None:
    """Raise RuntimeError if this thread runs a loop other than the transport's; it may run none. Raise ForkedLoopError
    in a child, where neither its bytes nor those of the parent would be in order.
    """
    here: Any = asyncio._get_running_loop()
    owner = transport._loop  # None after its end
    if owner is not None:
        owner._core._check_fork()
    if here is not owner and here is not None and owner is not None:
        fd = getattr(transport, "_sock_fd", None)  # one of TLS has none
        at = f"fd={fd} " if fd is not None else ""
        what = f"<{type(transport).__name__} {at}peer={transport.get_extra_info('peername')}>"
        raise RuntimeError(f"{what} is used on a different loop: {_both(owner, here)}")
