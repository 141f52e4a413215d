"""What isn't imported before a command's first result: each of these is time that everybody would wait.

Training has no such list: Lightning and MLflow themselves import SciPy, pandas, matplotlib and torch's compiler.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.models import ROOT

GENERATE = """
import sys
from modules.config.loader import load_config
from pipelines.generate import generate
{before}
generate(load_config("generate", sys.argv[1:]))
print("", *sys.modules)
"""

HEAVY = {
    *("mlflow", "pandas", "sqlalchemy", "matplotlib"),  # tracking
    *("pytorch_lightning", "torchmetrics", "scipy", "datasets", "pyarrow", "torch.distributed.checkpoint"),  # training
    *("torch._dynamo", "sympy"),  # compilation
}


def loaded_by_generate(before: str = "") -> set[str]:
    """All modules that a new process has once it has written one token with the model in a folder."""
    arguments = ["prompt=白日依山尽，", "model=models/poems", "generation.max_new_tokens=1"]
    command = [sys.executable, "-c", GENERATE.format(before=before), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_text_from_a_folder_needs_torch_and_no_library_of_training_or_tracking() -> None:
    loaded = loaded_by_generate()
    assert {"torch", "tokenizers"} <= loaded
    assert not loaded & HEAVY


def test_converting_needs_no_library_of_training() -> None:
    command = [sys.executable, "-c", "import sys, pipelines.convert; print(*sys.modules)"]
    loaded = set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    assert "pipelines.convert" in loaded
    assert not loaded & {"pytorch_lightning", "torchmetrics"}


@pytest.mark.parametrize("module", ["pyarrow", "torch.distributed.checkpoint"])
def test_a_library_too_many_would_be_seen(module: str) -> None:
    assert module in loaded_by_generate(f"import {module}") & HEAVY
