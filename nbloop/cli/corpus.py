"""The demo's work: reading a text, parsing its lines, merging the counts.

Problem: a comparison of loops is worth little on made-up work. Idea: real work on real text, written once and handed to
both loops: `words` runs in the producers, `Tally` on the loop. Every interpreter brings a large real text along, the
sources of its standard library.

`Tally` asks a dictionary with `in` before it adds, where `get` would be natural: in free-threaded 3.13 `dict.get` takes
the dictionary's lock twice when it meets a key that another thread has made, waits some 50 µs for itself, and that
would be measured as the loop's time.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter_ns

FLUSH = 0.05  # seconds that a partial count may grow before it joins the totals

_findall = re.compile(r"[^\W\d]\w*").findall


@dataclass
class Corpus:
    """Lines of text and where they come from."""

    name: str
    lines: list[str]


def read(path: str | None, limit: int) -> Corpus:
    """At most `limit` lines of a file, or of the standard library. OSError if unreadable, ValueError if empty."""
    if path is None:
        return _standard_library(limit)
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip("\n") for line in islice(file, limit)]
    if not lines:
        raise ValueError("it is empty")
    return Corpus(path, lines)


def _standard_library(limit: int) -> Corpus:
    folder = Path(sysconfig.get_path("stdlib"))
    lines: list[str] = []
    files = 0
    for source in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests", "idle_test"}.intersection(source.relative_to(folder).parts):
            continue
        lines += source.read_text(encoding="utf-8", errors="replace").splitlines()[: limit - len(lines)]
        files += 1
        if len(lines) >= limit:
            break
    if not lines:
        raise ValueError("this Python came without its sources; name a text with --file")
    return Corpus(f"this Python's standard library ({files:,} files)", lines)


def words(line: str) -> Counter[str]:
    """How often each word (or identifier) occurs in a line. This is what the producers do."""
    return Counter(_findall(line))


def count_directly(lines: Iterable[str]) -> Counter[str]:
    """The totals, counted by separate code: the reference for the loops' totals."""
    total: Counter[str] = Counter()
    for line in lines:
        total.update(_findall(line))
    return total


def fingerprint(totals: Mapping[str, int]) -> str:
    """A short hash of all words with their counts."""
    return hashlib.sha256(repr(sorted(totals.items())).encode(errors="surrogatepass")).hexdigest()[:16]


class Tally:
    """The aggregate, touched by the loop's thread only. `later(delay, callback)` sets a timer of the loop."""

    def __init__(self, later: Callable[[float, Callable[[], object]], object]) -> None:
        self.totals: dict[str, int] = {}
        self.lines = 0
        self.flushes = 0
        self.delays: list[int] = []
        self._later = later
        self._partial: dict[str, int] = {}
        self._armed = False

    def merge(self, counts: Mapping[str, int]) -> None:
        """Add one line's counts to the partial counts. The first line after a flush sets a timer for the next flush."""
        partial = self._partial
        for word, count in counts.items():
            if word in partial:
                partial[word] += count
            else:
                partial[word] = count
        self.lines += 1
        if not self._armed:
            self._armed = True
            self._later(FLUSH, self.flush)

    def merge_stamped(self, counts: Mapping[str, int], submitted: int) -> None:
        """Like `merge`, for a line that carries the time of its submit."""
        self.delays.append(perf_counter_ns() - submitted)
        self.merge(counts)

    def flush(self) -> None:
        """Move the partial counts into the totals."""
        totals = self.totals
        for word, count in self._partial.items():
            if word in totals:
                totals[word] += count
            else:
                totals[word] = count
        self._partial.clear()
        self._armed = False
        self.flushes += 1
