"""Run the examples (``>>>``) of nbloop's docstrings and of the Markdown files named as arguments.

Not ``pytest --doctest-glob``, which takes the fence that closes a Markdown code block for expected output.
"""

import doctest
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbloop

sys.path.append(str(Path(__file__).parents[1]))  # for asv_bench, which the guide uses as a reader at the root can
FENCE = re.compile(r"^ *(```|~~~).*$", re.MULTILINE)


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [m.name for m in pkgutil.walk_packages(nbloop.__path__, "nbloop.") if not m.name.endswith(".__main__")]
    for name in ["nbloop", *names]:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if (error.name or "nbloop").startswith("nbloop"):
                raise
            print(f"{name}: skipped, {error}", flush=True)  # a platform's, or an extra that is not installed
            continue
        yield from finder.find(module, name)
    for path in sys.argv[1:]:
        text = FENCE.sub("", Path(path).read_text(encoding="utf-8"))
        # One namespace per file: a later block continues where an earlier one ended.
        yield doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, path, path, 0)


runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
for test in examples():
    if test.examples:
        attempted_before = runner.tries
        runner.run(test)
        print(f"{test.name}: {runner.tries - attempted_before} examples", flush=True)
print(f"{runner.tries - runner.failures} passed, {runner.failures} failed")
sys.exit(bool(runner.failures))
