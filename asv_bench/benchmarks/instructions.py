"""How many instructions does an operation take? What no other program on the machine can change."""

from asv_bench import instructions


class Instructions:
    """All of them, counted in one run of valgrind."""

    params = tuple(instructions.written_down()[1])
    param_names = ("operation",)
    timeout = 900

    def setup_cache(self) -> dict[str, float]:
        """The counts by name; none where there is no valgrind."""
        return {} if instructions.missing() else instructions.count_ours()

    def track_instructions(self, counts: dict[str, float], operation: str) -> float:
        """Decides whether a path has grown, also where times are too noisy to say."""
        return counts.get(operation, float("nan"))

    track_instructions.unit = "instructions"  # type: ignore[attr-defined]
