"""Which processor kernels are compiled for, and which of a wheel's packs this processor can run.

A pack that a machine compiles is for its own processor, unless numba's variables ask for another. With
``NUMBA_CPU_NAME=generic`` the pack runs on all machines of the architecture: a fleet can share it, and its instructions
can be counted anywhere. It is some percent slower, timers most, because it has no `lzcnt` and no `tzcnt`. A wheel has a
pack for each name in `carried()`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection

GENERIC, V3 = "generic", "x86-64-v3"
# What x86-64-v3 adds to the first processors of the architecture, by Linux' names; `abm` is lzcnt. Linux names avx and
# avx2 only if it saves their registers.
_V3 = frozenset("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe".split())
# The lines of /proc/cpuinfo that identify a processor. Others give its present speed, or change at each boot.
_TELLING = {
    *("vendor_id", "cpu family", "model", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
}


def carried() -> list[str]:
    """The processors for which a wheel of this architecture has packs, the best one first."""
    return [V3, GENERIC] if platform.machine().lower() in ("x86_64", "amd64") else [GENERIC]


def choose(names: Collection[str]) -> tuple[str, str]:
    """The name of the pack that this processor should run, and the reason. KeyError if it can run none of them."""
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
        return GENERIC, "the wheel has no other for this architecture"
    raise KeyError(f"this processor can run none of {sorted(names)}")


def processor() -> tuple[str, str]:
    """The name and features of the processor to compile for, in LLVM's terms. A name that a variable asks for comes
    without the features of this machine.
    """
    import llvmlite.binding as llvm

    name = os.environ.get("NUMBA_CPU_NAME")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name else llvm.get_host_cpu_features().flatten()
    return name or llvm.get_host_cpu_name(), features


def identity() -> list[str]:
    """What `processor` depends on. llvmlite, whose import takes 75 ms, is asked only if the system does not say it."""
    asked = [f"{name}={os.environ.get(name)}" for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    facts = _facts()
    return asked + ([f"{name}={text}" for name, text in facts.items()] if facts else [*processor()])


def _facts() -> dict[str, str]:
    """What Linux says about the first processor; empty on other systems. It stops reading there, because the kernel
    needs milliseconds to write the lines of many processors.
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
