"""What does it cost to be notified that a descriptor is ready?"""

from contextlib import ExitStack, closing

import nbloop
from asv_bench import peers
from asv_bench.crossing import SETTLE
from asv_bench.descriptors import Echo, Ready, Signalled, eventfds
from asv_bench.drive import Asyncio, Driven, Nbloop
from asv_bench.measure import Sample, interleave, ratios

from .common import LOOPS

UNIT = "times as fast"


def _ours() -> Nbloop:
    if not hasattr(nbloop.Loop, "register_fd"):
        raise NotImplementedError  # asv: not applicable, to a commit from before
    return Nbloop()


def _beside(ours: Ready | Echo | Signalled, theirs: Ready | Echo | Signalled, rounds: int) -> float:
    """How many times as long `theirs` takes."""
    try:
        values = interleave(rounds, [ours, theirs])
    finally:
        ours.close()
        theirs.close()
    return Sample.of(ratios(values["theirs"], values["ours"])).median


class _Ours:
    """A loop of ours, if it has descriptors at all."""

    def setup(self, *_parameters: object) -> None:
        self.resources = ExitStack()  # asv tears down even what could not be set up
        self.ours = self.resources.enter_context(closing(_ours()))

    def teardown(self, *_parameters: object) -> None:
        self.resources.close()


def _dispatch(ours: Driven, theirs: Driven, ready: int) -> float:
    try:
        with eventfds(ready) as fds:
            return _beside(Ready("ours", ours, fds), Ready("theirs", theirs, fds), 20)
    finally:
        theirs.close()


class Dispatch(_Ours):
    """Descriptors that are ready in every turn."""

    params = (1, 1_000)
    param_names = ("ready",)

    def track_beside_asyncio(self, ready: int) -> float:
        """Decides whether a callback costs half as much as `add_reader`'s, with one ready or many: at least 2."""
        return _dispatch(self.ours, Asyncio(), ready)

    track_beside_asyncio.unit = UNIT  # type: ignore[attr-defined]


class DispatchUvloop(_Ours):
    """The same beside uvloop."""

    params = (1, 1_000)
    param_names = ("ready",)

    def setup(self, *_parameters: object) -> None:
        super().setup()
        if not peers.installed("uvloop"):
            raise NotImplementedError  # asv: not applicable

    def track_beside_uvloop(self, ready: int) -> float:
        """Decides whether it costs no more than with libuv: at least 1. No answer without uvloop."""
        return _dispatch(self.ours, peers.Uvloop(), ready)

    track_beside_uvloop.unit = UNIT  # type: ignore[attr-defined]


class Registered:
    """One descriptor that is ready, others that never are."""

    params = (tuple(LOOPS), (1, 10_000))
    param_names = ("loop", "registered")

    def setup(self, loop: str, registered: int) -> None:
        self.resources = ExitStack()
        try:
            fds = self.resources.enter_context(eventfds(1, registered - 1))
        except OSError as limit:
            raise NotImplementedError("this system allows fewer descriptors") from limit
        driven = self.resources.enter_context(closing(_ours() if loop == "nbloop" else LOOPS[loop]()))
        self.probe = self.resources.enter_context(closing(Ready("ns", driven, fds, calls=1000)))

    def teardown(self, _loop: str, _registered: int) -> None:
        self.resources.close()

    def time_1000_events(self, _loop: str, _registered: int) -> None:
        """Decides whether descriptors without events are free: the same time with 1 and with 10,000."""
        self.probe()


class Connections(_Ours):
    """64 bytes over and back on TCP connections of this machine, both ends on the loop."""

    params = (1, 100)
    param_names = ("connections",)

    def track_beside_asyncio(self, connections: int) -> float:
        """Decides whether an echo server does 1.5 times as much as with `add_reader`; most time is the system's."""
        ours, theirs = self.ours, Asyncio()
        try:
            return _beside(Echo("ours", ours, connections), Echo("theirs", theirs, connections), 20)
        finally:
            theirs.close()

    track_beside_asyncio.unit = UNIT  # type: ignore[attr-defined]


class OtherThread(_Ours):
    """An eventfd that another thread writes to while the loop sleeps."""

    def track_beside_asyncio(self) -> float:
        """Decides whether a loop that waits for descriptors wakes as soon as asyncio's: at least 1."""
        ours, theirs = self.ours, Asyncio()
        ours.start()
        theirs.start()
        try:
            return _beside(Signalled("ours", ours, SETTLE), Signalled("theirs", theirs, SETTLE), 20)
        finally:
            theirs.close()

    track_beside_asyncio.unit = UNIT  # type: ignore[attr-defined]
