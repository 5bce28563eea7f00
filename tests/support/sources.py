"""Where a kernel's source lies. Each file has a base name of its own, so planted bugs, models and litmus tests name a
file by that alone.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import nbloop.kernels

KERNELS = Path(nbloop.kernels.__file__).parent


def files(kernels: Path = KERNELS) -> dict[str, Path]:
    """Every source by its base name. ValueError if two have the same."""
    found: dict[str, Path] = {}
    for path in sorted(kernels.rglob("*.py")):
        if path.stem != "__init__":
            if path.stem in found:
                raise ValueError(f"{path} and {found[path.stem]} have the same name")
            found[path.stem] = path
    return found


def module(name: str) -> ModuleType:
    """The module of that base name. KeyError if there is none."""
    path = files()[name].relative_to(KERNELS).with_suffix("")
    return importlib.import_module(".".join(("nbloop.kernels", *path.parts)))


def modules(*folders: str) -> list[ModuleType]:
    """Those of the folders."""
    return [module(name) for name, path in files().items() if path.parent.name in folders]
