"""Several loops, observed as one: a group's trace, its debug page, its figures for Prometheus."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import nbloop
from nbloop.observe import serve
from nbloop.observe.contention import Contention, totals
from nbloop.observe.server import DebugServer
from tests.support import trace_format
from tests.support.waiting import PATIENCE

pytestmark = [
    pytest.mark.parallel_threads(1),
    pytest.mark.filterwarnings("ignore:.*the GIL is on:RuntimeWarning"),
]


@pytest.fixture
def group() -> Iterator[nbloop.LoopGroup]:
    with nbloop.LoopGroup(2, name="web", metrics=True, recorder=4096) as group:
        yield group


@pytest.fixture
def server(group: nbloop.LoopGroup) -> Iterator[DebugServer]:
    with serve(group) as server:
        yield server


def ask(server: DebugServer, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def run(group: nbloop.LoopGroup, counts: list[int]) -> None:
    """So many callbacks on each loop, and they have ended."""
    for loop, count in zip(group.loops, counts, strict=True):
        for _ in range(count):
            loop.submit(int)
        assert loop.call(int) == 0


def tracks(trace: dict[str, Any]) -> dict[str, int]:
    return {one["args"]["name"]: one["tid"] for one in trace["traceEvents"] if one["name"] == "thread_name"}


def test_one_trace_with_a_track_for_each_loop(group: nbloop.LoopGroup) -> None:
    """contract: a thread has one track, and arrows lead from the callback of one loop to that of another."""
    done = threading.Event()
    one, other = group.loops
    one.submit(lambda: other.submit(done.set))
    assert done.wait(PATIENCE)
    gc.collect()
    run(group, [1, 1])
    trace = group.trace()
    assert trace is not None
    trace_format.check(trace)
    assert trace["otherData"]["loop"] == "web"
    named = tracks(trace)
    assert (named["loop web-0"], named["loop web-1"]) == (1, 2)
    assert list(named).count("loop web-0") == 1
    events = trace["traceEvents"]
    ends = {which: {e["id"]: e["tid"] for e in events if e["ph"] == which} for which in "sf"}
    assert (1, 2) in {(tid, ends["f"][number]) for number, tid in ends["s"].items()}
    counters = {e["name"] for e in events if e["ph"] == "C"}
    assert {"waiting of web-0", "waiting of web-1"} <= counters


@pytest.mark.usefixtures("no_collections")
def test_a_collection_is_shown_once(group: nbloop.LoopGroup) -> None:
    """Each recorder of a process records each collection."""
    before = [sum(e.kind == "collection" for e in loop.recorder.events()) for loop in group.loops]
    gc.collect()
    trace = group.trace()
    assert trace is not None
    shown = [e for e in trace["traceEvents"] if e.get("cat") == "collection"]
    assert len(shown) == max(before) + 1


def test_a_trace_is_of_what_came_since(group: nbloop.LoopGroup) -> None:
    run(group, [5, 5])
    since = group.loops[0].now() + 1000
    trace = group.trace(since)
    assert trace is not None
    assert [e for e in trace["traceEvents"] if e["ph"] not in "M"] == []


def test_without_recorders_there_is_no_trace() -> None:
    with nbloop.LoopGroup(2) as group:
        assert group.trace() is None
        with serve(group) as server:
            assert ask(server, "/debug/trace")[0] == 409
            seen = json.loads(ask(server, "/debug/vars")[1])
    assert seen["metrics"] is None
    assert [one["metrics"] for one in seen["loops"]] == [None, None]


def test_figures_of_all_and_of_each(group: nbloop.LoopGroup, server: DebugServer, wait_for: Any) -> None:
    run(group, [10, 20])
    wait_for(lambda: [loop.metrics().callbacks for loop in group.loops] == [11, 21])
    status, body = ask(server, "/debug/vars")
    assert status == 200
    seen = json.loads(body)
    assert (seen["name"], seen["state"], seen["metrics"]["callbacks"]) == ("web", "2 loops", 32)
    assert [(one["name"], one["metrics"]["callbacks"]) for one in seen["loops"]] == [("web-0", 11), ("web-1", 21)]
    assert seen["contention"]["parks"] >= sum(one["contention"]["parks"] for one in seen["loops"]) > 0
    families = {f.name: f for f in text_string_to_metric_families(ask(server, "/metrics")[1].decode())}
    callbacks = {s.labels["loop"]: s.value for s in families["nbloop_callbacks"].samples}
    assert callbacks == {"web-0": 11, "web-1": 21}


def test_contention_of_several_is_the_sum(group: nbloop.LoopGroup, server: DebugServer) -> None:
    run(group, [3, 3])
    seen = [totals(loop) for loop in group.loops]
    both = Contention.merged(seen)
    assert both.wakes_sent == seen[0].wakes_sent + seen[1].wakes_sent > 0
    assert both.retries.total == seen[0].retries.total + seen[1].retries.total
    assert both.seconds == max(one.seconds for one in seen)
    assert Contention.merged(seen[:1]) == seen[0]
    with pytest.raises(ValueError, match="one loop"):
        Contention.merged([])
    status, body = ask(server, "/debug/contention?seconds=0.2")
    assert (status, json.loads(body)["name"]) == (200, "web")
    assert 1.0 < json.loads(body)["per_second"]["parked_time"] < 2.1  # two loops sleep


def test_a_trace_over_http(group: nbloop.LoopGroup, server: DebugServer) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(ask(server, "/debug/trace?seconds=0.3")))
    thread.start()
    while thread.is_alive():
        run(group, [1, 1])
    thread.join()
    assert found[0][0] == 200
    assert {"loop web-0", "loop web-1"} <= set(tracks(json.loads(found[0][1])))


def test_a_group_is_healthy_if_all_of_its_loops_are(
    group: nbloop.LoopGroup, server: DebugServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(server, "/healthz") == (200, b"ok\n")
    monkeypatch.setattr("nbloop.observe.server.HEALTHY", 0.2)
    begun, go_on = threading.Event(), threading.Event()
    group.loops[1].submit(lambda: (begun.set(), go_on.wait(PATIENCE)))
    assert begun.wait(PATIENCE)
    status, body = ask(server, "/healthz")
    go_on.set()
    assert (status, b"web-1" in body, b"web-0" in body) == (503, True, False)


def test_channels_of_all_loops(group: nbloop.LoopGroup, server: DebugServer) -> None:
    """contract: a channel's producers count with it, and so do channels of the same name on other loops."""
    channels = [loop.channel([("n", "i8")], lambda _records: None, name="ticks") for loop in group.loops]
    entrances = [*channels, channels[0].producer()]
    for one in entrances:
        one.put(1)
    for loop in group.loops:
        loop.call(int)
    while sum(one.delivered for one in entrances) < 3:
        for loop in group.loops:
            loop.call(int)
    seen = json.loads(ask(server, "/debug/vars")[1])
    (ticks,) = seen["channels"]
    assert (ticks["name"], ticks["delivered"], ticks["batches"], ticks["delay"]["count"]) == ("ticks", 3, 3, 3)
    assert [one["channels"][0]["delivered"] for one in seen["loops"]] == [2, 1]
    families = {f.name: f for f in text_string_to_metric_families(ask(server, "/metrics")[1].decode())}
    counts = {
        s.labels["loop"]: s.value for s in families["nbloop_channel_delay_seconds"].samples if s.name.endswith("_count")
    }
    assert counts == {"web-0": 2, "web-1": 1}


def test_a_browser_shows_loops_and_channels(group: nbloop.LoopGroup, server: DebugServer, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed: what the page shows is not looked at")
    channel = group.loops[0].channel([("n", "i8")], lambda _records: None, name="ticks")
    channel.put(1)
    run(group, [10, 20])
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=3000"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [chromium, *options, profile, "--dump-dom", server.url], capture_output=True, text=True, timeout=90, check=True
    )
    shown = dict(re.findall(r'id="(\w+)">([^<]*)<', done.stdout))
    assert (shown["trouble"], shown["name"], shown["state"]) == ("", "web", "2 loops")
    cells = re.findall(r"<td>([^<]*)</td>", done.stdout)
    assert {"ticks", "web-0", "web-1"} <= set(cells)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_workers_of_an_asyncio_program() -> None:
    """contract: `worker.group` is served as a group of loops is."""

    async def main(worker: nbloop.Worker) -> Any:
        if not worker.primary:
            return None
        await worker.broadcast(asyncio.sleep, 0)
        with serve(worker.group) as server:
            seen = await asyncio.to_thread(ask, server, "/debug/vars")
        return json.loads(seen[1]), worker.group.trace()

    (seen, trace), _ = nbloop.serve(main, loops=2, name="app", metrics=True, recorder=4096)
    assert [one["name"] for one in seen["loops"]] == ["app-0", "app-1"]
    assert seen["metrics"]["callbacks"] > 0
    trace_format.check(trace)
    assert {"loop app-0", "loop app-1"} <= set(tracks(trace))
