"""The loop as an asyncio event loop: `run`, `new_event_loop`, `EventLoop`, `EventLoopPolicy`.

>>> import asyncio, nbloop
>>> async def main():
...     await asyncio.sleep(0.01)
...     return "done"
>>> nbloop.run(main())
'done'
"""

from .loop import EventLoop
from .runner import EventLoopPolicy, new_event_loop, run

__all__ = ["EventLoop", "EventLoopPolicy", "new_event_loop", "run"]
