"""The documents: links lead somewhere, files that they name are there, lines can be read in an editor."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *(path for path in sorted(ROOT.glob("*/README.md")) if not path.parent.name.startswith(".")),
]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`([\w./*-]+\.(?:py|md|pml|litmus|txt|json|c))`")
FILES = [
    f"/{path.relative_to(ROOT).as_posix()}"
    for top in sorted(ROOT.iterdir())
    if not top.name.startswith(".")
    for path in (top.rglob("*") if top.is_dir() else [top])
]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            to = page.parent / path if path else page
            assert to.exists(), target
            assert not anchor or anchor in anchors(to), target
    for name in NAMED.findall(text):
        assert any(fnmatch(path, f"*/{name}") for path in FILES), name
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []
