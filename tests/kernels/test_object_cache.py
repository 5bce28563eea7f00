"""object_cache.py: the one object file, where it is kept, and what happens when it can not be or is damaged.

Two tests compile all kernels in a process of their own, some 20 s each; they are marked slow.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nbloop.kernels.base.kernel import kernels
from nbloop.kernels.build import object_cache
from nbloop.kernels.build.target import processor

compiled_only = pytest.mark.skipif(
    object_cache.status.mode != "compiled", reason="kernels run as plain Python: nothing is packed"
)

# Imports nbloop as a user would, runs a loop, and says how it came by its kernels.
USER = """
import json, sys
import nbloop
from nbloop.kernels.build import object_cache
ran = []
loop = nbloop.Loop(auto_exit=True)
loop.submit(ran.append, 1)
loop.submit(loop.schedule_timer, 0, ran.append, 2)
loop.run()
numba = "numba" in sys.modules
if "everything" in sys.argv:
    import importlib, pkgutil
    for module in pkgutil.walk_packages(nbloop.__path__, "nbloop."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ImportError:  # for another platform
                pass
gil = getattr(sys, "_is_gil_enabled", lambda: True)()
s = object_cache.status
found = {"ran": ran, "source": s.source, "problem": s.problem, "file": str(s.file), "numba": numba, "gil": gil}
print(json.dumps(found))
"""


def user(cache: Path, *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """What the user's process found, and the lines it wrote to stderr."""
    environment = os.environ | {"NBLOOP_CACHE_DIR": str(cache)}
    environment.pop("NUMBA_DISABLE_JIT", None)
    ended = subprocess.run(
        [sys.executable, "-c", USER, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr.splitlines()


# --- the key --------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kernels' folder that `pack_key` takes for the real one."""
    folder = tmp_path / "kernels"
    shutil.copytree(object_cache.KERNELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(object_cache, "KERNELS", folder)
    return folder


def test_key_is_of_the_content(sources: Path) -> None:
    """The folder's place and the files' dates do not matter."""
    key = object_cache.pack_key()
    for file in sources.rglob("*.py"):
        os.utime(file, (1, 1))
    assert object_cache.pack_key() == key
    (sources / "notes.txt").write_text("no source")
    assert object_cache.pack_key() == key


def test_key_changes_with_a_source_in_any_folder(sources: Path) -> None:
    """Also with a comment's: nothing is left to be forgotten."""
    folders = sorted({file.parent for file in sources.rglob("*.py")})
    assert len(folders) > 10
    keys = {object_cache.pack_key()}
    for folder in folders:
        for file in (next(folder.glob("[a-z]*.py"), None), folder / "__init__.py"):
            if file is not None:
                with file.open("a") as source:
                    source.write("# changed\n")
                key = object_cache.pack_key()
                assert key not in keys, file
                keys.add(key)


def test_key_changes_with_the_set_of_files(sources: Path) -> None:
    key = object_cache.pack_key()
    (sources / "another.py").write_text("")
    with_another = object_cache.pack_key()
    (sources / "another.py").rename(sources / "renamed.py")
    renamed = object_cache.pack_key()
    (sources / "renamed.py").rename(sources / "base" / "renamed.py")
    assert len({key, with_another, renamed, object_cache.pack_key()}) == 4


def test_key_changes_with_versions_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {object_cache.pack_key()}
    monkeypatch.setattr(object_cache.importlib.metadata, "version", lambda name: f"another {name}")
    keys.add(object_cache.pack_key())
    monkeypatch.setattr(object_cache.llvm, "get_host_cpu_name", lambda: "another")
    keys.add(object_cache.pack_key())
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    keys.add(object_cache.pack_key())
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2")
    keys.add(object_cache.pack_key())
    assert len(keys) == 5


def test_a_named_processor_has_no_features_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    assert processor() == (object_cache.llvm.get_host_cpu_name(), object_cache.llvm.get_host_cpu_features().flatten())
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert processor() == ("generic", "")


# --- the file -------------------------------------------------------------------------------------


def test_damage_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest of itself, and exactly the kernels that are declared."""
    monkeypatch.setattr(object_cache, "status", object_cache.Status())
    digest = object_cache.hashlib.sha256(b"code").hexdigest()
    symbols = {name: f"symbol_{name}" for name in kernels}
    good = json.dumps({"symbols": symbols, "sha256": digest}).encode() + b"\ncode"
    assert object_cache._checked(good) == (symbols, b"code")
    assert not object_cache.status.problem
    few = dict(list(symbols.items())[1:])
    for damaged in (
        b"",
        b"\n",
        b"{}\ncode",
        good[:-1],
        good + b"x",
        good.replace(b"code", b"c0de"),
        json.dumps({"symbols": few, "sha256": digest}).encode() + b"\ncode",
        json.dumps([1]).encode() + b"\ncode",
        b"\xff\xfe\n\x00",
    ):
        assert object_cache._checked(damaged) is None
        assert "damaged" in object_cache.status.problem


def test_folder_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBLOOP_CACHE_DIR", str(tmp_path / "here"))
    assert object_cache.cache_folder() == tmp_path / "here"
    if sys.platform == "linux":
        monkeypatch.delenv("NBLOOP_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert object_cache.cache_folder() == tmp_path / "nbloop"


class Loaded:
    """`pack.load` in this process, of a pack made by hand, with the compiler and the linker left out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.cache = tmp_path / "cache"
        self.symbols = {name: f"symbol_{name}" for name in kernels}
        self.good = self.made(b"code")
        self.linked: list[bytes] = []
        compiler = type(sys)("compiler")
        compiler.compile_kernels = lambda _kernels: (self.symbols, b"compiled")
        monkeypatch.setitem(sys.modules, "nbloop.kernels.build.compiler", compiler)
        monkeypatch.setattr(object_cache, "_link", lambda _symbols, code: self.linked.append(code))
        monkeypatch.setattr(object_cache, "_name_symbols", lambda: None)
        monkeypatch.setenv("NBLOOP_CACHE_DIR", str(self.cache))
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
        self.monkeypatch = monkeypatch
        self.file = self.cache / f"kernels-{object_cache.pack_key()}.pack"

    def made(self, code: bytes) -> bytes:
        facts = {"symbols": self.symbols, "sha256": object_cache.hashlib.sha256(code).hexdigest()}
        return json.dumps(facts).encode() + b"\n" + code

    def keep(self, folder_mode: int = 0o700, mode: int = 0o600) -> None:
        self.cache.mkdir(exist_ok=True)
        self.cache.chmod(folder_mode)
        self.file.write_bytes(self.good)
        self.file.chmod(mode)

    def load(self) -> tuple[str, bytes, str]:
        """Where the kernels came from, which they are, and the problem."""
        self.monkeypatch.setattr(object_cache, "status", object_cache.Status())
        object_cache.load()
        assert len(object_cache.status.keep) == 0
        return object_cache.status.source, self.linked.pop(), object_cache.status.problem

    def left(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir() if path != self.file)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loaded:
    return Loaded(monkeypatch, tmp_path)


posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")


def test_a_pack_is_made_once_and_then_loaded(loaded: Loaded) -> None:
    assert loaded.load() == ("compiler", b"compiled", "")
    assert loaded.load() == ("cache", b"compiled", "")
    assert loaded.left() == []
    if os.name == "posix":
        assert loaded.cache.stat().st_mode & 0o777 == 0o700
        assert loaded.file.stat().st_mode & 0o777 == 0o644


@posix
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400, 0o755])
def test_a_pack_that_nobody_else_may_write_is_loaded(loaded: Loaded, mode: int) -> None:
    loaded.keep(0o755, mode)
    assert loaded.load() == ("cache", b"code", "")


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o770, 0o720, 0o702], ids=oct)
def test_a_folder_that_others_may_write_is_neither_read_nor_written(loaded: Loaded, mode: int) -> None:
    """Sticky or not."""
    loaded.keep(mode)
    source, code, problem = loaded.load()
    assert (source, code) == ("compiler", b"compiled")
    assert "others than its owner may write it" in problem
    assert loaded.file.read_bytes() == loaded.good
    assert loaded.left() == []
    assert object_cache.status.file is None


@posix
@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602], ids=oct)
def test_a_file_that_others_may_write_is_made_anew(loaded: Loaded, mode: int) -> None:
    loaded.keep(0o700, mode)
    source, code, problem = loaded.load()
    assert (source, code) == ("compiler", b"compiled")
    assert "others than its owner may write it" in problem
    assert loaded.load() == ("cache", b"compiled", "")


@root
@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_belongs_to_another_user_is_not_loaded(loaded: Loaded, which: str) -> None:
    """As root too: a container's, say, whose image another user has built."""
    loaded.keep()
    os.chown(loaded.file if which == "file" else loaded.cache, 12345, -1)
    source, code, problem = loaded.load()
    assert (source, code) == ("compiler", b"compiled")
    assert "belongs to user 12345" in problem
    assert loaded.load()[0] == ("cache" if which == "file" else "compiler")


@root
def test_what_belongs_to_root_is_loaded_by_all(loaded: Loaded) -> None:
    """As in an image that root has built, whose process has another user."""
    loaded.keep(0o755, 0o644)
    for parent in (loaded.cache.parent, *loaded.cache.parent.parents):
        if not parent.stat().st_mode & 0o001:
            loaded.cache.parent.chmod(0o755)
    loaded.monkeypatch.setattr(object_cache.os, "geteuid", lambda: 12345)
    assert loaded.load() == ("cache", b"code", "")


@posix
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "socket", "device"])
def test_what_is_no_file_is_refused_at_once(loaded: Loaded, kind: str) -> None:
    """A pipe would keep the import waiting for a writer. It is replaced: only this user can have put it there."""
    loaded.keep()
    loaded.file.rename(loaded.cache / "elsewhere")
    if kind == "pipe":
        os.mkfifo(loaded.file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            loaded.monkeypatch.chdir(loaded.cache)  # a path has 107 bytes at most
            one.bind(loaded.file.name)
    elif kind == "device":
        loaded.file.symlink_to("/dev/zero")
    else:
        loaded.file.symlink_to(loaded.cache / ("elsewhere" if kind == "link" else "nowhere"))
    source, code, problem = loaded.load()
    assert (source, code) == ("compiler", b"compiled")
    assert "made anew" in problem
    assert loaded.load() == ("cache", b"compiled", "")
    assert loaded.left() == ["elsewhere"]
    assert (loaded.cache / "elsewhere").read_bytes() == loaded.good


@posix
def test_a_folder_in_its_place_stays(loaded: Loaded) -> None:
    loaded.keep()
    loaded.file.unlink()
    loaded.file.mkdir()
    source, _, problem = loaded.load()
    assert source == "compiler"
    assert "every process compiles" in problem
    assert loaded.file.is_dir()
    assert loaded.left() == []


@posix
def test_a_link_to_a_folder_of_ones_own_is_followed(loaded: Loaded, tmp_path: Path) -> None:
    loaded.keep()
    loaded.cache.rename(tmp_path / "moved")
    loaded.cache.symlink_to(tmp_path / "moved")
    assert loaded.load() == ("cache", b"code", "")


def test_a_truncated_pack_is_made_anew(loaded: Loaded) -> None:
    loaded.keep()
    loaded.file.write_bytes(loaded.good[:-1])
    assert loaded.load() == ("compiler", b"compiled", "the cached pack was damaged, and compiled anew")
    assert loaded.load() == ("cache", b"compiled", "")


def test_a_full_disk_keeps_nothing(loaded: Loaded) -> None:
    """No half of a file, neither under its name nor under another."""

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            super().write(content[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    loaded.monkeypatch.setattr(object_cache, "open", Full, raising=False)
    source, code, problem = loaded.load()
    assert (source, code) == ("compiler", b"compiled")
    assert "No space left" in problem
    assert list(loaded.cache.iterdir()) == []


def test_two_processes_at_once(loaded: Loaded) -> None:
    """Each writes a file of its own, and the last one stays; whoever reads has a whole one."""
    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(object_cache._write, loaded.file, loaded.made(bytes([n]) * 100_000)) for n in range(8)]
        while not all(write.done() for write in writes):
            if loaded.file.exists():
                held = object_cache._enter(loaded.cache)
                assert object_cache._checked(object_cache._read(loaded.file, held)) is not None
                object_cache._leave(held)
        for write in writes:
            write.result()
    assert loaded.left() == []


# --- whole processes ------------------------------------------------------------------------------


@compiled_only
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_folder_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    """The kernels are compiled all the same; one line says that they are, one that they could not be kept."""
    file = tmp_path / "a file"
    file.write_text("not a folder")
    found, lines = user(file / "cache")
    assert found["ran"] == [1, 2]
    assert found["source"] == "compiler"
    assert "every process compiles" in found["problem"]
    assert [line.partition(":")[0] for line in lines] == ["nbloop", "nbloop"]
    assert "compiling" in lines[1]
    assert file.read_text() == "not a folder"


@compiled_only
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_damaged_pack_is_compiled_anew_and_then_served(tmp_path: Path) -> None:
    """Damaged: compiled, with one line that says so, and replaced. Then: no numba, no word, and the GIL stays as it
    is.
    """
    cache = tmp_path / "cache"
    cache.mkdir()
    file = cache / f"kernels-{object_cache.pack_key()}.pack"
    file.write_bytes(b'{"symbols": {}, "sha256": ""}\nnot an object file')
    found, lines = user(cache)
    assert (found["source"], found["ran"]) == ("compiler", [1, 2])
    assert "damaged" in found["problem"]
    assert len(lines) == 1
    assert "compiling" in lines[0]
    assert list(cache.iterdir()) == [file], "a temporary file was left"
    assert object_cache._checked(file.read_bytes()) is not None
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o644, "others may read it, and not write it"

    found, lines = user(cache, "everything")
    assert (found["source"], found["ran"], found["problem"]) == ("cache", [1, 2], "")
    assert lines == []
    assert not found["numba"]
    assert found["file"] == str(file)
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert not found["gil"], "an import has turned the GIL on"
