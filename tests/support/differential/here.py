"""The interpreter of programs over nbloop's JavaScript view. The names are those of ``node.mjs``.

`await` is written ``await js.resolve(value)``, which is what ECMAScript does: in Python only awaitables can be awaited.
A reason that is not an exception is raised wrapped in a `RejectedError`, and unwrapped here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbloop import Loop, LoopState
from nbloop.js import JS, AggregateError, Promise, RejectedError

from .programs import Tree

MOST_CALLS = 60


class Thrown(Exception):
    """What programs throw."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(program: Tree) -> list[str]:
    """The log of a program, run to its end on a loop of its own."""
    failures: list[BaseException] = []
    loop = Loop(auto_exit=True, on_error=lambda error, _context: failures.append(error))
    interpreter = _Interpreter(loop)
    loop.submit(interpreter.task, program, None)
    loop.run()
    if failures:
        raise failures[0]
    return interpreter.events


def describe(value: Any) -> str:
    """As `describe` in ``node.mjs``."""
    match value:
        case None:
            return "undefined"
        case list():
            return f"[{', '.join(map(describe, value))}]"
        case Thrown():
            return f"E{value.number}"
        case RejectedError():
            return describe(value.reason)
        case AggregateError():
            return f"AggregateError{describe(value.reasons)}"
        case BaseException():
            return type(value).__name__
        case Promise():
            return "promise"
        case _Thenable():
            return "thenable"
        case {"status": status, **rest}:
            return f"{status} {describe(next(iter(rest.values())))}"
    return str(value)


class _Thenable:
    def __init__(self, then: Callable[[], Any]) -> None:
        self._then = then

    @property
    def then(self) -> Any:
        return self._then()


class _Interpreter:
    def __init__(self, loop: Loop) -> None:
        self.js = JS(loop, on_unhandled_rejection=lambda reason, _promise: self.log("unhandled", reason))
        self.events: list[str] = []
        self.calls = 0
        self.p: dict[int, Any] = {}
        self.r: dict[int, dict[str, Callable[[Any], None]]] = {}
        self.t: dict[int, Callable[[], object]] = {}

    def log(self, name: object, *values: Any) -> None:
        if self.js.loop.state is not LoopState.TERMINATING:  # then coroutines are cancelled, which Node does not do
            self.events.append(" ".join([str(name), *map(describe, values)]))

    def task(self, block: Tree, v: Any) -> None:
        """A callback of a queue."""
        try:
            self.now(block, v)
        except Exception as error:
            self.log("uncaught", error)

    def now(self, block: Tree, v: Any) -> Any:
        """Run a function that is not asynchronous; what it returns."""
        try:
            self.run(block, v).send(None)
        except StopIteration as done:
            return done.value and done.value[0]
        raise AssertionError("only asynchronous functions await")

    async def run(self, block: Tree, v: Any) -> tuple[Any] | None:
        """Run a block; what it returned, if it did."""
        for statement in block:
            match statement:
                case ["log", number]:
                    self.log(number)
                case ["throw", number]:
                    raise Thrown(number)
                case ["return", value]:
                    return (self.value(value, v),)
                case ["do", value]:
                    self.value(value, v)
                case ["settle", k, how, value]:
                    if k in self.r:
                        settle = self.r[k][how]
                        settle(self.value(value, v))
                case ["clear", k]:
                    self.t.get(k, int)()
                case ["let", k, value]:
                    self.p[k] = self.value(value, v)
                case ["tick", body]:
                    self.js.next_tick(self.task, body, v)
                case ["micro", body]:
                    self.js.queue_microtask(self.task, body, v)
                case ["immediate", k, body]:
                    identifier = self.js.set_immediate(self.task, body, v)
                    self.t[k] = lambda identifier=identifier: self.js.clear_immediate(identifier)
                case ["timeout", k, delay, body]:
                    identifier = self.js.set_timeout(self.task, delay, body, v)
                    self.t[k] = lambda identifier=identifier: self.js.clear_timeout(identifier)
                case ["await", number, value]:
                    self.log(number, await self.js.resolve(self.value(value, v)))
                case ["try", body, number, handler]:
                    try:
                        returned = await self.run(body, v)
                    except Exception as error:
                        self.log(number, error)
                        returned = await self.run(handler, v)
                    if returned:
                        return returned
                case _:
                    raise AssertionError(statement)
        return None

    async def function(self, block: Tree, v: Any) -> Any:
        """The body of an asynchronous function."""
        returned = await self.run(block, v)
        return returned and returned[0]

    def value(self, expression: Tree, v: Any) -> Any:
        js = self.js
        match expression:
            case ["value", number]:
                return number
            case ["error", number]:
                return Thrown(number)
            case ["argument"]:
                return v
            case ["place", k]:
                return self.p.get(k)
            case ["defer", k]:
                promise, resolve, reject = js.with_resolvers()
                self.r[k] = {"resolve": resolve, "reject": reject}
                return promise
            case ["resolve", value]:
                return js.resolve(self.value(value, v))
            case ["reject", value]:
                return js.reject(self.value(value, v))
            case ["new", k, block]:
                return js.promise(self.taker(k, block, v))
            case ["thenable", number, k, mode, block]:
                return _Thenable(lambda: self.then_of(number, k, mode, block, v))
            case ["call", block]:
                return js.try_(self.now, block, v)
            case ["async", number, block]:
                self.log(number)
                return js.spawn(self.function(block, v))
            case ["then", value, on_fulfilled, on_rejected]:
                return js.resolve(self.value(value, v)).then(self.handler(on_fulfilled), self.handler(on_rejected))
            case ["catch", value, on_rejected]:
                return js.resolve(self.value(value, v)).catch(self.handler(on_rejected))
            case ["finally", value, on_finally]:
                return js.resolve(self.value(value, v)).finally_(self.handler(on_finally))
            case ["all" | "race" | "all_settled" | "any" as combinator, values]:
                return getattr(js, combinator)([self.value(value, v) for value in values])
        raise AssertionError(expression)

    def taker(self, k: int, block: Tree, v: Any) -> Callable[..., None]:
        """An executor, or the `then` of a thenable: puts the functions in their place, and runs a block."""

        def take(resolve: Callable[[Any], None], reject: Callable[[Any], None]) -> None:
            self.r[k] = {"resolve": resolve, "reject": reject}
            self.now(block, v)

        return take

    def then_of(self, number: int, k: int, mode: str, block: Tree, v: Any) -> Any:
        """What reading `then` of a thenable gives."""
        if mode == "read":
            self.log(number)
        if mode == "broken":
            raise Thrown(number)
        if mode == "inert":
            return number

        def then(resolve: Callable[[Any], None], reject: Callable[[Any], None]) -> None:
            self.calls += 1
            if self.calls <= MOST_CALLS:
                self.taker(k, block, v)(resolve, reject)

        return then

    def handler(self, node: Tree | None) -> Callable[..., Any] | None:
        if node is None:
            return None
        kind, number, block = node

        def handle(v: Any = None) -> Any:
            v = v.reason if isinstance(v, RejectedError) else v
            self.log(number, v)
            return self.now(block, v) if kind == "function" else self.js.spawn(self.function(block, v))

        return handle
