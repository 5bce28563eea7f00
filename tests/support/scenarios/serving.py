"""`nbloop.serve`."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import nbloop
from tests.support.world import World

from .scenario import Steps, scenario


async def _calls(worker: nbloop.Worker) -> Any:
    return await worker.call((worker.index + 1) % worker.count, asyncio.sleep, 0, worker.index)


@scenario
def serve(world: World) -> Steps:
    """It returns or raises, its threads have ended, signals lead where they led, and the next one works."""
    yield lambda: nbloop.serve(_calls, loops=2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert nbloop.serve(_calls, loops=1) == [0]
