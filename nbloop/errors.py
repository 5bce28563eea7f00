"""The errors of nbloop. Each derives from `NbloopError` and from the built-in exception that fits."""

from __future__ import annotations


class NbloopError(Exception):
    """Base class of all errors defined by nbloop.

    >>> import nbloop
    >>> loop = nbloop.Loop()
    >>> loop.close()
    >>> try:
    ...     loop.submit(print)
    ... except NbloopError as error:
    ...     print(type(error).__name__)
    LoopTerminatedError
    """


class LoopTerminatedError(NbloopError, RuntimeError):
    """The loop accepts no new work: `shutdown()` or `close()` has begun, or an auto-exit loop has ended.

    >>> import nbloop
    >>> loop = nbloop.Loop()
    >>> loop.close()
    >>> loop.submit(print)
    Traceback (most recent call last):
    nbloop.errors.LoopTerminatedError: ...
    """


class LoopAlreadyRunningError(NbloopError, RuntimeError):
    """Another thread is inside `run()`.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:  # runs on a thread of its own
    ...     loop.run()
    Traceback (most recent call last):
    nbloop.errors.LoopAlreadyRunningError: ...
    """


class ReentrantRunError(NbloopError, RuntimeError):
    """`run()` was called from one of the loop's own callbacks.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     loop.call(loop.run)
    Traceback (most recent call last):
    nbloop.errors.ReentrantRunError: ...
    """


class ReentrantCloseError(NbloopError, RuntimeError):
    """`close()` was called from one of the loop's own callbacks, whose end it would have to wait for.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     loop.call(loop.close)
    Traceback (most recent call last):
    nbloop.errors.ReentrantCloseError: ...
    """


class ReentrantWaitError(NbloopError, RuntimeError):
    """The loop's own thread would wait for something that only this thread can do.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     loop.call(loop.call, int)
    Traceback (most recent call last):
    nbloop.errors.ReentrantWaitError: ...
    """


class LoopOverloadedError(NbloopError, RuntimeError):
    """Too much is queued: `ingress_limit` was reached (nothing was stored); or, as the argument of `on_overload`, more
    tasks waited than `ingress_budget` allows in one turn (nothing was lost).

    >>> import nbloop
    >>> loop = nbloop.Loop(ingress_limit=1)
    >>> loop.submit(print)
    >>> loop.submit(print)
    Traceback (most recent call last):
    nbloop.errors.LoopOverloadedError: ...
    """


class ForkedLoopError(NbloopError, RuntimeError):
    """The loop was inherited through `os.fork`: its thread and its descriptors belong to the parent.

    >>> import nbloop, os
    >>> loop = nbloop.Loop()
    >>> if (child := os.fork()) == 0:
    ...     try:
    ...         loop.submit(print)
    ...     except ForkedLoopError:
    ...         os._exit(3)
    ...     finally:
    ...         os._exit(1)
    >>> os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    3
    """


class FDAlreadyRegisteredError(NbloopError, ValueError):
    """The descriptor already has a callback.

    >>> import nbloop, socket
    >>> with socket.socket() as one, nbloop.Loop() as loop:
    ...     loop.register_fd(one.fileno(), nbloop.IOEvents.READ, print)
    ...     loop.register_fd(one.fileno(), nbloop.IOEvents.READ, print)
    Traceback (most recent call last):
    nbloop.errors.FDAlreadyRegisteredError: ...
    """


class FDNotRegisteredError(NbloopError, LookupError):
    """The descriptor has no callback: it was never registered, or has been unregistered.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     loop.unregister_fd(0)
    Traceback (most recent call last):
    nbloop.errors.FDNotRegisteredError: ...
    """


class FDOutOfRangeError(NbloopError, ValueError):
    """No descriptor can have this number.

    >>> import nbloop
    >>> with nbloop.Loop() as loop:
    ...     loop.register_fd(-1, nbloop.IOEvents.READ, print)
    Traceback (most recent call last):
    nbloop.errors.FDOutOfRangeError: ...
    """


class PollerFailedError(NbloopError, OSError):
    """The system's poller failed, so the loop has ended; the cause is the system's error.

    Only a fault of the program or of the system raises it, such as closing the loop's own descriptor.

    >>> issubclass(PollerFailedError, OSError)
    True
    """


class FastPathIncompatibleError(NbloopError, RuntimeError):
    """The fast path was to be forced while descriptors are registered, or the reverse.

    >>> import nbloop
    >>> with nbloop.Loop(fast_path_mode=nbloop.FastPathMode.FORCED) as loop:
    ...     loop.register_fd(0, nbloop.IOEvents.READ, print)
    Traceback (most recent call last):
    nbloop.errors.FastPathIncompatibleError: ...
    """
