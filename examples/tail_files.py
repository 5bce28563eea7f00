"""Print what is appended to files, as `tail -F` does, even to a file that is replaced or does not exist yet.

    python examples/tail_files.py /var/log/syslog another.log

A regular file is always ready, so there is nothing to wait for (the system refuses to watch it). Instead the program
waits for inotify, a descriptor that becomes readable when a directory changes (Linux). A named pipe is watched itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
import sys
from io import FileIO
from pathlib import Path

from nbloop import IOEvents, Loop

IN_MODIFY, IN_MOVED_TO, IN_CREATE = 0x2, 0x80, 0x100
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


class Tail:
    """One followed file; `read` prints what is new in it."""

    file: FileIO | None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()
        if self.file:
            self.file.seek(0, os.SEEK_END)

    def open(self) -> None:
        self.file = None
        with contextlib.suppress(FileNotFoundError):
            self.file = self.path.open("rb", buffering=0)

    def read(self) -> None:
        if self.file:
            self.print_rest(self.file)
        with contextlib.suppress(FileNotFoundError):
            now = self.path.stat()
            if self.file is None or not os.path.samestat(now, os.fstat(self.file.fileno())):  # new, or replaced
                self.open()
            elif now.st_size < self.file.tell():  # truncated
                self.file.seek(0)
            if self.file:
                self.print_rest(self.file)

    def print_rest(self, file: FileIO) -> None:
        while chunk := file.read(65536):
            sys.stdout.buffer.write(chunk)
        sys.stdout.flush()


def follow(loop: Loop, paths: list[Path]) -> None:
    """Print what is appended to these files from now on, on the loop."""
    libc = ctypes.CDLL(None, use_errno=True)
    inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if inotify < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    tails: dict[tuple[int, str], Tail] = {}
    for path in paths:
        if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
            pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # also for writing, so that it never reports an end
            loop.register_fd(pipe, IOEvents.READ, lambda fd, _events: os.write(1, os.read(fd, 65536)))
            continue
        watch = libc.inotify_add_watch(inotify, os.fsencode(path.parent), IN_MODIFY | IN_MOVED_TO | IN_CREATE)
        if watch < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path.parent))
        tails[watch, path.name] = Tail(path)

    def changed(fd: int, _events: IOEvents) -> None:
        events, at = os.read(fd, 65536), 0
        while at < len(events):
            watch, _mask, _cookie, length = EVENT.unpack_from(events, at)
            at += EVENT.size
            tail = tails.get((watch, os.fsdecode(events[at : at + length].rstrip(b"\0"))))
            at += length
            if tail:
                tail.read()

    loop.register_fd(inotify, IOEvents.READ, changed)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    loop = Loop(name="tail")
    follow(loop, [Path(name).absolute() for name in sys.argv[1:]])
    print("following", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        loop.run()
