"""Files that are read whole, with a limit: what comes with somebody else's model may be of any size and depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from .paths import require_regular

VOCABULARY = 200_000_000
"""Bytes; the largest tokenizer.json in use have some 30 million."""

SETTINGS = 200_000
"""Bytes of a configuration; a run.yaml of a dozen sources, with what it was made from, has some 20 thousand."""


def require_small(path: Path, limit: int) -> None:
    """ValueError for a file of over `limit` bytes, or for what is no regular file; for those that a library reads."""
    if require_regular(path).st_size > limit:
        raise ValueError(f"{path} is over {limit:,} bytes, far more than such a file takes; copy it again")


def read_text(path: Path, limit: int = SETTINGS) -> str:
    """Raises ValueError naming a file that is over `limit` bytes, or isn't UTF-8."""
    require_small(path, limit)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); copy it again from where it came from") from error


def read_json(path: Path, limit: int = VOCABULARY) -> Any:
    """Raises ValueError naming the file."""
    try:
        return json.loads(read_text(path, limit))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply") from error


def read_plain_yaml(path: Path) -> Any:
    """YAML that says just what stands in it: ValueError for anchors (a kilobyte of which unfolds to gigabytes), tags
    (which name classes to be made) and ${…} (which looks up the reader's own environment)."""
    text = read_text(path)
    if text.count("[") + text.count("{") > 100:  # PyYAML's time grows with the square of their depth
        raise ValueError(f"{path} is nested too deeply for plain values; copy it again from where it came from")
    try:
        tokens = yaml.scan(text, yaml.SafeLoader)
        if "${" in text or any(isinstance(token, (yaml.AliasToken, yaml.TagToken)) for token in tokens):
            raise ValueError(f"{path} holds an anchor, a tag or ${{…}}; nothing but plain values belongs there")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error


def require_file(folder: Path, name: str) -> None:
    """ValueError that names `name` and what `folder` holds instead."""
    if folder.is_file():
        raise ValueError("this is a file; give a model folder")
    if not (folder / name).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no folder"
        raise ValueError(f"{name} is missing (found: {found or 'nothing'}); give a model folder")


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} where there is no such file; ValueError for other content."""
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content
