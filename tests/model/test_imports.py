"""The network can be lifted out: it needs torch and nothing else, not even moyun's configuration."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.helpers.models import ROOT

SCRIPT = """
import json, sys
import torch
{before}
known = set(sys.modules)
{statement}
new = set(sys.modules) - known
third_party = {{name.partition(".")[0] for name in new}} - set(sys.stdlib_module_names) - {{"modules"}}
print(json.dumps([sorted(third_party), sorted(name for name in new if name.startswith("modules."))]))
"""
FILES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "modules" / "model").rglob("[!_]*.py")
)


def loaded_by(statement: str, before: str = "") -> tuple[list[str], list[str]]:
    """(third-party packages, moyun's modules) that a statement loads into a new process that has torch already."""
    script = SCRIPT.format(before=before, statement=statement)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    third_party, own = json.loads(done.stdout)
    return third_party, own


def test_the_network_loads_torch_alone() -> None:
    third_party, own = loaded_by("import modules.model")
    assert third_party == []
    names = ("activation_checkpointing", "attention", "decoder", "kv_cache", "linear")
    assert own == ["modules.model", *(f"modules.model.{name}" for name in names)]


def test_so_does_all_that_is_computed_with_it() -> None:
    assert len(FILES) > 5
    spread = "import torch.distributed.fsdp, torch.distributed.tensor.parallel"  # torch's own need of sympy
    third_party, own = loaded_by("import " + ", ".join(FILES), spread)
    assert third_party == []
    assert own == sorted(["modules.model", "modules.model.decoding", *FILES])


@pytest.mark.parametrize("package", ["omegaconf", "yaml", "mlflow", "tokenizers"])
def test_a_package_too_many_would_be_seen(package: str) -> None:
    assert package in loaded_by(f"import modules.model, {package}")[0]
