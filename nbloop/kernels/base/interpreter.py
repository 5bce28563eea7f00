"""Assumptions about CPython and numpy: the offsets in objects that kernels read and write by address.

Problem: reading such a word through a C function costs a call instead of a load (`PyCallable_Check`: 2 ns of each
submit), but the offsets are not documented. Idea: each offset is a constant here, next to a check that this
interpreter's documented interface gives the same answer. The checks run at each import, even under ``-O``, before any
kernel is loaded; they take 75 µs. Any mismatch is an ImportError: otherwise the loop would read memory that means
something else, or, if only `TYPE_TRAVERSE` were wrong, would silently never be collected.

No check is needed for constants of the stable ABI (METH_x, Py_tp_x, Py_TPFLAGS_x) and for what the C-API documents
about its functions. The places of ``__slots__``, of a function's code and of a code's flags involve no assumption:
they are found.
"""

from __future__ import annotations

import _socket as _sockets
import ctypes
import gc
import sys
import sysconfig
import types
from collections.abc import Callable
from typing import Any

import numpy as np

# A separate instance, because argument types set on `ctypes.pythonapi` would apply to the whole process. Windows
# accepts no library without a name.
_api = ctypes.PyDLL(ctypes.pythonapi._name, handle=ctypes.pythonapi._handle)


def function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C-API, called attached. Its declared types apply to nbloop alone."""
    try:
        found = _api[name]
    except AttributeError:
        raise _refusal(name, "this interpreter has no such function") from None
    found.restype, found.argtypes = result, arguments
    return found


def _refusal(what: str, why: str) -> ImportError:
    return ImportError(
        f"nbloop cannot run on this interpreter: {what}: {why}. Its kernels read objects by address, and would read the"
        " wrong memory. Use a Python and a numpy that this version of nbloop supports, or a newer nbloop. (This is"
        f" Python {sys.version.split()[0]}{getattr(sys, 'abiflags', '')}, numpy {np.__version__})"
    )


def _expect(what: str, holds: bool, why: str) -> None:
    if not holds:
        raise _refusal(what, why)


def _word(address: int) -> int:
    return ctypes.c_ssize_t.from_address(address).value


def _pointer(address: int) -> int:
    """The word at an address, to be dereferenced; 0 if it cannot point to a word, so that reading would crash."""
    word = _word(address)
    return word if word % 8 == 0 and word >= 1 << 16 else 0


_object = object()
_tuple: tuple[object, ...] = (_object, len, 0)
_list: list[object] = [_object, _tuple]
_array = np.empty(1, np.int64)
_float = 1.1
_method = types.MethodType(_refusal, _object)
_get_slot = function("PyType_GetSlot", ctypes.c_void_p, ctypes.py_object, ctypes.c_int)
_get_flags = function("PyType_GetFlags", ctypes.c_ulong, ctypes.py_object)
_get_function = function("PyCFunction_GetFunction", ctypes.c_void_p, ctypes.py_object)
_get_convention = function("PyCFunction_GetFlags", ctypes.c_int, ctypes.py_object)
_take = function("Py_IncRef", None, ctypes.py_object)
_give = function("Py_DecRef", None, ctypes.py_object)


def keep_for_ever[T](one: T) -> T:
    """Never free `one`, into whose memory C points. A module's variable would not do: while the interpreter ends it
    empties the modules, and the collector then visits built-ins, whose deallocation reads their `MethodDef`.
    """
    _take(one)
    return one


# --- objects ----------------------------------------------------------------------------------------------------------

# Addresses have 64 bits, and C aligns structures that begin with one to 8 bytes: queues keep marks in the low bits.
OBJECT_ALIGNMENT = 8
_expect(
    "OBJECT_ALIGNMENT",
    ctypes.sizeof(ctypes.c_void_p) == ctypes.alignment(ctypes.c_void_p) == OBJECT_ALIGNMENT,
    f"pointers are not {OBJECT_ALIGNMENT} bytes wide and aligned",
)
_expect(
    "id()",
    ctypes.c_ssize_t.from_buffer(ctypes.py_object(_object)).value == id(_object),
    "the identity of an object is not its address",
)

OBJECT_HEADER = object.__basicsize__
_expect("OBJECT_HEADER", _word(id(_tuple) + OBJECT_HEADER - 8) == id(tuple), "an object's header ends elsewhere")

OBJECT_TYPE = OBJECT_HEADER - 8
_expect("OBJECT_TYPE", _word(id(_tuple) + OBJECT_TYPE) == id(tuple), "an object's type is not the word there")

# Kernels return these without taking a reference, and store them where owned references are expected.
IMMORTAL: tuple[object, ...] = (None, True, False)
for _one in IMMORTAL:
    _before = sys.getrefcount(_one)
    _take(_one)
    _after = sys.getrefcount(_one)
    _give(_one)
    _expect("IMMORTAL", _before == _after, f"references of {_one!r} are counted")

# --- numbers ----------------------------------------------------------------------------------------------------------

FLOAT_VALUE = OBJECT_HEADER  # of a float: the double
_expect(
    "FLOAT_VALUE",
    ctypes.c_double.from_address(id(_float) + FLOAT_VALUE).value == _float,
    "the value of a float is not the double there",
)

# An int has three bits of marks, of which the second means negative, and above them the number of digits; then the
# digits.
INT_TAG = OBJECT_HEADER
INT_DIGITS = OBJECT_HEADER + 8
_numbers = {0: 1, 7: 1, -7: 1, 1 << 29: 1, -(1 << 45): 2, (1 << 62) + 5: 3}  # and how many digits they have
_expect(
    "INT_TAG",
    all(
        max(1, _word(id(number) + INT_TAG) >> 3) == digits and _word(id(number) + INT_TAG) >> 1 & 1 == (number < 0)
        for number, digits in _numbers.items()
    ),
    "sign and number of digits of an int are not in the word there",
)
_expect(
    "INT_DIGITS",
    all(
        sum(ctypes.c_uint32.from_address(id(number) + INT_DIGITS + 4 * i).value << 30 * i for i in range(digits))
        == abs(number)
        for number, digits in _numbers.items()
    ),
    "an int does not have its digits, of 30 bits, there",
)

# --- tuples and lists -------------------------------------------------------------------------------------------------

SEQUENCE_SIZE = OBJECT_HEADER  # ob_size, for both
_expect(
    "SEQUENCE_SIZE", _word(id(_tuple) + SEQUENCE_SIZE) == len(_tuple), "the length of a tuple is not the word there"
)
_expect("SEQUENCE_SIZE", _word(id(_list) + SEQUENCE_SIZE) == len(_list), "the length of a list is not the word there")

TUPLE_ITEMS = tuple.__basicsize__  # where the first item is
_expect(
    "TUPLE_ITEMS",
    [_word(id(_tuple) + TUPLE_ITEMS + 8 * i) for i in range(len(_tuple))] == [id(item) for item in _tuple],
    "the items of a tuple are not the words there",
)

LIST_ITEMS = OBJECT_HEADER + 8  # where the address of the first item is
_growing: list[object] = []
_none = _word(id(_growing) + LIST_ITEMS)
_growing.append(_object)
# Only a word that is 0 while there are no items, and not when there are some, is read through: what lies behind a
# list may look like an address.
_first = _pointer(id(_list) + LIST_ITEMS) if _none == 0 != _word(id(_growing) + LIST_ITEMS) else 0
_expect(
    "LIST_ITEMS",
    _first != 0 and [_word(_first + 8 * i) for i in range(len(_list))] == [id(item) for item in _list],
    "the word there does not lead to the items of a list",
)

LIST_CAPACITY = LIST_ITEMS + 8  # for how many items there is room
_lists = [_list, _growing, [_object] * 9]
_capacities = [(one.__sizeof__() - list.__basicsize__) // 8 for one in _lists]
_expect(
    "LIST_CAPACITY",
    [_word(id(one) + LIST_CAPACITY) for one in _lists] == _capacities,
    "the word there is not the capacity of a list",
)

# The items end a block of PyMem_Malloc's. Without the GIL it begins with the capacity, for readers that take no lock.
LIST_HEADER = 8 if sysconfig.get_config_var("Py_GIL_DISABLED") else 0
_before_items = [
    _word(_pointer(id(one) + LIST_ITEMS) - 8) for one in _lists
]  # else the allocator's own, or a neighbour
_expect(
    "LIST_HEADER",
    LIST_HEADER == (8 if _before_items == _capacities else 0),
    "the items of a list have another word before them",
)

# --- types ------------------------------------------------------------------------------------------------------------

TP_CALL, TP_TRAVERSE = 50, 71  # numbers of the stable ABI: Py_tp_call and Py_tp_traverse

TYPE_CALL = OBJECT_HEADER + 8 + 13 * 8  # what `PyCallable_Check` reads, which takes 2 ns more
TYPE_TRAVERSE = OBJECT_HEADER + 8 + 20 * 8  # overwritten, so that the collector sees what a state's words own
for _name, _at, _number in (("TYPE_CALL", TYPE_CALL, TP_CALL), ("TYPE_TRAVERSE", TYPE_TRAVERSE, TP_TRAVERSE)):
    for _kind in (type, types.FunctionType, int):
        _expect(
            _name,
            ctypes.c_void_p.from_address(id(_kind) + _at).value == _get_slot(_kind, _number),
            f"PyType_GetSlot disagrees with the word there for {_kind.__name__!r}",
        )

TYPE_SUBCLASS = 1 << 31  # in the flags of a type whose instances are types
_expect(
    "TYPE_SUBCLASS",
    [_get_flags(kind) & TYPE_SUBCLASS for kind in (type, object, int)] == [TYPE_SUBCLASS, 0, 0],
    "the flags of types do not say whether their instances are types",
)

# --- methods and built-ins --------------------------------------------------------------------------------------------


class MethodDef(ctypes.Structure):
    """PyMethodDef, of existing built-ins and of those made from kernels."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


METHOD_FUNCTION = OBJECT_HEADER  # in a bound method
_expect(
    "METHOD_FUNCTION",
    _word(id(_method) + METHOD_FUNCTION) == id(_method.__func__),
    "the function of a method is not the word there",
)


async def _coroutine_function() -> None: ...


_codes = [_expect.__code__, _coroutine_function.__code__]


def _first_place(kind: type, step: int, holds: Callable[[int], bool]) -> int:
    return next((at for at in range(OBJECT_HEADER, kind.__basicsize__, step) if holds(at)), 0)


def _half(address: int) -> int:
    return ctypes.c_uint.from_address(address).value


FUNCTION_CODE = _first_place(types.FunctionType, 8, lambda at: _word(id(_expect) + at) == id(_codes[0]))
_expect(
    "FUNCTION_CODE",
    _word(id(_coroutine_function) + FUNCTION_CODE) == id(_codes[1]),
    "the code of a function is not the word there",
)

CODE_FLAGS = _first_place(types.CodeType, 4, lambda at: all(_half(id(code) + at) == code.co_flags for code in _codes))
_expect(
    "CODE_FLAGS",
    all(_half(id(code) + CODE_FLAGS) == code.co_flags for code in _codes),
    "the flags of a code are not the half of a word there",
)
CODE_COROUTINE = 0x80  # CO_COROUTINE, a bit of those flags
_expect(
    "CODE_COROUTINE",
    [code.co_flags & CODE_COROUTINE for code in _codes] == [0, CODE_COROUTINE],
    "the flags of a code do not say whether it is a coroutine's",
)

BUILTIN_DEFINITION = OBJECT_HEADER  # in a built-in function: the address of its PyMethodDef
_definition = _pointer(id(len) + BUILTIN_DEFINITION)
_expect(
    "BUILTIN_DEFINITION",
    _definition != 0
    and MethodDef.from_address(_definition).address == _get_function(len)
    and MethodDef.from_address(_definition).flags == _get_convention(len)
    and MethodDef.from_address(_definition).name == b"len"
    and (MethodDef.from_address(_definition).doc or b"").endswith((len.__doc__ or "").encode()),
    "the word there does not lead to the PyMethodDef of a built-in",
)

DEFINITION_NAME = 0  # in a PyMethodDef: the address of the name
_expect(
    "DEFINITION_NAME",
    DEFINITION_NAME == MethodDef.name.offset,
    "a PyMethodDef does not have its name there",
)

# --- arrays -----------------------------------------------------------------------------------------------------------

ARRAY_DATA = OBJECT_HEADER  # the address of an array's first element
_expect(
    "ARRAY_DATA",
    _word(id(_array) + ARRAY_DATA) == _array.__array_interface__["data"][0],
    "the word there is not the address of an array's data",
)

# --- sockets ----------------------------------------------------------------------------------------------------------

SOCKET_DESCRIPTOR = OBJECT_HEADER  # the C int that `fileno` returns, -1 once the socket is closed or detached
_socket = _sockets.socket.__new__(_sockets.socket)
# A SOCKET of Windows has the size of a pointer; kernels use no sockets there.
_descriptor = (ctypes.c_ssize_t if sys.platform == "win32" else ctypes.c_int).from_address(
    id(_socket) + SOCKET_DESCRIPTOR
)
_expect("SOCKET_DESCRIPTOR", _descriptor.value == _socket.fileno() == -1, "a socket without a descriptor has one there")
_descriptor.value = 1234
_shown = _socket.fileno()
_descriptor.value = -1  # or the socket would close that descriptor when it goes
_expect("SOCKET_DESCRIPTOR", _shown == 1234, "the descriptor of a socket is not the C int there")

# --- references ------------------------------------------------------------------------------------------------------


def reference_offset(holder: object, wanted: Callable[[object], bool]) -> int | None:
    """Where an object of C first refers to something `wanted`; None if it does not, as far as the collector sees."""
    addresses = {id(held) for held in gc.get_referents(holder) if wanted(held)}
    places = range(OBJECT_HEADER, type(holder).__basicsize__, 8)
    return next((at for at in places if _word(id(holder) + at) in addresses), None)


# --- instances of classes with __slots__ ------------------------------------------------------------------------------


def slot_offsets(kind: Any, names: tuple[str, ...] = ()) -> tuple[int, ...]:
    """The offsets of the ``__slots__`` of `kind`, in order, or of these names: found by setting each of them."""
    instance = kind.__new__(kind)
    names = names or kind.__slots__
    marks = [object() for _ in names]
    for name, mark in zip(names, marks, strict=True):
        setattr(instance, name, mark)
    places = range(OBJECT_HEADER, kind.__basicsize__, 8)
    found = {_word(id(instance) + at): at for at in places}
    _expect("__slots__", {id(mark) for mark in marks} <= set(found), f"{kind.__name__} does not hold them as words")
    return tuple(found[id(mark)] for mark in marks)


def hidden_slots(kind: Any, *names: str) -> tuple[Any, ...]:
    """The descriptors of some ``__slots__`` of a class, which are attributes no more. A kernel takes their contents for
    what nbloop has put there; of an attribute, other code could make a number or another tuple.
    """
    slots = tuple(vars(kind)[name] for name in names)
    for name in names:
        delattr(kind, name)
    return slots
