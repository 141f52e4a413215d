"""Where a model is: a folder, or a URI that MLflow knows."""

from __future__ import annotations

import re
from pathlib import Path

EMBEDDED = "models/poems"
"""The model that comes with moyun: pretrained on classical poems."""

URL = re.compile(r"[A-Za-z][\w+.-]*://")


def is_registered(place: str) -> bool:
    """Whether MLflow has to be asked where the model is."""
    return place.startswith(("models:/", "runs:/"))


def model_folder(path: str | Path) -> Path:
    """The folder itself; of a training stage's output folder, the model in it. ValueError for a URL."""
    if URL.match(str(path)):
        raise ValueError(f"{path}: models aren't fetched from URLs; give a folder, or a models:/ URI")
    folder = Path(path)
    if str(path) == EMBEDDED and not folder.exists():  # wherever the command is called
        folder = Path(__file__).parents[1] / EMBEDDED
    return folder / "model" if (folder / "model" / "model.yaml").is_file() else folder
