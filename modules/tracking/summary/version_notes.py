"""A registered version's description in MLflow: the model's card, or else where it comes from and how it scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient

from ...checkpoint.model_folder import describe_provenance, read_provenance
from ...system.redaction import redact_text

CARD = "README.md"

LONGEST = 5000
"""Characters that MLflow's databases keep."""


def describe_version(name: str, number: str, folder: Path, tags: Mapping[str, str]) -> None:
    """Writes it; tags: the version's own, which say how it scored."""
    MlflowClient().update_model_version(name, number, version_note(folder, tags))


def version_note(folder: Path, tags: Mapping[str, str]) -> str:
    card = folder / CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
    else:
        facts = {**describe_provenance(read_provenance(folder), "trained"), **tags}
        text = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items())
    text = redact_text(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2].rpartition(chr(10))[0]}\n…"
