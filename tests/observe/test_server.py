"""The debug server, used as its users do: by http.client, by Prometheus's own parser, and by a browser."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nbloop import Loop
from nbloop.observe import Histogram, serve
from nbloop.observe.contention import totals
from nbloop.observe.prometheus import LoopCollector, buckets
from nbloop.observe.server import MOST_LONG, MOST_REQUESTS, REST, DebugServer
from tests.support.pprof_schema import decode

pytestmark = pytest.mark.parallel_threads(1)  # sockets, a browser, profiles of the process

DONE = 1234


@pytest.fixture
def measured() -> Iterator[Loop]:
    """A loop that has run some tasks and has been quiet since."""
    with Loop(name='named "x"', metrics=True) as loop:
        for _ in range(DONE - 1):
            loop.submit(int)
        over = threading.Event()
        loop.submit(over.set)
        assert over.wait(30)
        yield loop


@pytest.fixture
def server(measured: Loop) -> Iterator[DebugServer]:
    with serve(measured) as server:
        yield server


type Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def ask(server: DebugServer) -> Ask:
    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    return ask


def test_vars_are_the_loop_s_metrics(ask: Ask, measured: Loop, wait_for: Any) -> None:
    wait_for(lambda: measured.metrics().callbacks == DONE)
    status, headers, body = ask("/debug/vars")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    seen = json.loads(body)
    assert seen["name"] == measured.name
    assert seen["metrics"]["callbacks"] == DONE
    assert seen["metrics"]["delay"]["count"] == measured.metrics().delay.count
    assert "histogram" not in seen["metrics"]["delay"]


def test_metrics_are_read_by_prometheus_parser(ask: Ask, measured: Loop, wait_for: Any) -> None:
    wait_for(lambda: measured.metrics().callbacks == DONE)
    status, _, body = ask("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    (callbacks,) = families["nbloop_callbacks"].samples
    assert (callbacks.value, callbacks.labels) == (DONE, {"loop": measured.name})
    for name in ("latency", "delay"):
        samples = families[f"nbloop_{name}_seconds"].samples
        counts = [sample.value for sample in samples if sample.name.endswith("_bucket")]
        assert counts == sorted(counts)
        figures = getattr(measured.metrics(), name)
        assert counts[-1] == figures.count > 0
        (total,) = [sample.value for sample in samples if sample.name.endswith("_sum")]
        assert total == pytest.approx(figures.histogram.sum)
    assert {s.labels["queue"] for s in families["nbloop_queue_depth"].samples} == {
        "ingress",
        "internal",
        "microtask",
        "immediate",
    }


def test_prometheus_buckets_are_exact() -> None:
    histogram = Histogram()
    durations = [0, 1023, 1024, 2047, 2048, 10**6, 2**34 - 1, 2**34]  # ns
    for ns in durations:
        histogram.add(ns / 1e9)
    for bound, count in buckets(histogram)[:-1]:
        assert count == sum(ns / 1e9 <= float(bound) for ns in durations), bound
    assert buckets(histogram)[-1] == ("+Inf", len(durations))


def test_profile_and_heap_are_pprof(ask: Ask) -> None:
    status, _, body = ask("/debug/pprof/profile?seconds=0.1")
    assert status == 200
    message, samples = decode(body)
    assert message.duration_nanos >= 100_000_000
    assert any(labels["thread"] == "MainThread" for _, _, labels in samples)
    if not tracemalloc.is_tracing():
        assert ask("/debug/pprof/heap")[0] == 409
        tracemalloc.start()
        try:
            status, _, body = ask("/debug/pprof/heap")
        finally:
            tracemalloc.stop()
        assert status == 200
        decode(body)


def test_trace_is_of_its_seconds(ask: Ask, wait_for: Any) -> None:
    assert ask("/debug/trace?seconds=0.1")[0] == 409  # it records nothing
    with Loop(recorder=1024) as recording, serve(recording) as server:
        ran = threading.Event()
        recording.submit(ran.set)
        wait_for(ran)
        period = recording.schedule_interval(0.01, int)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/debug/trace?seconds=0.2")
        answer = connection.getresponse()
        trace = json.loads(answer.read())
        connection.close()
        recording.cancel_timer(period)
    assert answer.status == 200
    kinds = [event["cat"] for event in trace["traceEvents"] if event["ph"] == "X"]
    assert kinds.count("timer") >= 5
    assert "task" not in kinds, "what ran before is not of these seconds"


def test_contention_is_of_its_seconds(ask: Ask, measured: Loop, wait_for: Any, asleep: Any) -> None:
    asleep(measured)
    wait_for(lambda: totals(measured).parks > 0)
    before = totals(measured)
    status, headers, body = ask("/debug/contention?seconds=0.1")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    seen = json.loads(body)
    assert seen["name"] == measured.name
    assert seen["contention"]["seconds"] >= 0.1
    assert seen["contention"]["parked_time"] == pytest.approx(seen["contention"]["seconds"], abs=1e-3)
    assert seen["contention"]["wakes_sent"] == seen["contention"]["parks"] == 0
    assert seen["contention"]["retries"] == {"submit": 0, "remote": 0, "producers": 0, "chunks": 0, "slots": 0}
    assert seen["per_second"]["parked_time"] == pytest.approx(1.0, abs=0.01)
    all_of_it = json.loads(ask("/debug/vars")[2])["contention"]
    assert all_of_it["parks"] == before.parks
    assert all_of_it["wakes_sent"] + all_of_it["wakes_elided"] == DONE


def test_prometheus_has_contention(ask: Ask, measured: Loop, asleep: Any, wait_for: Any) -> None:
    asleep(measured)
    with measured._lock:  # one wait for it
        waiter = threading.Thread(target=measured.producer)
        waiter.start()
        wait_for(lambda: "lock.py" in str(sys._current_frames().get(waiter.ident or 0)))
        time.sleep(0.005)
    waiter.join()
    seen = totals(measured)
    families = {f.name: f.samples for f in text_string_to_metric_families(ask("/metrics")[2].decode())}
    for name in ("parks", "stalls", "lock_waits"):
        assert [s.value for s in families[f"nbloop_{name}"]] == [getattr(seen, name)]
    assert seen.lock_waits == 1
    assert families["nbloop_parked_seconds"][0].value >= seen.parked_time > 0
    assert families["nbloop_lock_seconds"][0].value == seen.lock_time
    assert {s.labels["of"]: s.value for s in families["nbloop_retries"]} == dataclasses.asdict(seen.retries)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_collects_its_own_loops_only() -> None:
    """From a registry that it has inherited."""
    inherited = Loop(metrics=True, name="the parent's")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            own = Loop(metrics=True, name="the child's")
            families = list(LoopCollector(inherited, own).collect())
            loops = {sample.labels["loop"] for family in families for sample in family.samples}
            os._exit(0 if loops == {"the child's"} else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("seconds", ["0", "-1", "301", "nan", "inf", "x", ""])
def test_bad_seconds(ask: Ask, seconds: str) -> None:
    query = f"?seconds={seconds}" if seconds else "?seconds=%20"
    assert ask("/debug/pprof/profile" + query)[0] == 400


def test_health(ask: Ask, measured: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("/healthz")[::2] == (200, b"ok\n")
    monkeypatch.setattr("nbloop.observe.server.HEALTHY", 0.05)
    let_go = threading.Event()
    measured.submit(let_go.wait, 30)
    assert ask("/healthz")[0] == 503
    let_go.set()
    measured.shutdown()
    assert ask("/healthz")[0] == 503
    assert json.loads(ask("/debug/vars")[2])["state"] == "terminated"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", "", "127.0.0.1:{port}@x"]
)
def test_another_host_is_refused(ask: Ask, server: DebugServer, host: str) -> None:
    for path in ("/", "/debug/vars", "/debug/pprof/profile?seconds=30", "/nothing"):
        status, _, body = ask(path, Host=host.format(port=server.port))
        assert status == 403
        assert b"named" not in body


def test_another_origin_is_refused_and_its_own_is_not(ask: Ask, server: DebugServer) -> None:
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{server.port}", "http://localhost"):
        assert ask("/debug/vars", Origin=origin)[0] == 403
    for name in ("localhost", "127.0.0.1"):
        own = f"{name}:{server.port}"
        assert ask("/debug/vars", Host=own, Origin=f"http://{own}")[0] == 200


def test_other_methods_and_paths(ask: Ask) -> None:
    assert ask("/", method="POST")[0] == 501
    status, _, body = ask("/debug/nothing")
    assert status == 404
    assert b"/debug/vars" in body
    assert ask("/..%2f..%2fetc/passwd")[0] == 404


def test_the_page_loads_nothing_from_elsewhere(ask: Ask) -> None:
    status, headers, body = ask("/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    text = body.decode()

    found: list[tuple[str, str | None]] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(one for one in attrs if one[0] in ("src", "href", "style") or one[0].startswith("on"))

    Links().feed(text)
    assert found == []
    assert "://" not in text


def test_a_loop_that_does_not_measure(loop: Loop) -> None:
    with serve(loop) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/debug/vars")
        assert json.loads(connection.getresponse().read())["metrics"] is None
        connection.close()


@pytest.mark.parametrize(
    ("port", "error"), [("80", TypeError), (True, TypeError), (-1, ValueError), (65536, ValueError)]
)
def test_bad_port(loop: Loop, port: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="port must be"):
        serve(loop, port)


def test_it_ends_with_a_forgotten_loop(wait_for: Any) -> None:
    """It does not keep the loop, whose end gives the port back."""
    loop = Loop()
    server = serve(loop)
    forgotten = weakref.ref(loop)
    del loop
    gc.collect()
    assert forgotten() is None
    wait_for(lambda: not server._thread.is_alive())
    with Loop() as other, serve(other, server.port) as again:
        assert again.port == server.port


def test_a_server_without_a_thread_leaves_its_port(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def fail(thread: threading.Thread) -> None:
        taken.append(thread._target.__self__.server_address[1])  # type: ignore[attr-defined]
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("nbloop.observe.server.begin", fail)
    with pytest.raises(RuntimeError, match="new thread"):
        serve(loop)
    monkeypatch.undo()
    with serve(loop, taken[0]) as server:
        assert server.port == taken[0]


def test_closing_gives_the_port_back(loop: Loop) -> None:
    server = serve(loop)
    server.close()
    server.close()
    with serve(loop, server.port) as again:
        assert again.port == server.port


def test_a_browser_shows_the_loop_s_numbers(server: DebugServer, measured: Loop, tmp_path: Path, wait_for: Any) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed: what the page shows is not looked at")
    wait_for(lambda: measured.metrics().callbacks == DONE)
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000",
            "--window-size=900,900",
            f"--screenshot={tmp_path / 'page.png'}",
            "--dump-dom",
            server.url,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    shown = dict(re.findall(r'id="(\w+)">([^<]*)<', done.stdout))
    assert shown["trouble"] == ""
    assert shown["name"].replace("&quot;", '"') == measured.name
    assert shown["callbacks"] == f"{DONE:,}"
    assert shown["turns"] == f"{measured.metrics().turns:,}"
    met = totals(measured)
    for name, value in (("parks", met.parks), ("lock_waits", 0), ("retries", met.retries.total)):
        assert shown[name] == f"{value:,}"
    assert float(shown["asleep"].removesuffix(" %")) > 90
    assert len(re.search(r'<polyline points="([^"]*)"', done.stdout)[1].split()) >= 2
    assert (tmp_path / "page.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("site", "status"),
    [("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403), ("", 403), ("None", 403)],
)
@pytest.mark.parametrize("path", ["/", "/healthz", "/debug/vars", "/debug/pprof/profile?seconds=0.01"])
def test_what_a_browser_asks_for_another_page_is_refused(ask: Ask, path: str, site: str, status: int) -> None:
    """A link or an image of that page: such a request has no Origin."""
    answered, _, body = ask(path, **{"Sec-Fetch-Site": site})
    assert answered == status
    assert status == 200 or body == b"not for other pages\n"


def test_a_page_elsewhere_starts_nothing(
    server: DebugServer, tmp_path: Path, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real browser, whose page of another origin has an image at an address of ours."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    sites: list[str | None] = []
    handler = server._server.RequestHandlerClass
    do_get = handler.do_GET
    profiled: list[float] = []
    monkeypatch.setattr("nbloop.observe.server.profile.profile", profiled.append)
    monkeypatch.setattr(handler, "do_GET", lambda self: (sites.append(self.headers["Sec-Fetch-Site"]), do_get(self)))
    page = tmp_path / "page.html"
    page.write_text(f'<img src="{server.url}debug/pprof/profile?seconds=1"><img src="{server.url}healthz">')
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    subprocess.run([chromium, *options, page.as_uri()], capture_output=True, timeout=120, check=True)
    assert sites == ["cross-site", "cross-site"]
    assert not profiled


def raw(server: DebugServer, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(sent)
    return connection


def received(connection: socket.socket) -> bytes:
    """All until its end."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_requests_are_bounded(server: DebugServer, ask: Ask, wait_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent clients have a thread each, up to the bound; one more is asked to retry; slow ones are cut off in time."""
    monkeypatch.setattr("nbloop.observe.server.READ_SECONDS", 600.0)
    before = threading.active_count()
    silent = [raw(server, b"GET / HT") for _ in range(MOST_REQUESTS)]
    wait_for(lambda: len(server._server.reading) == MOST_REQUESTS)
    for _ in range(20):
        status, headers, _ = ask("/healthz")
        assert status == 503
        assert headers["Retry-After"] == "1"
    assert threading.active_count() <= before + MOST_REQUESTS
    for connection in silent:
        connection.close()
    wait_for(lambda: threading.active_count() == before)
    assert ask("/healthz")[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nX: "], ids=repr)
def test_a_client_that_is_too_slow_is_cut_off(
    server: DebugServer, ask: Ask, wait_for: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Also one that sends a byte now and then, which no timeout of a single read would notice."""
    monkeypatch.setattr("nbloop.observe.server.READ_SECONDS", 0.3)
    connection = raw(server, sent)
    began = time.monotonic()
    connection.settimeout(0.02)
    while True:
        try:
            if connection.recv(65536) == b"":
                break
        except TimeoutError:
            connection.sendall(b"x" if sent else b"")
        except ConnectionResetError:
            break
        assert time.monotonic() - began < 20
    connection.close()
    assert ask("/healthz")[0] == 200


def test_long_requests_are_bounded(server: DebugServer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave room for the others, for a probe of /healthz above all."""
    go, asked = threading.Event(), threading.Semaphore(0)

    def profile(_seconds: float) -> Any:
        asked.release()
        assert go.wait(30)
        raise BrokenPipeError

    monkeypatch.setattr("nbloop.observe.server.profile.profile", profile)
    line = f"GET /debug/pprof/profile HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
    long = [raw(server, line) for _ in range(MOST_LONG)]
    for _ in range(MOST_LONG):
        assert asked.acquire(timeout=30)
    status, headers, _ = ask("/debug/pprof/profile")
    assert status == 503
    assert int(headers["Retry-After"]) > 0
    assert ask("/debug/contention?seconds=0.01")[0] == 503
    assert ask("/healthz")[0] == 200
    go.set()
    for connection in long:
        assert received(connection) == b""
    assert ask("/debug/contention?seconds=0.01")[0] == 200


def test_without_descriptors_it_rests_and_comes_back(
    server: DebugServer, ask: Ask, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that cannot be accepted is retried four times a second, and answered when it can be."""
    tries = []
    accept = server._server.socket.accept
    exhausted = True

    def fails() -> Any:
        tries.append(time.monotonic())
        if exhausted:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept()

    class Listening:
        def __getattr__(self, name: str) -> Any:
            return fails if name == "accept" else getattr(listening, name)

    listening = server._server.socket
    monkeypatch.setattr(server._server, "socket", Listening())
    waiting = raw(server, f"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    wait_for(lambda: len(tries) == 4)
    assert tries[3] - tries[0] > 2.5 * REST
    exhausted = False
    assert received(waiting).startswith(b"HTTP/1.0 200")
    assert ask("/healthz")[0] == 200
