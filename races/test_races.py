"""ThreadSanitizer finds no race in the shipped kernels, and finds one as soon as their memory orders are weakened.
AddressSanitizer finds no access out of bounds in them, and finds one as soon as an array is shorter than they assume.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

# The first test waits for numba, which takes 40 s, or several times that on a busy machine.
pytestmark = pytest.mark.timeout(400)

HERE = Path(__file__).parent
CLANG = f"clang-{llvm.llvm_version_info[0]}"  # it reads the text of the very LLVM that numba writes with
PLAYS = {"submit": 4000, "burst": 10000, "handles": 4000, "timers": 4000, "remote": 4000, "close": 4000}
PLAYS |= {"records": 10000, "records_old": 10000, "slots": 100}

# How every access of a kind is weakened, and a play that exposes it. Sequential consistency is not in the list: a load
# that overtakes a store is not a race, so ThreadSanitizer does not detect it; models/ does.
PLANTED = {
    "a release store becomes a plain one": (
        r"store atomic i64 (.*), ptr (.*) release, align 8",
        r"store i64 \1, ptr \2, align 8",
        "submit",
    ),
    "an acquire load becomes a plain one": (
        r"load atomic i64, (ptr .*) acquire, align 8",
        r"load i64, \1, align 8",
        "submit",
    ),
    "a release store releases nothing": (r"(store atomic i64 .*) release, align 8", r"\1 monotonic, align 8", "timers"),
    "an acquire load acquires nothing": (r"(load atomic i64, .*) acquire, align 8", r"\1 monotonic, align 8", "timers"),
    "a compare-and-swap orders nothing": (
        r"(cmpxchg .*) seq_cst acquire, align 8",
        r"\1 monotonic monotonic, align 8",
        "handles",
    ),
}


def build(folder: Path, kernels: str, sanitizer: str = "thread", *more: str) -> Path:
    """The driver with these kernels."""
    kernels = kernels.replace("sanitize_thread", f"sanitize_{sanitizer}")
    (folder / "kernels.ll").write_text(kernels, encoding="utf-8")
    program = folder / "driver"
    options = [f"-fsanitize={sanitizer}", *more, "-g", "-O1", "-Wno-override-module", "-pthread", f"-I{folder}"]
    sources = [HERE / "driver.c", "-x", "ir", folder / "kernels.ll"]
    subprocess.run([CLANG, *options, *sources, "-o", program], check=True, timeout=100)
    return program


def play(program: Path, name: str, rounds: int) -> subprocess.CompletedProcess[str]:
    # Without address randomisation: on some systems it exceeds what ThreadSanitizer's shadow memory allows.
    command = ["setarch", platform.machine(), "-R", program, name, str(rounds)]
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # objects are counted; the driver keeps its tables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    print(done.stdout + done.stderr)
    return done


@pytest.fixture(scope="session")
def instrumented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with kernels.ll and layout.h."""
    if sys.platform != "linux":
        pytest.skip("the driver is written for Linux")
    if missing := [tool for tool in (CLANG, "setarch") if shutil.which(tool) is None]:
        pytest.skip(
            f"no {' and '.join(missing)} on this machine (Debian: {CLANG}, lib{CLANG.replace('-', '-rt-')}-dev)"
        )
    folder = tmp_path_factory.mktemp("races")
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0"}
    command = [sys.executable, "-P", HERE / "instrument.py", folder]
    subprocess.run(command, check=True, env=environment, timeout=300)
    return folder


@pytest.fixture(scope="session")
def driver(instrumented: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    shutil.copy(instrumented / "layout.h", folder)
    return build(folder, (instrumented / "kernels.ll").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "rounds"), PLAYS.items())
def test_no_race(driver: Path, name: str, rounds: int) -> None:
    done = play(driver, name, rounds)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_race_is_found(bug: str, instrumented: Path, tmp_path: Path) -> None:
    pattern, replacement, name = PLANTED[bug]
    text, count = re.subn(pattern, replacement, (instrumented / "kernels.ll").read_text(encoding="utf-8"))
    assert count > 10, "the kernels have no such access any more: plant this bug anew"
    shutil.copy(instrumented / "layout.h", tmp_path)
    program = build(tmp_path, text)
    # An existing race need not show up each time.
    assert any("data race" in play(program, name, 4000).stderr for _ in range(5))


def test_slabs_that_open_without_an_order_are_found(instrumented: Path, tmp_path: Path) -> None:
    """All accesses of `slots_make`, which takes gathered chains and opens slabs, are weakened, and no others."""
    text = (instrumented / "kernels.ll").read_text(encoding="utf-8")
    begin = re.search(r"(?m)^define .*slot_slabs\d+slots_make", text)
    assert begin, "the kernel has another name now: plant this bug anew"
    end = text.index("\n}\n", begin.start())
    orders = r"\b(seq_cst acquire|seq_cst|acq_rel|acquire|release)(?=, align)"
    weakened, count = re.subn(
        orders, lambda found: " ".join("monotonic" for _ in found[1].split()), text[begin.start() : end]
    )
    assert count > 10
    shutil.copy(instrumented / "layout.h", tmp_path)
    program = build(tmp_path, text[: begin.start()] + weakened + text[end:])
    assert any("data race" in play(program, "slots", PLAYS["slots"]).stderr for _ in range(5))


@pytest.fixture(scope="session")
def bounded(instrumented: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver with AddressSanitizer."""
    folder = tmp_path_factory.mktemp("bounded")
    shutil.copy(instrumented / "layout.h", folder)
    return build(folder, (instrumented / "kernels.ll").read_text(encoding="utf-8"), "address")


@pytest.mark.parametrize(("name", "rounds"), PLAYS.items())
def test_within_bounds(bounded: Path, name: str, rounds: int) -> None:
    """No access beyond an array or an object, and none after it was freed."""
    done = play(bounded, name, rounds)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["burst", "timers"])
def test_a_short_array_is_found(instrumented: Path, tmp_path: Path, name: str) -> None:
    """An array ends 512 bytes earlier than the kernels assume."""
    shutil.copy(instrumented / "layout.h", tmp_path)
    kernels = (instrumented / "kernels.ll").read_text(encoding="utf-8")
    program = build(tmp_path, kernels, "address", "-DTOO_SHORT=512")
    assert "heap-buffer-overflow" in play(program, name, 4000).stderr
