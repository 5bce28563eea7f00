"""The C signal handler: one write, and no Python.

Problem: `signal.signal` works on the main thread only, and its Python handlers run there. A loop in another thread
needs signals too. Idea: a kernel can *be* a C signal handler, if everything it does is async-signal-safe: it writes the
signal's number to a pipe whose descriptor lies in a word of the compiled object itself (a handler has no ``self``).
`nbloop.signals` reads the pipe.

A forked child inherits handler, words and pipe. Until it has restored the previous handler, and for ever if `os.fork`
did not make it, its signals would go into its parent's pipe. So the words name their process. In any other process, and
without a pipe (a C library saved this handler and restored it later), the handler restores the previous disposition and
raises the signal again: the system delivers it when the handler has returned. A child ignores the signals that an
asyncio loop handles, as with asyncio: they are bits of one word.
"""

from __future__ import annotations

import ctypes

from ..base.atomics import fetch_add, get_half, load, put_half
from ..base.capi import PyLong_FromLongLong, errno_location, libc_getpid, libc_raise, libc_sigaction, libc_write
from ..base.kernel import NOARGS, SIGNAL, kernel

COUNT = 65  # signal numbers 1 .. 64 on Linux
DISPOSITION_BYTES_BITS = 8  # room for a struct sigaction: 152 bytes with glibc on x86-64
# The write end; the process it belongs to; the number of handler calls in progress; the address of the previous
# dispositions, an array by signal number; a bit for each signal that children ignore; then each number as a word to
# write from.
DESCRIPTOR, PROCESS, INSIDE, DISPOSITIONS, IGNORED, NUMBERS = 0, 8, 16, 24, 32, 40
INITIAL = (-1, 0, 0, 0, 0, *range(COUNT))

_twin = (ctypes.c_int64 * len(INITIAL))(*INITIAL)


def signal_words() -> int:
    """The address of the compiled object's words, or of this module's (twin)."""
    return ctypes.addressof(_twin)


@kernel(SIGNAL)
def on_signal(number: int) -> None:
    """``void handler(int)``. Async-signal-safe; preserves errno. A full pipe loses the byte, but then many signals are
    already pending in it.
    """
    words = signal_words()
    error = errno_location()
    saved = get_half(error)
    fetch_add(words + INSIDE, 1)  # keeps the descriptor from being closed meanwhile
    descriptor = load(words + DESCRIPTOR)
    if descriptor >= 0 and libc_getpid() == load(words + PROCESS):
        libc_write(descriptor, words + NUMBERS + (number << 3), 1)  # the low byte, on a little-endian machine
    elif descriptor < 0 or (load(words + IGNORED) >> (number & 63)) & 1 == 0:
        libc_sigaction(number, load(words + DISPOSITIONS) + (number << DISPOSITION_BYTES_BITS), 0)
        libc_raise(number)  # blocked until this call has returned
    fetch_add(words + INSIDE, -1)
    put_half(error, saved)


@kernel(NOARGS)
def signal_words_address(_self: int, _unused: int) -> int:
    """The address of the words that `nbloop.signals` fills for the handler."""
    return PyLong_FromLongLong(signal_words())
