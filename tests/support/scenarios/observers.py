"""Figures, the flight recorder, watchdogs, profiles, the debug server."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import threading
import urllib.request

from nbloop import Loop
from nbloop.observe import serve, shared
from nbloop.observe.contention import contention as contention_of
from nbloop.observe.profile import Profiler, profile
from nbloop.observe.server import DebugServer
from nbloop.observe.watchdog import Watchdog
from tests.support.waiting import wait_for
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
def shared_figures(world: World) -> Steps:
    """What is half made leaves neither a file nor a descriptor."""
    made: list[Loop] = []
    yield lambda: made.append(Loop(metrics="shared"))
    for loop in made:
        assert len(own_files()) == 1
        loop.close()
    made.clear()
    if own_files():
        gc.collect()
    assert own_files() == []


def own_files() -> list[str]:
    return [name for name in os.listdir(shared.folder()) if f"{os.getpid()}-" in name]


@scenario
def shared_figures_end(world: World) -> Steps:
    """The file goes with the loop, or with the next attempt to end it."""
    loop = world.loop(metrics="shared")
    yield loop.close
    loop.close()
    assert own_files() == []


@scenario
def shared_figures_read(world: World) -> Steps:
    """A look opens nothing that stays."""
    loop = world.loop(metrics="shared")

    channel = loop.channel([("x", "f8")], int)

    def look() -> bool:
        (seen,) = shared.loops(os.getpid())
        return seen.alive() and seen.snapshot().errors == 0 and [one.name for one in seen.channels()] == [channel.name]

    yield look
    assert [seen.name for seen in shared.loops(os.getpid())] == [loop.name]


@scenario
def watch(world: World) -> Steps:
    """A watchdog is returned, or there is none."""
    loop = world.running()
    made: list[Watchdog] = []
    yield lambda: made.append(loop.watch(0.01))
    assert [part for part in loop._all_parts() if isinstance(part, Watchdog)] == made


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
def profiler_start(world: World) -> Steps:
    """Its thread ends, also where the caller has not learnt that it began."""
    made = Profiler(1000)
    begun: list[None] = []
    yield lambda: begun.append(made.start())  # type: ignore[func-returns-value]
    if begun:
        made.stop()
    else:
        wait_for(lambda: not made._thread.is_alive())


@scenario
def profiler(world: World) -> Steps:
    """Its thread ends."""
    world.running()
    yield lambda: profile(0.001, 1000)


@scenario
def debug_server(world: World) -> Steps:
    """A server is returned that works, or there is none: its thread ends, and the port is free."""
    loop = world.running()
    made: list[DebugServer] = []
    yield lambda: made.append(serve(loop))
    for server in made:
        with urllib.request.urlopen(server.url + "healthz") as answer:
            assert answer.status == 200
        world.to_go(server).close()
    wait_for(lambda: f"{loop.name}-debug" not in {thread.name for thread in threading.enumerate()})


@scenario
def debug_server_returned_by_c(world: World) -> Steps:
    """Where nobody can have got the server, because a call of C returned it, it ends with its loop."""
    loop = world.running()
    yield functools.partial(serve, loop)


@scenario
def debug_server_close(world: World) -> Steps:
    """It is closed, or can be."""
    server = serve(world.running())
    yield server.close
    server.close()
