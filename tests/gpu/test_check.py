"""The check of a GPU runs from end to end without one, small; so on a card it fails by what the card does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.models import ROOT

from . import check, results


@pytest.mark.server
@pytest.mark.timeout(600)  # half a minute, where nothing else runs
def test_the_check_runs_small_on_a_cpu_and_its_figures_are_taken_over(tmp_path: Path) -> None:
    environment = os.environ | {"DEVICE": "cpu", "OUT": str(tmp_path), "PYTHON": sys.executable, "LIMIT": "580"}
    done = subprocess.run(["bash", "tests/gpu/check.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert not [row for row in rows if row["ok"] is False]
    assert {row["part"] for row in rows} >= {
        "facts",
        "parity",
        "pipeline",
        "training",
        "compiled",
        "decoding",
        "server",
    }
    assert "not begun" not in {row["what"] for row in rows}
    assert "tiny, poems\n" in (tmp_path / "profiles.txt").read_text()
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- benchmark:begin gpu -->\nold\n<!-- benchmark:end gpu -->\nafter\n")
    check.take_over(document, tmp_path / "results.json")
    text = document.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "Made by `bash tests/gpu/check.sh` on " in text
    assert "| SIGTERM, the same command again | True |" in text


def fails() -> None:
    raise RuntimeError("no kernel image is available")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_part_that_fails_hangs_or_dies_is_told_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = {"fails": fails, "hangs": partial(time.sleep, 60), "dies": dies, "works": works}
    found = [check.Part(name, function, 0, 0.25) for name, function in functions.items()]
    monkeypatch.setattr(check, "parts", lambda: [*found, check.Part("long", works, 1e6, 1)])
    monkeypatch.setattr(check, "WORK", tmp_path)
    for module in (check, results):
        monkeypatch.setattr(module, "OUT", tmp_path)
    assert check.main() == 1
    said = {row["part"]: (row["what"], row["ok"]) for row in results.read()}
    assert said == {
        "fails": ("failed", False),
        "hangs": ("ended at its deadline", False),
        "dies": ("died", False),
        "works": ("done", True),
        "long": ("not begun", None),
    }
    assert "RuntimeError: no kernel image is available" in (tmp_path / "results.md").read_text()


def works() -> None:
    results.record("works", "done", True)
