"""Order as in Node: random programs write the same log in both.

Problem: how many microtasks an adoption, a `finally`, an `all`, a step of an async function takes is only seen where
chains interleave, and no list of examples has them all. Idea: Node is the reference; programs come from seeds, and one
that differs is shrunk before it is shown.

``NBLOOP_JS_SEEDS=17,4711`` runs just these programs.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from nbloop.js import promise
from tests.support.differential import compare
from tests.support.differential.programs import javascript, program

COUNT = 2000
BATCH = 250
CHOSEN = [int(seed) for seed in os.environ.get("NBLOOP_JS_SEEDS", "").split(",") if seed]
BATCHES = [CHOSEN] if CHOSEN else [range(first, first + BATCH) for first in range(0, COUNT, BATCH)]

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js, the reference, is not installed")


@needs_node
@pytest.mark.parametrize("seeds", BATCHES, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_the_order_is_nodes(seeds: range | list[int]) -> None:
    """Both logs are equal for every seed."""
    programs = [program(seed) for seed in seeds]
    found = compare.first_difference(programs)
    if found is not None:
        index, logs = found
        smallest, logs = compare.shrink(programs[index], logs)
        pytest.fail(compare.report(seeds[index], smallest, logs), pytrace=False)


@needs_node
def test_a_difference_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: when adopting a promise takes one job too few, it does, and shows a few lines."""
    follow = promise._follow

    def hasty(adopter: promise.Promise[Any], resolution: Any) -> None:
        if isinstance(resolution, promise.Promise) and resolution is not adopter:
            resolution._react(adopter._resolve, adopter._reject)
        else:
            follow(adopter, resolution)

    monkeypatch.setattr(promise, "_follow", hasty)
    programs = [program(seed) for seed in range(1, 100)]
    found = compare.first_difference(programs)
    assert found is not None
    smallest, (theirs, ours) = compare.shrink(programs[found[0]], found[1])
    assert theirs != ours
    assert len(javascript(smallest).splitlines()) <= 20
