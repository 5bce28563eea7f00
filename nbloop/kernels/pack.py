"""The pack: all compiled kernels as one object file, made once per machine and loaded without numba.

Numba's own on-disk cache sees only the file of the function it caches, takes 2.4 ms a kernel and needs numba imported
(1 s). Here the name of the cached file is a hash of *everything* that goes into it: all kernel sources, the
interpreter, numba's and llvmlite's versions, the CPU and its features. A change anywhere makes another name, so there
is nothing to invalidate.

The file lies in the user's cache folder (``NBLOOP_CACHE_DIR``, else the platform's), readable by nobody else, written
under another name and renamed, and carries a digest of itself. No folder that can be written is not an error: then
every process compiles for itself. `status` tells `doctor` which of these happened. With ``NUMBA_DISABLE_JIT=1``
nothing is compiled, and kernels run as the Python that they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from . import capi
from .kernel import kernels
from .processor import processor

STALE_SECONDS = 90 * 24 * 3600  # made anew in 20 s if it was still wanted


@dataclass
class Status:
    """How this process got its kernels."""

    mode: str = "compiled"  # compiled, or interpreted (un-jitted)
    source: str = ""  # cache, compiler
    file: Path | None = None
    seconds: float = 0.0
    problem: str = ""
    keep: list[Any] = field(default_factory=list)  # the engine owns the code that built-ins point into


status = Status()


def cache_folder() -> Path:
    """Where packs are kept; may not exist yet, and may not be writable."""
    chosen = os.environ.get("NBLOOP_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "nbloop"


def pack_key() -> str:
    """A hash of everything that the object file is made from."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    facts = [
        sys.version,
        sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag,
        importlib.metadata.version("numba"),
        importlib.metadata.version("llvmlite"),
        *processor(),
    ]
    digest.update("\0".join(map(str, facts)).encode())
    return digest.hexdigest()[:32]


def load() -> None:
    """Give every declared kernel its address. Called once, when `nbloop.kernels` is imported."""
    start = time.perf_counter()
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        status.mode = status.source = "interpreted"
        return
    file: Path | None = None
    content: bytes | None = None
    try:
        file = cache_folder() / f"kernels-{pack_key()}.pack"
        content = file.read_bytes()
    except (OSError, RuntimeError) as problem:  # RuntimeError: no home folder
        if not isinstance(problem, FileNotFoundError):
            status.problem = str(problem)
    _name_symbols()
    pack = _checked(content) if content is not None else None
    status.source = "cache"
    if pack is None:
        pack = _compile(file)
        status.source = "compiler"
    _link(*pack)
    status.file = file
    status.seconds = time.perf_counter() - start


def _checked(content: bytes) -> tuple[dict[str, str], bytes] | None:
    """The parts of a pack, or None if it is damaged."""
    header, _, code = content.partition(b"\n")
    try:
        facts = json.loads(header)
        if facts["sha256"] == hashlib.sha256(code).hexdigest() and set(facts["symbols"]) == set(kernels):
            return facts["symbols"], code
    except (ValueError, KeyError, TypeError):
        pass
    status.problem = "the cached pack was damaged, and compiled anew"
    return None


def _compile(file: Path | None) -> tuple[dict[str, str], bytes]:
    print(
        "nbloop: compiling its kernels for this machine, once; some 20 s"
        + (f" (kept in {file.parent})" if file is not None else ""),
        file=sys.stderr,
        flush=True,
    )
    from .compiler import compile_kernels

    symbols, code = compile_kernels(list(kernels.values()))
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".pack-")  # mode 0600
            try:
                with os.fdopen(handle, "wb") as out:
                    facts = {"symbols": symbols, "sha256": hashlib.sha256(code).hexdigest()}
                    out.write(json.dumps(facts).encode() + b"\n" + code)
                Path(temporary).replace(file)
                _sweep(file.parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
                raise
        except OSError as problem:
            status.problem = f"no pack could be kept, so every process compiles: {problem}"
            print(f"nbloop: {status.problem}", file=sys.stderr)
    return symbols, code


def _sweep(folder: Path) -> None:
    """Remove packs made long ago: a name is never used again once a source, numba or Python has changed."""
    for old in folder.glob("kernels-*.pack"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE_SECONDS:
                old.unlink()


def _name_symbols() -> None:
    """Tell the object loader where the externals are; also numba's, which links what it compiles."""
    for name, external in capi.externals.items():
        # A platform without this symbol never calls it (park mode); any address that links will do.
        llvm.add_symbol(name, external.address() or capi.externals["PyErr_Clear"].address())


def _link(symbols: dict[str, str], code: bytes) -> None:
    """Load the object into the process and give each kernel its entry point."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True, codemodel="jitdefault")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    status.keep.append(engine)
    for name, symbol in symbols.items():
        kernels[name].address = engine.get_function_address(symbol)
