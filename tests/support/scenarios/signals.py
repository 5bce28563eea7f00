"""Signals for loops: asked for, asked for again, given back."""

from __future__ import annotations

import signal

from nbloop import Loop
from tests.support.waiting import wait_for
from tests.support.world import World

from .scenario import Count, Steps, scenario, until_quiet

SIGNAL = signal.SIGURG  # which does nothing by itself


def arrives(loop: Loop, count: Count) -> None:
    """The signal reaches the loop, once."""
    before = count.calls
    signal.raise_signal(SIGNAL)
    wait_for(lambda: until_quiet(loop) or count.calls > before)
    assert count.calls == before + 1


def given_back(loop: Loop, count: Count) -> None:
    """The signal can be asked for again, and has its old meaning afterwards, whatever was before."""
    loop.remove_signal_handler(SIGNAL)
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL
    assert not loop.remove_signal_handler(SIGNAL)
    loop.add_signal_handler(SIGNAL, count.add)
    arrives(loop, count)
    loop.remove_signal_handler(SIGNAL)
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL


@scenario
def add_first_signal(world: World) -> Steps:
    """Asked for, or not; no thread is left."""
    loop, count = world.loop(), Count()
    yield lambda: loop.add_signal_handler(SIGNAL, count.add)
    given_back(loop, count)


@scenario
def add_signal_again(world: World) -> Steps:
    """The old callback, or the new one."""
    loop, old, new = world.loop(), Count(), Count()
    loop.add_signal_handler(SIGNAL, old.add)
    yield lambda: loop.add_signal_handler(SIGNAL, new.add)
    signal.raise_signal(SIGNAL)
    wait_for(lambda: until_quiet(loop) or old.calls + new.calls == 1)
    given_back(loop, new)


@scenario
def remove_signal(world: World) -> Steps:
    """Given back, or still asked for."""
    loop, count = world.loop(), Count()
    loop.add_signal_handler(SIGNAL, count.add)
    yield lambda: loop.remove_signal_handler(SIGNAL)
    given_back(loop, count)


@scenario
def remove_one_of_two(world: World) -> Steps:
    """The other loop gets it all the same."""
    loop, count, other, theirs = world.loop(), Count(), world.loop(), Count()
    loop.add_signal_handler(SIGNAL, count.add)
    other.add_signal_handler(SIGNAL, theirs.add)
    yield lambda: loop.remove_signal_handler(SIGNAL)
    arrives(other, theirs)
    loop.remove_signal_handler(SIGNAL)
    given_back(other, theirs)


@scenario
def end_with_a_signal(world: World) -> Steps:
    """The end gives it back."""
    loop, count = world.loop(), Count()
    loop.add_signal_handler(SIGNAL, count.add)
    yield loop.close
    loop.close()
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL


@scenario
def doze(world: World) -> Steps:
    """Python's wake-up descriptor is given back."""
    loop = world.loop()
    loop._record["nap"] = 1
    loop.schedule_timer(0.06, loop.stop)
    yield loop.run
    until_quiet(loop)
    assert signal.set_wakeup_fd(-1) == -1
