"""Kernels that are built-in methods: how to declare and bind one.

Problem: every layer between ``loop.submit(f)`` and the two atomic operations it needs costs more than they do (a
Numba dispatcher call 110-175 ns, ctypes 450-500 ns, an empty built-in 22 ns on 3.13t). Idea: a compiled function with
the C signature of a CPython method, put into a ``PyMethodDef``, *is* a built-in method. Its ``self`` is the numpy array
that holds the state, so the method keeps its memory alive. A kernel is declared like a function::

    @kernel(ONE)
    def push(self, callback):
        base = data(self)
        ...

and one call, ``push.bind(state, like=documented_function)``, binds it to a state. The sources are plain Python over
integer addresses: ``object_cache.py`` runs them compiled; with ``NUMBA_DISABLE_JIT=1`` the same functions run as they
are.

A kernel returns a new reference, or 0 with an exception set (by a Python function that it called for this purpose). It
never allocates, never raises in Numba's sense, and never blocks while attached: it detaches its thread state before it
may wait.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from . import capi
from .atomics import get
from .interpreter import ARRAY_DATA, MethodDef, keep_for_ever
from .interpreter import function as c_function

NOARGS, ONE, MANY = 0x0004, 0x0008, 0x0080  # METH_NOARGS, METH_O, METH_FASTCALL
KEYWORDS = 0x0082  # METH_FASTCALL | METH_KEYWORDS
SIGNAL = 0  # not a method: a C signal handler, void(int)
TRAVERSE = -1  # not a method: a type's tp_traverse, int(PyObject *, visitproc, void *)
NATIVE = -2  # not a method: the user's compiled code calls it, attached or not, int64(int64, int64, int64)

helpers: list[FunctionType] = []  # functions that kernels call, in order of declaration
attributes: dict[FunctionType, tuple[str, ...]] = {}  # LLVM's function attributes of helpers
kernels: dict[str, Kernel] = {}


def helper[F: Callable[..., Any]](function: F) -> F:
    """Declare a function that kernels may call; it is compiled into its callers. Returns the function itself."""
    assert isinstance(function, FunctionType)
    helpers.append(function)
    return function


def inlined[F: Callable[..., Any]](function: F) -> F:
    """Declare a `helper` that is copied into each caller: for the path that every submit and every callback takes.

    LLVM decides by size, and the code for rare cases counts towards it. A call costs more than its jump, because
    results travel through memory: with these marks a submit costs 1.4 E instead of 1.85, and a task of `submit_many`
    9 ns instead of 17.
    """
    assert isinstance(function, FunctionType)
    attributes[function] = ("alwaysinline",)
    return helper(function)


def apart[F: Callable[..., Any]](function: F) -> F:
    """Declare a `helper` that is never copied into its callers: this keeps rare cases out of the hot path."""
    assert isinstance(function, FunctionType)
    attributes[function] = ("noinline", "cold")
    return helper(function)


def kernel(arity: int) -> Callable[[Callable[..., int | None]], Kernel]:
    """Declare a built-in method: ``(self, _)`` for NOARGS, ``(self, argument)`` for ONE, ``(self, array, count)`` for
    MANY, ``(self, array, count, names)`` for KEYWORDS, where `names` is a tuple or 0, and the values of keyword
    arguments follow the `count` positional ones.
    """

    def declare(function: Callable[..., int | None]) -> Kernel:
        assert isinstance(function, FunctionType)
        assert function.__name__ not in kernels, function.__name__
        declared = kernels[function.__name__] = Kernel(function, arity)
        return declared

    return declare


@inlined
def data(self: int) -> int:
    """The address of the first element of the array object at `self`."""
    return get(self + ARRAY_DATA)


NO_STATE = np.empty(0, np.int64)  # of kernels that use none
_new_descriptor = c_function("PyDescr_NewMethod", ctypes.py_object, ctypes.py_object, ctypes.c_void_p)


class Kernel:
    """A declared kernel. `address` is 0 until the compiled object is loaded, and stays 0 when kernels run un-jitted."""

    def __init__(self, function: FunctionType, arity: int) -> None:
        self.function = function
        self.name = function.__name__
        self.arity = arity
        self.address = 0
        self.__doc__ = function.__doc__
        self._plain: Any = None  # the descriptor of `bind` without `like`, once it is made
        self._faces: dict[Callable[..., Any], Any] = {}  # the others, by the function that they present

    def bind(self, state: Any, like: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """A built-in method over `state`, with the name, signature and docstring of `like`; without `like`, for
        internal use.

        The method holds a reference to `state`, an array whose memory the kernel works on. Thread-safe.
        """
        if not self.address:
            return TwinMethod(self, state, like or self.function)
        # A descriptor makes built-in methods in C, and does so in a fifth of the time of `PyCFunction_NewEx` by ctypes.
        descriptor = self._plain if like is None else self._faces.get(like)
        if descriptor is None:
            # Of arrays, so that `bind` refuses whatever else a program has written in the place of a state.
            descriptor = _new_descriptor(np.ndarray, self._definition(like))
            if like is None:
                self._plain = descriptor
            else:
                descriptor = self._faces.setdefault(like, descriptor)
        return descriptor.__get__(state)

    def descriptor(self, kind: type, like: Callable[..., Any]) -> Any:
        """A method for instances of `kind`, which the kernel receives as its ``self``, with the name, signature and
        docstring of `like`. Thread-safe.
        """
        if self.address:
            return _new_descriptor(kind, self._definition(like))

        @functools.wraps(like)
        def method(instance: Any, *arguments: object, **keywords: object) -> Any:
            check_instance(instance, kind, like)
            return TwinMethod(self, instance, like)(*arguments, **keywords)

        return method

    def _definition(self, like: Callable[..., Any] | None) -> int:
        """Without `like` there is no docstring: finalisers bind kernels, and must not depend on `inspect`."""
        name, doc = (like.__name__, _doc(like).encode()) if like else (self.name, None)
        return ctypes.addressof(keep_for_ever(MethodDef(name.encode(), self.address, self.arity, doc)))


def _doc(like: Callable[..., Any]) -> str:
    """CPython's form of a built-in's docstring: ``name($self, args, /)``, a rule, the text."""
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(like).parameters.values()]
    parameters[0] = parameters[0].replace(name="self")
    text = str(inspect.Signature(parameters)).replace("(self", "($self", 1)
    return f"{like.__name__}{text}\n--\n\n{textwrap.dedent(like.__doc__ or '').strip()}"


def bound[F: Callable[..., Any]](of: Kernel, captured: Kernel | None = None) -> Callable[[F], F]:
    """Make a documented method of a class the public face of kernel `of`; of `captured`, if there is one, for instances
    whose ``_captures`` is true.

    On the class it is a function with that signature and docstring, to be called with an instance. An instance, which
    must have ``_state``, gets a built-in in its place on first use. Like ``functools.cached_property`` it is a non-data
    descriptor: later look-ups find the built-in itself.
    """

    def face(function: F) -> F:
        return _Face(of, captured, function)  # type: ignore[return-value]

    return face


def check_instance(instance: object, owner: type, function: Callable[..., Any]) -> None:
    """Raise TypeError for an instance of another class, as a built-in's descriptor does."""
    if not isinstance(instance, owner):
        raise TypeError(
            f"descriptor {function.__name__!r} for {owner.__name__!r} objects doesn't apply to a"
            f" {type(instance).__name__!r} object"
        )


class _Face:
    def __init__(self, of: Kernel, captured: Kernel | None, function: Callable[..., Any]) -> None:
        self._of = of
        self._captured = captured
        self._function = function
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function

        @functools.wraps(function)
        def unbound(instance: Any, /, *args: Any, **keywords: Any) -> Any:
            check_instance(instance, self._owner, function)  # a foreign instance's words would be misread
            return self._kernel(instance).bind(instance._state, function)(*args, **keywords)

        self._owner: type = object
        self._unbound = unbound

    def __set_name__(self, owner: type, _name: str) -> None:
        self._owner = owner

    def _kernel(self, instance: Any) -> Kernel:
        return self._captured if self._captured is not None and instance._captures else self._of

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self._unbound
        method = self._kernel(instance).bind(instance._state, self._function)
        if getattr(type(instance), self.__name__) is not self._unbound:
            return method  # not cached: a subclass overrides this name, and look-ups must keep finding its method
        return instance.__dict__.setdefault(self.__name__, method)


def faces(kind: type) -> list[str]:
    """The names of a class's methods that become built-ins on its instances."""
    return [name for each in kind.__mro__ for name, value in vars(each).items() if isinstance(value, _Face)]


def method[F: Callable[..., Any]](of: Kernel) -> Callable[[F], F]:
    """Make a documented method of a class the public face of kernel `of`, whose ``self`` is then the *instance*: the
    kernel works on the words of its ``__slots__``. No state, no bound method, no frame.
    """

    def face(function: F) -> F:
        return _Method(of, function)  # type: ignore[return-value]

    return face


class _Method:
    """A placeholder in a class's body for the descriptor, which can be made only once the class exists."""

    def __init__(self, of: Kernel, function: Callable[..., Any]) -> None:
        self._of = of
        self._function = function

    def __set_name__(self, owner: type, name: str) -> None:
        setattr(owner, name, self._of.descriptor(owner, self._function))


class TwinMethod:
    """A kernel bound to a state that runs as plain Python, with the same arguments, results and exceptions."""

    def __init__(self, of: Kernel, state: Any, like: Callable[..., Any]) -> None:
        self._kernel = of
        self.__self__ = state
        self.__name__ = like.__name__
        self.__doc__ = like.__doc__
        parameters = list(inspect.signature(like).parameters.values())
        self.__signature__ = inspect.Signature(parameters[1:])

    def __call__(self, *arguments: object, **keywords: object) -> Any:
        of, self_address = self._kernel, id(self.__self__)
        expected = {NOARGS: 0, ONE: 1}.get(of.arity, len(arguments))
        if len(arguments) != expected or (keywords and of.arity != KEYWORDS):
            raise TypeError(f"{self.__name__}() takes {expected} arguments ({len(arguments)} given)")
        if of.arity in (MANY, KEYWORDS):
            values = (*arguments, *keywords.values())
            # From lists: a tuple made from a generator is resized, which fails while `gc.get_objects` holds it.
            array = (ctypes.c_ssize_t * max(1, len(values)))(*[id(a) for a in values])
            names = (tuple(keywords),) if of.arity == KEYWORDS else ()
            ends = [id(n) if n else 0 for n in names]
            result = of.function(self_address, ctypes.addressof(array), len(arguments), *ends)
        else:
            result = of.function(self_address, id(arguments[0]) if arguments else 0)
        if result:
            value = ctypes.cast(result, ctypes.py_object).value
            capi.Py_DecRef(result)
            return value
        error, capi.pending.error = capi.pending.error, None
        assert error is not None, f"{self.__name__} failed without an exception"
        raise error
