"""The errors of nbloop. Each derives from `NbloopError` and from the built-in exception that fits."""

from __future__ import annotations


class NbloopError(Exception):
    """Base class of all errors defined by nbloop."""


class LoopTerminatedError(NbloopError, RuntimeError):
    """The loop accepts no new work: `shutdown()` or `close()` has begun, or an auto-exit loop has ended."""


class LoopAlreadyRunningError(NbloopError, RuntimeError):
    """Another thread is inside `run()`."""


class ReentrantRunError(NbloopError, RuntimeError):
    """`run()` was called from one of the loop's own callbacks."""


class ReentrantCloseError(NbloopError, RuntimeError):
    """`close()` was called from one of the loop's own callbacks, whose end it would have to wait for."""


class ReentrantWaitError(NbloopError, RuntimeError):
    """The loop's own thread would wait for something that only this thread can do."""


class LoopOverloadedError(NbloopError, RuntimeError):
    """Too much is queued: `ingress_limit` was reached (nothing was stored); or, as the argument of `on_overload`, more
    tasks waited than `ingress_budget` allows in one turn (nothing was lost).
    """


class ForkedLoopError(NbloopError, RuntimeError):
    """The loop was inherited through `os.fork`: its thread and its descriptors belong to the parent."""


class FDAlreadyRegisteredError(NbloopError, ValueError):
    """The descriptor already has a callback."""


class FDNotRegisteredError(NbloopError, LookupError):
    """The descriptor has no callback: it was never registered, or has been unregistered."""


class FDOutOfRangeError(NbloopError, ValueError):
    """No descriptor can have this number."""


class PollerFailedError(NbloopError, OSError):
    """The system's poller failed, so the loop has ended; the cause is the system's error."""


class FastPathIncompatibleError(NbloopError, RuntimeError):
    """The fast path was to be forced while descriptors are registered, or the reverse."""
