"""What the name of a file or folder says: in which format its rows are, and of which split."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt")

SPLIT_NAMES = {
    "train": ("train", "training", "训练", "訓練"),
    "validation": ("validation", "valid", "dev", "val", "验证", "驗證", "开发", "開發"),
    "test": ("test", "testing", "eval", "evaluation", "测试", "測試"),
}
"""Split → what people call its file, as the datasets library has it, and in Chinese."""

SECOND_NAMES = ("eval", "evaluation")
"""Names that count only where there is none of the others, as a folder counts only where there is no file."""

_CHINESE = "|".join(name for names in SPLIT_NAMES.values() for name in names if not name.isascii())

WORD = re.compile(rf"{_CHINESE}|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|(?:(?!{_CHINESE})[^\W\d_A-Za-z])+")
"""Of a name: poems and Train of poemsTrain1, 唐诗 and 训练 and 集 of 唐诗训练集."""

SET = re.compile(r"(?:data)?(?:sets?|data|split|files?|rows)")
"""What is written on to a split's name: trainset, testdata."""

_BEGINNINGS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test", "eval")}

ORDINARY = re.compile(
    r"(?:la|grea|fas|shor|brigh|ligh|swee|con|pro|at|de)tests?|(?:re|con|di)?strain|retrieval|medieval|primeval|invalid"
    r"|testa\w+|testi[mf]\w+|devi\w+|devo\w+|develop\w*|trainers?"
)
"""Words that only begin or end like a split's name, as latest does."""

SHARD = re.compile(r"(?P<name>.+?)[-_.](?P<number>\d+)(?:-of-(?P<all>\d+))?")
"""train-00000-of-00002 or train_3: a part of a split."""


def file_format(path: Path) -> str | None:
    """`.csv` for both x.csv and x.CSV.gz; None for anything that load_rows doesn't read."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in FORMATS and not (packed and suffix == ".parquet") else None


def is_of(path: Path, names: Collection[str]) -> bool:
    """Whether the name of a file or folder has one of the names as a word: poems-train.csv, testset1.csv."""
    words = words_of(path.name if path.is_dir() else own_stem(path) or "")
    return any(
        word == name or (word.startswith(name) and SET.fullmatch(word, len(name))) for word in words for name in names
    )


def words_of(name: str) -> list[str]:
    return [word.lower() for word in WORD.findall(unicodedata.normalize("NFKC", name))]


def splits_like(name: str) -> set[str]:
    """Splits that a file or folder may be of by its name, if only a word of it begins or ends so: poemstest.csv."""
    words = [word.lower() for word in re.findall(r"[A-Za-z]+", unicodedata.normalize("NFKC", name))]
    words = [word for word in words if not ORDINARY.fullmatch(word)]
    return {
        split
        for split, parts in _BEGINNINGS.items()
        if any(word.startswith(parts) or word.endswith(parts) for word in words)
        or not set(SPLIT_NAMES[split]).isdisjoint(words_of(name))
    }


def stem_of(path: Path) -> str | None:
    """train of train.csv and of TRAIN.CSV.gz; None for what has no rows."""
    stem = own_stem(path)
    return None if stem is None else stem.lower()


def own_stem(path: Path) -> str | None:
    kind = file_format(path)
    packed = path.name.lower().endswith(".gz")
    return path.name[: -len(kind) - 3 * packed] if kind else None
