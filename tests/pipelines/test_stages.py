"""The stage scripts: short, and printing nothing but through cli/."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.models import ROOT

SCRIPTS = sorted((ROOT / "pipelines").glob("*.py"))
LINES = {"train.py": 170}
"""Where a script may have more than 80."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_stage_script_is_read_in_one_sitting(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= LINES.get(script.name, 80)


def prints(file: Path) -> list[int]:
    """Lines that print by themselves: print(…), console.print(…), sys.stdout.write(…)."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    said = ("print", "console.print", "sys.stdout.write", "sys.stderr.write")
    return [call.lineno for call in calls if ast.unparse(call.func) in said]


@pytest.mark.parametrize("folder", ["modules", "pipelines"])
def test_only_the_command_line_prints(folder: str) -> None:
    cli = ROOT / "pipelines" / "cli"
    files = [path for path in (ROOT / folder).rglob("*.py") if cli not in path.parents]
    assert files
    assert {str(path.relative_to(ROOT)): lines for path in files if (lines := prints(path))} == {}
    assert prints(cli / "printing.py")
