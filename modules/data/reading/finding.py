"""Which files hold the rows of a split: one, several, a folder's, by the names that people give them."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from pathlib import Path

from ...config.data import CLONES
from ...system.paths import expanded
from ..quarantine import DataError
from .split_names import SECOND_NAMES, SHARD, SPLIT_NAMES, file_format, is_of, splits_like, stem_of

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")

NOT_DATA = ("readme", "license", "licence", "requirements", "dataset_info", "dataset_infos", "manifest", "metadata")
"""Names of files that stand beside the rows."""


def listed(text: str) -> list[str] | None:
    """The parts of `[a.csv,b.csv]`; None for what is no list."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    return [part.strip().strip("'\"") for part in text[1:-1].split(",")]


def several(source: str | Path) -> list[Path] | None:
    """The files of `[a.csv,b.csv]` or of a pattern like `data/*.jsonl`, in this order; None for any other source."""
    text = str(source)
    if Path(expanded(text)).exists():
        return None
    parts = listed(text) or ([text] if glob.has_magic(text) else None)
    if parts is None:
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
            if others := [of for of, other in SPLIT_NAMES.items() if of != split and is_of(paths[0], other)]:
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
            group = exact if path.name.lower() in names else inside if is_of(path, names) else None
            if group is not None and (is_saved_dataset(path) or any(map(file_format, path.rglob("*")))):
                group[path.name] = [path]
                second |= set() if is_saved_dataset(path) else {path.name}
        elif stem := stem_of(path):
            shard = SHARD.fullmatch(stem)
            name, key = (shard["name"], f"{shard['name']} {shard['all']}") if shard else (stem, path.name)
            if name in names:
                exact.setdefault(key, []).append(path)
                second |= {key} if name in SECOND_NAMES else set()
            elif is_of(path, names):
                inside.setdefault(key, []).append(path)
    best = {key: paths for key, paths in exact.items() if key not in second}
    return best or exact, inside


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


MADE_WITH = {
    "sample": "",
    "question_generation": " source=question_generation archive=cmrc2018_dev.json",
    **{name: f" source={name} archive=YOUR_CLONE" for name in CLONES},
    "modern": " source=classical_modern archive=YOUR_CLONE join=tgt_txt output_dir=prepared/modern",
    "classical": " source=classical_modern archive=YOUR_CLONE join=src_txt output_dir=prepared/classical",
}
"""Folder of prepared/ → what prepare is told, where that isn't the source alone."""


def check_prepared(source: object) -> None:
    """What conf/data/ names is made by a stage of ours: say which, where it hasn't run yet."""
    if isinstance(source, str) and Path(source).parts[:1] == ("prepared",) and not Path(source).exists():
        name = "".join(Path(source).parts[1:2])
        command = f"python -m pipelines.prepare{MADE_WITH.get(name, f' source={name}' if name else '')}"
        raise DataError(f"{source} isn't there yet: `{command}` makes it; or give rows of your own, data.path=FILE")


def may_be_on_hub(source: str | Path) -> bool:
    """Whether the name of what isn't a path here may be that of a dataset of the Hugging Face hub."""
    return isinstance(source, str) and bool(HUB_NAME.fullmatch(source)) and file_format(Path(source)) is None


def nowhere(source: str | Path, reason: str = "no such path") -> DataError:
    where = f"{source} is neither a file nor a reachable hub dataset ({reason})"
    return DataError(f"{where}; check the name, or the path from {Path.cwd()}")
