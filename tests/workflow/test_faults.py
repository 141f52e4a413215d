"""A handful of what `make faults` does at length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.models import ROOT


def test_broken_runs_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.workflow.faults", "count=8", "seed=3", f"folder={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (total,) = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    assert int(total[1]) >= 8
    assert total[1:] == [total[1], total[1], "0"]
