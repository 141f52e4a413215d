"""The rows in a request of MLflow's scoring protocol: one reader for our server and for the registered model.

Whatever is refused is a ValueError whose message begins with the field.
"""

from __future__ import annotations

from typing import Any

from ..config.base import shown

EXAMPLE_BODY = '{"inputs": {"src_txt": ["白日依山尽，"]}}'
BODY_FORMATS = ("inputs", "instances", "dataframe_split", "dataframe_records")
COLUMN = "src_txt"


def column_of(content: Any, name: str) -> list[Any]:
    """The values of src_txt, unchecked, in any of the four forms of JSON; other columns are ignored, as MLflow does."""
    if name == "dataframe_split":
        return column_of_split(content)
    if isinstance(content, dict) and name != "dataframe_records":
        texts = content.get(COLUMN)
        if isinstance(texts, str | list):
            return [texts] if isinstance(texts, str) else texts
    elif isinstance(content, list):
        if all(isinstance(row, dict) and COLUMN in row for row in content):
            return [row[COLUMN] for row in content]
        if name != "dataframe_records" and not any(isinstance(row, dict | list) for row in content):
            return content  # the one column, without its name
    raise ValueError(f"{name} must have the column {COLUMN}, e.g. {EXAMPLE_BODY}, not {shown(content)}")


def column_of_split(content: Any) -> list[Any]:
    """{"columns": ["src_txt", …], "data": [["春", …], …]}, with pandas's "index" or without."""
    if not isinstance(content, dict) or set(content) - {"columns", "data", "index"}:
        raise ValueError(f"dataframe_split must have columns and data, not {shown(content)}")
    names, data = content.get("columns"), content.get("data")
    if not isinstance(names, list) or COLUMN not in names:
        raise ValueError(f"dataframe_split must have columns with '{COLUMN}' among them, not {shown(names)}")
    if not isinstance(data, list) or not all(isinstance(row, list) and len(row) == len(names) for row in data):
        raise ValueError(f"dataframe_split must have data of {len(names)} values a row, [['春'], …], not {shown(data)}")
    place = names.index(COLUMN)
    return [row[place] for row in data]
