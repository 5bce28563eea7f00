"""The heap profile says what holds how much memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from nbloop.observe.heap import heap
from tests.support.pprof_schema import decode

pytestmark = pytest.mark.parallel_threads(1)  # tracing is the process's


@pytest.fixture
def tracing() -> Iterator[None]:
    if tracemalloc.is_tracing():
        pytest.skip("tracemalloc is tracing already, as something else has asked for")
    tracemalloc.start(5)
    yield
    tracemalloc.stop()


class Holder:
    def hold(self) -> list[bytes]:
        return [bytes(1000) for _ in range(200)]


@pytest.mark.slow
@pytest.mark.usefixtures("tracing")
def test_what_is_held_is_there_with_function_line_and_size() -> None:
    held = Holder().hold()
    message, samples = decode(heap())
    assert message.string_table[message.default_sample_type] == "inuse_space"
    inside = [(stack, values) for stack, values, _ in samples if stack[0][0] == "Holder.hold"]
    assert sum(values["inuse_objects"] for _, values in inside) in range(200, 210)
    assert 200_000 < sum(values["inuse_space"] for _, values in inside) < 250_000
    stack, _ = max(inside, key=lambda one: one[1]["inuse_space"])
    assert stack[0][1:] == (__file__, Holder.hold.__code__.co_firstlineno + 1)
    callers = [name for name, file, _ in stack if file == __file__]
    assert callers[-1] == "test_what_is_held_is_there_with_function_line_and_size"
    held.clear()
    _, samples = decode(heap())
    assert sum(v["inuse_space"] for stack, v, _ in samples if stack[0][0] == "Holder.hold") < 20_000


def test_without_tracing_it_says_how_to_begin() -> None:
    if tracemalloc.is_tracing():
        pytest.skip("tracemalloc is tracing already, as something else has asked for")
    with pytest.raises(RuntimeError, match=r"tracemalloc\.start"):
        heap()
