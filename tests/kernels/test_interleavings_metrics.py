"""Reading figures while the loop changes them, under controlled schedules."""

from __future__ import annotations

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

from nbloop.kernels.base import layout  # noqa: E402
from nbloop.kernels.observe import meter  # noqa: E402
from tests.support import rig  # noqa: E402
from tests.support.explorer import find, mutant, replace, search, together  # noqa: E402

STEP = 1_000  # ns a callback takes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A reader copies the first line of LIVE only: the histograms behind it are 5,000 steps more of the same."""
    monkeypatch.setattr(meter, "LIVE_BYTES", 16 * 8)
    monkeypatch.setattr(meter, "PUBLISH_NS", 0)


def model() -> None:
    """One loop ends callbacks, two readers copy: k callbacks, each of STEP, are k callbacks wherever one looks."""
    with it.no_interleave():
        block = rig.np.zeros(layout.BLOCK.dtype.itemsize // 8, rig.np.int64)
        record = block.view(layout.BLOCK.dtype)[0]
        record["multiplier"] = 1 << meter.MULTIPLIER_BITS
        record["bucket_ticks"] = 10**12
        record["live"]["stride"] = 1
        record["live"]["bucket_end"] = 10**12
        address = block.ctypes.data

    def loop() -> None:
        for _ in range(3):
            meter.change(address)
            meter.store(address + layout.LIVE.GROUP, 1)
            meter.group_ends(address, meter.get(address + layout.LIVE.NOW) + STEP)
            meter.change(address)
            if meter.load(address + layout.BLOCK.WANTED):
                meter.publish(address)

    def read() -> None:
        for _ in range(2):
            target = rig.np.zeros(layout.LIVE.dtype.itemsize // 8, rig.np.int64)
            after = (meter.load(address + layout.BLOCK.PUBLISHED) + 1) & ~1
            if meter.read_block(address, target.ctypes.data, after):
                live = target.view(layout.LIVE.dtype)[0]
                assert live["now"] == live["mark"] == live["busy"] == STEP * live["callbacks"], "torn"

    together(loop, read, read)


@pytest.mark.slow
def test_a_copy_is_of_one_moment() -> None:
    search(model, 60)


def test_a_reader_that_does_not_look_again_is_caught() -> None:
    bug = mutant(meter.read_block, ("if load(block + BLOCK.SEQUENCE) == sequence:", "if sequence >= 0:"))
    find(model, lambda patch: replace(patch, meter.read_block, bug))


def test_a_change_that_is_not_announced_is_caught() -> None:
    bug = mutant(meter.change, ("get(block + BLOCK.SEQUENCE) + 1", "get(block + BLOCK.SEQUENCE) + 2"))
    find(model, lambda patch: replace(patch, meter.change, bug))


def test_a_publication_that_is_not_announced_is_caught() -> None:
    announced = "store(block + BLOCK.PUBLISHED, get(block + BLOCK.PUBLISHED) + 1)\n"
    unannounced = "store(block + BLOCK.PUBLISHED, get(block + BLOCK.PUBLISHED) + 2)\n"
    bug = mutant(meter.publish, (announced + "    for", unannounced + "    for"), ("    " + announced, ""))
    find(model, lambda patch: replace(patch, meter.publish, bug), first_seed=6)
