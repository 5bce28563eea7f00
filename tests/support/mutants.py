"""Bugs to plant into the sources: the list in mutants.txt, each with the tests that have to notice it.

`explorer.mutant` plants into one function of a running process, for a search of its schedules. This list is planted
into files, a copy of the tree for each (scripts/mutate.py, ``make mutate``), and says of the *suite* that it would
fail. Both go through `planted`: a bug is an exact text that occurs once, so code that changes takes its bugs along, or
says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.sources import files

LIST = Path(__file__).with_name("mutants.txt")


def planted(source: str, *edits: tuple[str, str], where: str) -> str:
    """`source` with a bug: each edit replaces a text that occurs exactly once. `LookupError` if one does not."""
    for old, new in edits:
        if source.count(old) != 1:
            raise LookupError(f"{where} has changed: plant this bug anew ({old!r})")
        source = source.replace(old, new)
    return source


@dataclass(frozen=True)
class Mutant:
    """One bug."""

    name: str
    module: str  # of nbloop/kernels by its base name, or a file below nbloop/
    old: str
    new: str
    tests: tuple[str, ...]  # what pytest is given
    compiled: bool  # or the kernels run as plain Python, which is quicker to begin
    argued: str  # why it changes nothing that was promised, if nothing kills it

    @property
    def of_kernels(self) -> bool:
        """Is it planted into what is compiled?"""
        return not self.module.endswith(".py")

    def path(self, nbloop: Path) -> Path:
        """The file to plant it into, in a tree's package."""
        return files(nbloop / "kernels")[self.module] if self.of_kernels else nbloop / self.module


def read_list(text: str) -> list[Mutant]:
    """The mutants of a text in the format that the head of mutants.txt describes."""
    found = []
    for block in re.split(r"\n\n+", text.strip()):
        lines = [line for line in block.split("\n") if not line.startswith("#")]
        if not lines:
            continue
        name, head, *rest = lines
        place, tests = head.strip().split(": ")
        old = [line[5:] for line in rest if line.startswith("    -")]
        new = [line[5:] for line in rest if line.startswith("    +")]
        argued = " ".join(line[5:].strip() for line in rest if line.startswith("    ?"))
        end = "" if new else "\n"
        module, *how = place.split()
        assert how in ([], ["compiled"]), f"{name}: {place}"
        assert old, f"{name}: no text to replace"
        paths = tuple(test if test.startswith("models/") else f"tests/{test}" for test in tests.split())
        found.append(Mutant(name, module, "\n".join(old) + end, "\n".join(new), paths, bool(how), argued))
    return found


MUTANTS = read_list(LIST.read_text(encoding="utf-8"))
