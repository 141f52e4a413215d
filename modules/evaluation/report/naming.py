"""What people call a model, for titles: its URI or folder may be a number that says nothing."""

from __future__ import annotations

import re
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ...checkpoint.loading import open_model
from ...checkpoint.model_folder import read_provenance
from ...config.base import CHINESE, POEMS
from ...model.decoder import parameter_count
from ...tracking.registry import version_with_alias


def model_name(place: str, folder: Path) -> str:
    """A version by its number, a model that comes with moyun by its folder, any other by the run that made it, its size
    and what it was trained on."""
    if place in (POEMS, CHINESE):
        return place
    return version_name(place) or ", ".join(filter(None, (maker(folder) or place, size(folder), rows(folder))))


def version_name(uri: str) -> str:
    """Of models:/NAME/VERSION and models:/NAME@ALIAS; of all else empty."""
    named = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@(.+))", uri)
    if not named:
        return ""
    name, number, alias = named.groups()
    try:
        held = version_with_alias(name, alias) if alias else None
    except MlflowException:  # the store is away
        held = None
    return f"{name} version {held.version} ({alias})" if held else f"{name} {alias or f'version {number}'}"


def maker(folder: Path) -> str:
    """The name of the run that trained a model, as the tracking store has it now, else its stage; else empty."""
    origin = read_provenance(folder)
    given = ((origin.get("config") or {}).get("tracking") or {}).get("run_name")
    try:
        name = MlflowClient().get_run(origin["run_id"]).info.run_name if origin.get("run_id") else None
    except MlflowException:
        name = None
    return str(name or given or origin.get("stage") or "")


def size(folder: Path) -> str:
    count = parameter_count(open_model(folder).config)
    return f"{count / 1e6:,.1f}M parameters" if count >= 1e5 else f"{count:,} parameters"


def rows(folder: Path) -> str:
    """How many rows a model was trained on, and of what, where its folder tells."""
    origin = read_provenance(folder)
    counts, data = origin.get("rows") or {}, (origin.get("config") or {}).get("data") or {}
    if data.get("mix"):
        of = {name.removeprefix("train/"): count for name, count in counts.items() if name.startswith("train/")}
        if len(of) > 3:
            return f"{sum(of.values()):,} rows of {len(of)} sources"
        return ", ".join(f"{count:,} rows of {name}" for name, count in of.items())
    count = counts.get("train")
    return f"{count:,} rows" + (f" of {Path(data['path']).name}" if data.get("path") else "") if count else ""
