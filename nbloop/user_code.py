"""What Numba has to know to compile a user's function that puts records, or handles them (compiled.py).

* A `NativeRing` is, in compiled code, the address of a ring's words; its type carries the dtype. `put` writes the
  record on the stack, field by field, with the checks that remain once types are known, and calls the kernels' C
  function. It does so by name, so Numba may keep the user's function on disk (``cache=True``): the code contains
  neither an address nor a place in the words.
* A handler is compiled to a C function that makes array structures from an address, a count, and the user's arrays,
  whose addresses are constants in it, and calls the user's function. If that raises, the exception stays in the thread
  state, as with kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import cfunc, from_dtype, njit, typeof, types
from numba.core import cgutils, errors
from numba.core.dispatcher import Dispatcher
from numba.extending import NativeValue, intrinsic, models, overload_method, register_model, unbox
from numba.np.arrayobj import make_array, populate_array

from .kernels.base.layout import NATIVE_ERROR
from .kernels.build.library import PREFIX
from .kernels.channels.channel_methods import channel_put_native

_WORD, _INT = ir.IntType(64), ir.IntType(32)
_PUT = PREFIX + channel_put_native.name

type Refusals = tuple[tuple[type[Exception], str], ...]  # errors and what they say, by NATIVE_ERROR - index


class RingType(types.Type):  # type: ignore[misc, unused-ignore]
    """The type of a `NativeRing` whose records are of a dtype, and whose `put` raises these errors."""

    def __init__(self, record: Any, refusals: Refusals) -> None:
        self.record, self.refusals = record, refusals
        super().__init__(f"NativeRing({record})")


@register_model(RingType)
class RingModel(models.PrimitiveModel):  # type: ignore[misc, unused-ignore]
    """A word."""

    def __init__(self, manager: Any, kind: RingType) -> None:
        super().__init__(manager, kind, _WORD)


@unbox(RingType)
def _unbox(_kind: RingType, instance: Any, c: Any) -> Any:
    number = c.pyapi.object_getattr_string(instance, "address")
    address = c.pyapi.long_as_longlong(number)
    c.pyapi.decref(number)
    return NativeValue(address, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


def _record_type(dtype: np.dtype[Any]) -> Any:
    try:
        return from_dtype(dtype)
    except (NotImplementedError, errors.NumbaError) as error:
        raise TypeError(f"compiled code cannot have records of {dtype}: {error}") from None


def ring_type(dtype: np.dtype[Any], refusals: Refusals) -> RingType:
    """Numba's type of a ring."""
    llvm.add_symbol(_PUT, channel_put_native.address)
    return RingType(_record_type(dtype), refusals)


# --- put --------------------------------------------------------------------------------------------------------------


def _checked(context: Any, builder: Any, value: Any, kinds: tuple[Any, Any], name: str) -> Any:
    """A value as its field holds it; OverflowError if it is out of range. `kinds` are its type and the field's."""
    of, field = kinds
    fits: Any = None
    if isinstance(field, types.Integer) and isinstance(of, types.Float):
        least, end = (ir.DoubleType()(float(bound)) for bound in (field.minval, field.maxval + 1))
        wide = _one_argument(builder, "llvm.trunc", context.cast(builder, value, of, types.float64))
        fits = builder.and_(builder.fcmp_ordered(">=", wide, least), builder.fcmp_ordered("<", wide, end))
    elif isinstance(field, types.Integer) and isinstance(of, types.Integer):
        if of.minval < field.minval:
            fits = builder.icmp_signed(">=", value, value.type(field.minval))
        if of.maxval > field.maxval:
            compare = builder.icmp_signed if of.minval < 0 else builder.icmp_unsigned
            below = compare("<=", value, value.type(field.maxval))
            fits = below if fits is None else builder.and_(fits, below)
    made = context.cast(builder, value, of, field)
    if field is types.float32 and of is types.float64:
        infinite, was = (
            builder.fcmp_ordered("==", _one_argument(builder, "llvm.fabs", number), number.type(np.inf))
            for number in (made, value)
        )
        fits = builder.or_(builder.not_(infinite), was)
    if fits is not None:
        with cgutils.if_unlikely(builder, builder.not_(fits)):
            context.call_conv.return_user_exc(builder, OverflowError, (f"field {name!r}: a value is out of range",))
    return context.data_model_manager[field].as_data(builder, made)


def _one_argument(builder: Any, intrinsic_name: str, value: Any) -> Any:
    return builder.call(builder.module.declare_intrinsic(intrinsic_name, [value.type]), [value])


def _call_put(context: Any, builder: Any, kind: Any, ring: Any, source: Any, count: Any) -> Any:
    """Call the kernels' function, and return how many records were stored. Its errors become exceptions here."""
    put = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORD, [_WORD, _WORD, _WORD]), _PUT)
    stored = builder.call(put, [ring, source, count])
    with cgutils.if_unlikely(builder, builder.icmp_signed("<", stored, _WORD(0))):
        for at, (error, text) in enumerate(kind.refusals):
            with builder.if_then(builder.icmp_signed("==", stored, _WORD(NATIVE_ERROR - at))):
                context.call_conv.return_user_exc(builder, error, (text,))
        context.call_conv.return_exc(builder)
    return stored


@intrinsic  # type: ignore[misc, unused-ignore]
def _store(_typing: Any, ring: Any, values: Any) -> Any:
    """Make a record of a tuple of values, and put it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ring, values = signature.args
        record = ring.record
        memory = cgutils.alloca_once(builder, ir.ArrayType(_WORD, -(-record.size // 8)), zfill=True)
        start = builder.ptrtoint(memory, _WORD)
        for at, name in enumerate(record.fields):
            value = builder.extract_value(arguments[1], at)
            made = _checked(context, builder, value, (values.types[at], record.typeof(name)), name)
            place = builder.add(start, _WORD(record.offset(name)))
            builder.store(made, builder.inttoptr(place, made.type.as_pointer()), align=1)
        stored = _call_put(context, builder, ring, arguments[0], start, _WORD(1))
        return builder.icmp_signed("!=", stored, _WORD(0))

    return types.boolean(ring, values), generate


@overload_method(RingType, "put")  # type: ignore[misc, unused-ignore]
def _put(ring: Any, *values: Any) -> Any:
    tuples: Any = types.BaseTuple  # a single tuple holds all values that were given
    kinds = values[0].types if len(values) == 1 and isinstance(values[0], tuples) else values
    fields = list(ring.record.fields)
    if len(kinds) != len(fields):
        raise errors.TypingError(f"put() takes {len(fields)} values, for {', '.join(fields)}: {len(kinds)} were given")
    for name, of in zip(fields, kinds, strict=True):
        field = ring.record.typeof(name)
        if not isinstance(field, (types.Boolean, types.Integer)) and field not in (types.float32, types.float64):
            raise errors.TypingError(f"field {name!r} is {field}, which compiled code puts with put_many() only")
        if not isinstance(types.unliteral(of), (types.Boolean, types.Integer, types.Float)):
            raise errors.TypingError(f"field {name!r} takes a number, not {of}")

    store: Any = _store

    def put(ring: Any, *values: Any) -> Any:
        return store(ring, values)

    return put


@intrinsic  # type: ignore[misc, unused-ignore]
def _store_many(_typing: Any, ring: Any, source: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call_put(context, builder, signature.args[0], *arguments)

    return types.int64(ring, types.int64, types.int64), generate


@overload_method(RingType, "put_many")  # type: ignore[misc, unused-ignore]
def _put_many(ring: Any, records: Any) -> Any:
    if not isinstance(records, types.Array) or records.dtype != ring.record:
        raise errors.TypingError(f"put_many() takes an array of the channel's dtype {ring.record}, not {records}")
    if records.layout != "C":
        raise errors.TypingError("put_many() takes a C-contiguous array in compiled code: numpy.ascontiguousarray")

    store: Any = _store_many

    def put_many(ring: Any, records: Any) -> Any:
        return store(ring, records.ctypes.data, records.size) if records.size > 0 else 0

    return put_many


# --- handlers ---------------------------------------------------------------------------------------------------------


def compile_handler(
    function: Callable[..., object], dtype: np.dtype[Any], arrays: tuple[npt.NDArray[Any], ...]
) -> tuple[int, Any]:
    """The address of a C function, ``int(address, count)``, that calls a handler, and the objects that keep it.
    TypeError.
    """
    record = _record_type(dtype)
    compiled: Any = function if isinstance(function, Dispatcher) else njit(function)
    try:
        kinds = (types.Array(record, 1, "C", readonly=True), *map(typeof, arrays))
        compiled.compile(kinds)
        (made,) = [each for each in compiled.overloads.values() if each.signature.args == kinds]
    except (TypeError, ValueError, errors.NumbaError) as error:
        raise TypeError(f"on_batch cannot be compiled for records of {dtype}: {error}") from error

    @intrinsic  # type: ignore[misc, unused-ignore]
    def enter(_typing: Any, _address: Any, _count: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            address, count = arguments
            given = [_array(context, builder, kinds[0], address, [count], (dtype.itemsize,), dtype.itemsize)]
            for kind, array in zip(kinds[1:], arrays, strict=True):
                at, shape = _WORD(array.ctypes.data), [_WORD(length) for length in array.shape]
                given.append(_array(context, builder, kind, at, shape, array.strides, array.itemsize))
            context.active_code_library.add_linking_library(made.library)
            status, result = context.call_internal_no_propagate(builder, made.fndesc, made.signature, given)
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.raise_error(builder, context.get_python_api(builder), status)
            with builder.if_then(status.is_ok):
                context.nrt.decref(builder, made.signature.return_type, result)
            return builder.select(status.is_ok, _INT(0), _INT(-1))

        return types.intc(types.intp, types.intp), generate

    call: Any = enter

    @cfunc(types.intc(types.intp, types.intp))  # type: ignore[misc, unused-ignore]
    def entry(address: int, count: int) -> Any:
        return call(address, count)

    return entry.address or 0, (entry, compiled, arrays)


def _array(
    context: Any, builder: Any, kind: Any, address: Any, shape: list[Any], strides: tuple[int, ...], itemsize: int
) -> Any:
    """Numba's structure of an array whose memory is kept elsewhere."""
    made = make_array(kind)(context, builder)
    data = builder.inttoptr(address, made.data.type)
    steps = [_WORD(stride) for stride in strides]
    populate_array(made, data=data, shape=shape, strides=steps, itemsize=_WORD(itemsize), meminfo=None)
    return made._getvalue()
