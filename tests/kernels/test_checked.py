"""checked.py finds an index that is out of bounds, memory that was given back, and nothing where nothing is wrong.

In a process of its own: from then on every kernel there is plain Python, and checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# What a bug is, where, and what shows it: the play that touches what is not there.
PLANTED = {
    "a ring that forgets where a block ends": ("ring.ring_push", "at == get(ring + RING.TAIL_END)", "at == 0", "rings"),
    "a slot of the next slab": (
        "slot_slabs.slot_at",
        "slot & (PER_SLAB - 1)",
        "slot & (PER_SLAB - 1) | PER_SLAB",
        "timers",
    ),
    "a heap with too little room": (
        "timer_heap.heap_reserve",
        "needed <= capacity",
        "needed <= 2 * capacity",
        "timers",
    ),
    "a chunk of the next slab": ("pool.pool_address", "(chunk & (PER_SLAB - 1))", "chunk", "burst"),
    "a chunk that is longer": (
        "buckets.bucket_grow",
        "address + get(pool + POOL.CHUNK_BYTES)",
        "address + (1 << 20)",
        "far",
    ),
    "a slab that was given back": (
        "pool.slab_give",
        "map_give(made, get(pool + POOL.CHUNK_BYTES) << CHUNKS_PER_SLAB_BITS)",
        "map_give(made, get(pool + POOL.CHUNK_BYTES) << CHUNKS_PER_SLAB_BITS)\n    store(made, 0)",
        "burst",
    ),
    "an argument far away": (  # the next word may be another array's: no bounds are broken
        "scheduling.pack_arguments",
        "get(rest + (i << 3))",
        "get(rest + ((i + (1 << 30)) << 3))",
        "tasks",
    ),
}

PLAY = """
    import json, sys
    from tests.support import checked, sources
    import nbloop, nbloop.js
    checked.install()
    import pytest
    from tests.support import explorer
    from nbloop.testing import VirtualClock

    def turns(loop, n=1):
        for _ in range(n):
            loop.stop()
            loop.run()

    def tasks(loop):
        for i in range(300):
            loop.submit(int, i)
        loop.submit_many([int] * 100)
        with pytest.raises(TypeError):  # of a string the collector knows nothing
            loop.submit_many([int, "never seen " + str(id(loop))])
        turns(loop, 2)

    def rings(loop):
        for _ in range(2):
            loop.submit(lambda: [loop.schedule_microtask(int) for _ in range(3000)])
            turns(loop)

    def timers(loop):
        loop.submit(lambda: [loop.schedule_timer(0, int) for _ in range(1500)])
        turns(loop, 3)

    def far(loop):
        loop.submit(lambda: [loop.schedule_timer(3600, int) for _ in range(2000)])
        turns(loop)

    def burst(loop):
        loop.submit_many([int] * 20_000)
        turns(loop, 21)
        loop.schedule_timer(0.3, loop.stop)
        loop.run()  # sleeps, and gives memory back first

    def plant(place, old, new):
        module, name = place.split(".")
        original = getattr(sources.module(module), name)
        return original, explorer.mutant(original, (old, new))

    found = {}
    for bug, (place, old, new, play) in {None: (None, None, None, None), **PLANTED}.items():
        with pytest.MonkeyPatch.context() as patch:
            if bug:
                explorer.replace(patch, *plant(place, old, new))
            before = len(checked.checker.problems)
            checked.checker.objects = checked.Regions()  # a bug may have taken anything for an object of terabytes
            loop = nbloop.Loop(chunk_size=16)
            try:
                for one in (tasks, rings, timers, far, burst) if bug is None else (globals()[play],):
                    one(loop)
            except checked.OutOfBounds:
                pass
            found[str(bug)] = checked.checker.problems[before:][:1]
            loop._state.whole = False  # a state that a bug has been at is not to be followed any more, nor dismantled
            nbloop.kernels.state.state._whole.clear()
            loop._ended.set()
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What was out of bounds without a bug, and with each."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    code = f"PLANTED = {PLANTED!r}\n" + textwrap.dedent(PLAY)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_within_bounds(found: dict[str, Any]) -> None:
    assert found["None"] == []


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_is_caught(found: dict[str, Any], bug: str) -> None:
    assert found[bug], "nobody noticed"
