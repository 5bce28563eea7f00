"""The pack: all compiled kernels as one object file, made once per machine and loaded without numba.

Numba's own on-disk cache sees only the file of the function it caches, takes 2.4 ms a kernel and needs numba imported
(1 s). Here the name of the cached file is a hash of *everything* that goes into it: all kernel sources, the
interpreter, numba's and llvmlite's versions, the CPU and its features. A change anywhere makes another name, so there
is nothing to invalidate.

The file lies in the user's cache folder (``NBLOOP_CACHE_DIR``, else the platform's), is written under another name and
renamed, and carries a digest of itself. What is in it is run, so it is loaded only from a file and a folder that belong
to this user or to root, and that nobody else may write. No such folder is not an error: then every process compiles for
itself. `status` tells `doctor` which of these happened. With ``NUMBA_DISABLE_JIT=1``
nothing is compiled, and kernels run as the Python that they are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import stat
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from ..base import capi
from ..base.kernel import kernels
from .target import processor

KERNELS = Path(__file__).parents[1]  # all sources, in all folders, are in the key
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
    for source in sorted(KERNELS.rglob("*.py")):
        digest.update(source.relative_to(KERNELS).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
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
        folder = _enter(file.parent)
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError) as problem:  # RuntimeError: no home folder
        file = None
        _not_kept(problem)
    else:
        try:
            content = _read(file, folder)
        except FileNotFoundError:
            pass
        except OSError as problem:
            status.problem = f"the pack was not loaded, and made anew: {problem}"
        finally:
            _leave(folder)
    _name_symbols()
    pack = _checked(content) if content is not None else None
    status.source = "cache"
    if pack is None:
        pack = _compile(file)
        status.source = "compiler"
    _link(*pack)
    status.file = file
    status.seconds = time.perf_counter() - start


# --- the folder, of which a descriptor is held while it is used, so that it stays the one that was looked at ----------


def _enter(folder: Path) -> int | None:
    """A descriptor of a folder whose files only this user and root can have written, or PermissionError. OSError.

    Its parents do not matter: another user can put another folder in its place, but not one that belongs to this user.
    A link to a folder is followed, because what is looked at is where it leads. None on Windows, where folders have no
    descriptors.
    """
    if sys.platform == "win32":
        return None
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _trusted(folder, os.fstat(held))
    except BaseException:
        os.close(held)
        raise
    return held


def _leave(folder: int | None) -> None:
    if folder is not None:
        os.close(folder)


def _trusted(path: Path, found: os.stat_result) -> None:
    """PermissionError if another user may have written it: one that owns it, that its group is, or all."""
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to user {found.st_uid}, and this process is user {os.geteuid()}'s")
    if found.st_mode & 0o022:
        raise PermissionError(f"{path} has mode {stat.S_IMODE(found.st_mode):o}: others than its owner may write it")


def _open(file: Path, folder: int | None, flags: int) -> int:
    """A file of an entered folder, as it is: no link is followed, and no pipe waited for."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        return os.open(file if folder is None else file.name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PermissionError(f"{file} is a symbolic link") from None
        raise


def _read(file: Path, folder: int | None) -> bytes:
    """All of a pack that only this user and root can have written. OSError."""
    with open(_open(file, folder, os.O_RDONLY), "rb") as opened:
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(f"{file} is not a regular file")
        if folder is not None:
            _trusted(file, found)
        return opened.read()


def _write(file: Path, content: bytes) -> None:
    """Keep a pack: whole, or not at all. All may read it: there is nothing in it but the code of nbloop. OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = _enter(file.parent)
    temporary = file.with_name(f".pack-{os.getpid()}-{os.urandom(8).hex()}")
    try:
        with open(_open(temporary, folder, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as out:
            out.write(content)
            if folder is not None:
                os.fchmod(out.fileno(), 0o644)
        if folder is None:
            temporary.replace(file)
        else:
            os.replace(temporary.name, file.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary if folder is None else temporary.name, dir_fd=folder)
        raise
    finally:
        _leave(folder)
    _sweep(file.parent)


def _not_kept(problem: Exception) -> None:
    status.problem = f"no pack could be kept, so every process compiles: {problem}"
    print(f"nbloop: {status.problem}", file=sys.stderr)


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
        facts = {"symbols": symbols, "sha256": hashlib.sha256(code).hexdigest()}
        try:
            _write(file, json.dumps(facts).encode() + b"\n" + code)
        except OSError as problem:
            _not_kept(problem)
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
