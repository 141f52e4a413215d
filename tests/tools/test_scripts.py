"""Scripts that no other test runs, as they take long, still find what they import."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.helpers.models import ROOT

SCRIPTS = [path for folder in ("tools", "benchmarks") for path in sorted((ROOT / folder).glob("[!_]*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_script_finds_what_it_imports(script: Path) -> None:
    importlib.import_module(f"{script.parent.name}.{script.stem}")
