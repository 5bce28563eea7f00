"""linker.py and library.py: libraries of small modules, loaded by the system and by hand, and what is refused."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

llvm = pytest.importorskip("llvmlite.binding")

from nbloop.kernels.build import library, object_cache  # noqa: E402
from nbloop.kernels.build.linker import link  # noqa: E402

IMPORTS = ["unused", "callback", "another"]
MODULE = """
@counter = internal global [3 x i64] [i64 5, i64 0, i64 7]
@table = internal constant [4 x i64] [i64 10, i64 20, i64 30, i64 40]
declare i64 @callback(i64) #0
declare i64 @another(i64) #0
define internal i64 @rare(i64 %x) #1 {
  %r = call i64 @another(i64 %x)
  %s = add i64 %r, 1
  ret i64 %s
}
define i64 @first_symbol(i64 %x) {
  %c = load atomic i64, ptr @counter seq_cst, align 8
  %n = add i64 %c, 1
  store atomic i64 %n, ptr @counter seq_cst, align 8
  %r = call i64 @callback(i64 %c)
  %s = add i64 %r, %x
  ret i64 %s
}
define i64 @second_symbol(i64 %x) {
  %i = and i64 %x, 3
  %p = getelementptr [4 x i64], ptr @table, i64 0, i64 %i
  %v = load i64, ptr %p
  %odd = icmp eq i64 %x, 99
  br i1 %odd, label %rarely, label %usually
rarely:
  %r = call i64 @rare(i64 %v)
  ret i64 %r
usually:
  ret i64 %v
}
define double @third_symbol(double %x) {
  %r = fmul double %x, 0x3FF4CCCCCCCCCCCD
  ret double %r
}
attributes #0 = { nonlazybind }
attributes #1 = { noinline cold }
"""
KERNELS = {"first": "first_symbol", "second": "second_symbol", "third": "third_symbol"}
TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}


def emitted(text: str, architecture: str = "x86_64") -> bytes:
    """An object file as compiler.py has it made."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(TRIPLES[architecture]).create_target_machine(
        opt=2, reloc="pic", codemodel="default"
    )
    module = llvm.parse_assembly(f'target triple = "{TRIPLES[architecture]}"\n{text}')
    return bytes(machine.emit_object(module))


def native() -> str:
    machine = platform.machine().lower()
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if name not in TRIPLES:
        pytest.skip(f"no kernels for {name}")
    return name


@pytest.fixture(params=["by the system", "copied"])
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], int]:
    """Addresses of a library's symbols."""
    code = link(emitted(MODULE, native()), KERNELS, IMPORTS)
    if request.param == "copied":
        return library.load(code, None)
    if sys.platform != "linux":
        pytest.skip("no system loader for ELF")
    file = tmp_path / "library.so"
    file.write_bytes(code + b"\n{}")
    return library.load(code, str(file))


def test_it_runs(loaded: Callable[[str], int]) -> None:
    """Code, constants, words of its own, and C functions, which are the ones that the table says at the call."""
    words = (ctypes.c_int64 * len(IMPORTS)).from_address(loaded(library.IMPORTS))
    assert [*words] == [0, 0, 0]
    prototype = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    functions = [prototype(lambda n: n * 100), prototype(lambda n: n * 1000)]
    words[1], words[2] = (ctypes.cast(one, ctypes.c_void_p).value or 0 for one in functions)
    first, second = (prototype(loaded(library.PREFIX + name)) for name in ("first", "second"))
    assert [first(1), first(1), first(2)] == [501, 601, 702]
    assert [second(i) for i in range(4)] == [10, 20, 30, 40]
    assert second(99) == 40_001
    words[2] = words[1]
    assert second(99) == 4001
    third = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(loaded(library.PREFIX + "third"))
    assert third(10.0) == 13.0


def test_what_is_not_there_is_a_key_error(loaded: Callable[[str], int]) -> None:
    with pytest.raises(KeyError, match="nbloop_fourth"):
        loaded("nbloop_fourth")


def test_two_have_words_of_their_own() -> None:
    code = link(emitted(MODULE, native()), KERNELS, IMPORTS)
    tables = [library.load(code, None)(library.IMPORTS) for _ in range(2)]
    ctypes.c_int64.from_address(tables[0]).value = 1
    assert ctypes.c_int64.from_address(tables[1]).value == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all are copied")
@pytest.mark.parametrize("path", ["/proc/self/no/such", "not a library"])
def test_what_the_system_does_not_load_is_copied(path: str, tmp_path: Path) -> None:
    """A file system without execution, say."""
    code = link(emitted(MODULE, native()), KERNELS, IMPORTS)
    if "/" not in path:
        (tmp_path / path).write_text("no ELF")
        path = str(tmp_path / path)
    assert library.load(code, path)(library.IMPORTS) != 0


@pytest.mark.skipif(object_cache.status.mode != "compiled", reason="kernels run as plain Python")
def test_a_copied_library_outlives_all_modules(run_script: Callable[..., str]) -> None:
    """A process that has compiled its kernels, or may load none, and whose loop somebody in C still holds at exit."""
    run_script(
        """
        import ctypes
        system = ctypes.CDLL

        def load(name, *rest, **options):
            if "kernels" in str(name):
                raise OSError("no execution here")
            return system(name, *rest, **options)

        ctypes.CDLL = load
        import nbloop
        from nbloop.kernels.build import library
        ctypes.CDLL = system
        loop = nbloop.Loop()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(loop._state))
        """
    )


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (binutils)")
@pytest.mark.parametrize("architecture", TRIPLES)
def test_it_is_sound_by_the_tools(architecture: str, tmp_path: Path) -> None:
    """binutils finds nothing odd, no relocation, no library that it needs, and nothing both written and executed."""
    file = tmp_path / "library.so"
    file.write_bytes(link(emitted(MODULE, architecture), KERNELS, IMPORTS))
    shown = subprocess.run(
        ["readelf", "--all", "--wide", file], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}
    )
    assert shown.stderr == ""
    assert "There are no relocations in this file" in shown.stdout
    assert "NEEDED" not in shown.stdout
    accesses = [line.split()[6:-1] for line in shown.stdout.splitlines() if line.split()[:1] == ["LOAD"]]
    assert accesses == [["R"], ["R", "E"], ["RW"]]
    assert "GNU_STACK      0x000000 0x0000000000000000 0x0000000000000000 0x000000 0x000000 RW " in shown.stdout
    for name in (library.IMPORTS, *(library.PREFIX + name for name in KERNELS)):
        assert f" {name}\n" in shown.stdout


# --- AArch64, read by hand ------------------------------------------------------------------------


def instruction(code: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", code, at)[0])


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def addresses(code: bytes, start: int, end: int) -> set[int]:
    """What the instructions from `start` to `end` lead to: calls, and pages with an offset in them."""
    found, pages = set(), {}
    for at in range(start, end, 4):
        word = instruction(code, at)
        if word >> 26 == 0b100101:  # bl
            found.add(at + 4 * signed(word & (1 << 26) - 1, 26))
        elif word >> 24 & 0x9F == 0x90:  # adrp
            distance = signed((word >> 5 & (1 << 19) - 1) << 2 | word >> 29 & 3, 21)
            pages[word & 31] = (at & ~0xFFF) + (distance << 12)
        elif word >> 5 & 31 in pages and word >> 22 in (0b1111100101, 0b1111110101):  # ldr x or d, [x, #offset]
            found.add(pages[word >> 5 & 31] + 8 * (word >> 10 & 0xFFF))
        elif word >> 5 & 31 in pages and word >> 22 == 0b1001000100:  # add x, x, #offset
            found.add(pages[word >> 5 & 31] + (word >> 10 & 0xFFF))
    return found


def test_instructions_of_aarch64_lead_to_where_they_are_to() -> None:
    """No such machine is here: what they lead to is read by a reader that knows nothing of relocations."""
    code = link(emitted(MODULE, "aarch64"), KERNELS, IMPORTS)
    symbols = library._symbols(code)
    (text,) = [segment for segment in library._segments(code) if segment[2]]
    ends = sorted([*symbols.values(), text[1]])

    def of(name: str) -> set[int]:
        start = symbols[library.PREFIX + name]
        return addresses(code, start, ends[ends.index(start) + 1])

    table = symbols[library.IMPORTS]
    first = of("first")
    assert table + 8 in first, "the second of the table, callback"
    assert any(code[at : at + 8] == struct.pack("<q", 5) for at in first), "counter"
    second = of("second")
    assert any(code[at : at + 32] == struct.pack("<4q", 10, 20, 30, 40) for at in second), "table"
    (rare,) = (at for at in second if text[0] <= at < text[1])
    assert addresses(code, rare, rare + 64) & {table + 16}, "the third of the table, another"
    assert any(code[at : at + 8] == struct.pack("<d", 1.3) for at in of("third")), "a constant"


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TRIPLES)
@pytest.mark.parametrize(
    ("text", "kernels", "complaint"),
    [
        (MODULE.replace("@another", "@unheard"), KERNELS, "unheard, which capi.py does not declare"),
        (MODULE.replace("nonlazybind", "nounwind"), KERNELS, "without the table"),
        ("@all = constant [1 x ptr] [ptr @f]\ndefine i64 @f() {\n  ret i64 0\n}", {"f": "f"}, "no relocation of kind"),
    ],
    ids=["undeclared", "called directly", "an address among the constants"],
)
def test_what_it_cannot_do_is_refused(text: str, kernels: dict[str, str], complaint: str, architecture: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        link(emitted(text, architecture), kernels, IMPORTS)


def test_other_files_are_refused() -> None:
    code = bytearray(emitted(MODULE))
    code[18:20] = struct.pack("<H", 243)  # RISC-V
    with pytest.raises(ValueError, match="not one for machine 243"):
        link(bytes(code), KERNELS, IMPORTS)


# --- memory orders of AArch64 ---------------------------------------------------------------------

ORDERS: list[tuple[str, str, str]] = [
    ("load atomic i64, ptr %p acquire, align 8", "", r"\bldar\b"),
    ("load atomic i64, ptr %p seq_cst, align 8", "", r"\bldar\b"),
    ("load i64, ptr %p", "", r"\bldr\b"),
    ("atomicrmw add ptr %p, i64 %v seq_cst", "+lse", r"\bldaddal\b"),
    ("atomicrmw xchg ptr %p, i64 %v seq_cst", "+lse", r"\bswpal\b"),
    ("atomicrmw add ptr %p, i64 %v seq_cst", "", r"\bldaxr\b.*\bstlxr\b"),
]


@pytest.mark.parametrize(("operation", "features", "expected"), ORDERS)
def test_orders_of_aarch64(operation: str, features: str, expected: str) -> None:
    """The instructions that the verbs' operations (test_kernel.test_memory_orders) become there."""
    shown = assembly(f"%r = {operation}\n  ret i64 %r", features)
    assert re.search(expected, shown, re.DOTALL), shown


@pytest.mark.parametrize(("order", "expected"), [("release", r"\bstlr\b"), ("seq_cst", r"\bstlr\b")])
def test_orders_of_stores_of_aarch64(order: str, expected: str) -> None:
    shown = assembly(f"store atomic i64 %v, ptr %p {order}, align 8\n  ret i64 0", "")
    assert re.search(expected, shown, re.DOTALL), shown


def assembly(body: str, features: str) -> str:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(TRIPLES["aarch64"]).create_target_machine(features=features, opt=2, reloc="pic")
    text = f'target triple = "{TRIPLES["aarch64"]}"\ndefine i64 @f(ptr %p, i64 %v) {{\n  {body}\n}}'
    return str(machine.emit_assembly(llvm.parse_assembly(text)))
