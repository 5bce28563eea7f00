"""Channels: made, put into, shut down."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np

from nbloop import Channel, ChannelProducer, Loop
from tests.support.waiting import wait_for
from tests.support.world import World

from .scenario import Steps, scenario, until_quiet

NUMBER = np.dtype([("n", "i8")])


class Got:
    """An `on_batch` that keeps the numbers."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, records: Any) -> None:
        self.numbers.extend(records["n"].tolist())


@scenario
def channel(world: World) -> Steps:
    """A whole one, or none: it delivers."""
    loop, got, made = world.loop(), Got(), list[Channel]()
    yield lambda: made.append(loop.channel(NUMBER, got))
    for one in made:
        one.put(7)
    until_quiet(loop)
    assert got.numbers == [7] * len(made)


@scenario
def channel_producer(world: World) -> Steps:
    """A whole one, or none: it delivers."""
    loop, got, made = world.loop(), Got(), list[ChannelProducer]()
    channel = loop.channel(NUMBER, got)
    yield lambda: made.append(channel.producer())
    for one in made:
        one.put(7)
    channel.put(8)
    until_quiet(loop)
    assert sorted(got.numbers) == [7] * len(made) + [8]


def _puts(loop: Loop, call: str, argument: Any, numbers: list[int]) -> Steps:
    """All of the records are there, or none, and later ones are behind them."""
    got = Got()
    channel = loop.channel(NUMBER, got)
    yield lambda: getattr(channel, call)(argument)
    channel.put(-1)
    wait_for(lambda: -1 in got.numbers)
    assert got.numbers in ([*numbers, -1], [-1])
    wait_for(lambda: channel.delivered == len(got.numbers))
    assert channel.waiting() == 0


@scenario
def put(world: World) -> Steps:
    return _puts(world.running(), "put", 3, [3])


@scenario
def put_many(world: World) -> Steps:
    records = np.arange(5).astype([("n", "i8")])
    return _puts(world.running(), "put_many", records, [0, 1, 2, 3, 4])


@scenario
def put_many_of_another_layout(world: World) -> Steps:
    """Numpy copies it first."""
    records = np.arange(10).astype([("n", "i8")])[::2]
    return _puts(world.running(), "put_many", records, [0, 2, 4, 6, 8])


def _refuses(channel: Channel) -> bool:
    try:
        channel.put(9)
    except queue.ShutDown:
        return True
    return False


@scenario
def channel_shutdown(world: World) -> Steps:
    """What was accepted before is delivered, and the next call completes it."""
    loop, got = world.running(), Got()
    channel = loop.channel(NUMBER, got)
    channel.put(1)
    yield channel.shutdown
    channel.shutdown()
    assert _refuses(channel)
    wait_for(lambda: got.numbers == [1])


@scenario
def shutdown_with_channels(world: World) -> Steps:
    """The loop's end delivers what was accepted."""
    loop, got = world.loop(), Got()
    loop.channel(NUMBER, got).put(1)
    yield loop.shutdown
    loop.shutdown()
    assert got.numbers == [1]
