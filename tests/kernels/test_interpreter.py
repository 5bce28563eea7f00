"""interpreter.py: assumptions about CPython and numpy are checked at each import, and a wrong one ends the import."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from nbloop.kernels.base import interpreter

SOURCE = Path(interpreter.__file__)
TEXT = SOURCE.read_text(encoding="utf-8")
PLACES = [
    name
    for name, value in vars(interpreter).items()
    if name.isupper() and isinstance(value, int) and not isinstance(value, bool)
]


def planted(name: str, change: str) -> str:
    """The source with another value of one constant."""
    text, count = re.subn(rf"^{name} = (.*?)(  #.*)?$", rf"{name} = (\1) {change}", TEXT, flags=re.MULTILINE)
    assert count == 1, name
    return text


def test_all_constants_are_planted() -> None:
    """A new constant must be in the list of the next test."""
    others = {"TUPLE_ITEMS", "TYPE_CALL", "TYPE_TRAVERSE", "TYPE_SUBCLASS", "TP_CALL", "TP_TRAVERSE"}
    assert {name for name in PLACES if name.startswith("T")} == others


@pytest.mark.parametrize("optimize", [0, 2], ids=["plain", "-OO"])
@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in PLACES if not name.startswith("T") for change in ("+ 8", "- 8", "+ 16")]
    + [(name, change) for name in ("TUPLE_ITEMS", "TYPE_CALL", "TYPE_TRAVERSE") for change in ("+ 8", "- 8", "+ 16")]
    + [("TYPE_SUBCLASS", "<< 1"), ("TYPE_SUBCLASS", ">> 1")],
)
def test_a_wrong_place(name: str, change: str, optimize: int) -> None:
    """It is an ImportError that names it, says what is wrong, and what to do."""
    code = compile(planted(name, change), str(SOURCE), "exec", optimize=optimize)
    with pytest.raises(ImportError, match=rf"cannot run on this interpreter: {name}: .*Use a Python and a numpy"):
        exec(code, {"__name__": "planted"})


@pytest.mark.parametrize(("name", "what"), [("TP_CALL", "TYPE_CALL"), ("TP_TRAVERSE", "TYPE_TRAVERSE")])
def test_a_wrong_number_of_a_slot(name: str, what: str) -> None:
    text = re.sub(r"^TP_CALL, TP_TRAVERSE = 50, 71", "TP_CALL, TP_TRAVERSE = 51, 72", TEXT, flags=re.MULTILINE)
    assert text != TEXT
    if name == "TP_TRAVERSE":
        text = text.replace("TP_TRAVERSE = 51, 72", "TP_TRAVERSE = 50, 72")
    with pytest.raises(ImportError, match=what):
        exec(compile(text, str(SOURCE), "exec"), {"__name__": "planted"})


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("(None, True, False)", "(None, True, False, object())", "IMMORTAL"),
        ('("flags", ctypes.c_int),', '("flags", ctypes.c_int), ("more", ctypes.c_void_p),', "BUILTIN_DEFINITION"),
        ('("name", ctypes.c_char_p),', '("first", ctypes.c_void_p), ("name", ctypes.c_char_p),', "BUILTIN_DEFINITION"),
        ('"PyCFunction_GetFunction"', '"PyCFunction_GetNothing"', "PyCFunction_GetNothing"),
        ("from_buffer(ctypes.py_object(_object)).value", "from_buffer(ctypes.py_object(_object)).value + 8", "id"),
    ],
)
def test_other_assumptions(old: str, new: str, what: str) -> None:
    """What is not an offset."""
    assert TEXT.count(old) == 1
    code = compile(TEXT.replace(old, new), str(SOURCE), "exec")
    with pytest.raises(ImportError, match=what):
        exec(code, {"__name__": "planted"})


def test_slots_that_are_no_words() -> None:
    """A class whose slots are not where instances are read is refused."""

    class Elsewhere:
        __slots__ = ("a", "b")
        there: ClassVar[dict[str, object]] = {}

        def __setattr__(self, name: str, value: object) -> None:
            self.there[name] = value

    class Here:
        __slots__ = ("a", "b", "c")

    with pytest.raises(ImportError, match="__slots__: Elsewhere does not hold them"):
        interpreter.slot_offsets(Elsewhere)
    first = interpreter.OBJECT_HEADER
    assert interpreter.slot_offsets(Here) == (first, first + 8, first + 16)


@pytest.mark.parametrize("options", [[], ["-O"]], ids=["plain", "-O"])
def test_import(tmp_path: Path, options: list[str]) -> None:
    """`import nbloop` fails with the reason, before it looks for a kernel."""
    shutil.copytree(SOURCE.parents[2], tmp_path / "nbloop", ignore=shutil.ignore_patterns("__pycache__"))
    copied = tmp_path / "nbloop" / "kernels" / "base" / SOURCE.name
    copied.write_text(planted("TYPE_TRAVERSE", "+ 8"), encoding="utf-8")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nbloop"
    done = subprocess.run(
        [sys.executable, "-P", "-B", *options, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert re.search(r"ImportError: nbloop cannot run on this interpreter: TYPE_TRAVERSE: PyType_GetSlot", done.stderr)
    assert "compiling" not in done.stderr


def test_no_other_file_counts_words_of_an_object() -> None:
    """A place in an object has a name; nobody adds to one but an index times 8."""
    places = {*PLACES, "__basicsize__"}
    found: list[str] = []

    def is_place(node: ast.AST) -> bool:
        return (isinstance(node, ast.Name) and node.id in places) or (
            isinstance(node, ast.Attribute) and node.attr in places
        )

    for file in SOURCE.parents[2].rglob("*.py"):
        if file == SOURCE:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and node.attr == "__basicsize__":
                found.append(f"{where}: the size of objects is interpreter.py's to know")
            elif isinstance(node, ast.BinOp) and is_place(node.right) and isinstance(node.left, ast.Constant):
                found.append(f"{where}: {ast.unparse(node)}")
            elif isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant):
                ends = node.left.right if isinstance(node.left, ast.BinOp) else node.left
                named = ends.id if isinstance(ends, ast.Name) else ""
                if is_place(ends) and named not in ("TUPLE_ITEMS", "OBJECT_ALIGNMENT"):  # items are 8 bytes each
                    found.append(f"{where}: {ast.unparse(node)}")
    assert found == []


def test_the_process_keeps_its_own_functions() -> None:
    """What others have set of `ctypes.pythonapi`, or will, is theirs: importing nbloop changes none of it."""
    program = """
        import ctypes
        before = dict(vars(ctypes.pythonapi))
        import nbloop, nbloop.js, nbloop.observe.stacks, nbloop.observe.profile, nbloop.aio
        changed = {
            name for name, made in vars(ctypes.pythonapi).items()
            if name.startswith("Py") and (made.argtypes is not None or made.restype is not ctypes.c_int)
        }
        assert not changed - set(before), changed
        ctypes.pythonapi.Py_DecRef.argtypes = [ctypes.c_char_p]
        ctypes.pythonapi.Py_IncRef.argtypes = [ctypes.c_char_p]
        loop = nbloop.Loop(auto_exit=True)
        loop.submit(print, "ran")
        loop.run()
        nbloop.observe.stacks.capture()
    """
    code = "\n".join(line.strip() if "{" in line else line[8:] for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
