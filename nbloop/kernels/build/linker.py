"""From an object file to a shared library: the part of a linker that kernels need.

Problem: loading an object file takes llvmlite, whose import costs 75 ms and 55 MB, and not every machine has a linker.
Idea: LLVM makes the object from one module, with position-independent code that calls C through a table
(`nonlazybind`). Such code refers only to its own sections, at distances that are known here, so one pass over the
relocations is enough. The result is an ELF file without relocations that needs no other library. Its dynamic symbols
are the kernels, as ``nbloop_NAME``, and `IMPORTS`, the table of C functions' addresses in the order of
`capi.externals`, which the loader fills. `ctypes` loads the file; debuggers and profilers find the names.

An object that needs more than this is refused here, when it is built, and not on the machine that runs it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .library import IMPORTS, PREFIX

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_ELF = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64 bits, little-endian, System V
_X86_64, _AARCH64 = 62, 183
_PAGES = {_X86_64: 1 << 12, _AARCH64: 1 << 16}  # the largest that a system of the architecture may have
_NOTHING, _CODE, _SYMBOLS, _STRINGS, _RELOCATIONS, _DYNAMIC, _ZEROES, _DYNAMIC_SYMBOLS = 0, 1, 2, 3, 4, 6, 8, 11
_WRITE, _LOADED, _EXECUTED = 1, 2, 4  # flags of sections
_LOAD, _STACK = 1, 0x6474E551  # kinds of segments
_SEGMENTS = 5  # of the library


@dataclass
class _Section:
    name: str
    flags: int
    align: int
    content: bytearray
    at: int = 0  # its address in the library


def link(code: bytes, kernels: Mapping[str, str], imports: Iterable[str]) -> bytes:
    """Make a library of an object file. `kernels` maps the kernels' names to their symbols. ValueError if the object
    has an unknown kind of relocation, or uses a C function that is not among `imports` or not called through the table.
    """
    machine, sections, symbols, relocations = _read(code)
    parts: tuple[list[_Section], ...] = ([], [], [])  # read only; executed; written
    for section in sections.values():
        parts[1 if section.flags & _EXECUTED else 2 if section.flags & _WRITE else 0].append(section)
    slots = {name: 8 * i for i, name in enumerate(imports)}
    table = _Section(".got", _LOADED | _WRITE, 8, bytearray(8 * len(slots)))
    parts[2].append(table)
    dynamic = _Section(".dynamic", _LOADED | _WRITE, 8, bytearray(6 * 16))
    parts[2].append(dynamic)

    names = [IMPORTS, *(PREFIX + name for name in kernels)]
    strings = _Strings(names)
    heads = [
        _Section(".dynsym", _LOADED, 8, bytearray(_SYMBOL.size * (1 + len(names)))),
        _Section(".dynstr", _LOADED, 1, strings.text),
        _Section(".hash", _LOADED, 8, _hash_table(names)),
    ]
    parts[0][:0] = heads
    at = _HEADER.size + _SEGMENTS * _PROGRAM.size
    segments = []
    for part in parts:
        start = at if part is parts[0] else _up(at, _PAGES[machine])
        at = start
        for section in part:
            section.at = at = _up(at, section.align)
            at += len(section.content)
        segments.append((start if part is not parts[0] else 0, at))

    def address(symbol: _Symbol) -> int:
        if symbol.section not in sections:
            raise ValueError(f"{symbol.name or 'a symbol'} is called, or its address taken, without the table")
        return sections[symbol.section].at + symbol.value

    def slot(symbol: _Symbol) -> int:
        if symbol.section:  # LLVM does this only for a symbol that another library could replace
            raise ValueError(f"{symbol.name} is reached through the table, and is defined here")
        if symbol.name not in slots:
            raise ValueError(f"kernels refer to {symbol.name}, which capi.py does not declare")
        return table.at + slots[symbol.name]

    for number, place, kind, symbol, addend in relocations:
        section = sections[number]
        how = _KINDS[machine].get(kind)
        if how is None:
            raise ValueError(f"no relocation of kind {kind} is known, which {symbol.name or section.name} needs")
        through_table, patch = how
        target = (slot(symbol) if through_table else address(symbol)) + addend
        patch(section.content, place, target, section.at + place)

    order = [section for part in parts for section in part]
    numbers = {section.name: i for i, section in enumerate(order, 1)}
    defined = {symbol.name: symbol for symbol in symbols if symbol.section}
    exported = [_SYMBOL.pack(0, 0, 0, 0, 0, 0)]
    exported += [_SYMBOL.pack(strings[IMPORTS], 0x11, 0, numbers[".got"], table.at, len(table.content))]
    for name, entry in kernels.items():
        found = defined[entry]
        where = sections[found.section]
        exported.append(
            _SYMBOL.pack(strings[PREFIX + name], 0x12, 0, numbers[where.name], where.at + found.value, found.size)
        )
    heads[0].content[:] = b"".join(exported)
    facts = ((4, heads[2].at), (5, heads[1].at), (6, heads[0].at), (10, len(strings.text)), (11, _SYMBOL.size), (0, 0))
    dynamic.content[:] = b"".join(struct.pack("<QQ", *fact) for fact in facts)  # DT_HASH, STRTAB, SYMTAB, STRSZ, SYMENT
    return _write(machine, order, segments, dynamic)


def _up(at: int, align: int) -> int:
    return at + -at % max(1, align)


# --- the object -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int  # 0: defined elsewhere
    value: int
    size: int


type _Relocation = tuple[int, int, int, _Symbol, int]  # section, place in it, kind, target, addend


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()


def _read(code: bytes) -> tuple[int, dict[int, _Section], list[_Symbol], list[_Relocation]]:
    """The object's machine, its loaded sections by number, its symbols, and the relocations of those sections.

    Tables for unwinding are left out, because no C++ exception passes through a kernel.
    """
    _, _, machine, _, _, _, at, _, _, _, _, size, count, names = _HEADER.unpack_from(code)
    if not code.startswith(_ELF[:6]) or size != _SECTION.size or machine not in _KINDS:
        raise ValueError(f"an ELF object for x86-64 or AArch64 is needed, not one for machine {machine}")
    heads = [_SECTION.unpack_from(code, at + i * size) for i in range(count)]

    def content(number: int) -> bytes:
        _, kind, _, _, start, length, *_ = heads[number]
        return bytes(length) if kind == _ZEROES else code[start : start + length]

    kept = {}
    for number, (name, _, flags, _, _, _, _, _, align, _) in enumerate(heads):
        called = _text(content(names), name)
        if flags & _LOADED and called != ".eh_frame":
            kept[number] = _Section(called, flags, align, bytearray(content(number)))
    table = next(i for i, head in enumerate(heads) if head[1] == _SYMBOLS)
    strings = content(heads[table][6])
    symbols = [
        _Symbol(_text(strings, name), section, value, length)
        for name, _, _, section, value, length in _SYMBOL.iter_unpack(content(table))
    ]
    relocations = [
        (head[7], place, info & 0xFFFFFFFF, symbols[info >> 32], addend)
        for number, head in enumerate(heads)
        if head[1] == _RELOCATIONS and head[7] in kept
        for place, info, addend in _RELOCATION.iter_unpack(content(number))
    ]
    return machine, kept, symbols, relocations


# --- relocations: patch the bytes at `place`, which will have the address `here`, so that they lead to `target` -------

type _Patch = Callable[[bytearray, int, int, int], None]


def _distance(content: bytearray, place: int, target: int, here: int) -> None:
    struct.pack_into("<i", content, place, target - here)


def _instruction(content: bytearray, place: int, field: int, bits: int) -> None:
    (word,) = struct.unpack_from("<I", content, place)
    struct.pack_into("<I", content, place, word & ~field | bits)


def _branch(content: bytearray, place: int, target: int, here: int) -> None:
    _instruction(content, place, (1 << 26) - 1, (target - here) >> 2 & (1 << 26) - 1)


def _page(content: bytearray, place: int, target: int, here: int) -> None:
    pages = (target >> 12) - (here >> 12)
    _instruction(content, place, 3 << 29 | ((1 << 19) - 1) << 5, (pages & 3) << 29 | (pages >> 2 & (1 << 19) - 1) << 5)


def _in_page(scale: int) -> _Patch:
    def patch(content: bytearray, place: int, target: int, _here: int) -> None:
        if target & (1 << scale) - 1:
            raise ValueError(f"address {target:#x} is not a multiple of {1 << scale}")
        _instruction(content, place, 0xFFF << 10, (target & 0xFFF) >> scale << 10)

    return patch


# By R_X86_64_x and R_AARCH64_x: does it lead to the function's word in the table instead of the function?
_KINDS: dict[int, dict[int, tuple[bool, _Patch]]] = {
    _X86_64: {
        2: (False, _distance),  # PC32
        4: (False, _distance),  # PLT32
        9: (True, _distance),  # GOTPCREL
        41: (True, _distance),  # GOTPCRELX
        42: (True, _distance),  # REX_GOTPCRELX
    },
    _AARCH64: {
        261: (False, _distance),  # PREL32
        275: (False, _page),  # ADR_PREL_PG_HI21
        277: (False, _in_page(0)),  # ADD_ABS_LO12_NC
        278: (False, _in_page(0)),  # LDST8_ABS_LO12_NC
        282: (False, _branch),  # JUMP26
        283: (False, _branch),  # CALL26
        284: (False, _in_page(1)),  # LDST16_ABS_LO12_NC
        285: (False, _in_page(2)),  # LDST32_ABS_LO12_NC
        286: (False, _in_page(3)),  # LDST64_ABS_LO12_NC
        299: (False, _in_page(4)),  # LDST128_ABS_LO12_NC
        311: (True, _page),  # ADR_GOT_PAGE
        312: (True, _in_page(3)),  # LD64_GOT_LO12_NC
    },
}


# --- the library ------------------------------------------------------------------------------------------------------


class _Strings(dict[str, int]):
    """The offset in `text` of each string."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.text = bytearray(1)
        for string in strings:
            self[string] = len(self.text)
            self.text += string.encode() + b"\0"


def _hash_table(names: list[str]) -> bytearray:
    """The section DT_HASH, which all dynamic linkers know: symbols count from 1, and those of one hash form a chain."""
    buckets, chains = [0] * len(names), [0] * (len(names) + 1)
    for number, name in enumerate(names, 1):
        value = 0
        for byte in name.encode():
            value = (value << 4) + byte
            value = (value ^ value >> 24 & 0xF0) & 0x0FFFFFFF
        bucket = value % len(buckets)
        chains[number], buckets[bucket] = buckets[bucket], number
    words = [len(buckets), len(chains), *buckets, *chains]
    return bytearray(struct.pack(f"<{len(words)}I", *words))


def _write(machine: int, order: list[_Section], segments: list[tuple[int, int]], dynamic: _Section) -> bytes:
    """The content of the file. The offset of each byte is its address."""
    page = _PAGES[machine]
    whole = bytearray(segments[-1][1])
    for section in order:
        whole[section.at : section.at + len(section.content)] = section.content
    names = _Strings(["", *(section.name for section in order), ".shstrtab"])
    names_at = len(whole)
    whole += names.text
    whole += bytes(-len(whole) % 8)
    heads_at = len(whole)
    kinds = {".dynsym": (_DYNAMIC_SYMBOLS, 2, 1, _SYMBOL.size), ".dynstr": (_STRINGS, 0, 0, 0), ".hash": (5, 1, 0, 4)}
    kinds |= {".dynamic": (_DYNAMIC, 2, 0, 16)}
    whole += bytes(_SECTION.size)
    for section in order:
        kind, linked, info, size = kinds.get(section.name, (_CODE, 0, 0, 0))
        whole += _SECTION.pack(
            names[section.name],
            kind,
            section.flags & (_WRITE | _LOADED | _EXECUTED),
            section.at,
            section.at,
            len(section.content),
            linked,
            info,
            section.align,
            size,
        )
    whole += _SECTION.pack(names[".shstrtab"], _STRINGS, 0, 0, names_at, len(names.text), 0, 0, 1, 0)
    programs = [
        _PROGRAM.pack(_LOAD, access, start, start, start, end - start, end - start, page)
        for access, (start, end) in zip((4, 5, 6), segments, strict=True)
    ]
    # Without the last one the stack of the whole process would be made executable.
    programs.insert(3, _PROGRAM.pack(2, 6, dynamic.at, dynamic.at, dynamic.at, *[len(dynamic.content)] * 2, 8))
    programs.append(_PROGRAM.pack(_STACK, 6, 0, 0, 0, 0, 0, 16))
    whole[: _HEADER.size] = _HEADER.pack(
        _ELF, 3, machine, 1, 0, _HEADER.size, heads_at, 0, _HEADER.size, _PROGRAM.size, len(programs), _SECTION.size,
        len(order) + 2, len(order) + 1,
    )  # fmt: skip
    whole[_HEADER.size : _HEADER.size + _PROGRAM.size * len(programs)] = b"".join(programs)
    return bytes(whole)
