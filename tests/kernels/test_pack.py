"""pack.py: the one object file, where it is kept, and what happens when it can not be or is damaged.

Two tests compile all kernels in a process of their own, some 20 s each; they are marked slow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from nbloop.kernels import pack
from nbloop.kernels.kernel import kernels
from nbloop.kernels.processor import processor

compiled_only = pytest.mark.skipif(
    pack.status.mode != "compiled", reason="kernels run as plain Python: nothing is packed"
)

# Imports nbloop as a user would, runs a loop, and says how it came by its kernels.
USER = """
import json, sys
import nbloop
from nbloop.kernels import pack
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
s = pack.status
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
    shutil.copytree(Path(pack.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pack, "__file__", str(folder / "pack.py"))
    return folder


def test_key_is_of_the_content(sources: Path) -> None:
    """The folder's place and the files' dates do not matter."""
    key = pack.pack_key()
    for file in sources.glob("*.py"):
        os.utime(file, (1, 1))
    assert pack.pack_key() == key
    (sources / "notes.txt").write_text("no source")
    assert pack.pack_key() == key


@pytest.mark.parametrize("name", ["atomics.py", "stack.py", "layout.py", "methods.py", "compiler.py"])
def test_key_changes_with_any_source(sources: Path, name: str) -> None:
    """Also with a helper's, and a comment's: nothing is left to be forgotten."""
    key = pack.pack_key()
    with (sources / name).open("a") as file:
        file.write("# changed\n")
    assert pack.pack_key() != key


def test_key_changes_with_the_set_of_files(sources: Path) -> None:
    key = pack.pack_key()
    (sources / "another.py").write_text("")
    with_another = pack.pack_key()
    (sources / "another.py").rename(sources / "renamed.py")
    assert len({key, with_another, pack.pack_key()}) == 3


def test_key_changes_with_versions_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {pack.pack_key()}
    monkeypatch.setattr(pack.importlib.metadata, "version", lambda name: f"another {name}")
    keys.add(pack.pack_key())
    monkeypatch.setattr(pack.llvm, "get_host_cpu_name", lambda: "another")
    keys.add(pack.pack_key())
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    keys.add(pack.pack_key())
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2")
    keys.add(pack.pack_key())
    assert len(keys) == 5


def test_a_named_processor_has_no_features_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    assert processor() == (pack.llvm.get_host_cpu_name(), pack.llvm.get_host_cpu_features().flatten())
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert processor() == ("generic", "")


# --- the file -------------------------------------------------------------------------------------


def test_damage_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest of itself, and exactly the kernels that are declared."""
    monkeypatch.setattr(pack, "status", pack.Status())
    digest = pack.hashlib.sha256(b"code").hexdigest()
    symbols = {name: f"symbol_{name}" for name in kernels}
    good = json.dumps({"symbols": symbols, "sha256": digest}).encode() + b"\ncode"
    assert pack._checked(good) == (symbols, b"code")
    assert not pack.status.problem
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
        assert pack._checked(damaged) is None
        assert "damaged" in pack.status.problem


def test_folder_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBLOOP_CACHE_DIR", str(tmp_path / "here"))
    assert pack.cache_folder() == tmp_path / "here"
    if sys.platform == "linux":
        monkeypatch.delenv("NBLOOP_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert pack.cache_folder() == tmp_path / "nbloop"


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
    assert "compiling" in lines[0]
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
    file = cache / f"kernels-{pack.pack_key()}.pack"
    file.write_bytes(b'{"symbols": {}, "sha256": ""}\nnot an object file')
    found, lines = user(cache)
    assert (found["source"], found["ran"]) == ("compiler", [1, 2])
    assert "damaged" in found["problem"]
    assert len(lines) == 1
    assert "compiling" in lines[0]
    assert list(cache.iterdir()) == [file], "a temporary file was left"
    assert pack._checked(file.read_bytes()) is not None
    if os.name == "posix":
        assert file.stat().st_mode & 0o077 == 0, "others can read it"

    found, lines = user(cache, "everything")
    assert (found["source"], found["ran"], found["problem"]) == ("cache", [1, 2], "")
    assert lines == []
    assert not found["numba"]
    assert found["file"] == str(file)
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert not found["gil"], "an import has turned the GIL on"
