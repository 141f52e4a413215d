"""What is wrong with a source shows in its first rows: read before anything that takes seconds to import."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ...config.commands import MADE_BY_STAGE, MainConfig
from ...config.data import CLONES, TRACES, DataConfig, PrepareConfig
from ...config.prediction import PredictConfig
from ...config.preferences.judging import PreparingConfig
from ...config.preferences.preference import PreferConfig
from ...config.training import TrainingConfig
from ...system.paths import expanded, is_below
from ..corpora.prose.clone_files import require_clone
from ..quarantine import Findings, said_of
from .column_names import (
    MESSAGES,
    OTHER_COLUMNS,
    TEXT_COLUMNS,
    check_mapping,
    check_present,
    require_mapped,
)
from .files import findings_of, read_files
from .finding import (
    check_prepared,
    find_files,
    is_divided,
    is_saved_dataset,
    may_be_on_hub,
    nowhere,
    split_files,
)
from .pair_columns import check_pair_mapping, check_pairs_present, columns_of_pairs, refuse_pairs
from .split_names import SPLIT_NAMES, file_format

FIRST_ROWS = 100

MOST_FILES = 100
"""Of a folder; the others are looked at when they are read."""

MOST_BYTES = 10_000_000
"""Of a .json file, which can only be read whole."""


def check_headers(config: object, prefix: str = "", made: Sequence[str] = ()) -> None:
    """DataError where the first rows of what a stage will read lack a column, or can't be read at all.

    prefix: what stands before the stage's keys, as `finetune.` in main; made: folders that stages before it make.
    """
    if isinstance(config, MainConfig):
        for name in ("prepare", *(["pretrain"] if config.from_scratch else []), "finetune", "evaluate", "register"):
            check_headers(getattr(config, name), f"{name}.", config.outputs)
    elif isinstance(config, PreparingConfig) and config.is_judged:
        if config.data.path:
            _check([(config.data.path, "train")], config.data.columns, "data.", config.data.bad_rows == "quarantine")
    elif isinstance(config, PrepareConfig):
        if config.source in CLONES and config.archive:
            require_clone(config.source, config.archive)
        elif config.source != TRACES and not config.is_public:
            sources = [(config.source, split) for split in SPLIT_NAMES]
            _check(sources, config.columns, prefix, config.bad_rows == "quarantine")
    elif isinstance(config, PredictConfig):
        source, texts = (config.source, config.split or "train"), ["src_txt", MESSAGES]
        _check([source], config.columns, prefix, tolerant=False, texts=texts)
    elif isinstance(data := getattr(config, "data", None), DataConfig):
        tolerant, pairs = data.bad_rows == "quarantine", isinstance(config, PreferConfig)
        for name, section in data.sources.items():
            sources = list(_sources_of(section, isinstance(config, TrainingConfig)))
            sources = [(source, split) for source, split in sources if not is_below(source, made)]
            with said_of(name):
                _check(sources, section.columns, f"{prefix}data.", tolerant, pairs=pairs)


def _sources_of(data: DataConfig, trains: bool) -> Iterator[tuple[str, str]]:
    """(source, split) of what a stage reads."""
    others = {"validation": data.validation_path, "test": data.test_path}
    if data.path and (trains or not data.test_path):
        for split in SPLIT_NAMES if trains else ["test"]:
            if not others.get(split):
                yield data.path, split
    for split, path in others.items():
        if path and (trains or split == "test"):
            yield path, split


def _check(
    sources: Iterable[tuple[str, str]],
    columns: Mapping[str, str],
    section: str,
    tolerant: bool,
    texts: Collection[str] = (*TEXT_COLUMNS, MESSAGES, *OTHER_COLUMNS),
    pairs: bool = False,
) -> None:
    """texts: what of the rows is read; anything else may be called as it likes. pairs: they are preferences."""
    mapping = check_pair_mapping(columns, section) if pairs else check_mapping(columns, section)
    origin = {target: name for target, name in mapping.items() if target in texts or pairs}
    others: Collection[str] = [name for target, name in origin.items() if target not in TEXT_COLUMNS]
    wanted = [name for name in origin.values() if name not in others and not pairs]
    others = columns_of_pairs(mapping) if pairs else others
    files = itertools.chain.from_iterable(itertools.starmap(_files, sources))
    headers: list[list[str]] = []
    for file in itertools.islice(dict.fromkeys(files), MOST_FILES):
        findings = findings_of([file], file)
        findings.section, findings.tolerant = section, tolerant
        kind = file_format(file)
        if kind == ".parquet":
            from .tables import parquet_columns

            parquet_columns(file, findings, wanted, others)
        elif kind != ".json" or file.stat().st_size <= MOST_BYTES:
            for _ in itertools.islice(read_files([file], findings, wanted, others), FIRST_ROWS):
                pass
        # The first rows of JSON may be bad ones, and are left out then.
        if findings.columns and not (tolerant and kind in (".json", ".jsonl", ".ndjson")):
            check_columns(findings, columns, origin, pairs)
        headers.append([*findings.columns, *(others if "json" in str(kind) else ())])  # where it may come later
    if headers:
        require_mapped(headers, columns, section)


def check_columns(findings: Findings, columns: Mapping[str, str], origin: Mapping[str, str], pairs: bool) -> None:
    """DataError unless `findings.columns`, all that a source has, hold what the mapping and the stage ask for."""
    if pairs:
        check_pairs_present(findings, origin)
    else:
        refuse_pairs(findings, origin)
        check_present(findings, columns, origin)


def _files(source: str, split: str) -> list[Path]:
    """The files of the split, [] for what isn't read as files or comes into being later."""
    if MADE_BY_STAGE.fullmatch(source):
        return []
    path = Path(expanded(str(source)))
    if path.is_dir() and not is_saved_dataset(path) and is_divided(path) and split != "train":
        return split_files(path, split)
    check_prepared(source)
    files = find_files(source, None)
    if files is None and not may_be_on_hub(source):
        raise nowhere(source)
    return [file for file in files or () if file.is_file()]
