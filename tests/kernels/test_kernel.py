"""kernel.py: what a bound kernel looks like to Python, compiled or not."""

from __future__ import annotations

import gc
import inspect
import math
import pydoc
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import nbloop
from nbloop.kernels.base import atomics
from nbloop.kernels.base import kernel as kernel_module
from nbloop.kernels.base.kernel import MANY, NOARGS, ONE, TwinMethod, kernel
from nbloop.kernels.build import object_cache
from nbloop.kernels.methods import lifetime, timer_methods
from nbloop.producer import Producer

FACES = {
    name: face
    for kind in nbloop.Loop.__mro__
    for name, face in vars(kind).items()
    if isinstance(face, kernel_module._Face)
}
compiled_only = pytest.mark.skipif(object_cache.status.mode != "compiled", reason="kernels run as plain Python")


@pytest.fixture
def loop() -> Any:
    made = nbloop.Loop()
    yield made
    made.close()


def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


@pytest.mark.parametrize("name", sorted(FACES))
def test_looks_like_the_documented_method(loop: nbloop.Loop, name: str) -> None:
    """Name, signature and docstring are those of the method that documents it; the class shows that method itself."""
    documented = getattr(nbloop.Loop, name)
    method = getattr(loop, name)
    assert inspect.isfunction(documented)
    assert method.__name__ == name
    assert shape(method) == shape(documented)[1:]
    assert inspect.getdoc(method) == inspect.getdoc(documented)
    assert method.__self__ is loop._state


def test_help(loop: nbloop.Loop) -> None:
    """`help()` shows the signature and the text, of the class and of an instance."""
    for method in (nbloop.Loop.cancel_timer, loop.cancel_timer):
        text = pydoc.plain(pydoc.render_doc(method))
        assert "id" in text
        assert "The answer is final" in text
    assert str(inspect.signature(loop.cancel_timer)).startswith("(id")


def test_a_subclass_can_extend_a_method() -> None:
    """Also from the second call on: the built-in that `super()` finds must not take the override's place."""

    class Counting(nbloop.Loop):
        count = 0

        def submit(self, callback: Any, /, *args: object) -> None:
            self.count += 1
            super().submit(callback, *args)

    loop = Counting(auto_exit=True)
    ran: list[int] = []
    for number in range(3):
        loop.submit(ran.append, number)
    loop.run()
    assert (loop.count, ran) == (3, [0, 1, 2])


@compiled_only
def test_is_a_builtin(loop: nbloop.Loop) -> None:
    """No Python frame, no descriptor: looked up once, then an attribute of the instance."""
    assert inspect.isbuiltin(loop.submit)
    assert loop.__dict__["submit"] is loop.submit
    assert inspect.isbuiltin(loop.producer().submit)
    assert isinstance(vars(Producer)["submit"], kernel_module._Face)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("stop", (1,)), ("cancel_timer", ()), ("cancel_timer", (1, 2)), ("submit_many", ()), ("now", (None,))],
)
@pytest.mark.parametrize("twin", [False, True])
def test_wrong_arity(loop: nbloop.Loop, name: str, arguments: tuple[object, ...], twin: bool) -> None:
    method = TwinMethod(FACES[name]._of, loop._state, FACES[name].__wrapped__) if twin else getattr(loop, name)
    with pytest.raises(TypeError):
        method(*arguments)
    with pytest.raises(TypeError):
        method(nonsense=1)


def outcome(call: Callable[[], Any]) -> Any:
    """What came of a call, in a form that can be compared."""
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def script(method: Callable[[str], Callable[..., Any]], loop: nbloop.Loop) -> list[Any]:
    """Calls of every kind, good and bad, and what came of each."""
    ran: list[Any] = []

    def call(name: str, *arguments: Any) -> Any:
        results.append((name, outcome(lambda: method(name)(*arguments))))
        return results[-1][1]

    results: list[Any] = []
    call("submit", ran.append, 1)
    call("submit", ran.append)  # raises when it runs
    call("submit")
    call("submit", 3)
    call("submit_many", [ran.clear, list])
    call("submit_many", iter([]))
    call("submit_many", [list, 3])
    call("submit_many", 3)
    call("schedule_microtask", ran.append, "microtask")
    call("schedule_next_tick", ran.append, "tick")
    call("schedule_close", ran.append, "close")
    call("submit_internal", ran.append, "internal")
    timer = call("schedule_timer", 0, ran.append, "timer")
    far = call("schedule_timer", 3600, ran.append, "never")
    interval = call("schedule_interval", 0.0, ran.append, "interval")
    immediate = call("schedule_immediate", ran.append, "immediate")
    for delay in (math.nan, math.inf, 1e300, "soon", None):
        call("schedule_timer", delay, list)
    call("schedule_timer", 1)
    call("schedule_timer", 1, None)
    for identifier in (far, far, 0, -1, 1 << 80, "1", 1.5):
        call("cancel_timer", identifier)
    call("cancel_timers", [timer + 1, far])
    call("cancel_timers", [timer, "x"])
    call("cancel_timers", 5)
    for name in ("ref_timer", "unref_timer"):
        call(name, interval)
        call(name, far)
    call("cancel_immediate", immediate)
    call("cancel_immediate", immediate)
    call("cancel_immediate", "x")
    call("alive")
    call("wake")
    call("is_loop_thread")
    loop.stop()
    loop.run()
    call("cancel_timer", interval)
    loop.stop()
    loop.run()
    call("alive")
    loop.shutdown()
    call("submit", list)
    call("submit_many", [list])
    call("schedule_timer", 1, list)
    call("schedule_immediate", list)
    call("cancel_timer", timer)
    results.append(ran)
    return results


@compiled_only
def test_plain_python_and_builtin_do_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Same results, same exceptions, same messages, for every kind of call."""
    loops = [nbloop.Loop(name="same") for _ in range(2)]
    results = []
    for loop, twin in zip(loops, (False, True), strict=True):

        def method(name: str, loop: nbloop.Loop = loop, twin: bool = twin) -> Callable[..., Any]:
            face = FACES[name]
            return TwinMethod(face._of, loop._state, face.__wrapped__) if twin else getattr(loop, name)

        results.append(script(method, loop))
    assert [record.message for record in caplog.records], "the callback that raised was not reported"
    for builtin, plain in zip(*results, strict=True):
        assert builtin == plain


@compiled_only
@pytest.mark.parametrize(
    ("verb", "arguments", "instruction"),
    [
        ("get", 1, r"= load i64, ptr "),
        ("load", 1, r"= load atomic i64, ptr .* acquire, align 8"),
        ("load_sc", 1, r"= load atomic i64, ptr .* seq_cst, align 8"),
        ("put", 2, r"  store i64 %arg.*, ptr "),
        ("store", 2, r"store atomic i64 .* release, align 8"),
        ("store_sc", 2, r"store atomic i64 .* seq_cst, align 8"),
        ("fetch_add", 2, r"atomicrmw add ptr .* seq_cst"),
        ("exchange", 2, r"atomicrmw xchg ptr .* seq_cst"),
        ("compare_and_swap", 3, r"cmpxchg ptr .* seq_cst acquire"),
    ],
)
def test_memory_orders(verb: str, arguments: int, instruction: str) -> None:
    """Each verb is the one instruction that its docstring says: what every protocol and its proof rest on."""
    numba = pytest.importorskip("numba")  # there is none where a wheel is tested
    from nbloop.kernels.build import compiler

    compiler._teach_primitives()
    names = ", ".join("abc"[:arguments])
    caller = eval(f"lambda {names}: verb({names})", {"verb": getattr(atomics, verb)})
    compiled = numba.njit([(numba.int64,) * arguments], no_cpython_wrapper=True)(caller)
    (text,) = compiled.inspect_llvm().values()
    assert re.search(instruction, text), text


def test_method_keeps_the_memory_alive() -> None:
    """`self` is the state: a method taken from a loop can be called when the loop is gone, and then the state goes
    with it.
    """
    loop = nbloop.Loop()
    submit, cancel, state = loop.submit, loop.cancel_timer, weakref.ref(loop._state)
    identifier = loop.schedule_timer(3600, list)
    del loop
    gc.collect()
    assert state() is not None
    with pytest.raises(nbloop.LoopTerminatedError):
        submit(list)
    assert cancel(identifier) is False
    del submit, cancel
    gc.collect()
    assert state() is None


@compiled_only
def test_a_binding_of_the_kernels_own_needs_no_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finaliser may be the first to bind one, when little else works any more."""

    def inspected(*_arguments: object) -> None:
        raise AssertionError("inspect.signature was called")

    memory = nbloop.Loop()._state
    fresh = kernel_module.Kernel(lifetime.alive.function, lifetime.alive.arity)
    fresh.address = lifetime.alive.address
    monkeypatch.setattr(inspect, "signature", inspected)
    assert fresh.bind(memory)() is False


def test_forgotten_loop_closes_its_handles() -> None:
    """Returned means it will run: a handle's method that has outlived the loop refuses."""
    loop = nbloop.Loop()
    submit = loop.producer().submit
    del loop
    gc.collect()
    with pytest.raises(nbloop.LoopTerminatedError):
        submit(list)


def test_handle_keeps_the_loop_state_alive() -> None:
    """A producer's method works on the handle's words and, through them, on the loop's; both go with it."""
    loop = nbloop.Loop()
    submit, state = loop.producer().submit, weakref.ref(loop._state)
    loop.submit(list)
    del loop
    gc.collect()
    assert state() is not None
    del submit
    gc.collect()
    assert state() is None


@pytest.mark.parametrize(
    "last_words",
    [
        "loop.submit(lambda: loop)",
        "loop.schedule_timer(100, lambda: loop)",
        "loop.schedule_immediate(lambda: loop)",
        "handle = loop.producer(); handle.submit(lambda: loop)",
        "submit = loop.producer().submit; submit(lambda: (submit, loop))",
        "submit = loop.submit; del loop",
        "loop.start(); loop.submit(lambda: loop)",
        "class C: pass\nc = C(); c.me, c.loop = c, loop; loop.c = c; loop.submit(lambda: c); del c, loop",
    ],
)
def test_interpreter_ends_with_work_queued(last_words: str) -> None:
    """At the interpreter's end the collector still visits states whose tables it has already freed."""
    program = f"import nbloop\nloop = nbloop.Loop()\n{last_words}\n"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_declaring(monkeypatch: pytest.MonkeyPatch) -> None:
    """A declared kernel is known by its name, which is taken then; not compiled, it runs as it stands."""
    monkeypatch.setattr(kernel_module, "kernels", {})

    @kernel(MANY)
    def count_arguments(self: int, arguments: int, count: int) -> int:
        """How many arguments there were."""
        return kernel_module.capi.PyLong_FromLongLong(count)

    assert kernel_module.kernels == {"count_arguments": count_arguments}
    assert (count_arguments.arity, count_arguments.address) == (MANY, 0)

    def how_many(self: Any, /, *things: object) -> int:
        """Count them."""
        return 0

    loop = nbloop.Loop()
    bound = count_arguments.bind(loop._state, like=how_many)
    assert [bound(), bound(1), bound(1, 2, 3)] == [0, 1, 3]
    assert bound.__name__ == "how_many"
    assert str(inspect.signature(bound)).startswith("(*things")
    loop.close()
    with pytest.raises(AssertionError):
        kernel(NOARGS)(count_arguments.function)


def test_all_kernels_are_documented_and_have_an_address() -> None:
    for name, declared in kernel_module.kernels.items():
        assert declared.name == name
        assert declared.__doc__
        assert bool(declared.address) == (object_cache.status.mode == "compiled")
    assert kernel_module.kernels["cancel_timer"] is timer_methods.cancel_timer
    assert timer_methods.cancel_timer.arity == ONE
