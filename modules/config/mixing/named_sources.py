"""Sources of a mixture that are data sets of conf/data: `{data: translate, weight: 0.3}`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...system.bounded_read import read_plain_yaml
from ...system.paths import expanded
from ..schema import CONF, group_names, suggestion
from .mixture_sources import GIVEN, SourceConfig


def with_data_sets(sources: Any) -> Any:
    """A list of sources in which what a data set says stands in place of its name; anything else as it is.

    ValueError for a data set that isn't there, or says what is one for all sources.
    """
    if not isinstance(sources, list):
        return sources
    return [
        with_data_set(source, number) if isinstance(source, Mapping) and source.get("data") else source
        for number, source in enumerate(sources, 1)
    ]


def with_data_set(source: Mapping[Any, Any], number: int) -> dict[Any, Any]:
    name, where = str(source["data"]), f"source {number}: data: {source['data']}"
    by_file = name.endswith((".yaml", ".yml"))
    file = Path(expanded(name)) if by_file else CONF / "data" / f"{name}.yaml"
    if not os.path.isfile(file):
        known = group_names("data")
        raise ValueError(
            f"{where}: no such data set; must be one of {', '.join(known)}, or a YAML file's path; rows of your own "
            f"are path: {name}{suggestion(name, known)}"
        )
    said = read_plain_yaml(file)
    if not isinstance(said, Mapping) or not said.get("path"):
        raise ValueError(f"{where}: {file} must say the path of its rows")
    if others := said.keys() - {field.name for field in fields(SourceConfig)}:
        raise ValueError(
            f"{where}: {file} says {', '.join(sorted(map(str, others)))}, which is one for all sources; say it as "
            "data.KEY, and the path of the rows here"
        )
    unset = {key for key, value in source.items() if key in GIVEN and value in (None, "", "null")}
    own = {key: value for key, value in source.items() if key not in {"data", *unset}}
    return {"name": file.stem, **said, **own}
