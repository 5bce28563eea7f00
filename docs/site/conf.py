"""How Sphinx makes the documentation's site (scripts/docs). The pages are the repository's own Markdown files."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import nbloop  # noqa: E402

project = "nbloop"
release = version = nbloop.__version__
author = project_copyright = "The nbloop authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/site/index"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *(
        "docs/*.md",
        "docs/site/**",
        "asv_bench/README.md",
        "conformance/README.md",
        "models/README.md",
        "races/README.md",
    ),
]
html_theme = "furo"
html_title = f"nbloop {release}"
html_extra_path = ["redirect"]
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 4  # as GitHub's, which links between pages use
suppress_warnings = ["myst.xref_missing"]  # links to folders and sources; tests/contract/test_docs.py follows all links

default_role = "literal"  # `name` in a docstring, as in Markdown
add_module_names = False
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "inherited-members": "object, BaseException, Exception, Enum, Flag, IntFlag, ReprEnum, int, tuple, Executor",
}
