"""An asyncio program that reports what blocks its loop, while the loop is still blocked.

asyncio's debug mode logs a slow callback only once it is over. A watchdog on the loop's core says where it is while it
runs, and needs no debug mode. Here one of two coroutines forgets that `time.sleep` blocks the whole loop.

    python examples/blocked_asyncio.py
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

import nbloop
from nbloop.observe.watchdog import Blockage


async def beat() -> None:
    for _ in range(5):
        await asyncio.sleep(0.02)


async def forgetful() -> None:
    await asyncio.sleep(0.05)
    time.sleep(0.3)


def blocked(blockage: Blockage) -> None:  # on a thread of the watchdog
    innermost = blockage.look().stack[0]
    print(
        f"blocked for {blockage.blocked_for:.1f} s in {innermost.code.co_qualname}, line {innermost.line}", flush=True
    )


async def main() -> None:
    loop = cast(nbloop.EventLoop, asyncio.get_running_loop())
    loop.core.watch(0.1, blocked)
    await asyncio.gather(beat(), forgetful())


nbloop.run(main())
