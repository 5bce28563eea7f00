"""Whatever order the collector finalises things in, and whatever their finalisers call: every entrance refuses."""

from __future__ import annotations

import os

import pytest

from nbloop.kernels.base.kernel import kernels

FIRST = int(os.environ.get("NBLOOP_GRAPHS", "0"))  # seed of the first one


@pytest.mark.skipif(not kernels["submit"].address, reason="the collector does not see what un-jitted kernels hold")
def test_random_graphs(run_script):
    """contract, A forgotten loop: no crash, no exception that is not documented; nothing is left."""
    script = f"""
        from tests.support.graphs import main
        main({FIRST}, 60)
    """
    assert "60 graphs" in run_script(script)
