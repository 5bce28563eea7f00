"""What OpenTelemetry's own reader collects is what the loop says."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.metrics import CallbackOptions, NoOpMeter, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from nbloop import Loop
from nbloop.observe.contention import totals
from nbloop.observe.opentelemetry import instrument
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.parallel_threads(1)


def collected(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    metrics = [m for r in data.resource_metrics for scope in r.scope_metrics for m in scope.metrics]
    return {metric.name: list(metric.data.data_points) for metric in metrics}


def test_the_reader_collects_the_loop_s_figures(make_loop: Callable[..., Loop], turns: Any) -> None:
    reader = InMemoryMetricReader()
    loop = make_loop(name="told", metrics=True)
    instrument(loop, MeterProvider([reader]))
    for _ in range(70):
        loop.submit(int)
    turns(loop)
    for _ in range(7):
        loop.submit(int)
    figures: Any = loop.metrics()
    seen = collected(reader)
    assert [(p.value, dict(p.attributes)) for p in seen["nbloop.callbacks"]] == [(70, {"loop": "told"})]
    assert seen["nbloop.latency.count"][0].value == figures.latency.count == 70
    assert seen["nbloop.latency.sum"][0].value == figures.latency.histogram.sum
    quantiles = {p.attributes["quantile"]: p.value for p in seen["nbloop.delay"]}
    assert quantiles == {q: figures.delay.histogram.quantile(q) for q in (0.5, 0.9, 0.95, 0.99)}
    assert {p.attributes["queue"]: p.value for p in seen["nbloop.queue.depth"]}["ingress"] == 7
    met = totals(loop)
    for name in ("parks", "stalls", "lock_waits", "parked_time", "stalled_time", "lock_time"):
        assert [(p.value, dict(p.attributes)) for p in seen[f"nbloop.{name}"]] == [
            (getattr(met, name), {"loop": "told"})
        ]
    assert {p.attributes["of"]: p.value for p in seen["nbloop.retries"]} == dataclasses.asdict(met.retries)


def test_it_does_not_keep_the_loop() -> None:
    reader = InMemoryMetricReader()
    loop = Loop(metrics=True)
    instrument(loop, MeterProvider([reader]))
    assert "nbloop.turns" in collected(reader)
    del loop
    assert not any(collected(reader).values())


def test_a_loop_that_does_not_measure_is_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="metrics=True"):
        instrument(loop)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Of a loop that stayed with its parent."""
    reader = InMemoryMetricReader()
    loop = Loop(metrics=True)
    instrument(loop, MeterProvider([reader]))
    child = os.fork()
    if child == 0:
        os._exit(0 if not any(collected(reader).values()) and not caplog.records else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert any(collected(reader).values())


def test_every_live_loop_of_a_provider_and_none_that_has_ended() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])

    def told() -> set[Any]:
        return {point.attributes["loop"] for points in collected(reader).values() for point in points}

    with Loop(metrics=True, name="one") as one:
        instrument(one, provider)
        for i in range(20):
            with Loop(metrics=True, name=f"passing {i}") as passing:
                instrument(passing, provider)
                instrument(passing, provider)
                assert told() == {"one", passing.name}
                assert len(collected(reader)["nbloop.turns"]) == 2
        assert told() == {"one"}
    assert told() == set()


def test_channels(make_loop: Callable[..., Loop], turns: Any) -> None:
    reader = InMemoryMetricReader()
    loop = make_loop(name="told", metrics=True)
    instrument(loop, MeterProvider([reader]))
    channel = loop.channel([("n", "i8")], lambda _records: None, capacity=4, on_full="drop_new", name="ticks")
    for n in range(5):
        channel.put(n)
    turns(loop)
    channel.put(1)
    seen = collected(reader)
    (figures,) = loop.channels()
    values = {name: seen[f"nbloop.channel.{name}"][0].value for name in ("depth", "delivered", "dropped", "batches")}
    assert values == {"depth": 1, "delivered": 4, "dropped": 1, "batches": 1}
    assert dict(seen["nbloop.channel.depth"][0].attributes) == {"loop": "told", "channel": "ticks"}
    assert figures.delay is not None
    delays = {p.attributes["quantile"]: p.value for p in seen["nbloop.channel.delay"]}
    assert delays == {q: figures.delay.histogram.quantile(q) for q in (0.5, 0.9, 0.95, 0.99)}


def test_a_provider_that_collects_while_a_loop_is_instrumented(make_loop: Callable[..., Loop]) -> None:
    """A reader holds the provider's lock while it asks us, and the provider takes it while we make instruments."""
    provider, lock = Providing(), threading.Lock()
    first = make_loop(name="first", metrics=True)
    instrument(first, provider)
    observe = provider.observers[0]
    asks, asked = threading.Event(), threading.Event()

    def creates(*_: Any, **__: Any) -> None:
        asks.set()
        assert asked.wait(PATIENCE)
        with lock:
            pass

    def collects() -> None:
        assert asks.wait(PATIENCE)
        with lock:
            asked.set()
            list(observe(CallbackOptions()))

    other = Providing()
    other.create_observable_counter = other.create_observable_gauge = creates  # type: ignore[method-assign, assignment]
    reader = threading.Thread(target=collects)
    reader.start()
    instrument(make_loop(name="second", metrics=True), other)
    reader.join(PATIENCE)
    assert not reader.is_alive()


def test_instruments_that_an_exception_has_left_out_are_made_later(make_loop: Callable[..., Loop]) -> None:
    provider = Providing()
    provider.room = 5
    loop = make_loop(metrics=True)
    with pytest.raises(KeyboardInterrupt):
        instrument(loop, provider)
    provider.room = 1000
    instrument(loop, provider)
    instrument(loop, provider)
    assert len(provider.names) == len(set(provider.names))
    whole = Providing()
    instrument(loop, whole)
    assert sorted(provider.names) == sorted(whole.names)


def test_the_global_provider_may_be_replaced(run_script: Any) -> None:
    """Loops that were instrumented before are reported, and loops that are instrumented after."""
    run_script("""
        import nbloop
        from opentelemetry.metrics import set_meter_provider
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from nbloop.observe.opentelemetry import instrument

        loops = [nbloop.Loop(name=name, metrics=True) for name in ("before", "after")]
        instrument(loops[0])
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        set_meter_provider(provider)
        instrument(loops[1])
        instrument(loops[1], provider)
        (resource,) = reader.get_metrics_data().resource_metrics
        (turns,) = [m for scope in resource.scope_metrics for m in scope.metrics if m.name == "nbloop.turns"]
        assert sorted(point.attributes["loop"] for point in turns.data.data_points) == ["after", "before"]
        """)


class Providing(NoOpMeterProvider, NoOpMeter):
    """A provider, and its meter, which notes what is made."""

    def __init__(self) -> None:
        NoOpMeter.__init__(self, "noted")
        self.names: list[str] = []
        self.observers: list[Any] = []
        self.room = 1000

    def get_meter(self, *_: Any, **__: Any) -> Any:
        return self

    def create_observable_counter(self, name: str, callbacks: Any = None, *_: Any, **__: Any) -> Any:
        if len(self.names) == self.room:
            raise KeyboardInterrupt
        self.names.append(name)
        self.observers.extend(callbacks)

    create_observable_gauge = create_observable_counter
