"""How long does a program wait for the import?"""

from asv_bench import subprocesses


class Import:
    """In a new process each time, its own start not counted."""

    params = ("nbloop", "asyncio", "numpy")
    param_names = ("module",)

    def track_import(self, module: str) -> float:
        """Decides whether an import with kernels in the cache takes less than a second; most of it is numpy's."""
        return min(subprocesses.import_seconds(module) for _ in range(3))

    track_import.unit = "s"  # type: ignore[attr-defined]


class FirstImport:
    """With nothing in the cache."""

    timeout = 300

    def track_first_import(self) -> float:
        """Decides whether compiling everything, once for a machine, stays under 30 s."""
        return subprocesses.import_seconds("nbloop", cold=True)

    track_first_import.unit = "s"  # type: ignore[attr-defined]
