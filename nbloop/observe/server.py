"""A debug server on the loopback interface, for a browser, ``go tool pprof`` and Prometheus.

====================================  =============================================================================
``/``                                 one page with live depth, delay and throughput
``/metrics``                          Prometheus's text (501 without the package prometheus-client)
``/debug/vars``                       `Loop.metrics` and the figures of channels as JSON
``/debug/pprof/profile?seconds=30``   a CPU profile of all threads, for ``go tool pprof URL``
``/debug/pprof/heap``                 what tracemalloc traced (409 if it is not tracing)
``/debug/contention?seconds=5``       wakes, sleeps, retried swaps and lock waits in that time, as JSON
``/debug/trace?seconds=5``            what the loop does in that time, for ui.perfetto.dev (409 without ``recorder=``)
``/healthz``                          200 if the loop runs a task within a second, else 503
====================================  =============================================================================

For a group (`nbloop.LoopGroup`, or ``worker.group`` of `nbloop.serve`) all figures are those of its loops as one, and
the page also shows each loop; a trace has a track for each; ``/healthz`` needs all of its loops to be healthy.

Stacks and file names are private. The server therefore listens on 127.0.0.1 only, and refuses requests with a foreign
Host (DNS rebinding: another site makes its name resolve to 127.0.0.1), with a foreign Origin, or sent by a browser on
behalf of another page (``Sec-Fetch-Site``: that page's images and links carry no Origin). The page loads nothing from
outside, and its policy allows only itself.

HTTP is the standard library's, with a thread per request, so a profile of 30 s blocks neither other requests nor the
loop. At most `MOST_REQUESTS` are answered at once, and `MOST_LONG` of those that take a number of seconds; any more get
503 and ``Retry-After``. A client that has not sent its request within `READ_SECONDS` is cut off.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import json
import logging
import math
import re
import socket
import sys
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, Protocol, Self

from ..errors import NbloopError
from ..lifecycle import LoopState
from ..lock import Latch
from ..threads import begin, join
from ..unique import Unique
from . import contention, heap, profile, together
from .recorder import Recorder

logger = logging.getLogger("nbloop")
MOST_SECONDS = 300.0
HEALTHY = 1.0  # seconds within which a task has to run
MOST_REQUESTS = 16
MOST_LONG = 4
READ_SECONDS = 5.0  # from the connection to the end of the headers
REST = 0.25  # seconds to pause accepting when the process or the system has run out of descriptors
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Served(contention.Measured, Protocol):
    """A `nbloop.Loop`, as its server sees it."""

    @property
    def state(self) -> LoopState: ...
    @property
    def recorder(self) -> Recorder | None: ...
    def submit(self, callback: Callable[..., object], /, *args: object) -> None: ...


class ServedGroup(Protocol):
    """A `nbloop.LoopGroup`, or the group of `nbloop.serve`, as its server sees it."""

    name: str

    @property
    def loops(self) -> Sequence[Any]: ...


class DebugServer(Unique):
    """Serves a loop, or the loops of a group, until `close`, or until a loop is collected; a context manager. Made by
    `nbloop.observe.serve`.

    `port` and `url` say where it listens. Only making it raises, as `nbloop.observe.serve` says. O(1).

    >>> import nbloop, nbloop.observe
    >>> with nbloop.Loop(metrics=True) as loop, nbloop.observe.serve(loop) as server:
    ...     server.url == f"http://127.0.0.1:{server.port}/"
    True
    """

    def __init__(self, loop: Served | ServedGroup, port: int) -> None:
        if isinstance(port, bool) or not isinstance(port, int):
            raise TypeError(f"port must be an int, not {port!r}")
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {port}")
        self._server = _Server(loop, port)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve, name=f"{loop.name}-debug", daemon=True)

    def _begin(self) -> None:
        """Start serving. This is a separate step: if a signal handler raised between a constructor and the store of
        what it returns, a thread would be left that no code can end. Before this there is only a socket, which closes
        itself.
        """
        try:
            begin(self._thread)
        except BaseException:
            self._server.closing.set()
            if self._thread.ident is None:  # it never began, and will not close the socket
                self._server.server_close()
            raise

    def close(self) -> None:
        """Stop listening; requests in progress run to their end. Idempotent. Any thread."""
        self._server.closing.set()
        join(self._thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Closing(Exception):
    """The server's thread is to end."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, served: Served | ServedGroup, port: int) -> None:
        self.name = served.name
        self.of_group = hasattr(served, "loops")
        # A forgotten loop ends when it is collected, so the thread must not keep it. An asyncio loop is a view of its
        # core.
        loops: list[Served] = [getattr(one, "core", one) for one in getattr(served, "loops", [served])]
        self._loops = [weakref.ref(loop) for loop in loops]
        super().__init__(("127.0.0.1", port), _Handler)
        self.slots = threading.BoundedSemaphore(MOST_REQUESTS)
        self.long = threading.BoundedSemaphore(MOST_LONG)
        self.reading: dict[socket.socket, float] = {}  # connections whose request has not arrived, and its deadline
        self.closing = Latch()
        names = [f"{name}:{self.server_address[1]}" for name in ("127.0.0.1", "localhost")]
        self.hosts = {*names, *(name.partition(":")[0] for name in names if self.server_address[1] == 80)}

    def loops(self) -> list[Served]:
        """The loops that it serves; none if one of them has been collected."""
        alive = [loop for one in self._loops if (loop := one()) is not None]
        return alive if len(alive) == len(self._loops) else []

    def serve(self) -> None:
        """The body of the thread. `BaseServer.shutdown` waits with locks that an exception of a signal handler leaves
        taken; here the thread checks whether it has to end.
        """
        try:
            self.serve_forever(poll_interval=0.1)
        except _Closing:
            pass
        finally:
            self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept. Without free descriptors this fails and the connection stays queued; retrying at once would spin."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self.closing.wait(REST)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.slots.acquire(blocking=False):
            with contextlib.suppress(OSError):  # this is the accepting thread: nothing here may block
                request.setblocking(False)
                request.send(BUSY)
                request.recv(65536)  # closing with unread data would reset the connection and lose the answer
            self.shutdown_request(request)
            return
        self.reading[request] = time.monotonic() + READ_SECONDS
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self.reading.pop(request, None)
            self.slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.reading.pop(request, None)
            self.slots.release()

    def service_actions(self) -> None:
        """Called several times a second: end, or cut off slow clients, whose threads then read an end."""
        if self.closing.is_set() or not self.loops():
            raise _Closing
        now = time.monotonic()
        for request, until in list(self.reading.items()):
            if now > until:
                self.reading.pop(request, None)
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the error, unless the client disconnected."""
        if not isinstance(sys.exception(), ConnectionError):
            logger.exception("the debug server of %s could not answer", self.name)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    loops: list[Served]
    server_version = "nbloop"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        self.server.reading.pop(self.connection, None)
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self._answer(403, "this server is called 127.0.0.1 or localhost\n")
            return
        if any(
            origin.removeprefix("http://") not in self.server.hosts for origin in self.headers.get_all("Origin", [])
        ):
            self._answer(403, "not for other pages\n")
            return
        # Requests that a browser makes for another page without an Origin. `none` is an address typed by the user.
        if not {"same-origin", "none"}.issuperset(self.headers.get_all("Sec-Fetch-Site", [])):
            self._answer(403, "not for other pages\n")
            return
        path, _, query = self.path.partition("?")
        page = _PAGES.get(path)
        if page is None:
            self._answer(404, "".join(f"{known}\n" for known in _PAGES))
            return
        self.loops = self.server.loops()  # until this request is answered
        if not self.loops:
            self._answer(503, f"{self.server.name} is gone\n")
            return
        long = page in _LONG
        if long and not self.server.long.acquire(blocking=False):
            self._answer(503, f"{MOST_LONG} requests of this kind are already in progress\n", Retry_After="5")
            return
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client disconnected
                page(self, urllib.parse.parse_qs(query))
        finally:
            if long:
                self.server.long.release()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the page asks twice a second and would fill the log."""

    def _answer(self, status: int, content: str | bytes, kind: str = "text/plain; charset=utf-8", **more: str) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _page(self, _query: dict[str, list[str]]) -> None:
        html, policy = _document()
        self._answer(200, html, "text/html; charset=utf-8", Content_Security_Policy=policy)

    def _metrics(self, _query: dict[str, list[str]]) -> None:
        if importlib.util.find_spec("prometheus_client") is None:
            self._answer(501, "pip install nbloop[prometheus]\n")
            return
        import prometheus_client

        from .prometheus import LoopCollector

        registry = prometheus_client.CollectorRegistry()
        registry.register(LoopCollector(*self.loops))
        self._answer(200, prometheus_client.generate_latest(registry), prometheus_client.CONTENT_TYPE_LATEST)

    def _vars(self, _query: dict[str, list[str]]) -> None:
        found = [variables(loop) for loop in self.loops]
        content = together_as(self.server.name, self.loops, found) if self.server.of_group else found[0]
        self._answer(200, json.dumps(content), "application/json")

    def _profile(self, query: dict[str, list[str]]) -> None:
        seconds = self._seconds(query, "30")
        if seconds is not None:
            content = profile.profile(seconds).pprof()
            self._answer(200, content, "application/octet-stream", Content_Disposition=_saved_as("cpu.pb.gz"))

    def _contention(self, query: dict[str, list[str]]) -> None:
        seconds = self._seconds(query, "5")
        if seconds is not None:
            try:
                before = [contention.totals(loop) for loop in self.loops]
                time.sleep(seconds)
                after = [contention.totals(loop) for loop in self.loops]
            except NbloopError as error:
                self._answer(503, f"{error}\n")
                return
            seen = contention.Contention.merged([b - a for a, b in zip(before, after, strict=True)])
            content = {"name": self.server.name, "contention": plain(seen), "per_second": seen.per_second()}
            self._answer(200, json.dumps(content), "application/json")

    def _trace(self, query: dict[str, list[str]]) -> None:
        if all(loop.recorder is None for loop in self.loops):
            self._answer(409, "this loop has no flight recorder: Loop(recorder=65536)\n")
            return
        seconds = self._seconds(query, "5")
        if seconds is not None:
            began = time.monotonic()
            time.sleep(seconds)
            content = json.dumps(together.trace(self.server.name, self.loops, began))
            self._answer(200, content, "application/json", Content_Disposition=_saved_as("trace.json"))

    def _seconds(self, query: dict[str, list[str]], default: str) -> float | None:
        """The requested duration; None if the request was answered with an error."""
        try:
            seconds = float(query.get("seconds", [default])[-1])
        except ValueError:
            seconds = math.nan
        if 0 < seconds <= MOST_SECONDS:
            return seconds
        self._answer(400, f"seconds must be a number above 0, at most {MOST_SECONDS:.0f}\n")
        return None

    def _heap(self, _query: dict[str, list[str]]) -> None:
        try:
            content = heap.heap()
        except RuntimeError as error:
            self._answer(409, f"{error}\n")
            return
        self._answer(200, content, "application/octet-stream", Content_Disposition=_saved_as("heap.pb.gz"))

    def _health(self, _query: dict[str, list[str]]) -> None:
        until = time.monotonic() + HEALTHY
        asked = [(loop, threading.Event()) for loop in self.loops]
        try:
            for loop, ran in asked:
                loop.submit(ran.set)
        except NbloopError as error:
            self._answer(503, f"{error}\n")
            return
        stuck = [loop.name for loop, ran in asked if not ran.wait(max(0.0, until - time.monotonic()))]
        if stuck:
            self._answer(503, f"{', '.join(stuck)} has not run a task within {HEALTHY} s\n")
        else:
            self._answer(200, "ok\n")


_PAGES = {
    "/": _Handler._page,
    "/metrics": _Handler._metrics,
    "/debug/vars": _Handler._vars,
    "/debug/pprof/profile": _Handler._profile,
    "/debug/pprof/heap": _Handler._heap,
    "/debug/contention": _Handler._contention,
    "/debug/trace": _Handler._trace,
    "/healthz": _Handler._health,
}
_LONG = (_Handler._profile, _Handler._contention, _Handler._trace)
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


def _saved_as(name: str) -> str:
    return f'attachment; filename="{name}"'


def _document() -> tuple[str, str]:
    """The page, and the policy that allows its own script and style and no others."""
    html = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    def allowed(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; connect-src 'self'; script-src {allowed('script')}; style-src {allowed('style')}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def variables(loop: Served) -> dict[str, Any]:
    """A loop's name, state and figures, ready for JSON; ``metrics`` is None if the loop does not measure. If it does,
    the figures say whether it runs or sleeps, because the loop's state would be of another instant.
    """
    figures = loop.metrics()
    state = loop.state
    if figures is not None and state in (LoopState.RUNNING, LoopState.SLEEPING):
        state = LoopState.SLEEPING if figures.running is None else LoopState.RUNNING
    return {
        "name": loop.name,
        "state": state.value,
        "metrics": None if figures is None else plain(figures),
        "contention": plain(contention.totals(loop)),
        "channels": [plain(one) for one in together.by_channel(loop.channels())],
    }


def together_as(name: str, loops: Sequence[Served], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `variables` of a group: those of all as one, and of each as ``loops``."""
    figures = together.metrics(loops)
    return {
        "name": name,
        "state": f"{len(found)} loops",
        "metrics": None if figures is None else plain(figures),
        "contention": plain(contention.Contention.merged([contention.totals(loop) for loop in loops])),
        "channels": [plain(one) for one in together.by_channel(ring for loop in loops for ring in loop.channels())],
        "loops": list(found),
    }


def plain(figures: Any) -> Any:
    """A dataclass of figures as dictionaries and numbers, without histograms."""
    if not dataclasses.is_dataclass(figures):
        return figures
    names = [field.name for field in dataclasses.fields(figures)]
    return {name: plain(getattr(figures, name)) for name in names if name != "histogram"}
