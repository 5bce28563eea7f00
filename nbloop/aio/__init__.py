"""The loop as an asyncio event loop: `run`, `serve`, `new_event_loop`, `EventLoop`, `EventLoopPolicy`, `Queue`.

>>> import asyncio, nbloop
>>> async def main():
...     await asyncio.sleep(0.01)
...     return "done"
>>> nbloop.run(main())
'done'
"""

import sys
from typing import TYPE_CHECKING, Any

from .loop import EventLoop
from .queues import Queue
from .runner import new_event_loop, run
from .serving import Worker, WorkerGroup, serve

if TYPE_CHECKING:
    from .policy import EventLoopPolicy

__all__ = ["EventLoop", "EventLoopPolicy", "Queue", "Worker", "WorkerGroup", "new_event_loop", "run", "serve"]
if sys.version_info >= (3, 16):
    __all__.remove("EventLoopPolicy")


def __getattr__(name: str) -> Any:
    """Import the policy only on request, and where asyncio has one: asyncio deprecates its base class."""
    if name == "EventLoopPolicy":
        try:
            from .policy import EventLoopPolicy
        except AttributeError:
            pass
        else:
            return EventLoopPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
