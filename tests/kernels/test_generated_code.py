"""The memory order of each access, read off the machine code for AArch64, where a weaker one would be another
instruction. (On x86-64 all loads and stores but `store_sc` are the same plain ones.)

``ldar`` is a load with acquire, ``stlr`` a store with release, and no ``ldar`` overtakes an ``stlr``, so these two are
sequentially consistent as well. ``ldaxr`` and ``stlxr`` are the same for read-modify-write.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("numba")

from tests.support import aarch64

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # all kernels are compiled: 35 s

ORDERED = {"ldar", "stlr", "ldaxr", "stlxr"}
# Others that read or write memory for another thread: half of an order, none, or one that no verb asks for.
UNORDERED = re.compile(r"ldx[rp]|stx[rp]|ldaxp|stlxp|ldapr|ldlar|stllr|dmb|dsb|(ldadd|ldset|ldclr|ldeor|swp|cas)\w*")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all kernels for AArch64, as text."""
    folder = tmp_path_factory.mktemp("aarch64")
    command = [sys.executable, "-m", "tests.support.aarch64", folder]
    root = Path(__file__).parents[2]
    environment = {name: word for name, word in os.environ.items() if name != "NUMBA_DISABLE_JIT"}
    subprocess.run(command, check=True, cwd=root, env=environment, timeout=300)
    return folder


def instructions(text: str) -> dict[str, Counter[str]]:
    """By function's symbol, how often its machine code has each instruction."""
    found: dict[str, Counter[str]] = {}
    for name, body in re.findall(r"^(\w[\w.$]*):.*?\n(.*?)^\.Lfunc_end\d+:", text, flags=re.MULTILINE | re.DOTALL):
        found[name] = Counter(re.findall(r"^\t([a-z][a-z0-9.]*)", body, flags=re.MULTILINE))
    return found


def accesses(text: str) -> dict[str, Counter[str]]:
    """By function's symbol, how many accesses of each kind LLVM was left with: the instruction that each needs."""
    kinds = {"load atomic": "ldar", "store atomic": "stlr", "atomicrmw": "ldaxr", "cmpxchg": "ldaxr"}
    found: dict[str, Counter[str]] = {}
    for name, body in re.findall(r"^define [^@]*@([\w.$]+)\(.*?\{\n(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL):
        found[name] = Counter(kinds[kind] for kind in re.findall("|".join(kinds), body))
    return found


def weak(wanted: dict[str, Counter[str]], machine_code: str) -> list[str]:
    """What has another order than wanted, for a reader."""
    found = []
    for name, there in instructions(machine_code).items():
        found += [f"{name}: {code}" for code in there if UNORDERED.fullmatch(code)]
        for code in ("ldar", "stlr", "ldaxr"):
            if there[code] != wanted[name][code]:
                found.append(f"{name}: {there[code]} {code} for {wanted[name][code]}")
        if there["stlxr"] != there["ldaxr"]:
            found.append(f"{name}: an ldaxr without its stlxr")
    return found


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("get", {}),
        ("load", {"ldar": 1}),
        ("load_sc", {"ldar": 1}),
        ("put", {}),
        ("store", {"stlr": 1}),
        ("store_sc", {"stlr": 1}),
        ("fetch_add", {"ldaxr": 1, "stlxr": 1}),
        ("exchange", {"ldaxr": 1, "stlxr": 1}),
        ("compare_and_swap", {"ldaxr": 1, "stlxr": 1}),
    ],
)
def test_a_verb(made: Path, verb: str, expected: dict[str, int]) -> None:
    """The whole function: its one access, and nothing else that orders."""
    names = json.loads((made / "names.json").read_text("utf-8"))
    there = instructions((made / "kernels.s").read_text("utf-8"))[names[f"verb_{verb}"]]
    assert {code: n for code, n in there.items() if code in ORDERED or UNORDERED.fullmatch(code)} == expected


def test_all_kernels(made: Path) -> None:
    """Function by function, exactly what LLVM was asked for."""
    code = (made / "kernels.ll").read_text("utf-8")
    wanted = accesses(code)
    assert sum(wanted.values(), Counter()).keys() == {"ldar", "stlr", "ldaxr"}
    assert sum(sum(each.values()) for each in wanted.values()) > 2000  # the regular expressions still match
    assert not re.search(r"(load|store) atomic .* (unordered|monotonic),", code)
    assert not re.search(r"atomicrmw (?!.* seq_cst,)|cmpxchg (?!.* seq_cst acquire,)", code)
    assert weak(wanted, (made / "kernels.s").read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("strong", "planted"),
    [
        (r"(load atomic i64, .*) acquire,", r"\1 monotonic,"),
        (r"(load atomic i64, .*) seq_cst,", r"\1 monotonic,"),
        (r"(store atomic i64 .*) release,", r"\1 monotonic,"),
        (r"(store atomic i64 .*) seq_cst,", r"\1 monotonic,"),
        (r"(atomicrmw .*) seq_cst,", r"\1 acquire,"),
        (r"(atomicrmw .*) seq_cst,", r"\1 release,"),
        (r"(cmpxchg .*) seq_cst acquire,", r"\1 monotonic monotonic,"),
    ],
)
def test_a_planted_order_is_found(made: Path, strong: str, planted: str) -> None:
    """One access of one function is weaker than it was."""
    code = (made / "kernels.ll").read_text("utf-8")
    changed, count = re.subn(strong, planted, code, count=1)
    assert count == 1
    assert weak(accesses(code), aarch64.assembly(changed)) != []
