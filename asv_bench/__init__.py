"""Measurements of nbloop: `compare` prints them beside asyncio's; `benchmarks` is the asv suite."""
