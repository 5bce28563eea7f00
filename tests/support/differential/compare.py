"""Run programs in both, and make one that differs small.

All candidates of a step of shrinking are one batch, since starting Node costs more than running a hundred programs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import here
from .programs import COMBINATORS, Tree, javascript, timed

RUNNER = Path(__file__).with_name("node.mjs")
ATTEMPTS = 4  # for a program with timeouts: on a busy machine two may be due at once
EXPRESSIONS = {"value", "error", "argument", "place", "defer", "resolve", "reject", "new", "thenable", "call", "async"}
EXPRESSIONS |= {"then", "catch", "finally"} | set(COMBINATORS)

type Logs = tuple[list[str], list[str]]  # Node's, ours


def run_node(programs: list[Tree]) -> list[list[str]]:
    """Node's logs."""
    done = subprocess.run(
        ["node", str(RUNNER)],
        input="".join(json.dumps(javascript(program)) + "\n" for program in programs),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_both(programs: list[Tree]) -> list[Logs]:
    """Both logs of each."""
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(run_node, programs)
        ours = [here.run(program) for program in programs]
        return list(zip(theirs.result(), ours, strict=True))


def first_difference(programs: list[Tree]) -> tuple[int, Logs] | None:
    """The first program that two logs show to differ, and these."""
    for index, (theirs, ours) in enumerate(run_both(programs)):
        if theirs == ours:
            continue
        again = [run_both([programs[index]])[0] for _ in range(ATTEMPTS - 1 if timed(programs[index]) else 0)]
        if all(a != b for a, b in again):
            return index, (theirs, ours)
    return None


def shrink(program: Tree, logs: Logs) -> tuple[Tree, Logs]:
    """The smallest program found that differs, and its logs: as long as one with less differs, go on with that."""
    while True:
        candidates = sorted(_smaller(program), key=lambda tree: len(json.dumps(tree)))
        found = first_difference(candidates)
        if found is None:
            return program, logs
        program, logs = candidates[found[0]], found[1]


def _smaller(tree: Tree) -> Iterator[Tree]:
    """Every tree with less in one place: a statement or item dropped, a statement replaced by a block inside it, an
    expression by a part or a leaf, a handler by none.
    """
    node = bool(tree) and isinstance(tree[0], str)
    if node and tree[0] in EXPRESSIONS and len(tree) > 2:
        yield ["place", 0]
        yield from _parts(tree[1:])
    for index, part in enumerate(tree):
        before, after = tree[:index], tree[index + 1 :]
        if not isinstance(part, list):
            continue
        if not node:
            yield before + after
            if part[0] not in EXPRESSIONS:
                yield from (before + block + after for block in _blocks(part) if "await" not in json.dumps(block))
        elif part[:1] in (["function"], ["async function"]):
            yield [*before, None, *after]
        for less in _smaller(part):
            yield [*before, less, *after]


def _parts(trees: Tree) -> Iterator[Tree]:
    """The outermost expressions inside."""
    for tree in trees:
        if isinstance(tree, list) and tree:
            if isinstance(tree[0], str) and tree[0] in EXPRESSIONS:
                yield tree
            else:
                yield from _parts(tree)


def _blocks(tree: Tree) -> Iterator[Tree]:
    """The outermost blocks inside."""
    for part in tree:
        if isinstance(part, list) and part:
            if isinstance(part[0], list) and part[0][0] not in EXPRESSIONS:
                yield part
            else:
                yield from _blocks(part)


def report(seed: int, program: Tree, logs: Logs) -> str:
    """For the reader: the program as JavaScript, and where the logs part."""
    theirs, ours = logs
    width = max(map(len, [*theirs, "Node"])) + 3
    rows = [f"{'Node':{width}}  nbloop"]
    for index in range(max(len(theirs), len(ours))):
        left, right = (log[index] if index < len(log) else "-" for log in logs)
        rows.append(f"{left:{width}}{' ' if left == right else '|'} {right}")
    return f"seed {seed}, shrunk (its words are in {RUNNER.name}):\n\n{javascript(program)}\n\n" + "\n".join(rows)
