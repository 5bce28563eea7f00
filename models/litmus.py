"""The litmus tests in this folder: what the kernels' memory orders forbid, in *every* execution that C11 allows.

A litmus test consists of a few accesses by two or three threads and an outcome that must not exist. It is written in
the kernels' own verbs (atomics.py), each followed, after ``//``, by the line of the kernels that it represents. The
line must be in that function, with that verb, so no kernel can weaken an order unnoticed. herd7 then enumerates all
executions under RC11 (Lahav et al., PLDI 2017), whose compilation to Arm and x86 is proven correct (Podkopaev et al.,
POPL 2019). A plain access (``get``, ``put``) that races is an undefined execution, and also fails.

Every order must be needed: with any one access a step weaker, the outcome must exist. Where a weaker order than the
verb's suffices *for this outcome*, ``[release is enough]`` says so, and is checked: with all of these weakened at once
the test still holds.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.support import sources

FOLDER = Path(__file__).parent
FETCH = FOLDER.parent / "scripts" / "fetch-herd"
VERBS = {  # each verb in C, and its order
    "get": ("*{0}", ""),
    "put": ("*{0} = {1}", ""),
    "load": ("atomic_load_explicit({0}, {order})", "acquire"),
    "load_sc": ("atomic_load_explicit({0}, {order})", "seq_cst"),
    "store": ("atomic_store_explicit({0}, {1}, {order})", "release"),
    "store_sc": ("atomic_store_explicit({0}, {1}, {order})", "seq_cst"),
    "fetch_add": ("atomic_fetch_add_explicit({0}, {1}, {order})", "seq_cst"),
    "exchange": ("atomic_exchange_explicit({0}, {1}, {order})", "seq_cst"),
    "compare_and_swap": ("atomic_compare_exchange_strong_explicit({0}, {1}, {2}, {order}, {failed})", "seq_cst"),
}
CALL = re.compile(rf"\b({'|'.join(VERBS)})\(([^()]*)\)")
QUOTE = re.compile(r"(\w+)\.(\w+): (.*?)(?: \[(\w+) is enough\])?")
WEAKER = {
    "load": {"seq_cst": ["acquire"], "acquire": ["relaxed"]},
    "store": {"seq_cst": ["release"], "release": ["relaxed"]},
    "": {"seq_cst": ["acq_rel"], "acq_rel": ["acquire", "release"], "acquire": ["relaxed"], "release": ["relaxed"]},
}


@dataclass(frozen=True)
class Access:
    """One access of a test: the verb, the line that it quotes, and the weakest order that suffices."""

    verb: str
    module: str
    function: str
    quote: str
    enough: str

    def weaker(self) -> list[str]:
        """The orders that must not suffice: one step weaker."""
        return WEAKER[self.verb.removesuffix("_sc") if self.verb.startswith(("load", "store")) else ""].get(
            self.enough, []
        )

    def source(self) -> str:
        """The source of the kernel that it quotes."""
        found = getattr(sources.module(self.module), self.function)
        return inspect.getsource(getattr(found, "function", found))


@dataclass(frozen=True)
class Litmus:
    """One file."""

    path: Path

    @cached_property
    def lines(self) -> list[tuple[str, str]]:
        """Code and comment of each line."""
        parts = (line.partition("//") for line in self.path.read_text(encoding="utf-8").splitlines())
        return [(code.rstrip(), comment.strip()) for code, _, comment in parts]

    @cached_property
    def quoted(self) -> list[Access]:
        """All accesses that quote a kernel, in textual order; a plain access by the kernels' caller quotes none."""
        found = []
        for code, comment in self.lines:
            verbs = [call[1] for call in CALL.finditer(code)]
            if not verbs:
                continue
            quote = QUOTE.fullmatch(comment)
            assert len(verbs) == 1, f"{self.path.name}: more than one access in a line: {code}"
            assert comment, f"{self.path.name}: says not what it stands for: {code}"
            order = VERBS[verbs[0]][1]
            if quote:
                found.append(Access(verbs[0], quote[1], quote[2], quote[3], quote[4] or order))
            else:
                assert not order, f"{self.path.name}: quotes no kernel: {code}"
        return found

    @property
    def accesses(self) -> list[Access]:
        """The atomic accesses."""
        return [access for access in self.quoted if VERBS[access.verb][1]]

    def program(self, orders: list[str]) -> str:
        """The test in C, with these orders for the atomic accesses."""
        left = iter(orders)

        def access(call: re.Match[str]) -> str:
            text, strong = VERBS[call[1]]
            order = next(left) if strong else ""
            failed = order if order in ("acquire", "relaxed") else "relaxed" if order == "release" else "acquire"
            words = {"order": f"memory_order_{order}", "failed": f"memory_order_{failed}"}
            return text.format(*(word.strip() for word in call[2].split(",")), **words)

        return "\n".join(CALL.sub(access, code) for code, _ in self.lines) + "\n"

    def as_written(self) -> list[str]:
        """The orders of the verbs."""
        return [VERBS[access.verb][1] for access in self.accesses]


TESTS = [Litmus(path) for path in sorted(FOLDER.glob("*.litmus"))]


def herd() -> str | None:
    """herd7 from the path, or the one that scripts/fetch-herd fetched."""
    if found := shutil.which("herd7"):
        return found
    where = subprocess.run([FETCH, "--where"], check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    return where if os.access(where, os.X_OK) else None


def forbidden(test: Litmus, orders: list[str], folder: Path) -> tuple[bool, str]:
    """Whether no execution has the outcome and none is undefined; and herd7's output."""
    tool = herd()
    assert tool is not None
    file = folder / test.path.name
    file.write_text(test.program(orders), encoding="utf-8")
    done = subprocess.run([tool, "-model", "rc11.cat", file], check=True, capture_output=True, text=True, timeout=60)
    said = re.search(rf"^Observation {test.path.stem} (Never|Sometimes|Always) \d+ (\d+)$", done.stdout, re.MULTILINE)
    if said is None or done.stderr.strip():
        raise RuntimeError(f"herd7 has not understood {test.path.name}:\n{done.stdout}{done.stderr}")
    return said[1] == "Never" and "Flag *undef*" not in done.stdout, done.stdout
