"""A registered version's description in MLflow: the model's card, or else where it comes from and how it scored."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient

from ...checkpoint.model_folder import describe_provenance, read_provenance
from ...system.redaction import redact_text
from ..models.exported_model import description_of

CARD = "README.md"

NOT_SAID = ("champion", "test_rows_sha256")
"""Tags that the description leaves out: who has the alias changes, and a digest is for programs."""

LONGEST = 5000
"""Characters that MLflow's databases keep."""


def describe_version(name: str, number: str, folder: Path, tags: Mapping[str, str]) -> None:
    """Writes it; tags: the version's own, which say how it scored."""
    command = f"python -m pipelines.generate {shlex.quote(f'model=models:/{name}/{number}')} 春"
    MlflowClient().update_model_version(name, number, version_note(folder, tags, command))


def version_note(folder: Path, tags: Mapping[str, str], command: str) -> str:
    """command: what to do with the version next."""
    card = folder / CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
    else:
        facts = describe_provenance(read_provenance(folder), "trained")
        facts |= {name: value for name, value in tags.items() if name not in NOT_SAID}
        lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
        text = "\n".join([description_of(folder), *lines, "", "Next:", "", f"    {command}"]).strip()
    text = redact_text(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2].rpartition(chr(10))[0]}\n…"
