"""The packs that a wheel carries: ``NUMBA_DISABLE_JIT=1 python -m nbloop.kernels.build.wheel FOLDER`` writes them.

There is one for any processor of the architecture, and one for each better kind (target.py). With the variable nbloop
can be imported before it has kernels. It would disable numba too, so it is removed before numba is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..base.kernel import kernels
from . import object_cache, target


def main(folder: Path) -> None:
    """Write the packs into a folder, each under the name of its processor."""
    if object_cache.status.mode != "interpreted":
        raise SystemExit("NUMBA_DISABLE_JIT=1 is not set")
    del os.environ["NUMBA_DISABLE_JIT"]
    from .compiler import compile_kernels

    folder.mkdir(parents=True, exist_ok=True)
    names = target.carried()
    libraries = compile_kernels(list(kernels.values()), [(name, "") for name in names])
    for name, code in zip(names, libraries, strict=True):
        (folder / (name + object_cache.SUFFIX)).write_bytes(object_cache.packed(code, name, ""))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
