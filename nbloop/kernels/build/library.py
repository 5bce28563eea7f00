"""A library of kernels in this process, and the addresses of its symbols.

On Linux the system's loader loads it, so that `perf`, debuggers and valgrind find the kernels by name. It cannot if the
file system forbids execution or no file was kept. Then, and on Windows and macOS, the library's three segments are
copied to memory here. Nothing else is needed, because the library has no relocations (linker.py).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

from ..base.interpreter import keep_for_ever

IMPORTS = "nbloop_imports"  # the table of C functions' addresses, which the loader of the pack fills
PREFIX = "nbloop_"  # of the kernels' symbols

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")


def load(code: bytes, path: str | None) -> Callable[[str], int]:
    """Load the library with content `code`, which is also at `path` unless that is None. Returns a function from a
    symbol's name to its address, which raises KeyError for an unknown name. OSError if the code cannot be executed.
    """
    if path is not None and sys.platform == "linux":
        try:
            library = ctypes.CDLL(path)
        except OSError:  # a file system without execution, or no /proc
            pass
        else:
            return lambda name: _address(library, name)
    base, symbols = _copied(code), _symbols(code)
    return lambda name: base + symbols[name]


def _address(library: ctypes.CDLL, name: str) -> int:
    try:
        return ctypes.cast(library[name], ctypes.c_void_p).value or 0
    except AttributeError:
        raise KeyError(name) from None


def _segments(code: bytes) -> list[tuple[int, int, bool]]:
    """The beginning and end of each loaded segment, the same in the file as in memory, and whether it is executed."""
    head = _HEADER.unpack_from(code)
    programs = [_PROGRAM.unpack_from(code, head[5] + i * _PROGRAM.size) for i in range(head[10])]
    return [(at, at + size, flags & 1 != 0) for kind, flags, _, at, _, size, _, _ in programs if kind == 1]


def _symbols(code: bytes) -> dict[str, int]:
    """The offsets in the library of the symbols in its section of kind SHT_DYNSYM, by name."""
    head = _HEADER.unpack_from(code)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, head[6] + i * head[11]) for i in range(head[12])]
    _, _, _, _, at, size, link, *_ = next(section for section in sections if section[1] == 11)
    strings = sections[link][4]
    found = {}
    for name, _, _, _, value, _ in _SYMBOL.iter_unpack(code[at : at + size]):
        start = strings + name
        found[code[start : code.index(b"\0", start)].decode()] = value
    return found


def _copied(code: bytes) -> int:
    """Copy the segments to memory, make the code executable, and return the address of the copy."""
    segments = _segments(code)
    size = segments[-1][1]
    if sys.platform == "win32":
        memory: Any = ctypes.WinDLL("kernel32", use_last_error=True)
        memory.VirtualAlloc.restype = ctypes.c_void_p
        base = memory.VirtualAlloc(None, ctypes.c_size_t(size), 0x3000, 0x04)  # committed and reserved, read and write
        if not base:
            raise ctypes.WinError(ctypes.get_last_error())
    else:
        pages = keep_for_ever(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON))
        base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for start, end, _ in segments:
        ctypes.memmove(base + start, code[start:end], end - start)
    # The systems make the instruction cache coherent with memory that becomes executable, except macOS on Arm.
    start, end = next((start, end) for start, end, executed in segments if executed)
    where, length = ctypes.c_void_p(base + start), ctypes.c_size_t(end - start)
    if sys.platform == "win32":
        old = ctypes.c_ulong()
        if not memory.VirtualProtect(where, length, 0x20, ctypes.byref(old)):  # executed and read
            raise ctypes.WinError(ctypes.get_last_error())
    else:
        system = ctypes.CDLL(None, use_errno=True)
        if system.mprotect(where, length, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot make memory executable: {os.strerror(error)}")
        if hasattr(system, "sys_icache_invalidate"):
            system.sys_icache_invalidate(where, length)
    return int(base)
