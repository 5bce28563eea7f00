"""What does an asyncio program gain from `nbloop.aio`?"""

import asyncio
import contextlib
from typing import Any

import nbloop
from asv_bench import coroutines, crossing, peers, workloads
from asv_bench.descriptors import eventfds
from asv_bench.drive import Asyncio, NbloopAio
from asv_bench.measure import Probe, Sample, interleave, nothing, ratios
from asv_bench.served import Served, ServedDatagrams, Visited

from .common import ROUNDS

MAKERS = {"nbloop.aio": nbloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def _times_asyncio(ours: Probe, theirs: Probe, name: str = "") -> float:
    values = interleave(ROUNDS, [ours, theirs])
    return Sample.of(ratios(values[f"asyncio{name}"], values[f"nbloop.aio{name}"])).median


class OwnThread:
    """On the loop's own thread."""

    def setup(self) -> None:
        self.loops = NbloopAio(), Asyncio()

    def teardown(self) -> None:
        for of in self.loops:
            of.close()

    def track_call_soon(self) -> float:
        """Decides whether scheduling and running a handle is any faster; most of that is asyncio's own Python."""
        return _times_asyncio(*(workloads.burst(of.name, of, of.soon) for of in self.loops), "+run")  # type: ignore[misc]

    def track_timers(self) -> float:
        """Decides the same for `call_later` and `cancel`, as around each operation with a timeout."""
        return _times_asyncio(*(workloads.timer_pairs(of.name, of) for of in self.loops))

    def track_switch(self) -> float:
        """Decides how much of that remains where tasks take turns."""
        return _times_asyncio(*(coroutines.switches(of.name, of) for of in self.loops))

    def track_tasks(self) -> float:
        """Decides whether `create_task` stays a kernel: Python's method takes as long as the rest of such a task."""
        return _times_asyncio(*(coroutines.tasks(of.name, of) for of in self.loops))

    def track_streams(self) -> float:
        """Decides whether watching descriptors costs no more than with asyncio's selector: 1 is as fast."""
        return _times_asyncio(*(coroutines.Streams(of.name, of) for of in self.loops))

    track_call_soon.unit = track_timers.unit = track_switch.unit = "times as fast as asyncio"  # type: ignore[attr-defined]
    track_tasks.unit = track_streams.unit = "times as fast as asyncio"  # type: ignore[attr-defined]


class Watching:
    """On the loop's own thread, beside 250 descriptors of which none is ready."""

    params = ("asyncio", "uvloop")
    param_names = ("beside",)

    def setup(self, beside: str) -> None:
        self._resources = contextlib.ExitStack()
        if beside == "uvloop" and not peers.installed("uvloop"):
            raise NotImplementedError("uvloop is not installed: make peers")
        fds = self._resources.enter_context(eventfds(0, idle=250))
        self.loops = NbloopAio(), (peers.Uvloop if beside == "uvloop" else Asyncio)()
        for of in self.loops:
            self._resources.callback(of.close)
            for fd in fds:
                of.watch(fd, nothing)

    def teardown(self, _beside: str) -> None:
        self._resources.close()

    def track_chain(self, beside: str) -> float:
        """Decides what it is worth not to poll in each turn while callbacks are ready."""
        values = interleave(ROUNDS, [workloads.chain(of.name, of, of.soon) for of in self.loops])
        return Sample.of(ratios(values["nbloop.aio"], values[beside])).median

    track_chain.unit = "times the other loop's time"  # type: ignore[attr-defined]


class Lifecycle:
    """From nothing to a loop, and back."""

    def track_make_and_close(self) -> float:
        """Decides whether a test or a thread can have a loop of its own for what it does in a millisecond."""
        return _times_asyncio(*(coroutines.lives(name, make) for name, make in MAKERS.items()))

    def track_runner(self) -> float:
        """Decides the same for `asyncio.run`, which also ends generators and workers."""
        return _times_asyncio(*(coroutines.runs(name, make) for name, make in MAKERS.items()))

    track_make_and_close.unit = track_runner.unit = "times as fast as asyncio"  # type: ignore[attr-defined]


class Threads:
    """From other threads."""

    params = (1, 4)
    param_names = ("producers",)

    def setup(self, _producers: int) -> None:
        self.loops = NbloopAio(), Asyncio()
        for of in self.loops:
            of.start()

    def teardown(self, _producers: int) -> None:
        for of in self.loops:
            of.close()

    def track_call_soon_threadsafe(self, producers: int) -> float:
        """Decides what a wake without a system call is worth, with one calling thread and with several."""
        probes = (crossing.race(of.name, crossing.entrance(of), producers, 20_000) for of in self.loops)
        return _times_asyncio(*probes)

    track_call_soon_threadsafe.unit = "times as fast as asyncio"  # type: ignore[attr-defined]


class _Served:
    """CPU time of a server's thread, beside that of another loop's."""

    def setup(self, beside: str, *how: Any) -> None:
        self.loops: tuple[Any, ...] = ()
        self.probes: list[Any] = []  # what is left of a set-up that is skipped is taken down, too
        if beside == "uvloop" and not peers.installed("uvloop"):
            raise NotImplementedError("uvloop is not installed: make peers")
        self.loops = NbloopAio(), (peers.Uvloop if beside == "uvloop" else Asyncio)()
        for of in self.loops:
            of.start()
        self.probes = [self.probe(of, *how) for of in self.loops]

    def probe(self, of: Any, *how: Any) -> Any:
        raise NotImplementedError

    def teardown(self, *_how: Any) -> None:
        for probe, of in zip(self.probes, self.loops, strict=True):
            probe.close()
            of.close()

    def ratio(self, beside: str, rounds: int = ROUNDS) -> float:
        values = interleave(rounds, self.probes)
        return Sample.of(ratios(values["nbloop.aio"], values[beside])).median


class Server(_Served):
    """CPU time of a server's thread."""

    params = (("asyncio", "uvloop"), (False, True), (64, 1024, 102_400))
    param_names = ("beside", "streams", "bytes")
    tls = False

    def probe(self, of: Any, streams: bool, size: int) -> Served:
        return Served(of.name, of, streams, size, self.tls)

    def track_message(self, beside: str, _streams: bool, _size: int) -> float:
        """Decides what transports in kernels are worth to a server, and how far they are from uvloop's."""
        return self.ratio(beside)

    track_message.unit = "times the other loop's CPU time"  # type: ignore[attr-defined]


class SecureServer(Server):
    """CPU time of a server's thread, with TLS."""

    params = (("asyncio", "uvloop"), (False, True), (1024,))
    tls = True


class Datagrams(_Served):
    """CPU time of a server's thread."""

    params = (("asyncio", "uvloop"), (64, 1024))
    param_names = ("beside", "bytes")

    def probe(self, of: Any, size: int) -> ServedDatagrams:
        return ServedDatagrams(of.name, of, size)

    def track_datagram(self, beside: str, _size: int) -> float:
        """Decides what datagrams received and sent by kernels are worth to a server, and how far uvloop's are."""
        return self.ratio(beside)

    track_datagram.unit = "times the other loop's CPU time"  # type: ignore[attr-defined]


class Connections(_Served):
    """CPU time of a server's thread."""

    params = (("asyncio", "uvloop"), (False, True))
    param_names = ("beside", "line")

    def probe(self, of: Any, line: bool) -> Visited:
        return Visited(of.name, of, line)

    def track_connection(self, beside: str, _line: bool) -> float:
        """Decides what it costs a server that connections come and go: system calls, and Python around them."""
        return self.ratio(beside, ROUNDS // 4)  # of 1,000 connections each: 40 rounds took half a minute

    track_connection.unit = "times the other loop's CPU time"  # type: ignore[attr-defined]
