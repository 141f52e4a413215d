"""How a model folder was made: what its run.yaml says of the training, whatever it was converted to since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .small_files import read_plain_yaml


def how_made(folder: Path) -> dict[str, Any]:
    """run.yaml of the training (tracking.provenance), through conversions; empty where nothing readable is there."""
    try:
        found = read_plain_yaml(folder / "run.yaml")
    except (OSError, ValueError):
        return {}
    while isinstance(found, dict) and found.get("stage") == "convert":
        source = found.get("source")
        if not isinstance(source, dict) or "run" not in source:  # of a format that doesn't tell
            break
        found = source["run"]
    return found if isinstance(found, dict) else {}
