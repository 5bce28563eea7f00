"""What a loop raises. Every error derives from `NbloopError`, and is also the built-in that fits."""

from __future__ import annotations


class NbloopError(Exception):
    """Base of all errors that nbloop raises on its own account."""


class LoopTerminatedError(NbloopError, RuntimeError):
    """The loop takes no new work: `shutdown()` or `close()` has begun, or an auto-exit loop has ended."""


class LoopAlreadyRunningError(NbloopError, RuntimeError):
    """Another thread is inside `run()`."""


class ReentrantRunError(NbloopError, RuntimeError):
    """`run()` was called from one of the loop's own callbacks."""


class ReentrantCloseError(NbloopError, RuntimeError):
    """`close()` was called from one of the loop's own callbacks, for whose end it would have to wait."""


class ReentrantWaitError(NbloopError, RuntimeError):
    """The loop's own thread was asked to wait for something that only this thread can do."""


class LoopOverloadedError(NbloopError, RuntimeError):
    """More is queued than the loop was built to take: `ingress_limit` was reached (nothing was stored), or, as the
    argument of `on_overload`, more tasks waited than `ingress_budget` allows in one turn (nothing was lost).
    """


class ForkedLoopError(NbloopError, RuntimeError):
    """The loop was inherited through `os.fork`: its thread, and the descriptors it sleeps on, belong to the parent."""


class FDAlreadyRegisteredError(NbloopError, ValueError):
    """The descriptor has a callback already."""


class FDNotRegisteredError(NbloopError, LookupError):
    """The descriptor has no callback: it was never registered, or not any more."""


class FDOutOfRangeError(NbloopError, ValueError):
    """No descriptor can have this number."""


class PollerFailedError(NbloopError, OSError):
    """The system's poller fails, so the loop has ended; the cause is the system's error."""


class FastPathIncompatibleError(NbloopError, RuntimeError):
    """The fast path was forced while descriptors are registered, or a descriptor registered while it is forced."""
