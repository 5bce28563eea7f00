"""A loop's figures in memory that other processes of the same user can map: which loops exist, and what do they do?

That memory *is* the block that the loop measures in (`Loop(metrics="shared")`), so the loop pays nothing extra, and a
loop that hangs, or whose process is stopped, can be read like any other. It is not a file in a file system: if somebody
truncates a mapped file, or its disk is full when a page is first written, the process dies of SIGBUS. It is a memfd,
whose pages are reserved when it is made and which is sealed against changes of size. A small file holds its path,
``/proc/PID/fd/N``, which the system opens for processes of the same user. A reader maps sealed memory only.

The block does not hold what waits: each submit would have to count there, where every producer writes, for a figure
that is read once a second. Instead the block holds the addresses of the loop's own words, of its handles' and of its
channels', and a reader copies them out of the memory of that process (``/proc/PID/mem``). That costs the loop nothing.
The system allows this to processes that may trace that process: those of the same user, unless that is restricted
(``kernel.yama.ptrace_scope``). Other readers get what the loop wrote in the block when it last started or ended a turn,
and nothing of channels.

The small files live in ``$XDG_RUNTIME_DIR/nbloop``, or without that variable in ``nbloop-UID`` under the temporary
folder. The folder has mode 0700 and must belong to the user; the files have mode 0600.

A file is removed when its loop ends and when its process exits. A killed process leaves its file behind. An advisory
lock, which the writer holds for life, shows whether the writer lives. Its process id does not: the id may have been
reused, or may belong to another container, whose loops cannot be read from here and are left alone. Making or listing
files removes those on which no process holds a lock. Linux only.

>>> import nbloop
>>> with nbloop.Loop(name="example", metrics="shared") as loop:
...     [seen] = [other for other in loops() if other.name == "example"]
...     seen.pid == os.getpid(), seen.snapshot().errors
(True, 0)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import itertools
import mmap
import operator
import os
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.base import layout
from ..parts import Part
from ..unique import Unique
from . import block
from .block import Words
from .metrics import Metrics

if TYPE_CHECKING:
    from ..channel import ChannelFigures

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment, unused-ignore]

MAGIC = int.from_bytes(b"nbloop\x01", "little")
SIZE = layout.BLOCK.dtype.itemsize
LAYOUT = int.from_bytes(hashlib.sha256(repr(layout.BLOCK.dtype).encode()).digest()[:7], "little")

MFD_CLOEXEC, MFD_ALLOW_SEALING = 1, 2  # <linux/memfd.h>, <linux/fcntl.h>
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEALS = 1 | 2 | 4  # no more seals, no shrinking, no growing

_numbers = itertools.count(1)


def folder() -> Path:
    """The folder of this user's files, created if necessary. OSError if it belongs or is open to another user.

    Any thread. O(1).

    >>> oct(folder().stat().st_mode & 0o777)
    '0o700'
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    place = Path(runtime) / "nbloop" if runtime else Path(tempfile.gettempdir()) / f"nbloop-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{place} must be a folder that belongs to this user and that nobody else may enter")
    return place


class SharedBlock(Unique, Part):
    """The writer's side: a block and its file. The file is locked while this object lives; it is removed when the loop
    ends, and at exit.
    """

    def __init__(self, name: str) -> None:
        if sys.platform != "linux":
            raise NotImplementedError('metrics="shared" needs Linux, whose sealed memory cannot be truncated; use True')
        sweep()
        self._files = _Files(folder())
        weakref.finalize(self, self._files.close)  # before anything is made: an exception may come at any moment
        _ours.add(self)
        try:
            self.words: Words = self._files.make(name)
        except BaseException:
            self._files.close()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self._files.path

    def _loop_ended(self) -> None:
        self._files.close()


class _Files:
    """A block's memory and the file that names it. This object knows what to remove before anything is made."""

    def __init__(self, place: Path) -> None:
        self._pid = os.getpid()
        name = f"{self._pid}-{next(_numbers)}-{os.urandom(4).hex()}"
        self.path = place / f"{name}.metrics"
        # It has another name until it is locked and complete, so no process sees or sweeps a half-made file.
        self._temporary = place / f".new-{name}"
        self.file: io.FileIO | None = None
        self.memory: io.FileIO | None = None

    def make(self, name: str) -> Words:
        """Make both; return the words of the memory. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.file = _owned(os.open, self._temporary, flags, 0o600)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.memory = _make_memory()
        made = os.fstat(self.memory.fileno())
        os.write(self.file.fileno(), f"{self._pid} {self.memory.fileno()} {made.st_dev} {made.st_ino}\n".encode())
        words: Words = np.frombuffer(mmap.mmap(self.memory.fileno(), SIZE, trackfd=False), np.int64)
        block.fill(words, name)
        record = words.view(layout.BLOCK.dtype)[0]
        record["layout"], record["pid"], record["process_start"] = LAYOUT, self._pid, _process_start()
        record["magic"] = MAGIC
        self._temporary.replace(self.path)
        return words

    def close(self) -> None:
        """Remove the file, and give both descriptors back. A forked child's copy removes nothing. Idempotent: an
        exception of a signal handler may have ended an earlier call in the middle.
        """
        if os.getpid() == self._pid:
            for path in (self.path, self._temporary):
                with contextlib.suppress(OSError):
                    path.unlink()
        for one in (self.file, self.memory):
            if one is not None:
                one.close()


def _owned(make: Callable[..., int], *args: object) -> io.FileIO:
    """The descriptor that ``make(*args)`` returns, in an object that closes it. One call of C makes both: a signal
    handler cannot raise between them and leave a descriptor whose number no code knows.
    """
    return next(map(io.FileIO, map(make, *((arg,) for arg in args)), ("r+",)))


def _make_memory() -> io.FileIO:
    """Zeroed memory for a block, fully reserved and of fixed size. Raises OSError."""
    create = ctypes.CDLL(None, use_errno=True).memfd_create  # os.memfd_create is missing in some builds of Python
    try:
        memory = _owned(create, b"nbloop", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    except ValueError:  # FileIO takes no -1
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())) from None
    try:
        os.posix_fallocate(memory.fileno(), 0, SIZE)
        fcntl.fcntl(memory, F_ADD_SEALS, SEALS)
    except BaseException:
        memory.close()
        raise
    return memory


_ours: weakref.WeakSet[SharedBlock] = weakref.WeakSet()


def _after_fork() -> None:
    """The child must not hold its parent's locks."""
    for one in list(_ours):
        one._files.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _process_start() -> int:
    """When this process began, in clock ticks since the system booted; 0 if unknown."""
    try:
        return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


@dataclass(frozen=True)
class SharedLoop(Unique):
    """A loop of some process of this user, found through its file. The loop may end at any time.

    O(1), apart from the copy of the figures.

    >>> import nbloop
    >>> with nbloop.Loop(name="seen", metrics="shared") as loop:
    ...     [seen] = [one for one in loops() if one.name == "seen"]
    ...     seen.alive(), seen.group, seen.snapshot().errors
    (True, '', 0)
    >>> seen.alive()
    False
    """

    pid: int
    name: str
    path: Path
    process_start: int
    """In clock ticks since the system booted, as in ``/proc/PID/stat``."""
    made: float
    """When the loop was made, on the clock of `time.monotonic`."""
    _words: Words = field(repr=False, compare=False)
    _where: _Where = field(repr=False, compare=False)

    @property
    def group(self) -> str:
        """The name of the group that the loop belongs to; empty for none."""
        return bytes(self._words.view(layout.BLOCK.dtype)[0]["group"]).decode(errors="replace")

    def snapshot(self) -> Metrics:
        """The loop's figures, as `Loop.metrics` returns them; after its end, the last ones. Reading neither stops the
        loop's process nor waits for it. `queue_current` is what waits now if this process may read that process's
        memory, as `channels` does, and otherwise what waited when the loop last started or ended a turn. RuntimeError
        if that process was killed in the middle of a change, or if the memory holds nonsense. Any thread. Some 200 µs.
        """
        try:
            return block.snapshot(self._words, self._waiting)
        except (ArithmeticError, LookupError, ValueError) as error:
            raise RuntimeError(f"the figures of process {self.pid} make no sense: {error!r}") from error

    def channels(self) -> list[ChannelFigures]:
        """The figures of each ring of records, as `Loop.channels` returns them; empty once the loop has ended. Reading
        neither stops the loop's process nor waits for it. This process sees at most 255 handles and channels: of those
        that are alive, the first that were made. OSError if this process may not read that process's memory, because it
        may not trace it. Any thread. Some 50 µs for each ring.
        """
        from ..channel import ring_figures

        found = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), _Memory(self._where) as memory:
            for words, delays in self._entrances(memory, layout.CHANNEL.dtype):
                name = bytes(words["name"]).decode(errors="replace")
                found.append((int(words["handle"]["queue"]["number"]), ring_figures(name, words, delays)))
        return [ring for _, ring in sorted(found, key=operator.itemgetter(0))]

    def _entrances(self, memory: _Memory, kind: np.dtype[Any]) -> Iterator[tuple[Any, Words | None]]:
        """The words of the loop's handles, or of its channels, and a channel's histogram of delays: copies of those
        that were alive until the copy was made.
        """
        record = self._words.view(layout.BLOCK.dtype)[0]
        mark = layout.IS_CHANNEL if kind == layout.CHANNEL.dtype else 0
        for place, entry in enumerate(record["entrances"].tolist()):
            if entry and entry & layout.IS_CHANNEL == mark:
                with contextlib.suppress(OSError):  # it has just ended, and its memory is gone
                    words = np.frombuffer(memory.read(entry - mark, kind.itemsize), kind)[0]
                    delays = None
                    if mark and words["delays"]:
                        delays = np.frombuffer(memory.read(int(words["delays"]), layout.HISTOGRAM.itemsize), np.int64)
                    if record["entrances"][place] == entry:
                        yield words, delays

    def _waiting(self) -> list[int] | None:
        """What waits now, as `Queues` has it; None if it cannot be read, or the loop has ended."""
        record = self._words.view(layout.BLOCK.dtype)[0]
        at = int(record["state"])
        if not at:
            return None
        try:
            with _Memory(self._where) as memory:
                state = np.frombuffer(memory.read(at, layout.STATE.dtype.itemsize), layout.STATE.dtype)[0]
                handles = [words["queue"] for words, _ in self._entrances(memory, layout.HANDLE.dtype)]
        except OSError:
            return None
        if record["state"] != at:
            return None
        return [
            sum(map(_tasks, [state["external"], *handles])),
            _held(state, "internal") + max(0, int(state["remote_internals"])),
            _held(state, "next_ticks") + _held(state, "microtasks") + max(0, int(state["remote_microtasks"])),
            _held(state, "immediates") + max(0, int(state["remote_immediates"])),
        ]

    def alive(self) -> bool:
        """Whether its file still exists and its writer lives."""
        with contextlib.suppress(OSError), _open_file(self.path) as file:
            return _locked(file)
        return False


def _tasks(queue: Any) -> int:
    """`queue_tasks` of a copy."""
    fillers = int(queue["filled"]) - int(queue["passed"])
    return max(0, (int(queue["tail"]) & ~layout.MINUS) - int(queue["head"]) - fillers)


def _held(state: Any, ring: str) -> int:
    """`ring_waiting` of a copy."""
    return max(0, int(state[ring]["tail"]) - int(state[ring]["head"]))


@dataclass(frozen=True)
class _Where:
    """The descriptor of a block in the process that made it, and which file it must be."""

    pid: int
    number: int
    device: int
    inode: int

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/fd/{self.number}"

    def is_there(self) -> bool:
        """False if the writer is gone or in another namespace, where the number may denote something else. OSError if
        nothing is there.
        """
        found = os.stat(self.path)
        return (found.st_dev, found.st_ino) == (self.device, self.inode) and stat.S_ISREG(found.st_mode)


class _Memory:
    """The memory of the process that made a block, while a ``with`` lasts. OSError if it may not be read."""

    def __init__(self, where: _Where) -> None:
        self._where = where

    def __enter__(self) -> _Memory:
        # Opened first, then checked: an open file stays that process's memory, whichever process gets its number.
        self._file = _owned(os.open, f"/proc/{self._where.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not self._where.is_there():
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, address: int, size: int) -> bytes:
        """A copy of what is there. OSError if there is nothing."""
        found = os.pread(self._file.fileno(), size, address)
        if len(found) != size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return found


def _open_file(path: Path) -> io.FileIO:
    """One of this user's files. OSError for anything else: folders, links, pipes, other users' files."""
    file = _owned(os.open, path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        file.close()
        raise PermissionError(f"{path} is not a file that belongs to this user")
    return file


def _locked(file: io.FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def loops(pid: int | None = None) -> list[SharedLoop]:
    """The loops that can be read now, of one process or of all this user's processes; removes files of dead ones.

    Loops of another version of nbloop, whose blocks have another layout, are left out. Any thread. Raises OSError as
    `folder` does.

    `pid` is that of the process, None for all. O(files).

    >>> import nbloop
    >>> with nbloop.Loop(name="found", metrics="shared") as loop:
    ...     [one.name for one in loops(os.getpid()) if one.name == "found"]
    ['found']
    """
    found = []
    sweep()
    for path in sorted(folder().glob("*.metrics")):
        if pid is None or path.name.startswith(f"{pid}-"):
            with contextlib.suppress(OSError, ValueError):  # it has just been removed, or is not one of our files
                found.append(_open(path))
    return [one for one in found if one is not None]


def _open(path: Path) -> SharedLoop | None:
    with _open_file(path) as file:
        pid, number, device, inode = (int(part) for part in file.read(200).split())
    where = _Where(pid, number, device, inode)
    if not where.is_there():  # checked before it is opened
        return None
    # A reader writes one word, to request a copy.
    with _owned(os.open, where.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC) as memory:
        if fcntl.fcntl(memory, F_GET_SEALS) & SEALS != SEALS or os.fstat(memory.fileno()).st_size != SIZE:
            return None
        words = np.frombuffer(mmap.mmap(memory.fileno(), SIZE, trackfd=False), np.int64)
    record: Any = words.view(layout.BLOCK.dtype)[0]
    if record["magic"] != MAGIC or record["layout"] != LAYOUT:
        return None
    name = bytes(record["name"]).decode(errors="replace")
    made = int(record["ns_base"]) / 1e9
    return SharedLoop(int(record["pid"]), name, path, int(record["process_start"]), made, words, where)


def sweep() -> int:
    """Remove the files that killed processes left behind; return their number.

    Any thread, any number of processes at once. OSError as `folder` raises it. O(files).

    >>> sweep() >= 0
    True
    """
    removed = 0
    for path in folder().glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 60:  # completing a file takes a moment
                path.unlink()
                removed += 1
    for path in folder().glob("*.metrics"):
        with contextlib.suppress(OSError), _open_file(path) as file:
            if not _locked(file):
                path.unlink()
                removed += 1
    return removed
