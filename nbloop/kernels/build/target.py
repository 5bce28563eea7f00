"""Which processor kernels are compiled for: this machine's, unless numba's own variables ask for another.

``NUMBA_CPU_NAME=generic`` makes one pack for all machines of an architecture, which a fleet can share, and whose
instructions can be counted anywhere. It costs some percent, of the timers' most: no `lzcnt`, no `tzcnt`.
"""

from __future__ import annotations

import os

import llvmlite.binding as llvm


def processor() -> tuple[str, str]:
    """Its name and features, as LLVM has them. A name that was asked for comes without this machine's features."""
    name = os.environ.get("NUMBA_CPU_NAME")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name else llvm.get_host_cpu_features().flatten()
    return name or llvm.get_host_cpu_name(), features
