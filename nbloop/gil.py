"""Whether the GIL is on, and what turned it on: under it, several loops take turns."""

from __future__ import annotations

import importlib
import re
import sys
import sysconfig
import warnings

_SAID = re.compile(r"\(GIL\) has been enabled to load module '([^']+)'")
_warned: list[str] = []


def enabled() -> bool:
    """Whether the GIL is on. Any thread."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def why() -> str:
    """Why it is on, as far as that can be known.

    The import of an extension module that does not support free threading turns it on, with a warning whose text
    CPython keeps in the registry of the importing module, unless a filter ignores it.
    """
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this Python is not a free-threaded build"
    if getattr(sys.flags, "gil", None) == 1:
        return "PYTHON_GIL=1 or -X gil=1 turned it on"
    for importer in (importlib._bootstrap, importlib._bootstrap_external):
        for key in list(getattr(importer, "__warningregistry__", ())):
            if isinstance(key, tuple) and (said := _SAID.search(str(key[0]))):
                return f"the import of {said[1]!r} turned it on"
    return "an extension module turned it on; python -W default names the module at its import"


def check_parallel(what: str, loops: int, required: object) -> None:
    """For several loops under the GIL: warn (RuntimeWarning), once per process, or raise RuntimeError if `required`."""
    if not isinstance(required, bool):
        raise TypeError(f"require_free_threading must be True or False, not {required!r}")
    if loops < 2 or not enabled():
        return
    message = f"{what} has {loops} loops, but the GIL is on, so only one of them runs at a time: {why()}"
    if required:
        raise RuntimeError(message)
    if not _warned:
        _warned.append(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
