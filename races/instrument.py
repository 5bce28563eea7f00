"""The shipped kernels, prepared for ThreadSanitizer: the linked and optimised LLVM module with each function marked.

``python races/instrument.py FOLDER`` writes kernels.ll, with one function ``kernel_NAME`` per kernel, and layout.h,
which tells driver.c the offsets of a state's words. It runs in a separate process, because numba's primitives can be
registered only once.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from nbloop.kernels.base import interpreter, layout
from nbloop.kernels.base.kernel import kernels
from nbloop.kernels.memory.slot_slabs import KEEP_SLABS, PER_SLAB
from nbloop.kernels.timers.buckets import GRAIN_MASK


def offsets(record: np.dtype, at: int, path: str) -> dict[str, int]:
    """Byte offsets of a record's words, and of the records in it, by path: ``STATE_external_tail``."""
    found = {path: at}
    for name, (kind, start, *_) in (record.fields or {}).items():
        found |= offsets(kind, at + start, f"{path}_{name}")
    return found


def header() -> str:
    """layout.h."""
    words = {
        name: value for name, value in vars(layout).items() if isinstance(value, int) and name.isupper() and value >= 0
    }
    words |= {name: getattr(interpreter, name) for name in ("OBJECT_HEADER", "TUPLE_ITEMS", "TYPE_CALL")}
    words |= {"GRAIN_MASK": GRAIN_MASK, "KEEP_SLABS": KEEP_SLABS, "PER_SLAB": PER_SLAB}
    for record in vars(layout).values():
        if isinstance(record, layout.Record):
            fields = {f"{record.__name__}_{name}": at for name, at in vars(record).items() if name.isupper()}
            assert not fields.keys() & words.keys()
            words |= fields
    words |= offsets(layout.STATE.dtype, 0, "STATE") | offsets(layout.HANDLE.dtype, 0, "HANDLE")
    words |= offsets(layout.CHANNEL.dtype, 0, "CHANNEL") | {"CHANNEL_BYTES": layout.CHANNEL.dtype.itemsize}
    words |= {"STATE_BYTES": layout.STATE.dtype.itemsize, "HANDLE_BYTES": layout.HANDLE.dtype.itemsize}
    return "".join(f"#define {name} {value}LL\n" for name, value in words.items())


def instrumented() -> str:
    """kernels.ll."""
    from nbloop.kernels.build.compiler import link_kernels, optimise
    from nbloop.kernels.build.target import processor

    symbols, module = link_kernels(list(kernels.values()))
    optimise(module, *processor())
    names = {symbol: f"kernel_{name}" for name, symbol in symbols.items()}
    for function in module.functions:
        if not function.is_declaration:
            function.add_function_attribute("sanitize_thread")
            function.name = names.get(function.name, function.name)
    # The driver's own allocator: a sanitizer knows where an allocation ends, but not where a mapping does.
    return re.sub(r"@(mmap|munmap|madvise)\b", r"@kernels_\1", str(module))


def main(folder: Path) -> None:
    """Write both files."""
    (folder / "layout.h").write_text(header(), encoding="utf-8")
    (folder / "kernels.ll").write_text(instrumented(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
