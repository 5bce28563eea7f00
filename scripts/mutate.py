"""Break the kernels on purpose, one bug at a time, and show that the suite notices each.

    python scripts/mutate.py [--jobs N] [WORD ...]      only mutants whose name or module contains a word

tests/support/mutants.txt lists the bugs and the tests that must fail. Each is planted in a copy of the tree in a
temporary folder; the working tree is never touched. First the same tests must pass without a bug, or a failure would
prove nothing. A mutant is killed if a test fails, hangs, or crashes the interpreter; it survives if all pass. A run
that ends in any other way (a collection error, no tests) is a mistake in the list, and also fails.

Bugs that the suite plants itself (tests named ``..._caught``) are left out: they quote the code that is being changed.
Exit status 0 means: every mutant was killed, except those that the list argues are harmless, which all survived.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.mutants import MUTANTS, Mutant, planted  # noqa: E402

PARTS = ("nbloop", "tests", "models", "pyproject.toml")
TEST_SECONDS = 60  # of one test, before it counts as hung
RUN_SECONDS = 600  # of a mutant's tests; all tests of all mutants, without a bug, take longer than that
FAILED = 1  # pytest's exit status when tests have failed; 2 and more: it could not run them


def copy_tree(folder: Path) -> None:
    """Copy what the tests need, with existing bytecode: only the file with the bug is compiled again."""
    for part in PARTS:
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / part)


def run_tests(
    folder: Path, tests: Iterable[str], compiled: bool, seconds: float | None, first: bool, cache: bool
) -> tuple[int, str]:
    """pytest's exit status, negative for a signal, and its output. `cache`: these are the kernels as they are."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    if not cache:
        environment["NBLOOP_CACHE_DIR"] = str(folder / "cache")
    environment["NUMBA_DISABLE_JIT"] = "0" if compiled else "1"
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-k", "not caught", f"--timeout={TEST_SECONDS}"]
    command += [
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.support.no_shrinking",
        "--hypothesis-seed=0",
        *(["-x"] if first else []),
        *tests,
    ]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return FAILED, "hung"
    return process.returncode, said


def reason(said: str) -> str:
    """The test that failed first, in a word."""
    for line in said.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" - ")[0].partition("::")[2]
    return "a hang" if "Timeout" in said or said == "hung" else "a crash"


def try_mutant(mutant: Mutant) -> tuple[str, float, str]:
    """The outcome (killed, SURVIVED, argued, NOT ARGUED, or BROKEN), the seconds it took, and the test that failed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nbloop-mutant-") as name:
        folder = Path(name)
        copy_tree(folder)
        path = mutant.path(folder / "nbloop")
        source = path.read_text(encoding="utf-8")
        path.write_text(planted(source, (mutant.old, mutant.new), where=mutant.module), encoding="utf-8")
        status, said = run_tests(
            folder, mutant.tests, mutant.compiled, RUN_SECONDS, first=True, cache=not mutant.of_kernels
        )
    seconds = time.monotonic() - start
    if status == 0:
        return "argued" if mutant.argued else "SURVIVED", seconds, mutant.argued
    if status != FAILED and status >= 0:
        return "BROKEN", seconds, "\n".join(said.splitlines()[-15:])
    return "KILLED, though argued" if mutant.argued else "killed", seconds, reason(said)


def sound(chosen: list[Mutant], compiled: bool) -> bool:
    """Whether the tests of the chosen mutants pass without a bug, if the kernels are compiled, or are not."""
    tests = sorted({test for mutant in chosen if mutant.compiled is compiled for test in mutant.tests})
    if not tests:
        return True
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nbloop-mutant-") as name:
        copy_tree(Path(name))
        status, said = run_tests(Path(name), tests, compiled, None, first=False, cache=True)
    kind = "compiled" if compiled else "plain"
    last = said if status != 0 else said.splitlines()[-1]
    print(f"without a bug, {kind}: {last} ({time.monotonic() - start:.0f} s)", flush=True)
    return status == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="break the kernels on purpose, and show that the suite notices")
    parser.add_argument("words", nargs="*", help="only mutants whose name or module contains one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once (default: all cores)")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(word in f"{m.module}: {m.name}" for word in options.words)]
    if not chosen:
        parser.error("no mutant has such a name")
    bad = 0
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        if not all(list(pool.map(partial(sound, chosen), (False, True)))):
            print("the tests fail without a bug, so nothing can be said of mutants")
            return 1
        for mutant, (verdict, seconds, why) in zip(chosen, pool.map(try_mutant, chosen), strict=True):
            bad += verdict not in ("killed", "argued")
            print(f"{verdict:9} {seconds:5.0f} s  {mutant.module}: {mutant.name}  [{why}]", flush=True)
    print(f"{len(chosen) - bad} mutants as they should be, {bad} not, in {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
