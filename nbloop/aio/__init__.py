"""The loop as an asyncio event loop: `run`, `serve`, `new_event_loop`, `EventLoop`, `EventLoopPolicy`.

>>> import asyncio, nbloop
>>> async def main():
...     await asyncio.sleep(0.01)
...     return "done"
>>> nbloop.run(main())
'done'
"""

from .loop import EventLoop
from .runner import EventLoopPolicy, new_event_loop, run
from .serving import Worker, WorkerGroup, serve

__all__ = ["EventLoop", "EventLoopPolicy", "Worker", "WorkerGroup", "new_event_loop", "run", "serve"]
