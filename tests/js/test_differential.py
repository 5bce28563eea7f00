"""Order as in Node: random programs write the same log in both.

Problem: how many microtasks an adoption, a `finally`, an `all`, a step of an async function takes is only seen where
chains interleave, and no list of examples has them all. Idea: Node is the reference; programs come from seeds, and one
that differs is shrunk before it is shown.

``NBLOOP_JS_SEEDS=17,4711`` runs just these programs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from typing import Any

import pytest

from nbloop import Loop
from nbloop.js import JS, Promise, policy
from tests.support.differential import compare
from tests.support.differential.programs import javascript, program

COUNT = 2000
BATCH = 250
CHOSEN = [int(seed) for seed in os.environ.get("NBLOOP_JS_SEEDS", "").split(",") if seed]
BATCHES = [CHOSEN] if CHOSEN else [range(first, first + BATCH) for first in range(0, COUNT, BATCH)]

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js, the reference, is not installed")


@pytest.mark.slow
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


@pytest.mark.slow
@needs_node
def test_a_difference_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: when adopting a promise takes one job too few, it does, and shows a few lines."""
    follow = policy._follow

    def hasty(adopter: Promise[Any], resolution: Any) -> None:
        if isinstance(resolution, Promise) and resolution is not adopter:
            resolution._react(adopter._resolve, adopter._reject)
        else:
            follow(adopter, resolution)

    monkeypatch.setattr(policy, "_follow", hasty)
    programs = [program(seed) for seed in range(1, 100)]
    found = compare.first_difference(programs)
    assert found is not None
    smallest, (theirs, ours) = compare.shrink(programs[found[0]], found[1])
    assert theirs != ours
    assert len(javascript(smallest).splitlines()) <= 20


# A rejection has a number, and a plan: what the handler of unhandled rejections does when it gets it, which is to
# make others, and to have them handled in a microtask, in a next-tick, at once or never.
NODE = """
const plans = JSON.parse(require('fs').readFileSync(0)), logs = [];
let plan, log;
const make = number => {
  const promise = Promise.reject(number), how = plan[number].how;
  const handle = () => promise.catch(reason => log.push(`handled ${reason}`));
  if (how == 'now') handle();
  if (how == 'microtask') queueMicrotask(handle);
  if (how == 'tick') process.nextTick(handle);
};
process.on('unhandledRejection', reason => { log.push(`unhandled ${reason}`); plan[reason].makes.forEach(make); });
const next = () => {
  if (log) logs.push(log);
  if (!plans.length) return console.log(JSON.stringify(logs));
  plan = plans.shift(); log = [];
  plan[0].makes.forEach(make);
  setImmediate(() => setImmediate(next));
};
setImmediate(next);
"""


def _plan(seed: int) -> list[dict[str, Any]]:
    """Numbers are made in order, each by one before it."""
    chance = random.Random(seed)
    plan = [{"how": chance.choice(["never", "never", "now", "microtask", "tick"]), "makes": []} for _ in range(10)]
    for number in range(1, len(plan)):
        plan[chance.randrange(min(number, 4))]["makes"].append(number)  # type: ignore[attr-defined]
    return plan


def _unhandled_here(plan: list[dict[str, Any]]) -> list[str]:
    log: list[str] = []

    def make(number: int) -> None:
        rejected, how = js.reject(number), plan[number]["how"]

        def handle() -> None:
            rejected.catch(lambda reason: log.append(f"handled {reason}"))

        {"now": handle, "microtask": lambda: js.queue_microtask(handle), "tick": lambda: js.next_tick(handle)}.get(
            how, lambda: None
        )()

    def make_all(number: int) -> None:
        for one in plan[number]["makes"]:
            make(one)

    def unhandled(reason: Any, _promise: object) -> None:
        log.append(f"unhandled {reason}")
        make_all(reason)

    loop = Loop(auto_exit=True)
    js = JS(loop, on_unhandled_rejection=unhandled)
    loop.submit(make_all, 0)
    loop.run()
    return log


@needs_node
def test_unhandled_rejections_are_nodes() -> None:
    """Which are reported, which are handled first, and in what order, of 500 plans."""
    plans = [_plan(seed) for seed in range(500)]
    node = subprocess.run(
        ["node", "-e", NODE], input=json.dumps(plans), capture_output=True, text=True, timeout=100, check=False
    )
    assert node.returncode == 0, node.stderr
    for plan, theirs in zip(plans, json.loads(node.stdout), strict=True):
        assert _unhandled_here(plan) == theirs, plan
