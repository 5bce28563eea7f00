"""Profiles in pprof's format (gzipped protobuf, ``perftools.profiles.Profile``), which ``go tool pprof``, speedscope,
Pyroscope and others read.

Why not the package protobuf: on a free-threaded Python it installs as plain Python only and takes 12 s for 10,000
stacks of 25 calls, where this takes 0.8 s; it would also tie us to a generated module of one major version. A profile
uses two of the format's wire types, numbers and bytes, and nothing here ever reads one, so two functions make an
encoder. The tests decode with the package.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """A line of a function."""

    function: str
    file: str
    start: int
    """The function's first line, 0 if not known."""
    line: int


type Sample = tuple[Sequence[Place], Sequence[int], Mapping[str, str]]
"""A stack, innermost first; a value of each type; labels."""


def _varint(value: int) -> bytes:
    """Seven bits per byte, lowest first; all bytes except the last set the eighth bit. Non-negative values only."""
    if value < 0x80:
        return value.to_bytes()
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    """A field of wire type 0."""
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    """A field of wire type 2: text, another message, or packed numbers."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


class _Strings(dict[str, int]):
    """Maps a text to its index in the string table, whose first entry is empty."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


class _Locations(dict[Place, bytes]):
    """Maps a place to its encoded number; a new place, and its function, are written to the profile."""

    def __init__(self, strings: _Strings, out: bytearray) -> None:
        super().__init__()
        self._strings = strings
        self._out = out
        self._functions: dict[tuple[str, str, int], int] = {}

    def __missing__(self, place: Place) -> bytes:
        key = place[:3]
        if key not in self._functions:
            self._functions[key] = len(self._functions) + 1
            name = self._strings[place.function]
            function = _number(1, self._functions[key]) + _number(2, name) + _number(3, name)
            self._out += _bytes(5, function + _number(4, self._strings[place.file]) + _number(5, place.start))
        number = len(self) + 1
        line = _number(1, self._functions[key]) + _number(2, place.line)
        self._out += _bytes(4, _number(1, number) + _number(2, 1) + _bytes(4, line))
        self[place] = _varint(number)
        return self[place]


def encode(
    samples: Iterable[Sample],
    *,
    types: Sequence[tuple[str, str]],
    default: str,
    time_ns: int,
    duration_ns: int,
    period: tuple[str, str, int],
) -> bytes:
    """A gzipped profile. `types` are the (name, unit) of a sample's values, `default` names the value shown first,
    `period` is the (name, unit, amount) between two samples. Field numbers are those of profile.proto.
    """
    strings = _Strings({"": 0})
    out = bytearray()
    locations = _Locations(strings, out)

    def value_type(name: str, unit: str) -> bytes:
        return _number(1, strings[name]) + _number(2, strings[unit])

    for name, unit in types:
        out += _bytes(1, value_type(name, unit))
    # One mapping that says that functions, files and lines are known; without it, tools look for a binary.
    out += _bytes(3, _number(1, 1) + _number(5, strings["python"]) + _number(7, 1) + _number(8, 1) + _number(9, 1))
    for stack, values, labels in samples:
        sample = _bytes(1, b"".join([locations[place] for place in stack]))
        sample += _bytes(2, b"".join(map(_varint, values)))
        for label, text in labels.items():
            sample += _bytes(3, _number(1, strings[label]) + _number(2, strings[text]))
        out += _bytes(2, sample)
    out += _number(9, time_ns) + _number(10, duration_ns)
    out += _bytes(11, value_type(*period[:2])) + _number(12, period[2]) + _number(14, strings[default])
    for text in strings:
        out += _bytes(6, text.encode(errors="replace"))
    return gzip.compress(bytes(out), compresslevel=6)
