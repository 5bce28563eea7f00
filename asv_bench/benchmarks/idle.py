"""What does a loop with nothing to do use?"""

from asv_bench import subprocesses

type Answers = dict[str, dict[str, float | None]]


class Idle:
    """Some seconds of an idle loop in each fast-path mode."""

    params = ("auto", "forced", "disabled")
    param_names = ("fast_path_mode",)

    def setup_cache(self) -> Answers:
        """One process has a loop in each mode, all idle at once."""
        return subprocesses.idle(2.0)

    def track_cpu(self, answers: Answers, fast_path_mode: str) -> float | None:
        """Decides whether an idle loop uses no CPU: less than 0.2 ms in 2 s."""
        return answers[fast_path_mode]["cpu"]

    def track_switches(self, answers: Answers, fast_path_mode: str) -> float | None:
        """Decides whether an idle loop sleeps without a break: not once on a CPU."""
        return answers[fast_path_mode]["switches"]

    def track_system_calls(self, answers: Answers, fast_path_mode: str) -> float:
        """Decides the same by counting its system calls: none; no answer where strace is missing or may not attach."""
        calls = answers[fast_path_mode]["syscalls"]
        return float("nan") if calls is None else calls

    track_cpu.unit = "ms"  # type: ignore[attr-defined]
    track_switches.unit = "context switches"  # type: ignore[attr-defined]
    track_system_calls.unit = "system calls"  # type: ignore[attr-defined]
