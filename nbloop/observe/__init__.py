"""Observing loops: figures, read inside the process or from another one; profiles; a debug server.

Optional parts are imported only where they are used: `profile` (CPU time), `heap`, `contention`, `watchdog`, `server`,
`shared`, `prometheus`, `opentelemetry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .metrics import Histogram, Metrics, Quantiles, Queues, Running

if TYPE_CHECKING:
    from .server import DebugServer, Served, ServedGroup


def serve(loop: Served | ServedGroup, port: int = 0) -> DebugServer:
    """Serve the figures and profiles of a loop, or of a group of loops (`nbloop.LoopGroup`, ``worker.group``), on
    127.0.0.1 (`nbloop.observe.server`). With port 0 the system chooses one. Close the server when done, or use it in a
    ``with`` block. It ends when the loop is collected, too, and does not keep the loop. If a signal handler raises out
    of this call, nothing is left.

    Figures need ``metrics=``. Any thread; not a signal handler. Raises TypeError or ValueError for a bad port, OSError
    if the port is taken.

    O(1) here; a request for figures takes O(loops), on a thread of its own.

    >>> import nbloop, urllib.request
    >>> with nbloop.Loop(metrics=True) as loop, serve(loop) as server:
    ...     urllib.request.urlopen(server.url + "healthz").status
    200
    """
    from .server import DebugServer

    server = DebugServer(loop, port)
    server._begin()
    return server


__all__ = ["Histogram", "Metrics", "Quantiles", "Queues", "Running", "serve"]
