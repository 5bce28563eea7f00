"""From plain-Python kernels to one shared library. Only this file and `user_code.py` import numba; `object_cache.py`
imports this file only when there is no library yet.

A primitive of atomics.py becomes one LLVM instruction, an external of capi.py a call by name. Numba compiles helpers as
they are, and each kernel as a `cfunc` with its C signature. Their modules are linked into *one*, in which only the
kernels' entry points stay visible. That module is optimised as a whole, once for each processor: dead error paths go,
and the rest refers only to the C-API and libc. linker.py makes the object a library that the system's loader takes.
Importing numba takes 1 s, loading the library 1 ms.

The sources are not written for Numba. Numba learns what their functions mean: `infer_global` and `lower_builtin` on the
twins, `register_jitable` on the helpers. So a compiled kernel calls the same functions as one that is not compiled.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import cfunc, config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin, register_jitable

from ..base import atomics, capi
from ..base.kernel import KEYWORDS, MANY, NATIVE, SIGNAL, TRAVERSE, Kernel, attributes, helpers
from ..channels import delivery
from ..methods import asyncio_methods, signal_handler
from ..observe import allocations
from ..state import traverse
from .linker import link

_WORD = ir.IntType(64)
_TYPES: dict[str, Any] = {capi.WORD: types.int64, capi.REAL: types.float64, capi.INT: types.intc, capi.VOID: types.void}
_OPTIONS: Any = {"error_model": "numpy"}  # no ZeroDivisionError paths: kernels divide by constants only
_INNER: Any = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # only other kernels call it

type Emit = Callable[[Any, list[Any]], Any]  # (builder, argument values) -> result value, or None for void


def _teach(function: Callable[..., Any], result: Any, arguments: list[Any], emit: Emit) -> None:
    """Have Numba compile calls of a Python function to what `emit` makes."""
    typed: Any = infer_global
    lowered: Any = lower_builtin

    @typed(function)
    class Meaning(AbstractTemplate):  # type: ignore[misc, unused-ignore]
        def generic(self, _arguments: Any, _keywords: Any) -> Any:
            return result(*arguments)

    @lowered(function, *arguments)
    def lowering(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        value = emit(builder, list(values))
        return context.get_dummy_value() if result == types.void else value


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


def _compare_and_swap(builder: Any, values: list[Any]) -> Any:
    pair = builder.cmpxchg(_pointer(builder, values[0]), values[1], values[2], "seq_cst", "acquire")
    return builder.extract_value(pair, 1)


def _pause(builder: Any, _values: list[Any]) -> None:
    number = ir.IntType(32)
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
    elif machine in ("aarch64", "arm64"):
        kind = ir.FunctionType(ir.VoidType(), [number])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.isb"), [number(15)])


def _first_bit(builder: Any, values: list[Any]) -> Any:
    return builder.cttz(values[0], ir.IntType(1)(1))


def _last_bit(builder: Any, values: list[Any]) -> Any:
    return builder.sub(_WORD(63), builder.ctlz(values[0], ir.IntType(1)(1)))


def _before(builder: Any, values: list[Any]) -> Any:
    return builder.icmp_signed("<", builder.sub(*values), _WORD(0))  # Numba's own `sub` says that it does not wrap


def _prefetch(builder: Any, values: list[Any]) -> None:
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [_WORD.as_pointer(), number, number, number])
    hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(hint, [_pointer(builder, values[0]), number(1), number(3), number(1)])  # a write, all caches, data


def _monotonic_ns(builder: Any, _values: list[Any]) -> Any:
    result = cgutils.alloca_once(builder, _WORD)
    kind = ir.FunctionType(ir.IntType(32), [_WORD.as_pointer()])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, "PyTime_MonotonicRaw"), [result])
    return builder.load(result)


def _leading_zeros(builder: Any, values: list[Any]) -> Any:
    return builder.ctlz(values[0], ir.Constant(ir.IntType(1), 1))


def _ticks(builder: Any, values: list[Any]) -> Any:
    if platform.machine().lower() not in ("x86_64", "amd64"):  # elsewhere the counter is privileged, or slow
        return _monotonic_ns(builder, values)
    kind = ir.FunctionType(_WORD, [])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])


def _call_for_int(builder: Any, values: list[Any]) -> Any:
    kind = ir.FunctionType(ir.IntType(32), [_WORD, _WORD])  # pointers travel as words
    return builder.sext(builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:]), _WORD)


def _get_half(builder: Any, values: list[Any]) -> Any:
    half = builder.load(builder.inttoptr(values[0], ir.IntType(32).as_pointer()), align=4)
    return builder.zext(half, _WORD)


def _put_half(builder: Any, values: list[Any]) -> None:
    half = ir.IntType(32)
    builder.store(builder.trunc(values[1], half), builder.inttoptr(values[0], half.as_pointer()), align=4)


def _write(bits: int) -> Emit:
    def writes(builder: Any, values: list[Any]) -> None:
        kind = ir.IntType(bits)
        value = values[1] if bits == 64 else builder.trunc(values[1], kind)
        builder.store(value, builder.inttoptr(values[0], kind.as_pointer()), align=1)

    return writes


def _double_bits(builder: Any, values: list[Any]) -> Any:
    return builder.bitcast(builder.sitofp(values[0], ir.DoubleType()), _WORD)


def _single_bits(builder: Any, values: list[Any]) -> Any:
    single = builder.fptrunc(builder.bitcast(values[0], ir.DoubleType()), ir.FloatType())
    return builder.zext(builder.bitcast(single, ir.IntType(32)), _WORD)


def _call_for_word(builder: Any, values: list[Any]) -> Any:
    kind = ir.FunctionType(_WORD, [_WORD] * (len(values) - 1))  # pointers travel as words
    return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])


def _own_words(name: str, initial: tuple[int, ...]) -> Emit:
    """The address of an array in the compiled object itself, for functions that have no ``self``."""

    def address(builder: Any, _values: list[Any]) -> Any:
        words = builder.module.globals.get(name)
        if words is None:
            kind = ir.ArrayType(_WORD, len(initial))
            words = ir.GlobalVariable(builder.module, kind, name)
            words.linkage = "linkonce_odr"  # one array, however many of the linked modules mention it
            words.initializer = ir.Constant(kind, list(initial))
        return builder.ptrtoint(words, _WORD)

    return address


def _teach_primitives() -> None:
    word = types.int64
    for name, ordering in {"get": None, "load": "acquire", "load_sc": "seq_cst"}.items():

        def loads(builder: Any, values: list[Any], ordering: str | None = ordering) -> Any:
            at = _pointer(builder, values[0])
            return builder.load(at) if ordering is None else builder.load_atomic(at, ordering, 8)

        _teach(getattr(atomics, name), word, [word], loads)
    for name, ordering in {"put": None, "store": "release", "store_sc": "seq_cst"}.items():

        def stores(builder: Any, values: list[Any], ordering: str | None = ordering) -> None:
            at = _pointer(builder, values[0])
            if ordering is None:
                builder.store(values[1], at)
            else:
                builder.store_atomic(values[1], at, ordering, 8)

        _teach(getattr(atomics, name), types.void, [word, word], stores)
    for name, operation in {"fetch_add": "add", "exchange": "xchg"}.items():

        def modifies(builder: Any, values: list[Any], operation: str = operation) -> Any:
            return builder.atomic_rmw(operation, _pointer(builder, values[0]), values[1], "seq_cst")

        _teach(getattr(atomics, name), word, [word, word], modifies)
    _teach(atomics.compare_and_swap, types.boolean, [word, word, word], _compare_and_swap)
    _teach(atomics.get_half, word, [word], _get_half)
    _teach(atomics.put_half, types.void, [word, word], _put_half)
    for bits in (8, 16, 32, 64):
        _teach(getattr(atomics, f"write_{bits}"), types.void, [word, word], _write(bits))
    _teach(atomics.double_bits, word, [word], _double_bits)
    _teach(atomics.single_bits, word, [word], _single_bits)
    _teach(atomics.first_bit, word, [word], _first_bit)
    _teach(atomics.last_bit, word, [word], _last_bit)
    _teach(atomics.before, types.boolean, [word, word], _before)
    _teach(atomics.prefetch, types.void, [word], _prefetch)
    _teach(atomics.pause, types.void, [], _pause)
    _teach(atomics.monotonic_ns, word, [], _monotonic_ns)
    _teach(atomics.leading_zeros, word, [word], _leading_zeros)
    _teach(atomics.ticks, word, [], _ticks)
    _teach(traverse.visit_object, word, [word, word, word], _call_for_int)
    _teach(delivery.call_entry, word, [word, word, word], _call_for_int)
    _teach(signal_handler.signal_words, word, [], _own_words("nbloop_signal_words", signal_handler.INITIAL))
    _teach(asyncio_methods.aio_shared_word, word, [], _own_words("nbloop_aio_shared_word", (0,)))
    _teach(allocations.allocation_word, word, [], _own_words("nbloop_allocation_word", (0,)))
    _teach(allocations.call_two, word, [word] * 3, _call_for_word)
    _teach(allocations.call_three, word, [word] * 4, _call_for_word)


def _teach_externals() -> None:
    codes: dict[str, Any] = {
        capi.WORD: _WORD,
        capi.REAL: ir.DoubleType(),
        capi.INT: ir.IntType(32),
        capi.VOID: ir.VoidType(),
    }
    for declared in capi.externals.values():
        # Numba loads what it compiles, although that code never runs, and its loader misses some of them on Windows.
        llvm.add_symbol(declared.name, declared.address() or capi.externals["PyErr_Clear"].address())
        kind = ir.FunctionType(codes[declared.result], [codes[a] for a in declared.arguments])

        def calls(builder: Any, values: list[Any], kind: Any = kind, name: str = declared.name) -> Any:
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

        _teach(declared.twin, _TYPES[declared.result], [_TYPES[a] for a in declared.arguments], calls)


def compile_kernels(kernels: list[Kernel], processors: list[tuple[str, str]]) -> list[bytes]:
    """One library of all kernels for each processor, which is a name and features in LLVM's terms. Call it once in a
    process, because it teaches Numba what the primitives mean.
    """
    symbols, whole = link_kernels(kernels)
    libraries = []
    for cpu, features in processors:
        module = whole.clone()
        machine = optimise(module, cpu, features)
        libraries.append(link(machine.emit_object(module), symbols, capi.externals))
    return libraries


def _mangled(function: FunctionType) -> str:
    """The beginning of the symbols that Numba gives a function: its qualified name, mangled by the Itanium C++ ABI."""
    parts = [*function.__module__.split("."), function.__name__]
    return "_ZN" + "".join(f"{len(part)}{part}" for part in parts)


def link_kernels(kernels: list[Kernel]) -> tuple[dict[str, str], Any]:
    """The entry symbols by the kernels' names, and the module that all kernels are linked into, not optimised yet. Call
    it once in a process.

    Numba does not optimise the parts, because the whole is optimised later. That takes half of the time, and leaves
    inlining to a moment at which `inlined` and `apart` are known.
    """
    settings: Any = config
    level, settings.OPT = settings.OPT, settings._OptLevel(0)
    try:
        return _linked(kernels)
    finally:
        settings.OPT = level


def _linked(kernels: list[Kernel]) -> tuple[dict[str, str], Any]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    _teach_primitives()
    _teach_externals()
    for function in helpers:
        register_jitable(**_INNER)(function)
    symbols: dict[str, str] = {}
    whole = llvm.parse_assembly("")
    for kernel in kernels:
        signature = types.intp(*(types.intp,) * {MANY: 3, KEYWORDS: 4, NATIVE: 3}.get(kernel.arity, 2))
        if kernel.arity == SIGNAL:
            signature = types.void(types.intc)
        elif kernel.arity == TRAVERSE:
            signature = types.intc(types.intp, types.intp, types.intp)
        compiled: Any = cfunc(signature, **_OPTIONS)(kernel.function)
        symbols[kernel.name] = compiled._wrapper_name
        # In each module Numba marks one call `noinline`, of the function by its entry, for the sake of its tracebacks.
        text = compiled._library.get_llvm_str().replace("{ noinline }", "{ nounwind }")
        whole.link_in(llvm.parse_assembly(text))
    entries = set(symbols.values())
    wanted = {_mangled(function): names for function, names in attributes.items()}
    wanted |= {_mangled(kernel.function): ("alwaysinline",) for kernel in kernels}  # into the entry of its C signature
    for function in whole.functions:
        if not function.is_declaration and function.name not in entries:
            function.linkage = "internal"
            for name in wanted.get(function.name.partition("B")[0], ()):  # Numba's version of the function follows B
                function.add_function_attribute(name)
    for variable in whole.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    for function in whole.functions:
        if function.is_declaration and not function.name.startswith("llvm."):
            function.add_function_attribute("nonlazybind")  # call it through the table, which the loader fills
    return symbols, whole


def optimise(whole: Any, cpu: str, features: str, system: str | None = None) -> Any:
    """Optimise a linked module for a processor of `system`, an LLVM triple that is this system's by default. Returns
    LLVM's target machine, which emits ELF objects on all systems.
    """
    triple = system or llvm.get_default_triple() + ("-elf" if sys.platform in ("darwin", "win32") else "")
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="default"
    )
    whole.triple, whole.data_layout = machine.triple, str(machine.target_data)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(whole, builder)
    left = [f.name for f in whole.functions if any(b"alwaysinline" in words for words in f.attributes)]
    if left:
        raise RuntimeError(f"LLVM did not inline these, which kernels require: {left}")
    return machine
