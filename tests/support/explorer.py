"""Deterministic interleaving of the kernels as plain Python: which thread goes on is decided before each atomic access.

`search` runs a model under many schedules (random, PCT, and a bounded depth-first search) and fails with the first that
breaks it; `find` demands that one does, for models with a planted bug, and that the schedule found repeats it.

Seeds are fixed, so a run is repeatable; ``NBLOOP_SEED=7`` tries others and ``NBLOOP_SCHEDULES=10`` ten times as
long.
A failure prints its seed and its schedule; `interleave_test.replay(model, schedule)` repeats it on the same Python.
"""

from __future__ import annotations

import gc
import inspect
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import interleave_test as it
import pytest

from nbloop.kernels.base import atomics, capi
from tests.support import sources, steps
from tests.support.mutants import planted

# Whatever runs in a kernel: not what defines the verbs, makes the memory, or compiles.
MODULES = [
    module
    for module in sources.modules("memory", "observe", "ingress", "timers", "calls", "promises", "turn")
    + sources.modules("channels", "methods")
    + sources.modules("base")
    if module not in (atomics, capi)
]
SEED = int(os.environ.get("NBLOOP_SEED", "1"))
FACTOR = float(os.environ.get("NBLOOP_SCHEDULES", "1"))
STEPS = [name for name, value in vars(steps).items() if isinstance(value, FunctionType)]
USERS = [(module, name, value) for module in MODULES for name, value in vars(module).items() if callable(value)]

type Model = Callable[[], None]
type Plant = Callable[[pytest.MonkeyPatch], None]


def replace(patch: pytest.MonkeyPatch, original: Callable[..., Any], function: Callable[..., Any]) -> None:
    """Replace `original` by `function`, under whatever name the kernels call it."""
    users = [(module, name) for module, name, value in USERS if value is original]
    assert users, f"no kernel calls {original.__name__}"
    for module, name in users:
        patch.setattr(module, name, function)


def _gone(problem: LookupError) -> Callable[..., Any]:
    def gone(*_: object) -> Any:
        raise problem

    return gone


def mutant(function: Callable[..., Any], *edits: tuple[str, str]) -> Callable[..., Any]:
    """A copy of `function` with a bug: each edit replaces a text that its source has exactly once.

    If it has not any more, the copy says so when it is called: one test fails then, and its module can be collected.
    """
    source = textwrap.dedent(inspect.getsource(function)).partition("def ")
    try:
        text = "def " + planted(source[2], *edits, where=function.__name__)
    except LookupError as changed:
        return _gone(changed)
    made: dict[str, Any] = {}
    exec(compile(text, "<mutant>", "exec"), function.__globals__, made)
    return made[function.__name__]


@contextmanager
def stepwise() -> Iterator[pytest.MonkeyPatch]:
    """The kernels' atomics are `steps` inside, and the collector rests.

    A collection would run the end of an earlier model's memory wherever it happens: as steps of the schedule, which
    would not repeat, and amid the scheduler, whose lock the steps wait for. That hung a run on 3.14.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            replace(patch, getattr(atomics if hasattr(atomics, name) else capi, name), getattr(steps, name))
        gc.disable()
        try:
            yield patch
        finally:
            gc.enable()


def _options() -> dict[str, Any]:
    return {"granularity": "line", "include": [steps.__file__], "patch_modules": False, "patch_time": False}


def search(model: Model, schedules: int = 200) -> None:
    """No schedule that is tried breaks the model; that many of each strategy."""
    with stepwise():
        for strategy in (it.RandomStrategy(), it.PCTStrategy(depth=3), it.DFSStrategy(max_preemptions=2)):
            try:
                result = it.explore(
                    model, iterations=int(schedules * FACTOR), seed=SEED, strategy=strategy, **_options()
                )
            except it.InterleaveError as error:
                if error.failure is not None:
                    print("schedule:", error.failure.schedule.to_json())
                raise
            print(f"{type(strategy).__name__}: {result.schedules_run} schedules, seed {SEED}, {result.elapsed:.1f} s")


def find(model: Model, plant: Plant, first_seed: int = 0) -> it.Failure:
    """Some schedule breaks the model once `plant` has put its bug into the kernels, and does so again when replayed.
    Without the bug the same search breaks nothing.

    `first_seed` is where the search begins: where it was found before, so that the suite is quick.
    """

    def explored(seed: int) -> it.Result:  # which strategy is the quick one differs from bug to bug
        strategy = it.PCTStrategy(depth=3) if seed % 2 else it.RandomStrategy()
        return it.explore(model, iterations=50, seed=seed, strategy=strategy, raise_on_failure=False, **_options())

    with stepwise() as patch:
        plant(patch)
        for seed in range(first_seed, first_seed + 60):
            result = explored(seed)
            if result.failure is not None:
                break
        failure = result.failure
        print(f"found with seed {seed}, schedule {result.schedules_run}")
        assert failure is not None, "the planted bug was not found"
        assert failure.kind == "deadlock" or isinstance(failure.exception, AssertionError), failure.format()
        options = _options()
        del options["granularity"]
        again = it.replay(model, failure, raise_on_failure=False, **options).failure
        assert again is not None, "the schedule does not repeat the failure"
        assert (again.kind, type(again.exception)) == (failure.kind, type(failure.exception))
    with stepwise():
        sound = explored(seed).failure
        assert sound is None, f"the model breaks without the bug: {sound.format()}"
    return failure


def together(*threads: Callable[[], object]) -> None:
    """Run the functions as controlled threads and wait for all. Called in a model."""
    tasks = [it.spawn(thread) for thread in threads]
    for task in tasks:
        task.join()
