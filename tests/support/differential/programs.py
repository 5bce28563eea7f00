"""Programs: a syntax tree from a seed, and the same as JavaScript.

A tree is nested lists, as JSON has them. A *node* is a list that begins with its kind, a *block* a list of statements.
Promises live in numbered places ``p[k]``, resolving functions in ``r[k]``, immediates and timeouts in ``t[k]``, all
shared by the whole program, so that any part may meet any other; a place that is still empty is undefined. Everything
that happens writes a numbered event to the log.

Programs end: there are no loops, and thenables, which could be resolved with each other for ever, can be called only a
limited number of times. Order is decided by construction: timeouts have delays far apart, and are set only by what runs
once, within moments of the start.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

type Tree = list[Any]

PLACES = 5
DELAYS = (20, 40, 60)  # ms
TIMED = 25  # one program in 25 has timeouts
COMBINATORS = {"all": "all", "race": "race", "all_settled": "allSettled", "any": "any"}


def program(seed: int) -> Tree:
    """The program of that seed: a block."""
    return _Maker(seed).program()


def timed(tree: Tree) -> bool:
    """Has it timeouts?"""
    return any(timed(part) for part in tree if isinstance(part, list)) or tree[:1] == ["timeout"]


@dataclass(frozen=True)
class _Where:
    """What a block may contain."""

    depth: int = 0
    asynchronous: bool = False  # await
    once: bool = True  # timeouts

    def within(self, *, asynchronous: bool = False, once: bool = True) -> _Where:
        """A function inside."""
        return replace(self, depth=self.depth + 1, asynchronous=asynchronous, once=self.once and once)


class _Maker:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.left = 0  # nodes that the statement may still have; after that only leaves
        self.numbers = itertools.count(1)
        self.delays = list(DELAYS) if seed % TIMED == 0 else []
        self.random.shuffle(self.delays)

    def program(self) -> Tree:
        """Fill every place, let things happen, and look at every place."""
        where = _Where()
        block = []
        for k in range(PLACES):
            self.left = self.random.randrange(10)
            block.append(["let", k, ["defer", k] if k < 2 else self.expression(where)])
        for _ in range(self.random.randrange(2, 9)):
            self.left = self.random.randrange(14)
            block.append(self.statement(where))
        block += [["do", ["then", ["place", k], self.probe(), self.probe()]] for k in self.places()]
        block += [["settle", k, "resolve", self.expression(where)] for k in self.places()]
        for delay in self.delays:  # those that found no place inside
            self.left = self.random.randrange(10)
            block.append(["timeout", self.place(), delay, self.block(where.within(once=False))])
        return block

    def places(self) -> list[int]:
        return self.random.sample(range(PLACES), self.random.randrange(PLACES + 1))

    def place(self) -> int:
        return self.random.randrange(PLACES)

    def probe(self) -> Tree:
        return ["function", next(self.numbers), []]

    def block(self, where: _Where) -> Tree:
        """Some statements, and perhaps one that leaves."""
        block = [self.statement(where) for _ in range(self.random.choice((0, 1, 1, 2)))]
        match self.pick({"go on": 3, "return": 4, "throw": 1}):
            case "return":
                block.append(["return", self.expression(where)])
            case "throw":
                block.append(["throw", next(self.numbers)])
        return block

    def statement(self, where: _Where) -> Tree:
        self.left -= 1
        kinds = {"log": 1, "settle": 2, "clear": 0.2}
        if self.left > 0 and where.depth < 5:
            kinds |= {"let": 4, "do": 8, "tick": 2, "micro": 2, "immediate": 1.5, "try": 0.5}
            if self.delays and where.once:
                kinds["timeout"] = 2
        if where.asynchronous:
            kinds |= {"await": 14, "try": 2 if where.depth < 5 else 0}
        match kind := self.pick(kinds):
            case "log":
                return [kind, next(self.numbers)]
            case "do":
                return [kind, self.expression(where)]
            case "settle":
                return [kind, self.place(), self.pick({"resolve": 3, "reject": 1}), self.expression(where)]
            case "clear":
                return [kind, self.place()]
            case "let":
                return [kind, self.place(), self.expression(where)]
            case "tick" | "micro":
                return [kind, [["log", next(self.numbers)], *self.block(where.within())]]
            case "immediate":
                return [kind, self.place(), [["log", next(self.numbers)], *self.block(where.within())]]
            case "timeout":
                return [kind, self.place(), self.delays.pop(), self.block(where.within(once=False))]
            case "await":
                return [kind, next(self.numbers), self.expression(where)]
            case _:
                inside = replace(where, depth=where.depth + 1)
                return [kind, self.block(inside), next(self.numbers), self.block(inside)]

    def expression(self, where: _Where) -> Tree:
        self.left -= 1
        kinds = {"value": 2, "error": 0.5, "argument": 0.7, "place": 4, "defer": 0.3}
        if self.left > 0 and where.depth < 5:
            kinds |= {"resolve": 2, "reject": 1, "new": 2, "thenable": 3, "call": 0.5, "async": 5, "then": 8}
            kinds |= {"catch": 2, "finally": 2} | dict.fromkeys(COMBINATORS, 1.0)
        match kind := self.pick(kinds):
            case "value" | "error":
                return [kind, next(self.numbers)]
            case "argument":
                return [kind]
            case "place" | "defer":
                return [kind, self.place()]
            case "resolve" | "reject":
                return [kind, self.expression(where)]
            case "new":
                return [kind, self.place(), self.block(where.within())]
            case "thenable":
                mode = self.pick({"plain": 6, "read": 2, "broken": 1, "inert": 1})
                return [kind, next(self.numbers), self.place(), mode, self.block(where.within(once=False))]
            case "call":
                return [kind, self.block(where.within())]
            case "async":
                return [kind, next(self.numbers), self.block(where.within(asynchronous=True))]
            case "then":
                return [kind, self.expression(where), self.handler(where), self.handler(where)]
            case "catch" | "finally":
                return [kind, self.expression(where), self.handler(where)]
            case _:
                return [kind, [self.expression(where) for _ in range(self.random.choice((0, 1, 2, 2, 3)))]]

    def handler(self, where: _Where) -> Tree | None:
        kind = self.pick({"none": 1, "function": 4, "async function": 1, "probe": 1})
        if kind == "none":
            return None
        if kind == "probe":
            return self.probe()
        return [kind, next(self.numbers), self.block(where.within(asynchronous=kind == "async function"))]

    def pick(self, weights: dict[str, float]) -> str:
        return self.random.choices(list(weights), list(weights.values()))[0]


def javascript(block: Tree) -> str:
    """The program as JavaScript, for Node and for the reader. What is not the language's own is in ``node.mjs``."""
    return "\n".join(_statement(statement) for statement in block)


def _body(block: Tree, first: str = "") -> str:
    text = "\n".join(filter(None, (first, javascript(block))))
    return "{\n" + "".join(f"  {line}\n" for line in text.splitlines()) + "}"


def _statement(node: Tree) -> str:
    match node:
        case ["log", number]:
            return f"log({number});"
        case ["throw", number]:
            return f"throw new Thrown({number});"
        case ["return", value]:
            return f"return {_expression(value)};"
        case ["do", value]:
            return f"{_expression(value)};"
        case ["settle", k, how, value]:
            return f"r[{k}]?.{how}({_expression(value)});"
        case ["clear", k]:
            return f"clear({k});"
        case ["let", k, value]:
            return f"p[{k}] = {_expression(value)};"
        case ["tick" | "micro" as kind, block]:
            return f"{kind}(() => {_body(block)});"
        case ["immediate", k, block]:
            return f"immediate({k}, () => {_body(block)});"
        case ["timeout", k, delay, block]:
            return f"timeout({k}, {delay}, () => {_body(block)});"
        case ["await", number, value]:
            return f"log({number}, await {_expression(value)});"
        case ["try", block, number, handler]:
            return f"try {_body(block)} catch (e) {_body(handler, f'log({number}, e);')}"
    raise AssertionError(node)


def _expression(node: Tree | None) -> str:
    match node:
        case None:
            return "null"
        case ["value", number]:
            return f"{number}"
        case ["error", number]:
            return f"new Thrown({number})"
        case ["argument"]:
            return "v"
        case ["place", k]:
            return f"p[{k}]"
        case ["defer", k]:
            return f"defer({k})"
        case ["resolve" | "reject" as kind, value]:
            return f"Promise.{kind}({_expression(value)})"
        case ["new", k, block]:
            return f"make({k}, () => {_body(block)})"
        case ["thenable", number, k, mode, block]:
            return f'thenable({number}, {k}, "{mode}", () => {_body(block)})'
        case ["call", block]:
            return f"call(() => {_body(block)})"
        case ["async", number, block]:
            return f"(async () => {_body(block, f'log({number});')})()"
        case ["function", number, block]:
            return f"(v) => {_body(block, f'log({number}, v);')}"
        case ["async function", number, block]:
            return f"async (v) => {_body(block, f'log({number}, v);')}"
        case ["then" | "catch" | "finally" as kind, value, *handlers]:
            return f"Promise.resolve({_expression(value)}).{kind}({', '.join(map(_expression, handlers))})"
        case [kind, values]:
            return f"Promise.{COMBINATORS[kind]}([{', '.join(map(_expression, values))}])"
    raise AssertionError(node)
