"""object_cache.py: the one library, where it is kept, and what happens when it cannot be or is damaged.

One test compiles all kernels in a process of its own, which takes 40 s; it is marked slow.
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

from nbloop.kernels.base import capi, interpreter
from nbloop.kernels.base.kernel import kernels
from nbloop.kernels.build import object_cache, target
from nbloop.kernels.build.target import processor

compiled_only = pytest.mark.skipif(
    object_cache.status.mode != "compiled", reason="kernels run as plain Python: nothing is packed"
)

# Imports nbloop as a user would, runs a loop, and says how it came by its kernels.
USER = """
import json, sys, types
if "compiled" in sys.argv:  # by a compiler that has the result already
    compiler = sys.modules["nbloop.kernels.build.compiler"] = types.ModuleType("compiler")
    def compile_kernels(kernels, processors):
        with open(sys.argv[-1], "rb") as file:
            return [file.read() for _ in processors]
    compiler.compile_kernels = compile_kernels
import nbloop
from nbloop.kernels.build import object_cache
ran = []
loop = nbloop.Loop(auto_exit=True)
loop.submit(ran.append, 1)
loop.submit(loop.schedule_timer, 0, ran.append, 2)
loop.run()
numba = sorted({"numba", "llvmlite"} & set(sys.modules))
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
        timeout=400,
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
    """Even with a comment's change: no exception that somebody could forget."""
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
    monkeypatch.setattr(object_cache, "_version", lambda name: f"another {name}")
    keys.add(object_cache.pack_key())
    monkeypatch.setattr(target, "_facts", lambda: {"flags": "another"})
    keys.add(object_cache.pack_key())
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    keys.add(object_cache.pack_key())
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2")
    keys.add(object_cache.pack_key())
    monkeypatch.setattr(interpreter, "ARRAY_DATA", 8)
    keys.add(object_cache.pack_key())
    monkeypatch.setattr(object_cache, "EXTENSION_SUFFIXES", [".cpython-399-another.so"])
    keys.add(object_cache.pack_key())
    assert len(keys) == 7


def test_the_versions_are_those_of_the_packages() -> None:
    """Found without an import."""
    llvmlite = pytest.importorskip("llvmlite")
    assert llvmlite.__version__ in object_cache._version("llvmlite")
    assert object_cache._version("no_such_package") == ""


def test_a_named_processor_has_no_features_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    llvm = pytest.importorskip("llvmlite.binding")
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    assert processor() == (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert processor() == ("generic", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere llvmlite is asked")
def test_the_processor_is_the_same_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key has no line of /proc/cpuinfo that changes from one moment, or one boot, to the next."""
    known = target.identity()
    assert len(known) > 4
    assert known == target.identity()
    assert not [fact for fact in known if "MHz" in fact or "bogomips" in fact.lower()]
    monkeypatch.setitem(sys.modules, "llvmlite", None)  # not importable
    assert known == target.identity()


# --- the file -------------------------------------------------------------------------------------


def test_damage_is_noticed() -> None:
    """A digest of itself, and exactly the kernels and C functions that are declared."""
    good = object_cache.packed(b"co\nde", "generic", "so")
    code, facts = object_cache._checked(good) or (b"", {})
    assert code == b"co\nde"
    assert (facts["target"], facts["why"]) == ("generic", "so")

    def line(**changed: object) -> bytes:
        return b"co\nde\n" + json.dumps(facts | changed).encode()

    assert object_cache._checked(line()) is not None
    for damaged in (
        b"",
        b"\n",
        b"co\nde\n{}",
        good[:-1],
        good + b"x",
        b"x" + good,
        good.replace(b"co\nde", b"co\nd3"),
        line(kernels=sorted(kernels)[1:]),
        line(imports=[*capi.externals][::-1]),
        b"co\nde\n[1]",
        b"\xff\xfe\n\x00",
    ):
        assert object_cache._checked(damaged) is None


def test_folder_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBLOOP_CACHE_DIR", str(tmp_path / "here"))
    assert object_cache.cache_folder() == tmp_path / "here"
    if sys.platform == "linux":
        monkeypatch.delenv("NBLOOP_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert object_cache.cache_folder() == tmp_path / "nbloop"


class Loaded:
    """`object_cache.load` in this process, of a pack made by hand, with the compiler and the linker left out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.cache = tmp_path / "cache"
        self.good = self.made(b"code")
        self.linked: list[bytes] = []
        self.paths: list[str | None] = []
        compiler = type(sys)("compiler")
        compiler.compile_kernels = lambda _kernels, _processors: [b"compiled"]
        monkeypatch.setitem(sys.modules, "nbloop.kernels.build.compiler", compiler)
        monkeypatch.setattr(object_cache, "find_spec", lambda _name: None)
        monkeypatch.setattr(object_cache, "_can_compile", lambda: True)
        monkeypatch.setattr(target, "processor", lambda: ("this", ""))
        monkeypatch.setattr(object_cache, "_link", self.link)
        monkeypatch.setattr(object_cache, "CARRIED", tmp_path / "packs")
        monkeypatch.setenv("NBLOOP_CACHE_DIR", str(self.cache))
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
        monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
        self.monkeypatch = monkeypatch
        self.file = self.cache / f"kernels-{object_cache.pack_key()}.pack"

    def link(self, code: bytes, path: str | None) -> None:
        self.linked.append(code)
        if path is not None:  # what is loaded by its path is what was read
            self.paths.append(path)
            assert Path(path).read_bytes().startswith(code)

    def made(self, code: bytes) -> bytes:
        return object_cache.packed(code, "this", "so")

    def carry(self, name: str, **changed: object) -> None:
        """Have a wheel's pack of that name."""
        object_cache.CARRIED.mkdir(exist_ok=True)
        content = object_cache.packed(name.encode(), name, "")
        code, _, line = content.rpartition(b"\n")
        facts = json.loads(line)
        facts["made for"] |= changed
        (object_cache.CARRIED / f"{name}.so").write_bytes(code + b"\n" + json.dumps(facts).encode())

    def keep(self, folder_mode: int = 0o700, mode: int = 0o600) -> None:
        self.cache.mkdir(exist_ok=True)
        self.cache.chmod(folder_mode)
        self.file.write_bytes(self.good)
        self.file.chmod(mode)

    def load(self) -> tuple[str, bytes, str]:
        """Where the kernels came from, which they are, and the problem."""
        self.monkeypatch.setattr(object_cache, "status", object_cache.Status())
        object_cache.load()
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
    """Each writes a file of its own, and the last one stays; a reader gets a complete one."""
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


# --- packs that a wheel carries -------------------------------------------------------------------

EVERY = {"flags": " ".join(target._V3)}


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor that has everything."""
    monkeypatch.setattr(target, "_facts", lambda: EVERY)
    return monkeypatch


def test_a_carried_pack_is_loaded_and_nothing_is_read_or_written_elsewhere(
    loaded: Loaded, x86: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded.carry("generic")
    loaded.carry("x86-64-v3")
    assert loaded.load() == ("wheel", b"x86-64-v3", "")
    assert object_cache.status.target == "x86-64-v3"
    assert "AVX2" in object_cache.status.why
    assert loaded.paths == [str(object_cache.CARRIED / "x86-64-v3.so")]
    assert not loaded.cache.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("missing", sorted(target._V3))
def test_a_processor_without_one_of_the_features_runs_the_generic_one(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(target, "_facts", lambda: {"flags": " ".join(target._V3 - {missing})})
    loaded.carry("generic")
    loaded.carry("x86-64-v3")
    assert loaded.load() == ("wheel", b"generic", "")
    assert missing in object_cache.status.why


def test_numbas_variable_chooses_among_those_that_are_carried(loaded: Loaded, x86: pytest.MonkeyPatch) -> None:
    loaded.carry("generic")
    loaded.carry("x86-64-v3")
    x86.setenv("NUMBA_CPU_NAME", "generic")
    assert loaded.load() == ("wheel", b"generic", "")
    x86.setenv("NUMBA_CPU_NAME", "another")
    assert loaded.load() == ("wheel", b"x86-64-v3", "")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"interpreter": ".cpython-399t-x86_64-linux-gnu.so"}, "made for *.cpython-399t-x86_64-linux-gnu.so"),
        ({"words": {"ARRAY_DATA": 8}}, "laid out differently (ARRAY_DATA"),
        ({"sources": "others"}, "not made from the sources beside them"),
    ],
)
def test_a_carried_pack_for_another_interpreter_is_not_loaded(
    loaded: Loaded, changed: dict[str, object], reason: str
) -> None:
    """With numba the kernels are compiled, and the reason is kept; without it the import says how to go on."""
    here = object_cache.made_for()
    if "words" in changed:
        changed = {"words": here["words"] | {"ARRAY_DATA": 8}}
    loaded.carry("generic", **changed)
    source, code, problem = loaded.load()
    assert (source, code) == ("compiler", b"compiled")
    assert reason in problem
    loaded.file.unlink()
    loaded.monkeypatch.setattr(object_cache, "_can_compile", lambda: False)
    with pytest.raises(ImportError) as refused:
        loaded.load()
    message = str(refused.value)
    assert reason in message
    assert "pip install 'nbloop[jit]'" in message
    assert object_cache.EXTENSION_SUFFIXES[0] in message


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "no file"])
def test_a_damaged_carried_pack_is_not_loaded(loaded: Loaded, damage: str) -> None:
    loaded.carry("generic")
    file = object_cache.CARRIED / "generic.so"
    content = file.read_bytes()
    if damage == "no file":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(
            {"truncated": content[:-9], "empty": b"", "changed": content.replace(b"gen", b"GEN", 1)}[damage]
        )
    source, code, problem = loaded.load()
    assert (source, code) == ("compiler", b"compiled")
    assert ("cannot be read" if damage == "no file" else "are damaged") in problem


def test_without_packs_and_numba_the_import_says_how_to_go_on(loaded: Loaded) -> None:
    loaded.monkeypatch.setattr(object_cache, "_can_compile", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'nbloop\[jit\]'"):
        loaded.load()
    loaded.keep()
    assert loaded.load() == ("cache", b"code", "")


# --- whole processes ------------------------------------------------------------------------------


@compiled_only
def test_a_pack_that_is_there_is_loaded_without_numba_and_llvmlite() -> None:
    ended = subprocess.run([sys.executable, "-c", USER], capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["ran"] == [1, 2]
    assert found["source"] in ("cache", "wheel")
    assert found["numba"] == []


@compiled_only
@pytest.mark.skipif(object_cache.status.source == "wheel", reason="the wheel carries its kernels: nothing is kept")
def test_folder_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    """The kernels are compiled all the same; one line says that they are, one that they could not be kept."""
    file = tmp_path / "a file"
    file.write_text("not a folder")
    loaded = object_cache.status.file
    assert loaded is not None
    pack = object_cache._checked(loaded.read_bytes())
    assert pack is not None
    code = tmp_path / "code"
    code.write_bytes(pack[0])
    found, lines = user(file / "cache", "compiled", str(code))
    assert found["ran"] == [1, 2]
    assert found["source"] == "compiler"
    assert "every process compiles" in found["problem"]
    assert [line.partition(":")[0] for line in lines] == ["nbloop", "nbloop"]
    assert "compiling" in lines[1]
    assert file.read_text() == "not a folder"


@compiled_only
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_pack_is_compiled_anew_and_then_served(tmp_path: Path) -> None:
    """Damaged: compiled, with one line that says so, and replaced. Then: no numba, no word, and the GIL stays as it
    is.
    """
    cache = tmp_path / "cache"
    cache.mkdir()
    file = cache / f"kernels-{object_cache.pack_key()}.pack"
    file.write_bytes(b"not a library\n{}")
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
    assert found["numba"] == []
    assert found["file"] == str(file)
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert not found["gil"], "an import has turned the GIL on"
