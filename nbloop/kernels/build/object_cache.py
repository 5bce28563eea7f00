"""The pack: all compiled kernels as one shared library, made once and loaded without numba and llvmlite.

If a wheel has packs for this interpreter (`made_for`), one of them runs. Otherwise this module makes a pack, once on
each machine. Numba's on-disk cache would not do: it watches only the file of the function that it caches, takes 2.4 ms
a kernel and needs numba imported (1 s). Here the name of the file is a hash of *everything* that goes into it: all
kernel sources, the interpreter and the layout of its objects, the versions of numba and llvmlite, the processor. After
any change the name is another one, so nothing ever has to be invalidated.

The file is in the user's cache folder (``NBLOOP_CACHE_DIR``, else the platform's). It is written under another name,
then renamed, and contains its own digest. Its content is executed, so file and folder must belong to this user or to
root, and nobody else may be able to write them. Without such a folder every process compiles for itself. `status` says
which of these happened, for `doctor`. With ``NUMBA_DISABLE_JIT=1`` nothing is compiled or loaded, and the kernels run
as plain Python.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import time
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..base import capi, interpreter
from ..base.atomics import put
from ..base.kernel import kernels
from . import library, target
from .library import IMPORTS, PREFIX

KERNELS = Path(__file__).parents[1]  # all sources, in all folders, are in the key
CARRIED = KERNELS / "packs"  # in a wheel
SUFFIX = ".so"  # of a pack in a wheel
STALE_SECONDS = 90 * 24 * 3600  # if an old pack is needed after all, it takes 20 s to make


class Status:
    """How this process got its kernels."""

    mode = "compiled"  # compiled, or interpreted (un-jitted)
    source = ""  # wheel, cache, compiler, interpreted
    target = ""  # LLVM's name of the processor that they are for
    why = ""  # why that processor
    file: Path | None = None
    seconds = 0.0
    problem = ""
    imports = 0  # the address of the table of C functions' addresses, in the order of capi.externals


status = Status()


def cache_folder() -> Path:
    """The folder of packs, which may not exist yet, and may not be writable."""
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


def sources() -> str:
    """A hash of the names and contents of all kernel sources. It takes 3 ms, and twice as much with `Path.walk`."""
    digest = hashlib.sha256()
    root = str(KERNELS)
    for folder, inner, names in os.walk(root):
        inner.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                with open(path, "rb") as source:
                    content = source.read()
                digest.update(f"{path[len(root) :]}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def made_for() -> dict[str, Any]:
    """What the kernels' machine code depends on besides the processor: their sources; the interpreter, its build and
    platform, as extension modules name them; and the layout of the objects that kernels read, numpy's included.
    """
    words = {name: word for name, word in vars(interpreter).items() if name.isupper() and isinstance(word, int)}
    return {"interpreter": EXTENSION_SUFFIXES[0], "words": words, "sources": sources()}


def pack_key() -> str:
    """A hash of everything from which this machine makes a pack."""
    versions = [_version(name) for name in ("numba", "llvmlite")]
    facts = [made_for(), sys.version, versions, target.identity()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _version(name: str) -> str:
    """The version of an installed package, without importing it or importlib.metadata, which takes 30 ms."""
    found = find_spec(name)
    if found is None or found.origin is None:
        return ""
    try:
        return Path(found.origin).with_name("_version.py").read_text(encoding="utf-8")
    except OSError:
        return found.origin


def load() -> None:
    """Give every declared kernel its address. Called once, when `nbloop.kernels` is imported. ImportError."""
    start = time.perf_counter()
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        status.mode = status.source = "interpreted"
        return
    if not _load_carried():
        _load_kept()
    status.seconds = time.perf_counter() - start


# --- packs that a wheel carries ---------------------------------------------------------------------------------------


def _load_carried() -> bool:
    """Load one of the wheel's packs. False if it has none for this interpreter; `status.problem` then says why."""
    try:
        names = [file.removesuffix(SUFFIX) for file in os.listdir(CARRIED) if file.endswith(SUFFIX)]
        status.target, status.why = target.choose(names)
    except (OSError, KeyError):
        return False
    file = CARRIED / (status.target + SUFFIX)
    try:
        pack = _checked(file.read_bytes())
    except OSError as problem:
        status.problem = f"the kernels of this wheel cannot be read: {problem}"
        return False
    if pack is None:
        status.problem = "the kernels of this wheel are damaged"
        return False
    code, facts = pack
    wrong = _unlike(facts["made for"], made_for())
    if wrong:
        status.problem = f"this wheel's kernels are not for this interpreter: {wrong}"
        return False
    _link(code, str(file))
    status.source, status.file = "wheel", file
    return True


def _unlike(there: dict[str, Any], here: dict[str, Any]) -> str:
    """How the two differ; empty if they do not."""
    if there["interpreter"] != here["interpreter"]:
        return f"they were made for *{there['interpreter']}, and this one is *{here['interpreter']}"
    if there["words"] != here["words"]:
        names = sorted(name for name, word in here["words"].items() if there["words"].get(name) != word)
        return f"objects of this Python or numpy are laid out differently ({', '.join(names)})"
    if there != here:
        return "they were not made from the sources beside them"
    return ""


# --- the pack that is made here ---------------------------------------------------------------------------------------


def _load_kept() -> None:
    """Load the pack of this machine. Make it if there is none."""
    file: Path | None = None
    folder: int | None = None
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
    try:
        pack = _checked(content) if content is not None else None
        path = None
        if pack is not None:
            status.source = "cache"
            # The descriptor leads to the folder that was checked, wherever its path leads by now. If another process
            # has replaced the file by one with the same key, that is as good: symbols are looked up in what was loaded.
            path = f"/proc/self/fd/{folder}/{file.name}" if file is not None and folder is not None else None
        else:
            if content is not None:
                status.problem = "the cached pack was damaged, and compiled anew"
            pack = _compile(file)
            status.source = "compiler"
        code, facts = pack
        status.target, status.why = facts["target"], facts["why"]
        _link(code, path)
    finally:
        _leave(folder)
    status.file = file


# --- the folder: a descriptor of it is held while it is used, so that it stays the one that was checked ---------------


def _enter(folder: Path) -> int | None:
    """A descriptor of a folder whose files only this user and root can have written. PermissionError if others could;
    OSError if it cannot be opened. None on Windows, where folders have no descriptors.

    The parent folders do not matter: another user can replace the folder, but not by one that belongs to this user. A
    link to a folder is followed, because the check is made on its target.
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
    """PermissionError if another user may have written the file: its owner, its group, or everybody."""
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to user {found.st_uid}, and this process is user {os.geteuid()}'s")
    if found.st_mode & 0o022:
        raise PermissionError(f"{path} has mode {stat.S_IMODE(found.st_mode):o}: others than its owner may write it")


def _open(file: Path, folder: int | None, flags: int) -> int:
    """Open a file of an entered folder, without following a link or waiting for a pipe's writer."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        return os.open(file if folder is None else file.name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PermissionError(f"{file} is a symbolic link") from None
        raise


def _read(file: Path, folder: int | None) -> bytes:
    """The content of a pack that only this user and root can have written. OSError."""
    with open(_open(file, folder, os.O_RDONLY), "rb") as opened:
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(f"{file} is not a regular file")
        if folder is not None:
            _trusted(file, found)
        return opened.read()


def _write(file: Path, content: bytes) -> None:
    """Keep a pack, whole or not at all. Everybody may read it, because it contains only nbloop's code. OSError."""
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


def packed(code: bytes, processor: str, why: str) -> bytes:
    """The content of a pack: the library, and a line of facts behind it, where loaders do not look."""
    facts: dict[str, Any] = {
        "sha256": hashlib.sha256(code).hexdigest(),
        "kernels": sorted(kernels),
        "imports": list(capi.externals),
    }
    facts |= {"target": processor, "why": why, "made for": made_for()}
    return code + b"\n" + json.dumps(facts).encode()


def _checked(content: bytes) -> tuple[bytes, dict[str, Any]] | None:
    """The parts of a pack, or None if it is damaged."""
    code, _, line = content.rpartition(b"\n")
    try:
        facts: dict[str, Any] = json.loads(line)
        if (
            facts["sha256"] == hashlib.sha256(code).hexdigest()
            and facts["kernels"] == sorted(kernels)
            and facts["imports"] == list(capi.externals)
            and facts.keys() >= {"target", "why", "made for"}
        ):
            return code, facts
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _can_compile() -> bool:
    return find_spec("numba") is not None


def _compile(file: Path | None) -> tuple[bytes, dict[str, Any]]:
    if not _can_compile():
        raise ImportError(
            f"nbloop has no kernels for this interpreter{status.problem and f' ({status.problem})'}, and needs numba to"
            " compile them: pip install 'nbloop[jit]', or install a wheel of nbloop that was built for"
            f" *{EXTENSION_SUFFIXES[0]}. NUMBA_DISABLE_JIT=1 runs them as plain Python, some hundred times slower"
        )
    print(
        "nbloop: compiling its kernels for this machine, once; some 20 s"
        + (f" (kept in {file.parent})" if file is not None else ""),
        file=sys.stderr,
        flush=True,
    )
    from .compiler import compile_kernels

    processor = target.processor()
    (code,) = compile_kernels(list(kernels.values()), [processor])
    asked = "NUMBA_CPU_NAME" in os.environ
    content = packed(code, processor[0], "NUMBA_CPU_NAME asked for it" if asked else "it was compiled on this machine")
    if file is not None:
        try:
            _write(file, content)
        except OSError as problem:
            _not_kept(problem)
    pack = _checked(content)
    assert pack is not None
    return pack


def _sweep(folder: Path) -> None:
    """Remove old packs. Once a source, numba or Python has changed, nobody uses the old name any more."""
    for old in folder.glob("kernels-*.pack"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE_SECONDS:
                old.unlink()


def _link(code: bytes, path: str | None) -> None:
    """Load the library into the process, fill its table of C functions, and give each kernel its entry point."""
    address = library.load(code, path)
    status.imports = address(IMPORTS)
    for at, external in enumerate(capi.externals.values()):
        # If the platform lacks this function, its park mode never calls it, and any address will do.
        put(status.imports + 8 * at, external.address() or capi.externals["PyErr_Clear"].address())
    for name, kernel in kernels.items():
        kernel.address = address(PREFIX + name)
