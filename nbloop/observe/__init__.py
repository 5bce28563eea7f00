"""Looking at loops: figures, from inside the process or from another one; profiles; a debug server.

What only some need is imported where it is used: `profile` (processor time), `heap`, `contention`, `watchdog`,
`server`, `shared`, `prometheus`, `opentelemetry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .metrics import Histogram, Metrics, Quantiles, Queues, Running

if TYPE_CHECKING:
    from ..loop import Loop
    from .server import DebugServer


def serve(loop: Loop, port: int = 0) -> DebugServer:
    """Serve a loop's figures and profiles on 127.0.0.1 (`nbloop.observe.server`); the system chooses the port if it is
    0. Close it when done, or use it in a ``with`` block.

    Figures need ``metrics=``. Any thread; not a signal handler. TypeError, ValueError, OSError if the port is taken.
    """
    from .server import DebugServer

    return DebugServer(loop, port)


__all__ = ["Histogram", "Metrics", "Quantiles", "Queues", "Running", "serve"]
