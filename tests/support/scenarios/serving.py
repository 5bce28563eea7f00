"""`nbloop.serve`."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

import nbloop
from nbloop.aio import serving
from tests.support.world import World

from .scenario import Steps, scenario


async def _calls(worker: nbloop.Worker) -> Any:
    return await worker.call((worker.index + 1) % worker.count, asyncio.sleep, 0, worker.index)


@scenario
def serve(world: World) -> Steps:
    """It returns or raises, its threads and loops have ended, signals lead where they led, and the next one works."""
    groups: list[serving.WorkerGroup] = []
    begin = serving.WorkerGroup.__init__

    def noted(group: serving.WorkerGroup, name: str) -> None:
        groups.append(group)
        begin(group, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.WorkerGroup, "__init__", noted)
        yield lambda: nbloop.serve(_calls, loops=2)
    for group in groups:
        if group.workers:
            assert all(loop.is_closed() for loop in group.loops)
            assert group._waiting.state is nbloop.LoopState.TERMINATED
    groups.clear()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert nbloop.serve(_calls, loops=1) == [0]
