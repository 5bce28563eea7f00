"""The C functions that kernels call by name, and their twins for plain Python.

Each is declared once, with its C signature; ``compiler.py`` turns the declaration into an external symbol, and
un-jitted code calls the same function through ctypes. Two rules make the twins faithful:

* An object is its address (an ``int``), and every reference that C would own is owned here too.
* Compiled code leaves an exception in the thread state and returns the failure value; a twin cannot (ctypes raises at
  once), so it keeps the exception in `pending` until `PyErr_GetRaisedException` takes it or the method's wrapper
  raises it.

Only CPython's documented API and functions of the operating system are used, so the compiled object links wherever the
interpreter runs. Differences between systems are confined to this file: kernels test ``WINDOWS``, a constant, and the
compiler removes the other system's branch.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .interpreter import function

WORD, REAL, INT, VOID = "word", "real", "int", "void"  # intp (addresses too), double, C int, nothing
_CTYPES: dict[str, Any] = {WORD: ctypes.c_ssize_t, REAL: ctypes.c_double, INT: ctypes.c_int, VOID: None}


@dataclass(frozen=True)
class External:
    """One C function: its name, what it returns and takes, and where the dynamic linker finds it."""

    name: str
    result: str
    arguments: tuple[str, ...]
    twin: Callable[..., int]

    def address(self) -> int:
        """Its address in this process, for the object loader; 0 if the platform has no such symbol, ImportError if
        CPython lacks it.
        """
        if self.name == "memmove":  # in the C library, which is not Windows' base library
            return ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
        if self.twin is _absent:
            return 0
        try:
            found = function(self.name, None) if self.name.startswith("Py") else _system[self.name]
        except AttributeError:
            return 0
        return ctypes.cast(found, ctypes.c_void_p).value or 0


externals: dict[str, External] = {}
WINDOWS = sys.platform == "win32"
_system: ctypes.CDLL = ctypes.CDLL("kernelbase" if WINDOWS else None, use_errno=True)  # x64 has one calling convention
if WINDOWS:
    _system.VirtualAlloc.restype = ctypes.c_void_p
else:
    _system.mmap.restype = _system.recv.restype = ctypes.c_ssize_t
    _system.send.restype = _system.sendmsg.restype = ctypes.c_ssize_t
    _system.recvfrom.restype = _system.sendto.restype = _system.strlen.restype = ctypes.c_ssize_t


class _Pending(threading.local):
    """The un-jitted stand-in for the thread state's current exception."""

    error: BaseException | None = None


pending = _Pending()


def _declare(name: str, result: str, *arguments: str, twin: Callable[..., int] | None = None) -> Callable[..., int]:
    if twin is None:
        twin = _through_ctypes(name, result, arguments)
    externals[name] = External(name, result, arguments, twin)
    return twin


def _through_ctypes(name: str, result: str, arguments: tuple[str, ...]) -> Callable[..., int]:
    called = function(name, _CTYPES[result], *(_CTYPES[a] for a in arguments))
    failure = -1 if result in (INT, REAL) or name == "PyLong_AsLongLong" else 0

    def twin(*values: int) -> int:
        try:
            return called(*values) or 0
        except BaseException as error:  # the C function failed with this exception: keep it, as the thread state would
            frames = error.__traceback__
            pending.error = error.with_traceback(frames and frames.tb_next)  # C has no frame for this one
            return failure

    twin.__name__ = twin.__qualname__ = name
    return twin


def _absent(*_values: int) -> int:
    """The twin of a function that this Python does not have: kernels test a constant before they call it."""
    raise NotImplementedError


def _get_raised_exception() -> int:
    error, pending.error = pending.error, None
    if error is None:
        return 0
    Py_IncRef(id(error))
    return id(error)


def _set_raised_exception(error: int) -> int:
    pending.error = ctypes.cast(error, ctypes.py_object).value
    Py_DecRef(error)
    return 0


def _error_occurred() -> int:
    return 0 if pending.error is None else id(type(pending.error))


def _error_clear() -> int:
    pending.error = None
    return 0


def _write_unraisable(_where: int) -> int:
    error, pending.error = pending.error, None
    if error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    return 0


# Twins run inside Python code, which needs its thread state, so they cannot detach; calls that block do so themselves.
def _save_thread() -> int:
    return 1


def _restore_thread(_state: int) -> int:
    return 0


def _ensure_attached() -> int:
    return 0


def _release_attached(_state: int) -> int:
    return 0


def _get_thread_state() -> int:
    return threading.get_ident()


_errno = ctypes.c_int(0)  # the errno of an un-jitted kernel's last system call; such tests run one at a time


def _syscall(*values: int) -> int:
    result = int(_system.syscall(*[ctypes.c_long(value) for value in values]))
    _errno.value = ctypes.get_errno()
    return result


def _write(fd: int, buffer: int, count: int) -> int:
    return int(_system.write(ctypes.c_int(fd), ctypes.c_void_p(buffer), ctypes.c_size_t(count)))


_ERRNO = {"darwin": "__error", "win32": "_errno"}.get(sys.platform, "__errno_location")


def _errno_location() -> int:
    return ctypes.addressof(_errno)


def _sigaction(number: int, new: int, old: int) -> int:
    return int(_system.sigaction(ctypes.c_int(number), ctypes.c_void_p(new), ctypes.c_void_p(old)))


def _raise(number: int) -> int:
    return int(getattr(_system, "raise")(ctypes.c_int(number)))


def _mmap(address: int, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    where, length, start = ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_long(offset)
    return int(_system.mmap(where, length, protection, flags, fd, start))


def _munmap(address: int, size: int) -> int:
    return int(_system.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size)))


def _madvise(address: int, size: int, advice: int) -> int:
    return int(_system.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice))


def _virtual_alloc(address: int, size: int, kind: int, protection: int) -> int:
    return int(_system.VirtualAlloc(ctypes.c_void_p(address), ctypes.c_size_t(size), kind, protection) or 0)


def _virtual_free(address: int, size: int, kind: int) -> int:
    return int(_system.VirtualFree(ctypes.c_void_p(address), ctypes.c_size_t(size), kind))


def _recv(fd: int, buffer: int, size: int, flags: int) -> int:
    result = int(_system.recv(ctypes.c_int(fd), ctypes.c_void_p(buffer), ctypes.c_size_t(size), ctypes.c_int(flags)))
    _errno.value = ctypes.get_errno()
    return result


def _send(fd: int, buffer: int, size: int, flags: int) -> int:
    result = int(_system.send(ctypes.c_int(fd), ctypes.c_void_p(buffer), ctypes.c_size_t(size), ctypes.c_int(flags)))
    _errno.value = ctypes.get_errno()
    return result


def _sendmsg(fd: int, message: int, flags: int) -> int:
    result = int(_system.sendmsg(ctypes.c_int(fd), ctypes.c_void_p(message), ctypes.c_int(flags)))
    _errno.value = ctypes.get_errno()
    return result


def _recvfrom(fd: int, buffer: int, size: int, flags: int, address: int, length: int) -> int:
    into = ctypes.c_int(fd), ctypes.c_void_p(buffer), ctypes.c_size_t(size), ctypes.c_int(flags)
    result = int(_system.recvfrom(*into, ctypes.c_void_p(address), ctypes.c_void_p(length)))
    _errno.value = ctypes.get_errno()
    return result


def _sendto(fd: int, buffer: int, size: int, flags: int, address: int, length: int) -> int:
    what = ctypes.c_int(fd), ctypes.c_void_p(buffer), ctypes.c_size_t(size), ctypes.c_int(flags)
    result = int(_system.sendto(*what, ctypes.c_void_p(address), ctypes.c_uint(length)))
    _errno.value = ctypes.get_errno()
    return result


def _inet_ntop(family: int, address: int, text: int, size: int) -> int:
    where = ctypes.c_void_p(address), ctypes.c_void_p(text), ctypes.c_uint(size)
    return text if _system.inet_ntop(ctypes.c_int(family), *where) else 0


def _inet_pton(family: int, text: int, address: int) -> int:
    return int(_system.inet_pton(ctypes.c_int(family), ctypes.c_void_p(text), ctypes.c_void_p(address)))


def _strlen(text: int) -> int:
    return int(_system.strlen(ctypes.c_void_p(text)))


def _memmove(to: int, origin: int, size: int) -> int:
    ctypes.memmove(to, origin, size)
    return to


def _usleep(microseconds: int) -> int:
    return int(_system.usleep(ctypes.c_uint(microseconds)))


def _sleep(milliseconds: int) -> int:
    _system.Sleep(ctypes.c_int(milliseconds))
    return 0


def _wait_on_address(word: int, unlike: int, size: int, milliseconds: int) -> int:
    pointers = (ctypes.c_void_p(word), ctypes.c_void_p(unlike), ctypes.c_size_t(size))
    return int(_system.WaitOnAddress(*pointers, ctypes.c_int(milliseconds)))


def _wake_by_address(word: int) -> int:
    _system.WakeByAddressSingle(ctypes.c_void_p(word))
    return 0


# The raw allocator runs no Python and needs no thread state; system.py explains its use.
PyMem_RawMalloc = _declare("PyMem_RawMalloc", WORD, WORD)
PyMem_RawFree = _declare("PyMem_RawFree", VOID, WORD)
PyMem_Malloc = _declare("PyMem_Malloc", WORD, WORD)  # the items of a list, which CPython frees
PyMem_Free = _declare("PyMem_Free", VOID, WORD)
Py_IncRef = _declare("Py_IncRef", VOID, WORD)
Py_DecRef = _declare("Py_DecRef", VOID, WORD)
PyCallable_Check = _declare("PyCallable_Check", INT, WORD)
PyObject_CallNoArgs = _declare("PyObject_CallNoArgs", WORD, WORD)
PyObject_CallOneArg = _declare("PyObject_CallOneArg", WORD, WORD, WORD)
PyObject_Vectorcall = _declare("PyObject_Vectorcall", WORD, WORD, WORD, WORD, WORD)
PyUnstable_Object_IsUniquelyReferenced = _declare(
    "PyUnstable_Object_IsUniquelyReferenced", INT, WORD, twin=None if sys.version_info >= (3, 14) else _absent
)
PyType_GenericAlloc = _declare("PyType_GenericAlloc", WORD, WORD, WORD)
PyTuple_New = _declare("PyTuple_New", WORD, WORD)
PySequence_List = _declare("PySequence_List", WORD, WORD)
PySequence_GetSlice = _declare("PySequence_GetSlice", WORD, WORD, WORD, WORD)
PyObject_GetIter = _declare("PyObject_GetIter", WORD, WORD)
PyIter_Next = _declare("PyIter_Next", WORD, WORD)
PyList_New = _declare("PyList_New", WORD, WORD)
PyList_Append = _declare("PyList_Append", INT, WORD, WORD)
PyList_GetItemRef = _declare("PyList_GetItemRef", WORD, WORD, WORD)
PyList_SetItem = _declare("PyList_SetItem", INT, WORD, WORD, WORD)
PyUnicode_Compare = _declare("PyUnicode_Compare", INT, WORD, WORD)
PyLong_FromLongLong = _declare("PyLong_FromLongLong", WORD, WORD)
PyLong_AsLongLong = _declare("PyLong_AsLongLong", WORD, WORD)
PyBool_FromLong = _declare("PyBool_FromLong", WORD, WORD)
PyFloat_FromDouble = _declare("PyFloat_FromDouble", WORD, REAL)
PyFloat_AsDouble = _declare("PyFloat_AsDouble", REAL, WORD)
PyErr_GetRaisedException = _declare("PyErr_GetRaisedException", WORD, twin=_get_raised_exception)
PyErr_SetRaisedException = _declare("PyErr_SetRaisedException", VOID, WORD, twin=_set_raised_exception)
PyException_SetContext = _declare("PyException_SetContext", VOID, WORD, WORD)
PyObject_VisitManagedDict = _declare("PyObject_VisitManagedDict", INT, WORD, WORD, WORD)
PyErr_Occurred = _declare("PyErr_Occurred", WORD, twin=_error_occurred)
PyErr_Clear = _declare("PyErr_Clear", VOID, twin=_error_clear)
PyErr_WriteUnraisable = _declare("PyErr_WriteUnraisable", VOID, WORD, twin=_write_unraisable)
PyDict_Size = _declare("PyDict_Size", WORD, WORD)
PyDict_GetItemWithError = _declare("PyDict_GetItemWithError", WORD, WORD, WORD)  # a borrowed reference
PyDict_SetItem = _declare("PyDict_SetItem", INT, WORD, WORD, WORD)
PyDict_DelItem = _declare("PyDict_DelItem", INT, WORD, WORD)
PyBytes_FromStringAndSize = _declare("PyBytes_FromStringAndSize", WORD, WORD, WORD)
PyObject_GetBuffer = _declare("PyObject_GetBuffer", INT, WORD, WORD, INT)
PyBuffer_Release = _declare("PyBuffer_Release", VOID, WORD)
PyBytes_AsString = _declare("PyBytes_AsString", WORD, WORD)
PyBytes_Size = _declare("PyBytes_Size", WORD, WORD)
PyObject_GetAttr = _declare("PyObject_GetAttr", WORD, WORD, WORD)
PyObject_SetAttr = _declare("PyObject_SetAttr", INT, WORD, WORD, WORD)
PyObject_GetItem = _declare("PyObject_GetItem", WORD, WORD, WORD)
PyContext_CopyCurrent = _declare("PyContext_CopyCurrent", WORD)
PyContext_Enter = _declare("PyContext_Enter", INT, WORD)
PyContext_Exit = _declare("PyContext_Exit", INT, WORD)
PyUnicode_FromString = _declare("PyUnicode_FromString", WORD, WORD)
PyUnicode_DecodeFSDefault = _declare("PyUnicode_DecodeFSDefault", WORD, WORD)
PyUnicode_AsUTF8AndSize = _declare("PyUnicode_AsUTF8AndSize", WORD, WORD, WORD)
PyType_GetFlags = _declare("PyType_GetFlags", WORD, WORD)
PyFunction_GetCode = _declare("PyFunction_GetCode", WORD, WORD)  # a borrowed reference
# Variadic in C; see `libc_syscall` below.
PySys_Audit = _declare("PySys_Audit", INT, WORD, WORD, WORD, WORD)
PyErr_BadArgument = _declare("PyErr_BadArgument", VOID)
PyEval_SaveThread = _declare("PyEval_SaveThread", WORD, twin=_save_thread)
PyEval_RestoreThread = _declare("PyEval_RestoreThread", VOID, WORD, twin=_restore_thread)
PyGILState_Ensure = _declare("PyGILState_Ensure", INT, twin=_ensure_attached)
PyGILState_Release = _declare("PyGILState_Release", VOID, INT, twin=_release_attached)
PyTime_MonotonicRaw = _declare("PyTime_MonotonicRaw", INT, WORD)  # kernels say atomics.monotonic_ns()
PyFrame_GetBack = _declare("PyFrame_GetBack", WORD, WORD)
PyFrame_GetCode = _declare("PyFrame_GetCode", WORD, WORD)
PyFrame_GetLineNumber = _declare("PyFrame_GetLineNumber", INT, WORD)
PyFrame_GetVar = _declare("PyFrame_GetVar", WORD, WORD, WORD)
PyThread_get_thread_ident = _declare("PyThread_get_thread_ident", WORD, twin=threading.get_ident)
PyThreadState_GetUnchecked = _declare("PyThreadState_GetUnchecked", WORD, twin=_get_thread_state)
libc_write = _declare("write", WORD, INT, WORD, WORD, twin=_write)
errno_location = _declare(_ERRNO, WORD, twin=_errno_location)
libc_getpid = _declare("getpid", INT, twin=os.getpid)
libc_sigaction = _declare("sigaction", INT, INT, WORD, WORD, twin=_sigaction)
libc_raise = _declare("raise", INT, INT, twin=_raise)
libc_recv = _declare("recv", WORD, INT, WORD, WORD, INT, twin=_recv)
libc_send = _declare("send", WORD, INT, WORD, WORD, INT, twin=_send)
libc_sendmsg = _declare("sendmsg", WORD, INT, WORD, INT, twin=_sendmsg)
libc_recvfrom = _declare("recvfrom", WORD, INT, WORD, WORD, INT, WORD, WORD, twin=_recvfrom)
libc_sendto = _declare("sendto", WORD, INT, WORD, WORD, INT, WORD, INT, twin=_sendto)
libc_inet_ntop = _declare("inet_ntop", WORD, INT, WORD, WORD, INT, twin=_inet_ntop)
libc_inet_pton = _declare("inet_pton", INT, INT, WORD, WORD, twin=_inet_pton)
libc_strlen = _declare("strlen", WORD, WORD, twin=_strlen)
libc_memmove = _declare("memmove", WORD, WORD, WORD, WORD, twin=_memmove)
libc_usleep = _declare("usleep", INT, INT, twin=_usleep)
libc_mmap = _declare("mmap", WORD, WORD, WORD, INT, INT, INT, WORD, twin=_mmap)
libc_munmap = _declare("munmap", INT, WORD, WORD, twin=_munmap)
libc_madvise = _declare("madvise", INT, WORD, WORD, INT, twin=_madvise)
# Variadic in C; on x86-64 and AArch64 Linux its integer arguments are passed exactly like fixed ones.
libc_syscall = _declare("syscall", WORD, WORD, WORD, WORD, WORD, WORD, WORD, twin=_syscall)
# Windows: its futex, with a timeout in ms (-1: none), and its sleep.
WaitOnAddress = _declare("WaitOnAddress", INT, WORD, WORD, WORD, INT, twin=_wait_on_address)
WakeByAddressSingle = _declare("WakeByAddressSingle", VOID, WORD, twin=_wake_by_address)
Sleep = _declare("Sleep", VOID, INT, twin=_sleep)
VirtualAlloc = _declare("VirtualAlloc", WORD, WORD, WORD, INT, INT, twin=_virtual_alloc)
VirtualFree = _declare("VirtualFree", INT, WORD, WORD, INT, twin=_virtual_free)

# Py_TPFLAGS_LONG_SUBCLASS and its like, of the stable ABI
TYPE_LONG, TYPE_TUPLE, TYPE_BYTES, TYPE_UNICODE = 1 << 24, 1 << 26, 1 << 27, 1 << 28
BUFFER_WRITABLE = 1  # PyBUF_WRITABLE; then struct Py_buffer's size and `len` (stable ABI since 3.11)
BUFFER_BYTES, BUFFER_LENGTH = 80, 16

# --- system constants ------------------------------------------------------------------------------------------------
FUTEX_NUMBERS = {"x86_64": 202, "aarch64": 98}
SYS_FUTEX = FUTEX_NUMBERS.get(platform.machine(), 0) if sys.platform == "linux" and sys.byteorder == "little" else 0
FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 128, 129
# epoll_pwait, whose timeout is in ms; its successor with a timespec (Linux 5.11) has the same number on all machines
SYS_EPOLL_PWAIT = {"x86_64": 281, "aarch64": 22}.get(platform.machine(), 0)
SYS_EPOLL_PWAIT2 = 441
SYS_EPOLL_CTL = {"x86_64": 233, "aarch64": 21}.get(platform.machine(), 0)
# ppoll: called with a NULL mask, so the mask's size does not matter
SYS_PPOLL = {"x86_64": 271, "aarch64": 73}.get(platform.machine(), 0)
POLLIN = 1
# ioctl: how many bytes can be read from a socket
SYS_IOCTL = {"x86_64": 16, "aarch64": 29}.get(platform.machine(), 0)
FIONREAD = 0x541B
EPERM, ENOENT, EINTR, EBADF, EAGAIN, EEXIST = 1, 2, 4, 9, 11, 17
MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000
AF_UNIX, AF_INET6 = 1, 10  # of Linux
# struct msghdr of 64-bit Linux, and where its pieces are and how many; struct iovec {address, size}
MSGHDR_BYTES, MSGHDR_PIECES, MSGHDR_COUNT, IOVEC_BYTES = 56, 16, 24, 16
# struct epoll_event {uint32 events; uint64 data} is packed on x86-64 only, for the sake of 32-bit programs there
EPOLL_DATA = 4 if platform.machine() == "x86_64" else 8
EPOLL_EVENT_BYTES = EPOLL_DATA + 8
