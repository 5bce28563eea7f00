"""Checks of a loop's options: each error names the option and what it accepts."""

from __future__ import annotations

import enum
import os
import sys
import threading
from typing import Literal

LOOPS_MOST = 1024  # of one group


class FastPathMode(enum.Enum):
    """How a loop without descriptors sleeps: `AUTO` on the fast path (a futex where there is one) until a descriptor is
    registered, `FORCED` always on the fast path, `DISABLED` always in the platform's poller.

    >>> import nbloop
    >>> nbloop.Loop(fast_path_mode=FastPathMode.DISABLED).fast_path_mode
    <FastPathMode.DISABLED: 'disabled'>
    """

    AUTO = "auto"
    FORCED = "forced"
    DISABLED = "disabled"


def check_mode(option: str, value: object) -> None:
    if not isinstance(value, FastPathMode):
        raise TypeError(f"{option} must be a nbloop.FastPathMode, not {value!r}")


def check_callable(option: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{option} must be callable or None, not {value!r}")


def check_int(option: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{option} must be an int from {least} to {most}, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{option} must be from {least} to {most}, not {value}")


def check_name(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str or None, not {name!r}")


def check_loops(loops: int | None) -> int:
    """How many loops a group has: by default one for each core that this process may use."""
    if loops is None:
        return usable_cores()
    check_int("loops", loops, 1, LOOPS_MOST)
    return loops


def check_metrics(value: object) -> bool | Literal["shared"]:
    """What to measure: the option, or, if that is None, the environment variable."""
    if value is None:
        said = os.environ.get("NBLOOP_METRICS", "")
        if said not in ("", "0", "1", "shared"):
            raise ValueError(f"NBLOOP_METRICS must be 0, 1 or shared, not {said!r}")
        return "shared" if said == "shared" else said == "1"
    if isinstance(value, bool):
        return value
    if value == "shared":
        return "shared"
    raise TypeError(f'metrics must be True, False, None or "shared", not {value!r}')


def check_recorder(value: object) -> None:
    """Check the number of entries of the flight recorder."""
    if value is None:
        return
    check_int("recorder", value, 64, 1 << 24)
    assert isinstance(value, int)
    if value & (value - 1):
        raise ValueError(f"recorder must be a power of two from 64 to {1 << 24}, or None, not {value}")


def check_pressure(
    on_pressure: object, high: int | None, low: int | None, budget: int, limit: int | None
) -> tuple[int, int]:
    """The two marks; (0, 0) without `on_pressure`."""
    check_callable("on_pressure", on_pressure)
    if on_pressure is None:
        if high is not None or low is not None:
            raise ValueError("pressure_high and pressure_low need on_pressure")
        return 0, 0
    most = 1 << 40 if limit is None else limit  # a queue never holds more, so a higher mark would never be reached
    if high is None:
        high = min(8 * budget, most)
    check_int("pressure_high", high, 1, most)
    if low is None:
        low = high // 2
    check_int("pressure_low", low, 0, high - 1)
    return high, low


def check_timeout(timeout: object) -> None:
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if not 0 <= timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout must be from 0 to {threading.TIMEOUT_MAX:.0f} seconds, not {timeout!r}")


def check_milliseconds(name: str, value: object) -> float:
    """Check a duration, or a time since an origin."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of milliseconds, not {value!r}")
    if not 0 <= value <= sys.float_info.max:  # an int may be larger
        raise ValueError(f"{name} must be a finite number of milliseconds, at least 0, not {value!r}")
    return float(value)


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
