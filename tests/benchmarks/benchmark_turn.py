"""Turns that tests/benchmarks/test_benchmark.py has taken."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import numpy as np

from benchmarks.measuring import WATCH_SECONDS
from benchmarks.work import Work


def half_a_gibibyte(work: Work) -> dict[str, Any]:
    """Memory that is written to, and given back before the end."""
    block = np.ones(2**26)
    time.sleep(5 * WATCH_SECONDS)
    del block
    store = [name for name in os.environ if name.startswith("MLFLOW_")]
    ended = time.time()
    time.sleep(1)
    return {"ended_at": ended, "environment": store}


def endless(work: Work) -> dict[str, Any]:
    """As a turn that runs a command, which would go on."""
    subprocess.run(["sleep", "60"], check=True)
    return {}
