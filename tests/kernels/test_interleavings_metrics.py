"""Reading figures while the loop changes them, under controlled schedules."""

from __future__ import annotations

import pytest

it = pytest.importorskip("interleave_test", reason="interleave-test is not installed")

import rig  # noqa: E402
from explorer import find, mutant, replace, search, together  # noqa: E402

from nbloop.kernels import layout, metrics  # noqa: E402

STEP = 1_000  # ns a callback takes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A reader copies the first line of LIVE only: the histograms behind it are 5,000 steps more of the same."""
    monkeypatch.setattr(metrics, "LIVE_BYTES", 16 * 8)
    monkeypatch.setattr(metrics, "PUBLISH_NS", 0)


def model() -> None:
    """One loop ends callbacks, two readers copy: k callbacks, each of STEP, are k callbacks wherever one looks."""
    with it.no_interleave():
        block = rig.np.zeros(layout.BLOCK.itemsize // 8, rig.np.int64)
        record = block.view(layout.BLOCK)[0]
        record["multiplier"] = 1 << metrics.MULTIPLIER_BITS
        record["bucket_ticks"] = 10**12
        record["live"]["stride"] = 1
        record["live"]["bucket_end"] = 10**12
        address = block.ctypes.data

    def loop() -> None:
        for _ in range(3):
            metrics.change(address)
            metrics.store(address + layout.M_GROUP, 1)
            metrics.group_ends(address, metrics.get(address + layout.M_NOW) + STEP)
            metrics.change(address)
            if metrics.load(address + layout.M_WANTED):
                metrics.publish(address)

    def read() -> None:
        for _ in range(2):
            target = rig.np.zeros(layout.LIVE.itemsize // 8, rig.np.int64)
            after = (metrics.load(address + layout.M_PUBLISHED) + 1) & ~1
            if metrics.read_block(address, target.ctypes.data, after):
                live = target.view(layout.LIVE)[0]
                assert live["now"] == live["mark"] == live["busy"] == STEP * live["callbacks"], "torn"

    together(loop, read, read)


def test_a_copy_is_of_one_moment() -> None:
    search(model, 60)


def test_a_reader_that_does_not_look_again_is_caught() -> None:
    bug = mutant(metrics.read_block, ("if load(block + M_SEQUENCE) == sequence:", "if sequence >= 0:"))
    find(model, lambda patch: replace(patch, metrics.read_block, bug))


def test_a_change_that_is_not_announced_is_caught() -> None:
    bug = mutant(metrics.change, ("get(block + M_SEQUENCE) + 1", "get(block + M_SEQUENCE) + 2"))
    find(model, lambda patch: replace(patch, metrics.change, bug))


def test_a_publication_that_is_not_announced_is_caught() -> None:
    announced = "store(block + M_PUBLISHED, get(block + M_PUBLISHED) + 1)\n"
    unannounced = "store(block + M_PUBLISHED, get(block + M_PUBLISHED) + 2)\n"
    bug = mutant(metrics.publish, (announced + "    for", unannounced + "    for"), ("    " + announced, ""))
    find(model, lambda patch: replace(patch, metrics.publish, bug))
