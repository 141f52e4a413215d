"""Which rows a model is scored on: those that the command names, else those of its own training, else its task's."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import datasets

from ...checkpoint.loading import open_tokenizer
from ...config.data import DataConfig
from ...config.evaluation import ScoringConfig, TaskConfig
from ...config.loader import ConfigError, load_config
from ...config.schema import group_names
from ...data.arrow import fingerprint
from ...data.quarantine import DataError, Quarantine
from ...data.splits import (
    Place,
    choose_places,
    evaluation_place,
    load_splits,
    load_test_rows,
    load_training_rows,
    place_in,
    require_same_kind,
)
from ...tokenizer.tokenizer import Tokenizer
from ..baselines import NEEDS_TRAINING_ROWS
from ..task_evaluation import TaskRows
from ..task_rows import (
    REQUIRED,
    Trained,
    columns_of,
    rows_of_source,
    trained_on,
    usable_columns,
    with_targets,
)

OWN, CHANGED = "of the model's own training", "they have changed since then"
NO_TEST = "its validation rows, which chose its checkpoint, as it has no test rows"


@dataclass(frozen=True)
class ChosenRows:
    data: DataConfig
    """Of the rows that were chosen, with whatever else the command says of them."""
    place: Place
    """Of the test rows."""
    note: str
    """Whose rows they are, where the command doesn't name them."""
    model: Path
    trained: Trained | None
    """Of the model, where these are the rows of its own training, named or not."""


C = TypeVar("C", bound=ScoringConfig)


def choose_rows(config: C, name: str, model: Path) -> tuple[C, ChosenRows]:
    """The rows for a model (its folder, and its name in messages), and the configuration with them as its data.

    DataError where nothing names any, or there are none. A relative path in the model's run.yaml is looked for from the
    current folder, as the training's command did.
    """
    chosen = rows_for(config, name, model)
    return replace(config, data=chosen.data), chosen


def rows_for(config: ScoringConfig, name: str, model: Path) -> ChosenRows:
    given, trained = config.data, trained_on(model, config.data.cache_dir)
    usual = task_data(config.task)
    if given.path or given.test_path:
        own = trained.source_with(given) if trained else None
        of_mixture = own is not None and own is not trained
        template = DataConfig(prompt_template=usual.prompt_template)
        data = filled(given, replace(own.data, max_rows=None) if own and of_mixture else template)
        return ChosenRows(data, place_of(data, own), "", model, own)
    sources = list(trained.sources.values()) if trained else []
    plain = open_tokenizer(model).prompt_template is None
    named = next((one for one in sources if one.data.path or one.data.test_path), None) if len(sources) == 1 else None
    if usual.path and (named is None or (plain and wants_answers(config.task))):
        data = filled(given, usual)
        own = trained.source_with(data) if trained and trained.data.mix else None
        return ChosenRows(data, place_of(data, own), f"the data set of task={config.task.name}", model, own)
    names = ", ".join(group_names("data"))
    others = f"give data.path=FOLDER with test rows, data.test_path=FILE, or data=NAME ({names})"
    if trained and len(sources) > 1:
        paths = ", ".join(f"data.path={source.data.path} ({label})" for label, source in trained.sources.items())
        raise DataError(f"model={name} was trained on a mixture, and one source is scored at a time: give {paths}")
    if named is None:
        why = "was trained on rows in memory" if trained else "doesn't tell which rows it was trained on"
        raise DataError(f"model={name} {why}, so that these must be named: {others}")
    data = filled(given, replace(named.data, max_rows=None))  # a training may take some of them, a test takes all
    try:
        return ChosenRows(data, place_of(data, named), OWN, model, named)
    except DataError as error:
        raise DataError(
            f"{error} (these are the rows that model={name} was trained on, by its run.yaml; a relative path is looked "
            f"for from the folder where the command is called). For others {others}"
        ) from error


def scored_tokenizer(model: Path, data: DataConfig) -> Tokenizer:
    """The model's tokenizer; of one trained on a mixture with the prompt template of the source that is scored."""
    tokenizer, trained = open_tokenizer(model), trained_on(model, data.cache_dir)
    source = trained.source_with(data) if trained and trained.data.mix else None
    return tokenizer.with_prompt_template(source.data.prompt_template) if source else tokenizer


def task_data(task: TaskConfig) -> DataConfig:
    """The data set that the task names; an empty section where it names none."""
    if not task.data:
        return DataConfig()
    try:
        found: DataConfig = load_config("evaluate", [f"data={task.data}"]).data
    except ConfigError as error:
        raise ConfigError([f"task.{complaint}" for complaint in error.complaints]) from None
    return found


def filled(given: DataConfig, usual: DataConfig) -> DataConfig:
    """With what another section says where the first says nothing."""
    nothing = DataConfig()
    unsaid = [key.name for key in fields(given) if getattr(given, key.name) == getattr(nothing, key.name)]
    return replace(given, **{name: getattr(usual, name) for name in unsaid})


def wants_answers(task: TaskConfig) -> bool:
    """Whether plain text can't be scored by all of the task's metrics."""
    return any(metric in REQUIRED for metric in task.metrics)


def place_of(data: DataConfig, trained: Trained | None) -> Place:
    """Of the test rows; where a training has none, of its validation rows."""
    try:
        return evaluation_place(data)
    except DataError:
        if not trained or data.test_path:
            raise
        return replace(choose_places(trained.data)["validation"], note=NO_TEST)


def load_task_rows(config: ScoringConfig, chosen: ChosenRows, quarantine: Quarantine | None = None) -> TaskRows:
    """Test rows; and training rows where something is made of them and data.path names any.

    Bad rows go to the quarantine; without one they are refused. DataError too where one of the two has targets alone.
    """
    task, data, columns = config.task, chosen.data, columns_of(config.task, chosen.data)
    read = validation_rows(chosen, quarantine, columns) if chosen.place.note == NO_TEST else None
    read = load_test_rows(data, quarantine, columns) if read is None else read
    test, ignored = usable_columns(read)
    notes = [chosen.note, chosen.place.note, CHANGED if chosen.note == OWN and changed(chosen, read) else ""]
    rows = TaskRows(with_targets(test), None, replace(chosen.place, note="; ".join(filter(None, notes))), ignored)
    counted = config.ngram_floor and "perplexity" in task.metrics
    compared = "verse" in task.metrics or bool(set(task.trivial) & set(NEEDS_TRAINING_ROWS))
    if not data.path or not (counted or compared or task.examples):
        return rows
    # Of a few training rows n-grams are a floor that every model passes. Where the test rows were held out of so many,
    # more would hold them too.
    own, held_out = chosen.trained, chosen.place.note == NO_TEST
    whole = replace(data, max_rows=own.data.max_rows if own and held_out else None)
    train = load_training_rows(whole, own.seed if own else config.seed, quarantine, columns)
    train = with_targets(usable_columns(train)[0])
    require_same_kind(train, rows.test, place_in(data.path, "train"), rows.place)
    return rows._replace(train=train)


def validation_rows(chosen: ChosenRows, quarantine: Quarantine | None, columns: set[str]) -> datasets.Dataset:
    """Those of the model's training, in which they may be a share of the rows that were held out by its seed."""
    assert chosen.trained
    rows = load_splits(chosen.trained.data, chosen.trained.seed, None, quarantine, columns)["validation"]
    return rows.select(range(min(chosen.data.max_rows or len(rows), len(rows))))


def changed(chosen: ChosenRows, read: datasets.Dataset) -> bool:
    """Whether the rows are others than at the time of the training, as far as its run.yaml tells."""
    assert chosen.trained
    trained = chosen.trained
    split = "validation" if chosen.place.note else "test"  # a place has a note where there are no test rows
    if split not in trained.digests:  # an older training: its rows have changed where those for training have
        return "train" in trained.digests and rows_of_source(trained) is None
    if chosen.data != filled(trained.data, chosen.data):  # the command takes fewer of them, say
        quarantine = Quarantine(1.0) if trained.data.bad_rows == "quarantine" else None
        whole = replace(chosen, data=trained.data)
        read = (
            validation_rows(whole, quarantine, set())
            if chosen.place.note == NO_TEST
            else load_test_rows(trained.data, quarantine)
        )
    return fingerprint(read) != trained.digests[split]
