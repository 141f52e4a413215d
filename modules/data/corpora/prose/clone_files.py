"""The text files of a user's clone. Links aren't followed: a clone may hold some that lead out of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from ....config.data import CLONES

FOLDERS = {
    "classical_modern": ("双语数据",),
    "articles": ("published", "translated"),
    "statutes": (
        "刑法", "司法解释", "宪法", "宪法相关法", "民法典", "民法商法", "社会法", "经济法", "行政法", "行政法规",
        "诉讼与非诉讼程序法", "部门规章",
    ),
}  # fmt: skip
"""Source → the folders of its repository that are read. Of the laws not those of single cities and provinces, which
repeat the national ones, and neither cases nor guides, which somebody has written."""

MOST_BYTES = 20_000_000
"""Of a file; the largest that there are have 2 MB."""


def require_clone(source: str, archive: str) -> list[Path]:
    """The folders to read. ValueError where this is no clone of the source's repository."""
    clone = Path(archive)
    if not clone.is_dir():
        what = "is a file; unpack it, and" if clone.exists() else "isn't there:"
        raise ValueError(f"archive={archive} {what} give the folder that {command(source)} makes")
    folders = [clone / name for name in FOLDERS[source]]
    found = [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]
    if not found:
        raise ValueError(
            f"archive={archive} has no folder {FOLDERS[source][0]}: give the folder that {command(source)} makes"
        )
    return found


def command(source: str) -> str:
    return f"`git clone --depth 1 https://github.com/{CLONES[source]}`"


def files_named(folders: Collection[Path], ending: str) -> Iterator[Path]:
    """The regular files below the folders whose names end so, in the order of their paths."""
    for folder in folders:
        for place, below, names in os.walk(folder):
            below.sort()
            files = (Path(place, name) for name in sorted(names) if name.endswith(ending))
            yield from (file for file in files if file.is_file() and not file.is_symlink())


def read_text(file: Path, counts: Counter[str]) -> str | None:
    """None for what isn't UTF-8 or too large to be text that somebody wrote; counts how many."""
    if not file.is_file() or file.is_symlink():
        return None
    if file.stat().st_size > MOST_BYTES:
        counts[f"files over {MOST_BYTES // 10**6} MB"] += 1
        return None
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        counts["files that aren't UTF-8"] += 1
        return None
