"""Each coroutine of `spawn` has its own context, as a task of asyncio has."""

from __future__ import annotations

import contextvars
import decimal

who = contextvars.ContextVar("who", default="nobody")


def test_coroutines_do_not_see_each_other(page):
    js, seen = page.js, []

    async def request(name, ms):
        who.set(name)
        await js.sleep(ms)
        seen.append((name, who.get()))

    def main():
        for name in ("a", "b"):
            js.spawn(request(name, 1))
        seen.append(("the spawner", who.get()))

    page.on_loop(main)
    page.on_loop(lambda: seen.append(("later", who.get())))
    assert sorted(seen) == [("a", "a"), ("b", "b"), ("later", "nobody"), ("the spawner", "nobody")]


def test_a_coroutine_inherits_the_context_of_its_spawner(page):
    async def inherit():
        await page.js.resolve()
        return who.get()

    context = contextvars.copy_context()
    context.run(who.set, "the spawner")
    promise = context.run(page.js.spawn, inherit())
    assert page.value(promise) == "the spawner"


def test_a_local_context_of_decimal_stays_local(page):
    js = page.js

    async def precise():
        with decimal.localcontext() as context:
            context.prec = 3
            await js.sleep(2)
            return str(decimal.Decimal(1) / 3)

    async def other():
        await js.sleep(1)
        return str(decimal.Decimal(1) / 3)

    three, many = page.value(js.all([js.spawn(precise()), js.spawn(other())]))
    assert three == "0.333"
    assert len(many) > 10
