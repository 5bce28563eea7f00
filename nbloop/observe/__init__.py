"""Looking at loops: figures, from inside the process or from another one."""

from .metrics import Histogram, Metrics, Quantiles, Queues, Running

__all__ = ["Histogram", "Metrics", "Quantiles", "Queues", "Running"]
