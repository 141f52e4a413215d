"""Which files hold the rows of a split: one, several, a folder's, by the names that people give them."""

from __future__ import annotations

import glob
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

from ...system.paths import expanded
from ..quarantine import DataError

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

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")

SHARD = re.compile(r"(?P<name>.+?)[-_.](?P<number>\d+)(?:-of-(?P<all>\d+))?")
"""train-00000-of-00002 or train_3: a part of a split."""

NOT_DATA = ("readme", "license", "licence", "requirements", "dataset_info", "dataset_infos", "manifest", "metadata")
"""Names of files that stand beside the rows."""


def file_format(path: Path) -> str | None:
    """`.csv` for both x.csv and x.CSV.gz; None for anything that load_rows doesn't read."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in FORMATS and not (packed and suffix == ".parquet") else None


def several(source: str | Path) -> list[Path] | None:
    """The files of `[a.csv,b.csv]` or of a pattern like `data/*.jsonl`, in this order; None for any other source."""
    text = str(source)
    if Path(expanded(text)).exists():
        return None
    if text.startswith("[") and text.endswith("]"):
        parts = [part.strip().strip("'\"") for part in text[1:-1].split(",")]
    elif glob.has_magic(text):
        parts = [text]
    else:
        return None
    files = [path for part in parts for path in _matching(part, text)]
    if repeated := sorted({str(path) for path in files if files.count(path) > 1}):
        raise DataError(f"{text} names {repeated[0]} twice; name each file once")
    return files


def _matching(part: str, text: str) -> list[Path]:
    path = Path(expanded(part))
    if path.is_dir():
        raise DataError(f"{text}: {part} is a folder; name its files, {part}/*.jsonl")
    if path.exists():
        return [path]
    found = [Path(name) for name in glob.glob(str(path), recursive=True)] if glob.has_magic(part) else []
    files = sorted((file for file in found if not file.is_dir()), key=by_number)
    if not files:
        raise DataError(f"{text}: there is no file {part}; check it, and the path from {Path.cwd()}")
    _check_of_one_split(part, files)
    return files


def _check_of_one_split(pattern: str, files: list[Path]) -> None:
    """DataError where a pattern finds files of two splits, or rows held out among others."""
    chosen = next(number for number, part in enumerate(Path(pattern).parts) if glob.has_magic(part))
    depth = len(Path(expanded(pattern)).parts) - len(Path(pattern).parts) + chosen
    of_splits = [set[str]().union(*map(splits_like, file.parts[depth:])) for file in files]
    found = [split for split in SPLIT_NAMES if any(split in splits for splits in of_splits)]
    if len(found) > 1 or (found not in ([], ["train"]) and not all(of_splits)):
        listed = ", ".join("/".join(file.parts[depth:]) for file in files[:5])
        others = " and ".join(found) if len(found) > 1 else f"{found[0]} and others"
        raise DataError(
            f"{pattern} names files of {others} ({listed}); name those of one split, or file by file, [A,B]"
        )


def is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def split_files(folder: str | Path, split: str) -> list[Path]:
    """The files, or the folder written by `save_to_disk`, that hold `split`; [] where there are none.

    A split goes by any of its SPLIT_NAMES: train.csv, else poems-train.csv; its shards train-00000-of-00002.csv …;
    the files in train/; and all of these in data/. DataError where more than one would do, or a shard is missing.
    """
    split, names = next(((key, names) for key, names in SPLIT_NAMES.items() if split in names), (split, (split,)))
    for place in places_in(Path(folder)):
        found = _named(place, names)
        if len(found) > 1:
            listed = ", ".join(sorted(f"{paths[0].name}{' …' * (len(paths) > 1)}" for paths in found.values()))
            raise DataError(f"{folder}: more than one file for split {split!r}: {listed}; keep one, or give its path")
        for paths in found.values():
            _check_complete(paths)
            if others := [of for of, other in SPLIT_NAMES.items() if of != split and _is_of(paths[0], other)]:
                raise DataError(f"{paths[0]}: of {split} or of {others[0]}? Name it for one split, {split}.*")
            is_folder = paths[0].is_dir() and not is_saved_dataset(paths[0])
            return data_files(paths[0], split) if is_folder else paths
    return []


def is_divided(folder: Path) -> bool:
    """Whether a folder has files of single splits; otherwise all that it holds are one."""
    return any(_named(place, names) for place in places_in(folder) for names in SPLIT_NAMES.values())


def places_in(folder: Path) -> list[Path]:
    return [place for place in (folder, folder / "data") if place.is_dir()]


def _named(folder: Path, names: Collection[str]) -> dict[str, list[Path]]:
    """What goes by one of the names: single files, sets of shards, folders. A name that is just it comes first.

    Where train.* is named so, test_ids.txt and valid-predictions.csv beside it are somebody's notes and no split.
    """
    exact, inside = _exact_and_inside(folder, names)
    trained = _exact_and_inside(folder, SPLIT_NAMES["train"])[0]
    return exact or ({} if trained else inside)


def _exact_and_inside(folder: Path, names: Collection[str]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """What is called just by one of the names, of that only the best; and what has one of them as a word."""
    exact: dict[str, list[Path]] = {}
    inside: dict[str, list[Path]] = {}
    second: set[str] = set()
    for path in visible(folder):
        if path.is_dir():
            group = exact if path.name.lower() in names else inside if _is_of(path, names) else None
            if group is not None and (is_saved_dataset(path) or any(map(file_format, path.rglob("*")))):
                group[path.name] = [path]
                second |= set() if is_saved_dataset(path) else {path.name}
        elif stem := stem_of(path):
            shard = SHARD.fullmatch(stem)
            name, key = (shard["name"], f"{shard['name']} {shard['all']}") if shard else (stem, path.name)
            if name in names:
                exact.setdefault(key, []).append(path)
                second |= {key} if name in SECOND_NAMES else set()
            elif _is_of(path, names):
                inside.setdefault(key, []).append(path)
    best = {key: paths for key, paths in exact.items() if key not in second}
    return best or exact, inside


def _is_of(path: Path, names: Collection[str]) -> bool:
    """Whether the name of a file or folder has one of the names as a word: poems-train.csv, testset1.csv."""
    words = words_of(path.name if path.is_dir() else _own_stem(path) or "")
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
    stem = _own_stem(path)
    return None if stem is None else stem.lower()


def _own_stem(path: Path) -> str | None:
    kind = file_format(path)
    packed = path.name.lower().endswith(".gz")
    return path.name[: -len(kind) - 3 * packed] if kind else None


def _check_complete(paths: list[Path]) -> None:
    """DataError where train-00000-of-00003 and -00002-of-00003 are there and the one between them isn't."""
    shards = [shard for path in paths if (shard := SHARD.fullmatch(stem_of(path) or "")) and shard["all"]]
    if shards and len(paths) != int(shards[0]["all"]):
        there = ", ".join(path.name for path in paths[:5])
        raise DataError(
            f"{paths[0].parent}: {len(paths)} of {int(shards[0]['all'])} shards are there ({there}); add the others, or"
            f" give these as a pattern, '{paths[0].parent}/{shards[0]['name']}-*'"
        )


def data_files(folder: Path, split: str | None = None) -> list[Path]:
    """All files of a folder that has no splits, and of folders in it. DataError unless all are of one format.

    split: that the whole folder is. A name that may be of another one is refused: better than to train on test rows.
    """
    files: list[Path] = []
    for path in visible(folder):
        is_data = file_format(path) and stem_of(path) not in NOT_DATA
        if path.is_dir():
            is_data = is_saved_dataset(path) or any(map(file_format, path.rglob("*")))
        if is_data and (others := splits_like(path.name) - {split}):
            raise DataError(
                f"{folder}: {path.name} may hold rows for {min(others)}: name the files train.* and test.*, or give "
                f"those for one split as a pattern, '{folder}/NAME*', or a list, [A,B]"
            )
        if path.is_dir():
            if is_saved_dataset(path) or is_divided(path):
                raise DataError(f"{folder}: rows are in {path}, which is to be given itself")
            files += data_files(path, split)
        elif is_data:
            files.append(path)
    kinds = sorted({str(file_format(path)) for path in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder} has files of several formats ({', '.join(kinds)}) and none named train: give one kind as a"
            f" pattern, '{folder}/*{kinds[0]}', or name one train{kinds[0]}"
        )
    return files


def visible(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if entry.name[0] not in "._~"), key=by_number)


def by_number(path: Path) -> list[int | str]:
    """Sorts part-10 after part-9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def find_files(source: str | Path, split: str | None) -> list[Path] | None:
    """The files, or the saved Dataset, that hold the split; None where there is no such path here."""
    path = Path(expanded(str(source)))
    files = several(source)
    is_folder = files is None and path.is_dir() and not is_saved_dataset(path)
    if files is None and not path.exists():
        return None
    if is_folder and is_divided(path):
        files = split_files(path, split or "train")
    else:
        files = files or (data_files(path) if is_folder else [path])
        check_undivided(str(source), split if files else None)
    if not files:
        split = split or "train"
        present = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise DataError(
            f"{path} has no file for split {split!r}; it holds {present};"
            f" name one {split}.csv (.jsonl, .parquet, …), or give a file's path"
        )
    for file in files:  # a pipe would be waited for, and what was read of it once is gone
        if not file.is_file() and not file.is_dir():
            raise DataError(f"{file}: no regular file but a pipe or device; save what it gives to a file first")
    return files


def check_undivided(where: str, split: str | None) -> None:
    """DataError where a split other than train is asked for of what has none."""
    if split not in (None, "train"):
        raise DataError(
            f"{where} has no splits, so no {split!r}; give a folder with train.* and {split}.*, or leave split out"
        )


def check_prepared(source: object) -> None:
    """What conf/data/ names is made by a stage of ours: say which, where it hasn't run yet."""
    if isinstance(source, str) and Path(source).parts[:1] == ("prepared",) and not Path(source).exists():
        name = Path(source).parts[1:2]
        command = "python -m pipelines.prepare" + (f" source={name[0]}" if name and name != ("sample",) else "")
        raise DataError(f"{source} isn't there yet: `{command}` makes it; or give rows of your own, data.path=FILE")


def may_be_on_hub(source: str | Path) -> bool:
    """Whether the name of what isn't a path here may be that of a dataset of the Hugging Face hub."""
    return isinstance(source, str) and bool(HUB_NAME.fullmatch(source)) and file_format(Path(source)) is None


def nowhere(source: str | Path, reason: str = "no such path") -> DataError:
    where = f"{source} is neither a file nor a reachable hub dataset ({reason})"
    return DataError(f"{where}; check the name, or the path from {Path.cwd()}")
