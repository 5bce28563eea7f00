"""Kernels for AArch64, made on a machine of any architecture: machine code is written here, and not run.

``python -m tests.support.aarch64 FOLDER [SUFFIX]`` writes the kernels as text, `kernels.ll` and `kernels.s`, and with
SUFFIX the pack of them that a wheel would carry, for interpreters whose extension modules end so. `names.json` has the
symbol of each kernel, and of a function for each verb of atomics.py, which is beside the kernels in the text. It runs
in a process of its own, because kernels read what they know of the system when they are imported.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

TRIPLE = "aarch64-unknown-linux-gnu"


def main(folder: Path, suffix: str = "") -> None:
    """Write them."""
    platform.machine = lambda: "aarch64"
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    from nbloop.kernels.base import capi
    from nbloop.kernels.base.kernel import kernels
    from nbloop.kernels.build import object_cache
    from nbloop.kernels.build.linker import link

    del os.environ["NUMBA_DISABLE_JIT"]
    assert capi.FUTEX_NUMBERS["aarch64"] == capi.SYS_FUTEX
    write_no_code()
    from nbloop.kernels.build.compiler import link_kernels, optimise
    from tests.support.verbs import VERBS

    symbols, module = link_kernels([*kernels.values(), *VERBS])
    machine = optimise(module, "generic", "", TRIPLE)
    (folder / "names.json").write_text(json.dumps(symbols), encoding="utf-8")
    (folder / "kernels.ll").write_text(str(module), encoding="utf-8")
    (folder / "kernels.s").write_text(machine.emit_assembly(module), encoding="utf-8")
    if suffix:
        object_cache.EXTENSION_SUFFIXES[:] = [suffix]
        code = link(machine.emit_object(module), symbols, capi.externals)
        (folder / f"generic{object_cache.SUFFIX}").write_bytes(object_cache.packed(code, "generic", ""))


@functools.cache
def prepare_llvm() -> None:
    """No piece of code is made of two that are the same, nor two of one: each access of a function can be counted."""
    import llvmlite.binding as llvm

    for option in ("enable-tail-merge=0", "disable-tail-duplicate", "disable-early-taildup", "tail-dup-placement=0"):
        llvm.set_option("", f"-{option}")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def assembly(text: str) -> str:
    """The machine code of a module, as text."""
    import llvmlite.binding as llvm

    prepare_llvm()
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(opt=3, reloc="pic", codemodel="default")
    return str(machine.emit_assembly(llvm.parse_assembly(text)))


def write_no_code() -> None:
    """Numba writes machine code for what it has compiled, which needs instructions that this machine does not have."""
    from numba import cfunc, types
    from numba.core.codegen import JITCodeLibrary, JITCPUCodegen

    prepare_llvm()
    cfunc(types.intp(types.intp))(lambda number: number)  # Numba's own runtime is compiled now, and runs
    library: Any = JITCodeLibrary
    library._finalize_specific = lambda _library: None
    library.get_pointer_to_function = lambda of, _name: of._ensure_finalized() or 0  # to finalise is to link, too
    JITCPUCodegen.set_env = lambda _codegen, _name, _environment: None


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
