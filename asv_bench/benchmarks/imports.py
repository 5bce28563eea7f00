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


class Beside:
    """The processor time of a process that imports nbloop, beside one that imports what nbloop needs."""

    rounds = 10

    def track_import(self) -> float:
        """Decides whether kernels in the cache, and what is imported with them, stay within a quarter of numpy's and
        asyncio's import. The least of interleaved rounds counts: a busy machine makes each longer, and none shorter.
        """
        programs = ("import numpy, asyncio", "import nbloop")
        rounds = [[subprocesses.processor_seconds(program) for program in programs] for _ in range(self.rounds)]
        needed, ours = (min(times) for times in zip(*rounds, strict=True))
        return ours / needed

    track_import.unit = "times"  # type: ignore[attr-defined]
