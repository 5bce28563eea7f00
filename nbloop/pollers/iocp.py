"""Socket readiness through a completion port (Windows). Python waits, through ctypes.

Problem: a completion port reports that an operation has ended, not that one could begin. The textbook's bridge, a
receive or send of zero bytes, works for a connected stream only: on a datagram socket it discards the datagram, on a
listening or connecting socket it fails or ends at once, it cannot distinguish a half-close from data, and it binds the
socket for ever to the first port, so that no second loop can watch it. Idea: ask the driver below Winsock, as `select`
and WSAPoll do, but overlapped. A *poll* operation on \\Device\\Afd names a socket and the states to wait for, and its
completion is a packet on our port. (libuv, mio and wepoll do the same; it is not documented, and has not changed since
Windows NT.)

A poll completes once. To make readiness level-triggered, the poll is repeated when the loop next waits, so that data
that a callback left unread is reported again at once. For the same reason EDGE is not offered: a socket that was
drained and filled again looks the same from here as one that was never drained, so edges would be lost or invented.

The system writes to an operation's memory until its packet is dequeued, even after a cancellation. Operations therefore
stay in a table by address until then. A watch whose interest changes abandons its operation and starts another; the old
operation's packet is then ignored.

It costs one system call per event more than epoll. A socket that is closed while registered goes silent; if another
socket gets its number before the loop has waited again, the watch cannot tell them apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import sys
from collections.abc import Sequence
from typing import Any

from ..kernels.base.layout import EDGE, ERROR, HANGUP, ONESHOT, READ, READY_MOST, WRITE
from .table import TablePoller

if sys.platform != "win32":
    raise ImportError("completion ports are Windows'", name="ctypes.WinDLL")

# States of a socket that a poll waits for.
RECEIVE, SEND, DISCONNECT, ABORT, LOCAL_CLOSE, ACCEPT, CONNECT_FAIL = 0x1, 0x4, 0x8, 0x10, 0x20, 0x80, 0x100
IOCTL_AFD_POLL = 0x00012024
SIO_BASE_HANDLE = 0x48000022
STATUS_PENDING, STATUS_CANCELLED, STATUS_NOT_FOUND = 0x103, 0xC0000120, 0xC0000225
SYNCHRONIZE, SHARE_ALL, FILE_OPEN = 0x00100000, 3, 1
WAIT_TIMEOUT = 258
FOREVER = (1 << 63) - 1
POLLS, WAKES = 0, 1  # completion keys

_dword, _handle, _pointer = ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p


class _Name(ctypes.Structure):  # UNICODE_STRING
    _fields_ = (("bytes", ctypes.c_uint16), ("room", ctypes.c_uint16), ("text", ctypes.c_wchar_p))


class _Object(ctypes.Structure):  # OBJECT_ATTRIBUTES
    _fields_ = (
        ("size", _dword),
        ("root", _handle),
        ("name", ctypes.POINTER(_Name)),
        ("attributes", _dword),
        ("security", _pointer),
        ("quality", _pointer),
    )


class _Status(ctypes.Structure):  # IO_STATUS_BLOCK
    _fields_ = (("status", _dword), ("information", ctypes.c_size_t))


class _Poll(ctypes.Structure):  # IO_STATUS_BLOCK, then AFD_POLL_INFO with one AFD_POLL_HANDLE_INFO
    _fields_ = (
        ("io", _Status),
        ("timeout", ctypes.c_int64),
        ("count", _dword),
        ("exclusive", _dword),
        ("socket", _handle),
        ("states", _dword),
        ("result", _dword),
    )


_POLL_INFO = _Poll.timeout.offset
_POLL_BYTES = ctypes.sizeof(_Poll) - _POLL_INFO


class _Packet(ctypes.Structure):  # OVERLAPPED_ENTRY; `operation` is the address of the operation's _Poll
    _fields_ = (("key", ctypes.c_size_t), ("operation", _pointer), ("status", ctypes.c_size_t), ("bytes", _dword))


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_ntdll = ctypes.WinDLL("ntdll")
_winsock = ctypes.WinDLL("ws2_32", use_last_error=True)
_create_port = _function(_kernel32, "CreateIoCompletionPort", _handle, _handle, _handle, ctypes.c_size_t, _dword)
_get_packets = _function(
    _kernel32, "GetQueuedCompletionStatusEx", ctypes.c_int, _handle, _pointer, _dword, _pointer, _dword, ctypes.c_int
)
_post = _function(_kernel32, "PostQueuedCompletionStatus", ctypes.c_int, _handle, _dword, ctypes.c_size_t, _pointer)
_close_handle = _function(_kernel32, "CloseHandle", ctypes.c_int, _handle)
_create_file = _function(
    _ntdll, "NtCreateFile", _dword, _pointer, _dword, _pointer, _pointer, _pointer, *[_dword] * 4, _pointer, _dword
)
_control = _function(
    _ntdll, "NtDeviceIoControlFile", _dword, _handle, _handle, *[_pointer] * 3, _dword, *[_pointer, _dword] * 2
)
_cancel = _function(_ntdll, "NtCancelIoFileEx", _dword, _handle, _pointer, _pointer)
_to_error = _function(_ntdll, "RtlNtStatusToDosError", _dword, _dword)
_socket_control = _function(
    _winsock, "WSAIoctl", ctypes.c_int, _handle, _dword, *[_pointer, _dword] * 2, _pointer, _pointer, _pointer
)


def _checked(result: Any) -> Any:
    if not result:
        raise ctypes.WinError(ctypes.get_last_error())
    return result


def _check_status(status: int) -> None:
    if status >= 0x80000000:
        raise ctypes.WinError(_to_error(status))


def _base_handle(fd: int) -> int:
    """The socket that the driver knows, below any layered providers. OSError if `fd` is not a socket."""
    base, size = _handle(), _dword()
    out = (ctypes.byref(base), ctypes.sizeof(base), ctypes.byref(size))
    if _socket_control(fd, SIO_BASE_HANDLE, None, 0, *out, None, None) != 0:
        raise ctypes.WinError(ctypes.get_last_error())
    return base.value or fd


def _states(interest: int) -> int:
    states = ABORT | CONNECT_FAIL | LOCAL_CLOSE
    if interest & READ:
        states |= RECEIVE | ACCEPT | DISCONNECT  # only a reader wants to know of a half-close
    if interest & WRITE:
        states |= SEND
    return states


def _events(states: int) -> int:
    events = 0
    if states & (RECEIVE | ACCEPT):
        events |= READ
    if states & SEND:
        events |= WRITE
    if states & DISCONNECT:
        events |= READ | HANGUP
    if states & (ABORT | CONNECT_FAIL):  # reading or writing now returns the error
        events |= READ | WRITE | ERROR | HANGUP
    return events


class _Watch:
    """A registered socket. `operation` is the poll in progress, if there is one."""

    __slots__ = ("base", "interest", "operation", "token")

    def __init__(self, base: int) -> None:
        self.base = base
        self.interest = 0
        self.token = 0
        self.operation: _Operation | None = None


class _Operation:
    """One poll, with the memory that the system writes to. Abandoned if `watch` is None."""

    __slots__ = ("memory", "watch")

    def __init__(self, watch: _Watch) -> None:
        self.watch: _Watch | None = watch
        self.memory = _Poll(timeout=FOREVER, count=1, socket=watch.base, states=_states(watch.interest))
        self.memory.io.status = STATUS_PENDING

    @property
    def address(self) -> int:
        return ctypes.addressof(self.memory)


class IocpPoller(TablePoller[_Watch]):
    """A completion port, and the driver handle on which polls are made."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: dict[int, _Operation] = {}  # by the address of their memory; each still awaits its packet
        self._due: dict[_Watch, None] = {}  # to be polled when the loop waits next
        self._packets = (_Packet * READY_MOST)()
        self._port = _checked(_create_port(_handle(-1), None, 0, 1))
        self._driver = _handle()
        try:
            path = "\\Device\\Afd\\nbloop"
            name = _Name(2 * len(path), 2 * len(path), path)
            what = _Object(size=ctypes.sizeof(_Object), name=ctypes.pointer(name))
            outcome = _Status()
            places = (ctypes.byref(self._driver), SYNCHRONIZE, ctypes.byref(what), ctypes.byref(outcome))
            _check_status(_create_file(*places, None, 0, SHARE_ALL, FILE_OPEN, 0, None, 0))
            _checked(_create_port(self._driver, self._port, POLLS, 0))
        except BaseException:
            self._close_handles()
            raise

    def _new(self, fd: int) -> _Watch:
        return _Watch(_base_handle(fd))

    def _forget(self, watch: _Watch) -> None:
        watch.interest = 0  # a signal handler may forget one that `wait` is about to poll
        self._due.pop(watch, None)
        self._abandon(watch)

    def _change(self, watch: _Watch, interest: int, token: int) -> None:
        if interest & EDGE:
            raise OSError(errno.EOPNOTSUPP, "IOEvents.EDGE: Windows reports the state of a socket, not its changes")
        before = (watch.interest, watch.token, watch.operation)
        watch.interest, watch.token, watch.operation = interest, token, None
        try:
            self._poll(watch)
        except BaseException:
            watch.interest, watch.token, watch.operation = before
            raise
        self._due.pop(watch, None)
        if before[2] is not None:
            self._cancel(before[2])

    def _poll(self, watch: _Watch) -> None:
        if not watch.interest & (READ | WRITE):
            return
        self._abandon(watch)  # a signal handler may have polled it just now
        operation = _Operation(watch)
        self._operations[operation.address] = watch.operation = operation
        at, info = operation.address, (operation.address + _POLL_INFO, _POLL_BYTES)
        status = _control(self._driver, None, None, at, at, IOCTL_AFD_POLL, *info, *info)
        if status >= 0x80000000:  # refused: no packet comes
            del self._operations[at]
            watch.operation = None
            _check_status(status)

    def _abandon(self, watch: _Watch) -> None:
        operation, watch.operation = watch.operation, None
        if operation is not None:
            self._cancel(operation)

    def _cancel(self, operation: _Operation) -> None:
        """Cancel an operation. Its packet still arrives; until then the memory belongs to the system."""
        operation.watch = None
        outcome = _Status()
        status = _cancel(self._driver, operation.address, ctypes.byref(outcome))
        if status != STATUS_NOT_FOUND:  # not found: it has just completed
            _check_status(status)

    def wait(self, timeout_ns: int) -> Sequence[tuple[int, int]]:
        milliseconds = 0xFFFFFFFF if timeout_ns < 0 else min((timeout_ns + 999_999) // 1_000_000, 1 << 30)
        with self._lock:
            for watch in list(self._due):
                with contextlib.suppress(OSError):  # closed before it was unregistered: it stays silent
                    self._poll(watch)
                self._due.pop(watch, None)  # not before: if a signal handler raises, the next wait polls it
        count = self._take(milliseconds)
        with self._lock:
            return [pair for packet in self._packets[:count] if (pair := self._ended(packet)) is not None]

    def _take(self, milliseconds: int) -> int:
        """Wait for packets; return how many `_packets` now holds."""
        count = _dword()
        if not _get_packets(self._port, self._packets, READY_MOST, ctypes.byref(count), milliseconds, 0):
            error = ctypes.get_last_error()
            if error != WAIT_TIMEOUT:
                raise ctypes.WinError(error)
            return 0
        return count.value

    def _ended(self, packet: _Packet) -> tuple[int, int] | None:
        """The (token, events) that a packet reports, or None if its watch no longer wants it."""
        if packet.key != POLLS:
            return None
        operation = self._operations.pop(packet.operation)
        watch = operation.watch
        if watch is None or watch.operation is not operation:  # a signal handler has changed it just now
            return None
        watch.operation = None
        memory = operation.memory
        if memory.io.status >= 0x80000000:
            # Not cancelled by us: the thread that issued the poll has ended, or another library cancelled it.
            if memory.io.status == STATUS_CANCELLED:
                self._due[watch] = None
            return None
        if memory.states & LOCAL_CLOSE:
            return None  # closed before it was unregistered
        events = _events(memory.states)
        if watch.interest & ONESHOT:
            watch.interest = 0
        else:
            self._due[watch] = None
        return watch.token, events

    def wake(self) -> None:
        _checked(_post(self._port, 0, WAKES, None))

    def close(self) -> None:
        with self._lock:
            for watch in self._watches.values():
                self._abandon(watch)
            self._watches.clear()
            self._due.clear()
        while self._operations:
            count = self._take(0xFFFFFFFF)
            for packet in self._packets[:count]:
                self._ended(packet)
        self._close_handles()

    def _close_handles(self) -> None:
        if self._driver.value:
            _close_handle(self._driver)
        _close_handle(self._port)
