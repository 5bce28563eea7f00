"""An asyncio policy that makes nbloop's loops. It has a file of its own, because Python 3.14 deprecates its base class
and 3.16 removes it: nothing reads that class before a program asks for the policy.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

from ..unique import Unique
from .loop import EventLoop

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    _Policy: Any = asyncio.DefaultEventLoopPolicy


class EventLoopPolicy(Unique, _Policy):  # type: ignore[misc]
    """``asyncio.set_event_loop_policy(nbloop.EventLoopPolicy())`` makes each new asyncio loop an nbloop one, for
    programs that do not accept a loop factory. asyncio deprecates policies from Python 3.14 on. From 3.16 on it has
    none, and nbloop has no such name.

    As asyncio's policy: any thread, O(1), and the errors of `nbloop.new_event_loop` when it makes a loop.

    >>> loop = EventLoopPolicy().new_event_loop()
    >>> isinstance(loop, EventLoop)
    True
    >>> loop.close()
    """

    _loop_factory = EventLoop
