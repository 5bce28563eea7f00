"""Figures, the flight recorder, watchdogs, profiles, the debug server."""

from __future__ import annotations

import contextlib
import os
import signal
import urllib.request
from typing import Any

from nbloop.observe import serve
from nbloop.observe.contention import contention as contention_of
from nbloop.observe.profile import profile
from tests.support.world import World

from .scenario import Steps, scenario


@scenario
def metrics(world: World) -> Steps:
    """A look changes nothing."""
    loop = world.running(metrics=True)
    yield loop.metrics
    assert loop.metrics() is not None


@scenario
def recorder(world: World) -> Steps:
    """A look changes nothing."""
    loop = world.running(recorder=64)
    loop.submit(int)
    yield lambda: loop.recorder and loop.recorder.events()
    assert loop.recorder is not None
    loop.recorder.events()


@scenario
def dump(world: World) -> Steps:
    """The file is there as a whole, or it is not there."""
    loop = world.loop(recorder=64)
    path = f"/tmp/nbloop-dump-{os.getpid()}"
    assert loop.recorder is not None
    recorder = loop.recorder
    yield lambda: recorder.dump(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    parts = [name for name in os.listdir("/tmp") if name.startswith(f".nbloop-dump-{os.getpid()}")]
    assert parts == []


@scenario
def watch(world: World) -> Steps:
    """A watchdog whose making was interrupted ends with its loop."""
    loop = world.running()
    yield lambda: loop.watch(0.01)


@scenario
def contention(world: World) -> Steps:
    """A look changes nothing."""
    loop = world.loop()
    yield lambda: contention_of(loop, 0)


@scenario
def watch_and_stop(world: World) -> Steps:
    """No handler is called any more, or the loop still has the watchdog."""
    loop = world.running()
    watchdog = world.to_go(loop.watch(0.01))
    yield watchdog.stop
    watchdog.stop()
    assert watchdog not in loop._parts


@scenario
def dump_on(world: World) -> Steps:
    """The signal is taken, or it is not; the end of the loop gives it back."""
    loop = world.loop(recorder=64)
    recorder = loop.recorder
    assert recorder is not None
    yield lambda: recorder.dump_on("/nowhere/at/all", signal=signal.SIGURG)
    loop.close()
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


@scenario
def profiler(world: World) -> Steps:
    """Its thread ends."""
    world.running()
    yield lambda: profile(0.001, 1000)


@scenario
def debug_server(world: World) -> Steps:
    """Its thread ends, and the port is free."""
    loop = world.running()
    made: list[Any] = []
    yield lambda: made.append(serve(loop))
    for server in made:
        world.to_go(server)
        with urllib.request.urlopen(server.url + "healthz") as answer:
            assert answer.status == 200
        server.close()


@scenario
def debug_server_close(world: World) -> Steps:
    """It is closed, or can be."""
    server = serve(world.running())
    yield server.close
    server.close()
