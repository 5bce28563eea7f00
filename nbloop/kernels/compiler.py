"""From plain-Python kernels to one object file. The only file that imports numba; `pack.py` imports it only when the cache has nothing.

Each primitive of atomics.py is lowered to one LLVM instruction, each external of capi.py to a call by name, each helper is made
known to Numba as it stands, and each kernel becomes a `cfunc` with a method's C signature. Their modules are then linked into *one*, everything
but the kernels' entry points is made internal, and it is optimised once more as a whole: dead error paths go, and what remains refers to
nothing but the C-API and libc. Such an object needs llvmlite alone to load: importing numba costs 1 s, loading this 5 ms.

`overload` and not `njit` objects in the sources: a kernel's source must call the very function that runs un-jitted, so Numba is taught what that
function means instead of the source being written for Numba.
"""

# ruff: noqa: PLW0108 - Numba takes a lambda apart; a bare intrinsic is not a function to it
from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from . import atomics, capi, signals, traverse
from .kernel import MANY, SIGNAL, TRAVERSE, Kernel, helpers

_WORD = ir.IntType(64)
_TYPES = {capi.WORD: types.intp, capi.REAL: types.float64, capi.INT: types.intc, capi.VOID: types.void}
_OPTIONS = {"error_model": "numpy"}  # no ZeroDivisionError paths: kernels divide by constants only


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


def _load(ordering: str) -> Any:
    @intrinsic(prefer_literal=False)
    def lowered(_context: Any, address: Any) -> Any:
        def emit(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
            if ordering == "plain":
                return builder.load(_pointer(builder, args[0]))
            return builder.load_atomic(_pointer(builder, args[0]), ordering, 8)

        return types.int64(types.int64), emit

    return lambda address: (lambda address: lowered(address))


def _store(ordering: str) -> Any:
    @intrinsic(prefer_literal=False)
    def lowered(_context: Any, address: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, _s: Any, args: Any) -> Any:
            if ordering == "plain":
                builder.store(args[1], _pointer(builder, args[0]))
            else:
                builder.store_atomic(args[1], _pointer(builder, args[0]), ordering, 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), emit

    return lambda address, value: (lambda address, value: lowered(address, value))


def _modify(operation: str) -> Any:
    @intrinsic(prefer_literal=False)
    def lowered(_context: Any, address: Any, value: Any) -> Any:
        def emit(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
            return builder.atomic_rmw(operation, _pointer(builder, args[0]), args[1], "seq_cst")

        return types.int64(types.int64, types.int64), emit

    return lambda address, value: (lambda address, value: lowered(address, value))


@intrinsic(prefer_literal=False)
def _compare_and_swap(_context: Any, address: Any, expected: Any, value: Any) -> Any:
    def emit(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        pair = builder.cmpxchg(_pointer(builder, args[0]), args[1], args[2], "seq_cst", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@intrinsic
def _pause(_context: Any) -> Any:
    def emit(context: Any, builder: Any, _s: Any, _args: Any) -> Any:
        machine = platform.machine().lower()
        instruction = {"x86_64": "pause", "amd64": "pause", "aarch64": "isb", "arm64": "isb"}.get(machine, "")
        builder.asm(ir.FunctionType(ir.VoidType(), []), instruction, "~{memory}", [], True)
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _monotonic_ns(_context: Any) -> Any:
    def emit(_c: Any, builder: Any, _s: Any, _args: Any) -> Any:
        result = cgutils.alloca_once(builder, _WORD)
        kind = ir.FunctionType(ir.IntType(32), [_WORD.as_pointer()])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "PyTime_MonotonicRaw"), [result])
        return builder.load(result)

    return types.int64(), emit


@intrinsic(prefer_literal=False)
def _visit_object(_context: Any, visit: Any, target: Any, argument: Any) -> Any:
    def emit(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [_WORD, _WORD])  # pointers travel as words
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:]), _WORD)

    return types.int64(types.int64, types.int64, types.int64), emit


@intrinsic
def _signal_words(_context: Any) -> Any:
    def emit(_c: Any, builder: Any, _s: Any, _args: Any) -> Any:
        name = "nbloop_signal_words"
        words = builder.module.globals.get(name)
        if words is None:
            kind = ir.ArrayType(_WORD, signals.WORDS)
            words = ir.GlobalVariable(builder.module, kind, name)
            words.linkage = "linkonce_odr"  # one array, however many of the linked modules mention it
            words.initializer = ir.Constant(kind, [-1, *range(signals.COUNT)])
        return builder.ptrtoint(words, _WORD)

    return types.int64(), emit


def _teach_primitives() -> None:
    overload(traverse.visit_object, jit_options=_OPTIONS)(
        lambda visit, target, argument: (lambda visit, target, argument: _visit_object(visit, target, argument))
    )
    overload(signals.signal_words, jit_options=_OPTIONS)(lambda: (lambda: _signal_words()))
    for name, lowering in {
        "get": _load("plain"),
        "load": _load("acquire"),
        "load_sc": _load("seq_cst"),
        "put": _store("plain"),
        "store": _store("release"),
        "store_sc": _store("seq_cst"),
        "fetch_add": _modify("add"),
        "fetch_or": _modify("or"),
        "exchange": _modify("xchg"),
        "compare_and_swap": lambda address, expected, value: (
            lambda address, expected, value: _compare_and_swap(address, expected, value)
        ),
        "pause": lambda: (lambda: _pause()),
        "monotonic_ns": lambda: (lambda: _monotonic_ns()),
    }.items():
        overload(getattr(atomics, name), inline="never", jit_options=_OPTIONS)(lowering)


def _teach_externals() -> None:
    for declared in capi.externals.values():
        signature = _TYPES[declared.result](*(_TYPES[a] for a in declared.arguments))
        function = types.ExternalFunction(declared.name, signature)
        names = ", ".join(f"a{i}" for i in range(len(declared.arguments)))
        scope: dict[str, Any] = {"function": function}
        exec(f"def lowering({names}):\n    def call({names}):\n        return function({names})\n    return call", scope)
        overload(declared.twin, jit_options=_OPTIONS, strict=False)(scope["lowering"])


def compile_kernels(kernels: list[Kernel], progress: Callable[[str], None]) -> tuple[dict[str, str], bytes]:
    """Compile all kernels: entry symbols by kernel name, and the object file that defines them."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()  # for the inline `pause`
    _teach_primitives()
    _teach_externals()
    for function in helpers:
        register_jitable(**_OPTIONS)(function)
    symbols: dict[str, str] = {}
    whole = llvm.parse_assembly("")
    for kernel in kernels:
        progress(kernel.name)
        signature = types.intp(*(types.intp,) * (3 if kernel.arity == MANY else 2))
        if kernel.arity == SIGNAL:
            signature = types.void(types.intc)
        elif kernel.arity == TRAVERSE:
            signature = types.intc(types.intp, types.intp, types.intp)
        compiled = cfunc(signature, **_OPTIONS)(kernel.function)
        library = compiled._library
        symbols[kernel.name] = compiled._wrapper_name
        whole.link_in(llvm.parse_assembly(library.get_llvm_str()))
    entries = set(symbols.values())
    for function in whole.functions:
        if not function.is_declaration and function.name not in entries:
            function.linkage = "internal"
    for variable in whole.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    machine = target_machine()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(whole, builder)
    undefined = {f.name for f in whole.functions if f.is_declaration and not f.name.startswith("llvm.")}
    unknown = undefined - set(capi.externals)
    if unknown:
        raise RuntimeError(f"kernels refer to symbols that capi.py does not declare: {sorted(unknown)}")
    return symbols, machine.emit_object(whole)


def target_machine() -> Any:
    """This machine's CPU with all its features, for code that is loaded where it was compiled."""
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True, codemodel="jitdefault"
    )
