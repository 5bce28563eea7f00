"""The C signal handler: one write, and nothing of Python.

Problem: `signal.signal` works on the main thread only, and its Python handlers run there. A loop in another thread
wants signals too. Idea: a kernel can *be* a C signal handler, if all it does is async-signal-safe: it writes the
signal's number to a pipe whose descriptor lies in a word of the compiled object itself (a handler has no ``self``).
`nbloop.signals` reads the pipe.
"""

from __future__ import annotations

import ctypes

from .atomics import get_half, load, put_half
from .capi import PyLong_FromLongLong, errno_location, libc_write
from .kernel import NONE as NO_ARGUMENTS
from .kernel import SIGNAL, kernel

COUNT = 65  # signal numbers 1 .. 64 on Linux
WORDS = 1 + COUNT  # the descriptor, then each number as a word to write from

_twin = (ctypes.c_int64 * WORDS)()


def signal_words() -> int:
    """Address of the object's own words (compiled), or of this module's (twin): ``[descriptor, 0, 1, 2, ...]``."""
    return ctypes.addressof(_twin)


@kernel(SIGNAL)
def on_signal(number: int) -> None:
    """``void handler(int)``. Async-signal-safe; keeps errno. A full pipe loses the byte: the signal is pending there
    many times over.
    """
    words = signal_words()
    error = errno_location()
    saved = get_half(error)
    libc_write(load(words), words + ((1 + number) << 3), 1)  # the low byte, on a little-endian machine
    put_half(error, saved)


@kernel(NO_ARGUMENTS)
def signal_words_address(_self: int, _unused: int) -> int:
    """Where `nbloop.signals` puts the descriptor."""
    return PyLong_FromLongLong(signal_words())
