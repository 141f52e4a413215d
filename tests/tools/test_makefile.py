"""The documentation's `make …` commands do something."""

from __future__ import annotations

import re
import subprocess

from tests.helpers.models import ROOT


def test_every_make_target_in_the_documentation_has_a_recipe() -> None:
    texts = "\n".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", texts, re.MULTILINE))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo", "test", "faults"} <= named
    assert named <= set(re.findall(r"^ {2}make ([a-z]+)", listed, re.MULTILINE))
    for target in named:
        planned = ["make", "--dry-run", target, "VENV=."]
        assert "Nothing to be done" not in subprocess.run(planned, cwd=ROOT, capture_output=True, text=True).stdout
