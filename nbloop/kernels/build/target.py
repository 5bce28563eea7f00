"""Which processor kernels are compiled for, and which of those that a wheel carries this one can run.

A pack that is compiled on a machine is for its processor, unless numba's own variables ask for another:
``NUMBA_CPU_NAME=generic`` makes one pack for all machines of an architecture, which a fleet can share, and whose
instructions can be counted anywhere. It costs some percent, of the timers' most: no `lzcnt`, no `tzcnt`. A wheel
carries packs for `CARRIED`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection

GENERIC, V3 = "generic", "x86-64-v3"
# What x86-64-v3 has beyond the first processors of the architecture, by Linux' names; `abm` is lzcnt. Linux names avx
# and avx2 only where it saves their registers.
_V3 = frozenset("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe".split())
# The lines of /proc/cpuinfo that say which processor it is; others say how fast it is just now, or change at each boot.
_TELLING = {
    *("vendor_id", "cpu family", "model", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
}


def carried() -> list[str]:
    """The processors that a wheel for this architecture carries kernels for, the best one first."""
    return [V3, GENERIC] if platform.machine().lower() in ("x86_64", "amd64") else [GENERIC]


def choose(names: Collection[str]) -> tuple[str, str]:
    """Which of the packs of these names this processor is to run, and why. KeyError if none."""
    asked = os.environ.get("NUMBA_CPU_NAME")
    if asked is not None and asked in names:
        return asked, "NUMBA_CPU_NAME asks for it"
    if V3 in names:
        missing = _V3 - frozenset(_facts().get("flags", "").split())
        if not missing:
            return V3, "this processor has AVX2 and what goes with it"
        if GENERIC in names:
            return GENERIC, f"this processor has no {', '.join(sorted(missing))}, or the system does not say so"
    if GENERIC in names:
        return GENERIC, "no other is carried for this architecture"
    raise KeyError(f"none of {sorted(names)} is for this processor")


def processor() -> tuple[str, str]:
    """What to compile for: its name and features, as LLVM has them. A name that was asked for comes without this
    machine's features.
    """
    import llvmlite.binding as llvm

    name = os.environ.get("NUMBA_CPU_NAME")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name else llvm.get_host_cpu_features().flatten()
    return name or llvm.get_host_cpu_name(), features


def identity() -> list[str]:
    """What `processor` depends on, without llvmlite where the system tells: its import takes 75 ms."""
    asked = [f"{name}={os.environ.get(name)}" for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    facts = _facts()
    return asked + ([f"{name}={text}" for name, text in facts.items()] if facts else [*processor()])


def _facts() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere. Read no further than that: a line of each of many
    processors takes milliseconds to write.
    """
    if sys.platform != "linux":
        return {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            found = {}
            for line in lines:
                name, colon, text = line.partition(":")
                if not colon:
                    break
                if name.strip() in _TELLING:
                    found[name.strip()] = text.strip()
    except OSError:
        return {}
    return found
