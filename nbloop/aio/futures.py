"""Futures that only say that something has happened."""

from __future__ import annotations

import asyncio


def set_done(future: asyncio.Future[None]) -> None:
    """Complete a future, unless it is done: its waiter may have been cancelled meanwhile. Its loop's thread."""
    if not future.done():
        future.set_result(None)
